"""What tasks share that read texts as tokens: how texts are cut, and the vocabulary that is learned from them."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, NamedTuple, Self

import polars as pl
from pydantic import Field

from models.parts.options import AUTO, Auto, OneOf
from models.parts.published import Published
from models.parts.published_texts import SHIFT, Reader, plain_tokenizer
from tasks.base import Facts, Task
from tasks.parts.examples import pieces
from tasks.parts.problems import Invalid, Problem
from tasks.parts.vocabulary import BytePairs, PublishedTokens, Tokenizer, Vocabulary

MAX_TOKENS = 512
LONG_TOKEN = 6
"""Characters of a token, as many as they have in hardly any text on average."""
LONGEST = 8_192
MaxLength = Annotated[int, Field(ge=1, le=LONGEST)]
_TOKENIZER = ("task", "tokenizer")
_CHECKPOINT = ("task", "architecture", "checkpoint")


class TextTask(Task):
    """A task whose codec has a `vocabulary`, which a base hands on to whatever task starts from it."""

    tokenizer: Auto[OneOf[Tokenizer]] = Field(
        AUTO, description="How texts become tokens. A base brings its own."
    )
    max_length: Auto[MaxLength] = Field(
        AUTO, description="Tokens of a text that are read; the rest is cut. A base brings its own."
    )

    of_base: ClassVar[tuple[str, ...]] = ("architecture", "tokenizer", "max_length")
    compares: ClassVar[bool] = False
    """Whether texts are compared by their vectors alone."""

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
        if isinstance(task.architecture, Reader):
            return task.model_copy(update=task._as_published(task.architecture))
        if isinstance(task.tokenizer, PublishedTokens):
            message = "only an architecture that is pretrained has one"
            raise Invalid(Problem(_TOKENIZER, message, task.tokenizer.name, task.architecture.name))
        if task.tokenizer == AUTO:
            task = task.model_copy(update={"tokenizer": task.choose_tokenizer(facts)})
        if task.max_length == AUTO:
            length = min(MAX_TOKENS, max(8, task.most_tokens(facts)))
            task = task.model_copy(update={"max_length": length})
        return task

    def _as_published(self, architecture: Reader) -> dict[str, Any]:
        """What the checkpoint decides that the architecture begins with. Raises Invalid for anything else."""
        if self.tokenizer != AUTO and not isinstance(self.tokenizer, PublishedTokens):
            message = "an architecture that is pretrained brings its own; leave it out"
            found, allowed = self.tokenizer.model_dump(), PublishedTokens().model_dump()
            raise Invalid(Problem(_TOKENIZER, message, found, allowed))
        most = architecture.most or LONGEST
        if most < 1:
            message = "it has no places for texts between its marks"
            raise Invalid(Problem(_CHECKPOINT, message, architecture.checkpoint))
        if self.max_length != AUTO and self.max_length > most:
            message = "the checkpoint reads no texts as long"
            problem = Problem(("task", "max_length"), message, self.max_length, f"at most {most}")
            raise Invalid(problem)
        asked = self.max_length != AUTO
        return {
            "architecture": architecture.for_reading(compares=self.compares),
            "tokenizer": PublishedTokens(),
            "max_length": self.max_length if asked else min(MAX_TOKENS, most),
        }

    def reading(self, published: Published) -> Any:
        if not isinstance(self.architecture, Reader):
            return super().reading(published)
        return Reading(self.published_vocabulary(published))

    def published_vocabulary(self, published: Published, *, writes: bool = False) -> Vocabulary:
        """The checkpoint's, be it that of what it `writes`. Raises Unusable."""
        tokenizer, unknown = plain_tokenizer(published, writes=writes)
        return Vocabulary(
            tokenizer=tokenizer, max_length=self.max_length, shift=SHIFT, unknown=unknown
        )

    def learn_vocabulary(self, train: pl.LazyFrame, base: Any | None = None) -> Vocabulary:
        """The base's vocabulary, or one learned from the texts of the split."""
        if base is not None:
            vocabulary: Vocabulary = base.vocabulary
            return vocabulary
        found = (text for piece in pieces(train) for text in self.texts(piece))
        return Vocabulary(tokenizer=self.tokenizer.learn(found), max_length=self.max_length)


class Reading(NamedTuple):
    """How a published checkpoint reads texts: all that there is of a base's codec."""

    vocabulary: Vocabulary
    written_vocabulary: Vocabulary | None = None
    """That of what it writes, if this is another one."""
