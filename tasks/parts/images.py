"""Encoded images: opened safely, looked at, and decoded into tensors."""

from io import BytesIO
from typing import Annotated, NamedTuple, TypeVar

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from pydantic import Field
from torch import Tensor

from models.parts.options import Plain
from tasks.parts.media import EncodedFile, check_size, each, start_of
from tasks.parts.problems import Invalid, Problem

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
MAX_BYTES = 32 << 20
MAX_PIXELS = 64_000_000
MAX_SIDE = 16_384

_GREY_MODES = {"1", "L", "LA", "La", "I;16", "I;16L", "I;16B", "I;16N"}
_ALPHA_MODES = {"LA", "La", "PA", "RGBA", "RGBa"}
_COLOUR_TOLERANCE = 8  # JPEG rounds the channels of a grey picture apart by a few steps

EXAMPLE = "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAIAQAAAADsdIMmAAAAEklEQVR42mP4z/SDiQEGGf4DAB0EAwNJ19I3AAAAAElFTkSuQmCC"
"""The smallest of images, for documentation."""

T = TypeVar("T")
Pixels = NDArray[np.uint8]
Size = int | tuple[int, int]
"""Height and width, or the side of a square."""

IMAGE = EncodedFile("image", "an image", "image/*", MAX_BYTES, EXAMPLE)
EncodedImage = Annotated[bytes, IMAGE]
read_image = IMAGE.read


class ImageInput(Plain):
    """One image: PNG, JPEG, WebP, BMP, GIF (its first frame) or TIFF."""

    image: EncodedImage = Field(
        description="The encoded file as base64, with or without a `data:` prefix. The string may "
        "also stand alone, in place of the object."
    )


class ImagePrediction(Plain):
    """An image that a model made."""

    image: EncodedImage = Field(description="A PNG file as base64.")


class ImageFacts(NamedTuple):
    """What a look at an image tells: its size as shown, how it is stored, whether it has colours."""

    width: int
    height: int
    mode: str
    animated: bool
    colour: bool


def open_image(data: bytes, draft: int | None = None) -> Image.Image:
    """The first frame of an encoded image, upright, in mode L or RGB; what is see-through lies on white.

    With `draft`, a JPEG may be decoded at a fraction of its size, its sides at least so many pixels.
    Raises Invalid when the bytes are no image, one of another format, damaged, or too large.
    """
    try:
        with _lazily(data) as image:
            if draft:
                image.draft(None, (draft, draft))
            image.load()
            return _plain(_upright(image))
    except Invalid:
        raise
    except Exception as error:  # as in _lazily
        raise _unreadable(str(error)) from None


def _lazily(data: bytes) -> Image.Image:
    """An image whose header alone was read, and is acceptable."""
    check_size(data, MAX_BYTES)
    try:
        image = Image.open(BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        raise _unreadable(start_of(data)) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        # Pillow tells its own limit, too: "Image size (3600000000 pixels) exceeds limit of ...".
        raise _too_large(str(error).partition("(")[2].partition(")")[0]) from None
    except Exception as error:  # Pillow raises nearly anything on damaged files
        raise _unreadable(str(error)) from None
    width, height = image.size
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
        raise _too_large(f"{width} x {height}")
    return image


def as_stored(data: bytes) -> Image.Image:
    """The first frame of an encoded image as it is stored: any mode, not upright. Raises Invalid like `open_image`."""
    try:
        with _lazily(data) as image:
            image.load()
            return image
    except Invalid:
        raise
    except Exception as error:  # as in _lazily
        raise _unreadable(str(error)) from None


def orientation_of(data: bytes) -> int:
    """How its camera held an image, as EXIF counts from 1, upright. Raises Invalid like `open_image`."""
    with _lazily(data) as image:
        return _orientation(image)


def _orientation(image: Image.Image) -> int:
    """1 as well where that cannot be read."""
    try:
        found = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # as in _upright
        return 1
    return found if found in range(1, 9) else 1


def size_of(data: bytes) -> tuple[int, int]:
    """Width and height of an encoded image as it is shown, by its header. Raises Invalid like `open_image`."""
    with _lazily(data) as image:
        width, height = image.size
        return (height, width) if _orientation(image) >= 5 else (width, height)


def _unreadable(found: str) -> Invalid:
    return Invalid(Problem((), "not a readable image", found, list(FORMATS)))


def _too_large(found: str) -> Invalid:
    allowed = f"at most {MAX_PIXELS:,} pixels, no side beyond {MAX_SIDE:,}"
    return Invalid(Problem((), "the image is too large", found, allowed))


def _upright(image: Image.Image) -> Image.Image:
    """The image turned as its camera was held; metadata that cannot be read turns nothing."""
    try:
        ImageOps.exif_transpose(image, in_place=True)
    except Exception:  # broken EXIF beside sound pixels is common in photos
        return image
    return image


def _plain(image: Image.Image) -> Image.Image:
    """Any mode as L or RGB."""
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
    if image.mode in ("I", "F"):
        allowed = "8 or 16 bits, unsigned"
        raise Invalid(Problem((), "no agreed range of brightness", f"mode {image.mode}", allowed))
    grey = image.mode in _GREY_MODES
    if image.mode in _ALPHA_MODES or image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return _in_mode(image, "L" if grey else "RGB")


def _in_mode(image: Image.Image, mode: str) -> Image.Image:
    return image if image.mode == mode else image.convert(mode)


def inspect(data: bytes) -> ImageFacts:
    """Facts of an image whose every pixel can be decoded. Raises Invalid like `open_image`."""
    with _lazily(data) as image:
        mode, animated = image.mode, _is_animated(image)
    whole = open_image(data)
    return ImageFacts(whole.width, whole.height, mode, animated, _has_colour(whole))


def _is_animated(image: Image.Image) -> bool:
    try:
        return bool(getattr(image, "is_animated", False))
    except Exception:  # looks at the second frame; only the first is needed
        return True


def _has_colour(image: Image.Image) -> bool:
    if image.mode == "L":
        return False
    pixels = np.asarray(image.reduce(max(1, min(image.size) // 64))).astype(np.int16)
    return bool(np.ptp(pixels, axis=-1).max() > _COLOUR_TOLERANCE)


def decode(data: bytes, size: Size, channels: int, *, crop: bool = False) -> Pixels:
    """Pixels (channels, height, width) of an encoded image, stretched to that size (bilinear, antialiased).

    With `crop`, what lies outside the largest square in the middle is left out before.
    """
    height, width = sides(size)
    draft = 2 * max(height, width)
    image = _in_mode(open_image(data, draft=draft), "L" if channels == 1 else "RGB")
    if crop and image.width != image.height:
        least = min(image.size)
        left, top = ((length - least) // 2 for length in image.size)
        image = image.crop((left, top, left + least, top + least))
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BILINEAR, reducing_gap=2.0)
    return np.asarray(image).reshape(height, width, channels).transpose(2, 0, 1)


def sides(size: Size) -> tuple[int, int]:
    """Height and width."""
    return (size, size) if isinstance(size, int) else size


def pixels_of(data: bytes, channels: int) -> Pixels:
    """Pixels (channels, height, width) of an encoded image, as many as it has. Raises Invalid like `open_image`."""
    image = _in_mode(open_image(data), "L" if channels == 1 else "RGB")
    return np.asarray(image).reshape(image.height, image.width, channels).transpose(2, 0, 1)


def reduced_pixels(data: bytes, longest: int) -> Pixels:
    """Pixels (3, height, width) of an encoded image, made smaller so that no side is longer. Raises Invalid."""
    image = _in_mode(open_image(data), "RGB")
    if max(image.size) > longest:
        image.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    return np.asarray(image).transpose(2, 0, 1)


def reduced(data: bytes, longest: int) -> bytes:
    """The file, or a PNG of the same made smaller if a side is longer. Raises Invalid like `open_image`."""
    image = open_image(data)
    return encode_png(reduced_pixels(data, longest)) if max(image.size) > longest else data


def see_through(data: bytes) -> Pixels | None:
    """How far each place of a sound image shows what lies behind it (height, width), 255 for all; None: none does."""
    with _lazily(data) as image:
        if image.mode not in _ALPHA_MODES and not image.has_transparency_data:
            return None
        image.load()
        alpha = np.asarray(_upright(image).convert("RGBA").getchannel("A"))
    return 255 - alpha if (alpha < 255).any() else None


def decode_all(images: pl.Series, size: Size, channels: int, *, crop: bool = False) -> Tensor:
    """A column of encoded images as one tensor (N, channels, height, width) uint8, each as by `decode`.

    Raises Invalid, at `row`, for images that cannot be decoded.
    """
    pixels = torch.empty((len(images), channels, *sides(size)), dtype=torch.uint8)
    places = pixels.numpy()

    def place(row: int, data: bytes) -> None:
        places[row] = decode(data, size, channels, crop=crop)

    each(images, place)
    return pixels


def encode_png(pixels: Pixels) -> bytes:
    """The file of an image (channels, height, width), of 1 or 3 channels."""
    packed = BytesIO()
    Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)).save(
        packed, "PNG"
    )
    return packed.getvalue()


def black(size: Size) -> bytes:
    """The file of an image in which nothing is to be seen."""
    packed = BytesIO()
    Image.new("RGB", sides(size)[::-1]).save(packed, "BMP")
    return packed.getvalue()
