"""Tags: files, schemes, chains, spans in any script, metrics, and what a base hands on."""

import itertools
import json
import random
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from seqeval import metrics as seqeval

from models.lstm import LSTM
from models.parts import chains
from models.parts.training import Training
from models.text_cnn import TextCNN
from tasks.base import Checked, DatasetOptions, Facts, Upload
from tasks.catalog import resolve
from tasks.parts.problems import Invalid, Problem
from tasks.parts.sentences import cut, starts_in
from tasks.parts.tags import (
    Span,
    TagsCodec,
    TagsPrediction,
    evaluate_tags,
    score_tags,
    span_tags,
    spans_of,
)
from tasks.text_classification import TextClassification
from tasks.token_classification import TokenClassification
from tasks.trained import Trained
from tests.toys import toy

CONLL = "Ada\tB-person\nLovelace\tI-person\nwas\tO\n\nin\tO\nLondon\tB-place\n\n"


def check(folder: Path, content: str, name: str = "file.conll", **options: Any) -> Checked:
    (folder / name).write_text(content, encoding="utf-8")
    files = {"file": Upload(folder / name, name)}
    return TokenClassification.check(files, DatasetOptions(**options))


def whole(data: Checked) -> pl.DataFrame:
    return pl.concat(data.splits.values())


def problems(folder: Path, content: str, name: str = "file.conll", **options: Any) -> list[Problem]:
    with pytest.raises(Invalid) as caught:
        check(folder, content, name, **options)
    return list(caught.value.problems)


def conll(*sentences: str) -> str:
    """Sentences of word/tag pairs, each twice so that there is something to hold out."""
    pairs = ["\n".join(pair.replace("/", "\t") for pair in s.split()) for s in sentences]
    return "\n\n".join(pairs * 2)


# Files


def test_sentences_of_conll_lie_between_blank_lines(tmp_path: Path) -> None:
    data = check(tmp_path, "-DOCSTART-\tO\n\n# id 1\n" + CONLL)
    found = whole(data).sort(pl.col("tokens").list.len())
    assert found["tokens"].to_list() == [["in", "London"], ["Ada", "Lovelace", "was"]]
    assert found["tags"].to_list() == [["O", "B-place"], ["B-person", "I-person", "O"]]
    assert data.report["scheme"] == "BIO"


def test_a_hash_sign_can_be_a_token(tmp_path: Path) -> None:
    data = check(tmp_path, "#\tO\nAda\tB-person\n\n#tag\tO\nAda\tB-person\n\n")
    assert sorted(tokens[0] for tokens in whole(data)["tokens"]) == ["#", "#tag"]


def test_comments_before_the_first_token_and_a_brace_as_such_are_read(tmp_path: Path) -> None:
    data = check(tmp_path, "# newdoc\n{\tO\nAda\tB-person\n\n{\tO\nAda\tB-person\n\n")
    assert data.splits["train"]["tokens"].to_list() == [["{", "Ada"]]


def test_columns_of_conll_can_be_chosen(tmp_path: Path) -> None:
    content = "1 Ada NNP B-person\n2 sings VBZ O\n\n1 He PRP O\n2 is VBZ O\n"
    data = check(tmp_path, content, column_mapping={"tokens": "2", "tags": "3"})
    assert data.schema["tags"] != []
    assert sorted(whole(data)["tokens"].to_list()) == [["Ada", "sings"], ["He", "is"]]
    assert data.report["scheme"] == "plain"


def conllu(folder: Path, **options: Any) -> Checked:
    rows = ["1-2\tdon't", "1\tdo\tdo\tAUX\tVBP", "2\tn't\tnot\tPART\tRB", "2.1\tit\tit\tPRON\tPRP"]
    lines = ["\t".join([*row.split("\t"), *"_" * 10][:10]) for row in rows]
    return check(folder, ("# text = don't\n" + "\n".join(lines) + "\n\n") * 2, "a.txt", **options)


def test_ranges_and_empty_nodes_of_conllu_are_skipped(tmp_path: Path) -> None:
    data = conllu(tmp_path)
    assert data.schema["tags"] == ["AUX", "PART"]
    assert data.splits["train"]["tokens"].to_list() == [["do", "n't"]]
    assert conllu(tmp_path, column_mapping={"tags": "xpos"}).schema["tags"] == ["RB", "VBP"]


@pytest.mark.parametrize(
    ("content", "line", "msg"),
    [
        ("a\tO\nb\nc\tO\tO\n", 2, "wrong number of columns"),
        ("a\nb\n", 1, "no column for tags"),
        (CONLL + "x\tBperson\n", 8, "not a tag of a span, as most others are"),
        ("a\tN\nb\t\n\nc\tV\n", 2, "the tag is empty"),
    ],
)
def test_faults_of_conll_are_named_by_line(
    tmp_path: Path, content: str, line: int, msg: str
) -> None:
    found = [p for p in problems(tmp_path, content) if line in p.loc]
    assert found[0].msg == msg


@pytest.mark.parametrize(
    ("row", "key", "msg"),
    [
        ({"tokens": ["a"], "tags": ["O", "O"]}, "tags", "not as many tags as tokens"),
        ({"tokens": "a b", "tags": ["O", "O"]}, "tokens", "not a list of texts"),
        ({"tokens": ["a", 3], "tags": ["O", "O"]}, "tokens", "not a list of texts"),
        ({"tokens": ["\ud800"], "tags": ["O"]}, "tokens", "not a list of texts"),
    ],
)
def test_faults_of_token_lists_are_named(tmp_path: Path, row: Any, key: str, msg: str) -> None:
    good = json.dumps({"tokens": ["Ada"], "tags": ["B-person"]})
    found = problems(tmp_path, f"{good}\n{json.dumps(row)}\n{good}", "a.jsonl")
    assert [(p.loc, p.msg) for p in found] == [(("file", "line", 2, key), msg)]


@pytest.mark.parametrize(
    ("spans", "msg"),
    [
        ([{"start": 0, "end": 99, "label": "x"}], "not a span of the text"),
        ([{"start": 3, "end": 4, "label": "x"}], "not a span of the text"),
        ([{"start": 0, "end": True, "label": "x"}], "not a span of the text"),
        ([{"start": 0, "end": 2, "label": ""}], "not a span of the text"),
        ([3], "not a span of the text"),
        (3, "not a list"),
        (
            [{"start": 0, "end": 3, "label": "x"}, {"start": 1, "end": 5, "label": "y"}],
            "two spans have a token in common",
        ),
    ],
)
def test_faults_of_spans_are_named(tmp_path: Path, spans: Any, msg: str) -> None:
    good = json.dumps({"text": "Ada is", "spans": [{"start": 0, "end": 3, "label": "x"}]})
    row = json.dumps({"text": "Ada is", "spans": spans})
    found = problems(tmp_path, f"{good}\n{row}\n{good}", "a.jsonl")
    assert [p.msg for p in found] == [msg]
    assert found[0].loc[:4] == ("file", "line", 2, "spans")


def test_everything_wrong_in_a_file_is_told_at_once(tmp_path: Path) -> None:
    rows = [{"tokens": ["a"], "tags": []}] * 3 + [{"tokens": 3, "tags": ["O"]}]
    found = problems(tmp_path, "\n".join(map(json.dumps, rows)), "a.jsonl")
    assert [p.loc[2] for p in found] == [1, 2, 3, 4]


def test_parquet_reads_as_json_lines(tmp_path: Path) -> None:
    frame = pl.DataFrame({"tokens": [["Ada", "is"], ["He"]], "tags": [["B-p", "O"], ["B-p"]]})
    frame.write_parquet(tmp_path / "a.parquet")
    files = {"file": Upload(tmp_path / "a.parquet", "a.parquet")}
    found = whole(TokenClassification.check(files, DatasetOptions()))
    assert sorted(found["tokens"].to_list()) == [["Ada", "is"], ["He"]]


def test_one_tag_is_nothing_to_learn(tmp_path: Path) -> None:
    assert problems(tmp_path, "a\tN\n\nb\tN\n")[0].msg == "one tag only"


# Schemes


@pytest.mark.parametrize(
    ("scheme", "sentence"),
    [
        ("BIO", "a/B-x b/I-x c/B-x d/O e/B-y"),
        ("IOB1", "a/I-x b/I-x c/B-x d/O e/I-y"),
        ("BIOES", "a/B-x b/E-x c/S-x d/O e/S-y"),
        ("BIOES", "a/B-x b/L-x c/U-x d/O e/U-y"),
    ],
)
def test_every_scheme_becomes_the_same_spans(tmp_path: Path, scheme: str, sentence: str) -> None:
    data = check(tmp_path, conll(sentence))
    assert data.report["scheme"] == scheme
    assert data.splits["train"]["tags"][0].to_list() == ["B-x", "I-x", "B-x", "O", "B-y"]
    assert data.report["repaired"]["train"]["count"] == 0


def test_spans_that_begin_in_the_middle_are_repaired_and_counted(tmp_path: Path) -> None:
    data = check(tmp_path, conll("a/B-x b/O c/I-x d/I-y e/I-y"))
    assert data.splits["train"]["tags"][0].to_list() == ["B-x", "O", "B-x", "B-y", "I-y"]
    assert data.report["repaired"]["train"]["count"] == 2
    assert data.report["labels"] == {
        "x": {"train": 2, "validation": 2},
        "y": {"train": 1, "validation": 1},
    }


def test_spans_and_tags_are_the_same_thing() -> None:
    spans = [Span("x", 0, 2), Span("x", 2, 3), Span("y", 4, 5)]
    tags = ["B-x", "I-x", "B-x", "O", "B-y", "O"]
    assert span_tags(spans, 6) == tags
    assert spans_of(tags) == spans


# Texts


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("I'm in U.S. 5km", ["I", "'", "m", "in", "U", ".", "S", ".", "5km"]),
        ("서울에 갔다.", ["서", "울", "에", "갔", "다", "."]),
        ("これは本", ["こ", "れ", "は", "本"]),
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("مرحبا بالعالم", ["مرحبا", "بالعالم"]),
        ("👩‍👩‍👧 ok\x07", ["👩‍👩‍👧", "ok", "\x07"]),
        (" \n", []),
    ],
)
def test_texts_of_any_script_are_cut(text: str, tokens: list[str]) -> None:
    assert cut(text, syllables=True) == tokens
    places = starts_in(text, tokens)
    assert [text[at:][: len(t)] for at, t in zip(places, tokens, strict=True)] == tokens


def test_spans_of_korean_may_end_within_a_word(tmp_path: Path) -> None:
    row = {"text": "나는 서울에 갔다", "spans": [{"start": 3, "end": 5, "label": "place"}]}
    data = check(tmp_path, "\n".join([json.dumps(row)] * 3), "a.jsonl")
    tags = dict(
        zip(data.splits["train"]["tokens"][0], data.splits["train"]["tags"][0], strict=True)
    )
    assert [tags[t] for t in "서울에"] == ["B-place", "I-place", "O"]


# Chains, beside all sequences one by one


def test_chains_agree_with_counting_all_sequences(seed: int) -> None:
    torch.manual_seed(seed)
    counts, size = torch.tensor([4, 1, 3]), 3
    potentials = torch.randn(3, 4, size, size, dtype=torch.float64)
    potentials[:, 0] = potentials[:, 0, :1].expand(-1, size, -1)
    tags = torch.randint(size, (3, 4))
    found = chains.log_likelihood(potentials, tags, counts)
    best, marginals = chains.best(potentials, counts), chains.marginals(potentials, counts)
    for row, count in enumerate(counts.tolist()):
        every = list(itertools.product(range(size), repeat=count))
        worth = torch.stack([_worth(potentials[row], chosen) for chosen in every])
        likely = worth.softmax(0)
        assert tuple(best[row, :count].tolist()) == every[int(worth.argmax())]
        mine = every.index(tuple(tags[row, :count].tolist()))
        torch.testing.assert_close(found[row], likely[mine].log())
        for place, tag in itertools.product(range(count), range(size)):
            sums = sum(p for p, chosen in zip(likely, every, strict=True) if chosen[place] == tag)
            torch.testing.assert_close(marginals[row, place, tag], torch.as_tensor(sums))


def _worth(potentials: torch.Tensor, tags: tuple[int, ...]) -> torch.Tensor:
    steps = zip((0, *tags), tags, strict=False)
    return sum(
        (potentials[place, before, tag] for place, (before, tag) in enumerate(steps)),
        torch.zeros((), dtype=potentials.dtype),
    )


# Models


def learned(folder: Path, **fields: Any) -> tuple[Trained, Checked]:
    """An untrained model for the toy."""
    data = TokenClassification.check(toy("token-classification", folder, 20), DatasetOptions())
    facts = Facts(data.schema, {name: f.height for name, f in data.splits.items()})
    task = TokenClassification(**fields)
    task = resolve("token-classification", facts, task, Training(), None).task  # type: ignore[assignment]
    codec = task.learn_codec(data.splits["train"].lazy(), data.schema)
    torch.manual_seed(0)
    return Trained(task, codec, task.build(codec)), data


@pytest.mark.parametrize("decoding", ["crf", "greedy"])
@pytest.mark.parametrize("architecture", [LSTM(), TextCNN()])
def test_whatever_is_predicted_its_spans_are_whole(
    tmp_path: Path, decoding: str, architecture: Any
) -> None:
    trained, _ = learned(tmp_path, decoding=decoding, architecture=architecture)
    draw = random.Random(0)
    sentences = [[draw.choice(["we", "Ka", "in", "?"]) for _ in range(12)] for _ in range(20)]
    with torch.no_grad():
        for weight in trained.learner.parameters():
            weight.mul_(5)
    read = trained.codec.read_inputs([{"tokens": tokens} for tokens in sentences])
    kinds = set()
    for prediction in trained.predict(read):
        tags = prediction.tags
        kinds |= set(tags)
        assert span_tags(spans_of(tags), len(tags)) == tags
        assert [e.label for e in prediction.entities] == [s.label for s in spans_of(tags)]
    assert len(kinds) > 1


HARD = [
    "",
    "a",
    "x" * 100_000,
    "가 " * 50_000,
    "👩‍👩‍👧🇰🇷",
    "مرحبا hello 世界",
    "\x00\x07\u202e",
    "e\u0301" * 9,
]


@pytest.mark.parametrize("text", HARD, ids=range(len(HARD)))
def test_any_text_gets_an_answer_that_fits_it(tmp_path: Path, text: str) -> None:
    trained, _ = learned(tmp_path)
    inputs = [{"text": text}, {"tokens": text.split()}, {"tokens": [text]}]
    for given, prediction in zip(
        inputs, trained.predict(trained.codec.read_inputs(inputs)), strict=True
    ):
        TagsPrediction.model_validate_json(prediction.model_dump_json())
        source = text if "text" in given else " ".join(given["tokens"])
        assert len(prediction.tokens) == len(prediction.tags) == len(prediction.scores)
        for token, start in zip(prediction.tokens, prediction.starts, strict=True):
            assert source[start : start + len(token)] == token
        for entity in prediction.entities:
            assert source[entity.start : entity.end] == entity.text


@pytest.mark.parametrize(
    ("value", "loc"),
    [
        ({}, ()),
        ({"text": "a", "tokens": ["a"]}, ()),
        ({"text": "\ud800"}, ("text",)),
        ({"tokens": ["a", "\ud800"]}, ("tokens", 1)),
        ({"tokens": ["a", 3]}, ("tokens", 1)),
        ({"tokens": ["a"] * 100_001}, ("tokens",)),
        ({"text": "a" * 1_000_001}, ("text",)),
    ],
)
def test_wrong_inputs_are_named(tmp_path: Path, value: Any, loc: Any) -> None:
    trained, _ = learned(tmp_path)
    with pytest.raises(Invalid) as caught:
        trained.codec.read_inputs([value])
    assert caught.value.problems[0].loc == ("inputs", 0, *loc)


def test_inputs_encode_as_their_frame_does(tmp_path: Path) -> None:
    trained, data = learned(tmp_path)
    frame = data.splits["validation"]
    framed = trained.codec.encode(frame, targets=False)
    direct = trained.codec.encode_inputs(trained.codec.given(frame))
    for mine, its in zip(framed.inputs, direct.inputs, strict=True):
        for name, tensor in mine.tensors().items():
            assert torch.equal(tensor, its.tensors()[name])


def test_words_behind_the_longest_length_are_cut_and_count_as_missed(tmp_path: Path) -> None:
    trained, _ = learned(tmp_path, max_length=5)
    [prediction] = trained.predict(trained.codec.read_inputs([{"tokens": ["we"] * 9}]))
    assert len(prediction.tokens) == 5
    tags = ["B-person", *["O"] * 7, "B-place"]
    assert score_tags([prediction], [tags])["recall"] < 1
    frame = pl.DataFrame({"tokens": [["we"] * 9], "tags": [tags]})
    assert trained.codec.encode(frame).targets[0].tensors()["offsets"].tolist() == [0, 5]


def test_parts_of_a_batch_make_the_loss_of_the_whole(tmp_path: Path) -> None:
    trained, data = learned(tmp_path)
    learner = trained.learner.eval()
    batch = trained.codec.encode(data.splits["train"]).batch(torch.arange(9))
    parts = [learner.loss(part) * learner.weight(part) for part in batch.split(3)]
    expected = learner.loss(batch) * learner.weight(batch)
    torch.testing.assert_close(torch.stack(parts).sum(), expected)


def test_a_model_without_characters_has_none(tmp_path: Path) -> None:
    trained, _ = learned(tmp_path, characters=False)
    assert isinstance(trained.codec, TagsCodec)
    assert trained.codec.alphabet == ""
    assert not any("letters" in name for name in trained.learner.state_dict())


# Bases


def test_a_text_classifier_and_a_tagger_are_bases_of_each_other(tmp_path: Path) -> None:
    tagger, tagged = learned(tmp_path, architecture=TextCNN())
    (tmp_path / "t.csv").write_text("text,label\n" + "we saw,a\nthey sang,b\n" * 10)
    texts = TextClassification.check(
        {"file": Upload(tmp_path / "t.csv", "t.csv")}, DatasetOptions()
    )
    facts = Facts(texts.schema, {name: f.height for name, f in texts.splits.items()})
    spec = resolve("text-classification", facts, None, Training(), None, tagger.task)
    codec = spec.task.learn_codec(texts.splits["train"].lazy(), texts.schema, tagger.codec)
    classifier = spec.task.build(codec)
    classifier.take_over(tagger.learner, head=False)
    assert_same(classifier, tagger.learner, "backbone")

    facts = Facts(tagged.schema, {name: f.height for name, f in tagged.splits.items()})
    back = resolve("token-classification", facts, None, Training(), None, spec.task).task
    learner = back.build(back.learn_codec(tagged.splits["train"].lazy(), tagged.schema, codec))
    learner.take_over(classifier, head=False)
    assert_same(learner, classifier, "backbone")


def test_a_tagger_hands_on_how_it_reads_words_and_its_tags_if_they_are_the_same(
    tmp_path: Path,
) -> None:
    (one, _), (other, _) = learned(tmp_path), learned(tmp_path)
    with torch.no_grad():
        for weight in one.learner.parameters():
            weight.add_(1)
    other.learner.take_over(one.learner, head=False)
    assert_same(other.learner, one.learner, "head.words")
    with pytest.raises(AssertionError):
        assert_same(other.learner, one.learner, "head.tags")
    other.learner.take_over(one.learner, head=True)
    assert_same(other.learner, one.learner, "")


def assert_same(one: torch.nn.Module, other: torch.nn.Module, part: str) -> None:
    for name, tensor in one.state_dict().items():
        if name.startswith(part):
            assert torch.equal(tensor, other.state_dict()[name]), name


# Metrics


def said(*tags: str) -> TagsPrediction:
    return TagsPrediction.model_construct(tags=list(tags))


def test_the_metrics_of_spans_are_those_of_seqeval(seed: int) -> None:
    draw = random.Random(seed)
    kinds = ["O", "O", "B-x", "I-x", "B-y", "I-y"]
    truth = [[draw.choice(kinds) for _ in range(draw.randint(1, 9))] for _ in range(50)]
    found = [[draw.choice([tag, draw.choice(kinds)]) for tag in tags] for tags in truth]
    mine = score_tags([said(*tags) for tags in found], truth)
    assert mine["f1"] == pytest.approx(seqeval.f1_score(truth, found))
    assert mine["precision"] == pytest.approx(seqeval.precision_score(truth, found))
    assert mine["recall"] == pytest.approx(seqeval.recall_score(truth, found))
    assert mine["macro_f1"] == pytest.approx(seqeval.f1_score(truth, found, average="macro"))
    assert mine["accuracy"] == pytest.approx(seqeval.accuracy_score(truth, found))


def test_f1_of_plain_tags_is_their_accuracy() -> None:
    found = score_tags([said("N", "V"), said("N")], [["N", "N"], ["N"]])
    assert found["f1"] == found["accuracy"] == pytest.approx(2 / 3)


def test_an_evaluation_shows_labels_confusion_and_the_worst() -> None:
    found = evaluate_tags([said("B-x", "O"), said("B-y", "I-y")], [["B-x", "O"], ["B-x", "O"]])
    assert found["per_class"]["x"] == {"precision": 1, "recall": 0.5, "f1": 2 / 3, "support": 2}
    assert found["confusion"] == {
        "labels": ["O", "x", "y"],
        "counts": [[1, 0, 1], [0, 1, 1], [0, 0, 0]],
    }
    assert found["worst"] == [
        {"row": 1, "wrong": 2, "truth": ["B-x", "O"], "predicted": ["B-y", "I-y"]}
    ]
