"""From images and outlines of objects to objects with pixels of their own."""

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
from models.parts.instances import MOST_OBJECTS, centres, told
from tasks.base import Checked, DatasetOptions, Facts, Upload
from tasks.instance_segmentation import (
    InstanceCodec,
    InstanceSegmentation,
    InstancesPrediction,
    outlined,
)
from tasks.parts.grouping import objects_of
from tasks.parts.marked import Marked
from tasks.parts.outlines import decoded, drawn, encoded, of_text
from tasks.parts.problems import Invalid, Problem
from tasks.semantic_segmentation import SemanticSegmentation
from tasks.trained import Trained

TINY = CNN(channels=[4, 8], dropout=0)
SIZE = (6, 8)
TWO = np.zeros(SIZE, np.uint16)
TWO[1:4, 1:3], TWO[1:4, 3:6] = 300, 7


def file(pixels: Any, format: str = "PNG") -> bytes:
    saved = BytesIO()
    Image.fromarray(np.asarray(pixels)).save(saved, format)
    return saved.getvalue()


def upload(members: Mapping[str, bytes | str], folder: Path, name: str = "objects.zip") -> Upload:
    path = folder / name
    with zipfile.ZipFile(path, "w") as archive:
        for member, data in members.items():
            archive.writestr(member, data)
    return Upload(path, name)


def pictures(count: int = 4) -> dict[str, bytes]:
    return {f"images/{n}.png": file(np.full((*SIZE, 3), n * 9, np.uint8)) for n in range(count)}


def numbered(count: int = 4, mask: Any = TWO) -> dict[str, bytes]:
    return pictures(count) | {f"instance_masks/{n}.png": file(mask) for n in range(count)}


def outlines(*segmentations: Any, count: int = 4, **fields: Any) -> dict[str, bytes | str]:
    annotations = [
        {"id": 10 * n + k, "image_id": n, "category_id": 1 + k % 2, "bbox": [0, 0, 2, 2], **fields}
        | {"segmentation": segmentation}
        for n in range(count)
        for k, segmentation in enumerate(segmentations)
    ]
    coco = {
        "images": [{"id": n, "file_name": f"{n}.png"} for n in range(count)],
        "annotations": annotations,
        "categories": [{"id": 1, "name": "cell"}, {"id": 2, "name": "ant"}],
    }
    return {**pictures(count), "annotations.json": json.dumps(coco)}


def checked(members: Mapping[str, bytes | str], folder: Path, **options: Any) -> Checked:
    files = {"file": upload(members, folder)}
    return InstanceSegmentation.check(files, DatasetOptions(**options))


def problems_of(members: Mapping[str, bytes | str], folder: Path) -> list[Problem]:
    with pytest.raises(Invalid) as caught:
        checked(members, folder)
    return list(caught.value.problems)


def objects_in(data: Checked) -> list[tuple[str, np.ndarray]]:
    return [
        (o["label"], decoded(of_text(o["mask"], SIZE)))
        for o in data.splits["train"]["objects"].to_list()[0]
    ]


def resolved(data: Checked, **fields: Any) -> InstanceSegmentation:
    facts = Facts(data.schema, {name: frame.height for name, frame in data.splits.items()})
    fields = {"architecture": TINY, "augmentation": {}, **fields}
    return InstanceSegmentation.model_validate(fields).resolve(facts)


def codec_of(task: InstanceSegmentation, data: Checked, base: Any = None) -> InstanceCodec:
    return task.learn_codec(data.splits["train"].lazy(), data.schema, base)


# Data sets


def test_numbers_of_a_mask_are_objects(tmp_path: Path) -> None:
    data = checked(numbered() | {"classes.txt": b"nucleus"}, tmp_path)
    found = objects_in(data)
    assert [label for label, _ in found] == ["nucleus", "nucleus"]
    assert (found[0][1] == (TWO == 7)).all()
    assert (found[1][1] == (TWO == 300)).all()
    assert data.report["classes"] == {"nucleus": {"train": 6, "validation": 2}}
    assert data.report["objects_per_image"] == {"min": 2, "median": 2, "max": 2}
    json.dumps(data.report)


def test_polygons_and_run_lengths_are_objects(tmp_path: Path) -> None:
    square = np.zeros(SIZE, np.uint8)
    square[1:3, 2:6] = 1
    runs = {"size": list(SIZE), "counts": [13, 2, 4, 2, 4, 2, 4, 2, 15]}
    text = {"size": list(SIZE), "counts": encoded(square)}
    polygon = [[2, 1, 6, 1, 6, 3, 2, 3]]
    data = checked(outlines(polygon, runs, text), tmp_path)
    found = objects_in(data)
    assert [label for label, _ in found] == ["cell", "ant", "cell"]
    assert all((mask == square).all() for _, mask in found)
    assert data.schema["labels"] == ["ant", "cell"]


def test_an_outline_without_a_pixel_is_left_out_and_counted(tmp_path: Path) -> None:
    thin = [[1, 1, 1, 1, 1, 1]]
    data = checked(outlines([[0, 0, 4, 0, 4, 4]], thin), tmp_path)
    assert data.report["empty"] == 4
    assert len(objects_in(data)) == 1


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        (None, "no outline"),
        ("text", "no outline"),
        ([[0, 0, 1, 1]], "not a polygon"),
        ([[0, 0, 1, 1, 2]], "not a polygon"),
        ([[0, 0, 1, 1, "x", 2]], "not a polygon"),
        ([7], "not a polygon"),
        ({"size": [8, 6], "counts": [48]}, "not the size of its image"),
        ({"size": [6, 8], "counts": [1]}, "not run lengths"),
        ({"size": [6, 8], "counts": [-1, 49]}, "not run lengths"),
        ({"size": [6, 8], "counts": [48.0]}, "not run lengths"),
        ({"size": [6, 8], "counts": "zzzzzzzzzzzz"}, "not run lengths"),
        ({"size": [6, 8], "counts": "P"}, "not run lengths"),
        ({"size": [6, 8], "counts": "\x00"}, "not run lengths"),
        ({"size": [6, 8]}, "not run lengths"),
    ],
)
def test_a_hostile_outline_is_named(segmentation: Any, message: str, tmp_path: Path) -> None:
    problem = problems_of(outlines(segmentation, count=2), tmp_path)[0]
    assert problem.loc[:4] == ("file", "annotations.json", "annotations", 0)
    assert message in problem.msg


def test_an_outline_far_outside_takes_no_more_work_than_its_image() -> None:
    far = Marked(
        "a", (0, 0, 1, 1), ("x",), False, [[-1e12, -1e12, 1e12, -1e12, 1e12, 1e12, -1e12, 1e12]]
    )
    assert drawn(far, SIZE).all()


def test_run_lengths_survive_being_text() -> None:
    draw = np.random.default_rng(0)
    for share in (0, 0.02, 0.5, 1):
        mask = (draw.random((70, 90)) < share).astype(np.uint8)
        assert (decoded(of_text(encoded(mask), (70, 90))) == mask).all()


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (numbered(mask=TWO * 0), "no objects"),
        (numbered() | {"classes.txt": b"a\nb"}, "numbers of objects do not tell classes"),
        (numbered(mask=TWO[:, :5]), "not the size of its image"),
        (numbered(mask=np.arange(48 * 60).reshape(48, 60).astype(np.uint16)), "too many objects"),
        (pictures(), "no mask has its name"),
    ],
)
def test_what_is_wrong_with_an_archive_is_told(
    members: dict[str, bytes], message: str, tmp_path: Path
) -> None:
    if message == "too many objects":
        members |= {f"images/{n}.png": file(np.zeros((48, 60), np.uint8)) for n in range(4)}
    assert problems_of(members, tmp_path)[0].msg.startswith(message)


def test_a_label_that_the_train_split_lacks_is_refused(tmp_path: Path) -> None:
    square = [[0, 0, 4, 0, 4, 4]]
    files = {
        "train": upload(outlines(square), tmp_path, "train.zip"),
        "test": upload(outlines(square, square), tmp_path, "test.zip"),
    }
    with pytest.raises(Invalid, match="a label that the train split lacks"):
        InstanceSegmentation.check(files, DatasetOptions())


def test_annotations_of_several_splits_split_an_archive_and_are_no_split_themselves(
    tmp_path: Path,
) -> None:
    members = outlines([[0, 0, 4, 0, 4, 4]], count=5)
    whole = json.loads(members.pop("annotations.json"))
    for split, held in (("train", {0, 1, 2}), ("val", {3, 4})):
        part = {
            "images": [image for image in whole["images"] if image["id"] in held],
            "annotations": [a for a in whole["annotations"] if a["image_id"] in held],
        }
        members[f"annotations/instances_{split}.json"] = json.dumps({**whole, **part})
    data = checked(members, tmp_path)
    assert {name: frame.height for name, frame in data.splits.items()} == {
        "train": 3,
        "validation": 2,
    }
    with pytest.raises(Invalid, match="is one split already"):
        InstanceSegmentation.check({"train": upload(members, tmp_path)}, DatasetOptions())


# What is learned of pixels


def test_a_pixel_knows_the_way_to_the_middle_of_its_object() -> None:
    objects = torch.zeros(2, 9, 9, dtype=torch.int16)
    objects[0, 1:4, 2:7] = 5
    objects[1, 0:3, 0:3] = 5
    found = centres(objects)
    heat, (down, across) = found.heat[0], found.offsets[0] * 8
    assert heat[2, 4] == 1
    assert float(heat.max()) == 1
    assert (heat[objects[0] == 0] == 0).all()
    assert (down[1, 2], across[1, 2]) == (1, 2)
    # The same number in another image is another object.
    assert found.heat[1, 1, 1] == 1


def test_an_object_around_its_middle_has_its_summit_on_itself() -> None:
    ring = torch.zeros(1, 9, 9, dtype=torch.int16)
    ring[0, 1:8, 1:8] = 1
    ring[0, 3:6, 3:6] = 0
    heat = centres(ring).heat[0]
    assert heat[4, 4] == 0
    assert float(heat.max()) == 1


def answers(objects: torch.Tensor, classes: torch.Tensor, count: int) -> torch.Tensor:
    """What a perfect network says of numbers and classes (1, H, W)."""
    truth = centres(objects)
    scores = torch.nn.functional.one_hot(classes.long(), count).movedim(-1, 1) * 9.0
    heat = truth.heat.clamp(1e-3, 1 - 1e-3).logit()[:, None]
    return torch.cat([scores, heat, truth.offsets], 1)


def test_objects_that_touch_are_told_apart_and_keep_their_classes() -> None:
    objects, classes = torch.zeros(2, 1, 24, 24, dtype=torch.int16)
    objects[0, 4:12, 2:10], objects[0, 4:12, 10:18], objects[0, 16:22, 4:10] = 1, 2, 3
    classes[0, 4:12, 2:18], classes[0, 16:22, 4:10] = 1, 2
    found = objects_of(told(answers(objects, classes, 3), 3)[0].numpy())
    assert len(found) == 3
    for one in found:
        number = int(objects[0][torch.from_numpy(one.mask) > 0].unique())
        assert (one.mask == (objects[0] == number).numpy()).all()
        assert one.number == (2 if number == 3 else 1)
        assert 0.5 < one.score <= 1
    assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)


def test_what_is_connected_is_an_object_even_where_no_centre_is_likely() -> None:
    said = np.zeros((5, 16, 16), np.float32)
    said[:2, 3:8, 3:8] = 1
    (found,) = objects_of(said)
    assert found.mask.sum() == 25
    assert found.score < 0.2
    assert objects_of(said * 0) == []


def test_crowds_and_the_background_are_no_objects(tmp_path: Path) -> None:
    data = checked(outlines([[0, 0, 4, 0, 4, 6, 0, 6]], [[4, 0, 8, 0, 8, 6, 4, 6]]), tmp_path)
    frame = data.splits["train"].with_columns(
        pl.Series(
            "objects",
            [
                [o | {"crowd": o["label"] == "ant"} for o in row]
                for row in data.splits["train"]["objects"].to_list()
            ],
            dtype=data.splits["train"]["objects"].dtype,
        )
    )
    task = resolved(data, height=32, width=32)
    classes, numbers = codec_of(task, data).encode_targets(frame)
    assert classes.values[0, :, :16].unique().tolist() == [2]
    assert classes.values[0, :, 16:].unique().tolist() == [255]
    assert numbers.values[0, :, 16:].unique().tolist() == [0]
    assert int(numbers.values.max()) <= MOST_OBJECTS


# Predictions and metrics


@pytest.fixture
def data(tmp_path: Path) -> Checked:
    return checked(numbered(), tmp_path)


def said(*found: tuple[float, np.ndarray]) -> InstancesPrediction:
    objects = [outlined("object", score, mask.astype(np.uint8)) for score, mask in found]
    return InstancesPrediction(objects=objects)


def test_average_precision_of_masks_made_by_hand(data: Checked) -> None:
    examples = data.splits["validation"].head(1)
    one, other = TWO == 7, TWO == 300
    score = lambda *found: InstanceSegmentation().score([said(*found)], examples)  # noqa: E731
    whole = score((0.9, one), (0.8, other))
    assert whole == pytest.approx({"map": 1, "ap50": 1, "ap75": 1, "mar": 1})
    # Half of the recall at full precision: 51 of 101 points.
    assert score((0.9, one))["ap50"] == pytest.approx(51 / 101)
    # 6 of 9 pixels: enough for overlaps of 0.5, 0.55, 0.6 and 0.65 only.
    cut = one.copy()
    cut[3] = False
    partly = score((0.9, cut), (0.8, other))
    assert partly["ap50"] == pytest.approx(1)
    assert partly["ap75"] < 0.6
    assert partly["mar"] == pytest.approx((4 * 1 + 6 * 0.5) / 10)
    # One mask over both is none of them.
    assert score((0.9, one | other))["ap75"] == 0
    assert score() == {"map": 0, "ap50": 0, "ap75": 0, "mar": 0}


def test_an_evaluation_counts_objects(data: Checked) -> None:
    examples = data.splits["validation"].head(1)
    report = InstanceSegmentation().evaluate([said((0.9, TWO == 7))], examples)
    assert report["objects"] == {"truth": 2, "found": 1}
    assert set(report["per_class"]) == {"object"}
    json.dumps(report)


def test_a_client_gets_masks_in_the_size_of_its_image_and_what_it_asks_for(data: Checked) -> None:
    codec = codec_of(resolved(data), data)
    half = np.zeros((32, 32), np.uint8)
    half[:, :16] = 1
    found = InstancesPrediction(
        objects=[outlined("object", score, half) for score in (0.9, 0.5, 0.1)]
    )
    image = base64.b64encode(file(np.zeros((30, 40, 3), np.uint8))).decode()
    counts = []
    for wanted in ({}, {"threshold": 0}, {"threshold": 0, "max_objects": 1}):
        inputs = codec.read_inputs([{"image": image, **wanted}])
        (answer,) = codec.complete([found], inputs)
        counts.append(len(answer.objects))
    assert counts == [2, 3, 1]
    assert answer.objects[0].box == [0, 0, 20, 30]
    with Image.open(BytesIO(answer.objects[0].mask)) as mask:
        assert (mask.size, mask.mode) == ((40, 30), "1")
        assert np.asarray(mask)[:, :20].all()


def test_a_model_that_has_learned_nothing_answers(data: Checked) -> None:
    task = resolved(data)
    codec = codec_of(task, data)
    trained = Trained(task, codec, task.build(codec))
    (answer,) = trained.predict(codec.read_inputs([codec.blank()]))
    assert isinstance(answer, InstancesPrediction)
    with pytest.raises(Invalid, match="threshold"):
        codec.read_inputs([{"image": "", "threshold": 2}])


# Transfer


def test_a_model_of_classes_is_a_base_for_objects(data: Checked, tmp_path: Path) -> None:
    squares = {f"masks/{n}.png": file((TWO > 0).astype(np.uint8)) for n in range(4)}
    semantic = {"file": upload(pictures() | squares, tmp_path, "semantic.zip")}
    wanted = SemanticSegmentation.check(semantic, DatasetOptions())
    facts = Facts(wanted.schema, {"train": 3})
    earlier = SemanticSegmentation.model_validate({"architecture": TINY, "augmentation": {}})
    earlier = earlier.resolve(facts)
    theirs = earlier.learn_codec(wanted.splits["train"].lazy(), wanted.schema)
    base = earlier.build(theirs)

    task = InstanceSegmentation(architecture="auto", channels="auto").on_base(earlier)
    task = resolved(data, architecture=task.architecture, channels=task.channels)
    codec = codec_of(task, data, theirs)
    assert (codec.mean, codec.std, codec.made_for) == (theirs.mean, theirs.std, theirs.made_for)
    learner = task.build(codec)
    learner.take_over(base, head=task.same_outputs(codec, theirs))
    for name, weight in base.backbone.state_dict().items():
        assert torch.equal(weight, learner.backbone.state_dict()[name])
