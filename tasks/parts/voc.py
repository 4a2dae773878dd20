"""Annotations of objects as Pascal VOC has them (Everingham et al., 2010): an XML file for each image."""

from xml.etree.ElementTree import Element, ParseError, TreeBuilder, XMLParser

from tasks.parts.archives import SPLIT_FOLDERS, Archive, is_clutter
from tasks.parts.marked import (
    MAX_OBJECTS,
    Box,
    Gallery,
    Loc,
    Marked,
    Picture,
    check_label,
    number,
    split_of_folders,
)
from tasks.parts.problems import Invalid, Problem, short

VOC = "voc"
VOC_SENTENCE = (
    "A zip of images and an XML file for each as Pascal VOC has them: `Annotations/1.xml` and `JPEGImages/1.jpg`, "
    "and lists such as `ImageSets/Main/train.txt` or folders for splits, if there are any."
)
MAX_XML = 4 << 20
_SIDES = ("xmin", "ymin", "xmax", "ymax")
_SETS = "imagesets/main/"


def xml_files(archive: Archive) -> list[str]:
    return [n for n in archive.names if n.lower().endswith(".xml") and not is_clutter(n)]


def read_voc(archive: Archive) -> list[Picture]:
    """Every image with an XML file, and what is marked in it; difficult objects are taken for crowds.

    Boxes are counted from 0 then, their ends behind their last pixels. Raises Invalid, naming files and objects.
    """
    files, problems = xml_files(archive), list[Problem]()
    if not files:
        raise Invalid(Problem((), "the archive has no XML file", None, VOC_SENTENCE))
    gallery, lists, pictures = Gallery(archive.names), _lists(archive), list[Picture]()
    for file in files:
        stem = file.rpartition("/")[2][: -len(".xml")]
        if lists and stem not in lists:
            continue
        try:
            pictures.append(_picture(archive, file, lists.get(stem), gallery))
        except Invalid as error:
            problems += error.problems
        if len(problems) >= Invalid.LIMIT:
            break
    first: dict[str, Loc] = {}
    for picture in pictures:
        other = first.setdefault(picture.name, picture.where)
        if other is not picture.where:
            problems.append(
                Problem(picture.where, "another file is of this image", other[0], "one")
            )
    if problems:
        raise Invalid(*problems)
    return pictures


def _lists(archive: Archive) -> dict[str, str]:
    """The split of each image by its name without a suffix, as lists say. Raises Invalid for one in two."""
    found: dict[str, str] = {}
    problems = list[Problem]()
    for file in archive.names:
        folder, _, name = file.lower().rpartition("/")
        split = SPLIT_FOLDERS.get(name.removesuffix(".txt"))
        if not f"/{folder}/".endswith(f"/{_SETS}") or split is None or not name.endswith(".txt"):
            continue
        for line, text in enumerate(archive.read(file).decode(errors="replace").splitlines(), 1):
            stem = text.split()[0] if text.strip() else None
            if stem and found.setdefault(stem, split) != split:
                problems.append(Problem((file, "line", line), "in two splits", stem, found[stem]))
    if problems:
        raise Invalid(*problems)
    return found


def _picture(archive: Archive, file: str, split: str | None, gallery: Gallery) -> Picture:
    root = _parsed(archive, file)
    split = split or split_of_folders(file)
    where: Loc = (file,)
    # What stands beside counts before what is written: many files are renamed with their images.
    stem, told = file.rpartition("/")[2][: -len(".xml")], (root.findtext("filename") or "").strip()
    try:
        name = gallery.named(stem, file, split) or gallery.find(told, file, split)
    except Invalid as error:
        raise Invalid(*(p._replace(loc=(file, "filename")) for p in error.problems)) from None
    objects, problems = [], list[Problem]()
    found = root.findall("object")
    if len(found) > MAX_OBJECTS:
        allowed = f"at most {MAX_OBJECTS:,}"
        raise Invalid(Problem(where, "too many objects in one image", len(found), allowed))
    for place, element in enumerate(found, 1):
        try:
            objects.append(_marked(element, (file, "object", place)))
        except Invalid as error:
            problems += error.problems
    if problems:
        raise Invalid(*problems)
    return Picture(name, split, objects, where, _size(root))


class _Plain(TreeBuilder):
    """Elements of a file that declares nothing: entities could swell, or read what is not theirs."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise Invalid(Problem((), "declares a document type", name, "an XML file without a DTD"))


def _parsed(archive: Archive, file: str) -> Element:
    """The root of an XML file, or the problem with it as Invalid."""
    data = bytearray()
    for chunk in archive.chunks(file):
        data += chunk
        if len(data) > MAX_XML:
            raise Invalid(Problem((file,), "too large", None, f"at most {MAX_XML:,} bytes"))
    parser = XMLParser(target=_Plain())
    try:
        parser.feed(bytes(data))
        root: Element = parser.close()
    except Invalid as error:
        raise Invalid(*(p._replace(loc=(file,)) for p in error.problems)) from None
    except (ParseError, ValueError, LookupError) as error:
        raise Invalid(Problem((file,), "not XML", str(error), VOC_SENTENCE)) from None
    if root.tag != "annotation":
        raise Invalid(Problem((file,), "no annotation", short(root.tag), "<annotation>"))
    return root


def _size(root: Element) -> tuple[int, int] | None:
    """Width and height, if told; several tools write zeros."""
    sides = [(root.findtext(f"size/{side}") or "").strip() for side in ("width", "height")]
    if not all(side.isascii() and side.isdecimal() and len(side) < 9 for side in sides):
        return None
    width, height = map(int, sides)
    return (width, height) if width and height else None


def _marked(element: Element, where: Loc) -> Marked:
    label = check_label(element.findtext("name"), (*where, "name"))
    difficult = (element.findtext("difficult") or "").strip() == "1"
    return Marked(label, _box(element, where), where, difficult)


def _box(element: Element, where: Loc) -> Box:
    """A box whose pixels were counted from 1. Raises Invalid when it is none."""
    texts = [element.findtext(f"bndbox/{side}") for side in _SIDES]
    sides = [_number(text) for text in texts]
    if None in sides:
        allowed = "xmin, ymin, xmax and ymax in pixels"
        raise Invalid(Problem((*where, "bndbox"), "not a box", short(texts), allowed))
    x1, y1, x2, y2 = (side for side in sides if side is not None)
    if x2 < x1 or y2 < y1:
        msg, allowed = "a box whose end is before its start", "xmin <= xmax, ymin <= ymax"
        raise Invalid(Problem((*where, "bndbox"), msg, short(texts), allowed))
    return x1 - 1, y1 - 1, x2, y2


def _number(text: str | None) -> float | None:
    try:
        return number(float(text or ""))
    except ValueError:
        return None
