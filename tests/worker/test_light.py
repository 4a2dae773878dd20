"""The process that takes messages stays light, and refuses settings it cannot serve."""

import os
import subprocess
import sys

import pytest

HEAVY = ("torch", "polars", "sklearn", "tasks", "models", "worker.jobs", "worker.loop")


def python(*arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    environment = {f"MODELYARD_{name}": value for name, value in settings.items()}
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "PYTHONPATH": ":".join(sys.path), **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_worker_process_never_loads_what_trains() -> None:
    modules = "worker.__main__, worker.app, worker.supervisor, worker.reconciler, worker.trainer"
    loaded = python("-c", f"import sys, {modules}; print(*sys.modules)").stdout.split()
    assert "worker.supervisor" in loaded
    assert [name for name in loaded if name.startswith(HEAVY)] == []


WARMED = """
import os, signal, threading, time
from multiprocessing import forkserver
from worker import runs

runs.warm_up()
killed = forkserver._forkserver._forkserver_pid
threading.Timer(0.5, os.kill, (killed, signal.SIGKILL)).start()
runs.wait_until_warm()
print("warm", forkserver._forkserver._forkserver_pid != killed)
"""


def test_a_worker_outlives_the_loss_of_what_its_trainers_are_forked_from() -> None:
    """Half a second after its start, while it loads what takes longer."""
    assert python("-c", WARMED).stdout.strip() == "warm True"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SLOTS", "0"),
        ("DEVICES", "tpu"),
        ("DEVICES", "cuda:99"),
        ("LEASE_SECONDS", "soon"),
        ("HEARTBEAT_SECONDS", "14"),
        ("LOG_LEVEL", "LOUD"),
    ],
)
def test_a_wrong_setting_refuses_to_start_and_says_which(name: str, value: str) -> None:
    ended = python("-m", "worker", **{name: value, "DATA_DIR": "/nowhere"})
    assert ended.returncode == 2
    assert name in ended.stderr.upper()
    assert len(ended.stderr.splitlines()) == 1, ended.stderr
