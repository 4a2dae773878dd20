"""Videos of every container become the same frames, and what is no video is refused."""

import base64
import io
import random
import struct
from contextlib import suppress
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from tasks.parts import clips
from tasks.parts.clips import (
    ClipFacts,
    ClipInput,
    Painter,
    Pixels,
    frames,
    inspect,
    open_clip,
    read_clip,
    still,
)
from tasks.parts.problems import Invalid
from tests.toys import film

IDENTITY = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
QUARTER_TURN = struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0, 1 << 30)


def shades(count: int = 10, height: int = 16, width: int = 24) -> Pixels:
    """Plain grey pictures (T, H, W, 3), each 20 steps lighter than the one before."""
    return np.stack([np.full((height, width, 3), 20 + 20 * t, np.uint8) for t in range(count)])


def seen(data: bytes, places: range | list[int]) -> list[int]:
    """The shade of the frames at some places, in the steps of `shades`."""
    painter = Painter()
    with open_clip(data) as clip:
        pictures = [np.asarray(painter.paint(frame)) for frame in clip.pictures(places)]
    return [round((float(picture.mean()) - 20) / 20) for picture in pictures]


def sound() -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as made:
        stream = made.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), "s16", "mono")
        frame.rate = 8000
        made.mux(stream.encode(frame))
        made.mux(stream.encode())
    return file.getvalue()


def animated(shown: Pixels, *milliseconds: int) -> bytes:
    file, pictures = io.BytesIO(), [Image.fromarray(picture[..., 0]) for picture in shown]
    pictures[0].save(
        file, "GIF", save_all=True, append_images=pictures[1:], duration=list(milliseconds)
    )
    return file.getvalue()


MP4 = film(shades())
FILMS = {
    "mp4": MP4,
    "mov": film(shades(), container="mov"),
    "mkv": film(shades(), container="matroska"),
    "avi": film(shades(), container="avi"),
    "gif": animated(shades(), *[100] * 10),
    "mjpeg": film(shades(), "mjpeg", "avi"),
}
of_every_container = pytest.mark.parametrize("kind", sorted(FILMS))


def refusal(data: bytes) -> str:
    with pytest.raises(Invalid) as caught:
        inspect(data)
    return str(caught.value)


@of_every_container
def test_every_frame_of_every_container_is_read_in_order(kind: str) -> None:
    assert seen(FILMS[kind], range(10)) == list(range(10))


@of_every_container
def test_any_frame_alone_is_the_same_as_among_all(kind: str) -> None:
    assert [seen(FILMS[kind], [place])[0] for place in range(10)] == list(range(10))


@of_every_container
def test_a_look_tells_size_length_and_how_a_clip_is_stored(kind: str) -> None:
    facts = inspect(FILMS[kind])
    codec = kind if kind in ("gif", "mjpeg") else "mpeg4"
    assert facts._replace(seconds=1.0, fps=10.0) == ClipFacts(
        10, 1.0, 10.0, 24, 16, codec, colour=False
    )
    assert (facts.seconds, facts.fps) == (pytest.approx(1.0), pytest.approx(10.0))


def test_colours_are_seen() -> None:
    red = shades() * np.array([1, 0, 0], np.uint8)
    assert inspect(film(red)).colour
    assert inspect(film(red)).codec == "mpeg4"


def test_frames_come_from_the_middles_of_equal_parts() -> None:
    levels = frames(MP4, 5, 8, 1).mean((1, 2, 3))
    assert [round((float(level) - 20) / 20) for level in levels] == [1, 3, 5, 7, 9]
    assert frames(MP4, 4, 16, 3).shape == (4, 3, 16, 16)


def test_a_clip_shorter_than_what_is_asked_for_has_frames_twice() -> None:
    levels = frames(film(shades(2)), 4, 8, 1).mean((1, 2, 3)).round().tolist()
    assert levels[0] == levels[1] != levels[2] == levels[3]


def test_a_single_frame_is_a_clip_that_stands_still() -> None:
    one = frames(film(shades(1)), 3, 8, 3)
    assert (one[0] == one[1]).all()
    assert (one[0] == one[2]).all()
    assert inspect(still(16)).frames == 1
    assert (frames(still(16), 2, 16, 1) == 0).all()


def test_times_decide_where_frames_come_at_changing_speed() -> None:
    with open_clip(animated(shades(4), 100, 100, 100, 900)) as clip:
        assert clip.spread(4) == [1, 3, 3, 3]
        assert clip.times == pytest.approx([0, 0.1, 0.2, 0.3])


def test_only_what_the_wanted_frames_need_is_decoded() -> None:
    data = film(shades(), g="3", bf="0", sc_threshold="1000000000")
    with open_clip(data) as clip:
        assert clip._needed([4]) == [place in (3, 4) for place in range(10)]
        assert clip._needed([0, 8]) == [place in (0, 6, 7, 8) for place in range(10)]
    assert seen(data, [0, 4, 8]) == [0, 4, 8]


def test_frames_that_are_stored_out_of_order_are_found() -> None:
    data = film(shades(), g="4", bf="2", sc_threshold="1000000000")
    assert [seen(data, [place])[0] for place in range(10)] == list(range(10))
    assert seen(data, [1, 2, 5, 9]) == [1, 2, 5, 9]


def test_a_clip_is_shown_as_its_camera_was_held() -> None:
    picture = np.zeros((1, 16, 24, 3), np.uint8)
    picture[:, :, :8] = 200
    at, turned = (data := film(picture)).index(IDENTITY, data.index(b"tkhd")), bytearray(data)
    turned[at : at + len(IDENTITY)] = QUARTER_TURN
    assert inspect(bytes(turned))[3:5] == (16, 24)
    upright = frames(bytes(turned), 1, 24, 1)[0, 0]
    assert upright[:6].mean() > 150 > 50 > upright[10:].mean()  # what was left is above


def test_what_is_see_through_lies_on_white() -> None:
    picture = Image.new("P", (8, 8), 0)
    picture.putpalette([0, 0, 0, 200, 0, 0])
    picture.putpixel((0, 0), 1)
    file = io.BytesIO()
    picture.save(file, "GIF", transparency=0)
    assert frames(file.getvalue(), 1, 8, 3)[0, :, 7, 7].tolist() == [255, 255, 255]


# What is refused


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "no bytes"),
        (b"Not a film at all.", "not a readable video"),
        (b"#EXTM3U\n#EXTINF:1\nfile:///etc/passwd\n", "not a readable video"),
        (b"ffconcat version 1.0\nfile /etc/passwd\n", "not a readable video"),
        (b"\0\0\0\x10ftypisom\0\0\0\0", "not a readable video"),
        (b"\x1a\x45\xdf\xa3", "cut off"),
        (b"RIFF\x04\0\0\0AVI ", "not a readable video"),
        (b"GIF89a", "cut off"),
        (b"GIF89a\xff\xff\xff\xff\0\0\0;", "frames are too large, found '65535 x 65535'"),
        (sound(), "no pictures in this file, found 'audio'"),
    ],
)
def test_what_is_no_clip_is_refused(data: bytes, said: str) -> None:
    assert said in refusal(data)


@of_every_container
@pytest.mark.parametrize("share", [0.4, 0.95])
def test_a_file_that_was_cut_off_is_refused(kind: str, share: float) -> None:
    data = FILMS[kind]
    assert "cut off" in refusal(data[: int(len(data) * share)])


def test_bytes_behind_the_end_do_no_harm() -> None:
    assert inspect(MP4 + b"\0" * 100).frames == 10
    assert inspect(MP4 + b"-- appended by a camera").frames == 10
    assert inspect(FILMS["gif"] + b"\0").frames == 10


def test_a_film_without_frames_is_refused() -> None:
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as made:
        stream = made.add_stream("mpeg4", rate=10)
        stream.height, stream.width, stream.pix_fmt = 16, 24, "yuv420p"
        made.start_encoding()
    assert "no pictures in this file" in refusal(file.getvalue())


@pytest.mark.parametrize(
    ("limit", "value", "said"),
    [
        ("MAX_BYTES", 100, "the file is too large"),
        ("MAX_PIXELS", 300, "the frames are too large, found '24 x 16'"),
        ("MAX_SIDE", 20, "the frames are too large"),
        ("MAX_FRAMES", 9, "too many frames"),
        ("MOST_DECODED", 16 * 24 * 9, "too much to decode"),
    ],
)
def test_every_limit_is_kept(
    limit: str, value: int, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clips, limit, value)
    assert said in refusal(MP4)
    monkeypatch.undo()
    assert inspect(MP4).frames == 10


def test_a_frame_larger_than_the_header_says_is_not_decoded() -> None:
    vast = film(np.zeros((1, 2800, 3600, 3), np.uint8))
    assert "3600 x 2800" in refusal(vast)
    at, small = vast.rindex(b"mp4v") + 28, bytearray(vast)
    small[at : at + 4] = struct.pack(">HH", 24, 16)
    with pytest.raises(Invalid):
        inspect(bytes(small))


def test_decoders_that_hardly_anybody_uses_are_not_run() -> None:
    assert "encoded in a way that is not read, found 'flv'" in refusal(film(shades(), "flv", "avi"))


def test_damaged_bytes_are_refused_or_read_but_never_worse() -> None:
    draw = random.Random(0)
    for data in FILMS.values():
        for _ in range(20):
            harmed = bytearray(data)
            for _ in range(draw.choice([1, 5, 50])):
                harmed[draw.randrange(len(harmed))] = draw.randrange(256)
            with suppress(Invalid):
                inspect(bytes(harmed))


def test_a_damaged_frame_is_named() -> None:
    data = film(shades(), "png", "mov")
    place = [at for at in range(len(data)) if data.startswith(b"\x89PNG", at)][3]
    harmed = data[:place] + b"\0" * 40 + data[place + 40 :]
    assert "frame.4: damaged" in refusal(harmed)


# Requests


@pytest.mark.parametrize(
    "value",
    [MP4, base64.b64encode(MP4).decode(), {"clip": base64.b64encode(MP4).decode()}],
)
def test_a_clip_comes_raw_or_in_base64(value: Any) -> None:
    assert read_clip(value) == MP4


@pytest.mark.parametrize(
    ("value", "said"),
    [(3, "not a video"), ({"image": ""}, "not a video"), ({"clip": "%%"}, "not base64")],
)
def test_what_holds_no_file_is_refused(value: Any, said: str) -> None:
    with pytest.raises(Invalid, match=said):
        read_clip(value)


def test_an_input_says_that_it_is_a_video() -> None:
    field = ClipInput.model_json_schema()["properties"]["clip"]
    assert field["contentMediaType"] == "video/*"
    assert ClipInput(clip=b"ab").model_dump_json() == '{"clip":"YWI="}'
