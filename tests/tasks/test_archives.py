"""Hostile archives are refused by name, their harmless twins are read, and folders tell labels."""

import io
import random
import stat
import struct
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from tasks.parts.archives import Archive, Limits, Placed, class_folders, open_archive
from tasks.parts.problems import Invalid, Problem

DEFAULT = Limits()


def packed(members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(_info(name, method), data)
    return file.getvalue()


def _info(name: str, method: int = zipfile.ZIP_DEFLATED, mode: int = 0) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo("placeholder")
    info.filename = info.orig_filename = name
    info.compress_type, info.external_attr = method, mode << 16
    return info


def with_mode(mode: int) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(_info("a/thing", mode=mode), b"/etc/passwd")
    return file.getvalue()


def directory(data: bytes) -> tuple[int, int]:
    """Where the central directory of an archive begins and ends."""
    return data.index(b"PK\1\2"), data.index(b"PK\5\6")


def patched(data: bytes, place: int, value: bytes) -> bytes:
    """An archive whose first entry of the directory says something else at `place`."""
    at = directory(data)[0] + place
    return data[:at] + value + data[at + len(value) :]


def two_names_for_one_body() -> bytes:
    data = packed({"a.txt": b"A" * 100_000})
    start, end = directory(data)
    entries = data[start:end] + data[start:end].replace(b"a.txt", b"b.txt")
    tail = struct.pack("<HHHHIIH", 0, 0, 2, 2, len(entries), start, 0)
    return data[:start] + entries + b"PK\5\6" + tail


def read_all(data: bytes, folder: Path, limits: Limits = DEFAULT) -> dict[str, bytes]:
    path = folder / "x.zip"
    path.write_bytes(data)
    with open_archive(path, limits) as archive:
        return {member: archive.read(member) for member in archive.names}


def problems_of(data: bytes, folder: Path, limits: Limits = DEFAULT) -> tuple[Problem, ...]:
    with pytest.raises(Invalid) as caught:
        read_all(data, folder, limits)
    return caught.value.problems


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("../x", "a step out of the folder"),
        ("a/../../x", "a step out of the folder"),
        ("../", "a step out of the folder"),
        ("/etc/x", "an absolute path"),
        ("C:/x", "a drive letter"),
        ("a\\..\\x", "a backslash"),
        ("a//b", "an empty part"),
        ("./x", "an empty part"),
        ("a\x00b", "control characters"),
        ("a\nb", "control characters"),
        ("a\u202egnp.exe", "control characters"),
        ("x" * 2000, "a very long name"),
    ],
)
def test_a_name_that_could_do_harm_is_refused(name: str, found: str, tmp_path: Path) -> None:
    (problem,) = problems_of(packed({name: b"1"}), tmp_path)
    assert (problem.msg, problem.found) == ("unsafe name", found)
    assert problem.allowed
    assert str(problem.loc[0]).isprintable()


@pytest.mark.parametrize(
    ("attack", "message"),
    [
        (lambda: with_mode(stat.S_IFLNK | 0o777), "neither a file nor a folder"),
        (lambda: with_mode(stat.S_IFCHR | 0o666), "neither a file nor a folder"),
        (lambda: with_mode(stat.S_IFIFO | 0o666), "neither a file nor a folder"),
        (lambda: packed({"a.csv": b"0" * (40 << 20)}), "would swell beyond belief when unpacked"),
        (lambda: packed({"A.csv": b"1", "a.CSV": b"2"}), "two files of one name"),
        (lambda: packed({"é": b"1", "e\u0301": b"2"}), "two files of one name"),
        (lambda: packed({"a": b"x" * 100}, zipfile.ZIP_LZMA), "unknown compression"),
        (lambda: packed({"a": b"x" * 100}, zipfile.ZIP_BZIP2), "unknown compression"),
        (two_names_for_one_body, "overlaps another file"),
        (lambda: patched(packed({"a": b"x" * 1000}), 8, b"\x01\x00"), "encrypted"),
        (
            lambda: patched(packed({"a": b"x" * 99}), 24, struct.pack("<I", 10)),
            "damaged in the archive",
        ),
        (
            lambda: patched(packed({"a": b"x" * 99}), 24, struct.pack("<I", 999)),
            "damaged in the archive",
        ),
        (lambda: patched(packed({"a": b"x" * 99}), 16, b"\0\0\0\0"), "damaged in the archive"),
        (lambda: patched(packed({"a": b"x" * 99}), 46, b"b"), "damaged in the archive"),
        (lambda: packed({"a": b"x"})[:-30], "not a readable zip archive"),
        (lambda: b"", "not a readable zip archive"),
        (lambda: b"label,text\n1,2\n", "not a readable zip archive"),
    ],
)
def test_a_hostile_archive_is_refused(
    attack: Callable[[], bytes], message: str, tmp_path: Path
) -> None:
    problem = problems_of(attack(), tmp_path)[0]
    assert problem.msg == message
    assert problem.found is not None
    assert problem.allowed is not None


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (Limits(members=9), "too many files"),
        (Limits(total=99), "too large when unpacked"),
        (Limits(member=9), "too large"),
    ],
)
def test_an_archive_beyond_the_limits_is_refused(
    limits: Limits, message: str, tmp_path: Path
) -> None:
    data = packed({f"{number}.txt": b"x" * 10 for number in range(10)})
    assert problems_of(data, tmp_path, limits)[0].msg == message


def test_a_directory_for_far_too_many_members_is_never_loaded(tmp_path: Path) -> None:
    empty = packed({"a": b""}, zipfile.ZIP_STORED)
    start, end = directory(empty)
    entries = empty[start:end] * (2 + (1 << 20) // (end - start))
    tail = struct.pack("<HHHHIIH", 0, 0, 1, 1, len(entries), start, 0)
    data = empty[:start] + entries + b"PK\5\6" + tail
    (problem,) = problems_of(data, tmp_path, Limits(members=10))
    assert problem.msg == "the archive's directory is too large"


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_harmless_twins_are_read(method: int, tmp_path: Path) -> None:
    members = {
        "d/a.csv": b"x,y\n1,2\n",
        "d/b.csv": b"0" * (1 << 20),
        "kuvat/äiti 1.png": b"1",
        "می‌خواهم/..x": b"2",
        "empty": b"",
        "x" * 200: b"3",
    }
    assert read_all(packed(members, method), tmp_path) == members


def test_folders_are_passed_over(tmp_path: Path) -> None:
    assert list(read_all(packed({"a/": b"", "a/b": b"1"}), tmp_path)) == ["a/b"]


def test_names_in_utf8_are_read_though_the_archive_does_not_say_so(tmp_path: Path) -> None:
    data = packed({"ä/1": b"x"})
    local, central = 6, directory(data)[0] + 8
    for at in (local, central):
        data = data[:at] + b"\0\0" + data[at + 2 :]
    assert read_all(data, tmp_path) == {"ä/1": b"x"}


def test_a_damaged_archive_is_refused_and_never_crashes(seed: int, tmp_path: Path) -> None:
    draw = random.Random(seed)
    sound = packed({f"a/{number}": bytes(range(256)) for number in range(4)})
    for _ in range(300):
        data = bytearray(sound)
        for _ in range(draw.randint(1, 6)):
            data[draw.randrange(len(data))] = draw.randrange(256)
        with suppress(Invalid):
            read_all(bytes(data), tmp_path)


def placed(names: list[str], folder: Path) -> list[Placed]:
    path = folder / "x.zip"
    path.write_bytes(packed(dict.fromkeys(names, b"1")))
    with open_archive(path) as archive:
        assert isinstance(archive, Archive)
        return class_folders(archive)


@pytest.mark.parametrize(
    ("names", "labels", "splits"),
    [
        (["cat/1", "dog/2"], ["cat", "dog"], [None, None]),
        (["pets/cat/1", "pets/dog/2"], ["cat", "dog"], [None, None]),
        (["a/b/cat/1", "a/b/dog/2"], ["cat", "dog"], [None, None]),
        (["train/cat/1", "val/cat/2"], ["cat", "cat"], ["train", "validation"]),
        (["x/Train/cat/1", "x/Test/cat/2"], ["cat", "cat"], ["train", "test"]),
        (["train/1", "bus/2"], ["train", "bus"], [None, None]),
        (["train/1", "test/2"], ["train", "test"], [None, None]),
        (["train/cat/1", "train/dog/1"], ["cat", "dog"], [None, None]),
        (["cat/1"], ["cat"], [None]),
        (["cat/1", "cat/.DS_Store", "__MACOSX/cat/._1", "dog/Thumbs.db"], ["cat"], [None]),
    ],
)
def test_folders_tell_labels_and_splits(
    names: list[str], labels: list[str], splits: list[str | None], tmp_path: Path
) -> None:
    found = placed(names, tmp_path)
    assert [place.label for place in found] == labels
    assert [place.split for place in found] == splits


@pytest.mark.parametrize(
    ("names", "stray"),
    [
        (["cat/1", "readme.txt"], "readme.txt"),
        (["pets/cat/1", "pets/readme.txt"], "pets/readme.txt"),
        (["cat/1", "dog/big/2"], "dog/big/2"),
        (["train/cat/1", "test/2"], "test/2"),
        (["train/cat/1", "test/cat/big/2"], "test/cat/big/2"),
    ],
)
def test_a_file_outside_the_class_folders_is_named(
    names: list[str], stray: str, tmp_path: Path
) -> None:
    with pytest.raises(Invalid) as caught:
        placed(names, tmp_path)
    assert [problem.loc for problem in caught.value.problems] == [(stray,)]


@pytest.mark.parametrize("names", [[], ["cat/"], [".DS_Store"]])
def test_an_archive_without_files_is_refused(names: list[str], tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="empty"):
        placed(names, tmp_path)
