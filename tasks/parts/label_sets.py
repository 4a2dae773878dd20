"""Examples that have several labels, or none: read, checked, predicted and scored, for tasks that take them too."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, Field
from sklearn.metrics import average_precision_score, precision_recall_fscore_support
from torch import Tensor, nn

from models.parts.losses import (
    BinaryCrossEntropy,
    ClassificationLoss,
    CrossEntropy,
    LabelLoss,
    MultiLabelLoss,
)
from models.parts.options import AUTO, Auto, OneOf
from tasks.base import DatasetOptions, Facts, Metrics, Objective, Task
from tasks.parts.column_types import to_text
from tasks.parts.columns import Dense
from tasks.parts.labels import (
    CLASSIFICATION_METRICS,
    MAX_CLASSES,
    SHOWN,
    WORST,
    LabelCodec,
    LabelPrediction,
    balance,
    check_classes,
    count_labels,
    evaluate_labels,
    score_labels,
)
from tasks.parts.problems import Invalid, Problem
from tasks.parts.splits import line_of

LABEL_SET_METRICS: dict[str, str] = {
    "micro_f1": "F1 of all labels of all examples together, where examples have several labels.",
    "macro_f1": "F1 of each class, averaged: every class counts the same.",
    "exact_match": "Share of the examples that get their labels, no more and no fewer.",
    "mean_average_precision": "Area under precision over recall of each label's scores, averaged over "
    "the labels that occur; needs no threshold.",
}
SETS = pl.List(pl.String)
RAREST = "\0rarest"
"""A column a reader adds to examples with several labels: which of them is the rarest. `describe` drops it."""
_LEAST = 1e-15


class LabelsOptions(DatasetOptions):
    """How to read an upload whose examples may have several labels."""

    label_separator: str | None = Field(
        None,
        min_length=1,
        max_length=8,
        description="What stands between the labels of an example, such as `|`; where it is given, examples may "
        "have several labels or none. Lists of labels need none.",
    )


class LabelsPrediction(LabelPrediction):
    """How likely each label is by itself, and which ones an example is given; or one label of several."""

    label: str = Field(description="The label with the highest score.")
    scores: dict[str, float] = Field(
        description="The probability of every label; they sum to 1 where an example has one label."
    )
    labels: list[str] | None = Field(
        None,
        description="The labels whose scores reach the threshold, the best one first; left out where an example has "
        "one label.",
    )


class LabelSetCodec(LabelCodec):
    """A codec whose targets are classes, or which of the labels an example has."""

    multi_label: bool = False
    threshold: float = 0.5
    examples: int = 0
    """Examples of the train split, where they may have several labels."""

    def encode_labels(self, labels: pl.Series) -> Dense:
        """Classes (N,) int64, or for each label 1 where an example has it (N, labels) uint8. Raises Invalid."""
        if not self.multi_label:
            return super().encode_labels(_alone(labels))
        rows, names = _pairs(as_sets(labels))
        places = super().encode_labels(names).values if len(names) else torch.zeros(0).long()
        having = torch.zeros((len(labels), len(self.labels)), dtype=torch.uint8)
        having[torch.from_numpy(rows), places] = 1
        return Dense(having)

    def decode(self, outputs: Tensor) -> list[Any]:
        """Predictions from scores (B, labels)."""
        if not self.multi_label:
            return super().decode(outputs)
        rows = outputs.double().sigmoid()
        order = rows.argsort(stable=True, descending=True).tolist()
        return [
            LabelsPrediction.model_construct(
                label=self.labels[ranked[0]],
                scores=dict(zip(self.labels, row, strict=True)),
                labels=[self.labels[place] for place in ranked if row[place] >= self.threshold],
            )
            for row, ranked in zip(rows.tolist(), order, strict=True)
        ]


class LabelTask(Task):
    """A task that gives each example one label, or several where its data has them."""

    multi_label: Auto[bool] = Field(
        AUTO,
        description="Whether an example may have several labels, or none; if not asked for, where the data says so.",
    )
    threshold: float = Field(
        0.5, gt=0, lt=1, description="Score from which on a label is given, where several may be."
    )
    loss: Auto[OneOf[LabelLoss]] = Field(
        AUTO,
        description="How far scores are from labels: `cross-entropy`, or one of the others where examples have "
        "several.",
    )

    prediction_type: ClassVar[type[BaseModel]] = LabelsPrediction
    options_type = LabelsOptions
    objective = Objective("accuracy")
    metrics: ClassVar[Mapping[str, str]] = {**CLASSIFICATION_METRICS, **LABEL_SET_METRICS}

    @property
    def aim(self) -> Objective:
        return Objective("micro_f1") if self.multi_label is True else self.objective

    @property
    def answer_type(self) -> type[BaseModel]:
        return LabelsPrediction if self.multi_label is True else LabelPrediction

    @property
    def measures(self) -> Mapping[str, str]:
        return LABEL_SET_METRICS if self.multi_label is True else CLASSIFICATION_METRICS

    @classmethod
    def stratum(cls, examples: pl.DataFrame, options: DatasetOptions) -> str | None:
        return RAREST if RAREST in examples.columns else "label"

    @classmethod
    def label_column(cls, schema: Mapping[str, Any]) -> str | None:
        return "label"

    def resolve(self, facts: Facts) -> Self:
        """Raises Invalid for a loss, or one label, that does not fit the data."""
        several = bool(facts.schema.get("multi_label", False))
        multi_label = several if self.multi_label == AUTO else self.multi_label
        if several and not multi_label:
            message = "examples of the data set have several labels"
            raise Invalid(Problem(("task", "multi_label"), message, False, True))
        usual = BinaryCrossEntropy() if multi_label else CrossEntropy()
        loss = usual if self.loss == AUTO else self.loss
        family: type[LabelLoss] = MultiLabelLoss if multi_label else ClassificationLoss
        if not isinstance(loss, family):
            several_or_one = "several labels" if multi_label else "one label"
            allowed = [option.option_name() for option in family.options()]
            message = f"not a loss for examples with {several_or_one}"
            raise Invalid(Problem(("task", "loss"), message, loss.name, allowed))
        return super().resolve(facts).model_copy(update={"multi_label": multi_label, "loss": loss})

    def learn_labels(self, labels: pl.Series) -> dict[str, Any]:
        """The fields of a `LabelSetCodec`, from the labels of the train split."""
        if self.multi_label is not True:
            names, counts = count_labels(labels)
            return {"labels": names, "counts": counts, "multi_label": False}
        names, counts = count_labels(_pairs(as_sets(labels))[1])
        return {
            "labels": names,
            "counts": counts,
            "multi_label": True,
            "threshold": self.threshold,
            "examples": len(labels),
        }

    def criterion(self, codec: LabelSetCodec) -> nn.Module:
        """The loss for data in this codec."""
        loss: Any = self.loss
        several = (codec.examples,) if codec.multi_label else ()
        built: nn.Module = loss.build(codec.counts, *several)
        return built

    def same_outputs(self, codec: Any, base: Any) -> bool:
        return (
            isinstance(base, LabelSetCodec)
            and codec.labels == base.labels
            and codec.multi_label == base.multi_label
        )

    def score(self, predictions: Sequence[Any], examples: pl.DataFrame) -> Metrics:
        if self.multi_label is True:
            return score_label_sets(predictions, as_sets(examples["label"]).to_list())
        return score_labels(predictions, _alone(examples["label"]).to_list())

    def evaluate(self, predictions: Sequence[Any], examples: pl.DataFrame) -> dict[str, Any]:
        if self.multi_label is True:
            return evaluate_label_sets(predictions, as_sets(examples["label"]).to_list())
        return evaluate_labels(predictions, _alone(examples["label"]).to_list())


# From an upload to a checked data set


def read_labels(cells: pl.Series, options: DatasetOptions) -> pl.Series:
    """The labels of examples: one text each, or lists of texts where the file or the options say so."""
    separator = options.label_separator if isinstance(options, LabelsOptions) else None
    if cells.dtype == SETS:
        return as_sets(cells)
    if separator is None:
        return to_text(cells)
    found = [
        [label for part in (cell or "").split(separator) if (label := part.strip())]
        for cell in to_text(cells).to_list()
    ]
    return as_sets(pl.Series(cells.name, found, SETS))


def as_sets(labels: pl.Series) -> pl.Series:
    """Labels as lists without repetitions; a label that comes alone is a list of one, a missing one none."""
    cells = ([c] if isinstance(c, str) else c or [] for c in labels.to_list())
    tidy = [[*dict.fromkeys((label or "").strip() for label in cell)] for cell in cells]
    return pl.Series(labels.name, tidy, SETS)


def with_rarest(examples: pl.DataFrame) -> pl.DataFrame:
    """Examples with what splits keep the shares of: the rarest of their labels (after Sechidis et al., 2011)."""
    if examples["label"].dtype != SETS:
        return examples
    cells = examples["label"].to_list()
    counts = Counter(label for cell in cells for label in cell)
    rarest = [min(cell, key=lambda label: (counts[label], label), default="") for cell in cells]
    return examples.with_columns(pl.Series(RAREST, rarest, pl.String))


def _alone(labels: pl.Series) -> pl.Series:
    """Labels that are one for each example. Raises Invalid for those of data where they may be several."""
    if labels.dtype == SETS:
        message, allowed = "examples have several labels, the model gives one", "one label each"
        raise Invalid(Problem((labels.name,), message, None, allowed))
    return labels


def describe_labels(
    splits: Mapping[str, pl.DataFrame],
) -> tuple[dict[str, pl.DataFrame], dict[str, Any], dict[str, Any]]:
    """The splits with `label` in its final type, and what schema and report say of it. Raises Invalid."""
    if not any(frame["label"].dtype == SETS for frame in splits.values()):
        labels = check_classes(splits, "label")
        return dict(splits), {"labels": labels}, balance(splits, "label")
    frames = {name: frame.with_columns(as_sets(frame["label"])) for name, frame in splits.items()}
    labels = _check_sets(frames)
    return frames, {"labels": labels, "multi_label": True}, _balance(frames, labels)


def _check_sets(splits: Mapping[str, pl.DataFrame]) -> list[str]:
    """The labels by name. Raises Invalid for empty ones, for none at all, and for those the train split lacks."""
    found = {name: _pairs(frame["label"]) for name, frame in splits.items()}
    labels = sorted(set(found["train"][1]) - {""})
    problems = []
    if not labels:
        problems.append(Problem(("train", "label"), "no label", 0, "one label or more"))
    if len(labels) > MAX_CLASSES:
        message, allowed = "too many labels", f"at most {MAX_CLASSES} different labels"
        problems.append(Problem(("train", "label"), message, len(labels), allowed))
    known = set(labels)
    for split, (rows, names) in found.items():
        strange: dict[str, int] = {}
        for row, name in zip(rows.tolist(), names, strict=True):
            if name not in known:
                strange.setdefault(name, row)
        for name, row in [*strange.items()][: Invalid.LIMIT]:
            where = (split, "line", line_of(splits[split], row), "label")
            message = "the train split lacks this label" if name else "the label is empty"
            problems.append(Problem(where, message, name, labels[:SHOWN]))
    if problems:
        raise Invalid(*problems)
    return labels


def _pairs(labels: pl.Series) -> tuple[NDArray[np.int64], pl.Series]:
    """All labels of all examples, and the rows (M,) that they are of."""
    rows = np.arange(len(labels)).repeat(labels.list.len().to_numpy())
    names = [name for cell in labels.to_list() for name in cell]
    return rows, pl.Series(labels.name, names, pl.String)


def _balance(splits: Mapping[str, pl.DataFrame], labels: Sequence[str]) -> dict[str, Any]:
    """How often each label occurs in each split, how many an example has, and how many have none."""
    counted = {
        name: dict(_pairs(frame["label"])[1].value_counts().iter_rows())
        for name, frame in splits.items()
    }
    sizes = splits["train"]["label"].list.len()
    return {
        "classes": {
            label: {split: counts.get(label, 0) for split, counts in counted.items()}
            for label in labels
        },
        "labels_per_example": {"mean": sizes.mean(), "max": sizes.max()},
        "unlabelled": {
            name: int((frame["label"].list.len() == 0).sum()) for name, frame in splits.items()
        },
    }


# What predictions are worth


class _Sets:
    """Truth, what was given, and scores, each (N, labels); labels the model does not know score 0."""

    def __init__(
        self, predictions: Sequence[LabelsPrediction], truth: Sequence[Sequence[str]]
    ) -> None:
        known = list(predictions[0].scores)
        self.labels = known + sorted({label for labels in truth for label in labels} - {*known})
        self.truth = self._having(truth)
        self.given = self._having([prediction.labels or [] for prediction in predictions])
        self.scores = np.zeros(self.truth.shape)
        self.scores[:, : len(known)] = [[*prediction.scores.values()] for prediction in predictions]

    def _having(self, sets: Sequence[Sequence[str]]) -> NDArray[np.int64]:
        place = {label: number for number, label in enumerate(self.labels)}
        having = np.zeros((len(sets), len(self.labels)), np.int64)
        for row, labels in enumerate(sets):
            having[row, [place[label] for label in labels]] = 1
        return having

    def averages(self) -> NDArray[np.float64]:
        """The average precision of each label (labels,), NaN for those that do not occur."""
        return np.array(
            [
                average_precision_score(self.truth[:, place], self.scores[:, place])
                if self.truth[:, place].any()
                else np.nan
                for place in range(len(self.labels))
            ]
        )

    def per_class(self, average: str | None = None) -> Any:
        """Precision, recall, F1 and support of each label, or an `average`."""
        return precision_recall_fscore_support(
            self.truth, self.given, average=average, zero_division=0.0
        )

    def metrics(self) -> Metrics:
        averages = self.averages()
        occurs = self.truth.any(0) | self.given.any(0)
        f1 = self.per_class()[2]
        return {
            "micro_f1": float(self.per_class("micro")[2]),
            "macro_f1": float(f1[occurs].mean()) if occurs.any() else 0.0,
            "exact_match": float((self.truth == self.given).all(1).mean()),
            "mean_average_precision": (
                0.0 if np.isnan(averages).all() else float(np.nanmean(averages))
            ),
        }


def score_label_sets(
    predictions: Sequence[LabelsPrediction], truth: Sequence[Sequence[str]]
) -> Metrics:
    """Every metric of `LABEL_SET_METRICS`."""
    return _Sets(predictions, truth).metrics()


def evaluate_label_sets(
    predictions: Sequence[LabelsPrediction], truth: Sequence[Sequence[str]]
) -> dict[str, Any]:
    """The metrics, figures of every label, and the worst predictions: those whose truth is the least likely."""
    sets = _Sets(predictions, truth)
    averages = [None if np.isnan(value) else value for value in sets.averages().tolist()]
    figures = zip(*(of.tolist() for of in sets.per_class()), averages, strict=True)
    return {
        **sets.metrics(),
        "per_class": {
            label: {"precision": p, "recall": r, "f1": f, "support": n, "average_precision": a}
            for label, (p, r, f, n, a) in zip(sets.labels, figures, strict=True)
        },
        "worst": _worst(sets, predictions, truth),
    }


def _worst(
    sets: _Sets, predictions: Sequence[LabelsPrediction], truth: Sequence[Sequence[str]]
) -> list[dict[str, Any]]:
    of_truth = np.where(sets.truth == 1, sets.scores, 1 - sets.scores)
    losses = -np.log(np.maximum(of_truth, _LEAST)).mean(1)
    wrong = (sets.truth != sets.given).any(1)
    return [
        {
            "row": row,
            "truth": list(truth[row]),
            "predicted": predictions[row].labels,
            "loss": float(losses[row]),
        }
        for row in np.argsort(-losses, kind="stable")[:WORST].tolist()
        if wrong[row]
    ]
