"""What several devices bring on a CPU: one process with all threads beside several with one thread each.

Three trainings in turn, round after round: the service's loop in one process, the same in `--devices` processes that
learn together, and beside these the shortest loop that a person would write with torch's DistributedDataParallel and
start by torchrun. All take the same steps on scikit-learn's digits and on a made-up table. What is shown are medians
over the rounds, of each round's ratios too. The first epoch of each is not counted.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench import _distributed

MODES = ("alone", "together", "bare")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=5, help="of the three trainings")
    parser.add_argument("--devices", type=int, default=2, help="processes, and threads of the one")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    result = {}
    print(f"{'examples/s':10}{'1 process':>12}{'together':>12}{'bare DDP':>12}", end="")
    print(f"{'together / 1':>14}{'together / bare':>17}", flush=True)
    for job in _distributed.JOBS:
        rounds = [_round(job, arguments.devices) for _ in range(arguments.rounds)]
        median = {mode: statistics.median(each[mode] for each in rounds) for mode in MODES}
        gain = statistics.median(each["together"] / each["alone"] for each in rounds)
        beside = statistics.median(each["together"] / each["bare"] for each in rounds)
        result[job] = {**median, "gain": gain, "beside_bare": beside, "rounds": rounds}
        shown = "".join(f"{median[mode]:12,.0f}" for mode in MODES)
        print(f"{job:10}{shown}{gain:14.2f}{beside:17.2f}", flush=True)
    return result


def _round(job: str, devices: int) -> dict[str, float]:
    """Examples per second of each mode."""
    return {mode: _pace(job, mode, devices) for mode in MODES}


def _pace(job: str, mode: str, devices: int) -> float:
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(devices)]
    threads = devices if mode == "alone" else 1
    with tempfile.TemporaryDirectory() as folder:
        told = Path(folder) / "told.json"
        command = [*([] if mode == "alone" else torchrun), "-m", "bench._distributed"]
        subprocess.run(
            [sys.executable, *command, job, mode, str(threads), str(told)],
            env={**os.environ, "OMP_NUM_THREADS": str(threads), "GOMP_SPINCOUNT": "1000"},
            stderr=subprocess.DEVNULL,
            check=True,
        )
        pace: float = json.loads(told.read_text())
    return pace
