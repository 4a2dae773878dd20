"""Image classification: from a picture to one of several labels, or to those that apply."""

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
import polars as pl
import torch
from pydantic import Field
from torch import Tensor, nn

from models.base import Architecture, Backbone, Batch, ImageBackbone, Supervised
from models.cnn import CNN
from models.parts.evidence import class_activations
from models.parts.options import AUTO, Auto, OneOf
from models.parts.precision import autocast
from models.parts.published import Published
from models.resnet import ResNet
from tasks.base import Checked, DatasetOptions, Facts, Upload
from tasks.parts.archives import Archive, Limits, class_folders, open_archive, refuse_foreign
from tasks.parts.augmentation import Augmentation, Mixing
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
from tasks.parts.label_sets import (
    LabelSetCodec,
    LabelTask,
    describe_labels,
    read_labels,
    with_rarest,
)
from tasks.parts.manifests import manifests, read_manifests
from tasks.parts.pictures import (
    Squares,
    as_shown,
    fitting_channels,
    fitting_side,
    look,
    pixel_moments,
    published_squares,
    summary,
)
from tasks.parts.problems import Invalid, Problem
from tasks.parts.splits import SPLIT

FOLDERS, MANIFEST = "class-folders", "manifest"
SMALLEST_SIDE, LARGEST_SIDE, STEP = 8, 512, 8
_LIMITS = Limits(member=MAX_BYTES)


class ImageCodec(Squares, LabelSetCodec):
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
        mixing: Mixing = Mixing(),  # noqa: B008 - never changed
    ) -> None:
        super().__init__(backbone, nn.Linear(backbone.width, len(codec.labels)), criterion)
        self.augmentation, self.mixing = augmentation, mixing
        mean, std = torch.tensor(codec.mean), torch.tensor(codec.std)
        # Not among the weights: the codec holds them. As long as a row of pixels (W * C,), since
        # numbers that repeat every third time are slow to compute with.
        self.register_buffer("scale", (1 / std).repeat(codec.side), persistent=False)
        self.register_buffer("offset", (-mean / std).repeat(codec.side), persistent=False)

    def features_of(self, *inputs: Tensor) -> Tensor:
        varied = self.augmentation if self.training else Augmentation()
        images = varied.relight(self._normalised(varied.move(inputs[0])))
        features: Tensor = self.backbone(images).mean((2, 3))
        return features

    def evidence(self, *inputs: Tensor) -> Tensor:
        """See `Localising`; of images as they are."""
        assert isinstance(self.head, nn.Linear)
        return class_activations(self.head, self.backbone(self._normalised(inputs[0])))

    def loss(self, batch: Batch) -> Tensor:
        if not self.mixing.mixes:
            return super().loss(batch)
        (images,), targets = batch.inputs, batch.targets
        mixed = self.mixing.mix(images)
        with autocast(self.precision, images.device):
            outputs = (self.kernels or self)(mixed.images)
        own, other = (
            self.graded(outputs.float(), *t)
            for t in (targets, tuple(target[mixed.partners] for target in targets))
        )
        loss: Tensor = mixed.share * own + (1 - mixed.share) * other
        return loss

    def _normalised(self, images: Tensor) -> Tensor:
        """Pixels of mean 0 and deviation 1 (B, C, H, W), the channels of each side by side."""
        pixels = images.permute(0, 2, 3, 1)
        rows = torch.addcmul(self.offset, pixels.flatten(2).float(), self.scale)
        return rows.view(pixels.shape).permute(0, 3, 1, 2)


class ImageClassification(LabelTask):
    """Give an image one of several labels, or several where the data has them."""

    graph = "fixed"

    name: Literal["image-classification"] = "image-classification"
    architecture: Auto[OneOf[ImageBackbone]] = Field(
        AUTO, description="The network that turns images into features."
    )
    image_size: Auto[Annotated[int, Field(ge=SMALLEST_SIDE, le=LARGEST_SIDE, multiple_of=STEP)]] = (
        Field(AUTO, description="Side in pixels of the squares that images are stretched to.")
    )
    channels: Auto[Literal[1, 3]] = Field(
        AUTO, description="1 to look at brightness alone, 3 to look at colours."
    )
    augmentation: Auto[Augmentation] = Field(
        AUTO, description="How training images are varied; `{}` leaves them as they are."
    )
    mixing: Mixing = Field(
        Mixing(),
        description="How training images are mixed with each other, before they are varied.",
    )

    embeds = True
    advised = True
    tells_splits = True
    bulky = ("image",)
    input_type = ImageInput
    codec_type = ImageCodec
    of_base: ClassVar[tuple[str, ...]] = ("architecture", "image_size", "channels")
    formats: ClassVar[Mapping[str, str]] = {
        FOLDERS: "A zip with a folder of images for each label, `cat/1.png`; or such folders within "
        "`train/`, `validation/` and `test/`. Images are PNG, JPEG, WebP, BMP, GIF or TIFF.",
        MANIFEST: "A zip with images and a table of them, `labels.csv` (or TSV, JSONL, Parquet): a column `image` with "
        "their paths, and one with their `label`; or several labels, as a list or with `label_separator`. "
        "`train.csv`, `validation.csv` and `test.csv`, or tables in folders of these names, tell splits.",
    }

    @classmethod
    def check(cls, files: Mapping[str, Upload], options: DatasetOptions) -> Checked:
        """As every task, but folders have no columns to map."""
        listed = any(_has_tables(upload) for upload in files.values())
        mapping = {} if listed else options.column_mapping
        refuse_foreign(options.format, mapping, cls.formats)
        return super().check(files, options)

    @classmethod
    def read(cls, upload: Upload, options: DatasetOptions) -> pl.DataFrame:
        """One row per image: `image`, `label`, `name`, its facts, and `split` where the archive tells it."""
        with open_archive(upload.path, _LIMITS) as archive:
            tables = _tables(archive, options)
            if tables:
                frame = read_manifests(archive, tables, options)
            elif options.format == MANIFEST:
                allowed = "labels.csv beside the images"
                raise Invalid(Problem((), "no table in the archive", upload.name, allowed))
            else:
                frame = _read_folders(archive, options)
            images = [archive.read(name) for name in frame["name"]]
        frame = with_rarest(frame.with_columns(pl.Series("image", images, pl.Binary)))
        return frame.with_columns(look(frame))

    @classmethod
    def identity(cls, examples: pl.DataFrame, schema: Mapping[str, Any]) -> list[str]:
        return ["image"]

    @classmethod
    def describe(
        cls, splits: Mapping[str, pl.DataFrame], options: DatasetOptions
    ) -> tuple[dict[str, pl.DataFrame], dict[str, Any], dict[str, Any]]:
        frames, labels, shares = describe_labels(splits)
        facts = pl.concat(frame.select(ImageFacts._fields) for frame in splits.values())
        schema = {
            **labels,
            "width": facts["width"].median(),
            "height": facts["height"].median(),
            "colour": bool(facts["colour"].any()),
        }
        examples = {name: frame.select("image", "label", "name") for name, frame in frames.items()}
        return examples, schema, {**shares, **summary(facts)}

    def choose_architecture(self, facts: Facts) -> Architecture:
        return CNN() if _side(facts, AUTO) <= 32 else ResNet()

    @property
    def probed(self) -> bool:
        return True

    def unvaried(self) -> Self:
        still = Augmentation()
        problems = [
            Problem(
                ("task", name), "a linear probe sees images as they are", asked.model_dump(), {}
            )
            for name, asked in (("augmentation", self.augmentation), ("mixing", self.mixing))
            if asked not in (AUTO, still, Mixing())
        ]
        if problems:
            raise Invalid(*problems)
        return self.model_copy(update={"augmentation": still})

    def resolve(self, facts: Facts) -> Self:
        chosen = {
            "image_size": _side(facts, self.architecture),
            "augmentation": Augmentation(shift=0.1, zoom=0.1, rotate=10, light=0.2),
        }
        update = {name: value for name, value in chosen.items() if getattr(self, name) == AUTO}
        colour = facts.schema["colour"]
        update["channels"] = fitting_channels(self.architecture, self.channels, colour=colour)
        return super().resolve(facts).model_copy(update=update)

    def learn_codec(
        self, train: pl.LazyFrame, schema: Mapping[str, Any], base: Any | None = None
    ) -> ImageCodec:
        column = train.select("label").collect()["label"]
        labels = self.learn_labels(column)
        if base is not None:
            return ImageCodec(**labels, **as_shown(base))
        side, channels = self.image_size, self.channels
        mean, std = pixel_moments(train.select("image"), side, channels, len(column))
        return ImageCodec(**labels, side=side, channels=channels, mean=mean, std=std)

    def reading(self, published: Published) -> Squares:
        return published_squares(self.architecture, self.image_size)

    def build(self, codec: ImageCodec) -> ImageClassifier:
        backbone = self.architecture.build(codec.channels, (codec.side, codec.side))
        criterion = self.criterion(codec)
        return ImageClassifier(backbone, codec, criterion, self.augmentation, self.mixing)


def _read_folders(archive: Archive, options: DatasetOptions) -> pl.DataFrame:
    """The files of folders that are labels: `name`, `label`, and `split` where folders tell it."""
    placed = class_folders(archive)
    return pl.DataFrame(
        {
            "name": pl.Series([place.name for place in placed], dtype=pl.String),
            "label": read_labels(pl.Series([place.label for place in placed]), options),
            SPLIT: pl.Series([place.split for place in placed], dtype=pl.String),
        }
    )


def _tables(archive: Archive, options: DatasetOptions) -> list[str]:
    """The tables that say what is what; none where folders do."""
    return [] if options.format == FOLDERS else manifests(archive)


def _has_tables(upload: Upload) -> bool:
    try:
        with open_archive(upload.path, _LIMITS) as archive:
            return bool(manifests(archive))
    except Invalid:
        return False  # said, with its place, when the file is read


def _side(facts: Facts, architecture: Any) -> int:
    """The typical side of the images in steps of 8, no larger than so many examples or the network warrant."""
    typical = math.sqrt(facts.schema["width"] * facts.schema["height"])
    most = 64 if facts.examples < 20_000 else 128
    return fitting_side(architecture, typical, SMALLEST_SIDE, most, STEP)
