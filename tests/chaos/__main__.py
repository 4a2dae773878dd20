"""`./run chaos`: hurt every part of a running service at random, and check that every job ended right."""

import argparse
import logging
import secrets
import shutil
import sys
import tempfile
from pathlib import Path

from tests.chaos.play import Script, play

log = logging.getLogger("chaos")


def main() -> int:
    parser = argparse.ArgumentParser(prog="./run chaos", description=__doc__)
    parser.add_argument("--seconds", type=float, default=1200, help="of faults (1200)")
    parser.add_argument(
        "--seed", type=int, default=secrets.randbelow(2**31), help="of all that is drawn"
    )
    parser.add_argument("--jobs", type=int, default=6, help="unfinished at a time (6)")
    parser.add_argument(
        "--kinds", type=int, default=100, help="most pairs of a task and an architecture"
    )
    parser.add_argument("--sabotage", action="store_true", help=argparse.SUPPRESS)
    script = Script(**vars(parser.parse_args()))
    folder = Path(tempfile.mkdtemp(prefix="modelyard-chaos-"))
    folder.chmod(0o755)  # PostgreSQL refuses to run as root, and so runs as somebody else
    _log_to(folder / "chaos.log")
    log.info("seed %d, logs in %s", script.seed, folder)
    report = play(script, folder)
    log.info("the end\n\n%s", report)
    if report.violations:
        log.info("seed %d; the logs stay in %s", script.seed, folder)
        return 1
    shutil.rmtree(folder)
    return 0


def _log_to(path: Path) -> None:
    log.setLevel(logging.INFO)
    for handler in (logging.FileHandler(path), logging.StreamHandler(sys.stdout)):
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
        log.addHandler(handler)


if __name__ == "__main__":
    sys.exit(main())
