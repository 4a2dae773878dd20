"""The processes that learn one model together, each of which holds a part of it: for what fits no single device.

Weights, gradients and what the optimizers remember are divided among the devices (torch's FSDP2, after Zhao et
al., 2023). A block of the network is whole only while it computes. So whatever needs a forward pass or
the weights takes all processes: rank 0 orders it, and the others do it with rank 0 while they wait for its word.
"""

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from models.base import Backbone, Batch, Learner
from models.parts.memory import ran_out
from tasks.trained import device_of
from worker import snapshots
from worker.feed import Source
from worker.group import Points, Together
from worker.snapshots import Snapshot


class Sharded(Together):
    """One of several processes that hold a learner in parts.

    Copies of it are whole and on the CPU, so that nobody who reads a checkpoint needs to know of parts.
    """

    _has_learned = True
    """Whether the batch statistics of the processes may differ."""

    def place(self, learner: Learner, device: str) -> None:
        """Block by block, so that no device ever holds all of it."""
        mesh = init_device_mesh(torch.device(device).type, (self.size,))
        for part in [*_blocks(learner), learner]:
            fully_shard(part, mesh=mesh, reshard_after_forward=True)
        learner.together = self._gradients
        learner.predict = self._predict  # type: ignore[method-assign]
        self._learner = learner

    def enter_epoch(self, learner: Learner) -> None:
        """Nothing: which weights learn makes no difference to how they are divided."""

    def share(self, source: Source, index: Tensor) -> Batch:
        self._go_on()
        self._has_learned = True
        return super().share(source, index)

    def read(
        self, total: Tensor, points: Points, step: int, interval: float
    ) -> tuple[float, Points]:
        self._go_on()
        return super().read(total, points, step, interval)

    def _go_on(self) -> None:
        """Have the others go on after a report, at which rank 0 may have had orders for them."""
        if self._steps == 0 and self.rank == 0:
            self._tell("go on")
        elif self._steps == 0:
            self._hear()

    def _pieces(self, batch: Batch, parts: int) -> list[tuple[Batch, bool]]:
        """As many for each process, since all take part in every pass."""
        index = torch.arange(len(batch), device=batch.inputs[0].device)
        cut = index.tensor_split(min(parts, -(-self._whole // self.size)))
        pieces = []
        for rows in cut:
            # Who has one example less than others may lack one for the last piece.
            chosen = rows if len(rows) else index[:1]
            piece = Batch(*(tuple(t[chosen] for t in of) for of in (batch.inputs, batch.targets)))
            pieces.append((piece, bool(self._mine and len(rows))))
        return pieces

    def _learn(self, piece: Batch, share: Tensor | float, *, is_last: bool) -> Tensor:
        # Gradients are exchanged after every piece: those of the whole network would not fit.
        assert self._learner is not None
        loss = self._learner.loss(piece) * share
        self._learner.loss_scale.scale(loss * self.size).backward()
        return loss.detach()

    def take(self, learner: Learner) -> Snapshot:
        self._order("take")
        return snapshots.take(learner, _gathered)

    def take_weights(self, learner: Learner) -> dict[str, Tensor]:
        self._order("take_weights")
        return snapshots.take_weights(learner, _gathered)

    def put_back(self, learner: Learner, snapshot: Snapshot) -> None:
        here, memory = learner.state_dict(), {}
        weights = {name: _part(tensor, here[name]) for name, tensor in snapshot.weights.items()}
        for key, tensor in snapshot.memory.items():
            optimizer, place, _ = key.split("/", 2)
            groups = learner.optimizers[optimizer].param_groups
            parameters = [parameter for group in groups for parameter in group["params"]]
            memory[key] = _part(tensor, parameters[int(place)])
        snapshots.put_back(learner, snapshot._replace(weights=weights, memory=memory))

    def load(self, learner: Learner, weights: Path) -> None:
        self._order("load", str(weights))
        self.put_back(learner, Snapshot(load_file(weights), {}, {}, {}))

    def attend(self) -> None:
        self._hear()

    def _order(self, what: str, *details: Any) -> None:
        """Have the others do the same, if this is rank 0."""
        if self.rank == 0:
            self._tell([what, *details])

    def _hear(self) -> Any:
        """What rank 0 says that is not an order; orders are carried out."""
        learner = self._learner
        while isinstance(word := super()._hear(), list):
            assert learner is not None
            match word:
                case ["predict", *inputs]:
                    self._predict_beside(learner, inputs)
                case ["take"]:
                    self.take(learner)
                case ["take_weights"]:
                    self.take_weights(learner)
                case ["load", file]:
                    self.load(learner, Path(file))
        return word

    def _predict(self, *inputs: Tensor) -> Tensor:
        """Outputs (B, ...) for inputs (B, ...) that rank 0 has; each process makes as many of them."""
        assert self._learner is not None
        examples = len(inputs[0])
        rows = torch.arange(self.size * -(-examples // self.size)).clamp(max=examples - 1)
        parts = [tensor[rows].chunk(self.size) for tensor in inputs]
        self._order(
            "predict",
            *([str(first.dtype).removeprefix("torch."), first.shape] for first, *_ in parts),
        )
        mine = [torch.empty_like(first) for first, *_ in parts]
        for tensor, spread in zip(mine, parts, strict=True):
            dist.scatter(tensor, list(spread))
        try:
            outputs = self._outputs(self._learner, mine)
        except (RuntimeError, MemoryError) as error:
            if not ran_out(error):
                raise
            # The others are in the middle of this pass, and could not begin a smaller one.
            self.ran_out()
            raise dist.DistError("this process has left the others in a forward pass") from error
        found = [torch.empty_like(outputs) for _ in range(self.size)]
        dist.gather(outputs, found)
        return torch.cat(found)[:examples]

    def _predict_beside(self, learner: Learner, inputs: list[tuple[str, list[int]]]) -> None:
        """Make a part of the outputs that rank 0 is asked for."""
        learner.eval()
        mine = [
            torch.empty(shape, dtype=getattr(torch, dtype), device=device_of(learner))
            for dtype, shape in inputs
        ]
        for tensor in mine:
            dist.scatter(tensor)
        dist.gather(self._outputs(learner, mine))

    # What a block is gathered into is made once: in inference mode, no step could use it.
    @torch.inference_mode(False)
    @torch.no_grad()
    def _outputs(self, learner: Learner, inputs: list[Tensor]) -> Tensor:
        """In as many pieces as steps are learned from, and with the batch statistics of rank 0."""
        if self._has_learned:
            for buffer in learner.buffers():
                dist.broadcast(buffer, 0)
            self._has_learned = False
        pieces = Batch(tuple(inputs)).split(learner.micro_batches)
        predict = type(learner).predict
        return torch.cat([predict(learner, *piece.inputs) for piece in pieces])


def _blocks(learner: Learner) -> list[nn.Module]:
    """The parts of its backbones that compute one after the other, and have weights."""
    backbones = [module for module in learner.modules() if isinstance(module, Backbone)]
    return [
        block
        for backbone in backbones
        for block in backbone.blocks()
        if any(True for _ in block.parameters()) and not isinstance(block, nn.ModuleList)
    ]


def _gathered(tensor: Tensor) -> Tensor:
    """A copy on the CPU, the whole of it for rank 0 and nothing for the others."""
    whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return snapshots.copied(whole) if dist.get_rank() == 0 else torch.empty(0)


def _part(whole: Tensor, like: Tensor) -> Tensor:
    """Of a whole tensor what this process holds of one that is `like` it in shape."""
    if not isinstance(like, DTensor) or whole.shape != like.shape:
        return whole
    return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)
