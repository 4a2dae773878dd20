"""What learns: every file of this folder is one architecture, and is on offer by being here."""

import os
from importlib import import_module
from pkgutil import iter_modules

# Read when torch is loaded. Threads that spin for long while they wait for each other take the cores
# from one another on a busy machine; docs/benchmarks.md has the measurements.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
