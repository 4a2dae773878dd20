"""Exports: the formats in which a model leaves the service, and which of them it has."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from tasks.base import Task
from tasks.parts import packages
from tasks.parts.packages import Packed
from tasks.parts.problems import Invalid, Problem

FormatName = Literal["safetensors"]


class Format(NamedTuple):
    """A way out."""

    file: str
    """What the name of such a file ends in."""
    media_type: str
    summary: str
    lacks: Callable[[Task], str | None]
    """Why a model of this task does not have it, if so."""
    write: Callable[[Packed, Path, Path], dict[str, Any]]
    """From a model, with a folder for files in between, to the file; what is to be told of it."""


def _pack(model: Packed, folder: Path, path: Path) -> dict[str, Any]:
    packages.pack(model, path)
    return {}


FORMATS: Mapping[FormatName, Format] = {
    "safetensors": Format(
        ".zip",
        "application/zip",
        "a zip of `model.safetensors`, `codec.json` and `modelyard.json`, which `POST /v1/models` takes in again",
        lambda task: None,
        _pack,
    ),
}


def check_format(name: FormatName, task: Task) -> None:
    """Raises Invalid for a format that models of this task do not have, listing those that they have."""
    reason = FORMATS[name].lacks(task)
    if reason is not None:
        has = [each for each, format in FORMATS.items() if format.lacks(task) is None]
        raise Invalid(Problem(("format",), reason, name, has))
