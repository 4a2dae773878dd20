"""In which numbers a network computes while it learns, and whether the same ones each time."""

from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Literal

import torch

Precision = Literal["device", "float32", "tf32", "bfloat16", "float16"]


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """Around a forward pass: what suits it is computed in half the bits (Micikevicius et al., 2018).

    Weights and their updates stay float32.
    """
    halved = _halved(precision, device.type)
    return nullcontext() if halved is None else torch.autocast(device.type, halved)


def scaling(precision: Precision, device: torch.device) -> torch.amp.GradScaler:
    """What keeps the gradients of float16 from vanishing: losses are scaled up, as far as nothing overflows.

    It does nothing in other precisions: bfloat16 reaches as far as float32. A step whose gradients overflow
    is left out, and the scale halved (Micikevicius et al., 2018).
    """
    scales = _halved(precision, device.type) is torch.float16
    return torch.amp.GradScaler(device.type, enabled=scales)


@cache
def _halved(precision: Precision, device_type: str) -> torch.dtype | None:
    """The type of half the bits to compute in, if any."""
    match precision:
        case "bfloat16":
            return torch.bfloat16
        case "float16":
            return torch.float16
        case "device" if device_type == "cuda":
            if torch.cuda.is_bf16_supported(including_emulation=False):
                return torch.bfloat16
            # Those of Volta and Turing multiply float16 fast; older ones have no such units.
            return torch.float16 if torch.cuda.get_device_capability()[0] == 7 else None
    return None


def choose_kernels(precision: Precision, *, deterministic: bool) -> None:
    """Have this process multiply in TF32 or not, and compute the same bits for the same request or not."""
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    torch.use_deterministic_algorithms(deterministic, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = not deterministic
