"""What Hugging Face's client sends for vectors of texts."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from api.bodies import MOST_INPUTS


class FeaturesIn(BaseModel):
    """Texts that vectors are wanted of."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"inputs": ["wings", "tails"]}]}
    )

    inputs: str | Annotated[list[str], Field(min_length=1, max_length=MOST_INPUTS)] = Field(
        description="A text, or several."
    )
    normalize: bool | None = Field(None, description="Make vectors of length 1.")
    truncate: bool | None = Field(
        None, description="Of no effect: texts are cut at the model's `max_length` in any case."
    )


class Compared(BaseModel):
    """A text, and others."""

    model_config = ConfigDict(extra="forbid")

    source_sentence: str = Field(description="The text.")
    sentences: list[str] = Field(
        min_length=1, max_length=MOST_INPUTS - 1, description="Texts to compare it with."
    )


class SimilarityIn(BaseModel):
    """Texts that are to be compared."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"inputs": {"source_sentence": "wings", "sentences": ["tails"]}}]
        },
    )

    inputs: Compared = Field(description="A text, and others.")
    parameters: dict[str, Any] | None = Field(
        None, max_length=0, description="None; the client sends them in any case."
    )
