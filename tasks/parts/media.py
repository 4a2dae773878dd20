"""Encoded files of any kind: within requests as raw bytes or base64, and in columns, each read by itself."""

import base64
import binascii
import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import polars as pl
from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

from tasks.parts.problems import Invalid, Problem

_THREADS = min(8, os.cpu_count() or 1)
_CHUNK = 256

T = TypeVar("T")


# In requests and answers


@dataclass(frozen=True)
class EncodedFile:
    """Marks bytes that are a file of a kind, `Annotated[bytes, EncodedFile(...)]`: in JSON they are base64."""

    field: str
    """What it is called where it is part of an object."""
    kind: str
    """What is wanted, such as "an image"."""
    media_type: str
    most: int
    """Bytes at the most."""
    example: str | None = None

    @property
    def most_base64(self) -> int:
        """Characters at the most, line breaks and a `data:` prefix included."""
        return self.most * 4 // 3 + 1024

    def read(self, value: Any) -> bytes:
        """The bytes of a file in a request: raw, as base64, or as an object of which `field` is base64.

        Raises Invalid when it is none of these, or too large. Whether the bytes are of that kind is not looked at.
        """
        if isinstance(value, Mapping) and set(value) == {self.field}:
            try:
                return self._decoded(value[self.field])
            except Invalid as error:
                problems = (p._replace(loc=(self.field, *p.loc)) for p in error.problems)
                raise Invalid(*problems) from None
        return self._decoded(value)

    def _decoded(self, value: Any) -> bytes:
        """Raw bytes as they are, and text as base64, with or without a `data:` prefix. Raises Invalid."""
        allowed = f'{self.kind} file in base64, or {{"{self.field}": base64}}'
        if isinstance(value, bytes):
            return value
        if not isinstance(value, str):
            fields = ", ".join(map(str, value)) if isinstance(value, Mapping) else repr(value)
            raise Invalid(Problem((), f"not {self.kind}", fields[:80], allowed))
        if len(value) > self.most_base64:
            raise _too_large(f"{len(value):,} characters", self.most)
        text = value.partition(",")[2] if value.startswith("data:") else value
        try:
            return base64.b64decode("".join(text.split()), validate=True)
        except (binascii.Error, ValueError):
            raise Invalid(Problem((), "not base64", value[:40], allowed)) from None

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_before_validator_function(
            lambda value: self.read(value) if isinstance(value, str) else value,
            handler(source),
            serialization=core_schema.plain_serializer_function_ser_schema(
                lambda data: base64.b64encode(data).decode(), when_used="json"
            ),
        )

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return {
            "type": "string",
            "contentEncoding": "base64",
            "contentMediaType": self.media_type,
            "maxLength": self.most_base64,
            **({} if self.example is None else {"examples": [self.example]}),
        }


def check_size(data: bytes, most: int) -> None:
    """Raises Invalid for a file of more bytes than it may have."""
    if len(data) > most:
        raise _too_large(f"{len(data):,} bytes", most)


def _too_large(found: str, most: int) -> Invalid:
    return Invalid(Problem((), "the file is too large", found, f"at most {most:,} bytes"))


def start_of(data: bytes) -> str:
    """How a file begins that nobody can read, as problems say it."""
    return f"{len(data)} bytes that start with {data[:12]!r}" if data else "no bytes"


# In columns


def each(
    files: pl.Series, work: Callable[[int, bytes], T], names: Iterable[str] | None = None
) -> list[T]:
    """What `work` makes of every file and its row.

    In threads: those who decode let other threads run while they do. Raises Invalid with the problems of all
    that were refused, by their `names`, or else at their `row`.
    """
    size = max(8, min(_CHUNK, -(-len(files) // _THREADS)))

    def run(start: int) -> list[T | Invalid]:
        part = enumerate(files.slice(start, size).to_list(), start)
        return [_outcome(work, row, data) for row, data in part]

    starts = range(0, len(files), size)
    if len(starts) < 2:
        return _sound([outcome for start in starts for outcome in run(start)], names)
    with ThreadPoolExecutor(_THREADS) as pool:
        return _sound([outcome for part in pool.map(run, starts) for outcome in part], names)


def _outcome(work: Callable[[int, bytes], T], row: int, data: bytes) -> T | Invalid:
    try:
        return work(row, data)
    except Invalid as error:
        return error


def _sound(outcomes: list[T | Invalid], names: Iterable[str] | None) -> list[T]:
    """The outcomes, if all are what was wanted. Raises Invalid."""
    places: Iterable[tuple[str | int, ...]]
    if names is None:
        places = (("row", row) for row in range(1, len(outcomes) + 1))
    else:
        places = ((name,) for name in names)
    sound, problems = [], list[Problem]()
    for place, outcome in zip(places, outcomes, strict=True):
        if isinstance(outcome, Invalid):
            problems += (p._replace(loc=(*place, *p.loc)) for p in outcome.problems)
        else:
            sound.append(outcome)
    if problems:
        raise Invalid(*problems)
    return sound
