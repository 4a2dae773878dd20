"""Weights that are pulled back to where they began."""

import torch
from torch import nn


class Anchor:
    """Where a network's weights began, and how strongly each is pulled there (L2-SP, Li et al., 2018).

    It is not among the weights: whoever goes on with a training makes it anew, before any state is restored.
    """

    def __init__(self, network: nn.Module, strength: float) -> None:
        self.strength = strength
        self._began = [(weight, weight.detach().clone()) for weight in network.parameters()]

    @torch.no_grad()
    def pull(self) -> None:
        """Add to the gradients, where there are any, that of half the squared distance, times the strength."""
        for weight, began in self._began:
            if weight.grad is not None:
                weight.grad.add_(weight - began, alpha=self.strength)
