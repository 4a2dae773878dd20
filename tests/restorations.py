"""Small images, pairs of them, and networks that were not trained, for tests of image-to-image."""

import io
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from models.edsr import EDSR
from tasks.base import Checked, DatasetOptions, Facts, Upload
from tasks.image_to_image import ImageToImage
from tasks.parts.degradations import (
    Degradation,
)
from tasks.parts.degraded import ImageToImageCodec
from tasks.parts.images import Pixels, encode_png
from tasks.parts.problems import Invalid
from tasks.parts.restoring import Restorer
from tasks.trained import Trained

TINY = EDSR(width=4, depth=1)


def noise(number: int, height: int = 24, width: int = 32, channels: int = 3) -> Pixels:
    """Bytes at random, smooth enough to be told from noise."""
    draw = np.random.default_rng(number)
    small = draw.integers(0, 256, (height // 8 + 1, width // 8 + 1, channels), dtype=np.uint8)
    large = [
        Image.fromarray(small[..., c]).resize((width, height), Image.Resampling.BICUBIC)
        for c in range(channels)
    ]
    return np.stack([np.asarray(image) for image in large])


def png(pixels: Pixels) -> bytes:
    return encode_png(pixels)


def pictures(count: int = 8, prefix: str = "", **options: Any) -> dict[str, bytes]:
    return {f"{prefix}{number}.png": png(noise(number, **options)) for number in range(count)}


def pairs(count: int = 6, factor: int = 1, prefix: str = "") -> dict[str, bytes]:
    """Inputs, and targets that are their negatives."""
    found = {}
    for number in range(count):
        pixels = noise(number)
        target = (255 - pixels).repeat(factor, 1).repeat(factor, 2)
        found[f"{prefix}input/{number}.png"] = png(pixels)
        found[f"{prefix}target/{number}.png"] = png(target)
    return found


def upload(members: dict[str, bytes], folder: Path, name: str = "images.zip") -> Upload:
    path = folder / name
    with zipfile.ZipFile(path, "w") as archive:
        for member, data in members.items():
            archive.writestr(member, data)
    return Upload(path, name)


def checked(members: dict[str, bytes], folder: Path, **options: Any) -> Checked:
    return ImageToImage.check({"file": upload(members, folder)}, DatasetOptions(**options))


def problems_of(members: dict[str, bytes], folder: Path, **options: Any) -> list[Any]:
    with pytest.raises(Invalid) as caught:
        checked(members, folder, **options)
    return list(caught.value.problems)


def task_for(data: Checked, **fields: Any) -> ImageToImage:
    facts = Facts(data.schema, {name: frame.height for name, frame in data.splits.items()})
    return ImageToImage.model_validate(fields).resolve(facts)


def codec_of(degradation: Degradation, channels: Any = 3) -> ImageToImageCodec:
    return ImageToImageCodec(degradation=degradation, channels=channels, largest_side=512)


def model(degradation: Degradation, channels: Any = 3, architecture: Any = TINY) -> Trained:
    """A network that was not trained."""
    task = ImageToImage(
        architecture=architecture,
        degradation=degradation,
        loss=degradation.loss(),
        channels=channels,
        crop=16,
        crops=1,
    )
    codec = codec_of(degradation, channels)
    torch.manual_seed(0)
    return Trained(task, codec, task.build(codec).eval())


def restorer(trained: Trained) -> Restorer:
    assert isinstance(trained.learner, Restorer)
    return trained.learner


def answers(trained: Trained, values: Sequence[Any]) -> list[Pixels]:
    found = trained.predict(trained.codec.read_inputs(values))
    return [np.asarray(Image.open(io.BytesIO(answer.image))) for answer in found]


def still(trained: Trained) -> Trained:
    """The model whose network makes nothing."""
    for weight in restorer(trained).head.parameters():
        torch.nn.init.zeros_(weight)
    return trained
