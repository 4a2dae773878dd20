"""Encoded sounds: opened safely, looked at, and decoded into samples."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import Annotated, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from models.parts.options import Plain
from tasks.parts.media import EncodedFile, check_size, start_of
from tasks.parts.problems import Invalid, Problem

FORMATS = ("WAV", "FLAC", "OGG (Vorbis, Opus)", "MP3", "AIFF", "M4A", "WebM")
SUFFIXES = (
    *(".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".aifc"),
    *(".m4a", ".mp4", ".webm", ".mka"),
)
"""What files of sounds are called."""
MAX_BYTES = 32 << 20
MAX_SECONDS = 600
MIN_RATE, MAX_RATE = 4_000, 384_000
MAX_CHANNELS = 8

EXAMPLE = "UklGRiwAAABXQVZFZm10IBAAAAABAAEAQB8AAIA+AAACABAAZGF0YQgAAAAAAP8/AADBPw=="
"""The smallest of sounds, for documentation."""
_AT_ONCE = 65_536
_OBJECT = re.compile(r"<_io\.BytesIO[^>]*>")
_CONTAINERS = {"M4A": "mov", "WebM": "matroska"}
"""What libsndfile does not read, and FFmpeg's names for it."""
_CODECS = {"aac", "alac", "flac", "mp3", "opus", "vorbis"}

Samples = NDArray[np.float32]

SOUND = EncodedFile("audio", "a sound", "audio/*", MAX_BYTES, EXAMPLE)
EncodedSound = Annotated[bytes, SOUND]
read_sound = SOUND.read


class SoundInput(Plain):
    """One sound: WAV, FLAC, OGG, MP3, AIFF, M4A or WebM."""

    audio: EncodedSound = Field(
        description="The encoded file as base64, with or without a `data:` prefix. The string may "
        "also stand alone, in place of the object."
    )


class SoundFacts(NamedTuple):
    """What a look at a sound tells: how long it is, and how it is stored."""

    seconds: float
    rate: int
    """Samples per second."""
    channels: int
    format: str


class Sound(NamedTuple):
    """Samples (n,) of all channels together, from -1 to 1, at the rate that the facts say."""

    samples: Samples
    facts: SoundFacts


def open_sound(data: bytes, most_seconds: float = MAX_SECONDS) -> Sound:
    """A decoded sound. Raises Invalid when the bytes are none, one of another format, damaged, or too long."""
    check_size(data, MAX_BYTES)
    kind = _kind(data)
    if kind is None:
        raise _unreadable(start_of(data))
    try:
        with _opened(data, kind) as (rate, channels, blocks):
            _check_shape(rate, channels)
            samples = _joined(blocks, rate, most_seconds)
    except Invalid:
        raise
    except Exception as error:  # libraries raise nearly anything on damaged files
        raise _unreadable(_OBJECT.sub("the file", str(error))) from None
    return Sound(samples, SoundFacts(len(samples) / rate, rate, channels, kind))


def inspect(data: bytes) -> SoundFacts:
    """Facts of a sound that can be decoded to its end. Raises Invalid like `open_sound`."""
    return open_sound(data).facts


def at_rate(sound: Sound, rate: int) -> Samples:
    """The samples of a sound at another rate."""
    import soxr  # here, as below: most processes that know the tasks hear nothing

    if sound.facts.rate == rate:
        return sound.samples
    found: Samples = soxr.resample(sound.samples, sound.facts.rate, rate)
    return found if len(found) else np.zeros(1, np.float32)


def _kind(data: bytes) -> str | None:
    """The format that a file's first bytes tell; what is asked of a library is no more than to read that."""
    head, form = data[:4], data[8:12]
    if head in (b"RIFF", b"RF64") and form == b"WAVE":
        return "WAV"
    if head == b"FORM" and form in (b"AIFF", b"AIFC"):
        return "AIFF"
    if data[4:8] == b"ftyp":
        return "M4A"
    if head[:3] == b"ID3" or (head[:1] == b"\xff" and len(head) > 1 and head[1] & 0xE6 == 0xE2):
        return "MP3"
    return {b"fLaC": "FLAC", b"OggS": "OGG", b"\x1aE\xdf\xa3": "WebM"}.get(head)


@contextmanager
def _opened(data: bytes, kind: str) -> Iterator[tuple[int, int, Iterator[Samples]]]:
    """The rate and the channels of a file, and its samples block by block, the mean of all channels."""
    if kind in _CONTAINERS:
        with _contained(data, _CONTAINERS[kind]) as found:
            yield found
        return
    import soundfile

    with soundfile.SoundFile(BytesIO(data)) as file:
        yield file.samplerate, file.channels, _blocks(file)


def _blocks(file: Any) -> Iterator[Samples]:
    # What a header says of the length is not asked: blocks come until there are no more.
    while len(block := file.read(_AT_ONCE, dtype="float32", always_2d=True)):
        yield block.mean(axis=1)


@contextmanager
def _contained(data: bytes, format: str) -> Iterator[tuple[int, int, Iterator[Samples]]]:
    import av

    with av.open(BytesIO(data), mode="r", format=format) as container:
        if not container.streams.audio:
            raise _unreadable("a file without sound")
        stream = container.streams.audio[0]
        if stream.codec_context.name.removesuffix("_latm").removeprefix("lib") not in _CODECS:
            raise _unreadable(stream.codec_context.name)
        rate, channels = stream.codec_context.sample_rate, stream.codec_context.channels
        _check_shape(rate, channels)
        resampler = av.AudioResampler(format="flt", layout="mono", rate=rate)
        yield (
            rate,
            channels,
            (
                part.to_ndarray()[0]
                for frame in container.decode(stream)
                for part in resampler.resample(frame)
            ),
        )


def _check_shape(rate: int, channels: int) -> None:
    if not MIN_RATE <= rate <= MAX_RATE:
        allowed = f"{MIN_RATE:,} to {MAX_RATE:,} samples per second"
        raise Invalid(Problem((), "no rate of a sound", rate, allowed))
    if not 1 <= channels <= MAX_CHANNELS:
        raise Invalid(Problem((), "too many channels", channels, f"1 to {MAX_CHANNELS}"))


def _joined(blocks: Iterator[Samples], rate: int, most_seconds: float) -> Samples:
    """All samples. Raises Invalid where they are none, no numbers, or too many."""
    parts, count = [], 0
    for block in blocks:
        parts.append(block)
        count += len(block)
        if count > most_seconds * rate:
            found, allowed = f"more than {most_seconds:g} s", f"at most {most_seconds:g} s"
            raise Invalid(Problem((), "the sound is too long", found, allowed))
    if not count:
        raise Invalid(Problem((), "the sound is empty", "0 samples", "one sample or more"))
    samples = np.concatenate(parts)
    if not np.isfinite(samples).all():
        raise Invalid(Problem((), "samples that are no numbers", "NaN or infinity", "-1 to 1"))
    return samples.clip(-1, 1, out=samples)


def _unreadable(found: str) -> Invalid:
    return Invalid(Problem((), "not a readable sound", found, list(FORMATS)))


def silence(rate: int, seconds: float = 0.1) -> bytes:
    """The file of a sound in which nothing is to be heard."""
    import soundfile

    packed = BytesIO()
    soundfile.write(packed, np.zeros(int(rate * seconds), np.int16), rate, format="WAV")
    return packed.getvalue()
