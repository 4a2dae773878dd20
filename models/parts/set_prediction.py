"""Objects as a set: questions that a transformer asks of the image, each answered by an object or by none."""

from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from scipy.optimize import linear_sum_assignment  # type: ignore[import-untyped]
from torch import Tensor, nn
from torch.nn import functional as F

from models.base import MapBackbone
from models.parts.boxes import centred, cornered, generalised_overlaps
from models.parts.detection import MOST, Candidates, DetectionHead, Detector, Objects
from models.parts.transformer import TransformerLayer

RARE = -4.6
"""The first score of every class before the sigmoid, as most questions find nothing (Lin et al., 2017)."""
CLASS_WEIGHT, SIDE_WEIGHT, OVERLAP_WEIGHT = 2.0, 5.0, 2.0
_SHARE, _FOCUS = 0.25, 2.0
"""Of the focal loss: how much an object counts beside none, and how little what is sure."""
_FIRST_SIZE = -1.5
"""Boxes are a fifth of the image across at first: the sigmoid of this."""


class SetPrediction(Detector):
    """A transformer decoder whose answers are matched to objects (DETR: Carion et al., 2020); for many images."""

    name: Literal["detr"] = "detr"
    queries: int = Field(100, ge=1, le=MOST, description="Objects of one image at the most.")
    width: int = Field(128, ge=8, le=1024, multiple_of=8, description="Width of the states.")
    heads: int = Field(8, ge=1, le=64, description="Attention heads of each layer.")
    encoder_layers: int = Field(1, ge=0, le=12, description="Layers in which places look around.")
    decoder_layers: int = Field(3, ge=1, le=12, description="Layers in which questions look.")
    dropout: float = Field(0.1, ge=0, lt=1, description="Share of states dropped in training.")

    @model_validator(mode="after")
    def _heads_share_the_width(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of {self.heads} heads")
        return self

    def head(self, backbone: MapBackbone, classes: int, side: int) -> DetectionHead:
        return Questions(backbone.width, classes, self)

    def criterion(self) -> nn.Module:
        return SetLoss()


class Questions(DetectionHead):
    """What each layer answers to each question: scores of classes and a box, (B, layers, Q, classes + 4).

    A question is a learned box that every layer moves, and looks where it is (Liu et al., 2022).
    """

    def __init__(self, inputs: int, classes: int, options: SetPrediction) -> None:
        super().__init__()
        width = options.width
        self.project = nn.Conv2d(inputs, width, 1)
        self.encoder = nn.ModuleList(
            TransformerLayer(width, options.heads, 4 * width, options.dropout)
            for _ in range(options.encoder_layers)
        )
        self.norm = nn.LayerNorm(width)
        self.contents = nn.Parameter(0.02 * torch.randn(options.queries, width))
        self.boxes = nn.Parameter(_spread(options.queries))
        self.decoder = nn.ModuleList(Asking(options) for _ in range(options.decoder_layers))
        self.scores = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, classes))
        self.sides = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 4)
        )
        for part, bias in ((self.scores[-1], RARE), (self.sides[-1], 0.0)):
            assert isinstance(part, nn.Linear)
            nn.init.normal_(part.weight, std=0.01)
            nn.init.constant_(part.bias, bias)

    def forward(self, maps: list[Tensor]) -> Tensor:
        features = self.project(maps[-1])
        where = _places(features, features.shape[1])
        seen = features.flatten(2).transpose(1, 2) + where
        for layer in self.encoder:
            seen = layer(seen)
        seen = self.norm(seen)
        count = len(features)
        states = self.contents.expand(count, -1, -1)
        boxes = self.boxes.expand(count, -1, -1)
        answers = []
        for ask in self.decoder:
            states = ask(states, waves(boxes[..., :2].sigmoid(), states.shape[2]), seen, where)
            boxes = boxes + self.sides(states)
            answers.append(torch.cat([self.scores(states), boxes], -1))
            # Each layer learns its own step: none is told off for those before it.
            boxes = boxes.detach()
        return torch.stack(answers, 1)

    def candidates(self, outputs: Tensor) -> Candidates:
        last = outputs[:, -1]
        scores, classes = last[..., :-4].sigmoid().max(-1)
        scores, order = scores.topk(scores.shape[1])
        boxes = cornered(last[..., -4:].sigmoid())
        return Candidates(
            boxes.gather(1, order[..., None].expand(-1, -1, 4)), scores, classes.gather(1, order)
        )


class Asking(nn.Module):
    """Questions look at each other, then at the image, and think it over."""

    def __init__(self, options: SetPrediction) -> None:
        super().__init__()
        width, self.dropout = options.width, options.dropout
        self.heads = options.heads
        self.among = TransformerLayer(width, options.heads, 2 * width, options.dropout)
        self.norm = nn.LayerNorm(width)
        # Of contents and of positions apart, so that a place is found by where it is (Meng et al., 2021).
        self.query, self.query_where = nn.Linear(width, width), nn.Linear(width, width)
        self.key, self.key_where = nn.Linear(width, width), nn.Linear(width, width)
        self.value, self.merge = nn.Linear(width, width), nn.Linear(width, width)
        self.feed = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, 4 * width),
            nn.GELU(),
            nn.Dropout(options.dropout),
            nn.Linear(4 * width, width),
            nn.Dropout(options.dropout),
        )

    def forward(self, states: Tensor, at: Tensor, seen: Tensor, where: Tensor) -> Tensor:
        """States and positions of questions (B, Q, D), of places (B, N, D) and (1, N, D), to states (B, Q, D)."""
        states = self.among(states + at)
        queries = self._split(self.query(self.norm(states)), self.query_where(at))
        keys = self._split(self.key(seen), self.key_where(where).expand_as(seen))
        values = self.value(seen).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        dropped = self.dropout if self.training else 0.0
        found = F.scaled_dot_product_attention(queries, keys, values, dropout_p=dropped)
        states = states + self.merge(found.transpose(1, 2).flatten(2))
        fed: Tensor = states + self.feed(states)
        return fed

    def _split(self, what: Tensor, where: Tensor) -> Tensor:
        """What and where side by side, for each head: (B, heads, N, 2 D / heads)."""
        both = [part.unflatten(-1, (self.heads, -1)) for part in (what, where)]
        return torch.cat(both, -1).transpose(1, 2)


def _spread(count: int) -> Tensor:
    """Boxes all over an image, before the sigmoid: (count, 4) of centre and size."""
    # Steps of the golden ratio and its like leave no corner out (Roberts, 2018).
    place = torch.arange(count)[:, None] * torch.tensor([0.7548776662, 0.5698402910]) + 0.5
    centres = place.frac().clamp(0.02, 0.98).logit()
    return torch.cat([centres, torch.full((count, 2), _FIRST_SIZE)], 1)


def _places(features: Tensor, width: int) -> Tensor:
    """Positions (1, h * w, width) of the places of a map."""
    height, across = features.shape[2:]
    y = (torch.arange(height, device=features.device) + 0.5) / height
    x = (torch.arange(across, device=features.device) + 0.5) / across
    centres = torch.stack([x.repeat(height), y.repeat_interleave(across)], -1)
    return waves(centres, width)[None]


def waves(centres: Tensor, width: int) -> Tensor:
    """Centres (..., 2) in shares of the sides as sines and cosines of growing frequency (..., width)."""
    count = width // 4
    # From half an image down to a fiftieth of it.
    rates = torch.pi * 50 ** (torch.arange(count, device=centres.device) / max(1, count - 1))
    angles = centres[..., None] * rates  # (..., 2, count)
    return torch.cat([angles.sin(), angles.cos()], -1).flatten(-2)


class SetLoss(nn.Module):
    """Focal loss of classes, distance and overlap of boxes, for the cheapest match of answers to objects."""

    def forward(self, outputs: Tensor, objects: Objects) -> Tensor:
        """Outputs (B, layers, Q, classes + 4) to the sum () over images and layers."""
        rows, layers, queries, targets = match(outputs, objects)
        scores = outputs[..., :-4]
        wanted = torch.zeros_like(scores)
        wanted[rows, layers, queries, objects.classes[rows, targets]] = 1
        told = outputs[rows, layers, queries, -4:].sigmoid()
        true = objects.boxes[rows, targets]
        sides = (told - centred(true)).abs().sum()
        apart = (1 - generalised_overlaps(cornered(told), true)).sum()
        classes = focal(scores, wanted).sum()
        return CLASS_WEIGHT * classes + SIDE_WEIGHT * sides + OVERLAP_WEIGHT * apart


def focal(scores: Tensor, wanted: Tensor) -> Tensor:
    """The focal loss (Lin et al., 2017) of scores beside 0 or 1, of one shape."""
    right = torch.where(wanted == 1, scores, -scores)
    share = torch.where(wanted == 1, _SHARE, 1 - _SHARE)
    return -share * (-right).sigmoid() ** _FOCUS * F.logsigmoid(right)


@torch.no_grad()
def match(outputs: Tensor, objects: Objects) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Image, layer, question and object (n,) of each pair, so that all pairs together cost the least (Kuhn, 1955)."""
    costs = _costs(outputs, objects).nan_to_num(1e6, 1e6, -1e6).cpu()
    known = objects.known.cpu()
    rows, layers, queries, targets = [], [], [], []
    for row, there in enumerate(known):
        (numbers,) = there.nonzero(as_tuple=True)
        for layer in range(costs.shape[1]):
            asked, found = linear_sum_assignment(costs[row, layer][:, numbers].numpy())
            rows += [row] * len(asked)
            layers += [layer] * len(asked)
            queries += asked.tolist()
            targets += numbers[found].tolist()
    made = (torch.tensor(part, dtype=torch.long) for part in (rows, layers, queries, targets))
    image, layer_at, question, target = (part.to(outputs.device) for part in made)
    return image, layer_at, question, target


def _costs(outputs: Tensor, objects: Objects) -> Tensor:
    """What each answer would cost as each object (B, layers, Q, T)."""
    scores, told = outputs[..., :-4], outputs[..., -4:].sigmoid()
    count = objects.classes.shape[1]
    kinds = objects.classes.clamp(min=0)[:, None, None].expand(*scores.shape[:3], count)
    as_object = focal(scores, torch.ones_like(scores)) - focal(scores, torch.zeros_like(scores))
    true = objects.boxes[:, None, None]
    sides = (told[..., None, :] - centred(true)).abs().sum(-1)
    overlap = generalised_overlaps(cornered(told)[..., None, :], true)
    return (
        CLASS_WEIGHT * as_object.gather(-1, kinds) + SIDE_WEIGHT * sides - OVERLAP_WEIGHT * overlap
    )
