"""Changes to a copy of the tree: what a service under test gets besides itself, or goes without."""

from pathlib import Path

POISON = "poison"
_POISONOUS = '''"""An architecture that kills the process which trains it."""

import os
import signal
from typing import Literal

from torch import Tensor

from models.base import Backbone, TableBackbone


class Deadly(Backbone):
    width = 1

    def forward(self, numbers: Tensor, categories: Tensor) -> Tensor:
        os.kill(os.getpid(), signal.SIGSEGV)
        return numbers[:, :1]


class Poison(TableBackbone):
    """Ends with a segmentation fault in its first step."""

    name: Literal["poison"] = "poison"

    def backbone(self, numeric: int, cardinalities: list[int]) -> Backbone:
        return Deadly()
'''
_FENCE = 'if job.status != "running" or job.lease_epoch != lease_epoch:'


def add_poison(root: Path) -> None:
    """Have it offer an architecture that kills its trainers."""
    (root / "models" / "poison.py").write_text(_POISONOUS)


def drop_the_fence(root: Path) -> None:
    """Have every run believe that it holds the lease of its job, so that a verdict can be tested."""
    leases = root / "store" / "leases.py"
    code = leases.read_text()
    assert _FENCE in code
    leases.write_text(code.replace(_FENCE, 'if job.status != "running":'))
