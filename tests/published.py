"""Tiny checkpoints in the layout of the Hub, made here, and architectures that begin with one."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

from models.base import Architecture
from models.parts.pretrained import Pretrained
from models.parts.published import Published

MAKERS: dict[str, Callable[[Path], None]] = {}
"""What writes a tiny checkpoint into a folder, for each class of pretrained architectures."""


@cache
def tiny(architecture: type[Pretrained]) -> Published:
    """A checkpoint that this architecture can begin with."""
    folder = Path(mkdtemp(prefix="modelyard-published-"))
    MAKERS[architecture.__name__](folder)
    return Published(folder, "0" * 40)


def find(architecture: Pretrained) -> Published:
    """As the hub is asked, of which every name stands for the tiny checkpoint."""
    return tiny(type(architecture))


def smallest(architecture: type[Architecture]) -> Architecture:
    """With its defaults, and with what it has to know of its checkpoint."""
    made = architecture()
    return made.grounded(find(made)) if isinstance(made, Pretrained) else made
