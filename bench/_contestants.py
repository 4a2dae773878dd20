"""Who trains a workload of the training benchmark: the limit, the loop people write, the service's own, and peers."""

import os
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from bench._workloads import LEARNING_RATE, WORKLOADS, Workload
from tasks.trained import Trained
from worker.loop import fit, plan_of
from worker.trainer import keep_memory

EPOCHS = 1_000
"""More than are ever asked for: a contestant trains until its process is ended."""
Gate = Callable[[], None]
"""Called before every epoch: tells how long the last one took, and waits for its turn."""


class Contestant(NamedTuple):
    """Trains a workload for `EPOCHS` epochs, each of which begins with the gate."""

    train: Callable[[Workload, Gate], None]
    package: str = "torch"
    """Without it there is no such contestant."""


def limit(workload: Workload, gate: Gate) -> None:
    """A bare loop over whole batches in memory."""
    network, optimizer = _network(workload)
    for epoch in range(EPOCHS):
        gate()
        network.train()
        for inputs, targets in workload.batches(epoch):
            loss = F.cross_entropy(network(inputs), targets)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)


def bare(workload: Workload, gate: Gate) -> None:
    """What people write: a DataLoader, and `loss.item()` in every step."""
    network, optimizer = _network(workload)
    loader = _loader(workload)
    for _ in range(EPOCHS):
        gate()
        network.train()
        total = 0.0
        for inputs, targets in loader:
            optimizer.zero_grad()
            loss = F.cross_entropy(network(inputs), targets)
            loss.backward()
            optimizer.step()
            total += loss.item()


def modelyard(workload: Workload, gate: Gate) -> None:
    """The service's own loop on the service's own network."""
    keep_memory()
    spec, codec, train, few = workload.prepared()
    torch.manual_seed(0)
    learner = spec.task.build(codec)
    _same_size(workload.network(), learner)
    learner.start(spec.training, None, plan_of(learner, train.columns, spec.training).steps)
    gate()
    for progress in fit(Trained(spec.task, codec, learner), train, few, spec.training):
        if progress.state.step_in_epoch == 0:
            gate()


def lightning(workload: Workload, gate: Gate) -> None:
    import lightning  # type: ignore[import-not-found]

    class Module(lightning.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.network = workload.network()

        def training_step(self, batch: Any, _: int) -> Any:
            inputs, targets = batch
            loss = F.cross_entropy(self.network(inputs), targets)
            self.log("loss", loss)
            return loss

        def configure_optimizers(self) -> Any:
            return _optimizer(self)

        def on_train_epoch_start(self) -> None:
            gate()

    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=EPOCHS,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tempfile.mkdtemp(),
    )
    trainer.fit(Module(), _loader(workload))


def huggingface(workload: Workload, gate: Gate) -> None:
    import transformers

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = workload.network()

        def forward(self, inputs: Any, labels: Any) -> dict[str, Any]:
            scores = self.network(inputs)
            return {"loss": F.cross_entropy(scores, labels), "logits": scores}

    class Epochs(transformers.TrainerCallback):
        def on_epoch_begin(self, *_: Any, **__: Any) -> None:
            gate()

    def collate(samples: list[Any]) -> dict[str, Any]:
        gather: Any = workload.collate or torch.utils.data.default_collate
        inputs, targets = gather(samples)
        return {"inputs": inputs, "labels": targets}

    options = transformers.TrainingArguments(
        output_dir=tempfile.mkdtemp(),
        use_cpu=True,
        per_device_train_batch_size=workload.batch_size,
        num_train_epochs=EPOCHS,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
    )
    trainer = transformers.Trainer(
        model=Network(),
        args=options,
        train_dataset=workload.samples(),
        data_collator=collate,
        callbacks=[Epochs()],
    )
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train()


def skorch(workload: Workload, gate: Gate) -> None:
    from skorch import NeuralNetClassifier  # type: ignore[import-not-found]
    from skorch.callbacks import Callback  # type: ignore[import-not-found]

    class Epochs(Callback):  # type: ignore[misc]
        def on_epoch_begin(self, net: Any, **_: Any) -> None:
            gate()

    NeuralNetClassifier(
        workload.network(),
        criterion=nn.CrossEntropyLoss,
        optimizer=torch.optim.AdamW,
        optimizer__weight_decay=0.0,
        lr=LEARNING_RATE,
        batch_size=workload.batch_size,
        max_epochs=EPOCHS,
        train_split=None,
        verbose=0,
        iterator_train__shuffle=True,
        iterator_train__collate_fn=workload.collate,
        callbacks=[("epochs", Epochs())],
    ).fit(workload.samples(), y=None)


def keras(workload: Workload, gate: Gate) -> None:
    """Keras trains its own layers: the network is wrapped as one."""
    os.environ["KERAS_BACKEND"] = "torch"
    import keras  # type: ignore[import-not-found]
    from keras.layers import TorchModuleWrapper  # type: ignore[import-not-found]

    class Epochs(keras.callbacks.Callback):  # type: ignore[misc]
        def on_epoch_begin(self, *_: Any) -> None:
            gate()

    model = keras.Sequential([TorchModuleWrapper(workload.network())])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.AdamW(LEARNING_RATE, weight_decay=0.0), loss)
    model.fit(_loader(workload), epochs=EPOCHS, verbose=0, callbacks=[Epochs()])


CONTESTANTS: dict[str, Contestant] = {
    "limit": Contestant(limit),
    "modelyard": Contestant(modelyard),
    "bare loop": Contestant(bare),
    "lightning": Contestant(lightning, "lightning"),
    "huggingface": Contestant(huggingface, "accelerate"),
    "skorch": Contestant(skorch, "skorch"),
    "keras": Contestant(keras, "keras"),
}


def installed() -> list[str]:
    """The names of those whose packages are there."""
    return [name for name, entry in CONTESTANTS.items() if find_spec(entry.package)]


def compete(name: str, workload: str, folder: Path, threads: int, turns: Connection) -> None:
    """A contestant's process: one epoch for every message, answered by the seconds it took."""
    torch.set_num_threads(threads)
    began = None

    def gate() -> None:
        nonlocal began
        turns.send(None if began is None else time.perf_counter() - began)
        turns.recv()
        began = time.perf_counter()

    CONTESTANTS[name].train(WORKLOADS[workload](folder), gate)


def _network(workload: Workload) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    network = workload.network()
    return network, _optimizer(network, fused=True)


def _optimizer(network: nn.Module, **options: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(network.parameters(), LEARNING_RATE, weight_decay=0.0, **options)


def _loader(workload: Workload) -> DataLoader[Any]:
    collate: Any = workload.collate
    return DataLoader(workload.samples(), workload.batch_size, shuffle=True, collate_fn=collate)


def _same_size(one: nn.Module, other: nn.Module) -> None:
    sizes = [sum(p.numel() for p in network.parameters()) for network in (one, other)]
    if sizes[0] != sizes[1]:
        raise RuntimeError(f"the networks differ: {sizes[0]} and {sizes[1]} parameters")
