"""What tasks share that tag the tokens of sentences: their fields, and what they learn besides weights."""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any, ClassVar, Literal, Self

import polars as pl
from pydantic import BaseModel, Field

from models.base import Architecture, TokenEncoder
from models.parts.options import AUTO, Auto, OneOf
from models.parts.tagging import ChainedTags, ChainRules, Rules, Tags, WordStates
from models.text_cnn import TextCNN
from tasks.base import Facts
from tasks.parts.examples import pieces
from tasks.parts.reading import TextTask
from tasks.parts.sentences import TokensInput, alphabet_of, are_syllables, joined
from tasks.parts.tags import TagsCodec
from tasks.parts.texts import measure
from tasks.parts.vocabulary import Tokenizer, Words

CHAINED_TAGS = 130
"""More tags than that are not chained unasked: what that takes grows with their square."""


class TaggingTask(TextTask):
    """A task that gives each token a tag; its codec is a `TagsCodec`."""

    architecture: Auto[OneOf[TokenEncoder]] = Field(
        AUTO, description="What reads the tokens; words are put together from its states."
    )
    characters: bool = Field(
        True, description="Look at the characters of words, too: endings, capitals, digits."
    )
    word_width: int = Field(
        128, ge=2, le=4096, multiple_of=2, description="Width of the states of words."
    )
    word_dropout: float = Field(
        0.5, ge=0, lt=1, description="Share of the features of words dropped in training."
    )
    decoding: Auto[Literal["crf", "greedy"]] = Field(
        AUTO,
        description="`crf` learns which tags follow each other (conditional random field), `greedy` "
        "decides for each word. Spans are whole in both.",
    )

    bulky = ("tokens", "text")
    input_type: ClassVar[type[BaseModel]] = TokensInput

    @classmethod
    def texts(cls, examples: pl.DataFrame) -> Sequence[str]:
        return [joined(tokens) for tokens in examples["tokens"]]

    @classmethod
    def identity(cls, examples: pl.DataFrame, schema: Mapping[str, Any]) -> list[str]:
        return ["tokens"]

    @classmethod
    def measured(cls, train: pl.DataFrame) -> dict[str, Any]:
        """How long the sentences are."""
        return measure(train["tokens"].list.join(" "))

    def choose_architecture(self, facts: Facts) -> Architecture:
        # WNUT-17 after four epochs: F1 0.13 on the validation split; an LSTM with more dropout, in a longer
        # plan, 0.06. Nothing else was compared.
        return TextCNN(dropout=0.3)

    def choose_tokenizer(self, facts: Facts) -> Tokenizer:
        return Words()

    def most_tokens(self, facts: Facts) -> int:
        # What is cut has no tags, so nothing is that still fits.
        most = {unit: facts.schema[unit]["most"] for unit in ("characters", "words")}
        return self.tokenizer.bound(**most)

    def resolve(self, facts: Facts) -> Self:
        task = super().resolve(facts)
        if task.decoding != AUTO:
            return task
        chained = facts.schema["spans"] and len(facts.schema["tags"]) <= CHAINED_TAGS
        return task.model_copy(update={"decoding": "crf" if chained else "greedy"})

    def learn_tags(
        self, train: pl.LazyFrame, schema: Mapping[str, Any], base: Any | None
    ) -> dict[str, Any]:
        """The fields of a `TagsCodec`; what tells words from each other is the base's."""
        train = train.select("tokens")
        vocabulary = self.learn_vocabulary(train, base)
        if isinstance(base, TagsCodec):
            alphabet, syllables = base.alphabet, base.syllables
        else:
            counts: Counter[str] = Counter()
            for piece in pieces(train):
                counts.update(chain.from_iterable(piece["tokens"].explode().drop_nulls()))
            alphabet = alphabet_of(counts)
            syllables = are_syllables(train.head(10_000).collect()["tokens"])
        return {
            "tags": schema["tags"],
            "vocabulary": vocabulary,
            "alphabet": alphabet if self.characters else "",
            "syllables": syllables,
        }

    def build_words(self, codec: TagsCodec, inputs: int) -> WordStates:
        """What makes states of words from those of tokens (B, T, inputs)."""
        alphabet = len(codec.alphabet) + 2 if codec.alphabet else 0
        return WordStates(inputs, alphabet, self.word_width, self.word_dropout)

    def build_tags(self, codec: TagsCodec, inputs: int) -> tuple[Tags, Rules]:
        """What says how well tags suit states of words (B, W, inputs), and what decides."""
        chained = self.decoding == "crf"
        tags = (ChainedTags if chained else Tags)(inputs, len(codec.tags))
        return tags, (ChainRules if chained else Rules)(*codec.rules())
