"""How well objects are found: average precision as COCO computes it (Lin et al., 2014)."""

import io
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

PRECISION_METRICS: dict[str, str] = {
    "map": "Average precision of each class, averaged over classes and overlaps from 0.5 to 0.95.",
    "ap50": "Average precision where an overlap of 0.5 is enough, averaged over classes.",
    "ap75": "Average precision where it takes an overlap of 0.75, averaged over classes.",
    "mar": "Share of the objects found among the best 100 of an image, averaged as `map` is.",
}
MOST = 100
_EVERY_SIZE, _ALL = 0, -1
"""Places in COCO's tables: of objects of all sizes, and of the hundred best."""


class Marks(NamedTuple):
    """The objects of an image: labels and boxes [x1, y1, x2, y2]."""

    labels: Sequence[str]
    boxes: Sequence[Sequence[float]]
    scores: Sequence[float] = ()
    """Of what was found."""
    crowds: Sequence[bool] = ()
    """Of the truth: regions in which nothing that is found counts."""
    masks: Sequence[Mapping[str, Any]] = ()
    """Run lengths, as pycocotools has them: what then counts is how these overlap, not boxes."""


class Precisions(NamedTuple):
    """COCO's tables: precision (overlaps, recalls, classes) and recall (overlaps, classes); -1: no such object."""

    labels: list[str]
    precision: NDArray[np.float64]
    recall: NDArray[np.float64]
    scores: NDArray[np.float64]
    """The score that reaches a recall (overlaps, recalls, classes)."""


def precisions(found: Sequence[Marks], truth: Sequence[Marks]) -> Precisions:
    """What pycocotools says of objects found in images, and of those that are there."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    labels = sorted({label for marks in truth for label in marks.labels})
    ids = {label: number for number, label in enumerate(labels, 1)}
    with redirect_stdout(io.StringIO()):
        coco, results = COCO(), COCO()
        for database, rows in ((coco, truth), (results, found)):
            database.dataset = {
                "images": _images(truth),
                "categories": [{"id": number} for number in ids.values()],
                "annotations": _annotations(rows, ids),
            }
            database.createIndex()
        judge = COCOeval(coco, results, "segm" if any(m.masks for m in truth) else "bbox")
        judge.params.areaRng, judge.params.areaRngLbl = [[0, 1e10]], ["all"]
        judge.evaluate()
        judge.accumulate()
    precision, recall = judge.eval["precision"], judge.eval["recall"]
    every, scores = (..., _EVERY_SIZE, _ALL), judge.eval["scores"]
    return Precisions(labels, precision[every], recall[every], scores[every])


def _images(truth: Sequence[Marks]) -> list[dict[str, Any]]:
    """Images in COCO's own words, their sizes where masks tell."""
    sizes = [m.masks[0]["size"] if m.masks else (0, 0) for m in truth]
    return [
        {"id": number, "height": height, "width": width}
        for number, (height, width) in enumerate(sizes, 1)
    ]


def _annotations(rows: Sequence[Marks], ids: dict[str, int]) -> list[dict[str, Any]]:
    """Objects in COCO's own words; those of labels that are nowhere in the truth count for nothing."""
    annotations: list[dict[str, Any]] = []
    for image, marks in enumerate(rows, 1):
        for place, (label, box) in enumerate(zip(marks.labels, marks.boxes, strict=True)):
            if label not in ids:
                continue
            crowd = bool(marks.crowds[place]) if marks.crowds else False
            x1, y1, x2, y2 = box
            found = {
                "id": len(annotations) + 1,
                "image_id": image,
                "category_id": ids[label],
                "iscrowd": int(crowd),
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": (x2 - x1) * (y2 - y1),
            }
            if marks.masks:
                found["segmentation"] = dict(marks.masks[place])
            if marks.scores:
                found["score"] = marks.scores[place]
            annotations.append(found)
    return annotations


def summary(tables: Precisions) -> dict[str, float]:
    """Every metric of `PRECISION_METRICS`; 0 where nothing is to be found."""
    return {
        "map": _mean(tables.precision),
        "ap50": _mean(tables.precision[0]) if tables.labels else 0.0,
        "ap75": _mean(tables.precision[5]) if tables.labels else 0.0,
        "mar": _mean(tables.recall),
    }


def per_class(tables: Precisions) -> dict[str, dict[str, float]]:
    """Average precision and recall of each class."""
    return {
        label: {
            "map": _mean(tables.precision[..., place]),
            "ap50": _mean(tables.precision[0, :, place]),
            "mar": _mean(tables.recall[:, place]),
        }
        for place, label in enumerate(tables.labels)
    }


def best_threshold(tables: Precisions) -> dict[str, dict[str, float]]:
    """For each class the threshold at which F1 is best where an overlap of 0.5 is enough."""
    steps = np.linspace(0, 1, tables.precision.shape[1])
    found = {}
    for place, label in enumerate(tables.labels):
        precision = tables.precision[0, :, place]
        f1 = 2 * precision * steps / np.maximum(precision + steps, 1e-9)
        best = int(f1.argmax())
        if f1[best] > 0:
            found[label] = {
                "threshold": float(tables.scores[0, best, place]),
                "precision": float(precision[best]),
                "recall": float(steps[best]),
                "f1": float(f1[best]),
            }
    return found


def _mean(values: NDArray[np.float64]) -> float:
    told = values[values > -1]
    return float(told.mean()) if told.size else 0.0
