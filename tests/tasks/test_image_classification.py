"""From a zip of class folders to a trained classifier of images."""

import base64
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

from models.cnn import CNN
from models.parts.losses import CrossEntropy
from models.parts.optimizers import AdamW
from models.parts.options import AUTO
from models.parts.schedules import OneCycle
from models.parts.training import Training, Transfer
from models.resnet import ResNet
from tasks.base import Checked, DatasetOptions, Facts, Upload
from tasks.image_classification import ImageClassification, ImageCodec
from tasks.parts.augmentation import Augmentation, Mixing
from tasks.parts.labels import LabelPrediction
from tasks.parts.problems import Invalid
from tasks.parts.splits import SplitOptions
from tasks.trained import Trained, load, save_weights

TINY = CNN(channels=[4, 8], dropout=0)
STILL = Augmentation()


def picture(number: int, label: str, size: int = 12, mode: str = "L") -> bytes:
    """A bar that lies or stands, somewhere, in noise."""
    draw = np.random.default_rng(number)
    pixels = draw.integers(0, 60, (size, size), dtype=np.uint8)
    place = draw.integers(2, size - 4)
    if label == "lying":
        pixels[place : place + 2] = 220
    else:
        pixels[:, place : place + 2] = 220
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, "PNG")
    return file.getvalue()


def pictures(count: int = 20, prefix: str = "", first: int = 0, **options: Any) -> dict[str, bytes]:
    return {
        f"{prefix}{label}/{number}.png": picture(number, label, **options)
        for number in range(first, first + count)
        for label in ("lying", "standing")
    }


def upload(members: dict[str, bytes], folder: Path, name: str = "images.zip") -> Upload:
    path = folder / name
    with zipfile.ZipFile(path, "w") as archive:
        for member, data in members.items():
            archive.writestr(member, data)
    return Upload(path, name)


def checked(
    members: dict[str, bytes], folder: Path, options: DatasetOptions | None = None
) -> Checked:
    files = {"file": upload(members, folder)}
    return ImageClassification.check(files, options or DatasetOptions())


def task_for(data: Checked, **fields: Any) -> ImageClassification:
    facts = Facts(data.schema, {name: frame.height for name, frame in data.splits.items()})
    return ImageClassification.model_validate({"architecture": TINY, **fields}).resolve(facts)


def problems_of(members: dict[str, bytes], folder: Path, **options: Any) -> list[Any]:
    with pytest.raises(Invalid) as caught:
        checked(members, folder, DatasetOptions(**options))
    return list(caught.value.problems)


# Data sets


def test_folders_become_examples_with_their_own_bytes(tmp_path: Path) -> None:
    members = pictures()
    data = checked(members, tmp_path)
    assert data.report["examples"] == {"train": 32, "validation": 8}
    frame = pl.concat(data.splits.values())
    assert frame.schema == {"image": pl.Binary, "label": pl.String, "name": pl.String}
    assert dict(frame.select("name", "image").iter_rows()) == members
    assert all(name.startswith(label) for label, name in frame.select("label", "name").iter_rows())


def test_every_label_keeps_its_share_in_every_split(tmp_path: Path) -> None:
    data = checked(pictures(10), tmp_path)
    assert data.report["classes"] == {
        "lying": {"train": 8, "validation": 2},
        "standing": {"train": 8, "validation": 2},
    }


def test_folders_of_splits_split_the_examples(tmp_path: Path) -> None:
    members = pictures(3, "x/train/") | pictures(2, "x/valid/", 50) | pictures(1, "x/test/", 80)
    data = checked(members, tmp_path)
    assert data.report["examples"] == {"train": 6, "validation": 4, "test": 2}
    assert data.report["overlap"] == {"train/validation": 0, "train/test": 0, "validation/test": 0}
    assert all("split" not in frame.columns for frame in data.splits.values())


def test_a_missing_validation_folder_is_drawn_from_the_train_folder(tmp_path: Path) -> None:
    data = checked(pictures(10, "train/") | pictures(2, "test/", 80), tmp_path)
    assert data.report["examples"] == {"train": 16, "validation": 4, "test": 4}


def test_an_archive_per_split_is_read(tmp_path: Path) -> None:
    files = {
        "train": upload(pictures(10), tmp_path, "a.zip"),
        "test": upload(pictures(2, "test/", 80), tmp_path, "b.zip"),
    }
    data = ImageClassification.check(files, DatasetOptions())
    assert data.report["examples"] == {"train": 16, "validation": 4, "test": 4}


def test_folders_of_splits_within_one_split_are_refused(tmp_path: Path) -> None:
    whole = pictures(3, "train/") | pictures(2, "test/", 50)
    with pytest.raises(Invalid, match="is one split already"):
        ImageClassification.check({"train": upload(whole, tmp_path)}, DatasetOptions())


def test_a_report_tells_sizes_modes_and_duplicates(tmp_path: Path) -> None:
    twins = {"lying/a.png": picture(0, "lying"), "lying/b.png": picture(0, "lying")}
    large = {"standing/c.png": picture(1, "standing", 40, "RGB")}
    options = DatasetOptions(split=SplitOptions(fraction=0.05))
    report = checked(pictures(10) | twins | large, tmp_path, options).report
    assert report["width"] == {"min": 12, "median": 12.0, "max": 40}
    assert report["modes"] == {"L": 22, "RGB": 1}
    assert (report["animated"], report["colour"]) == (0, 0)
    assert report["duplicates"] + sum(report["overlap"].values()) >= 1
    json.dumps(report)


def test_every_unreadable_image_is_named_up_to_a_hundred(tmp_path: Path) -> None:
    broken = {f"lying/{number}.jpg": b"not an image" for number in range(150)}
    problems = problems_of(pictures(2) | broken, tmp_path)
    assert len(problems) == 100
    assert problems[0].loc == ("file", "lying/0.jpg")
    assert problems[0].msg == "not a readable image"


def test_a_file_that_is_no_image_is_refused_unless_hidden(tmp_path: Path) -> None:
    clutter = {"__MACOSX/lying/._1.png": b"x", "lying/.DS_Store": b"x", "lying/Thumbs.db": b"x"}
    assert checked(pictures(3) | clutter, tmp_path).report["examples"]["train"] == 5
    (problem,) = problems_of(pictures(3) | {"lying/notes.txt": b"hello"}, tmp_path)
    assert problem.loc == ("file", "lying/notes.txt")


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({}, "the archive is empty"),
        ({"1.png": b"x"}, "not in the folder of a class"),
        ({"../a/1.png": b"x"}, "unsafe name"),
        ({f"a/{number}.png": picture(number, "lying") for number in range(4)}, "one class only"),
    ],
)
def test_an_archive_to_learn_nothing_from_is_refused(
    members: dict[str, bytes], message: str, tmp_path: Path
) -> None:
    assert problems_of(members, tmp_path)[0].msg == message


@pytest.mark.parametrize("options", [{"format": "csv"}, {"column_mapping": {"label": "y"}}])
def test_options_for_other_files_are_refused(options: dict[str, Any], tmp_path: Path) -> None:
    assert problems_of(pictures(3), tmp_path, **options)[0].loc[0] == "options"


def test_a_split_column_that_no_folder_gives_is_refused(tmp_path: Path) -> None:
    (problem,) = problems_of(pictures(3), tmp_path, split=SplitOptions(by="split"))
    assert problem.loc == ("options", "split", "by")


# What is left open


@pytest.mark.parametrize(
    ("width", "height", "examples", "side"),
    [
        (8, 8, 1000, 8),
        (28, 28, 1000, 32),
        (100, 100, 1000, 64),
        (4000, 3000, 50_000, 128),
        (1, 1, 9, 8),
    ],
)
def test_the_side_follows_the_typical_image(
    width: int, height: int, examples: int, side: int
) -> None:
    schema = {"labels": ["a", "b"], "width": width, "height": height, "colour": True}
    task = ImageClassification().resolve(Facts(schema, {"train": examples}))
    assert (task.image_size, task.channels) == (side, 3)
    assert AUTO not in dict(task).values()
    assert not task.augmentation.flip


def test_what_the_request_says_is_kept(tmp_path: Path) -> None:
    data = checked(pictures(5), tmp_path)
    task = task_for(data, image_size=16, channels=3, augmentation={"flip": True})
    assert (task.image_size, task.channels, task.architecture) == (16, 3, TINY)
    assert task.augmentation == Augmentation(flip=True)


def test_pictures_without_colour_get_one_channel(tmp_path: Path) -> None:
    assert task_for(checked(pictures(5, mode="RGB"), tmp_path)).channels == 1


def test_small_images_get_a_small_network() -> None:
    schema = {"labels": ["a", "b"], "width": 8, "height": 8, "colour": False}
    small, large = (
        Facts(schema, {"train": 100}),
        Facts(schema | {"width": 500, "height": 400}, {"train": 100}),
    )
    assert isinstance(ImageClassification().choose_architecture(small), CNN)
    assert isinstance(ImageClassification().choose_architecture(large), ResNet)


# Codec


@pytest.fixture
def data(tmp_path: Path) -> Checked:
    return checked(pictures(30), tmp_path)


@pytest.fixture
def task(data: Checked) -> ImageClassification:
    return task_for(data, image_size=16)


@pytest.fixture
def codec(task: ImageClassification, data: Checked) -> ImageCodec:
    return task.learn_codec(data.splits["train"].lazy(), data.schema)


def test_a_codec_survives_json(codec: ImageCodec, data: Checked) -> None:
    again = ImageCodec.model_validate_json(codec.model_dump_json())
    assert again == codec
    before, after = (c.encode(data.splits["validation"]) for c in (codec, again))
    assert torch.equal(
        before.inputs[0].take(torch.arange(12))[0], after.inputs[0].take(torch.arange(12))[0]
    )


def test_columns_hold_uint8_pixels_and_classes(codec: ImageCodec, data: Checked) -> None:
    columns = codec.encode(data.splits["train"])
    batch = columns.batch(torch.tensor([0, 1, 2]))
    assert (batch.inputs[0].shape, batch.inputs[0].dtype) == ((3, 1, 16, 16), torch.uint8)
    labels = data.splits["train"]["label"].head(3).to_list()
    assert [codec.labels[place] for place in batch.targets[0].tolist()] == labels
    assert columns.lengths is None


def test_normalised_train_pixels_have_mean_zero_and_spread_one(
    codec: ImageCodec, data: Checked
) -> None:
    pixels = codec.encode(data.splits["train"]).batch(torch.arange(48)).inputs[0].float()
    normal = (pixels - torch.tensor(codec.mean)) / torch.tensor(codec.std)
    assert float(normal.mean()) == pytest.approx(0, abs=1e-3)
    assert float(normal.std()) == pytest.approx(1, abs=1e-2)


def test_images_of_one_shade_can_be_learned_from(tmp_path: Path) -> None:
    file = io.BytesIO()
    Image.new("L", (8, 8), 7).save(file, "PNG")
    flat = {f"{label}/{number}.png": file.getvalue() for label in "ab" for number in range(4)}
    data = checked(flat, tmp_path)
    codec = task_for(data).learn_codec(data.splits["train"].lazy(), data.schema)
    assert codec.std == [1.0]


@pytest.mark.parametrize("channels", [1, 3])
def test_requests_are_encoded_as_the_data_set_is(channels: int, data: Checked) -> None:
    task = task_for(data, image_size=8, channels=channels)
    codec = task.learn_codec(data.splits["train"].lazy(), data.schema)
    examples = data.splits["validation"]
    values = [base64.b64encode(image).decode() for image in examples["image"]]
    sent = codec.encode_inputs(codec.read_inputs(values))
    stored = codec.encode(examples, targets=False)
    assert sent.targets == ()
    assert torch.equal(
        sent.batch(torch.arange(12)).inputs[0], stored.batch(torch.arange(12)).inputs[0]
    )


def test_every_bad_input_of_a_request_is_named(codec: ImageCodec) -> None:
    good = picture(0, "lying")
    values = [good, "!", {"image": base64.b64encode(b"text").decode()}, b"GIF89a"]
    with pytest.raises(Invalid) as caught:
        codec.read_inputs(values)
    assert [problem.loc[:2] for problem in caught.value.problems] == [
        ("inputs", 1),
        ("inputs", 2),
        ("inputs", 3),
    ]


# Augmentation

LIVELY = Augmentation(shift=0.2, zoom=0.2, rotate=30, flip=True, light=0.3)


def vary(augmentation: Augmentation, images: torch.Tensor) -> torch.Tensor:
    return augmentation.relight(augmentation.move(images))


@pytest.mark.parametrize(
    "augmentation",
    [STILL, LIVELY, Augmentation(shift=0.1), Augmentation(flip=True), Augmentation(light=0.5)],
)
@pytest.mark.parametrize("shape", [(5, 3, 16, 16), (1, 1, 8, 12)])
def test_varying_keeps_shapes(augmentation: Augmentation, shape: tuple[int, ...]) -> None:
    varied = vary(augmentation, torch.randn(shape))
    assert varied.shape == shape
    assert varied.isfinite().all()


def test_varying_follows_torchs_seed() -> None:
    images = torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append(vary(LIVELY, images))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert not torch.equal(draws[0], images)


def test_no_variation_leaves_the_very_pixels() -> None:
    images = torch.randn(2, 3, 8, 8)
    assert vary(STILL, images) is images


def test_a_flip_mirrors_some_images_and_leaves_the_others() -> None:
    torch.manual_seed(0)
    images = torch.randn(64, 1, 6, 6)
    varied = vary(Augmentation(flip=True), images)
    mirrored = torch.isclose(varied, images.flip(-1), atol=1e-5).all((1, 2, 3))
    same = torch.isclose(varied, images, atol=1e-5).all((1, 2, 3))
    assert (mirrored ^ same).all()
    assert 10 < int(mirrored.sum()) < 54


def test_a_shift_moves_pixels_by_at_most_its_share() -> None:
    torch.manual_seed(0)
    images = torch.zeros(50, 1, 33, 33)
    images[:, :, 16, 16] = 1
    varied = vary(Augmentation(shift=0.25), images)
    places = varied.flatten(1).argmax(1)
    away = torch.stack([places // 33 - 16, places % 33 - 16]).abs()
    assert 4 < int(away.max()) <= 9


def test_whole_pixels_are_moved_as_bytes_and_repeat_the_edge() -> None:
    images = torch.arange(200, dtype=torch.uint8).reshape(1, 2, 10, 10).repeat(40, 1, 1, 1)
    moved = Augmentation(shift=0.3, flip=True).move(images)
    assert moved.dtype == torch.uint8
    away = set()
    for place, image in enumerate(moved):
        shifted = [
            (down, across, mirror)
            for down in range(-3, 4)
            for across in range(-3, 4)
            for mirror in (False, True)
            if torch.equal(image, by_hand(images[place], down, across, mirror))
        ]
        assert shifted
        away.add(shifted[0])
    assert len(away) > 20


def by_hand(image: torch.Tensor, down: int, across: int, mirror: bool) -> torch.Tensor:
    rows = [min(9, max(0, row + down)) for row in range(10)]
    columns = [min(9, max(0, column + across)) for column in range(10)]
    cut = image[:, rows][:, :, columns]
    return cut.flip(2) if mirror else cut


def test_images_vary_in_training_and_never_in_evaluation(
    task: ImageClassification, codec: ImageCodec, data: Checked
) -> None:
    learner = task.model_copy(update={"augmentation": LIVELY}).build(codec)
    images = codec.encode(data.splits["train"]).batch(torch.arange(4)).inputs[0]
    learner.eval()
    with torch.no_grad():
        assert torch.equal(learner(images), learner(images))
        for part in (learner.backbone, learner.head):
            part.eval()
        learner.training = True
        assert not torch.equal(learner(images), learner(images))


# Learning


def train(task: ImageClassification, codec: ImageCodec, data: Checked, epochs: int = 8) -> Trained:
    plan = Training(
        batch_size=16, epochs=epochs, optimizer=AdamW(learning_rate=0.01), schedule=OneCycle()
    )
    columns = codec.encode(data.splits["train"])
    torch.manual_seed(3)
    learner = task.build(codec)
    steps = epochs * -(-columns.examples // 16)
    learner.start(plan, None, steps)
    step = 0
    for epoch in range(epochs):
        learner.enter_epoch(epoch)
        shuffle = torch.Generator().manual_seed(epoch)
        for index in learner.batches(columns.examples, None, 16, shuffle):
            learner.train_step(columns.batch(index), step)
            step += 1
    return Trained(task, codec, learner)


def test_lying_and_standing_bars_are_told_apart(
    task: ImageClassification, codec: ImageCodec, data: Checked, tmp_path: Path
) -> None:
    task = task.model_copy(update={"augmentation": Augmentation(shift=0.1)})
    trained = train(task, codec, data)
    truth = data.splits["validation"]
    predictions = trained.predict(codec.read_inputs(truth["image"].to_list()))
    assert all(isinstance(prediction, LabelPrediction) for prediction in predictions)
    assert task.score(predictions, truth)["accuracy"] >= 0.9
    assert set(task.score(predictions, truth)) == set(task.measures)
    assert task.evaluate(predictions, truth)["confusion"]["labels"] == ["lying", "standing"]

    save_weights(trained.learner.state_dict(), tmp_path / "weights")
    again = load(task, codec.model_dump(mode="json"), tmp_path / "weights")
    inputs = codec.read_inputs(truth["image"].to_list())
    assert again.predict(inputs) == trained.predict(inputs)


def test_a_new_task_takes_over_the_backbone_and_how_pixels_are_read(
    task: ImageClassification, codec: ImageCodec, data: Checked, tmp_path: Path
) -> None:
    base = train(task, codec, data, epochs=1)
    others = {name.replace("lying", "flat"): image for name, image in pictures(8, size=20).items()}
    wanted = checked(others, tmp_path)
    successor = task_for(wanted, image_size=24)
    theirs = successor.learn_codec(wanted.splits["train"].lazy(), wanted.schema, codec)
    assert theirs.labels == ["flat", "standing"]
    assert (theirs.side, theirs.mean, theirs.std) == (codec.side, codec.mean, codec.std)
    assert not successor.same_outputs(theirs, codec)
    assert successor.same_outputs(codec, codec)

    learner = successor.build(theirs)
    learner.take_over(base.learner, head=False)
    for name, weight in learner.backbone.state_dict().items():
        assert torch.equal(weight, base.learner.backbone.state_dict()[name])
    learner.start(Training(optimizer=AdamW(), schedule=OneCycle()), Transfer(trainable_blocks=0), 4)
    learner.enter_epoch(0)
    loss = learner.train_step(theirs.encode(wanted.splits["train"]).batch(torch.arange(6)), 0)
    assert loss.isfinite()


def test_a_base_that_reads_no_images_is_refused(task: ImageClassification, data: Checked) -> None:
    texts = object()
    with pytest.raises(Invalid, match="does not read images"):
        task.learn_codec(data.splits["train"].lazy(), data.schema, texts)


def test_rare_classes_can_weigh_more(task: ImageClassification, codec: ImageCodec) -> None:
    balanced = task.model_copy(update={"loss": CrossEntropy(class_weights="balanced")})
    learner = balanced.build(codec.model_copy(update={"counts": [30, 10]}))
    assert learner.criterion.weight.tolist() == pytest.approx([2 / 3, 2])


# Mixing

MANY = torch.arange(6, dtype=torch.uint8).view(6, 1, 1, 1).expand(6, 3, 8, 10) * 40


def test_mixup_averages_each_image_with_its_partner() -> None:
    torch.manual_seed(0)
    images, partners, share = Mixing(mixup=1).mix(MANY)
    assert 0 < share < 1
    assert sorted(partners.tolist()) == list(range(6))
    torch.testing.assert_close(images, MANY.float() * share + MANY[partners].float() * (1 - share))


def test_cutmix_pastes_a_rectangle_of_the_partner_and_tells_its_share() -> None:
    for seed in range(20):
        torch.manual_seed(seed)
        images, partners, share = Mixing(cutmix=1).mix(MANY)
        assert images.dtype == torch.uint8
        moved = partners != torch.arange(6)
        pasted = images[moved, 0] != MANY[moved, 0]
        assert (pasted == pasted[:1]).all(), "the same places of all images"
        assert pasted[0].float().mean() == pytest.approx(1 - share)
        rows, columns = pasted[0].any(1), pasted[0].any(0)
        assert torch.equal(pasted[0], rows[:, None] & columns[None]), "a rectangle"
        assert torch.equal(images[moved][:, :, pasted[0]], MANY[partners][moved][:, :, pasted[0]])


def test_a_share_of_the_steps_mixes_and_each_kind_has_its_turn() -> None:
    torch.manual_seed(0)
    found = [Mixing(mixup=1, cutmix=1, share=0.5).mix(MANY) for _ in range(200)]
    whole = sum(torch.equal(mixed.images, MANY) and mixed.share == 1 for mixed in found)
    averaged = sum(mixed.images.dtype == torch.float32 for mixed in found)
    assert 70 < whole < 130
    assert 25 < averaged < 75


@pytest.mark.parametrize("mixing", [Mixing(mixup=0.4), Mixing(cutmix=1)])
def test_a_mixed_loss_is_shared_out_between_both_labels(
    mixing: Mixing, data: Checked, codec: ImageCodec, task: ImageClassification
) -> None:
    mixed_task = task.model_copy(update={"mixing": mixing, "augmentation": STILL})
    torch.manual_seed(0)
    learner = mixed_task.build(codec).train()
    batch = codec.encode(data.splits["train"][:8]).batch(torch.arange(8))
    torch.manual_seed(5)
    loss = learner.loss(batch)
    torch.manual_seed(5)
    images, partners, share = mixing.mix(batch.inputs[0])
    chances = learner(images).log_softmax(1)
    targets = torch.nn.functional.one_hot(batch.targets[0], 2).float()
    soft = share * targets + (1 - share) * targets[partners]
    torch.testing.assert_close(loss, -(soft * chances).sum(1).mean())
