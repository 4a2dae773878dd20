"""Zips of images in a folder for each label."""

from collections.abc import Collection
from pathlib import Path
from zipfile import ZipFile


def images(path: Path) -> list[str]:
    """The names of the images in a zip."""
    with ZipFile(path) as archive:
        return [name for name in archive.namelist() if not name.endswith("/")]


def label(name: str) -> str:
    """The label of an image of that name."""
    return Path(name).parent.name


def with_labels(source: Path, target: Path, labels: Collection[str]) -> Path:
    """A zip of the images with some of the labels."""
    with ZipFile(source) as whole, ZipFile(target, "w") as part:
        for name in images(source):
            if label(name) in labels:
                part.writestr(name, whole.read(name))
    return target
