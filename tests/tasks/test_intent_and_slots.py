"""Intents with slots: uploads, and what an evaluation says of both."""

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tasks.base import Checked, DatasetOptions, Upload
from tasks.intent_and_slots import IntentAndSlots, IntentPrediction
from tasks.parts.problems import Invalid

PLAY = {"text": "play jazz", "intent": "play", "tokens": ["play", "jazz"], "tags": ["O", "B-song"]}
BOOK = {"text": "book it", "intent": "book", "tokens": ["book", "it"], "tags": ["O", "O"]}


def check(folder: Path, rows: list[Any], name: str = "a.jsonl", **options: Any) -> Checked:
    (folder / name).write_text("\n".join(map(json.dumps, rows)))
    files = {"file": Upload(folder / name, name)}
    return IntentAndSlots.check(files, DatasetOptions(**options))


def problems(folder: Path, rows: list[Any], **options: Any) -> list[Any]:
    with pytest.raises(Invalid) as caught:
        check(folder, rows, **options)
    return [(p.loc, p.msg) for p in caught.value.problems]


def test_slots_come_as_tags_or_as_spans(tmp_path: Path) -> None:
    spans = [
        {"text": "play jazz", "intent": "play", "spans": [{"start": 5, "end": 9, "label": "song"}]},
        {"text": "book it", "intent": "book", "entities": [], "spans": []},
    ]
    found = [check(tmp_path, rows * 3) for rows in ([PLAY, BOOK], spans)]
    for data in found:
        assert data.schema["labels"] == ["book", "play"]
        assert data.schema["tags"] == ["O", "B-song"]
        assert data.report["classes"]["play"]["train"] == 2
    one, other = (pl.concat(data.splits.values()).sort("intent") for data in found)
    assert one["tags"].to_list() == other["tags"].to_list()


def test_a_text_without_intent_is_named(tmp_path: Path) -> None:
    rows = [PLAY, BOOK, {**PLAY, "intent": None}, {**PLAY, "intent": ""}]
    assert problems(tmp_path, rows) == [
        (("file", "line", 3, "intent"), "not a text"),
        (("file", "line", 4, "intent"), "not a text"),
    ]


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    rows = [{"tokens": ["a"], "tags": ["O"]}]
    [(loc, msg)] = problems(tmp_path, rows)
    assert loc == ("file", "options", "column_mapping", "intent")
    assert "name it here" in msg
    assert problems(tmp_path, [PLAY, BOOK], format="conll")[0][1] == "no format of this task"


def test_a_column_may_say_which_split_a_text_is_in(tmp_path: Path) -> None:
    rows = [
        {**row, "part": part} for part in ("train", "test", "train", "dev") for row in (PLAY, BOOK)
    ]
    data = check(tmp_path, rows, split={"by": "part"})
    assert {name: frame.height for name, frame in data.splits.items()} == {
        "train": 4,
        "validation": 2,
        "test": 2,
    }


def said(intent: str, *tags: str) -> IntentPrediction:
    scores = {"play": 0.75 if intent == "play" else 0.25}
    scores["book"] = 1 - scores["play"]
    return IntentPrediction.model_construct(intent=intent, scores=scores, tags=list(tags))


def test_a_frame_is_right_only_as_a_whole() -> None:
    examples = pl.DataFrame({"intent": ["play"] * 4, "tags": [["O", "B-song"]] * 4})
    predictions = [
        said("play", "O", "B-song"),
        said("book", "O", "B-song"),
        said("play", "B-song", "O"),
        said("play", "O"),
    ]
    found = IntentAndSlots().evaluate(predictions, examples)
    assert found["frame_accuracy"] == 1 / 4
    assert found["intent_accuracy"] == 3 / 4
    assert found["slot_recall"] == 2 / 4
    assert found["slot_precision"] == 2 / 3
    assert found["intents"]["confusion"]["counts"] == [[3, 1], [0, 0]]
    assert found["slots"]["per_class"]["song"]["support"] == 4
