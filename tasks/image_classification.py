"""Image classification: from a picture to one of several labels."""

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
import polars as pl
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from models.base import Architecture, Backbone, ImageBackbone, Supervised
from models.cnn import CNN
from models.parts.losses import ClassificationLoss, CrossEntropy
from models.parts.options import AUTO, Auto, OneOf, Plain
from models.resnet import ResNet
from tasks.base import Checked, DatasetOptions, Facts, Metrics, Objective, Task, Upload
from tasks.parts.archives import Limits, class_folders, open_archive
from tasks.parts.columns import Columns, Dense
from tasks.parts.examples import pieces
from tasks.parts.images import (
    MAX_BYTES,
    ImageFacts,
    ImageInput,
    Pixels,
    black,
    decode,
    decode_all,
    each,
    inspect,
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
from tasks.parts.problems import Invalid, Problem

FORMAT = "class-folders"
SPLIT = "split"
SMALLEST_SIDE, LARGEST_SIDE, STEP = 8, 512, 8
_LIMITS = Limits(member=MAX_BYTES)
_SAMPLE_PIXELS = 1 << 24  # enough to take their mean and spread from


class Augmentation(Plain):
    """How training images are varied at random, anew in every step; nothing by default."""

    shift: float = Field(0.0, ge=0, le=0.5, description="Moved by up to this share of the side.")
    zoom: float = Field(0.0, ge=0, le=0.5, description="Enlarged or shrunk by up to this share.")
    rotate: float = Field(0.0, ge=0, le=180, description="Turned by up to so many degrees.")
    flip: bool = Field(
        False,
        description="Every second one mirrored; wrong where left and right matter, as in writing.",
    )
    light: float = Field(
        0.0, ge=0, le=1, description="Brightness and contrast changed by up to this share."
    )

    def move(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) of bytes or floats, each moved by draws from torch's own generator."""
        if max(self.zoom, self.rotate) > 0:
            grid = F.affine_grid(self._placements(images), list(images.shape), align_corners=False)
            return F.grid_sample(images.float(), grid, padding_mode="border", align_corners=False)
        # By whole pixels nothing is computed from neighbours, and bytes stay bytes.
        return self._cut(images) if self.flip or self.shift else images

    def relight(self, images: Tensor) -> Tensor:
        """Normalised images (B, C, H, W), each made darker or lighter, duller or clearer."""
        if not self.light:
            return images
        contrast, brightness = _draw(images, self.light), _draw(images, self.light)
        return images * (1 + contrast.view(-1, 1, 1, 1)) + brightness.view(-1, 1, 1, 1)

    def _cut(self, images: Tensor) -> Tensor:
        """Shifted and mirrored only; what comes in from outside repeats the edge."""
        height, width = images.shape[2:]
        rows = _places(height, _draw(images, self.shift * height))
        columns = _places(width, _draw(images, self.shift * width))
        if self.flip:
            mirrored = _draw(images, 1) < 0
            columns = torch.where(mirrored[:, None], columns.flip(1), columns)
        places = (rows[:, :, None] * width + columns[:, None]).flatten(1)  # (B, H * W)
        pixels = images.flatten(2)
        return pixels.gather(2, places[:, None].expand_as(pixels)).view_as(images)

    def _placements(self, images: Tensor) -> Tensor:
        """Affine maps (B, 2, 3) from places in the result to places in the image."""
        angle = _draw(images, math.radians(self.rotate))
        size = 1 + _draw(images, self.zoom)
        mirror = _draw(images, 1).sign() if self.flip else torch.ones_like(angle)
        cos, sin = angle.cos() * size, angle.sin() * size
        # The coordinates run from -1 to 1: a share of the side is twice as much.
        across, down = _draw(images, 2 * self.shift), _draw(images, 2 * self.shift)
        rows = torch.stack([mirror * cos, -sin, across, mirror * sin, cos, down], dim=1)
        return rows.view(-1, 2, 3)


def _places(side: int, moves: Tensor) -> Tensor:
    """Where the pixels along a side come from (B, side) when images move by so many pixels (B,)."""
    along = torch.arange(side, device=moves.device)
    return (along + moves.round().long()[:, None]).clamp(0, side - 1)


def _draw(images: Tensor, span: float) -> Tensor:
    """A number in [-span, span) for each image (B,)."""
    return (torch.rand(len(images), device=images.device) * 2 - 1) * span


class ImageCodec(LabelCodec):
    """Images stretched to squares, and the mean and spread of their pixels in each channel."""

    side: int
    channels: Literal[1, 3]
    mean: list[float]
    std: list[float]

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
        _refuse_foreign(options)
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
        frame = frame.with_columns(_facts(frame))
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
        report = {**balance(splits, "label"), **_summary(facts)}
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
            return _relabelled(base, labels, counts)
        side, channels = self.image_size, self.channels
        mean, std = _pixel_moments(train.select("image"), side, channels, sum(counts))
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


def _relabelled(base: Any, labels: list[str], counts: list[int]) -> ImageCodec:
    """The base's codec, all of which its backbone relies on, with other labels. Raises Invalid."""
    if not isinstance(base, ImageCodec):
        allowed = "a model of image-classification"
        raise Invalid(Problem(("base",), "does not read images as this task does", None, allowed))
    return base.model_copy(update={"labels": labels, "counts": counts})


def _refuse_foreign(options: DatasetOptions) -> None:
    """Raises Invalid for options that mean nothing for a zip of folders."""
    if options.format not in (None, FORMAT):
        raise Invalid(Problem(("options", "format"), "no such format", options.format, [FORMAT]))
    if options.column_mapping:
        found = sorted(options.column_mapping)
        raise Invalid(
            Problem(("options", "column_mapping"), "class folders have no columns", found, {})
        )


def _has_split_folders(upload: Upload) -> bool:
    try:
        with open_archive(upload.path, _LIMITS) as archive:
            return class_folders(archive)[0].split is not None
    except Invalid:
        return False  # said, with its place, when the file is read


def _facts(frame: pl.DataFrame) -> pl.DataFrame:
    """What every image of a frame is like. Raises Invalid, naming those that cannot be decoded."""
    seen = each(frame["image"], lambda _, data: inspect(data))
    problems = [
        problem._replace(loc=(name, *problem.loc))
        for name, fault in zip(frame["name"], seen, strict=True)
        if isinstance(fault, Invalid)
        for problem in fault.problems
    ]
    if problems:
        raise Invalid(*problems)
    return pl.DataFrame(seen, schema=ImageFacts._fields, orient="row")


def _summary(facts: pl.DataFrame) -> dict[str, Any]:
    """Sizes in pixels, and how many images are stored how."""
    sizes = {
        name: {"min": side.min(), "median": side.median(), "max": side.max()}
        for name in ("width", "height")
        for side in [facts[name]]
    }
    return {
        **sizes,
        "modes": dict(facts["mode"].value_counts(sort=True).iter_rows()),
        "animated": int(facts["animated"].sum()),
        "colour": int(facts["colour"].sum()),
    }


def _side(facts: Facts) -> int:
    """The typical side of the images in steps of 8, no larger than so many examples warrant."""
    typical = math.sqrt(facts.schema["width"] * facts.schema["height"])
    most = 64 if facts.examples < 20_000 else 128
    return max(SMALLEST_SIDE, min(most, math.ceil(typical / STEP) * STEP))


def _pixel_moments(
    images: pl.LazyFrame, side: int, channels: int, count: int
) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel of so many images, in steps of 0 to 255."""
    wanted = max(1, _SAMPLE_PIXELS // side**2)
    every, row, sample = max(1, count // wanted), 0, []
    for piece in pieces(images):
        some = piece["image"].gather_every(every, offset=-row % every)
        sample.append(decode_all(some, side, channels))
        row += piece.height
    pixels = torch.cat(sample).float()
    std, mean = torch.std_mean(pixels, dim=(0, 2, 3), correction=0)
    return mean.tolist(), std.clamp(min=1).tolist()
