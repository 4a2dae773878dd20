"""Optimizers a request can name; each builds the optimizer of the same name in `torch.optim`."""

from abc import abstractmethod
from typing import Any, Literal

import torch
from pydantic import Field
from torch.optim import Optimizer as TorchOptimizer

from models.parts.options import Option

ParameterGroups = list[dict[str, Any]]


class Optimizer(Option):
    """How gradients change the weights."""

    learning_rate: float = Field(1e-3, gt=0, le=100, description="Step size at full schedule.")
    weight_decay: float = Field(0.0, ge=0, le=10, description="Pull of the weights towards zero.")

    @abstractmethod
    def build(self, groups: ParameterGroups) -> TorchOptimizer:
        """The torch optimizer over parameter groups that carry their own `lr`."""


class SGD(Optimizer):
    """Stochastic gradient descent, plain, with momentum, or with Nesterov's look-ahead."""

    name: Literal["sgd"] = "sgd"
    learning_rate: float = Field(0.05, gt=0, le=100, description="Step size at full schedule.")
    momentum: float = Field(0.9, ge=0, lt=1, description="Share of the last step kept.")
    nesterov: bool = Field(False, description="Look ahead along the momentum (needs momentum > 0).")

    def build(self, groups: ParameterGroups) -> TorchOptimizer:
        return torch.optim.SGD(
            groups,
            self.learning_rate,
            momentum=self.momentum,
            nesterov=self.nesterov and self.momentum > 0,
            weight_decay=self.weight_decay,
        )


class Adagrad(Optimizer):
    """Adagrad: steps shrink with the sum of squared gradients (Duchi et al., 2011)."""

    name: Literal["adagrad"] = "adagrad"
    learning_rate: float = Field(0.01, gt=0, le=100, description="Step size at full schedule.")

    def build(self, groups: ParameterGroups) -> TorchOptimizer:
        return torch.optim.Adagrad(groups, self.learning_rate, weight_decay=self.weight_decay)


class RMSprop(Optimizer):
    """RMSprop: steps divided by a running root mean square of gradients (Hinton, 2012)."""

    name: Literal["rmsprop"] = "rmsprop"
    momentum: float = Field(0.0, ge=0, lt=1, description="Share of the last step kept.")
    alpha: float = Field(0.99, gt=0, lt=1, description="Smoothing of the squared gradients.")

    def build(self, groups: ParameterGroups) -> TorchOptimizer:
        return torch.optim.RMSprop(
            groups,
            self.learning_rate,
            alpha=self.alpha,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
        )


class Adam(Optimizer):
    """Adam: momentum and per-weight step sizes (Kingma and Ba, 2015)."""

    name: Literal["adam"] = "adam"
    beta1: float = Field(0.9, ge=0, lt=1, description="Smoothing of the gradients.")
    beta2: float = Field(0.999, ge=0, lt=1, description="Smoothing of the squared gradients.")

    def build(self, groups: ParameterGroups) -> TorchOptimizer:
        return torch.optim.Adam(
            groups,
            self.learning_rate,
            (self.beta1, self.beta2),
            weight_decay=self.weight_decay,
            fused=True,
        )


class AdamW(Optimizer):
    """Adam with weight decay kept apart from the gradient (Loshchilov and Hutter, 2019)."""

    name: Literal["adamw"] = "adamw"
    weight_decay: float = Field(0.01, ge=0, le=10, description="Pull of the weights towards zero.")
    beta1: float = Field(0.9, ge=0, lt=1, description="Smoothing of the gradients.")
    beta2: float = Field(0.999, ge=0, lt=1, description="Smoothing of the squared gradients.")

    def build(self, groups: ParameterGroups) -> TorchOptimizer:
        return torch.optim.AdamW(
            groups,
            self.learning_rate,
            (self.beta1, self.beta2),
            weight_decay=self.weight_decay,
            fused=True,
        )
