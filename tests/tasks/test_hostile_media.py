"""Files that are broken, odd or lie about themselves are answered or refused by every task that reads files."""

import re
import resource
import struct
import warnings
import zipfile
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image
from PIL.Image import Transpose

from tasks.base import Checked, Upload, files_of
from tasks.catalog import tasks
from tasks.parts.problems import Invalid, Problem
from tests.api.serving_world import untrained
from tests.tasks.test_images import encoded as picture
from tests.tasks.test_images import noise, png_header
from tests.tasks.test_sounds import HUM
from tests.tasks.test_sounds import encoded as sound
from tests.toys import film, toy

ROOM = 512 << 20
"""What answering may take beyond what is there; 60,000 x 60,000 pixels or ten hours of sound take more."""
READS = {
    name: kind.partition("/")[0]
    for name, task in sorted(tasks().items())
    for kind in set(files_of(task.input_type).values())
}
"""Tasks whose inputs are files, and what these are of."""
MEMBERS = {"image": ".png", "video": ".mp4", "audio": ".flac"}
"""How the files in the toys end."""
WIDE, HIGH = 24, 16
PHOTO = noise(WIDE, HIGH)
FILM = np.stack([np.asarray(PHOTO)] * 12)
HISS = np.random.default_rng(0).normal(0, 0.1, 9_000)


def held(orientation: int = 6) -> Image.Exif:
    """Metadata of a camera that was held so; 6: upright is a quarter to the right."""
    found = Image.Exif()
    found[ExifTags.Base.Orientation] = orientation
    return found


def moving(image: Image.Image, kind: str) -> bytes:
    """A file of an image and its negative, which follows it."""
    after = image.point(lambda level: 255 - level)
    return picture(image, kind, save_all=True, append_images=[after])


def deep(image: Image.Image) -> bytes:
    """A grey image of 16 bits."""
    return picture(Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257))


def lying(hours: int) -> bytes:
    """A second of sound whose header says that it lasts for hours."""
    data, size = bytearray(sound()), hours * 3600 * 8_000 * 2
    at = data.index(b"data")
    data[4:8], data[at + 4 : at + 8] = struct.pack("<I", size + 36), struct.pack("<I", size)
    return bytes(data)


def half(data: bytes) -> bytes:
    return data[: len(data) // 2]


TEXT = b"this is a text with another name\n" * 20
GOOD = {
    "image": {
        "grey": (picture(PHOTO.convert("L")), (WIDE, HIGH)),
        "CMYK": (picture(PHOTO.convert("CMYK"), "JPEG"), (WIDE, HIGH)),
        "16 bits": (deep(PHOTO), (WIDE, HIGH)),
        "one bit": (picture(PHOTO.convert("1")), (WIDE, HIGH)),
        "palette with a transparent colour": (
            picture(PHOTO.convert("P"), transparency=3),
            (WIDE, HIGH),
        ),
        "see-through": (picture(PHOTO.convert("RGBA")), (WIDE, HIGH)),
        "moving GIF": (moving(PHOTO, "GIF"), (WIDE, HIGH)),
        "moving WebP": (moving(PHOTO, "WEBP"), (WIDE, HIGH)),
        "moving PNG": (moving(PHOTO, "PNG"), (WIDE, HIGH)),
        "turned JPEG": (picture(PHOTO, "JPEG", exif=held()), (HIGH, WIDE)),
        "turned PNG": (picture(PHOTO, "PNG", exif=held(8)), (HIGH, WIDE)),
        "upside down": (picture(PHOTO, "JPEG", exif=held(3)), (WIDE, HIGH)),
        "broken metadata": (
            picture(PHOTO, "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff"),
            (WIDE, HIGH),
        ),
        "one pixel": (picture(noise(1, 1)), (1, 1)),
        "a column": (picture(noise(1, 10_000)), (1, 10_000)),
        "a row": (picture(noise(10_000, 1)), (10_000, 1)),
    },
    "audio": {
        "one sample": (sound(np.zeros(1)), None),
        "a header that lies about ten hours": (lying(10), None),
        "a WAV cut off": (half(sound()), None),
        "too loud": (sound(1e30 * HUM, subtype="FLOAT"), None),
        "eight channels": (sound(np.stack([HUM] * 8, 1)), None),
    },
    "video": {
        "one frame": (film(FILM[:1]), None),
        "a still GIF": (picture(PHOTO, "GIF"), None),
        "a moving GIF": (moving(PHOTO, "GIF"), None),
        "Matroska": (film(FILM, container="matroska"), None),
        "bytes behind the end": (film(FILM) + b"\0" * 99, None),
    },
}
"""What every task answers for, and the width and the height of it as it is shown."""
BAD = {
    "image": {
        "no bytes": b"",
        "a text": TEXT,
        "a sound": sound(),
        "a film": film(FILM),
        "a JPEG cut off": half(picture(noise(), "JPEG")),
        "a PNG cut off": half(picture(noise())),
        "a WebP cut off": half(picture(noise(), "WEBP")),
        "60,000 x 60,000": png_header(60_000, 60_000),
        "8,000 x 8,000 of nothing": png_header(8_000, 8_000),
        "no width": png_header(0, 8),
        "32 bits": picture(Image.new("I", (8, 8)), "TIFF"),
    },
    "audio": {
        "no bytes": b"",
        "a text": TEXT,
        "a picture": picture(PHOTO),
        "a film without sound": film(FILM),
        "no samples": sound(HUM[:0]),
        "a header alone": sound()[:20],
        "a FLAC cut off": half(sound(HISS, format="FLAC")),
        "no numbers": sound(np.full(99, np.nan), subtype="FLOAT"),
    },
    "video": {
        "no bytes": b"",
        "a text": TEXT,
        "a picture": picture(PHOTO),
        "a moving WebP": moving(PHOTO, "WEBP"),
        "a sound": sound(),
        "an MP4 cut off": half(film(FILM)),
        "a Matroska cut off": half(film(FILM, container="matroska")),
        "an AVI cut off": half(film(FILM, container="avi")),
    },
}
"""What every task refuses."""
ANSWERED = [(name, what) for name, kind in READS.items() for what in GOOD[kind]]
REFUSED = [(name, what) for name, kind in READS.items() for what in BAD[kind]]


@pytest.fixture(autouse=True)
def bounded() -> Iterator[None]:
    """Memory beyond `ROOM` is refused to a test."""
    before = resource.getrlimit(resource.RLIMIT_DATA)
    data = re.search(r"VmData:\s+(\d+)", Path("/proc/self/status").read_text())
    assert data is not None
    resource.setrlimit(resource.RLIMIT_DATA, ((int(data[1]) << 10) + ROOM, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_DATA, before)


def answer(name: str, data: bytes) -> Any:
    """What a model says that has learned nothing, as JSON has it."""
    trained, kind = untrained(name).trained, tasks()[name].input_type
    value: Any = data
    if "threshold" in kind.model_fields:  # objects of any score
        value = {next(iter(files_of(kind))): data, "threshold": 0}
    with warnings.catch_warnings(action="ignore"):  # Pillow warns of broken metadata
        (found,) = trained.predict(trained.codec.read_inputs([value]))
    assert type(found).model_validate_json(found.model_dump_json()) == found
    return found


def assert_says_enough(problem: Problem) -> None:
    """What was found and what is allowed; that memory did not suffice is no answer."""
    assert problem.msg
    assert problem.found
    assert problem.allowed
    assert "memory" not in str(problem.found).lower()


def test_files_of_every_kind_are_tried() -> None:
    assert set(READS.values()) == set(GOOD) == set(BAD) == set(MEMBERS)
    assert len(READS) >= 7


@pytest.mark.parametrize(("name", "what"), ANSWERED)
def test_an_odd_file_is_answered_in_its_upright_size(name: str, what: str) -> None:
    data, size = GOOD[READS[name]][what]
    found = answer(name, data)
    made = [value for _, value in found if isinstance(value, bytes) and value]
    for file in made:
        with Image.open(BytesIO(file)) as image:
            assert image.size == size
    for left, top, right, bottom in _boxes(found):
        assert 0 <= left <= right <= size[0] + 1e-3
        assert 0 <= top <= bottom <= size[1] + 1e-3


def _boxes(found: Any) -> list[Any]:
    """Of objects, where they were found."""
    return [each.box for each in getattr(found, "objects", ())]


@pytest.mark.parametrize(("name", "what"), REFUSED)
def test_a_broken_file_is_refused_with_what_was_found(name: str, what: str) -> None:
    with pytest.raises(Invalid) as caught:
        untrained(name).trained.codec.read_inputs([BAD[READS[name]][what]])
    (problem,) = caught.value.problems
    assert problem.loc[:2] == ("inputs", 0)
    assert_says_enough(problem)


@pytest.mark.parametrize("name", READS)
def test_of_several_inputs_every_broken_one_is_named(name: str) -> None:
    codec, (good, _) = untrained(name).trained.codec, next(iter(GOOD[READS[name]].values()))
    bad = list(BAD[READS[name]].values())
    with pytest.raises(Invalid) as caught:
        codec.read_inputs([bad[0], good, *bad[1:], good])
    places = [problem.loc[1] for problem in caught.value.problems]
    assert places == [0, *range(2, len(bad) + 1)]


@pytest.mark.parametrize("name", [name for name, kind in READS.items() if kind == "image"])
def test_an_image_is_the_same_turned_by_its_camera_or_by_hand(name: str) -> None:
    turned = picture(PHOTO, exif=held())
    by_hand = picture(PHOTO.transpose(Transpose.ROTATE_270))
    assert answer(name, turned) == answer(name, by_hand)


# Uploads


def members(name: str, folder: Path, examples: int = 24) -> dict[str, bytes]:
    """The files in a task's toy."""
    with zipfile.ZipFile(toy(name, folder, examples)["file"].path) as archive:
        return {member: archive.read(member) for member in archive.namelist()}


def check(name: str, folder: Path, files: dict[str, bytes]) -> Checked:
    task, path = tasks()[name], folder / "hostile.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for member, data in files.items():
            archive.writestr(member, data)
    return task.check({"file": Upload(path, path.name)}, task.options_type())


BREAKS: list[Callable[[bytes], bytes]] = [
    lambda data: b"",
    half,
    lambda data: TEXT,
    lambda data: b"\0" * 99,
    lambda data: sound() if data.startswith(b"\x89PNG") else png_header(60_000, 60_000),
]
"""What becomes of files that nobody can read."""


@pytest.mark.parametrize("name", READS)
def test_an_upload_is_refused_with_the_name_of_every_broken_file(name: str, tmp_path: Path) -> None:
    files = members(name, tmp_path)
    media = [member for member in files if member.endswith(MEMBERS[READS[name]])]
    folders = sorted({member.rpartition("/")[0] for member in media})
    for folder in folders:  # images, and apart from them what belongs to images
        mine = [member for member in media if member.rpartition("/")[0] == folder]
        if len(mine) < len(BREAKS):  # the pictures of two styles
            continue
        broken = dict(zip(mine[1::2], BREAKS, strict=False))
        assert len(broken) == len(BREAKS)
        with pytest.raises(Invalid) as caught:
            check(name, tmp_path, files | {m: b(files[m]) for m, b in broken.items()})
        problems = caught.value.problems
        assert sorted(problem.loc[1] for problem in problems) == sorted(broken)
        for problem in problems:
            assert_says_enough(problem)


ODD: list[Callable[[Image.Image], bytes]] = [
    lambda image: picture(image.convert("RGB").convert("CMYK"), "JPEG"),
    deep,
    lambda image: moving(image, "GIF"),
    lambda image: moving(image, "WEBP"),
    lambda image: picture(image.transpose(Transpose.ROTATE_90), "JPEG", exif=held()),
    lambda image: picture(image.convert("RGBA")),
    lambda image: picture(image, "TIFF"),
]
"""Files of other kinds that show what an image shows, in its size."""


@pytest.mark.parametrize("name", [name for name, kind in READS.items() if kind == "image"])
def test_odd_images_among_others_are_accepted_and_learned_from(name: str, tmp_path: Path) -> None:
    files = members(name, tmp_path)
    beside = ("masks/", "instance_masks/", "style/")
    pictures = [member for member in files if member.endswith(".png")]
    shown = [member for member in pictures if not member.startswith(beside)]
    for member, make in zip(shown, ODD, strict=False):
        files[member] = make(Image.open(BytesIO(files[member])))
    data = check(name, tmp_path, files)
    assert sum(frame.height for frame in data.splits.values()) == len(shown)
    assert {"CMYK", "I;16", "P", "RGBA"} <= set(data.report["modes"])
    assert data.report["animated"] == 2
    task = untrained(name).spec.task
    codec = task.learn_codec(data.splits["train"].lazy(), data.schema)
    columns, learner = codec.encode(data.splits["train"]), task.build(codec)
    learner.start(untrained(name).spec.training, None, 1)
    learner.enter_epoch(0)
    batch = columns.batch(torch.arange(min(8, columns.examples)))
    assert torch.isfinite(learner.train_step(batch, 0))
