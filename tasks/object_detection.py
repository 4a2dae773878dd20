"""Object detection: what is in an image, and where."""

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

import polars as pl
from pydantic import Field

from models.base import Architecture, ImageBackbone
from models.parts.center_points import CenterPoints
from models.parts.detection import Detector
from models.parts.optimizers import AdamW
from models.parts.options import AUTO, Auto, OneOf
from models.parts.published import Published
from models.parts.schedules import Cosine
from models.parts.set_prediction import SetPrediction
from models.resnet import ResNet
from tasks.base import DatasetOptions, Facts, Metrics, Objective, Task, Upload
from tasks.parts.augmentation import Augmentation
from tasks.parts.average_precision import (
    PRECISION_METRICS,
    Marks,
    best_threshold,
    per_class,
    precisions,
    summary,
)
from tasks.parts.detecting import (
    DetectionCodec,
    DetectionInput,
    DetectionParameters,
    DetectionPrediction,
    ObjectDetector,
)
from tasks.parts.marked_files import (
    MARKED_FORMATS,
    STRATUM,
    describe_marked,
    read_marked,
)
from tasks.parts.pictures import (
    Squares,
    as_shown,
    fitting_channels,
    pixel_moments,
    published_squares,
)

SMALLEST_SIDE, LARGEST_SIDE, STEP = 16, 1024, 16
AIM = 24
"""Pixels across which an object of the usual size should be seen."""
FAIR, LARGE = 128, 512
"""Sides that are enough for large objects, and that are too many for a default."""


class ObjectDetection(Task):
    """Find the objects of an image: what each is, and the box around it."""

    name: Literal["object-detection"] = "object-detection"
    architecture: Auto[OneOf[ImageBackbone]] = Field(
        AUTO, description="The network that turns images into features."
    )
    detector: Auto[OneOf[Detector]] = Field(
        AUTO, description="How objects are found in the features."
    )
    image_size: Auto[Annotated[int, Field(ge=SMALLEST_SIDE, le=LARGEST_SIDE, multiple_of=STEP)]] = (
        Field(AUTO, description="Side in pixels of the squares that images are fitted into.")
    )
    channels: Auto[Literal[1, 3]] = Field(
        AUTO, description="1 to look at brightness alone, 3 to look at colours."
    )
    augmentation: Auto[Augmentation] = Field(
        AUTO, description="How training images are varied; `{}` leaves them as they are."
    )

    has_columns = False
    tells_splits = True
    bulky = ("image",)
    input_type = DetectionInput
    parameters_type = DetectionParameters
    prediction_type = DetectionPrediction
    codec_type = DetectionCodec
    objective = Objective("map")
    metrics = PRECISION_METRICS
    of_base: ClassVar[tuple[str, ...]] = ("architecture", "image_size", "channels")
    formats: ClassVar[Mapping[str, str]] = MARKED_FORMATS

    @classmethod
    def read(cls, upload: Upload, options: DatasetOptions) -> pl.DataFrame:
        return read_marked(upload, options)

    @classmethod
    def stratum(cls, examples: pl.DataFrame, options: DatasetOptions) -> str | None:
        return STRATUM

    @classmethod
    def identity(cls, examples: pl.DataFrame, schema: Mapping[str, Any]) -> list[str]:
        return ["image"]

    @classmethod
    def describe(
        cls, splits: Mapping[str, pl.DataFrame], options: DatasetOptions
    ) -> tuple[dict[str, pl.DataFrame], dict[str, Any], dict[str, Any]]:
        return describe_marked(splits)

    def choose_architecture(self, facts: Facts) -> Architecture:
        return ResNet()

    def resolve(self, facts: Facts) -> Self:
        chosen = {
            "detector": CenterPoints(),
            "image_size": _side(facts),
            "augmentation": Augmentation(shift=0.1, zoom=0.3, flip=True, light=0.2),
        }
        update = {name: value for name, value in chosen.items() if getattr(self, name) == AUTO}
        colour = facts.schema["colour"]
        update["channels"] = fitting_channels(self.architecture, self.channels, colour=colour)
        return super().resolve(facts).model_copy(update=update)

    def defaults(self, facts: Facts) -> dict[str, Any]:
        chosen: dict[str, Any] = {"batch_size": 16}
        if facts.examples < 5_000:
            chosen["epochs"] = max(15, min(75, 15_000 // facts.examples))
        if isinstance(self.detector, SetPrediction):
            # Attention wants small steps, and finds its objects only after many.
            slow = {"optimizer": AdamW(learning_rate=5e-4), "schedule": Cosine(warmup=0.1)}
            chosen |= slow | {"epochs": 4 * chosen.get("epochs", 15)}
        return chosen

    def learn_codec(
        self, train: pl.LazyFrame, schema: Mapping[str, Any], base: Any | None = None
    ) -> DetectionCodec:
        labels = list(schema["labels"])
        counts, images = _counts(train.select("objects").collect()["objects"], labels)
        if base is not None:
            return DetectionCodec(labels=labels, counts=counts, **as_shown(base))
        side, channels = self.image_size, self.channels
        mean, std = pixel_moments(train.select("image"), side, channels, images)
        return DetectionCodec(
            labels=labels, counts=counts, side=side, channels=channels, mean=mean, std=std
        )

    def reading(self, published: Published) -> Squares:
        return published_squares(self.architecture, self.image_size)

    def build(self, codec: DetectionCodec) -> ObjectDetector:
        backbone = self.architecture.build(codec.channels, (codec.side, codec.side))
        head = self.detector.head(backbone, len(codec.labels), codec.side)
        return ObjectDetector(backbone, head, self.detector.criterion(), codec, self.augmentation)

    def same_outputs(self, codec: DetectionCodec, base: Any) -> bool:
        return bool(codec.labels == base.labels)

    def score(self, predictions: Sequence[DetectionPrediction], examples: pl.DataFrame) -> Metrics:
        return summary(precisions(*_marks(predictions, examples)))

    def evaluate(
        self, predictions: Sequence[DetectionPrediction], examples: pl.DataFrame
    ) -> dict[str, Any]:
        tables = precisions(*_marks(predictions, examples))
        best = best_threshold(tables)
        return {**summary(tables), "classes": per_class(tables), "best_threshold": best}


def _counts(objects: pl.Series, labels: Sequence[str]) -> tuple[list[int], int]:
    """How many objects of each label there are, crowds left out, and how many images."""
    found = objects.explode().drop_nulls().struct.unnest()
    counts = dict(found.filter(~found["crowd"])["label"].value_counts().iter_rows())
    return [counts.get(label, 0) for label in labels], len(objects)


def _marks(
    predictions: Sequence[DetectionPrediction], examples: pl.DataFrame
) -> tuple[list[Marks], list[Marks]]:
    """What was found and what is there, image by image."""
    found = [
        Marks(
            [o.label for o in prediction.objects],
            [o.box for o in prediction.objects],
            [o.score for o in prediction.objects],
        )
        for prediction in predictions
    ]
    truth = [
        Marks(
            [o["label"] for o in objects],
            [(o["x1"], o["y1"], o["x2"], o["y2"]) for o in objects],
            crowds=[o["crowd"] for o in objects],
        )
        for objects in examples["objects"].to_list()
    ]
    return found, truth


def _side(facts: Facts) -> int:
    """A side at which the usual object is large enough to be found, in steps of 16.

    No larger than the images, and than what is fair unless objects are small.
    """
    longer = max(facts.schema["width"], facts.schema["height"])
    wanted = max(FAIR, AIM / facts.schema["object"])
    side = min(longer, wanted, LARGE)
    return int(max(SMALLEST_SIDE, math.ceil(side / STEP) * STEP))
