"""Object tracking: what is in a clip, where, and which one it is from frame to frame."""

from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
import polars as pl
from pydantic import Field

from models.base import Architecture, ImageBackbone
from models.parts.detection import Detector
from models.parts.options import AUTO, Auto, OneOf
from models.parts.published import Published
from tasks.base import DatasetOptions, Facts, Metrics, Objective, Task, Upload
from tasks.object_detection import LARGEST_SIDE, SMALLEST_SIDE, STEP, ObjectDetection
from tasks.parts.augmentation import Augmentation
from tasks.parts.filmed import MOT, MOT_SENTENCE, read_sequences
from tasks.parts.following import (
    Tracker,
    TrackingCodec,
    TrackingInput,
    TrackingParameters,
    TrackingPrediction,
)
from tasks.parts.images import ImageFacts
from tasks.parts.marked import OBJECT
from tasks.parts.marked_files import describe_marked
from tasks.parts.tracking_metrics import TRACKING_METRICS, Scene, Tally, of_label, tally, total
from tasks.parts.tracks import Association, Byte

STRETCH, LONGEST = 4, 500
"""Frames of an example to learn from, and at most of one that is held out, over which identities are kept."""
FEWEST_EPOCHS = 15


class ObjectTracking(Task):
    """Find the objects of a clip in every frame, and tell which one is which from frame to frame."""

    name: Literal["object-tracking"] = "object-tracking"
    architecture: Auto[OneOf[ImageBackbone]] = Field(
        AUTO, description="The network that turns frames into features."
    )
    detector: Auto[OneOf[Detector]] = Field(
        AUTO, description="How objects are found in the features."
    )
    association: OneOf[Association] = Field(
        Byte(), description="How what is found in one frame after the other becomes tracks."
    )
    image_size: Auto[Annotated[int, Field(ge=SMALLEST_SIDE, le=LARGEST_SIDE, multiple_of=STEP)]] = (
        Field(AUTO, description="Side in pixels of the squares that frames are fitted into.")
    )
    channels: Auto[Literal[1, 3]] = Field(
        AUTO, description="1 to look at brightness alone, 3 to look at colours."
    )
    augmentation: Auto[Augmentation] = Field(
        AUTO, description="How training frames are varied; `{}` leaves them as they are."
    )

    has_columns = False
    tells_splits = True
    bulky = ("frames",)
    input_type = TrackingInput
    parameters_type = TrackingParameters
    prediction_type = TrackingPrediction
    codec_type = TrackingCodec
    objective = Objective("mota")
    metrics = TRACKING_METRICS
    of_base: ClassVar[tuple[str, ...]] = ("architecture", "image_size", "channels")
    formats: ClassVar[Mapping[str, str]] = {MOT: MOT_SENTENCE}

    @classmethod
    def read(cls, upload: Upload, options: DatasetOptions) -> pl.DataFrame:
        return read_sequences(upload)

    @classmethod
    def identity(cls, examples: pl.DataFrame, schema: Mapping[str, Any]) -> list[str]:
        return ["content"]

    @classmethod
    def describe(
        cls, splits: Mapping[str, pl.DataFrame], options: DatasetOptions
    ) -> tuple[dict[str, pl.DataFrame], dict[str, Any], dict[str, Any]]:
        """Whole sequences are split; what is learned from are short stretches of them."""
        pictures = {name: _pictures(frame) for name, frame in splits.items()}
        _, schema, marked = describe_marked(pictures)
        told = ("objects", "box_width", "box_height", "without_objects", "clipped_boxes")
        report = {
            "sequences": {name: frame.height for name, frame in splits.items()},
            "frames": {name: frame.height for name, frame in pictures.items()},
            "tracks": {name: _tracks(frame) for name, frame in splits.items()},
            **{name: marked[name] for name in told},
            "objects_per_frame": marked["objects_per_image"],
            "ignored": marked["crowds"],
            "outside": sum(int(frame["outside"].sum()) for frame in splits.values()),
            "width": marked["width"],
            "height": marked["height"],
        }
        examples = {
            name: _cut(frame, STRETCH if name == "train" else LONGEST)
            for name, frame in splits.items()
        }
        return examples, schema, report

    def choose_architecture(self, facts: Facts) -> Architecture:
        return self._detection().choose_architecture(facts)

    def resolve(self, facts: Facts) -> Self:
        found = self._detection().resolve(facts)
        names = ("architecture", "detector", "image_size", "channels", "augmentation")
        return self.model_copy(update={name: getattr(found, name) for name in names})

    def defaults(self, facts: Facts) -> dict[str, Any]:
        """Those of a detector that learns from as many images as there are frames."""
        images = facts._replace(splits={n: STRETCH * count for n, count in facts.splits.items()})
        chosen = self._detection().defaults(images)
        if "epochs" in chosen:
            # Frames of one film are much alike: to see them all is to see each of them several times.
            chosen["epochs"] = max(FEWEST_EPOCHS, chosen["epochs"] // 2)
        return chosen | {"batch_size": max(1, chosen["batch_size"] // STRETCH)}

    def _detection(self) -> ObjectDetection:
        """The detector within."""
        return ObjectDetection(
            architecture=self.architecture,
            detector=self.detector,
            image_size=self.image_size,
            channels=self.channels,
            augmentation=self.augmentation,
        )

    def learn_codec(
        self, train: pl.LazyFrame, schema: Mapping[str, Any], base: Any | None = None
    ) -> TrackingCodec:
        every = pl.element().explode().drop_nulls()
        images = train.select(
            pl.col("frames").list.first().alias("image"), pl.col("objects").list.eval(every)
        )
        learned = self._detection().learn_codec(images, schema, base)
        return TrackingCodec(association=self.association, **dict(learned))

    def reading(self, published: Published) -> Any:
        return self._detection().reading(published)

    def build(self, codec: TrackingCodec) -> Tracker:
        found = self._detection().build(codec)
        return Tracker(found.backbone, found.head, found.criterion, codec, found.augmentation)

    def same_outputs(self, codec: TrackingCodec, base: Any) -> bool:
        return self._detection().same_outputs(codec, base)

    def score(self, predictions: Sequence[TrackingPrediction], examples: pl.DataFrame) -> Metrics:
        clips = _scenes(predictions, examples)
        return total(tally(truth, found) for truth, found in clips).metrics()

    def evaluate(
        self, predictions: Sequence[TrackingPrediction], examples: pl.DataFrame
    ) -> dict[str, Any]:
        """All metrics, and those of each sequence and each label alone."""
        clips = _scenes(predictions, examples)
        labels = sorted({label for truth, _ in clips for scene in truth for label in scene.labels})
        by_name: dict[str, list[Tally]] = {}
        for name, (truth, found) in zip(examples["name"], clips, strict=True):
            by_name.setdefault(name, []).append(tally(truth, found))
        return {
            **total(part for parts in by_name.values() for part in parts).metrics(),
            "sequences": {name: total(parts).metrics() for name, parts in by_name.items()},
            "classes": {
                label: total(
                    tally(of_label(truth, label), of_label(found, label)) for truth, found in clips
                ).metrics()
                for label in labels
            },
        }


def _pictures(sequences: pl.DataFrame) -> pl.DataFrame:
    """A row for each frame, as data sets of marked images have them."""
    count = pl.int_ranges(1, pl.col("objects").list.len() + 1).alias("place")
    rows = sequences.select("name", "width", "height", "colour", "clipped", count, "objects")
    rows = rows.explode("place", "objects")
    names = pl.format("{} frame {}", "name", "place").alias("name")
    fields = [pl.element().struct.field(field.name) for field in OBJECT.fields]
    return rows.select(
        names,
        *(name for name in ImageFacts._fields if name in rows.columns),
        pl.col("objects").list.eval(pl.struct(fields)),
        # Counted once for all frames of a sequence.
        pl.when(pl.col("place") == 1).then("clipped").otherwise(0).alias("clipped"),
        pl.lit(b"").alias("image"),
        pl.lit("RGB").alias("mode"),
        pl.lit(False).alias("animated"),
        pl.lit(0).alias("empty"),
        pl.lit(0).alias("unlisted"),
    )


def _tracks(sequences: pl.DataFrame) -> int:
    """How many objects are followed."""
    objects = sequences.with_row_index("sequence").explode("objects").explode("objects")
    known = objects.drop_nulls("objects").unnest("objects").filter(~pl.col("crowd"))
    return known.select("sequence", "track").n_unique()


def _cut(sequences: pl.DataFrame, most: int) -> pl.DataFrame:
    """Stretches of at most so many frames: `frames` from the `first` on, and their `objects`."""
    rows = [
        {
            "frames": frames[start : start + most],
            "name": name,
            "first": start + 1,
            "objects": objects[start : start + most],
            "content": sha256(frames[start]).hexdigest(),
        }
        for name, frames, objects in sequences.select("name", "frames", "objects").iter_rows()
        for start in range(0, len(frames), most)
    ]
    kinds = {"name": pl.String(), "first": pl.Int64(), "content": pl.String()}
    schema = {"frames": pl.List(pl.Binary), "objects": sequences.schema["objects"], **kinds}
    return pl.DataFrame(rows, schema={name: schema[name] for name in rows[0]})


def _scenes(
    predictions: Sequence[TrackingPrediction], examples: pl.DataFrame
) -> list[tuple[list[Scene], list[Scene]]]:
    """What is there and what was found, clip by clip and frame by frame."""
    boxes = lambda rows: np.array(rows, np.float64).reshape(-1, 4)  # noqa: E731
    return [
        (
            [
                Scene(
                    [o["track"] for o in frame],
                    boxes([(o["x1"], o["y1"], o["x2"], o["y2"]) for o in frame]),
                    [o["label"] for o in frame],
                    [o["crowd"] for o in frame],
                )
                for frame in objects
            ],
            [
                Scene(
                    [o.id for o in frame],
                    boxes([o.box for o in frame]),
                    [o.label for o in frame],
                    [False] * len(frame),
                )
                for frame in prediction.frames
            ],
        )
        for prediction, objects in zip(predictions, examples["objects"].to_list(), strict=True)
    ]
