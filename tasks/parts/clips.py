"""Encoded video clips: opened safely, looked at, and decoded frame by frame."""

import struct
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fractions import Fraction
from io import BytesIO
from itertools import accumulate, groupby
from typing import Annotated, NamedTuple

import av
import numpy as np
from av.codec.context import ThreadType
from av.container import InputContainer
from av.packet import Packet
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field

from models.parts.options import Plain
from tasks.parts.media import EncodedFile, check_size, start_of
from tasks.parts.problems import Invalid, Problem

CONTAINERS = ("MP4", "MOV", "WebM", "MKV", "AVI", "GIF")
CODECS = (
    "h264", "hevc", "vp8", "vp9", "av1", "libdav1d", "mpeg4", "msmpeg4", "msmpeg4v2", "h263", "mpeg1video",
    "mpeg2video", "mjpeg", "gif", "prores", "dvvideo", "theora", "ffv1", "huffyuv", "png", "rawvideo",
)  # fmt: skip
"""Decoders that may run; FFmpeg has hundreds more that hardly anybody looks after."""
MAX_BYTES = 256 << 20
MAX_PIXELS = 9_500_000
"""Of one frame: 4096 x 2160 and a little more."""
MAX_SIDE = 8_192
MAX_FRAMES = 100_000
"""Nearly an hour at 30 frames a second."""
MOST_DECODED = 30_000_000_000
"""Pixels decoded to answer one question: a minute of work or two."""

LOOK_FRAMES, LOOK_SIDE = 32, 64
"""What of a clip is decoded to look at it."""

Pixels = NDArray[np.uint8]

_COLOUR_TOLERANCE = 16  # codecs round the channels of a grey picture apart by a few steps
_REACH = 16  # whole frames; beyond that it is quicker to begin at the start than to look on
_FIRST_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot")
_BOXES = (
    *_FIRST_BOXES,
    b"moof",
    b"mfra",
    b"sidx",
    b"styp",
    b"uuid",
    b"meta",
    b"udta",
    b"emsg",
    b"prft",
)
_UNSIZED = 1 << 60
"""What a file that was written without knowing its length says of it: it goes on to the end."""

CLIP = EncodedFile("clip", "a video", "video/*", MAX_BYTES)
EncodedClip = Annotated[bytes, CLIP]
read_clip = CLIP.read


class ClipInput(Plain):
    """One clip: MP4, MOV, WebM, MKV, AVI or an animated GIF; sound is passed over."""

    clip: EncodedClip = Field(
        description="The encoded file as base64, with or without a `data:` prefix. The string may "
        "also stand alone, in place of the object."
    )


class ClipFacts(NamedTuple):
    """What a look at a clip tells: its size as shown, how long it is and how it is stored."""

    frames: int
    seconds: float
    fps: float
    width: int
    height: int
    codec: str
    colour: bool


class Clip:
    """The frames of an encoded video, in the order they are shown, each decoded when it is asked for."""

    def __init__(self, stream: VideoStream, packets: "list[Packet[VideoStream]]") -> None:
        self._stream, self._packets = stream, packets
        self._shown = sorted(
            (_time(packet), place) for place, packet in enumerate(packets) if not packet.is_discard
        )
        """When each frame is shown, and which packet holds it."""

    @property
    def frames(self) -> int:
        return len(self._shown)

    @property
    def codec(self) -> str:
        return self._stream.codec_context.name

    @property
    def times(self) -> list[float]:
        """When each frame is shown, in seconds from the first one."""
        tick, first = self._tick, self._shown[0][0]
        return [float((time - first) * tick) for time, _ in self._shown]

    @property
    def seconds(self) -> float:
        """How long the clip is; its last frame is shown as long as it says itself, or as the others."""
        shown, last = self.times[-1], self._packets[self._shown[-1][1]]
        if last.duration:
            return shown + float(last.duration * self._tick)
        rate = self._stream.average_rate
        return shown + (shown / (self.frames - 1) if shown else float(1 / rate) if rate else 0.0)

    @property
    def _tick(self) -> Fraction:
        return self._stream.time_base or Fraction(1, 1000)

    def spread(self, count: int) -> list[int]:
        """The places of `count` frames in the middle of equal parts of the clip's time."""
        times, seconds = self.times, self.seconds
        middles = [(part + 0.5) * seconds / count for part in range(count)]
        return [max(0, bisect_right(times, middle + 1e-6) - 1) for middle in middles]

    def pictures(self, places: Sequence[int]) -> Iterator[VideoFrame]:
        """The frames at rising `places`, as they were decoded; nothing is decoded that none of them needs.

        What a decoder swallows is stood in for by the frame before. Raises Invalid for damaged frames.
        """
        needed = self._needed(places)
        size = self._stream.codec_context.width * self._stream.codec_context.height
        _refuse_work(sum(needed) * size)
        wanted, last = [self._shown[place][0] for place in places], None
        at = decoded = 0
        for frame in self._decoded(needed):
            decoded += frame.width * frame.height
            _refuse_work(decoded)  # which may be more than the file's header says
            time = frame.pts if frame.pts is not None else wanted[at]
            while at < len(wanted) and wanted[at] < time:
                yield frame if last is None else last
                at += 1
            while at < len(wanted) and wanted[at] == time:
                yield frame
                at += 1
            last = frame
            if at == len(wanted):
                return
        if last is None:
            raise Invalid(Problem((), "no frame can be decoded", self.codec, "an intact clip"))
        yield from [last] * (len(wanted) - at)

    def _needed(self, places: Sequence[int]) -> list[bool]:
        """Which packets the frames at `places` take: all since the last whole frame that is shown before."""
        whole = [place for place, packet in enumerate(self._packets) if packet.is_keyframe]
        begun = [0] * (len(self._packets) + 1)
        for time, end in {self._shown[place] for place in places}:
            here = bisect_right(whole, end)
            # Frames that are stored behind a whole one but shown before it look further back.
            before = reversed(whole[max(0, here - _REACH) : here])
            begun[next((w for w in before if _time(self._packets[w]) <= time), 0)] += 1
            begun[end + 1] -= 1
        return [runs > 0 for runs in accumulate(begun[:-1])]

    def _decoded(self, needed: Sequence[bool]) -> Iterator[VideoFrame]:
        """The frames of each run of needed packets. Raises Invalid for those that are damaged."""
        decoder, place = self._stream.codec_context, 0
        decoder.thread_count, decoder.thread_type = 1, ThreadType.NONE
        decoder.options = {"max_pixels": str(MAX_PIXELS)}
        for wanted, run in groupby(
            zip(needed, self._packets, strict=True), key=lambda pair: pair[0]
        ):
            for _, packet in run:
                place += 1
                if wanted:
                    yield from self._decode(packet, place)
            if wanted:
                yield from self._decode(None, place)
                decoder.flush_buffers()

    def _decode(self, packet: "Packet[VideoStream] | None", place: int) -> list[VideoFrame]:
        """The frames that are ready after a packet, or the last ones after None."""
        try:
            if packet is not None and packet.is_corrupt:
                raise ValueError("less data than announced")
            return self._stream.codec_context.decode(packet)
        except Exception as error:  # FFmpeg's errors are of many kinds
            raise Invalid(
                Problem(("frame", place), "damaged", _said(error), "an intact clip")
            ) from None


@contextmanager
def open_clip(data: bytes) -> Iterator[Clip]:
    """The first video stream of an encoded clip, checked as far as can be told without decoding it.

    Raises Invalid when the bytes are no clip, one of another format, cut off, empty or too large.
    """
    kind = _kind(data)
    declared = _declared(kind, data)
    if declared > len(data):
        found, allowed = f"{len(data):,} bytes", f"{declared:,} bytes, as the file itself says"
        raise Invalid(Problem((), "the file is cut off", found, allowed))
    if kind == "gif":
        _refuse_large(*struct.unpack("<HH", data[6:10].ljust(4, b"\0")))
    with _opened(kind, data) as container:
        stream = _stream(container)
        _refuse_large(stream.codec_context.width, stream.codec_context.height)
        yield Clip(stream, _packets(container, stream))


def _kind(data: bytes) -> str:
    """FFmpeg's name of the container, by its first bytes: nothing else is ever tried. Raises Invalid."""
    check_size(data, MAX_BYTES)
    if data[4:8] in _FIRST_BOXES:
        return "mov"
    if data.startswith(b"\x1a\x45\xdf\xa3"):
        return "matroska"
    if data.startswith(b"RIFF") and data[8:12] == b"AVI ":
        return "avi"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "gif"
    raise _unreadable(start_of(data))


def _declared(kind: str, data: bytes) -> int:
    """How many bytes the outermost parts of a file say that it has; 0 where they say nothing."""
    if kind == "gif":  # it has no length, but a last byte
        return 0 if data.rstrip(b"\0\r\n").endswith(b";") else len(data) + 1
    if kind == "avi":
        return 8 + int.from_bytes(data[4:8], "little")
    if kind == "matroska":
        header = _element(data, 0)
        return _element(data, header) if header < len(data) else header
    return _boxes(data)


def _boxes(data: bytes) -> int:
    """Where the last of an MP4's boxes ends."""
    place = 0
    while place + 8 <= len(data):
        size = int.from_bytes(data[place : place + 4], "big")
        if size == 1:
            size = int.from_bytes(data[place + 8 : place + 16], "big")
        # 0: up to the end. What has another name was appended by somebody else.
        if size < 8 or data[place + 4 : place + 8] not in _BOXES:
            break
        place += size
    return place


def _element(data: bytes, place: int) -> int:
    """Where the EBML element that begins at `place` ends; 0 where it does not say."""
    place += _width(data, place)
    width = _width(data, place)
    number = int.from_bytes(data[place : place + width], "big") & ((1 << 7 * width) - 1)
    unknown = number == (1 << 7 * width) - 1
    return 0 if unknown or number > _UNSIZED else place + width + number


def _width(data: bytes, place: int) -> int:
    """Bytes of the EBML number at `place`, which leading zeros tell."""
    first = data[place] if place < len(data) else 0
    return 9 - first.bit_length()


@contextmanager
def _opened(kind: str, data: bytes) -> Iterator[InputContainer]:
    """A container that can reach neither files nor the network, nor run decoders that are not `CODECS`."""
    options = {
        "protocol_whitelist": "",
        "codec_whitelist": ",".join(CODECS),
        # More than what is accepted, so that the size is known of what is not.
        "max_pixels": str(4 * MAX_PIXELS),
        "max_streams": "32",
    }
    try:
        container = av.open(BytesIO(data), "r", format=kind, options=options, io_open=_refuse)
    except Exception as error:  # as above
        raise _unreadable(_said(error)) from None
    with container:
        yield container


def _refuse(url: str, flags: int, options: Mapping[str, str]) -> None:
    raise PermissionError("a clip stands for itself")


def _stream(container: InputContainer) -> VideoStream:
    """The first stream that is a film and no cover picture. Raises Invalid."""
    films = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not films:
        found = ", ".join(stream.type for stream in container.streams) or "no streams"
        raise Invalid(Problem((), "no pictures in this file", found, "a video stream"))
    codec = films[0].codec_context.name if films[0].codec_context else "unknown"
    if codec not in CODECS:
        raise Invalid(Problem((), "encoded in a way that is not read", codec, list(CODECS)))
    return films[0]


def _refuse_large(width: int, height: int) -> None:
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
        allowed = f"at most {MAX_PIXELS:,} pixels, no side beyond {MAX_SIDE:,}"
        raise Invalid(Problem((), "the frames are too large", f"{width} x {height}", allowed))


def _refuse_work(pixels: int) -> None:
    if pixels > MOST_DECODED:
        found, allowed = f"{pixels:,} pixels", f"at most {MOST_DECODED:,}"
        raise Invalid(Problem((), "too much to decode; cut the clip up", found, allowed))


def _packets(container: InputContainer, stream: VideoStream) -> "list[Packet[VideoStream]]":
    """All encoded frames of a stream. Raises Invalid when there are none, fewer than announced, or too many."""
    found = []
    try:
        for packet in container.demux(stream):
            if packet.size:
                found.append(packet)
            if len(found) > MAX_FRAMES:
                break
    except Exception as error:  # as above
        place = ("frame", len(found) + 1)
        raise Invalid(Problem(place, "damaged", _said(error), "an intact clip")) from None
    if len(found) > MAX_FRAMES:
        raise Invalid(Problem((), "too many frames", f"over {MAX_FRAMES:,}", MAX_FRAMES))
    if all(packet.is_discard for packet in found):
        raise Invalid(Problem((), "no frames in this file", len(found), "at least 1"))
    return found


def _time(packet: "Packet[VideoStream]") -> int:
    """When the frame of a packet is shown, in ticks of its stream; where nothing says, in its order."""
    return packet.pts if packet.pts is not None else packet.dts or 0


def _unreadable(found: str) -> Invalid:
    return Invalid(Problem((), "not a readable video", found, list(CONTAINERS)))


def _said(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)


class Painter:
    """Turns decoded frames into pixels, upright; what is see-through lies on white."""

    def __init__(self) -> None:
        self._reformatter = VideoReformatter()

    def paint(self, frame: VideoFrame, size: tuple[int, int] | None = None) -> Image.Image:
        """A frame in mode RGB, in its own size or stretched to `size` (width, height) in pixels."""
        _refuse_large(frame.width, frame.height)
        quarters = round(frame.rotation / 90) % 4
        width, height = size or (frame.width, frame.height)
        if size and quarters % 2:
            width, height = height, width
        alpha = any(part.is_alpha for part in frame.format.components)
        small = self._reformatter.reformat(
            frame, width, height, "rgba" if alpha else "rgb24", interpolation="BILINEAR", threads=1
        )
        image = Image.fromarray(np.rot90(small.to_ndarray(), quarters))
        if alpha:
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return image.convert("RGB")


def inspect(data: bytes) -> ClipFacts:
    """Facts of a clip, frames from all over which can be decoded. Raises Invalid like `open_clip`."""
    with open_clip(data) as clip:
        frames, seconds, codec = clip.frames, clip.seconds, clip.codec
        painter, colour, size = Painter(), False, (0, 0)
        for frame in clip.pictures(clip.spread(min(frames, LOOK_FRAMES))):
            turned = round(frame.rotation / 90) % 2
            size = (frame.height, frame.width) if turned else (frame.width, frame.height)
            colour = colour or _has_colour(painter.paint(frame, (LOOK_SIDE, LOOK_SIDE)))
    return ClipFacts(frames, seconds, frames / seconds if seconds else 0.0, *size, codec, colour)


def _has_colour(image: Image.Image) -> bool:
    red, green, blue = np.moveaxis(np.asarray(image, np.int16), -1, 0)
    apart = np.maximum(abs(red - green), abs(green - blue)).max()
    return bool(apart > _COLOUR_TOLERANCE)


def frames(data: bytes, count: int, side: int, channels: int) -> Pixels:
    """Pixels (count, channels, side, side) of frames spread evenly over a clip, each stretched to a square.

    A clip of fewer frames has some of them twice. Raises Invalid like `open_clip`.
    """
    pixels, painter = np.empty((count, side, side, channels), np.uint8), Painter()
    with open_clip(data) as clip:
        for place, frame in enumerate(clip.pictures(clip.spread(count))):
            image = painter.paint(frame, (side, side))
            pixels[place] = np.asarray(image.convert("L") if channels == 1 else image).reshape(
                side, side, channels
            )
    return pixels.transpose(0, 3, 1, 2)


def still(side: int) -> bytes:
    """The file of a single square frame in which nothing is to be seen."""
    packed = BytesIO()
    Image.new("RGB", (side, side)).save(packed, "GIF")
    return packed.getvalue()
