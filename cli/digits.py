"""Scikit-learn's handwritten digits as uploads: real images of 8x8 pixels that need no download."""

import io
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

HELD_OUT = 360
"""Images that the first training never sees: the last ones, by other writers than the first."""


class Digits(NamedTuple):
    """Images (N, 8, 8) uint8 and their digits (N,)."""

    images: np.ndarray
    digits: np.ndarray

    def select(self, index: np.ndarray) -> "Digits":
        return Digits(self.images[index], self.digits[index])


def digits() -> tuple[Digits, Digits]:
    """The images to train on, and the ones held out."""
    data = load_digits()
    images = np.round(data.images * (255 / 16)).astype(np.uint8)
    everything = Digits(images, data.target)
    index = np.arange(len(images))
    return everything.select(index[:-HELD_OUT]), everything.select(index[-HELD_OUT:])


def png(image: np.ndarray) -> bytes:
    """An image (H, W) uint8 as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def image_folder(path: Path, images: np.ndarray, labels: Iterable[str]) -> Path:
    """Write a zip with one folder of PNG files per label."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            archive.writestr(f"{label}/{number:04d}.png", png(image))
    return path


def few_per_digit(held_out: Digits, count: int) -> tuple[Digits, Digits]:
    """The first `count` images of each digit, and all others."""
    chosen = np.concatenate(
        [np.flatnonzero(held_out.digits == digit)[:count] for digit in range(10)]
    )
    rest = np.setdiff1d(np.arange(len(held_out.digits)), chosen)
    return held_out.select(chosen), held_out.select(rest)
