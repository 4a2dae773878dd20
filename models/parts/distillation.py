"""Learning what another network answers, beside what the labels say."""

from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from models.parts.options import Plain


class Distillation(Plain):
    """Learn what a teacher answers to the examples, beside what their labels say (Hinton et al., 2015)."""

    teacher: str | None = Field(
        None,
        max_length=200,
        description="The model that teaches: `name`, `name@3`, `name@alias`, `job_...`, `ckpt_...`. All of its labels "
        "must be among those that are learned. If left out it is the base, which so keeps what it knows of its own "
        "labels (learning without forgetting, Li and Hoiem, 2017).",
    )
    share: float = Field(
        0.5,
        gt=0,
        le=1,
        description="How much the teacher's answers count; the rest is left to the labels.",
    )
    temperature: float = Field(
        2.0,
        gt=0,
        le=100,
        description="What scores are divided by before they are compared: the higher, the more the unlikely labels "
        "count.",
    )


@dataclass(frozen=True)
class Lessons:
    """How answers of a teacher, scores (B, its labels), become a part of the loss."""

    plan: Distillation
    places: tuple[int, ...]
    """Where the learner has each of the teacher's labels."""
    several: bool = False
    """Whether an example may have several labels."""

    def loss(self, criterion: nn.Module, scores: Tensor, *targets: Tensor) -> Tensor:
        """The mean loss () of scores (B, labels), from what `criterion` takes, and the teacher's answers behind."""
        *given, answers = targets
        hard = criterion(scores, *given)
        soft = self._differences(scores, answers)
        weights = criterion.weight if isinstance(criterion, nn.CrossEntropyLoss) else None
        if weights is None:
            mean = soft.mean()
        else:  # as the criterion does, so that both parts of the loss divide by the same
            mean = (soft * weights[given[0]]).sum() / weights[given[0]].sum()
        # Gradients shrink with the square of the temperature.
        factor = self.plan.share * self.plan.temperature**2
        loss: Tensor = (1 - self.plan.share) * hard + factor * mean
        return loss

    def _differences(self, scores: Tensor, answers: Tensor) -> Tensor:
        """The cross-entropy (B,) of the teacher's labels, both softened."""
        places = torch.tensor(self.places, device=scores.device)
        ours = scores.index_select(1, places) / self.plan.temperature
        wanted = answers / self.plan.temperature
        if self.several:
            return F.binary_cross_entropy_with_logits(
                ours, wanted.sigmoid(), reduction="none"
            ).mean(1)
        return F.cross_entropy(ours, wanted.softmax(1), reduction="none")
