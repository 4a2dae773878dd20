"""The processes that learn one model together, each on a device of its own: what they share and tell each other.

All of them hold the same weights and take the same steps. Each learns from its share of a step's examples, and
the gradients are averaged while they are made (torch's DistributedDataParallel), so that every step is the one
that a single device would take. The first process, rank 0, judges, tells, keeps and decides; the others follow.
"""

import json
import re
import time
from collections.abc import Iterator
from contextlib import nullcontext
from mmap import mmap
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from models.base import Batch, Learner
from tasks.base import Metrics
from worker import snapshots
from worker.feed import Source
from worker.snapshots import Snapshot

T = TypeVar("T")
Points = list[tuple[int, int, Metrics]]

_GLOO = re.compile(r"gloo", re.I)


def lost_peer(error: BaseException) -> bool:
    """Whether an error says that another process of the group is gone."""
    if isinstance(error, dist.DistError):
        return True
    return isinstance(error, RuntimeError) and bool(_GLOO.search(str(error)))


class Group:
    """A process that learns alone."""

    rank = 0
    size = 1
    restarts = 0
    """How often the processes were started anew in this run, since one of them had ended."""

    def meet(self) -> None:
        """Wait for the other processes. Raises MemoryError when the memory of one of them did not suffice."""

    def ran_out(self) -> None:
        """Note that the memory of this process did not suffice, for the group that begins anew."""

    def place(self, learner: Learner, device: str) -> None:
        """Bring a learner that was just built to this process's device."""
        learner.to(device)

    def enter_epoch(self, learner: Learner) -> None:
        """Get ready for an epoch that the learner has entered."""

    def part(self, index: Tensor) -> Tensor:
        """Which of a step's examples (B,) this process learns from."""
        return index

    def share(self, source: Source, index: Tensor) -> Batch:
        """What this process learns from in a step whose examples are at `index` (B,)."""
        return source.batch(self.part(index))

    def due(self, step: int, waited: float, interval: float) -> bool:
        """Whether the loop is to report after `step` steps, `waited` seconds after the last time."""
        return waited > interval

    def read(
        self, total: Tensor, points: Points, step: int, interval: float
    ) -> tuple[float, Points]:
        """The sum of losses `total` () and the losses of `points`, of whole batches and on the CPU."""
        return total.item(), [
            (step, epoch, {name: float(value) for name, value in values.items()})
            for step, epoch, values in points
        ]

    def judged(self, judging: Iterator[T | None]) -> Iterator[T | None]:
        """What comes of judging, for every process, at last; until then None, so that others are heard."""
        return judging

    def take(self, learner: Learner) -> Snapshot:
        """Copy a learner."""
        return snapshots.take(learner)

    def take_weights(self, learner: Learner) -> dict[str, Tensor]:
        """Copy what a learner predicts with."""
        return snapshots.take_weights(learner)

    def put_back(self, learner: Learner, snapshot: Snapshot) -> None:
        """Make a learner that was built, placed and started what it was; every process does so."""
        snapshots.put_back(learner, snapshot)

    def load(self, learner: Learner, weights: Path) -> None:
        """Have a learner predict with the weights of a file."""
        learner.load_state_dict(load_file(weights))

    def attend(self) -> None:
        """Take part in what rank 0 does when the last step is done, where that takes all processes."""


ALONE = Group()


class Together(Group):
    """One of several processes, after `torch.distributed` was set up.

    How often they report is agreed on: rank 0 says at each report how many steps are left until the next.
    What they exchange there is one small sum on the CPU; between reports there is none but the gradients'.
    """

    def __init__(self, notes: mmap, restarts: int = 0) -> None:
        """`notes` is a byte that they share with those that were here before: whether memory ran out."""
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.restarts = restarts
        self._notes = notes
        self._learner: Learner | None = None
        self._spread: DistributedDataParallel | None = None
        self._learning: list[str] = []
        self._is_tried_out = False
        self._whole = self._mine = 0
        self._reports_at, self._every = 0, 1
        self._steps, self._began = 0, 0.0
        """Steps since the last report, and when the first of them began."""

    def ran_out(self) -> None:
        self._notes[0] = 1

    def meet(self) -> None:
        if self.rank == 0 and self._notes[0]:
            self._notes[0] = 0
            raise MemoryError("another device of this training ran out of memory")
        dist.all_reduce(torch.zeros(()))

    def enter_epoch(self, learner: Learner) -> None:
        learning = [name for name, weight in learner.named_parameters() if weight.requires_grad]
        if self._spread is None or learning != self._learning:
            self._spread = None  # two of them would average the same gradients twice
            # Also learners some of whose weights never get a gradient have a static graph.
            self._spread = DistributedDataParallel(Loss(learner), static_graph=True)
            self._learner, self._learning, self._is_tried_out = learner, learning, False
            learner.together = self._gradients

    def part(self, index: Tensor) -> Tensor:
        """An even part of the examples; where there is none for this process, one that counts nothing."""
        part = index.tensor_split(self.size)[self.rank]
        return part if len(part) else index[:1]

    def share(self, source: Source, index: Tensor) -> Batch:
        if self._steps == 0:
            self._began = time.monotonic()
        self._steps += 1
        self._whole = len(index)
        self._mine = len(index.tensor_split(self.size)[self.rank])
        return super().share(source, index)

    def _gradients(self, batch: Batch) -> Tensor:
        """Gradients of the mean loss of all shares; returns what this share adds to it ()."""
        assert self._learner is not None
        learner = self._learner
        whole: Tensor | int = learner.weight(batch) * bool(self._mine)
        if isinstance(whole, Tensor):
            dist.all_reduce(whole)
        else:
            whole = self._whole
        pieces = self._pieces(batch, learner.micro_batches)
        total = torch.zeros((), device=batch.inputs[0].device)
        for number, (piece, counts) in enumerate(pieces, 1):
            share = learner.weight(piece) * counts / whole
            total += self._learn(piece, share, is_last=number == len(pieces))
        return total

    def _pieces(self, batch: Batch, parts: int) -> list[tuple[Batch, bool]]:
        """This process's part of a batch in as many pieces, at most, and whether each counts."""
        return [
            (piece, bool(self._mine)) for piece in (batch.split(parts) if parts > 1 else [batch])
        ]

    def _learn(self, piece: Batch, share: Tensor | float, *, is_last: bool) -> Tensor:
        """Gradients of a piece that is so large a share of the batch; returns what it adds to the loss ()."""
        assert self._learner is not None
        assert self._spread is not None
        if not self._is_tried_out:
            self._try_out(self._learner, self._spread, piece)
        # Gradients of all pieces are exchanged at once, with the last one's.
        with nullcontext() if is_last else self._spread.no_sync():
            loss: Tensor = self._spread(piece) * share
            # What is exchanged is averaged, and is to be summed.
            self._learner.loss_scale.scale(loss * self.size).backward()
        return loss.detach()

    def _try_out(self, learner: Learner, spread: DistributedDataParallel, batch: Batch) -> None:
        """Go through steps that change nothing.

        Torch rearranges the buckets in which gradients are summed until it has seen two steps. A training
        that goes on would see them once more: sums of three or more numbers would be rounded otherwise.
        """
        with learner.rehearsal():
            for _ in range(2):
                spread(batch).backward()
        self._is_tried_out = True

    def due(self, step: int, waited: float, interval: float) -> bool:
        return step >= self._reports_at

    def read(
        self, total: Tensor, points: Points, step: int, interval: float
    ) -> tuple[float, Points]:
        losses = [value for _, _, values in points for value in values.values()]
        mine = [total.double(), *(torch.as_tensor(loss).double() for loss in losses)]
        told = torch.stack([*(loss.cpu() for loss in mine), torch.zeros(()).double()])
        if self.rank == 0:
            told[-1] = self._steps_until_report(interval)
        dist.all_reduce(told)
        summed, *read, steps = told.tolist()
        self._reports_at, self._steps = step + int(steps), 0
        values = iter(read)
        return summed, [
            (step, epoch, {name: next(values) for name in named}) for step, epoch, named in points
        ]

    def _steps_until_report(self, interval: float) -> int:
        """As many as take `interval` seconds at the pace of the last ones; at most twice as many as before."""
        if self._steps:
            pace = (time.monotonic() - self._began) / self._steps
            self._every = max(1, min(2 * self._every, round(interval / pace)))
        return self._every

    def judged(self, judging: Iterator[T | None]) -> Iterator[T | None]:
        if self.rank:
            yield self._hear()
            return
        for found in judging:
            if found is not None:
                self._tell(found)
            yield found

    def _tell(self, word: Any) -> None:
        """Say something that is JSON to the others, which `_hear` it."""
        text = torch.frombuffer(bytearray(json.dumps(word).encode()), dtype=torch.uint8)
        dist.broadcast(torch.tensor(len(text)), 0)
        dist.broadcast(text, 0)

    def _hear(self) -> Any:
        dist.broadcast(length := torch.tensor(0), 0)
        dist.broadcast(text := torch.empty(int(length), dtype=torch.uint8), 0)
        return json.loads(bytes(text.tolist()))


class Loss(nn.Module):
    """A learner's loss as a module, which is what DistributedDataParallel takes."""

    def __init__(self, learner: Learner) -> None:
        super().__init__()
        self.learner = learner

    def forward(self, batch: Batch) -> Tensor:
        return self.learner.loss(batch)
