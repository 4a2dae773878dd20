"""What tasks share that read one sequence of tokens and write another: their codec, and how they learn."""

from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Self
from unicodedata import normalize

import numpy as np
import polars as pl
import torch
from pydantic import Field
from torch import Tensor

from models.base import PADDING, SENTENCE_END, Learner
from models.lstm_to_lstm import LSTMToLSTM
from models.parts.options import AUTO, Auto, OneOf, Plain
from models.parts.published import Published
from models.parts.writing import SequenceToSequence, Writer
from tasks.base import Codec, Facts
from tasks.parts.columns import Columns, Dense, Ragged, ragged
from tasks.parts.examples import pieces
from tasks.parts.problems import Invalid, Problem
from tasks.parts.reading import MAX_TOKENS, MaxLength, TextTask
from tasks.parts.vocabulary import Vocabulary, unmarked

MAX_WRITTEN = 1_024
MAX_BEAMS = 16
_NGRAMS = range(3, 7)
_REPEATING = 0.01
"""Share of targets with an n-gram twice that is too much to forbid them."""


class WritingParameters(Plain):
    """How an answer is written."""

    num_beams: int | None = Field(
        None,
        ge=1,
        le=MAX_BEAMS,
        description="Answers followed at once, of which the best is given (beam search); 1 takes the likeliest "
        "token each time. Left out: what the task was trained with.",
    )
    max_new_tokens: int | None = Field(
        None,
        ge=1,
        le=MAX_WRITTEN,
        description="Tokens of an answer at most. Left out: a quarter more than nearly all targets have.",
    )
    length_penalty: float = Field(
        1.0,
        ge=0,
        le=5,
        description="Answers are compared by their log probability over this power of their length; more is longer.",
    )
    no_repeat_ngram: int | None = Field(
        None,
        ge=0,
        le=16,
        description="No so many tokens in a row occur twice in an answer; 0: any may. Left out: the least of 3 "
        "to 6 of which hardly any target has two alike.",
    )
    temperature: float = Field(
        0.0,
        ge=0,
        le=10,
        description="0 gives the best answer; above, tokens are drawn at random, the more evenly the higher.",
    )
    top_k: int = Field(0, ge=0, le=200_000, description="Draw from so many tokens; 0: from all.")
    top_p: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Draw from the likeliest tokens that together have this probability.",
    )
    seed: int = Field(
        0, ge=0, lt=2**31, description="What is drawn: same seed, same answer to the same source."
    )


class WritingCodec(Codec):
    """A vocabulary of sources and targets, and how answers are written where a request leaves it open."""

    vocabulary: Vocabulary
    written_vocabulary: Vocabulary | None = None
    """That of targets, if this is another one; its tokens have the same ids."""
    longest: int
    """Tokens of a target that are learned, its end included."""
    beams: int
    usual_length: int
    no_repeat_ngram: int

    @property
    def of_targets(self) -> Vocabulary:
        return self.written_vocabulary or self.vocabulary

    def encode_sources(self, sources: Iterable[str], how: Tensor) -> Columns:
        """Tokens of the sources, and the `Choice` (N, 8) of how to answer each."""
        return Columns((self.vocabulary.encode(sources), Dense(how)))

    def encode_targets(self, targets: Iterable[str]) -> Ragged:
        """Tokens of the targets, each with its end; what is too long is cut and has none."""
        ended = ([*ids, SENTENCE_END] for ids in self.of_targets.whole(map(unmarked, targets)))
        return ragged([ids[: self.longest] for ids in ended])

    def choices(self, parameters: Sequence[WritingParameters]) -> Tensor:
        """How to write, (N, 8), in the order of `Choice`."""
        rows = [
            [
                given.num_beams or self.beams,
                given.max_new_tokens or self.usual_length,
                given.length_penalty,
                self.no_repeat_ngram if given.no_repeat_ngram is None else given.no_repeat_ngram,
                given.temperature,
                given.top_k,
                given.top_p,
                given.seed,
            ]
            for given in parameters
        ]
        return torch.tensor(rows, dtype=torch.float64)

    def usual_choices(self, rows: int) -> Tensor:
        """How to write where nothing is asked for: (rows, 8)."""
        return self.choices([WritingParameters()]).repeat(rows, 1)

    def written(self, outputs: Tensor) -> list[tuple[str, float]]:
        """The text that each row (1 + T) of outputs says, and its score."""
        ids = outputs[:, 1:].long().tolist()
        texts = (self.of_targets.whole_text([i for i in row if i != PADDING]) for row in ids)
        texts = (normalize("NFC", text) for text in texts)
        return list(zip(texts, outputs[:, 0].tolist(), strict=True))


class WritingTask(TextTask):
    """A task whose learner is a `Writer`, and whose codec a `WritingCodec`."""

    architecture: Auto[OneOf[SequenceToSequence]] = Field(
        AUTO, description="What reads sources and writes targets."
    )
    max_target_length: Auto[MaxLength] = Field(
        AUTO, description="Tokens of a target that are learned; the rest is cut."
    )
    copying: Auto[bool] = Field(
        AUTO,
        description="Let tokens be copied from the source (pointer-generator, See et al., 2017); `auto`: unless the "
        "architecture is `pretrained`. A base brings its own.",
    )
    label_smoothing: float = Field(
        0.1, ge=0, lt=1, description="Share of each target token spread over the vocabulary."
    )
    num_beams: int = Field(
        4,
        ge=1,
        le=MAX_BEAMS,
        description="Beams where a request asks for no number, and of every answer that is judged, in each epoch too.",
    )

    divides = False
    of_base = ("architecture", "tokenizer", "max_length", "copying")

    @abstractmethod
    def most_target_tokens(self, facts: Facts) -> int:
        """How many tokens hardly any target has more of."""

    @abstractmethod
    def targets(self, examples: pl.DataFrame) -> list[str]:
        """The targets of a piece of a split, as they are learned."""

    def resolve(self, facts: Facts) -> Self:
        task = super().resolve(facts)
        most = task.architecture.most_written
        if most is not None and task.max_target_length != AUTO and task.max_target_length > most:
            message, found = "the checkpoint writes no texts as long", task.max_target_length
            allowed = f"at most {most}"
            raise Invalid(Problem(("task", "max_target_length"), message, found, allowed))
        length = 1 + min(MAX_TOKENS, max(8, task.most_target_tokens(facts)))
        chosen = {
            "max_target_length": length if most is None else min(length, most),
            "copying": task.architecture.copies,
        }
        update = {name: value for name, value in chosen.items() if getattr(task, name) == AUTO}
        return task.model_copy(update=update)

    def choose_architecture(self, facts: Facts) -> SequenceToSequence:
        return LSTMToLSTM()

    def reading(self, published: Published) -> Any:
        found = super().reading(published)
        written = self.published_vocabulary(published, writes=True)
        return found if written == found.vocabulary else found._replace(written_vocabulary=written)

    def learn_writing(self, train: pl.LazyFrame, base: Any | None = None) -> dict[str, Any]:
        """The fields of a `WritingCodec`."""
        vocabulary = self.learn_vocabulary(train, base)
        written = None if base is None else base.written_vocabulary
        lengths: list[int] = []
        repeating: Counter[int] = Counter()
        for piece in pieces(train):
            for ids in (written or vocabulary).whole(map(unmarked, self.targets(piece))):
                lengths.append(len(ids))
                repeating.update(size for size in _NGRAMS if _repeats(ids, size))
        most = _REPEATING * len(lengths)
        usual = int(1.25 * np.percentile(lengths, 99)) + 2
        return {
            "vocabulary": vocabulary,
            "written_vocabulary": written,
            "longest": self.max_target_length,
            "beams": self.num_beams,
            "usual_length": min(usual, MAX_WRITTEN, self.max_target_length),
            "no_repeat_ngram": next((n for n in _NGRAMS if repeating[n] <= most), 0),
        }

    def build(self, codec: Any) -> Learner:
        backbone = self.architecture.build(codec.vocabulary.size)
        return Writer(backbone, copying=self.copying, label_smoothing=self.label_smoothing)

    def same_outputs(self, codec: Any, base: Any) -> bool:
        return bool(
            codec.vocabulary == base.vocabulary
            and codec.written_vocabulary == base.written_vocabulary
        )


def _repeats(ids: Sequence[int], size: int) -> bool:
    """Whether any so many tokens in a row occur twice."""
    count = max(0, len(ids) - size + 1)
    return len({tuple(ids[place : place + size]) for place in range(count)}) < count
