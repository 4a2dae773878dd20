"""Style transfer: what a photo shows, painted as a picture is."""

import math
from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self

import numpy as np
import polars as pl
import torch
from pydantic import Field
from torch import Tensor

from models.adaptive_residual import AdaptiveResidual
from models.base import Architecture, ImageBackbone, StyleNetwork
from models.parts.looks import (
    NUMBERS,
    RandomFilters,
    coarse,
    content_distance,
    grams,
    style_distance,
)
from models.parts.options import AUTO, Auto, OneOf
from models.parts.pretrained import Pretrained
from tasks.base import Checked, DatasetOptions, Facts, Metrics, Objective, Task, Upload, read_each
from tasks.parts.images import ImageFacts, Pixels, inspect, pixels_of, reduced_pixels
from tasks.parts.pictures import Squares, as_shown, summary
from tasks.parts.problems import Invalid, Problem
from tasks.parts.style_archives import paired, read_contents, read_styles
from tasks.parts.styled import StyleCodec, StyleInput, StylePrediction, Styling, named_styles
from tasks.parts.styling import Stylist, Weights

FORMAT = "styles"
_DRAWN = Squares(side=64, channels=3, mean=[127.5] * 3, std=[64.0] * 3)
"""How features are shown images that no base says it of."""


class StyleTransfer(Task):
    """Paint photos in the style of pictures: those that were trained, or any other."""

    name: Literal["style-transfer"] = "style-transfer"
    architecture: Auto[OneOf[StyleNetwork]] = Field(AUTO, description="The network that paints.")
    features: OneOf[ImageBackbone] | None = Field(
        None,
        description="A network whose feature maps are compared, too, beside filters that are drawn once and for all. "
        "A `base` of another task on images says it, and brings its weights; without one they stay as drawn.",
    )
    weights: Weights = Field(Weights(), description="What the parts of the loss count.")
    style_size: int = Field(
        256,
        ge=32,
        le=512,
        description="Pixels that the longer side of a style's picture is made to have at most: "
        "fewer make finer strokes.",
    )
    largest_side: int = Field(
        512,
        ge=64,
        le=2048,
        description="Pixels that the longer side of photos is made to have at most for learning and "
        "measuring. What is predicted for keeps its size.",
    )
    crop: Auto[Annotated[int, Field(ge=16, le=512, multiple_of=8)]] = Field(
        AUTO, description="Side in pixels of the squares that are cut from photos to learn from."
    )
    crops: Auto[Annotated[int, Field(ge=1, le=1024)]] = Field(
        AUTO, description="Crops of each photo in an epoch; as many as cover it, if left out."
    )
    blend: float = Field(
        0.1,
        ge=0,
        le=1,
        description="Share of crops that go only a part of the way to a style, which `strength` and styles "
        "that were not trained rely on.",
    )
    turns: bool = Field(
        True, description="Whether crops are mirrored; wrong where left and right matter."
    )

    has_columns = False
    input_type = StyleInput
    parameters_type = Styling
    prediction_type = StylePrediction
    codec_type = StyleCodec
    objective = Objective("loss_ratio", maximise=False)
    metrics: ClassVar[Mapping[str, str]] = {
        "loss_ratio": "Style and content loss, weighed as in training, as a share of the style loss of the photos "
        "themselves: what is left of the way to the style, below 1 if anything was gained.",
        "style_ratio": "The style loss alone, as a share of that of the photos.",
        "style_loss": "How far Gram matrices are from the style's, as a share of its own (Gatys et al., 2016).",
        "content_loss": "How far standardised feature maps are from the photo's: 0 the same, 2 unrelated.",
    }
    bases: ClassVar[tuple[type[Architecture], ...]] = (ImageBackbone,)
    formats: ClassVar[Mapping[str, str]] = {
        FORMAT: "A zip of two folders, `style/` with a picture for each style, whose name without its ending is the "
        "style's, and `content/` with photos to learn from; validation and test files are photos alone."
    }

    @classmethod
    def check(cls, files: Mapping[str, Upload], options: DatasetOptions) -> Checked:
        """As every task; every split's photos get the styles of the train file in turn."""
        checked = super().check(files, options)
        source = {name: files[name] for name in ("file", "train") if name in files}
        (styles,) = read_each(source, read_styles).values()
        splits = {name: paired(frame, styles) for name, frame in checked.splits.items()}
        looks = {name: inspect(data) for name, data in styles.items()}
        sizes = {name: {"width": look.width, "height": look.height} for name, look in looks.items()}
        return Checked(
            splits,
            {**checked.schema, "styles": list(styles)},
            {
                **checked.report,
                "examples": {name: frame.height for name, frame in splits.items()},
                "photos": checked.report["examples"],
                "styles": sizes,
            },
        )

    @classmethod
    def read(cls, upload: Upload, options: DatasetOptions) -> pl.DataFrame:
        return read_contents(upload)

    @classmethod
    def identity(cls, examples: pl.DataFrame, schema: Mapping[str, Any]) -> list[str]:
        return ["image"]

    @classmethod
    def describe(
        cls, splits: Mapping[str, pl.DataFrame], options: DatasetOptions
    ) -> tuple[dict[str, pl.DataFrame], dict[str, Any], dict[str, Any]]:
        facts = pl.concat(frame.select(ImageFacts._fields) for frame in splits.values())
        schema = {side: facts[side].median() for side in ("width", "height")}
        kept = {name: frame.select("image", "name") for name, frame in splits.items()}
        return kept, schema, summary(facts)

    @classmethod
    def label_column(cls, schema: Mapping[str, Any]) -> str | None:
        return "style"

    def choose_architecture(self, facts: Facts) -> Architecture:
        return AdaptiveResidual()

    def on_base(self, base: Task) -> Self:
        if not isinstance(base.architecture, ImageBackbone):
            return super().on_base(base)
        if self.features not in (None, base.architecture):
            found, allowed = self.features.model_dump(), base.architecture.model_dump()
            message = "a base brings its own; leave it out"
            raise Invalid(Problem(("task", "features"), message, found, allowed))
        return self.model_copy(update={"features": base.architecture})

    def resolve(self, facts: Facts) -> Self:
        if isinstance(self.features, Pretrained) and self.features.config is None:
            message = (
                "published features are had from a model that began with them: name it as `base`"
            )
            raise Invalid(Problem(("task", "features"), message, self.features.name))
        width, height = self._read_size(facts)
        crop = max(16, min(128, int(min(width, height)) // 8 * 8))
        crop = crop if self.crop == AUTO else self.crop
        crops = max(1, min(64, round(width * height / crop**2)))
        update = {"crop": crop, "crops": crops if self.crops == AUTO else self.crops}
        return super(StyleTransfer, self.model_copy(update=update)).resolve(facts)

    def _read_size(self, facts: Facts) -> tuple[float, float]:
        """How wide and high photos are when they are learned from, typically."""
        width, height = facts.schema["width"], facts.schema["height"]
        factor = min(1.0, self.largest_side / max(width, height))
        return width * factor, height * factor

    def defaults(self, facts: Facts) -> dict[str, Any]:
        steps_per_epoch = max(1, facts.examples * self.crops // 4)
        return {"batch_size": 4, "epochs": max(3, min(40, math.ceil(600 / steps_per_epoch)))}

    def learn_codec(
        self, train: pl.LazyFrame, schema: Mapping[str, Any], base: Any | None = None
    ) -> StyleCodec:
        shown = None if self.features is None else _DRAWN
        if self.features is not None and base is not None and not isinstance(base, StyleCodec):
            shown = Squares(**as_shown(base))
        return StyleCodec(
            styles=named_styles(train, self.style_size),
            style_size=self.style_size,
            largest_side=self.largest_side,
            shown=shown,
        )

    def build(self, codec: StyleCodec) -> Stylist:
        features = None
        if self.features is not None and codec.shown is not None:
            shown = codec.shown
            features = self.features.build(shown.channels, (shown.side, shown.side))
        return Stylist(
            self.architecture.build(3, NUMBERS),
            codec,
            features,
            self.weights,
            crop=self.crop,
            crops=self.crops,
            blend=self.blend,
            turns=self.turns,
        )

    def same_outputs(self, codec: StyleCodec, base: Any) -> bool:
        return True

    def score(self, predictions: Sequence[StylePrediction], examples: pl.DataFrame) -> Metrics:
        return self._mean(self._losses(predictions, examples))

    def evaluate(
        self, predictions: Sequence[StylePrediction], examples: pl.DataFrame
    ) -> dict[str, Any]:
        """`score`, also of each style by itself."""
        losses, names = self._losses(predictions, examples), examples["style"].to_list()
        per_style = {
            name: self._mean([loss for loss, own in zip(losses, names, strict=True) if own == name])
            for name in sorted(set(names))
        }
        return {**self._mean(losses), "per_style": per_style}

    def _losses(
        self, predictions: Sequence[StylePrediction], examples: pl.DataFrame
    ) -> list["_Losses"]:
        columns = (examples["image"], examples["style_image"])
        return [
            _losses(
                pixels_of(prediction.image, 3),
                reduced_pixels(image, self.largest_side),
                _look_of(style, self.style_size),
            )
            for prediction, image, style in zip(predictions, *columns, strict=True)
        ]

    def _mean(self, losses: Sequence["_Losses"]) -> Metrics:
        """Metrics of all of these together: sums are compared, for no photo to count more than others."""
        style, untouched, content = (float(np.mean(v)) for v in zip(*losses, strict=True))
        left = self.weights.style * style + self.weights.content * content
        return {
            "loss_ratio": left / max(self.weights.style * untouched, 1e-8),
            "style_ratio": style / max(untouched, 1e-8),
            "style_loss": style,
            "content_loss": content,
        }


class _Losses(NamedTuple):
    """What is measured of one painted photo."""

    style: float
    untouched: float
    """The style loss of the photo itself."""
    content: float


@cache
def _filters() -> RandomFilters:
    # Not when this is loaded: processes are forked from one that has loaded it, and the pool of threads that
    # computing starts does not survive that.
    return RandomFilters()


@torch.inference_mode()
def _losses(painted: Pixels, photo: Pixels, style: list[Tensor]) -> _Losses:
    ours, before = (_filters()(_image(pixels)) for pixels in (painted, photo))
    found, untouched = (style_distance(grams(maps.all()), style).item() for maps in (ours, before))
    return _Losses(found, untouched, content_distance(coarse(ours), coarse(before)).item())


@lru_cache(maxsize=64)
@torch.inference_mode()
def _look_of(style: bytes, longest: int) -> list[Tensor]:
    """The Gram matrices of a style, which many photos are compared with."""
    maps = _filters()(_image(reduced_pixels(style, longest)))
    return grams(maps.all())


def _image(pixels: Pixels) -> Tensor:
    return torch.from_numpy(np.array(pixels))[None].float() / 255
