"""The cache of encoded splits: whole files, mapped and not read, the least lately used ones gone first."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import torch

from tasks.parts.columns import Columns, Dense, ragged
from worker.cache import Cache, columns_name, load_columns, save_columns


def kilobyte(path: Path) -> None:
    path.write_bytes(bytes(1000))


def get(folder: Path, limit: int, name: str, make: Callable[[Path], object] = kilobyte) -> Path:
    """Use a file for a moment."""
    with closing(Cache(folder, limit)) as cache:
        return cache.get(name, make)


def test_a_file_is_made_once(tmp_path: Path) -> None:
    get(tmp_path, 10_000, "a")
    path = get(tmp_path, 10_000, "a", lambda path: pytest.fail("made again"))
    assert path.read_bytes() == bytes(1000)


def test_a_file_whose_making_failed_is_not_there(tmp_path: Path) -> None:
    def fail(path: Path) -> None:
        kilobyte(path)
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        get(tmp_path, 10_000, "a", fail)
    assert list(tmp_path.iterdir()) == []


def test_the_least_lately_used_files_go_when_there_is_no_room(tmp_path: Path) -> None:
    for place, name in enumerate("abcd"):
        os.utime(get(tmp_path, 10_000, name), (place, place))
    get(tmp_path, 10_000, "a")
    get(tmp_path, 3_000, "e")
    assert {path.name for path in tmp_path.iterdir()} == {"a", "d", "e"}


def test_a_file_that_another_trainer_uses_stays(tmp_path: Path) -> None:
    script = (
        "import sys, pathlib; from worker.cache import Cache\n"
        "cache = Cache(pathlib.Path(sys.argv[1]), 10_000)\n"
        "cache.get('a', lambda path: path.write_bytes(bytes(1000)))\n"
        "print('has it', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": ":".join(sys.path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"has it\n"
        get(tmp_path, 500, "b")
        assert {path.name for path in tmp_path.iterdir()} == {"a", "b"}
        other.kill()
    get(tmp_path, 500, "b")
    assert {path.name for path in tmp_path.iterdir()} == {"b"}


def test_what_killed_trainers_left_half_written_goes_after_a_day(tmp_path: Path) -> None:
    for name, age in ((".new-old", 90_000), (".new-young", 10)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "half").write_bytes(b"x")
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    Cache(tmp_path, 10_000).close()
    assert [path.name for path in tmp_path.iterdir()] == [".new-young"]


def test_columns_come_back_as_they_were(tmp_path: Path) -> None:
    columns = Columns(
        (ragged([[5, 6], [], [7]]), Dense(torch.arange(6).view(3, 2).to(torch.uint8))),
        (Dense(torch.tensor([0.5, -1.0, 2.0], dtype=torch.bfloat16)),),
    )
    save_columns(columns, tmp_path / "columns")
    found = load_columns(tmp_path / "columns")
    for one, other in zip(
        (*columns.inputs, *columns.targets), (*found.inputs, *found.targets), strict=True
    ):
        assert type(one) is type(other)
        assert all(torch.equal(t, other.tensors()[name]) for name, t in one.tensors().items())
        assert all(t.dtype == other.tensors()[name].dtype for name, t in one.tensors().items())


def test_columns_are_mapped_and_not_read(tmp_path: Path) -> None:
    save_columns(Columns((Dense(torch.zeros(2**20)),)), tmp_path / "columns")
    found = load_columns(tmp_path / "columns")
    assert f" {tmp_path / 'columns'}" in Path("/proc/self/maps").read_text()
    assert found.examples == 2**20


def test_another_codec_or_task_has_columns_of_its_own() -> None:
    names = {
        columns_name("b", "t", "{}"),
        columns_name("b", "t", "[]"),
        columns_name("b", "u", "{}"),
    }
    assert len(names) == 3
    assert columns_name("b", "t", "{}") in names
