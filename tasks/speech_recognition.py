"""Speech recognition: from a recording to what is said in it, and when."""

import math
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self
from unicodedata import category, normalize

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from models.base import Architecture, SequenceEncoder, SoundEncoder
from models.gru import GRU
from models.parts.ctc import Grammar
from models.parts.optimizers import AdamW
from models.parts.options import AUTO, Auto, OneOf, Plain
from models.parts.published import Published
from models.parts.schedules import Cosine
from models.parts.speech import (
    FRAMES_PER_SECOND,
    STRIDE,
    Listener,
    LogMel,
    SpeechBackbone,
    WaveEncoder,
)
from tasks.base import (
    Codec,
    DatasetOptions,
    Facts,
    Metrics,
    Objective,
    Task,
    Upload,
    read_fields,
)
from tasks.parts.columns import Columns, Dense, Ragged, ragged
from tasks.parts.ngrams import LanguageModel, NGrams, automaton, count_ngrams
from tasks.parts.problems import Invalid, Problem
from tasks.parts.recognition import Ear, Spectra, SpeechRecognizer, Waves
from tasks.parts.recordings import FORMATS, read_recordings, unused
from tasks.parts.sound_augmentation import SoundAugmentation
from tasks.parts.sounds import (
    MAX_SECONDS,
    SoundInput,
    at_rate,
    open_sound,
    read_sound,
    silence,
)
from tasks.parts.texts import measure
from tasks.parts.transcripts import SPEECH_METRICS, score_transcripts, worst_transcripts

MAX_BEAMS = 32
Frames = NDArray[np.int16]
"""A sound as numbers of 16 bits, a hundredth of a second in each row."""


class RecognitionParameters(Plain):
    """How a recording is written down."""

    num_beams: int | None = Field(
        None,
        ge=1,
        le=MAX_BEAMS,
        description="Beginnings of texts followed at once, of which the best is given (beam search).",
    )
    language_model_weight: float | None = Field(
        None,
        ge=0,
        le=5,
        description="How much it counts that a text is like those of the train split; 0: only what is heard. "
        "It means nothing to a model without a language model.",
    )


class SpeechInput(RecognitionParameters, SoundInput):
    """One recording, and how to write it down."""


class Word(Plain):
    """A word, and when it is said."""

    word: str = Field(description="The word.")
    start: float = Field(description="Seconds from the start of the recording.")
    end: float = Field(description="Seconds from the start of the recording.")
    score: float = Field(
        description="How surely it is heard: the mean probability of its characters."
    )


class SpeechPrediction(Plain):
    """What is said in a recording."""

    text: str = Field(description="The words, with single spaces between them.")
    words: list[Word] = Field(description="Each of them, and when it is said.")


class Heard(NamedTuple):
    """A recording of a request, decoded, and how to write it down."""

    frames: Frames
    how: RecognitionParameters


class SpeechCodec(Codec):
    """The rate that sounds are brought to, the characters of texts, and what texts look like."""

    rate: int
    max_seconds: float
    alphabet: str
    lowercase: bool
    punctuation: bool
    beams: int
    ngrams: dict[str, int]
    order: int
    weight: float
    bonus: float

    def encode(self, examples: pl.DataFrame, *, targets: bool = True) -> Columns:
        sounds = [self._frames(data, row) for row, data in enumerate(examples["audio"], 1)]
        how = self._how([RecognitionParameters()]).repeat(examples.height, 1)
        inputs = _together(sounds, self.rate), Dense(how)
        if not targets:
            return Columns(inputs)
        ids = {character: place for place, character in enumerate(self.alphabet, start=1)}
        texts = (self.clean(text) for text in examples["text"])
        return Columns(inputs, (ragged([[ids[c] for c in text if c in ids] for text in texts]),))

    def clean(self, text: str) -> str:
        """A text as it is learned, and answered."""
        return cleaned(text, lowercase=self.lowercase, punctuation=self.punctuation)

    def read_input(self, value: Any) -> Heard:
        given = dict(value) if isinstance(value, Mapping) else {}
        fields = RecognitionParameters.model_fields
        how = {name: given.pop(name) for name in fields if name in given}
        data = read_sound(given if isinstance(value, Mapping) else value)
        # Decoded here, where requests are still apart from each other.
        return Heard(self._frames(data), read_fields(RecognitionParameters, how))

    def blank(self) -> bytes:
        return silence(self.rate)

    def length(self, given: Heard) -> int:
        """In hundredths of a second."""
        return len(given.frames)

    def encode_inputs(self, inputs: Sequence[Heard]) -> Columns:
        how = self._how([given.how for given in inputs])
        return Columns((_together([given.frames for given in inputs], self.rate), Dense(how)))

    def decode(self, outputs: Tensor) -> list[Any]:
        return [_prediction(self.alphabet, *row) for row in outputs.tolist()]

    def _frames(self, data: bytes, *row: int) -> Frames:
        """A sound at the codec's rate (T, hop). Raises Invalid, at `row`, if there is one."""
        try:
            sound = open_sound(data, self.max_seconds)
        except Invalid as error:
            place: tuple[str | int, ...] = ("row", *row) if row else ()
            raise Invalid(*(Problem((*place, *p.loc), *p[1:]) for p in error.problems)) from None
        samples = np.rint(at_rate(sound, self.rate).clip(-1, 1) * 32_767).astype(np.int16)
        hop = self.rate // FRAMES_PER_SECOND
        return np.pad(samples, (0, -len(samples) % hop)).reshape(-1, hop)

    def _how(self, parameters: Sequence[RecognitionParameters]) -> Tensor:
        """How to answer (N, 3), in the order of `Search`."""
        rows = [
            [
                given.num_beams or self.beams,
                self.weight if given.language_model_weight is None else given.language_model_weight,
                # Nothing makes texts short where a language model does not count.
                0.0 if given.language_model_weight == 0 else self.bonus,
            ]
            for given in parameters
        ]
        return torch.tensor(rows, dtype=torch.float32)

    def grammar(self) -> Grammar | None:
        """The language model as an automaton."""
        return Grammar(*automaton(self.ngrams, self.alphabet, self.order)) if self.ngrams else None


def cleaned(text: str, *, lowercase: bool, punctuation: bool) -> str:
    """A text with composed letters and single spaces, and without what is not to be told apart."""
    text = normalize("NFC", text.lower() if lowercase else text)
    if not punctuation:
        # What stands within a word, as in don't, belongs to it.
        text = re.sub(r"(?<=\w)['’](?=\w)", "'", text)
        text = "".join(" " if category(c)[0] == "P" and c != "'" else c for c in text)
        text = re.sub(r"(?<!\w)'|'(?!\w)", " ", text)
    return " ".join(text.split())


def _together(sounds: Sequence[Frames], rate: int) -> Ragged:
    offsets = torch.tensor([0, *map(len, sounds)]).cumsum(0)
    empty = np.zeros((0, rate // FRAMES_PER_SECOND), np.int16)
    return Ragged(torch.from_numpy(np.concatenate([empty, *sounds])), offsets)


def _prediction(
    alphabet: str,
    tokens: list[float],
    starts: list[float],
    ends: list[float],
    scores: list[float],
) -> SpeechPrediction:
    """The words that characters and their frames make up."""
    written = "".join(alphabet[int(token) - 1] for token in tokens if token)
    words = [
        Word(
            word=found[0],
            start=starts[found.start()] / FRAMES_PER_SECOND,
            end=ends[found.end() - 1] / FRAMES_PER_SECOND,
            score=sum(scores[found.start() : found.end()]) / len(found[0]),
        )
        for found in re.finditer(r"\S+", written)
    ]
    return SpeechPrediction(text=" ".join(word.word for word in words), words=words)


class SpeechRecognition(Task):
    """Write down what is said in a recording, and when."""

    name: Literal["speech-recognition"] = "speech-recognition"
    architecture: Auto[OneOf[SoundEncoder]] = Field(
        AUTO,
        description="What reads a sound, 25 states for each second of it, or as many as a checkpoint has.",
    )
    rate: Auto[Literal[8_000, 16_000]] = Field(
        AUTO,
        description="Samples per second that all sounds are brought to. A base brings its own.",
    )
    bands: int = Field(
        40,
        ge=16,
        le=128,
        description="Bands of frequencies, on the mel scale, that are told apart, where it is spectra that are read. "
        "A base brings its own.",
    )
    channels: int = Field(
        32,
        ge=4,
        le=512,
        description="Filters of the two convolutions between spectra and the encoder. A base brings its own.",
    )
    max_seconds: Auto[Annotated[float, Field(ge=1, le=MAX_SECONDS)]] = Field(
        AUTO, description="Length of the longest recording that is read. A base brings its own."
    )
    lowercase: bool = Field(
        False, description="Make no difference between upper and lower case; answer in lower case."
    )
    punctuation: bool = Field(
        True, description="Learn marks of punctuation. Otherwise texts are read without them."
    )
    augmentation: Auto[SoundAugmentation] = Field(
        AUTO, description="How training sounds are varied; `{}` leaves them as they are."
    )
    language_model: OneOf[LanguageModel] = Field(
        NGrams(), description="What is learned from the texts of the train split alone."
    )
    num_beams: int = Field(
        8,
        ge=1,
        le=MAX_BEAMS,
        description="Beams where a request asks for no number, and of every answer that is judged.",
    )

    tells_splits = True
    bulky = ("audio",)
    divides = False
    input_type = SpeechInput
    parameters_type = RecognitionParameters
    prediction_type = SpeechPrediction
    codec_type = SpeechCodec
    objective = Objective("wer", maximise=False)
    metrics = SPEECH_METRICS
    formats: ClassVar[Mapping[str, str]] = FORMATS
    of_base: ClassVar[tuple[str, ...]] = (
        "architecture",
        "rate",
        "bands",
        "channels",
        "max_seconds",
    )

    @classmethod
    def read(cls, upload: Upload, options: DatasetOptions) -> pl.DataFrame:
        frame = read_recordings(upload, options)
        _check_pace(frame)
        return frame

    @classmethod
    def identity(cls, examples: pl.DataFrame, schema: Mapping[str, Any]) -> list[str]:
        return ["audio", "text"]

    @classmethod
    def describe(
        cls, splits: Mapping[str, pl.DataFrame], options: DatasetOptions
    ) -> tuple[dict[str, pl.DataFrame], dict[str, Any], dict[str, Any]]:
        whole, train = pl.concat(splits.values(), how="diagonal"), splits["train"]
        known = set("".join(train["text"]))
        schema = {
            "rate": int(whole["rate"].mode().min()),  # type: ignore[arg-type]
            "longest": float(whole["seconds"].max()),  # type: ignore[arg-type]
            "seconds": float(train["seconds"].sum()),
        }
        report = {
            "seconds": {name: round(frame["seconds"].sum(), 2) for name, frame in splits.items()},
            "shortest": whole["seconds"].min(),
            "median": whole["seconds"].median(),
            "longest": schema["longest"],
            **{
                name: dict(whole[name].cast(pl.String).value_counts(sort=True).iter_rows())
                for name in ("rate", "channels", "format")
            },
            "text": measure(whole["text"]),
            "alphabet": "".join(sorted(known)),
            "unknown": {
                name: "".join(sorted(set("".join(frame["text"])) - known))
                for name, frame in splits.items()
                if name != "train"
            },
            "speakers": _speakers(splits),
            "unused": unused(splits),
        }
        columns = ("audio", "text", "speaker", "name", "seconds")
        return {name: frame.select(columns) for name, frame in splits.items()}, schema, report

    def choose_architecture(self, facts: Facts) -> Architecture:
        if facts.schema["seconds"] > 36_000:
            return GRU(embedding=256, width=512, layers=4, dropout=0.2)
        return GRU(width=192, layers=2, dropout=0.2)

    def resolve(self, facts: Facts) -> Self:
        task = super().resolve(facts)
        chosen = {
            "rate": 16_000 if facts.schema["rate"] >= 16_000 else 8_000,
            "max_seconds": min(MAX_SECONDS, max(30.0, math.ceil(facts.schema["longest"]))),
            "augmentation": SoundAugmentation(
                noise=0.3, speed=0.15, voice=0.15, time_masks=2, frequency_masks=2
            ),
        }
        if isinstance(task.architecture, WaveEncoder):
            _check_waves(task, task.architecture)
            rate = task.architecture.rate or chosen["rate"]
            chosen |= {"rate": rate, "augmentation": SoundAugmentation()}
        update = {name: value for name, value in chosen.items() if getattr(task, name) == AUTO}
        return task.model_copy(update=update)

    def defaults(self, facts: Facts) -> dict[str, Any]:
        if isinstance(self.architecture, WaveEncoder):  # which knows better
            return {}
        return {
            "epochs": max(15, min(80, 40_000 // facts.examples)),
            "batch_size": 16,
            "optimizer": AdamW(learning_rate=3e-3),
            "schedule": Cosine(warmup=0.1),
        }

    def reading(self, published: Published) -> None:
        """Nothing of a codec: it says how sounds are sampled, which decides on the `rate`."""

    def learn_codec(
        self, train: pl.LazyFrame, schema: Mapping[str, Any], base: Any | None = None
    ) -> SpeechCodec:
        if schema["longest"] > self.max_seconds:
            allowed = f"at least {schema['longest']:.2f}, the longest recording of the data set"
            raise Invalid(Problem(("task", "max_seconds"), "too short", self.max_seconds, allowed))
        if base is not None and not isinstance(base, SpeechCodec):
            allowed = "a model of speech-recognition"
            raise Invalid(Problem(("base",), "does not listen as this task does", None, allowed))
        how = {"lowercase": self.lowercase, "punctuation": self.punctuation}
        texts = [cleaned(text, **how) for text in train.select("text").collect()["text"]]
        characters = set("".join(texts))
        # As long as a base knows them all, what it has learned of each is kept.
        known = base is not None and characters <= set(base.alphabet)
        model = self.language_model
        counted = (
            {"ngrams": count_ngrams(texts, model.order), **model.model_dump(exclude={"name"})}
            if isinstance(model, NGrams)
            else {"ngrams": {}, "order": 2, "weight": 0.0, "bonus": 0.0}
        )
        return SpeechCodec(
            rate=self.rate,
            max_seconds=self.max_seconds,
            alphabet=base.alphabet if base is not None and known else "".join(sorted(characters)),
            beams=self.num_beams,
            **how,
            **counted,
        )

    def build(self, codec: SpeechCodec) -> SpeechRecognizer:
        listener, ear = self._listening(codec)
        return SpeechRecognizer(listener, ear, codec.alphabet, codec.grammar(), self.augmentation)

    def _listening(self, codec: SpeechCodec) -> tuple[Listener, Ear]:
        """What listens, and what it is shown of sounds."""
        if isinstance(self.architecture, WaveEncoder):
            return self.architecture.over_waves(), Waves()
        assert isinstance(self.architecture, SequenceEncoder)
        frames = math.ceil(codec.max_seconds * FRAMES_PER_SECOND)
        backbone = SpeechBackbone(self.bands, self.channels, frames, self.architecture)
        return backbone, Spectra(LogMel(codec.rate, self.bands), frames)

    def same_outputs(self, codec: SpeechCodec, base: Any) -> bool:
        return bool(codec.alphabet == base.alphabet)

    def score(self, predictions: Sequence[SpeechPrediction], examples: pl.DataFrame) -> Metrics:
        return score_transcripts(self._truths(examples), [p.text for p in predictions])

    def evaluate(
        self, predictions: Sequence[SpeechPrediction], examples: pl.DataFrame
    ) -> dict[str, Any]:
        truths, texts = self._truths(examples), [p.text for p in predictions]
        return {**self.score(predictions, examples), **worst_transcripts(truths, texts)}

    def _truths(self, examples: pl.DataFrame) -> list[str]:
        how = {"lowercase": self.lowercase, "punctuation": self.punctuation}
        return [cleaned(text, **how) for text in examples["text"]]


def _check_waves(task: SpeechRecognition, architecture: WaveEncoder) -> None:
    """Raises Invalid for what a network that reads samples cannot be asked for."""
    problems = []
    if architecture.rate is not None and task.rate not in (AUTO, architecture.rate):
        message = "the checkpoint was shown sounds of another rate"
        problems.append(Problem(("task", "rate"), message, task.rate, architecture.rate))
    if task.augmentation != AUTO:
        allowed = "`noise`; the architecture hides stretches by itself"
        problems += [
            Problem(("task", "augmentation", name), "this is done to spectra", found, allowed)
            for name in ("speed", "voice", "time_masks", "frequency_masks")
            if (found := getattr(task.augmentation, name))
        ]
    if problems:
        raise Invalid(*problems)


def _check_pace(frame: pl.DataFrame) -> None:
    """Raises Invalid for texts with more characters than their sound has states."""
    problems = []
    for name, text, seconds in frame.select("name", "text", "seconds").iter_rows():
        states = math.ceil(math.ceil(seconds * FRAMES_PER_SECOND) / STRIDE)
        # Between two characters that are the same stands a state of nothing.
        needed = len(text) + sum(a == b for a, b in pairwise(text))
        if needed > states:
            found, allowed = f"{needed} characters in {seconds:.2f} s", f"at most {states}"
            problems.append(Problem((name, "text"), "too long for its sound", found, allowed))
    if problems:
        raise Invalid(*problems)


def _speakers(splits: Mapping[str, pl.DataFrame]) -> dict[str, Any]:
    """How many speak in each split, and how many of these in the train split, too."""
    found = {name: set(frame["speaker"].drop_nulls()) for name, frame in splits.items()}
    return {
        name: {"count": len(some)}
        | ({} if name == "train" else {"also_in_train": len(some & found["train"])})
        for name, some in found.items()
    }
