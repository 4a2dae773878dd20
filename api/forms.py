"""Forms with inputs to predict for: each part is a field of an input."""

from typing import Any

from pydantic import BaseModel, RootModel
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import Field, File, FormParser, parse_options_header

from api.bodies import FORM, read_json, transpose
from tasks.base import files_of
from tasks.parts.problems import Invalid, Problem

MOST_PARTS = 10_000
PARAMETERS = "parameters"


def read_form(body: bytes, content_type: str, input_type: type[BaseModel]) -> dict[str, Any]:
    """The `inputs`, and `parameters` if any, of a form in which the n-th part of a name is the n-th input's.

    Nothing of it is written to a disk. Raises Invalid.
    """
    parts = _Parts(input_type)
    boundary = parse_options_header(content_type)[1].get(b"boundary", b"")
    if not boundary:
        raise _unreadable("no boundary in the content type")
    parser = FormParser(
        FORM, parts.take_text, parts.take_file, parts.end, boundary, config=_IN_MEMORY
    )
    try:
        parser.write(body)
    except FormParserError as error:
        raise _unreadable(str(error)) from None
    if not parts.ended:
        raise _unreadable("it breaks off before its last boundary")
    given = parts.columns.pop(PARAMETERS, None)
    sent: dict[str, Any] = {"inputs": transpose(parts.columns, "body")}
    return sent if given is None else sent | {PARAMETERS: _parameters(given)}


_IN_MEMORY = {"MAX_MEMORY_FILE_SIZE": float("inf")}


class _Parts:
    """What the parts of each name said, in their order."""

    def __init__(self, input_type: type[BaseModel]) -> None:
        self.columns: dict[str, list[Any]] = {}
        self.ended = False
        self._count = 0
        self._files = files_of(input_type)
        # A row may have any columns; its codec knows which.
        named = not issubclass(input_type, RootModel)
        self._names = [*input_type.model_fields, PARAMETERS] if named else None

    def take_text(self, part: Field) -> None:
        self._take(part.field_name, part.value or b"", is_file=False)

    def take_file(self, part: File) -> None:
        part.file_object.seek(0)
        self._take(part.field_name, part.file_object.read(), is_file=True)

    def end(self) -> None:
        self.ended = True

    def _take(self, encoded: bytes | None, value: bytes, *, is_file: bool) -> None:
        name = (encoded or b"").decode("utf-8", "replace")
        if self._names is not None and name not in self._names:
            raise Invalid(Problem((name,), "no such part", name, self._names))
        self._count += 1
        if self._count > MOST_PARTS:
            allowed = f"at most {MOST_PARTS:,}; send more as JSON"
            raise Invalid(Problem(("body",), "too many parts", None, allowed))
        stays = is_file and name in self._files
        self.columns.setdefault(name, []).append(value if stays else _text(name, value))


def _text(name: str, value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise Invalid(Problem((name,), "not a text in UTF-8", value[:40])) from None


def _parameters(given: list[str]) -> Any:
    if len(given) > 1:
        raise Invalid(Problem((PARAMETERS,), "more than one part", len(given), "one"))
    return read_json(given[0], '{"top_k": 1}', PARAMETERS)


def _unreadable(why: str) -> Invalid:
    return Invalid(Problem(("body",), f"not a form: {why}", None, FORM))
