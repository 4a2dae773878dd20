"""Tiny checkpoints in the layout of the Hub, made here, and architectures that begin with one."""

import atexit
import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import save_file

from models.base import Architecture
from models.parts.pretrained import Pretrained
from models.parts.published import Published
from tests.published_sounds import sound_checkpoint
from tests.published_texts import text_checkpoint
from tests.published_writers import writer_checkpoint


def image_network(folder: Path, widths: Sequence[int] = (32, 64)) -> None:
    """A network of two scales, fine enough for images of 16 pixels."""
    # Loading it takes a second, which tests that begin with nothing published need not wait for.
    from transformers import ConvNextConfig, ConvNextForImageClassification

    torch.manual_seed(1)
    config = ConvNextConfig(
        patch_size=2,
        num_stages=2,
        hidden_sizes=list(widths),
        depths=[1, 1],
        layer_scale_init_value=1.0,
    )
    # By hand: of several processes, `save_pretrained` writes in the first one alone.
    config.to_json_file(folder / "config.json")
    weights = ConvNextForImageClassification(config).state_dict()
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    shown = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.25, 0.5], "size": 16}
    (folder / "preprocessor_config.json").write_text(json.dumps(shown))


MAKERS: dict[str, Callable[[Path], None]] = {
    "PretrainedImage": image_network,
    "PretrainedSound": sound_checkpoint,
    "PretrainedText": text_checkpoint,
    "PretrainedWriter": writer_checkpoint,
}
"""What writes a tiny checkpoint into a folder, for each class of pretrained architectures."""


_FOLDERS = ExitStack()
atexit.register(_FOLDERS.close)


def passing_folder() -> Path:
    """A folder until the process ends."""
    return Path(_FOLDERS.enter_context(TemporaryDirectory(prefix="modelyard-published-")))


@cache
def tiny(architecture: type[Pretrained]) -> Published:
    """A checkpoint that this architecture can begin with."""
    folder = passing_folder()
    MAKERS[architecture.__name__](folder)
    return Published(folder, "0" * 40)


def find(architecture: Pretrained) -> Published:
    """As the hub is asked, of which every name stands for the tiny checkpoint."""
    return tiny(type(architecture))


def smallest(architecture: type[Architecture]) -> Architecture:
    """With its defaults, and with what it has to know of its checkpoint."""
    made = architecture()
    return made.grounded(find(made)) if isinstance(made, Pretrained) else made
