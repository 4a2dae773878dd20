"""MLflow's side of `bench.metrics`, for an interpreter that has it: `python _mlflow.py URL NAME`.

Reads "write FIRST COUNT BATCH" and "read" from its input, and answers each with the seconds it took and
how many points there were.
"""

import sys
import time

from mlflow import MlflowClient  # type: ignore[import-not-found]
from mlflow.entities import Metric  # type: ignore[import-not-found]


def main(url: str, name: str) -> None:
    client = MlflowClient(tracking_uri=url)
    run_id = client.create_run(client.create_experiment("bench")).info.run_id

    def write(first: int, count: int, batch: int) -> tuple[float, int]:
        points = [Metric(name, 1 / step, 0, step) for step in range(first, first + count)]
        parts = [points[at : at + batch] for at in range(0, count, batch)]
        began = time.perf_counter()
        for part in parts:
            client.log_batch(run_id, metrics=part)
        return time.perf_counter() - began, count

    def read() -> tuple[float, int]:
        began = time.perf_counter()
        points = client.get_metric_history(run_id, name)
        return time.perf_counter() - began, len(points)

    print("ready", flush=True)
    for line in sys.stdin:
        what, *numbers = line.split()
        print(*(write(*map(int, numbers)) if what == "write" else read()), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
