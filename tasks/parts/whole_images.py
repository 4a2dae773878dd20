"""Answers that are images of many sizes, packed into rows of outputs; requests for them, bounded."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from tasks.base import Codec
from tasks.parts.images import ImagePrediction, Pixels, encode_png
from tasks.parts.problems import Invalid, Problem

MOST_PIXELS = 1 << 22
"""Of an answer, and of all answers that are computed together."""
MOST_PIXELS_SENT = 1 << 26
"""Of all inputs of a request."""
HEADER = 3
"""Numbers in front of the pixels of an answer: its channels, height and width."""


class WholeImageCodec(Codec):
    """A codec of images of many sizes, whose answers are images."""

    answer: ClassVar[type[ImagePrediction]] = ImagePrediction

    @abstractmethod
    def pixels_in(self, given: Any) -> int:
        """How many pixels an input has that was read."""

    def read_inputs(self, values: Sequence[Any]) -> list[Any]:
        # One by one, so that a small request never unfolds to more than memory holds.
        found, problems, pixels = [], [], 0
        for place, value in enumerate(values):
            try:
                given = self.read_input(value)
            except Invalid as error:
                problems += [p._replace(loc=("inputs", place, *p.loc)) for p in error.problems]
                continue
            pixels += self.pixels_in(given)
            if pixels > MOST_PIXELS_SENT:
                allowed = f"at most {MOST_PIXELS_SENT:,} in all images of a request"
                raise Invalid(Problem(("inputs", place), "too many pixels", pixels, allowed))
            if not problems:
                found.append(given)
        if problems:
            raise Invalid(*problems)
        return found

    def decode(self, outputs: Tensor) -> list[Any]:
        return [self.answer(image=encode_png(unpacked(output))) for output in outputs]


def refuse_large(pixels: Pixels, most: int) -> None:
    """Raises Invalid for an image (C, H, W) of more pixels than can be answered."""
    height, width = pixels.shape[1:]
    if height * width > most:
        found, allowed = f"{width} x {height}", f"at most {most:,} pixels"
        raise Invalid(Problem(("image",), "the image is too large", found, allowed))


def packed(images: Sequence[Tensor]) -> Tensor:
    """Images (C, H, W) in [0, 1] as rows (B, HEADER + C * H * W) of the largest, pixels from 0 to 255."""
    rows = []
    for image in images:
        pixels = (image * 255).round().clamp(0, 255)
        rows.append(torch.cat([pixels.new_tensor(pixels.shape), pixels.flatten()]))
    longest = max(map(len, rows))
    return torch.stack([F.pad(row, (0, longest - len(row))) for row in rows])


def unpacked(row: Tensor) -> Pixels:
    """The pixels of an answer behind their channels, height and width."""
    channels, height, width = map(int, row[:HEADER].tolist())
    pixels = row[HEADER : HEADER + channels * height * width]
    found: Pixels = pixels.view(channels, height, width).byte().numpy()
    return found
