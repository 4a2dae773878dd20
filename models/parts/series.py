"""What learns from series: patches of their steps, a classifier, and a forecaster beside a linear model of lags."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.base import Backbone, Supervised

Start = Literal["last", "season", "drift"]
"""The simple forecast that learning starts from: the last value, the last season, or that moved to the last value."""
POINT = 1
"""The place of the forecast between its lower and its upper end."""


def patches(series: Tensor, size: int) -> Tensor:
    """Series (B, T, C) to vectors of so many steps each (B, ceil(T / size), size * C) (Nie et al., 2023).

    What the last one lacks is filled with zeros.
    """
    if size == 1:
        return series
    padded = F.pad(series, (0, 0, 0, -series.shape[1] % size))
    found: Tensor = padded.unflatten(1, (-1, size)).flatten(2)
    return found


class SeriesClassifier(Supervised):
    """Learns from standardised series (B, T, C), zeros behind them, and their lengths (B,)."""

    def __init__(self, backbone: Backbone, classes: int, criterion: nn.Module, patch: int) -> None:
        super().__init__(backbone, nn.Linear(backbone.width, classes), criterion)
        self.patch = patch

    def features_of(self, *inputs: Tensor) -> Tensor:
        series, lengths = inputs
        vectors = patches(series, self.patch)
        features: Tensor = self.backbone(vectors, (lengths - 1) // self.patch + 1)
        return features


class ForecastHead(nn.Module):
    """From features and lags to a forecast of every step to come, and how far off it may be.

    The lags come by a linear model that goes around the network (Zeng et al., 2023). Nothing of the network counts
    at first: learning starts from a simple forecast.
    """

    def __init__(
        self, width: int, context: int, horizon: int, season: int, start: Start, known: int
    ) -> None:
        super().__init__()
        self.horizon = horizon
        self.lags = nn.Linear(context, horizon)
        self.features = nn.Linear(width, 3 * horizon)
        self.spreads = nn.Linear(context, 2 * horizon)
        for layer in (self.lags, self.features, self.spreads):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        with torch.no_grad():
            self.lags.weight += simple_forecast(context, horizon, season, start)
        self.known: nn.Module | None = None
        if known:
            self.known = nn.Sequential(
                nn.Linear(width + known, width), nn.GELU(), nn.Linear(width, 3)
            )

    def forward(self, features: Tensor, lags: Tensor, known: Tensor | None = None) -> Tensor:
        """Features (B, width), lags (B, context) and what is known of steps to come (B, H, K) to (B, 3, H)."""
        found = self.features(features).unflatten(1, (3, self.horizon))
        if self.known is not None and known is not None:
            seen = torch.cat([features[:, None].expand(-1, self.horizon, -1), known], 2)
            found = found + self.known(seen).transpose(1, 2)
        point = self.lags(lags) + found[:, POINT]
        spreads = self.spreads(lags).unflatten(1, (2, self.horizon))
        below, above = F.softplus(spreads + found[:, ::2]).unbind(1)
        # The ends move with the forecast, and it does not move for their sake.
        middle = point.detach()
        return torch.stack([middle - below, point, middle + above], 1)


def simple_forecast(context: int, horizon: int, season: int, start: Start) -> Tensor:
    """The weights (horizon, context) of lags, the oldest first, that make a simple forecast."""
    weights = torch.zeros(horizon, context)
    if start != "season":
        weights[:, -1] += 1
    if start != "last":
        steps = torch.arange(horizon)
        weights[steps, context - season + steps % season] += 1
    if start == "drift":
        weights[:, context - season - 1] -= 1
    return weights


class Forecaster(Supervised):
    """Learns what follows windows of a series (B, T, C), whose first channel is the target.

    Each window is seen at its own level and spread, and forecasts are brought back to them (reversible instance
    normalisation, Kim et al., 2022).
    """

    def __init__(
        self, backbone: Backbone, head: ForecastHead, criterion: nn.Module, patch: int
    ) -> None:
        super().__init__(backbone, head, criterion)
        self.patch = patch

    def forward(self, *inputs: Tensor) -> Tensor:
        """Windows, and perhaps what is known ahead (B, H, K), to lower ends, forecasts and upper ends (B, 3, H)."""
        window, known = inputs[0], inputs[1] if len(inputs) > 1 else None
        level = window.mean(1, keepdim=True)
        spread = (window - level).square().mean(1, keepdim=True).sqrt()
        spread = spread + 1e-6 * level.abs() + 1e-12
        normed = (window - level) / spread
        # The oldest steps go where they do not fill a patch.
        vectors = patches(normed[:, normed.shape[1] % self.patch :], self.patch)
        lengths = torch.full((len(vectors),), vectors.shape[1], device=vectors.device)
        found = self.head(self.backbone(vectors, lengths), normed[..., 0], known)
        forecast: Tensor = found * spread[:, :, :1] + level[:, :, :1]
        return forecast


class ForecastLoss(nn.Module):
    """A loss of the forecast, and the pinball loss of both ends of its interval (Koenker and Bassett, 1978).

    Errors are measured in the steps that the series usually makes, so that each counts alike.
    """

    def __init__(self, point: nn.Module, interval: float) -> None:
        super().__init__()
        self.point, self.tail = point, (1 - interval) / 2

    def forward(self, outputs: Tensor, future: Tensor, scale: Tensor) -> Tensor:
        """Outputs (B, 3, H), what came (B, H) and the usual steps (B,) to the mean loss ()."""
        errors = (future[:, None] - outputs) / scale[:, None, None]
        lower, point, upper = errors.unbind(1)
        total: Tensor = self.point(point, torch.zeros_like(point))
        return total + pinball(lower, self.tail) + pinball(upper, 1 - self.tail)


def pinball(errors: Tensor, quantile: float) -> Tensor:
    """The mean pinball loss () of a quantile that was missed by so much."""
    return torch.maximum(quantile * errors, (quantile - 1) * errors).mean()
