"""Linear and logistic regression on rows of a table."""

from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor, nn

from models.base import Backbone, Learner, NotTransferable, Supervised, TableBackbone, Target
from models.parts.optimizers import AdamW
from models.parts.rows import matrix


class Linear(TableBackbone):
    """Linear model: linear regression of values, logistic regression of classes (Cox, 1958)."""

    name: Literal["linear"] = "linear"

    def backbone(self, numeric: int, cardinalities: Sequence[int]) -> Backbone:
        return Columns(numeric, cardinalities)

    def build(self, numeric: int, cardinalities: Sequence[int], target: Target) -> Learner:
        backbone = self.backbone(numeric, cardinalities)
        head = nn.Linear(backbone.width, target.width)
        return LinearModel(backbone, head, target.criterion)

    def defaults(self, examples: int) -> dict[str, Any]:
        return {"optimizer": AdamW(learning_rate=2e-2)}


class LinearModel(Supervised):
    """All that it learns is its head."""

    def take_over(self, base: Learner, *, head: bool) -> None:
        if not head:
            raise NotTransferable("a linear model has only its outputs to take over, which differ")
        super().take_over(base, head=head)


class Columns(Backbone):
    """Numbers as they are, and a 0 or 1 for every category: nothing to learn before the head."""

    def __init__(self, numeric: int, cardinalities: Sequence[int]) -> None:
        super().__init__()
        self.cardinalities = list(cardinalities)
        self.width = numeric + sum(self.cardinalities)

    def forward(self, numbers: Tensor, categories: Tensor) -> Tensor:
        """Numbers (B, numeric) and categories (B, columns) to (B, width)."""
        return matrix(numbers, categories, self.cardinalities)
