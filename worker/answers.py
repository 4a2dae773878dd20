"""What a batch prediction says of each input: as a row of a table, and as a line of JSON."""

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import reduce
from operator import or_
from types import NoneType
from typing import Any, Literal, NamedTuple, get_args, get_origin

import polars as pl
from pydantic import BaseModel
from pydantic_core import to_json, to_jsonable_python

from tasks.base import Codec, files_of
from tasks.parts.columns import Columns
from tasks.parts.inputs import entries, read_entry
from tasks.parts.problems import Invalid, Problem
from tasks.trained import Trained

_SCALARS: Mapping[Any, Any] = {
    str: pl.String,
    bytes: pl.String,  # base64, as in JSON
    int: pl.Int64,
    float: pl.Float64,
    bool: pl.Boolean,
}


class Piece(NamedTuple):
    """Consecutive inputs, as far as they can be read."""

    names: Sequence[str | None]
    """Their files' names, where they came as files."""
    sound: Sequence[int]
    """The places in the piece of those that were read, whose `columns` these are."""
    columns: Columns | None
    inputs: Sequence[Any]
    """Those that were read, as far as it takes to complete their predictions."""
    faults: Mapping[int, Sequence[Problem]]
    """What is wrong with each of the others, by its place."""


class Answer(NamedTuple):
    """A prediction, or why there is none."""

    row: int
    """The input's place among all, counted from 0."""
    file: str | None
    prediction: BaseModel | None
    problems: Sequence[Problem]


def of_inputs(frame: pl.DataFrame, trained: Trained, start: int) -> Piece:
    """A piece of a file that was sent with the request."""
    names, inputs, sound, faults = [], [], [], {}
    for place, entry in enumerate(entries(frame)):
        names.append(entry.name)
        try:
            inputs.append(read_entry(entry, trained.codec, trained.task.input_type))
            sound.append(place)
        except Invalid as error:
            faults[place] = error.problems
    columns = trained.codec.encode_inputs(inputs) if inputs else None
    return Piece(names, sound, columns, inputs, faults)


def of_examples(frame: pl.DataFrame, trained: Trained, start: int) -> Piece:
    """A piece of a data set, `start` examples after its beginning; the targets are not looked at."""
    are_files = bool(files_of(trained.task.input_type)) and "name" in frame.columns
    names = frame["name"].to_list() if are_files else [None] * frame.height
    codec = trained.codec
    try:
        whole = codec.encode(frame, targets=False)
        return Piece(names, range(frame.height), whole, codec.given(frame), {})
    except Invalid:
        faults = dict(_faults(frame, codec, start))
    sound = [place for place in range(frame.height) if place not in faults]
    readable = frame[sound]
    columns = codec.encode(readable, targets=False) if sound else None
    return Piece(names, sound, columns, codec.given(readable), faults)


def _faults(
    frame: pl.DataFrame, codec: Codec, start: int
) -> Iterator[tuple[int, Sequence[Problem]]]:
    """The examples that the codec cannot read, by their places; each is tried alone."""
    for place in range(frame.height):
        try:
            codec.encode(frame.slice(place, 1), targets=False)
        except Invalid as error:
            yield place, [_at(start + place, problem) for problem in error.problems]


def _at(row: int, problem: Problem) -> Problem:
    inner = problem.loc[2:] if problem.loc[:1] == ("row",) else problem.loc
    return problem._replace(loc=("row", row, *inner))


def answering(piece: Piece, trained: Trained, start: int) -> Iterator[list[Answer] | None]:
    """At last an answer for each input; until then None after each batch, so that others are heard."""
    found: list[Any] = []
    if piece.columns is not None:
        for predictions in trained.answering(piece.columns):
            yield None
            found = predictions or found
        found = trained.codec.complete(found, piece.inputs)
    predicted = dict(zip(piece.sound, found, strict=True))
    yield [
        Answer(start + place, name, predicted.get(place), piece.faults.get(place, ()))
        for place, name in enumerate(piece.names)
    ]


def schema_of(prediction_type: type[BaseModel]) -> dict[str, Any]:
    """The columns of a table of answers.

    A prediction's fields are columns of their own: text, numbers and truth values as such, all else as
    JSON. `errors` is JSON too.
    """
    fields = prediction_type.model_fields
    plain = {
        name: _SCALARS.get(_sole(field.annotation), pl.String) for name, field in fields.items()
    }
    return {"row": pl.Int64, "file": pl.String, **plain, "errors": pl.String}


def table(answers: Sequence[Answer], prediction_type: type[BaseModel]) -> pl.DataFrame:
    """Answers in the columns of `schema_of`."""
    packed = _packed(prediction_type)
    rows = []
    for answer in answers:
        row: dict[str, Any] = {"row": answer.row, "file": answer.file}
        if answer.prediction is None:
            row["errors"] = _json(errors_of(answer.problems))
        else:
            values = to_jsonable_python(answer.prediction)
            row |= {n: _json(v) if n in packed and v is not None else v for n, v in values.items()}
        rows.append(row)
    return pl.DataFrame(rows, schema=schema_of(prediction_type))


def lines(answers: pl.DataFrame, prediction_type: type[BaseModel]) -> Iterator[bytes]:
    """A table's rows as lines of JSON, a prediction in each as a request gets it."""
    packed, fields = _packed(prediction_type), list(prediction_type.model_fields)
    for row in answers.iter_rows(named=True):
        line: dict[str, Any] = {"row": row["row"]}
        if row["file"] is not None:
            line["file"] = row["file"]
        if row["errors"] is not None:
            line["errors"] = json.loads(row["errors"])
        else:
            line["prediction"] = {
                n: json.loads(row[n]) if n in packed and row[n] is not None else row[n]
                for n in fields
            }
        yield to_json(line, inf_nan_mode="null") + b"\n"


def errors_of(problems: Sequence[Problem]) -> list[dict[str, Any]]:
    """Problems as a problem document lists them."""
    return [problem._asdict() for problem in problems]


def _packed(prediction_type: type[BaseModel]) -> set[str]:
    """The fields of a prediction that a table holds as JSON."""
    fields = prediction_type.model_fields
    return {name for name, field in fields.items() if _sole(field.annotation) not in _SCALARS}


def _sole(annotation: Any) -> Any:
    """What a value is if it is there."""
    if get_origin(annotation) is Literal:
        annotation = reduce(or_, map(type, get_args(annotation)))
    kinds = [kind for kind in get_args(annotation) if kind is not NoneType]
    return kinds[0] if len(kinds) == 1 and NoneType in get_args(annotation) else annotation


def _json(value: Any) -> str:
    return to_json(value, inf_nan_mode="null", fallback=str).decode()
