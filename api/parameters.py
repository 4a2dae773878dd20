"""Parameters of a request: what its inputs share, said once."""

from collections.abc import Mapping
from typing import Any

from api import faults
from tasks.base import Task, files_of


def of_task(task: Task, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Those that are the task's own, and not the door's."""
    own = task.parameters_type.model_fields
    return {name: value for name, value in parameters.items() if name in own}


def spread(task: Task, inputs: list[Any], parameters: Mapping[str, Any]) -> list[Any]:
    """The inputs, each with the task's parameters that it does not give itself. Raises Invalid."""
    if not parameters:
        return inputs
    faults.read(task.parameters_type, parameters, ("parameters",))
    file = next(iter(files_of(task.input_type)), None)
    return [_with(parameters, value, file) for value in inputs]


def _with(parameters: Mapping[str, Any], value: Any, file: str | None) -> Any:
    """An input that says how it is to be read; `file` is the field of what may stand alone."""
    if isinstance(value, dict):
        return {**parameters, **value}
    if file is not None and isinstance(value, bytes | str):
        return {**parameters, file: value}
    return value
