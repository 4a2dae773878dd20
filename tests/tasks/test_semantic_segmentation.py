"""From images and masks to a label for every pixel."""

import base64
import json
import zipfile
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from PIL import Image

from models.cnn import CNN
from models.parts.dense import IGNORED, AllMLP, UNet
from tasks.base import Checked, DatasetOptions, Facts, Upload
from tasks.image_classification import ImageClassification
from tasks.parts.augmentation import Augmentation
from tasks.parts.masks import decode_mask, encode_mask, packed, read_numbers, smoothed
from tasks.parts.problems import Invalid, Problem
from tasks.semantic_segmentation import (
    ClassRegion,
    MaskPrediction,
    SemanticCodec,
    SemanticSegmentation,
)
from tasks.trained import Trained
from tests.toys import bars

TINY = CNN(channels=[4, 8], dropout=0)
RED, GREEN, BLACK = (255, 0, 0), (0, 255, 0), (0, 0, 0)
HALVES = np.repeat([[0, 1]], 4, axis=0).repeat(4, axis=1).astype(np.uint8)  # 4 x 8


def file(pixels: Any, format: str = "PNG", **options: Any) -> bytes:
    saved = BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(np.asarray(pixels))
    image.save(saved, format, **options)
    return saved.getvalue()


def picture(width: int = 8, height: int = 4, **options: Any) -> bytes:
    return file(Image.new("RGB", (width, height), "gray"), **options)


def colours(mask: np.ndarray, *of: tuple[int, int, int]) -> np.ndarray:
    return np.array(of, np.uint8)[mask]


def paired(mask: bytes, count: int = 5, prefix: str = "", **more: Any) -> dict[str, bytes]:
    members = {}
    for number in range(count):
        image = file(np.full((4, 8, 3), number * 10, np.uint8))
        members |= {f"{prefix}images/{number}.png": image, f"{prefix}masks/{number}.png": mask}
    return members | more


def upload(members: Mapping[str, bytes | str], folder: Path, name: str = "scenes.zip") -> Upload:
    path = folder / name
    with zipfile.ZipFile(path, "w") as archive:
        for member, data in members.items():
            archive.writestr(member, data)
    return Upload(path, name)


def checked(members: Mapping[str, bytes | str], folder: Path, **options: Any) -> Checked:
    files = {"file": upload(members, folder)}
    return SemanticSegmentation.check(files, DatasetOptions(**options))


def problems_of(members: Mapping[str, bytes | str], folder: Path, **options: Any) -> list[Problem]:
    with pytest.raises(Invalid) as caught:
        checked(members, folder, **options)
    return list(caught.value.problems)


def masks_of(data: Checked) -> np.ndarray:
    return np.stack([decode_mask(mask) for mask in data.splits["train"]["mask"]])


def resolved(data: Checked, **fields: Any) -> SemanticSegmentation:
    facts = Facts(data.schema, {name: frame.height for name, frame in data.splits.items()})
    fields = {"architecture": TINY, "augmentation": {}, **fields}
    return SemanticSegmentation.model_validate(fields).resolve(facts)


def codec_of(task: SemanticSegmentation, data: Checked, base: Any = None) -> SemanticCodec:
    return task.learn_codec(data.splits["train"].lazy(), data.schema, base)


# Data sets


def test_masks_are_read_as_the_numbers_of_their_classes(tmp_path: Path) -> None:
    data = checked(paired(file(HALVES), **{"classes.txt": "# two\nroad\nsky\n"}), tmp_path)
    assert data.schema["labels"] == ["road", "sky"]
    assert (masks_of(data) == HALVES).all()
    assert data.splits["train"]["pixels"].to_list()[0] == {"road": 16, "sky": 16}
    assert data.report["classes"]["sky"] == {"train": 0.5, "validation": 0.5}
    json.dumps(data.report)


@pytest.mark.parametrize("mode", ["P", "RGB", "I;16"])
def test_a_mask_says_the_same_however_its_numbers_are_stored(mode: str, tmp_path: Path) -> None:
    if mode == "P":
        image = Image.fromarray(HALVES).convert("P")
        image.putpalette([9, 9, 9, 200, 0, 0])
        stored = file(image)
    elif mode == "RGB":
        stored = file(np.stack([HALVES] * 3, -1))
    else:
        stored = file(HALVES.astype(np.uint16))
    assert (read_numbers(stored) == HALVES).all()


def test_numbers_beyond_the_named_classes_are_unlabelled(tmp_path: Path) -> None:
    mask = HALVES.copy()
    mask[0, :2] = 2, 255
    data = checked(paired(file(mask), **{"classes.txt": "road\nsky"}), tmp_path)
    assert (masks_of(data)[0, 0, :2] == IGNORED).all()
    assert data.report["unlabelled"]["train"] == pytest.approx(2 / 32)


def test_without_names_classes_are_called_by_their_numbers(tmp_path: Path) -> None:
    data = checked(paired(file(HALVES * 7)), tmp_path)
    assert data.schema["labels"] == ["0", "7"]
    assert (masks_of(data) == HALVES).all()


def test_black_and_white_masks_show_one_thing_on_its_background(tmp_path: Path) -> None:
    data = checked(paired(file(HALVES * 255)), tmp_path)
    assert data.schema["labels"] == ["background", "foreground"]
    assert (masks_of(data) == HALVES).all()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("labelmap.txt", "# label:color_rgb:parts:actions\nroad:255,0,0::\nsky:0,255,0::\n"),
        ("classes.csv", "name,r,g,b\nroad,255,0,0\nsky,0,255,0\nvoid,0,0,0\n"),
        ("labels.txt", "255 0 0 road\n0 255 0 sky\n"),
    ],
)
def test_colours_are_classes_where_a_file_says_which(name: str, text: str, tmp_path: Path) -> None:
    data = checked(paired(file(colours(HALVES, RED, GREEN)), **{name: text}), tmp_path)
    assert data.schema["labels"] == ["road", "sky"]
    assert (masks_of(data) == HALVES).all()


def test_the_colour_of_what_is_void_is_unlabelled(tmp_path: Path) -> None:
    mask = colours(HALVES, RED, GREEN)
    mask[0] = BLACK
    text = "void,0,0,0\nroad,255,0,0\nsky,0,255,0\n"
    data = checked(paired(file(mask), **{"classes.csv": f"name,r,g,b\n{text}"}), tmp_path)
    assert (masks_of(data)[:, 0] == IGNORED).all()
    assert data.schema["labels"] == ["road", "sky"]


def test_outlines_become_masks_the_smaller_above_the_larger(tmp_path: Path) -> None:
    square = [[0, 0, 8, 0, 8, 4, 0, 4]]
    dot = [[0, 0, 2, 0, 2, 2, 0, 2]]
    members: dict[str, bytes | str] = {
        f"images/{n}.png": file(np.full((6, 8, 3), n, np.uint8)) for n in range(4)
    }
    boxed = {"bbox": [0, 0, 2, 2], "category_id": 1}
    annotations = [
        {"id": 2 * n + k, "image_id": n, "segmentation": outline, **boxed, "category_id": 2 - k}
        for n in range(4)
        for k, outline in enumerate([dot, square])
    ]
    coco = {
        "images": [{"id": n, "file_name": f"{n}.png", "width": 8, "height": 6} for n in range(4)],
        "annotations": annotations,
        "categories": [{"id": 1, "name": "car"}, {"id": 2, "name": "ant"}],
    }
    data = checked(members | {"annotations/instances.json": json.dumps(coco)}, tmp_path)
    assert data.schema["labels"] == ["background", "ant", "car"]
    expected = np.zeros((6, 8), np.uint8)
    expected[:4], expected[:2, :2] = 2, 1
    assert (masks_of(data) == expected).all()


def test_folders_of_splits_are_honoured_around_and_within_the_folders(tmp_path: Path) -> None:
    around = paired(file(HALVES), 3, "train/") | paired(file(HALVES), 2, "val/")
    assert checked(around, tmp_path).report["examples"] == {"train": 3, "validation": 2}
    within = {
        "/".join([kind, split, name]): data
        for path, data in around.items()
        for split, kind, name in [path.split("/")]
    }
    assert checked(within, tmp_path).report["examples"] == {"train": 3, "validation": 2}


def test_every_split_is_numbered_as_the_train_split_names_its_classes(tmp_path: Path) -> None:
    files = {
        "train": upload(paired(file(HALVES), **{"classes.txt": "a\nb"}), tmp_path, "t.zip"),
        "test": upload(paired(file(1 - HALVES), **{"classes.txt": "b\na"}), tmp_path, "e.zip"),
    }
    data = SemanticSegmentation.check(files, DatasetOptions())
    assert (decode_mask(data.splits["test"]["mask"][0]) == HALVES).all()
    strange = paired(file(HALVES), **{"classes.txt": "a\nc"})
    files["test"] = upload(strange, tmp_path, "s.zip")
    with pytest.raises(Invalid, match="labels that the train split lacks"):
        SemanticSegmentation.check(files, DatasetOptions())


def test_a_mask_drawn_over_a_photo_as_its_camera_held_it_is_turned_with_it(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    photo = picture(8, 4, exif=exif)  # shown 4 wide and 8 high
    members = {f"images/{n}.png": photo for n in range(3)} | {
        f"masks/{n}.png": file(HALVES) for n in range(3)
    }
    data = checked(members, tmp_path)
    assert (data.splits["train"]["width"][0], data.splits["train"]["height"][0]) == (4, 8)
    # The left of what the camera saw is on top.
    assert (masks_of(data)[0] == HALVES.T).all()


def test_what_lies_beside_images_and_masks_is_passed_over(tmp_path: Path) -> None:
    beside = {
        "README.md": b"hello",
        "SegmentationObject/0.png": file(HALVES),
        "annotations/0.xml": b"",
    }
    assert checked(paired(file(HALVES)) | beside, tmp_path).report["examples"]["train"] == 4


@pytest.mark.parametrize(
    ("change", "loc", "message"),
    [
        ({"masks/0.png": file(HALVES[:, :6])}, "masks/0.png", "not the size of its image"),
        ({"masks/0.png": None}, "images/0.png", "no mask has its name"),
        ({"images/0.png": None}, "masks/0.png", "no image has its name"),
        ({"images/0.jpg": picture()}, "images/0.jpg", "two files of one name"),
        ({"masks/0.png": b"no image"}, "masks/0.png", "not a readable image"),
        (
            {"masks/0.png": file(HALVES, "JPEG")},
            "masks/0.png",
            "not a format that keeps every pixel",
        ),
        ({"masks/0.png": file(colours(HALVES, RED, GREEN))}, "masks/0.png", "nothing says which"),
        ({"masks/0.png": file(HALVES.astype(np.uint16) * 999)}, "masks/0.png", "a mask of objects"),
        ({"elsewhere/x.png": picture()}, "elsewhere/x.png", "neither in the folder of images"),
        ({"classes.txt": b"a\na"}, "classes.txt", "twice"),
        ({"classes.txt": b"\xff"}, "classes.txt", "not UTF-8"),
        ({"classes.csv": b"name,r,g,b\nroad,1,2"}, "classes.csv", "no colour"),
        ({"labelmap.txt": b"a:1,1,1::\nb:1,1,1::"}, "labelmap.txt", "two classes of one colour"),
    ],
)
def test_what_is_wrong_with_an_archive_is_told_with_its_file(
    change: dict[str, bytes | None], loc: str, message: str, tmp_path: Path
) -> None:
    members = {name: data for name, data in {**paired(file(HALVES)), **change}.items() if data}
    problem = problems_of(members, tmp_path)[0]
    assert problem.loc[:2] == ("file", loc)
    assert message in problem.msg


def test_a_colour_that_no_class_has_is_shown(tmp_path: Path) -> None:
    mask = file(colours(HALVES, RED, (1, 2, 3)))
    (problem, *_) = problems_of(
        paired(mask, **{"labelmap.txt": "a:255,0,0::\nb:0,255,0::"}), tmp_path
    )
    assert (problem.found, problem.allowed) == (["1,2,3"], ["255,0,0", "0,255,0"])


def test_masks_of_one_class_are_refused(tmp_path: Path) -> None:
    (problem,) = problems_of(paired(file(HALVES * 0)), tmp_path)
    assert (problem.msg, problem.found) == ("one class only", ["0"])


def test_a_hostile_archive_is_refused_before_it_is_read(tmp_path: Path) -> None:
    assert problems_of({"../masks/1.png": b"x"}, tmp_path)[0].msg == "unsafe name"


# What is left open


def test_sizes_follow_the_typical_image_in_steps_of_32() -> None:
    schema = {"labels": ["a", "b"], "width": 240, "height": 180, "colour": True}
    task = SemanticSegmentation().resolve(Facts(schema, {"train": 300}))
    assert (task.height, task.width, task.channels) == (192, 256, 3)
    large = schema | {"width": 1920, "height": 1080}
    task = SemanticSegmentation().resolve(Facts(large, {"train": 300}))
    assert (task.height, task.width) == (192, 352)


# Predictions and metrics


@pytest.fixture
def data(tmp_path: Path) -> Checked:
    members = paired(file(HALVES), 8) | {"classes.txt": b"road\nsky"}
    return checked(members, tmp_path)


def test_a_prediction_has_the_size_of_the_image_that_was_sent(data: Checked) -> None:
    task = resolved(data)
    codec = codec_of(task, data)
    trained = Trained(task, codec, task.build(codec))
    sent = picture(50, 30)
    (found,) = trained.predict(codec.read_inputs([{"image": base64.b64encode(sent).decode()}]))
    with Image.open(BytesIO(found.mask)) as mask:
        assert (mask.size, mask.mode) == ((50, 30), "L")
    assert sum(region.share for region in found.classes) == pytest.approx(1)
    assert all(0 < region.score <= 1 for region in found.classes)
    assert (task.height, task.width) == (32, 32)


def prediction(mask: Any) -> MaskPrediction:
    return MaskPrediction(
        mask=encode_mask(np.array(mask, np.uint8)),
        classes=[ClassRegion(index=0, label="a", share=1, score=1)],
    )


def example(mask: Any) -> pl.DataFrame:
    masks = [encode_mask(np.array(mask, np.uint8))]
    return pl.DataFrame({"mask": masks, "pixels": [{"a": 1, "b": 1, "c": 0}]})


def test_metrics_of_a_mask_made_by_hand() -> None:
    truth, answer = [[0, 0, 0, 1, 1, IGNORED]], [[0, 0, 1, 1, 2, 2]]
    found = SemanticSegmentation().score([prediction(answer)], example(truth))
    # a: 2 of 3; b: 1 of {1 missed, 1 too many, 1 right}; c does not occur, the last pixel is not known.
    assert found == {
        "miou": pytest.approx((2 / 3 + 1 / 3) / 2),
        "pixel_accuracy": pytest.approx(3 / 5),
        "mean_accuracy": pytest.approx((2 / 3 + 1 / 2) / 2),
        "mean_dice": pytest.approx((4 / 5 + 2 / 4) / 2),
    }
    report = SemanticSegmentation().evaluate([prediction(answer)], example(truth))
    assert report["per_class"]["b"] == {
        "iou": pytest.approx(1 / 3),
        "precision": 0.5,
        "recall": 0.5,
        "dice": 0.5,
        "pixels": 2,
    }
    assert report["confusion"]["counts"] == [[2, 1, 0], [0, 1, 1], [0, 0, 0]]
    json.dumps(report)


def test_an_answer_is_brought_to_the_size_of_the_truth() -> None:
    coarse, truth = [[0, 1], [0, 1]], np.repeat([[0, 0, 0, 1, 1, 1]], 6, axis=0)
    assert SemanticSegmentation().score([prediction(coarse)], example(truth))["miou"] == 1


def test_masks_are_enlarged_without_classes_that_are_between_others() -> None:
    mask = np.array([[0, 2], [0, 2]], np.uint8)
    large = smoothed(mask, (8, 10))
    assert set(np.unique(large)) == {0, 2}
    assert (large[:, :4] == 0).all()
    assert (large[:, 6:] == 2).all()


def test_numbers_are_not_mixed_when_images_are_moved() -> None:
    torch.manual_seed(0)
    images = torch.rand(40, 1, 16, 16)
    masks = torch.where(images[:, 0] > 0.5, 7, 3).to(torch.uint8)
    for augmentation in (
        Augmentation(zoom=0.4, rotate=30, flip=True),
        Augmentation(shift=0.2, flip=True),
    ):
        moved, (mask,) = augmentation.move_all(images, [masks], [IGNORED])
        assert mask.dtype == torch.uint8
        assert set(mask.unique().tolist()) <= {3, 7, IGNORED}
        assert moved.shape == images.shape
    # By whole pixels, what is bright is still 7.
    assert torch.equal(mask == 7, moved[:, 0] > 0.5)


# Learning


def test_a_classifier_is_a_base(data: Checked, tmp_path: Path) -> None:
    path = tmp_path / "bars.zip"
    bars(path, 24)
    wanted = ImageClassification.check({"file": Upload(path, path.name)}, DatasetOptions())
    facts = Facts(wanted.schema, {"train": 19})
    classifier = ImageClassification(architecture=TINY).resolve(facts)
    theirs = classifier.learn_codec(wanted.splits["train"].lazy(), wanted.schema)
    base = classifier.build(theirs)

    task = SemanticSegmentation.model_validate({"augmentation": {}}).on_base(classifier)
    assert (task.architecture, task.channels) == (TINY, 1)
    task = resolved(data, architecture=task.architecture, channels=task.channels)
    codec = codec_of(task, data, theirs)
    assert (codec.mean, codec.size, codec.made_for) == (theirs.mean, (32, 32), (theirs.side,) * 2)
    assert not task.same_outputs(codec, theirs)
    learner = task.build(codec)
    learner.take_over(base, head=False)
    for name, weight in base.backbone.state_dict().items():
        assert torch.equal(weight, learner.backbone.state_dict()[name])


def test_a_base_that_reads_no_images_is_refused(data: Checked) -> None:
    with pytest.raises(Invalid, match="does not read images"):
        codec_of(resolved(data), data, object())


@pytest.mark.parametrize("decoder", [UNet(width=4, stride=1), UNet(stride=4), AllMLP(width=8)])
def test_every_decoder_tells_something_of_every_pixel(decoder: Any, data: Checked) -> None:
    task = resolved(data, decoder=decoder, height=64, width=32)
    codec = codec_of(task, data)
    learner = task.build(codec)
    images = codec.encode(data.splits["train"]).batch(torch.arange(2)).inputs
    assert learner(*images).shape == (2, 2, 64, 32)
    assert learner.predict(*images).shape == (2, 2, 64, 32)


def test_colours_are_packed_into_numbers_of_their_own() -> None:
    assert packed(np.array([[RED, GREEN, (0, 0, 9)]], np.uint8)).tolist() == [
        [255 << 16, 255 << 8, 9]
    ]
