"""Tables: types of columns, what the network sees, and rows of requests."""

from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from models.linear import Linear
from tasks.base import Checked, Facts, Upload
from tasks.parts.column_types import ColumnType, convert, infer
from tasks.parts.problems import Invalid, Problem
from tasks.parts.rows import TableOptions
from tasks.parts.splits import SplitOptions
from tasks.parts.tabular import Row, TabularCodec, bell_curve
from tasks.tabular_classification import TabularClassification, TabularClassificationCodec
from tasks.tabular_regression import NumberPrediction, TabularRegression

HEADER = "age,job,member,since,kind"


def line(number: int) -> str:
    kind = ["yes", "no"][number % 2]
    job = ["nurse", "cook", "NA"][number % 3]
    age = "" if number % 10 == 3 else str(20 + number)
    return f"{age},{job},{['true', 'false'][number % 2]},2024-0{1 + number % 9}-11 08:00:00,{kind}"


def table(count: int = 30, *more: str) -> str:
    return "\n".join([HEADER, *map(line, range(count)), *more]) + "\n"


def check(
    folder: Path, *contents: str, task: Any = TabularClassification, **options: Any
) -> Checked:
    names = ["file"] if len(contents) == 1 else ["train", "validation", "test"]
    files = {}
    for name, content in zip(names, contents, strict=False):
        (folder / name).write_text(content)
        files[name] = Upload(folder / name, f"{name}.csv")
    found: Checked = task.check(files, TableOptions(**options))
    return found


def problems(folder: Path, *contents: str, **options: Any) -> list[Problem]:
    with pytest.raises(Invalid) as caught:
        check(folder, *contents, **options)
    return list(caught.value.problems)


def codec_of(data: Checked, base: Any = None) -> TabularClassificationCodec:
    task = TabularClassification(architecture=Linear())
    return task.learn_codec(data.splits["train"].lazy(), data.schema, base)


@pytest.mark.parametrize(
    ("cells", "kind", "values"),
    [
        (["1", " 2 ", "NA", ""], "numeric", [1, 2, None, None]),
        (["1.5", "-2e3", "?"], "numeric", [1.5, -2000.0, None]),
        (["0", "1", "1"], "numeric", [0, 1, 1]),
        (["yes", "No", ""], "boolean", [True, False, None]),
        (["a", " b", "null"], "categorical", ["a", "b", None]),
        (["01234", "99999"], "categorical", ["01234", "99999"]),
        (["2024-02-29", "n/a"], "date", [datetime(2024, 2, 29), None]),
        (["31.12.2023 10:30"], "date", [datetime(2023, 12, 31, 10, 30)]),
        (["2024-01-01T00:30:00+02:00"], "date", [datetime(2023, 12, 31, 22, 30)]),
        (["2024-01-01T00:30:00.5Z"], "date", [datetime(2024, 1, 1, 0, 30, 0, 500_000)]),
        (["13/01/2024", "01/02/2024"], "date", [datetime(2024, 1, 13), datetime(2024, 2, 1)]),
        ([True, None], "boolean", [True, None]),
        ([1.0, float("nan")], "numeric", [1, None]),
        ([datetime(2024, 1, 1)], "date", [datetime(2024, 1, 1)]),
    ],
)
def test_types_are_found_in_the_values(cells: list[Any], kind: str, values: list[Any]) -> None:
    series = pl.Series("c", cells)
    column = infer("c", series, series)
    assert column.type == kind
    converted = convert(series, column)
    assert converted.values.to_list() == values
    assert not converted.bad.any()


def test_whole_numbers_read_the_same_as_text_from_every_format() -> None:
    column = ColumnType(name="c", type="categorical")
    for cells in (["1", "2"], [1, 2], [1.0, 2.0]):
        assert convert(pl.Series("c", cells), column).values.to_list() == ["1", "2"]


def test_a_table_is_described(tmp_path: Path) -> None:
    data = check(tmp_path, table())
    assert data.schema["target"] == "kind"
    assert data.schema["labels"] == ["no", "yes"]
    assert {c["name"]: c["type"] for c in data.schema["columns"]} == {
        "age": "numeric",
        "job": "categorical",
        "member": "boolean",
        "since": "date",
    }
    assert data.report["columns"]["job"] == {"type": "categorical", "missing": 10, "distinct": 2}
    assert data.report["classes"]["yes"]["train"] == 12
    assert data.splits["train"].columns == HEADER.split(",")


@pytest.mark.parametrize(
    ("header", "mapping", "target"),
    [
        ("a,b,c", {}, "c"),
        ("a,Label,c", {}, "Label"),
        ("a,target,class", {}, "target"),
        ("a,target,c", {"target": "a"}, "a"),
    ],
)
def test_the_target_is_named_usual_or_last(
    tmp_path: Path, header: str, mapping: dict[str, str], target: str
) -> None:
    content = "\n".join([header, *(f"{i % 2},{i % 3 % 2},{i // 2 % 2}" for i in range(20))])
    data = check(tmp_path, content, column_mapping=mapping)
    assert (data.schema["target"], data.report["target"]) == (target, target)
    assert data.splits["train"].columns[-1] == target


def test_columns_of_no_use_are_dropped_and_say_why(tmp_path: Path) -> None:
    rows = [f"{i},u{i},same,{i % 5},{['a', 'b'][i % 2]}" for i in range(40)]
    data = check(tmp_path, "\n".join(["row id,name,fixed,size,label", *rows]))
    assert [c["name"] for c in data.schema["columns"]] == ["size"]
    assert set(data.schema["dropped"]) == {"row id", "name", "fixed"}
    codec = codec_of(data)
    assert codec.read_input({"size": 1, "name": "u1", "label": "a"}).root == {"size": 1.0}


def test_a_type_asked_for_overrules_the_one_found(tmp_path: Path) -> None:
    data = check(tmp_path, table(), types={"age": "categorical"})
    assert data.schema["columns"][0]["type"] == "categorical"
    assert data.splits["train"].schema["age"] == pl.String


def test_ignored_columns_are_gone(tmp_path: Path) -> None:
    data = check(tmp_path, table(), ignore=["age", "since"])
    assert data.splits["train"].columns == ["job", "member", "kind"]


def test_options_that_name_no_column_are_refused(tmp_path: Path) -> None:
    found = problems(tmp_path, table(), ignore=["agee"], types={"jop": "numeric"})
    assert [p.loc for p in found] == [
        ("file", "options", "ignore", "agee"),
        ("file", "options", "types", "jop"),
    ]


def test_a_cell_of_another_type_is_named_by_split_line_and_column(tmp_path: Path) -> None:
    bad = "old,nurse,true,2024-01-11 08:00:00,yes"
    (found,) = problems(tmp_path, table(), table(5, bad))
    assert found.loc == ("validation", "line", 7, "age")
    assert found.found == "old"
    worse = "30,nurse,true,yesterday,yes"
    (found,) = problems(tmp_path, table(), table(5), table(5, worse))
    assert found.loc == ("test", "line", 7, "since")


def test_infinity_is_no_number(tmp_path: Path) -> None:
    (found,) = problems(tmp_path, table(30, "inf,cook,true,2024-01-11 08:00:00,no"))
    assert (found.loc[1:], found.found) == (("line", 32, "age"), "inf")


def test_an_empty_label_is_named_by_its_line(tmp_path: Path) -> None:
    found = problems(tmp_path, table(8, "30,cook,true,2024-01-11 08:00:00,"))
    assert [p.msg for p in found] == ["the label is empty"]
    assert found[0].loc[1:] == ("line", 10, "kind")


def test_one_class_only_is_refused(tmp_path: Path) -> None:
    (found,) = problems(tmp_path, "a,b\n1,x\n2,x\n3,x\n")
    assert (found.msg, found.found) == ("one class only", "x")


def test_a_label_that_train_lacks_is_named(tmp_path: Path) -> None:
    other = "30,cook,true,2024-01-11 08:00:00,maybe"
    (found,) = problems(tmp_path, table(), table(4, other))
    assert (found.loc, found.found) == (("validation", "line", 6, "kind"), "maybe")
    assert found.allowed == ["no", "yes"]


def test_a_split_without_a_column_is_refused(tmp_path: Path) -> None:
    found = problems(tmp_path, "a,b,y\n1,2,u\n2,3,v\n", "a,y\n1,u\n")
    assert [(p.loc, p.found) for p in found] == [(("validation",), "b")]


def test_a_table_needs_a_column_that_varies(tmp_path: Path) -> None:
    (found,) = problems(tmp_path, "a,y\n" + "1,u\n1,v\n" * 5)
    assert found.msg == "no column to learn from"
    (found,) = problems(tmp_path, "y\nu\nv\n")
    assert found.msg == "too few columns"


def test_a_column_may_say_the_split(tmp_path: Path) -> None:
    rows = [f"{i},{'ab'[i % 2]},{'train' if i < 15 else 'test'}" for i in range(20)]
    split = SplitOptions(by="part")
    data = check(tmp_path, "\n".join(["x,kind,part", *rows]), split=split)
    assert data.schema["target"] == "kind"
    assert data.splits["test"].height == 5


# What the network sees


def test_a_bell_curve_has_mean_0_and_deviation_1_whatever_the_values() -> None:
    draw = np.random.default_rng(0)
    for values in (
        draw.exponential(size=5000) ** 3,
        draw.integers(0, 2, 500),
        draw.normal(size=30),
    ):
        curve = bell_curve(values.astype(float))
        assert curve is not None
        made = np.interp(values, *curve)
        assert abs(made.mean()) < 1e-9
        assert made.std() == pytest.approx(1)
        assert (np.diff(curve[0]) > 0).all()
        assert (np.diff(curve[1]) > 0).all()


def test_values_that_do_not_vary_have_no_curve() -> None:
    assert bell_curve(np.array([3.0, 3.0, np.nan])) is None


def test_missing_numbers_are_zero_beside_an_indicator(tmp_path: Path) -> None:
    codec = codec_of(check(tmp_path, table()))
    numbers = codec.encode_inputs([Row({}), Row({"age": 30.0})]).inputs[0].tensors()["values"]
    age = [number.column for number in codec.numbers].index("age")
    indicator = len(codec.numbers) + codec.indicators.index("age")
    assert (numbers[0, age], numbers[0, indicator]) == (0, 1)
    assert numbers[1, indicator] == 0
    assert numbers[1, age] != 0


def test_unknown_and_missing_categories_share_code_0(tmp_path: Path) -> None:
    codec = codec_of(check(tmp_path, table()))
    rows = [Row({"job": job}) for job in ("nurse", "cook", "pilot", None)]
    codes = codec.encode_inputs(rows).inputs[1].tensors()["values"][:, 0].tolist()
    assert sorted(codes[:2]) == [1, 2]
    assert codes[2:] == [0, 0]
    assert codec.cardinalities == [3]


def test_a_few_rows_encode_as_their_frame_does(tmp_path: Path) -> None:
    codec = codec_of(check(tmp_path, table()))
    raw = [
        {"age": 33, "job": "cook", "member": True, "since": "2024-03-04 05:06:07"},
        {"age": "41.5", "job": None, "member": "no", "since": None},
        {},
        {"age": 1e9, "job": "pilot", "since": "1999-12-31T23:59:59"},
    ]
    rows = codec.read_inputs(raw)
    direct = codec.encode_inputs(rows)
    framed = codec.encode(framed_rows(codec, rows), targets=False)
    for one, other in zip(direct.inputs, framed.inputs, strict=True):
        assert torch.equal(one.tensors()["values"], other.tensors()["values"])
        assert one.tensors()["values"].dtype == other.tensors()["values"].dtype


def framed_rows(codec: TabularCodec, rows: list[Row]) -> pl.DataFrame:
    """Rows of requests as a frame of examples without targets."""
    columns = {c.name: [row.root.get(c.name) for row in rows] for c in codec.columns}
    return pl.DataFrame(columns, strict=False)


def test_rows_of_a_split_encode_as_requests_do(tmp_path: Path) -> None:
    data = check(tmp_path, table())
    codec, frame = codec_of(data), data.splits["validation"]
    rows = codec.read_inputs(frame.drop("kind").to_dicts())
    for one, other in zip(
        codec.encode_inputs(rows).inputs, codec.encode(frame).inputs, strict=True
    ):
        assert torch.equal(one.tensors()["values"], other.tensors()["values"])


def test_what_a_number_is_called_as_a_category_depends_on_it_alone(tmp_path: Path) -> None:
    grades = pl.DataFrame({"grade": [1.0, 1.5, 2.0, None] * 8, "label": ["a", "b"] * 16})
    grades.write_parquet(tmp_path / "grades.parquet")
    upload = Upload(tmp_path / "grades.parquet", "grades.parquet")
    options = TableOptions(types={"grade": "categorical"})
    data = TabularClassification.check({"train": upload, "validation": upload}, options)
    codec = codec_of(data)
    assert codec.categories[0].values == ["1", "1.5", "2"]
    rows = codec.read_inputs([{"grade": grade} for grade in (1, 1.0, "1", 1.5, 2.0)])
    assert codec.encode_inputs(rows).inputs[1].tensors()["values"][:, 0].tolist() == [1, 1, 1, 2, 3]


def test_a_number_that_is_mostly_one_value_is_a_category_too(tmp_path: Path) -> None:
    fees = [0] * 60 + [5] * 20 + [12.5] * 15 + [7]
    rows = [f"{fee},{place},{'ab'[place % 2]}" for place, fee in enumerate(fees)]
    content = "\n".join(["fee,place,label", *rows])
    data = check(tmp_path, content, content)
    codec = codec_of(data)
    assert [(c.column, c.values) for c in codec.categories] == [("fee", [0.0, 5.0, 12.5])]
    rows_of = codec.read_inputs([{"fee": fee} for fee in (0, "5", 12.5, 7, None)])
    direct = codec.encode_inputs(rows_of).inputs[1].tensors()["values"]
    assert direct[:, 0].tolist() == [1, 2, 3, 0, 0]
    framed = codec.encode(framed_rows(codec, rows_of), targets=False).inputs[1].tensors()["values"]
    assert torch.equal(direct, framed)
    assert type(codec).model_validate_json(codec.model_dump_json()) == codec


def test_rare_categories_of_a_large_table_are_unknown(tmp_path: Path) -> None:
    rows = [f"{'rare' if i == 1 else 'xyz'[i % 3]},{'ab'[i % 2]}" for i in range(2000)]
    content = "\n".join(["c,label", *rows])
    data = check(tmp_path, content, content)
    assert sorted(codec_of(data).categories[0].values) == ["x", "y", "z"]


@pytest.mark.parametrize(
    ("row", "loc", "found"),
    [
        ({"agee": 3}, ("agee",), "agee"),
        ({"age": "old"}, ("age",), "'old'"),
        ({"age": [1]}, ("age",), "[1]"),
        ({"age": 10**400}, ("age",), repr(10**400)[:80]),
        ({"job": {"a": 1}}, ("job",), "{'a': 1}"),
        ({"member": "perhaps"}, ("member",), "'perhaps'"),
        ({"since": "\ud800"}, ("since",), "'\\ud800'"),
        ({"since": 5}, ("since",), "5"),
    ],
)
def test_a_wrong_value_is_named_with_what_is_allowed(
    tmp_path: Path, row: dict[str, Any], loc: tuple[str], found: str
) -> None:
    codec = codec_of(check(tmp_path, table()))
    with pytest.raises(Invalid) as caught:
        codec.read_inputs([{}, row])
    (problem,) = caught.value.problems
    assert problem.loc == ("inputs", 1, *loc)
    assert problem.found == found
    assert problem.allowed


def test_a_base_gives_its_columns_to_another_target(tmp_path: Path) -> None:
    base = codec_of(check(tmp_path, table()))
    other = check(tmp_path, table().replace(",yes", ",maybe"))
    codec = codec_of(other, base)
    assert (codec.numbers, codec.categories) == (base.numbers, base.categories)
    assert codec.labels == ["maybe", "no"]
    assert not TabularClassification(architecture=Linear()).same_outputs(codec, base)


def test_a_base_whose_columns_are_missing_is_refused(tmp_path: Path) -> None:
    base = codec_of(check(tmp_path, table()))
    less = check(tmp_path, table(), ignore=["age"])
    with pytest.raises(Invalid) as caught:
        codec_of(less, base)
    assert caught.value.problems[0].allowed == ["age"]


def test_another_data_set_is_read_with_the_types_of_the_codec(tmp_path: Path) -> None:
    codec = codec_of(check(tmp_path, table(), types={"age": "categorical"}))
    numeric = check(tmp_path, table())
    assert torch.equal(
        codec.encode(numeric.splits["validation"]).inputs[1].tensors()["values"],
        codec.encode(numeric.splits["validation"].with_columns(pl.col("age").cast(pl.String)))
        .inputs[1]
        .tensors()["values"],
    )


# Regression


NUMBERS = "a,b,y\n" + "".join(f"{i},{i % 3},{10 * i}\n" for i in range(30))


def test_predictions_are_in_the_unit_of_the_target(tmp_path: Path) -> None:
    data = check(tmp_path, NUMBERS, task=TabularRegression)
    task = TabularRegression(architecture=Linear())
    codec = task.learn_codec(data.splits["train"].lazy(), data.schema)
    targets = codec.encode(data.splits["validation"]).targets[0].tensors()["values"]
    assert targets.shape == (6, 1)
    predictions = codec.decode(targets)
    assert [p.value for p in predictions] == pytest.approx(data.splits["validation"]["y"].to_list())
    scores = task.score(predictions, data.splits["validation"])
    assert scores == {
        "rmse": pytest.approx(0, abs=1e-4),
        "mae": pytest.approx(0, abs=1e-4),
        "r2": pytest.approx(1),
    }


def test_metrics_of_regression_are_those_of_the_textbook() -> None:
    frame = pl.DataFrame({"x": [0, 0, 0, 0], "y": [1.0, 2.0, 3.0, 4.0]})
    predictions = [NumberPrediction(value=value) for value in (1, 2, 3, 8)]
    found = TabularRegression(architecture=Linear()).score(predictions, frame)
    assert found == {"rmse": 2.0, "mae": 1.0, "r2": pytest.approx(1 - 16 / 5)}


@pytest.mark.parametrize(
    ("cell", "msg"), [("ten", "the target is not a number"), ("", "the target is missing")]
)
def test_a_target_that_is_no_number_is_named_by_its_line(
    tmp_path: Path, cell: str, msg: str
) -> None:
    (found,) = problems(tmp_path, NUMBERS + f"5,1,{cell}\n", task=TabularRegression)
    assert (found.loc, found.msg, found.found) == (("file", "line", 32, "y"), msg, cell)


def test_a_target_that_does_not_vary_is_refused(tmp_path: Path) -> None:
    content = "a,y\n" + "".join(f"{i},7\n" for i in range(20))
    (found,) = problems(tmp_path, content, task=TabularRegression)
    assert found.msg == "one value only"


def test_a_base_keeps_the_scale_of_the_same_target(tmp_path: Path) -> None:
    data = check(tmp_path, NUMBERS, task=TabularRegression)
    task = TabularRegression(architecture=Linear())
    base = task.learn_codec(data.splits["train"].lazy(), data.schema)
    half = data.splits["train"].head(9)
    assert task.same_outputs(task.learn_codec(half.lazy(), data.schema, base), base)
    assert not task.same_outputs(task.learn_codec(half.lazy(), data.schema), base)


def test_the_choice_of_an_architecture_is_made_by_the_data(tmp_path: Path) -> None:
    data = check(tmp_path, table())
    facts = Facts(data.schema, {"train": 24, "validation": 6})
    assert TabularClassification().resolve(facts).architecture.name
    fixed = TabularClassification(architecture=Linear()).resolve(facts)
    assert fixed.architecture == Linear()
