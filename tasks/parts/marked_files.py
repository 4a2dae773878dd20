"""Archives of images with objects marked in them, in any format, and what a data set of them is like."""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import polars as pl

from tasks.base import DatasetOptions, Upload
from tasks.parts.archives import Archive, Limits, open_archive
from tasks.parts.coco import COCO, COCO_SENTENCE, json_files, read_coco
from tasks.parts.images import ImageFacts
from tasks.parts.labels import MAX_CLASSES, SHOWN
from tasks.parts.marked import Picture, images_of, read_pictures
from tasks.parts.pictures import summary
from tasks.parts.problems import Invalid, Problem
from tasks.parts.splits import SPLIT
from tasks.parts.voc import VOC, VOC_SENTENCE, read_voc, xml_files
from tasks.parts.yolo import YOLO, YOLO_SENTENCE, read_yolo

STRATUM = "stratum"
MARKED_FORMATS = {COCO: COCO_SENTENCE, VOC: VOC_SENTENCE, YOLO: YOLO_SENTENCE}
_READERS: Mapping[str, Callable[[Archive], list[Picture]]] = {
    COCO: read_coco,
    VOC: read_voc,
    YOLO: read_yolo,
}
_LIMITS = Limits(member=256 << 20)


def read_marked(upload: Upload, options: DatasetOptions) -> pl.DataFrame:
    """One row per image, as `read_pictures` has them, and a column to stratify by: its rarest label.

    `split` is there when the archive has several. Raises Invalid.
    """
    with open_archive(upload.path, _LIMITS) as archive:
        if not images_of(archive):
            raise Invalid(Problem((), "the archive has no images", None, list(MARKED_FORMATS)))
        pictures = _READERS[options.format or format_of(archive)](archive)
        if not pictures:
            raise Invalid(Problem((), "the annotations list no images", 0, "one or more"))
        frame = read_pictures(archive, pictures)
    frame = frame.with_columns(_rarest(frame["objects"]))
    splits = set(frame[SPLIT])
    if len(splits) == 1:
        return frame.drop(SPLIT)
    if None in splits:
        lone = frame.filter(frame[SPLIT].is_null())["name"].to_list()
        allowed = "every image in one of the splits, or none of them"
        raise Invalid(*(Problem((name,), "in no split", None, allowed) for name in lone))
    return frame


def format_of(archive: Archive) -> str:
    """The format of annotations, by the files that are there."""
    if json_files(archive):
        return COCO
    return VOC if xml_files(archive) else YOLO


def describe_marked(
    splits: Mapping[str, pl.DataFrame],
) -> tuple[dict[str, pl.DataFrame], dict[str, Any], dict[str, Any]]:
    """The splits as they are stored, their schema and report; see `Task.describe`."""
    marked = {name: _objects(frame) for name, frame in splits.items()}
    labels = _check_labels(marked, splits)
    facts = pl.concat(frame.select(ImageFacts._fields) for frame in splits.values())
    every = pl.concat(marked.values())
    sizes = every.filter(~every["crowd"])["share"]
    schema = {
        "labels": labels,
        "width": facts["width"].median(),
        "height": facts["height"].median(),
        "colour": bool(facts["colour"].any()),
        "object": sizes.median(),
    }
    total = lambda name: sum(int(frame[name].sum()) for frame in splits.values())  # noqa: E731
    report = {
        "objects": {
            label: {name: _count(found, label) for name, found in marked.items()}
            for label in labels
        },
        "objects_per_image": _spread(pl.concat(f["objects"].list.len() for f in splits.values())),
        "box_width": _spread(every["x2"] - every["x1"]),
        "box_height": _spread(every["y2"] - every["y1"]),
        "without_objects": {
            name: int((frame["objects"].list.len() == 0).sum()) for name, frame in splits.items()
        },
        "crowds": int(every["crowd"].sum()),
        "clipped_boxes": total("clipped"),
        "empty_boxes": total("empty"),
        "unlisted_images": total("unlisted"),
        **summary(facts),
    }
    stored = {name: frame.select("image", "name", "objects") for name, frame in splits.items()}
    return stored, schema, report


def _objects(frame: pl.DataFrame) -> pl.DataFrame:
    """A row per object: its fields, and its side as a `share` of the longer side of its image."""
    longer = pl.max_horizontal("width", "height").alias("longer")
    rows = frame.select("name", longer, "objects").explode("objects").drop_nulls("objects")
    rows = rows.unnest("objects")
    area = (pl.col("x2") - pl.col("x1")) * (pl.col("y2") - pl.col("y1"))
    return rows.with_columns((area.sqrt() / pl.col("longer")).alias("share"))


def _check_labels(
    marked: Mapping[str, pl.DataFrame], splits: Mapping[str, pl.DataFrame]
) -> list[str]:
    """The labels of the train split in their order. Raises Invalid for splits that cannot do with them."""
    known = {name: found.filter(~found["crowd"]) for name, found in marked.items()}
    labels = sorted(set(known["train"]["label"]))
    if len(labels) > MAX_CLASSES:
        allowed = f"at most {MAX_CLASSES:,}"
        raise Invalid(Problem(("train",), "too many classes", len(labels), allowed))
    problems = [
        Problem((name,), "nothing is marked in any image of this split", 0, "one object or more")
        for name, found in known.items()
        if not found.height
    ]
    for name, found in known.items():
        strange = found.filter(~found["label"].is_in(labels)).unique("label", maintain_order=True)
        for image, label in strange.select("name", "label").iter_rows():
            msg = "the train split lacks this label"
            problems.append(Problem((name, image), msg, label, labels[:SHOWN]))
    if problems:
        raise Invalid(*problems)
    return labels


def _count(found: pl.DataFrame, label: str) -> int:
    return int(((found["label"] == label) & ~found["crowd"]).sum())


def _spread(values: pl.Series) -> dict[str, Any]:
    return {"min": values.min(), "median": values.median(), "max": values.max()}


def _rarest(objects: pl.Series) -> pl.Series:
    """The rarest label of each image, counted over all; empty where nothing is."""
    labels = [[o["label"] for o in found] for found in objects.to_list()]
    counts = Counter(label for found in labels for label in found)
    rarest = (min(found, key=lambda label: (counts[label], label), default="") for found in labels)
    return pl.Series(STRATUM, list(rarest), dtype=pl.String)
