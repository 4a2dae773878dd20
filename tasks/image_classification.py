"""Image classification: from a picture to one of several labels."""

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
import polars as pl
import torch
from pydantic import Field
from torch import Tensor, nn

from models.base import Architecture, Backbone, ImageBackbone, Supervised
from models.cnn import CNN
from models.parts.losses import ClassificationLoss, CrossEntropy
from models.parts.options import AUTO, Auto, OneOf
from models.resnet import ResNet
from tasks.base import Checked, DatasetOptions, Facts, Metrics, Objective, Task, Upload
from tasks.parts.archives import Limits, class_folders, open_archive
from tasks.parts.augmentation import Augmentation
from tasks.parts.columns import Columns, Dense
from tasks.parts.images import (
    MAX_BYTES,
    ImageFacts,
    ImageInput,
    Pixels,
    black,
    decode,
    decode_all,
    read_image,
)
from tasks.parts.labels import (
    CLASSIFICATION_METRICS,
    LabelCodec,
    LabelPrediction,
    balance,
    check_classes,
    count_labels,
    evaluate_labels,
    score_labels,
)
from tasks.parts.pictures import (
    Squares,
    as_shown,
    look,
    pixel_moments,
    refuse_foreign,
    summary,
)
from tasks.parts.problems import Invalid, Problem

FORMAT = "class-folders"
SPLIT = "split"
SMALLEST_SIDE, LARGEST_SIDE, STEP = 8, 512, 8
_LIMITS = Limits(member=MAX_BYTES)


class ImageCodec(Squares, LabelCodec):
    """Images stretched to squares, and the mean and spread of their pixels in each channel."""

    def encode(self, examples: pl.DataFrame, *, targets: bool = True) -> Columns:
        pixels = Dense(decode_all(examples["image"], self.side, self.channels))
        return Columns((pixels,), (self.encode_labels(examples["label"]),) if targets else ())

    def read_input(self, value: Any) -> Pixels:
        # Decoded here, where requests are still apart from each other.
        return decode(read_image(value), self.side, self.channels)

    def blank(self) -> bytes:
        return black(self.side)

    def encode_inputs(self, inputs: Sequence[Pixels]) -> Columns:
        return Columns((Dense(torch.from_numpy(np.stack(inputs))),))


class ImageClassifier(Supervised):
    """Learns from images (B, C, H, W) uint8; a linear head over the mean of the feature map."""

    scale: Tensor
    offset: Tensor

    def __init__(
        self,
        backbone: Backbone,
        codec: ImageCodec,
        criterion: nn.Module,
        augmentation: Augmentation,
    ) -> None:
        super().__init__(backbone, nn.Linear(backbone.width, len(codec.labels)), criterion)
        self.augmentation = augmentation
        mean, std = torch.tensor(codec.mean), torch.tensor(codec.std)
        # Not among the weights: the codec holds them. As long as a row of pixels (W * C,), since
        # numbers that repeat every third time are slow to compute with.
        self.register_buffer("scale", (1 / std).repeat(codec.side), persistent=False)
        self.register_buffer("offset", (-mean / std).repeat(codec.side), persistent=False)

    def forward(self, *inputs: Tensor) -> Tensor:
        varied = self.augmentation if self.training else Augmentation()
        images = varied.relight(self._normalised(varied.move(inputs[0])))
        scores: Tensor = self.head(self.backbone(images).mean((2, 3)))
        return scores

    def _normalised(self, images: Tensor) -> Tensor:
        """Pixels of mean 0 and deviation 1 (B, C, H, W), the channels of each side by side."""
        pixels = images.permute(0, 2, 3, 1)
        rows = torch.addcmul(self.offset, pixels.flatten(2).float(), self.scale)
        return rows.view(pixels.shape).permute(0, 3, 1, 2)


class ImageClassification(Task):
    """Give an image one of several labels."""

    name: Literal["image-classification"] = "image-classification"
    architecture: Auto[OneOf[ImageBackbone]] = Field(
        AUTO, description="The network that turns images into features."
    )
    loss: OneOf[ClassificationLoss] = Field(CrossEntropy(), description="What training minimises.")
    image_size: Auto[Annotated[int, Field(ge=SMALLEST_SIDE, le=LARGEST_SIDE, multiple_of=STEP)]] = (
        Field(AUTO, description="Side in pixels of the squares that images are stretched to.")
    )
    channels: Auto[Literal[1, 3]] = Field(
        AUTO, description="1 to look at brightness alone, 3 to look at colours."
    )
    augmentation: Auto[Augmentation] = Field(
        AUTO, description="How training images are varied; `{}` leaves them as they are."
    )

    bulky = ("image",)
    input_type = ImageInput
    prediction_type = LabelPrediction
    codec_type = ImageCodec
    objective = Objective("accuracy")
    metrics = CLASSIFICATION_METRICS
    of_base: ClassVar[tuple[str, ...]] = ("architecture", "image_size", "channels")
    formats: ClassVar[Mapping[str, str]] = {
        FORMAT: "A zip with a folder of images for each label, `cat/1.png`; or such folders within "
        "`train/`, `validation/` and `test/`. Images are PNG, JPEG, WebP, BMP, GIF or TIFF."
    }

    @classmethod
    def check(cls, files: Mapping[str, Upload], options: DatasetOptions) -> Checked:
        """As every task; one `file` with folders per split is split by them."""
        refuse_foreign(options.format, options.column_mapping, [FORMAT])
        if "file" in files and options.split.by is None and _has_split_folders(files["file"]):
            by_folder = options.split.model_copy(update={"by": SPLIT})
            options = options.model_copy(update={"split": by_folder})
        return super().check(files, options)

    @classmethod
    def read(cls, upload: Upload, options: DatasetOptions) -> pl.DataFrame:
        """One row per image: `image`, `label`, `name`, its facts, and `split` where folders tell it."""
        with open_archive(upload.path, _LIMITS) as archive:
            placed = class_folders(archive)
            frame = pl.DataFrame(
                {
                    "image": [archive.read(place.name) for place in placed],
                    "label": [place.label for place in placed],
                    "name": [place.name for place in placed],
                    SPLIT: [place.split for place in placed],
                },
                schema={
                    "image": pl.Binary,
                    "label": pl.String,
                    "name": pl.String,
                    SPLIT: pl.String,
                },
            )
        frame = frame.with_columns(look(frame))
        return frame if frame[SPLIT].null_count() == 0 else frame.drop(SPLIT)

    @classmethod
    def stratum(cls, examples: pl.DataFrame, options: DatasetOptions) -> str | None:
        return "label"

    @classmethod
    def identity(cls, examples: pl.DataFrame, schema: Mapping[str, Any]) -> list[str]:
        return ["image"]

    @classmethod
    def describe(
        cls, splits: Mapping[str, pl.DataFrame], options: DatasetOptions
    ) -> tuple[dict[str, pl.DataFrame], dict[str, Any], dict[str, Any]]:
        nested = [name for name, frame in splits.items() if SPLIT in frame.columns]
        if nested:
            found, allowed = "folders per split", "folders per label, or the archive as `file`"
            raise Invalid(
                *(Problem((name,), "is one split already", found, allowed) for name in nested)
            )
        labels = check_classes(splits, "label")
        facts = pl.concat(frame.select(ImageFacts._fields) for frame in splits.values())
        schema = {
            "labels": labels,
            "width": facts["width"].median(),
            "height": facts["height"].median(),
            "colour": bool(facts["colour"].any()),
        }
        report = {**balance(splits, "label"), **summary(facts)}
        examples = {name: frame.select("image", "label", "name") for name, frame in splits.items()}
        return examples, schema, report

    def choose_architecture(self, facts: Facts) -> Architecture:
        return CNN() if _side(facts) <= 32 else ResNet()

    def resolve(self, facts: Facts) -> Self:
        chosen = {
            "image_size": _side(facts),
            "channels": 3 if facts.schema["colour"] else 1,
            "augmentation": Augmentation(shift=0.1, zoom=0.1, rotate=10, light=0.2),
        }
        update = {name: value for name, value in chosen.items() if getattr(self, name) == AUTO}
        return super().resolve(facts).model_copy(update=update)

    def learn_codec(
        self, train: pl.LazyFrame, schema: Mapping[str, Any], base: Any | None = None
    ) -> ImageCodec:
        labels, counts = count_labels(train.select("label").collect()["label"])
        if base is not None:
            return ImageCodec(labels=labels, counts=counts, **as_shown(base))
        side, channels = self.image_size, self.channels
        mean, std = pixel_moments(train.select("image"), side, channels, sum(counts))
        return ImageCodec(
            labels=labels, counts=counts, side=side, channels=channels, mean=mean, std=std
        )

    def build(self, codec: ImageCodec) -> ImageClassifier:
        backbone = self.architecture.build(codec.channels, (codec.side, codec.side))
        criterion = self.loss.build(codec.counts)
        return ImageClassifier(backbone, codec, criterion, self.augmentation)

    def same_outputs(self, codec: ImageCodec, base: Any) -> bool:
        return bool(codec.labels == base.labels)

    def score(self, predictions: Sequence[LabelPrediction], examples: pl.DataFrame) -> Metrics:
        return score_labels(predictions, examples["label"].to_list())

    def evaluate(
        self, predictions: Sequence[LabelPrediction], examples: pl.DataFrame
    ) -> dict[str, Any]:
        return evaluate_labels(predictions, examples["label"].to_list())


def _has_split_folders(upload: Upload) -> bool:
    try:
        with open_archive(upload.path, _LIMITS) as archive:
            return class_folders(archive)[0].split is not None
    except Invalid:
        return False  # said, with its place, when the file is read


def _side(facts: Facts) -> int:
    """The typical side of the images in steps of 8, no larger than so many examples warrant."""
    typical = math.sqrt(facts.schema["width"] * facts.schema["height"])
    most = 64 if facts.examples < 20_000 else 128
    return max(SMALLEST_SIDE, min(most, math.ceil(typical / STEP) * STEP))
