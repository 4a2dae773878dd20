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
from models.parts.rows import matrix
from models.parts.training import Training, Transfer

STEPS = 10
"""Steps a forest grows in, after each of which a training may be paused."""
FEW = 64
"""Categories that get a column each. On census data this is more accurate than a column of codes,
86.2 against 85.7 %, with trees two thirds the size."""
ROUND = 8
"""Questions asked before rows that have reached their leaf are put aside."""
ROOM = 2**18
"""Numbers that answering may hold at once per table: small enough to stay in a CPU's cache."""
JUDGED = 512
"""Rows of the train split that the loss of a growing forest is taken over."""
LEAST = 1e-7
"""Probability of a class no tree has seen; its logarithm must be finite."""


class RandomForest(TableLearner):
    """Many decision trees, each grown on its own sample of the rows (Breiman, 2001)."""

    has_backbone = False
    graph = None
    spreads = False

    name: Literal["random-forest"] = "random-forest"
    trees: int = Field(100, ge=1, le=10_000, description="How many trees are grown.")
    max_depth: int | None = Field(
        None, ge=1, le=1000, description="Most questions in a row; null asks until leaves are pure."
    )
    min_samples_split: int = Field(
        2, ge=2, le=1_000_000, description="Fewest rows that are split further."
    )
    min_samples_leaf: int = Field(3, ge=1, le=1_000_000, description="Fewest rows of a leaf.")
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
        return Forest(self, cardinalities, target)

    def defaults(self, examples: int) -> dict[str, Any]:
        return {"epochs": 1, "batch_size": min(examples, 65_536)}


class Nodes(NamedTuple):
    """The nodes of one or many trees, flat.

    Node n asks whether column `feature[n]` is at most `threshold[n]` and goes to `branches[n, 0]`
    if so, else to `branches[n, 1]`. A leaf goes to itself, and answers with row `answer[n]` of `values`.
    """

    feature: Tensor
    threshold: Tensor
    branches: Tensor
    answer: Tensor
    values: Tensor
    """Distinct answers of the leaves, (U, width): class shares or means."""
    roots: Tensor
    """The first node of each tree, (trees,)."""


def no_nodes(width: int) -> Nodes:
    """A forest without trees, for answers of so many numbers."""
    none = torch.zeros(0, dtype=torch.int32)
    return Nodes(none, torch.zeros(0), none.view(0, 2), none, torch.zeros(0, width), none)


def join(forests: Sequence[Nodes]) -> Nodes:
    """One forest of the trees of several."""
    nodes = list(accumulate((len(forest.feature) for forest in forests), initial=0))
    answers = list(accumulate((len(forest.values) for forest in forests), initial=0))
    moved = [
        forest._replace(
            branches=forest.branches + node,
            answer=forest.answer + answer,
            roots=forest.roots + node,
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
    """Grows trees; there is no gradient to follow."""

    accumulates = False

    feature: Tensor
    threshold: Tensor
    branches: Tensor
    answer: Tensor
    values: Tensor
    roots: Tensor

    def __init__(self, options: RandomForest, cardinalities: Sequence[int], target: Target) -> None:
        super().__init__()
        self.options, self.cardinalities = options, list(cardinalities)
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
        return Rows(self._matrix(*batch.inputs).cpu().numpy(), targets.numpy(), weights.numpy())

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
        mean = self._mean(self._matrix(numbers, categories))
        return mean.clamp(min=LEAST).log() if self.classifies else mean

    def _matrix(self, numbers: Tensor, categories: Tensor) -> Tensor:
        return matrix(numbers, categories, self.cardinalities, FEW)

    def _mean(self, rows: Tensor) -> Tensor:
        values = self.values
        if self.classifies and self.options.vote == "hard":
            values = F.one_hot(values.argmax(1), self.width).to(values.dtype)
        piece = max(1, ROOM // (len(self.roots) * self.width))
        return torch.cat([values[self._answers(part)].mean(1) for part in rows.split(piece)])

    def _answers(self, rows: Tensor) -> Tensor:
        """Which of `values` each tree answers: (B, columns) to (B, trees)."""
        trees, columns = len(self.roots), rows.shape[1]
        leaf = self.roots.repeat(len(rows))
        asked = torch.arange(len(leaf), device=rows.device)
        place, start = leaf, asked // trees * columns
        while len(asked):
            for _ in range(ROUND):
                place = self._next(rows.flatten(), place, start)
            leaf[asked] = place
            deeper = self.branches[:, 0].index_select(0, place) != place
            asked, place, start = asked[deeper], place[deeper], start[deeper]
        return self.answer.index_select(0, leaf).view(-1, trees)

    def _next(self, cells: Tensor, place: Tensor, start: Tensor) -> Tensor:
        """The nodes that follow on `place` (n,), for rows that start at `start` (n,) of `cells`."""
        value = cells.index_select(0, start + self.feature.index_select(0, place))
        right = value > self.threshold.index_select(0, place)
        return self.branches.flatten().index_select(0, 2 * place + right)

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
        own = torch.arange(len(self.branches), device=self.branches.device)[:, None]
        if not bool((self.branches >= own).all()):
            *_, errors = rest
            errors.append("nodes that lead back: rows that come there would never be answered")


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
        _int32(np.where(leaf, itself, [grown.children_left, grown.children_right]).T),
        _int32(answer),
        torch.from_numpy(distinct),
        _int32(np.zeros(1)),
    )


def answers_of(
    tree: DecisionTreeClassifier | DecisionTreeRegressor, width: int
) -> NDArray[np.float32]:
    """What each node would answer (nodes, width); classes that the rows lack have probability 0."""
    values: NDArray[np.float64] = tree.tree_.value
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
