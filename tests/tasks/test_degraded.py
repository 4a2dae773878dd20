"""Degraded images: encoded, read, answered and measured."""

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from PIL import Image

from models.autoencoder import Autoencoder
from models.edsr import EDSR
from models.unet import UNet
from tasks.parts import degraded, whole_images
from tasks.parts.degradations import (
    Colorization,
    Degradation,
    Denoising,
    Inpainting,
    Paired,
    SuperResolution,
)
from tasks.parts.degraded import middle
from tasks.parts.images import ImagePrediction, Pixels
from tasks.parts.problems import Invalid
from tests.restorations import (
    TINY,
    answers,
    checked,
    codec_of,
    model,
    noise,
    pictures,
    png,
    restorer,
    still,
)

# Columns


def test_a_degraded_image_is_the_same_in_every_encoding(tmp_path: Path) -> None:
    frame = checked(pictures(), tmp_path).splits["train"]
    codec = codec_of(Denoising())
    whole, backwards = codec.encode(frame), codec.encode(frame.reverse())
    last = torch.tensor([frame.height - 1])
    ours, theirs = whole.batch(last), backwards.batch(torch.tensor([0]))
    for mine, its in zip(ours.inputs + ours.targets, theirs.inputs + theirs.targets, strict=True):
        assert torch.equal(mine, its)


def test_two_images_are_degraded_differently() -> None:
    codec = codec_of(Inpainting())
    one, other = (codec.example(png(noise(number)), None)[0].pixels[3] for number in (1, 2))
    assert not np.array_equal(one, other)


def test_of_large_images_the_middle_is_taken() -> None:
    codec = codec_of(SuperResolution(factor=3)).model_copy(update={"largest_side": 64})
    large = noise(1, 100, 70)
    picture, original = codec.example(png(large), None)
    assert np.array_equal(original, large[:, 18:81, 3:66])
    assert picture.pixels.shape == (3, 21, 21)


def test_the_middle_of_pairs_is_that_of_both() -> None:
    codec = codec_of(Paired(factor=2)).model_copy(update={"largest_side": 64})
    source = noise(1, 50, 40)
    target = source.repeat(2, 1).repeat(2, 2)
    picture, original = codec.example(png(source), png(target))
    assert np.array_equal(picture.pixels, source[:, 9:41, 4:36])
    assert np.array_equal(original, picture.pixels.repeat(2, 1).repeat(2, 2))


# Inputs and answers


@pytest.mark.parametrize("size", [(24, 32), (9, 11), (65, 8)])
@pytest.mark.parametrize("architecture", [TINY, UNet(widths=[4, 4]), Autoencoder(width=4)])
def test_an_answer_has_exactly_the_size_of_its_input(
    size: tuple[int, int], architecture: Any
) -> None:
    (answer,) = answers(model(Denoising(), architecture=architecture), [png(noise(1, *size))])
    assert answer.shape == (*size, 3)
    (answer,) = answers(
        model(SuperResolution(factor=3), architecture=architecture), [png(noise(1, *size))]
    )
    assert answer.shape == (3 * size[0], 3 * size[1], 3)


def test_images_of_many_sizes_are_answered_in_their_order() -> None:
    sizes = [(20, 20), (8, 9), (50, 12), (20, 20)]
    found = answers(model(Denoising()), [png(noise(n, *size)) for n, size in enumerate(sizes)])
    assert [answer.shape[:2] for answer in found] == sizes


def test_an_untrained_network_changes_next_to_nothing() -> None:
    pixels = noise(3)
    (answer,) = answers(still(model(Denoising())), [png(pixels)])
    assert np.array_equal(answer.transpose(2, 0, 1), pixels)


def test_a_large_image_is_computed_in_squares_as_it_would_be_whole() -> None:
    learner = restorer(model(SuperResolution(), architecture=EDSR(width=4, depth=2)))
    pixels = torch.from_numpy(noise(1, 70, 50).copy())
    with torch.inference_mode():
        one, parts = learner.restore(pixels), learner.restore(pixels, square=16, margin=16)
    torch.testing.assert_close(one, parts, rtol=0, atol=1e-5)
    assert one.shape == (3, 140, 100)


def test_a_grey_image_stays_grey_unless_colours_are_asked_for() -> None:
    grey, colour = png(noise(1, channels=1)), png(noise(1))
    assert [a.ndim for a in answers(model(Denoising()), [grey, colour])] == [2, 3]
    colorization = Colorization()
    assert answers(model(colorization), [grey])[0].shape == (24, 32, 3)


def test_colours_leave_brightness_as_it_was() -> None:
    trained = model(Colorization())
    for weight in restorer(trained).head.parameters():
        torch.nn.init.constant_(weight, 0.002)
    (answer,) = answers(trained, [png(np.full((3, 16, 16), 128, np.uint8))])
    assert np.ptp(answer, axis=-1).max() > 3
    brightness = np.asarray(Image.fromarray(answer).convert("L"), np.int16)
    assert np.abs(brightness - 128).max() <= 1


def mask(height: int = 24, width: int = 32) -> Pixels:
    found = np.zeros((1, height, width), np.uint8)
    found[:, 5:12, 6:20] = 255
    return found


def test_only_holes_are_filled_in() -> None:
    pixels, holes = noise(2), mask()
    trained = model(Inpainting())
    (answer,) = answers(trained, [{"image": png(pixels), "mask": png(holes)}])
    changed = (answer.transpose(2, 0, 1) != pixels).any(0)
    assert changed.any()
    assert not changed[holes[0] == 0].any()


def test_what_is_under_a_hole_is_not_looked_at() -> None:
    pixels, holes = noise(2), mask()
    other = np.where(holes > 0, 77, pixels).astype(np.uint8)
    trained = model(Inpainting())
    one, two = answers(trained, [{"image": png(p), "mask": png(holes)} for p in (pixels, other)])
    assert np.array_equal(one, two)


def test_what_is_see_through_is_a_hole() -> None:
    pixels, holes = noise(2), mask()
    file = io.BytesIO()
    layers = np.concatenate([pixels, 255 - holes]).transpose(1, 2, 0)
    Image.fromarray(layers).save(file, "PNG")
    trained = model(Inpainting())
    asked = [{"image": png(pixels), "mask": png(holes)}, {"image": file.getvalue()}]
    one, other = answers(trained, asked)
    assert np.array_equal(one, other)


def test_a_hole_in_one_colour_gets_that_colour_by_rule() -> None:
    plain = np.full((3, 24, 32), 90, np.uint8)
    asked = [{"image": png(plain), "mask": png(mask())}]
    (answer,) = answers(still(model(Inpainting())), asked)
    assert np.abs(answer.astype(int) - 90).max() <= 1


@pytest.mark.parametrize(
    ("degradation", "value", "place"),
    [
        (Inpainting(), {"image": png(noise(1))}, "mask"),
        (Inpainting(), {"image": png(noise(1)), "mask": png(mask(24, 31))}, "mask"),
        (Inpainting(), {"image": png(noise(1)), "mask": b"nothing"}, "mask"),
        (Denoising(), {"image": png(noise(1)), "mask": png(mask())}, "mask"),
        (Denoising(), {"image": 3}, "image"),
        (Denoising(), {"mask": png(mask())}, None),
    ],
)
def test_an_input_that_cannot_be_read_is_named(
    degradation: Degradation, value: Any, place: str | None
) -> None:
    with pytest.raises(Invalid) as caught:
        codec_of(degradation).read_inputs([value])
    (problem,) = caught.value.problems
    assert problem.loc == (("inputs", 0, place) if place else ("inputs", 0))


def test_images_beyond_what_memory_holds_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(degraded, "MOST_PIXELS", 4 * 24 * 32)
    monkeypatch.setattr(whole_images, "MOST_PIXELS_SENT", 2 * 24 * 32)
    codec = codec_of(SuperResolution())
    assert len(codec.read_inputs([png(noise(1))] * 2)) == 2
    with pytest.raises(Invalid, match="too many pixels"):
        codec.read_inputs([png(noise(1))] * 3)
    with pytest.raises(Invalid, match="the image is too large"):
        codec.read_inputs([png(noise(1, 24, 33))])


def test_a_batch_holds_no_more_pixels_than_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    trained, seen = model(Denoising()), []
    predict = restorer(trained).predict

    def spied(*inputs: torch.Tensor) -> torch.Tensor:
        seen.append(len(inputs[0]))
        return predict(*inputs)

    monkeypatch.setattr(restorer(trained), "predict", spied)
    monkeypatch.setattr(degraded, "MOST_PIXELS", 3 * 4 * 256)
    answers(trained, [png(noise(n)) for n in range(8)])  # 4 tiles each
    assert seen == [3, 3, 2]


def test_an_answer_travels_as_base64() -> None:
    trained = model(Denoising())
    (found,) = trained.predict(trained.codec.read_inputs([png(noise(1))]))
    text = found.model_dump(mode="json")["image"]
    assert base64.b64decode(text).startswith(b"\x89PNG")


# Metrics


def scored(degradation: Degradation, original: Pixels, answer: Pixels) -> dict[str, Any]:
    task = model(degradation).task
    return task.evaluate(
        [ImagePrediction(image=png(answer))], pl.DataFrame({"image": [png(original)]})
    )


def test_psnr_of_a_known_error() -> None:
    original = np.full((3, 16, 16), 100, np.uint8)
    found = scored(Denoising(), original, original + 5)
    assert found["psnr"] == pytest.approx(20 * np.log10(255 / 5))
    assert scored(Denoising(), original, original)["psnr"] == 100


def test_noise_is_as_strong_as_it_is_said_to_be() -> None:
    original = np.full((3, 64, 64), 128, np.uint8)
    found = scored(Denoising(sigma=10), original, original)
    assert found["input"]["psnr"] == pytest.approx(20 * np.log10(255 / 10), abs=0.2)


def test_super_resolution_is_measured_on_brightness_without_the_border() -> None:
    original = np.full((3, 24, 24), 100, np.uint8)
    answer = original.copy()
    answer[:, 2:-2, 2:-2] += 10
    found = scored(SuperResolution(), original, answer)
    assert found["psnr"] == pytest.approx(20 * np.log10(255 / (10 * 219 / 255)))


def test_super_resolution_is_compared_with_bicubic_enlargement() -> None:
    original = np.random.default_rng(5).integers(0, 256, (3, 48, 48), dtype=np.uint8)
    image = Image.fromarray(original.transpose(1, 2, 0))
    small = image.resize((24, 24), Image.Resampling.BICUBIC)
    large = np.asarray(small.resize((48, 48), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
    found = scored(SuperResolution(), original, large)
    assert found["psnr"] == pytest.approx(found["input"]["psnr"], abs=0.02)


def test_inpainting_is_measured_inside_the_holes() -> None:
    original = np.full((3, 48, 48), 100, np.uint8)
    holes = codec_of(Inpainting()).example(png(original), None)[0].pixels[3] > 0
    assert 0.05 < holes.mean() < 0.4
    outside = np.where(holes, original, original + 9).astype(np.uint8)
    assert scored(Inpainting(), original, outside)["psnr"] == 100
    inside = np.where(holes, original + 9, original).astype(np.uint8)
    assert scored(Inpainting(), original, inside)["psnr"] == pytest.approx(20 * np.log10(255 / 9))


def test_the_middle_of_an_image_is_as_far_from_both_edges() -> None:
    assert middle(np.arange(6).reshape(1, 1, 6), 1, 2).tolist() == [[[2, 3]]]
