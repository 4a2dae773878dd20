"""The learner that paints: it is judged by what filters see of its images, and changes any image in one pass."""

from collections.abc import Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from models.base import Backbone, Batch, Learner, MapBackbone, NotTransferable, Supervised
from models.parts.looks import (
    Maps,
    RandomFilters,
    coarse,
    content_distance,
    grams,
    numbers,
    roughness,
    style_distance,
)
from models.parts.options import Plain
from models.parts.precision import autocast
from models.parts.training import Training, Transfer
from tasks.parts.pictures import Squares
from tasks.parts.styled import StyleCodec
from tasks.parts.tiles import cut, whole
from tasks.parts.whole_images import packed

_OWN_LOOK = 512
"""Pixels that the longer side of an image has at most when its own look is taken."""
_COMPARED = 3
"""So many maps of a base are compared, its last ones."""


class Weights(Plain):
    """What the parts of the loss count."""

    content: float = Field(
        0.12, ge=0, le=1e4, description="That what was to be seen is still to be seen."
    )
    style: float = Field(1.0, gt=0, le=1e4, description="That colours and strokes are the style's.")
    smoothness: float = Field(
        0.0, ge=0, le=1e4, description="That neighbouring pixels are alike (total variation)."
    )


class Head(nn.Module):
    """Features (B, width, H, W) to images (B, 3, H, W) in [0, 1]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(width, 3, 3, padding=1, padding_mode="replicate")

    def forward(self, features: Tensor) -> Tensor:
        images: Tensor = self.convolution(features).sigmoid()
        return images


class Shown(nn.Module):
    """A network that was trained for something else, and whose maps are compared; it learns no more."""

    def __init__(self, network: MapBackbone, squares: Squares) -> None:
        super().__init__()
        self.network = network.requires_grad_(requires_grad=False)
        self.grey = squares.channels == 1
        self.eval()
        for name, values in (("mean", squares.mean), ("std", squares.std)):
            per_channel = torch.tensor(values).view(-1, 1, 1) / 255
            self.register_buffer(name, per_channel, persistent=False)

    def train(self, mode: bool = True) -> "Shown":
        """Never in training mode: its statistics stay those it was trained with."""
        return super().train(mode=False)

    def forward(self, images: Tensor) -> list[Tensor]:
        """The last maps of images (B, 3, H, W) in [0, 1]."""
        seen = images.mean(1, keepdim=True) if self.grey else images
        normal = (seen - self.get_buffer("mean")) / self.get_buffer("std")
        return self.network.maps(normal)[-_COMPARED:]


class Stylist(Supervised):
    """Learns to paint images in styles (Johnson et al., 2016; Dumoulin et al., 2017; Ghiasi et al., 2017).

    Inputs are tiles of images (B, T, 3, 16, 16) and their number (B,), the same of styles, then height, width, style,
    and the style's height and width (B, 5), and strength (B,).
    """

    def __init__(
        self,
        backbone: Backbone,
        codec: StyleCodec,
        features: MapBackbone | None,
        weights: Weights,
        *,
        crop: int,
        crops: int,
        blend: float,
        turns: bool,
    ) -> None:
        """`crop` is the side of crops in pixels, `crops` their number per image and epoch."""
        super().__init__(backbone, Head(backbone.width), nn.Identity())
        self.weights, self.turns, self.blend = weights, turns, blend
        self.side, self.crops = crop, crops
        self.filters = RandomFilters()
        self.features: Shown | None = None
        if features is not None:
            assert codec.shown is not None, "the codec says how images are shown to features"
            self.features = Shown(features, codec.shown)
        self.pictures = [torch.from_numpy(pixels.copy()) for pixels in codec.pictures()]
        with torch.no_grad():
            known = [numbers(self.filters(_scaled(picture)[None])) for picture in self.pictures]
        # Not among the weights: the codec has the pictures that they are of.
        self.register_buffer("known", torch.cat(known), persistent=False)
        self.wanted: list[Tensor] = []
        """Gram matrices (styles, filters, filters) of every map, once they are needed."""

    def start(self, training: Training, transfer: Transfer | None, steps: int) -> None:
        # A base that only lends its features has no part in what is trained.
        super().start(training, None if self.features is not None else transfer, steps)

    def parameter_groups(self) -> list[dict[str, Any]]:
        if self.transfer is not None:
            return super().parameter_groups()
        return [{"params": [*self.backbone.parameters(), *self.head.parameters()]}]

    def enter_epoch(self, epoch: int) -> None:
        place = self.get_buffer("known").device
        with torch.no_grad():
            looks = [self._grams(_scaled(picture.to(place))[None]) for picture in self.pictures]
        self.wanted = [torch.cat(of_map) for of_map in zip(*looks, strict=True)]
        super().enter_epoch(epoch)

    def take_over(self, base: Learner, *, head: bool) -> None:
        if self.features is None or isinstance(base, Stylist):
            super().take_over(base, head=head)
            return
        if not isinstance(base, Supervised):
            raise NotTransferable("the base has no backbone whose features could be compared")
        try:
            self.features.network.load_state_dict(base.backbone.state_dict())
        except RuntimeError as error:
            raise NotTransferable(f"the base's weights do not fit: {error}") from error

    def forward(self, *inputs: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [0, 1] and styles (B, NUMBERS) to painted images of the same size."""
        images, styles = inputs
        painted: Tensor = self.head(self.backbone(images - 0.5, styles))
        return painted

    def loss(self, batch: Batch) -> Tensor:
        images = self._crops(batch)
        draw = torch.rand((2, len(images)), device=images.device)
        which = torch.randint(len(self.pictures), (len(images),), device=images.device)
        share = draw[0].where(draw[1] < self.blend, 1.0)
        with torch.no_grad():
            seen = self.filters(images)
            own = numbers(seen)
            styles = torch.lerp(own, self.get_buffer("known")[which], share[:, None])
            wanted = [
                torch.lerp(ours, theirs[which], share[:, None, None])
                for ours, theirs in zip(self._grams(images, seen), self.wanted, strict=True)
            ]
        with autocast(self.precision, images.device):
            painted = (self.kernels or self)(images, styles)
        painted = painted.float()
        shown = self.filters(painted)
        kept = content_distance(self._content(painted, shown), self._content(images, seen))
        of_style = style_distance(self._grams(painted, shown), wanted)
        losses = (
            self.weights.style * of_style
            + self.weights.content * kept
            + self.weights.smoothness * roughness(painted)
        )
        return losses.mean()

    def _grams(self, images: Tensor, seen: Maps | None = None) -> list[Tensor]:
        seen = seen or self.filters(images)
        found = grams(seen.all())
        return found if self.features is None else [*found, *grams(self.features(images))]

    def _content(self, images: Tensor, seen: Maps) -> list[Tensor]:
        found = coarse(seen)
        return found if self.features is None else [*found, self.features(images)[-1]]

    def batches(
        self, examples: int, lengths: Tensor | None, batch_size: int, generator: torch.Generator
    ) -> Sequence[Tensor]:
        """Every image `crops` times, in random order: crops have one size, whatever their images have."""
        rounds = [torch.randperm(examples, generator=generator) for _ in range(self.crops)]
        return list(torch.cat(rounds).split(batch_size))

    def _crops(self, batch: Batch) -> Tensor:
        """Crops (B, 3, side, side) in [0, 1], each from anywhere in its image."""
        tiles, sizes = batch.inputs[0], batch.inputs[4][:, :2]
        room = (sizes - self.side).clamp(min=0) + 1
        corners = (torch.rand((len(tiles), 2), device=tiles.device) * room).long().minimum(room - 1)
        # Mirrored alone: strokes and light come from one side, and pictures stand upright.
        ways = 4 * torch.randint(2 if self.turns else 1, (len(tiles),), device=tiles.device)
        return cut(tiles, sizes, corners, self.side, ways).float() / 255

    def predict(self, *inputs: Tensor) -> Tensor:
        """Answers as `packed`. Each image is computed by itself: norms see all of it, and none of its neighbours."""
        tiles, _, styles, _, sizes, strengths = inputs
        return packed(
            [
                self._answer(image, style, *map(int, size), strength=float(strength))
                for image, style, size, strength in zip(
                    tiles, styles, sizes.tolist(), strengths, strict=True
                )
            ]
        )

    def _answer(
        self,
        tiles: Tensor,
        picture: Tensor,
        height: int,
        width: int,
        style: int,
        style_height: int,
        style_width: int,
        *,
        strength: float,
    ) -> Tensor:
        image = _scaled(whole(tiles, height, width))[None]
        if style >= 0:
            code = self.get_buffer("known")[style : style + 1]
        else:
            given = whole(picture, style_height, style_width)
            code = numbers(self.filters(_scaled(given)[None]))
        if strength < 1:
            code = torch.lerp(numbers(self.filters(_at_most(image, _OWN_LOOK))), code, strength)
        answer: Tensor = self(image, code)[0]
        return answer


def _scaled(pixels: Tensor) -> Tensor:
    return pixels.float() / 255


def _at_most(images: Tensor, longest: int) -> Tensor:
    """Images (B, 3, H, W) made smaller so that no side is longer."""
    factor = longest / max(images.shape[2:])
    if factor >= 1:
        return images
    sides = [max(1, round(side * factor)) for side in images.shape[2:]]
    return F.interpolate(images, size=sides, mode="area")
