"""Texts: columns, tokenizers and requests."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.bag_of_embeddings import BagOfEmbeddings
from models.bag_of_ngrams import BagOfNgrams
from models.base import PADDING, SENTENCE_END, UNKNOWN
from models.text_cnn import TextCNN
from tasks.base import Checked, DatasetOptions, Facts, Upload
from tasks.parts.problems import Invalid, Problem
from tasks.parts.vocabulary import (
    SPECIAL,
    BytePairs,
    Characters,
    Tokenizer,
    Vocabulary,
    Words,
)
from tasks.text_classification import TextClassification, TextClassificationCodec

TEXTS = [
    "Hello world. How are you today? Fine!",
    "안녕하세요. 정말 좋은 영화 였어요!",
    "これは本です。とても面白い！",
    "A long text, with commas; and 3.5 stars...",
] * 3
every = pytest.mark.parametrize("tokenizer", [Words(), BytePairs(size=300), Characters()])


def vocabulary(tokenizer: Tokenizer, max_length: int = 64) -> Vocabulary:
    return Vocabulary(tokenizer=tokenizer.learn(TEXTS), max_length=max_length)


def ids(words: Vocabulary, text: str) -> list[int]:
    return next(words.ids([text]))


def check(folder: Path, content: str, **options: Any) -> Checked:
    (folder / "file").write_text(content)
    files = {"file": Upload(folder / "file", "file.csv")}
    return TextClassification.check(files, DatasetOptions(**options))


def problems(folder: Path, content: str, **options: Any) -> list[Problem]:
    with pytest.raises(Invalid) as caught:
        check(folder, content, **options)
    return list(caught.value.problems)


@every
def test_a_text_that_was_learned_has_only_known_tokens(tokenizer: Tokenizer) -> None:
    words = vocabulary(tokenizer)
    for text in TEXTS:
        found = ids(words, text)
        assert not {PADDING, UNKNOWN} & set(found)
        assert max(found) < words.size


@every
def test_what_was_never_seen_is_unknown(tokenizer: Tokenizer) -> None:
    assert UNKNOWN in ids(vocabulary(tokenizer), "\u4e80")


@every
@pytest.mark.parametrize("text", TEXTS[:3])
def test_a_sentence_ends_with_its_mark(tokenizer: Tokenizer, text: str) -> None:
    sentences = sum(text.count(mark) for mark in ".?!。！")
    assert ids(vocabulary(tokenizer), text).count(SENTENCE_END) == sentences
    assert ids(vocabulary(tokenizer), text)[-1] == SENTENCE_END


@every
@pytest.mark.parametrize(
    ("text", "ends"),
    [("3.5 stars", 0), ("wait...\n\nwhat", 1), ('"Fine." he said', 1), ("one\ntwo", 1), ("", 0)],
)
def test_only_ends_of_sentences_are_marked(tokenizer: Tokenizer, text: str, ends: int) -> None:
    assert ids(vocabulary(tokenizer), text).count(SENTENCE_END) == ends


@every
def test_nobody_can_write_a_special_token(tokenizer: Tokenizer) -> None:
    found = ids(vocabulary(tokenizer), f"a {SPECIAL[0]} b {SPECIAL[2]} c")
    assert PADDING not in found
    assert SENTENCE_END not in found


@every
def test_upper_case_spaces_and_unicode_forms_do_not_matter(tokenizer: Tokenizer) -> None:
    words = vocabulary(tokenizer)
    assert ids(words, "HELLO\t  world") == ids(words, "hello world")
    assert ids(words, "좋은") == ids(words, "\u110c\u1169\u11c2\u110b\u1173\u11ab")


@every
def test_learning_twice_gives_the_same_tokens(tokenizer: Tokenizer) -> None:
    assert tokenizer.learn(TEXTS) == tokenizer.learn(TEXTS)


@every
def test_a_vocabulary_keeps_to_its_size(tokenizer: Tokenizer) -> None:
    small = tokenizer.model_copy(update={"size": 20})
    assert vocabulary(small).size <= 20


@every
def test_long_texts_are_cut(tokenizer: Tokenizer) -> None:
    assert len(ids(vocabulary(tokenizer, 7), "Hello world. " * 100_000)) == 7


@every
def test_a_text_without_tokens_becomes_one_padding_token(tokenizer: Tokenizer) -> None:
    column = vocabulary(tokenizer).encode(["", "hello", " "])
    assert column.lengths.tolist()[0] == column.lengths.tolist()[2] == 1
    tokens, lengths = column.take(torch.tensor([0]))
    assert (tokens.tolist(), lengths.tolist()) == ([[PADDING]], [1])


@settings(max_examples=60, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_any_text_can_be_encoded(text: str) -> None:
    for words in LEARNED:
        found = ids(words, text)
        assert len(found) <= 64
        assert all(0 < token < words.size for token in found)


LEARNED = [vocabulary(tokenizer) for tokenizer in (Words(), BytePairs(size=300), Characters())]


@pytest.mark.parametrize(
    ("header", "mapping"),
    [
        ("text,label", {}),
        ("Review,Sentiment", {}),
        ("said,mood", {"text": "said", "label": "mood"}),
    ],
)
def test_columns_are_found_by_mapping_or_usual_names(
    tmp_path: Path, header: str, mapping: dict[str, str]
) -> None:
    content = f"{header}\n" + "good,1\nbad,0\n" * 10
    data = check(tmp_path, content, column_mapping=mapping)
    assert data.splits["train"].columns == ["text", "label"]
    assert data.schema["labels"] == ["0", "1"]


def test_columns_that_are_not_found_are_listed(tmp_path: Path) -> None:
    found = problems(tmp_path, "said,mood\ngood,1\nbad,0\n")
    assert [p.loc[-1] for p in found] == ["text", "label"]
    assert found[0].found == ["said", "mood"]


def test_words_for_missing_values_are_texts_and_labels_too(tmp_path: Path) -> None:
    data = check(tmp_path, "text,label\n" + "NA,none\nnull,some\n" * 10)
    assert data.schema["labels"] == ["none", "some"]
    assert set(data.splits["train"]["text"]) == {"NA", "null"}


def test_empty_texts_are_counted_and_missing_ones_refused(tmp_path: Path) -> None:
    data = check(tmp_path, "text,label\n" + '"",a\nx,b\n' * 10)
    assert sum(data.report["empty_texts"].values()) == 10
    (found,) = problems(tmp_path, '{"text": "x", "label": "a"}\n{"label": "b"}\n')
    assert (found.loc, found.msg) == (("file", "line", 2, "text"), "there is no text")


def test_the_same_text_in_two_splits_is_an_overlap_whatever_its_label(tmp_path: Path) -> None:
    rows = [f"text {i},{'ab'[i % 2]},{'train' if i < 8 else 'test'}" for i in range(10)]
    content = "\n".join(["text,label,part", *rows, "text 0,b,test"])
    data = check(tmp_path, content, split={"by": "part"})
    assert data.splits["test"].height == 3
    overlap = data.report["overlap"]
    assert overlap.get("train/test", 0) + overlap.get("validation/test", 0) == 1


@every
def test_what_is_left_open_is_chosen_by_the_lengths(tokenizer: Tokenizer, tmp_path: Path) -> None:
    data = check(tmp_path, "text,label\n" + "one two three four,a\nfive six,b\n" * 10)
    facts = Facts(data.schema, {"train": 16, "validation": 4})
    task = TextClassification(tokenizer=tokenizer).resolve(facts)
    words = task.learn_codec(data.splits["train"].lazy(), data.schema).vocabulary
    longest = max(map(len, words.ids(data.splits["train"]["text"])))
    assert 1 < longest <= task.max_length <= 512


def test_short_texts_are_runs_of_characters_and_long_ones_pieces_of_words(tmp_path: Path) -> None:
    data = check(tmp_path, "text,label\n" + "one two three four,a\nfive six,b\n" * 10)
    short = TextClassification().resolve(Facts(data.schema, data.report["examples"]))
    assert isinstance(short.architecture, BagOfNgrams)
    assert isinstance(short.tokenizer, Characters)
    measured = {**data.schema, "characters": {"median": 400, "p98": 513, "most": 600}}
    long = TextClassification().resolve(Facts(measured, data.report["examples"]))
    assert isinstance(long.architecture, TextCNN)
    assert isinstance(long.tokenizer, BytePairs)


def test_a_bag_of_ngrams_takes_the_tokenizer_that_is_asked_for(tmp_path: Path) -> None:
    data = check(tmp_path, "text,label\n" + "one two three four,a\nfive six,b\n" * 10)
    asked = TextClassification(tokenizer=Words())
    task = asked.resolve(Facts(data.schema, data.report["examples"]))
    assert isinstance(task.architecture, BagOfNgrams)
    assert task.tokenizer == Words()


@pytest.fixture(scope="module")
def codec() -> TextClassificationCodec:
    return TextClassificationCodec(labels=["a", "b"], counts=[1, 1], vocabulary=LEARNED[0])


@pytest.mark.parametrize(
    ("value", "loc"),
    [
        ({"text": 3}, ("text",)),
        ({}, ("text",)),
        ({"text": "x", "txt": "y"}, ("txt",)),
        ({"text": "x" * 1_000_001}, ("text",)),
        ({"text": "\ud800"}, ("text",)),
        ("just text", ()),
    ],
)
def test_wrong_inputs_are_named(codec: TextClassificationCodec, value: Any, loc: Any) -> None:
    with pytest.raises(Invalid) as caught:
        codec.read_inputs([value])
    assert caught.value.problems[0].loc == ("inputs", 0, *loc)


def test_inputs_encode_as_their_frame_does(codec: TextClassificationCodec) -> None:
    inputs = codec.read_inputs([{"text": "Hello world."}, {"text": ""}, {"text": "you"}])
    direct = codec.encode_inputs(inputs).inputs[0]
    framed = codec.encode(pl.DataFrame({"text": [i.text for i in inputs]}), targets=False).inputs[0]
    for name, tensor in direct.tensors().items():
        assert torch.equal(tensor, framed.tensors()[name])


def test_a_base_brings_its_vocabulary(codec: TextClassificationCodec, tmp_path: Path) -> None:
    data = check(tmp_path, "text,label\n" + "good,1\nbad,0\n" * 10)
    task = TextClassification(architecture=BagOfEmbeddings(), tokenizer=Words(), max_length=8)
    learned = task.learn_codec(data.splits["train"].lazy(), data.schema, codec)
    assert learned.vocabulary == codec.vocabulary
    assert learned.labels == ["0", "1"]
    assert not task.same_outputs(learned, codec)
