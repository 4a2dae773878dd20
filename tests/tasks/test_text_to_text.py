"""Text to text: uploads, what is learned of them, how answers are asked for, and what they are worth."""

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch

from models.base import SENTENCE_END
from models.lstm_to_lstm import LSTMToLSTM
from tasks.base import Checked, DatasetOptions, Facts, Upload
from tasks.parts.problems import Invalid, Problem
from tasks.parts.vocabulary import BytePairs, Characters
from tasks.parts.written import score_texts, worst_texts
from tasks.text_to_text import TextToText, TextToTextCodec
from tasks.trained import Trained

PAIRS = [
    ("A red cat.", "Eine rote Katze."),
    ("안녕하세요 친구", "Hallo Freund"),
    ("שלום", "Frieden"),
]


def check(folder: Path, content: str, name: str = "file.csv", **options: Any) -> Checked:
    (folder / name).write_text(content, encoding="utf-8")
    return TextToText.check({"file": Upload(folder / name, name)}, DatasetOptions(**options))


def problems(folder: Path, content: str, name: str = "file.csv", **options: Any) -> list[Problem]:
    with pytest.raises(Invalid) as caught:
        check(folder, content, name, **options)
    return list(caught.value.problems)


def lines(*rows: Any) -> str:
    return "\n".join(map(json.dumps, rows))


@pytest.mark.parametrize(
    ("header", "mapping"),
    [
        ("source,target", {}),
        ("Text,Summary", {}),
        ("en,de", {}),
        ("english,german,x", {"source": "english", "target": "german"}),
    ],
)
def test_columns_are_found_by_mapping_usual_names_or_being_two(
    tmp_path: Path, header: str, mapping: dict[str, str]
) -> None:
    row = ",".join(["a dog", "ein Hund", "7"][: header.count(",") + 1])
    data = check(tmp_path, "\n".join([header, *[row] * 5]), column_mapping=mapping)
    assert data.splits["train"].rows()[0] == ("a dog", ["ein Hund"])


def test_columns_that_are_not_found_are_named(tmp_path: Path) -> None:
    found = problems(tmp_path, "a,b,c\n1,2,3\n")
    assert [p.loc for p in found] == [
        ("file", "options", "column_mapping", "source"),
        ("file", "options", "column_mapping", "target"),
    ]


def test_a_source_may_have_several_targets(tmp_path: Path) -> None:
    rows = [{"text": f"t{n}", "summaries": ["one", "two"]} for n in range(3)]
    rows += [{"text": "single", "summaries": "one"}] * 3
    data = check(tmp_path, lines(*rows), "file.jsonl")
    assert data.report["references"]["train"] == 2
    pl.concat(data.splits.values()).write_parquet(tmp_path / "again.parquet")
    again = Upload(tmp_path / "again.parquet", "again.parquet")
    assert TextToText.check({"file": again}, DatasetOptions()).report["references"]["train"] == 2


def test_every_line_without_a_text_is_named(tmp_path: Path) -> None:
    rows = [
        {"source": "a", "target": "b"},
        {"source": None, "target": "b"},
        {"source": "a", "target": " "},
        {"source": "", "target": "an empty source is a text"},
        {"source": "a"},
    ]
    found = problems(tmp_path, lines(*rows), "file.jsonl")
    assert [p.loc for p in found] == [
        ("file", "line", 2, "source"),
        ("file", "line", 3, "target"),
        ("file", "line", 5, "target"),
    ]


def test_an_empty_list_of_targets_is_none(tmp_path: Path) -> None:
    rows = [{"source": "a", "targets": ["b"]}, {"source": "a", "targets": []}]
    (found,) = problems(tmp_path, lines(*rows), "file.jsonl")
    assert (found.loc, found.msg) == (("file", "line", 2, "target"), "there is no target")


@pytest.mark.parametrize("targets", [["a", 3], [["a"]], {"a": 1}, ["\ud800"]])
def test_targets_that_are_no_texts_are_named(tmp_path: Path, targets: Any) -> None:
    rows = [{"source": "a", "targets": ["b"]}, {"source": "a", "targets": targets}]
    (found,) = problems(tmp_path, lines(*rows), "file.jsonl")
    assert found.loc == ("file", "line", 2, "targets")


def codec(pairs: list[tuple[str, str]] = PAIRS, **changed: Any) -> TextToTextCodec:
    frame = frame_of(pairs * 10)
    task = TextToText(**{"tokenizer": BytePairs(lowercase=False), **changed})
    _, schema, _ = TextToText.describe({"train": frame}, DatasetOptions())
    return task.resolve(Facts(schema, {"train": 30})).learn_codec(frame.lazy(), schema)


def frame_of(pairs: list[tuple[str, str]]) -> pl.DataFrame:
    return pl.DataFrame({"source": [a for a, _ in pairs], "targets": [[b] for _, b in pairs]})


@pytest.mark.parametrize("tokenizer", [BytePairs(lowercase=False), Characters(lowercase=False)])
def test_a_target_is_read_back_as_it_was(tokenizer: Any) -> None:
    words = codec(tokenizer=tokenizer)
    column = words.encode_targets([b for _, b in PAIRS])
    tokens, lengths = column.take(torch.arange(3))
    assert tokens[torch.arange(3), lengths - 1].tolist() == [SENTENCE_END] * 3
    ids = tokens.masked_fill(tokens == SENTENCE_END, 0)
    outputs = torch.cat([torch.ones(3, 1), ids], 1)
    assert [p.target for p in words.decode(outputs)] == [b for _, b in PAIRS]


def test_inputs_encode_as_their_frame_does() -> None:
    words = codec()
    inputs = words.read_inputs([{"source": a} for a, _ in PAIRS])
    mine, its = words.encode_inputs(inputs), words.encode(frame_of(PAIRS), targets=False)
    for one, other in zip(mine.inputs, its.inputs, strict=True):
        for name, tensor in one.tensors().items():
            assert torch.equal(tensor, other.tensors()[name])


def test_what_a_request_leaves_open_follows_from_the_targets() -> None:
    short, repeating = (
        codec(),
        codec([("a", "so und so und so und so und so und so und so und so")]),
    )
    assert short.no_repeat_ngram == 3
    assert repeating.no_repeat_ngram == 0
    assert short.usual_length < repeating.usual_length
    assert codec(num_beams=3).usual_choices(1)[0, 0] == 3


@pytest.mark.parametrize(
    ("value", "field"),
    [
        ({}, "source"),
        ({"source": 3}, "source"),
        ({"source": "\ud800"}, "source"),
        ({"source": "x" * 1_000_001}, "source"),
        ({"source": "a", "num_beams": 17}, "num_beams"),
        ({"source": "a", "max_new_tokens": 0}, "max_new_tokens"),
        ({"source": "a", "temperature": -1}, "temperature"),
        ({"source": "a", "top_p": 0}, "top_p"),
        ({"source": "a", "seed": 2**31}, "seed"),
        ({"source": "a", "beams": 2}, "beams"),
    ],
)
def test_wrong_inputs_are_named(value: Any, field: str) -> None:
    with pytest.raises(Invalid) as caught:
        codec().read_inputs([value])
    assert [p.loc for p in caught.value.problems] == [("inputs", 0, field)]


def test_any_text_gets_an_answer() -> None:
    torch.manual_seed(0)
    words = codec()
    task = TextToText(architecture=LSTMToLSTM(width=8))
    trained = Trained(task, words, task.build(words))
    texts = [
        "",
        "a",
        "cat " * 25_000,
        "🐈‍⬛🎉",
        "red שלום 안녕 مرحبا",
        "\x00\x07\x1b",
        "\u202e abc \ue002",
    ]
    inputs = words.read_inputs([{"source": text} for text in texts])
    found = trained.predict(inputs)
    assert len(found) == len(texts)
    assert all(0 <= p.score <= 1 for p in found)


def test_a_base_brings_its_vocabulary() -> None:
    base = codec()
    frame = frame_of([("other", "words")] * 10)
    _, schema, _ = TextToText.describe({"train": frame}, DatasetOptions())
    task = TextToText(tokenizer=BytePairs(), max_length=8, max_target_length=8)
    assert task.learn_codec(frame.lazy(), schema, base).vocabulary == base.vocabulary


def test_texts_are_scored_as_published() -> None:
    # By rouge-score 0.1.2 without stemming, and sacreBLEU 2.6 on the command line.
    found = score_texts(["the cat sat on the mat"], [["a cat was sitting on the mat"]])
    assert found["rouge1"] == pytest.approx(61.538, abs=1e-3)
    assert found["rouge2"] == pytest.approx(36.364, abs=1e-3)
    assert found["rougeL"] == pytest.approx(61.538, abs=1e-3)
    assert found["exact_match"] == 0


def test_the_best_of_several_references_counts() -> None:
    found = score_texts(["a cat", "b"], [["a dog", "a  cat"], ["b"]])
    assert found == pytest.approx(
        dict.fromkeys(found, 100) | {"exact_match": 1, "bleu": 0, "rouge2": 50}
    )


@pytest.mark.parametrize("text", ["나는 학교에 갔습니다", "我昨天去了学校", "わたしは学校に行った"])
def test_texts_without_latin_letters_count(text: str) -> None:
    same = score_texts([text], [[text]])
    assert all(same[name] == pytest.approx(100) for name in ("bleu", "chrf", "rouge2", "rougeL"))
    close = score_texts([text[:-1]], [[text]])
    assert all(50 < close[name] < 100 for name in ("bleu", "chrf", "rouge1", "rougeL"))


def test_the_worst_answers_come_first() -> None:
    rows = [row["row"] for row in worst_texts(["good", "xyz", "goodly"], [["good"]] * 3)]
    assert rows == [1, 2, 0]
