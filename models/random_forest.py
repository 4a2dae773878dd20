"""Random forest on rows of a table: trees grown by scikit-learn, kept and asked as tensors."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor
from torch import Tensor
from torch.nn import functional as F

from models.base import Batch, Learner, TableLearner, Target
from models.parts.training import Training, Transfer

STEPS = 10
"""Steps a forest grows in, after each of which a training may be paused."""
ROOM = 2**18
"""Numbers that answering may hold at once per table: small enough to stay in a CPU's cache."""
JUDGED = 1024
"""Rows of the train split that the loss of a growing forest is taken over."""
LEAST = 1e-7
"""Probability of a class no tree has seen; its logarithm must be finite."""


class RandomForest(TableLearner):
    """Many decision trees, each grown on its own sample of the rows (Breiman, 2001)."""

    has_backbone = False

    name: Literal["random-forest"] = "random-forest"
    trees: int = Field(100, ge=1, le=10_000, description="How many trees are grown.")
    max_depth: int | None = Field(
        None, ge=1, le=1000, description="Most questions in a row; null asks until leaves are pure."
    )
    min_samples_split: int = Field(
        2, ge=2, le=1_000_000, description="Fewest rows that are split further."
    )
    min_samples_leaf: int = Field(2, ge=1, le=1_000_000, description="Fewest rows of a leaf.")
    max_features: Literal["sqrt", "all"] | Annotated[float, Field(gt=0, le=1)] = Field(
        "sqrt", description="Columns looked at for each split: their square root, all, or a share."
    )
    bootstrap: bool = Field(
        True, description="Grow each tree on rows drawn with replacement instead of all rows."
    )
    vote: Literal["soft", "hard"] = Field(
        "soft",
        description="Average the class shares of the trees' leaves, or count each tree's first choice. "
        "Values are always averaged.",
    )

    def build(self, numeric: int, cardinalities: Sequence[int], target: Target) -> Learner:
        return Forest(self, target)

    def defaults(self, examples: int) -> dict[str, Any]:
        return {"epochs": 1, "batch_size": min(examples, 65_536)}


class Nodes(NamedTuple):
    """The nodes of one or many trees, flat.

    Node n asks whether column `feature[n]` is at most `threshold[n]` and goes to `left[n]` or
    `right[n]`. A leaf goes to itself, and answers with row `answer[n]` of `values`.
    """

    feature: Tensor
    threshold: Tensor
    left: Tensor
    right: Tensor
    answer: Tensor
    values: Tensor
    """Distinct answers of the leaves, (U, width): class shares or means."""
    roots: Tensor
    """The first node of each tree, (trees,)."""
    depths: Tensor
    """The most questions each tree asks, (trees,)."""


def no_nodes(width: int) -> Nodes:
    """A forest without trees, for answers of so many numbers."""
    none = torch.zeros(0, dtype=torch.int32)
    return Nodes(none, torch.zeros(0), none, none, none, torch.zeros(0, width), none, none)


def join(forests: Sequence[Nodes]) -> Nodes:
    """One forest of the trees of several."""
    nodes = list(accumulate((len(forest.feature) for forest in forests), initial=0))
    answers = list(accumulate((len(forest.values) for forest in forests), initial=0))
    moved = [
        forest._replace(
            left=forest.left + node,
            right=forest.right + node,
            roots=forest.roots + node,
            answer=forest.answer + answer,
        )
        for forest, node, answer in zip(forests, nodes, answers, strict=False)
    ]
    return Nodes(*(torch.cat(tables) for tables in zip(*moved, strict=True)))


class Rows(NamedTuple):
    """What trees are grown on, as scikit-learn reads it."""

    features: NDArray[np.float32]
    """(B, columns)"""
    targets: NDArray[Any]
    """Classes (B,) or values (B, values)."""
    weights: NDArray[np.float64]
    """How much each row counts, (B,)."""


class Forest(Learner):
    """Grows trees; there is no gradient to follow.

    Categories are read as numbers, ordered as their codes are: on census data this is as accurate
    as a column per category, and the trees are smaller (measured).
    """

    feature: Tensor
    threshold: Tensor
    left: Tensor
    right: Tensor
    answer: Tensor
    values: Tensor
    roots: Tensor
    depths: Tensor

    def __init__(self, options: RandomForest, target: Target) -> None:
        super().__init__()
        self.options = options
        self.classifies, self.width = target.kind == "classes", target.width
        self.criterion = target.criterion
        for name, table in no_nodes(target.width)._asdict().items():
            self.register_buffer(name, table)

    @property
    def nodes(self) -> Nodes:
        """The trees grown so far."""
        return Nodes(*(getattr(self, name) for name in Nodes._fields))

    # Growing

    def epochs(self, asked: int) -> int:
        """One: every tree has seen all rows it will ever see when it is grown."""
        return 1

    def batches(
        self, examples: int, lengths: Tensor | None, batch_size: int, generator: torch.Generator
    ) -> Sequence[Tensor]:
        """All examples in every step, since a step grows whole trees."""
        return [torch.arange(examples)] * min(STEPS, self.options.trees)

    def start(self, training: Training, transfer: Transfer | None, steps: int) -> None:
        """Trees need no optimizer."""
        self.seed, self.steps = training.seed, steps

    def train_step(self, batch: Batch, step: int) -> Tensor:
        """Grow this step's share of the trees; returns the loss () of the forest so far on some rows."""
        trees, rows = self.options.trees, self._rows(batch)
        numbers = range(trees * step // self.steps, trees * (step + 1) // self.steps)
        with ThreadPoolExecutor(torch.get_num_threads()) as threads:
            grown = list(threads.map(lambda number: self._grow(rows, number), numbers))
        device = self.values.device
        forest = join([self.nodes, *(Nodes(*(t.to(device) for t in tree)) for tree in grown)])
        for name, table in forest._asdict().items():
            setattr(self, name, table)
        with torch.no_grad():
            return self.loss(next(batch.split(-(-len(batch) // JUDGED))))

    def _rows(self, batch: Batch) -> Rows:
        targets = batch.targets[0].cpu()
        weights = torch.ones(len(batch), dtype=torch.float64)
        of_classes = getattr(self.criterion, "weight", None)
        if of_classes is not None:
            weights = of_classes.cpu().double()[targets]
        return Rows(features(*batch.inputs).cpu().numpy(), targets.numpy(), weights.numpy())

    def _grow(self, rows: Rows, number: int) -> Nodes:
        """Tree `number`, which depends on the rows, the seed and this number alone."""
        random = np.random.default_rng((self.seed, number))
        weights = rows.weights
        if self.options.bootstrap:
            draws = random.integers(len(weights), size=len(weights))
            weights = weights * np.bincount(draws, minlength=len(weights))
        kind = DecisionTreeClassifier if self.classifies else DecisionTreeRegressor
        tree = kind(
            max_depth=self.options.max_depth,
            min_samples_split=self.options.min_samples_split,
            min_samples_leaf=self.options.min_samples_leaf,
            max_features=None if self.options.max_features == "all" else self.options.max_features,
            random_state=int(random.integers(2**31)),
        )
        tree.fit(rows.features, rows.targets, sample_weight=weights)
        return nodes_of(tree, self.width)

    # Answering

    def forward(self, numbers: Tensor, categories: Tensor) -> Tensor:
        """Log-probabilities of classes, or values (B, width), as the mean over the trees."""
        mean = self._mean(features(numbers, categories))
        return mean.clamp(min=LEAST).log() if self.classifies else mean

    def _mean(self, rows: Tensor) -> Tensor:
        values = self.values
        if self.classifies and self.options.vote == "hard":
            values = F.one_hot(values.argmax(1), self.width).to(values.dtype)
        piece = max(1, ROOM // (len(self.roots) * max(1, self.width // 4)))
        return torch.cat([values[self._answers(part)].mean(1) for part in rows.split(piece)])

    def _answers(self, rows: Tensor) -> Tensor:
        """The leaf's row of `values` in every tree: (B, columns) to (B, trees)."""
        place = self.roots.repeat(len(rows), 1)
        for _ in range(int(self.depths.max())):
            value = rows.gather(1, self.feature[place].long())
            place = torch.where(value <= self.threshold[place], self.left[place], self.right[place])
        return self.answer[place]

    def loss(self, batch: Batch) -> Tensor:
        loss: Tensor = self.criterion(self(*batch.inputs), *batch.targets)
        return loss

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *rest: Any) -> None:
        """Make room first: a forest has as many nodes as were grown."""
        for name in Nodes._fields:
            if prefix + name in state_dict:
                saved = state_dict[prefix + name]
                setattr(self, name, torch.empty_like(saved, device=self.values.device))
        super()._load_from_state_dict(state_dict, prefix, *rest)


def features(numbers: Tensor, categories: Tensor) -> Tensor:
    """Numbers (B, numeric) and the codes of categories (B, columns) side by side, float32."""
    return torch.cat([numbers, categories.to(numbers.dtype)], 1)


def nodes_of(tree: DecisionTreeClassifier | DecisionTreeRegressor, width: int) -> Nodes:
    """A fitted tree as tensors that answer exactly as it does."""
    grown = tree.tree_
    leaf = grown.children_left < 0
    itself = np.arange(grown.node_count)
    values = answers_of(tree, width)[leaf]
    distinct, which = np.unique(values, axis=0, return_inverse=True)
    answer = np.zeros(grown.node_count, np.int32)
    answer[leaf] = which
    return Nodes(
        _int32(np.where(leaf, 0, grown.feature)),
        torch.from_numpy(round_down(grown.threshold)),
        _int32(np.where(leaf, itself, grown.children_left)),
        _int32(np.where(leaf, itself, grown.children_right)),
        _int32(answer),
        torch.from_numpy(distinct),
        _int32(np.zeros(1)),
        _int32(np.array([grown.max_depth])),
    )


def answers_of(
    tree: DecisionTreeClassifier | DecisionTreeRegressor, width: int
) -> NDArray[np.float32]:
    """What each node would answer (nodes, width); classes that the rows lack have probability 0."""
    values = tree.tree_.value
    if isinstance(tree, DecisionTreeRegressor):
        return values[:, :, 0].astype(np.float32)
    shares = np.zeros((len(values), width), np.float32)
    shares[:, tree.classes_] = values[:, 0]
    return shares


def round_down(thresholds: NDArray[np.float64]) -> NDArray[np.float32]:
    """The largest float32 not above each threshold: x <= threshold stays the same for float32 x."""
    rounded = thresholds.astype(np.float32)
    below = np.nextafter(rounded, np.float32(-np.inf))
    return np.where(rounded > thresholds, below, rounded)


def _int32(values: NDArray[Any]) -> Tensor:
    return torch.from_numpy(values.astype(np.int32))
