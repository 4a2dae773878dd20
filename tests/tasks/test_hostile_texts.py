"""Texts that nobody expects are answered, learned from or refused by every task that reads texts or numbers."""

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import BaseModel, TypeAdapter
from pydantic_core import from_json, to_json

from models.parts.training import Training
from tasks.base import Checked, Facts, Upload, files_of
from tasks.catalog import resolve, tasks
from tasks.parts.problems import Invalid
from tests.api.serving_world import untrained

HALF = json.loads(r'"half \ud800 of a pair"')
TEXTS = {
    "nothing": "",
    "a space": " ",
    "spaces of other scripts": "\u00a0\u3000\u2003",
    "line breaks": "\n\r\n\u2028\u2029\x0b\x0c\x85",
    "one character": "a",
    "100,000 characters": "lorem ipsum " * 8_333 + "dolo",
    "100,000 characters without a space": "x" * 100_000,
    "a word of 10,000 characters": "w" * 10_000,
    "emoji of several parts": "👩‍👩‍👧‍👦 and 🏳️‍🌈 saw 👍🏽",
    "right to left with marks": "\u202eabc\u202c \u200fשלום\u200f مرحبا",
    "NUL": "a\0b",
    "escapes": "\x1b[31mred\x1b[0m \x07\x08\x7f",
    "half a surrogate pair": HALF,
    "a flood of accents": "Z" + "\u0335\u0300" * 2_000 + "algo",
    "an accent alone": "\u0301",
    "marks alone": "?!.,;:--()[]{}«»…",
    "a byte order mark": "\ufeffa\ufeff",
    "no characters": "\uffff\U0010ffff",
}


def depth(kind: Any) -> int | None:
    """In how many lists a field holds texts; None: it holds none."""
    schema = TypeAdapter(kind).json_schema()
    for way in schema.get("anyOf", [schema]):
        found = 0
        while way.get("type") == "array" and "items" in way:
            way, found = way["items"], found + 1
        if way.get("type") == "string":
            return found
    return None


def fields(name: str) -> dict[str, int]:
    """The fields of a task's inputs that hold texts, and in how many lists."""
    kind = tasks()[name].input_type
    found = untrained(name).trained.codec.input_fields(kind).items()
    return {
        field: at
        for field, holds in found
        if field not in files_of(kind) and (at := depth(holds)) is not None
    }


def asked(name: str, field: str, text: str) -> dict[str, Any]:
    """An input that says nothing else."""
    blank = untrained(name).trained.codec.blank()
    given = blank.model_dump() if isinstance(blank, BaseModel) else blank
    given = given if isinstance(given, dict) else {}
    of = tasks()[name].input_type.model_fields
    rest = {
        key: value
        for key, value in given.items()
        if value is not None and (key not in fields(name) or of[key].is_required())
    }
    value: Any = text
    for _ in range(fields(name)[field]):
        value = [value]
    return rest | {field: value}


FIELDS = [
    (name, field)
    for name, task in sorted(tasks().items())
    if not files_of(task.input_type)  # what is said beside a file says how it is to be read
    for field in fields(name)
]


def predicted(name: str, value: Any) -> Any:
    """The answer for an input of a model that has learned nothing, as its client reads it."""
    trained = untrained(name).trained
    (found,) = trained.predict(trained.codec.read_inputs([value]))
    assert type(found).model_validate_json(to_json(found)) == found
    return from_json(to_json(found))


def outcome(name: str, value: Any) -> Any:
    """The answer, or why there is none."""
    try:
        return predicted(name, value)
    except Invalid as error:
        return error


def test_tasks_on_texts_are_found_by_their_inputs() -> None:
    found = {name for name, _ in FIELDS}
    assert {name for name in tasks() if "text" in name} <= found
    assert {"search", "coreference", "token-classification", "tabular-regression"} <= found


@pytest.mark.parametrize("what", TEXTS)
@pytest.mark.parametrize(("name", "field"), FIELDS)
def test_a_text_is_answered_or_its_field_is_named(name: str, field: str, what: str) -> None:
    text = TEXTS[what]
    found = outcome(name, asked(name, field, text))
    if isinstance(found, Invalid):
        assert {problem.loc[:3] for problem in found.problems} == {("inputs", 0, field)}
        assert all(problem.msg for problem in found.problems)
        return
    for start, end, part in parts(found) if "tokens" in fields(name) else ():
        assert 0 <= start < end <= len(text) or not text
        assert text[start:end] == part


def parts(found: Any) -> Iterator[tuple[int, int, str]]:
    """The parts of its text that an answer names, and where it says that they are."""
    for start, token in zip(found.get("starts", ()), found.get("tokens", ()), strict=True):
        yield start, start + len(token), token
    for entity in found.get("entities", ()):
        yield entity["start"], entity["end"], entity["text"]


@pytest.mark.parametrize(("name", "field"), FIELDS)
def test_half_a_surrogate_pair_is_no_more_than_an_unknown_category(name: str, field: str) -> None:
    found = outcome(name, asked(name, field, HALF))
    if not isinstance(found, Invalid):
        assert name.startswith("tabular")
        assert found == predicted(name, asked(name, field, "never seen"))


# Uploads

RECORDS: dict[str, Callable[[str, int], dict[str, Any]]] = {
    "text-classification": lambda text, n: {"text": text, "label": "ab"[n % 2]},
    "text-generation": lambda text, n: {"text": text},
    "text-to-text": lambda text, n: {"source": text, "target": text},
    "search": lambda text, n: {"query": text, "text": f"{text} {n}"},
    "text-pair-classification": lambda text, n: {
        "premise": text,
        "hypothesis": text,
        "label": "ny"[n % 2],
    },
    "morphological-segmentation": lambda text, n: {"word": text, "morphemes": [text]},
    "token-classification": lambda text, n: {
        "tokens": [text, "sang"],
        "tags": ["B-b" if n % 2 else "B-a", "O"],
    },
    "intent-and-slots": lambda text, n: {
        "text": f"{text} and",
        "intent": "ab"[n % 2],
        "spans": [{"start": 0, "end": len(text), "label": "who"}],
    },
    "coreference": lambda text, n: {
        "sentences": [[text, "saw", text]],
        "clusters": [[[0, 0, 1], [0, 2, 3]]],
    },
    "tabular-classification": lambda text, n: {"a": n, "kind": text, "label": "ab"[n % 2]},
    "tabular-regression": lambda text, n: {"a": n, "kind": text, "price": 1.5 * n},
}
"""An example of each task with that text in it."""
OTHERWISE = {"series-forecast", "image-generation"}
"""Tasks whose inputs name a time or a label."""
PLAIN = 20
LEARNED = {what: text for what, text in TEXTS.items() if len(text) < 5_000}


def check(name: str, folder: Path, texts: list[str]) -> Checked:
    """A data set of plain examples, and behind them one for each of these texts."""
    texts = [*(f"word{n}" for n in range(PLAIN)), *texts]
    path, task = folder / "hostile.jsonl", tasks()[name]
    lines = (json.dumps(RECORDS[name](text, n)) for n, text in enumerate(texts))
    path.write_text("\n".join(lines))
    return task.check({"file": Upload(path, path.name)}, task.options_type())


def test_every_task_that_learns_from_texts_is_tried() -> None:
    assert set(RECORDS) == {name for name, _ in FIELDS} - OTHERWISE


@pytest.mark.parametrize("name", RECORDS)
def test_a_line_of_an_upload_is_accepted_or_named_and_learned_from(
    name: str, tmp_path: Path
) -> None:
    sound = []
    for text in LEARNED.values():
        try:
            check(name, tmp_path, [text])
            sound.append(text)
        except Invalid as error:
            for problem in error.problems:
                assert problem.loc[:3] == ("file", "line", PLAIN + 1)
                assert problem.msg
    assert len(sound) >= 8
    data = check(name, tmp_path, sound)
    facts = Facts(data.schema, {split: frame.height for split, frame in data.splits.items()})
    found = resolve(name, facts, None, Training(), None)
    torch.manual_seed(0)
    codec = found.task.learn_codec(data.splits["train"].lazy(), data.schema)
    columns, learner = codec.encode(data.splits["train"]), found.task.build(codec)
    learner.start(found.training, None, 1)
    learner.enter_epoch(0)
    first = max(0, columns.examples - len(sound))
    batch = columns.batch(torch.arange(first, columns.examples))
    assert torch.isfinite(learner.train_step(batch, 0))


@pytest.mark.parametrize("name", RECORDS)
def test_every_line_that_cannot_be_stored_is_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(Invalid) as caught:
        check(name, tmp_path, ["a\0b", "sound", HALF])
    lines = {problem.loc[2] for problem in caught.value.problems}
    assert lines == {PLAIN + 1, PLAIN + 3}
    for problem in caught.value.problems:
        assert "NUL" in f"{problem.msg} {problem.allowed}"


# Numbers

NUMBERS = {
    "NaN": math.nan,
    "infinity": math.inf,
    "minus infinity": -math.inf,
    "near the end of the scale": 1e308,
    "beyond single precision": -1e39,
    "near nothing": 1e-320,
    "a whole number of 400 digits": 10**400,
    "true": True,
    "null": None,
    "an empty list": [],
    "a list of an empty list": [[]],
    "a list in a list": [[[1.0]]],
    "an object": {"a": 1},
}
NUMERIC = {
    "series-classification": ("series", lambda value: [[value, 1.0]] * 3),
    "series-forecast": ("history", lambda value: [value] * 20),
    "tabular-classification": ("length", lambda value: value),
    "tabular-regression": ("size", lambda value: value),
}
"""Tasks that read numbers, in which field, and how a value is given there."""


@pytest.mark.parametrize("what", NUMBERS)
@pytest.mark.parametrize("name", NUMERIC)
def test_a_number_is_answered_with_finite_ones_or_its_field_is_named(name: str, what: str) -> None:
    field, given = NUMERIC[name]
    found = outcome(name, {field: given(NUMBERS[what])})
    if isinstance(found, Invalid):
        assert {problem.loc[:3] for problem in found.problems} == {("inputs", 0, field)}
    else:
        assert all(map(math.isfinite, numbers(found)))


def numbers(found: Any) -> Iterator[float]:
    """Every number of an answer."""
    if isinstance(found, dict | list):
        for part in found.values() if isinstance(found, dict) else found:
            yield from numbers(part)
    elif isinstance(found, float):
        yield found


@pytest.mark.parametrize("name", [name for name in NUMERIC if name.startswith("series")])
@pytest.mark.parametrize("values", [[], [[]], [1.0, [2.0]], [[1.0] * 9_999], [1.0] * 1_000_000])
def test_a_series_of_no_such_shape_is_refused(name: str, values: list[Any]) -> None:
    field, _ = NUMERIC[name]
    with pytest.raises(Invalid) as caught:
        untrained(name).trained.codec.read_inputs([{field: values}])
    assert {problem.loc[:3] for problem in caught.value.problems} == {("inputs", 0, field)}


@pytest.mark.parametrize("number", ["NaN", "1e400", "1e308", "9" * 400, "[]", "null", '"x"'])
def test_a_line_of_a_series_is_accepted_or_named(number: str, tmp_path: Path) -> None:
    line = '{"values": [[1, 2], [3, %s]], "label": "%s"}'
    lines = [line % (4, "ab"[n % 2]) for n in range(PLAIN)]
    path, task = tmp_path / "hostile.jsonl", tasks()["series-classification"]
    path.write_text("\n".join([*lines, line % (number, "a"), *lines]))
    with pytest.raises(Invalid) as caught:
        task.check({"file": Upload(path, path.name)}, task.options_type())
    assert [problem.loc[:3] for problem in caught.value.problems] == [("file", "line", PLAIN + 1)]
