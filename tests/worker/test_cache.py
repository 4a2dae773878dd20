"""The cache: whole files, each made once, the least lately used ones gone first."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from worker.cache import Cache


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


MAKER = """
import sys, time, pathlib
from worker.cache import Cache

folder, marks = map(pathlib.Path, sys.argv[1:])

def make(path):
    with marks.open("a") as file:
        file.write("begun\\n")
    print("makes it", flush=True)
    sys.stdin.readline()
    path.write_bytes(bytes(1000))

Cache(folder, 10_000).get("a", make, lambda: print("waits", flush=True))
print("has it", flush=True)
"""


@contextmanager
def makers(folder: Path, count: int) -> Iterator[list[subprocess.Popen[str]]]:
    """Processes of which each makes the same file, once it is sent a line."""
    command = [sys.executable, "-c", MAKER, str(folder / "cache"), str(folder / "marks")]
    environment = {**os.environ, "PYTHONPATH": ":".join(sys.path)}
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with ExitStack() as started:
        yield [
            started.enter_context(subprocess.Popen(command, env=environment, **pipes))
            for _ in range(count)
        ]


def heard(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def told(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def last_heard(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.read().split("\n")[-2]


def test_of_two_trainers_that_need_a_file_one_makes_it_and_the_other_waits(tmp_path: Path) -> None:
    with makers(tmp_path, 2) as processes:
        said = [heard(process) for process in processes]
        assert sorted(said) == ["makes it", "waits"]
        told(processes[said.index("makes it")])
        assert [last_heard(process) for process in processes] == ["has it", "has it"]
    assert (tmp_path / "marks").read_text() == "begun\n"
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["a"]


def test_a_trainer_makes_itself_what_the_one_it_waited_for_died_over(tmp_path: Path) -> None:
    with makers(tmp_path, 2) as processes:
        said = [heard(process) for process in processes]
        processes[said.index("makes it")].kill()
        other = processes[said.index("waits")]
        told(other)
        assert last_heard(other) == "has it"
    assert (tmp_path / "marks").read_text() == "begun\n" * 2
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["a"]


def test_a_trainer_that_is_to_end_does_not_wait_any_longer(tmp_path: Path) -> None:
    class Told(Exception):
        pass

    def look() -> None:
        raise Told

    with makers(tmp_path, 1) as (process,):
        assert heard(process) == "makes it"
        with closing(Cache(tmp_path / "cache", 10_000)) as cache, pytest.raises(Told):
            cache.get("a", kilobyte, look)
        told(process)
        assert heard(process) == "has it"
