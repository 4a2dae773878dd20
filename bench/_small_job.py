"""The job that queues run in `bench.starts`, as one would write it by hand: `python -m bench._small_job NAME`.

Needs nothing but torch. Once it is done it adds a line to the file that BENCH_DONE names: its name, and
when its first step and all of it were done.
"""

import os
import sys
import time
from pathlib import Path

import torch
import torch._dynamo
from torch import nn


def train(name: str) -> None:
    """Train a small network on the table that BENCH_TABLE names, and keep its weights."""
    features, labels = torch.load(os.environ["BENCH_TABLE"], weights_only=True)
    width = 16
    network = nn.Sequential(nn.Linear(features.shape[1], width), nn.ReLU(), nn.Linear(width, 2))
    optimizer = torch.optim.AdamW(network.parameters())
    first = None
    for _ in range(int(os.environ["BENCH_STEPS"])):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(features), labels).backward()
        optimizer.step()
        first = first or time.time()
    done = Path(os.environ["BENCH_DONE"])
    torch.save(network.state_dict(), done.with_name(f"{name}.pt"))
    with done.open("a") as file:
        file.write(f"{name} {first} {time.time()}\n")


if __name__ == "__main__":
    train(sys.argv[1])
