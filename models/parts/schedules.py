"""Learning-rate schedules: pure functions of the position in training, so that resuming needs no state."""

import math
from abc import abstractmethod
from typing import Literal

from pydantic import Field

from models.parts.options import Option


class Schedule(Option):
    """How the learning rate changes over the steps of a training."""

    warmup: float = Field(
        0.0, ge=0, lt=1, description="Share of all steps in which the rate rises from zero."
    )

    def factor(self, step: int, steps: int) -> float:
        """What the learning rate is multiplied by in `step` (0-based) of `steps`."""
        rising = round(self.warmup * steps)
        if step < rising:
            return (step + 1) / (rising + 1)
        return self.after_warmup((step - rising) / max(1, steps - rising))

    @abstractmethod
    def after_warmup(self, position: float) -> float:
        """The factor at a position in [0, 1) of the steps that follow the warm-up."""


class Constant(Schedule):
    """The same learning rate throughout."""

    name: Literal["constant"] = "constant"

    def after_warmup(self, position: float) -> float:
        return 1.0


class Cosine(Schedule):
    """Half a cosine from the full rate down to a floor (Loshchilov and Hutter, 2017)."""

    name: Literal["cosine"] = "cosine"
    floor: float = Field(0.0, ge=0, le=1, description="Factor at the very end.")

    def after_warmup(self, position: float) -> float:
        return self.floor + (1 - self.floor) * (1 + math.cos(math.pi * position)) / 2


class OneCycle(Schedule):
    """Rise to the full rate, then fall far below the start (Smith and Topin, 2018)."""

    name: Literal["one-cycle"] = "one-cycle"
    peak: float = Field(0.3, gt=0, lt=1, description="Where in training the full rate is reached.")
    start: float = Field(0.04, gt=0, le=1, description="Factor of the first step.")
    end: float = Field(1e-4, ge=0, le=1, description="Factor of the last step.")

    def after_warmup(self, position: float) -> float:
        low, high, along = (
            (self.start, 1.0, position / self.peak)
            if position < self.peak
            else (1.0, self.end, (position - self.peak) / (1 - self.peak))
        )
        return low + (high - low) * (1 - math.cos(math.pi * along)) / 2


class Step(Schedule):
    """Multiply the rate by `gamma` at evenly spaced positions."""

    name: Literal["step"] = "step"
    drops: int = Field(2, ge=1, le=100, description="How many times the rate drops.")
    gamma: float = Field(0.1, gt=0, le=1, description="Factor of each drop.")

    def after_warmup(self, position: float) -> float:
        return float(self.gamma ** int(position * (self.drops + 1)))
