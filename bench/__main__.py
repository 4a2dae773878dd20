"""`./run bench NAME [--json FILE] ...`: runs the benchmark of that name."""

import argparse
import json
import signal
import sys
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules


def main() -> int:
    # As Ctrl-C does: what a benchmark started is to end with it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    folder = str(Path(__file__).parent)
    names = sorted(m.name for m in iter_modules([folder]) if not m.name.startswith("_"))
    parser = argparse.ArgumentParser(prog="./run bench", description=__doc__)
    parser.add_argument("name", choices=names)
    parser.add_argument("--json", type=Path, help="also write the result there")
    arguments, rest = parser.parse_known_args()
    benchmark = import_module(f"bench.{arguments.name}")
    options = argparse.ArgumentParser(prog=f"./run bench {arguments.name}")
    benchmark.add_arguments(options)
    result = benchmark.run(options.parse_args(rest))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")
    return 1 if result.get("violations") else 0


if __name__ == "__main__":
    sys.exit(main())
