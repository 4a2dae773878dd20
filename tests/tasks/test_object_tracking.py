"""From zipped sequences to a tracker: uploads, what is learned, what a request gets, and what it is worth."""

import base64
import io
import zipfile
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import av
import numpy as np
import polars as pl
import pytest
import torch
from PIL import Image

from models.cnn import CNN
from models.parts.training import Training
from tasks.base import Checked, DatasetOptions, Facts, Upload
from tasks.catalog import resolve
from tasks.image_classification import ImageClassification
from tasks.object_detection import ObjectDetection
from tasks.object_tracking import LONGEST, STRETCH, ObjectTracking
from tasks.parts.columns import Ragged
from tasks.parts.detecting import DetectionCodec
from tasks.parts.filmed import FOLLOWED
from tasks.parts.following import (
    AT_ONCE,
    GivenObject,
    TrackedObject,
    Tracker,
    TrackingCodec,
    TrackingPrediction,
    as_images,
)
from tasks.parts.problems import Invalid
from tasks.parts.tracks import Byte, Sort
from tasks.trained import Trained
from tests.toys import film, toy

TINY = CNN(channels=[4, 8], dropout=0)
CODEC = TrackingCodec(
    labels=["blue", "red"], counts=[3, 2], side=16, channels=3, mean=[9, 9, 9], std=[50, 60, 70],
    association=Byte(),
)  # fmt: skip


def picture(size: tuple[int, int] = (12, 8), colour: Any = "red") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "PNG")
    return file.getvalue()


def sequence(name: str, lines: str = "1,1,2,1,4,4,1,1,1", frames: int = 2) -> dict[str, bytes]:
    """A folder of `frames` images and the lines of its gt.txt."""
    shades = [(int(name.encode()[-1]), 20 * place % 256, 0) for place in range(frames)]
    images = {f"{name}/img1/{n:06}.png": picture(colour=c) for n, c in enumerate(shades, 1)}
    return {**images, f"{name}/gt/gt.txt": lines.encode()}


def clip(frames: int, side: int = 16) -> bytes:
    shades = 20 * np.arange(frames, dtype=np.uint8)[:, None, None, None]
    return film(np.broadcast_to(shades, (frames, side, side, 3)).copy(), qscale="2")


def upload(members: dict[str, bytes], folder: Path) -> Upload:
    path = folder / "sequences.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for member, data in members.items():
            archive.writestr(member, data)
    return Upload(path, path.name)


def checked(members: dict[str, bytes], folder: Path, **options: Any) -> Checked:
    return ObjectTracking.check({"file": upload(members, folder)}, DatasetOptions(**options))


def problems_of(members: dict[str, bytes], folder: Path) -> dict[tuple[Any, ...], str]:
    with pytest.raises(Invalid) as caught:
        checked(members, folder)
    return {problem.loc: problem.msg for problem in caught.value.problems}


@cache
def toys() -> Checked:
    with TemporaryDirectory() as folder:
        return ObjectTracking.check(toy("object-tracking", Path(folder), 10), DatasetOptions())


def facts_of(data: Checked) -> Facts:
    return Facts(data.schema, {name: frame.height for name, frame in data.splits.items()})


@cache
def tracker() -> Trained:
    """A network that has learned nothing, and so finds a lot."""
    task = ObjectTracking(architecture=TINY, association=Sort(threshold=0, min_hits=1))
    task = task.resolve(facts_of(toys()))
    codec = task.learn_codec(toys().splits["train"].lazy(), toys().schema)
    torch.manual_seed(0)
    return Trained(task, codec, task.build(codec).eval())


# Data sets


def test_sequences_are_split_whole_and_learned_from_in_stretches(tmp_path: Path) -> None:
    members = {
        name: data
        for letter in "abcde"
        for name, data in sequence(letter, frames=STRETCH + 1).items()
    }
    data = checked(members, tmp_path)
    assert data.report["sequences"] == {"train": 4, "validation": 1}
    assert data.report["frames"] == {"train": 20, "validation": 5}
    train, held = data.splits["train"], data.splits["validation"]
    assert train["frames"].list.len().to_list() == [4, 1] * 4
    assert train["first"].to_list() == [1, 5] * 4
    assert held["frames"].list.len().to_list() == [5]
    assert not set(train["name"]) & set(held["name"])
    assert data.report["overlap"] == {"train/validation": 0}
    rebuilt = [data for frames in pl.concat([train, held])["frames"] for data in frames]
    assert sorted(rebuilt) == sorted(v for name, v in members.items() if "img1" in name)


@pytest.mark.parametrize(
    "names", [("train/a", "train/b", "test/c"), ("x/train-1", "x/train-2", "x/test-1")]
)
def test_folders_and_names_say_which_sequences_are_held_out(
    tmp_path: Path, names: tuple[str, ...]
) -> None:
    members = {member: data for name in names for member, data in sequence(name).items()}
    data = checked(members, tmp_path)
    assert data.report["sequences"] == {"train": 1, "validation": 1, "test": 1}
    assert data.splits["test"]["name"].to_list() == [names[-1].rpartition("/")[2]]


def test_a_sequence_may_be_a_video(tmp_path: Path) -> None:
    made = {f"{n}/video.mp4": clip(5) for n in "ab"}
    gt = {f"{n}/gt/gt.txt": b"1,1,2,1,4,4\n5,1,3,1,4,4" for n in "ab"}
    data = checked(made | gt, tmp_path)
    [frames] = data.splits["validation"]["frames"].to_list()
    shades = [np.asarray(Image.open(io.BytesIO(frame))).mean() for frame in frames]
    assert len(frames) == 5
    assert shades == pytest.approx([0, 20, 40, 60, 80], abs=6)
    [objects] = data.splits["validation"]["objects"].to_list()
    assert [len(frame) for frame in objects] == [1, 0, 0, 0, 1]


def test_lines_become_objects_of_their_frames(tmp_path: Path) -> None:
    lines = "2,7,2,1,4,3,1,2,0.5\n1,7,-2,1,4,4,1,2,1\n1,3,0,0,5,5,0,1,1\n2,9,40,1,4,4,1,1,1"
    members = sequence("a", lines) | sequence("b", lines) | {"classes.txt": b"car\nperson\n"}
    data = checked(members, tmp_path)
    [objects] = data.splits["validation"]["objects"].to_list()
    at = {"x1": 0.0, "y1": 1.0, "x2": 2.0, "y2": 5.0}
    assert objects[0][0] == {"label": "person", "track": 7, "crowd": False, **at}
    assert (objects[0][1]["label"], objects[0][1]["crowd"]) == ("car", True)
    assert [(o["x1"], o["y2"]) for o in objects[1]] == [(2, 4)]
    assert (data.report["clipped_boxes"], data.report["outside"]) == (2, 2)
    assert (data.report["ignored"], data.report["tracks"]) == (2, {"train": 1, "validation": 1})
    assert data.schema["labels"] == ["person"]


def test_every_faulty_line_is_named_with_its_file(tmp_path: Path) -> None:
    lines = (
        "1,1,2,1,4,4\n3,1,2,1,4,4\n1,x,2,1,4,4\n1,2,2,1,0,4\n1,2\n1,1,3,1,4,4\n1,-1,2,1,4,4\n"
        "1,5,nan,1,4,4\n1,6,1e99,1,4,4\n1,7,1,1,4,4,1,0"
    )
    path = "a/gt/gt.txt"
    assert problems_of(sequence("a", lines) | sequence("b"), tmp_path) == {
        ("file", path, "line", 2, "frame"): "no such frame",
        ("file", path, "line", 3, "id"): "not a number",
        ("file", path, "line", 4): "not a box",
        ("file", path, "line", 5): "not an object",
        ("file", path, "line", 6): "the object is in this frame already",
        ("file", path, "line", 7, "id"): "not the id of an object",
        ("file", path, "line", 8, "left"): "not a number",
        ("file", path, "line", 9, "left"): "not a number",
        ("file", path, "line", 10, "class"): "no such class",
    }


@pytest.mark.parametrize(
    ("members", "loc", "msg"),
    [
        ({"a/img1/000002.png": None}, ("a/img1/000003.png",), "frames are numbered from 1, and none may lack"),
        ({"a/img1/000002.png": picture((9, 9))}, ("a/img1/000002.png",), "another size than the frames before"),
        ({"a/img1/000002.png": b"no"}, ("a/img1/000002.png",), "not a readable image"),
        ({"a/video.mp4": clip(3)}, ("a",), "frames of one kind are needed"),
        ({"a/gt/gt.txt": b"\xff\xfe"}, ("a/gt/gt.txt",), "not text"),
        ({"a/gt/gt.txt": None, "a/seqinfo.ini": b""}, ("a", "gt/gt.txt"), "the sequence has no objects"),
        ({"a/seqinfo.ini": b"[Sequence]\nseqLength=9"}, ("a/seqinfo.ini", "seqlength"), "the frames are otherwise"),
        ({"a/seqinfo.ini": b"%("}, ("a/seqinfo.ini",), "not an INI file"),
        ({"b/video.mp4": clip(3)[:-9], "b/gt/gt.txt": b""}, ("b/video.mp4",), "the file is cut off"),
    ],
)  # fmt: skip
def test_a_faulty_sequence_is_named(
    tmp_path: Path, members: dict[str, bytes | None], loc: tuple[str, ...], msg: str
) -> None:
    whole = sequence("a", frames=3) | sequence("c") | members
    found = problems_of({name: d for name, d in whole.items() if d is not None}, tmp_path)
    assert found == {("file", *loc): msg}


def test_an_archive_without_sequences_and_one_alone_are_refused(tmp_path: Path) -> None:
    assert problems_of({"a.png": picture()}, tmp_path) == {("file",): "no sequences in the archive"}
    assert problems_of(sequence("a"), tmp_path) == {("validation",): "this split has no examples"}


def test_a_sequence_in_two_splits_is_told(tmp_path: Path) -> None:
    members = sequence("train/a", frames=6) | sequence("val/a", frames=6)
    assert checked(members, tmp_path).report["overlap"] == {"train/validation": 1}


def test_held_out_sequences_are_cut_where_they_are_too_long() -> None:
    assert LONGEST == 500
    whole = {name: long_sequence(600) for name in ("train", "validation")}
    splits, _, report = ObjectTracking.describe(whole, DatasetOptions())
    assert report["frames"] == {"train": 600, "validation": 600}
    assert splits["validation"]["frames"].list.len().to_list() == [500, 100]
    assert splits["validation"]["first"].to_list() == [1, 501]


def long_sequence(frames: int) -> pl.DataFrame:
    one = {"label": "cat", "x1": 0.0, "y1": 0.0, "x2": 4.0, "y2": 4.0, "crowd": False, "track": 1}
    return pl.DataFrame(
        {
            "name": ["a"], "frames": [[b"x"] * frames], "width": [9], "height": [9],
            "colour": [True], "clipped": [0], "outside": [0], "objects": [[[one]] * frames],
        },
        schema_overrides={"objects": pl.List(pl.List(FOLLOWED))},
    )  # fmt: skip


# What is learned


def test_frames_of_clips_are_learned_from_as_a_detector_learns_from_images() -> None:
    frame = toys().splits["train"].head(3)
    codec = tracker().codec
    batch = as_images(codec.encode(frame).batch(torch.tensor([2, 0])))
    images = pl.DataFrame(
        {
            "image": pl.concat([frame["frames"][2], frame["frames"][0]]),
            "objects": pl.concat([frame["objects"][2], frame["objects"][0]]),
        }
    )
    plain = DetectionCodec.model_validate(codec.model_dump(exclude={"association"}))
    expected = plain.encode(images).batch(torch.arange(4))
    for mine, its in zip(batch.inputs, expected.inputs, strict=True):
        assert torch.equal(mine, its)
    assert torch.equal(batch.targets[1], expected.targets[1])
    assert torch.equal(batch.targets[0], expected.targets[0])


def test_clips_of_other_lengths_share_a_batch_without_learning_from_padding() -> None:
    columns = tracker().codec.encode(toys().splits["train"].head(2))
    frames = columns.inputs[0]
    assert isinstance(frames, Ragged)
    short = Ragged(frames.values[:3], torch.tensor([0, 2, 3]))
    marked = Ragged(
        torch.tensor([[1.0, 0, 0, 1, 1, 0], [0, 0, 0, 1, 1, 1]]), torch.tensor([0, 1, 2])
    )
    clips = type(columns)((short, columns.inputs[1]), (marked,))
    batch = as_images(clips.batch(torch.arange(2)))
    assert batch.targets[1].tolist() == [0, 1, 1]
    assert batch.targets[0][:, 0, -1].tolist() == [0, 0, 1]
    assert torch.equal(batch.inputs[0], frames.values[:3])


def test_a_long_clip_is_looked_at_in_pieces() -> None:
    learner = tracker().learner
    frames = torch.randint(0, 255, (1, AT_ONCE + 3, 3, 16, 16), dtype=torch.uint8)
    sizes, length = torch.tensor([[16.0, 16.0]]), torch.tensor([AT_ONCE + 3])
    with torch.inference_mode():
        whole = learner.predict(frames, length, sizes)
        last = learner.predict(frames[:, AT_ONCE:], torch.tensor([3]), sizes)
    assert whole.shape[:2] == (1, AT_ONCE + 3)
    assert torch.allclose(whole[:, AT_ONCE:], last, atol=1e-4)


def test_defaults_suit_the_data() -> None:
    spec = resolve("object-tracking", facts_of(toys()), None, Training(), None)
    assert isinstance(spec.task, ObjectTracking)
    assert (spec.task.image_size, spec.task.channels) == (16, 3)
    assert spec.task.association == Byte()
    assert spec.training.batch_size == 4


def test_a_detector_is_the_base_of_a_tracker_and_the_other_way_round(tmp_path: Path) -> None:
    with TemporaryDirectory() as folder:
        tiles = ObjectDetection.check(toy("object-detection", Path(folder), 10), DatasetOptions())
    torch.manual_seed(1)
    detection = ObjectDetection(architecture=TINY).resolve(facts_of(tiles))
    base_codec = detection.learn_codec(tiles.splits["train"].lazy(), tiles.schema)
    base = detection.build(base_codec)

    spec = resolve("object-tracking", facts_of(toys()), None, Training(), None, detection)
    task = spec.task
    assert isinstance(task, ObjectTracking)
    codec = task.learn_codec(toys().splits["train"].lazy(), toys().schema, base_codec)
    assert (codec.mean, codec.side) == (base_codec.mean, base_codec.side)
    learner = task.build(codec)
    assert task.same_outputs(codec, base_codec)  # both find blue and red
    learner.take_over(base, head=True)
    for name, weight in base.state_dict().items():
        assert torch.equal(learner.state_dict()[name], weight)

    again = resolve("object-detection", facts_of(tiles), None, Training(), None, task).task
    assert isinstance(again, ObjectDetection)
    back = again.learn_codec(tiles.splits["train"].lazy(), tiles.schema, codec)
    again.build(back).take_over(learner, head=True)


def test_a_classifier_of_images_is_a_base() -> None:
    base = ImageClassification(architecture=TINY, image_size=16, channels=3)
    spec = resolve("object-tracking", facts_of(toys()), None, Training(), None, base)
    assert spec.task.architecture == TINY


# What a request gets


def ask(value: Any, trained: Trained | None = None) -> TrackingPrediction:
    trained = trained or tracker()
    [prediction] = trained.predict(trained.codec.read_inputs([value]))
    assert isinstance(prediction, TrackingPrediction)
    return prediction


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def test_a_clip_gets_a_list_of_objects_for_each_frame() -> None:
    found = ask(clip(7))
    assert len(found.frames) == 7
    assert found.video == b""
    assert found.frames[0]
    for o in found.frames[0]:
        assert o.label in ("blue", "red")
        assert 0 <= o.score <= 1
    assert ask({"clip": text(clip(7))}) == found
    assert ask(text(clip(7))) == found


def test_frames_may_be_images() -> None:
    images = [text(picture(colour=(n, n, n))) for n in range(3)]
    assert len(ask({"frames": images}).frames) == 3


def test_given_detections_are_followed_and_nothing_is_looked_for() -> None:
    box = lambda t: {"box": [t, 0, t + 5, 5], "score": 0.9, "label": "car"}  # noqa: E731
    given = [[box(t)] for t in range(4)]
    for value in ({"detections": given}, {"detections": given, "clip": text(clip(4))}):
        frames = ask(value).frames
        assert [[(o.id, o.label) for o in frame] for frame in frames] == [[(1, "car")]] * 4
    assert ask({"detections": [[], []]}).frames == [[], []]


def test_a_film_shows_each_object_in_a_colour_of_its_own() -> None:
    given = [[{"box": [2, 30, 39, 60]}, {"box": [55, 30, 94, 60]}]] * 3
    images = [text(picture((119, 67), "black"))] * 3
    video = ask({"frames": images, "detections": given, "annotated": True}).video
    with av.open(io.BytesIO(video)) as container:
        shown = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert container.streams.video[0].average_rate == 10
    assert len(shown) == 3
    assert shown[0].shape == (68, 120, 3)
    first, second = (shown[0][50, left].astype(int) for left in (2, 55))
    assert first.max() > 100
    assert second.max() > 100
    assert np.abs(first - second).max() > 60
    assert shown[0][50, 20].max() < 60


@pytest.mark.parametrize(
    ("value", "loc", "msg"),
    [
        ({}, (), "not a clip"),
        ({"clip": text(clip(2)), "frames": [text(picture())]}, (), "not a clip"),
        ({"clip": text(b"no")}, (), "not a readable video"),
        ({"clip": 3}, ("clip",), "not a video"),
        ({"frames": "no"}, ("frames",), "not frames"),
        ({"frames": [text(picture()), "!"]}, ("frames", 1), "not base64"),
        ({"frames": [text(picture()), text(b"no")]}, ("frames", 1), "not a readable image"),
        ({"frames": [text(picture()), text(picture((5, 5)))]}, ("frames", 1), "another size than the frames before"),
        ({"frames": [text(picture())] * 2001}, (), "too many frames"),
        ({"clip": text(clip(2)), "detections": [[]]}, ("detections",), "not a list for each frame"),
        ({"detections": []}, ("detections",), "not a list for each frame"),
        ({"detections": [[{"box": [0, 0, 1, 1]}] * 501]}, ("detections", 0), "too many objects"),
        ({"detections": [[]], "annotated": True}, ("annotated",), "nothing to draw on"),
    ],
)  # fmt: skip
def test_a_faulty_request_is_named(value: Any, loc: tuple[Any, ...], msg: str) -> None:
    with pytest.raises(Invalid) as caught:
        CODEC.read_inputs([value])
    [problem] = caught.value.problems
    assert (problem.loc, problem.msg) == (("inputs", 0, *loc), msg)


@pytest.mark.parametrize("box", [[5, 0, 1, 5], [0, 0, 1, 2e6], [0, 0, float("nan"), 1], [0, 1, 2]])
def test_a_faulty_box_is_named(box: list[float]) -> None:
    with pytest.raises(Invalid) as caught:
        CODEC.read_inputs([{"detections": [[], [{"box": box}]]}])
    assert (
        caught.value.problems[0].loc[:6]
        == ("inputs", 0, "detections", 1, 0, "box")[: len(caught.value.problems[0].loc)]
    )
    with pytest.raises(ValueError, match="box"):
        GivenObject.model_validate({"box": box})


# What it is worth


def test_metrics_compare_clips_frame_by_frame_and_evaluation_each_label() -> None:
    at = lambda n, label: {  # noqa: E731
        "label": label, "x1": 9.0 * n, "y1": 0.0, "x2": 9.0 * n + 8, "y2": 8.0, "crowd": False, "track": n,
    }  # fmt: skip
    examples = pl.DataFrame({"name": ["a"], "objects": [[[at(1, "cat"), at(2, "dog")]] * 2]})
    seen = TrackedObject(id=5, label="cat", score=0.5, box=[9, 0, 17, 8])
    prediction = TrackingPrediction(frames=[[seen], [seen]])
    metrics = ObjectTracking(architecture=TINY).score([prediction], examples)
    assert (metrics["mota"], metrics["precision"], metrics["id_switches"]) == (0.5, 1, 0)
    told = ObjectTracking(architecture=TINY).evaluate([prediction], examples)
    assert (told["classes"]["cat"]["mota"], told["classes"]["dog"]["mota"]) == (1, 0)
    assert told["sequences"]["a"]["mota"] == 0.5


def test_identities_count_from_one_in_every_clip() -> None:
    prediction = ask(clip(3))
    assert sorted({o.id for frame in prediction.frames for o in frame})[0] == 1
    assert isinstance(tracker().learner, Tracker)
