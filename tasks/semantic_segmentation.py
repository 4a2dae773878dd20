"""Semantic segmentation: from a picture to one of several labels for each of its pixels."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from models.parts.dense import IGNORED, PixelLoss
from models.parts.options import Plain
from tasks.base import DatasetOptions, Metrics, Objective, Upload
from tasks.parts.archives import Archive, open_archive
from tasks.parts.coco import COCO, COCO_SENTENCE, json_files
from tasks.parts.columns import Dense
from tasks.parts.images import EncodedImage
from tasks.parts.mask_folders import (
    CLASS_MASKS,
    MOST_LABELS,
    Classes,
    has_masks,
    pairs,
    read_classes,
)
from tasks.parts.masks import (
    Mask,
    Numbers,
    Region,
    decode_mask,
    decode_masks,
    encode_mask,
    read_numbers,
    rgb,
    smoothed,
    upright,
)
from tasks.parts.media import each
from tasks.parts.outlines import drawn, labels_of, read_outlined
from tasks.parts.pictures import look, summary
from tasks.parts.problems import Invalid, Problem
from tasks.parts.scenes import (
    LIMITS,
    SceneCodec,
    SceneLearner,
    SceneTask,
    Shown,
)
from tasks.parts.splits import SPLIT

MASKS = "images-and-masks"
BACKGROUND = "background"
WORST = 10
_NAMED = "\0labels"
"""A column for the labels that an archive names; `describe` drops it."""


class ClassRegion(Plain):
    """The part of an image that one label covers."""

    index: int = Field(description="The number of its pixels in the mask.")
    label: str = Field(description="The label.")
    share: float = Field(description="Its share of the image's pixels, from 0 to 1.")
    score: float = Field(description="How likely it is there, from 0 to 1, on average.")


class MaskPrediction(Plain):
    """The most likely label of every pixel."""

    mask: EncodedImage = Field(
        description="A PNG file as base64, in the size of the image: grey, each pixel the number of its label."
    )
    classes: list[ClassRegion] = Field(
        description="The labels that occur, in order of their numbers."
    )


class SemanticCodec(SceneCodec):
    """Images, and a class for each of their pixels."""

    counts: list[int]
    """Pixels of each label in the train split."""

    def encode_targets(self, examples: pl.DataFrame) -> tuple[Dense, ...]:
        return (Dense(torch.from_numpy(decode_masks(examples["mask"], self.size))),)

    def decode(self, outputs: Tensor) -> list[Any]:
        """Predictions from the best class of every pixel and its probability (B, 2, H, W)."""
        return [
            self._prediction(classes.astype(np.uint8), _means(classes.astype(np.int64), scores))
            for classes, scores in outputs.numpy()
        ]

    def complete(self, predictions: list[Any], inputs: Sequence[Shown]) -> list[Any]:
        return [
            self._prediction(
                smoothed(decode_mask(prediction.mask), (shown.height, shown.width)),
                {region.index: region.score for region in prediction.classes},
            )
            for prediction, shown in zip(predictions, inputs, strict=True)
        ]

    def _prediction(self, mask: Mask, scores: Mapping[int, float]) -> MaskPrediction:
        pixels = np.bincount(mask.ravel(), minlength=len(self.labels))
        make = ClassRegion.model_construct
        found = [
            make(index=n, label=label, share=int(pixels[n]) / mask.size, score=scores.get(n, 0.0))
            for n, label in enumerate(self.labels)
            if pixels[n]
        ]
        return MaskPrediction.model_construct(mask=encode_mask(mask), classes=found)


class SemanticLearner(SceneLearner):
    """Learns a score of every class for every pixel."""

    def predict(self, *inputs: Tensor) -> Tensor:
        """The best class of every pixel and its probability: (B, 2, H, W)."""
        best = self(*inputs).softmax(1).max(1)
        return torch.stack([best.indices.to(best.values.dtype), best.values], 1)


class SemanticSegmentation(SceneTask):
    """Give every pixel of an image one of several labels."""

    graph = "fixed"

    name: Literal["semantic-segmentation"] = "semantic-segmentation"
    loss: PixelLoss = Field(PixelLoss(), description="What training minimises.")

    prediction_type = MaskPrediction
    codec_type = SemanticCodec
    objective = Objective("miou")
    metrics: ClassVar[Mapping[str, str]] = {
        "miou": "Intersection over union of each class that occurs, averaged.",
        "pixel_accuracy": "Share of the labelled pixels whose class is right.",
        "mean_accuracy": "Share of the pixels of each class that occurs that are found, averaged.",
        "mean_dice": "Dice coefficient (F1 of pixels) of each class that occurs, averaged.",
    }
    formats: ClassVar[Mapping[str, str]] = {
        MASKS: "A zip of `images/` and `masks/`, an image and its mask of one name, perhaps within `train/`, "
        "`validation/` and `test/`. A mask is a PNG, as large as its image, each pixel the number of its class; "
        "255 is unlabelled. `classes.txt` names the classes, one a line from number 0; what is beyond its last "
        "line is unlabelled, too. Masks of colours need `labelmap.txt` (`name:r,g,b`) or `classes.csv` "
        "(`name,r,g,b`).",
        COCO: f"{COCO_SENTENCE} Pixels of no object are `background`; smaller objects lie above larger ones.",
    }

    @classmethod
    def read(cls, upload: Upload, options: DatasetOptions) -> pl.DataFrame:
        """One row per image: `image`, `mask`, `name`, its facts, and `split` where folders tell it."""
        with open_archive(upload.path, LIMITS) as archive:
            of_coco = json_files(archive) and not has_masks(archive, CLASS_MASKS)
            if (options.format or (COCO if of_coco else MASKS)) == COCO:
                frame = _of_coco(archive)
            else:
                frame = _of_masks(archive)
        return frame

    @classmethod
    def describe(
        cls, splits: Mapping[str, pl.DataFrame], options: DatasetOptions
    ) -> tuple[dict[str, pl.DataFrame], dict[str, Any], dict[str, Any]]:
        frames, labels = _of_one_numbering(splits)
        pixels = {name: _totals(frame) for name, frame in frames.items()}
        if (pixels["train"] > 0).sum() < 2:
            found = [label for label, count in zip(labels, pixels["train"], strict=True) if count]
            allowed = "pixels of two classes or more; 255 is unlabelled"
            raise Invalid(Problem(("train", "masks"), "one class only", found, allowed))
        facts = pl.concat(
            frame.select("width", "height", "mode", "animated", "colour")
            for frame in frames.values()
        )
        schema = {
            "labels": labels,
            "width": facts["width"].median(),
            "height": facts["height"].median(),
            "colour": bool(facts["colour"].any()),
        }
        whole = {
            name: int((frame["width"] * frame["height"]).sum()) for name, frame in frames.items()
        }
        report = {
            "classes": {
                label: {split: int(of[n]) / whole[split] for split, of in pixels.items()}
                for n, label in enumerate(labels)
            },
            "unlabelled": {name: 1 - int(of.sum()) / whole[name] for name, of in pixels.items()},
            **summary(facts),
        }
        columns = ("image", "mask", "name", "width", "height", "pixels")
        return {name: frame.select(columns) for name, frame in frames.items()}, schema, report

    def learn_codec(
        self, train: pl.LazyFrame, schema: Mapping[str, Any], base: Any | None = None
    ) -> SemanticCodec:
        pixels = train.select("pixels").collect()
        return SemanticCodec(
            labels=schema["labels"],
            counts=_totals(pixels).tolist(),
            **self.read_alike(train, pixels.height, base),
        )

    def build(self, codec: SemanticCodec) -> SemanticLearner:
        backbone = self.backbone(codec)
        decoder = self.decoder.build(backbone, codec.channels, len(codec.labels))
        return SemanticLearner(
            backbone, decoder, self.loss.build(codec.counts), codec, self.augmentation
        )

    def same_outputs(self, codec: SemanticCodec, base: Any) -> bool:
        return isinstance(base, SemanticCodec) and codec.labels == base.labels

    def score(self, predictions: Sequence[MaskPrediction], examples: pl.DataFrame) -> Metrics:
        return _metrics(sum(_confusions(predictions, examples)))

    def evaluate(
        self, predictions: Sequence[MaskPrediction], examples: pl.DataFrame
    ) -> dict[str, Any]:
        """The metrics, figures of every class, the confusion matrix (rows: the truth), and the worst images."""
        each_image = list(_confusions(predictions, examples))
        whole, names = np.sum(each_image, axis=0), examples["pixels"].struct.fields
        iou, recall, dice = _per_class(whole)
        precision = np.diag(whole) / np.maximum(whole.sum(0), 1)
        figures = zip(names, iou, precision, recall, dice, whole.sum(1), strict=True)
        means = [_metrics(confusion)["miou"] for confusion in each_image]
        return {
            **_metrics(whole),
            "per_class": {
                name: {"iou": i, "precision": p, "recall": r, "dice": d, "pixels": int(n)}
                for name, i, p, r, d, n in figures
            },
            "confusion": {"labels": names, "counts": whole.tolist()},
            "worst": [
                {"row": row, "miou": means[row]}
                for row in np.argsort(means, kind="stable")[:WORST].tolist()
            ],
        }


# From archives to masks of classes


def _of_masks(archive: Archive) -> pl.DataFrame:
    """Images with masks in folders beside them. Raises Invalid, naming images, masks and files of classes."""
    classes, found = read_classes(archive), pairs(archive, CLASS_MASKS)
    frame = pl.DataFrame(
        {
            "image": [archive.read(pair.image) for pair in found],
            "name": [pair.image for pair in found],
            SPLIT: [pair.split for pair in found],
        },
        schema={"image": pl.Binary, "name": pl.String, SPLIT: pl.String},
    )
    frame = frame.with_columns(look(frame))
    files = pl.Series([archive.read(pair.mask) for pair in found], dtype=pl.Binary)
    regions = [Region(*row) for row in frame.select("image", "width", "height").iter_rows()]
    names = [pair.mask for pair in found]
    masks = each(files, lambda row, data: _classes_of(data, regions[row], classes), names)
    return _with_masks(frame, masks, classes and classes.labels)


def _classes_of(data: bytes, region: Region, classes: Classes | None) -> Mask:
    """The classes of a mask's pixels, as its archive numbers them. Raises Invalid."""
    colours = classes and classes.colours
    numbers = upright(read_numbers(data, coloured=colours is not None), region)
    if colours is not None:
        return _by_colour(numbers, colours)
    if classes is not None:
        beyond = (numbers < 0) | (numbers >= len(classes.labels)) & (numbers != IGNORED)
        return np.where(beyond, IGNORED, numbers).astype(np.uint8)
    if numbers.min() < 0 or numbers.max() > IGNORED:
        msg = "numbers beyond those of classes; is it a mask of objects?"
        found = [int(numbers.min()), int(numbers.max())]
        raise Invalid(Problem((), msg, found, f"0 to {MOST_LABELS - 1}, and {IGNORED}: unlabelled"))
    return numbers.astype(np.uint8)


def _by_colour(numbers: Numbers, colours: Mapping[int, int]) -> Mask:
    values, places = np.unique(numbers, return_inverse=True)
    strange = [value for value in values.tolist() if value not in colours]
    if strange:
        found = [rgb(((n >> 16) & 255, (n >> 8) & 255, n & 255)) for n in strange[:5]]
        allowed = [rgb((n >> 16, (n >> 8) & 255, n & 255)) for n in list(colours)[:50]]
        raise Invalid(Problem((), "colours that no class has; is it resized?", found, allowed))
    # Classes that are -1, unlabelled, become 255.
    table = np.array([colours[value] for value in values.tolist()]).astype(np.uint8)
    return table[places].reshape(numbers.shape)


def _of_coco(archive: Archive) -> pl.DataFrame:
    """Images with outlines of objects. Raises Invalid."""
    frame, pictures = read_outlined(archive)
    labels = [BACKGROUND, *(label for label in labels_of(pictures) if label != BACKGROUND)]
    masks, problems = [], list[Problem]()
    for picture, (width, height) in zip(
        pictures, frame.select("width", "height").iter_rows(), strict=True
    ):
        shapes = []
        for marked in picture.objects:
            try:
                shapes.append((labels.index(marked.label), drawn(marked, (height, width)) > 0))
            except Invalid as error:
                problems += error.problems
        mask = np.zeros((height, width), np.uint8)
        for number, shape in sorted(shapes, key=lambda pair: -int(pair[1].sum())):
            mask[shape] = number
        masks.append(mask)
    if problems:
        raise Invalid(*problems)
    return _with_masks(frame, masks, labels)


def _with_masks(
    frame: pl.DataFrame, masks: Sequence[Mask | Invalid], labels: list[str] | None
) -> pl.DataFrame:
    """A frame with masks, and how many pixels each number has in them."""
    drawn_ones = [mask for mask in masks if not isinstance(mask, Invalid)]
    return frame.with_columns(
        pl.Series("mask", [encode_mask(mask) for mask in drawn_ones], dtype=pl.Binary),
        pl.Series(
            "pixels",
            [np.bincount(mask.ravel(), minlength=256).tolist() for mask in drawn_ones],
            dtype=pl.List(pl.Int64),
        ),
        pl.Series(_NAMED, [labels] * frame.height, dtype=pl.List(pl.String)),
    )


def _of_one_numbering(
    frames: Mapping[str, pl.DataFrame],
) -> tuple[dict[str, pl.DataFrame], list[str]]:
    """All splits with the same numbers for the same labels, from 0 on, and these labels.

    Raises Invalid for labels that the train split's archive does not name.
    """
    named = {name: frame[_NAMED].to_list()[0] for name, frame in frames.items()}
    seen = sorted({int(n) for frame in frames.values() for n in _totals(frame).nonzero()[0]})
    labels = named["train"] or [str(n) for n in seen if n != IGNORED]
    # The usual way to store a mask of one thing, for people to look at.
    is_binary = seen == [0, IGNORED] and len(named["train"] or "12") == 2
    if is_binary and not named["train"]:
        labels = [BACKGROUND, "foreground"]
    problems = [
        Problem((name, "classes"), "labels that the train split lacks", strange, labels[:50])
        for name, own in named.items()
        if (strange := [label for label in own or [] if label not in labels])
    ]
    if problems:
        raise Invalid(*problems)
    renumbered = {}
    for name, frame in frames.items():
        table = np.full(256, IGNORED, np.uint8)
        own = named[name] or (labels if named["train"] or is_binary else None)
        for place, label in enumerate(own or labels):
            table[place if own else int(label)] = labels.index(label)
        if is_binary:
            table[IGNORED] = 1
        renumbered[name] = _renumbered(frame, table, labels)
    return renumbered, labels


def _renumbered(frame: pl.DataFrame, table: Mask, labels: list[str]) -> pl.DataFrame:
    """The masks with what `table` has for each number, and the pixels of each label in them."""
    seen = _totals(frame).nonzero()[0]
    masks, counts = frame["mask"].to_list(), np.array(frame["pixels"].to_list())
    if (table[seen] != seen).any():
        masks = [encode_mask(table[decode_mask(mask)]) for mask in masks]
    pixels = [
        pl.Series(label, counts[:, table == number].sum(1), dtype=pl.Int64)
        for number, label in enumerate(labels)
    ]
    return frame.with_columns(
        pl.Series("mask", masks, dtype=pl.Binary),
        pl.DataFrame(pixels).to_struct("pixels"),
    )


def _totals(frame: pl.DataFrame) -> NDArray[np.int64]:
    """How many pixels each number has in all masks of a frame."""
    pixels = frame["pixels"]
    counts = pixels.struct.unnest() if pixels.dtype == pl.Struct else pixels.to_list()
    total: NDArray[np.int64] = np.array(counts, np.int64).sum(0)
    return total


# What predictions are worth


def _means(classes: NDArray[np.int64], scores: NDArray[np.float32]) -> dict[int, float]:
    """The mean score of the pixels of each class."""
    pixels = np.bincount(classes.ravel())
    sums = np.bincount(classes.ravel(), weights=scores.ravel())
    return {int(n): float(sums[n] / pixels[n]) for n in pixels.nonzero()[0]}


def _confusions(
    predictions: Sequence[MaskPrediction], examples: pl.DataFrame
) -> Iterator[NDArray[np.int64]]:
    """For each image how many labelled pixels of each class (rows) were taken for each class (columns)."""
    size = len(examples["pixels"].struct.fields)
    for prediction, data in zip(predictions, examples["mask"], strict=True):
        truth = decode_mask(data)
        answer = smoothed(decode_mask(prediction.mask), (truth.shape[0], truth.shape[1]))
        known = truth != IGNORED
        cells = truth[known].astype(np.int64) * size + answer[known]
        yield np.bincount(cells, minlength=size * size).reshape(size, size)


def _per_class(confusion: NDArray[np.int64]) -> tuple[NDArray[np.float64], ...]:
    """Intersection over union, recall and Dice coefficient of each class."""
    hits, truth, found = np.diag(confusion), confusion.sum(1), confusion.sum(0)
    return (
        hits / np.maximum(truth + found - hits, 1),
        hits / np.maximum(truth, 1),
        2 * hits / np.maximum(truth + found, 1),
    )


def _metrics(confusion: Any) -> Metrics:
    there = confusion.sum(1) > 0
    if not there.any():
        return dict.fromkeys(SemanticSegmentation.metrics, 0.0)
    iou, recall, dice = (values[there].mean() for values in _per_class(confusion))
    accuracy = np.diag(confusion).sum() / confusion.sum()
    found = {"miou": iou, "pixel_accuracy": accuracy, "mean_accuracy": recall, "mean_dice": dice}
    return {name: float(value) for name, value in found.items()}
