"""From pictures and photos to a model that paints photos in the style of pictures."""

import io
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from models.adaptive_residual import AdaptiveResidual
from models.cnn import CNN
from models.parts.optimizers import AdamW
from models.parts.schedules import Constant
from models.parts.training import Training, Transfer
from tasks.base import Checked, DatasetOptions, Facts, Upload
from tasks.catalog import resolve
from tasks.image_classification import ImageClassification
from tasks.image_to_image import ImageToImage
from tasks.parts.images import encode_png
from tasks.parts.problems import Invalid
from tasks.parts.styled import GIVEN, StyleCodec, StylePrediction
from tasks.parts.styling import Stylist
from tasks.style_transfer import StyleTransfer
from tasks.trained import Trained, load, save_weights
from tests.restorations import noise, png, upload

TINY = AdaptiveResidual(width=32, depth=1, code=16)
RED, BLUE = (200, 20, 20), (20, 20, 200)


def flat(colour: tuple[int, int, int], height: int = 24, width: int = 32) -> bytes:
    pixels = np.empty((3, height, width), np.uint8)
    pixels[:] = np.array(colour, np.uint8)[:, None, None]
    pixels[:, ::4] //= 2
    return png(pixels)


def members(photos: int = 6) -> dict[str, bytes]:
    """Two styles, and photos to learn from."""
    styles = {"x/style/warm.png": flat(RED), "x/style/cold.png": flat(BLUE, 40, 24)}
    return styles | {f"x/content/{n}.png": png(noise(n)) for n in range(photos)}


def checked(files: dict[str, bytes], folder: Path, **options: Any) -> Checked:
    return StyleTransfer.check({"file": upload(files, folder)}, DatasetOptions(**options))


def problems_of(files: dict[str, bytes], folder: Path, **options: Any) -> list[Any]:
    with pytest.raises(Invalid) as caught:
        checked(files, folder, **options)
    return list(caught.value.problems)


def facts_of(data: Checked) -> Facts:
    return Facts(data.schema, {name: frame.height for name, frame in data.splits.items()})


@cache
def usual() -> Checked:
    with TemporaryDirectory() as folder:
        return checked(members(), Path(folder))


def model(data: Checked, seed: int = 0, **fields: Any) -> Trained:
    """A network that was not trained."""
    asked = StyleTransfer.model_validate({"architecture": TINY.model_dump(), **fields})
    task = asked.resolve(facts_of(data))
    codec = task.learn_codec(data.splits["train"].lazy(), data.schema)
    torch.manual_seed(seed)
    return Trained(task, codec, task.build(codec).eval())


def learn(trained: Trained, data: Checked, steps: int, transfer: Transfer | None = None) -> None:
    learner, columns = trained.learner, trained.codec.encode(data.splits["train"])
    plan = Training(optimizer=AdamW(learning_rate=4e-3), schedule=Constant())
    learner.start(plan, transfer, steps)
    learner.enter_epoch(0)
    batch = columns.batch(torch.arange(columns.examples))
    torch.manual_seed(0)
    for step in range(steps):
        learner.train_step(batch, step)


@cache
def taught() -> Trained:
    trained = model(usual())
    learn(trained, usual(), 60)
    return trained


def paint(trained: Trained, *inputs: Any) -> list[StylePrediction]:
    return trained.predict(trained.codec.read_inputs(inputs))


def seen(data: bytes) -> NDArray[np.float64]:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(float)


def weights(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


# Data sets


def test_photos_get_styles_in_turn_and_styles_go_by_their_files_names() -> None:
    data = usual()
    assert data.schema["styles"] == ["cold", "warm"]
    assert data.report["styles"]["cold"] == {"width": 24, "height": 40}
    assert data.report["photos"] == {"train": 5, "validation": 1}
    assert data.report["examples"] == {"train": 5, "validation": 2}
    assert data.splits["train"]["style"].to_list() == ["cold", "warm", "cold", "warm", "cold"]
    assert data.splits["validation"]["name"].n_unique() == 1


def test_validation_photos_need_neither_folders_nor_styles(tmp_path: Path) -> None:
    files = {
        "train": upload(members(3), tmp_path, "a.zip"),
        "validation": upload({"a/1.png": png(noise(8))}, tmp_path, "b.zip"),
    }
    data = StyleTransfer.check(files, DatasetOptions())
    assert data.splits["validation"]["style"].to_list() == ["cold", "warm"]
    assert data.splits["validation"]["style_image"][0] == members()["x/style/cold.png"]


def test_what_is_missing_or_out_of_place_is_named(tmp_path: Path) -> None:
    files = members(3)
    photos = {name: data for name, data in files.items() if "content" in name}
    styles = {name: data for name, data in files.items() if "style" in name}
    assert problems_of(photos, tmp_path)[0].msg == "no style"
    assert problems_of(styles, tmp_path)[0].msg == "no content"
    (problem,) = problems_of(files | {"x/other/1.png": png(noise(1))}, tmp_path)
    assert (problem.loc[1], problem.msg) == ("x/other/1.png", "neither a style nor a content")
    (problem,) = problems_of(files | {"x/style/warm.jpg": flat(RED)}, tmp_path)
    assert problem.msg == "two styles of one name"
    assert problems_of({"__MACOSX/x": b""}, tmp_path)[0].msg == "the archive is empty"


@pytest.mark.parametrize("folder", ["x/style", "x/content"])
def test_files_that_are_no_images_or_too_small_are_named(folder: str, tmp_path: Path) -> None:
    (problem,) = problems_of(members(3) | {f"{folder}/bad.png": b"<svg/>"}, tmp_path)
    assert problem.loc == ("file", f"{folder}/bad.png")
    (problem,) = problems_of(members(3) | {f"{folder}/s.png": png(noise(1, 15, 80))}, tmp_path)
    assert (problem.loc[1], problem.found) == (f"{folder}/s.png", "80 x 15")


def test_more_styles_than_can_be_told_apart_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.parts.style_archives.MOST_STYLES", 1)
    (problem,) = problems_of(members(), tmp_path)
    assert (problem.msg, problem.found) == ("too many styles", 2)


def test_an_archive_that_steps_out_of_its_folder_is_refused(tmp_path: Path) -> None:
    (problem,) = problems_of(members(3) | {"../content/x.png": png(noise(1))}, tmp_path)
    assert problem.msg == "unsafe name"
    path = tmp_path / "not.zip"
    path.write_bytes(b"PK\x03\x04" + bytes(40))
    with pytest.raises(Invalid, match="not a readable zip"):
        StyleTransfer.check({"file": Upload(path, "not.zip")}, DatasetOptions())


def test_large_styles_are_kept_smaller(tmp_path: Path) -> None:
    data = checked(members(3) | {"x/style/wide.png": flat(RED, 300, 900)}, tmp_path)
    assert data.report["styles"]["wide"] == {"width": 512, "height": 171}


# Requests


def test_an_unknown_style_is_refused_with_the_names_of_those_there_are() -> None:
    codec = taught().codec
    with pytest.raises(Invalid) as caught:
        codec.read_inputs([png(noise(1)), {"image": png(noise(1)), "style": "hot"}])
    (problem,) = caught.value.problems
    assert problem.loc == ("inputs", 1, "style")
    assert (problem.found, problem.allowed) == ("hot", ["cold", "warm"])


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({"style": "warm", "style_image": flat(RED)}, "style"),
        ({"style_image": b"no picture"}, "style_image"),
        ({"strength": 1.5}, "strength"),
        ({"style": 3}, "style"),
    ],
)
def test_a_malformed_style_is_named(fields: dict[str, Any], place: str) -> None:
    with pytest.raises(Invalid) as caught:
        taught().codec.read_inputs([{"image": png(noise(1)), **fields}])
    assert [problem.loc for problem in caught.value.problems] == [("inputs", 0, place)]


def test_images_beyond_what_memory_holds_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.parts.styled.MOST_PIXELS", 24 * 32 - 1)
    with pytest.raises(Invalid, match="the image is too large"):
        taught().codec.read_inputs([png(noise(1))])


# Painting


def test_a_painted_photo_keeps_its_size_and_takes_the_colours_of_its_style() -> None:
    photo = png(noise(7, 29, 45))
    warm, cold = paint(taught(), *({"image": photo, "style": name} for name in ("warm", "cold")))
    assert (warm.style, cold.style) == ("warm", "cold")
    assert seen(warm.image).shape == (29, 45, 3)
    red, _, blue = seen(warm.image).mean((0, 1)) - seen(cold.image).mean((0, 1))
    assert red > 30
    assert blue < -30
    assert warm.image != photo


def test_the_same_request_gets_the_same_bytes_alone_and_among_others() -> None:
    asked = {"image": png(noise(7)), "style": "warm"}
    (alone,) = paint(taught(), asked)
    *_, again = paint(taught(), png(noise(1, 64, 64)), {"image": png(noise(2))}, asked)
    assert alone == again


def test_without_a_style_it_is_the_first_one_by_name() -> None:
    plain, named = paint(taught(), png(noise(1)), {"image": png(noise(1)), "style": "cold"})
    assert plain == named


def test_a_style_that_is_sent_as_a_picture_paints_as_the_same_one_by_name() -> None:
    photo = png(noise(1))
    picture = usual().splits["train"]["style_image"][1]
    named, sent = paint(
        taught(), {"image": photo, "style": "warm"}, {"image": photo, "style_image": picture}
    )
    assert sent.image == named.image
    assert sent.style is None


def test_strength_goes_from_the_photos_own_look_to_the_style() -> None:
    photo = png(noise(3))
    none, half, full = (
        seen(answer.image)
        for answer in paint(
            taught(), *({"image": photo, "style": "warm", "strength": s} for s in (0, 0.5, 1))
        )
    )
    assert np.abs(full - none).mean() > np.abs(full - half).mean() > 1


def test_an_untrained_network_paints_the_smallest_images() -> None:
    (answer,) = paint(taught(), encode_png(np.zeros((1, 1, 1), np.uint8)))
    assert seen(answer.image).shape == (1, 1, 3)


# Measuring


def test_a_photo_left_as_it_is_has_gained_nothing() -> None:
    examples = usual().splits["validation"]
    untouched = [StylePrediction(image=image) for image in examples["image"]]
    found = taught().task.score(untouched, examples)
    assert found["loss_ratio"] == pytest.approx(1)
    assert found["style_ratio"] == pytest.approx(1)
    assert found["content_loss"] == pytest.approx(0, abs=1e-6)


def test_the_picture_of_a_style_has_its_style_and_nothing_of_the_photo() -> None:
    examples = (
        usual()
        .splits["validation"]
        .with_columns(style_image=pl.Series([png(noise(40)), png(noise(41))]))
    )
    pictures = [StylePrediction(image=image) for image in examples["style_image"]]
    found = taught().task.score(pictures, examples)
    assert found["style_loss"] == pytest.approx(0, abs=1e-6)
    assert 1 < found["content_loss"] < 2.5


def test_learning_brings_the_style_nearer_and_is_told_of_each_style() -> None:
    examples, found = usual().splits["validation"], {}
    for name, trained in (("untrained", model(usual())), ("taught", taught())):
        answers = trained.predictions(trained.codec.encode(examples, targets=False))
        found[name] = trained.task.evaluate(answers, examples)
    assert found["taught"]["loss_ratio"] < 0.75 * found["untrained"]["loss_ratio"]
    assert found["taught"]["style_ratio"] < 0.5
    assert set(found["taught"]["per_style"]) == {"cold", "warm"}


def test_a_style_of_another_data_set_is_read_from_its_picture() -> None:
    codec = taught().codec
    examples = (
        usual()
        .splits["validation"]
        .with_columns(style_image=pl.Series([flat((20, 200, 20)), flat(RED)]))
    )
    _, pictures, numbers, _ = codec.encode(examples, targets=False).inputs
    assert numbers.take(torch.arange(2))[0][:, 2].tolist() == [GIVEN, 1]
    assert len(pictures) == 2


# Bases


def test_a_painter_is_the_base_for_other_styles(tmp_path: Path) -> None:
    base, files = taught(), members() | {"x/style/green.png": flat((20, 200, 20))}
    data = checked(files, tmp_path)
    spec = resolve("style-transfer", facts_of(data), None, Training(), None, base.task)
    assert spec.task.architecture == TINY
    codec = spec.task.learn_codec(data.splits["train"].lazy(), data.schema, base.codec)
    assert isinstance(codec, StyleCodec)
    assert [style.name for style in codec.styles] == ["cold", "green", "warm"]
    learner = spec.task.build(codec)
    learner.take_over(base.learner, head=True)
    assert same(weights(learner), weights(base.learner))
    learn(Trained(spec.task, codec, learner), data, 1, Transfer(trainable_blocks=0))
    assert isinstance(learner, Stylist)
    assert same(weights(learner.backbone), weights(base.learner.backbone))  # type: ignore[arg-type]


def classifier() -> Trained:
    """One of grey images."""
    task = ImageClassification(
        architecture=CNN(channels=[4, 8], norm="batch"), image_size=16, channels=1
    )
    frames = pl.DataFrame({"image": [png(noise(n)) for n in range(4)], "label": ["a", "b"] * 2})
    facts = Facts(
        {"labels": ["a", "b"], "width": 16, "height": 16, "colour": False, "multi_label": False},
        {"train": 4},
    )
    resolved = task.resolve(facts)
    codec = resolved.learn_codec(frames.lazy(), facts.schema)
    torch.manual_seed(5)
    return Trained(resolved, codec, resolved.build(codec))


def test_the_features_of_a_classifier_are_compared_and_stay_as_they_are(tmp_path: Path) -> None:
    base, data = classifier(), usual()
    asked = StyleTransfer(architecture=TINY)
    spec = resolve("style-transfer", facts_of(data), asked, Training(), None, base.task)
    task = spec.task
    assert isinstance(task, StyleTransfer)
    assert (task.features, task.architecture) == (base.task.architecture, TINY)
    codec = task.learn_codec(data.splits["train"].lazy(), data.schema, base.codec)
    assert codec.shown is not None
    assert codec.shown.channels == 1
    learner = task.build(codec)
    learner.take_over(base.learner, head=False)
    assert learner.features is not None
    features, painter = weights(learner.features.network), weights(learner.backbone)
    assert same(features, weights(base.learner.backbone))  # type: ignore[arg-type]
    learn(Trained(task, codec, learner), data, 2, spec.transfer)
    assert same(features, weights(learner.features.network))
    assert not same(painter, weights(learner.backbone))
    save_weights(learner.state_dict(), tmp_path / "weights")
    again = load(task, codec.model_dump(mode="json"), tmp_path / "weights")
    asked_for = {"image": png(noise(1)), "style": "warm"}
    assert paint(again, asked_for) == paint(Trained(task, codec, learner.eval()), asked_for)


def test_features_change_what_is_learned() -> None:
    plain = model(usual())
    lent = model(usual(), features={"name": "cnn", "channels": [4, 8]})
    assert isinstance(lent.learner, Stylist)
    lent.learner.backbone.load_state_dict(plain.learner.backbone.state_dict())  # type: ignore[union-attr]
    lent.learner.head.load_state_dict(plain.learner.head.state_dict())  # type: ignore[union-attr]
    for trained in (plain, lent):
        learn(trained, usual(), 1)
    assert not same(weights(plain.learner.backbone), weights(lent.learner.backbone))  # type: ignore[arg-type]


def test_a_base_that_sees_no_images_as_classifiers_do_is_refused() -> None:
    base = ImageToImage().resolve(
        Facts(
            {"width": 32, "height": 32, "colour": True, "paired": False, "factor": 1}, {"train": 4}
        )
    )
    with pytest.raises(Invalid, match="cannot learn style-transfer"):
        resolve("style-transfer", facts_of(usual()), None, Training(), None, base)
