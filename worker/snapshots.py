"""A moment of a training, apart from it: copied out and put back such that not a bit of the rest changes."""

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from models.base import Learner

_ASIDE = "aside/-/"


class Snapshot(NamedTuple):
    """All that a learner has become, on the CPU."""

    weights: dict[str, Tensor]
    memory: dict[str, Tensor]
    """What the optimizers remember, as `<optimizer>/<parameter>/<name>`; and what is kept aside, by its name."""
    settings: dict[str, Any]
    """What they remember besides tensors, ready for JSON."""
    loss_scale: dict[str, Any]
    """How losses are scaled by now, ready for JSON; empty where they are not."""


def copied(tensor: Tensor) -> Tensor:
    """A copy on the CPU."""
    return tensor.detach().to("cpu", copy=True).contiguous()


def take(learner: Learner, copy_of: Callable[[Tensor], Tensor] = copied) -> Snapshot:
    """Copy a learner, each tensor by `copy_of`."""
    memory: dict[str, Tensor] = {}
    settings: dict[str, Any] = {}
    for name, optimizer in learner.optimizers.items():
        state = optimizer.state_dict()
        settings[name] = {"groups": copy.deepcopy(state["param_groups"]), "state": {}}
        for place, remembered in state["state"].items():
            tensors = {k: v for k, v in remembered.items() if isinstance(v, Tensor)}
            memory |= {f"{name}/{place}/{key}": tensor for key, tensor in tensors.items()}
            plain = {k: v for k, v in remembered.items() if k not in tensors}
            settings[name]["state"][str(place)] = plain
    memory |= {f"{_ASIDE}{name}": tensor for name, tensor in learner.kept_aside().items()}
    memory = {name: copy_of(tensor) for name, tensor in memory.items()}
    weights = take_weights(learner, copy_of)
    return Snapshot(weights, memory, settings, learner.loss_scale.state_dict())


def take_weights(
    learner: Learner, copy_of: Callable[[Tensor], Tensor] = copied
) -> dict[str, Tensor]:
    """Copy what a learner predicts with."""
    return {name: copy_of(tensor) for name, tensor in learner.state_dict().items()}


def put_back(learner: Learner, snapshot: Snapshot) -> None:
    """Make a learner that was built and started in the same way what it was."""
    learner.load_state_dict(snapshot.weights)
    with torch.no_grad():
        for name, weight in learner.kept_aside().items():
            weight.copy_(snapshot.memory[f"{_ASIDE}{name}"])
    for name, kept in snapshot.settings.items():
        state = {int(place): dict(plain) for place, plain in kept["state"].items()}
        for key, tensor in snapshot.memory.items():
            optimizer, place, field = key.split("/", 2)
            if optimizer == name:
                state[int(place)][field] = tensor
        learner.optimizers[name].load_state_dict({"param_groups": kept["groups"], "state": state})
    if snapshot.loss_scale:
        learner.loss_scale.load_state_dict(snapshot.loss_scale)
