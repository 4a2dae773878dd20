"""Class labels: checks, codes, predictions, and what predictions are worth; for every task that classifies."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from models.parts.options import Plain
from tasks.base import Codec, Metrics
from tasks.parts.columns import Dense
from tasks.parts.problems import Invalid, Problem
from tasks.parts.splits import line_of

CLASSIFICATION_METRICS: dict[str, str] = {
    "accuracy": "Share of the examples whose label is right.",
    "macro_f1": "F1 of each class, averaged: every class counts the same.",
    "balanced_accuracy": "Recall of each class, averaged.",
    "log_loss": "Mean negative log of the score given to the right label; lower is better.",
}
MAX_CLASSES = 10_000
SHOWN = 50
"""Labels listed in a problem."""
WORST = 10
_LEAST = 1e-15


class LabelPrediction(Plain):
    """The most likely label, and how likely each one is."""

    label: str = Field(description="The label with the highest score.")
    scores: dict[str, float] = Field(description="The probability of every label; they sum to 1.")


def check_classes(
    splits: Mapping[str, pl.DataFrame], column: str, loc: tuple[str | int, ...] = ()
) -> list[str]:
    """The labels in order of their names.

    Raises Invalid for empty labels, for fewer than two classes, and for labels that the train split
    lacks; each problem is at (*loc, split, "line", n, column).
    """
    problems = _empty_labels(splits, column, loc)
    labels = sorted(set(splits["train"][column].drop_nulls()) - {""})
    if len(labels) > MAX_CLASSES:
        problems.append(
            Problem(
                (*loc, "train", column),
                "too many classes; is this column a label?",
                len(labels),
                f"at most {MAX_CLASSES} different labels",
            )
        )
    elif len(labels) < 2:
        found = labels[0] if labels else "no label"
        problems.append(
            Problem((*loc, "train", column), "one class only", found, "two or more classes")
        )
    else:
        problems += _strange_labels(splits, column, loc, labels)
    if problems:
        raise Invalid(*problems)
    return labels


def _empty_labels(
    splits: Mapping[str, pl.DataFrame], column: str, loc: tuple[str | int, ...]
) -> list[Problem]:
    return [
        Problem((*loc, split, "line", line_of(frame, row), column), "the label is empty", "")
        for split, frame in splits.items()
        for row in (frame[column].is_null() | (frame[column] == "")).arg_true()[: Invalid.LIMIT]
    ]


def _strange_labels(
    splits: Mapping[str, pl.DataFrame],
    column: str,
    loc: tuple[str | int, ...],
    labels: list[str],
) -> list[Problem]:
    problems = []
    for split, frame in splits.items():
        known = frame[column].fill_null("").is_in([*labels, ""])
        first = frame.with_row_index("\0row").filter(~known).unique(column, keep="first")
        for row in sorted(first["\0row"].to_list())[: Invalid.LIMIT]:
            where = (*loc, split, "line", line_of(frame, row), column)
            problems.append(
                Problem(
                    where, "the train split lacks this label", frame[column][row], labels[:SHOWN]
                )
            )
    return problems


def balance(splits: Mapping[str, pl.DataFrame], column: str) -> dict[str, Any]:
    """How often each label occurs in each split, and the accuracy of always guessing the commonest."""
    counted = {
        name: dict(frame[column].value_counts().iter_rows()) for name, frame in splits.items()
    }
    labels = sorted({label for counts in counted.values() for label in counts})
    train = counted["train"]
    return {
        "classes": {
            label: {split: counts.get(label, 0) for split, counts in counted.items()}
            for label in labels
        },
        "majority_share": max(train.values()) / sum(train.values()),
    }


class LabelCodec(Codec):
    """A codec whose targets are classes; `labels[i]` is the name of class i."""

    grows: ClassVar[bool] = True
    """Whether the outputs are a score for each label, so that there may be more behind those of a base."""
    labels: list[str]
    counts: list[int]
    """How often each label occurs in the train split."""

    def encode_labels(self, labels: pl.Series) -> Dense:
        """Class numbers (N,) int64. Raises Invalid for a label the codec does not know."""
        codes = labels.replace_strict(
            self.labels, list(range(len(self.labels))), default=-1, return_dtype=pl.Int64
        )
        unknown = (codes < 0).arg_true()
        if len(unknown):
            row = unknown[0]
            raise Invalid(
                Problem(
                    ("row", row + 1, labels.name), "unknown label", labels[row], self.labels[:SHOWN]
                )
            )
        return Dense(torch.from_numpy(codes.to_numpy(writable=True)))

    def decode(self, outputs: Tensor) -> list[Any]:
        """Predictions from class scores (B, classes)."""
        probabilities = outputs.double().softmax(-1)
        names, best = self.labels, probabilities.argmax(-1).tolist()
        make = LabelPrediction.model_construct
        return [
            make(label=names[place], scores=dict(zip(names, row, strict=True)))
            for place, row in zip(best, probabilities.tolist(), strict=True)
        ]


def count_labels(labels: pl.Series) -> tuple[list[str], list[int]]:
    """The labels in order of their names, and how often each occurs."""
    counts = dict(labels.value_counts().iter_rows())
    names = sorted(counts)
    return names, [counts[name] for name in names]


class _Table(NamedTuple):
    """Predictions and truth as arrays over `labels`: (N,), (N,), (N, known labels)."""

    labels: list[str]
    truth: NDArray[np.int64]
    predicted: NDArray[np.int64]
    scores: NDArray[np.float64]

    @property
    def confusion(self) -> NDArray[np.int64]:
        """Counts (labels, labels): rows are the truth, columns what was predicted."""
        size = len(self.labels)
        cells = np.bincount(self.truth * size + self.predicted, minlength=size * size)
        return cells.reshape(size, size)

    @property
    def losses(self) -> NDArray[np.float64]:
        """Negative log of the score of the right label (N,)."""
        known = self.truth < self.scores.shape[1]
        rows = np.arange(len(self.truth))
        right = self.scores[rows, np.where(known, self.truth, 0)]
        return -np.log(np.maximum(np.where(known, right, 0.0), _LEAST))


def _table(
    predictions: Sequence[LabelPrediction], truth: Sequence[str], labels: Sequence[str] = ()
) -> _Table:
    known = list(predictions[0].scores)
    names = known + sorted({*truth, *labels} - set(known))
    place = {name: number for number, name in enumerate(names)}
    return _Table(
        names,
        np.array([place[label] for label in truth]),
        np.array([place[prediction.label] for prediction in predictions]),
        np.array([list(prediction.scores.values()) for prediction in predictions]),
    )


def _per_class(confusion: NDArray[np.int64]) -> tuple[NDArray[np.float64], ...]:
    """Precision, recall, F1 and support (labels,) each; 0 where nothing is there to divide by."""
    hits = np.diag(confusion).astype(float)
    support, predicted = confusion.sum(1), confusion.sum(0)
    return (
        hits / np.maximum(predicted, 1),
        hits / np.maximum(support, 1),
        2 * hits / np.maximum(predicted + support, 1),
        support,
    )


def _metrics(table: _Table) -> Metrics:
    confusion = table.confusion
    _, recall, f1, support = _per_class(confusion)
    seen = (support + confusion.sum(0)) > 0
    return {
        "accuracy": float(np.mean(table.truth == table.predicted)),
        "macro_f1": float(f1[seen].mean()),
        "balanced_accuracy": float(recall[support > 0].mean()),
        "log_loss": float(table.losses.mean()),
    }


def score_labels(predictions: Sequence[LabelPrediction], truth: Sequence[str]) -> Metrics:
    """Every metric of `CLASSIFICATION_METRICS`."""
    return _metrics(_table(predictions, truth))


def evaluate_labels(
    predictions: Sequence[LabelPrediction], truth: Sequence[str], labels: Sequence[str] = ()
) -> dict[str, Any]:
    """The metrics, figures of every class, the confusion matrix, and the worst predictions.

    Classes are those of the predictions, the truth and `labels`. A row of the confusion matrix is a
    true label; a worst prediction is one that gave its right label the least.
    """
    table = _table(predictions, truth, labels)
    confusion = table.confusion
    figures = np.stack(_per_class(confusion)[:3], axis=1).tolist()
    support = confusion.sum(1).tolist()
    return {
        **_metrics(table),
        "per_class": {
            label: {"precision": p, "recall": r, "f1": f, "support": n}
            for label, (p, r, f), n in zip(table.labels, figures, support, strict=True)
        },
        "confusion": {"labels": table.labels, "counts": confusion.tolist()},
        "worst": _worst(table, predictions),
    }


def _worst(table: _Table, predictions: Sequence[LabelPrediction]) -> list[dict[str, Any]]:
    losses = table.losses
    return [
        {
            "row": row,
            "truth": table.labels[table.truth[row]],
            "predicted": predictions[row].label,
            "score": predictions[row].scores[predictions[row].label],
            "loss": float(losses[row]),
        }
        for row in np.argsort(-losses, kind="stable")[:WORST].tolist()
        if table.truth[row] != table.predicted[row]
    ]
