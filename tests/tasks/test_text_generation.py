"""Text generation: uploads, lossless tokens, what a text's probability is, and what is written."""

import json
import math
import zipfile
from collections.abc import Mapping
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch

from models.base import CausalEncoder
from models.lstm import LSTM
from models.parts.language import LanguageModel
from models.parts.options import AUTO
from models.parts.training import Training
from models.transformer import Transformer
from tasks.base import Checked, DatasetOptions, Facts, Upload
from tasks.catalog import resolve
from tasks.parts import passages
from tasks.parts.problems import Invalid
from tasks.parts.vocabulary import ByteLevelPairs, Bytes, Lossless, Vocabulary
from tasks.text_classification import TextClassification
from tasks.text_generation import (
    TextGeneration,
    write,
)
from tasks.trained import Trained

HARD = [
    "",
    "a",
    "x" * 100_000,
    "🙂🇰🇷 \N{WOMAN}\N{ZERO WIDTH JOINER}\N{WOMAN}",
    "שלום عالم",
    "가나다 ABC 漢字",
    "\0\x07\r\n\t",
    "<padding>\ue002 <unknown>",
]
STORY = "Once there was a king. He had a cat.\nThe cat 고양이 had a king!  Or so it thought. " * 40


def check(folder: Path, files: Mapping[str, str | bytes], **options: Any) -> Checked:
    """`files` by split: a name's suffix, and its content."""
    uploads = {}
    for number, (name, content) in enumerate(files.items()):
        split, _, suffix = name.partition(".")
        path = folder / f"{number}.{suffix}"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        uploads[split] = Upload(path, f"{split}.{suffix}")
    return TextGeneration.check(uploads, DatasetOptions.model_validate(options))


def refused(
    folder: Path, files: Mapping[str, str | bytes], **options: Any
) -> list[tuple[Any, ...]]:
    with pytest.raises(Invalid) as caught:
        check(folder, files, **options)
    return [problem.loc for problem in caught.value.problems]


def packed(files: Mapping[str, bytes], path: Path) -> bytes:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path.read_bytes()


# Uploads


def test_one_text_is_split_by_position_and_nothing_of_it_is_lost(tmp_path: Path) -> None:
    data = check(tmp_path, {"file.txt": STORY * 4})
    assert data.report["documents"]["validation"] >= 1
    assert sum(data.report["characters_in_all"].values()) == len(STORY) * 4
    whole = pl.concat(data.splits.values())
    assert sum(whole["text"].str.len_chars()) == len(STORY) * 4
    assert data.report["overlap"] is not None


@pytest.mark.parametrize("text", [STORY, "가나다라" * 500, "x" * 2_000, " " * 1_500, "🙂" * 700])
def test_passages_make_up_the_document_and_are_bounded(text: str) -> None:
    documents = pl.DataFrame({"document": ["d"], "text": [text], "ends": [True]})
    found = passages.passages(documents)
    assert "".join(found["text"]) == text
    assert found["text"].str.len_bytes().max() <= passages.PASSAGE  # type: ignore[operator]
    assert found["before"].to_list() == ["", *found["text"].to_list()[:-1]]
    assert found["ends"].to_list() == [False] * (found.height - 1) + [True]
    for start, part in found.select("start", "text").iter_rows():
        assert text[start : start + len(part)] == part


def test_files_of_an_archive_and_rows_of_a_table_are_documents(tmp_path: Path) -> None:
    texts = {f"books/{n}.txt": f"Book {n}. {STORY}".encode() for n in range(5)}
    data = check(tmp_path, {"file.zip": packed({**texts, ".DS_Store": b"\0"}, tmp_path / "z")})
    assert data.report["documents"] == {"train": 4, "validation": 1}
    lines = "\n".join(json.dumps({"story": f"Row {n}"}) for n in range(5))
    data = check(tmp_path, {"file.jsonl": lines}, column_mapping={"text": "story"})
    assert sum(data.report["documents"].values()) == 5
    assert set(data.splits["train"]["document"]) <= {f"line {n}" for n in range(1, 6)}


def test_bad_uploads_are_refused_by_file_and_line(tmp_path: Path) -> None:
    good = STORY.encode()
    assert refused(tmp_path, {"file.txt": ""}) == [("file",)]
    assert refused(tmp_path, {"file.txt": b"a\n\xff\nb\0\n"}) == [
        ("file", "line", 2),
        ("file", "line", 3),
    ]
    archive = packed({"a.txt": good, "b.txt": b"x\n\xc3("}, tmp_path / "z")
    assert refused(tmp_path, {"file.zip": archive}) == [("file", "b.txt", "line", 2)]
    assert refused(tmp_path, {"file.zip": packed({".x": b""}, tmp_path / "e")}) == [("file",)]
    rows = '{"text": "a"}\n{"text": null}\n{"text": "b"}\n{}\n'
    assert refused(tmp_path, {"file.jsonl": rows}) == [
        ("file", "line", 2, "text"),
        ("file", "line", 4, "text"),
    ]
    assert refused(tmp_path, {"file.csv": "a,b\n1,2\n"}) == [
        ("file", "options", "column_mapping", "text")
    ]
    assert refused(tmp_path, {"file.txt": good}, format="docx") == [("file", "format")]
    assert refused(tmp_path, {"train.txt": good, "validation.csv": 'text,x\n"",1\n'}) == [
        ("validation",)
    ]


# Tokens


@pytest.mark.parametrize("tokenizer", [Bytes(), ByteLevelPairs(size=300)])
@pytest.mark.parametrize("text", HARD)
def test_tokens_become_the_text_again(tokenizer: Lossless, text: str) -> None:
    vocabulary = Vocabulary(tokenizer=tokenizer.learn([STORY]), max_length=50)
    (ids,) = vocabulary.whole([text])
    assert vocabulary.text(ids) == text
    assert not {0, 1, 2} & {*ids}


# Models


def facts(data: Checked) -> Facts:
    return Facts(data.schema, {name: frame.height for name, frame in data.splits.items()})


@cache
def fitted(architecture: CausalEncoder) -> Trained:
    """A little language model of the story."""
    documents = pl.DataFrame({"document": ["d"], "text": [STORY], "ends": [True]})
    frame = passages.passages(documents)
    task = TextGeneration(
        architecture=architecture.one_way(), tokenizer=ByteLevelPairs(size=300), max_length=200
    )
    codec = task.learn_codec(frame.lazy(), {})
    torch.manual_seed(0)
    learner = task.build(codec)
    columns = codec.encode(frame)
    plan = Training(epochs=1, batch_size=8, seed=0).resolve(
        **task.defaults(Facts({}, {"train": frame.height}))
    )
    learner.start(plan, None, 80)
    learner.enter_epoch(0)
    for step in range(80):
        learner.train_step(columns.batch(torch.randint(columns.examples, (8,))), step)
    learner.eval()
    return Trained(task, codec, learner)


SMALL = [
    LSTM(embedding=32, width=64, dropout=0, bidirectional=False),
    Transformer(width=32, heads=2, layers=2, feedforward=64, dropout=0, causal=True),
]
each = pytest.mark.parametrize("architecture", SMALL, ids=["lstm", "transformer"])


def ask(trained: Trained, *inputs: Any) -> list[Any]:
    return trained.predict(trained.codec.read_inputs([*inputs]))


@each
def test_inputs_of_any_size_and_script_are_answered(architecture: CausalEncoder) -> None:
    for answer in ask(
        fitted(architecture), *({"prompt": text, "max_new_tokens": 3} for text in HARD)
    ):
        assert math.isfinite(answer.prompt_log_likelihood)
        assert answer.tokens <= 3
        assert answer.prompt_tokens < 200


@each
def test_a_seed_decides_what_is_written_whoever_is_beside(architecture: CausalEncoder) -> None:
    trained = fitted(architecture)
    asked = [
        {"prompt": prompt, "seed": seed, "max_new_tokens": 20, "top_k": 30, "top_p": 0.95}
        for seed, prompt in enumerate(["Once", "The cat had a king, and the king", "", "고양이"])
    ]
    together = ask(trained, *asked)
    assert [ask(trained, one)[0].text for one in asked] == [answer.text for answer in together]
    others = ask(trained, *({**one, "seed": 99} for one in asked))
    assert [a.text for a in others] != [a.text for a in together]
    unseeded = ask(trained, *[{"prompt": "Once", "max_new_tokens": 30}] * 2)
    assert unseeded[0].text != unseeded[1].text


@each
def test_what_is_kept_while_writing_changes_nothing(architecture: CausalEncoder) -> None:
    trained = fitted(architecture)
    learner, codec = trained.learner, trained.codec
    (given,) = codec.read_inputs([{"prompt": "Once there", "temperature": 0, "max_new_tokens": 12}])
    tokens, lengths, numbers, fractions = (
        codec.encode_inputs([given]).batch(torch.tensor([0])).inputs
    )
    assert isinstance(learner, LanguageModel)
    with torch.inference_mode():
        for token in learner.go_on(tokens, lengths, numbers, fractions):
            scores = learner(tokens, torch.tensor([tokens.shape[1]]))[0, -1]
            scores[:2] = -torch.inf
            assert int(token) == int(scores.argmax())
            tokens = torch.cat([tokens, token[:, None]], 1)


@each
def test_a_text_is_as_likely_as_its_parts_one_after_the_other(architecture: CausalEncoder) -> None:
    trained = fitted(architecture)
    ids = next(trained.codec.vocabulary.whole(["Once there was a king."]))
    texts = [trained.codec.vocabulary.text(ids[:n]) for n in range(len(ids) + 1)]
    found = ask(trained, *({"prompt": text, "max_new_tokens": 0} for text in texts))
    likelihoods = [answer.prompt_log_likelihood for answer in found]
    assert likelihoods[0] == 0
    assert all(later < earlier for earlier, later in pairwise(likelihoods))
    assert found[-1].prompt_characters == len("Once there was a king.")
    assert found[-1].text == ""


def test_every_character_is_scored_once_whatever_stands_before_it() -> None:
    trained = fitted(SMALL[0])
    documents = pl.DataFrame({"document": ["d"], "text": [STORY], "ends": [True]})
    examples = passages.passages(documents)
    predictions = trained.predictions(trained.codec.encode(examples))
    assert sum(p.prompt_characters for p in predictions) == len(STORY)
    metrics = trained.task.score(predictions, examples.drop("before", "text"))
    tokens = sum(p.prompt_tokens for p in predictions)
    nats = metrics["loss"] * tokens
    assert metrics["perplexity"] == pytest.approx(math.exp(nats / tokens))
    assert metrics["bits_per_character"] == pytest.approx(nats / math.log(2) / len(STORY))
    found = trained.task.evaluate(predictions, examples.drop("before", "text"))
    bits = [row["bits_per_character"] for row in found["worst_passages"]]
    assert bits == sorted(bits, reverse=True)
    assert found["worst_documents"][0]["document"] == "d"


@each
def test_pieces_make_up_what_is_predicted(architecture: CausalEncoder) -> None:
    trained = fitted(architecture)
    for stop in ([], ["king"], [" cat had", "고양"]):
        (given,) = trained.codec.read_inputs(
            [{"prompt": "The cat 고", "seed": 3, "max_new_tokens": 40, "stop": stop}]
        )
        (whole,) = trained.predict([given])
        pieces = [*write(trained, given)]
        assert "".join(piece.text for piece in pieces) == whole.text
        assert pieces[-1].finish_reason == whole.finish_reason
        assert not any(piece.finish_reason for piece in pieces[:-1])
        assert not any(end in whole.text for end in stop)


def test_no_more_is_written_than_the_model_can_look_back_at() -> None:
    (answer,) = ask(fitted(SMALL[1]), {"prompt": "Once", "max_new_tokens": 4_096, "temperature": 0})
    assert answer.tokens <= 199


def test_a_repetition_penalty_makes_texts_less_repetitive() -> None:
    asked = {"prompt": "Once there was", "temperature": 0, "max_new_tokens": 60}
    plain, varied = ask(fitted(SMALL[0]), asked, {**asked, "repetition_penalty": 3})
    assert len({*varied.text.split()}) / len(varied.text.split()) > len(
        {*plain.text.split()}
    ) / len(plain.text.split())


@pytest.mark.parametrize(
    ("value", "loc"),
    [
        ({}, ("inputs", 0, "prompt")),
        ({"prompt": "half \ud83d"}, ("inputs", 0, "prompt")),
        ({"prompt": "x" * 1_000_001}, ("inputs", 0, "prompt")),
        ({"prompt": "x", "max_new_tokens": 4_097}, ("inputs", 0, "max_new_tokens")),
        ({"prompt": "x", "temperature": -1}, ("inputs", 0, "temperature")),
        ({"prompt": "x", "top_p": 0}, ("inputs", 0, "top_p")),
        ({"prompt": "x", "stop": [""]}, ("inputs", 0, "stop", 0)),
        ({"prompt": "x", "seed": 2**31}, ("inputs", 0, "seed")),
    ],
)
def test_bad_inputs_are_refused_by_field(value: Any, loc: tuple[Any, ...]) -> None:
    with pytest.raises(Invalid) as caught:
        fitted(SMALL[0]).codec.read_inputs([value])
    assert caught.value.problems[0].loc == loc


# Bases


def test_a_request_reads_one_way_whatever_it_says(tmp_path: Path) -> None:
    data = check(tmp_path, {"file.txt": STORY * 3})
    task = TextGeneration(architecture=LSTM(bidirectional=True))
    spec = resolve("text-generation", facts(data), task, Training(), None)
    assert spec.task.architecture.bidirectional is False


def classified(tmp_path: Path) -> Checked:
    path = tmp_path / "rows.csv"
    path.write_text("\n".join(["text,label", *(f"a {w} day,{w}" for w in ["good", "bad"] * 20)]))
    return TextClassification.check({"file": Upload(path, "rows.csv")}, DatasetOptions())


@each
def test_a_classifier_can_start_from_a_language_model(
    architecture: CausalEncoder, tmp_path: Path
) -> None:
    base, data = fitted(architecture), classified(tmp_path)
    spec = resolve("text-classification", facts(data), None, Training(), None, base=base.task)
    codec = spec.task.learn_codec(data.splits["train"].lazy(), data.schema, base.codec)
    learner = spec.task.build(codec)
    learner.take_over(base.learner, head=spec.task.same_outputs(codec, base.codec))
    ours, theirs = learner.state_dict(), base.learner.state_dict()
    assert all(torch.equal(ours[n], t) for n, t in theirs.items() if n.startswith("backbone."))


def test_a_language_model_cannot_start_from_what_changes_texts(tmp_path: Path) -> None:
    classifier = resolve(
        "text-classification",
        facts(classified(tmp_path)),
        TextClassification(architecture=LSTM()),
        Training(),
        None,
    )
    data = check(tmp_path, {"file.txt": STORY * 3})
    with pytest.raises(Invalid, match="changes texts"):
        resolve("text-generation", facts(data), None, Training(), None, base=classifier.task)
    assert TextGeneration().tokenizer == AUTO
