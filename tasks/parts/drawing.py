"""Films of what was found: boxes, labels and identities drawn over the frames."""

from collections.abc import Sequence
from colorsys import hsv_to_rgb
from fractions import Fraction
from io import BytesIO

import av
from av.video.stream import VideoStream
from PIL import Image, ImageDraw

from tasks.parts.images import open_image
from tasks.parts.tracks import Sighting

_SLOWEST, _FASTEST = 1, 120
"""Frames a second."""
_GOLDEN = 0.618034
_LINES_OF = 240
"""A line is as many pixels thick as the frame's smaller side has such parts."""
_MARGIN = 2


def film(images: Sequence[bytes], found: Sequence[Sequence[Sighting]], rate: float) -> bytes:
    """An MP4 file of image files, `rate` a second, with what was found in each drawn over it.

    Sides are made even, as the encoder wants them, by a line of black.
    """
    file, codec = BytesIO(), "libx264" if "libx264" in av.codecs_available else "mpeg4"
    speed = Fraction(min(max(rate, _SLOWEST), _FASTEST)).limit_denominator(1000)
    with av.open(file, "w", format="mp4") as made:
        stream = made.add_stream(codec, rate=speed)
        assert isinstance(stream, VideoStream)
        stream.width, stream.height = (side + side % 2 for side in open_image(images[0]).size)
        stream.pix_fmt, stream.codec_context.thread_count = "yuv420p", 1
        for data, objects in zip(images, found, strict=True):
            picture = drawn(open_image(data), objects)
            whole = picture.crop((0, 0, stream.width, stream.height))
            made.mux(stream.encode(av.VideoFrame.from_image(whole)))
        made.mux(stream.encode())
    return file.getvalue()


def drawn(picture: Image.Image, objects: Sequence[Sighting]) -> Image.Image:
    """A picture with a box around each object, in a colour of its own, its identity and label above."""
    picture = picture.convert("RGB")
    draw, thick = ImageDraw.Draw(picture), max(1, min(picture.size) // _LINES_OF)
    for found in objects:
        colour = _colour(found.id)
        left, top, right, bottom = found.box
        draw.rectangle((left, top, max(left, right), max(top, bottom)), outline=colour, width=thick)
        text = f"{found.id} {found.label}"
        _, _, width, height = draw.textbbox((0, 0), text)
        above = max(0, top - height - 2 * _MARGIN)
        draw.rectangle(
            (left, above, left + width + 2 * _MARGIN, above + height + 2 * _MARGIN), fill=colour
        )
        draw.text((left + _MARGIN, above + _MARGIN), text, fill="black")
    return picture


def _colour(number: int) -> tuple[int, int, int]:
    """Colours far apart for numbers that are near."""
    red, green, blue = hsv_to_rgb(number * _GOLDEN % 1, 0.6, 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)
