"""Generative adversarial network: one network makes images, another learns to tell them from real ones."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from models.base import Backbone, Batch, ImageGenerator, Learner
from models.parts.generating import ImageMaker
from models.parts.maps import Chain, finer, side_of, widths_of
from models.parts.optimizers import Adam
from models.parts.precision import autocast
from models.parts.schedules import Constant
from models.parts.training import Training, Transfer

LIGHT = 0.2
"""By how much brightness and contrast vary before images are told apart."""


class GAN(ImageGenerator):
    """Generative adversarial network (Goodfellow et al., 2014), its critic's slopes bounded (Miyato et al., 2018)."""

    spreads = False

    name: Literal["gan"] = "gan"
    width: int = Field(
        32,
        ge=8,
        le=512,
        multiple_of=8,
        description="Channels of the finest maps; coarser ones have more.",
    )
    codes: int = Field(64, ge=1, le=4_096, description="Random numbers that an image is made from.")
    vary: float = Field(
        0.15,
        ge=0,
        le=0.5,
        description="Share of the side by which real and made images are moved before they are told apart, so "
        "that few images are not learned by heart (Zhao et al., 2020); lights vary, too, unless it is 0.",
    )
    average: float = Field(
        0.995,
        ge=0,
        lt=1,
        description="How slowly the averaged weights that images are made with follow.",
    )

    def build(self, channels: int, side: int, classes: int) -> "Adversaries":
        return Adversaries(channels, side, classes, self)

    def defaults(self, examples: int) -> dict[str, Any]:
        return {
            "optimizer": Adam(learning_rate=5e-4, beta1=0.0, beta2=0.99),
            "schedule": Constant(),
        }


class Maker(Backbone):
    """Random numbers to images."""

    def __init__(self, channels: int, side: int, options: GAN) -> None:
        super().__init__()
        widths = widths_of(options.width, side)
        self.width, self.widest = 4 * options.width, widths[-1]
        self.small = side_of(side, widths)
        self.begin = nn.Linear(options.codes + self.width, widths[-1] * self.small**2)
        self.stages = finer(widths, channels)

    def forward(self, codes: Tensor, meanings: Tensor) -> Tensor:
        """Codes (B, codes) and what to show (B, width) to images (B, C, H, W)."""
        cells = self.begin(torch.cat([codes, meanings], 1))
        images: Tensor = self.stages(cells.view(-1, self.widest, self.small, self.small))
        return images.tanh()

    def blocks(self) -> list[nn.Module]:
        return [self.begin, *self.stages]


class Critic(nn.Module):
    """How real images look, and as images of their class (Miyato and Koyama, 2018)."""

    def __init__(self, channels: int, side: int, classes: int, width: int) -> None:
        super().__init__()
        widths = widths_of(width, side)
        inputs = [channels, *widths]
        self.stages = Chain(
            nn.Sequential(
                spectral_norm(nn.Conv2d(before, after, 3, padding=1)),
                nn.LeakyReLU(0.2),
                spectral_norm(nn.Conv2d(after, after, 4, stride=2, padding=1))
                if place < len(widths) - 1
                else nn.Identity(),
                nn.LeakyReLU(0.2),
            )
            for place, (before, after) in enumerate(zip(inputs, widths, strict=False))
        )
        self.verdict = spectral_norm(nn.Linear(widths[-1], 1))
        self.labels = nn.Embedding(classes + 1, widths[-1])
        nn.init.normal_(self.labels.weight, std=0.1)

    def forward(self, images: Tensor, classes: Tensor) -> Tensor:
        """Images (B, C, H, W) of classes (B,) to verdicts (B,), positive for real ones."""
        features = self.stages(images).sum((2, 3))
        verdict: Tensor = self.verdict(features)[:, 0] + (self.labels(classes) * features).sum(1)
        return verdict


class Adversaries(ImageMaker):
    """Learns to make images by deceiving a critic that learns at the same time."""

    accumulates = False

    def __init__(self, channels: int, side: int, classes: int, options: GAN) -> None:
        network = Maker(channels, side, options)
        super().__init__(network, (channels, side, side), classes, options.average)
        self.codes, self.vary = options.codes, options.vary
        self.critic = Critic(channels, side, classes, options.width)

    def start(self, training: Training, transfer: Transfer | None, steps: int) -> None:
        super().start(training, transfer, steps)
        critic = training.optimizer.build([{"params": list(self.critic.parameters())}])
        for group in critic.param_groups:
            group["full_lr"] = group["lr"]
        self.optimizers["critic"] = critic

    def forward(self, *inputs: Tensor) -> Tensor:
        """Codes (B, codes) and classes (B,) to images (B, C, H, W)."""
        codes, classes = inputs
        images: Tensor = self.backbone(codes, self.head(classes))
        return images

    def loss(self, batch: Batch) -> Tensor:
        """How badly the critic tells real images from made ones of the same classes (hinge losses)."""
        real, classes = self.seen(batch), batch.inputs[0][:, 0]
        with autocast(self.precision, real.device):
            with torch.no_grad():
                made = self._made(classes)
            of_real = self.critic(self._varied(real), classes).float()
            of_made = self.critic(self._varied(made), classes).float()
        return F.relu(1 - of_real).mean() + F.relu(1 + of_made).mean()

    def train_step(self, batch: Batch, step: int) -> Tensor:
        """A step of the critic, and one of what makes images; returns the loss () of the critic."""
        factor = self.training_plan.schedule.factor(step, self.steps)
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = group["full_lr"] * factor
        loss, classes = self.loss(batch), batch.inputs[0][:, 0]
        self._improve("critic", loss)
        with self._critic_at_rest():
            with autocast(self.precision, classes.device):
                verdicts = self.critic(self._varied(self._made(classes)), classes)
            self._improve("main", -verdicts.float().mean())
        self.loss_scale.update()
        return loss.detach()

    def _made(self, classes: Tensor) -> Tensor:
        images: Tensor = self(torch.randn(len(classes), self.codes, device=classes.device), classes)
        return images

    def _varied(self, images: Tensor) -> Tensor:
        """The same images (B, C, H, W), each moved and lit at random; gradients pass through."""
        if not self.vary:
            return images
        count, side, device = len(images), images.shape[2], images.device
        reach = round(self.vary * side)
        moves = torch.randint(-reach, reach + 1, (2, count, 1), device=device)
        rows, columns = (torch.arange(side, device=device) + moves).clamp(0, side - 1)
        places = (rows[:, :, None] * side + columns[:, None]).flatten(1)  # (B, H * W)
        pixels = images.flatten(2)
        moved = pixels.gather(2, places[:, None].expand_as(pixels)).view_as(images)
        contrast, light = (torch.rand(2, count, 1, 1, 1, device=device) * 2 - 1) * LIGHT
        varied: Tensor = moved * (1 + contrast) + light
        return varied

    def _improve(self, name: str, loss: Tensor) -> None:
        """One step down the gradient of a loss, for the weights of one of the two."""
        plan, optimizer = self.training_plan, self.optimizers[name]
        self.loss_scale.scale(loss).backward()
        self.loss_scale.unscale_(optimizer)
        weights = [p for group in optimizer.param_groups for p in group["params"]]
        if plan.clipping.value is not None:
            nn.utils.clip_grad_value_(weights, plan.clipping.value)
        if plan.clipping.norm is not None:
            nn.utils.clip_grad_norm_(weights, plan.clipping.norm)
        self.loss_scale.step(optimizer)
        optimizer.zero_grad(set_to_none=True)

    @contextmanager
    def _critic_at_rest(self) -> Iterator[None]:
        """Gradients within go through the critic, and none to its weights."""
        self.critic.requires_grad_(False)
        yield
        self.critic.requires_grad_(True)

    @property
    def noise_shape(self) -> tuple[int, ...]:
        return (self.codes,)

    def make(self, start: Tensor, classes: Tensor, steps: int, guidance: Tensor) -> Tensor:
        """In one step, whatever `steps` says."""
        maker, head = self.averages()
        images: Tensor = maker(start, head(classes))
        return images

    def take_over(self, base: Learner, *, head: bool) -> None:
        super().take_over(base, head=head)
        assert isinstance(base, Adversaries)
        found = base.critic.state_dict()
        if not head:
            found["labels.weight"] = self.critic.labels.weight
        self.critic.load_state_dict(found)
