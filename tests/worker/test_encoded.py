"""Encoded splits: the same in pieces as at once, mapped and not read."""

import json
import os
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import polars as pl
import pytest
import torch

from models.parts.training import Training
from tasks.base import Codec, Facts
from tasks.catalog import resolve, tasks
from tasks.parts import examples
from tasks.parts.columns import Columns, Dense, ragged
from tasks.parts.problems import Invalid
from tests.toys import toy
from worker.encoded import columns_name, load_columns, save_columns


def same(one: Columns, other: Columns) -> bool:
    """Whether two splits have columns of the same kinds, types and bits."""
    pairs = zip((*one.inputs, *one.targets), (*other.inputs, *other.targets), strict=True)
    return len(one.inputs) == len(other.inputs) and all(
        type(mine) is type(its)
        and all(t.dtype == its.tensors()[name].dtype for name, t in mine.tensors().items())
        and all(torch.equal(t, its.tensors()[name]) for name, t in mine.tensors().items())
        for mine, its in pairs
    )


@cache
def encoding(name: str) -> tuple[Codec, pl.DataFrame]:
    """A codec and the examples that it was learned from."""
    task = tasks()[name]
    with TemporaryDirectory() as folder:
        checked = task.check(toy(name, Path(folder), 40), task.options_type())
    facts = Facts(checked.schema, {split: frame.height for split, frame in checked.splits.items()})
    train = checked.splits["train"]
    spec = resolve(name, facts, None, Training(), None)
    return spec.task.learn_codec(train.lazy(), checked.schema), train


def in_pieces_of(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examples, "_FIRST", rows)
    monkeypatch.setattr(examples, "_GROWTH", 1)


@pytest.mark.parametrize("name", sorted(tasks()))
@pytest.mark.parametrize("rows", [1, 7, 1_000])
def test_a_split_encodes_in_pieces_as_it_does_at_once(
    name: str, rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    codec, frame = encoding(name)
    in_pieces_of(rows, monkeypatch)
    monkeypatch.setattr(type(codec), "first_piece", None)
    frame.write_parquet(tmp_path / "split.parquet", row_group_size=5)
    pieces = list(codec.encode_pieces(pl.scan_parquet(tmp_path / "split.parquet")))
    assert len(pieces) == -(-frame.height // rows)
    save_columns(pieces, tmp_path / "pieces")
    assert same(load_columns(tmp_path / "pieces"), codec.encode(frame))


def test_pieces_are_as_large_as_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    frame = pl.DataFrame({"number": range(1_000)})  # of 8 bytes each
    monkeypatch.setattr(examples, "_FIRST", 10)
    monkeypatch.setattr(examples, "PIECE_BYTES", 800)
    found = list(examples.pieces(frame.lazy()))
    assert [piece.height for piece in found] == [10, *[100] * 9, 90]
    assert pl.concat(found).equals(frame)
    assert [piece.height for piece in examples.pieces(frame.clear().lazy())] == [0]


def test_of_examples_that_may_be_large_fewer_are_read_at_first() -> None:
    frame = pl.DataFrame({"number": range(100)})
    assert [piece.height for piece in examples.pieces(frame.lazy(), 1)] == [1, 64, 35]


def test_a_problem_in_a_later_piece_is_at_its_row_of_the_split(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    codec, frame = encoding("text-classification")
    in_pieces_of(7, monkeypatch)
    label = pl.Series([*frame["label"][:-1], "strange"])
    with pytest.raises(Invalid) as refused:
        list(codec.encode_pieces(frame.with_columns(label=label).lazy()))
    assert refused.value.problems[0].loc == ("row", frame.height, "label")


def test_columns_come_back_as_they_were(tmp_path: Path) -> None:
    columns = Columns(
        (ragged([[5, 6], [], [7]]), Dense(torch.arange(6).view(3, 2).to(torch.uint8))),
        (Dense(torch.tensor([0.5, -1.0, 2.0], dtype=torch.bfloat16)),),
    )
    save_columns([columns], tmp_path / "columns")
    found = load_columns(tmp_path / "columns")
    assert same(found, columns)


def test_columns_are_mapped_and_not_read(tmp_path: Path) -> None:
    save_columns([Columns((Dense(torch.zeros(2**20)),))], tmp_path / "columns")
    found = load_columns(tmp_path / "columns")
    maps = Path("/proc/self/maps").read_text().splitlines()
    (mapped,) = (line for line in maps if line.endswith(f" {tmp_path / 'columns'}"))
    assert mapped.split()[1].startswith("r--"), (
        "what can be written to counts as the process's data"
    )
    assert found.examples == 2**20


def test_columns_larger_than_the_machines_memory_are_mapped(tmp_path: Path) -> None:
    count = 2 * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20
    header = json.dumps(
        {
            "__metadata__": {"inputs.0": "Dense"},
            "inputs.0.values": {
                "dtype": "U8",
                "shape": [count, 2**20],
                "data_offsets": [0, count << 20],
            },
        }
    ).encode()
    with (tmp_path / "many").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + (count << 20))
    last = load_columns(tmp_path / "many").batch(torch.tensor([count - 1])).inputs[0]
    assert last.sum() == 0


def test_another_codec_or_task_has_columns_of_its_own() -> None:
    names = {
        columns_name("b", "t", "{}"),
        columns_name("b", "t", "[]"),
        columns_name("b", "u", "{}"),
    }
    assert len(names) == 3
    assert columns_name("b", "t", "{}") in names
