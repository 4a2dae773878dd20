"""Why a job failed, in one sentence a user understands."""

import re
import traceback
from typing import Any

import torch

from models.base import NotTransferable
from store.errors import NotFound
from tasks.parts.problems import Invalid
from worker.loop import Diverged

_OUT_OF_MEMORY = re.compile(r"out of memory|can't allocate memory|not enough memory", re.I)


def explain(error: Exception) -> dict[str, Any]:
    """The error of a failed job: {code, message, traceback}, and what Invalid says of each problem."""
    found: dict[str, Any] = {"code": _code(error), "message": _message(error)}
    if isinstance(error, Invalid):
        found["problems"] = [problem._asdict() for problem in error.problems]
    return {**found, "traceback": "".join(traceback.format_exception(error))}


def _code(error: Exception) -> str:
    match error:
        case Invalid():
            return "invalid_data"
        case Diverged():
            return "diverged"
        case NotTransferable():
            return "not_transferable"
        case NotFound():
            return "not_found"
    return "out_of_memory" if _ran_out_of_memory(error) else "internal"


def _message(error: Exception) -> str:
    if isinstance(error, Invalid | Diverged | NotTransferable | NotFound):
        return _sentence(str(error))
    if _ran_out_of_memory(error):
        return (
            "The training ran out of memory: halve `training.batch_size`, or choose a smaller "
            "architecture."
        )
    return f"The training failed unexpectedly ({type(error).__name__}); the traceback says where."


def _ran_out_of_memory(error: Exception) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and bool(_OUT_OF_MEMORY.search(str(error)))


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")
