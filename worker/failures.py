"""Why a job failed, in one sentence a user understands."""

import traceback
from typing import Any

from models.base import NotTransferable
from models.parts.compiling import CannotCompile
from models.parts.memory import ran_out
from models.parts.published import Unusable
from store.errors import NotFound
from tasks.parts.problems import Invalid
from worker.loop import Diverged

_PLAIN = Invalid | Diverged | NotTransferable | Unusable | NotFound | CannotCompile
"""Errors whose message is for users."""


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
        case NotTransferable() | Unusable():
            return "not_transferable"
        case NotFound():
            return "not_found"
        case CannotCompile():
            return "cannot_compile"
    return "out_of_memory" if ran_out(error) else "internal"


def _message(error: Exception) -> str:
    if isinstance(error, _PLAIN):
        return _sentence(str(error))
    if ran_out(error):
        return (
            "The training ran out of memory, and batches in smaller pieces would not help: choose a "
            "smaller architecture, smaller examples, or a device with more memory."
        )
    return f"The training failed unexpectedly ({type(error).__name__}); the traceback says where."


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")
