"""Video classification: from a clip to one of several labels."""

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
import polars as pl
import torch
from pydantic import Field
from torch import Tensor, nn

from models.base import (
    Architecture,
    ImageBackbone,
    Learner,
    MapBackbone,
    SequenceEncoder,
    Supervised,
    TokenBackbone,
)
from models.cnn import CNN
from models.gru import GRU
from models.parts.layers import Normalised
from models.parts.losses import ClassificationLoss, CrossEntropy
from models.parts.options import AUTO, Auto, OneOf
from models.parts.published import Published
from models.parts.whereabouts import WhatAndWhere
from models.resnet import ResNet
from tasks.base import DatasetOptions, Facts, Metrics, Objective, Task, Upload
from tasks.parts.archives import Limits, class_folders, open_archive
from tasks.parts.augmentation import Augmentation
from tasks.parts.clips import MAX_BYTES, ClipFacts, ClipInput, Pixels, frames, read_clip, still
from tasks.parts.columns import Columns, Dense
from tasks.parts.films import decode_all, look, pixel_moments, summary
from tasks.parts.labels import (
    CLASSIFICATION_METRICS,
    LabelCodec,
    LabelPrediction,
    balance,
    check_classes,
    count_labels,
    evaluate_labels,
    score_labels,
)
from tasks.parts.pictures import (
    Squares,
    as_shown,
    fitting_channels,
    fitting_side,
    published_squares,
)
from tasks.parts.splits import SPLIT

FORMAT = "class-folders"
SMALLEST_SIDE, LARGEST_SIDE, STEP = 8, 512, 8
FEWEST_FRAMES, MOST_FRAMES = 2, 64
FEW = 1_000
AT_ONCE = 256
"""Images that a network looks at together when it answers: as many as of an image classifier."""
_LIMITS = Limits(member=MAX_BYTES)


class ClipCodec(Squares, LabelCodec):
    """Frames spread over a clip and stretched to squares, and the mean and spread of their pixels."""

    frames: int

    def encode(self, examples: pl.DataFrame, *, targets: bool = True) -> Columns:
        pixels = Dense(decode_all(examples["clip"], self.frames, self.side, self.channels))
        return Columns((pixels,), (self.encode_labels(examples["label"]),) if targets else ())

    def read_input(self, value: Any) -> Pixels:
        # Decoded here, where requests are still apart from each other.
        return frames(read_clip(value), self.frames, self.side, self.channels)

    def blank(self) -> bytes:
        return still(self.side)

    def encode_inputs(self, inputs: Sequence[Pixels]) -> Columns:
        return Columns((Dense(torch.from_numpy(np.stack(inputs))),))


class MeanOverTime(nn.Module):
    """The mean of the vectors of a clip's frames, which is the same in whatever order they come."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.width = features

    def forward(self, vectors: Tensor, lengths: Tensor) -> Tensor:
        """Vectors (B, T, features), all T of which count, to (B, features)."""
        return vectors.mean(1)


class VideoClassifier(Supervised):
    """Learns from clips (B, T, C, H, W) uint8: a vector for each frame, and what is read from these over time."""

    def __init__(
        self,
        backbone: MapBackbone,
        time: SequenceEncoder | Literal["mean"],
        codec: ClipCodec,
        criterion: nn.Module,
        augmentation: Augmentation,
    ) -> None:
        seen = WhatAndWhere(backbone.width)
        over_time: MeanOverTime | TokenBackbone = (
            MeanOverTime(seen.width)
            if isinstance(time, str)
            else time.over_vectors(seen.width, codec.frames)
        )
        super().__init__(backbone, nn.Linear(over_time.width, len(codec.labels)), criterion)
        self.seen, self.norm, self.over_time = seen, nn.LayerNorm(seen.width), over_time
        self.augmentation = augmentation
        self.normalised = Normalised(codec.mean, codec.std)

    def features_of(self, *inputs: Tensor) -> Tensor:
        clips = self._varied(inputs[0]) if self.training else self.normalised(inputs[0])
        vectors = self._vectors(clips)
        lengths = torch.full((len(clips),), clips.shape[1], device=clips.device)
        features: Tensor = self.over_time(vectors, lengths)
        return features

    def _varied(self, clips: Tensor) -> Tensor:
        """Normalised clips (B, T, C, H, W), the frames of each moved and lit alike: they are its channels."""
        shape = clips.shape[1:3]
        moved = self.normalised(self.augmentation.move(clips.flatten(1, 2)).unflatten(1, shape))
        relit: Tensor = self.augmentation.relight(moved.flatten(1, 2)).unflatten(1, shape)
        return relit

    def _vectors(self, clips: Tensor) -> Tensor:
        """What is to be seen in each frame, and where: (B, T, features)."""
        count, steps = clips.shape[:2]
        # Who writes the network down for others knows no number of clips.
        if self.training or torch.compiler.is_exporting() or count * steps <= AT_ONCE:
            vectors: Tensor = self._look(clips.flatten(0, 1)).unflatten(0, (-1, steps))
            return vectors
        return torch.stack([self._look(images) for images in clips.unbind(1)], 1)

    def _look(self, images: Tensor) -> Tensor:
        vectors: Tensor = self.norm(self.seen(self.backbone(images)))
        return vectors

    def parameter_groups(self) -> list[dict[str, Any]]:
        groups = super().parameter_groups()
        if self.transfer is not None:
            own = (self.seen, self.norm, self.over_time)
            groups[0]["params"] += [weight for part in own for weight in part.parameters()]
        return groups

    def take_over(self, base: Learner, *, head: bool) -> None:
        super().take_over(base, head=head)
        if isinstance(base, VideoClassifier):
            for name in ("seen", "norm", "over_time"):
                getattr(self, name).load_state_dict(getattr(base, name).state_dict())


class VideoClassification(Task):
    """Give a clip one of several labels."""

    graph = "fixed"

    name: Literal["video-classification"] = "video-classification"
    architecture: Auto[OneOf[ImageBackbone]] = Field(
        AUTO, description="The network that turns frames into features."
    )
    time: Auto[OneOf[SequenceEncoder] | Literal["mean"]] = Field(
        AUTO,
        description="How the frames of a clip become one vector: a network that reads them in their order, "
        "or `mean`, which knows no order and so cannot tell moving left from moving right.",
    )
    loss: OneOf[ClassificationLoss] = Field(CrossEntropy(), description="What training minimises.")
    frames: Auto[Annotated[int, Field(ge=FEWEST_FRAMES, le=MOST_FRAMES)]] = Field(
        AUTO, description="How many frames are looked at, spread evenly over the clip."
    )
    image_size: Auto[Annotated[int, Field(ge=SMALLEST_SIDE, le=LARGEST_SIDE, multiple_of=STEP)]] = (
        Field(AUTO, description="Side in pixels of the squares that frames are stretched to.")
    )
    channels: Auto[Literal[1, 3]] = Field(
        AUTO, description="1 to look at brightness alone, 3 to look at colours."
    )
    augmentation: Auto[Augmentation] = Field(
        AUTO,
        description="How training clips are varied, all frames of one alike; `{}` leaves them as they are.",
    )

    embeds = True
    advised = True
    has_columns = False
    tells_splits = True
    bulky = ("clip",)
    input_type = ClipInput
    prediction_type = LabelPrediction
    codec_type = ClipCodec
    objective = Objective("accuracy")
    metrics = CLASSIFICATION_METRICS
    of_base: ClassVar[tuple[str, ...]] = (
        "architecture",
        "time",
        "frames",
        "image_size",
        "channels",
    )
    formats: ClassVar[Mapping[str, str]] = {
        FORMAT: "A zip with a folder of clips for each label, `wave/1.mp4`; or such folders within "
        "`train/`, `validation/` and `test/`. Clips are MP4, MOV, WebM, MKV, AVI or animated GIF."
    }

    @classmethod
    def read(cls, upload: Upload, options: DatasetOptions) -> pl.DataFrame:
        """One row per clip: `clip`, `label`, `name`, its facts, and `split` where folders tell it."""
        kinds = {"clip": pl.Binary, "label": pl.String, "name": pl.String, SPLIT: pl.String}
        with open_archive(upload.path, _LIMITS) as archive:
            rows = [
                (archive.read(place.name), place.label, place.name, place.split)
                for place in class_folders(archive)
            ]
        frame = pl.DataFrame(rows, schema=kinds, orient="row")
        return frame.with_columns(look(frame))

    @classmethod
    def stratum(cls, examples: pl.DataFrame, options: DatasetOptions) -> str | None:
        return "label"

    @classmethod
    def label_column(cls, schema: Mapping[str, Any]) -> str | None:
        return "label"

    @classmethod
    def identity(cls, examples: pl.DataFrame, schema: Mapping[str, Any]) -> list[str]:
        return ["clip"]

    @classmethod
    def describe(
        cls, splits: Mapping[str, pl.DataFrame], options: DatasetOptions
    ) -> tuple[dict[str, pl.DataFrame], dict[str, Any], dict[str, Any]]:
        labels = check_classes(splits, "label")
        facts = pl.concat(frame.select(ClipFacts._fields) for frame in splits.values())
        schema = {
            "labels": labels,
            "frames": facts["frames"].median(),
            "width": facts["width"].median(),
            "height": facts["height"].median(),
            "colour": bool(facts["colour"].any()),
        }
        report = {**balance(splits, "label"), **summary(facts)}
        examples = {name: frame.select("clip", "label", "name") for name, frame in splits.items()}
        return examples, schema, report

    def choose_architecture(self, facts: Facts) -> Architecture:
        return CNN() if _side(facts, AUTO) <= 32 else ResNet()

    def resolve(self, facts: Facts) -> Self:
        chosen = {
            "time": GRU(dropout=0.2),
            "frames": max(FEWEST_FRAMES, min(16, math.ceil(facts.schema["frames"]))),
            "image_size": _side(facts, self.architecture),
            "augmentation": Augmentation(shift=0.1, zoom=0.1, rotate=10, light=0.2),
        }
        update = {name: value for name, value in chosen.items() if getattr(self, name) == AUTO}
        colour = facts.schema["colour"]
        update["channels"] = fitting_channels(self.architecture, self.channels, colour=colour)
        return super().resolve(facts).model_copy(update=update)

    def defaults(self, facts: Facts) -> dict[str, Any]:
        # A clip costs as much as all of its images; few clips need many steps on small batches.
        return {"batch_size": 16, "epochs": 30} if facts.examples < FEW else {"batch_size": 32}

    def learn_codec(
        self, train: pl.LazyFrame, schema: Mapping[str, Any], base: Any | None = None
    ) -> ClipCodec:
        labels, counts = count_labels(train.select("label").collect()["label"])
        if isinstance(base, ClipCodec):
            return base.model_copy(update={"labels": labels, "counts": counts})
        if base is not None:
            return ClipCodec(labels=labels, counts=counts, frames=self.frames, **as_shown(base))
        side, channels = self.image_size, self.channels
        mean, std = pixel_moments(train.select("clip"), side, channels, sum(counts))
        return ClipCodec(
            labels=labels,
            counts=counts,
            frames=self.frames,
            side=side,
            channels=channels,
            mean=mean,
            std=std,
        )

    def reading(self, published: Published) -> Squares:
        return published_squares(self.architecture, self.image_size)

    def build(self, codec: ClipCodec) -> VideoClassifier:
        backbone = self.architecture.build(codec.channels, (codec.side, codec.side))
        criterion = self.loss.build(codec.counts)
        return VideoClassifier(backbone, self.time, codec, criterion, self.augmentation)

    def same_outputs(self, codec: ClipCodec, base: Any) -> bool:
        return isinstance(base, ClipCodec) and codec.labels == base.labels

    def score(self, predictions: Sequence[LabelPrediction], examples: pl.DataFrame) -> Metrics:
        return score_labels(predictions, examples["label"].to_list())

    def evaluate(
        self, predictions: Sequence[LabelPrediction], examples: pl.DataFrame
    ) -> dict[str, Any]:
        return evaluate_labels(predictions, examples["label"].to_list())


def _side(facts: Facts, architecture: Any) -> int:
    """The typical side of the frames in steps of 8, no larger than so many clips or the network warrant."""
    typical = math.sqrt(facts.schema["width"] * facts.schema["height"])
    most = 64 if facts.examples < 20_000 else 128
    return fitting_side(architecture, typical, SMALLEST_SIDE, most, STEP)
