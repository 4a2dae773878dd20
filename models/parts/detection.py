"""Detectors a request can name: heads over the maps of an image backbone that find objects, and their losses."""

from abc import abstractmethod
from typing import NamedTuple

from torch import Tensor, nn

from models.base import MapBackbone
from models.parts.options import Option

MOST = 100
"""Candidates of one image at the most."""


class Objects(NamedTuple):
    """What is marked in each image of a batch: boxes (B, T, 4) in shares of its sides, and classes (B, T).

    Class -1 is a region nothing is known of; behind the objects of an image, -2 is none at all.
    """

    boxes: Tensor
    classes: Tensor

    @property
    def known(self) -> Tensor:
        """Which ones are to be found (B, T)."""
        return self.classes >= 0


class Candidates(NamedTuple):
    """What may be objects, the best first: boxes (B, K, 4) in shares of the sides, scores and classes (B, K)."""

    boxes: Tensor
    scores: Tensor
    classes: Tensor


class DetectionHead(nn.Module):
    """Maps of a backbone to outputs, and those to candidates."""

    @abstractmethod
    def forward(self, maps: list[Tensor]) -> Tensor:
        """Maps (B, widths[i], h, w), fine to coarse, to outputs (B, ...)."""

    @abstractmethod
    def candidates(self, outputs: Tensor) -> Candidates:
        """At most `MOST` for each image."""


class Detector(Option):
    """How objects are found in the maps of a backbone."""

    @abstractmethod
    def head(self, backbone: MapBackbone, classes: int, side: int) -> DetectionHead:
        """A head for objects of so many classes in squares of `side` pixels."""

    @abstractmethod
    def criterion(self) -> nn.Module:
        """Outputs (B, ...) and `Objects` to the sum () of the losses of all images."""
