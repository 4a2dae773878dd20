"""What learners that make images have in common: what is asked of them, noise by seeds, and averaged weights."""

import copy
from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from models.base import Backbone, Batch, Learner, NotTransferable, Supervised
from models.parts.training import Training, Transfer

FIRST = 9
"""Averages begin as if so many steps had been, so that they forget the untrained weights soon."""


class ImageMaker(Supervised):
    """Makes images of a class (the head holds a vector for each, and one for none) from noise.

    It answers with an average of the weights of its last steps, which is steadier than any of them
    (Polyak and Juditsky, 1992).
    """

    mirrors = False
    """Whether it also learns from every image's mirror image."""

    averaged: Tensor

    def __init__(
        self, backbone: Backbone, shape: tuple[int, int, int], classes: int, decay: float
    ) -> None:
        super().__init__(backbone, nn.Embedding(classes + 1, backbone.width), nn.MSELoss())
        nn.init.normal_(self.head.weight, std=0.1)  # type: ignore[arg-type]
        self.shape, self.classes, self.decay = shape, classes, decay
        self.average = copy.deepcopy(nn.ModuleList([self.backbone, self.head]))
        self.average.requires_grad_(False)
        self.register_buffer("averaged", torch.zeros((), dtype=torch.int64))

    # Learning

    def start(self, training: Training, transfer: Transfer | None, steps: int) -> None:
        super().start(training, transfer, steps)
        self.averaged.zero_()
        self.optimizers["main"].register_step_post_hook(lambda *_: self._follow())

    def parameter_groups(self) -> list[dict[str, Any]]:
        if self.transfer is None:
            return [{"params": [*self.backbone.parameters(), *self.head.parameters()]}]
        return super().parameter_groups()

    @torch.no_grad()
    def _follow(self) -> None:
        """Move the averages towards the weights, at first in larger steps."""
        self.averaged += 1
        rate = (FIRST / (FIRST + self.averaged)).clamp(min=1 - self.decay)
        weights = [*self.backbone.parameters(), *self.head.parameters()]
        for average, weight in zip(self.average.parameters(), weights, strict=True):
            average.lerp_(weight, rate)

    def seen(self, batch: Batch) -> Tensor:
        """The images of a batch (B, C, H, W) in [-1, 1], every second one mirrored if that is wanted."""
        images = batch.targets[0].float() / 127.5 - 1
        if not self.mirrors:
            return images
        turned = torch.rand(len(images), 1, 1, 1, device=images.device) < 0.5
        return torch.where(turned, images.flip(3), images)

    # Making images

    def predict(self, *inputs: Tensor) -> Tensor:
        """Images (B, C, H, W) in [0, 1] of what is asked for, those of a row a function of it alone."""
        (classes, seeds, steps), guidance = inputs[0].unbind(1), inputs[1]
        start = noise(seeds, self.noise_shape)
        images = torch.empty(len(seeds), *self.shape, device=start.device)
        for count in steps.unique().tolist():
            rows = (steps == count).nonzero()[:, 0]
            images[rows] = self.make(start[rows], classes[rows], count, guidance[rows])
        return (images.clamp(-1, 1) + 1) / 2

    @property
    @abstractmethod
    def noise_shape(self) -> tuple[int, ...]:
        """What an image is made from."""

    @abstractmethod
    def make(self, start: Tensor, classes: Tensor, steps: int, guidance: Tensor) -> Tensor:
        """Images (B, C, H, W) in [-1, 1] from noise (B, *noise_shape) for classes (B,), by the averages."""

    def averages(self) -> tuple[nn.Module, nn.Module]:
        """Backbone and head with the averaged weights."""
        return self.average[0], self.average[1]

    def take_over(self, base: Learner, *, head: bool) -> None:
        if type(base) is not type(self):
            raise NotTransferable("the base makes images in another way than this architecture")
        assert isinstance(base, ImageMaker)
        super().take_over(base, head=head)
        self.average[0].load_state_dict(base.average[0].state_dict())
        self.average[1].load_state_dict((base.average[1] if head else self.head).state_dict())
        self.averaged.copy_(base.averaged)


def noise(seeds: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Normal numbers (B, *shape), those of a row a function of its seed (B,) alone."""
    rows = [
        torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds.tolist()
    ]
    return torch.stack(rows).to(seeds.device)
