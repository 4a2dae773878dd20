"""Which ways of fine-tuning go together, and with what."""

from collections.abc import Iterator
from typing import Any

from models.base import ImageGenerator
from models.linear import Linear
from models.parts.training import Training, Transfer
from tasks.base import Task
from tasks.parts.problems import Invalid, Problem

_STANDS_STILL: dict[str, tuple[Any, ...]] = {
    "trainable_blocks": ("all", 0),
    "unfreeze_every": (None,),
    "layer_decay": (1,),
    "l2_sp": (0,),
    "adapters": (None,),
}
"""Of how a backbone learns, what may be asked for where it does not."""


def check_methods(task: Task, training: Training, transfer: Transfer) -> None:
    """Raises Invalid for ways of fine-tuning that contradict each other, the task or the training."""
    if transfer.from_scratch:
        return
    problems = [*_of_architecture(task, transfer)]
    if transfer.adapters is not None:
        problems += _of_adapters(task, training, transfer)
    if transfer.linear_probe:
        problems += _of_probe(task, training, transfer)
    if problems:
        raise Invalid(*problems)


def _of_architecture(task: Task, transfer: Transfer) -> Iterator[Problem]:
    """What asks for a backbone that learns by the gradients of one loss."""
    architecture = task.architecture
    asked = {"l2_sp": transfer.l2_sp, "adapters": transfer.adapters}
    for name in [name for name, value in asked.items() if value]:
        place, found = ("transfer", name), transfer.model_dump()[name]
        if not architecture.spreads:
            message = f"{architecture.name} does not learn by the gradients of one loss"
            yield Problem(place, message, found)
        if isinstance(architecture, Linear):
            message = f"{architecture.name} has no weights but those of its outputs"
            yield Problem(place, message, found)


def _of_adapters(task: Task, training: Training, transfer: Transfer) -> Iterator[Problem]:
    if isinstance(task.architecture, ImageGenerator):
        message = f"{task.architecture.name} answers with an average of its weights"
        yield Problem(("transfer", "adapters"), message, transfer.model_dump()["adapters"])
    if transfer.l2_sp:
        message = "weights that have adapters stay where they began"
        yield Problem(("transfer", "l2_sp"), message, transfer.l2_sp, 0)
    if training.compile != "never":
        message = "a network with adapters is not compiled"
        yield Problem(("training", "compile"), message, training.compile, "never")


def _of_probe(task: Task, training: Training, transfer: Transfer) -> Iterator[Problem]:
    place = ("transfer", "linear_probe")
    if not task.probed:
        message = f"the head of {task.name} by {task.architecture.name} takes more than features"
        yield Problem(place, message, True, False)
    for name, allowed in _STANDS_STILL.items():
        asked = getattr(transfer, name)
        if asked not in allowed:
            message = "means nothing where a linear probe has the backbone stand still"
            found = transfer.model_dump()[name]
            yield Problem(("transfer", name), message, found, allowed[0])
    if training.compile != "never":
        message = "a linear probe has nothing to compile"
        yield Problem(("training", "compile"), message, training.compile, "never")
