"""Uploaded zip archives: refused whole when unsafe, read member by member, never unpacked to disk."""

import re
import stat
import unicodedata
import zipfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import NamedTuple

from tasks.parts.problems import Invalid, Problem

CHUNK = 1 << 20
"""Bytes unpacked at a time."""

SPLIT_FOLDERS = {
    "train": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "test": "test",
}
_CLUTTER = {"__macosx", "thumbs.db", "desktop.ini"}
_ENCRYPTED = 0x1
_UTF8 = 0x800
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_ALLOWED_METHODS = "stored (0) or deflated (8)"
_LOCAL_HEADER = 30
_RATIO_FREE = 8 << 20  # small things may be as compressible as they like
_REORDERS_TEXT = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}


class Limits(NamedTuple):
    """What an archive may hold; sizes in bytes."""

    members: int = 200_000
    total: int = 4 << 30
    member: int = 1 << 30
    ratio: int = 200
    name: int = 1024


class Archive:
    """A zip archive all of whose members passed the checks; `names` are of its files, in their order."""

    def __init__(self, file: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo]) -> None:
        self._file = file
        self._members = members

    @property
    def names(self) -> list[str]:
        return list(self._members)

    def chunks(self, name: str) -> Iterator[bytes]:
        """A member's bytes, piece by piece. Raises Invalid when they are not what was declared."""
        declared = missing = self._members[name].file_size
        try:
            with self._file.open(self._members[name]) as member:
                while chunk := member.read(CHUNK):
                    missing -= len(chunk)
                    yield chunk
        except Exception as error:  # damaged archives make zipfile and zlib raise nearly anything
            raise _damaged(name, str(error)) from None
        if missing:
            raise _damaged(name, f"{declared - missing} bytes of {declared}")

    def extract(self, name: str, path: Path) -> None:
        """Write a member's bytes to a file. Raises Invalid when they are not what was declared."""
        with path.open("wb") as file:
            for chunk in self.chunks(name):
                file.write(chunk)

    def read(self, name: str) -> bytes:
        """A member's bytes. Raises Invalid when they are not what was declared."""
        return b"".join(self.chunks(name))


def _damaged(name: str, found: str) -> Invalid:
    return Invalid(Problem((name,), "damaged in the archive", found, "an intact zip"))


@contextmanager
def open_archive(path: Path, limits: Limits = Limits()) -> Iterator[Archive]:  # noqa: B008
    """A zip archive for reading. Raises Invalid, naming the members that make it unsafe."""
    with _Bounded(path, limits) as raw:
        try:
            file = zipfile.ZipFile(raw)
        except Invalid:
            raise
        except Exception as error:  # as above
            raise Invalid(Problem((), "not a readable zip archive", str(error), "a zip")) from None
        with file:
            yield Archive(file, _checked(file, limits))


class _Bounded(FileIO):
    """Refuses single reads as large as only the directory of far too many members needs."""

    def __init__(self, path: Path, limits: Limits) -> None:
        super().__init__(path)
        self._most = max(CHUNK, 256 * limits.members)

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > self._most:
            raise Invalid(Problem((), "the archive's directory is too large", size, self._most))
        return super().read(size) or b""


def _checked(file: zipfile.ZipFile, limits: Limits) -> dict[str, zipfile.ZipInfo]:
    """The files of an archive by name, once all are known to be safe."""
    members = file.infolist()
    if len(members) > limits.members:
        raise Invalid(Problem((), "too many files", len(members), f"at most {limits.members:,}"))
    named = [(_name(member), member) for member in members]
    problems = [
        problem for name, member in named for problem in _member_problems(name, member, limits)
    ]
    problems = problems or [
        *_duplicates([name for name, _ in named]),
        *_size_problems(members, limits),
        *_overlaps(named, file.start_dir),
    ]
    if problems:
        raise Invalid(*problems)
    return {name: member for name, member in named if not name.endswith("/")}


def _name(member: zipfile.ZipInfo) -> str:
    """The member's name; several archivers write UTF-8 and forget to say so."""
    name = member.orig_filename
    if member.flag_bits & _UTF8:
        return name
    try:
        return name.encode("cp437").decode()
    except UnicodeError:
        return name


def _member_problems(name: str, member: zipfile.ZipInfo, limits: Limits) -> Iterator[Problem]:
    """What is wrong with one member, whatever the others are."""
    loc = (_printable(name),)
    if fault := _name_fault(name, limits):
        yield Problem(loc, "unsafe name", fault, "relative paths with / and plain characters")
    if (kind := _kind(member)) is not None:
        yield Problem(loc, "neither a file nor a folder", kind, "files and folders")
    if member.flag_bits & _ENCRYPTED:
        yield Problem(loc, "encrypted", "a password", "no password")
    if member.compress_type not in _METHODS:
        yield Problem(
            loc, "unknown compression", f"method {member.compress_type}", _ALLOWED_METHODS
        )
    if member.file_size > limits.member:
        yield Problem(loc, "too large", member.file_size, f"at most {limits.member:,} bytes")
    if _is_bomb(member.compress_size, member.file_size, limits):
        yield Problem(loc, *_bomb(member.compress_size, member.file_size, limits))


def _name_fault(name: str, limits: Limits) -> str | None:
    """Why a name could do harm to whoever unpacks or reads it."""
    parts = name.removesuffix("/").split("/")
    faults = {
        "a very long name": len(name.encode(errors="surrogatepass")) > limits.name,
        "an absolute path": name.startswith("/"),
        "a drive letter": re.match(r"[A-Za-z]:", name) is not None,
        "a backslash": "\\" in name,
        "a step out of the folder": ".." in parts,
        "an empty part": "" in parts or "." in parts,
        "control characters": any(map(_is_control, name)),
    }
    return next((fault for fault, found in faults.items() if found), None)


def _is_control(character: str) -> bool:
    return (
        unicodedata.category(character) in ("Cc", "Cs")
        or unicodedata.bidirectional(character) in _REORDERS_TEXT
    )


def _printable(name: str) -> str:
    name = name if len(name) <= 120 else name[:117] + "..."
    return "".join(ascii(c)[1:-1] if _is_control(c) else c for c in name)


def _kind(member: zipfile.ZipInfo) -> str | None:
    """What a member is besides a file or a folder."""
    kind = stat.S_IFMT(member.external_attr >> 16)
    if kind in (0, stat.S_IFREG, stat.S_IFDIR):
        return None
    return {stat.S_IFLNK: "a link", stat.S_IFIFO: "a pipe"}.get(kind, "a device")


def _is_bomb(packed: int, size: int, limits: Limits) -> bool:
    return size > _RATIO_FREE and size > limits.ratio * packed


def _bomb(packed: int, size: int, limits: Limits) -> tuple[str, str, str]:
    return (
        "would swell beyond belief when unpacked",
        f"{packed:,} bytes that become {size:,}",
        f"at most {limits.ratio} times",
    )


def _duplicates(names: Sequence[str]) -> Iterator[Problem]:
    """Names that are the same on some file system."""
    seen: dict[str, str] = {}
    for name in names:
        first = seen.setdefault(unicodedata.normalize("NFC", name).casefold().rstrip("/"), name)
        if first is not name:
            yield Problem((name,), "two files of one name", first, "names that differ beyond case")


def _size_problems(members: Sequence[zipfile.ZipInfo], limits: Limits) -> Iterator[Problem]:
    total = sum(member.file_size for member in members)
    packed = sum(member.compress_size for member in members)
    if total > limits.total:
        yield Problem((), "too large when unpacked", total, f"at most {limits.total:,} bytes")
    if _is_bomb(packed, total, limits):
        yield Problem((), *_bomb(packed, total, limits))


def _overlaps(named: Sequence[tuple[str, zipfile.ZipInfo]], end: int) -> Iterator[Problem]:
    """Members that share bytes, with each other or with the directory that starts at `end`."""
    ordered = sorted(named, key=lambda pair: pair[1].header_offset)
    starts = [member.header_offset for _, member in ordered] + [end]
    for (name, member), following in zip(ordered, starts[1:], strict=True):
        least = len(member.orig_filename) + member.compress_size + _LOCAL_HEADER
        if member.header_offset < 0 or member.header_offset + least > following:
            yield Problem((name,), "overlaps another file", member.header_offset, "files apart")


class Placed(NamedTuple):
    """A member by the folders it lies in."""

    name: str
    label: str
    split: str | None


def class_folders(archive: Archive) -> list[Placed]:
    """The members of an archive with a folder per class, perhaps within folders per split.

    Folders around everything are looked through; what operating systems leave behind is passed over.
    Raises Invalid for files that lie elsewhere, and for an archive without any.
    """
    names = [name for name in archive.names if not is_clutter(name)]
    if not names:
        raise Invalid(Problem((), "the archive is empty", "no files", "label/name"))
    paths = _unwrapped([name.split("/") for name in names])
    by_split = _deep(paths) and all(path[0].lower() in SPLIT_FOLDERS for path in paths)
    depth = 3 if by_split else 2
    allowed = "split/label/name" if by_split else "label/name"
    misplaced = [
        Problem((name,), "not in the folder of a class", "/".join(path), allowed)
        for name, path in zip(names, paths, strict=True)
        if len(path) != depth
    ]
    if misplaced:
        raise Invalid(*misplaced)
    return [
        Placed(name, path[-2], SPLIT_FOLDERS[path[0].lower()] if by_split else None)
        for name, path in zip(names, paths, strict=True)
    ]


def image_folders(archive: Archive) -> list[Placed]:
    """As `class_folders`, or files of one kind, with the label "": in one folder, or in a folder per split.

    Raises Invalid for files of both kinds, and for an archive without any.
    """
    names = [name for name in archive.names if not is_clutter(name)]
    paths = _unwrapped([name.split("/") for name in names])
    if not paths or _deep(paths):
        return class_folders(archive)
    folders = {path[0].lower() if len(path) > 1 else "" for path in paths}
    if len(folders) > 1 and folders <= set(SPLIT_FOLDERS):
        found = zip(names, paths, strict=True)
        return [Placed(name, "", SPLIT_FOLDERS[path[0].lower()]) for name, path in found]
    if len(folders) == 1:
        return [Placed(name, "", None) for name in names]
    return class_folders(archive)


def is_clutter(name: str) -> bool:
    """Whether an operating system left it behind: nothing that its user meant to send."""
    return any(part.startswith(".") or part.lower() in _CLUTTER for part in name.split("/"))


def _unwrapped(paths: list[list[str]]) -> list[list[str]]:
    """The paths without folders that all of them share, as long as folders are left."""
    while len({path[0] for path in paths}) == 1 and min(map(len, paths)) > 1 and _deep(paths):
        paths = [path[1:] for path in paths]
    return paths


def _deep(paths: list[list[str]]) -> bool:
    return max(map(len, paths)) > 2


def refuse_foreign(
    format: str | None, column_mapping: Mapping[str, str], formats: Collection[str]
) -> None:
    """Raises Invalid for options that mean nothing for an archive of files, whose formats are these."""
    if format is not None and format not in formats:
        raise Invalid(Problem(("options", "format"), "no such format", format, list(formats)))
    if column_mapping:
        found = sorted(column_mapping)
        raise Invalid(
            Problem(("options", "column_mapping"), "an archive has no columns", found, {})
        )
