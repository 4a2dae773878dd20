"""Intent and slots: what a text asks for, and the spans that say the details; learned together."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import polars as pl
from pydantic import BaseModel, Field
from torch import Tensor

from models.base import Learner
from models.parts.options import Plain
from models.parts.tagging import WholeHead, WholeTagger
from tasks.base import DatasetOptions, Metrics, Objective, Upload
from tasks.parts.columns import Columns
from tasks.parts.labels import (
    LabelCodec,
    LabelPrediction,
    balance,
    check_classes,
    count_labels,
    evaluate_labels,
)
from tasks.parts.sentences import TokensInput
from tasks.parts.tagged_files import TAGGED_FORMATS, read_tagged
from tasks.parts.tagging import TaggingTask
from tasks.parts.tags import Entity, TagsCodec, describe_tags, evaluate_tags, score_tags

USUAL = {"intent": ("intent", "label")}


class IntentPrediction(Plain):
    """What a text asks for, and the slots in it. Positions are those of the text, as in token-classification."""

    intent: str = Field(description="The most likely intent.")
    scores: dict[str, float] = Field(description="The probability of every intent; they sum to 1.")
    entities: list[Entity] = Field(description="The slots.")
    tokens: list[str] = Field(description="The tokens, as given or as the text was cut.")
    tags: list[str] = Field(description="The tag of each token.")
    tag_scores: list[float] = Field(description="The probability of each tag.")
    starts: list[int] = Field(description="Where each token begins.")


class IntentCodec(TagsCodec, LabelCodec):
    """What tags take, and the intents as labels."""

    grows = False

    def encode(self, examples: pl.DataFrame, *, targets: bool = True) -> Columns:
        columns = super().encode(examples, targets=targets)
        more = (self.encode_labels(examples["intent"]),) if targets else ()
        return Columns(columns.inputs, columns.targets + more)

    def decode(self, outputs: Tensor) -> list[Any]:
        count = len(self.labels)
        intents = LabelCodec.decode(self, outputs[:, :count])
        tags = self.named(outputs[:, count:].unflatten(1, (-1, 2)))
        return [
            IntentPrediction.model_construct(
                intent=intent.label,
                scores=intent.scores,
                entities=[],
                tokens=[],
                tags=names,
                tag_scores=scores,
                starts=[],
            )
            for intent, (names, scores) in zip(intents, tags, strict=True)
        ]

    def complete(self, predictions: list[Any], inputs: Sequence[TokensInput]) -> list[Any]:
        found = []
        for prediction, given in zip(predictions, inputs, strict=True):
            told = self.told(prediction.tags, prediction.tag_scores, given)
            told["tag_scores"] = told.pop("scores")
            found.append(prediction.model_copy(update=told))
        return found


class IntentAndSlots(TaggingTask):
    """Understand what a text asks for: its intent, and the slots in it."""

    name: Literal["intent-and-slots"] = "intent-and-slots"

    prediction_type: ClassVar[type[BaseModel]] = IntentPrediction
    codec_type = IntentCodec
    objective = Objective("frame_accuracy")
    formats: ClassVar[Mapping[str, str]] = {
        name: f"{TAGGED_FORMATS[name].rstrip('.')}, and `intent`." for name in ("jsonl", "parquet")
    }
    metrics: ClassVar[Mapping[str, str]] = {
        "frame_accuracy": "Share of the texts of which everything is right, the intent and all slots.",
        "intent_accuracy": "Share of the texts whose intent is right.",
        "slot_f1": "F1 of the slots, each right only as a whole.",
        "slot_precision": "Share of the slots found that are right.",
        "slot_recall": "Share of the slots that are found.",
    }

    @classmethod
    def read(cls, upload: Upload, options: DatasetOptions) -> pl.DataFrame:
        return read_tagged(upload, options, USUAL)

    @classmethod
    def stratum(cls, examples: pl.DataFrame, options: DatasetOptions) -> str | None:
        return "intent"

    @classmethod
    def label_column(cls, schema: Mapping[str, Any]) -> str | None:
        return "intent"

    @classmethod
    def describe(
        cls, splits: Mapping[str, pl.DataFrame], options: DatasetOptions
    ) -> tuple[dict[str, pl.DataFrame], dict[str, Any], dict[str, Any]]:
        labels = check_classes(splits, "intent")
        frames, schema, report = describe_tags(splits)
        lengths = cls.measured(frames["train"])
        report |= {**balance(frames, "intent"), **lengths}
        return frames, {"labels": labels, **schema, **lengths}, report

    def learn_codec(
        self, train: pl.LazyFrame, schema: Mapping[str, Any], base: Any | None = None
    ) -> IntentCodec:
        labels, counts = count_labels(train.select("intent").collect()["intent"])
        return IntentCodec(labels=labels, counts=counts, **self.learn_tags(train, schema, base))

    def build(self, codec: IntentCodec) -> Learner:
        vocabulary = codec.vocabulary
        backbone = self.architecture.build(vocabulary.size, vocabulary.max_length)
        words = self.build_words(codec, backbone.width)
        tags, rules = self.build_tags(codec, words.width)
        return WholeTagger(backbone, WholeHead(words, tags, len(codec.labels)), rules)

    def same_outputs(self, codec: IntentCodec, base: IntentCodec) -> bool:
        return (codec.tags, codec.labels) == (base.tags, base.labels)

    def score(self, predictions: Sequence[Any], examples: pl.DataFrame) -> Metrics:
        intents, tags = examples["intent"].to_list(), examples["tags"].to_list()
        slots = score_tags(predictions, tags)
        right = [p.intent == intent for p, intent in zip(predictions, intents, strict=True)]
        whole = [
            is_right and p.tags[: len(its)] == its
            for is_right, p, its in zip(right, predictions, tags, strict=True)
        ]
        return {
            "frame_accuracy": sum(whole) / len(whole),
            "intent_accuracy": sum(right) / len(right),
            **{f"slot_{name}": slots[name] for name in ("f1", "precision", "recall")},
        }

    def evaluate(self, predictions: Sequence[Any], examples: pl.DataFrame) -> dict[str, Any]:
        intents = [LabelPrediction(label=p.intent, scores=p.scores) for p in predictions]
        return {
            **self.score(predictions, examples),
            "intents": evaluate_labels(intents, examples["intent"].to_list()),
            "slots": evaluate_tags(predictions, examples["tags"].to_list()),
        }
