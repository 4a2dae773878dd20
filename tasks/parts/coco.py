"""Annotations of objects as COCO has them (Lin et al., 2014): boxes, and outlines where there are some."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic_core import from_json

from tasks.parts.archives import Archive, is_clutter
from tasks.parts.marked import (
    MAX_OBJECTS,
    Box,
    Gallery,
    Loc,
    Marked,
    Picture,
    check_label,
    number,
    split_of,
    split_of_folders,
)
from tasks.parts.problems import Invalid, Problem, short

COCO = "coco"
COCO_SENTENCE = (
    'A zip of images anywhere and one JSON file, `{"images", "annotations", "categories"}`, for all of '
    "them or for each split: `annotations/instances_train2017.json` or `valid/_annotations.coco.json` "
    "say by their names or folders which."
)
MAX_JSON = 256 << 20
"""Bytes of one file of annotations."""
_KEYS = ("images", "annotations", "categories")
_INSTANCES = "instances_"


def json_files(archive: Archive) -> list[str]:
    """The files of annotations, without captions and key points where those of instances have their names."""
    names = [n for n in archive.names if n.lower().endswith(".json") and not is_clutter(n)]
    instances = [n for n in names if n.rpartition("/")[2].lower().startswith(_INSTANCES)]
    return instances or names


def read_coco(archive: Archive) -> list[Picture]:
    """Every image that annotations list, and what is marked in it.

    Boxes are as they stand there; see `marked.fitted`. Raises Invalid, naming files, images and annotations by id.
    """
    files = json_files(archive)
    if not files:
        raise Invalid(Problem((), "the archive has no JSON file", None, COCO_SENTENCE))
    gallery, pictures, problems = Gallery(archive.names), list[Picture](), list[Problem]()
    splits = {file: split_of(file) if len(files) > 1 else None for file in files}
    problems += _same_splits(splits)
    for file in files:
        if problems:
            break
        try:
            pictures += _of_file(archive, file, splits[file], gallery)
        except Invalid as error:
            problems += error.problems
    problems = problems or list(_twice(pictures))
    if problems:
        raise Invalid(*problems)
    return pictures


def _same_splits(splits: Mapping[str, str | None]) -> Iterator[Problem]:
    """Files of annotations that do not say whose split they are, where there are several."""
    if len(splits) == 1:
        return
    counts = Counter(splits.values())
    for file, split in splits.items():
        if split is None or counts[split] > 1:
            msg = "one of several JSON files, and not the only one of a split by its name or folder"
            yield Problem((file,), msg, split, "one file, or one for each of train, valid and test")


def _twice(pictures: list[Picture]) -> Iterator[Problem]:
    counts = Counter(picture.name for picture in pictures)
    for picture in pictures:
        if counts[picture.name] > 1:
            yield Problem(
                picture.where, "this image is listed more than once", picture.name, "once"
            )


def _of_file(archive: Archive, file: str, split: str | None, gallery: Gallery) -> list[Picture]:
    whole = _parsed(archive, file)
    labels = _labels(whole["categories"], file)
    problems = list[Problem]()
    listed = _by_image_id(whole["images"], file, problems)
    objects: defaultdict[Any, list[Marked]] = defaultdict(list)
    for place, found in enumerate(whole["annotations"]):
        try:
            image_id, marked = _marked(found, place, file, labels, listed)
            objects[image_id].append(marked)
        except Invalid as error:
            problems += error.problems
        if len(problems) >= Invalid.LIMIT:
            break
    pictures = []
    for image_id, image in listed.items():
        try:
            pictures.append(_picture(image, objects[image_id], file, split, gallery))
        except Invalid as error:
            problems += error.problems
        if len(problems) >= Invalid.LIMIT:
            break
    if problems:
        raise Invalid(*problems)
    return pictures


def _parsed(archive: Archive, file: str) -> dict[str, list[Any]]:
    """A file's lists of images, annotations and categories. Raises Invalid when it has none."""
    data = bytearray()
    for chunk in archive.chunks(file):
        data += chunk
        if len(data) > MAX_JSON:
            raise Invalid(Problem((file,), "too large", None, f"at most {MAX_JSON:,} bytes"))
    try:
        whole = from_json(bytes(data).removeprefix(b"\xef\xbb\xbf"), allow_inf_nan=False)
    except ValueError as error:
        raise Invalid(Problem((file,), "not JSON", str(error), COCO_SENTENCE)) from None
    if not isinstance(whole, dict):
        raise Invalid(Problem((file,), "not an object", short(whole), list(_KEYS)))
    wrong = [key for key in _KEYS if not isinstance(whole.get(key), list)]
    if wrong:
        found = sorted(whole)[:10]
        raise Invalid(*(Problem((file, key), "not a list", found, "a list") for key in wrong))
    return whole


def _labels(categories: list[Any], file: str) -> dict[int, str]:
    """The names of classes by their ids."""
    labels: dict[int, str] = {}
    problems = list[Problem]()
    for place, found in enumerate(categories):
        where = file, "categories", place
        if not isinstance(found, dict) or not _is_id(found.get("id")):
            problems.append(Problem(where, "no id", short(found), '{"id": 1, "name": "cat"}'))
        elif found["id"] in labels:
            problems.append(Problem(where, "two categories have this id", found["id"], "one"))
        else:
            try:
                labels[found["id"]] = check_label(found.get("name"), (*where, "name"))
            except Invalid as error:
                problems += error.problems
    if problems:
        raise Invalid(*problems)
    return labels


def _by_image_id(
    images: list[Any], file: str, problems: list[Problem]
) -> dict[int | str, dict[str, Any]]:
    listed: dict[int | str, dict[str, Any]] = {}
    for place, found in enumerate(images):
        where = file, "images", place
        example = '{"id": 1, "file_name": "1.jpg"}'
        if not isinstance(found, dict) or not _is_id(found.get("id")):
            problems.append(Problem(where, "no id", short(found), example))
        elif found["id"] in listed:
            problems.append(Problem(where, "two images have this id", found["id"], "one"))
        elif not isinstance(found.get("file_name"), str):
            problems.append(Problem((file, "images", found["id"]), "no file_name", None, example))
        else:
            listed[found["id"]] = found
    return listed


def _is_id(value: Any) -> bool:
    return isinstance(value, int | str) and not isinstance(value, bool)


def _picture(
    image: Mapping[str, Any], objects: list[Marked], file: str, split: str | None, gallery: Gallery
) -> Picture:
    where: Loc = (file, "images", image["id"])
    if len(objects) > MAX_OBJECTS:
        allowed = f"at most {MAX_OBJECTS:,}"
        raise Invalid(Problem(where, "too many objects in one image", len(objects), allowed))
    try:
        name = gallery.find(image["file_name"], file, split)
    except Invalid as error:
        raise Invalid(*(p._replace(loc=(*where, "file_name")) for p in error.problems)) from None
    width, height = image.get("width"), image.get("height")
    told = isinstance(width, int) and isinstance(height, int)
    # One file may still be of images in folders of splits.
    return Picture(
        name,
        split or split_of_folders(name),
        objects,
        where,
        (width, height) if told else None,  # type: ignore[arg-type] # both are, says `told`
    )


def _marked(
    found: Any,
    place: int,
    file: str,
    labels: Mapping[Any, str],
    listed: Mapping[Any, Any],
) -> tuple[Any, Marked]:
    """The image's id and the object of one annotation. Raises Invalid."""
    if not isinstance(found, dict):
        raise Invalid(Problem((file, "annotations", place), "not an object", short(found), "{...}"))
    given = found.get("id", place)
    where: Loc = (file, "annotations", given if _is_id(given) else place)
    image_id, category_id = found.get("image_id"), found.get("category_id")
    if not _is_id(image_id) or image_id not in listed:
        found_id, allowed = short(image_id), "the id of an image of this file"
        raise Invalid(Problem((*where, "image_id"), "no such image", found_id, allowed))
    if not _is_id(category_id) or category_id not in labels:
        known = [f"{id}: {label}" for id, label in list(labels.items())[:50]]
        msg = "no such category"
        raise Invalid(Problem((*where, "category_id"), msg, short(category_id), known))
    crowd, segmentation = found.get("iscrowd", 0), found.get("segmentation")
    if crowd not in (0, 1):
        raise Invalid(Problem((*where, "iscrowd"), "not a flag", short(crowd), "0 or 1"))
    box = _box(found.get("bbox"), (*where, "bbox"))
    return image_id, Marked(labels[category_id], box, where, bool(crowd), segmentation or None)


def _box(value: Any, where: Loc) -> Box:
    """Left, top, width and height as a box. Raises Invalid when they are none."""
    numbers = [number(side) for side in value] if isinstance(value, list) else []
    if len(numbers) != 4 or None in numbers:
        allowed = "[left, top, width, height] in pixels"
        raise Invalid(Problem(where, "not a box", short(value), allowed))
    left, top, width, height = (side for side in numbers if side is not None)
    if width < 0 or height < 0:
        raise Invalid(Problem(where, "a negative size", short(value), "width and height from 0"))
    return left, top, left + width, top + height
