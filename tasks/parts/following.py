"""What a tracker sees and says: the frames of clips, and the objects that are followed through them."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
import polars as pl
import torch
from pydantic import Field, model_validator
from torch import Tensor

from models.base import Batch
from models.parts.detection import Objects
from models.parts.options import OneOf, Plain
from tasks.base import read_fields
from tasks.parts.clips import EncodedClip, open_clip, read_clip, still
from tasks.parts.columns import Columns, Dense, Ragged
from tasks.parts.detecting import LEAST_SCORE, DetectionCodec, ObjectDetector
from tasks.parts.drawing import film
from tasks.parts.filmed import packed
from tasks.parts.images import EncodedImage, Pixels, read_image
from tasks.parts.letterbox import letterbox, letterbox_all
from tasks.parts.problems import Invalid, Problem
from tasks.parts.tracks import Association, Seen, Sighting, follow

MOST_FRAMES, MOST_BYTES = 2_000, 512 << 20
"""Frames of one clip that is asked about, and bytes that the squares of all that are looked at together may take."""
MOST_GIVEN = 500
"""Detections in one frame of a request."""
AT_ONCE = 256
"""Frames that a network looks at together when it answers."""
RATE = 10.0
"""Frames a second of what was sent as images."""
_BOX, _CLASS = 4, 5
_BEHIND = -1.0
"""The score of everything behind the end of a clip."""


class TrackingParameters(Plain):
    """What is wanted besides the objects."""

    annotated: bool = Field(
        False, description="Whether `video` shows the clip with boxes and identities drawn over it."
    )


class GivenObject(Plain):
    """A detection that a request brings along."""

    label: str = Field("object", max_length=200, description="What it is.")
    score: float = Field(1.0, ge=0, le=1, description="How sure that is, from 0 to 1.")
    box: tuple[float, float, float, float] = Field(
        description="Left, top, right and bottom, in pixels of the frame as it is shown."
    )

    @model_validator(mode="after")
    def _is_box(self) -> Self:
        left, top, right, bottom = self.box
        if not (left < right and top < bottom) or max(map(abs, self.box)) > 1e6:
            raise ValueError(
                "the right side must be right of the left one, and the bottom below the top"
            )
        return self


class _Given(TrackingParameters):
    """The fields of an input that are no files."""

    detections: list[list[GivenObject]] | None = None


class TrackingInput(TrackingParameters):
    """One clip, as a video file or as images, and perhaps what is known to be in its frames."""

    clip: EncodedClip = Field(
        b"",
        description="A video file as base64, with or without a `data:` prefix: MP4, MOV, WebM, MKV, AVI or an "
        "animated GIF. The string may also stand alone, in place of the object.",
    )
    frames: list[EncodedImage] = Field(
        [],
        description="Instead of a clip: its frames in order, all of one size, as image files in base64.",
    )
    detections: list[list[GivenObject]] | None = Field(
        None,
        description="The objects of each frame, where they are known: then these are followed, and the model does "
        "not look for any. Neither clip nor frames are needed.",
    )


class TrackedObject(Plain):
    """An object in one frame of a clip."""

    id: int = Field(description="Which one it is: the same in all frames.")
    label: str = Field(description="What it is, by all frames together.")
    score: float = Field(description="How sure it is that it is here, from 0 to 1.")
    box: list[float] = Field(
        min_length=_BOX,
        max_length=_BOX,
        description="Left, top, right and bottom, in pixels of the frame as it is shown.",
    )


class TrackingPrediction(Plain):
    """The objects of a clip, followed through its frames."""

    frames: list[list[TrackedObject]] = Field(description="A list for each frame, in order.")
    video: EncodedClip = Field(
        b"", description="If `annotated` was asked for, an MP4 file as base64; else empty."
    )


class Asked(NamedTuple):
    """A clip of a request: frames in squares (T, C, side, side), what they came from, and what is wanted."""

    pixels: Pixels
    size: tuple[int, int]
    images: list[bytes]
    rate: float
    given: list[Seen] | None
    annotated: bool


class TrackingCodec(DetectionCodec):
    """Frames as a detector sees them, and how what is found in them becomes tracks."""

    association: OneOf[Association]

    first_piece: ClassVar[int | None] = 1

    def encode(self, examples: pl.DataFrame, *, targets: bool = True) -> Columns:
        """Frames (T, C, side, side), sizes (N, 2); objects (M, 6): place of the frame, box, class or -1 for a crowd."""
        offsets = torch.tensor([0, *examples["frames"].list.len().to_list()]).cumsum(0)
        try:
            pixels, sizes = letterbox_all(
                examples["frames"].explode(), self.side, self.channels, self.mean
            )
            inputs = Ragged(pixels, offsets), Dense(sizes[offsets[:-1]])
            if not targets:
                return Columns(inputs)
            marked = self._objects(examples["objects"].explode(), sizes)
        except Invalid as error:
            raise Invalid(*(_of_clip(p, offsets) for p in error.problems)) from None
        return Columns(inputs, (_by_clip(marked, offsets),))

    def read_input(self, value: Any) -> Any:
        fields = dict(value) if isinstance(value, Mapping) else {"clip": value}
        clip, frames = fields.pop("clip", b""), fields.pop("frames", [])
        given = read_fields(_Given, fields)
        if bool(clip) + bool(frames) != 1 and (clip or frames or given.detections is None):
            found = [name for name, part in (("clip", clip), ("frames", frames)) if part]
            allowed = "one of clip and frames"
            raise Invalid(Problem((), "not a clip", found or "neither", allowed))
        images, rate = self._film(clip) if clip else (self._images(frames), RATE)
        seen = None if given.detections is None else _read_given(given.detections, images)
        if given.annotated and not images:
            raise Invalid(Problem(("annotated",), "nothing to draw on", None, "a clip or frames"))
        # What is there is known: nobody looks for it.
        shown = images if seen is None else []
        pixels, size = self._squares(shown)
        return Asked(pixels, size, images, rate, seen, given.annotated)

    def _film(self, value: Any) -> tuple[list[bytes], float]:
        """The frames of a video in a request, as image files, and how many there are a second. Raises Invalid."""
        data = read_clip(value if isinstance(value, bytes) else {"clip": value})
        with open_clip(data) as clip:
            self._refuse_long(clip.frames)
            rate = clip.frames / clip.seconds if clip.seconds else RATE
        return list(packed(data)), rate

    def _images(self, values: Any) -> list[bytes]:
        """The images of a request. Raises Invalid, naming the frame."""
        if not isinstance(values, list):
            raise Invalid(
                Problem(("frames",), "not frames", type(values).__name__, "a list of images")
            )
        self._refuse_long(len(values))
        found, problems = [], list[Problem]()
        for place, value in enumerate(values):
            try:
                found.append(read_image(value))
            except Invalid as error:
                problems += [p._replace(loc=("frames", place, *p.loc)) for p in error.problems]
        if problems:
            raise Invalid(*problems)
        return found

    def _refuse_long(self, frames: int) -> None:
        most = min(MOST_FRAMES, self.most_together())
        if frames > most:
            allowed = f"at most {most:,}; cut the clip up"
            raise Invalid(Problem((), "too many frames", frames, allowed))

    def _squares(self, images: Sequence[bytes]) -> tuple[Pixels, tuple[int, int]]:
        """Images of one size as pixels (T, C, side, side); one black frame for none. Raises Invalid."""
        pixels = np.zeros((max(1, len(images)), self.channels, self.side, self.side), np.uint8)
        size = None
        for place, data in enumerate(images):
            try:
                letter = letterbox(data, self.side, self.channels, self.mean)
            except Invalid as error:
                raise Invalid(
                    *(p._replace(loc=("frames", place, *p.loc)) for p in error.problems)
                ) from None
            size = size or letter.size
            if letter.size != size:
                msg = "another size than the frames before"
                raise Invalid(Problem(("frames", place), msg, letter.size, size))
            pixels[place] = letter.pixels
        return pixels, size or (self.side, self.side)

    def blank(self) -> bytes:
        return still(self.side)

    def length(self, given: Asked) -> int:
        return len(given.pixels)

    def most_together(self) -> int:
        return max(1, MOST_BYTES // (self.channels * self.side**2))

    def encode_inputs(self, inputs: Sequence[Any]) -> Columns:
        pixels = torch.from_numpy(np.concatenate([asked.pixels for asked in inputs]))
        offsets = torch.tensor([0, *(len(asked.pixels) for asked in inputs)]).cumsum(0)
        sizes = torch.tensor([asked.size for asked in inputs], dtype=torch.float32)
        return Columns((Ragged(pixels, offsets), Dense(sizes)))

    def decode(self, outputs: Tensor) -> list[Any]:
        """Tracks from boxes, scores and classes (B, T, K, 6) of all that was found in each frame."""
        return [
            _prediction(follow([self._seen(frame) for frame in _within(clip)], self.association))
            for clip in outputs
        ]

    def _seen(self, found: Tensor) -> Seen:
        """What was found in a frame (K, 6)."""
        sure = found[found[:, _BOX] >= LEAST_SCORE].double()
        labels = [self.labels[place] for place in sure[:, _CLASS].int().tolist()]
        return Seen(sure[:, :_BOX].numpy(), sure[:, _BOX].numpy(), labels)

    def complete(self, predictions: list[Any], inputs: Sequence[Any]) -> list[Any]:
        """The tracks of given detections, and films of tracks, where that is what was asked for."""
        return [
            self._complete(prediction, asked) if isinstance(asked, Asked) else prediction
            for prediction, asked in zip(predictions, inputs, strict=True)
        ]

    def _complete(self, found: TrackingPrediction, asked: Asked) -> TrackingPrediction:
        if asked.given is not None:
            found = _prediction(follow(asked.given, self.association))
        if not asked.annotated:
            return found
        told = [[Sighting(o.id, o.label, o.score, o.box) for o in frame] for frame in found.frames]
        video = film(asked.images, told, asked.rate)
        return TrackingPrediction.model_construct(frames=found.frames, video=video)


class Tracker(ObjectDetector):
    """Learns from clips (B, T, C, H, W) uint8, their lengths (B,) and sizes (B, 2), frame by frame as a detector."""

    def weight(self, batch: Batch) -> Tensor | int:
        return super().weight(as_images(batch))

    def _varied(self, batch: Batch) -> tuple[Tensor, Objects]:
        # Frame by frame: a detector looks at one alone.
        return super()._varied(as_images(batch))

    def predict(self, *inputs: Tensor) -> Tensor:
        """Boxes in pixels of the frames as they were sent, scores and classes (B, T, K, 6).

        All behind the end of a clip has a score below 0.
        """
        frames, lengths, sizes = inputs
        steps = frames.shape[1]
        images, sizes = frames.flatten(0, 1), sizes.repeat_interleave(steps, 0)
        # Who writes the network down for others knows no number of frames.
        if torch.compiler.is_exporting() or len(images) <= AT_ONCE:
            found = super().predict(images, sizes)
        else:
            parts = zip(images.split(AT_ONCE), sizes.split(AT_ONCE), strict=True)
            found = torch.cat([super(Tracker, self).predict(*part) for part in parts])
        found = found.unflatten(0, (-1, steps))
        behind = torch.arange(steps, device=lengths.device) >= lengths[:, None]
        scores = found[..., _BOX : _BOX + 1].masked_fill(behind[..., None, None], _BEHIND)
        return torch.cat([found[..., :_BOX], scores, found[..., _CLASS:]], -1)


def as_images(batch: Batch) -> Batch:
    """A batch of clips as one of all their frames, which a detector learns from."""
    (frames, lengths, sizes), (values, counts) = batch.inputs, batch.targets
    inside = torch.arange(frames.shape[1], device=lengths.device) < lengths[:, None]
    images = frames[inside]
    known = torch.arange(values.shape[1], device=counts.device) < counts[:, None]
    starts = lengths.cumsum(0) - lengths
    frame = (starts[:, None] + values[..., 0].long())[known]
    found = torch.bincount(frame, minlength=len(images))
    # Objects lie frame by frame already.
    place = torch.arange(len(frame), device=frame.device) - (found.cumsum(0) - found)[frame]
    objects = values.new_zeros(len(images), max(1, int(found.max())), _BOX + 1)
    objects[frame, place] = values[known][:, 1:]
    return Batch((images, sizes.repeat_interleave(lengths, 0)), (objects, found))


def _by_clip(marked: Ragged, offsets: Tensor) -> Ragged:
    """The objects (M, 5) of every frame as objects (M, 6) of every clip, of the frames at offsets[i]:offsets[i + 1]."""
    lengths = offsets.diff()
    within = torch.arange(int(offsets[-1])) - offsets[:-1].repeat_interleave(lengths)
    places = within.repeat_interleave(marked.lengths)[:, None].float()
    return Ragged(torch.cat([places, marked.values], 1), marked.offsets[offsets])


def _of_clip(problem: Problem, offsets: Tensor) -> Problem:
    """A problem of the row of a frame, as one of a frame of the row of its clip."""
    match problem.loc:
        case ("row", int(row), *rest):
            clip = int(torch.searchsorted(offsets, row - 1, right=True)) - 1
            frame = row - int(offsets[clip])
            return problem._replace(loc=("row", clip + 1, "frame", frame, *rest))
    return problem


def _within(clip: Tensor) -> Iterator[Tensor]:
    """The frames (K, 6) of a padded clip (T, K, 6)."""
    ended = (clip[..., _BOX] < 0).all(-1)
    yield from clip[: int((~ended).sum())]


def _read_given(detections: list[list[GivenObject]], images: Sequence[bytes]) -> list[Seen]:
    """Detections of a request, a list for each of its frames. Raises Invalid."""
    count = len(images) or min(max(1, len(detections)), MOST_FRAMES)
    if len(detections) != count:
        raise Invalid(Problem(("detections",), "not a list for each frame", len(detections), count))
    crowded = [(n, len(found)) for n, found in enumerate(detections) if len(found) > MOST_GIVEN]
    if crowded:
        raise Invalid(
            *(Problem(("detections", n), "too many objects", c, MOST_GIVEN) for n, c in crowded)
        )
    return [
        Seen(
            np.array([o.box for o in found], np.float64).reshape(-1, _BOX),
            np.array([o.score for o in found], np.float64),
            [o.label for o in found],
        )
        for found in detections
    ]


def _prediction(frames: list[list[Sighting]]) -> TrackingPrediction:
    make = TrackedObject.model_construct
    return TrackingPrediction.model_construct(
        frames=[[make(**found._asdict()) for found in frame] for frame in frames], video=b""
    )
