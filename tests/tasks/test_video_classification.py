"""From a zip of class folders to a trained classifier of clips."""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from models.cnn import CNN
from models.gru import GRU
from models.parts.losses import CrossEntropy
from models.parts.options import AUTO
from models.parts.training import Training, Transfer
from models.resnet import ResNet
from models.transformer import Transformer
from tasks.base import Checked, DatasetOptions, Facts, Upload
from tasks.catalog import resolve
from tasks.image_classification import ImageClassification, ImageCodec
from tasks.parts.augmentation import Augmentation
from tasks.parts.clips import frames
from tasks.parts.problems import Invalid
from tasks.text_classification import TextClassification
from tasks.trained import Trained
from tasks.video_classification import AT_ONCE, ClipCodec, VideoClassification, VideoClassifier
from tests.toys import film, walk

TINY = CNN(channels=[4, 8], dropout=0)
STILL = Augmentation()


def clips(count: int = 10, prefix: str = "", first: int = 0) -> dict[str, bytes]:
    return {
        f"{prefix}{label}/{number}.mp4": walk(np.random.default_rng(number), label == "right")
        for number in range(first, first + count)
        for label in ("left", "right")
    }


def upload(members: dict[str, bytes], folder: Path, name: str = "clips.zip") -> Upload:
    path = folder / name
    with zipfile.ZipFile(path, "w") as archive:
        for member, data in members.items():
            archive.writestr(member, data)
    return Upload(path, name)


def checked(members: dict[str, bytes], folder: Path, **options: Any) -> Checked:
    files = {"file": upload(members, folder)}
    return VideoClassification.check(files, DatasetOptions(**options))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Checked:
    return checked(clips(), tmp_path_factory.mktemp("clips"))


def task_for(data: Checked, **fields: Any) -> VideoClassification:
    facts = Facts(data.schema, {name: frame.height for name, frame in data.splits.items()})
    return VideoClassification.model_validate({"architecture": TINY, **fields}).resolve(facts)


def codec_for(task: VideoClassification, data: Checked) -> ClipCodec:
    return task.learn_codec(data.splits["train"].lazy(), data.schema)


def learner_for(data: Checked, **fields: Any) -> VideoClassifier:
    torch.manual_seed(0)
    task = task_for(data, **fields)
    return task.build(codec_for(task, data)).eval()


# Data sets


def test_folders_become_examples_with_their_own_bytes(data: Checked) -> None:
    assert data.report["examples"] == {"train": 16, "validation": 4}
    frame = pl.concat(data.splits.values())
    assert frame.schema == {"clip": pl.Binary, "label": pl.String, "name": pl.String}
    assert dict(frame.select("name", "clip").iter_rows()) == clips()


def test_the_report_says_how_long_fast_and_large_clips_are(data: Checked) -> None:
    report = data.report
    assert report["frames"] == {"min": 6, "median": 6, "max": 6}
    assert report["fps"]["median"] == pytest.approx(10)
    assert report["seconds"]["max"] == pytest.approx(0.6)
    assert (report["width"]["min"], report["height"]["max"]) == (8, 8)
    assert (report["codecs"], report["colour"]) == ({"mpeg4": 20}, 0)
    assert report["classes"]["left"] == {"train": 8, "validation": 2}


def test_folders_of_splits_split_the_examples(tmp_path: Path) -> None:
    members = clips(3, "x/train/") | clips(2, "x/valid/", 50) | clips(1, "x/test/", 80)
    data = checked(members, tmp_path)
    assert data.report["examples"] == {"train": 6, "validation": 4, "test": 2}


def test_every_clip_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    good = clips(3)
    bad = {"left/text.mp4": b"Hello.", "right/cut.mp4": good["right/1.mp4"][:-9]}
    with pytest.raises(Invalid) as caught:
        checked(good | bad, tmp_path)
    found = {problem.loc: problem.msg for problem in caught.value.problems}
    assert found == {
        ("file", "left/text.mp4"): "not a readable video",
        ("file", "right/cut.mp4"): "the file is cut off",
    }


def test_one_label_is_too_few(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="one class only"):
        checked({n: d for n, d in clips(4).items() if "left" in n}, tmp_path)


def test_folders_of_splits_within_a_split_are_refused(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="is one split already"):
        VideoClassification.check(
            {"train": upload(clips(2, "train/") | clips(1, "test/"), tmp_path)}, DatasetOptions()
        )


# What is chosen


def test_what_is_left_open_suits_the_clips(data: Checked) -> None:
    task = task_for(data, architecture=AUTO)
    assert (task.frames, task.image_size, task.channels) == (6, 8, 1)
    assert isinstance(task.architecture, CNN)
    assert isinstance(task.time, GRU)
    assert task.augmentation.shift > 0
    assert not task.augmentation.flip
    few, many = (Facts(data.schema, {"train": count}) for count in (999, 1_000))
    assert task.defaults(few) == {"batch_size": 16, "epochs": 30}
    assert task.defaults(many) == {"batch_size": 32}
    large = {"labels": ["a", "b"], "frames": 300.0, "width": 640, "height": 360, "colour": True}
    task = VideoClassification().resolve(Facts(large, {"train": 500}))
    assert (task.frames, task.image_size, task.channels) == (16, 64, 3)
    assert isinstance(task.architecture, ResNet)


def test_time_is_read_by_a_network_for_sequences_or_not_at_all() -> None:
    assert VideoClassification.model_validate({"time": "mean"}).time == "mean"
    named = VideoClassification.model_validate({"time": {"name": "transformer", "layers": 1}})
    assert isinstance(named.time, Transformer)
    for wrong in ("median", {"name": "cnn"}, {"name": "gru", "colour": 1}):
        with pytest.raises(ValueError, match="time"):
            VideoClassification.model_validate({"time": wrong})


# Encoding


def test_examples_and_inputs_are_encoded_alike(data: Checked) -> None:
    codec = codec_for(task_for(data), data)
    truth = data.splits["validation"]
    columns = codec.encode(truth)
    batch = columns.batch(torch.arange(4))
    assert batch.inputs[0].shape == (4, 6, 1, 8, 8)
    read = codec.read_inputs(truth["clip"].to_list())
    assert torch.equal(codec.encode_inputs(read).batch(torch.arange(4)).inputs[0], batch.inputs[0])
    assert [codec.labels[c] for c in batch.targets[0].tolist()] == truth["label"].to_list()


def test_pixels_have_mean_0_and_deviation_1(data: Checked) -> None:
    task = task_for(data)
    codec = codec_for(task, data)
    pixels = codec.encode(data.splits["train"]).batch(torch.arange(16)).inputs[0]
    normal = task.build(codec).normalised(pixels)
    assert abs(float(normal.mean())) < 0.2
    assert abs(float(normal.std()) - 1) < 0.2


def test_an_input_that_is_no_clip_is_named(data: Checked) -> None:
    codec = codec_for(task_for(data), data)
    with pytest.raises(Invalid) as caught:
        codec.read_inputs([clips(1)["left/0.mp4"], b"no film", {"clip": "%"}])
    assert [p.loc for p in caught.value.problems] == [("inputs", 1), ("inputs", 2, "clip")]


# Learning


@pytest.mark.parametrize("time", ["gru", "lstm", "rnn", "transformer"])
def test_the_order_of_frames_matters_unless_their_mean_is_taken(data: Checked, time: str) -> None:
    forth = torch.rand(3, 6, 1, 8, 8) * 255
    with torch.no_grad():
        learner = learner_for(data, time={"name": time})
        assert not torch.allclose(learner(forth), learner(forth.flip(1)), atol=1e-4)
        orderless = learner_for(data, time="mean")
        assert torch.allclose(orderless(forth), orderless(forth.flip(1)), atol=1e-5)


def fit(task: VideoClassification, codec: ClipCodec, data: Checked, epochs: int) -> Trained:
    columns = codec.encode(data.splits["train"])
    torch.manual_seed(3)
    learner = task.build(codec)
    plan = Training(epochs=epochs, batch_size=16).resolve(**TINY.defaults(40))
    learner.start(plan, None, epochs * -(-columns.examples // 16))
    shuffle, step = torch.Generator().manual_seed(0), 0
    for epoch in range(epochs):
        learner.enter_epoch(epoch)
        for index in learner.batches(columns.examples, None, 16, shuffle):
            learner.train_step(columns.batch(index), step)
            step += 1
    return Trained(task, codec, learner)


def test_the_direction_of_motion_is_learned_and_a_mean_over_frames_cannot_tell_it(
    tmp_path: Path,
) -> None:
    data = checked(clips(30), tmp_path)
    truth, found = data.splits["validation"], {}
    forth = [frames(clip, 6, 8, 1) for clip in truth["clip"]]
    both = [*forth, *(pixels[::-1] for pixels in forth)]
    answers = [*truth["label"], *({"left": "right", "right": "left"}[x] for x in truth["label"])]
    for time in (GRU(embedding=64, width=64, dropout=0.2), "mean"):
        task = task_for(data, time=time, augmentation=STILL)
        trained = fit(task, codec_for(task, data), data, 20)
        # Each clip forwards and backwards: whoever knows no order is right in one of both.
        found["mean" if time == "mean" else "read"] = task.score(
            trained.predict(both), pl.DataFrame({"label": answers})
        )
    assert found["read"]["accuracy"] >= 0.9
    assert found["mean"]["accuracy"] == 0.5


def test_all_frames_of_a_clip_are_varied_alike_and_clips_each_in_their_own_way(
    data: Checked,
) -> None:
    lively = Augmentation(shift=0.3, zoom=0.3, rotate=40, light=0.5)
    learner = learner_for(data, augmentation=lively)
    same = (torch.rand(1, 1, 1, 8, 8) * 255).byte().expand(3, 6, 1, 8, 8)
    varied = learner._varied(same)
    assert varied.shape == same.shape
    assert torch.allclose(varied, varied[:, :1].expand_as(varied), atol=1e-4)
    assert not torch.allclose(varied[0], varied[1], atol=1e-2)


def test_clips_vary_in_training_and_never_in_evaluation(data: Checked) -> None:
    learner = learner_for(data, time="mean")
    pixels = (torch.rand(2, 6, 1, 8, 8) * 255).byte()
    with torch.no_grad():
        assert torch.equal(learner(pixels), learner(pixels))
        learner.training = True
        assert not torch.equal(learner(pixels), learner(pixels))


def test_many_clips_are_looked_at_frame_by_frame_with_the_same_answers(data: Checked) -> None:
    learner = learner_for(data)
    pixels = (torch.rand(AT_ONCE // 6 + 1, 6, 1, 8, 8) * 255).byte()
    looked: list[int] = []
    learner.backbone.register_forward_pre_hook(lambda _, images: looked.append(len(images[0])))
    with torch.no_grad():
        alone = torch.cat([learner(part) for part in pixels.split(5)])
        assert max(looked) == 30
        looked.clear()
        torch.testing.assert_close(learner(pixels), alone, rtol=1e-4, atol=1e-5)
    assert looked == [len(pixels)] * 6


# Transfer


def images_base() -> tuple[ImageClassification, ImageCodec]:
    task = ImageClassification(
        architecture=TINY,
        image_size=16,
        channels=1,
        augmentation=Augmentation(),
        loss=CrossEntropy(),
    )
    codec = ImageCodec(
        labels=["a", "b"], counts=[5, 5], side=16, channels=1, mean=[99.0], std=[33.0]
    )
    return task, codec


def test_a_classifier_of_images_hands_on_its_backbone_and_how_it_reads_pixels(
    data: Checked,
) -> None:
    base, theirs = images_base()
    facts = Facts(data.schema, {name: frame.height for name, frame in data.splits.items()})
    spec = resolve("video-classification", facts, None, Training(), None, base)
    task = spec.task
    assert isinstance(task, VideoClassification)
    assert (task.architecture, task.image_size, task.channels) == (TINY, 16, 1)
    codec = task.learn_codec(data.splits["train"].lazy(), data.schema, theirs)
    assert (codec.side, codec.mean, codec.std, codec.frames) == (16, [99.0], [33.0], 6)
    assert codec.labels == ["left", "right"]
    assert not task.same_outputs(codec, theirs)

    torch.manual_seed(1)
    teacher, learner = base.build(theirs), task.build(codec)
    learner.take_over(teacher, head=False)
    for name, weight in learner.backbone.state_dict().items():
        assert torch.equal(weight, teacher.backbone.state_dict()[name])
    before = {name: weight.clone() for name, weight in learner.state_dict().items()}
    learner.start(spec.training, Transfer(trainable_blocks=0), 4)
    learner.enter_epoch(0)
    assert learner.train_step(codec.encode(data.splits["train"]).batch(torch.arange(8)), 0) > 0
    changed = {
        n for n, weight in learner.state_dict().items() if not torch.equal(weight, before[n])
    }
    assert {name.partition(".")[0] for name in changed} == {"seen", "norm", "over_time", "head"}


def test_a_classifier_of_clips_hands_on_how_it_reads_time_too(data: Checked) -> None:
    base = learner_for(data)
    torch.manual_seed(5)
    task = task_for(data)
    codec = codec_for(task, data)
    others = codec.model_copy(update={"labels": ["a", "b", "c"], "counts": [1, 1, 1]})
    learner = task.build(others)
    learner.take_over(base, head=False)
    theirs = base.state_dict()
    for name, weight in learner.state_dict().items():
        assert name.startswith("head") or torch.equal(weight, theirs[name])
    again = task.learn_codec(data.splits["train"].lazy(), data.schema, others)
    assert (again.labels, again.frames) == (["left", "right"], others.frames)


def test_what_a_base_decides_cannot_be_asked_for_otherwise(data: Checked) -> None:
    base = task_for(data, time="mean")
    with pytest.raises(Invalid) as caught:
        VideoClassification(frames=9, time=GRU()).on_base(base)
    assert {problem.loc for problem in caught.value.problems} == {
        ("task", "frames"),
        ("task", "time"),
    }


def test_a_base_that_reads_no_images_is_refused(data: Checked) -> None:
    facts = Facts(data.schema, {"train": 16})
    texts = TextClassification(architecture=GRU())
    with pytest.raises(Invalid, match="cannot learn video-classification"):
        resolve("video-classification", facts, None, Training(), None, texts)
    with pytest.raises(Invalid, match="does not read images"):
        task_for(data).learn_codec(data.splits["train"].lazy(), data.schema, object())


def test_colours_are_looked_at_where_there_are_any(tmp_path: Path) -> None:
    red, blue = (np.zeros((4, 8, 8, 3), np.uint8) for _ in range(2))
    red[..., 0] = blue[..., 2] = 200
    members = {f"{n}/{k}.mp4": film(p - k) for n, p in (("r", red), ("b", blue)) for k in range(3)}
    data = checked(members, tmp_path)
    task = task_for(data)
    assert task.channels == 3
    assert data.report["colour"] == 6
    codec = codec_for(task, data)
    assert codec.encode(data.splits["train"]).batch(torch.arange(2)).inputs[0].shape[2] == 3
