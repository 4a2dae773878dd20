"""A trained model: task, codec and learner, to bytes and back, and its predictions."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from models.base import Batch, Learner, Supervised
from models.parts.evidence import Localising
from models.parts.memory import ran_out
from tasks.base import Codec, Task
from tasks.parts.columns import Columns

_SHORT = 8
"""Below that length padding costs less than one more batch."""


class Explained(NamedTuple):
    """A prediction, and what each place of the input adds to each of K outputs (K, H, W)."""

    prediction: Any
    maps: Tensor


@dataclass(frozen=True)
class Trained:
    """What is needed to answer: the task, what it learned besides weights, and the weights in their network."""

    task: Task
    codec: Codec
    learner: Learner
    forward: Callable[..., Tensor] | None = None
    """What answers in the place of the learner's `predict`, faster."""

    @cached_property
    def device(self) -> torch.device:
        return device_of(self.learner)

    @property
    def bytes(self) -> int:
        """Memory the weights take."""
        return sum(t.nbytes for t in self.learner.state_dict().values())

    def predict(self, inputs: Sequence[Any], batch_size: int = 256) -> list[Any]:
        """Predictions for inputs that `codec.read_inputs` has read."""
        if not inputs:
            return []
        found = self.predictions(self.codec.encode_inputs(inputs), batch_size)
        return self.codec.complete(found, inputs)

    def predictions(self, columns: Columns, batch_size: int = 256) -> list[Any]:
        """Predictions for an encoded split, in its order, not completed; leaves the learner in evaluation mode.

        Examples of similar length share a batch. The result of an example may not depend on its
        neighbours beyond floating-point rounding.
        """
        *_, found = self.answering(columns, batch_size)
        assert found is not None
        return found

    def answering(self, columns: Columns, batch_size: int = 256) -> Iterator[list[Any] | None]:
        """At last what `predictions` returns; until then None after each batch, so that others are heard."""
        found: list[Any] = [None] * columns.examples
        for index, outputs in self.outputs(columns, batch_size):
            for place, prediction in zip(index.tolist(), self.codec.decode(outputs), strict=True):
                found[place] = prediction
            yield None
        yield found

    @property
    def embeds(self) -> bool:
        """Whether it tells what its network makes of an input before a head answers."""
        return self.task.embeds and isinstance(self.learner, Supervised)

    def embed(self, inputs: Sequence[Any], batch_size: int = 256) -> list[Tensor]:
        """What the network makes of each input, a vector (D,) float32; of a model that `embeds`."""
        if not inputs:
            return []
        pieces = [*self.features(self.codec.encode_inputs(inputs), batch_size)]
        order = torch.cat([index for index, _ in pieces]).argsort()
        return list(torch.cat([features for _, features in pieces])[order])

    @property
    def explains(self) -> bool:
        """Whether it tells where in an input it sees what it answers by."""
        return isinstance(self.learner, Localising)

    def explain(self, inputs: Sequence[Any], batch_size: int = 256) -> list[Explained]:
        """The prediction for each input, and where what speaks for each output is; of a model that `explains`."""
        assert isinstance(self.learner, Localising)
        seeing = replace(self, forward=self.learner.evidence)
        found: dict[int, Explained] = {}
        for index, maps in seeing.outputs(self.codec.encode_inputs(inputs), batch_size):
            predictions = self.codec.decode(maps.mean((2, 3)))
            for place, prediction, each in zip(index.tolist(), predictions, maps, strict=True):
                found[place] = Explained(prediction, each)
        return [found[place] for place in range(len(inputs))]

    def features(self, columns: Columns, batch_size: int = 256) -> Iterator[tuple[Tensor, Tensor]]:
        """As `outputs`, what the network makes of the examples (B, D) before a head answers."""
        assert isinstance(self.learner, Supervised)
        return replace(self, forward=self.learner.features_of).outputs(columns, batch_size)

    def outputs(self, columns: Columns, batch_size: int = 256) -> Iterator[tuple[Tensor, Tensor]]:
        """Which examples are answered together (B,), and the learner's outputs (B, ...) for them, on the CPU.

        A batch for which memory does not suffice is halved.
        """
        # Not always: walking through all of its modules takes as long as a small batch.
        if self.learner.training:
            self.learner.eval()
        order, lengths = torch.arange(columns.examples), columns.lengths
        if lengths is not None:
            order = lengths.argsort(stable=True)
        done, device, most = 0, self.device, self.codec.most_together()
        while done < columns.examples:
            index = order[done : done + batch_size]
            if lengths is not None:
                index = _alike(index, lengths, most)
            try:
                outputs = self._outputs(columns.batch(index).to(device))
            except (RuntimeError, MemoryError) as error:
                if len(index) == 1 or not ran_out(error):
                    raise
                batch_size = len(index) // 2
                continue
            done += len(index)
            yield index, outputs

    @torch.inference_mode()
    def _outputs(self, batch: Batch) -> Tensor:
        return (self.forward or self.learner.predict)(*batch.inputs).float().cpu()


def _alike(index: Tensor, lengths: Tensor, most: int | None) -> Tensor:
    """The first of examples in the order of their length whose padding takes less than themselves.

    All together they are at most as long as `most`, or one.
    """
    here = lengths[index]
    count = int(torch.searchsorted(here, 2 * here[0].clamp(min=_SHORT), right=True))
    if most is not None:
        padded = here * torch.arange(1, len(here) + 1)
        count = max(1, min(count, int(torch.searchsorted(padded, most, right=True))))
    return index[:count]


def device_of(learner: Learner) -> torch.device:
    """Where a learner's weights are."""
    tensor = next(chain(learner.parameters(), learner.buffers()), None)
    return tensor.device if tensor is not None else torch.device("cpu")


def save_weights(
    weights: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None = None
) -> None:
    """Write named tensors as safetensors."""
    kept = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    save_file(kept, path, metadata)


def load(task: Task, codec: Any, weights: Path, device: str = "cpu") -> Trained:
    """A trained model from its parts: the codec's JSON data and a safetensors file."""
    read = task.codec_type.model_validate(codec)
    learner = task.build(read)
    learner.load_state_dict(load_file(weights))
    learner.eval()
    return Trained(task, read, learner.to(device))
