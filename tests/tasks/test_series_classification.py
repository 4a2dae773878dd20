"""From lines of labelled series to a classifier of series of any length."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from models.gru import GRU
from models.parts.series import patches
from models.tcn import TCN
from tasks.base import Checked, DatasetOptions, Facts, Upload
from tasks.parts.problems import Invalid, Problem
from tasks.parts.sequences import as_series
from tasks.parts.splits import SplitOptions
from tasks.series_classification import SeriesClassification, SeriesClassificationCodec
from tasks.series_forecast import SeriesForecast
from tasks.trained import Trained
from tests.tasks import test_series_forecast as forecasts

TINY = TCN(width=4, layers=1, dropout=0)


def lines(count: int = 20, channels: int = 1, **more: Any) -> list[dict[str, Any]]:
    """Series of 3 to 12 steps that rise or fall."""
    found = []
    for number in range(count):
        rise = np.arange(3 + number % 10) * (1 if number % 2 else -1.0)
        values = rise.tolist() if channels == 1 else np.stack([rise] * channels, 1).tolist()
        found.append({"values": values, "label": ["fall", "rise"][number % 2], **more})
    return found


def upload(rows: Any, folder: Path, name: str = "series.jsonl") -> Upload:
    path = folder / name
    path.write_text(rows if isinstance(rows, str) else "\n".join(map(json.dumps, rows)))
    return Upload(path, name)


def checked(rows: Any, folder: Path, name: str = "series.jsonl", **options: Any) -> Checked:
    files = {"file": upload(rows, folder, name)}
    return SeriesClassification.check(files, DatasetOptions(**options))


def problems(rows: Any, folder: Path, name: str = "series.jsonl", **options: Any) -> list[Problem]:
    with pytest.raises(Invalid) as caught:
        checked(rows, folder, name, **options)
    return list(caught.value.problems)


def task_for(data: Checked, **fields: Any) -> SeriesClassification:
    facts = Facts(data.schema, {name: frame.height for name, frame in data.splits.items()})
    return SeriesClassification.model_validate({"architecture": TINY, **fields}).resolve(facts)


def codec_for(data: Checked, **fields: Any) -> SeriesClassificationCodec:
    return task_for(data, **fields).learn_codec(data.splits["train"].lazy(), data.schema)


def test_lines_become_series_of_their_own_lengths(tmp_path: Path) -> None:
    data = checked(lines(channels=2), tmp_path)
    assert data.report["steps"]["shortest"] == 3
    assert data.report["channels"] == 2
    whole = pl.concat(data.splits.values())
    assert sorted(whole["steps"]) == sorted(3 + n % 10 for n in range(20))
    assert (whole["values"].list.len() == 2 * whole["steps"]).all()


def test_parquet_of_lists_says_the_same(tmp_path: Path) -> None:
    rows = lines(channels=2)
    frame = pl.DataFrame(
        {"values": [r["values"] for r in rows], "label": [r["label"] for r in rows]}
    )
    frame.write_parquet(tmp_path / "series.parquet")
    files = {"file": Upload(tmp_path / "series.parquet", "series.parquet")}
    data = SeriesClassification.check(files, DatasetOptions())
    for split, examples in checked(rows, tmp_path).splits.items():
        assert examples.equals(data.splits[split])


def test_tables_as_in_the_ucr_archive_have_the_label_first(tmp_path: Path) -> None:
    text = "\n".join(f"{n % 2 + 1}\t{n}.5\t{n + 1}\t{'NaN' if n % 3 else '7'}" for n in range(20))
    data = checked(text, tmp_path, "TRAIN.tsv")
    assert data.schema["labels"] == ["1", "2"]
    assert set(pl.concat(data.splits.values())["steps"]) == {2, 3}


def test_a_key_may_say_the_split(tmp_path: Path) -> None:
    rows = lines(10, part="train") + lines(4, part="test") + lines(4, part="validation")
    data = checked(rows, tmp_path, split=SplitOptions(by="part"))
    assert data.report["examples"] == {"train": 10, "validation": 4, "test": 4}


def test_other_keys_may_be_named(tmp_path: Path) -> None:
    rows = [{"signal": row["values"], "state": row["label"]} for row in lines()]
    mapping = {"values": "signal", "label": "state"}
    assert checked(rows, tmp_path, column_mapping=mapping).schema["labels"] == ["fall", "rise"]
    assert problems(rows, tmp_path)[0].allowed == "values"


@pytest.mark.parametrize(
    ("values", "loc"),
    [
        ([1, 2, "3"], (2,)),
        ([1, None], (1,)),
        ([1, True], (1,)),
        ([[1, 2], [3]], (1,)),
        ([1, [2]], (1,)),
        ([[[1]]], (0,)),
        ([], ()),
        ([[], []], ()),
        ("1 2 3", ()),
        (None, ()),
        ({"a": 1}, ()),
        ([10**400], (0,)),
    ],
)
def test_what_is_no_series_is_named_by_its_line_and_step(
    values: Any, loc: tuple[int, ...], tmp_path: Path
) -> None:
    rows = [*lines(4), {"values": values, "label": "rise"}]
    (problem,) = problems(rows, tmp_path)
    assert problem.loc == ("file", "line", 5, "values", *loc)


def test_every_faulty_line_is_named(tmp_path: Path) -> None:
    broken = [
        *lines(4),
        {"values": [1]},
        {"values": ["x"], "label": "a"},
        {"label": ["b"], "values": [1]},
    ]
    found = problems(broken, tmp_path)
    assert [problem.loc[2] for problem in found] == [5, 6, 7]
    assert problems("not json\n", tmp_path, "a.jsonl")
    assert problems("", tmp_path)[0].msg == "the file is empty"
    assert problems("1\tabc\n2\t3", tmp_path, "a.tsv")[0].loc == ("file", "line", 1, "values", 0)


def test_series_of_other_channels_are_refused(tmp_path: Path) -> None:
    (problem,) = problems([*lines(4), *lines(1, channels=3)], tmp_path)
    assert (problem.loc, problem.found) == (("file", "line", 5, "values"), 3)
    files = {
        "train": upload(lines(10), tmp_path, "a.jsonl"),
        "test": upload(lines(4, channels=2), tmp_path, "b.jsonl"),
    }
    with pytest.raises(Invalid, match="other channels than the train split"):
        SeriesClassification.check(files, DatasetOptions())


def test_a_series_may_not_be_endless() -> None:
    with pytest.raises(Invalid, match="too long or too wide"):
        as_series([0] * 100_001)
    with pytest.raises(Invalid, match="too long or too wide"):
        as_series([[0] * 1_025])


def test_channels_are_standardised_by_the_train_split(tmp_path: Path) -> None:
    data = checked(lines(channels=2), tmp_path)
    codec = codec_for(data)
    values = codec.encode(data.splits["train"]).inputs[0].tensors()["values"]
    torch.testing.assert_close(values.mean(0), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(values.std(0, correction=0), torch.ones(2))


def test_a_series_is_read_up_to_the_longest_that_was_learned(tmp_path: Path) -> None:
    codec = codec_for(checked(lines(), tmp_path), max_length=5)
    (long,) = codec.read_inputs([{"series": list(range(50))}])
    assert codec.length(long) == 5
    assert codec.encode_inputs([long]).lengths.tolist() == [5]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "value", [{"series": []}, {"series": [[1, 2]]}, {"series": [1, "x"]}, {"series": [[1], [1, 2]]}]
)
def test_what_is_wrong_with_an_input_is_named(value: Any, tmp_path: Path) -> None:
    codec = codec_for(checked(lines(), tmp_path))
    with pytest.raises(Invalid) as caught:
        codec.read_inputs([value])
    assert all(p.loc[:3] == ("inputs", 0, "series") for p in caught.value.problems)


def test_patches_hold_all_steps_in_their_order() -> None:
    series = torch.arange(10.0).view(1, 5, 2)
    found = patches(series, 2)
    assert found.tolist() == [[[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 0, 0]]]
    assert patches(series, 1) is series


@pytest.mark.parametrize("architecture", [TINY, GRU(width=4, embedding=4)])
@pytest.mark.parametrize("patch", [1, 4])
def test_series_are_answered_alike_whatever_their_neighbours(
    architecture: Any, patch: int, tmp_path: Path
) -> None:
    data = checked(lines(), tmp_path)
    task = task_for(data, architecture=architecture, patch=patch)
    codec = task.learn_codec(data.splits["train"].lazy(), data.schema)
    trained = Trained(task, codec, task.build(codec))
    columns = codec.encode(data.splits["train"])
    alone = trained.predictions(columns, batch_size=1)
    for one, other in zip(alone, trained.predictions(columns), strict=True):
        assert one.scores == pytest.approx(other.scores, abs=1e-5)


def test_a_forecaster_hands_its_network_on_to_a_classifier(tmp_path: Path) -> None:
    table = forecasts.checked(forecasts.daily(forecasts.wave()), tmp_path, context=12)
    base = forecasts.untrained(table, patch=2)
    data = checked(lines(), tmp_path)
    task = SeriesClassification().on_base(base.task)
    assert (task.architecture, task.patch) == (TINY, 2)
    task = task_for(data, patch=2)
    codec = task.learn_codec(data.splits["train"].lazy(), data.schema, base.codec)
    assert not task.same_outputs(codec, base.codec)
    learner = task.build(codec)
    learner.take_over(base.learner, head=False)
    mine, its = learner.backbone.state_dict(), base.learner.backbone.state_dict()
    assert all(torch.equal(mine[name], its[name]) for name in its)


def test_a_classifier_hands_its_network_on_to_a_forecaster(tmp_path: Path) -> None:
    data = checked(lines(), tmp_path)
    base = task_for(data, patch=2)
    codec = base.learn_codec(data.splits["train"].lazy(), data.schema)
    table = forecasts.checked(forecasts.daily(forecasts.wave()), tmp_path, context=12)
    asked = SeriesForecast().on_base(base)
    task = asked.resolve(Facts(table.schema, {"train": table.splits["train"].height}))
    own = task.learn_codec(table.splits["train"].lazy(), table.schema, codec)
    learner = task.build(own)
    learner.take_over(base.build(codec), head=False)
    assert not task.same_outputs(own, codec)


def test_a_base_of_other_channels_is_refused(tmp_path: Path) -> None:
    base, data = codec_for(checked(lines(channels=2), tmp_path)), checked(lines(), tmp_path)
    with pytest.raises(Invalid) as caught:
        task_for(data).learn_codec(data.splits["train"].lazy(), data.schema, base)
    assert caught.value.problems[0].loc == ("base",)


def test_an_architecture_may_be_of_texts_too(tmp_path: Path) -> None:
    facts = Facts(checked(lines(), tmp_path).schema, {"train": 16})
    task = SeriesClassification.model_validate({"architecture": {"name": "lstm"}}).resolve(facts)
    assert task.architecture.name == "lstm"
