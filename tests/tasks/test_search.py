"""Search: uploads of documents and judgements, terms, rankings, and what is found."""

import json
import math
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import polars as pl
import pytest
import torch
from sklearn.metrics import ndcg_score

from models.bag_of_embeddings import BagOfEmbeddings
from models.base import Batch
from models.parts.retrieval import SATURATION, Retriever, Sequences, Words, begin_with_topics
from models.parts.training import Training
from models.transformer import Transformer
from tasks.base import Checked, DatasetOptions, Facts, Upload
from tasks.parts.problems import Invalid, Problem
from tasks.parts.rankings import Ranked, evaluate_rankings, score_rankings
from tasks.parts.terms import terms
from tasks.search import Search, SearchCodec
from tasks.trained import Trained

CORPUS = [
    {"_id": "a", "title": "Wings", "text": "Lift of a wing in a slipstream.", "metadata": {}},
    {"_id": "b", "title": "", "text": "Heat flows through composite slabs."},
    {"_id": "c", "title": "한국어", "text": "항공기의 날개에 대한 연구."},
    {"id": 4, "text": ""},
]
QUERIES = [{"_id": f"q{n}", "text": f"what about thing {n}"} for n in range(6)]
TRAIN = "query-id\tcorpus-id\tscore\nq0\ta\t2\nq0\tb\t1\nq1\tb\t1\nq2\tc\t3\nq3\ta\t1\nq5\t4\t0\n"
TEST = "q4\tc\t1\n"


def lines(objects: Any, end: str = "\n") -> str:
    return "".join(json.dumps(found, ensure_ascii=False) + end for found in objects)


def beir(folder: Path, **changed: str | None) -> dict[str, Upload]:
    """A zip in the layout of BEIR; `None` leaves a file out."""
    files: dict[str, str | None] = {
        "corpus.jsonl": lines(CORPUS),
        "queries.jsonl": lines(QUERIES),
        "qrels/train.tsv": TRAIN,
        "qrels/test.tsv": TEST,
    }
    files |= {name.replace("__", "/").replace("_", "."): text for name, text in changed.items()}
    with ZipFile(folder / "corpus.zip", "w") as archive:
        for name, text in files.items():
            if text is not None:
                archive.writestr(f"inner/{name}", text)
    return {"file": Upload(folder / "corpus.zip", "corpus.zip")}


def table(folder: Path, content: str, name: str = "pairs.csv") -> dict[str, Upload]:
    (folder / name).write_text(content)
    return {"file": Upload(folder / name, name)}


def check(files: Mapping[str, Upload], **options: Any) -> Checked:
    return Search.check(files, DatasetOptions.model_validate(options))


def problems(files: Mapping[str, Upload], **options: Any) -> list[Problem]:
    with pytest.raises(Invalid) as caught:
        check(files, **options)
    return list(caught.value.problems)


# Uploads


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_zip_in_the_layout_of_beir_is_read(tmp_path: Path, end: str) -> None:
    train, test = (text.replace("\n", end) for text in (TRAIN, TEST))
    data = check(
        beir(
            tmp_path, corpus_jsonl=lines(CORPUS, end), qrels__train_tsv=train, qrels__test_tsv=test
        )
    )
    documents = data.splits["train"].filter(pl.col("text").is_not_null())
    assert documents["id"].to_list() == ["a", "b", "c", "4"]
    assert documents["title"].to_list() == ["Wings", "", "한국어", ""]
    assert data.splits["test"].to_dicts() == [
        {"query": "what about thing 4", "relevant": [{"id": "c", "gain": 1.0}]}
    ]
    assert data.report["queries"] == {"train": 3, "validation": 1, "test": 1}
    assert data.report["documents"] == 4
    assert data.report["unanswered_queries"] == 1
    assert data.report["empty_documents"] == 1


@pytest.mark.parametrize(
    "name", ["qrels.tsv", "qrels/train.tsv", "qrels.train.tsv", "qrels_train.tsv"]
)
def test_judgements_have_the_names_that_are_in_use(tmp_path: Path, name: str) -> None:
    with ZipFile(tmp_path / "corpus.zip", "w") as archive:
        archive.writestr("corpus.jsonl", lines(CORPUS))
        archive.writestr("queries.jsonl", lines(QUERIES))
        archive.writestr(name, "q0 0 a 1\nq1 0 b 1\n".replace(" ", "\t"))
        archive.writestr("README.md", "nothing to read")
    data = check({"file": Upload(tmp_path / "corpus.zip", "corpus.zip")})
    assert data.report["queries"] == {"train": 1, "validation": 1}


def test_everything_wrong_in_an_archive_is_told_at_once_with_file_and_line(tmp_path: Path) -> None:
    bad = [*CORPUS, {"_id": "a", "text": "again"}, {"_id": "e"}, {"_id": "f", "text": 7}, [1]]
    found = problems(
        beir(tmp_path, corpus_jsonl=lines(bad) + "{\n" + '{"_id":"g","text":"\\ud800"}')
    )
    name = "inner/corpus.jsonl"
    assert [(p.loc, p.msg) for p in found] == [
        (("file", name, "line", 5, "_id"), "the same id again"),
        (("file", name, "line", 6, "text"), "not a text"),
        (("file", name, "line", 7, "text"), "not a text"),
        (("file", name, "line", 8), "not an object"),
        (("file", name, "line", 9), "not JSON"),
        (("file", name, "line", 10, "text"), "not a text"),
    ]


def test_wrong_judgements_are_named(tmp_path: Path) -> None:
    qrels = "q0\ta\t-1\nq9\ta\t1\nq1\tz\t1\nq1\tb\tgood\nq1\tb\n"
    found = problems(beir(tmp_path, qrels__train_tsv=qrels))
    assert [(p.loc[3], p.loc[-1], p.found) for p in found] == [
        (1, "grade", "-1"),
        (2, "query", "q9"),
        (3, "document", "z"),
        (4, "grade", "good"),
        (5, 5, 2),
    ]


@pytest.mark.parametrize(
    ("changed", "msg"),
    [
        ({"corpus_jsonl": None}, "no corpus.jsonl"),
        ({"queries_jsonl": None}, "there are judgements, but no queries.jsonl"),
        ({"qrels__other_tsv": TEST}, "not part of the layout"),
        ({"qrels_tsv": TEST}, "beside judgements by split"),
        ({"corpus_jsonl": lines(CORPUS[:1])}, "there is no such document"),
    ],
)
def test_an_archive_in_another_layout_is_refused(
    tmp_path: Path, changed: dict[str, str | None], msg: str
) -> None:
    assert msg in [problem.msg for problem in problems(beir(tmp_path, **changed))]


def test_pairs_are_grouped_by_query_and_texts_by_what_they_say(tmp_path: Path) -> None:
    rows = "one,first\none,second\ntwo,first\nthree,third\nthree,third\n"
    data = check(table(tmp_path, f"question,answer\n{rows}"))
    queries = pl.concat(
        [data.splits[s].select("query", "relevant") for s in ("train", "validation")]
    )
    counts = {row["query"]: len(row["relevant"]) for row in queries.to_dicts() if row["query"]}
    assert counts == {"one": 2, "two": 1, "three": 1}
    assert data.report["documents"] == 3
    again = check(table(tmp_path, f"question,answer\n{rows}"))
    assert again.splits["train"].equals(data.splits["train"])


def test_grades_and_ids_of_a_table_are_taken(tmp_path: Path) -> None:
    content = "query,id,text,grade,part\nq,x,one,2,train\nq,y,two,0,train\np,y,two,1,test\n"
    data = check(table(tmp_path, content + "r,x,one,1,dev\n"), split={"by": "part"})
    assert data.splits["test"].to_dicts() == [
        {"query": "p", "relevant": [{"id": "y", "gain": 1.0}]}
    ]
    train = data.splits["train"].filter(pl.col("query").is_not_null())
    assert train["relevant"].to_list() == [[{"id": "x", "gain": 2.0}]]


def test_an_id_stands_for_one_document(tmp_path: Path) -> None:
    (found,) = problems(table(tmp_path, "query,id,text\nq,x,one\np,x,two\n"))
    assert (found.loc, found.found) == (("file", "line", 3, "id"), "x")
    (tmp_path / "test").mkdir()
    files = {
        "train": table(tmp_path, "query,id,text\nq,x,one\np,y,two\n")["file"],
        "test": table(tmp_path / "test", "query,id,text\nr,x,other\n")["file"],
    }
    (found,) = problems(files)
    assert (found.loc, found.found) == (("test",), "x")


def test_documents_alone_are_validated_by_their_titles(tmp_path: Path) -> None:
    content = "".join(f"{n},title {n},text of {n}\n" for n in range(20))
    data = check(table(tmp_path, "id,title,text\n" + content))
    assert {name: frame.height for name, frame in data.splits.items()} == {
        "train": 20,
        "validation": 4,
    }
    for row in data.splits["validation"].to_dicts():
        assert row["query"] == f"title {row['relevant'][0]['id']}"


def test_a_single_document_is_no_corpus(tmp_path: Path) -> None:
    (found,) = problems(table(tmp_path, "text\nonly\n"))
    assert (found.loc, found.msg, found.found) == (("file",), "too few documents", 1)


# Terms and rankings


def numbers(text: str) -> list[int]:
    return list(terms([text]).values.tolist())


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("Two words", 2),
        ("날개에 대한", 3),
        ("これは本です。", 5),
        ("本", 1),
        ("नमस्ते दुनिया", 2),
        ("سلام عليكم", 2),
    ],
)
def test_any_script_has_terms(text: str, count: int) -> None:
    assert len(numbers(text)) == count
    assert 0 not in numbers(text)


def test_case_width_and_endings_of_long_words_do_not_matter() -> None:
    assert numbers("TURBULENCE ｗｉｎｇ") == numbers("turbulent wing")
    assert set(numbers("날개가")) & set(numbers("날개는"))


@pytest.mark.parametrize("text", ["", " ", "🙂🙂", "\u202e\x01", "?!"])
def test_a_text_without_words_has_no_term(text: str) -> None:
    assert numbers(text) == [0]


def test_words_are_scored_as_bm25_says() -> None:
    found = terms(["a wing of a plane", "a plane", "heat", ""])
    words = Words()
    words.fill(Sequences(found.values, found.offsets), torch.device("cpu"))
    query = terms(["wing plane", "nothing", "plane"])
    values, lengths = query.take(torch.arange(3))
    lengths_of = np.array([5, 2, 1, 1])
    expected = np.zeros(4)
    for having in ({0}, {0, 1}):  # wing, plane
        rarity = math.log(1 + (4 - len(having) + 0.5) / (len(having) + 0.5))
        for place in having:
            damping = SATURATION * (0.25 + 0.75 * lengths_of[place] / lengths_of.mean())
            expected[place] += rarity * (SATURATION + 1) / (1 + damping)
    scores = words(values, lengths, 4)
    assert scores[0].tolist() == pytest.approx(expected / expected.max(), abs=1e-5)
    assert scores[1].tolist() == [0] * 4
    assert scores[2].argmax() == 1


def test_ndcg_is_that_of_scikit_learn(seed: int) -> None:
    draw = random.Random(seed)
    for _ in range(50):
        gains = [float(draw.choice([0, 0, 1, 2, 4])) for _ in range(30)]
        order = draw.sample(range(30), 30)
        ranked = Ranked([str(n) for n in order], {str(n): g for n, g in enumerate(gains) if g})
        scores = np.zeros(30)
        scores[order] = np.arange(30, 0, -1)
        assert ranked.ndcg() == pytest.approx(ndcg_score([gains], [scores], k=10))


def test_ranks_are_scored_as_their_names_say() -> None:
    rankings = [
        Ranked(["x", "a"], {"a": 3, "b": 1}),
        Ranked([str(n) for n in range(100)], {"99": 1, "10": 2}),
        Ranked([], {"a": 1}),
    ]
    found = score_rankings(rankings)
    assert found["mrr_at_10"] == pytest.approx((1 / 2 + 0 + 0) / 3)
    assert found["recall_at_100"] == pytest.approx((1 / 2 + 1 + 0) / 3)
    told = evaluate_rankings(["p", "q", "r"], rankings)
    assert told["queries"] == 3
    assert [row["row"] for row in told["worst"]] == [1, 2, 0]
    assert told["per_gain"]["2"] == {"documents": 1, "in_first_10": 0, "in_first_100": 1}


# What is found


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A search whose training was begun: it has an index, and weights from the documents alone."""
    data = check(beir(tmp_path_factory.mktemp("search")))
    facts = Facts(data.schema, {name: frame.height for name, frame in data.splits.items()})
    task = Search().resolve(facts)
    codec = task.learn_codec(data.splits["train"].lazy(), data.schema)
    learner = task.build(codec)
    training = Training(epochs=1).resolve(**BagOfEmbeddings().defaults(8), schedule="auto")
    learner.start(training, None, 1)
    return Trained(task, codec, learner)


def ask(trained: Trained, **value: Any) -> list[str]:
    (found,) = trained.predict(trained.codec.read_inputs([value]))
    assert [hit.score for hit in found.hits] == sorted((h.score for h in found.hits), reverse=True)
    return [hit.id for hit in found.hits]


@pytest.mark.parametrize(
    ("query", "best"), [("slipstream", "a"), ("SLABS", "b"), ("날개 연구", "c")]
)
def test_words_find_their_document(trained: Trained, query: str, best: str) -> None:
    assert ask(trained, query=query)[0] == best


def test_as_many_hits_are_given_as_are_wanted(trained: Trained) -> None:
    assert len(ask(trained, query="wing", top_k=2)) == 2
    assert sorted(ask(trained, query="wing")) == ["4", "a", "b", "c"]


@pytest.mark.parametrize(
    "query",
    ["", "a", "🙂" * 50, "wing " * 20_000, "날개" * 50_000, "\u202eabc\x07", "سلام wing 漢字 मैं"],
)
def test_any_query_gets_an_answer(trained: Trained, query: str) -> None:
    assert len(ask(trained, query=query)) == 4


@pytest.mark.parametrize(
    ("value", "loc"),
    [
        ({"query": "\ud800"}, "query"),
        ({"query": "x" * 1_000_001}, "query"),
        ({"query": "x", "top_k": 101}, "top_k"),
        ({"query": "x", "top_k": 0}, "top_k"),
        ({"text": "x"}, "query"),
    ],
)
def test_wrong_inputs_are_named(trained: Trained, value: Any, loc: str) -> None:
    with pytest.raises(Invalid) as caught:
        trained.codec.read_inputs([value])
    assert caught.value.problems[0].loc == ("inputs", 0, loc)


def test_inputs_encode_as_their_frame_does(trained: Trained) -> None:
    queries = ["wing", "", "날개 🙂"]
    inputs = trained.codec.read_inputs([{"query": query} for query in queries])
    direct = trained.codec.encode_inputs(inputs)
    framed = trained.codec.encode(pl.DataFrame({"query": queries}), targets=False)
    for one, other in zip(direct.inputs, framed.inputs, strict=True):
        for name, tensor in one.tensors().items():
            assert torch.equal(tensor, other.tensors()[name])


def test_of_documents_unknown_to_a_model_none_is_found_and_all_count(trained: Trained) -> None:
    examples = pl.DataFrame({"query": ["wing"], "relevant": [[{"id": "other", "gain": 1.0}]]})
    columns = trained.codec.encode(examples)
    predictions = trained.predictions(columns)
    assert trained.task.score(predictions, examples)["recall_at_100"] == 0


# Learning


def test_a_document_that_also_answers_is_no_negative() -> None:
    """Two queries that the same documents answer: whichever was drawn for one is right for both."""
    retriever = alike()
    relevant, gains = torch.tensor([[1, 2], [1, 2]]), torch.ones(2, 2)
    batch = Batch(
        (
            torch.tensor([[3], [4]]),
            torch.ones(2).long(),
            torch.tensor([[7], [7]]),
            torch.ones(2).long(),
        ),
        (relevant, torch.tensor([2, 2]), gains, torch.tensor([2, 2]), torch.tensor([False, False])),
    )
    assert retriever.loss(batch).item() == pytest.approx(0)
    apart = (torch.tensor([[1, 0], [2, 0]]), torch.tensor([1, 1]), torch.tensor([[1.0, 0], [1, 0]]))
    other = Batch(batch.inputs, (*apart, torch.tensor([1, 1]), torch.tensor([False, False])))
    assert retriever.loss(other).item() > 0.1


def test_held_queries_and_those_without_an_answer_count_nothing() -> None:
    retriever = alike()
    one = torch.ones(2).long()
    batch = Batch(
        (torch.tensor([[3], [4]]), one, torch.tensor([[7], [7]]), one),
        (torch.zeros(2, 1).long(), one, torch.ones(2, 1), one, torch.tensor([False, False])),
    )
    assert retriever.weight(batch) == 0
    assert retriever.loss(batch).item() == 0


def alike() -> Retriever:
    """An untrained search in two documents."""

    class Two:
        def documents(self) -> tuple[Sequences, Sequences]:
            whole = Sequences(torch.tensor([3, 4, 4, 3]), torch.tensor([0, 2, 4]))
            return whole, whole

        def held(self) -> None:
            return None

    torch.manual_seed(0)
    backbone = BagOfEmbeddings(width=4, dropout=0.0).build(8, 8)
    retriever = Retriever(backbone, Two(), temperature=0.05, hard_negatives=0)
    training = Training(epochs=1).resolve(**BagOfEmbeddings().defaults(8), schedule="auto")
    retriever.start(training, None, 1)
    torch.nn.init.normal_(backbone.embedding.weight)
    return retriever


@pytest.mark.parametrize("architecture", [BagOfEmbeddings(width=8), Transformer(width=8, layers=1)])
def test_tokens_of_the_same_documents_begin_alike(architecture: Any) -> None:
    documents = [[3, 4, 5], [3, 4], [5, 3, 4], [6, 7], [7, 6, 8], [8, 6, 7]]
    offsets = torch.tensor([0, *map(len, documents)]).cumsum(0)
    values = torch.tensor([token for found in documents for token in found])
    backbone = architecture.build(9, 4)
    begin_with_topics(backbone, Sequences(values, offsets), seed=0)
    embedding = next(m for m in backbone.modules() if isinstance(m, torch.nn.Embedding)).weight
    near = torch.nn.functional.cosine_similarity(embedding[3], embedding[4], dim=0)
    far = torch.nn.functional.cosine_similarity(embedding[3], embedding[6], dim=0)
    assert near > 0.8 > 0.5 > far
    assert embedding[:3].abs().max() == 0


def test_every_fifth_judged_query_is_held(tmp_path: Path) -> None:
    content = "query,text\n" + "".join(f"q{n},text {n}\n" for n in range(40))
    data = check(table(tmp_path, content))
    facts = Facts(data.schema, {name: frame.height for name, frame in data.splits.items()})
    codec: SearchCodec = Search().resolve(facts).learn_codec(data.splits["train"].lazy(), {})
    train = data.splits["train"]
    assert len(codec.held_queries) == 7  # of 32
    relevant = codec.encode(train).targets[0]
    counted = {
        q for q, place in zip(train["query"], relevant.values.tolist(), strict=True) if place
    }
    assert not set(codec.held_queries) & counted
