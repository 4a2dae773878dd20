"""How much features tell of targets before anything is fine-tuned: evidence, separation, neighbours and a linear head.

Features are (N, D) float64, targets what `Targets` says; examples are those of a small sample.
"""

import math
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

Kind = Literal["classes", "label sets", "values"]
FOLDS = 5
NEIGHBOURS = 5
STRENGTHS = (1e-3, 1e-2, 1e-1)
"""Of the penalties on a linear head's weights that are tried; the best by cross-validation counts."""
_DIRECTIONS = 128
"""Of features that a linear head is given: those along which examples differ most."""
_STEPS = 100
_ROUNDS, _CLOSE = 100, 1e-6
_LEAST = 1e-12


class Targets(NamedTuple):
    """What is to be told by features: classes (N,) int64, or label sets or values (N, K)."""

    kind: Kind
    values: Tensor
    width: int
    """Outputs that a head has for them."""

    @property
    def columns(self) -> Tensor:
        """A number for each output (N, K) float64: 1 for a class or label that an example has."""
        if self.kind == "classes":
            return F.one_hot(self.values, self.width).double()
        return self.values.double()


def log_evidence(features: Tensor, columns: Tensor) -> float:
    """LogME (You et al., 2021): the mean log probability of a target under the best Gaussian linear model.

    The largest evidence p(column | features) over the precisions of weights and noise, by example, averaged over
    the columns (N, K).
    """
    u, s, _ = torch.linalg.svd(features, full_matrices=False)
    squares = s**2
    seen = u.T @ columns  # (min(N, D), K)
    found = [
        _most_evidence(squares, seen[:, k] ** 2, float(columns[:, k] @ columns[:, k]), features)
        for k in range(columns.shape[1])
    ]
    return sum(found) / len(found)


def _most_evidence(squares: Tensor, seen: Tensor, total: float, features: Tensor) -> float:
    """The largest log evidence of one column, by example; by MacKay's fixed point.

    `squares` are the squared singular values of the features, `seen` those of the column along them.
    """
    count, width = features.shape
    alpha, beta = 1.0, 1.0
    unseen = max(total - float(seen.sum()), 0.0)
    for _ in range(_ROUNDS):
        ratio = alpha / beta
        known = float((squares / (squares + ratio)).sum())
        weights = float((squares * seen / (squares + ratio) ** 2).sum())
        errors = float((seen * (ratio / (squares + ratio)) ** 2).sum()) + unseen
        alpha = known / max(weights, _LEAST)
        beta = (count - known) / max(errors, _LEAST)
        if abs(alpha / beta - ratio) <= _CLOSE * ratio:
            break
    ratio = alpha / beta
    weights = float((squares * seen / (squares + ratio) ** 2).sum())
    errors = float((seen * (ratio / (squares + ratio)) ** 2).sum()) + unseen
    volume = float((alpha + beta * squares).log().sum()) + (width - len(squares)) * math.log(alpha)
    doubled = (
        count * math.log(beta / (2 * math.pi))
        + width * math.log(alpha)
        - beta * errors
        - alpha * weights
        - volume
    )
    return doubled / 2 / count


def separation(features: Tensor, classes: Tensor, shrinkage: float | None = None) -> float:
    """H-score (Bao et al., 2019): how far the means of classes (N,) are apart, by how far examples are.

    The covariance is shrunk towards a multiple of the identity (Ibrahim et al., 2022), as much as Ledoit and Wolf
    (2004) reckon unless told; with fewer examples than features it has no inverse otherwise.
    """
    count, width = features.shape
    centred = _turned(features - features.mean(0), count)
    share = _ledoit_wolf(centred, width) if shrinkage is None else shrinkage
    covariance = centred.T @ centred / count
    shrunk = (1 - share) * covariance
    shrunk.diagonal().add_(share * covariance.trace() / width)
    sizes = torch.bincount(classes)
    sums = centred.new_zeros(len(sizes), centred.shape[1]).index_add_(0, classes, centred)
    means = sums / sizes.clamp(min=1)[:, None]
    between = (1 - share) * (means * sizes[:, None]).T @ means / count
    return float((torch.linalg.pinv(shrunk, hermitian=True) @ between).trace())


def _ledoit_wolf(centred: Tensor, width: int) -> float:
    """How much to shrink the covariance of so many centred features, from 0 to 1 (Ledoit and Wolf, 2004)."""
    covariance = centred.T @ centred / len(centred)
    squares = float((covariance**2).sum())
    spread = squares - float(covariance.trace()) ** 2 / width
    noise = (float((centred**2).sum(1).square().mean()) - squares) / len(centred)
    return min(1.0, max(0.0, noise / spread)) if spread > _LEAST else 1.0


def scaled(features: Tensor) -> Tensor:
    """Features of mean 0 and deviation 1, turned into the directions (N, <= 128) along which examples differ most."""
    centred = features - features.mean(0)
    deviation = centred.std(0, correction=0)
    varies = deviation > 1e-9 * features.abs().amax(0).clamp(min=_LEAST)
    even = centred[:, varies] / deviation[varies]
    if not even.shape[1]:
        return torch.zeros(len(features), 1, dtype=features.dtype)
    return _turned(even, _DIRECTIONS)


def evened(features: Tensor) -> Tensor:
    """Features of mean 0, all by one factor, and turned into as many directions as there are examples at the most.

    For features that nobody learned: rare ones, as runs of letters are, would drown the others otherwise.
    """
    turned = _turned(features - features.mean(0), len(features))
    length = float(turned.square().sum(1).mean())
    return turned * math.sqrt(min(turned.shape[1], _DIRECTIONS) / max(length, _LEAST))


def _turned(centred: Tensor, most: int) -> Tensor:
    """The same examples in the directions (N, <= most) along which they differ most."""
    count, width = centred.shape
    if width <= most:
        return centred
    few = width > count
    values, vectors = torch.linalg.eigh(centred @ centred.T if few else centred.T @ centred)
    turned = values.clamp(min=0).sqrt() * vectors if few else centred @ vectors
    kept: Tensor = turned[:, -most:]
    return kept


def folds_of(targets: Targets, seed: int) -> Tensor:
    """The fold (N,) that each example is in; classes are spread evenly over the folds."""
    count = len(targets.values)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    if targets.kind == "classes":
        order = order[targets.values[order].argsort(stable=True)]
    folds = torch.empty(count, dtype=torch.int64)
    folds[order] = torch.arange(count) % min(FOLDS, count)
    return folds


def neighbours(features: Tensor, targets: Targets) -> Tensor:
    """Outputs (N, K) for each example by the nearest others: logarithms of shares, or mean values."""
    count = len(features)
    most = min(NEIGHBOURS, count - 1)
    distances = torch.cdist(features, features)
    distances.fill_diagonal_(torch.inf)
    nearest = distances.topk(most, largest=False).indices
    shares: Tensor = targets.columns[nearest].mean(1)
    if targets.kind == "classes":
        return shares.clamp(min=1e-3).log()
    return shares.clamp(1e-3, 1 - 1e-3).logit() if targets.kind == "label sets" else shares


def linear_head(features: Tensor, targets: Targets, folds: Tensor) -> Tensor:
    """Outputs (N, K) for the examples of each fold by a linear head that was trained on the others.

    Regression, logistic or of values, with the penalty of `STRENGTHS` that is best over all folds.
    """
    tried = _held_out(features, targets, folds)
    best = _losses(tried, targets).mean(1).argmin()
    outputs: Tensor = tried[best]
    return outputs


def _held_out(features: Tensor, targets: Targets, folds: Tensor) -> Tensor:
    """Outputs (S, N, K) for the examples of each fold by a head trained on the others, for each of S strengths."""
    learned = folds != folds.unique()[:, None]  # (F, N)
    find = _least_squares if targets.kind == "values" else _least_loss
    weights, bias = find(features, targets, learned)
    outputs = features @ weights + bias  # (S, F, N, K)
    return outputs[:, folds, torch.arange(len(folds))]


def _least_squares(features: Tensor, targets: Targets, learned: Tensor) -> tuple[Tensor, Tensor]:
    """Weights (S, F, D, K) and bias (S, F, 1, K) of least squared error and penalty."""
    found = [
        _ridge(features[rows], targets.columns[rows], strength)
        for strength in STRENGTHS
        for rows in learned
    ]
    shape = (len(STRENGTHS), len(learned))
    weights, bias = (torch.stack(each).unflatten(0, shape) for each in zip(*found, strict=True))
    return weights, bias


def _ridge(features: Tensor, values: Tensor, strength: float) -> tuple[Tensor, Tensor]:
    centre, level = features.mean(0), values.mean(0)
    centred = features - centre
    gram = centred.T @ centred / len(features)
    gram.diagonal().add_(strength)
    weights = torch.linalg.solve(gram, centred.T @ (values - level) / len(features))
    return weights, (level - centre @ weights)[None]


def _least_loss(features: Tensor, targets: Targets, learned: Tensor) -> tuple[Tensor, Tensor]:
    """Weights (S, F, D, K) and bias (S, F, 1, K) of least loss and penalty, all of them in one search."""
    # Learned in float32: twice as fast, and close enough for what it decides.
    rows, shape = features.float(), (len(STRENGTHS), len(learned))
    weights = torch.zeros(*shape, rows.shape[1], targets.width, requires_grad=True)
    bias = torch.zeros(*shape, 1, targets.width, requires_grad=True)
    share = learned / learned.sum(1, keepdim=True)
    strengths = torch.tensor(STRENGTHS)[:, None]
    search = torch.optim.LBFGS(
        [weights, bias], max_iter=_STEPS, tolerance_change=1e-5, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        search.zero_grad()
        losses = (share * _losses(rows @ weights + bias, targets)).sum(2)
        total = (losses + strengths / 2 * weights.square().sum((2, 3))).sum()
        total.backward()
        return total

    with torch.enable_grad():
        search.step(closure)
    return weights.detach().double(), bias.detach().double()


def _losses(outputs: Tensor, targets: Targets) -> Tensor:
    """The loss (..., N) of each example's outputs (..., N, K)."""
    wanted = targets.columns.to(outputs.dtype)
    if targets.kind == "classes":
        return -(outputs.log_softmax(-1) * wanted).sum(-1)
    if targets.kind == "label sets":
        loss = F.binary_cross_entropy_with_logits(
            outputs, wanted.expand_as(outputs), reduction="none"
        )
        return loss.sum(-1)
    return (outputs - wanted).square().mean(-1)


def standard_error(
    score: Callable[[Tensor], float], count: int, seed: int, groups: int = 20
) -> float:
    """The standard error of a score of so many examples; `score` is given the places of those that count.

    By the jackknife over groups of examples (Quenouille, 1956; Tukey, 1958).
    """
    found = [score(rest) for rest in _without_each(count, seed, min(groups, count))]
    mean, number = sum(found) / len(found), len(found)
    return math.sqrt((number - 1) / number * sum((value - mean) ** 2 for value in found))


def _without_each(count: int, seed: int, groups: int) -> Iterator[Tensor]:
    """The places of all examples but those of one group, for each group."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    group = torch.arange(count) % groups
    for left_out in range(groups):
        yield order[group != left_out].sort().values
