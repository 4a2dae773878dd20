"""From archives of images and annotations, well made and not, to examples with objects."""

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tasks.base import Checked, DatasetOptions, Upload
from tasks.object_detection import ObjectDetection
from tasks.parts.problems import Invalid
from tasks.parts.yolo import names_of_yaml

Members = dict[str, bytes]
Change = Callable[[dict[str, Any]], None]


def picture(
    number: int, size: tuple[int, int] = (20, 10), turned: bool = False, kind: str = "PNG"
) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    image, file = Image.fromarray(pixels), io.BytesIO()
    exif = image.getexif()
    if turned:
        exif[0x0112] = 6
    image.save(file, kind, exif=exif)
    return file.getvalue()


def pictures(count: int, folder: str = "images/", first: int = 0) -> Members:
    return {f"{folder}{n}.png": picture(n) for n in range(first, first + count)}


def annotations(count: int, first: int = 0) -> dict[str, Any]:
    """A cat in every image, and a dog in every second one."""
    numbers = range(first, first + count)
    cats = [
        {"id": n, "image_id": n, "category_id": 1, "bbox": [2, 3, 8, 4], "iscrowd": 0}
        for n in numbers
    ]
    dogs = [
        {"id": 1000 + n, "image_id": n, "category_id": 7, "bbox": [11.5, 0, 6, 9.5]}
        for n in numbers[::2]
    ]
    return {
        "images": [{"id": n, "file_name": f"{n}.png", "width": 20, "height": 10} for n in numbers],
        "annotations": cats + dogs,
        "categories": [{"id": 1, "name": "cat"}, {"id": 7, "name": "dog"}],
    }


def coco(count: int = 10, change: Change | None = None) -> Members:
    whole = annotations(count)
    if change:
        change(whole)
    return {**pictures(count), "annotations.json": json.dumps(whole).encode()}


def upload(members: Members, folder: Path, name: str = "marked.zip") -> Upload:
    with zipfile.ZipFile(folder / name, "w") as archive:
        for member, data in members.items():
            archive.writestr(member, data)
    return Upload(folder / name, name)


def checked(members: Members, folder: Path) -> Checked:
    return ObjectDetection.check({"file": upload(members, folder)}, DatasetOptions())


def objects_by_name(data: Checked) -> dict[str, list[tuple[Any, ...]]]:
    return {
        name.rpartition("/")[2]: [tuple(o.values()) for o in objects]
        for frame in data.splits.values()
        for name, objects in frame.select("name", "objects").iter_rows()
    }


def problems_of(members: Members, folder: Path) -> list[tuple[str, str]]:
    with pytest.raises(Invalid) as caught:
        checked(members, folder)
    return [(".".join(map(str, p.loc)), p.msg) for p in caught.value.problems]


# COCO


def test_boxes_of_coco_become_corners_beside_the_images_own_bytes(tmp_path: Path) -> None:
    data = checked(coco(), tmp_path)
    found = objects_by_name(data)
    assert found["1.png"] == [("cat", 2.0, 3.0, 10.0, 7.0, False)]
    assert found["2.png"][1] == ("dog", 11.5, 0.0, 17.5, 9.5, False)
    frame = data.splits["train"]
    assert frame.columns == ["image", "name", "objects"]
    assert frame["image"][0] == picture(int(Path(frame["name"][0]).stem))
    assert data.schema["labels"] == ["cat", "dog"]
    json.dumps([data.schema, data.report])


def test_every_label_is_in_every_split(tmp_path: Path) -> None:
    report = checked(coco(20), tmp_path).report
    assert report["objects"] == {
        "cat": {"train": 16, "validation": 4},
        "dog": {"train": 8, "validation": 2},
    }


@pytest.mark.parametrize(
    ("train", "test", "images"),
    [
        ("annotations/instances_train2017.json", "annotations/instances_test2017.json", "{}2017/"),
        ("train/_annotations.coco.json", "test/_annotations.coco.json", "{}/"),
        ("set/train.json", "set/test.json", "set/images/{}/"),
    ],
)
def test_a_file_of_annotations_for_each_split_splits_the_images(
    train: str, test: str, images: str, tmp_path: Path
) -> None:
    members = {
        train: json.dumps(annotations(10)).encode(),
        test: json.dumps(annotations(4)).encode(),
        **pictures(10, images.format("train")),
        **pictures(4, images.format("test")),
        "annotations/captions_train2017.json": b"[]" if "instances" in train else b"",
    }
    if "instances" not in train:
        del members["annotations/captions_train2017.json"]
    data = checked(members, tmp_path)
    assert data.report["examples"] == {"train": 8, "validation": 2, "test": 4}
    assert all("test" in name for name in data.splits["test"]["name"])
    assert data.report["unlisted_images"] == 0


def test_folders_of_splits_split_the_images_of_one_file(tmp_path: Path) -> None:
    members = {
        "annotations.json": json.dumps(annotations(8)).encode(),
        **pictures(5, "train/"),
        **pictures(3, "val/", 5),
    }
    assert checked(members, tmp_path).report["examples"] == {"train": 5, "validation": 3}


def test_the_name_of_an_image_is_no_split(tmp_path: Path) -> None:
    def rename(whole: dict[str, Any]) -> None:
        whole["images"][0]["file_name"] = "test.png"

    members = coco(change=rename) | {"images/test.png": picture(0)}
    assert set(checked(members, tmp_path).splits) == {"train", "validation"}


def test_a_report_counts_what_became_of_boxes_and_images(tmp_path: Path) -> None:
    def change(whole: dict[str, Any]) -> None:
        first = whole["annotations"]
        first[0]["bbox"] = [-1, 3, 9, 4]
        first[1]["bbox"] = [5, 5, 0, 4]
        first[2]["iscrowd"] = 1
        whole["annotations"] = [a for a in first if a["image_id"] != 9]

    data = checked(coco(10, change) | {"images/more.png": picture(99)}, tmp_path)
    told = {name: data.report[name] for name in ("clipped_boxes", "empty_boxes", "crowds")}
    assert told == {"clipped_boxes": 1, "empty_boxes": 1, "crowds": 1}
    assert data.report["unlisted_images"] == 1
    assert sum(data.report["without_objects"].values()) == 2
    assert objects_by_name(data)["0.png"][0] == ("cat", 0.0, 3.0, 8.0, 7.0, False)
    assert objects_by_name(data)["2.png"][0][-1] is True


def change_box(*box: Any) -> Change:
    def change(whole: dict[str, Any]) -> None:
        whole["annotations"][3]["bbox"] = list(box)

    return change


def change_first(key: str, **values: Any) -> Change:
    return lambda whole: whole[key][0].update(values)


@pytest.mark.parametrize(
    ("change", "loc", "msg"),
    [
        (change_box(30, 3, 8, 4), "3", "the box is outside of its image for the most part"),
        (change_box(15, 3, 11, 4), "3", "the box is outside of its image for the most part"),
        (change_box(2, 3, -8, 4), "3.bbox", "a negative size"),
        (change_box(2, 3, 8), "3.bbox", "not a box"),
        (change_box(2, 3, "8", 4), "3.bbox", "not a box"),
        (change_box(2, 3, True, 4), "3.bbox", "not a box"),
        (change_box(2, 3, 10**400, 4), "3.bbox", "not a box"),
        (change_first("annotations", category_id=2), "0.category_id", "no such category"),
        (change_first("annotations", category_id=[1]), "0.category_id", "no such category"),
        (change_first("annotations", image_id=77), "0.image_id", "no such image"),
        (change_first("annotations", iscrowd=2), "0.iscrowd", "not a flag"),
        (change_first("images", file_name="x.png"), "0.file_name", "the archive has no such image"),
        (change_first("images", file_name="../../etc/passwd"), "0.file_name", "the archive has no"),
        (change_first("images", file_name=3), "0", "no file_name"),
        (change_first("images", id=1), "1", "two images have this id"),
        (change_first("images", width=21), "0", "the image has another size"),
        (change_first("categories", name=""), "0.name", "not the name of a class"),
        (change_first("categories", id=7), "1", "two categories have this id"),
    ],
)
def test_a_fault_of_an_annotation_is_named_by_its_id(
    change: Change, loc: str, msg: str, tmp_path: Path
) -> None:
    problems = problems_of(coco(10, change), tmp_path)
    assert any(
        where.startswith("file.annotations.json.")
        and where.endswith(f".{loc}")
        and text[: len(msg)] == msg
        for where, text in problems
    ), problems


def test_all_faulty_boxes_are_told_at_once(tmp_path: Path) -> None:
    def change(whole: dict[str, Any]) -> None:
        for annotation in whole["annotations"]:
            annotation["bbox"] = [40, 40, 5, 5]

    assert len(problems_of(coco(10, change), tmp_path)) == 15


@pytest.mark.parametrize(
    ("data", "msg"),
    [
        (b"{", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b'{"images": [], "annotations": [], "categories": NaN}', "not JSON"),
        (b"[]", "not an object"),
        (b'{"images": [], "annotations": {}}', "not a list"),
        (b'{"images": [], "annotations": [], "categories": []}', "the annotations list no images"),
        (b'{"images": [1], "annotations": [1], "categories": [1]}', "no id"),
    ],
)
def test_a_file_that_is_no_coco_is_refused(data: bytes, msg: str, tmp_path: Path) -> None:
    problems = problems_of({**pictures(2), "a.json": data}, tmp_path)
    assert problems[0][1] == msg


def test_several_files_of_annotations_that_do_not_say_their_split_are_refused(
    tmp_path: Path,
) -> None:
    members = coco() | {"more.json": json.dumps(annotations(3)).encode()}
    where, msg = problems_of(members, tmp_path)[0]
    assert where == "file.annotations.json"
    assert msg.startswith("one of several JSON files")


def test_a_broken_image_is_named(tmp_path: Path) -> None:
    problems = problems_of(coco() | {"images/3.png": b"no image"}, tmp_path)
    assert problems == [("file.images/3.png", "not a readable image")]


def test_a_label_that_the_train_split_lacks_is_refused(tmp_path: Path) -> None:
    only_cats = annotations(4)
    only_cats["annotations"] = only_cats["annotations"][:4]
    members = {
        "train.json": json.dumps(only_cats).encode(),
        "valid.json": json.dumps(annotations(4, 4)).encode(),
        **pictures(8),
    }
    assert ("validation.images/4.png", "the train split lacks this label") in problems_of(
        members, tmp_path
    )


def test_an_image_in_two_splits_is_refused(tmp_path: Path) -> None:
    both = {f"{split}.json": json.dumps(annotations(2)).encode() for split in ("train", "val")}
    problems = problems_of(both | pictures(2), tmp_path)
    assert ("file.val.json.images.1", "this image is listed more than once") in problems


def test_a_split_in_which_nothing_is_marked_is_refused(tmp_path: Path) -> None:
    def empty(whole: dict[str, Any]) -> None:
        whole["annotations"] = []

    problems = problems_of(coco(10, empty), tmp_path)
    assert {where for where, _ in problems} == {"train", "validation"}


def test_boxes_are_of_images_as_they_are_shown(tmp_path: Path) -> None:
    def turn(whole: dict[str, Any]) -> None:
        whole["images"][0].update(width=10, height=20)
        whole["annotations"] = [a for a in whole["annotations"] if a["image_id"]]
        whole["annotations"].append({"image_id": 0, "category_id": 1, "bbox": [1, 11, 8, 8]})

    turned = {"images/0.png": picture(0, turned=True)}
    found = objects_by_name(checked(coco(10, turn) | turned, tmp_path))
    assert found["0.png"] == [("cat", 1.0, 11.0, 9.0, 19.0, False)]
    assert problems_of(coco() | turned, tmp_path)[0][1].endswith("is it turned by EXIF?")


# Pascal VOC


def voc(*objects: str, name: str = "0.png", head: str = "") -> bytes:
    size = "<size><width>20</width><height>10</height></size>"
    inside = f"<filename>{name}</filename>{size}{''.join(objects)}"
    return f"{head}<annotation>{inside}</annotation>".encode()


def thing(label: str = "cat", box: tuple[Any, ...] = (3, 4, 10, 7), more: str = "") -> str:
    sides = "".join(
        f"<{side}>{value}</{side}>"
        for side, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
    )
    return f"<object><name>{label}</name>{more}<bndbox>{sides}</bndbox></object>"


def voc_members(count: int = 10, folder: str = "VOC2007/") -> Members:
    return pictures(count, f"{folder}JPEGImages/") | {
        f"{folder}Annotations/{n}.xml": voc(thing(), name=f"{n}.png") for n in range(count)
    }


def test_pixels_of_voc_are_counted_from_one(tmp_path: Path) -> None:
    found = objects_by_name(checked(voc_members(), tmp_path))
    assert found["5.png"] == [("cat", 2.0, 3.0, 10.0, 7.0, False)]


def test_difficult_objects_of_voc_are_neither_learned_nor_scored(tmp_path: Path) -> None:
    hard = voc(thing(), thing(more="<difficult>1</difficult>"))
    data = checked(voc_members() | {"VOC2007/Annotations/0.xml": hard}, tmp_path)
    assert [o[-1] for o in objects_by_name(data)["0.png"]] == [False, True]


def test_lists_of_voc_split_the_images(tmp_path: Path) -> None:
    lists = {
        "VOC2007/ImageSets/Main/train.txt": b"0\n1\n2\n",
        "VOC2007/ImageSets/Main/val.txt": b"3\r\n4 \r\n",
        "VOC2007/ImageSets/Main/cat_train.txt": b"0 1\n9 -1\n",
    }
    data = checked(voc_members() | lists, tmp_path)
    assert data.report["examples"] == {"train": 3, "validation": 2}
    assert data.report["unlisted_images"] == 5


DTD = '<!DOCTYPE annotation [<!ENTITY a "aaaaaaaa"><!ENTITY b "&a;&a;&a;&a;">]>'


@pytest.mark.parametrize(
    ("data", "msg"),
    [
        (voc(thing("&b;"), head=DTD), "declares a document type"),
        (voc(thing("&b;"), head=DTD).decode().encode("utf-16"), "declares a document type"),
        (voc(thing("&x;")), "not XML"),
        (b"<annotation>", "not XML"),
        (b"<html/>", "no annotation"),
        (voc(thing(""), name="0.png"), "not the name of a class"),
        (voc(thing(box=(1, 1, "nan", 4))), "not a box"),
        (voc(thing(box=(9, 1, 5, 4))), "a box whose end is before its start"),
        (voc("<object><name>cat</name></object>"), "not a box"),
        (voc(thing(box=(100, 100, 120, 120))), "the box is outside of its image for the most part"),
    ],
)
def test_a_faulty_file_of_voc_is_named(data: bytes, msg: str, tmp_path: Path) -> None:
    problems = problems_of(voc_members() | {"VOC2007/Annotations/0.xml": data}, tmp_path)
    assert problems[0][0].startswith("file.VOC2007/Annotations/0.xml")
    assert problems[0][1] == msg


# YOLO


def yolo_members(count: int = 10) -> Members:
    lines = b"1 0.3 0.5 0.4 0.4\n0 0.5 0.1 0.9 0.1 0.9 0.7 0.6 0.6\n"
    return {
        "data.yaml": b"path: x\nnames: [dog, cat]\nnc: 2\n",
        **{f"images/{split_of(n)}/{n}.png": picture(n) for n in range(count)},
        **{f"labels/{split_of(n)}/{n}.txt": lines for n in range(count)},
    }


def split_of(number: int) -> str:
    return "val" if number % 5 == 0 else "train"


def test_shares_and_polygons_of_yolo_become_boxes_in_pixels(tmp_path: Path) -> None:
    data = checked(yolo_members(), tmp_path)
    assert data.report["examples"] == {"train": 8, "validation": 2}
    (cat, *box), (dog, *bounds) = ([*o[:5]] for o in objects_by_name(data)["1.png"])
    assert (cat, dog) == ("cat", "dog")
    assert box == pytest.approx([2, 3, 10, 7])
    assert bounds == pytest.approx([10, 1, 18, 7])


def test_an_image_without_a_text_file_is_background_to_yolo(tmp_path: Path) -> None:
    members = yolo_members()
    del members["labels/train/1.txt"]
    members["labels/train/2.txt"] = b"\n"
    assert checked(members, tmp_path).report["without_objects"] == {"train": 2, "validation": 0}


@pytest.mark.parametrize(
    ("line", "msg"),
    [
        (b"2 0.5 0.5 0.1 0.1", "no such class"),
        (b"-1 0.5 0.5 0.1 0.1", "no such class"),
        (b"1 0.5 0.5 0.1", "not an object"),
        (b"1 0.5 0.5 nan 0.1", "not an object"),
        (b"1 12 5 8 4", "not in shares of the image"),
        (b"1 0.5 0.5 -0.1 0.1", "not in shares of the image"),
        (b"1 1.5 0.5 0.1 0.1", "the box is outside of its image for the most part"),
    ],
)
def test_a_faulty_line_of_yolo_is_named(line: bytes, msg: str, tmp_path: Path) -> None:
    members = yolo_members() | {"labels/train/1.txt": b"1 0.3 0.5 0.4 0.4\n" + line}
    assert problems_of(members, tmp_path) == [("file.labels/train/1.txt.line.2", msg)]


def test_text_files_of_yolo_without_an_image_or_names_are_refused(tmp_path: Path) -> None:
    lonely = yolo_members() | {"labels/train/99.txt": b"0 0.5 0.5 0.1 0.1"}
    assert problems_of(lonely, tmp_path)[0] == (
        "file.labels/train/99.txt",
        "no image has this name",
    )
    nameless = yolo_members()
    del nameless["data.yaml"]
    assert problems_of(nameless, tmp_path)[0][1] == "no file names the classes"


@pytest.mark.parametrize(
    "text",
    [
        "names: [cat, 'a dog, old', \"x\"]  # three",
        "nc: 3\nnames:\n- cat\n- 'a dog, old'\n- x\ntrain: y",
        "names:\n  0: cat\n  1: 'a dog, old'\n  2: x\nnc: 3",
        "names: {0: cat, 1: 'a dog, old', 2: x}",
        "names: [\n  cat, # meow\n  'a dog, old',\n  x\n]",
    ],
)
def test_names_are_read_from_what_yaml_files_look_like(text: str) -> None:
    assert names_of_yaml(text.splitlines(), "data.yaml") == ["cat", "a dog, old", "x"]


@pytest.mark.parametrize("text", ["nc: 3", "names: cat", "names:\n  1: cat", "names: {a: b}"])
def test_a_yaml_file_without_names_is_refused(text: str) -> None:
    with pytest.raises(Invalid, match="names"):
        names_of_yaml(text.splitlines(), "data.yaml")


def test_an_archive_without_annotations_or_images_is_refused(tmp_path: Path) -> None:
    assert problems_of({"a.json": b"{}"}, tmp_path)[0][1] == "the archive has no images"
    assert problems_of(pictures(3), tmp_path)[0][1] == "no file names the classes"
