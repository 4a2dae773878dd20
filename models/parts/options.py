"""Options of the API: pydantic classes that are found by being subclasses, and fields that choose among them."""

from abc import ABC
from collections.abc import Callable, Iterator
from functools import reduce
from inspect import isabstract
from operator import or_
from typing import Annotated, Any, Final, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

AUTO: Final[Any] = "auto"
LARGEST: Final[Any] = "largest"


class Plain(BaseModel):
    """Data that travels as JSON: unknown fields are refused, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Option(Plain, ABC):
    """One of several things a field can be; its literal `name` tells which.

    Subclass it, give it a `name`, and every field typed `OneOf[...]` of a parent class offers it.
    """

    name: Any

    @classmethod
    def options(cls) -> Iterator[type[Self]]:
        """Every concrete subclass that has a name, in the order of their names."""
        found = {
            option
            for option in cls._descendants()
            if not isabstract(option) and not option.model_fields["name"].is_required()
        }
        yield from sorted(found, key=lambda option: option.option_name())

    @classmethod
    def option_name(cls) -> str:
        """The word a request uses for this option."""
        return str(cls.model_fields["name"].default)

    @classmethod
    def summary(cls) -> str:
        """The first line of the docstring: what the catalog shows."""
        return (cls.__doc__ or "").strip().splitlines()[0]

    @classmethod
    def _descendants(cls) -> Iterator[type[Self]]:
        yield cls
        for child in cls.__subclasses__():
            yield from child._descendants()


class _OneOf:
    """Reads a value of the annotated family as the option it names."""

    def __get_pydantic_core_schema__(
        self, family: type[Option], handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        options = list(family.options())
        if len(options) == 1:
            return handler.generate_schema(options[0])
        return handler.generate_schema(Annotated[reduce(or_, options), Field(discriminator="name")])


class _Or:
    """Lets a field also be a certain word, which is replaced by a value before anybody relies on one."""

    def __init__(self, word: str) -> None:
        self.word = word

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        def is_word(value: Any) -> bool:
            return isinstance(value, str) and value == self.word

        def keep(value: Any, validate: Callable[[Any], Any]) -> Any:
            return value if is_word(value) else validate(value)

        def dump(value: Any, serialize: Callable[[Any], Any]) -> Any:
            return value if is_word(value) else serialize(value)

        return core_schema.no_info_wrap_validator_function(
            keep,
            handler(source),
            serialization=core_schema.wrap_serializer_function_ser_schema(dump),
        )

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return {"anyOf": [{"const": self.word, "type": "string"}, handler(schema)]}


T = TypeVar("T")
OneOf = Annotated[T, _OneOf()]
"""`OneOf[Family]`: exactly one option of that family, told apart by `name`."""
Auto = Annotated[T, _Or(AUTO)]
"""`Auto[T]`: a `T`, or "auto" until the request is resolved; code behind `resolve` may rely on `T`."""
Largest = Annotated[T, _Or(LARGEST)]
"""`Largest[T]`: a `T`, or "largest" until the device was asked what fits it; trainings may rely on `T`."""
