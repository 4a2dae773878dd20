"""What checks and trainers are forked from has loaded everything, and computed nothing."""

import os
import subprocess
import sys

import pytest

FORKS = """
import importlib, os, signal, sys
importlib.import_module(sys.argv[1])
import torch
child = os.fork()
if child == 0:
    signal.alarm(30)
    torch.set_num_threads(2)
    torch.ones(1 << 22).add(1).sum()
    os._exit(0)
print(os.waitpid(child, 0)[1])
"""


@pytest.mark.parametrize("loaded", ["worker.warm", "api.checking"])
def test_a_process_forked_from_what_has_loaded_all_can_compute_in_threads(loaded: str) -> None:
    threads = {"OMP_NUM_THREADS": "2", "PYTHONPATH": ":".join(sys.path)}
    command = [sys.executable, "-c", FORKS, loaded]
    environment = {**os.environ, **threads}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.stdout == "0\n", ended.stdout + ended.stderr
