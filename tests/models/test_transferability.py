"""How much features tell of targets, against slow computations of the same."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.stats import multivariate_normal
from sklearn.covariance import ledoit_wolf_shrinkage
from sklearn.linear_model import LogisticRegression, Ridge
from torch import Tensor

from models.parts.transferability import (
    Targets,
    evened,
    folds_of,
    linear_head,
    log_evidence,
    neighbours,
    scaled,
    separation,
    standard_error,
)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def classes(count: int, number: int, seed: int = 0) -> Tensor:
    return torch.randint(number, (count,), generator=torch.Generator().manual_seed(seed))


def slow_evidence(features: Tensor, column: Tensor) -> float:
    """The largest log density of a column, by example, over all precisions, looked for without any trick."""
    count, kernel = len(features), (features @ features.T).numpy()

    def worse(logs: np.ndarray) -> float:
        alpha, beta = np.exp(logs.clip(-12, 12))
        covariance = kernel / alpha + np.eye(count) / beta
        return -float(multivariate_normal.logpdf(column.numpy(), cov=covariance))

    starts = [(0.0, 0.0), (3.0, 0.0), (0.0, 3.0), (-3.0, 1.0)]
    return -min(minimize(worse, start, method="Nelder-Mead").fun for start in starts) / count


@pytest.mark.parametrize("width", [3, 30])
def test_the_evidence_is_the_largest_there_is(width: int) -> None:
    features = drawn(15, width)
    weights = drawn(width, 2, seed=1) / math.sqrt(width)
    columns = features @ weights + 0.5 * drawn(15, 2, seed=2)
    expected = sum(slow_evidence(features, column) for column in columns.T) / 2
    assert log_evidence(features, columns) == pytest.approx(expected, abs=1e-4)


def test_features_that_tell_more_have_more_evidence() -> None:
    labels = classes(200, 4)
    told = Targets("classes", labels, 4).columns
    good, poor = (torch.cat([told, noise * drawn(200, 6)], 1) for noise in (0.1, 10.0))
    assert log_evidence(good, told) > log_evidence(poor, told)
    assert separation(good, labels) > separation(poor, labels)


def test_separation_is_the_h_score_where_nothing_is_shrunk() -> None:
    features, labels = drawn(60, 4), classes(60, 3)
    features[:, 0] += labels
    means = np.stack([features[labels == label].mean(0).numpy() for label in labels])
    inverse = np.linalg.inv(np.cov(features.numpy().T, bias=True))
    expected = np.trace(inverse @ np.cov(means.T, bias=True))
    assert separation(features, labels, shrinkage=0.0) == pytest.approx(expected)


@pytest.mark.parametrize("width", [5, 90])
def test_separation_shrinks_as_much_as_scikit_learn_does(width: int) -> None:
    features, labels = drawn(40, width) * torch.arange(1, width + 1).sqrt(), classes(40, 3)
    share = ledoit_wolf_shrinkage(features.numpy())
    assert 0 < share < 1
    told = separation(features, labels, shrinkage=float(share))
    assert separation(features, labels) == pytest.approx(told)


def test_directions_keep_every_distance() -> None:
    features = drawn(20, 200)
    even = scaled(features)
    plain = (features - features.mean(0)) / features.std(0, correction=0)
    assert even.shape == (20, 20)
    assert torch.allclose(torch.cdist(even, even), torch.cdist(plain, plain), atol=1e-5)
    by_one_factor = torch.cdist(evened(features), evened(features)) / torch.cdist(
        features, features
    )
    ratios = by_one_factor[~torch.eye(20, dtype=torch.bool)]
    assert torch.allclose(ratios, ratios[0].expand_as(ratios), atol=1e-5)


def test_features_that_never_vary_say_nothing_and_do_no_harm() -> None:
    labels = classes(40, 2)
    same = torch.ones(40, 3, dtype=torch.float64)
    targets = Targets("classes", labels, 2)
    for even in (scaled(same), evened(same)):
        outputs = linear_head(even, targets, folds_of(targets, 0))
        assert bool(outputs.isfinite().all())


def test_folds_have_as_much_of_each_class() -> None:
    labels = torch.tensor([0] * 50 + [1] * 25 + [2] * 5)
    folds = folds_of(Targets("classes", labels, 3), seed=3)
    counts = [torch.bincount(labels[folds == fold], minlength=3).tolist() for fold in range(5)]
    assert counts == [[10, 5, 1]] * 5


def test_a_linear_head_does_not_see_what_it_predicts() -> None:
    features, labels = drawn(200, 60), classes(200, 2, seed=5)
    targets = Targets("classes", labels, 2)
    outputs = linear_head(features, targets, folds_of(targets, 0))
    assert 0.35 < float((outputs.argmax(1) == labels).double().mean()) < 0.65


def test_a_linear_head_of_classes_is_logistic_regression() -> None:
    features, labels = drawn(90, 5), classes(90, 3)
    features[:, :3] += torch.nn.functional.one_hot(labels, 3)
    targets = Targets("classes", labels, 3)
    folds = folds_of(targets, 0)
    held = folds == 0
    ours = linear_head(features, targets, folds)[held].softmax(1)
    found = []
    for strength in (1e-3, 1e-2, 1e-1):
        count = int((~held).sum())
        theirs = LogisticRegression(C=1 / (strength * count), tol=1e-8, max_iter=1_000)
        theirs.fit(features[~held].numpy(), labels[~held].numpy())
        found.append(torch.from_numpy(theirs.predict_proba(features[held].numpy())))
    assert min(float((ours - other).abs().max()) for other in found) < 5e-3


def test_a_linear_head_of_values_is_ridge_regression() -> None:
    features = drawn(50, 6)
    values = features[:, :1] * 2 + 1 + drawn(50, 1, seed=4)
    targets = Targets("values", values, 1)
    folds = folds_of(targets, 0)
    held, best = folds == 2, linear_head(features, targets, folds)
    found = []
    for strength in (1e-3, 1e-2, 1e-1):
        theirs = Ridge(alpha=strength * int((~held).sum()))
        theirs.fit(features[~held].numpy(), values[~held].numpy())
        found.append(torch.from_numpy(theirs.predict(features[held].numpy())).view(-1))
    assert min(float((best[held, 0] - other).abs().max()) for other in found) < 1e-8


def test_labels_of_which_there_may_be_several_are_told_each_by_itself() -> None:
    features = drawn(120, 4)
    having = (features[:, :2] > 0).to(torch.uint8)
    targets = Targets("label sets", having, 2)
    outputs = linear_head(features, targets, folds_of(targets, 0))
    assert float(((outputs > 0) == having.bool()).double().mean()) > 0.9


def test_neighbours_are_the_nearest_others() -> None:
    places = torch.tensor([[0.0], [1], [2], [3], [4], [5], [100]], dtype=torch.float64)
    values = torch.tensor([[0.0], [1], [2], [3], [4], [5], [6]], dtype=torch.float64)
    found = neighbours(places, Targets("values", values, 1))
    assert found[0, 0] == 3.0  # of 1, 2, 3, 4 and 5
    assert found[6, 0] == 3.0  # likewise
    assert found[5, 0] == 2.0  # of 0, 1, 2, 3 and 4


def test_the_error_of_a_mean_is_that_of_the_textbook() -> None:
    values = drawn(30, seed=8)
    found = standard_error(lambda some: float(values[some].mean()), 30, seed=0, groups=30)
    assert found == pytest.approx(float(values.std()) / math.sqrt(30))
