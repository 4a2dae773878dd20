"""Class labels and what predictions of them are worth."""

import numpy as np
import polars as pl
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, confusion_matrix, f1_score, log_loss

from tasks.parts.labels import (
    MAX_CLASSES,
    LabelPrediction,
    check_classes,
    evaluate_labels,
    score_labels,
)
from tasks.parts.problems import Invalid
from tasks.parts.vocabulary import Vocabulary
from tasks.text_classification import TextClassificationCodec

LABELS = ["a", "b", "c"]


def predictions(seed: int, count: int = 60) -> tuple[list[LabelPrediction], list[str]]:
    draw = np.random.default_rng(seed)
    scores = draw.dirichlet(np.ones(3), count)
    made = [
        LabelPrediction(label=LABELS[row.argmax()], scores=dict(zip(LABELS, row, strict=True)))
        for row in scores
    ]
    return made, draw.choice(LABELS, count).tolist()


@pytest.mark.parametrize("seed", range(5))
def test_metrics_agree_with_scikit_learn(seed: int) -> None:
    made, truth = predictions(seed)
    labels = [p.label for p in made]
    found = score_labels(made, truth)
    assert found["accuracy"] == pytest.approx(np.mean(np.array(labels) == np.array(truth)))
    assert found["macro_f1"] == pytest.approx(f1_score(truth, labels, average="macro"))
    assert found["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(truth, labels))
    scores = [[p.scores[label] for label in LABELS] for p in made]
    assert found["log_loss"] == pytest.approx(log_loss(truth, scores, labels=LABELS))


def test_an_evaluation_shows_classes_confusion_and_the_worst() -> None:
    made, truth = predictions(0)
    found = evaluate_labels(made, truth)
    counts = confusion_matrix(truth, [p.label for p in made], labels=LABELS)
    assert found["confusion"] == {"labels": LABELS, "counts": counts.tolist()}
    assert found["per_class"]["a"]["support"] == truth.count("a")
    worst = found["worst"]
    assert len(worst) == 10
    assert [w["loss"] for w in worst] == sorted((w["loss"] for w in worst), reverse=True)
    assert all(w["truth"] == truth[w["row"]] != w["predicted"] for w in worst)


def test_a_label_the_model_does_not_know_counts_as_wrong() -> None:
    made = [LabelPrediction(label="a", scores={"a": 0.9, "b": 0.1})] * 2
    found = evaluate_labels(made, ["a", "z"])
    assert found["accuracy"] == 0.5
    assert found["per_class"]["z"] == {"precision": 0, "recall": 0, "f1": 0, "support": 1}


def codec() -> TextClassificationCodec:
    vocabulary = Vocabulary(tokenizer="{}", max_length=8)
    return TextClassificationCodec(labels=["x", "y"], counts=[1, 1], vocabulary=vocabulary)


def test_scores_of_a_prediction_sum_to_1_and_lead_to_its_label() -> None:
    (one, other) = codec().decode(torch.tensor([[0.0, 1000.0], [2.0, 1.0]]))
    assert (one.label, one.scores) == ("y", {"x": 0.0, "y": 1.0})
    assert other.label == "x"
    assert sum(other.scores.values()) == pytest.approx(1)


def test_labels_become_their_places_and_unknown_ones_are_named() -> None:
    encoded = codec().encode_labels(pl.Series("l", ["y", "x", "y"]))
    assert encoded.values.tolist() == [1, 0, 1]
    with pytest.raises(Invalid) as caught:
        codec().encode_labels(pl.Series("l", ["x", "z"]))
    (found,) = caught.value.problems
    assert (found.loc, found.found, found.allowed) == (("row", 2, "l"), "z", ["x", "y"])


def test_more_classes_than_can_be_meant_are_refused() -> None:
    frame = pl.DataFrame({"y": [str(number) for number in range(MAX_CLASSES + 1)]})
    with pytest.raises(Invalid, match="too many classes"):
        check_classes({"train": frame}, "y")


def test_every_fault_of_the_labels_is_listed() -> None:
    splits = {
        "train": pl.DataFrame({"y": ["a", "b", None]}),
        "test": pl.DataFrame({"y": ["q", "", "q", "r", "a"]}),
    }
    with pytest.raises(Invalid) as caught:
        check_classes(splits, "y", ("file",))
    assert [(p.loc[1], p.loc[3], p.found) for p in caught.value.problems] == [
        ("train", 3, ""),
        ("test", 2, ""),
        ("test", 1, "q"),
        ("test", 4, "r"),
    ]
