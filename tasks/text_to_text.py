"""Text to text: a text written from another one, as translations, summaries and texts about data are."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import polars as pl
from pydantic import BaseModel, Field
from torch import Tensor

from models.parts.options import Plain
from tasks.base import DatasetOptions, Facts, Metrics, Objective, Upload, read_fields
from tasks.parts.columns import Columns
from tasks.parts.problems import Invalid, Problem
from tasks.parts.reading import LONG_TOKEN
from tasks.parts.splits import LINE, line_of, shown
from tasks.parts.tables import SHOWN, TABLE_FORMATS, check_mapping, pick_column, read_table
from tasks.parts.texts import check_text, measure
from tasks.parts.vocabulary import MAX_TEXT, BytePairs, Tokenizer
from tasks.parts.writing import WritingCodec, WritingParameters, WritingTask
from tasks.parts.written import WRITING_METRICS, score_texts, worst_texts

USUAL = {
    "source": ("source", "src", "text", "document", "dialogue", "article", "input"),
    "target": (
        *("targets", "summaries", "references", "target", "tgt", "summary", "translation"),
        *("reference", "headline", "title", "output"),
    ),
}


class TextToTextInput(WritingParameters):
    """One text to answer, and how."""

    source: str = Field(
        max_length=MAX_TEXT,
        description="Any text: to translate, to sum up, to put into words.",
        examples=["A man in an orange hat."],
    )


class TextToTextPrediction(Plain):
    """The text that was written."""

    target: str = Field(description="The answer.")
    score: float = Field(
        description="How sure the model is: the geometric mean of its tokens' probabilities."
    )


class TextToTextCodec(WritingCodec):
    """A vocabulary of sources and targets, and how answers are written."""

    def encode(self, examples: pl.DataFrame, *, targets: bool = True) -> Columns:
        columns = self.encode_sources(examples["source"], self.usual_choices(examples.height))
        if not targets:
            return columns
        return Columns(columns.inputs, (self.encode_targets(_first(examples)),))

    def read_input(self, value: Any) -> TextToTextInput:
        read = read_fields(TextToTextInput, value)
        check_text(read.source, "source")
        return read

    def blank(self) -> TextToTextInput:
        return TextToTextInput(source="a", max_new_tokens=1)

    def length(self, given: TextToTextInput) -> int:
        """In characters, those aside that are likely to be cut off."""
        return min(len(given.source), LONG_TOKEN * self.vocabulary.max_length)

    def encode_inputs(self, inputs: Sequence[TextToTextInput]) -> Columns:
        return self.encode_sources([given.source for given in inputs], self.choices(inputs))

    def decode(self, outputs: Tensor) -> list[Any]:
        make = TextToTextPrediction.model_construct
        return [make(target=text, score=score) for text, score in self.written(outputs)]


class TextToText(WritingTask):
    """Write a text from a text: translate, sum up, put data into words."""

    name: Literal["text-to-text"] = "text-to-text"

    bulky = ("source",)
    input_type: ClassVar[type[BaseModel]] = TextToTextInput
    parameters_type = WritingParameters
    prediction_type: ClassVar[type[BaseModel]] = TextToTextPrediction
    codec_type = TextToTextCodec
    objective = Objective("chrf")
    formats: ClassVar[Mapping[str, str]] = {
        **TABLE_FORMATS,
        "jsonl": "One JSON object per line with a source and a target, or a list of targets, all of them right.",
        "parquet": "Apache Parquet with a source and a target; targets may be lists of strings.",
    }
    metrics = WRITING_METRICS

    @classmethod
    def read(cls, upload: Upload, options: DatasetOptions) -> pl.DataFrame:
        check_mapping(options.column_mapping, list(USUAL))
        frame = read_table(upload, options.format, lists=True)
        source, target = _choose(frame, options)
        targets = frame[target]
        if targets.dtype != pl.List(pl.String):
            targets = _alone(targets)
        kept = [name for name in (options.split.by, LINE) if name in frame.columns]
        examples = frame.select(pl.Series(name, frame[name]) for name in kept).with_columns(
            _text(frame[source]).alias("source"), targets.alias("targets")
        )
        _check(examples)
        return examples

    @classmethod
    def identity(cls, examples: pl.DataFrame, schema: Mapping[str, Any]) -> list[str]:
        return ["source"]

    @classmethod
    def describe(
        cls, splits: Mapping[str, pl.DataFrame], options: DatasetOptions
    ) -> tuple[dict[str, pl.DataFrame], dict[str, Any], dict[str, Any]]:
        frames = {name: frame.select("source", "targets") for name, frame in splits.items()}
        source = measure(frames["train"]["source"])
        target = measure(pl.Series(_first(frames["train"])))
        report = {
            "empty_sources": {
                n: int((f["source"].str.strip_chars() == "").sum()) for n, f in frames.items()
            },
            "references": {n: max(map(len, f["targets"])) for n, f in frames.items()},
            **source,
            "target": target,
        }
        return frames, {**source, "target": target}, report

    @classmethod
    def texts(cls, examples: pl.DataFrame) -> Sequence[str]:
        return [*examples["source"], *_first(examples)]

    def choose_tokenizer(self, facts: Facts) -> Tokenizer:
        # What is written is read by people, who want upper case where it belongs.
        return BytePairs(size=4_000, lowercase=False)

    def most_target_tokens(self, facts: Facts) -> int:
        spread = {unit: facts.schema["target"][unit]["p98"] for unit in ("characters", "words")}
        return self.tokenizer.bound(**spread)

    def targets(self, examples: pl.DataFrame) -> list[str]:
        return _first(examples)

    def learn_codec(
        self, train: pl.LazyFrame, schema: Mapping[str, Any], base: Any | None = None
    ) -> TextToTextCodec:
        return TextToTextCodec(**self.learn_writing(train, base))

    def score(self, predictions: Sequence[Any], examples: pl.DataFrame) -> Metrics:
        return score_texts([p.target for p in predictions], examples["targets"].to_list())

    def evaluate(self, predictions: Sequence[Any], examples: pl.DataFrame) -> dict[str, Any]:
        written, references = [p.target for p in predictions], examples["targets"].to_list()
        length = sum(map(len, written)) / max(1, sum(len(some[0]) for some in references))
        return {
            **score_texts(written, references),
            "length_ratio": length,
            "worst": worst_texts(written, references),
        }


def _first(examples: pl.DataFrame) -> list[str]:
    """The target of each example that is learned: the first one."""
    found: list[str] = examples["targets"].list.first().to_list()
    return found


def _choose(frame: pl.DataFrame, options: DatasetOptions) -> tuple[str, str]:
    """The columns of sources and targets: as asked for, by their usual names, or the only two there are.

    Raises Invalid for those that are missing.
    """
    names = {role: pick_column(frame, role, options.column_mapping, USUAL[role]) for role in USUAL}
    columns = [name for name in shown(frame) if name != options.split.by]
    if len(columns) == 2 and not options.column_mapping and None in names.values():
        return columns[0], columns[1]
    problems = [
        Problem(
            ("options", "column_mapping", role),
            f"no column looks like the {role}: name it here",
            columns[:SHOWN],
            f"one of the columns, or a file of two; usual names are {', '.join(USUAL[role])}",
        )
        for role, name in names.items()
        if name is None
    ]
    if problems:
        raise Invalid(*problems)
    return str(names["source"]), str(names["target"])


def _text(values: pl.Series) -> pl.Series:
    return values.list.join("\n") if values.dtype == pl.List(pl.String) else values.cast(pl.String)


def _alone(values: pl.Series) -> pl.Series:
    """Each text as a list of one, what is missing as an empty list."""
    texts = values.cast(pl.String).to_list()
    return pl.Series(values.name, [[] if t is None else [t] for t in texts], pl.List(pl.String))


def _check(examples: pl.DataFrame) -> None:
    """Raises Invalid, naming the lines, for examples without a source or a target that says anything."""
    targets = examples["targets"]
    said = targets.list.eval(pl.element().fill_null("").str.strip_chars() != "").list.all()
    missing = {
        "source": examples["source"].is_null(),
        "target": targets.is_null() | (targets.list.len() == 0) | ~said,
    }
    problems = [
        Problem(("line", line_of(examples, row), role), f"there is no {role}", None, "a text")
        for role, rows in missing.items()
        for row in rows.fill_null(True).arg_true()[: Invalid.LIMIT]
    ]
    if problems:
        raise Invalid(*problems)
