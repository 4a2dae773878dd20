"""CSV, TSV, JSONL and Parquet: what is read, and how each fault is named."""

import contextlib
import csv
import io
import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.base import Upload
from tasks.parts import tables
from tasks.parts.problems import Invalid, Problem
from tasks.parts.splits import LINE, shown
from tasks.parts.tables import check_mapping, pick_column, read_table, table_format


def upload(folder: Path, content: str | bytes, name: str = "data.csv") -> Upload:
    path = folder / "blob"  # the name on disk says nothing
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return Upload(path, name)


def read(folder: Path, content: str | bytes, name: str = "data.csv", **more: Any) -> pl.DataFrame:
    return read_table(upload(folder, content, name), **more)


def faults(
    folder: Path, content: str | bytes, name: str = "data.csv", **more: Any
) -> list[Problem]:
    with pytest.raises(Invalid) as caught:
        read(folder, content, name, **more)
    return list(caught.value.problems)


def fault(folder: Path, content: str | bytes, name: str = "data.csv", **more: Any) -> Problem:
    (found,) = faults(folder, content, name, **more)
    return found


def parquet(frame: pl.DataFrame) -> bytes:
    file = io.BytesIO()
    frame.write_parquet(file)
    return file.getvalue()


def test_cells_of_csv_stay_as_they_stand(tmp_path: Path) -> None:
    frame = read(tmp_path, 'id , text\n007,"a, ""b"""\n\n8, x\n')
    assert shown(frame) == ["id", "text"]
    assert frame["id"].to_list() == ["007", "8"]
    assert frame["text"].to_list() == ['a, "b"', " x"]
    assert frame[LINE].to_list() == [2, 4]


def test_a_row_is_named_by_the_line_it_begins_on(tmp_path: Path) -> None:
    frame = read(tmp_path, 'a,b\n1,"two\nlines"\n3,4\n')
    assert frame[LINE].to_list() == [2, 4]
    assert frame["b"].to_list() == ["two\nlines", "4"]


@pytest.mark.parametrize("mark", [",", ";", "|", "\t"])
def test_the_delimiter_is_found_in_the_header(tmp_path: Path, mark: str) -> None:
    assert shown(read(tmp_path, f"a{mark}b{mark}c\n1{mark}2{mark}3\n")) == ["a", "b", "c"]


@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_line_ends_and_a_byte_order_mark_do_not_matter(tmp_path: Path, ends: str) -> None:
    frame = read(tmp_path, b"\xef\xbb\xbf" + f"a,b{ends}1,2".encode() + ends.encode())
    assert shown(frame) == ["a", "b"]
    assert frame["b"].to_list() == ["2"]


def test_tsv_without_quoting_is_read(tmp_path: Path) -> None:
    frame = read(tmp_path, 'text\tlabel\n"Well" he said\t1\n"open\t0\n', "data.tsv")
    assert frame["text"].to_list() == ['"Well" he said', '"open']


def test_jsonl_keeps_types_and_fills_missing_keys(tmp_path: Path) -> None:
    content = '{"a": 1, "b": true}\n\n{"a": 2.5, "c": "x"}\n{"a": null, "c": 3}\n'
    frame = read(tmp_path, content, "data.jsonl")
    assert shown(frame) == ["a", "b", "c"]
    assert frame["a"].to_list() == [1.0, 2.5, None]
    assert frame["b"].to_list() == [True, None, None]
    assert frame["c"].to_list() == [None, "x", "3"]
    assert frame[LINE].to_list() == [1, 3, 4]


def test_types_that_differ_between_chunks_of_jsonl_meet(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(tables, "_CHUNK", 1)
    frame = read(tmp_path, '{"a": 1}\n{"a": 0.5, "b": "x"}\n{"b": 2}\n', "data.jsonl")
    assert frame["a"].to_list() == [1.0, 0.5, None]
    assert frame["b"].to_list() == [None, "x", "2"]


def test_parquet_keeps_its_types(tmp_path: Path) -> None:
    frame = pl.DataFrame({"n": [1, None], "s": ["x", "y"], "c": ["u", "v"]}).with_columns(
        pl.col("c").cast(pl.Categorical), d=pl.Series([1.5, 2.5]).cast(pl.Decimal(10, 2))
    )
    found = read(tmp_path, parquet(frame), "anything")
    assert found["n"].to_list() == [1, None]
    assert found.schema["c"] == pl.String
    assert found["d"].to_list() == [1.5, 2.5]
    assert found[LINE].to_list() == [1, 2]


@pytest.mark.parametrize(
    ("content", "name", "kind"),
    [
        ("a,b\n1,2\n", "x.csv", "csv"),
        ("a\tb\n1\t2\n", "x.txt", "tsv"),
        ("a\tb\n1\t2\n", "x.tsv", "tsv"),
        ("a,b\n1,2\n", "x", "csv"),
        ('{"a": 1}\n', "x.csv", "jsonl"),
        ("[1]", "x.json", "jsonl"),
        (parquet(pl.DataFrame({"a": [1]})), "x.csv", "parquet"),
    ],
)
def test_a_format_is_found_by_content_then_by_name(
    tmp_path: Path, content: str | bytes, name: str, kind: str
) -> None:
    assert table_format(upload(tmp_path, content, name)) == kind


@pytest.mark.parametrize("head", [b"PK\x03\x04", b"\x1f\x8b", b"%PDF-1.7", b"\xff\xfea\0"])
def test_other_kinds_of_files_are_named(tmp_path: Path, head: bytes) -> None:
    found = fault(tmp_path, head + b"...", "data.csv")
    assert found.msg == "not a table"
    assert "data.csv: " in found.found


def test_an_unknown_format_lists_the_known(tmp_path: Path) -> None:
    found = fault(tmp_path, "a\n1\n", asked="xlsx")
    assert (found.loc, found.found) == (("format",), "xlsx")
    assert found.allowed == ["csv", "jsonl", "parquet", "tsv"]


def test_an_asked_format_overrules_the_content(tmp_path: Path) -> None:
    assert shown(read(tmp_path, "a,b\tc\n1\t2\n", asked="tsv")) == ["a,b", "c"]


@pytest.mark.parametrize(
    ("content", "msg"), [("", "the file is empty"), ("a,b\n", "the file has no rows")]
)
def test_files_without_rows_are_refused(tmp_path: Path, content: str, msg: str) -> None:
    assert fault(tmp_path, content).msg == msg


def test_ragged_rows_are_all_listed(tmp_path: Path) -> None:
    found = faults(tmp_path, "a,b\n1,2\n1\n1,2\n1,2,3\n")
    assert [(p.loc, p.found, p.allowed) for p in found] == [
        (("line", 3), 1, 2),
        (("line", 5), 3, 2),
    ]


def test_at_most_a_hundred_faults_are_listed(tmp_path: Path) -> None:
    assert len(faults(tmp_path, "a,b\n" + "1\n" * 500)) == Invalid.LIMIT


@pytest.mark.parametrize(
    ("header", "place", "msg"),
    [("a,,b", 2, "the column has no name"), ("a,b,a", 3, "not a name of its own")],
)
def test_headers_need_a_name_for_each_column(
    tmp_path: Path, header: str, place: int, msg: str
) -> None:
    found = fault(tmp_path, f"{header}\n1,2,3\n")
    assert (found.loc, found.msg) == (("line", 1, "column", place), msg)


def test_bytes_that_are_not_utf8_are_named_by_line_and_byte(tmp_path: Path) -> None:
    found = fault(tmp_path, b"a,b\n1,caf\xe9\n")
    assert found.loc == ("line", 2)
    assert found.found == "byte 0xe9 at byte 6 of the line"


def test_nul_bytes_are_refused(tmp_path: Path) -> None:
    assert fault(tmp_path, b"a,b\n1,\x00\n").loc == ("line", 2)


def test_an_open_quote_is_named_by_the_line_it_stands_on(tmp_path: Path) -> None:
    found = fault(tmp_path, 'a,b\n1,2\n3,"four\n5,6\n')
    assert (found.loc, found.msg) == (("line", 3), "a quote is never closed")


def test_text_behind_a_closing_quote_is_refused(tmp_path: Path) -> None:
    found = fault(tmp_path, 'a,b\n1,"x"y\n3,4\n')
    assert found.loc == ("line", 2)
    assert "broken quoting" in found.msg


def test_endless_cells_and_lines_are_refused(tmp_path: Path) -> None:
    long = "x" * (tables.MAX_CELL + 1)
    assert "too long" in fault(tmp_path, f"a,b\n1,{long}\n").msg
    assert "too long" in fault(tmp_path, "a,b\n1," + "x" * (tables.MAX_LINE + 1)).msg
    assert "too long" in fault(tmp_path, json.dumps({"a": long}), "data.jsonl").msg
    assert "too long" in fault(tmp_path, parquet(pl.DataFrame({"a": [long]}))).msg


def test_too_many_columns_are_refused(tmp_path: Path) -> None:
    names = [f"c{number}" for number in range(tables.MAX_COLUMNS + 1)]
    assert fault(tmp_path, ",".join(names) + "\n").msg == "too many columns"
    row = json.dumps(dict.fromkeys(names, 1))
    assert fault(tmp_path, row, "data.jsonl").msg == "too many columns"


@pytest.mark.parametrize(
    ("line", "msg"),
    [
        ("[1, 2]", "not an object"),
        ("{'a': 1}", "not JSON"),
        ('{"a": NaN}', "not JSON"),
        ("[" * 100_000, "not JSON"),
        ('{"a": ' + "9" * 5000 + "}", "not JSON"),
        ('{"a": {"b": 1}}', "a nested value"),
        ('{"a": 1e999}', "the number is too large"),
        ('{"a": 99999999999999999999}', "the whole number is too large"),
        (r'{"a": "\ud800"}', "NUL, half a surrogate pair, or too long"),
        (r'{"a": "\u0000"}', "NUL, half a surrogate pair, or too long"),
        ('{"": 1}', "not a name for a column"),
    ],
)
def test_faults_of_jsonl_are_named_by_their_line(tmp_path: Path, line: str, msg: str) -> None:
    found = fault(tmp_path, f'{{"a": 1}}\n{line}\n{{"a": 2}}\n', "data.jsonl")
    assert found.loc[:2] == ("line", 2)
    assert found.msg == msg


@pytest.mark.parametrize("content", [b"PAR1" + b"\0" * 50, b"PAR1PAR1", b"PAR1"])
def test_broken_parquet_is_refused(tmp_path: Path, content: bytes) -> None:
    assert fault(tmp_path, content).msg == "not a sound Parquet file"


def test_parquet_cut_anywhere_is_refused(tmp_path: Path) -> None:
    whole = parquet(pl.DataFrame({"a": range(100), "b": ["x"] * 100}))
    for end in range(4, len(whole), len(whole) // 12):
        faults(tmp_path, whole[:end], "data.parquet")


def test_nested_columns_of_parquet_are_named(tmp_path: Path) -> None:
    found = fault(tmp_path, parquet(pl.DataFrame({"a": [[1], [2]], "b": [1, 2]})))
    assert found.loc == ("a",)
    assert "List" in found.found


def test_parquet_that_unpacks_to_too_many_cells_is_refused(
    tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(tables, "MAX_CELLS", 1_000)
    small = parquet(pl.DataFrame({"a": pl.repeat(1, 2_000, eager=True)}))
    assert fault(tmp_path, small).msg == "too many cells"


def test_a_column_is_the_one_asked_for_or_one_with_a_usual_name() -> None:
    frame = pl.DataFrame({"Label": ["x"], "y": ["z"], LINE: [1]})
    assert pick_column(frame, "target", {}, ["target", "label"]) == "Label"
    assert pick_column(frame, "target", {"target": "y"}, ["label"]) == "y"
    assert pick_column(frame, "target", {}, ["kind"]) is None
    with pytest.raises(Invalid) as caught:
        pick_column(frame, "target", {"target": "nope"}, ["label"])
    (found,) = caught.value.problems
    assert found.loc == ("options", "column_mapping", "target")
    assert found.allowed == ["Label", "y"]


def test_a_mapping_of_no_column_of_the_task_is_refused() -> None:
    with pytest.raises(Invalid) as caught:
        check_mapping({"traget": "y"}, ["target"])
    assert caught.value.problems[0].allowed == ["target"]


CELLS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r"), max_size=8)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.tuples(CELLS, CELLS, CELLS), min_size=1, max_size=8),
    mark=st.sampled_from(",;\t|"),
)
def test_what_was_written_as_csv_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, ...]], mark: str
) -> None:
    file = io.StringIO(newline="")
    writer = csv.writer(file, delimiter=mark, quoting=csv.QUOTE_ALL)
    writer.writerows([("a", "b", "c"), *rows])
    name = "data.tsv" if mark == "\t" else "data.csv"
    frame = read(tmp_path_factory.mktemp("csv"), file.getvalue(), name)
    assert list(frame.select(["a", "b", "c"]).iter_rows()) == rows


@settings(max_examples=150, deadline=None)
@given(
    content=st.binary(min_size=1, max_size=60), name=st.sampled_from(["x.csv", "x.tsv", "x.jsonl"])
)
def test_any_bytes_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, name: str
) -> None:
    folder = tmp_path_factory.mktemp("bytes")
    with contextlib.suppress(Invalid):
        assert read(folder, content, name).height > 0
