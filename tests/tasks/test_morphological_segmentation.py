"""Morphological segmentation: uploads in every layout, words in any script, and how answers are counted."""

from pathlib import Path
from typing import Any
from unicodedata import normalize

import polars as pl
import pytest
import torch

from models.lstm_to_lstm import LSTMToLSTM
from tasks.base import Checked, DatasetOptions, Facts, Upload
from tasks.morphological_segmentation import (
    Morphemes,
    MorphologicalSegmentation,
    SegmentationCodec,
)
from tasks.parts.problems import Invalid, Problem
from tasks.text_to_text import TextToText
from tasks.trained import Trained

BARE = "unhappy\tun @@happy\t010\nwalks\twalk @@s\t100\ncats\tcat @@s\t100\n"
TAGGED = "먹었다\t먹/VV @@었/EP @@다/EF\n갔다\t가/VV @@았/EP @@다/EF\n집\t집/NNG\n"


def check(folder: Path, content: str, name: str = "file.tsv", **options: Any) -> Checked:
    (folder / name).write_text(content, encoding="utf-8")
    files = {"file": Upload(folder / name, name)}
    return MorphologicalSegmentation.check(files, DatasetOptions(**options))


def problems(folder: Path, content: str, name: str = "file.tsv", **options: Any) -> list[Problem]:
    with pytest.raises(Invalid) as caught:
        check(folder, content, name, **options)
    return list(caught.value.problems)


def codec(data: Checked) -> SegmentationCodec:
    facts = Facts(data.schema, {n: f.height for n, f in data.splits.items()})
    task = MorphologicalSegmentation().resolve(facts)
    return task.learn_codec(data.splits["train"].lazy(), data.schema)


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (BARE, "words.tsv"),
        (BARE.replace("\t010", "").replace("\t100", ""), "words.txt"),
        ("word,morphemes\nunhappy,un @@happy\nwalks,walk @@s\ncats,cat @@s\n", "words.csv"),
        ("word\tmorphemes\nunhappy\tun @@happy\nwalks\twalk @@s\ncats\tcat @@s\n", "words.tsv"),
        (
            '{"word": "unhappy", "morphemes": ["un", "happy"]}\n'
            '{"word": "walks", "morphemes": "walk @@s"}\n{"word": "cats", "morphemes": ["cat", "s"]}',
            "words.jsonl",
        ),
    ],
)
def test_every_layout_says_the_same(tmp_path: Path, content: str, name: str) -> None:
    data = check(tmp_path, content, name)
    rows = {row[0]: row[1] for frame in data.splits.values() for row in frame.iter_rows()}
    assert rows == {"unhappy": ["un", "happy"], "walks": ["walk", "s"], "cats": ["cat", "s"]}
    assert data.schema["tagged"] is False


def test_every_faulty_line_is_named(tmp_path: Path) -> None:
    found = problems(tmp_path, "cats\tcat @@s\nbroken\na\tb\tc\td\n")
    assert [p.loc for p in found] == [("file", "line", 2), ("file", "line", 3)]
    found = problems(tmp_path, f"cats\tcat @@ @@s\n\ta\n{'x' * 1001}\tx\n")
    assert [p.loc for p in found] == [
        ("file", "line", 1, "morphemes"),
        ("file", "line", 2, "word"),
        ("file", "line", 3, "word"),
    ]
    assert problems(tmp_path, "")[0].msg == "the file is empty"
    assert problems(tmp_path, BARE, format="conll")[0].loc == ("file", "format")
    (missing,) = problems(tmp_path, "word,parts\na,b\n", "file.csv")
    assert missing.loc == ("file", "options", "column_mapping", "morphemes")


def test_tags_are_found_where_the_data_has_them(tmp_path: Path) -> None:
    data = check(tmp_path, TAGGED * 2)
    assert data.schema["tagged"] is True
    words = codec(data)
    column = words.encode_targets(["가/VV 았/EP 다/EF"])
    ids = column.values[:-1][None]
    (found,) = words.decode(torch.cat([torch.full((1, 1), 0.5), ids], 1))
    assert found == Morphemes(morphemes=["가", "았", "다"], tags=["VV", "EP", "EF"], score=0.5)


def test_a_morpheme_without_the_tag_that_most_have_is_named(tmp_path: Path) -> None:
    found = problems(tmp_path, TAGGED * 2 + "밥을\t밥/NNG @@을\n", split={"fraction": 0.1})
    assert found[0].found == "을"
    assert found[0].loc[-1] == "morphemes"


def test_words_shared_by_splits_and_surface_words_are_reported(tmp_path: Path) -> None:
    (tmp_path / "train").write_text(BARE)
    (tmp_path / "test").write_text("cats\tcat @@s\n")
    files = {name: Upload(tmp_path / name, f"{name}.tsv") for name in ("train", "test")}
    data = MorphologicalSegmentation.check(files, DatasetOptions(split={"fraction": 0.34}))
    assert sum(data.report["overlap"].values()) == 1
    assert data.report["surface_share"] == 1


def test_syllables_are_taken_apart_and_put_together_again(tmp_path: Path) -> None:
    words = codec(check(tmp_path, TAGGED * 2))
    (lone, fused) = (next(words.vocabulary.whole([text])) for text in ("가", "갔"))
    assert fused[: len(lone)] == lone
    assert normalize("NFC", words.vocabulary.text(fused)) == "갔"


def test_answers_are_counted_as_bags_of_morphemes() -> None:
    task = MorphologicalSegmentation()
    examples = pl.DataFrame(
        {
            "word": ["cats", "unhappier", "hm"],
            "morphemes": [["cat", "s"], ["un", "happy", "er"], ["hm"]],
            "category": ["100", "110", None],
        }
    )
    answers = [["cat", "s"], ["un", "happier"], ["h", "m"]]
    predictions = [Morphemes(morphemes=parts, score=0.5) for parts in answers]
    found = task.evaluate(predictions, examples)
    assert (found["precision"], found["recall"]) == (3 / 6, 3 / 6)
    assert found["f1"] == 0.5
    assert found["word_accuracy"] == pytest.approx(1 / 3)
    assert set(found["per_class"]) == {"100", "110", "1 morphemes"}
    assert {row["word"] for row in found["worst"]} == {"unhappier", "hm"}


def test_any_word_gets_an_answer_and_others_are_named(tmp_path: Path) -> None:
    torch.manual_seed(0)
    words = codec(check(tmp_path, BARE * 3))
    task = MorphologicalSegmentation(architecture=LSTMToLSTM(width=8))
    trained = Trained(task, words, task.build(words))
    texts = ["", "a", "x" * 1000, "🐈‍⬛", "שלום", "\x00\x07", "two words", "under_score"]
    assert len(trained.predict(words.read_inputs([{"word": text} for text in texts]))) == 8
    for wrong in ({}, {"word": "\ud800"}, {"word": "x" * 1001}, {"word": 3}):
        with pytest.raises(Invalid) as caught:
            words.read_inputs([wrong])
        assert caught.value.problems[0].loc == ("inputs", 0, "word")


def test_inputs_encode_as_their_frame_does(tmp_path: Path) -> None:
    data = check(tmp_path, BARE * 3)
    words, frame = codec(data), data.splits["train"]
    inputs = words.read_inputs([{"word": word} for word in frame["word"]])
    mine, its = words.encode_inputs(inputs), words.encode(frame, targets=False)
    for one, other in zip(mine.inputs, its.inputs, strict=True):
        for name, tensor in one.tensors().items():
            assert torch.equal(tensor, other.tensors()[name])


def test_a_model_of_another_task_is_a_base(tmp_path: Path) -> None:
    data = check(tmp_path, BARE * 3)
    base = codec(data)
    frame = pl.DataFrame({"source": ["cats", "walks"], "targets": [["s"], ["unhappy"]]})
    _, schema, _ = TextToText.describe({"train": frame}, DatasetOptions())
    taken = MorphologicalSegmentation().resolve(Facts(data.schema, {"train": 6}))
    task = TextToText().on_base(taken).resolve(Facts(schema, {"train": 2}))
    words = task.learn_codec(frame.lazy(), schema, base)
    learner, before = task.build(words), taken.build(base)
    learner.take_over(before, head=task.same_outputs(words, base))
    for name, weight in before.state_dict().items():
        assert torch.equal(learner.state_dict()[name], weight)
