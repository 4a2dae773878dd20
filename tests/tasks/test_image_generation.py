"""From a zip of images to new ones, and how like the real ones they are."""

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from PIL import Image

from models.base import NotTransferable
from models.ddpm import DDPM
from models.gan import GAN
from models.parts.generating import ImageMaker, noise
from models.parts.options import AUTO
from models.parts.training import Training, Transfer
from models.vae import VAE
from tasks.base import Checked, DatasetOptions, Facts, Upload
from tasks.image_generation import (
    FILES,
    FOLDERS,
    GenerationOptions,
    ImageGeneration,
    ImageGenerationCodec,
    MadeImage,
    seed_of,
)
from tasks.parts import realism
from tasks.parts.images import decode, encode_png
from tasks.parts.problems import Invalid
from tasks.parts.splits import SplitOptions
from tasks.trained import Trained

TINY = DDPM(width=8, multipliers=[1, 1])
EVERY = [TINY, VAE(width=8, codes=4), GAN(width=8, codes=4)]
each = pytest.mark.parametrize("architecture", EVERY, ids=lambda a: a.name)


def picture(number: int, size: tuple[int, int] = (8, 8), mode: str = "L") -> bytes:
    draw = np.random.default_rng(number)
    file = io.BytesIO()
    pixels = draw.integers(0, 255, size[::-1], dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(file, "PNG")
    return file.getvalue()


def pictures(*names: str, count: int = 10) -> dict[str, bytes]:
    """So many pictures in each of the folders."""
    return {
        f"{name}{place}.png": picture(100 * n + place)
        for n, name in enumerate(names)
        for place in range(count)
    }


def upload(members: dict[str, bytes], folder: Path, name: str = "images.zip") -> Upload:
    path = folder / name
    with zipfile.ZipFile(path, "w") as archive:
        for member, data in members.items():
            archive.writestr(member, data)
    return Upload(path, name)


def checked(members: dict[str, bytes], folder: Path, **options: Any) -> Checked:
    return ImageGeneration.check(
        {"file": upload(members, folder)}, GenerationOptions.model_validate(options)
    )


def task_for(data: Checked, **fields: Any) -> ImageGeneration:
    facts = Facts(data.schema, {name: frame.height for name, frame in data.splits.items()})
    return ImageGeneration.model_validate({"architecture": TINY, **fields}).resolve(facts)


def codec_for(data: Checked, **fields: Any) -> ImageGenerationCodec:
    return task_for(data, **fields).learn_codec(data.splits["train"].lazy(), data.schema)


@pytest.fixture
def classes(tmp_path: Path) -> Checked:
    return checked(pictures("cat/", "dog/"), tmp_path)


@pytest.fixture
def loose(tmp_path: Path) -> Checked:
    return checked(pictures(""), tmp_path)


# Data sets


def test_folders_of_classes_give_labels_and_loose_files_none(
    classes: Checked, loose: Checked
) -> None:
    assert classes.schema["labels"] == ["cat", "dog"]
    assert classes.report["classes"]["cat"] == {"train": 9, "validation": 1}
    assert loose.schema["labels"] == []
    assert loose.splits["train"]["label"].to_list() == [None] * 9
    assert "classes" not in loose.report
    for data in (classes, loose):
        json.dumps([data.schema, data.report])
        assert set(data.splits["train"].columns) == {"image", "label", "name", "features"}


@pytest.mark.parametrize("prefix", ["photos/", "a/b/", "train/"])
def test_a_folder_around_all_images_is_no_class(prefix: str, tmp_path: Path) -> None:
    data = checked(pictures(prefix), tmp_path)
    assert data.schema["labels"] == []
    assert data.report["examples"] == {"train": 9, "validation": 1}


@pytest.mark.parametrize(("inner", "labels"), [([""], []), (["cat/", "dog/"], ["cat", "dog"])])
def test_folders_of_splits_split_the_images(
    inner: list[str], labels: list[str], tmp_path: Path
) -> None:
    members = pictures(
        *(f"x/{split}/{name}" for split in ("train", "val", "test") for name in inner)
    )
    data = checked(members, tmp_path)
    size = 10 * len(inner)
    assert data.report["examples"] == {"train": size, "validation": size, "test": size}
    assert data.schema["labels"] == labels


def test_folders_of_classes_can_be_read_as_one_kind(tmp_path: Path) -> None:
    data = checked(pictures("cat/", "dog/"), tmp_path, format=FILES)
    assert (data.schema["labels"], data.report["examples"]["train"]) == ([], 18)


def problems_of(members: dict[str, bytes], folder: Path, **options: Any) -> list[Any]:
    with pytest.raises(Invalid) as caught:
        checked(members, folder, **options)
    return list(caught.value.problems)


@pytest.mark.parametrize(
    ("members", "options", "place", "message"),
    [
        ({}, {}, ("file",), "the archive is empty"),
        ({"a/1.png": b"x", "a/b/1.png": b"x"}, {}, ("file", "a/1.png"), "not in the folder of a"),
        (pictures("") | pictures("cat/"), {}, ("file", "0.png"), "not in the folder of a class"),
        ({"1.png": b"text"} | pictures("", count=0), {}, ("file", "1.png"), "not a readable image"),
        ({"../1.png": b"x"}, {}, ("file", "../1.png"), "unsafe name"),
        (pictures(""), {"format": FOLDERS}, ("file",), "files lie in no folders of classes"),
        (pictures(""), {"format": "csv"}, ("options", "format"), "no such format"),
    ],
)
def test_what_cannot_be_learned_from_is_refused_with_its_place(
    members: dict[str, bytes], options: Any, place: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    problem = problems_of(members, tmp_path, **options)[0]
    assert problem.loc == place
    assert message in problem.msg


def test_a_split_with_loose_files_beside_one_with_classes_is_refused(tmp_path: Path) -> None:
    files = {
        "train": upload(pictures("cat/", "dog/"), tmp_path, "a.zip"),
        "test": upload(pictures(""), tmp_path, "b.zip"),
    }
    with pytest.raises(Invalid) as caught:
        ImageGeneration.check(files, GenerationOptions())
    assert caught.value.problems[0].loc == ("test",)
    files["test"] = upload(pictures("cat/", "cow/"), tmp_path, "c.zip")
    with pytest.raises(Invalid, match="cow"):
        ImageGeneration.check(files, GenerationOptions())


def test_a_tenth_is_held_out_unless_the_request_says_otherwise(tmp_path: Path) -> None:
    assert GenerationOptions().split.fraction == 0.1
    data = checked(pictures(""), tmp_path, split=SplitOptions(fraction=0.5).model_dump())
    assert data.report["examples"] == {"train": 5, "validation": 5}
    assert DatasetOptions().split.fraction == 0.2


# What is left open


@pytest.mark.parametrize(
    ("width", "height", "examples", "side"),
    [(8, 8, 99, 8), (20, 20, 99, 24), (100, 100, 99, 32), (100, 100, 30_000, 64), (1, 1, 9, 8)],
)
def test_the_side_follows_the_images_as_far_as_so_many_warrant(
    width: int, height: int, examples: int, side: int
) -> None:
    schema = {"labels": [], "width": width, "height": height, "colour": True}
    task = ImageGeneration().resolve(Facts(schema, {"train": examples}))
    assert (task.image_size, task.channels) == (side, 3)
    assert AUTO not in [value for _, value in task if isinstance(value, str)]


def test_images_are_cropped_or_stretched_to_squares(tmp_path: Path) -> None:
    wide = Image.new("L", (24, 8), 0)
    wide.paste(255, (8, 0, 16, 8))
    file = io.BytesIO()
    wide.save(file, "PNG")
    data = checked({f"{n}.png": file.getvalue() for n in range(3)}, tmp_path)
    for fit, dark in (("crop", 0), ("stretch", 5)):
        columns = codec_for(data, fit=fit, image_size=8).encode(data.splits["train"])
        (pixels,) = columns.targets[0].take(torch.tensor([0]))
        assert (pixels.dtype, pixels.shape) == (torch.uint8, (1, 1, 8, 8))
        assert int((pixels[0, 0, 4] < 128).sum()) == pytest.approx(dark, abs=0 if dark == 0 else 1)


# Requests


def test_an_input_that_says_nothing_gets_a_seed_and_a_label_that_follows_from_it(
    classes: Checked,
) -> None:
    codec = codec_for(classes)
    read = codec.read_inputs([{}] * 20)
    assert len({given.seed for given in read}) > 15
    assert {given.label for given in read} == {"cat", "dog"}
    assert [codec.read_input({"seed": given.seed}).label for given in read] == [
        given.label for given in read
    ]
    rare = codec.model_copy(update={"counts": [1, 0]})
    assert {rare.read_input({"seed": seed}).label for seed in range(20)} == {"cat"}


@pytest.mark.parametrize(
    ("value", "field"),
    [
        ({"label": "cow"}, "label"),
        ({"label": ""}, "label"),
        ({"steps": 0}, "steps"),
        ({"steps": 10_000}, "steps"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**31}, "seed"),
        ({"guidance": float("inf")}, "guidance"),
        ({"guidance": 1e9}, "guidance"),
        ({"image": "x"}, "image"),
    ],
)
def test_a_wrong_input_is_refused_at_its_field(
    value: dict[str, Any], field: str, classes: Checked
) -> None:
    with pytest.raises(Invalid) as caught:
        codec_for(classes).read_inputs([{}, value])
    assert [problem.loc for problem in caught.value.problems] == [("inputs", 1, field)]


def test_a_label_is_refused_where_images_have_none(loose: Checked) -> None:
    with pytest.raises(Invalid, match="unknown label"):
        codec_for(loose).read_input({"label": "cat"})
    assert codec_for(loose).read_input({"seed": 3}).label is None


def test_an_example_asks_for_an_image_of_its_label_from_a_seed_of_its_name(
    classes: Checked, loose: Checked
) -> None:
    frame = classes.splits["train"].head(4)
    given = codec_for(classes).given(frame)
    assert [one.label for one in given] == frame["label"].to_list()
    assert [one.seed for one in given] == [seed_of(name) for name in frame["name"]]
    assert len({one.seed for one in given}) == 4
    (what,) = codec_for(loose).encode(loose.splits["train"]).inputs[0].take(torch.arange(9))
    assert set(what[:, 0].tolist()) == {0}
    with pytest.raises(Invalid, match="unknown labels"):
        codec_for(classes).given(frame.with_columns(label=pl.lit("cow")))


# Making images


def model(data: Checked, architecture: Any, steps: int = 2, **fields: Any) -> Trained:
    """One that has learned next to nothing."""
    task = task_for(data, architecture=architecture, **fields)
    codec = task.learn_codec(data.splits["train"].lazy(), data.schema)
    torch.manual_seed(0)
    learner = task.build(codec)
    learner.start(Training(batch_size=8).resolve(**architecture.defaults(9)), None, steps)
    learner.enter_epoch(0)
    columns = codec.encode(data.splits["train"])
    for step in range(steps):
        learner.train_step(columns.batch(torch.arange(8)), step)
    return Trained(task, codec, learner)


def ask(trained: Trained, *values: dict[str, Any]) -> list[MadeImage]:
    return trained.predict(trained.codec.read_inputs(values))


@each
def test_the_same_request_gives_the_same_image_and_says_how(
    architecture: Any, classes: Checked
) -> None:
    trained = model(classes, architecture)
    one, same, other, third = ask(
        trained,
        {"seed": 1, "label": "cat", "steps": 3},
        {"seed": 1, "label": "cat", "steps": 3},
        {"seed": 2, "label": "cat", "steps": 3},
        {"seed": 1, "label": "dog", "steps": 3},
    )
    torch.manual_seed(99)
    (alone,) = ask(trained, {"seed": 1, "label": "cat", "steps": 3})
    assert one == same == alone
    assert len({one.image, other.image, third.image}) == 3
    assert (one.label, one.seed) == ("cat", 1)
    assert decode(one.image, 8, 1).shape == (1, 8, 8)


def test_rows_of_different_steps_and_guidance_share_a_batch(classes: Checked) -> None:
    trained = model(classes, TINY)
    values = [
        {"seed": 1, "label": "cat", "steps": steps, "guidance": guidance}
        for steps in (1, 4)
        for guidance in (1.0, 6.0)
    ]
    together = [made.image for made in ask(trained, *values)]
    assert together == [ask(trained, value)[0].image for value in values]
    assert len(set(together)) == 4


def test_making_images_draws_no_numbers_of_torchs_own(classes: Checked) -> None:
    trained = model(classes, TINY)
    state = torch.get_rng_state()
    ask(trained, {"seed": 1})
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(noise(torch.tensor([5, 7]), (3,))[1], noise(torch.tensor([7]), (3,))[0])


def test_many_steps_count_as_long_inputs(classes: Checked, loose: Checked) -> None:
    codec = codec_for(classes)
    lengths = [
        codec.length(codec.read_input({"steps": 10, "guidance": guidance}))
        for guidance in (1.0, 2.0)
    ]
    assert lengths == [10, 20]
    assert codec_for(loose).length(codec_for(loose).read_input({"steps": 10})) == 10


@each
def test_images_are_made_with_averaged_weights(architecture: Any, loose: Checked) -> None:
    trained = model(loose, architecture)
    before = ask(trained, {"seed": 1})
    with torch.no_grad():
        for weight in trained.learner.backbone.parameters():
            weight.zero_()
    assert ask(trained, {"seed": 1}) == before
    assert int(trained.learner.averaged) == 2


def test_averages_follow_first_fast_and_then_as_slowly_as_asked(loose: Checked) -> None:
    learner = model(loose, DDPM(width=8, multipliers=[1], average=0.95), steps=0).learner
    assert isinstance(learner, ImageMaker)
    weight, average = learner.head.weight, learner.average[1].weight
    with torch.no_grad():
        weight.fill_(1.0)
        average.zero_()
    learner._follow()
    assert float(average[0, 0]) == pytest.approx(0.9)
    learner.averaged.fill_(10_000)
    learner._follow()
    assert float(average[0, 0]) == pytest.approx(0.905)


def test_mirrored_images_are_learned_from_where_that_is_wanted(loose: Checked) -> None:
    trained = model(loose, TINY, steps=0, flip=True)
    batch = trained.codec.encode(loose.splits["train"]).batch(torch.zeros(40, dtype=torch.long))
    images = trained.learner.seen(batch)
    assert images.abs().max() <= 1
    assert len(images.unique(dim=0)) == 2
    assert torch.equal(images.unique(dim=0)[0], images.unique(dim=0)[1].flip(2))
    trained.learner.mirrors = False
    assert len(trained.learner.seen(batch).unique(dim=0)) == 1


# Transfer


@each
def test_what_images_without_labels_taught_is_taken_over_for_labels_and_back(
    architecture: Any, classes: Checked, loose: Checked
) -> None:
    for first, second in ((loose, classes), (classes, loose)):
        base, task = model(first, architecture), task_for(second, architecture=architecture)
        codec = task.learn_codec(second.splits["train"].lazy(), second.schema, base.codec)
        assert not task.same_outputs(codec, base.codec)
        learner = task.build(codec)
        learner.take_over(base.learner, head=False)
        for part, its in (
            (learner.backbone, base.learner.backbone),
            (learner.average[0], base.learner.average[0]),
        ):
            for name, weight in part.state_dict().items():
                assert torch.equal(weight, its.state_dict()[name])
        assert torch.equal(learner.average[1].weight, learner.head.weight)
        training = Training(batch_size=8).resolve(**architecture.defaults(9))
        learner.start(training, Transfer(trainable_blocks=1), 1)
        learner.enter_epoch(0)
        columns = codec.encode(second.splits["train"])
        assert learner.train_step(columns.batch(torch.arange(8)), 0).isfinite()
        frozen = learner.backbone.blocks()[0].state_dict()
        its = base.learner.backbone.blocks()[0].state_dict()
        assert all(torch.equal(frozen[name], its[name]) for name in frozen)


def test_a_base_of_another_kind_is_refused(classes: Checked) -> None:
    with pytest.raises(NotTransferable, match="another way"):
        model(classes, TINY).learner.take_over(model(classes, EVERY[1]).learner, head=True)
    with pytest.raises(Invalid, match="does not make images"):
        task_for(classes).learn_codec(classes.splits["train"].lazy(), classes.schema, object())


# Fidelity


def samples(count: int, shift: float = 0.0, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).normal(shift, 1, (count, realism.FEATURES))


def test_the_frechet_distance_of_known_samples_is_exact() -> None:
    one = np.array(
        [[0.0, 0.0], [2.0, 0.0], [0.0, 4.0], [2.0, 4.0]]
    )  # mean (1, 2), variances 1 and 4
    other = one * [3, 0.5] + [1, 0]  # mean (4, 1), variances 9 and 1
    assert realism.frechet_distance(one, other) == pytest.approx(3**2 + 1 + (3 - 1) ** 2 + 1)
    turned = one @ np.array([[0.6, 0.8], [-0.8, 0.6]])
    assert realism.frechet_distance(turned, turned) == pytest.approx(0, abs=1e-9)


def test_the_same_images_are_at_distance_0_and_their_mean_at_1() -> None:
    real = samples(50)
    found = realism.compare(real, real)
    assert found["frechet_distance"] == pytest.approx(0, abs=1e-6)
    assert (found["precision"], found["recall"]) == (1, 1)
    assert realism.compare(real[:1] * 0 + real.mean(0), real)["frechet_distance"] == pytest.approx(
        1
    )


def test_the_kernel_distance_has_no_bias_and_sees_a_shift() -> None:
    few = [realism.kernel_distance(samples(8, seed=s), samples(8, seed=s + 99)) for s in range(60)]
    assert abs(np.mean(few)) < 0.02
    assert realism.kernel_distance(samples(30, 0.5), samples(30, seed=1)) > 0.2
    by_hand = realism.kernel_distance(np.array([[0.0], [2.0]]), np.array([[1.0], [1.0]]))
    assert by_hand == pytest.approx(1 + 8 - 2 * (1 + 27) / 2)


def test_precision_and_recall_tell_strange_images_from_missing_ones() -> None:
    real = np.array([[place + step] for place in (0.0, 100.0) for step in range(8)])
    half, strange = real[:8] + 0.25, np.concatenate([real + 0.25, real + 900])
    assert (realism.share_among(half, real), realism.share_among(real, half)) == (1, 0.5)
    assert (realism.share_among(strange, real), realism.share_among(real, strange)) == (0.5, 1)


def test_features_tell_directions_light_and_colours() -> None:
    steps = torch.arange(32, dtype=torch.uint8) * 4
    across = steps.expand(1, 3, 32, 32)
    cells = realism.features(across).view(7, 16)
    assert float(cells[0, 5]) == pytest.approx(4 / 255 * realism.EDGES, rel=1e-3)
    assert cells[1:4].abs().max() < 1e-6
    assert cells[5:].abs().max() < 1e-6
    assert float(cells[4, 3]) > 0.4 > 0.1 > float(cells[4, 0])
    down = realism.features(across.transpose(2, 3)).view(7, 16)
    assert float(down[2, 5]) == pytest.approx(float(cells[0, 5]), rel=1e-3)
    red = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    red[:, 0] = 255
    assert float(realism.features(red).view(7, 16)[5].mean()) == pytest.approx(1 - 0.299, rel=1e-3)


def test_a_score_compares_files_with_the_images_of_a_split(classes: Checked) -> None:
    task, frame = task_for(classes), classes.splits["train"]
    same = [MadeImage(image=image) for image in frame["image"]]
    assert task.score(same, frame.drop("image"))["frechet_distance"] == pytest.approx(0, abs=1e-6)
    grey = [MadeImage(image=encode_png(np.full((1, 8, 8), 128, np.uint8)))] * frame.height
    found = task.evaluate(grey, frame.drop("image"))
    assert found["frechet_distance"] > 1
    assert task.evaluate(same, frame)["label_agreement"]["made"] == 1
    assert set(found["label_agreement"]) == {"made", "real"}
    one = task.score(same[:1], frame[:1])
    assert all(np.isfinite(value) for value in one.values())
