"""What tasks share that read texts as tokens: how texts are cut, and the vocabulary that is learned from them."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Self

import polars as pl
from pydantic import Field

from models.parts.options import AUTO, Auto, OneOf
from tasks.base import Facts, Task
from tasks.parts.examples import pieces
from tasks.parts.vocabulary import BytePairs, Tokenizer, Vocabulary

MAX_TOKENS = 512
LONG_TOKEN = 6
"""Characters of a token, as many as they have in hardly any text on average."""
MaxLength = Annotated[int, Field(ge=1, le=8_192)]


class TextTask(Task):
    """A task whose codec has a `vocabulary`, which a base hands on to whatever task starts from it."""

    tokenizer: Auto[OneOf[Tokenizer]] = Field(
        AUTO, description="How texts become tokens. A base brings its own."
    )
    max_length: Auto[MaxLength] = Field(
        AUTO, description="Tokens of a text that are read; the rest is cut. A base brings its own."
    )

    of_base: ClassVar[tuple[str, ...]] = ("architecture", "tokenizer", "max_length")

    @classmethod
    @abstractmethod
    def texts(cls, examples: pl.DataFrame) -> Sequence[str]:
        """The texts of a piece of a split, to learn a vocabulary from."""

    def choose_tokenizer(self, facts: Facts) -> Tokenizer:
        """The tokenizer for this data set when the request leaves it open."""
        return BytePairs()

    def most_tokens(self, facts: Facts) -> int:
        """How many tokens hardly any text has more of, once the tokenizer is known."""
        spread = {unit: facts.schema[unit]["p98"] for unit in ("characters", "words")}
        return self.tokenizer.bound(**spread)

    def resolve(self, facts: Facts) -> Self:
        task = super().resolve(facts)
        if task.tokenizer == AUTO:
            task = task.model_copy(update={"tokenizer": task.choose_tokenizer(facts)})
        if task.max_length == AUTO:
            length = min(MAX_TOKENS, max(8, task.most_tokens(facts)))
            task = task.model_copy(update={"max_length": length})
        return task

    def learn_vocabulary(self, train: pl.LazyFrame, base: Any | None = None) -> Vocabulary:
        """The base's vocabulary, or one learned from the texts of the split."""
        if base is not None:
            vocabulary: Vocabulary = base.vocabulary
            return vocabulary
        found = (text for piece in pieces(train) for text in self.texts(piece))
        return Vocabulary(tokenizer=self.tokenizer.learn(found), max_length=self.max_length)
