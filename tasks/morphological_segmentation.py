"""Morphological segmentation: words as morphemes, in the form they have in the word or in their dictionary form."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple
from unicodedata import normalize

import polars as pl
from pydantic import BaseModel, Field
from torch import Tensor

from models.parts.options import Plain
from tasks.base import DatasetOptions, Facts, Metrics, Objective, Upload, read_fields
from tasks.parts.columns import Columns
from tasks.parts.problems import Invalid, Problem
from tasks.parts.splits import LINE, line_of
from tasks.parts.tables import SHOWN, Faults, batches, check_mapping, read_table, text_lines
from tasks.parts.texts import check_text, measure
from tasks.parts.vocabulary import Characters, Tokenizer
from tasks.parts.writing import MAX_BEAMS, WritingCodec, WritingTask

MARK = "@@"
MAX_WORD = 1_000
"""Characters of a word."""
WORST = 10
_ROLES = ("word", "morphemes", "category")
_JOINT = re.compile(r"\s+@@")
_TAGGED = re.compile(r"(.+)/([A-Z][A-Z0-9+_-]*)", re.DOTALL)
_SPACE = "_"
"""What stands for a space within a morpheme, since spaces stand between them."""


class WordInput(Plain):
    """One word."""

    word: str = Field(
        max_length=MAX_WORD,
        description="A word; of Korean, all that stands between two spaces.",
        examples=["unhappiness"],
    )


class Morphemes(Plain):
    """The morphemes of a word."""

    morphemes: list[str] = Field(description="Its morphemes in their order.")
    tags: list[str] | None = Field(
        None, description="The tag of each morpheme, if the model was trained with tags."
    )
    score: float = Field(
        description="How sure the model is: the geometric mean of the probabilities of what it wrote."
    )


class SegmentationCodec(WritingCodec):
    """The characters of words and morphemes, and whether morphemes have tags."""

    tagged: bool

    def encode(self, examples: pl.DataFrame, *, targets: bool = True) -> Columns:
        columns = self._encode_words(examples["word"].to_list())
        if not targets:
            return columns
        return Columns(columns.inputs, (self.encode_targets(_written(examples)),))

    def _encode_words(self, words: Sequence[str]) -> Columns:
        return self.encode_sources(map(_plain, words), self.usual_choices(len(words)))

    def read_input(self, value: Any) -> WordInput:
        read = read_fields(WordInput, value)
        check_text(read.word, "word")
        return read

    def blank(self) -> WordInput:
        return WordInput(word="a")

    def length(self, given: WordInput) -> int:
        return max(1, len(given.word))

    def encode_inputs(self, inputs: Sequence[WordInput]) -> Columns:
        return self._encode_words([given.word for given in inputs])

    def decode(self, outputs: Tensor) -> list[Any]:
        return [self._morphemes(text, score) for text, score in self.written(outputs)]

    def _morphemes(self, text: str, score: float) -> Morphemes:
        parts = [part.replace(_SPACE, " ") for part in text.split(" ") if part]
        tags = None
        if self.tagged:
            found = [_TAGGED.fullmatch(part) for part in parts]
            tags = [match[2] if match else "" for match in found]
            parts = [match[1] if match else part for part, match in zip(parts, found, strict=True)]
        return Morphemes.model_construct(morphemes=parts, tags=tags, score=score)


class MorphologicalSegmentation(WritingTask):
    """Take words apart into morphemes, as they stand there or in dictionary form, with tags if the data has them."""

    name: Literal["morphological-segmentation"] = "morphological-segmentation"
    num_beams: int = Field(
        1, ge=1, le=MAX_BEAMS, description="How many answers are followed at once (beam search)."
    )

    input_type: ClassVar[type[BaseModel]] = WordInput
    prediction_type: ClassVar[type[BaseModel]] = Morphemes
    codec_type = SegmentationCodec
    objective = Objective("f1")
    formats: ClassVar[Mapping[str, str]] = {
        "segments": "A word, a tab, its morphemes as `un @@happy @@ness`, and perhaps a tab and a category; no "
        "header. A morpheme may carry a tag: `먹/VV @@었/EP`.",
        "csv": "Columns word and morphemes, these as `un @@happy @@ness`, and perhaps a column category.",
        "tsv": "The same with tabs and a header.",
        "jsonl": 'One object per line: {"word": "unhappy", "morphemes": ["un", "happy"]}; or these in one string.',
        "parquet": "Apache Parquet with the same columns.",
    }
    metrics: ClassVar[Mapping[str, str]] = {
        "f1": "F1 of morphemes, all words together (SIGMORPHON 2022): right is what the truth has, in any order.",
        "precision": "Share of the morphemes answered that are right.",
        "recall": "Share of the right morphemes that are answered.",
        "word_accuracy": "Share of the words whose morphemes are all right, in their order.",
        "tag_accuracy": "Share of the words whose morphemes and tags are all right; without tags, `word_accuracy`.",
    }

    @classmethod
    def read(cls, upload: Upload, options: DatasetOptions) -> pl.DataFrame:
        check_mapping(options.column_mapping, _ROLES)
        if options.format not in (None, *cls.formats):
            problem = Problem(("format",), "no such format", options.format, sorted(cls.formats))
            raise Invalid(problem)
        if upload.path.stat().st_size == 0:
            raise Invalid(Problem((), "the file is empty", upload.name, sorted(cls.formats)))
        bare = options.format == "segments" or (options.format is None and _is_bare(upload))
        frame = _read_bare(upload) if bare else _read_columns(upload, options)
        kept = [options.split.by] if options.split.by in frame.columns else []
        return _checked(frame.select(*kept, LINE, "word", "morphemes", "category"))

    @classmethod
    def identity(cls, examples: pl.DataFrame, schema: Mapping[str, Any]) -> list[str]:
        return ["word"]

    @classmethod
    def describe(
        cls, splits: Mapping[str, pl.DataFrame], options: DatasetOptions
    ) -> tuple[dict[str, pl.DataFrame], dict[str, Any], dict[str, Any]]:
        tagged = [_TAGGED.fullmatch(m) is not None for m in _all(splits["train"])]
        has_tags = all(tagged)
        if any(tagged) and sum(tagged) >= len(tagged) / 2:
            _check_tags(splits)
            has_tags = True
        frames = {
            name: frame.select("word", "morphemes", "category") for name, frame in splits.items()
        }
        train = frames["train"]
        written = pl.Series(_written(train))
        words, target = (
            measure(train["word"].map_elements(_letters, pl.String)),
            measure(written.map_elements(_letters, pl.String)),
        )
        parts = [_split(m, has_tags) for m in train["morphemes"]]
        report = {
            "tagged": has_tags,
            "surface_share": sum(
                "".join(p.morphemes) == normalize("NFC", word)
                for p, word in zip(parts, train["word"], strict=True)
            )
            / train.height,
            "morphemes_per_word": dict(sorted(Counter(len(p.morphemes) for p in parts).items())),
            **words,
        }
        schema = {"tagged": has_tags, **words, "target": target}
        return frames, schema, report

    @classmethod
    def texts(cls, examples: pl.DataFrame) -> Sequence[str]:
        return [*map(_plain, examples["word"]), *_written(examples)]

    def choose_tokenizer(self, facts: Facts) -> Tokenizer:
        # Taken apart, a syllable of Korean shows the ending that was drawn into it.
        return Characters(lowercase=False, normalization="nfd", size=2_000)

    def most_tokens(self, facts: Facts) -> int:
        # Words have no rest that could be left out.
        return min(2 * super().most_tokens(facts) + 8, MAX_WORD)

    def most_target_tokens(self, facts: Facts) -> int:
        return 2 * int(facts.schema["target"]["characters"]["most"])

    def targets(self, examples: pl.DataFrame) -> list[str]:
        return _written(examples)

    def learn_codec(
        self, train: pl.LazyFrame, schema: Mapping[str, Any], base: Any | None = None
    ) -> SegmentationCodec:
        fields = self.learn_writing(train, base)
        return SegmentationCodec(**{**fields, "no_repeat_ngram": 0}, tagged=schema["tagged"])

    def score(self, predictions: Sequence[Any], examples: pl.DataFrame) -> Metrics:
        return _score(predictions, _truth(predictions, examples))

    def evaluate(self, predictions: Sequence[Any], examples: pl.DataFrame) -> dict[str, Any]:
        truth = _truth(predictions, examples)
        groups: dict[str, list[int]] = {}
        for row, right in enumerate(truth):
            category = examples["category"][row]
            groups.setdefault(category or f"{len(right.morphemes)} morphemes", []).append(row)
        wrong = [row for row, right in enumerate(truth) if not _same(predictions[row], right)]
        wrong.sort(key=lambda row: -predictions[row].score)
        return {
            **_score(predictions, truth),
            "per_class": {
                name: {
                    **_score([predictions[r] for r in rows], [truth[r] for r in rows]),
                    "support": len(rows),
                }
                for name, rows in sorted(groups.items())
            },
            "worst": [
                {
                    "row": row,
                    "word": examples["word"][row],
                    "truth": examples["morphemes"][row],
                    "predicted": predictions[row].morphemes,
                    "score": predictions[row].score,
                }
                for row in wrong[:WORST]
            ],
        }


# Morphemes as text and back


class _Segments(NamedTuple):
    morphemes: list[str]
    tags: list[str] | None


def _plain(word: str) -> str:
    return "_".join(word.split())


def _written(examples: pl.DataFrame) -> list[str]:
    """The morphemes of each word as they are learned: with a space between them."""
    return [" ".join(map(_plain, morphemes)) for morphemes in examples["morphemes"].to_list()]


def _letters(text: str) -> str:
    return normalize("NFD", text)


def _all(examples: pl.DataFrame) -> list[str]:
    found: list[str] = examples["morphemes"].explode().to_list()
    return found


def _split(morphemes: Sequence[str], tagged: bool) -> _Segments:
    """Morphemes as a prediction has them."""
    composed = [normalize("NFC", " ".join(m.split())) for m in morphemes]
    if not tagged:
        return _Segments(composed, None)
    found = [_TAGGED.fullmatch(m) for m in composed]
    pairs = [(m[1], m[2]) if m else (text, "") for m, text in zip(found, composed, strict=True)]
    return _Segments([m for m, _ in pairs], [tag for _, tag in pairs])


# Reading


def _is_bare(upload: Upload) -> bool:
    """Whether the first line is a word and its morphemes, and no header."""
    with upload.path.open("rb") as file:
        head = file.readline(1 << 16).decode("utf-8", "replace").removeprefix("\ufeff")
    cells = head.rstrip("\r\n").split("\t")
    if len(cells) not in (2, 3) or head.startswith(("{", "PAR1")):
        return False
    return cells[0].strip().lower() != "word"


def _read_bare(upload: Upload) -> pl.DataFrame:
    faults, found = Faults(), []
    for some in batches(enumerate(text_lines(upload.path), start=1)):
        for number, line in some:
            if not line.strip():
                continue
            cells = line.rstrip("\r\n").split("\t")
            if len(cells) in (2, 3):
                category = cells[2] if len(cells) == 3 else None
                found.append((number, cells[0], _parts(cells[1]), category))
            else:
                allowed = "word TAB un @@happy, and perhaps TAB category"
                faults.add(("line", number), "wrong number of cells", len(cells), allowed)
    faults.check()
    if not found:
        raise Invalid(Problem((), "the file has no rows", upload.name, "one word per line"))
    types: dict[str, Any] = {LINE: pl.Int64, "word": pl.String, "morphemes": pl.List(pl.String)}
    return pl.DataFrame(found, {**types, "category": pl.String}, orient="row")


def _read_columns(upload: Upload, options: DatasetOptions) -> pl.DataFrame:
    frame = read_table(upload, options.format, lists=True)
    names = {role: options.column_mapping.get(role, role) for role in _ROLES}
    columns = [name for name in frame.columns if name != LINE][:SHOWN]
    problems = [
        Problem(("options", "column_mapping", role), "no such column in the file", name, columns)
        for role, name in names.items()
        if name not in frame.columns and (role != "category" or role in options.column_mapping)
    ]
    if problems:
        raise Invalid(*problems)
    cells = frame[names["morphemes"]]
    if cells.dtype != pl.List(pl.String):
        cells = cells.cast(pl.String)
    parts = [_all_parts(cell) for cell in cells.to_list()]
    category = frame[names["category"]] if names["category"] in frame.columns else None
    return frame.with_columns(
        frame[names["word"]].cast(pl.String).alias("word"),
        pl.Series("morphemes", parts, pl.List(pl.String)),
        pl.lit(None, pl.String).alias("category")
        if category is None
        else category.cast(pl.String).alias("category"),
    )


def _parts(text: str) -> list[str]:
    return [part.strip() for part in _JOINT.split(text.strip())]


def _all_parts(cell: str | list[str] | None) -> list[str]:
    texts = [cell] if isinstance(cell, str) else cell or []
    return [part for text in texts for part in _parts(text)]


def _checked(examples: pl.DataFrame) -> pl.DataFrame:
    """The examples. Raises Invalid, naming the lines, for words that are empty or too long, and empty morphemes."""
    problems: list[Problem] = []
    for row, (word, parts) in enumerate(examples.select("word", "morphemes").iter_rows()):
        where = ("line", line_of(examples, row))
        if not word or not word.strip():
            problems.append(Problem((*where, "word"), "there is no word", word, "a word"))
        elif len(word) > MAX_WORD:
            allowed = f"at most {MAX_WORD} characters"
            problems.append(Problem((*where, "word"), "the word is too long", len(word), allowed))
        if not parts or not all(part and part.strip() for part in parts):
            allowed = f"one or more, as `un {MARK}happy`"
            problems.append(Problem((*where, "morphemes"), "a morpheme is empty", parts, allowed))
        elif sum(map(len, parts)) > MAX_WORD:
            problems.append(
                Problem((*where, "morphemes"), "too long", None, f"at most {MAX_WORD} characters")
            )
        if len(problems) >= Invalid.LIMIT:
            break
    if problems:
        raise Invalid(*problems)
    return examples


def _check_tags(splits: Mapping[str, pl.DataFrame]) -> None:
    """Raises Invalid, naming the lines, where some morphemes have tags and others have none."""
    problems = [
        Problem(
            (split, "line", line_of(frame, row), "morphemes"),
            "most morphemes have a tag, this one has none",
            bare,
            "a tag in capitals: `먹/VV`",
        )
        for split, frame in splits.items()
        for row, parts in enumerate(frame["morphemes"].to_list())
        if (bare := next((p for p in parts if not _TAGGED.fullmatch(p)), None)) is not None
    ]
    if problems:
        raise Invalid(*problems)


# What answers are worth


def _truth(predictions: Sequence[Any], examples: pl.DataFrame) -> list[_Segments]:
    tagged = predictions[0].tags is not None
    return [_split(morphemes, tagged) for morphemes in examples["morphemes"].to_list()]


def _same(prediction: Any, truth: _Segments) -> bool:
    return bool(prediction.morphemes == truth.morphemes and prediction.tags == truth.tags)


def _score(predictions: Sequence[Any], truth: Sequence[_Segments]) -> Metrics:
    """As SIGMORPHON 2022 counts (Batsuren et al., 2022): a word's morphemes as a bag, all words together."""
    hits = found = wanted = 0
    for prediction, right in zip(predictions, truth, strict=True):
        hits += (Counter(prediction.morphemes) & Counter(right.morphemes)).total()
        found += len(prediction.morphemes)
        wanted += len(right.morphemes)
    words = sum(p.morphemes == t.morphemes for p, t in zip(predictions, truth, strict=True))
    both = sum(map(_same, predictions, truth))
    return {
        "f1": 2 * hits / max(1, found + wanted),
        "precision": hits / max(1, found),
        "recall": hits / max(1, wanted),
        "word_accuracy": words / len(truth),
        "tag_accuracy": both / len(truth),
    }
