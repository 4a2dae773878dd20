"""Losses a request can name: of class scores (`ClassificationLoss`), label sets, numbers, pixels (`ImageLoss`)."""

from abc import abstractmethod
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from models.parts.options import Option


class LabelLoss(Option):
    """How far scores (B, labels) are from what an example is: of one class, or of several labels."""


class ClassificationLoss(LabelLoss):
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


class MultiLabelLoss(LabelLoss):
    """How far scores (B, labels) are from the labels that examples have (B, labels), each 0 or 1."""

    @abstractmethod
    def build(self, counts: list[int], examples: int) -> nn.Module:
        """The criterion for labels that so many of the `examples` of the train split have."""


class BinaryCrossEntropy(MultiLabelLoss):
    """Negative log-likelihood of each label by itself under a sigmoid."""

    name: Literal["binary-cross-entropy"] = "binary-cross-entropy"
    label_weights: Literal["none", "balanced"] = Field(
        "none",
        description="`balanced` lets examples that have a label count as much as those without it.",
    )

    def build(self, counts: list[int], examples: int) -> nn.Module:
        weights = None
        if self.label_weights == "balanced":
            having = torch.tensor(counts).float().clamp(min=1)
            weights = (examples - having).clamp(min=1) / having
        return LabelCriterion(nn.BCEWithLogitsLoss(pos_weight=weights))


class Focal(MultiLabelLoss):
    """Cross-entropy of each label that counts less the surer it is (Lin et al., 2017)."""

    name: Literal["focal"] = "focal"
    gamma: float = Field(
        2.0, ge=0, le=10, description="How much less what is nearly certain counts; 0: as much."
    )
    alpha: float = Field(
        0.5,
        gt=0,
        lt=1,
        description="Share of the weight that labels have that are there; the paper's is 0.25, after which fewer "
        "are given.",
    )

    def build(self, counts: list[int], examples: int) -> nn.Module:
        return LabelCriterion(FocalCriterion(self.gamma, self.alpha))


class LabelCriterion(nn.Module):
    """A criterion of numbers that also takes labels as bytes (B, labels)."""

    def __init__(self, of_numbers: nn.Module) -> None:
        super().__init__()
        self.of_numbers = of_numbers

    def forward(self, scores: Tensor, having: Tensor) -> Tensor:
        loss: Tensor = self.of_numbers(scores, having.to(scores.dtype))
        return loss


class FocalCriterion(nn.Module):
    """Of scores (B, labels) and targets (B, labels) in [0, 1]; the mean () over both."""

    def __init__(self, gamma: float, alpha: float) -> None:
        super().__init__()
        self.gamma, self.alpha = gamma, alpha

    def forward(self, scores: Tensor, targets: Tensor) -> Tensor:
        entropy = F.binary_cross_entropy_with_logits(scores, targets, reduction="none")
        wrong = (scores.sigmoid() - targets).abs()
        side = self.alpha * targets + (1 - self.alpha) * (1 - targets)
        return (side * wrong**self.gamma * entropy).mean()


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


class ImageLoss(Option):
    """How far images (B, C, H, W) in [0, 1] are from those they should be."""

    @abstractmethod
    def build(self) -> nn.Module:
        """The criterion, a mean over all pixels."""


class PixelwiseAbsolute(ImageLoss):
    """Mean absolute error of pixels: sharper than the squared one (Zhao et al., 2017)."""

    name: Literal["l1"] = "l1"

    def build(self) -> nn.Module:
        return nn.L1Loss()


class PixelwiseSquared(ImageLoss):
    """Mean squared error of pixels: what PSNR is made of, and the mean of all that may be right."""

    name: Literal["mse"] = "mse"

    def build(self) -> nn.Module:
        return nn.MSELoss()


class Charbonnier(ImageLoss):
    """Absolute for large errors, squared for small ones (Charbonnier et al., 1994; Lai et al., 2017)."""

    name: Literal["charbonnier"] = "charbonnier"
    epsilon: float = Field(1e-3, gt=0, le=1, description="Where it turns, as a share of white.")

    def build(self) -> nn.Module:
        return _Charbonnier(self.epsilon)


class _Charbonnier(nn.Module):
    def __init__(self, epsilon: float) -> None:
        super().__init__()
        self.epsilon = epsilon

    def forward(self, found: Tensor, wanted: Tensor) -> Tensor:
        return torch.sqrt((found - wanted) ** 2 + self.epsilon**2).mean()
