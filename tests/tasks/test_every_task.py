"""What holds for every task; a new one is found and checked by being there."""

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import polars as pl
import pytest
import torch
from pydantic import BaseModel

from models.parts.options import AUTO
from models.parts.training import Training
from tasks.base import Checked, Codec, Facts
from tasks.catalog import Spec, read_spec, resolve, tasks
from tasks.parts.columns import Columns
from tasks.parts.problems import Invalid
from tasks.trained import Trained, load, save_weights
from tests.toys import goal, tasks_with_toys, toy

every = pytest.mark.parametrize("name", sorted(tasks()))


@cache
def checked(name: str) -> Checked:
    task = tasks()[name]
    with TemporaryDirectory() as folder:
        return task.check(toy(name, Path(folder)), task.options_type())


@cache
def spec(name: str) -> Spec:
    data = checked(name)
    facts = Facts(data.schema, {split: frame.height for split, frame in data.splits.items()})
    return resolve(name, facts, None, Training(epochs=goal(name)[1], batch_size=32), None)


class Fitted(NamedTuple):
    trained: Trained
    columns: Columns


@cache
def codec(name: str) -> Codec:
    data = checked(name)
    return spec(name).task.learn_codec(data.splits["train"].lazy(), data.schema)


def fit(name: str) -> Trained:
    """A model trained as a job would be, on the toy."""
    task, training = spec(name).task, spec(name).training
    torch.manual_seed(training.seed)
    columns, learner = codec(name).encode(checked(name).splits["train"]), task.build(codec(name))
    epochs = learner.epochs(training.epochs)
    random = torch.Generator().manual_seed(0)
    draw = lambda: learner.batches(columns.examples, columns.lengths, training.batch_size, random)  # noqa: E731
    learner.start(training, None, epochs * len(draw()))
    step = 0
    for epoch in range(epochs):
        learner.enter_epoch(epoch)
        for index in draw():
            learner.train_step(columns.batch(index), step)
            step += 1
    return Trained(task, codec(name), learner)


fitted = cache(fit)


def validation(name: str) -> pl.DataFrame:
    return checked(name).splits["validation"]


def answers(name: str, trained: Trained) -> list[Any]:
    return list(trained.predictions(codec(name).encode(validation(name))))


def test_every_task_has_a_toy() -> None:
    assert tasks_with_toys() == sorted(tasks())


@every
def test_a_toy_passes_its_checks_and_is_split(name: str) -> None:
    data = checked(name)
    assert set(data.splits) == {"train", "validation"}
    assert data.report["examples"] == {n: frame.height for n, frame in data.splits.items()}
    assert {"duplicates", "overlap"} <= set(data.report)
    assert not any("\0" in column for column in data.splits["train"].columns)


@every
def test_the_bulky_columns_are_there(name: str) -> None:
    assert set(tasks()[name].bulky) <= set(validation(name).columns)


@every
def test_checking_twice_gives_the_same_splits(name: str, tmp_path: Path) -> None:
    task = tasks()[name]
    again = task.check(toy(name, tmp_path), task.options_type())
    assert again.schema == checked(name).schema
    for split, frame in again.splits.items():
        assert frame.equals(checked(name).splits[split])


@every
def test_splits_survive_storage_as_parquet(name: str, tmp_path: Path) -> None:
    frame = validation(name)
    frame.write_parquet(tmp_path / "split.parquet")
    assert pl.read_parquet(tmp_path / "split.parquet").equals(frame)


@every
def test_a_request_needs_nothing_but_the_name(name: str) -> None:
    found = spec(name)
    left = [field for field, value in found.task if isinstance(value, str) and value == AUTO]
    assert left == []
    assert read_spec(found.model_dump(mode="json")) == found


@every
def test_every_field_is_described(name: str) -> None:
    task = tasks()[name]
    schemas = [task, task.input_type, task.prediction_type, task.options_type]
    assert all(model.__doc__ for model in schemas)
    missing = [f for f, field in task.model_fields.items() if f != "name" and not field.description]
    assert missing == []
    assert all(task.formats.values())
    assert all(task.metrics.values())
    assert task.objective.metric in task.metrics
    assert task.input_type.model_json_schema()
    assert task.prediction_type.model_json_schema()


@every
def test_a_codec_travels_as_json(name: str) -> None:
    again = type(codec(name)).model_validate_json(codec(name).model_dump_json())
    assert again == codec(name)
    first, second = (c.encode(validation(name)) for c in (codec(name), again))
    for mine, its in zip(first.inputs + first.targets, second.inputs + second.targets, strict=True):
        for key, tensor in mine.tensors().items():
            assert torch.equal(tensor, its.tensors()[key])


@every
def test_a_codec_encodes_inputs_without_targets(name: str) -> None:
    columns = codec(name).encode(validation(name), targets=False)
    assert columns.targets == ()
    assert columns.examples == validation(name).height


@every
def test_a_step_changes_the_weights(name: str) -> None:
    torch.manual_seed(0)
    learner = spec(name).task.build(codec(name))
    before = {n: t.clone() for n, t in learner.state_dict().items()}
    learner.start(spec(name).training, None, 1)
    learner.enter_epoch(0)
    batch = codec(name).encode(checked(name).splits["train"]).batch(torch.arange(16))
    loss = learner.train_step(batch, 0)
    assert torch.isfinite(loss)
    after = learner.state_dict()
    assert any(n not in before or not torch.equal(t, before[n]) for n, t in after.items())


@every
def test_a_task_learns_its_toy(name: str) -> None:
    task = spec(name).task
    metrics = task.score(answers(name, fitted(name)), validation(name))
    assert set(metrics) == set(task.measures)
    assert task.objective.better(metrics[task.objective.metric], goal(name)[0]), metrics


@every
def test_an_evaluation_has_every_metric(name: str) -> None:
    found = spec(name).task.evaluate(answers(name, fitted(name)), validation(name))
    assert set(spec(name).task.measures) <= set(found)


@every
def test_predictions_are_of_the_declared_type(name: str) -> None:
    kind: type[BaseModel] = spec(name).task.answer_type
    for prediction in answers(name, fitted(name))[:5]:
        assert kind.model_validate_json(prediction.model_dump_json()) == prediction


@every
def test_a_saved_model_answers_as_before(name: str, tmp_path: Path) -> None:
    trained = fitted(name)
    save_weights(trained.learner.state_dict(), tmp_path / "weights")
    data = codec(name).model_dump(mode="json")
    again = load(spec(name).task, data, tmp_path / "weights")
    assert answers(name, again) == answers(name, trained)


@every
def test_a_model_predicts_for_a_blank_input_and_has_a_length_for_it(name: str) -> None:
    trained = fitted(name)
    inputs = trained.codec.read_inputs([trained.codec.blank()])
    assert len(trained.predict(inputs)) == 1
    assert trained.codec.length(inputs[0]) >= 1


@every
def test_an_answer_does_not_depend_on_its_neighbours(name: str) -> None:
    columns = codec(name).encode(validation(name), targets=False)
    alone = list(fitted(name).predictions(columns, batch_size=1))
    together = list(fitted(name).predictions(columns, batch_size=64))
    for one, other in zip(alone, together, strict=True):
        assert_alike(one.model_dump(), other.model_dump())


def assert_alike(one: Any, other: Any) -> None:
    """The same up to what rounding does to numbers."""
    if isinstance(one, dict):
        assert_alike(list(one), list(other))
        assert_alike(list(one.values()), list(other.values()))
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for mine, its in zip(one, other, strict=True):
            assert_alike(mine, its)
    elif isinstance(one, float):
        assert one == pytest.approx(other, abs=1e-4, rel=1e-4)
    else:
        assert one == other


@every
@pytest.mark.parametrize("value", [None, 3, [1, 2], "", {"no such field": 1}])
def test_a_malformed_input_is_named(name: str, value: Any) -> None:
    with pytest.raises(Invalid) as caught:
        codec(name).read_inputs([value])
    assert all(problem.loc[:2] == ("inputs", 0) for problem in caught.value.problems)
    assert all(problem.msg for problem in caught.value.problems)


@every
def test_a_codec_keeps_what_a_base_relies_on(name: str) -> None:
    data, task = checked(name), spec(name).task
    again = task.learn_codec(data.splits["train"].head(60).lazy(), data.schema, codec(name))
    shapes = [
        {n: t.shape for n, t in task.build(c).state_dict().items()} for c in (codec(name), again)
    ]
    assert shapes[0] == shapes[1]
    assert task.same_outputs(codec(name), codec(name))
