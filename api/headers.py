"""Headers of a request, read as they came: an object of all of them costs more than a whole look-up."""

from starlette.types import Scope


def header(scope: Scope, name: bytes, default: str = "") -> str:
    """The first header of that name, which is in lower case."""
    for found, value in scope["headers"]:
        if found == name:
            text: str = value.decode("latin-1")
            return text
    return default
