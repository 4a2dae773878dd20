"""What a detector sees and says: images in squares with margins, boxes in them, objects found."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import torch
from pydantic import Field
from torch import Tensor, nn

from models.base import Batch, MapBackbone, Supervised
from models.parts.boxes import areas, suppressed
from models.parts.detection import MOST, DetectionHead, Objects
from models.parts.layers import Normalised
from models.parts.options import Plain
from models.parts.precision import autocast
from tasks.base import Codec, read_fields
from tasks.parts.augmentation import Augmentation
from tasks.parts.columns import Columns, Dense, Ragged
from tasks.parts.images import ImageInput, Pixels, black, read_image
from tasks.parts.letterbox import corners, fit, letterbox, letterbox_all
from tasks.parts.pictures import Squares
from tasks.parts.problems import Invalid, Problem

LEAST_SCORE = 0.005
"""Nobody wants to know of less: neither a client nor a metric."""
LEAST_SEEN = 0.3
"""Share of an object that must stay in the square for it to be learned from when images are moved."""
ALIKE = 0.6
"""Of objects of one class that overlap by more than this, the best one is kept."""
_BOX = 4
_CROWD, _NONE = -1, -2


class DetectionParameters(Plain):
    """Which of the objects found are wanted."""

    threshold: float = Field(0.3, ge=0, le=1, description="The score of an object at the least.")
    max_objects: int = Field(MOST, ge=1, le=MOST, description="So many at the most, the best.")


class DetectionInput(DetectionParameters, ImageInput):
    """One image to find objects in: PNG, JPEG, WebP, BMP, GIF (its first frame) or TIFF."""


class DetectedObject(Plain):
    """An object that was found."""

    label: str = Field(description="What it is.")
    score: float = Field(description="How sure that is, from 0 to 1.")
    box: list[float] = Field(
        min_length=_BOX,
        max_length=_BOX,
        description="Left, top, right and bottom, in pixels of the image as it is shown: upright, "
        "whatever its EXIF data say.",
    )


class DetectionPrediction(Plain):
    """The objects of an image."""

    objects: list[DetectedObject] = Field(description="The surest first.")


class Shown(NamedTuple):
    """An image of a request in its square, the size it was sent with, and what is wanted."""

    pixels: Pixels
    size: tuple[int, int]
    wanted: DetectionParameters


class DetectionCodec(Squares, Codec):
    """Images in squares with margins of their mean colour; boxes in shares of the squares."""

    labels: list[str]
    counts: list[int]
    """How many objects of each label the train split has."""

    def encode(self, examples: pl.DataFrame, *, targets: bool = True) -> Columns:
        """Pixels (N, C, side, side) and sizes (N, 2); objects (M, 5): a box, and its class or -1 for a crowd."""
        pixels, sizes = letterbox_all(examples["image"], self.side, self.channels, self.mean)
        inputs = Dense(pixels), Dense(sizes)
        return Columns(inputs, (self._objects(examples["objects"], sizes),) if targets else ())

    def _objects(self, objects: pl.Series, sizes: Tensor) -> Ragged:
        place = {label: number for number, label in enumerate(self.labels)}
        rows = []
        for row, (found, (width, height)) in enumerate(
            zip(objects.to_list(), sizes.int().tolist(), strict=True), 1
        ):
            wide, high, left, top = fit((width, height), self.side)
            across, down = wide / width, high / height
            for o in found:
                label, crowd = o["label"], o["crowd"]
                if label not in place and not crowd:
                    problem = Problem(("row", row, "objects"), "unknown label", label, self.labels)
                    raise Invalid(problem)
                x1, x2 = (left + x * across for x in (o["x1"], o["x2"]))
                y1, y2 = (top + y * down for y in (o["y1"], o["y2"]))
                box = (side / self.side for side in (x1, y1, x2, y2))
                rows.append([*box, _CROWD if crowd else place[label]])
        values = torch.tensor(rows, dtype=torch.float32).view(-1, _BOX + 1)
        lengths = torch.tensor([0, *objects.list.len().to_list()])
        return Ragged(values, lengths.cumsum(0))

    def read_input(self, value: Any) -> Shown:
        wanted = DetectionParameters()
        if isinstance(value, Mapping):
            own = {name: part for name, part in value.items() if name != "image"}
            wanted = read_fields(DetectionParameters, own)
            value = {"image": value["image"]} if "image" in value else {}
        letter = letterbox(read_image(value), self.side, self.channels, self.mean)
        return Shown(letter.pixels, letter.size, wanted)

    def blank(self) -> bytes:
        return black(self.side)

    def encode_inputs(self, inputs: Sequence[Shown]) -> Columns:
        pixels = torch.from_numpy(np.stack([shown.pixels for shown in inputs]))
        sizes = torch.tensor([shown.size for shown in inputs], dtype=torch.float32)
        return Columns((Dense(pixels), Dense(sizes)))

    def decode(self, outputs: Tensor) -> list[DetectionPrediction]:
        """Predictions of all that was found, from boxes, scores and classes (B, K, 6), the best first."""
        return [self._prediction(found) for found in outputs]

    def _prediction(self, found: Tensor) -> DetectionPrediction:
        make = DetectedObject.model_construct
        sure = found[found[:, _BOX] >= LEAST_SCORE]
        return DetectionPrediction.model_construct(
            objects=[
                make(label=self.labels[int(place)], score=score, box=box)
                for *box, score, place in sure.tolist()
            ]
        )

    def complete(self, predictions: list[Any], inputs: Sequence[Any]) -> list[Any]:
        """The objects that are wanted; metrics are of all."""
        default = DetectionParameters()
        return [
            _wanted(prediction, shown.wanted if isinstance(shown, Shown) else default)
            for prediction, shown in zip(predictions, inputs, strict=True)
        ]


def _wanted(found: DetectionPrediction, wanted: DetectionParameters) -> DetectionPrediction:
    sure = [o for o in found.objects if o.score >= wanted.threshold]
    return DetectionPrediction.model_construct(objects=sure[: wanted.max_objects])


class ObjectDetector(Supervised):
    """Learns from images (B, C, H, W) uint8 and their sizes (B, 2); a detector's head over the backbone's maps."""

    backbone: MapBackbone
    head: DetectionHead

    def __init__(
        self,
        backbone: MapBackbone,
        head: DetectionHead,
        criterion: nn.Module,
        codec: DetectionCodec,
        augmentation: Augmentation,
    ) -> None:
        super().__init__(backbone, head, criterion)
        self.augmentation, self.side = augmentation, codec.side
        self.normalised = Normalised(codec.mean, codec.std)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Images (B, C, H, W), normalised or bytes, to the outputs of the head (B, ...)."""
        images = inputs[0] if inputs[0].is_floating_point() else self.normalised(inputs[0])
        outputs: Tensor = self.head(self.backbone.maps(images))
        return outputs

    def loss(self, batch: Batch) -> Tensor:
        images, objects = self._varied(batch)
        with autocast(self.precision, images.device):
            outputs = (self.kernels or self)(images)
        total: Tensor = self.criterion(outputs.float(), objects)
        return total / self.weight(batch)

    def weight(self, batch: Batch) -> Tensor | int:
        # An image counts as its objects, or as one where nothing is.
        return objects_of(batch).known.sum(1).clamp(min=1).sum()

    def _varied(self, batch: Batch) -> tuple[Tensor, Objects]:
        """Normalised images, moved and lit at random, and where their objects are then."""
        images, objects = self.normalised(batch.inputs[0]), objects_of(batch)
        moved, boxes = self.augmentation.move_with_boxes(images, objects.boxes)
        return self.augmentation.relight(moved), kept_in(objects._replace(boxes=boxes))

    def predict(self, *inputs: Tensor) -> Tensor:
        """Boxes in pixels of the images as they were sent, scores and classes (B, K, 6), the best first."""
        images, sizes = inputs
        found = self.head.candidates(self(images).float())
        frame = corners(sizes, self.side)[:, None]
        within = (found.boxes - frame[..., :2].repeat(1, 1, 2)) / (
            frame[..., 2:] - frame[..., :2]
        ).repeat(1, 1, 2)
        boxes = within.clamp(0, 1) * sizes.repeat(1, 2)[:, None]
        hidden = suppressed(boxes, found.classes, ALIKE) | (areas(boxes) <= 0)
        scores = found.scores.masked_fill(hidden, 0)
        return torch.cat([boxes, scores[..., None], found.classes[..., None].float()], -1)


def objects_of(batch: Batch) -> Objects:
    """The objects of a batch that was encoded."""
    values, counts = batch.targets
    inside = torch.arange(values.shape[1], device=values.device) < counts[:, None]
    classes = values[..., _BOX].long().masked_fill(~inside, _NONE)
    return Objects(values[..., :_BOX], classes)


def kept_in(objects: Objects) -> Objects:
    """Objects cut at the edges of their squares; of those of which little is left nothing is known."""
    boxes = objects.boxes.clamp(0, 1)
    lost = areas(boxes) < LEAST_SEEN * areas(objects.boxes)
    return Objects(boxes, torch.where(lost & objects.known, _CROWD, objects.classes))
