"""Texts to vectors, for the doors of clients who ask for that alone."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from api.serving.engine import Ready, Serving
from store.errors import NotFound
from tasks.base import own_fields
from tasks.parts.problems import Invalid
from tasks.parts.reading import TextTask


class TextVectors(NamedTuple):
    """A vector (D,) float32 of each text, and how many tokens were read for all of them."""

    vectors: list[Tensor]
    tokens: int


async def embed_texts(
    serving: Serving, model: Ready, texts: Sequence[Any], place: str, *, large: bool
) -> TextVectors:
    """What a model makes of texts that were sent as `place`.

    Raises NotFound for a model that does not read single texts or has no vectors of them, Invalid and Busy.
    """
    field = _field(model)
    try:
        vectors = await serving.embed(model, [{field: text} for text in texts], large=large)
    except Invalid as error:
        # inputs, number, field: where only texts are sent there is no field.
        raise Invalid(*(p._replace(loc=(place, *p.loc[1:2])) for p in error.problems)) from None
    codec: Any = model.served.trained.codec
    return TextVectors(vectors, sum(map(len, codec.vocabulary.ids(texts))))


def _field(model: Ready) -> str:
    """The one field of an input. Raises NotFound."""
    fields = own_fields(type(model.task))
    if len(fields) != 1 or not (isinstance(model.task, TextTask) and model.task.embeds):
        raise NotFound("model with embeddings of texts", model.ref)
    return fields[0]
