"""Image generation: new pictures like those of the data set, of a class if they have classes."""

import math
import secrets
import zlib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
import polars as pl
import torch
from pydantic import Field
from torch import Tensor

from models.base import Architecture, ImageGenerator, Learner
from models.ddpm import DDPM
from models.parts.generating import ImageMaker
from models.parts.options import AUTO, Auto, OneOf, Plain
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
from tasks.parts.archives import Limits, image_folders, open_archive
from tasks.parts.columns import Columns, Dense
from tasks.parts.images import (
    MAX_BYTES,
    ImageFacts,
    ImagePrediction,
    decode_all,
    encode_png,
)
from tasks.parts.labels import balance, check_classes, count_labels
from tasks.parts.pictures import look, summary
from tasks.parts.problems import Invalid, Problem
from tasks.parts.realism import (
    FEATURES,
    REALISM_METRICS,
    agreement,
    compare,
    look_closely,
)
from tasks.parts.splits import SPLIT, SplitOptions

FOLDERS, FILES = "class-folders", "images"
SMALLEST_SIDE, LARGEST_SIDE, STEP = 8, 128, 8
MOST_STEPS = 250
JUDGED_STEPS = 8
"""Steps in which images are made that are only judged: more would take longer than learning does."""
_LIMITS = Limits(member=MAX_BYTES)


class GenerationOptions(DatasetOptions):
    """How to read an archive of images."""

    split: SplitOptions = Field(
        SplitOptions(fraction=0.1),
        description="How examples are held out, which made images are compared with.",
    )


class ImageGenerationParameters(Plain):
    """How to make an image."""

    seed: int | None = Field(
        None,
        ge=0,
        lt=2**31,
        description="Same seed, same image; another one each time if left out.",
    )
    steps: int = Field(
        30,
        ge=1,
        le=MOST_STEPS,
        description="Steps from noise to an image: more take longer and show more detail. `vae` and `gan` take one.",
    )
    guidance: float = Field(
        1.5,
        ge=0,
        le=20,
        description="Above 1, images are more typical of their label and less varied (`ddpm` with labels).",
    )


class ImageGenerationInput(ImageGenerationParameters):
    """What to make an image of, and how."""

    label: str | None = Field(
        None,
        description="What it shows: one of the data set's labels. If left out, the seed draws one, common ones "
        "more often.",
        examples=["cat"],
    )


class MadeImage(ImagePrediction):
    """An image that was made, and what makes the same one again."""

    label: str | None = Field(None, description="What it shows; null where images have no labels.")
    seed: int | None = Field(None, description="What it was made from.")


class ImageGenerationCodec(Codec):
    """The labels, and how images become squares."""

    labels: list[str]
    """None where images have no labels."""
    counts: list[int]
    side: int
    channels: Literal[1, 3]
    crop: bool

    def encode(self, examples: pl.DataFrame, *, targets: bool = True) -> Columns:
        asked = self._asked([*self.given(examples)])
        if not targets:
            return asked
        pixels = decode_all(examples["image"], self.side, self.channels, crop=self.crop)
        return Columns(asked.inputs, (Dense(pixels),))

    def given(self, examples: pl.DataFrame) -> Sequence[ImageGenerationInput]:
        """An image like each example: of its label, and from a seed that follows from its name."""
        labels = examples["label"] if self.labels else pl.Series([None] * examples.height)
        unknown = {*labels.drop_nulls()} - {*self.labels}
        if unknown:
            found = sorted(unknown)[:10]
            raise Invalid(Problem(("label",), "unknown labels", found, self.labels[:10]))
        make = ImageGenerationInput.model_construct
        return [
            make(label=label, seed=seed_of(name), steps=JUDGED_STEPS, guidance=1.0)
            for label, name in zip(labels, examples["name"], strict=True)
        ]

    def read_input(self, value: Any) -> ImageGenerationInput:
        """The input with a seed and, where there are labels, a label."""
        read = read_fields(ImageGenerationInput, value)
        if read.label is not None and read.label not in self.labels:
            allowed: Any = self.labels[:20] or "no label: the model's images have none"
            raise Invalid(Problem(("label",), "unknown label", read.label[:80], allowed))
        seed = secrets.randbelow(2**31) if read.seed is None else read.seed
        label = self._drawn(seed) if read.label is None and self.labels else read.label
        return read.model_copy(update={"seed": seed, "label": label})

    def _drawn(self, seed: int) -> str:
        """A label by a seed, as often as it is there in the train split."""
        shares = np.array(self.counts) / sum(self.counts)
        return self.labels[int(np.random.default_rng(seed).choice(len(shares), p=shares))]

    def blank(self) -> ImageGenerationInput:
        return ImageGenerationInput(seed=0, steps=2)

    def length(self, given: ImageGenerationInput) -> int:
        """In passes through the network."""
        return given.steps * (1 if given.guidance == 1 or not self.labels else 2)

    def encode_inputs(self, inputs: Sequence[ImageGenerationInput]) -> Columns:
        return self._asked(inputs)

    def _asked(self, inputs: Sequence[ImageGenerationInput]) -> Columns:
        places = {label: place for place, label in enumerate(self.labels)}
        rows = [(places.get(i.label or "", len(places)), i.seed, i.steps) for i in inputs]
        guidance = torch.tensor([float(i.guidance) for i in inputs], dtype=torch.float32)
        what = torch.tensor(rows, dtype=torch.int64).reshape(-1, 3)
        return Columns((Dense(what), Dense(guidance)))

    def decode(self, outputs: Tensor) -> list[MadeImage]:
        """Images from brightnesses in [0, 1] (B, C, H, W)."""
        pixels = (outputs * 255).round().clamp(0, 255).to(torch.uint8).numpy()
        return [MadeImage.model_construct(image=encode_png(image)) for image in pixels]

    def complete(self, predictions: list[Any], inputs: Sequence[Any]) -> list[Any]:
        return [
            prediction.model_copy(update={"label": given.label, "seed": given.seed})
            for prediction, given in zip(predictions, inputs, strict=True)
        ]


def seed_of(name: str) -> int:
    """A number below 2 ** 31 that follows from a name."""
    return zlib.crc32(name.encode()) >> 1


class ImageGeneration(Task):
    """Make new images like those of the data set."""

    name: Literal["image-generation"] = "image-generation"
    architecture: Auto[OneOf[ImageGenerator]] = Field(AUTO, description="What makes the images.")
    image_size: Auto[Annotated[int, Field(ge=SMALLEST_SIDE, le=LARGEST_SIDE, multiple_of=STEP)]] = (
        Field(AUTO, description="Side in pixels of the squares that are learned from and made.")
    )
    channels: Auto[Literal[1, 3]] = Field(
        AUTO, description="1 to make images of brightness alone, 3 to make coloured ones."
    )
    fit: Literal["crop", "stretch"] = Field(
        "crop",
        description="How images become squares: by leaving out their ends, or by changing their shape.",
    )
    flip: bool = Field(
        False,
        description="Also learn from mirrored images; wrong where left and right matter, as in writing.",
    )

    has_columns = False
    tells_splits = True
    bulky = ("image",)
    divides = False
    input_type = ImageGenerationInput
    parameters_type = ImageGenerationParameters
    prediction_type = MadeImage
    codec_type = ImageGenerationCodec
    options_type = GenerationOptions
    objective = Objective("frechet_distance", maximise=False)
    metrics = REALISM_METRICS
    of_base: ClassVar[tuple[str, ...]] = ("architecture", "image_size", "channels")
    formats: ClassVar[Mapping[str, str]] = {
        FILES: "A zip of images, `1.png`, or of folders of them named `train/`, `validation/` and `test/`. "
        "Images are PNG, JPEG, WebP, BMP, GIF or TIFF.",
        FOLDERS: "A zip with a folder of images for each label, `cat/1.png`; or such folders within "
        "`train/`, `validation/` and `test/`. The label then chooses what is made.",
    }

    @classmethod
    def read(cls, upload: Upload, options: DatasetOptions) -> pl.DataFrame:
        """One row per image: `image`, `label` or null, `name`, its facts, and `split` where folders tell it."""
        with open_archive(upload.path, _LIMITS) as archive:
            placed = image_folders(archive)
            labelled = options.format != FILES
            if options.format == FOLDERS and not all(place.label for place in placed):
                message, allowed = "files lie in no folders of classes", "label/name"
                raise Invalid(Problem((), message, placed[0].name, allowed))
            rows = [
                (archive.read(p.name), p.label or None if labelled else None, p.name, p.split)
                for p in placed
            ]
        schema = {"image": pl.Binary, "label": pl.String, "name": pl.String, SPLIT: pl.String}
        frame = pl.DataFrame(rows, schema=schema, orient="row")
        return frame.with_columns(look(frame))

    @classmethod
    def stratum(cls, examples: pl.DataFrame, options: DatasetOptions) -> str | None:
        return None if examples["label"].null_count() else "label"

    @classmethod
    def label_column(cls, schema: Mapping[str, Any]) -> str | None:
        return "label"

    @classmethod
    def identity(cls, examples: pl.DataFrame, schema: Mapping[str, Any]) -> list[str]:
        return ["image"]

    @classmethod
    def describe(
        cls, splits: Mapping[str, pl.DataFrame], options: DatasetOptions
    ) -> tuple[dict[str, pl.DataFrame], dict[str, Any], dict[str, Any]]:
        """Each image with its features, which images that are made will be compared with."""
        labels, report = _labels(splits)
        facts = pl.concat(frame.select(ImageFacts._fields) for frame in splits.values())
        schema = {
            "labels": labels,
            "width": facts["width"].median(),
            "height": facts["height"].median(),
            "colour": bool(facts["colour"].any()),
        }
        examples = {
            name: frame.select(
                "image",
                "label" if labels else pl.lit(None, pl.String).alias("label"),
                "name",
                pl.Series(
                    "features",
                    look_closely(frame["image"]).numpy(),
                    dtype=pl.Array(pl.Float32, FEATURES),
                ),
            )
            for name, frame in splits.items()
        }
        return examples, schema, {**report, **summary(facts)}

    def choose_architecture(self, facts: Facts) -> Architecture:
        return DDPM()

    def resolve(self, facts: Facts) -> Self:
        chosen = {"image_size": _side(facts), "channels": 3 if facts.schema["colour"] else 1}
        update = {name: value for name, value in chosen.items() if getattr(self, name) == AUTO}
        return super().resolve(facts).model_copy(update=update)

    def defaults(self, facts: Facts) -> dict[str, Any]:
        # As many examples are seen, whatever the size of the data set.
        return {"batch_size": 32, "epochs": max(5, min(400, round(70_000 / facts.examples)))}

    def learn_codec(
        self, train: pl.LazyFrame, schema: Mapping[str, Any], base: Any | None = None
    ) -> ImageGenerationCodec:
        labels, counts = count_labels(train.select("label").collect()["label"].drop_nulls())
        side, channels = self.image_size, self.channels
        if base is not None:
            if not isinstance(base, ImageGenerationCodec):
                allowed = "a model of image-generation"
                raise Invalid(Problem(("base",), "does not make images", None, allowed))
            side, channels = base.side, base.channels
        return ImageGenerationCodec(
            labels=labels, counts=counts, side=side, channels=channels, crop=self.fit == "crop"
        )

    def build(self, codec: ImageGenerationCodec) -> Learner:
        learner = self.architecture.build(codec.channels, codec.side, len(codec.labels))
        assert isinstance(learner, ImageMaker)
        learner.mirrors = self.flip
        return learner

    def same_outputs(self, codec: ImageGenerationCodec, base: Any) -> bool:
        return isinstance(base, ImageGenerationCodec) and codec.labels == base.labels

    def score(self, predictions: Sequence[MadeImage], examples: pl.DataFrame) -> Metrics:
        return compare(*_features(predictions, examples))

    def evaluate(self, predictions: Sequence[MadeImage], examples: pl.DataFrame) -> dict[str, Any]:
        """Also, with labels, how often what was made is most like a real image of the label asked for."""
        made, real = _features(predictions, examples)
        found: dict[str, Any] = {**compare(made, real), "images": len(made)}
        if examples["label"].null_count() == 0 and len(made) > 1:
            found["label_agreement"] = agreement(made, real, examples["label"].to_list())
        return found


def _features(
    predictions: Sequence[MadeImage], examples: pl.DataFrame
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Those of made images (N, F) and of real ones (N, F)."""
    made = look_closely(pl.Series([prediction.image for prediction in predictions]))
    return made.double().numpy(), examples["features"].to_numpy().astype(np.float64)


def _labels(splits: Mapping[str, pl.DataFrame]) -> tuple[list[str], dict[str, Any]]:
    """The labels, none where there are not several, and what a report says of them. Raises Invalid."""
    found = {label for frame in splits.values() for label in frame["label"].drop_nulls()}
    if len(found) < 2:
        return [], {}
    allowed = "folders of classes in all files, or in none"
    problems = [
        Problem((name,), "images in no folder of a class", frame["name"][0], allowed)
        for name, frame in splits.items()
        if frame["label"].null_count()
    ]
    if problems:
        raise Invalid(*problems)
    return check_classes(splits, "label"), balance(splits, "label")


def _side(facts: Facts) -> int:
    """The typical side of the images in steps of 8, no larger than so many examples warrant."""
    typical = math.sqrt(facts.schema["width"] * facts.schema["height"])
    most = 32 if facts.examples < 20_000 else 64
    return max(SMALLEST_SIDE, min(most, math.ceil(typical / STEP) * STEP))
