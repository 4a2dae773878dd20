"""What an API without a broker rings wakes the worker beside it, and never hurts it."""

import os
from collections.abc import Iterator
from pathlib import Path
from threading import Event, Thread

import pytest

from worker import app, doorbell


@pytest.fixture
def bell() -> Iterator[Event]:
    """Of a supervisor."""
    bell = Event()
    app.bells.append(bell)
    yield bell
    app.bells.remove(bell)


def test_each_ring_wakes_the_supervisors(bell: Event, tmp_path: Path) -> None:
    path = tmp_path / "doorbell"
    os.mkfifo(path)  # by the worker before
    listening = Thread(target=doorbell.answer, args=(path,), daemon=True)
    listening.start()
    for _ in range(3):
        with path.open("wb") as pipe:
            pipe.write(b"!")
        assert bell.wait(10)
        bell.clear()
    assert listening.is_alive()


def test_a_file_in_its_place_is_left_alone(bell: Event, tmp_path: Path) -> None:
    path = tmp_path / "doorbell"
    path.write_bytes(b"")
    doorbell.answer(path)
    assert not bell.is_set()


def test_a_worker_without_a_bell_goes_on_looking(
    bell: Event, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        doorbell.answer(tmp_path / "not there" / "doorbell")
    assert "looking for jobs by ourselves" in caplog.text
    assert not bell.is_set()
