"""The ways to compute a network that predicts; the fastest one answers, once it was seen to be right."""

import logging
import statistics
from collections.abc import Callable, Sequence
from threading import Lock
from time import perf_counter
from typing import NamedTuple

import torch
from torch import Tensor

from tasks.trained import Trained

log = logging.getLogger(__name__)

Forward = Callable[..., Tensor]
"""Inputs of a learner's `predict` to its outputs (B, ...), on the CPU and in float32."""

TRIALS = 8
"""Batches that every way is tried with."""
WORTH = 1.1
"""How many times as fast another way must be to be taken."""


class Way(NamedTuple):
    """How a network can be computed, and how far its outputs may be from the reference's.

    `tolerance` is the largest difference over the largest output.
    """

    name: str
    forward: Forward
    tolerance: float


class Runtimes:
    """Computes a network by the best of several ways.

    The first batches of requests are answered by the reference, and computed in the other ways as well, so
    that what is compared are the inputs that there really are. A way whose outputs are too far off, or that
    fails, is out. Single inputs and larger batches have a race each, since the best way may differ. One
    thread at a time asks; `add` may come from any.
    """

    def __init__(self, reference: Forward, ways: Sequence[Way] = ()) -> None:
        self._single, self._many = _Race(reference, ways), _Race(reference, ways)

    def __call__(self, *inputs: Tensor) -> Tensor:
        return (self._single if len(inputs[0]) == 1 else self._many).run(inputs)

    def add(self, way: Way) -> None:
        """Try one more way from now on."""
        self._single.add(way)
        self._many.add(way)

    @property
    def chosen(self) -> dict[str, str]:
        """The names of the ways that answer single inputs and larger batches now."""
        return {"single": self._single.winner, "many": self._many.winner}


class _Runner:
    """A way in a race."""

    def __init__(self, way: Way) -> None:
        self.way = way
        self.speeds: list[float] = []
        """How many times as fast as the reference it was, batch by batch."""

    @property
    def speed(self) -> float:
        return statistics.median(self.speeds)


class _Race:
    def __init__(self, reference: Forward, ways: Sequence[Way]) -> None:
        self._reference, self._best = reference, Way("reference", reference, 0.0)
        self._runners = [_Runner(way) for way in ways]
        self._lock = Lock()

    @property
    def winner(self) -> str:
        return self._best.name

    def add(self, way: Way) -> None:
        with self._lock:
            self._runners = [*self._runners, _Runner(way)]

    def run(self, inputs: tuple[Tensor, ...]) -> Tensor:
        runners = [runner for runner in self._runners if len(runner.speeds) < TRIALS]
        if not runners:
            return self._answer(inputs)
        begun = perf_counter()
        expected = self._reference(*inputs)
        seconds = perf_counter() - begun
        for runner in runners:
            self._try(runner, inputs, expected, seconds)
        self._choose()
        return expected

    def _answer(self, inputs: tuple[Tensor, ...]) -> Tensor:
        try:
            return self._best.forward(*inputs)
        except Exception as error:
            if self._best.forward is self._reference:
                raise
            log.warning("%s is not used any more: %s", self._best.name, error)
            with self._lock:
                self._runners = [r for r in self._runners if r.way is not self._best]
            self._best = Way("reference", self._reference, 0.0)
            return self._reference(*inputs)

    def _try(
        self, runner: _Runner, inputs: tuple[Tensor, ...], expected: Tensor, seconds: float
    ) -> None:
        way = runner.way
        try:
            begun = perf_counter()
            found = way.forward(*inputs)
            runner.speeds.append(seconds / (perf_counter() - begun))
        except Exception as error:
            log.warning("%s cannot compute this network: %s", way.name, error)
            self._drop(runner)
            return
        difference = _difference(found, expected)
        if not difference <= way.tolerance:
            log.warning("%s is off by %.3g, more than %.3g", way.name, difference, way.tolerance)
            self._drop(runner)

    def _drop(self, runner: _Runner) -> None:
        with self._lock:
            self._runners = [other for other in self._runners if other is not runner]

    def _choose(self) -> None:
        ready = [runner for runner in self._runners if len(runner.speeds) >= TRIALS]
        best = max(ready, key=lambda runner: runner.speed, default=None)
        if best is not None and best.speed >= WORTH and best.way is not self._best:
            log.info("%s computes %.1f times as fast", best.way.name, best.speed)
            self._best = best.way


def _difference(found: Tensor, expected: Tensor) -> float:
    """The largest difference over the largest expected output; NaN where one is not a number."""
    if found.shape != expected.shape:
        return float("nan")
    largest = expected.abs().max().clamp(min=1e-6)
    return float((found - expected).abs().max() / largest)


def as_it_stands(trained: Trained) -> Forward:
    """The reference."""
    return lambda *inputs: trained.learner.predict(*inputs).float().cpu()


def in_bfloat16(trained: Trained) -> Way:
    """The network in bfloat16, where torch's autocast has it so (Micikevicius et al., 2018)."""
    device, reference = trained.device, as_it_stands(trained)

    def forward(*inputs: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16):
            return reference(*inputs)

    return Way("bfloat16", forward, 0.02)
