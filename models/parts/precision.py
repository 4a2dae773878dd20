"""In which numbers a network computes while it learns, and whether the same ones each time."""

from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Literal

import torch

Precision = Literal["device", "float32", "tf32", "bfloat16"]


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """Around a forward pass: what suits it is computed in half the bits (Micikevicius et al., 2018).

    Weights and their updates stay float32. bfloat16 reaches as far as float32, so that losses need no scaling.
    """
    halved = _halves(precision, device.type)
    return torch.autocast(device.type, torch.bfloat16) if halved else nullcontext()


@cache
def _halves(precision: Precision, device_type: str) -> bool:
    if precision == "device":
        return device_type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return precision == "bfloat16"


def choose_kernels(precision: Precision, *, deterministic: bool) -> None:
    """Have this process multiply in TF32 or not, and compute the same bits for the same request or not."""
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    torch.use_deterministic_algorithms(deterministic, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = not deterministic
