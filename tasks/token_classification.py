"""Token classification: a tag for each token, such as names, parts of speech, slots, or where segments begin."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import polars as pl
from pydantic import BaseModel

from models.base import Learner
from models.parts.tagging import Tagger, TagHead
from tasks.base import DatasetOptions, Metrics, Objective, Upload
from tasks.parts.tagged_files import TAGGED_FORMATS, read_tagged
from tasks.parts.tagging import TaggingTask
from tasks.parts.tags import (
    TAG_METRICS,
    TagsCodec,
    TagsPrediction,
    describe_tags,
    evaluate_tags,
    score_tags,
)


class TokenClassification(TaggingTask):
    """Tag each token of a sentence: names and other spans, parts of speech, slots, segments."""

    name: Literal["token-classification"] = "token-classification"

    prediction_type: ClassVar[type[BaseModel]] = TagsPrediction
    codec_type = TagsCodec
    objective = Objective("f1")
    formats = TAGGED_FORMATS
    metrics = TAG_METRICS

    @classmethod
    def read(cls, upload: Upload, options: DatasetOptions) -> pl.DataFrame:
        return read_tagged(upload, options)

    @classmethod
    def describe(
        cls, splits: Mapping[str, pl.DataFrame], options: DatasetOptions
    ) -> tuple[dict[str, pl.DataFrame], dict[str, Any], dict[str, Any]]:
        frames, schema, report = describe_tags(splits)
        lengths = cls.measured(frames["train"])
        return frames, {**schema, **lengths}, {**report, **lengths}

    def learn_codec(
        self, train: pl.LazyFrame, schema: Mapping[str, Any], base: Any | None = None
    ) -> TagsCodec:
        return TagsCodec(**self.learn_tags(train, schema, base))

    def build(self, codec: TagsCodec) -> Learner:
        vocabulary = codec.vocabulary
        backbone = self.architecture.build(vocabulary.size, vocabulary.max_length)
        words = self.build_words(codec, backbone.width)
        tags, rules = self.build_tags(codec, words.width)
        return Tagger(backbone, TagHead(words, tags), rules)

    def same_outputs(self, codec: TagsCodec, base: TagsCodec) -> bool:
        return codec.tags == base.tags

    def score(self, predictions: Sequence[Any], examples: pl.DataFrame) -> Metrics:
        return score_tags(predictions, examples["tags"].to_list())

    def evaluate(self, predictions: Sequence[Any], examples: pl.DataFrame) -> dict[str, Any]:
        return evaluate_tags(predictions, examples["tags"].to_list())
