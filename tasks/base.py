"""The contract of what to learn: task, codec, objective, and how an upload becomes a checked data set."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, Self, TypeVar

import polars as pl
from pydantic import BaseModel, Field, ValidationError
from torch import Tensor

from models.base import Architecture, Learner
from models.parts.options import AUTO, Option, Plain
from models.parts.published import Published, Unusable
from tasks.parts.archives import refuse_foreign
from tasks.parts.columns import Columns
from tasks.parts.examples import height, pieces
from tasks.parts.problems import Invalid, Problem
from tasks.parts.shares import drawn, size_of
from tasks.parts.splits import SPLIT, Places, SplitOptions, overlap, split

Model = TypeVar("Model", bound=BaseModel)
Read = TypeVar("Read")
Metrics = dict[str, float]


class Upload(NamedTuple):
    """A file as it was uploaded: where it lies, and the name its sender gave it."""

    path: Path
    name: str


class DatasetOptions(Plain):
    """How to read an upload."""

    column_mapping: dict[str, str] = Field(
        {},
        description="Names of the task's own columns to names in the file, such as "
        '`{"label": "sentiment"}`.',
    )
    format: str | None = Field(None, description="The file format; found by content if left out.")
    split: SplitOptions = Field(SplitOptions(), description="How examples are held out.")


class Parameterless(Plain):
    """How to predict what leaves no choice."""


class Facts(NamedTuple):
    """What is known of a data set before it is read: what "auto" values are chosen by."""

    schema: dict[str, Any]
    splits: dict[str, int]

    @property
    def examples(self) -> int:
        """Examples to train on."""
        return self.splits["train"]

    def share(self, share: float) -> "Facts":
        """The same of a data set of whose train split only a share is learned from."""
        return self._replace(splits={**self.splits, "train": size_of(share, self.examples)})


class Checked(NamedTuple):
    """A data set that passed its checks: a frame per split, and what to know of it."""

    splits: dict[str, pl.DataFrame]
    schema: dict[str, Any]
    report: dict[str, Any]


class Objective(NamedTuple):
    """The metric that decides which checkpoint is best."""

    metric: str
    maximise: bool = True

    def better(self, value: float, than: float | None, by: float = 0.0) -> bool:
        """Whether `value` beats `than` by more than `by`; anything beats nothing and NaN."""
        if than is None or math.isnan(than):
            return True
        return (value - than if self.maximise else than - value) > by


class Codec(Plain, ABC):
    """Examples to tensors, outputs to predictions.

    Its fields are what was learned from the train split besides weights (label names, vocabulary,
    column statistics); they travel as JSON beside the weights.
    """

    first_piece: ClassVar[int | None] = None
    """Examples that are encoded first, where the usual number of them may be large; then it is known how large."""

    @abstractmethod
    def encode(self, examples: pl.DataFrame, *, targets: bool = True) -> Columns:
        """The columns of a split's examples; without targets, of inputs only.

        What becomes of an example depends on it alone, so that a split can be encoded in pieces.
        """

    @abstractmethod
    def read_input(self, value: Any) -> Any:
        """One input of a request, as the task's `input_type`.

        Raises Invalid, naming the field, what was found and what is allowed.
        """

    def input_fields(self, input_type: type[BaseModel]) -> dict[str, Any]:
        """What one input holds: the names of its fields, and the types of their values."""
        return {name: field.annotation for name, field in input_type.model_fields.items()}

    @abstractmethod
    def decode(self, outputs: Tensor) -> list[Any]:
        """Predictions, of the task's `prediction_type`, from the learner's outputs (B, ...), on the CPU."""

    def complete(self, predictions: list[Any], inputs: Sequence[Any]) -> list[Any]:
        """Predictions with what only their inputs tell, which were read or `given`: the texts of entities, say.

        Metrics do without it.
        """
        return predictions

    def given(self, examples: pl.DataFrame) -> Sequence[Any]:
        """What `complete` needs to know of examples, in the place of inputs that were read."""
        return [None] * examples.height

    def blank(self) -> Any:
        """An input of a request that says nothing, for a model to warm up with; None: there is none."""
        return None

    def length(self, given: Any) -> int:
        """How long an input is that was read, in any unit: batches are made of similar ones."""
        return 1

    def most_together(self) -> int | None:
        """The length that all of a batch may have together, padding included; None: any."""
        return None

    def read_inputs(self, values: Sequence[Any]) -> list[Any]:
        """Every input of a request. Raises Invalid with the problems of all of them."""
        inputs, problems = [], []
        for place, value in enumerate(values):
            try:
                inputs.append(self.read_input(value))
            except Invalid as error:
                problems += [p._replace(loc=("inputs", place, *p.loc)) for p in error.problems]
        if problems:
            raise Invalid(*problems)
        return inputs

    @abstractmethod
    def encode_inputs(self, inputs: Sequence[Any]) -> Columns:
        """The columns of inputs to predict for; the same as `encode` makes of such examples."""

    def encode_pieces(self, examples: pl.LazyFrame) -> Iterator[Columns]:
        """The columns of a split that may be larger than memory, one piece after the other.

        Raises Invalid, which counts rows from the start of the split.
        """
        before = 0
        for piece in pieces(examples, self.first_piece):
            try:
                yield self.encode(piece)
            except Invalid as error:
                raise Invalid(*(_further_down(p, before) for p in error.problems)) from None
            before += piece.height


class Task(Option):
    """What to learn. Its fields are the request; its methods turn uploads into a trained model.

    Every task has a field `architecture` typed `Auto[OneOf[<its family>]]`.
    """

    architecture: Any

    has_columns: ClassVar[bool] = True
    """Whether uploads have columns, which a request may call by other names."""
    tells_splits: ClassVar[bool] = False
    """Whether `read` gives a column `split` where a file says itself, say by folders, what each example is for."""
    bulky: ClassVar[tuple[str, ...]] = ()
    """Columns that all together may be larger than memory, and that `score` does without."""
    embeds: ClassVar[bool] = False
    """Whether what a network makes of an example before its head answers is one vector, of use by itself."""
    advised: ClassVar[bool] = False
    """Whether bases for it can be compared by what a linear head makes of their features: one target per example."""
    graph: ClassVar[Literal["fixed", "ragged"] | None] = None
    """Whether its network answers by one graph of tensor operations, and of inputs of what length: always the same
    one, or any. None for those that draw numbers, write step by step, or look at what they found."""
    divides: ClassVar[bool] = True
    """Whether its network can be divided among several devices, so that none holds all of it."""
    input_type: ClassVar[type[BaseModel]]
    parameters_type: ClassVar[type[BaseModel]] = Parameterless
    """The fields of an input that a request may also give once for all of its inputs, as `parameters`."""
    prediction_type: ClassVar[type[BaseModel]]
    codec_type: ClassVar[type[Codec]]
    options_type: ClassVar[type[DatasetOptions]] = DatasetOptions
    objective: ClassVar[Objective]
    bases: ClassVar[tuple[type[Architecture], ...]] = ()
    """Families, besides that of its architecture, whose models it can start from."""
    of_base: ClassVar[tuple[str, ...]] = ("architecture",)
    """Fields that a base decides: its weights or its codec would not fit any other value."""
    formats: ClassVar[Mapping[str, str]]
    """Names of the upload formats, each with a sentence that says what such a file looks like."""
    metrics: ClassVar[Mapping[str, str]]
    """Names of the metrics, each with a sentence that says what it measures."""

    @property
    def aim(self) -> Objective:
        """The objective on the data that the task was resolved for."""
        return self.objective

    @property
    def answer_type(self) -> type[BaseModel]:
        """What predictions are on the data that the task was resolved for: the `prediction_type`, or a part of it."""
        return self.prediction_type

    @property
    def measures(self) -> Mapping[str, str]:
        """The metrics that `score` gives on the data that the task was resolved for."""
        return self.metrics

    # From an upload to a checked data set

    @classmethod
    @abstractmethod
    def read(cls, upload: Upload, options: DatasetOptions) -> pl.DataFrame:
        """One uploaded file as a frame of examples in the task's own columns. Raises Invalid."""

    @classmethod
    @abstractmethod
    def describe(
        cls, splits: Mapping[str, pl.DataFrame], options: DatasetOptions
    ) -> tuple[dict[str, pl.DataFrame], dict[str, Any], dict[str, Any]]:
        """The splits in their final column types, their schema, and a report. Raises Invalid.

        Everything that takes the whole data set to see is refused here (a single class, say).
        """

    @classmethod
    def stratum(cls, examples: pl.DataFrame, options: DatasetOptions) -> str | None:
        """The column whose shares every split should keep, if any."""
        return None

    @classmethod
    def identity(cls, examples: pl.DataFrame, schema: Mapping[str, Any]) -> list[str]:
        """The columns that make two examples the same one: what duplicates and overlap are counted by."""
        return examples.columns

    @classmethod
    def check(cls, files: Mapping[str, Upload], options: DatasetOptions) -> Checked:
        """A checked data set from uploaded files: `file` (split here), or `train` [+ `validation`] [+ `test`].

        One `file` that tells its splits itself is split so, unless the options say how.
        Raises Invalid with every problem found, each naming file, row and column.
        """
        if not cls.has_columns:
            refuse_foreign(options.format, options.column_mapping, cls.formats)
        frames = read_each(files, lambda upload: cls.read(upload, options))
        if cls.tells_splits:
            frames = _of_one_split(frames)
        whole = frames.get("train", frames.get("file"))
        assert whole is not None, "the route asks for `file` or `train`"
        if cls.tells_splits and SPLIT in whole.columns and options.split.by is None:
            own = options.split.model_copy(update={"by": SPLIT})
            options = options.model_copy(update={"split": own})
        splits = split(frames, options.split, cls.stratum(whole, options))
        splits, schema, report = cls.describe(splits, options)
        return Checked(
            splits,
            schema,
            {
                "examples": {name: frame.height for name, frame in splits.items()},
                **report,
                **overlap(splits, cls.identity(splits["train"], schema)),
            },
        )

    # From a request to what will be trained

    @abstractmethod
    def choose_architecture(self, facts: Facts) -> Architecture:
        """The architecture for this data set when the request leaves it open."""

    def on_base(self, base: "Task") -> Self:
        """A copy with what `base` decides. Raises Invalid where this task asks for something else."""
        problems, decided = [], {}
        for name in self.of_base:
            asked, given = getattr(self, name), getattr(base, name, AUTO)
            if AUTO in (asked, given):
                decided[name] = given if asked == AUTO else asked
            elif asked != given:
                found, allowed = (
                    v.model_dump() if isinstance(v, BaseModel) else v for v in (asked, given)
                )
                problems.append(
                    Problem(("task", name), "a base brings its own; leave it out", found, allowed)
                )
        if problems:
            raise Invalid(*problems)
        return self.model_copy(update=decided)

    @property
    def probed(self) -> bool:
        """Whether its head takes nothing but features, and can learn from those that were computed once."""
        return False

    def unvaried(self) -> Self:
        """A copy that shows examples as they are. Raises Invalid where it is asked for something else."""
        return self

    def resolve(self, facts: Facts) -> Self:
        """A copy in which every "auto" field has the value chosen for this data set."""
        if self.architecture != AUTO:
            return self
        return self.model_copy(update={"architecture": self.choose_architecture(facts)})

    def defaults(self, facts: Facts) -> dict[str, Any]:
        """Values for the "auto" fields of `Training` that suit this task; they go before its architecture's."""
        return {}

    # From examples to a learner, and to what its predictions are worth

    @classmethod
    def label_column(cls, schema: Mapping[str, Any]) -> str | None:
        """The column of whose labels every share of the train split has each, about as often as all of it."""
        return None

    @classmethod
    def share(
        cls, train: pl.LazyFrame, schema: Mapping[str, Any], share: float, seed: int
    ) -> Places:
        """The rows, in their order, that a share of the train split is; a smaller one is part of it."""
        column = cls.label_column(schema)
        labels = None if column is None else train.select(column).collect()[column]
        return drawn(height(train), labels, share, seed)

    @abstractmethod
    def learn_codec(
        self, train: pl.LazyFrame, schema: Mapping[str, Any], base: Any | None = None
    ) -> Codec:
        """What the train split says besides weights; from `base`, a codec, all that the backbone relies on.

        The `bulky` columns of the split are read in pieces at the most.
        Raises Invalid when the data cannot be read with the base's codec.
        """

    def reading(self, published: Published) -> Any:
        """How a published checkpoint reads examples, as what `learn_codec` takes of a base. Raises Unusable."""
        raise Unusable(f"{self.name} has no checkpoints to begin with")

    @abstractmethod
    def build(self, codec: Any) -> Learner:
        """A fresh learner for data in this codec."""

    @abstractmethod
    def same_outputs(self, codec: Any, base: Any) -> bool:
        """Whether outputs mean the same under both codecs, so that a base's head can be kept."""

    @abstractmethod
    def score(self, predictions: Sequence[Any], examples: pl.DataFrame) -> Metrics:
        """Every metric of `metrics`, of predictions for these examples, whose `bulky` columns may lack."""

    def evaluate(self, predictions: Sequence[Any], examples: pl.DataFrame) -> dict[str, Any]:
        """`score`, and what else an evaluation shows (per class, confusion); JSON-ready."""
        return dict(self.score(predictions, examples))


def _of_one_split(frames: Mapping[str, pl.DataFrame]) -> dict[str, pl.DataFrame]:
    """The same, less what files of one split say of it, and what is not said of every example.

    Raises Invalid for a file that is one split and says otherwise.
    """
    kept, problems = {}, []
    for name, frame in frames.items():
        told = set(frame[SPLIT]) if SPLIT in frame.columns else {None}
        if name == "file" and None not in told:
            kept[name] = frame
        elif None in told or told == {name}:
            kept[name] = frame.drop(SPLIT, strict=False)
        else:
            allowed = f"{name} alone, or all of it as `file`"
            problems.append(Problem((name,), "is one split already", sorted(told), allowed))
    if problems:
        raise Invalid(*problems)
    return kept


def read_each(files: Mapping[str, Upload], read: Callable[[Upload], Read]) -> dict[str, Read]:
    """What is read of each uploaded file. Raises Invalid with the problems of all, each naming its file."""
    found, problems = {}, []
    for name, upload in files.items():
        try:
            found[name] = read(upload)
        except Invalid as error:
            problems += [p._replace(loc=(name, *p.loc)) for p in error.problems]
    if problems:
        raise Invalid(*problems)
    return found


@cache
def own_fields(task: type[Task]) -> list[str]:
    """The names of the fields of an input that are no parameters."""
    shared = task.parameters_type.model_fields
    return [name for name in task.input_type.model_fields if name not in shared]


@cache
def files_of(input_type: type[BaseModel]) -> dict[str, str]:
    """The media type, such as image/*, of each field of an input that is a file."""
    fields = input_type.model_json_schema().get("properties", {}).items()
    ways = [(name, way) for name, field in fields for way in field.get("anyOf", [field])]
    return {name: way["contentMediaType"] for name, way in ways if "contentMediaType" in way}


def read_fields(model: type[Model], value: Any) -> Model:
    """An object of a request as `model`. Raises Invalid instead of pydantic's own error."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise Invalid(
            *(
                Problem(tuple(e["loc"]), e["msg"], found=_short(e["input"]))
                for e in error.errors(include_url=False)
            )
        ) from None


def _further_down(problem: Problem, rows: int) -> Problem:
    """The same problem, its row counted from `rows` rows before."""
    match problem.loc:
        case ("row", int(row), *rest):
            return problem._replace(loc=("row", row + rows, *rest))
    return problem


def _short(value: Any) -> Any:
    text = repr(value)
    return value if len(text) <= 80 and not isinstance(value, bytes) else text[:77] + "..."
