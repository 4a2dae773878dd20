"""What OpenAI's client sends and reads: completions, embeddings and a list of models."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from api.bodies import MOST_INPUTS
from tasks.text_generation import MOST_NEW

Stop = Annotated[str, Field(min_length=1, max_length=200)]


class StreamOptions(BaseModel):
    """What a stream holds beside the text."""

    include_usage: bool = Field(False, description="At last say how many tokens there were.")


class CompletionIn(BaseModel):
    """A prompt, and how to go on."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"model": "tales", "prompt": "Once upon a time", "max_tokens": 40}]
        },
    )

    model: str = Field(description="name (newest), name@3, name@alias, job_... or ckpt_...")
    prompt: str | Annotated[list[str], Field(min_length=1, max_length=MOST_INPUTS)] = Field(
        description="What to go on with, or several of them."
    )
    max_tokens: int | None = Field(16, ge=0, le=MOST_NEW, description="Tokens to write at most.")
    temperature: float | None = Field(1.0, ge=0, le=2, description="0 writes what is likeliest.")
    top_p: float | None = Field(1.0, gt=0, le=1, description="Share of tokens to choose among.")
    seed: int | None = Field(None, ge=0, lt=2**31, description="Same seed, same text.")
    stop: Stop | Annotated[list[Stop], Field(max_length=16)] | None = Field(
        None, description="The text ends before the first of these."
    )
    n: Literal[1] | None = Field(None, description="One text for each prompt.")
    stream: bool | None = Field(None, description="Send the text as it is written, in events.")
    stream_options: StreamOptions | None = Field(None, description="What events hold.")
    user: str | None = Field(None, description="Of no effect.")


class Choice(BaseModel):
    """A text that was written."""

    index: int = Field(description="Which prompt it goes on with, counted from 0.")
    text: str = Field(description="What comes after the prompt.")
    finish_reason: Literal["length", "stop"] | None = Field(description="Why it ends.")
    logprobs: None = Field(None, description="Not given.")


class Usage(BaseModel):
    """Numbers of tokens."""

    prompt_tokens: int = Field(description="Read, of all prompts.")
    completion_tokens: int = Field(description="Written.")
    total_tokens: int = Field(description="Both.")


class CompletionOut(BaseModel):
    """Texts that were written."""

    id: str = Field(description="Names this answer.")
    object: Literal["text_completion"] = "text_completion"
    created: int = Field(description="Seconds since 1970.")
    model: str = Field(description="The model's name and version.")
    choices: list[Choice] = Field(description="A text for each prompt.")
    usage: Usage | None = Field(None, description="How many tokens there were.")


class EmbeddingIn(BaseModel):
    """Texts that vectors are wanted of."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"model": "manuals", "input": ["wings", "tails"]}]},
    )

    model: str = Field(description="name (newest), name@3, name@alias, job_... or ckpt_...")
    input: str | Annotated[list[str], Field(min_length=1, max_length=MOST_INPUTS)] = Field(
        description="A text, or several; not as tokens."
    )
    encoding_format: Literal["float", "base64"] | None = Field(
        "float", description="Numbers, or the bytes of little-endian float32 in base64."
    )
    dimensions: None = Field(None, description="Not chosen: vectors are as long as the model's.")
    user: str | None = Field(None, description="Of no effect.")


class Embedding(BaseModel):
    """The vector of a text."""

    object: Literal["embedding"] = "embedding"
    index: int = Field(description="Which text it is of, counted from 0.")
    embedding: list[float] | str = Field(description="The vector.")


class EmbeddingUsage(BaseModel):
    """Numbers of tokens."""

    prompt_tokens: int = Field(description="Read, of all texts.")
    total_tokens: int = Field(description="The same.")


class EmbeddingOut(BaseModel):
    """Vectors of texts."""

    object: Literal["list"] = "list"
    data: list[Embedding] = Field(description="A vector for each text.")
    model: str = Field(description="The model's name and version.")
    usage: EmbeddingUsage = Field(description="How many tokens there were.")


class OpenAIModel(BaseModel):
    """A model that can be asked."""

    id: str = Field(description="Its name.")
    object: Literal["model"] = "model"
    created: int = Field(description="Seconds since 1970.")
    owned_by: str = Field("modelyard", description="The same for all.")


class OpenAIModels(BaseModel):
    """The models that can be asked."""

    object: Literal["list"] = "list"
    data: list[OpenAIModel] = Field(description="The newest 1,000, newest first.")
