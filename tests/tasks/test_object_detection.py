"""From marked images to a detector: boxes there and back, what is learned, and what it is worth."""

import base64
import io
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from PIL import Image
from torch import Tensor

from models.base import Batch
from models.cnn import CNN
from models.parts.center_points import CenterPoints
from models.parts.detection import Candidates, Detector, Objects
from models.parts.losses import CrossEntropy
from models.parts.optimizers import AdamW
from models.parts.options import AUTO
from models.parts.set_prediction import SetPrediction
from models.parts.training import Training
from models.resnet import ResNet
from tasks.base import Checked, Facts
from tasks.image_classification import ImageClassification, ImageCodec
from tasks.object_detection import ObjectDetection
from tasks.parts.augmentation import Augmentation
from tasks.parts.columns import Ragged
from tasks.parts.detecting import (
    DetectedObject,
    DetectionCodec,
    DetectionPrediction,
    ObjectDetector,
    kept_in,
)
from tasks.parts.letterbox import corners, fit, letterbox
from tasks.parts.problems import Invalid
from tasks.trained import Trained
from tests.tasks.test_marked_files import checked as checked_files
from tests.tasks.test_marked_files import coco
from tests.toys import toy

TINY = CNN(channels=[8, 16], dropout=0)
STILL = Augmentation()
CODEC = DetectionCodec(
    labels=["cat", "dog"], counts=[3, 2], side=32, channels=3, mean=[90, 80, 70], std=[50, 60, 70]
)


@cache
def toys(count: int = 30) -> Checked:
    with TemporaryDirectory() as folder:
        files = toy("object-detection", Path(folder), count)
        return ObjectDetection.check(files, ObjectDetection.options_type())


def facts_of(data: Checked) -> Facts:
    return Facts(data.schema, {name: frame.height for name, frame in data.splits.items()})


def task_for(data: Checked, **fields: Any) -> ObjectDetection:
    return ObjectDetection.model_validate({"architecture": TINY, **fields}).resolve(facts_of(data))


def codec_for(data: Checked, base: Any = None, **fields: Any) -> DetectionCodec:
    train = data.splits["train"].lazy()
    return task_for(data, **fields).learn_codec(train, data.schema, base)


def picture(size: tuple[int, int], kind: str = "PNG", turned: bool = False) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    image, file = Image.fromarray(pixels), io.BytesIO()
    exif = image.getexif()
    if turned:
        exif[0x0112] = 6
    image.save(file, kind, exif=exif)
    return file.getvalue()


def example(image: bytes, *objects: tuple[Any, ...]) -> pl.DataFrame:
    names = ("label", "x1", "y1", "x2", "y2", "crowd")
    rows = [dict(zip(names, (*o, *[False] * (6 - len(o))), strict=True)) for o in objects]
    schema = toys().splits["train"].schema
    return pl.DataFrame({"image": [image], "name": ["a"], "objects": [rows]}, schema=schema)


# Images and boxes


@pytest.mark.parametrize("side", [16, 33, 128])
def test_a_network_knows_where_images_of_any_size_lie_in_their_squares(side: int) -> None:
    draw = np.random.default_rng(0)
    sizes = [*map(tuple, draw.integers(1, 700, (500, 2)).tolist()), (1, 900), (900, 1), (333, 667)]
    found = corners(torch.tensor(sizes, dtype=torch.float32), side) * side
    for size, box in zip(sizes, found.tolist(), strict=True):
        width, height, left, top = fit(size, side)
        assert box == pytest.approx([left, top, left + width, top + height], abs=1e-3), size


def test_an_image_lies_unstretched_in_the_middle_of_its_square() -> None:
    pixels, size = letterbox(picture((60, 30)), 20, 3, [90, 80, 70.4])
    assert size == (60, 30)
    assert pixels.shape == (3, 20, 20)
    assert (pixels[:, :5] == np.array([90, 80, 70])[:, None, None]).all()
    assert (pixels[:, 15:] == np.array([90, 80, 70])[:, None, None]).all()
    assert pixels[:, 5:15].std() > 5


def test_boxes_of_the_square_are_encoded_with_their_classes_and_crowds() -> None:
    frame = example(picture((40, 20)), ("dog", 10, 5, 30, 20), ("cat", 0, 0, 40, 20, True))
    (objects,) = CODEC.encode(frame).targets
    assert isinstance(objects, Ragged)
    assert objects.values.tolist() == [[0.25, 0.375, 0.75, 0.75, 1], [0, 0.25, 1, 0.75, -1]]
    assert objects.offsets.tolist() == [0, 2]


class Oracle(torch.nn.Module):
    """A head that says what it was told to."""

    def __init__(self, found: Candidates) -> None:
        super().__init__()
        self.found = found

    def forward(self, maps: list[Tensor]) -> Tensor:
        return maps[-1]

    def candidates(self, outputs: Tensor) -> Candidates:
        return self.found


def detector(head: Any) -> ObjectDetector:
    backbone = TINY.build(3, (32, 32))
    return ObjectDetector(backbone, head, torch.nn.Identity(), CODEC, STILL).eval()


def test_what_is_found_comes_back_in_pixels_of_the_image_as_it_is_shown() -> None:
    truth = ("dog", 3.0, 20.0, 30.0, 77.0)
    upright = example(picture((100, 40), "JPEG", turned=True), truth)  # 40 wide, 100 high
    columns = CODEC.encode(upright)
    values = columns.targets[0].take(torch.tensor([0]))[0]
    inputs = columns.batch(torch.tensor([0])).inputs
    assert inputs[1].tolist() == [[40, 100]]
    found = Candidates(values[..., :4], torch.tensor([[0.9]]), values[..., 4].long())
    (told,) = CODEC.decode(detector(Oracle(found)).predict(*inputs))
    (only,) = told.objects
    assert (only.label, only.score) == ("dog", pytest.approx(0.9))
    assert only.box == pytest.approx(truth[1:], abs=1e-3)


def test_of_objects_on_top_of_each_other_the_best_is_told_and_none_beyond_the_image() -> None:
    box, near = [0.2, 0.3, 0.6, 0.7], [0.22, 0.3, 0.6, 0.7]
    outside = [-0.5, 0.4, 0.5, 2.0]
    found = Candidates(
        torch.tensor([[box, near, near, outside]]),
        torch.tensor([[0.9, 0.8, 0.7, 0.6]]),
        torch.tensor([[0, 0, 1, 1]]),
    )
    inputs = torch.zeros(1, 3, 32, 32, dtype=torch.uint8), torch.tensor([[64.0, 32.0]])
    (told,) = CODEC.decode(detector(Oracle(found)).predict(*inputs))
    assert [(o.label, round(o.score, 2)) for o in told.objects] == [
        ("cat", 0.9),
        ("dog", 0.7),
        ("dog", 0.6),
    ]
    assert told.objects[2].box == pytest.approx([0, 0.15 * 64, 32, 32])


# Requests


def prediction(*objects: tuple[Any, ...]) -> DetectionPrediction:
    found = [DetectedObject(label=o[0], score=o[1], box=list(o[2:])) for o in objects]
    return DetectionPrediction(objects=found)


def test_a_request_says_which_objects_it_wants() -> None:
    found = prediction(*(("cat", score / 10, 0, 0, 1, 1) for score in (9, 5, 3, 2, 1)))

    def told(**wanted: Any) -> list[float]:
        read = CODEC.read_input({"image": picture((9, 5)), **wanted})
        (completed,) = CODEC.complete([found], [read])
        return [o.score for o in completed.objects]

    assert told() == [0.9, 0.5, 0.3]
    assert told(threshold=0.0) == [0.9, 0.5, 0.3, 0.2, 0.1]
    assert told(threshold=0.2, max_objects=2) == [0.9, 0.5]
    assert len(CODEC.complete([found], [None])[0].objects) == 3


def test_an_image_may_stand_alone_and_be_base64() -> None:
    text = base64.b64encode(picture((9, 5))).decode()
    for value in (text, {"image": text}, picture((9, 5))):
        assert CODEC.read_input(value).size == (9, 5)


@pytest.mark.parametrize(
    ("value", "loc"),
    [
        ({"threshold": 0.5}, ("inputs", 0)),
        ({"image": "?"}, ("inputs", 0, "image")),
        ({"image": picture((2, 2)), "threshold": 2}, ("inputs", 0, "threshold")),
        ({"image": picture((2, 2)), "max_objects": 101}, ("inputs", 0, "max_objects")),
        ({"image": picture((2, 2)), "treshold": 0.5}, ("inputs", 0, "treshold")),
    ],
)
def test_a_faulty_request_is_named(value: Any, loc: tuple[Any, ...]) -> None:
    with pytest.raises(Invalid) as caught:
        CODEC.read_inputs([value])
    assert caught.value.problems[0].loc == loc


# Metrics


def score(found: list[DetectionPrediction], *truth: list[tuple[Any, ...]]) -> dict[str, Any]:
    frame = pl.concat([example(b"", *objects) for objects in truth])
    task = ObjectDetection(architecture=TINY)
    told = task.evaluate(found, frame.drop("image"))
    assert task.score(found, frame.drop("image")).items() <= told.items()
    return told


def test_metrics_are_those_of_coco() -> None:
    cat, box = ("cat", 0, 0, 100, 100), (0, 0, 100, 100)
    perfect = score([prediction(("cat", 0.02, *box))], [cat])
    assert [perfect[name] for name in ("map", "ap50", "ap75", "mar")] == pytest.approx([1] * 4)
    # An overlap of 0.62 is enough for 3 of 10 thresholds.
    rough = score([prediction(("cat", 0.9, 0, 0, 100, 62))], [cat])
    assert [rough[name] for name in ("map", "ap50", "ap75", "mar")] == pytest.approx(
        [0.3, 1, 0, 0.3]
    )
    # One of two is found: precision is 1 at 51 of 101 recalls.
    half = score([prediction(("cat", 0.9, *box)), prediction()], [cat], [cat])
    assert half["ap50"] == pytest.approx(51 / 101)
    # The surer one is wrong.
    late = score([prediction(("cat", 0.9, 200, 200, 250, 250), ("cat", 0.8, *box))], [cat])
    assert late["ap50"] == pytest.approx(0.5)
    assert score([prediction()], [cat])["map"] == 0


def test_a_class_that_is_missed_counts_as_much_as_one_that_is_found() -> None:
    truth = [("cat", 0, 0, 9, 9), ("dog", 20, 20, 29, 29)]
    told = score([prediction(("cat", 0.9, 0, 0, 9, 9), ("cow", 1.0, 0, 0, 9, 9))], truth)
    assert told["map"] == pytest.approx(0.5)
    assert told["classes"]["cat"]["map"] == pytest.approx(1)
    assert told["classes"]["dog"] == {"map": 0, "ap50": 0, "mar": 0}


def test_what_is_found_in_a_crowd_counts_for_nothing() -> None:
    truth = [("cat", 0, 0, 9, 9), ("cat", 50, 50, 99, 99, True)]
    found = prediction(("cat", 0.95, 60, 60, 80, 80), ("cat", 0.9, 0, 0, 9, 9))
    assert score([found], truth)["map"] == pytest.approx(1)
    assert score([found], truth[:1])["map"] == pytest.approx(0.5)


def test_an_evaluation_tells_the_best_threshold_of_each_class() -> None:
    found = prediction(
        ("cat", 0.9, 0, 0, 9, 9), ("cat", 0.6, 20, 20, 29, 29), ("cat", 0.4, 50, 50, 60, 60)
    )
    told = score([found], [("cat", 0, 0, 9, 9), ("cat", 20, 20, 29, 29)])
    best = told["best_threshold"]["cat"]
    assert best == pytest.approx({"threshold": 0.6, "precision": 1, "recall": 1, "f1": 1})


# Variation


def test_boxes_move_with_what_is_in_them() -> None:
    torch.manual_seed(0)
    images = torch.zeros(64, 1, 64, 64)
    images[:, :, 24:40, 20:30] = 1
    boxes = torch.tensor([20, 24, 30, 40]).div(64).expand(64, 1, 4)
    varied = Augmentation(shift=0.2, zoom=0.3, flip=True)
    moved, found = varied.move_with_boxes(images, boxes)
    assert (found - boxes).abs().amax(0).min() > 0.1
    for image, box in zip(moved[:, 0], found[:, 0] * 64, strict=True):
        down, across = (image > 0.5).nonzero(as_tuple=True)
        seen = [across.min(), down.min(), across.max() + 1, down.max() + 1]
        assert box.tolist() == pytest.approx([float(side) for side in seen], abs=1.01)


def test_boxes_hold_what_is_turned() -> None:
    torch.manual_seed(1)
    images = torch.zeros(16, 1, 64, 64)
    images[:, :, 24:40, 20:30] = 1
    boxes = torch.tensor([20, 24, 30, 40]).div(64).expand(16, 1, 4)
    moved, found = Augmentation(rotate=180).move_with_boxes(images, boxes)
    for image, (left, top, right, bottom) in zip(moved[:, 0], found[:, 0] * 64, strict=True):
        down, across = (image > 0.5).nonzero(as_tuple=True)
        assert left - 1 < across.min() < across.max() < right + 1
        assert top - 1 < down.min() < down.max() < bottom + 1


def test_of_an_object_that_has_nearly_left_its_image_nothing_is_known() -> None:
    boxes = torch.tensor([[[0.2, 0.2, 0.4, 0.4], [-0.1, 0.2, 0.1, 0.4], [0.9, 0.2, 1.4, 0.4]]])
    kept = kept_in(Objects(boxes, torch.tensor([[1, 0, 1]])))
    assert kept.classes.tolist() == [[1, 0, -1]]
    assert kept.boxes[0, 1].tolist() == pytest.approx([0, 0.2, 0.1, 0.4])


# Learning


def batch_of(data: Checked, codec: DetectionCodec, count: int) -> Batch:
    return codec.encode(data.splits["train"]).batch(torch.arange(count))


@pytest.mark.parametrize("detector", [CenterPoints(width=16), SetPrediction(queries=5, width=16)])
def test_the_loss_of_a_batch_is_that_of_its_pieces_by_their_weight(detector: Detector) -> None:
    data = toys()
    codec, task = codec_for(data), task_for(data, detector=detector, augmentation=STILL)
    torch.manual_seed(0)
    learner, batch = task.build(codec).eval(), batch_of(data, codec, 6)
    pieces = [(learner.loss(part), learner.weight(part)) for part in batch.split(3)]
    whole = sum(loss * weight for loss, weight in pieces) / sum(weight for _, weight in pieces)
    torch.testing.assert_close(learner.loss(batch), whole)
    assert learner.weight(batch) == batch.targets[1].sum()


@pytest.mark.parametrize("detector", [CenterPoints(width=16), SetPrediction(queries=5, width=16)])
def test_images_without_objects_are_learned_from(detector: Detector) -> None:
    data = toys()
    codec, task = codec_for(data), task_for(data, detector=detector)
    learner = task.build(codec)
    empty = data.splits["train"].with_columns(pl.col("objects").list.head(0))
    batch = codec.encode(empty).batch(torch.arange(3))
    learner.start(Training().resolve(**defaults(task, data)), None, 1)
    learner.enter_epoch(0)
    before = learner.predict(*batch.inputs)[..., 4].detach().max()
    assert learner.train_step(batch, 0).isfinite()
    assert learner.weight(batch) == 3
    learner.eval()
    assert learner.predict(*batch.inputs)[..., 4].isfinite().all()
    assert before.isfinite()


def defaults(task: ObjectDetection, data: Checked) -> dict[str, Any]:
    facts = facts_of(data)
    return {**task.architecture.defaults(facts.examples), **task.defaults(facts)}


def learned(task: ObjectDetection, data: Checked, steps: int, rate: float) -> Trained:
    torch.manual_seed(0)
    codec = task.learn_codec(data.splits["train"].lazy(), data.schema)
    learner, columns = task.build(codec), codec.encode(data.splits["train"])
    chosen = {**defaults(task, data), "optimizer": AdamW(learning_rate=rate)}
    learner.start(Training().resolve(**chosen), None, steps)
    learner.enter_epoch(0)
    for step in range(steps):
        torch.manual_seed(step)
        learner.train_step(columns.batch(torch.randperm(columns.examples)[:16]), step)
    return Trained(task, codec, learner)


def test_a_set_of_answers_learns_the_toy() -> None:
    data = toys(80)
    few = SetPrediction(queries=6, width=64, encoder_layers=0, decoder_layers=2, dropout=0)
    network = CNN(channels=[32, 64], dropout=0)
    task = task_for(data, architecture=network, detector=few, augmentation=STILL)
    trained = learned(task, data, 150, 2e-3)
    seen = trained.predictions(trained.codec.encode(data.splits["train"]))
    assert task.score(seen, data.splits["train"])["ap50"] > 0.6


def test_defaults_suit_the_data() -> None:
    facts = Facts({"width": 320, "height": 240, "colour": True, "object": 0.6}, {"train": 150})
    task = ObjectDetection().resolve(facts)
    assert (task.image_size, task.channels) == (128, 3)
    assert isinstance(task.architecture, ResNet)
    assert isinstance(task.detector, CenterPoints)
    small = facts._replace(schema=facts.schema | {"object": 0.1, "colour": False})
    assert ObjectDetection().resolve(small).image_size == 240
    tiny = facts._replace(schema=facts.schema | {"object": 0.01, "width": 4_000})
    assert ObjectDetection().resolve(tiny).image_size == 512
    slow = ObjectDetection(detector=SetPrediction()).resolve(facts).defaults(facts)
    assert slow["epochs"] > ObjectDetection().resolve(facts).defaults(facts)["epochs"]


# Transfer


def classifier() -> tuple[ImageClassification, ImageCodec]:
    task = ImageClassification(
        architecture=TINY, image_size=24, channels=3, augmentation=STILL, loss=CrossEntropy()
    )
    shown = {"side": 24, "channels": 3, "mean": [1.0, 2, 3], "std": [4.0, 5, 6]}
    return task, ImageCodec(labels=["blue", "red"], counts=[1, 1], **shown)


@pytest.mark.parametrize("detector", [CenterPoints(width=16), SetPrediction(queries=5, width=16)])
def test_a_classifier_is_the_base_of_a_detector_and_the_other_way_round(
    detector: Detector,
) -> None:
    data, (base_task, base_codec) = toys(), classifier()
    asked = ObjectDetection(detector=detector, augmentation=STILL).on_base(base_task)
    task = asked.resolve(facts_of(data))
    assert (task.architecture, task.image_size, task.channels) == (TINY, 24, 3)
    codec = task.learn_codec(data.splits["train"].lazy(), data.schema, base_codec)
    assert (codec.side, codec.mean, codec.labels) == (24, [1, 2, 3], ["blue", "red"])
    base, learner = base_task.build(base_codec), task.build(codec)
    learner.take_over(base, head=False)
    for name, weight in base.backbone.state_dict().items():
        assert torch.equal(weight, learner.backbone.state_dict()[name])
    batch = batch_of(data, codec, 4)
    assert learner.loss(batch).isfinite()
    assert learner.eval().predict(*batch.inputs).isfinite().all()

    back = ImageClassification().on_base(task)
    assert (back.architecture, back.image_size) == (TINY, 24)
    labelled = data.splits["train"].with_columns(pl.Series("label", ["x", "y"] * 12))
    again = back.resolve(Facts({"width": 16, "height": 16, "colour": True}, {"train": 24}))
    its_codec = again.learn_codec(labelled.lazy(), {}, codec)
    assert (its_codec.side, its_codec.mean, its_codec.labels) == (24, [1, 2, 3], ["x", "y"])
    again.build(its_codec).take_over(learner, head=False)


def test_a_detector_of_the_same_labels_keeps_its_head() -> None:
    data = toys()
    task, codec = task_for(data), codec_for(data)
    again = codec_for(data, codec)
    assert task.same_outputs(again, codec)
    assert not task.same_outputs(again, codec.model_copy(update={"labels": ["a", "b"]}))
    base, learner = task.build(codec), task.build(again)
    learner.take_over(base, head=True)
    batch = batch_of(data, codec, 2)
    for one in (base, learner):
        one.eval()
    assert torch.equal(base.predict(*batch.inputs), learner.predict(*batch.inputs))


def test_a_base_that_reads_no_images_is_refused() -> None:
    with pytest.raises(Invalid, match="does not read images"):
        codec_for(toys(), base=object())


def test_labels_of_a_data_set_are_in_the_order_of_their_names(tmp_path: Path) -> None:
    data = checked_files(coco(), tmp_path)
    codec = codec_for(data)
    assert (codec.labels, codec.counts) == (["cat", "dog"], [8, 4])
    assert AUTO not in dict(task_for(data)).values()
