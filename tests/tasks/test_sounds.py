"""Encoded sounds are read to their end or refused, whatever they claim."""

import base64
import io
import struct
from typing import Any

import av
import numpy as np
import pytest
import soundfile

from tasks.parts.problems import Invalid
from tasks.parts.sounds import EXAMPLE, at_rate, inspect, open_sound, read_sound, silence

HUM = (0.5 * np.sin(np.arange(8_000) / 5)).astype(np.float32)


def encoded(samples: Any = HUM, rate: int = 8_000, format: str = "WAV", **how: Any) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=format, **how)
    return file.getvalue()


def contained(format: str, codec: str) -> bytes:
    """A second of humming, as phones and browsers record it."""
    file = io.BytesIO()
    with av.open(file, "w", format=format) as container:
        stream = container.add_stream(codec, rate=48_000, layout="mono")
        wave = (0.5 * np.sin(np.arange(48_000) / 30)).astype(np.float32)
        frame = av.AudioFrame.from_ndarray(wave[None], format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 48_000, 0
        context = stream.codec_context
        resampler = av.AudioResampler(
            context.format, "mono", 48_000, frame_size=context.frame_size or None
        )
        for part in [*resampler.resample(frame), None]:
            for packet in stream.encode(part):
                container.mux(packet)
    return file.getvalue()


@pytest.mark.parametrize(
    ("format", "how"),
    [
        ("WAV", {}),
        ("WAV", {"subtype": "FLOAT"}),
        ("WAV", {"subtype": "PCM_24"}),
        ("WAV", {"subtype": "ULAW"}),
        ("FLAC", {}),
        ("OGG", {"subtype": "VORBIS"}),
        ("OGG", {"subtype": "OPUS"}),
        ("MP3", {}),
        ("AIFF", {}),
    ],
)
def test_a_format_is_read_as_what_was_written(format: str, how: dict[str, Any]) -> None:
    sound = open_sound(encoded(format=format, **how))
    assert sound.facts == (1.0, 8_000, 1, format)
    assert np.corrcoef(sound.samples, HUM)[0, 1] > 0.98


@pytest.mark.parametrize(
    ("format", "codec", "name"), [("mp4", "aac", "M4A"), ("webm", "libopus", "WebM")]
)
def test_recordings_of_phones_and_browsers_are_read(format: str, codec: str, name: str) -> None:
    facts = inspect(contained(format, codec))
    assert facts.seconds == pytest.approx(1, abs=0.05)
    assert facts[1:] == (48_000, 1, name)


def test_channels_are_heard_together() -> None:
    sound = open_sound(encoded(np.stack([HUM, 0 * HUM], 1)))
    assert sound.facts.channels == 2
    assert np.allclose(sound.samples, HUM / 2, atol=1e-3)


def test_another_rate_keeps_time_and_pitch() -> None:
    wave = np.sin(2 * np.pi * 440 * np.arange(44_100) / 44_100).astype(np.float32)
    samples = at_rate(open_sound(encoded(wave, 44_100)), 8_000)
    assert len(samples) == 8_000
    assert np.abs(np.fft.rfft(samples)).argmax() == 440


def test_samples_that_are_too_loud_are_cut() -> None:
    assert open_sound(encoded(3 * HUM, subtype="FLOAT")).samples.max() == 1


def huge_claim() -> bytes:
    """A second whose header says that it lasts for ten hours."""
    data = bytearray(encoded())
    data[4:8] = data[40:44] = struct.pack("<I", 2 * 8_000 * 36_000)
    return bytes(data)


def test_a_header_that_lies_about_the_length_is_not_believed() -> None:
    assert inspect(huge_claim()).seconds == 1


def test_what_is_left_of_a_recording_that_broke_off_is_read() -> None:
    assert inspect(encoded()[:8_044]).seconds == 0.5


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a readable sound"),
        (b"hello, I am a sound", "not a readable sound"),
        (b"RIFF\x00\x00\x00\x00WAVEfmt ", "not a readable sound"),
        (b"fLaC" + bytes(100), "not a readable sound"),
        (b"OggS" + bytes(100), "not a readable sound"),
        (b"ID3" + bytes(100), "not a readable sound"),
        (b"\x00\x00\x00\x20ftypM4A " + bytes(100), "not a readable sound"),
        (b"\x1aE\xdf\xa3" + bytes(100), "not a readable sound"),
        (encoded(format="FLAC")[:4_000], "not a readable sound"),
        (encoded(HUM[:0]), "the sound is empty"),
        (encoded(np.where(np.arange(8_000) == 9, np.nan, HUM), subtype="FLOAT"), "no numbers"),
        (encoded(np.where(np.arange(8_000) == 9, np.inf, HUM), subtype="DOUBLE"), "no numbers"),
        (encoded(np.zeros((9, 200))), "too many channels"),
        (encoded(rate=100), "no rate of a sound"),
        (encoded(rate=1_000_000), "no rate of a sound"),
    ],
)
def test_what_is_no_sound_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(Invalid, match=message) as caught:
        open_sound(data)
    assert "0x" not in str(caught.value)


def test_a_sound_that_is_too_long_is_refused_before_it_is_all_read() -> None:
    with pytest.raises(Invalid, match="the sound is too long"):
        open_sound(encoded(np.zeros(80_000), format="FLAC"), most_seconds=9.9)
    assert open_sound(encoded(np.zeros(80_000), format="FLAC"), most_seconds=10)


def test_a_file_that_is_too_large_is_refused_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.parts.sounds.MAX_BYTES", 100)
    with pytest.raises(Invalid, match="the file is too large"):
        open_sound(encoded())


def test_a_single_sample_is_a_sound_at_any_rate() -> None:
    sound = open_sound(encoded(HUM[:1], 48_000))
    assert len(at_rate(sound, 8_000)) == 1


def test_the_documented_example_and_silence_are_sounds() -> None:
    assert inspect(base64.b64decode(EXAMPLE)).rate == 8_000
    assert not open_sound(silence(16_000)).samples.any()


def test_a_request_may_send_bytes_or_base64_alone_or_in_an_object() -> None:
    text = base64.b64encode(encoded()).decode()
    for value in (encoded(), text, f"data:audio/wav;base64,{text}", {"audio": text}):
        assert read_sound(value) == encoded()


@pytest.mark.parametrize("value", [None, 3, ["a"], {"image": "x"}, {"audio": 3}, "!"])
def test_what_is_no_file_is_named(value: Any) -> None:
    with pytest.raises(Invalid) as caught:
        read_sound(value)
    inside = isinstance(value, dict) and "audio" in value
    assert caught.value.problems[0].loc == (("audio",) if inside else ())
