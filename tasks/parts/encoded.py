"""Files within requests: raw bytes, or base64 in JSON."""

import base64
import binascii
from collections.abc import Mapping
from typing import Any

from tasks.parts.problems import Invalid, Problem


def most_base64(most: int) -> int:
    """Characters that so many bytes may take, line breaks and a `data:` prefix included."""
    return most * 4 // 3 + 1024


def read_bytes(value: Any, field: str, most: int, kind: str) -> bytes:
    """The bytes of a file in a request: raw, as base64, or as an object of which `field` is base64.

    Raises Invalid when it is none of these, or larger than `most` bytes; `kind` is what is wanted ("an image").
    Whether the bytes are that is not looked at.
    """
    allowed = f'{kind} file in base64, or {{"{field}": base64}}'
    if isinstance(value, Mapping) and set(value) == {field}:
        try:
            return _decoded(value[field], most, kind, allowed)
        except Invalid as error:
            raise Invalid(*(p._replace(loc=(field, *p.loc)) for p in error.problems)) from None
    return _decoded(value, most, kind, allowed)


def _decoded(value: Any, most: int, kind: str, allowed: str) -> bytes:
    """Raw bytes as they are, and text as base64, with or without a `data:` prefix. Raises Invalid."""
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str):
        found = ", ".join(map(str, value))[:80] if isinstance(value, Mapping) else repr(value)[:80]
        raise Invalid(Problem((), f"not {kind}", found, allowed))
    if len(value) > most_base64(most):
        found, fitting = f"{len(value):,} characters", f"at most {most:,} bytes"
        raise Invalid(Problem((), "the file is too large", found, fitting))
    text = value.partition(",")[2] if value.startswith("data:") else value
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        raise Invalid(Problem((), "not base64", value[:40], allowed)) from None
