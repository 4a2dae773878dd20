"""Images of which every pixel is told something: how they are read, varied and normalised, whatever is told."""

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self

import numpy as np
import polars as pl
import torch
from pydantic import Field
from torch import Tensor, nn

from models.base import Architecture, Batch, ImageBackbone, MapBackbone, Supervised
from models.parts.dense import IGNORED, Decoder, PixelDecoder, UNet, spread
from models.parts.layers import Normalised
from models.parts.options import AUTO, Auto, OneOf, Plain
from models.parts.precision import autocast
from models.parts.published import Published
from models.pretrained_image import COLOURS
from models.resnet import ResNet
from tasks.base import Codec, Facts, Task
from tasks.parts.archives import Limits
from tasks.parts.augmentation import Augmentation
from tasks.parts.columns import Columns, Dense
from tasks.parts.images import (
    MAX_BYTES,
    ImageInput,
    Pixels,
    black,
    decode,
    decode_all,
    read_image,
    size_of,
)
from tasks.parts.pictures import as_shown, fitting_channels, pixel_moments, published_look

LIMITS = Limits(member=MAX_BYTES)
STEP, LARGEST_SIDE = 32, 2048
_PIXELS, _MANY = 1 << 16, 20_000
"""Pixels that are looked at of each image, and of how many images four times as many are."""
_TINY = 64
_VIEWS, _EPOCHS = 5_000, (10, 40)
"""How often images are learned from, all in all, and each of them."""
_BATCHES = {4: 200, 8: 1_000, 16: math.inf}
"""Images of a step, and for fewer images than how many."""


class Shown(NamedTuple):
    """An image of a request at the size that the network reads, and how large it was sent."""

    pixels: Pixels | None
    width: int
    height: int


class SceneLook(Plain):
    """How images are shown to a backbone, which relies on it: the mean and spread of their pixels."""

    channels: int
    mean: list[float]
    std: list[float]
    made_for: tuple[int, int]
    """The height and width by which the backbone chose how often it halves its maps."""


class SceneCodec(SceneLook, Codec):
    """Images stretched to one height and width, and the labels to be told of their pixels."""

    labels: list[str]
    height: int
    width: int

    @property
    def size(self) -> tuple[int, int]:
        return self.height, self.width

    def encode(self, examples: pl.DataFrame, *, targets: bool = True) -> Columns:
        pixels = Dense(decode_all(examples["image"], self.size, self.channels))
        return Columns((pixels,), self.encode_targets(examples) if targets else ())

    @abstractmethod
    def encode_targets(self, examples: pl.DataFrame) -> tuple[Dense, ...]:
        """What is told of each pixel of the examples, at the size that the network reads."""

    def read_input(self, value: Any) -> Any:
        return self.shown(value)

    def shown(self, value: Any) -> Shown:
        """An image of a request. Raises Invalid."""
        # Decoded here, where requests are still apart from each other.
        data = read_image(value)
        width, height = size_of(data)
        return Shown(decode(data, self.size, self.channels), width, height)

    def given(self, examples: pl.DataFrame) -> Sequence[Any]:
        return [Shown(None, *size) for size in examples.select("width", "height").iter_rows()]

    def blank(self) -> bytes:
        return black(self.size)

    def encode_inputs(self, inputs: Sequence[Any]) -> Columns:
        pixels = [shown.pixels for shown in inputs if shown.pixels is not None]
        return Columns((Dense(torch.from_numpy(np.stack(pixels))),))


class SceneLearner(Supervised):
    """Learns from images (B, C, H, W) uint8 and what is told of their pixels; its head decodes the backbone's maps."""

    backbone: MapBackbone
    outside: ClassVar[tuple[int, ...]] = (IGNORED,)
    """What is told of pixels that come in from outside of an image, by target."""

    def __init__(
        self,
        backbone: MapBackbone,
        decoder: PixelDecoder,
        criterion: nn.Module,
        codec: SceneCodec,
        augmentation: Augmentation,
    ) -> None:
        super().__init__(backbone, decoder, criterion)
        self.augmentation = augmentation
        self.normalised = Normalised(codec.mean, codec.std)

    def forward(self, *inputs: Tensor) -> Tensor:
        """What the decoder says of every pixel: (B, outputs, H, W)."""
        (images,) = inputs
        pixels = self.normalised(images)
        if self.training:
            pixels = self.augmentation.relight(pixels)
        return spread(self.head(pixels, self.backbone.maps(pixels)), pixels)

    def loss(self, batch: Batch) -> Tensor:
        (images,) = batch.inputs
        images, targets = self.augmentation.move_all(images, batch.targets, self.outside)
        with autocast(self.precision, images.device):
            outputs = (self.kernels or self)(images)
        loss: Tensor = self.criterion(outputs.float(), *targets)
        return loss


Side = Annotated[int, Field(ge=STEP, le=LARGEST_SIDE, multiple_of=STEP)]


class SceneTask(Task):
    """What the tasks that tell something of every pixel have in common."""

    architecture: Auto[OneOf[ImageBackbone]] = Field(
        AUTO, description="The network that turns images into feature maps."
    )
    decoder: OneOf[Decoder] = Field(
        UNet(), description="What turns feature maps into answers for pixels."
    )
    height: Auto[Side] = Field(AUTO, description="Pixels that images are stretched to, downwards.")
    width: Auto[Side] = Field(AUTO, description="Pixels that images are stretched to, across.")
    channels: Auto[Literal[1, 3]] = Field(
        AUTO, description="1 to look at brightness alone, 3 to look at colours."
    )
    augmentation: Auto[Augmentation] = Field(
        AUTO,
        description="How training images and what is told of them are varied; `{}`: not at all.",
    )

    has_columns = False
    tells_splits = True
    bulky = ("image",)
    input_type = ImageInput
    of_base: ClassVar[tuple[str, ...]] = ("architecture", "channels")

    @classmethod
    def identity(cls, examples: pl.DataFrame, schema: Mapping[str, Any]) -> list[str]:
        return ["image"]

    def choose_architecture(self, facts: Facts) -> Architecture:
        if min(_size(facts)) <= _TINY:
            return ResNet(width=16, depths=[1, 1, 1])
        return ResNet(width=16, depths=[2, 2, 2, 2])

    def resolve(self, facts: Facts) -> Self:
        height, width = _size(facts)
        chosen = {
            "height": height,
            "width": width,
            "augmentation": Augmentation(shift=0.1, zoom=0.3, flip=True, light=0.2),
        }
        update = {name: value for name, value in chosen.items() if getattr(self, name) == AUTO}
        colour = facts.schema["colour"]
        update["channels"] = fitting_channels(self.architecture, self.channels, colour=colour)
        return super().resolve(facts).model_copy(update=update)

    def defaults(self, facts: Facts) -> dict[str, Any]:
        batch = next(size for size, most in _BATCHES.items() if facts.examples < most)
        epochs = max(_EPOCHS[0], min(_EPOCHS[1], _VIEWS // facts.examples))
        return {"batch_size": batch, "epochs": epochs}

    def read_alike(self, train: pl.LazyFrame, count: int, base: Any | None) -> dict[str, Any]:
        """The fields of a codec that say how images are read; from `base` all that its backbone relies on.

        Raises Invalid for a base that reads no images.
        """
        size = (self.height, self.width)
        if base is None:
            mean, std = pixel_moments(train.select("image"), size, self.channels, count)
            read = {"channels": self.channels, "mean": mean, "std": std, "made_for": size}
        else:
            read = _as_base(base)
        return {**read, "height": size[0], "width": size[1]}

    def reading(self, published: Published) -> SceneLook:
        shown = published_look(self.architecture)
        size = self.height, self.width
        return SceneLook(channels=COLOURS, mean=shown.mean, std=shown.std, made_for=size)

    def backbone(self, codec: SceneCodec) -> MapBackbone:
        return self.architecture.build(codec.channels, codec.made_for)


def _as_base(base: Any) -> dict[str, Any]:
    """How another task's codec has images read. Raises Invalid when it does not."""
    if isinstance(base, SceneLook):
        return {name: getattr(base, name) for name in SceneLook.model_fields}
    shown = as_shown(base)
    side = shown.pop("side")
    return {**shown, "made_for": (side, side)}


def _size(facts: Facts) -> tuple[int, int]:
    """Height and width of the typical image, in steps of 32, no larger than so many examples warrant."""
    most = _PIXELS if facts.examples < _MANY else 4 * _PIXELS
    height, width = facts.schema["height"], facts.schema["width"]
    shrink = min(1.0, math.sqrt(most / (height * width)))
    return _step(height * shrink), _step(width * shrink)


def _step(side: float) -> int:
    return max(STEP, min(LARGEST_SIDE, math.ceil(side / STEP - 0.25) * STEP))
