"""The requests that a sweep's choices come to, and the points of its grid."""

from typing import Any

import pytest
from pydantic import TypeAdapter

from tasks.parts.problems import Invalid
from tasks.parts.spaces import Space, default_point, grid_point, grid_size, requested

CHOSEN = {
    "task": {"name": "t", "kept": 1, "architecture": {"name": "mlp", "width": 64, "layers": 2}},
    "training": {
        "epochs": 5,
        "optimizer": {"name": "adamw", "learning_rate": 0.1, "weight_decay": 0.5},
        "clipping": {"norm": None},
    },
}


def ask(request: Any, parameters: Any) -> Any:
    return requested(request, parameters, lambda asked: CHOSEN)


def read(**space: Any) -> Space:
    found: Space = TypeAdapter(Space).validate_python(space)
    return found


def test_an_option_that_was_left_open_is_the_one_that_would_be_chosen() -> None:
    asked = ask({"dataset": "d"}, {"training.optimizer.learning_rate": 0.2})
    optimizer = {"name": "adamw", "learning_rate": 0.2, "weight_decay": 0.5}
    assert asked == {"dataset": "d", "training": {"optimizer": optimizer}}
    automatic = {"training": {"optimizer": "auto"}}
    assert ask(automatic, {"training.optimizer.learning_rate": 0.2})["training"] == {
        "optimizer": optimizer
    }


def test_what_was_asked_for_stays_beside_what_is_searched() -> None:
    request = {"training": {"seed": 3, "optimizer": {"name": "sgd", "momentum": 0.5}}}
    asked = ask(request, {"training.optimizer.learning_rate": 0.2, "training.clipping.norm": 1.0})
    optimizer = {"name": "sgd", "momentum": 0.5, "learning_rate": 0.2}
    assert asked == {"training": {"seed": 3, "optimizer": optimizer, "clipping": {"norm": 1.0}}}
    assert request == {"training": {"seed": 3, "optimizer": {"name": "sgd", "momentum": 0.5}}}


def test_another_name_takes_the_place_of_an_option_with_its_fields() -> None:
    request = {"task": {"name": "t", "architecture": {"name": "mlp", "width": 8}}}
    same = ask(request, {"task.architecture.name": "mlp"})
    assert same == request
    other = ask(request, {"task.architecture.name": "gru"})
    assert other == {"task": {"name": "t", "architecture": {"name": "gru"}}}
    both = {"task.architecture.layers": 3, "task.architecture.name": "gru"}
    assert ask(request, both)["task"]["architecture"] == {"name": "gru", "layers": 3}


def test_a_task_is_named_and_otherwise_left_open() -> None:
    asked = ask({}, {"task.architecture.width": 8})
    architecture = {"name": "mlp", "width": 8, "layers": 2}
    assert asked == {"task": {"name": "t", "architecture": architecture}}


def test_a_grid_has_every_point_once_in_an_order_of_its_seed() -> None:
    space = read(
        a={"type": "int", "low": 1, "high": 6, "step": 2},
        b={"type": "float", "low": 0.1, "high": 0.35, "step": 0.1},
        c={"type": "choice", "choices": ["x", "y"]},
    )
    assert grid_size(space) == 3 * 3 * 2
    points = [grid_point(space, 0, number) for number in range(18)]
    assert len({tuple(point.values()) for point in points}) == 18
    assert {point["a"] for point in points} == {1, 3, 5}
    assert {point["b"] for point in points} == {0.1, 0.2, 0.3}
    assert points != [grid_point(space, 1, number) for number in range(18)]


def test_a_range_without_steps_is_no_grid() -> None:
    assert grid_size(read(a={"type": "float", "low": 0, "high": 1})) == 0


RELATIVE = {"type": "float", "low": 0.5, "high": 2.0, "log": True, "relative": True}


def test_a_relative_number_is_a_factor_of_what_would_be_chosen() -> None:
    space = read(**{"training.optimizer.learning_rate": RELATIVE})
    asked = requested({}, {"training.optimizer.learning_rate": 2.0}, lambda _: CHOSEN, space)
    assert asked["training"]["optimizer"]["learning_rate"] == 0.2
    with pytest.raises(Invalid, match="no number"):
        requested(
            {},
            {"training.clipping.norm": 2.0},
            lambda _: CHOSEN,
            read(**{"training.clipping.norm": RELATIVE}),
        )


def test_a_factor_is_of_what_suits_the_option_beside_it() -> None:
    def resolved(asked: Any) -> Any:
        slow = asked.get("task", {}).get("architecture") == {"name": "gru"}
        optimizer = {"name": "adamw", "learning_rate": 0.01 if slow else 0.1}
        return {"training": {"optimizer": optimizer}}

    parameters = {"training.optimizer.learning_rate": 2.0, "task.architecture": {"name": "gru"}}
    space = read(**{"training.optimizer.learning_rate": RELATIVE})
    assert requested({}, parameters, resolved, space)["training"]["optimizer"] == {
        "name": "adamw",
        "learning_rate": 0.02,
    }


def test_the_default_point_is_the_nearest_there_is() -> None:
    space = read(
        **{
            "training.optimizer.learning_rate": RELATIVE,
            "training.optimizer.weight_decay": {"type": "float", "low": 0.0, "high": 0.2},
            "training.epochs": {"type": "int", "low": 2, "high": 9, "step": 2},
            "training.clipping.norm": {"type": "float", "low": 1.0, "high": 2.0},
            "task.architecture": {
                "type": "choice",
                "choices": [{"name": "gru"}, {"name": "mlp", "layers": 3}, {"name": "mlp"}],
            },
            "task.kept": {"type": "choice", "choices": [2, 3]},
        }
    )
    assert default_point(space, CHOSEN) == {
        "training.optimizer.learning_rate": 1.0,
        "training.optimizer.weight_decay": 0.2,
        "training.epochs": 6,
        "training.clipping.norm": 1.0,
        "task.architecture": {"name": "mlp"},
        "task.kept": 2,
    }
