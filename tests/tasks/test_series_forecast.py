"""From a table of times and values to forecasts: columns, even steps, splits by time, windows, metrics, answers."""

import json
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from models.gru import GRU
from models.parts.optimizers import AdamW
from models.parts.schedules import Constant
from models.parts.series import simple_forecast
from models.parts.training import Training
from models.tcn import TCN
from models.transformer import Transformer
from tasks.base import Checked, Facts, Upload
from tasks.parts.forecasts import ForecastCodec, ForecastPrediction
from tasks.parts.problems import Invalid, Problem
from tasks.parts.splits import SplitOptions
from tasks.parts.timelines import SeriesOptions
from tasks.parts.times import DAY, HOUR, Step, find_step, read_times
from tasks.parts.windows import Size, past
from tasks.series_forecast import SeriesForecast
from tasks.trained import Trained, load, save_weights

FIRST = date(2024, 1, 1)
TINY = TCN(width=4, layers=1, dropout=0)


def days(count: int, first: date = FIRST) -> list[str]:
    return [str(first + timedelta(days=number)) for number in range(count)]


def daily(values: Any, header: str = "date,target", first: date = FIRST) -> str:
    rows = [f"{day},{value}" for day, value in zip(days(len(values), first), values, strict=True)]
    return "\n".join([header, *rows])


def wave(count: int = 120) -> list[float]:
    return [10 + (number % 7) + 0.01 * number for number in range(count)]


def upload(text: str, folder: Path, name: str = "series.csv") -> Upload:
    path = folder / name
    path.write_text(text)
    return Upload(path, name)


def checked(text: str, folder: Path, **options: Any) -> Checked:
    files = {"file": upload(text, folder)}
    return SeriesForecast.check(files, SeriesOptions.model_validate(options))


def problems(text: str, folder: Path, **options: Any) -> list[Problem]:
    with pytest.raises(Invalid) as caught:
        checked(text, folder, **options)
    return list(caught.value.problems)


def task_for(data: Checked, **fields: Any) -> SeriesForecast:
    facts = Facts(data.schema, {name: frame.height for name, frame in data.splits.items()})
    return SeriesForecast.model_validate({"architecture": TINY, **fields}).resolve(facts)


def codec_for(data: Checked, **fields: Any) -> ForecastCodec:
    return task_for(data, **fields).learn_codec(data.splits["train"].lazy(), data.schema)


def untrained(data: Checked, **fields: Any) -> Trained:
    torch.manual_seed(0)
    codec = codec_for(data, **fields)
    return Trained(task_for(data, **fields), codec, task_for(data, **fields).build(codec))


def forecast(trained: Trained, **given: Any) -> ForecastPrediction:
    (found,) = trained.predict(trained.codec.read_inputs([given]))
    assert isinstance(found, ForecastPrediction)
    return found


# Columns


def test_the_target_is_the_column_of_that_name_and_other_numbers_are_covariates(
    tmp_path: Path,
) -> None:
    rows = [f"{day},{n},{n * n},{'xy'[n % 2]},true" for n, day in enumerate(days(80))]
    schema = checked("\n".join(["day,heat,value,kind,open", *rows]), tmp_path).schema
    assert schema["target"] == "value"
    assert [v["name"] for v in schema["variables"]] == ["value", "heat", "open"]


def test_among_several_columns_of_numbers_one_must_be_chosen(tmp_path: Path) -> None:
    text = "\n".join(["day,a,b", *(f"{day},{n % 5},{n % 3}" for n, day in enumerate(days(80)))])
    (problem,) = problems(text, tmp_path)
    assert problem.loc == ("file", "options", "column_mapping", "target")
    assert problem.allowed == ["a", "b"]
    chosen = checked(text, tmp_path, column_mapping={"target": "b"}, covariates=[])
    assert chosen.schema["target"] == "b"
    assert len(chosen.schema["variables"]) == 1


def test_columns_that_are_not_there_are_named(tmp_path: Path) -> None:
    text = daily(wave())
    (wrong,) = problems(text, tmp_path, column_mapping={"target": "price"})
    assert wrong.found == "price"
    (wrong,) = problems(text, tmp_path, known=["holiday"])
    assert wrong.loc == ("file", "options", "known", "holiday")
    (wrong,) = problems(text, tmp_path, column_mapping={"label": "target"})
    assert wrong.loc == ("file", "options", "column_mapping", "label")


def test_cells_that_are_no_numbers_or_times_are_named_by_their_lines(tmp_path: Path) -> None:
    lines = daily(wave()).splitlines()
    lines[5], lines[9] = lines[5].split(",")[0] + ",much", "someday,3"
    found = problems("\n".join(lines), tmp_path)
    assert [(p.loc, p.found) for p in found] == [
        (("file", "line", 6, "target"), "much"),
        (("file", "line", 10, "date"), "someday"),
    ]


@pytest.mark.parametrize("value", ["inf", "-Infinity", "1e999", "1e31"])
def test_numbers_without_end_are_refused(value: str, tmp_path: Path) -> None:
    lines = daily(wave()).splitlines()
    lines[5] = lines[5].split(",")[0] + f",{value}"
    assert problems("\n".join(lines), tmp_path)[0].loc == ("file", "line", 6, "target")


def test_a_table_without_times_is_read_row_after_row(tmp_path: Path) -> None:
    data = checked("\n".join(["target", *map(str, wave())]), tmp_path, season=7)
    assert data.schema["step"] is None
    assert data.report["steps"] == {"train": 96, "validation": 24}


# Steps in time


@pytest.mark.parametrize(
    ("values", "step"),
    [
        (["2024-01", "2024-02", "2024-03"], Step(unit="month", count=1)),
        (["2024-01-31", "2024-02-29", "2024-03-31"], Step(unit="month", count=1)),
        (["2024-01-01", "2024-04-01", "2024-07-01"], Step(unit="month", count=3)),
        (["2024-01-01", "2024-01-02", "2024-01-03"], Step(unit="microsecond", count=DAY)),
        (["2024-01-01 00:00", "2024-01-01 01:00"], Step(unit="microsecond", count=HOUR)),
        (["1", "3", "5"], Step(unit="number", count=2)),
    ],
)
def test_the_step_between_times_is_found(values: list[str], step: Step) -> None:
    times = read_times(pl.Series(values))
    assert times is not None
    assert find_step([times]) == step


def test_seasons_and_horizons_suit_the_step() -> None:
    hour, day = (Step(unit="microsecond", count=count) for count in (HOUR, DAY))
    month, quarter = (Step(unit="month", count=count) for count in (1, 3))
    steps = (hour, day, month, quarter)
    assert [step.season for step in steps] == [24, 7, 12, 4]
    assert [step.horizon for step in steps] == [24, 14, 12, 8]
    assert [str(step) for step in steps] == ["1 hour", "1 day", "1 month", "3 month"]


def test_the_same_time_twice_is_refused(tmp_path: Path) -> None:
    lines = daily(wave()).splitlines()
    (problem,) = problems("\n".join([*lines, lines[3]]), tmp_path)
    assert problem.loc == ("file", "line", 122)
    assert "several series" in problem.msg


def test_a_time_between_steps_is_refused(tmp_path: Path) -> None:
    lines = daily(wave(), first=FIRST).splitlines()
    lines = [line.replace(",", " 00:00,", 1) if n else line for n, line in enumerate(lines)]
    lines[4] = lines[4].replace("00:00", "07:30")
    (problem,) = problems("\n".join(lines), tmp_path)
    assert problem.loc == ("file", "line", 5)
    assert problem.msg == "between the steps of its series"


def test_missing_steps_and_values_are_filled_from_before_and_counted(tmp_path: Path) -> None:
    lines = daily(range(120)).splitlines()
    lines[11] = lines[11].split(",")[0] + ","  # the value 10
    del lines[21]  # the value 20
    data = checked("\n".join(reversed(lines[1:] + lines[:1])), tmp_path, horizon=1, context=30)
    assert data.report["filled"] == 2
    history = data.splits["train"]["history"][0].to_list()
    assert history == [*range(10), 9, *range(11, 20), 19, *range(21, 30)]


def test_too_many_missing_values_are_refused(tmp_path: Path) -> None:
    lines = daily(range(120)).splitlines()
    (problem,) = problems("\n".join(lines[:40] + lines[100:]), tmp_path)
    assert problem.found == "60 of 120"
    ignoring = checked("\n".join(lines[:40] + lines[100:]), tmp_path, gaps="ignore")
    assert ignoring.schema["step"] is None
    assert sum(ignoring.report["steps"].values()) == 60


def test_far_apart_times_fill_no_memory(tmp_path: Path) -> None:
    text = "time,target\n1,1\n2,2\n9000000000000000000,3"
    (problem,) = problems(text, tmp_path)
    assert problem.msg == "too many values are missing"


def test_a_series_that_never_changes_is_refused(tmp_path: Path) -> None:
    (problem,) = problems(daily([5] * 100), tmp_path)
    assert (problem.msg, problem.found) == ("the same value throughout", 5.0)


def test_a_series_that_is_too_short_is_refused(tmp_path: Path) -> None:
    found = problems(daily(wave(20)), tmp_path, horizon=14)
    assert {p.loc[0] for p in found} == {"train", "validation"}
    assert all(p.msg == "the series is too short" for p in found)
    assert problems(daily([1]), tmp_path)


# Splits and windows


def test_splits_are_cut_from_the_end_by_time_alone(tmp_path: Path) -> None:
    lines = daily(range(100)).splitlines()
    split = SplitOptions(fraction=0.1, test_fraction=0.2)
    shuffled = [lines[0], *sorted(lines[1:], key=lambda line: hash(line))]
    data = checked("\n".join(shuffled), tmp_path, split=split, horizon=5, context=10)
    begins = {name: frame["step"].to_list() for name, frame in data.splits.items()}
    assert begins["train"] == list(range(10, 66))
    assert begins["validation"] == list(range(70, 76))
    assert begins["test"] == [80, 85, 90, 95]
    first = data.splits["test"].row(0, named=True)
    assert first["history"] == list(range(70, 80))
    assert first["future"] == list(range(80, 85))
    assert (first["last"], first["time"].date()) == (79, date(2024, 3, 21))


def test_files_of_splits_follow_each_other(tmp_path: Path) -> None:
    values, options = wave(100), SeriesOptions(horizon=5, context=10)
    lines = daily(values).splitlines()
    parts = {
        "train": lines[:61],
        "validation": lines[:1] + lines[61:81],
        "test": lines[:1] + lines[81:],
    }
    files = {n: upload("\n".join(rows), tmp_path, f"{n}.csv") for n, rows in parts.items()}
    data = SeriesForecast.check(files, options)
    assert data.report["steps"] == {"train": 60, "validation": 20, "test": 20}
    assert data.splits["test"]["history"][0].to_list() == values[70:80]
    files["train"], files["validation"] = files["validation"], files["train"]
    with pytest.raises(Invalid) as caught:
        SeriesForecast.check(files, options)
    assert caught.value.problems[0].loc == ("train", "line", 2)


def test_a_column_may_say_the_split(tmp_path: Path) -> None:
    names = ["train"] * 70 + ["valid"] * 30
    rows = [f"{d},{v},{n}" for d, v, n in zip(days(100), wave(100), names, strict=True)]
    split = SplitOptions(by="part")
    data = checked("\n".join(["date,target,part", *rows]), tmp_path, split=split)
    assert data.report["steps"] == {"train": 70, "validation": 30}
    assert [v["name"] for v in data.schema["variables"]] == ["target"]


def test_several_series_are_cut_and_scaled_each_by_itself(tmp_path: Path) -> None:
    rows = [f"{d},a,{n}\n{d},b,{1000 * n}" for n, d in enumerate(days(60))]
    data = checked("\n".join(["date,series,target", *rows]), tmp_path, horizon=4, context=8)
    scales = dict(data.splits["validation"].select("series", "scale").iter_rows())
    assert scales == {"a": 1.0, "b": 1000.0}
    assert data.report["series"] == 2
    assert data.report["overlap"] == {"train/validation": 0}
    assert codec_for(data).variables[0].mean == 0


def test_large_data_sets_are_learned_from_in_steps_that_fit_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.parts.windows.MOST_VALUES", 200)
    data = checked(daily(wave()), tmp_path, horizon=5, context=10)
    assert data.splits["train"]["step"].diff().drop_nulls().unique().to_list() == [5]


def test_a_short_past_goes_back_on_by_its_first_season() -> None:
    values = np.arange(5.0)[:, None]
    assert past(values, 8, 3)[:, 0].tolist() == [0, 1, 2, 0, 1, 2, 3, 4]
    assert past(values, 3, 3)[:, 0].tolist() == [2, 3, 4]


# What is learned from


@pytest.mark.parametrize(
    ("start", "wanted"), [("last", [7, 7, 7]), ("season", [5, 6, 7]), ("drift", [8, 9, 10])]
)
def test_learning_starts_from_a_simple_forecast(start: Any, wanted: list[float]) -> None:
    lags = torch.tensor([1.0, 2, 3, 4, 5, 6, 7])
    assert (simple_forecast(7, 3, 3, start) @ lags).tolist() == wanted


def test_the_simple_forecast_is_the_one_that_comes_nearest(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    drunk = random.normal(0, 1, 200).cumsum()
    assert checked(daily(wave(200)), tmp_path).schema["start"] == "drift"
    assert checked(daily([n % 7 for n in range(200)]), tmp_path).schema["start"] != "last"
    assert checked(daily(drunk), tmp_path).schema["start"] == "last"


def test_before_it_learns_a_model_forecasts_simply_at_any_level(tmp_path: Path) -> None:
    trained = untrained(checked(daily(wave()), tmp_path, horizon=7))
    for level in (0.0, 5_000.0):
        found = forecast(trained, history=[level + value for value in wave(70)])
        assert found.forecast == pytest.approx([level + v for v in wave(77)[70:]], abs=2e-3)
        bounds = zip(found.lower, found.forecast, found.upper, strict=True)
        assert all(lower < value < upper for lower, value, upper in bounds)


def learned(data: Checked, steps: int, **fields: Any) -> Trained:
    trained = untrained(data, **fields)
    columns, learner = trained.codec.encode(data.splits["train"]), trained.learner
    training = Training(optimizer=AdamW(learning_rate=0.02), schedule=Constant())
    learner.start(training, None, steps)
    learner.enter_epoch(0)
    for step in range(steps):
        learner.train_step(columns.batch(torch.randint(columns.examples, (32,))), step)
    return trained


def test_covariates_that_are_known_ahead_change_the_forecast(tmp_path: Path) -> None:
    sale = np.random.default_rng(0).integers(0, 2, 200)
    rows = [f"{d},{10 + 5 * s},{s}" for d, s in zip(days(200), sale, strict=True)]
    data = checked("\n".join(["date,target,sale", *rows]), tmp_path, known=["sale"], horizon=3)
    trained = learned(data, 60, architecture=TCN(width=16, layers=1, dropout=0))
    history = [[10 + 5 * int(s), int(s)] for s in sale[:40]]
    with_sale = forecast(trained, history=history, future=[[0], [1], [0]]).forecast
    assert with_sale[1] - with_sale[0] > 3
    only_two = forecast(trained, history=history, future=[{"sale": 0}, {"sale": 1}], horizon=2)
    assert only_two.forecast == pytest.approx(with_sale[:2])


def test_the_interval_is_learned(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).normal(0, 1, 400)
    split = SplitOptions(fraction=0.2, test_fraction=0.2)
    data = checked(daily(noise), tmp_path, horizon=2, context=8, season=1, split=split)
    trained = learned(data, 80)
    answers = trained.predictions(trained.codec.encode(data.splits["test"]))
    found = trained.task.evaluate(answers, data.splits["test"])
    assert 0.6 < found["coverage"] < 0.95
    assert found["mase"] < found["simple"]["last_value"]["mase"]


# Metrics


def test_metrics_are_those_of_the_definitions(tmp_path: Path) -> None:
    examples = pl.DataFrame(
        {
            "future": [[10.0, 12.0], [100.0, 100.0]],
            "scale": [2.0, 10.0],
            "season_scale": [4.0, 5.0],
            "last": [10.0, 90.0],
            "naive": [[11.0, 11.0], [100.0, 130.0]],
        }
    )
    answers = [
        ForecastPrediction(forecast=[11, 12], lower=[10, 13], upper=[12, 14]),
        ForecastPrediction(forecast=[90, 120], lower=[80, 90], upper=[95, 130]),
    ]
    found = SeriesForecast(interval=0.5).evaluate(answers, examples)
    assert found["mase"] == pytest.approx((0.5 + 0 + 1 + 2) / 4)
    assert found["mae"] == pytest.approx(31 / 4)
    assert found["rmse"] == pytest.approx((501 / 4) ** 0.5)
    assert found["coverage"] == 0.5  # of four, the first and the last lie within
    assert found["seasonal_mase"] == pytest.approx((1 / 4 + 0 + 10 / 5 + 20 / 5) / 4)
    lower = (0.0, 0.75 * 1 / 2, 0.25 * 20 / 10, 0.25 * 10 / 10)
    upper = (0.25 * 2 / 2, 0.25 * 2 / 2, 0.75 * 5 / 10, 0.25 * 30 / 10)
    assert found["pinball"] == pytest.approx((sum(lower) + sum(upper)) / 8)
    assert found["simple"]["last_value"]["mae"] == pytest.approx((0 + 2 + 10 + 10) / 4)
    assert found["simple"]["last_season"]["mase"] == pytest.approx((0.5 + 0.5 + 0 + 3) / 4)
    assert found["mae_by_step"] == [5.5, 10.0]


# Requests


def test_a_forecast_has_as_many_steps_as_asked_for_and_their_times(tmp_path: Path) -> None:
    trained = untrained(checked(daily(wave()), tmp_path, horizon=7))
    whole = forecast(trained, history=wave(30))
    assert (len(whole.forecast), whole.times) == (7, None)
    asked = forecast(trained, history=wave(30), horizon=2, time="2024-02-28")
    assert asked.forecast == whole.forecast[:2]
    assert len(asked.lower) == len(asked.upper) == 2
    assert asked.times == ["2024-02-29T00:00:00", "2024-03-01T00:00:00"]


def test_times_go_on_by_months_and_by_numbers() -> None:
    month = Step(unit="month", count=1)
    (end,) = read_times(pl.Series(["2024-01-31"])).to_list()  # type: ignore[union-attr]
    assert [t.date().isoformat() for t in month.after(end, 2)] == ["2024-02-29", "2024-03-31"]  # type: ignore[union-attr]
    assert Step(unit="number", count=5).after(10, 2) == [15, 20]


def test_what_is_missing_in_a_history_is_filled(tmp_path: Path) -> None:
    trained = untrained(checked(daily(wave()), tmp_path, horizon=7))
    gappy: list[float | None] = [*wave(30)]
    gappy[5], filled = None, wave(30)
    filled[5] = filled[4]
    assert forecast(trained, history=gappy) == forecast(trained, history=filled)


def test_rows_by_names_are_rows_in_the_order_of_the_variables(tmp_path: Path) -> None:
    rows = [f"{d},{n % 5},{n % 7}" for n, d in enumerate(days(100))]
    trained = untrained(checked("\n".join(["date,heat,target", *rows]), tmp_path))
    listed = forecast(trained, history=[[n % 7, n % 5] for n in range(40)])
    named = forecast(trained, history=[{"heat": n % 5, "target": n % 7} for n in range(40)])
    assert listed == named


@pytest.mark.parametrize(
    ("given", "loc"),
    [
        ({"history": [1.0] * 3}, ("history",)),
        ({"history": [None] * 30}, ("history",)),
        ({"history": [1.0] * 30, "horizon": 8}, ("horizon",)),
        ({"history": [1.0] * 30, "horizon": 0}, ("horizon",)),
        ({"history": [1.0] * 29 + [[1.0, 2.0]]}, ("history", 29)),
        ({"history": [{"target": "much"}] * 30}, ("history", 0, "target")),
        ({"history": [{"price": 1}] * 30}, ("history", 0)),
        ({"history": [1.0] * 30, "future": [[1.0]]}, ("future",)),
        ({"history": [1.0] * 30, "time": "soon"}, ("time",)),
        ({"history": [1.0] * 30, "time": 12}, ("time",)),
        ({"history": [1.0] * 30, "time": "9999-12-31"}, ("time",)),
        ({"history": [1e31] * 30}, ("history", 0, "target")),
        ({"history": []}, ("history",)),
    ],
)
def test_what_is_wrong_with_an_input_is_named(
    given: dict[str, Any], loc: tuple[Any, ...], tmp_path: Path
) -> None:
    codec = codec_for(checked(daily(wave()), tmp_path, horizon=7))
    with pytest.raises(Invalid) as caught:
        codec.read_inputs([given])
    assert ("inputs", 0, *loc) in [problem.loc for problem in caught.value.problems]


def test_numbers_without_end_are_no_history(tmp_path: Path) -> None:
    codec = codec_for(checked(daily(wave()), tmp_path, horizon=7))
    for value in (float("inf"), float("nan")):
        with pytest.raises(Invalid):
            codec.read_inputs([{"history": [1.0] * 20 + [value]}])


def test_a_context_longer_than_the_windows_is_refused(tmp_path: Path) -> None:
    data = checked(daily(wave()), tmp_path, context=20)
    with pytest.raises(Invalid, match="longer than its windows"):
        task_for(data, context=21)
    trained = untrained(data, context=10)
    columns = trained.codec.encode(data.splits["train"])
    assert columns.batch(torch.tensor([0])).inputs[0].shape == (1, 10, 1)


# Transfer


@pytest.mark.parametrize("architecture", [TINY, GRU(width=4, embedding=4), Transformer(width=8)])
def test_a_base_hands_on_what_it_has_learned_to_another_series(
    architecture: Any, tmp_path: Path
) -> None:
    old = untrained(checked(daily(wave()), tmp_path, horizon=7), architecture=architecture)
    data = checked(daily([v * v for v in wave()]), tmp_path, horizon=7)
    task = SeriesForecast().on_base(old.task)
    assert task.architecture == architecture
    codec = task.learn_codec(data.splits["train"].lazy(), data.schema, old.codec)
    assert task.same_outputs(codec, old.codec)
    new = task.build(codec)
    new.take_over(old.learner, head=True)
    for name, weight in new.state_dict().items():
        assert torch.equal(weight, old.learner.state_dict()[name])


def test_a_base_of_other_variables_is_refused(tmp_path: Path) -> None:
    old = codec_for(checked(daily(wave()), tmp_path))
    rows = [f"{d},{n % 7},{n % 5}" for n, d in enumerate(days(120))]
    data = checked("\n".join(["date,target,heat", *rows]), tmp_path)
    with pytest.raises(Invalid) as caught:
        task_for(data).learn_codec(data.splits["train"].lazy(), data.schema, old)
    assert caught.value.problems[0].loc == ("base",)


def test_a_saved_model_forecasts_as_before(tmp_path: Path) -> None:
    trained = untrained(checked(daily(wave()), tmp_path))
    save_weights(trained.learner.state_dict(), tmp_path / "weights")
    data = json.loads(trained.codec.model_dump_json())
    again = load(trained.task, data, tmp_path / "weights")
    assert forecast(again, history=wave(40)) == forecast(trained, history=wave(40))


def test_the_least_past_is_a_season() -> None:
    assert Size(12, 24, 12).least == 12
    assert Size(12, 24, 1).least == 2
