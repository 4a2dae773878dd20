"""From a zip of images, or of pairs, to a model that makes images of images."""

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from models.edsr import EDSR
from models.parts.optimizers import AdamW
from models.parts.schedules import Constant
from models.parts.training import Training, Transfer
from tasks.base import Checked, DatasetOptions, Facts
from tasks.catalog import resolve
from tasks.image_to_image import ImageToImage
from tasks.parts.degradations import (
    Denoising,
    Inpainting,
    Paired,
)
from tasks.parts.problems import Invalid
from tasks.trained import Trained
from tests.restorations import (
    TINY,
    checked,
    codec_of,
    model,
    noise,
    pairs,
    pictures,
    png,
    problems_of,
    restorer,
    task_for,
    upload,
)

# Data sets


def test_images_may_lie_in_any_folders_and_have_any_size(tmp_path: Path) -> None:
    members = pictures(4, "a/b/") | pictures(3, "a/c/d/", height=40)
    data = checked(members, tmp_path)
    assert data.report["examples"] == {"train": 6, "validation": 1}
    assert data.report["height"] == {"min": 24, "median": 24, "max": 40}
    assert (data.report["paired"], data.schema["factor"]) == (False, 1)
    assert data.splits["train"].columns == ["image", "name"]


def test_folders_of_splits_split_images_and_pairs_alike(tmp_path: Path) -> None:
    for index, make in enumerate((pictures, pairs)):
        members = make(4, prefix="x/train/") | make(2, prefix="x/val/") | make(1, prefix="x/test/")
        (tmp_path / str(index)).mkdir()
        data = checked(members, tmp_path / str(index))
        assert data.report["examples"] == {"train": 4, "validation": 2, "test": 1}


def test_splits_within_the_folders_of_pairs_are_found_too(tmp_path: Path) -> None:
    members = {
        f"{role}/{split}/{number}.png": png(noise(number))
        for role in ("source", "target")
        for split, numbers in (("train", range(3)), ("valid", range(3, 5)))
        for number in numbers
    }
    data = checked(members, tmp_path)
    assert data.report["examples"] == {"train": 3, "validation": 2}


def test_pairs_are_joined_by_name_whatever_their_formats(tmp_path: Path) -> None:
    members = {}
    for number in range(4):
        file = io.BytesIO()
        Image.fromarray(noise(number).transpose(1, 2, 0)).save(file, "BMP")
        members[f"lr/{number}.bmp"] = file.getvalue()
        members[f"HR/{number}.png"] = png(noise(number, 48, 64))
    data = checked(members, tmp_path)
    assert (data.schema["paired"], data.schema["factor"]) == (True, 2)
    assert data.splits["train"].columns == ["image", "target", "name"]
    row = data.splits["train"].row(0, named=True)
    number = row["name"].removeprefix("HR/").removesuffix(".png")
    assert row["image"] == members[f"lr/{number}.bmp"]
    assert row["target"] == members[row["name"]]


def test_every_half_of_a_pair_is_named(tmp_path: Path) -> None:
    members = pairs(3)
    del members["input/0.png"], members["target/2.png"]
    members["notes.png"] = png(noise(1))
    members["target/1.jpg"] = png(noise(1))
    found = {problem.loc[1]: problem.msg for problem in problems_of(members, tmp_path)}
    assert found == {
        "target/0.png": "has no input",
        "input/2.png": "has no target",
        "notes.png": "neither an input nor a target",
        "target/1.jpg": "two files for one half of a pair",
    }


def test_pairs_whose_sizes_do_not_go_together_are_named(tmp_path: Path) -> None:
    members = pairs(4)
    members["target/1.png"] = png(noise(1, 24, 33))
    members["target/2.png"] = png(noise(2, 48, 64))
    found = problems_of(members, tmp_path)
    assert [problem.loc for problem in found] == [("file", "input/1.png"), ("file", "input/2.png")]
    assert found[0].found == "32 x 24, and its target 33 x 24"


def test_what_is_no_image_or_too_small_is_named(tmp_path: Path) -> None:
    (problem,) = problems_of(pictures(3) | {"x.png": b"<svg/>"}, tmp_path)
    assert problem.loc == ("file", "x.png")
    (problem,) = problems_of(pictures(3) | {"y.png": png(noise(1, 7, 90))}, tmp_path)
    assert (problem.loc, problem.found) == (("file", "y.png"), "90 x 7")
    (problem,) = problems_of({"__MACOSX/x.png": b"x"}, tmp_path)
    assert problem.msg == "the archive is empty"


def test_a_format_that_is_said_must_be_the_files(tmp_path: Path) -> None:
    assert checked(pairs(), tmp_path, format="pairs").schema["paired"]
    (problem,) = problems_of(pictures(), tmp_path, format="pairs")
    assert (problem.found, problem.allowed) == ("images", "pairs")


def test_splits_are_of_one_kind(tmp_path: Path) -> None:
    files = {
        "train": upload(pairs(), tmp_path, "a.zip"),
        "validation": upload(pictures(), tmp_path, "b.zip"),
    }
    with pytest.raises(Invalid, match="unlike the train split"):
        ImageToImage.check(files, DatasetOptions())


# Requests


def test_pairs_decide_what_is_learned_and_images_are_denoised(tmp_path: Path) -> None:
    assert task_for(checked(pairs(factor=2), tmp_path)).degradation == Paired(factor=2)
    task = task_for(checked(pictures(), tmp_path))
    assert (task.degradation, task.channels, task.crop) == (Denoising(), 3, 24)
    assert task.architecture == EDSR(fold=2)


def test_each_degradation_gets_a_network_that_suits_it(tmp_path: Path) -> None:
    data = checked(pictures(), tmp_path)
    chosen = {
        name: task_for(data, degradation={"name": name}).architecture.name
        for name in ("autoencoding", "colorization", "inpainting", "super-resolution")
    }
    assert chosen == {
        "autoencoding": "autoencoder",
        "colorization": "unet",
        "inpainting": "unet",
        "super-resolution": "edsr",
    }


@pytest.mark.parametrize(
    ("fields", "place", "allowed"),
    [
        ({"degradation": {"name": "paired"}}, "degradation", "no pairs"),
        (
            {"degradation": {"name": "autoencoding"}, "architecture": {"name": "unet"}},
            "architecture",
            ["autoencoder"],
        ),
        ({"degradation": {"name": "colorization"}, "channels": 1}, "channels", 3),
    ],
)
def test_what_cannot_be_learned_is_refused(
    fields: dict[str, Any], place: str, allowed: Any, tmp_path: Path
) -> None:
    with pytest.raises(Invalid) as caught:
        task_for(checked(pictures(), tmp_path), **fields)
    (problem,) = caught.value.problems
    assert (problem.loc, problem.allowed) == (("task", place), allowed)


def test_grey_pictures_have_no_colours_to_learn(tmp_path: Path) -> None:
    data = checked(pictures(channels=1), tmp_path)
    assert task_for(data).channels == 1
    with pytest.raises(Invalid, match="colours are to be learned"):
        task_for(data, degradation={"name": "colorization"})


# Learning


def learn(trained: Trained, data: Checked, steps: int, transfer: Transfer | None = None) -> float:
    """The last loss of a training."""
    learner, columns = trained.learner, trained.codec.encode(data.splits["train"])
    plan = Training(optimizer=AdamW(learning_rate=1e-2), schedule=Constant())
    learner.start(plan, transfer, steps)
    learner.enter_epoch(0)
    batch = columns.batch(torch.arange(columns.examples))
    torch.manual_seed(0)
    return [learner.train_step(batch, step).item() for step in range(steps)][-1]


def test_pairs_teach_what_lies_between_them(tmp_path: Path) -> None:
    data = checked(pairs(8), tmp_path)
    trained = model(Paired(factor=1), architecture=EDSR(width=8, depth=1))
    learn(trained, data, 40)
    truth = data.splits["validation"]
    predictions = trained.predictions(trained.codec.encode(truth, targets=False))
    found = trained.task.evaluate(predictions, truth)
    assert found["psnr"] > found["input"]["psnr"] + 5


def test_crops_of_inputs_and_targets_lie_at_the_same_place(tmp_path: Path) -> None:
    data = checked(pairs(6, factor=2), tmp_path)
    trained = model(Paired(factor=2))
    columns = trained.codec.encode(data.splits["train"])
    torch.manual_seed(4)
    sources, targets = restorer(trained)._crops(columns.batch(torch.arange(5)))
    assert sources.shape == (5, 3, 8, 8)
    enlarged = sources.repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(1 - enlarged, targets)
    assert not torch.equal(sources[0], sources[1])


def test_every_image_is_seen_as_often_in_an_epoch() -> None:
    learner = restorer(model(Denoising()))
    learner.crops = 3
    drawn = learner.batches(10, None, 4, torch.Generator().manual_seed(0))
    assert torch.cat(list(drawn)).bincount().tolist() == [3] * 10


def test_a_denoiser_is_the_base_of_a_model_for_super_resolution(tmp_path: Path) -> None:
    data = checked(pictures(), tmp_path)
    base = model(Denoising())
    learn(base, data, 2)
    facts = Facts(data.schema, {name: frame.height for name, frame in data.splits.items()})
    asked = ImageToImage.model_validate({"degradation": {"name": "super-resolution"}})
    spec = resolve("image-to-image", facts, asked, Training(), None, base.task)
    task = spec.task
    assert isinstance(task, ImageToImage)
    assert task.architecture == TINY
    codec = task.learn_codec(data.splits["train"].lazy(), data.schema, base.codec)
    assert not task.same_outputs(codec, base.codec)
    learner = task.build(codec)
    learner.take_over(base.learner, head=False)
    weights = restorer(base).backbone.state_dict()
    assert all(torch.equal(w, weights[name]) for name, w in learner.backbone.state_dict().items())
    learn(Trained(task, codec, learner), data, 1, Transfer(trainable_blocks=0))
    assert all(torch.equal(w, weights[name]) for name, w in learner.backbone.state_dict().items())


def test_a_base_that_reads_other_images_is_refused(tmp_path: Path) -> None:
    data = checked(pictures(), tmp_path)
    task, train = model(Inpainting()).task, data.splits["train"].lazy()
    with pytest.raises(Invalid, match="other channels"):
        task.learn_codec(train, data.schema, codec_of(Denoising()))
    with pytest.raises(Invalid, match="does not read images"):
        task.learn_codec(train, data.schema, object())
