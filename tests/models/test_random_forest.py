"""The random forest: answers exactly as the trees it was grown from, and as well as scikit-learn's."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save
from sklearn.datasets import load_breast_cancer, load_diabetes
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor
from sklearn.tree import DecisionTreeClassifier
from torch import nn

from models.base import Batch, Target
from models.parts.losses import CrossEntropy
from models.parts.training import Training
from models.random_forest import Forest, RandomForest, nodes_of, round_down

CLASSES = Target("classes", 2, nn.CrossEntropyLoss())


def grow(forest: Forest, rows: Batch, seed: int = 0) -> Forest:
    """All steps of a forest's only epoch."""
    indices = forest.batches(len(rows), None, 32, torch.Generator())
    forest.start(Training(seed=seed), None, len(indices))
    forest.enter_epoch(0)
    for step in range(len(indices)):
        forest.train_step(rows, step)
    return forest.eval()


def build(options: RandomForest, columns: int, target: Target = CLASSES) -> Forest:
    forest = options.build(columns, [], target)
    assert isinstance(forest, Forest)
    return forest


def batch(rows: np.ndarray, targets: np.ndarray) -> Batch:
    numbers = torch.from_numpy(rows).float()
    return Batch((numbers, torch.zeros(len(rows), 0, dtype=torch.long)), (torch.tensor(targets),))


def halves(rows: np.ndarray, targets: np.ndarray) -> tuple[Batch, Batch]:
    order = np.random.default_rng(0).permutation(len(rows))
    first, second = order[::2], order[1::2]
    return batch(rows[first], targets[first]), batch(rows[second], targets[second])


@pytest.fixture(scope="module")
def cancer() -> tuple[Batch, Batch]:
    rows, classes = load_breast_cancer(return_X_y=True)
    return halves((rows - rows.mean(0)) / rows.std(0), classes)


@pytest.fixture(scope="module")
def diabetes() -> tuple[Batch, Batch]:
    rows, values = load_diabetes(return_X_y=True)
    values = (values - values.mean()) / values.std()
    return halves(rows / rows.std(0), values.astype(np.float32)[:, None])


def test_a_tree_as_tensors_answers_exactly_as_scikit_learns(cancer: tuple[Batch, Batch]) -> None:
    train, test = cancer
    rows, classes = train.inputs[0].numpy(), train.targets[0].numpy()
    tree = DecisionTreeClassifier(random_state=0, min_samples_leaf=4).fit(rows, classes)
    forest = build(RandomForest(), 30)
    for name, table in nodes_of(tree, 2)._asdict().items():
        setattr(forest, name, table)
    found = forest.values[forest._answers(test.inputs[0])][:, 0]
    expected = tree.predict_proba(test.inputs[0].numpy()).astype(np.float32)
    assert torch.equal(found, torch.from_numpy(expected))


def test_it_is_as_accurate_as_scikit_learns_forest(cancer: tuple[Batch, Batch]) -> None:
    train, test = cancer
    theirs = RandomForestClassifier(50, min_samples_leaf=3, random_state=0)
    theirs.fit(train.inputs[0].numpy(), train.targets[0].numpy())
    ours = grow(build(RandomForest(trees=50), 30), train)
    shares = ours(*test.inputs).softmax(1)
    expected = torch.from_numpy(theirs.predict_proba(test.inputs[0].numpy())).float()
    truth = test.targets[0]
    right, as_right = ((p.argmax(1) == truth).float().mean().item() for p in (shares, expected))
    assert abs(right - as_right) < 0.02
    assert right > 0.93
    assert (shares - expected).abs().mean() < 0.03


def test_it_predicts_values_as_well_as_scikit_learns_forest(diabetes: tuple[Batch, Batch]) -> None:
    train, test = diabetes
    theirs = RandomForestRegressor(50, min_samples_leaf=3, max_features="sqrt", random_state=0)
    theirs.fit(train.inputs[0].numpy(), train.targets[0][:, 0].numpy())
    target = Target("values", 1, nn.MSELoss())
    ours = grow(build(RandomForest(trees=50), 10, target), train)
    found = ours(*test.inputs)
    expected = torch.from_numpy(theirs.predict(test.inputs[0].numpy())).float()[:, None]
    assert found.shape == (len(test), 1)
    error, their_error = ((v - test.targets[0]).square().mean().item() for v in (found, expected))
    assert abs(error - their_error) < 0.06
    assert error < 0.7


def test_several_values_are_predicted_at_once() -> None:
    rows = np.random.default_rng(0).normal(size=(200, 3))
    values = np.stack([rows[:, 0] > 0, rows[:, 1] < 0], 1).astype(np.float32)
    train = batch(rows, values)
    forest = build(RandomForest(trees=20), 3, Target("values", 2, nn.MSELoss()))
    assert (grow(forest, train)(*train.inputs) - train.targets[0]).abs().mean() < 0.2


def test_its_scores_are_logarithms_of_probabilities(cancer: tuple[Batch, Batch]) -> None:
    train, test = cancer
    scores = grow(build(RandomForest(trees=12), 30), train)(*test.inputs)
    torch.testing.assert_close(scores.softmax(1), scores.exp(), atol=1e-6, rtol=1e-5)
    assert scores.isfinite().all()


def test_a_hard_vote_counts_trees(cancer: tuple[Batch, Batch]) -> None:
    train, test = cancer
    votes = grow(build(RandomForest(trees=8, vote="hard"), 30), train)(*test.inputs).exp() * 8
    torch.testing.assert_close(votes, votes.round(), atol=1e-4, rtol=0)
    assert len(votes[:, 0].round().unique()) > 3


def test_a_class_without_rows_has_no_probability(cancer: tuple[Batch, Batch]) -> None:
    train, test = cancer
    forest = grow(build(RandomForest(trees=4), 30, CLASSES._replace(width=3)), train)
    shares = forest(*test.inputs).softmax(1)
    assert shares.shape == (len(test), 3)
    assert shares[:, 2].max() < 1e-6


def test_weighted_classes_are_found_more_often() -> None:
    random = np.random.default_rng(0)
    rows, classes = random.normal(size=(600, 2)), (random.random(600) < 0.1).astype(np.int64)
    rows[classes == 1] += 0.7
    train = batch(rows, classes)
    counts = np.bincount(classes).tolist()
    found = []
    for weights in ("none", "balanced"):
        criterion = CrossEntropy(class_weights=weights).build(counts)
        options = RandomForest(trees=20, max_depth=3)
        forest = grow(build(options, 2, Target("classes", 2, criterion)), train)
        found.append(int((forest(*train.inputs).argmax(1) == 1).sum()))
    assert found[1] > 2 * found[0] + 30


def test_categories_of_no_order_are_told_apart() -> None:
    codes = torch.randint(12, (400, 1), generator=torch.Generator().manual_seed(0))
    classes = torch.isin(codes[:, 0], torch.tensor([1, 4, 5, 9])).long()
    many = codes * 100
    rows = Batch((torch.zeros(400, 0), torch.cat([codes, many], 1)), (classes,))
    forest = RandomForest(trees=20, max_features="all").build(0, [12, 1200], CLASSES)
    assert isinstance(forest, Forest)
    assert (grow(forest, rows)(*rows.inputs).argmax(1) == classes).all()


def test_steps_grow_all_trees_between_them(cancer: tuple[Batch, Batch]) -> None:
    train, _ = cancer
    for trees, steps in ((1, 1), (7, 7), (23, 10)):
        forest = build(RandomForest(trees=trees, max_depth=2), 30)
        assert len(forest.batches(len(train), None, 8, torch.Generator())) == steps
        assert len(grow(forest, train).roots) == trees
        assert forest.epochs(50) == 1


def test_the_number_of_threads_changes_no_tree(cancer: tuple[Batch, Batch]) -> None:
    train, test = cancer
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            found.append(grow(build(RandomForest(trees=12), 30), train)(*test.inputs))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*found)


def test_without_bootstrap_and_choice_all_trees_are_alike(cancer: tuple[Batch, Batch]) -> None:
    train, _ = cancer
    options = RandomForest(trees=3, bootstrap=False, max_features="all", min_samples_leaf=1)
    forest = grow(build(options, 30), train)
    assert (forest(*train.inputs).argmax(1) == train.targets[0]).all()


def test_a_saved_forest_brings_its_own_size(cancer: tuple[Batch, Batch]) -> None:
    train, test = cancer
    forest = grow(build(RandomForest(trees=11), 30), train)
    again = build(RandomForest(trees=11), 30)
    again.load_state_dict(load(save(forest.state_dict())))
    assert torch.equal(forest(*test.inputs), again(*test.inputs))
    inside = nn.ModuleDict({"forest": build(RandomForest(trees=11), 30)})
    inside.load_state_dict({f"forest.{k}": v for k, v in forest.state_dict().items()})
    assert torch.equal(forest(*test.inputs), inside["forest"](*test.inputs))


def test_answers_do_not_depend_on_how_many_are_asked(cancer: tuple[Batch, Batch]) -> None:
    train, test = cancer
    forest = grow(build(RandomForest(trees=30), 30), train)
    many = [t.repeat(40, 1) for t in test.inputs]
    assert torch.equal(forest(*many), forest(*test.inputs).repeat(40, 1))


@settings(deadline=None, print_blob=True)
@given(st.floats(-(2.0**90), 2.0**90), st.floats(-(2.0**90), 2.0**90, width=32))
def test_a_rounded_threshold_splits_float32_as_the_exact_one(threshold: float, x: float) -> None:
    rounded = round_down(np.array([threshold]))
    for value in (np.float32(x), np.float32(threshold), rounded[0]):
        assert (value <= rounded[0]) == (float(value) <= threshold)
