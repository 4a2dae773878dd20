"""A trained model: task, codec and learner, to bytes and back, and its predictions."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from models.base import Learner
from tasks.base import Codec, Task
from tasks.parts.columns import Columns


class Trained(NamedTuple):
    """What is needed to answer: the task, what it learned besides weights, and the weights in their network."""

    task: Task
    codec: Codec
    learner: Learner

    @property
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
        return list(self.predictions(self.codec.encode_inputs(inputs), batch_size))

    def predictions(self, columns: Columns, batch_size: int = 256) -> Iterator[Any]:
        """Predictions for an encoded split, in its order; leaves the learner in evaluation mode.

        Examples of similar length share a batch. The result of an example may not depend on its
        neighbours beyond floating-point rounding.
        """
        self.learner.eval()
        order = torch.arange(columns.examples)
        if columns.lengths is not None:
            order = columns.lengths.argsort(stable=True)
        found: list[Any] = [None] * columns.examples
        with torch.inference_mode():
            for index in order.split(batch_size):
                batch = columns.batch(index).to(self.device)
                outputs = self.learner.predict(*batch.inputs).float().cpu()
                for place, prediction in zip(
                    index.tolist(), self.codec.decode(outputs), strict=True
                ):
                    found[place] = prediction
        yield from found


def device_of(learner: Learner) -> torch.device:
    """Where a learner's weights are."""
    tensor = next((t for t in [*learner.parameters(), *learner.buffers()]), None)
    return tensor.device if tensor is not None else torch.device("cpu")


def save_weights(weights: Mapping[str, Tensor], path: Path) -> None:
    """Write named tensors as safetensors."""
    save_file({name: t.detach().cpu().contiguous() for name, t in weights.items()}, path)


def load(task: Task, codec: Any, weights: Path, device: str = "cpu") -> Trained:
    """A trained model from its parts: the codec's JSON data and a safetensors file."""
    read = task.codec_type.model_validate(codec)
    learner = task.build(read)
    learner.load_state_dict(load_file(weights))
    learner.eval()
    return Trained(task, read, learner.to(device))
