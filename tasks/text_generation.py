"""Text generation: language models of characters and of pieces of words, and what they write."""

import math
import secrets
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self

import numpy as np
import polars as pl
import torch
from pydantic import BaseModel, Field
from torch import Tensor

from models.base import SENTENCE_END, Architecture, CausalEncoder, Learner
from models.lstm import LSTM
from models.parts.language import COUNTED, OUTPUTS, LanguageModel
from models.parts.optimizers import AdamW
from models.parts.options import AUTO, Auto, OneOf, Plain
from models.parts.pretrained import Pretrained
from models.parts.published import Unusable
from models.parts.schedules import Cosine
from models.pretrained_text import PretrainedText
from tasks.base import Codec, DatasetOptions, Facts, Metrics, Objective, Task, Upload, read_fields
from tasks.parts.columns import Columns, Dense, Ragged
from tasks.parts.passages import FORMATS, longest, passages, read_documents
from tasks.parts.problems import Invalid, Problem
from tasks.parts.reading import TextTask
from tasks.parts.texts import check_text, measure
from tasks.parts.vocabulary import (
    MAX_TEXT,
    ByteLevel,
    ByteLevelPairs,
    Lossless,
    Tokenizer,
    Vocabulary,
)
from tasks.trained import Trained

SHOWN = 10
"""Documents and passages that an evaluation lists."""
MOST_NEW = 4_096
_TOKEN = 100
"""Characters of the longest tokens."""
_COST = 16
"""Characters that are read in the time that it takes to write a token, about."""


class GenerationParameters(Plain):
    """How to write."""

    max_new_tokens: int = Field(
        64,
        ge=0,
        le=MOST_NEW,
        description="Tokens to write at most, fewer than the model's `max_length`; 0 only tells how "
        "likely the prompt is.",
    )
    temperature: float = Field(
        1.0, ge=0, le=10, description="0 writes what is likeliest; higher is more surprising."
    )
    top_k: int = Field(
        0, ge=0, le=2**31, description="Choose among so many tokens, the likeliest ones; 0: all."
    )
    top_p: float = Field(
        1.0, gt=0, le=1, description="Choose among the likeliest tokens that make up this share."
    )
    repetition_penalty: float = Field(
        1.0, ge=0.1, le=10, description="Above 1, tokens that are there already become unlikelier."
    )
    seed: int | None = Field(
        None, ge=0, lt=2**31, description="Same seed, same text; another one each time if left out."
    )
    stop: list[Annotated[str, Field(min_length=1, max_length=200)]] = Field(
        [], max_length=16, description="The text ends before the first of these."
    )


class GenerationInput(GenerationParameters):
    """The beginning of a text, and how to go on."""

    prompt: str = Field(
        max_length=MAX_TEXT,
        description="What to go on with. Of long ones the end counts.",
        examples=["Once upon a time"],
    )


Finish = Literal["length", "end", "stop"]
"""Why a text ends."""


class Generated(Plain):
    """What was written, and how likely the prompt was."""

    text: str = Field(description="What comes after the prompt.")
    finish_reason: Finish = Field(
        description="Why it ends: at `max_new_tokens`, as the text is over, or before a `stop`."
    )
    tokens: int = Field(description="Tokens that were written.")
    prompt_tokens: int = Field(description="Tokens of the prompt that were read: its last ones.")
    prompt_characters: int = Field(description="Characters that these stand for.")
    prompt_log_likelihood: float = Field(
        description="Natural logarithm of the probability of these tokens."
    )


class Piece(NamedTuple):
    """What was written since the last piece; how many tokens of the prompt were read, and written in all."""

    text: str
    prompt_tokens: int
    tokens: int
    finish_reason: Finish | Literal["time"] | None = None
    """Why the text ends, in the last piece; `time`: because nobody waits for more."""


class TextGenerationCodec(Codec):
    """A lossless vocabulary."""

    vocabulary: Vocabulary

    def encode(self, examples: pl.DataFrame, *, targets: bool = True) -> Columns:
        before = self.vocabulary.whole(examples["before"])
        tokens = self.vocabulary.whole(examples["text"])
        silent = GenerationParameters(max_new_tokens=0, seed=0)
        return _columns(
            [
                self._row(of_text, text, silent, context, over)
                for context, of_text, text, over in zip(
                    before, tokens, examples["text"], examples["ends"], strict=True
                )
            ]
        )

    def read_input(self, value: Any) -> GenerationInput:
        read = read_fields(GenerationInput, value)
        check_text(read.prompt, "prompt")
        for stop in read.stop:
            check_text(stop, "stop")
        return read

    def blank(self) -> GenerationInput:
        return GenerationInput(prompt="a", max_new_tokens=2)

    def length(self, given: GenerationInput) -> int:
        """In characters; to write a token takes as long as to read several."""
        read = min(len(given.prompt), 3 * self.vocabulary.max_length)
        return 1 + read + _COST * self._most(given)

    def encode_inputs(self, inputs: Sequence[GenerationInput]) -> Columns:
        prompts = [given.prompt[-_TOKEN * self.vocabulary.max_length :] for given in inputs]
        tokens = self.vocabulary.whole(prompts)
        return _columns([self._row(*row) for row in zip(tokens, prompts, inputs, strict=True)])

    def _most(self, how: GenerationParameters) -> int:
        return min(how.max_new_tokens, self.vocabulary.max_length - 1)

    def _row(
        self,
        tokens: list[int],
        text: str,
        how: GenerationParameters,
        context: Sequence[int] = (),
        over: bool = False,
    ) -> "_Row":
        """A text behind its context, as far as there is room before what is to be written."""
        room = self.vocabulary.max_length - self._most(how) - 1 - over
        read = tokens[len(tokens) - min(room, len(tokens)) :]
        characters = len(text) if len(read) == len(tokens) else len(self.vocabulary.text(read))
        context = context[len(context) - min(room - len(read), len(context)) :]
        seed = secrets.randbelow(2**31) if how.seed is None else how.seed
        return _Row(
            [SENTENCE_END, *context, *read, *[SENTENCE_END] * over],
            [len(context), len(read), characters, self._most(how), how.top_k, seed],
            [how.temperature, how.top_p, how.repetition_penalty],
        )

    def decode(self, outputs: Tensor) -> list[Generated]:
        return [self._generated(row) for row in outputs.double().tolist()]

    def _generated(self, row: Sequence[float]) -> Generated:
        likelihood, *counts = row[:OUTPUTS]
        tokens, characters, most = map(int, counts)
        ids = [int(token) for token in row[OUTPUTS:] if token >= 0]
        return Generated(
            text=self.vocabulary.text(ids),
            finish_reason="length" if len(ids) == most else "end",
            tokens=len(ids),
            prompt_tokens=tokens,
            prompt_characters=characters,
            prompt_log_likelihood=likelihood,
        )

    def complete(self, predictions: list[Any], inputs: Sequence[Any]) -> list[Any]:
        """Cut off at the first of the texts that end them."""
        return [
            prediction if given is None else _stopped(prediction, given.stop)
            for prediction, given in zip(predictions, inputs, strict=True)
        ]


class _Row(NamedTuple):
    tokens: list[int]
    numbers: list[int]
    fractions: list[float]


def _columns(rows: Sequence[_Row]) -> Columns:
    lengths = torch.tensor([0, *(len(row.tokens) for row in rows)])
    values = np.concatenate([np.array(row.tokens, np.int64) for row in rows] or [np.zeros(0, int)])
    return Columns(
        (
            Ragged(torch.from_numpy(values), lengths.cumsum(0)),
            Dense(torch.tensor([row.numbers for row in rows]).reshape(-1, 6)),
            Dense(torch.tensor([row.fractions for row in rows]).reshape(-1, 3)),
        )
    )


def _stopped(prediction: Generated, stops: Sequence[str]) -> Generated:
    found = _first(prediction.text, stops)
    if found is None:
        return prediction
    return prediction.model_copy(update={"text": prediction.text[:found], "finish_reason": "stop"})


def _first(text: str, stops: Sequence[str]) -> int | None:
    """Where the first of these is in a text."""
    return min((place for stop in stops if (place := text.find(stop)) >= 0), default=None)


def write(trained: Trained, given: GenerationInput) -> Iterator[Piece]:
    """What `predict` would answer, as it is written: a piece after each token, the last one with its reason.

    A piece may be empty: characters come when they are whole, and what may begin a `stop` waits.
    """
    codec, learner = trained.codec, trained.learner
    assert isinstance(codec, TextGenerationCodec)
    assert isinstance(learner, LanguageModel)
    batch = codec.encode_inputs([given]).batch(torch.tensor([0])).to(trained.device)
    read = int(batch.inputs[2][0, COUNTED])
    ids: list[int] = []
    sent, text = 0, ""
    steps = learner.go_on(*batch.inputs)
    while (token := _next(steps)) is not None and token >= 0:
        ids.append(token)
        text = codec.vocabulary.text(ids)
        if (end := _first(text, given.stop)) is not None:
            yield Piece(text[sent:end], read, len(ids), "stop")
            return
        whole = len(text.rstrip("\ufffd")) if text.endswith("\ufffd") else len(text)
        ready = max(sent, whole - _begun(text[:whole], given.stop))
        yield Piece(text[sent:ready], read, len(ids))
        sent = ready
    reason: Finish = "end" if token is not None else "length"
    yield Piece(text[sent:], read, len(ids), reason)


@torch.inference_mode()
def _next(steps: Iterator[Tensor]) -> int | None:
    token = next(steps, None)
    return None if token is None else int(token)


def _begun(text: str, stops: Sequence[str]) -> int:
    """How many characters at the end of a text may be the beginning of one of these."""
    most = max(map(len, stops), default=1) - 1
    return next(
        (n for n in range(most, 0, -1) if any(stop.startswith(text[-n:]) for stop in stops)), 0
    )


class TextGeneration(TextTask):
    """Write texts like those of the data set, and tell how likely texts are."""

    name: Literal["text-generation"] = "text-generation"
    architecture: Auto[OneOf[CausalEncoder]] = Field(
        AUTO, description="What learns from the texts; it reads them in one direction."
    )
    tokenizer: Auto[OneOf[Lossless]] = Field(
        AUTO, description="How texts become tokens. A base brings its own."
    )

    bulky = ("before", "text")
    input_type: ClassVar[type[BaseModel]] = GenerationInput
    parameters_type = GenerationParameters
    prediction_type: ClassVar[type[BaseModel]] = Generated
    codec_type = TextGenerationCodec
    objective = Objective("bits_per_character", maximise=False)
    formats = FORMATS
    metrics: ClassVar[Mapping[str, str]] = {
        "bits_per_character": "Bits that the model needs for a character of the texts, ends not counted.",
        "perplexity": "Among how many equally likely tokens each one is as hard to tell.",
        "loss": "Mean negative logarithm of the probability of a token.",
    }

    @classmethod
    def read(cls, upload: Upload, options: DatasetOptions) -> pl.DataFrame:
        return read_documents(upload, options)

    @classmethod
    def identity(cls, examples: pl.DataFrame, schema: Mapping[str, Any]) -> list[str]:
        return ["text"]

    @classmethod
    def describe(
        cls, splits: Mapping[str, pl.DataFrame], options: DatasetOptions
    ) -> tuple[dict[str, pl.DataFrame], dict[str, Any], dict[str, Any]]:
        frames = {name: passages(frame) for name, frame in splits.items()}
        empty = [
            Problem((name,), "there is no text in this split", 0, "at least one character")
            for name, frame in frames.items()
            if not frame.height
        ]
        if empty:
            raise Invalid(*empty)
        lengths = measure(splits["train"]["text"])
        report = {
            "documents": {name: frame.height for name, frame in splits.items()},
            "characters_in_all": {
                name: int(frame["text"].str.len_chars().sum()) for name, frame in splits.items()
            },
            "empty_texts": {
                name: int((frame["text"] == "").sum()) for name, frame in splits.items()
            },
            **lengths,
        }
        return frames, {"bytes": longest(frames), **lengths}, report

    @classmethod
    def texts(cls, examples: pl.DataFrame) -> Sequence[str]:
        return examples["text"].to_list()

    def choose_architecture(self, facts: Facts) -> Architecture:
        return LSTM(embedding=128, width=256, dropout=0.2)

    def choose_tokenizer(self, facts: Facts) -> Tokenizer:
        return ByteLevelPairs()

    def on_base(self, base: Task) -> Self:
        task = super().on_base(base)
        if not isinstance(task.tokenizer, Lossless):
            allowed = sorted(option.option_name() for option in Lossless.options())
            found = task.tokenizer.name
            message = "its tokenizer changes texts, so that none can be written"
            raise Invalid(Problem(("base",), message, found, allowed))
        return task

    def resolve(self, facts: Facts) -> Self:
        task = super().resolve(facts)
        try:
            one_way = task.architecture.one_way()
        except Unusable as error:
            raise Invalid(Problem(("task", "architecture", "checkpoint"), str(error))) from None
        length = task.max_length
        if self.max_length == AUTO:
            # Passages with as much before them as fits; tokens that were learned are longer than a byte.
            most = facts.schema["bytes"]
            single = isinstance(task.tokenizer, ByteLevel) and task.tokenizer.size <= 300
            length = min(most, most if single else max(64, most // 4)) + 2
            if isinstance(one_way, PretrainedText):
                length = min(length, one_way.most or length)
        return task.model_copy(update={"max_length": length, "architecture": one_way})

    def defaults(self, facts: Facts) -> dict[str, Any]:
        if isinstance(self.architecture, Pretrained):
            return {"batch_size": 8}
        return {
            "epochs": max(1, min(40, round(30_000 / facts.examples))),
            "batch_size": 8,
            "optimizer": AdamW(learning_rate=4e-3),
            "schedule": Cosine(warmup=0.05),
        }

    def learn_codec(
        self,
        train: pl.LazyFrame,
        schema: Mapping[str, Any],
        base: TextGenerationCodec | None = None,
    ) -> TextGenerationCodec:
        return TextGenerationCodec(vocabulary=self.learn_vocabulary(train.select("text"), base))

    def build(self, codec: TextGenerationCodec) -> Learner:
        vocabulary = codec.vocabulary
        backbone = self.architecture.build(vocabulary.size, vocabulary.max_length)
        return LanguageModel(backbone, vocabulary.size)

    def same_outputs(self, codec: TextGenerationCodec, base: Any) -> bool:
        return isinstance(base, TextGenerationCodec) and codec.vocabulary == base.vocabulary

    def score(self, predictions: Sequence[Any], examples: pl.DataFrame) -> Metrics:
        likelihood = math.fsum(p.prompt_log_likelihood for p in predictions)
        loss = -likelihood / sum(p.prompt_tokens for p in predictions)
        return {
            "bits_per_character": _bits(likelihood, sum(p.prompt_characters for p in predictions)),
            "perplexity": math.exp(min(loss, 700)),
            "loss": loss,
        }

    def evaluate(self, predictions: Sequence[Any], examples: pl.DataFrame) -> dict[str, Any]:
        """Also the documents, and the passages of all of them, that were the hardest to tell."""
        found = examples.select("document", "start").with_columns(
            pl.Series("characters", [p.prompt_characters for p in predictions]),
            pl.Series("likelihood", [p.prompt_log_likelihood for p in predictions]),
        )
        documents = found.group_by("document", maintain_order=True).agg(
            pl.col("characters", "likelihood").sum()
        )
        return {
            **self.score(predictions, examples),
            "documents": documents.height,
            "worst_documents": _worst(documents),
            "worst_passages": _worst(found),
        }


def _bits(likelihood: float, characters: int) -> float:
    return -likelihood / max(1, characters) / math.log(2)


def _worst(found: pl.DataFrame) -> list[dict[str, Any]]:
    bits = -pl.col("likelihood") / pl.col("characters").clip(1) / math.log(2)
    ranked = found.with_columns(bits.alias("bits_per_character")).drop("likelihood")
    return ranked.sort("bits_per_character", descending=True).head(SHOWN).to_dicts()
