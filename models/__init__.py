"""What learns: every file of this folder is one architecture, and is on offer by being here."""

import os
from importlib import import_module
from pkgutil import iter_modules

# Read when torch is loaded. Threads that spin while they wait for each other take the cores from
# one another on a busy machine: with two threads on two shared cores, an epoch took 50 times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
