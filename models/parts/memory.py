"""Memory that ran out, whatever the device calls it."""

import re

import torch

_SAID = re.compile(r"out of memory|can't allocate memory|not enough memory", re.I)


def ran_out(error: BaseException) -> bool:
    """Whether an error says that a device or the machine has no more memory to give."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and bool(_SAID.search(str(error)))


def give_back() -> None:
    """Hand memory that is not used any more back to the device, so that others can have it."""
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
