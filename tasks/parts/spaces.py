"""What a sweep varies, how it chooses, and what it gives up early; and the request that a choice comes to."""

import json
import math
import random
from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from models.parts.options import Option, Plain
from tasks.parts.problems import Invalid, Problem

Request = dict[str, Any]


class FloatRange(Plain):
    """A number from `low` to `high`."""

    type: Literal["float"] = Field(description="A number.")
    low: float = Field(description="The least value.")
    high: float = Field(description="The greatest value.")
    log: bool = Field(False, description="Whether to search its logarithm, as for learning rates.")
    step: float | None = Field(
        None, gt=0, description="Distance between two values; any value in between if left out."
    )
    relative: bool = Field(
        False,
        description="Whether the number is a factor of what the field would be in a job without a sweep, which "
        "may differ by architecture.",
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        _check_bounds(self.low, self.high, log=self.log, step=self.step)
        if self.step is not None and (self.high - self.low) / self.step > 1e9:
            raise ValueError("has more than a billion steps")
        return self

    def probes(self) -> list[Any]:
        """Values that all must be allowed, so that those between them are: no whole number among the inner."""
        inner = self.low + (self.high - self.low) * 0.6180339887
        return [self.low, self.top(), *([] if self.step else [inner])]

    def top(self) -> float:
        """The greatest value there is: `high` where steps lead to it."""
        return self.high if self.step is None else self.at(self.size() - 1)

    def size(self) -> int:
        """How many values there are on a grid; 0 for too many to count."""
        return math.floor((self.high - self.low) / self.step + 1e-9) + 1 if self.step else 0

    def at(self, place: int) -> float:
        """The value at a place on the grid."""
        return round(self.low + place * (self.step or 0.0), 12)


class IntRange(Plain):
    """A whole number from `low` to `high`."""

    type: Literal["int"] = Field(description="A whole number.")
    low: int = Field(ge=-(2**53), le=2**53, description="The least value.")
    high: int = Field(ge=-(2**53), le=2**53, description="The greatest value.")
    log: bool = Field(False, description="Whether to search its logarithm, as for widths.")
    step: int = Field(1, ge=1, le=2**53, description="Distance between two values.")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        _check_bounds(self.low, self.high, log=self.log, step=None if self.step == 1 else self.step)
        return self

    def probes(self) -> list[Any]:
        return [self.low, self.top()]

    def top(self) -> int:
        return self.at(self.size() - 1)

    def size(self) -> int:
        return (self.high - self.low) // self.step + 1

    def at(self, place: int) -> int:
        return self.low + place * self.step


class Choice(Plain):
    """One of several values, between which there is no order."""

    type: Literal["choice"] = Field(description="One of several values.")
    choices: list[Any] = Field(
        min_length=1,
        max_length=50,
        description='The values: names, numbers, or whole options such as `{"name": "sgd"}`.',
    )

    @model_validator(mode="after")
    def _differ(self) -> Self:
        if len({as_text(choice) for choice in self.choices}) < len(self.choices):
            raise ValueError("the same choice is there twice")
        return self

    def probes(self) -> list[Any]:
        return list(self.choices)

    def size(self) -> int:
        return len(self.choices)

    def at(self, place: int) -> Any:
        return self.choices[place]


Parameter = Annotated[FloatRange | IntRange | Choice, Field(discriminator="type")]
Space = dict[str, Parameter]
"""{path in the request, such as training.batch_size: what it may be}"""


class Sampler(Option):
    """How a sweep chooses what to try next."""


class Drawing(Sampler):
    """Draws from the space."""

    begin_with_default: bool = Field(
        False, description="Have the first trial be what a job without a sweep would be."
    )


class Tpe(Drawing):
    """What did well so far, and what is near it (Bergstra et al., 2011); trials at work count as poor ones."""

    name: Literal["tpe"] = "tpe"
    startup_trials: int = Field(
        10, ge=1, le=1_000, description="Trials drawn at random before any is chosen."
    )


class Random(Drawing):
    """Each trial drawn by itself (Bergstra and Bengio, 2012)."""

    name: Literal["random"] = "random"


class Grid(Sampler):
    """Every combination once, in random order; it needs a `step` for each number."""

    name: Literal["grid"] = "grid"


class Pruner(Option):
    """Which trials a sweep stops before their end."""


class NoPruner(Pruner):
    """None: every trial is trained to its end."""

    name: Literal["none"] = "none"


class Median(Pruner):
    """Those whose best so far is worse than the median of what others had after as many epochs."""

    name: Literal["median"] = "median"
    startup_trials: int = Field(
        5,
        ge=1,
        le=1_000,
        description="Trials that must have come to their end before any is stopped.",
    )
    warmup_epochs: int = Field(
        1,
        ge=0,
        le=100_000,
        description="Epochs after which a trial may be stopped at the earliest.",
    )


class SuccessiveHalving(Pruner):
    """After 1, 3, 9, ... epochs all but the best third of those that got there (ASHA, Li et al., 2020)."""

    name: Literal["successive-halving"] = "successive-halving"
    min_epochs: int = Field(1, ge=1, le=100_000, description="Epochs before the first comparison.")
    factor: int = Field(
        3, ge=2, le=100, description="One of so many goes on, for so many times the epochs."
    )


def as_text(value: Any) -> str:
    """A JSON value as a text that equal ones share."""
    return json.dumps(value, sort_keys=True)


def grid_size(space: Mapping[str, Parameter]) -> int:
    """How many combinations there are; 0 if some parameter is not to be counted."""
    return math.prod(parameter.size() for parameter in space.values())


def grid_point(space: Mapping[str, Parameter], seed: int, number: int) -> Request:
    """The combination that is tried as number `number`, of the order that belongs to `seed`."""
    drawn = random.Random(seed)
    place = drawn.sample(range(min(grid_size(space), 2**62)), number + 1)[-1]
    point = {}
    for path, parameter in sorted(space.items()):
        place, index = divmod(place, parameter.size())
        point[path] = parameter.at(index)
    return point


def default_point(space: Mapping[str, Parameter], chosen: Request) -> Request:
    """The point of a space that is nearest to what a job without a sweep would be, which is `chosen`."""
    return {path: _nearest(each, value_at(chosen, path)) for path, each in space.items()}


def value_at(request: Any, path: str) -> Any:
    """What a request has at a path; None for nothing."""
    for step in path.split("."):
        request = request.get(step) if isinstance(request, Mapping) else None
    return request


def _nearest(parameter: Parameter, value: Any) -> Any:
    if isinstance(parameter, Choice):
        fitting = (each for each in parameter.choices if _is_part(each, value))
        return next(fitting, parameter.choices[0])
    if isinstance(parameter, FloatRange) and parameter.relative:
        value = 1.0
    if not isinstance(value, int | float):
        return parameter.low
    within = min(max(value, parameter.low), parameter.top())
    if parameter.step is None:
        return within
    return parameter.at(round((within - parameter.low) / parameter.step))


def _is_part(choice: Any, value: Any) -> bool:
    """Whether a value is what was chosen, in all that the choice says of it."""
    if isinstance(choice, Mapping) and isinstance(value, Mapping):
        return all(_is_part(each, value.get(name)) for name, each in choice.items())
    return bool(choice == value)


def requested(
    request: Request,
    parameters: Mapping[str, Any],
    resolved: Callable[[Request], Request],
    space: Mapping[str, Parameter] | None = None,
) -> Request:
    """A job's request with a value at each of the paths, which `space` says may be a factor.

    Names come first: they decide what else there is. What `request` leaves open around a path is then
    what `resolved` chooses for it, so that nothing differs but the value. Raises what `resolved` does, and Invalid
    for a factor of what is no number.
    """
    asked = deepcopy(request)
    in_order = sorted(
        parameters, key=lambda path: (not path.endswith(".name"), path.count("."), path)
    )
    names = [path for path in in_order if path.endswith(".name")]
    others = in_order[len(names) :]
    for path in names:
        _rename(asked, path.split("."), parameters[path])
    for path in others:  # whole options before what others have inside
        chosen, value = resolved(asked), deepcopy(parameters[path])
        if _is_relative((space or {}).get(path)):
            value *= _number_at(chosen, path)
        _settle(asked, chosen, path.split(".")[:-1])
        _parent(asked, path.split("."))[path.rpartition(".")[2]] = value
    return asked


def _is_relative(parameter: Parameter | None) -> bool:
    return isinstance(parameter, FloatRange) and parameter.relative


def _number_at(chosen: Request, path: str) -> float:
    found = value_at(chosen, path)
    if isinstance(found, bool) or not isinstance(found, int | float):
        message = "there is no number to be a factor of"
        raise Invalid(Problem(tuple(path.split(".")), message, found, "a field with a number"))
    return found


def _check_bounds(low: float, high: float, *, log: bool, step: float | None) -> None:
    if low >= high:
        raise ValueError("`low` must be less than `high`")
    if log and low <= 0:
        raise ValueError("`low` must be greater than 0 for a logarithm")
    if log and step is not None:
        raise ValueError("`log` and `step` do not go together")


def _rename(asked: Request, way: list[str], name: Any) -> None:
    """Have an option be another one, to which the fields of the one before mean nothing."""
    parent = _parent(asked, way)
    if parent.get("name") != name:
        parent.clear()
        parent["name"] = name


def _settle(asked: Request, chosen: Any, way: list[str]) -> None:
    """Fill in the options on the way to a field that the request leaves open."""
    for depth, step in enumerate(way):
        chosen = chosen.get(step) if isinstance(chosen, Mapping) else None
        name = chosen.get("name") if isinstance(chosen, Mapping) else None
        present = asked.get(step)
        if isinstance(present, dict):
            if name is not None:
                asked[step] = {"name": name, **present}
        elif name is not None and depth > 0:
            asked[step] = deepcopy(chosen)
        else:
            asked[step] = {} if name is None else {"name": name}
        asked = asked[step]


def _parent(asked: Request, way: list[str]) -> Request:
    """The object that holds the last step of the way, made where there is none."""
    for step in way[:-1]:
        if not isinstance(asked.get(step), dict):
            asked[step] = {}
        asked = asked[step]
    return asked
