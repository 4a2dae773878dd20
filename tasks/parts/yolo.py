"""Annotations of objects as YOLO reads them (Redmon et al., 2016): a text file of boxes for each image."""

import re
from collections.abc import Sequence

from tasks.parts.archives import Archive, is_clutter
from tasks.parts.marked import (
    MAX_OBJECTS,
    Box,
    Loc,
    Marked,
    Picture,
    check_label,
    images_of,
    number,
    split_of_folders,
)
from tasks.parts.problems import Invalid, Problem, short

YOLO = "yolo"
YOLO_SENTENCE = (
    "A zip of `images/1.jpg` and `labels/1.txt` with a line `class x y width height` for each object, the centre and "
    "sizes in shares of the image's, and the names of classes in `data.yaml` or `classes.txt`; folders of "
    "splits anywhere on the way, if there are any. An image without a text file has no objects."
)
MAX_LINES = 1 << 20
_NAMES = ("classes.txt", "obj.names")
_YAML = (".yaml", ".yml")
_ITEM = re.compile(r"-\s+(.*)")
_PAIR = re.compile(r"(\d{1,6})\s*:\s*(.*)")


def read_yolo(archive: Archive) -> list[Picture]:
    """Every image, and what its text file marks in it: boxes or, as their bounds, polygons.

    Raises Invalid, naming files and lines.
    """
    labels, texts = _labels(archive), _texts(archive)
    pictures, problems, used = list[Picture](), list[Problem](), set[str]()
    for image in images_of(archive):
        text = next((path for path in _beside(image) if path in texts), None)
        used |= {text} if text else set()
        try:
            objects = _objects(archive, text, labels) if text else []
            where: Loc = (text or image,)
            pictures.append(Picture(image, split_of_folders(image), objects, where, in_shares=True))
        except Invalid as error:
            problems += error.problems
        if len(problems) >= Invalid.LIMIT:
            break
    if not problems:
        problems += [
            Problem((text,), "no image has this name", None, "an image in the folder beside")
            for text in sorted(texts - used)
        ]
    if problems:
        raise Invalid(*problems)
    return pictures


def _texts(archive: Archive) -> set[str]:
    """Text files of boxes: those in a folder of labels, or any that are not there for people."""
    texts = {n for n in archive.names if n.lower().endswith(".txt") and not is_clutter(n)}
    in_folders = {n for n in texts if "labels" in n.lower().split("/")[:-1]}
    if in_folders:
        return in_folders
    beside = {path for image in images_of(archive) for path in _beside(image)}
    return texts & beside


def _beside(image: str) -> list[str]:
    """Where the text file of an image may be: its folder `images` is called `labels`, or it is the same."""
    stem = image.rpartition(".")[0]
    parts = stem.split("/")
    found = [
        "/".join([*parts[:place], swapped, *parts[place + 1 :]]) + ".txt"
        for place, part in enumerate(parts[:-1])
        if part.lower() in ("images", "image")
        for swapped in ("labels", "Labels", "label")
    ]
    return [*found, f"{stem}.txt"]


def _objects(archive: Archive, file: str, labels: Sequence[str]) -> list[Marked]:
    objects, problems = [], list[Problem]()
    for line, words in enumerate(_lines(archive, file), 1):
        if not words.strip():
            continue
        where: Loc = (file, "line", line)
        try:
            objects.append(_marked(words.split(), where, labels))
        except Invalid as error:
            problems += error.problems
        if len(objects) > MAX_OBJECTS:
            allowed = f"at most {MAX_OBJECTS:,}"
            raise Invalid(Problem((file,), "too many objects in one image", None, allowed))
        if len(problems) >= Invalid.LIMIT:
            break
    if problems:
        raise Invalid(*problems)
    return objects


def _lines(archive: Archive, file: str) -> list[str]:
    """The lines of a text file. Raises Invalid for one that is too large, or no text."""
    data = bytearray()
    for chunk in archive.chunks(file):
        data += chunk
        if len(data) > MAX_LINES:
            raise Invalid(Problem((file,), "too large", None, f"at most {MAX_LINES:,} bytes"))
    try:
        return data.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise Invalid(Problem((file,), "not UTF-8", str(error), "UTF-8 text")) from None


def _marked(words: Sequence[str], where: Loc, labels: Sequence[str]) -> Marked:
    place, numbers = words[0], [_number(word) for word in words[1:]]
    if not (place.isascii() and place.isdecimal() and len(place) < 7 and int(place) < len(labels)):
        known = [f"{number}: {label}" for number, label in enumerate(labels[:50])]
        raise Invalid(Problem(where, "no such class", short(place), known))
    is_polygon = len(numbers) >= 6 and len(numbers) % 2 == 0
    if None in numbers or not (len(numbers) == 4 or is_polygon):
        allowed = "class x y width height, or class x1 y1 x2 y2 x3 y3 ..., in shares of the image"
        raise Invalid(Problem(where, "not an object", short(" ".join(words)), allowed))
    shares = [share for share in numbers if share is not None]
    # Beyond 2 they are certainly pixels.
    if max(map(abs, shares)) > 2 or (not is_polygon and min(shares[2:]) < 0):
        msg, allowed = "not in shares of the image", "numbers from 0 to 1"
        raise Invalid(Problem(where, msg, short(" ".join(words)), allowed))
    return Marked(labels[int(place)], _box(shares), where)


def _box(shares: Sequence[float]) -> Box:
    if len(shares) == 4:
        x, y, width, height = shares
        return x - width / 2, y - height / 2, x + width / 2, y + height / 2
    across, down = shares[::2], shares[1::2]
    return min(across), min(down), max(across), max(down)


def _number(word: str) -> float | None:
    try:
        return number(float(word))
    except ValueError:
        return None


# Names of classes


def _labels(archive: Archive) -> list[str]:
    """The names of classes in the order of their numbers. Raises Invalid when no file tells them."""
    plain = [n for n in archive.names if n.rpartition("/")[2].lower() in _NAMES]
    yaml = [n for n in archive.names if n.lower().endswith(_YAML) and not is_clutter(n)]
    if not plain and not yaml:
        msg = "no file names the classes"
        raise Invalid(Problem((), msg, archive.names[:5], YOLO_SENTENCE))
    file = (yaml or plain)[0]
    names = names_of_yaml(_lines(archive, file), file) if yaml else _lines(archive, file)
    while names and not names[-1].strip():
        names = names[:-1]
    return [check_label(name, (file, place)) for place, name in enumerate(names)]


def names_of_yaml(lines: Sequence[str], file: str) -> list[str]:
    """The entry `names` of a YAML file: a list or a map of numbers, on one line or on one for each.

    Raises Invalid when it has none; of YAML no more is read than that.
    """
    for place, line in enumerate(lines):
        found = re.match(r"names\s*:(.*)", line)
        if found is None:
            continue
        value = _bare(found[1])
        if not value:
            return _block(lines[place + 1 :], file)
        return _flow(" ".join([value, *map(_bare, lines[place + 1 :])]), file)
    raise Invalid(Problem((file,), "no entry `names`", None, "names: [cat, dog]"))


def _block(lines: Sequence[str], file: str) -> list[str]:
    """Names on lines of their own: `- cat`, or `0: cat`."""
    items: list[str] = []
    pairs: dict[int, str] = {}
    for line in lines:
        text = _bare(line)
        if not text:
            continue
        if item := _ITEM.fullmatch(text):
            items.append(_unquoted(item[1]))
        elif line[0].isspace() and (pair := _PAIR.fullmatch(text)):
            pairs[int(pair[1])] = _unquoted(pair[2])
        else:
            break
    return items or _in_order(pairs, file)


def _flow(text: str, file: str) -> list[str]:
    """Names between brackets: `[cat, 'a dog']`, or `{0: cat, 1: dog}`."""
    found = re.match(r"\[([^\[\]]*)\]|\{([^{}]*)\}", text)
    if found is None:
        raise Invalid(Problem((file, "names"), "not a list", short(text), "[cat, dog]"))
    parts = re.findall(r"""\s*((?:[^,'"]|'[^']*'|"[^"]*")+)""", found[1] or found[2] or "")
    items = [part.strip() for part in parts if part.strip()]
    if found[1] is not None:
        return [_unquoted(item) for item in items]
    pairs = [_PAIR.fullmatch(item) for item in items]
    return _in_order({int(pair[1]): _unquoted(pair[2]) for pair in pairs if pair}, file)


def _in_order(pairs: dict[int, str], file: str) -> list[str]:
    if not pairs or sorted(pairs) != list(range(len(pairs))):
        found, allowed = sorted(pairs)[:50], "a name for every number from 0"
        raise Invalid(Problem((file, "names"), "not a name for each class", found, allowed))
    return [pairs[place] for place in range(len(pairs))]


def _bare(line: str) -> str:
    """A line without its comment and the room around it."""
    return re.sub(r"(^|\s)#.*$", "", line).strip()


def _unquoted(text: str) -> str:
    text = text.strip()
    quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
    return text[1:-1] if quoted else text
