"""Instance segmentation: the objects of a picture, each with the pixels that are its own."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from models.parts.dense import IGNORED
from models.parts.instances import BESIDE_CLASSES, MOST_OBJECTS, InstanceLoss, expect_few, told
from models.parts.options import Plain
from tasks.base import DatasetOptions, Metrics, Objective, Upload, read_fields
from tasks.parts.archives import Archive, open_archive
from tasks.parts.average_precision import PRECISION_METRICS, Marks, per_class, precisions
from tasks.parts.average_precision import summary as summed
from tasks.parts.coco import COCO, COCO_SENTENCE, json_files
from tasks.parts.columns import Dense
from tasks.parts.detecting import DetectionInput, DetectionParameters
from tasks.parts.examples import height
from tasks.parts.grouping import objects_of
from tasks.parts.images import EncodedImage, Pixels
from tasks.parts.mask_folders import OBJECT_MASKS, pairs, read_classes
from tasks.parts.masks import (
    Mask,
    Region,
    decode_mask,
    encode_mask,
    read_numbers,
    reduced,
    smoothed,
    upright,
)
from tasks.parts.media import each
from tasks.parts.outlines import box_of, boxes_of, decoded, drawn, encoded, of_text, read_outlined
from tasks.parts.pictures import look, summary
from tasks.parts.problems import Invalid, Problem
from tasks.parts.scenes import (
    LIMITS,
    SceneCodec,
    SceneLearner,
    SceneTask,
)
from tasks.parts.splits import SPLIT

NUMBERED = "images-and-instance-masks"
UNNAMED = "object"
OBJECT = pl.Struct({"label": pl.String, "mask": pl.String, "crowd": pl.Boolean})
"""An object of an example: its mask is COCO's text of run lengths; a crowd is neither learned from nor scored."""


class OutlinedObject(Plain):
    """An object that was found, and the pixels that it covers."""

    label: str = Field(description="What it is.")
    score: float = Field(description="How sure that is, from 0 to 1.")
    box: list[float] = Field(
        min_length=4,
        max_length=4,
        description="Left, top, right and bottom of what it covers, in pixels of the image as it is shown.",
    )
    mask: EncodedImage = Field(
        description="A PNG file as base64, in the size of the image, 1 bit to a pixel: white where the object is."
    )


class InstancesPrediction(Plain):
    """The objects of an image."""

    objects: list[OutlinedObject] = Field(description="The surest first.")


class Asked(NamedTuple):
    """An image of a request, the size it was sent with, and what is wanted of it."""

    pixels: Pixels | None
    width: int
    height: int
    wanted: DetectionParameters


class InstanceCodec(SceneCodec):
    """Images, and for each of their pixels the class and the number of its object."""

    def encode_targets(self, examples: pl.DataFrame) -> tuple[Dense, ...]:
        shape = (examples.height, self.height, self.width)
        classes, numbers = np.zeros(shape, np.uint8), np.zeros(shape, np.int16)
        sizes = examples.select("height", "width").rows()
        for row, (objects, size) in enumerate(zip(examples["objects"], sizes, strict=True)):
            self._draw(objects.to_list(), size, classes[row], numbers[row], row)
        return Dense(torch.from_numpy(classes)), Dense(torch.from_numpy(numbers))

    def _draw(
        self,
        objects: list[dict[str, Any]],
        size: tuple[int, int],
        classes: Mask,
        numbers: NDArray[np.int16],
        row: int,
    ) -> None:
        """The objects of an image of that size, the smaller ones above the larger ones."""
        masks = [reduced(decoded(of_text(o["mask"], size)), self.size) > 0 for o in objects]
        for place in sorted(range(len(masks)), key=lambda n: -int(masks[n].sum())):
            label, mask = objects[place]["label"], masks[place]
            if objects[place]["crowd"]:
                classes[mask & (numbers == 0)] = IGNORED
            elif label not in self.labels:
                loc = ("row", row + 1, "objects")
                raise Invalid(Problem(loc, "unknown label", label, self.labels))
            else:
                classes[mask], numbers[mask] = self.labels.index(label) + 1, place + 1

    def read_input(self, value: Any) -> Any:
        wanted = DetectionParameters()
        if isinstance(value, Mapping):
            own = {name: part for name, part in value.items() if name != "image"}
            wanted = read_fields(DetectionParameters, own)
            value = {"image": value["image"]} if "image" in value else {}
        return Asked(*self.shown(value), wanted)

    def given(self, examples: pl.DataFrame) -> Sequence[Any]:
        sizes = examples.select("width", "height").iter_rows()
        return [Asked(None, width, height, DetectionParameters()) for width, height in sizes]

    def decode(self, outputs: Tensor) -> list[Any]:
        """Predictions of all that was found, from what `told` says of every pixel (B, 5, H, W)."""
        return [
            InstancesPrediction.model_construct(
                objects=[
                    outlined(self.labels[found.number - 1], found.score, found.mask)
                    for found in objects_of(one)
                ]
            )
            for one in outputs.numpy()
        ]

    def complete(self, predictions: list[Any], inputs: Sequence[Any]) -> list[Any]:
        """The objects that are wanted, in the size of their images; metrics are of all."""
        return [
            InstancesPrediction.model_construct(
                objects=[
                    outlined(o.label, o.score, mask)
                    for o in prediction.objects[: asked.wanted.max_objects]
                    if o.score >= asked.wanted.threshold
                    for mask in [smoothed(decode_mask(o.mask), (asked.height, asked.width))]
                    if mask.any()
                ]
            )
            for prediction, asked in zip(predictions, inputs, strict=True)
        ]


def outlined(label: str, score: float, mask: Mask) -> OutlinedObject:
    """An object as a client gets it; the mask has a pixel at least."""
    return OutlinedObject.model_construct(
        label=label, score=score, box=box_of(mask), mask=encode_mask(mask, bits=1)
    )


class InstanceLearner(SceneLearner):
    """Learns what class each pixel is of, how central it is in its object, and where that one's centre is."""

    outside: ClassVar[tuple[int, ...]] = (IGNORED, 0)

    def predict(self, *inputs: Tensor) -> Tensor:
        """What objects are made of (B, 5, H, W), as `told` has it."""
        outputs = self(*inputs)
        return told(outputs, outputs.shape[1] - BESIDE_CLASSES)


class InstanceSegmentation(SceneTask):
    """Find the objects of an image: what each is, and which pixels are its own."""

    graph = "fixed"

    name: Literal["instance-segmentation"] = "instance-segmentation"
    loss: InstanceLoss = Field(InstanceLoss(), description="What training minimises.")

    input_type = DetectionInput
    parameters_type = DetectionParameters
    prediction_type = InstancesPrediction
    codec_type = InstanceCodec
    objective = Objective("map")
    metrics = PRECISION_METRICS
    formats: ClassVar[Mapping[str, str]] = {
        COCO: f"{COCO_SENTENCE} Annotations have a `segmentation`: polygons or run lengths.",
        NUMBERED: "A zip of `images/` and `instance_masks/`, an image and its mask of one name, perhaps within "
        "`train/`, `validation/` and `test/`. A mask is a PNG of 8 or 16 bits, as large as its image, each pixel the "
        "number of its object or 0. All are of one class, which `classes.txt` may name.",
    }

    @classmethod
    def read(cls, upload: Upload, options: DatasetOptions) -> pl.DataFrame:
        """One row per image: `image`, `name`, `objects`, its facts, and `split` where the archive tells it."""
        with open_archive(upload.path, LIMITS) as archive:
            if (options.format or (COCO if json_files(archive) else NUMBERED)) == COCO:
                frame = _of_coco(archive)
            else:
                frame = _of_numbers(archive)
        return frame

    @classmethod
    def describe(
        cls, splits: Mapping[str, pl.DataFrame], options: DatasetOptions
    ) -> tuple[dict[str, pl.DataFrame], dict[str, Any], dict[str, Any]]:
        frames = dict(splits)
        counts = {name: _counts(frame) for name, frame in frames.items()}
        labels = sorted(counts["train"])
        problems = [
            Problem((name, "objects"), "a label that the train split lacks", label, labels[:50])
            for name, found in counts.items()
            for label in sorted(found)
            if label not in labels
        ]
        if not labels:
            problems.append(Problem(("train", "objects"), "no objects", 0, "one or more"))
        if problems:
            raise Invalid(*problems)
        facts = pl.concat(
            f.select("width", "height", "mode", "animated", "colour") for f in frames.values()
        )
        schema = {
            "labels": labels,
            "width": facts["width"].median(),
            "height": facts["height"].median(),
            "colour": bool(facts["colour"].any()),
        }
        per_image = pl.concat(frame["objects"].list.len() for frame in frames.values())
        report = {
            "classes": {
                label: {split: found.get(label, 0) for split, found in counts.items()}
                for label in labels
            },
            "objects_per_image": {
                "min": per_image.min(),
                "median": per_image.median(),
                "max": per_image.max(),
            },
            "images_without_objects": int((per_image == 0).sum()),
            "empty": sum(int(frame["empty"].sum()) for frame in frames.values()),
            **summary(facts),
        }
        columns = ("image", "objects", "name", "width", "height")
        return {name: frame.select(columns) for name, frame in frames.items()}, schema, report

    def learn_codec(
        self, train: pl.LazyFrame, schema: Mapping[str, Any], base: Any | None = None
    ) -> InstanceCodec:
        images = height(train)
        return InstanceCodec(labels=schema["labels"], **self.read_alike(train, images, base))

    def build(self, codec: InstanceCodec) -> InstanceLearner:
        backbone, classes = self.backbone(codec), len(codec.labels) + 1
        decoder = self.decoder.build(backbone, codec.channels, classes + BESIDE_CLASSES)
        expect_few(decoder, classes)
        return InstanceLearner(
            backbone, decoder, self.loss.build(classes), codec, self.augmentation
        )

    def same_outputs(self, codec: InstanceCodec, base: Any) -> bool:
        return isinstance(base, InstanceCodec) and codec.labels == base.labels

    def score(self, predictions: Sequence[InstancesPrediction], examples: pl.DataFrame) -> Metrics:
        return summed(precisions(*_marks(predictions, examples)))

    def evaluate(
        self, predictions: Sequence[InstancesPrediction], examples: pl.DataFrame
    ) -> dict[str, Any]:
        """The metrics, average precision of every class, and how many objects there are and were found."""
        found, truth = _marks(predictions, examples)
        tables = precisions(found, truth)
        return {
            **summed(tables),
            "per_class": per_class(tables),
            "objects": {
                "truth": sum(len(m.labels) - sum(m.crowds) for m in truth),
                "found": sum(len(m.labels) for m in found),
            },
        }


# From archives to objects


def _of_coco(archive: Archive) -> pl.DataFrame:
    """Images with outlines of objects. Raises Invalid, naming annotations."""
    frame, pictures = read_outlined(archive)
    rows, problems = [], list[Problem]()
    for picture, size in zip(pictures, frame.select("height", "width").rows(), strict=True):
        objects, empty = [], 0
        for marked in picture.objects:
            try:
                mask = drawn(marked, size)
            except Invalid as error:
                problems += error.problems
                continue
            if mask.any():
                objects.append(
                    {"label": marked.label, "mask": encoded(mask), "crowd": marked.crowd}
                )
            else:
                empty += 1
        rows.append((objects, empty))
        if len(problems) >= Invalid.LIMIT:
            break
    if problems:
        raise Invalid(*problems)
    return _with_objects(frame, rows)


def _of_numbers(archive: Archive) -> pl.DataFrame:
    """Images with masks of numbered objects beside them. Raises Invalid, naming images and masks."""
    classes, found = read_classes(archive), pairs(archive, OBJECT_MASKS)
    labels = classes.labels if classes else [UNNAMED]
    if len(labels) != 1:
        allowed = f"one class, or annotations as {COCO} has them"
        raise Invalid(Problem((), "numbers of objects do not tell classes", labels[:50], allowed))
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
    rows = each(files, lambda row, data: _numbered(data, regions[row], labels[0]), names)
    return _with_objects(frame, [(row, 0) for row in rows if not isinstance(row, Invalid)])


def _numbered(data: bytes, region: Region, label: str) -> list[dict[str, Any]]:
    """The objects of a mask of their numbers. Raises Invalid."""
    numbers = upright(read_numbers(data), region)
    there = [number for number in np.unique(numbers).tolist() if number]
    if len(there) > MOST_OBJECTS:
        allowed = f"at most {MOST_OBJECTS:,}"
        raise Invalid(Problem((), "too many objects in one image", len(there), allowed))
    return [
        {"label": label, "mask": encoded(numbers == number), "crowd": False} for number in there
    ]


def _with_objects(
    frame: pl.DataFrame, rows: Sequence[tuple[list[dict[str, Any]], int]]
) -> pl.DataFrame:
    """A frame with objects, and how many outlines are left out since they cover no pixel."""
    objects = [objects for objects, _ in rows]
    return frame.with_columns(
        pl.Series("objects", objects, dtype=pl.List(OBJECT)),
        pl.Series("empty", [empty for _, empty in rows], dtype=pl.Int64),
    )


def _counts(frame: pl.DataFrame) -> dict[str, int]:
    """How many objects of each label there are, besides crowds."""
    objects = frame["objects"].explode().drop_nulls().struct.unnest()
    labels = objects.filter(~objects["crowd"])["label"]
    return dict(labels.value_counts().iter_rows())


# What predictions are worth


def _marks(
    predictions: Sequence[InstancesPrediction], examples: pl.DataFrame
) -> tuple[list[Marks], list[Marks]]:
    """What was found in images and what is there, masks in the size of the images."""
    sizes = examples.select("height", "width").rows()
    found = [
        Marks(
            [o.label for o in prediction.objects],
            boxes_of(masks),
            [o.score for o in prediction.objects],
            masks=masks,
        )
        for prediction, size in zip(predictions, sizes, strict=True)
        for masks in [
            [
                of_text(encoded(smoothed(decode_mask(o.mask), size)), size)
                for o in prediction.objects
            ]
        ]
    ]
    truth = [
        Marks(
            [o["label"] for o in objects],
            boxes_of(masks),
            crowds=[o["crowd"] for o in objects],
            masks=masks,
        )
        for objects, size in zip(examples["objects"].to_list(), sizes, strict=True)
        for masks in [[of_text(o["mask"], size) for o in objects]]
    ]
    return found, truth
