"""A process that writes a model's network as ONNX: `python -m api.serving.export FOLDER`.

The folder holds `model.json` (task, codec and the path of the weights) and `inputs.safetensors`, a batch to trace
the network with. It gets `network.onnx`, and `int8.onnx`, whose matrix products have 8 bits, if that is asked for.
"""

import json
import os
import sys
from pathlib import Path
from threading import Thread
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tasks import trained
from tasks.catalog import read_task

NETWORK, INT8 = "network.onnx", "int8.onnx"


class _Network(nn.Module):
    def __init__(self, model: trained.Trained) -> None:
        super().__init__()
        self.learner = model.learner

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.learner.predict(*inputs).float()


def export(folder: Path) -> None:
    """Write the files. Raises what torch says of a network that has no such form."""
    asked = json.loads((folder / "model.json").read_text())
    model = trained.load(read_task(asked["task"]), asked["codec"], Path(asked["weights"]))
    found = load_file(folder / "inputs.safetensors")
    inputs = tuple(found[str(place)] for place in range(len(found)))
    free = tuple(dict.fromkeys(axes, torch.export.Dim.DYNAMIC) for axes in asked["free"])
    with torch.no_grad():
        program: Any = torch.onnx.export(
            _Network(model), inputs, dynamic_shapes=(free,), dynamo=True, verbose=False
        )
    program.save(folder / f".{NETWORK}")
    (folder / f".{NETWORK}").replace(folder / NETWORK)
    if asked["int8"]:
        from onnxruntime.quantization import quantize_dynamic

        quantize_dynamic(folder / NETWORK, folder / f".{INT8}")
        (folder / f".{INT8}").replace(folder / INT8)


def _end_with_parent() -> None:
    sys.stdin.buffer.read()
    os._exit(1)


if __name__ == "__main__":
    os.nice(19)
    torch.set_num_threads(1)
    Thread(target=_end_with_parent, daemon=True).start()
    export(Path(sys.argv[1]))
