"""Coreference: uploads, requests, what the network reads, and the measures of clusters."""

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch

from models.parts.training import Training
from tasks.base import Checked, DatasetOptions, Facts, Upload
from tasks.catalog import resolve
from tasks.coreference import Coreference, CoreferenceCodec
from tasks.parts.clusters import Counts, add, b_cubed, ceaf_e, metrics, muc
from tasks.parts.problems import Invalid, Problem
from tasks.parts.vocabulary import BytePairs, Vocabulary

STORY = [["Ann", "met", "Tom", "."], ["She", "left", "."]]
CLUSTERS = [[[0, 0, 1], [1, 0, 1]], [[0, 2, 3]]]
MINIMAL = """#begin document (ann); part 000
ann\t0\t0\tAnn\t(7)
ann\t0\t1\tmet\t_
ann\t0\t2\tTom\t(8)
ann\t0\t3\t.\t_

ann\t0\t0\tShe\t(7)
ann\t0\t1\tleft\t_
ann\t0\t2\t.\t_
#end document
"""
FULL = """#begin document (ann); part 000
ann 0 0 Ann NNP (TOP(S* - - - a * (7)
ann 0 1 met VBD * - - - a * -
ann 0 2 Tom NNP * - - - a * (8)
ann 0 3 . . *)) - - - a * -

ann 0 0 She PRP (TOP(S* - - - a * (7)
ann 0 1 left VBD * - - - a * -
ann 0 2 . . *)) - - - a * -

#end document
"""


def check(folder: Path, content: str, **options: Any) -> Checked:
    (folder / "train").write_text(content, encoding="utf-8")
    (folder / "validation").write_text(MINIMAL)
    files = {name: Upload(folder / name, name) for name in ("train", "validation")}
    return Coreference.check(files, DatasetOptions(**options))


def problems(folder: Path, content: str, **options: Any) -> list[Problem]:
    with pytest.raises(Invalid) as caught:
        check(folder, content, **options)
    return list(caught.value.problems)


def lines(*documents: dict[str, Any]) -> str:
    return "".join(json.dumps(document) + "\n" for document in documents)


def codec(**fields: Any) -> CoreferenceCodec:
    tokenizer = BytePairs(size=200).learn(["Ann met Tom .", "She left ."] * 3)
    vocabulary = Vocabulary(tokenizer=tokenizer, max_length=16)
    values = {"vocabulary": vocabulary, "mentions": "found", "singletons": True, **fields}
    return CoreferenceCodec(**values)


def learner(codec: CoreferenceCodec) -> Any:
    torch.manual_seed(0)
    facts = Facts({"singletons": True, "mention_words": {"p98": 3}}, {"train": 10})
    spec = resolve("coreference", facts, None, Training(), None)
    return spec.task.build(codec).eval()


# Uploads


@pytest.mark.parametrize(
    "content",
    [
        MINIMAL,
        FULL,
        lines({"id": "(ann); part 000", "sentences": STORY, "clusters": CLUSTERS[::-1]}),
    ],
)
def test_every_format_is_read_as_the_same_document(tmp_path: Path, content: str) -> None:
    frame = check(tmp_path, content).splits["train"]
    assert frame.to_dicts() == [
        {"document": "(ann); part 000", "sentences": STORY, "clusters": CLUSTERS}
    ]


def test_a_document_may_be_one_list_of_tokens(tmp_path: Path) -> None:
    content = lines({"tokens": ["Ann", "saw", "Ann"], "clusters": [[[0, 1], [2, 3]]]})
    frame = check(tmp_path, content).splits["train"]
    assert frame["sentences"].to_list() == [[["Ann", "saw", "Ann"]]]
    assert frame["clusters"].to_list() == [[[[0, 0, 1], [0, 2, 3]]]]


def test_brackets_may_be_nested_and_close_where_others_open(tmp_path: Path) -> None:
    marks = ["(1|(2)", "_", "1)|(2)", "(1)"]
    rows = "".join(f"d\t0\t{n}\tw{n}\t{mark}\n" for n, mark in enumerate(marks))
    frame = check(tmp_path, f"#begin document (d); part 0\n{rows}#end document\n").splits["train"]
    assert frame["clusters"].to_list() == [
        [[[0, 0, 1], [0, 2, 3]], [[0, 0, 3], [0, 3, 4]]],
    ]


def test_a_report_counts_mentions_that_stand_alone_and_such_that_cross(tmp_path: Path) -> None:
    content = lines(
        {
            "sentences": [list("abcde")],
            "clusters": [[[0, 0, 2], [0, 4, 5]], [[0, 1, 3]], [[0, 0, 3]]],
        }
    )
    report = check(tmp_path, content).report["documents"]["train"]
    counted = {name: report[name] for name in ("mentions", "clusters", "singletons", "crossing")}
    assert counted == {"mentions": 4, "clusters": 3, "singletons": 2, "crossing": 1}


@pytest.mark.parametrize(
    ("old", "new", "line", "msg"),
    [
        ("Ann\t(7)", "Ann\t(7", 2, "a mention has no end in its sentence"),
        ("Ann\t(7)", "Ann\t7)", 2, "a mention ends that has not begun"),
        ("Ann\t(7)", "Ann\tseven", 2, "not a bracket"),
        ("Ann\t(7)", "Ann\t(7)|(8)", 2, "the same mention twice"),
        ("Ann\t(7)", "Ann\t(7)|(7)", 2, "the same mention twice"),
        ("ann\t0\t1\tmet\t_", "met _", 3, "not a token with its columns"),
        ("#end document", "", 1, "the document has no end"),
        ("#begin document (ann); part 000", "", 2, "no document has begun"),
    ],
)
def test_a_fault_in_conll_is_named_by_its_line(
    tmp_path: Path, old: str, new: str, line: int, msg: str
) -> None:
    found = problems(tmp_path, MINIMAL.replace(old, new, 1))
    assert (found[0].loc, found[0].msg) == (("train", "line", line), msg)


def test_all_faults_of_a_file_are_told_at_once(tmp_path: Path) -> None:
    found = problems(
        tmp_path, MINIMAL.replace("Ann\t(7)", "Ann\t(7").replace("She\t(7)", "She\t7)")
    )
    assert [problem.loc[-1] for problem in found] == [2, 7]


@pytest.mark.parametrize(
    ("clusters", "msg"),
    [
        (None, "not lists of mentions"),
        ([[[0, 0]]], "not a mention"),
        ([[[0, 0, True]]], "not a mention"),
        ([[[2, 0, 1]]], "no such sentence"),
        ([[[0, 3, 5]]], "outside its sentence"),
        ([[[0, 1, 1]]], "outside its sentence"),
        ([[[0, 0, 1]], [[0, 0, 1]]], "the same mention twice"),
    ],
)
def test_a_faulty_cluster_in_jsonl_is_named(tmp_path: Path, clusters: Any, msg: str) -> None:
    found = problems(tmp_path, lines({"sentences": STORY, "clusters": clusters}))
    assert found[0].loc[:4] == ("train", "line", 1, "clusters")
    assert found[0].msg == msg


@pytest.mark.parametrize(
    "sentences", [[], [[]], ["Ann"], [["Ann", ""]], [[3]], [["\ud800"]], [["a"] * 10_001]]
)
def test_what_is_no_document_is_refused(tmp_path: Path, sentences: Any) -> None:
    found = problems(tmp_path, lines({"sentences": sentences, "clusters": []}))
    assert found[0].loc[:4] == ("train", "line", 1, "sentences")
    with pytest.raises(Invalid) as caught:
        codec().read_input({"sentences": sentences})
    assert caught.value.problems[0].loc[0] == "sentences"


def test_data_in_which_nothing_is_mentioned_twice_is_refused(tmp_path: Path) -> None:
    (problem,) = problems(tmp_path, lines({"sentences": STORY, "clusters": [[[0, 0, 1]]]}))
    assert problem.msg == "nothing is mentioned twice"


# Requests


@pytest.mark.parametrize(
    "mentions", [[[0, 0, 9]], [[5, 0, 1]], [[0, 0, 1], [0, 0, 1]], [[0, 0]], [[0, -1, 1]]]
)
def test_a_faulty_mention_of_a_request_is_named(mentions: Any) -> None:
    with pytest.raises(Invalid) as caught:
        codec().read_input({"sentences": STORY, "mentions": mentions})
    assert caught.value.problems[0].loc[0] == "mentions"


@pytest.mark.parametrize("mentions", ["found", "given"])
def test_inputs_are_encoded_as_examples_are(mentions: str) -> None:
    frame = pl.DataFrame({"document": ["a"], "sentences": [STORY], "clusters": [CLUSTERS]})
    mine = codec(mentions=mentions)
    asked = {"mentions": [[1, 0, 1], [0, 2, 3], [0, 0, 1]]} if mentions == "given" else {}
    inputs = mine.encode_inputs([mine.read_input({"sentences": STORY, **asked})])
    for one, other in zip(inputs.inputs, mine.encode(frame).inputs, strict=True):
        for name, tensor in one.tensors().items():
            assert torch.equal(tensor, other.tensors()[name])


def test_given_mentions_are_all_answered_and_no_others() -> None:
    mine = codec()
    batch = mine.encode_inputs(
        [
            mine.read_input({"sentences": STORY, "mentions": [[1, 0, 1], [0, 2, 3], [0, 0, 4]]}),
            mine.read_input({"sentences": STORY, "mentions": []}),
            mine.read_input({"sentences": STORY}),
        ]
    ).batch(torch.arange(3))
    first, second, third = mine.decode(learner(mine).predict(*batch.inputs))
    assert sorted(m for c in first.clusters for m in c) == [(0, 0, 4), (0, 2, 3), (1, 0, 1)]
    assert second.clusters == []
    assert all(m[1] < m[2] <= len(STORY[m[0]]) for c in third.clusters for m in c)


@pytest.mark.parametrize(
    "token", ["a" * 100_000, "👩‍👩‍👧", "한국어", "שלום", "\u202e", "\x07", "née東京"]
)
def test_any_token_gets_an_answer(token: str) -> None:
    mine = codec()
    read = mine.read_input({"sentences": [[token], [token, "Ann"]], "mentions": [[0, 0, 1]]})
    (answer,) = mine.decode(
        learner(mine).predict(*mine.encode_inputs([read]).batch(torch.arange(1)).inputs)
    )
    assert answer.clusters == [[(0, 0, 1)]]


def test_mentions_that_stand_alone_are_told_only_where_the_data_has_such() -> None:
    rows = [[0, 0, 1, 1.0, -1, 0.9], [0, 2, 3, 1.0, -1, 0.8], [1, 0, 1, 0.5, 0, 0.6]]
    outputs = torch.tensor([[*rows, [-1.0] * 6]])
    (all_of_them,) = codec(singletons=True).decode(outputs)
    assert all_of_them.clusters == [[(0, 0, 1), (1, 0, 1)], [(0, 2, 3)]]
    assert all_of_them.scores[0] == pytest.approx([0.9, 0.3])
    (linked,) = codec(singletons=False).decode(outputs)
    assert linked.clusters == [[(0, 0, 1), (1, 0, 1)]]


def test_mentions_are_given_where_those_that_stand_alone_are_marked_too() -> None:
    for singletons, chosen in ((True, "given"), (False, "found")):
        facts = Facts({"singletons": singletons, "mention_words": {"p98": 3}}, {"train": 10})
        assert Coreference().resolve(facts).mentions == chosen


def test_a_document_is_cut_between_sentences_and_no_segment_is_too_long() -> None:
    mine = codec()
    sentences = [["Ann", "met", "Tom", "."] * length for length in (1, 2, 9, 1)]
    read = mine.read_input({"sentences": sentences})
    tokens, words, *_ = mine.encode_inputs([read]).inputs
    segments = tokens.tensors()["values"][:, 1]
    assert int(segments.bincount().max()) <= mine.vocabulary.max_length
    rows = words.tensors()["values"]
    assert len(rows) == sum(map(len, sentences))
    of_words = segments[rows[:, 0]]
    assert torch.equal(of_words, segments[rows[:, 1]])
    assert len(of_words[rows[:, 2] == 1].unique()) == 1


# Measures

TRUTH = [list("12345"), list("67"), list("89ABC")]


@pytest.mark.parametrize(
    ("found", "links", "mentions", "clusters"),
    [
        ([list("12345"), list("6789ABC")], 0.947, 0.865, 0.733),
        ([list("1234589ABC"), list("67")], 0.947, 0.737, 0.667),
        ([list("123456789ABC")], 0.900, 0.545, 0.294),
        ([[mention] for mention in "123456789ABC"], 0.0, 0.400, 0.178),
    ],
)
def test_measures_are_those_of_luo_2005(
    found: list[list[str]], links: float, mentions: float, clusters: float
) -> None:
    assert muc(TRUTH, found).f1 == pytest.approx(links, abs=5e-4)
    assert b_cubed(TRUTH, found).f1 == pytest.approx(mentions, abs=5e-4)
    assert ceaf_e(TRUTH, found).f1 == pytest.approx(clusters, abs=5e-4)


def test_measures_of_mentions_that_were_not_all_found_are_those_of_pradhan_2014() -> None:
    truth, found = [list("abc"), list("defg")], [list("ab"), list("cd"), list("fghi")]
    links, mentions, clusters = (measure(truth, found) for measure in (muc, b_cubed, ceaf_e))
    assert (links.recall, links.precision) == pytest.approx((2 / 5, 2 / 5))
    assert (mentions.recall, mentions.precision) == pytest.approx((35 / 84, 0.5))
    assert (clusters.recall, clusters.precision) == pytest.approx((0.65, 1.3 / 3))


def test_documents_are_counted_together() -> None:
    both = add(
        {name: Counts(1, 2, 1, 4) for name in ("muc", "b3", "ceaf_e", "mention")} for _ in "ab"
    )
    assert both["muc"] == Counts(2, 4, 2, 8)
    assert metrics(both)["conll_f1"] == pytest.approx(1 / 3)


def test_nothing_to_find_and_nothing_found_is_all_right() -> None:
    assert muc([], []).f1 == b_cubed([], []).f1 == ceaf_e([], []).f1 == 1
    assert ceaf_e([["a"]], []).f1 == 0
