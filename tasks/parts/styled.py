"""Photos and the styles that they are painted in, as columns; requests for them, and answers."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import polars as pl
import torch
from pydantic import Field

from models.parts.options import Plain
from tasks.base import read_fields
from tasks.parts.columns import Columns, Dense
from tasks.parts.images import (
    EncodedImage,
    ImageInput,
    ImagePrediction,
    Pixels,
    black,
    encode_png,
    pixels_of,
    read_image,
    reduced_pixels,
)
from tasks.parts.media import each
from tasks.parts.pictures import Squares
from tasks.parts.problems import Invalid, Problem
from tasks.parts.tiles import TILE, tiled_all, tiles_of
from tasks.parts.whole_images import MOST_PIXELS, WholeImageCodec, refuse_large

_BLANK = 16
GIVEN = -1
"""The number of a style that is none of those that were trained."""
_NOTHING = np.zeros((3, TILE, TILE), np.uint8)


class Styling(Plain):
    """In which style an image is painted, and how much of it."""

    style: str | None = Field(
        None,
        description="The name of a style that was trained; the first of them by name, if neither this nor "
        "`style_image` is said.",
    )
    style_image: EncodedImage | None = Field(
        None, description="Any other picture as base64, in whose style to paint."
    )
    strength: float = Field(
        1.0, ge=0, le=1, description="How far towards the style: 0 stays with the image's own look."
    )


class StyleInput(Styling, ImageInput):
    """An image, and the style to paint it in."""


class StylePrediction(ImagePrediction):
    """An image painted in a style."""

    style: str | None = Field(
        None, description="The name of the style; null where `style_image` gave it."
    )


class Style(Plain):
    """A picture whose style is learned, and the name it goes by."""

    name: str
    image: EncodedImage


class Styled(NamedTuple):
    """An image as the network reads it, and the style it is to have."""

    pixels: Pixels
    style: int
    """Which of the trained ones, or GIVEN."""
    picture: Pixels
    """Of a style that is given."""
    strength: float
    name: str | None


class StyleCodec(WholeImageCodec):
    """The trained styles, and images as tiles of bytes beside sizes and styles."""

    answer: ClassVar[type[ImagePrediction]] = StylePrediction

    styles: list[Style]
    style_size: int
    largest_side: int
    shown: Squares | None
    """How images are shown to a network whose features are compared, if there is one."""

    def encode(self, examples: pl.DataFrame, *, targets: bool = True) -> Columns:
        images = each(examples["image"], lambda _, data: reduced_pixels(data, self.largest_side))
        known: dict[bytes, tuple[int, Pixels]] = {}
        styled = []
        for pixels, name, data in zip(
            images, examples["style"], examples["style_image"], strict=True
        ):
            if data not in known:
                known[data] = self._known(reduced_pixels(data, self.style_size))
            styled.append(Styled(pixels, *known[data], 1.0, name))
        return self.encode_inputs(styled)

    def _known(self, pixels: Pixels) -> tuple[int, Pixels]:
        """The number of a style, by its picture."""
        for number, picture in enumerate(self.pictures()):
            if picture.shape == pixels.shape and (picture == pixels).all():
                return number, _NOTHING
        return GIVEN, pixels

    def pictures(self) -> list[Pixels]:
        """The pixels (3, h, w) of every trained style."""
        return [pixels_of(style.image, 3) for style in self.styles]

    def given(self, examples: pl.DataFrame) -> Sequence[Any]:
        return examples["style"].to_list()

    def complete(self, predictions: list[Any], inputs: Sequence[Any]) -> list[Any]:
        names = [given.name if isinstance(given, Styled) else given for given in inputs]
        return [
            prediction.model_copy(update={"style": name})
            for prediction, name in zip(predictions, names, strict=True)
        ]

    def read_input(self, value: Any) -> Styled:
        given = dict(value) if isinstance(value, Mapping) else {"image": value}
        styling = read_fields(
            Styling, {name: given.pop(name) for name in Styling.model_fields if name in given}
        )
        pixels = pixels_of(read_image(given if isinstance(value, Mapping) else value), 3)
        refuse_large(pixels, MOST_PIXELS)
        if styling.style_image is not None:
            return Styled(pixels, GIVEN, self._picture(styling), styling.strength, None)
        number = self._number(styling.style)
        return Styled(pixels, number, _NOTHING, styling.strength, self.styles[number].name)

    def _picture(self, styling: Styling) -> Pixels:
        """The pixels of a style that is given. Raises Invalid."""
        if styling.style is not None:
            allowed = "one of `style` and `style_image`"
            raise Invalid(Problem(("style",), "two styles for one image", styling.style, allowed))
        assert styling.style_image is not None
        try:
            return reduced_pixels(styling.style_image, self.style_size)
        except Invalid as error:
            raise Invalid(
                *(p._replace(loc=("style_image", *p.loc)) for p in error.problems)
            ) from None

    def _number(self, name: str | None) -> int:
        """Which style has the name; the first, if there is none. Raises Invalid, listing names."""
        names = [style.name for style in self.styles]
        if name is None:
            return 0
        if name not in names:
            raise Invalid(Problem(("style",), "no such style", name, names))
        return names.index(name)

    def blank(self) -> Any:
        return black(_BLANK)

    def length(self, given: Styled) -> int:
        return tiles_of(*given.pixels.shape[1:])

    def most_together(self) -> int:
        return MOST_PIXELS // TILE**2

    def pixels_in(self, given: Styled) -> int:
        return int(given.pixels[0].size + given.picture[0].size)

    def encode_inputs(self, inputs: Sequence[Styled]) -> Columns:
        numbers = [
            (*given.pixels.shape[1:], given.style, *given.picture.shape[1:]) for given in inputs
        ]
        strengths = [given.strength for given in inputs]
        return Columns(
            (
                tiled_all([given.pixels for given in inputs], 3),
                tiled_all([given.picture for given in inputs], 3),
                Dense(torch.tensor(numbers, dtype=torch.int64).view(-1, 5)),
                Dense(torch.tensor(strengths, dtype=torch.float32)),
            )
        )


def named_styles(train: pl.LazyFrame, longest: int) -> list[Style]:
    """The styles of a train split in the order of their names, their pictures made as small as they are read."""
    found = train.select("style", "style_image").unique("style", keep="first").sort("style")
    return [
        Style(name=name, image=encode_png(reduced_pixels(data, longest)))
        for name, data in found.collect().iter_rows()
    ]
