"""Images of every kind become the same plain pixels, and what is no image is refused."""

import base64
import io
import random
import struct
import zlib
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from PIL import Image

from tasks.parts import images
from tasks.parts.images import (
    EXAMPLE,
    FORMATS,
    ImageFacts,
    ImageInput,
    decode,
    decode_all,
    inspect,
    open_image,
    read_image,
)
from tasks.parts.problems import Invalid


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def halves(mode: str = "RGB", left: Any = (255, 0, 0), right: Any = (0, 0, 255)) -> Image.Image:
    """Two colours side by side, 32 wide and 16 high."""
    image = Image.new(mode, (32, 16), right)
    image.paste(left, (0, 0, 16, 16))
    return image


def noise(width: int = 64, height: int = 48) -> Image.Image:
    draws = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(draws)


def png_header(width: int, height: int) -> bytes:
    """A PNG that says it is so large, and holds a few bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize(
    ("attack", "message"),
    [
        (lambda: b"", "not a readable image"),
        (lambda: b"this is a text named .png", "not a readable image"),
        (
            lambda: b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>",
            "not a readable image",
        ),
        (lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a readable image"),
        (lambda: encoded(noise(), "PPM"), "not a readable image"),
        (lambda: encoded(noise(), "JPEG")[:1000], "not a readable image"),
        (lambda: encoded(noise(), "PNG")[:2000], "not a readable image"),
        (lambda: encoded(noise(), "WEBP")[:500], "not a readable image"),
        (lambda: b"\xff\xd8\xff\xe0" + b"\0" * 100, "not a readable image"),
        (lambda: png_header(100, 100), "not a readable image"),
        (lambda: png_header(60_000, 60_000), "the image is too large"),
        (lambda: png_header(9_000, 9_000), "the image is too large"),
        (lambda: png_header(12_000, 12_000), "the image is too large"),
        (lambda: png_header(1, 2**31 - 1), "the image is too large"),
        (lambda: png_header(17_000, 1), "the image is too large"),
        (lambda: encoded(Image.new("F", (8, 8)), "TIFF"), "no agreed range of brightness"),
    ],
)
def test_what_is_no_acceptable_image_is_refused(attack: Callable[[], bytes], message: str) -> None:
    for look in (open_image, inspect):
        with pytest.raises(Invalid) as caught:
            look(attack())
        (problem,) = caught.value.problems
        assert problem.msg == message
        assert problem.found is not None
        assert problem.allowed is not None


def test_of_an_image_too_large_to_open_no_limit_but_ours_is_told() -> None:
    with pytest.raises(Invalid) as caught:
        open_image(png_header(60_000, 60_000))
    assert caught.value.problems[0].found == "3600000000 pixels"


def test_a_file_beyond_the_limit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(noise())
    monkeypatch.setattr(images, "MAX_BYTES", len(data) - 1)
    with pytest.raises(Invalid, match="too large"):
        open_image(data)


def test_damaged_images_are_refused_and_never_crash(seed: int) -> None:
    draw = random.Random(seed)
    sound = [encoded(noise(), kind) for kind in FORMATS]
    for turn in range(300):
        data = bytearray(sound[turn % len(sound)])
        for _ in range(draw.randint(1, 8)):
            data[draw.randrange(min(300, len(data)))] = draw.randrange(256)
        with suppress(Invalid):
            open_image(bytes(data))


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_is_read(kind: str) -> None:
    options = {"quality": 95} if kind in ("JPEG", "WEBP") else {}
    pixels = np.asarray(open_image(encoded(halves(), kind, **options)).convert("RGB")).astype(int)
    assert pixels.shape == (16, 32, 3)
    assert np.abs(pixels[8, 4] - [255, 0, 0]).max() < 20
    assert np.abs(pixels[8, 28] - [0, 0, 255]).max() < 20


@pytest.mark.parametrize(
    ("image", "kind", "mode", "left", "right"),
    [
        (halves("L", 10, 200), "PNG", "L", 10, 200),
        (halves("1", 0, 1), "PNG", "L", 0, 255),
        (halves("LA", (10, 255), (10, 0)), "PNG", "L", 10, 255),
        (halves("RGBA", (9, 8, 7, 255), (9, 8, 7, 0)), "PNG", "RGB", (9, 8, 7), (255, 255, 255)),
        (halves("RGBA", (0, 0, 0, 51), (0, 0, 0, 255)), "PNG", "RGB", (204, 204, 204), (0, 0, 0)),
        (halves("CMYK", (0, 255, 255, 0), (0, 0, 0, 255)), "TIFF", "RGB", (255, 0, 0), (0, 0, 0)),
        (halves().convert("P"), "PNG", "RGB", (255, 0, 0), (0, 0, 255)),
        (halves("I;16", 257 * 3, 65_535), "PNG", "L", 3, 255),
        (halves("I;16", 0, 257 * 128), "TIFF", "L", 0, 128),
    ],
)
def test_every_mode_becomes_grey_or_red_green_blue(
    image: Image.Image, kind: str, mode: str, left: Any, right: Any
) -> None:
    plain = open_image(encoded(image, kind))
    assert plain.mode == mode
    assert plain.getpixel((4, 8)) == left
    assert plain.getpixel((28, 8)) == right


def test_a_cmyk_jpeg_is_read() -> None:
    data = encoded(halves("CMYK", (0, 0, 0, 0), (0, 0, 0, 255)), "JPEG", quality=95)
    plain = open_image(data)
    assert plain.mode == "RGB"
    assert np.asarray(plain)[8, 4].min() > 240
    assert np.asarray(plain)[8, 28].max() < 15


def test_a_transparent_colour_of_a_palette_lies_on_white() -> None:
    image = halves().convert("P")
    data = encoded(image, "PNG", transparency=image.getpixel((4, 8)))
    assert open_image(data).getpixel((4, 8)) == (255, 255, 255)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_is_turned_as_its_camera_was_held(orientation: int) -> None:
    upright = halves()
    undo = {
        1: [],
        2: [Image.Transpose.FLIP_LEFT_RIGHT],
        3: [Image.Transpose.ROTATE_180],
        4: [Image.Transpose.FLIP_TOP_BOTTOM],
        5: [Image.Transpose.TRANSPOSE],
        6: [Image.Transpose.ROTATE_90],
        7: [Image.Transpose.TRANSVERSE],
        8: [Image.Transpose.ROTATE_270],
    }[orientation]
    stored = upright
    for step in undo:
        stored = stored.transpose(step)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(stored, "PNG", exif=exif)
    assert np.array_equal(np.asarray(open_image(data)), np.asarray(upright))
    assert inspect(data)[:2] == (32, 16)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data:UserWarning")
def test_broken_metadata_beside_sound_pixels_is_no_fault() -> None:
    data = encoded(halves(), "JPEG", exif=b"Exif\0\0" + b"II*\0\x08\0\0\0\xff\xff" + b"\x12\1" * 9)
    assert open_image(data).size == (32, 16)


def test_of_a_moving_image_the_first_frame_counts() -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "lime", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert open_image(data).convert("RGB").getpixel((8, 8)) == (255, 0, 0)
    assert inspect(data).animated


def test_a_look_tells_size_mode_and_colour() -> None:
    assert inspect(encoded(halves())) == ImageFacts(32, 16, "RGB", False, True)
    assert inspect(encoded(halves("L", 0, 255))) == ImageFacts(32, 16, "L", False, False)
    grey = noise().convert("L").convert("RGB")
    assert not inspect(encoded(grey, "JPEG")).colour
    assert not inspect(encoded(grey, "PNG")).colour


@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_are_channels_first_and_stretched_to_the_side(channels: int) -> None:
    pixels = decode(encoded(halves()), 8, channels)
    assert pixels.shape == (channels, 8, 8)
    assert pixels.dtype == np.uint8
    red = [76] if channels == 1 else [255, 0, 0]
    assert pixels[:, 4, 1].tolist() == red


def test_a_large_photo_looks_the_same_decoded_in_one_go_or_by_parts() -> None:
    smooth = noise(12, 12).resize((1200, 900), Image.Resampling.BICUBIC)
    quick = decode(encoded(smooth, "JPEG", quality=95), 64, 3).astype(int)
    exact = decode(encoded(smooth, "PNG"), 64, 3).astype(int)
    assert np.abs(quick - exact).mean() < 3


def test_a_column_is_decoded_in_its_order() -> None:
    column = pl.Series([encoded(Image.new("L", (9, 9), shade % 256)) for shade in range(300)])
    pixels = decode_all(column, 8, 1)
    assert pixels.shape == (300, 1, 8, 8)
    assert pixels.dtype == torch.uint8
    assert pixels[:, 0, 3, 3].tolist() == [shade % 256 for shade in range(300)]


def test_no_images_are_an_empty_tensor() -> None:
    assert decode_all(pl.Series([], dtype=pl.Binary), 8, 3).shape == (0, 3, 8, 8)


def test_every_damaged_image_of_a_column_is_named() -> None:
    sound = encoded(noise())
    column = pl.Series([sound, b"x", sound, b"y"] * 10)
    with pytest.raises(Invalid) as caught:
        decode_all(column, 8, 3)
    rows = [problem.loc for problem in caught.value.problems]
    assert rows == [("row", row) for row in range(2, 41, 2)]


@pytest.mark.parametrize(
    "wrap",
    [
        lambda data: data,
        lambda data: base64.b64encode(data).decode(),
        lambda data: base64.encodebytes(data).decode(),
        lambda data: "data:image/png;base64," + base64.b64encode(data).decode(),
        lambda data: {"image": base64.b64encode(data).decode()},
    ],
)
def test_an_image_is_read_from_bytes_base64_data_urls_and_objects(
    wrap: Callable[[bytes], Any],
) -> None:
    data = encoded(halves())
    assert read_image(wrap(data)) == data


@pytest.mark.parametrize(
    ("value", "loc"),
    [
        ("no base64!", ()),
        ("abc", ()),
        ("ümlaut", ()),
        (17, ()),
        (None, ()),
        ([1, 2], ()),
        ({}, ()),
        ({"picture": "aGk="}, ()),
        ({"image": 3}, ("image",)),
        ({"image": {"image": "aGk="}}, ("image",)),
        ("A" * (45 << 20), ()),
    ],
)
def test_other_inputs_are_refused(value: Any, loc: tuple[str, ...]) -> None:
    with pytest.raises(Invalid) as caught:
        read_image(value)
    (problem,) = caught.value.problems
    assert problem.loc == loc
    assert problem.allowed is not None


def test_the_documentation_shows_an_image_as_base64() -> None:
    field = ImageInput.model_json_schema()["properties"]["image"]
    assert (field["type"], field["contentEncoding"]) == ("string", "base64")
    assert open_image(read_image(EXAMPLE)).size == (8, 8)
