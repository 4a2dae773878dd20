"""Pairs of texts: columns, directions, requests, and a base of another task."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch

from models.bag_of_embeddings import BagOfEmbeddings
from models.base import Supervised
from models.parts.losses import CrossEntropy
from models.parts.matching import BUCKETS, Matching, beside
from models.text_cnn import TextCNN
from tasks.base import Checked, DatasetOptions, Task, Upload
from tasks.parts.problems import Invalid, Problem
from tasks.parts.vocabulary import Words
from tasks.text_classification import TextClassification
from tasks.text_pair_classification import TextPairClassification, TextPairCodec

PLAIN = "text_a,text_b,label\n" + "a cat sleeps,a cat rests,yes\na dog eats,no dog eats,no\n" * 10
WAYS = "text_a,text_b,direction,label\n" + "it rains,we stay,1>2,so\nwe stay,it rains,1<2,as\n" * 10


def check(folder: Path, content: str, name: str = "file.csv", **options: Any) -> Checked:
    (folder / "file").write_text(content)
    files = {"file": Upload(folder / "file", name)}
    return TextPairClassification.check(files, DatasetOptions(**options))


def problems(folder: Path, content: str, **options: Any) -> list[Problem]:
    with pytest.raises(Invalid) as caught:
        check(folder, content, **options)
    return list(caught.value.problems)


def learn(
    data: Checked, base: Any = None, architecture: Any = None
) -> tuple[TextPairClassification, TextPairCodec]:
    task = TextPairClassification(
        architecture=architecture or BagOfEmbeddings(),
        tokenizer=Words(min_count=1),
        max_length=16,
        alignment=True,
    )
    return task, task.learn_codec(data.splits["train"].lazy(), data.schema, base)


@pytest.mark.parametrize(
    ("header", "mapping"),
    [
        ("premise,hypothesis,gold_label", {}),
        ("sentence1,sentence2,label", {}),
        ("Question1,Question2,is_duplicate", {}),
        ("said,meant,same", {"text_a": "said", "text_b": "meant", "label": "same"}),
    ],
)
def test_columns_are_found_by_mapping_or_usual_names(
    tmp_path: Path, header: str, mapping: dict[str, str]
) -> None:
    content = f"{header}\n" + "one,two,1\nthree,four,0\n" * 10
    data = check(tmp_path, content, column_mapping=mapping)
    assert data.splits["train"].columns == ["text_a", "text_b", "direction", "label"]
    assert data.schema["labels"] == ["0", "1"]
    assert data.schema["directions"] == []


def test_columns_that_are_not_found_are_listed(tmp_path: Path) -> None:
    found = problems(tmp_path, "left,right,same\none,two,yes\nthree,four,no\n")
    assert [p.loc[-1] for p in found] == ["text_a", "text_b", "label"]
    mapping = {"text_c": "left", "direction": "way"}
    assert problems(tmp_path, PLAIN, column_mapping=mapping)[0].loc[-1] == "text_c"
    assert problems(tmp_path, PLAIN, column_mapping={"direction": "way"})[0].found == "way"


def test_everything_that_lacks_is_told_at_once(tmp_path: Path) -> None:
    content = '{"text_a": "x", "label": "a"}\n{"text_b": "y", "label": "b"}\n{"label": "b"}\n'
    lines = [(p.loc[2], p.loc[3]) for p in problems(tmp_path, content + PAIR)]
    assert sorted(lines) == [(1, "text_b"), (2, "text_a"), (3, "text_a"), (3, "text_b")]


PAIR = '{"text_a": "x", "text_b": "y", "label": "a"}\n'


def test_labels_that_cannot_be_learned_are_refused(tmp_path: Path) -> None:
    (found,) = problems(tmp_path, "text_a,text_b,label\n" + "x,y,same\n" * 10)
    assert found.msg == "one class only"
    found = problems(tmp_path, "text_a,text_b,label\nx,y,a\nx,z,\nx,w,b\n" * 5)[0]
    assert found.msg == "the label is empty"


def test_a_column_of_texts_is_no_direction(tmp_path: Path) -> None:
    rows = [f"x {n},y,way {n},{'ab'[n % 2]}" for n in range(300)]
    (found,) = problems(tmp_path, "\n".join(["text_a,text_b,direction,label", *rows]))
    assert (found.loc, found.msg) == (("train", "direction"), "too many directions")


def test_the_report_says_which_first_texts_are_in_two_splits(tmp_path: Path) -> None:
    rows = ["p,h1,a,train", "p,h2,b,train", "q,h3,a,validation", "p,h4,b,test", "q,h3,a,test"]
    data = check(tmp_path, "\n".join(["text_a,text_b,label,part", *rows]), split={"by": "part"})
    assert data.report["overlap_of_text_a"] == {
        "train/validation": 0,
        "train/test": 1,
        "validation/test": 1,
    }
    assert data.report["overlap"]["train/test"] == 0
    assert data.report["overlap"]["validation/test"] == 1
    assert data.report["classes"]["a"] == {"train": 1, "validation": 1, "test": 1}


def test_a_direction_reaches_the_network_and_may_lack(tmp_path: Path) -> None:
    _, codec = learn(check(tmp_path, WAYS))
    assert codec.directions == ["1<2", "1>2"]
    pair = {"text_a": "it rains", "text_b": "we stay"}
    inputs = codec.read_inputs([{**pair, "direction": "1>2"}, {**pair, "direction": "1<2"}, pair])
    way = codec.encode_inputs(inputs).inputs[2].take(torch.arange(3))[0]
    assert way.tolist() == [2, 1, 0]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[TextPairClassification, TextPairCodec]:
    return learn(check(tmp_path_factory.mktemp("pairs"), PLAIN))


PAIRS = [
    ("", ""),
    ("a cat", ""),
    ("x" * 100_000, "고양이가 잔다"),
    ("\u202eشكرا cat", "👍🏽 \x00\x07"),
    ("a cat sleeps", "a cat sleeps"),
]


@pytest.mark.parametrize("architecture", [BagOfEmbeddings(), TextCNN()])
def test_any_texts_get_an_answer(tmp_path: Path, architecture: Any) -> None:
    task, codec = learn(check(tmp_path, PLAIN), architecture=architecture)
    columns = codec.encode_inputs(codec.read_inputs([{"text_a": a, "text_b": b} for a, b in PAIRS]))
    learner = task.build(codec).eval()
    batch = columns.batch(torch.arange(len(PAIRS)))
    assert learner.predict(*batch.inputs).isfinite().all()


def test_inputs_encode_as_their_frame_does(
    plain: tuple[TextPairClassification, TextPairCodec],
) -> None:
    _, codec = plain
    inputs = codec.read_inputs([{"text_a": a, "text_b": b} for a, b in PAIRS])
    frame = pl.DataFrame(
        [given.model_dump() for given in inputs],
        {"text_a": pl.String, "text_b": pl.String, "direction": pl.String},
    )
    direct, framed = codec.encode_inputs(inputs), codec.encode(frame, targets=False)
    for mine, its in zip(direct.inputs, framed.inputs, strict=True):
        for name, tensor in mine.tensors().items():
            assert torch.equal(tensor, its.tensors()[name])


@pytest.mark.parametrize(
    ("value", "loc"),
    [
        ({"text_a": "x"}, ("text_b",)),
        ({"text_a": "x", "text_b": 3}, ("text_b",)),
        ({"text_a": "x", "text_b": "y" * 1_000_001}, ("text_b",)),
        ({"text_a": "\ud800", "text_b": "y"}, ("text_a",)),
        ({"text_a": "x", "text_b": "y", "direction": "1>2"}, ("direction",)),
        ({"text_a": "x", "text_b": "y", "direction": "\udfff"}, ("direction",)),
        ({"text": "x"}, ("text_a",)),
    ],
)
def test_wrong_inputs_are_named(
    plain: tuple[TextPairClassification, TextPairCodec], value: Any, loc: Any
) -> None:
    with pytest.raises(Invalid) as caught:
        plain[1].read_inputs([value])
    assert caught.value.problems[0].loc == ("inputs", 0, *loc)


def test_tokens_are_shared_whatever_their_places_and_padding_never_is() -> None:
    a, b = torch.tensor([[5, 6, 0], [7, 7, 8]]), torch.tensor([[6, 9], [7, 0]])
    left, right, same = beside(a, torch.tensor([2, 3]), b, torch.tensor([2, 1]))
    assert left.own.tolist() == [[True, False, False], [False, False, True]]
    assert right.own.tolist() == [[False, True], [False, False]]
    assert same.sum() == 3


def test_a_word_that_only_one_text_has_changes_the_scores_of_its_pair_alone() -> None:
    torch.manual_seed(0)
    head = Matching(4, torch.ones(20), 0, 2, 0.0, alignment=False).eval()
    torch.nn.init.normal_(head.leftovers.crossed.weight)
    assert head.leftovers.crossed.num_embeddings == BUCKETS
    a, lengths = torch.tensor([[5, 6], [5, 6]]), torch.tensor([2, 2])

    def scores(b: list[list[int]]) -> torch.Tensor:
        left, right, _ = beside(a, lengths, torch.tensor(b), lengths)
        found: torch.Tensor = head.leftovers(left, right)
        return found

    first, second = scores([[5, 6], [5, 6]]), scores([[5, 6], [5, 9]])
    assert first[0].tolist() == first[1].tolist() == [0, 0]
    assert torch.equal(first[0], second[0])
    assert not torch.equal(first[1], second[1])


def texts(folder: Path) -> Checked:
    (folder / "texts").write_text("text,label\n" + "a cat sleeps,cat\na dog eats,dog\n" * 10)
    upload = Upload(folder / "texts", "texts.csv")
    return TextClassification.check({"file": upload}, DatasetOptions())


def taken(task: Task, codec: Any, base: Task, base_codec: Any) -> bool:
    """Whether a learner can start from the backbone of another task's."""
    learner, other = task.build(codec), base.build(base_codec)
    learner.take_over(other, head=task.same_outputs(codec, base_codec))
    assert isinstance(learner, Supervised)
    assert isinstance(other, Supervised)
    mine, its = learner.backbone.state_dict(), other.backbone.state_dict()
    return all(torch.equal(mine[name], its[name]) for name in its)


@pytest.mark.parametrize("architecture", [BagOfEmbeddings(), TextCNN()])
def test_pairs_start_from_what_learned_from_texts_and_texts_from_pairs(
    tmp_path: Path, architecture: Any
) -> None:
    data = texts(tmp_path)
    single = TextClassification(
        architecture=architecture, tokenizer=Words(), max_length=8, loss=CrossEntropy()
    )
    single_codec = single.learn_codec(data.splits["train"].lazy(), data.schema)
    pair, pair_codec = learn(check(tmp_path, PLAIN), single_codec, architecture)
    assert pair_codec.vocabulary == single_codec.vocabulary
    assert taken(pair, pair_codec, single, single_codec)
    pair, pair_codec = learn(check(tmp_path, PLAIN), None, architecture)
    again = single.learn_codec(data.splits["train"].lazy(), data.schema, pair_codec)
    assert again.vocabulary == pair_codec.vocabulary
    assert taken(single, again, pair, pair_codec)


def test_a_head_is_kept_for_the_same_labels_only(tmp_path: Path) -> None:
    task, codec = learn(check(tmp_path, PLAIN))
    assert task.same_outputs(codec, codec)
    assert not task.same_outputs(codec, codec.model_copy(update={"labels": ["no", "perhaps"]}))
    data = texts(tmp_path)
    single = TextClassification(architecture=BagOfEmbeddings(), tokenizer=Words(), max_length=8)
    base = single.learn_codec(data.splits["train"].lazy(), data.schema)
    assert not task.same_outputs(codec, base.model_copy(update={"labels": codec.labels}))
    assert not single.same_outputs(base.model_copy(update={"labels": codec.labels}), codec)
