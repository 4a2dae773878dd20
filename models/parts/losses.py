"""Losses a request can name: of class scores (`ClassificationLoss`) and of numbers (`RegressionLoss`)."""

from abc import abstractmethod
from typing import Literal

import torch
from pydantic import Field
from torch import nn

from models.parts.options import Option


class ClassificationLoss(Option):
    """How far scores (B, classes) are from target classes (B,)."""

    @abstractmethod
    def build(self, counts: list[int]) -> nn.Module:
        """The criterion for classes that occur `counts` times in the train split."""


class CrossEntropy(ClassificationLoss):
    """Negative log-likelihood of the right class under a softmax."""

    name: Literal["cross-entropy"] = "cross-entropy"
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="Share of each target spread over all classes."
    )
    class_weights: Literal["none", "balanced"] = Field(
        "none", description="`balanced` weighs each class by the inverse of its frequency."
    )

    def build(self, counts: list[int]) -> nn.Module:
        weights = None
        if self.class_weights == "balanced":
            weights = sum(counts) / (len(counts) * torch.tensor(counts).float().clamp(min=1))
        return nn.CrossEntropyLoss(weights, label_smoothing=self.label_smoothing)


class RegressionLoss(Option):
    """How far numbers (B, values) are from their targets (B, values)."""

    @abstractmethod
    def build(self) -> nn.Module:
        """The criterion, on standardised targets."""


class Euclidean(RegressionLoss):
    """Mean squared error."""

    name: Literal["mse"] = "mse"

    def build(self) -> nn.Module:
        return nn.MSELoss()


class Absolute(RegressionLoss):
    """Mean absolute error: less moved by outliers."""

    name: Literal["mae"] = "mae"

    def build(self) -> nn.Module:
        return nn.L1Loss()


class Huber(RegressionLoss):
    """Squared for small errors, absolute for large ones (Huber, 1964)."""

    name: Literal["huber"] = "huber"
    delta: float = Field(
        1.0, gt=0, description="Where it turns, in standard deviations of the target."
    )

    def build(self) -> nn.Module:
        return nn.HuberLoss(delta=self.delta)
