"""Parameters of a request: what its inputs share, said once."""

from collections.abc import Mapping
from typing import Any

from api import faults
from tasks.base import Task


def of_task(task: Task, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Those that are the task's own, and not the door's."""
    own = task.parameters_type.model_fields
    return {name: value for name, value in parameters.items() if name in own}


def spread(task: Task, inputs: list[Any], parameters: Mapping[str, Any]) -> list[Any]:
    """The inputs, each with the task's parameters that it does not give itself. Raises Invalid."""
    if not parameters:
        return inputs
    faults.read(task.parameters_type, parameters, ("parameters",))
    return [{**parameters, **value} if isinstance(value, dict) else value for value in inputs]
