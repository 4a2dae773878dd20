"""Tags of tokens, plain or of spans: schemes, checks, codec, predictions, and what predictions are worth."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import polars as pl
import torch
from pydantic import Field
from torch import Tensor

from models.parts.options import Plain
from tasks.base import Codec, Metrics, read_fields
from tasks.parts.columns import Columns, Ragged
from tasks.parts.problems import Invalid, Problem
from tasks.parts.sentences import (
    Sentence,
    TokensInput,
    check_sentence,
    encode_sentences,
    of_examples,
    sentence,
)
from tasks.parts.splits import LINE, line_of
from tasks.parts.vocabulary import Vocabulary

TAG_METRICS: dict[str, str] = {
    "f1": "F1 of the spans, each right only as a whole; of plain tags the accuracy.",
    "precision": "Share of the spans found that are right.",
    "recall": "Share of the spans that are found.",
    "macro_f1": "F1 of each label, averaged: every label counts the same.",
    "accuracy": "Share of the tokens whose tag is right.",
}
OUTSIDE = "O"
LINES = "\0lines"
"""A column a reader may add: where each token stood in its file. `describe_tags` drops it."""
MAX_TAGS = 1_000
WORST = 10
_OF_SPAN = re.compile(r"([BIESLU])-(.+)", re.DOTALL)
_BEGINS, _GOES_ON = {"B", "S", "U"}, {"I", "E", "L"}


class Entity(Plain):
    """A span of tokens."""

    label: str = Field(description="What it is.")
    start: int = Field(description="Where it begins, in characters of the text.")
    end: int = Field(description="Where it ends: the character behind it.")
    text: str = Field(description="What stands there.")
    score: float = Field(description="How likely its tags are, on average.")


class TagsPrediction(Plain):
    """The tag of each token, and the spans that they make. Tokens behind the longest that is read have none.

    Positions are those of the text; of tokens that came without one, those of the tokens with a space between.
    """

    tokens: list[str] = Field(description="The tokens, as given or as the text was cut.")
    tags: list[str] = Field(description="The tag of each.")
    scores: list[float] = Field(description="The probability of each tag.")
    starts: list[int] = Field(description="Where each token begins.")
    entities: list[Entity] = Field(description="The spans; none where tags are plain ones.")


class Span(NamedTuple):
    """Some tokens in a row that have a label: `end` is behind the last."""

    label: str
    start: int
    end: int


def spans_of(tags: Sequence[str]) -> list[Span]:
    """The spans of BIO tags; one that begins with I- counts, as in the metric of CoNLL-2003."""
    found: list[Span] = []
    label, start = "", 0
    for place, tag in enumerate([*tags, OUTSIDE]):
        goes_on = tag[:1] == "I" and tag[2:] == label
        if label and not goes_on:
            found.append(Span(label, start, place))
            label = ""
        if tag != OUTSIDE and not goes_on:
            label, start = tag[2:], place
    return found


def span_tags(spans: Iterable[Span], tokens: int) -> list[str]:
    """The BIO tags of spans that have no token in common."""
    tags = [OUTSIDE] * tokens
    for label, start, end in spans:
        tags[start:end] = [f"B-{label}", *[f"I-{label}"] * (end - start - 1)]
    return tags


def are_spans(tags: Iterable[str]) -> bool:
    """Whether these different tags are all of spans in BIO."""
    found = set(tags) - {OUTSIDE}
    return bool(found) and all(tag[:2] in ("B-", "I-") and tag[2:] for tag in found)


# Checks of uploads


class _Scheme(NamedTuple):
    """How the tags of a data set mark spans."""

    name: Literal["BIO", "IOB1", "BIOES", "plain"]

    def normalise(self, tags: Sequence[str]) -> tuple[list[str], list[int]]:
        """The same spans in BIO, and where one begins in the middle, against the scheme."""
        found, repaired, before = [], [], OUTSIDE
        for place, tag in enumerate(tags):
            match = _OF_SPAN.fullmatch(tag)
            if match is None:
                found.append(OUTSIDE)
            else:
                mark, label = match.groups()
                inside = mark in _GOES_ON and before[2:] == label
                if mark in _GOES_ON and not inside and self.name != "IOB1":
                    repaired.append(place)
                found.append(f"{'I' if inside else 'B'}-{label}")
            before = found[-1]
        return found, repaired


def _scheme(sentences: pl.Series) -> _Scheme:
    """The scheme by what the train split has most of."""
    counts = dict(sentences.explode().drop_nulls().value_counts().iter_rows())
    marks: Counter[str] = Counter()
    for tag, count in counts.items():
        if match := _OF_SPAN.fullmatch(tag):
            marks[match[1]] += count
    if marks.total() <= sum(counts.values()) - counts.get(OUTSIDE, 0) - marks.total():
        return _Scheme("plain")
    if marks.keys() - {"B", "I"}:
        return _Scheme("BIOES")
    begun = {
        (tag[0], tag[2:] == before[2:])
        for tags in sentences
        for before, tag in zip([OUTSIDE, *tags], tags, strict=False)
        if tag != OUTSIDE
    }
    # There, B- is only for a span right behind another one of the same label.
    return _Scheme("IOB1" if ("I", False) in begun and ("B", False) not in begun else "BIO")


def describe_tags(
    splits: Mapping[str, pl.DataFrame],
) -> tuple[dict[str, pl.DataFrame], dict[str, Any], dict[str, Any]]:
    """Splits whose tags of spans are BIO, what is known of the tags, and a report.

    Raises Invalid for tags that are none, and where there is nothing to tell apart.
    """
    scheme = _scheme(splits["train"]["tags"])
    frames, problems, repaired = {}, [], {}
    for name, frame in splits.items():
        problems += _faults(name, frame, scheme)
        tags = frame["tags"]
        if scheme.name != "plain":
            found = [scheme.normalise(tags) for tags in frame["tags"]]
            tags = pl.Series("tags", [tags for tags, _ in found], pl.List(pl.String))
            where = [_line(frame, row, at) for row, (_, ats) in enumerate(found) for at in ats]
            repaired[name] = {"count": len(where), "lines": where[:WORST]}
        frames[name] = frame.with_columns(tags).drop(LINE, LINES, strict=False)
    if problems:
        raise Invalid(*problems)
    different = _tags(frames["train"])
    _check_number(different, scheme)
    labels = {name: _labels(frame["tags"]) for name, frame in frames.items()}
    known = sorted({label for counts in labels.values() for label in counts})
    report = {
        "scheme": scheme.name,
        "tokens": {name: int(f["tags"].list.len().sum()) for name, f in frames.items()},
        "labels": {
            label: {split: counts[label] for split, counts in labels.items()} for label in known
        },
        "unseen_labels": [label for label in known if not labels["train"][label]],
        **({"repaired": repaired} if repaired else {}),
    }
    return frames, {"tags": different, "spans": scheme.name != "plain"}, report


def _faults(split: str, frame: pl.DataFrame, scheme: _Scheme) -> list[Problem]:
    """Tags that are empty, and in a scheme of spans those that mark none."""
    allowed = {OUTSIDE} if scheme.name != "plain" else None
    wrong = {
        tag
        for tag in frame["tags"].explode().drop_nulls().unique()
        if not tag or (allowed and tag not in allowed and not _OF_SPAN.fullmatch(tag))
    }
    if not wrong:
        return []
    rows = (
        frame["tags"].list.eval(pl.element().is_in(list(wrong)).any()).list.first().fill_null(False)
    )
    found = [
        Problem(
            (split, "line", _line(frame, row, place), "tags"),
            "the tag is empty" if not tag else "not a tag of a span, as most others are",
            tag,
            None if not tag else "O, or B-, I- and so on before a label",
        )
        for row in rows.arg_true()[: Invalid.LIMIT]
        for place, tag in enumerate(frame["tags"][row])
        if tag in wrong
    ]
    return found[: Invalid.LIMIT]


def _line(frame: pl.DataFrame, row: int, place: int) -> int:
    """Where a token stood in its file."""
    return int(frame[LINES][row][place]) if LINES in frame.columns else line_of(frame, row)


def _tags(train: pl.DataFrame) -> list[str]:
    """The different tags in order, that of no span first."""
    found = set(train["tags"].explode().drop_nulls().unique())
    return sorted(found, key=lambda tag: (tag != OUTSIDE, tag))


def _check_number(tags: Sequence[str], scheme: _Scheme) -> None:
    if len(tags) > MAX_TAGS:
        allowed = f"at most {MAX_TAGS} different tags"
        problem = Problem(("train", "tags"), "too many; are these tags?", len(tags), allowed)
    elif scheme.name == "plain" and len(tags) < 2:
        problem = Problem(("train", "tags"), "one tag only", list(tags), "two or more tags")
    else:
        return
    raise Invalid(problem)


def _labels(tags: pl.Series) -> Counter[str]:
    """How often each label occurs: tokens of a plain tag, spans of a label."""
    counts: Counter[str] = Counter(dict(tags.explode().drop_nulls().value_counts().iter_rows()))
    if not are_spans(counts):
        return counts
    return Counter({tag[2:]: n for tag, n in counts.items() if tag.startswith("B-")})


# Codec


class TagsCodec(Codec):
    """A vocabulary, an alphabet, and the tags."""

    tags: list[str]
    vocabulary: Vocabulary
    alphabet: str
    """Characters that are told apart; none: only tokens are looked at."""
    syllables: bool
    """Whether texts in Korean are cut into syllables, as the tokens of the train split are."""

    def encode(self, examples: pl.DataFrame, *, targets: bool = True) -> Columns:
        tokens, words = encode_sentences(
            examples["tokens"].to_list(), self.vocabulary, self.alphabet
        )
        columns = (tokens, words)
        return Columns(columns, (self.encode_tags(examples["tags"], words),) if targets else ())

    def encode_tags(self, tags: pl.Series, words: Ragged) -> Ragged:
        """The numbers of the tags of the words that were not cut."""
        place = {tag: number for number, tag in enumerate(self.tags)}
        counts = words.lengths.tolist()
        # A tag that the train split lacks is never learned from: any number stands for it.
        numbers = [
            [place.get(tag, 0) for tag in some[:count]] or [0]
            for some, count in zip(tags, counts, strict=True)
        ]
        flat = torch.tensor([n for some in numbers for n in some], dtype=torch.int64)
        return Ragged(flat, words.offsets)

    def read_input(self, value: Any) -> TokensInput:
        read = read_fields(TokensInput, value)
        check_sentence(read)
        return read

    def blank(self) -> Any:
        return {"tokens": ["a"]}

    def length(self, given: TokensInput) -> int:
        """In tokens, about."""
        size = len(given.tokens or ()) or len(given.text or "") // 5
        return min(1 + size, self.vocabulary.max_length)

    def encode_inputs(self, inputs: Sequence[TokensInput]) -> Columns:
        sentences = [self.sentence(given).tokens for given in inputs]
        return Columns(encode_sentences(sentences, self.vocabulary, self.alphabet))

    def sentence(self, given: TokensInput) -> Sentence:
        """What was given as tokens, no more than are read."""
        most = self.vocabulary.max_length
        return sentence(given, syllables=self.syllables, most=most)

    def given(self, examples: pl.DataFrame) -> Sequence[TokensInput]:
        return of_examples(examples)

    def decode(self, outputs: Tensor) -> list[Any]:
        """Predictions from numbers of tags and probabilities (B, W, 2), -1 behind the last word."""
        return [
            TagsPrediction.model_construct(
                tokens=[], tags=tags, scores=scores, starts=[], entities=[]
            )
            for tags, scores in self.named(outputs)
        ]

    def named(self, outputs: Tensor) -> Iterator[tuple[list[str], list[float]]]:
        """The tags of each sentence, and how likely they are."""
        counts = (outputs[..., 0] >= 0).sum(1).tolist()
        numbers, scores = outputs[..., 0].long().tolist(), outputs[..., 1].tolist()
        for some, likely, count in zip(numbers, scores, counts, strict=True):
            yield [self.tags[number] for number in some[:count]], likely[:count]

    def complete(self, predictions: list[Any], inputs: Sequence[TokensInput]) -> list[Any]:
        return [
            prediction.model_copy(update=self.told(prediction.tags, prediction.scores, given))
            for prediction, given in zip(predictions, inputs, strict=True)
        ]

    def told(
        self, tags: Sequence[str], scores: Sequence[float], given: TokensInput
    ) -> dict[str, Any]:
        """Tokens, their tags, scores and places, and entities, of what was given."""
        tokens, text, starts = self.sentence(given)
        # Tokens whose own tokens do not fit were cut; a sentence without tokens has the tag of none.
        count = min(len(tokens), len(tags))
        entities = []
        for label, first, end in spans_of(tags[:count]) if are_spans(self.tags) else ():
            begin, stop = starts[first], starts[end - 1] + len(tokens[end - 1])
            score = sum(scores[first:end]) / (end - first)
            entities.append(
                Entity.model_construct(
                    label=label, start=begin, end=stop, text=text[begin:stop], score=score
                )
            )
        return {
            "tokens": list(tokens[:count]),
            "tags": list(tags[:count]),
            "scores": list(scores[:count]),
            "starts": list(starts[:count]),
            "entities": entities,
        }

    def rules(self) -> tuple[Tensor, Tensor]:
        """Which tags may come first (L,), and which after which (L, L)."""
        spans = are_spans(self.tags)
        inner = [spans and tag.startswith("I-") for tag in self.tags]
        first = ~torch.tensor(inner)
        after = [
            [
                not goes_on or tag[2:] == before[2:]
                for tag, goes_on in zip(self.tags, inner, strict=True)
            ]
            for before in self.tags
        ]
        return first, torch.tensor(after)


# What predictions are worth


class _Counts(NamedTuple):
    """By label: what is right, what was predicted, and what there is."""

    hits: Counter[str]
    predicted: Counter[str]
    wanted: Counter[str]

    def figures(self, label: str) -> tuple[float, float, float]:
        """Precision, recall, F1; 0 where nothing is there to divide by."""
        return _figures(self.hits[label], self.predicted[label], self.wanted[label])

    @property
    def labels(self) -> list[str]:
        return sorted({*self.predicted, *self.wanted})


def _figures(hits: int, predicted: int, wanted: int) -> tuple[float, float, float]:
    return (
        hits / max(1, predicted),
        hits / max(1, wanted),
        2 * hits / max(1, predicted + wanted),
    )


def _aligned(predictions: Sequence[Any], truth: Sequence[Sequence[str]]) -> list[list[str]]:
    """Predicted tags, as many as there are true ones: whatever was cut has none."""
    return [
        [*p.tags[: len(tags)], *[""] * (len(tags) - len(p.tags))]
        for p, tags in zip(predictions, truth, strict=True)
    ]


def _marked(tags: Sequence[str], *, spans: bool) -> list[Span]:
    """What is to be found in a sentence: spans, or of plain tags each token."""
    if spans:
        return spans_of([tag or OUTSIDE for tag in tags])
    return [Span(tag, place, place + 1) for place, tag in enumerate(tags) if tag]


def _count(found: Sequence[Sequence[str]], truth: Sequence[Sequence[str]]) -> _Counts:
    kinds = {tag for tags in (*truth, *found) for tag in tags if tag}
    spans = are_spans(kinds)
    hits, predicted, wanted = Counter[str](), Counter[str](), Counter[str]()
    for mine, its in zip(found, truth, strict=True):
        here, there = set(_marked(mine, spans=spans)), set(_marked(its, spans=spans))
        hits.update(span.label for span in here & there)
        predicted.update(span.label for span in here)
        wanted.update(span.label for span in there)
    return _Counts(hits, predicted, wanted)


def score_tags(predictions: Sequence[Any], truth: Sequence[Sequence[str]]) -> Metrics:
    """Every metric of `TAG_METRICS`: of spans those of CoNLL-2003, as seqeval counts them, too."""
    found = _aligned(predictions, truth)
    counts = _count(found, truth)
    precision, recall, f1 = _figures(*(c.total() for c in counts))
    right = sum(
        m == i
        for mine, its in zip(found, truth, strict=True)
        for m, i in zip(mine, its, strict=True)
    )
    each = [counts.figures(label)[2] for label in counts.labels]
    return {
        "f1": f1,
        "precision": precision,
        "recall": recall,
        "macro_f1": float(np.mean(each)) if each else 0.0,
        "accuracy": right / max(1, sum(map(len, truth))),
    }


def evaluate_tags(predictions: Sequence[Any], truth: Sequence[Sequence[str]]) -> dict[str, Any]:
    """The metrics, figures of every label, the confusion of tokens' labels, and the worst sentences.

    A row of the confusion matrix is a true label, O for none; the worst have most tags wrong.
    """
    found = _aligned(predictions, truth)
    counts = _count(found, truth)
    rows = zip(counts.labels, map(counts.figures, counts.labels), strict=True)
    return {
        **score_tags(predictions, truth),
        "per_class": {
            label: {"precision": p, "recall": r, "f1": f, "support": counts.wanted[label]}
            for label, (p, r, f) in rows
        },
        "confusion": _confusion(found, truth),
        "worst": _worst(found, truth),
    }


def _confusion(found: Sequence[Sequence[str]], truth: Sequence[Sequence[str]]) -> dict[str, Any]:
    pairs = Counter(
        pair for mine, its in zip(found, truth, strict=True) for pair in zip(its, mine, strict=True)
    )
    spans = are_spans({tag for pair in pairs for tag in pair if tag})
    cells: Counter[tuple[str, str]] = Counter()
    for (is_, said), count in pairs.items():
        cells[_plain(is_, spans=spans), _plain(said, spans=spans)] += count
    labels = sorted(
        {label for pair in cells for label in pair}, key=lambda tag: (tag != OUTSIDE, tag)
    )
    return {
        "labels": labels,
        "counts": [[cells[is_, said] for said in labels] for is_ in labels],
    }


def _plain(tag: str, *, spans: bool) -> str:
    return tag[2:] or OUTSIDE if spans else tag


def _worst(found: Sequence[Sequence[str]], truth: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
    wrong = [
        sum(m != i for m, i in zip(mine, its, strict=True))
        for mine, its in zip(found, truth, strict=True)
    ]
    order = np.argsort(-np.array(wrong, dtype=np.int64), kind="stable")[:WORST].tolist()
    return [
        {"row": row, "wrong": wrong[row], "truth": truth[row], "predicted": found[row]}
        for row in order
        if wrong[row]
    ]
