"""What a teacher's answers add to a loss."""

import torch
from torch import nn
from torch.nn import functional as F

from models.base import Backbone, Batch, Supervised
from models.parts.distillation import Distillation, Lessons
from models.parts.training import Training
from models.parts.widening import widened

SCORES = torch.tensor([[1.0, 2.0, 0.5], [0.1, -1.0, 3.0]])
ANSWERS = torch.tensor([[2.0, -1.0], [0.0, 1.0]])
LABELS = torch.tensor([1, 2])


def test_the_loss_is_a_share_of_each_part_with_the_squared_temperature() -> None:
    lessons = Lessons(Distillation(share=0.3, temperature=4), (2, 0))
    soft = F.cross_entropy(SCORES[:, [2, 0]] / 4, (ANSWERS / 4).softmax(1))
    expected = 0.7 * F.cross_entropy(SCORES, LABELS) + 0.3 * 16 * soft
    found = lessons.loss(nn.CrossEntropyLoss(), SCORES, LABELS, ANSWERS)
    assert torch.allclose(found, expected)


def test_several_labels_are_taught_each_by_itself() -> None:
    lessons = Lessons(Distillation(share=1.0, temperature=1), (0, 1), several=True)
    expected = F.binary_cross_entropy_with_logits(SCORES[:, :2], ANSWERS.sigmoid())
    found = lessons.loss(nn.BCEWithLogitsLoss(), SCORES, torch.zeros(2, 3), ANSWERS)
    assert torch.allclose(found, expected)


class Same(Backbone):
    width = 3

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs


def test_a_batch_in_pieces_has_the_same_gradients_also_with_weighted_classes() -> None:
    found = []
    for pieces in (1, 2):
        torch.manual_seed(0)
        learner = Supervised(
            Same(), nn.Linear(3, 3), nn.CrossEntropyLoss(torch.tensor([1.0, 2.0, 5.0]))
        )
        learner.lessons = Lessons(Distillation(), (0, 1))
        learner.training_plan, learner.micro_batches = Training(), pieces
        learner._accumulate(Batch((SCORES,), (LABELS, ANSWERS)))
        found.append(learner.head.weight.grad)
    assert torch.allclose(found[0], found[1])


def test_a_taught_learner_is_saved_like_any_other() -> None:
    learner = Supervised(Same(), nn.Linear(3, 3), nn.CrossEntropyLoss())
    names = set(learner.state_dict())
    learner.lessons = Lessons(Distillation(), (0, 1))
    assert set(learner.state_dict()) == names


def test_a_wider_head_keeps_its_own_rows_behind_the_old_ones() -> None:
    old, new = nn.Linear(3, 2), nn.Linear(3, 4)
    own = new.weight.clone()
    new.load_state_dict(widened(old.state_dict(), new.state_dict()))
    assert torch.equal(new.weight[:2], old.weight)
    assert torch.equal(new.weight[2:], own[2:])
