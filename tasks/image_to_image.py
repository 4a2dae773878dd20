"""Image to image: what was done to pictures is undone, or pictures become others by example."""

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
import polars as pl
import torch
from pydantic import Field

from models.autoencoder import Autoencoder
from models.base import Architecture, ImageTranslator
from models.edsr import EDSR
from models.parts.losses import ImageLoss
from models.parts.options import AUTO, Auto, OneOf
from models.unet import UNet
from tasks.base import (
    DatasetOptions,
    Facts,
    Metrics,
    Objective,
    Parameterless,
    Task,
    Upload,
)
from tasks.parts.degradations import (
    Autoencoding,
    Colorization,
    Degradation,
    Denoising,
    Paired,
    SuperResolution,
)
from tasks.parts.degraded import ImageToImageCodec
from tasks.parts.fidelity import Fidelity, fidelity
from tasks.parts.image_pairs import read_images
from tasks.parts.images import (
    EncodedImage,
    ImageFacts,
    ImageInput,
    ImagePrediction,
    Pixels,
    pixels_of,
)
from tasks.parts.pictures import summary
from tasks.parts.problems import Invalid, Problem
from tasks.parts.restoring import Restorer

_FOLDERS = "or such folders within `train/`, `validation/` and `test/`"


class Holes(Parameterless):
    """Where an image is to be filled in; only for inpainting."""

    mask: EncodedImage | None = Field(
        None,
        description="An image of the same size as base64, white where there is a hole. What is see-through in "
        "`image` is one, too.",
    )


class ImageToImageInput(Holes, ImageInput):
    """An image, and for inpainting where its holes are."""


class ImageToImage(Task):
    """Make an image of an image: colours, detail, what was lost, or as pairs show it."""

    name: Literal["image-to-image"] = "image-to-image"
    architecture: Auto[OneOf[ImageTranslator]] = Field(
        AUTO, description="The network that reads one image and makes another."
    )
    degradation: Auto[OneOf[Degradation]] = Field(
        AUTO,
        description="What was done to images and is to be undone. `paired` where pairs were uploaded, else "
        "`denoising`, if nothing is said.",
    )
    loss: Auto[OneOf[ImageLoss]] = Field(
        AUTO,
        description="What training minimises: `l1` for super-resolution, denoising and pairs, else `mse`.",
    )
    channels: Auto[Literal[1, 3]] = Field(
        AUTO, description="1 to look at brightness alone, 3 to look at colours."
    )
    crop: Auto[Annotated[int, Field(ge=8, le=512, multiple_of=8)]] = Field(
        AUTO, description="Side in pixels of the squares that are cut from images to learn from."
    )
    crops: Auto[Annotated[int, Field(ge=1, le=1024)]] = Field(
        AUTO, description="Crops of each image in an epoch; as many as cover it, if left out."
    )
    turns: bool = Field(
        True, description="Whether crops are turned and mirrored; wrong where up and down matter."
    )
    largest_side: int = Field(
        512,
        ge=64,
        le=2048,
        description="Of images with longer sides the middle is learned from and measured. What is predicted for "
        "is never cut.",
    )

    has_columns = False
    tells_splits = True
    input_type = ImageToImageInput
    parameters_type = Holes
    prediction_type = ImagePrediction
    codec_type = ImageToImageCodec
    objective = Objective("psnr")
    metrics: ClassVar[Mapping[str, str]] = {
        "psnr": "Peak signal-to-noise ratio in dB, the mean over images; of brightness (BT.601) without the border for "
        "super-resolution, and inside the holes for inpainting.",
        "ssim": "Structural similarity of the same pixels, at most 1 (Wang et al., 2004).",
    }
    of_base: ClassVar[tuple[str, ...]] = ("architecture", "channels")
    formats: ClassVar[Mapping[str, str]] = {
        "images": f"A zip of images, in any folders; {_FOLDERS}. They are what answers should be.",
        "pairs": "A zip of two folders, `input/` (or `source/`, `lr/`) and `target/` (or `hr/`), with images of the "
        f"same names, targets of the same size or 2 to 8 times as large in all pairs; {_FOLDERS}.",
    }

    @classmethod
    def read(cls, upload: Upload, options: DatasetOptions) -> pl.DataFrame:
        frame = read_images(upload)
        if options.format is not None and (options.format == "pairs") != (
            "target" in frame.columns
        ):
            found = "pairs" if "target" in frame.columns else "images"
            raise Invalid(Problem((), "not in the format that was said", found, options.format))
        return frame

    @classmethod
    def identity(cls, examples: pl.DataFrame, schema: Mapping[str, Any]) -> list[str]:
        return [name for name in ("image", "target") if name in examples.columns]

    @classmethod
    def describe(
        cls, splits: Mapping[str, pl.DataFrame], options: DatasetOptions
    ) -> tuple[dict[str, pl.DataFrame], dict[str, Any], dict[str, Any]]:
        _refuse_unlike(splits)
        facts = pl.concat(frame.select(ImageFacts._fields) for frame in splits.values())
        first = splits["train"]
        paired = "target" in first.columns
        schema = {
            "width": facts["width"].median(),
            "height": facts["height"].median(),
            "colour": bool(facts["colour"].any()),
            "paired": paired,
            "factor": first["factor"][0] if paired else 1,
        }
        kept = ["image", "target", "name"] if paired else ["image", "name"]
        report = {**summary(facts), "paired": paired, "factor": schema["factor"]}
        return {name: frame.select(kept) for name, frame in splits.items()}, schema, report

    def choose_architecture(self, facts: Facts) -> Architecture:
        match self.degradation:
            case Autoencoding():
                return Autoencoder()
            case SuperResolution():
                return EDSR()
            case Denoising():
                return EDSR(fold=2)
            case Paired(factor=factor) if factor != 1:
                return EDSR()
            case Colorization():
                return UNet(fold=4, widths=[48, 96, 192])
        return UNet()

    def resolve(self, facts: Facts) -> Self:
        degradation = self._degradation(facts)
        typical = facts.schema["width"] * facts.schema["height"]
        usual = 64 if degradation.enlargement == 1 else 32 * degradation.enlargement
        crop = min(usual, max(8, int(min(facts.schema["width"], facts.schema["height"])) // 8 * 8))
        crop = crop if self.crop == AUTO else self.crop
        chosen = {
            "loss": degradation.loss(),
            "channels": 3 if facts.schema["colour"] else 1,
            "crop": crop,
            "crops": max(1, min(64, round(typical / crop**2))),
        }
        update = {name: value for name, value in chosen.items() if getattr(self, name) == AUTO}
        open_ones = self.model_copy(update={"degradation": degradation, **update})
        resolved = super(ImageToImage, open_ones).resolve(facts)
        resolved._refuse_unfit()
        return resolved

    def _degradation(self, facts: Facts) -> Degradation:
        """The degradation that is asked for, or suits the data set. Raises Invalid where it cannot be learned."""
        asked, paired, factor = self.degradation, facts.schema["paired"], facts.schema["factor"]
        if asked == AUTO:
            return Paired(factor=factor) if paired else Denoising()
        if isinstance(asked, Paired):
            if not paired or asked.factor not in (AUTO, factor):
                found = f"pairs of factor {factor}" if paired else "no pairs"
                raise Invalid(
                    Problem(("task", "degradation"), "not in the data set", asked.factor, found)
                )
            return Paired(factor=factor)
        return asked

    def _refuse_unfit(self) -> None:
        """Raises Invalid for choices that cannot go together."""
        problems = []
        if isinstance(self.degradation, Autoencoding) and not self.architecture.narrows:
            fitting = sorted(a.option_name() for a in ImageTranslator.options() if a.narrows)
            found, why = self.architecture.name, "would hand the image through as it is"
            problems.append(Problem(("task", "architecture"), why, found, fitting))
        if isinstance(self.degradation, Colorization) and self.channels == 1:
            problems.append(Problem(("task", "channels"), "colours are to be learned", 1, 3))
        if problems:
            raise Invalid(*problems)

    def defaults(self, facts: Facts) -> dict[str, Any]:
        steps_per_epoch = max(1, facts.examples * self.crops // 16)
        return {"batch_size": 16, "epochs": max(3, min(40, math.ceil(600 / steps_per_epoch)))}

    def learn_codec(
        self, train: pl.LazyFrame, schema: Mapping[str, Any], base: Any | None = None
    ) -> ImageToImageCodec:
        codec = ImageToImageCodec(
            degradation=self.degradation, channels=self.channels, largest_side=self.largest_side
        )
        if base is not None:
            _refuse_base(codec, base)
        return codec

    def build(self, codec: ImageToImageCodec) -> Restorer:
        read = codec.degradation.read(codec.channels)
        return Restorer(
            self.architecture.build(read),
            self.loss.build(),
            codec.degradation,
            codec.channels,
            adds=not self.architecture.narrows,
            crop=self.crop,
            crops=self.crops,
            turns=self.turns,
        )

    def same_outputs(self, codec: ImageToImageCodec, base: Any) -> bool:
        ours, theirs = codec.degradation, base.degradation
        same = ours.name == theirs.name and ours.enlargement == theirs.enlargement
        return bool(same and codec.channels == base.channels)

    def score(self, predictions: Sequence[ImagePrediction], examples: pl.DataFrame) -> Metrics:
        found = [
            self._fidelity(pixels_of(prediction.image, self.channels), spoiled, original)
            for prediction, (spoiled, original) in zip(
                predictions, self._examples(examples), strict=True
            )
        ]
        return _mean(found)

    def evaluate(
        self, predictions: Sequence[ImagePrediction], examples: pl.DataFrame
    ) -> dict[str, Any]:
        """`score`, and the same of images as they come, enlarged or filled in by rule: what a model must beat."""
        scores: dict[str, Any] = self.score(predictions, examples)
        if isinstance(self.degradation, Autoencoding):
            return scores
        untouched = [
            self._fidelity(self._by_rule(spoiled), spoiled, original)
            for spoiled, original in self._examples(examples)
        ]
        return scores | {"input": _mean(untouched)}

    def _examples(self, examples: pl.DataFrame) -> Any:
        """Degraded and original pixels of each example."""
        codec = self.learn_codec(examples.lazy(), {})
        target = examples["target"] if "target" in examples.columns else [None] * examples.height
        for data, wanted in zip(examples["image"], target, strict=True):
            picture, original = codec.example(data, wanted)
            yield picture.pixels, original

    def _by_rule(self, spoiled: Pixels) -> Pixels:
        """The answer of a network that makes nothing."""
        degradation = self.degradation
        image = torch.from_numpy(np.array(spoiled))[None].float() / 255
        height, width = (side * degradation.enlargement for side in spoiled.shape[1:])
        nothing = torch.zeros((1, degradation.made(self.channels), height, width))
        answer = degradation.compose(image, nothing, adds=True)[0]
        pixels: Pixels = (answer * 255).round().clamp(0, 255).byte().numpy()
        return pixels

    def _fidelity(self, found: Pixels, spoiled: Pixels, original: Pixels) -> Fidelity:
        measured = self.degradation.measured
        return fidelity(measured(found), measured(original), self.degradation.where(spoiled))


def _refuse_unlike(splits: Mapping[str, pl.DataFrame]) -> None:
    """Raises Invalid for splits that do not hold the same kind of examples."""
    kinds = {
        name: f"pairs of factor {frame['factor'][0]}" if "target" in frame.columns else "images"
        for name, frame in splits.items()
    }
    problems = [
        Problem((name,), "unlike the train split", kind, kinds["train"])
        for name, kind in kinds.items()
        if kind != kinds["train"]
    ]
    if problems:
        raise Invalid(*problems)


def _refuse_base(codec: ImageToImageCodec, base: Any) -> None:
    """Raises Invalid for a base that reads other images."""
    if not isinstance(base, ImageToImageCodec):
        allowed = "a model of image-to-image"
        raise Invalid(Problem(("base",), "does not read images as this task does", None, allowed))
    ours, theirs = (c.degradation.read(c.channels) for c in (codec, base))
    if ours != theirs:
        found = f"{base.degradation.name}: {theirs} channels"
        allowed = f"{ours} channels, as {codec.degradation.name} has"
        raise Invalid(Problem(("base",), "reads images of other channels", found, allowed))


def _mean(found: Sequence[Fidelity]) -> Metrics:
    psnr, ssim = (float(np.mean(values)) for values in zip(*found, strict=True))
    return {"psnr": psnr, "ssim": ssim}
