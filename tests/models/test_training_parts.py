"""Optimizers, schedules, clipping, losses, transfer and accumulation, on a real small network."""

import math
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from models.base import Batch, NotTransferable, Supervised, Target
from models.linear import Linear
from models.mlp import MLP
from models.parts.losses import Absolute, CrossEntropy, Euclidean, Huber
from models.parts.optimizers import SGD, AdamW, Optimizer
from models.parts.precision import Precision
from models.parts.schedules import Constant, Cosine, OneCycle, Schedule, Step
from models.parts.training import Clipping, Training, Transfer
from tests.models import toys

PLAIN = MLP(layers=3, width=8, norm="none", dropout=0)

every_optimizer = pytest.mark.parametrize(
    "optimizer", [o() for o in Optimizer.options()], ids=lambda o: o.name
)
every_schedule = pytest.mark.parametrize(
    "schedule", [s() for s in Schedule.options()], ids=lambda s: s.name
)


def learner(architecture: MLP | Linear = PLAIN, seed: int = 0) -> Supervised:
    built = toys.build(architecture, seed)
    assert isinstance(built, Supervised)
    return built


def training(**chosen: object) -> Training:
    return Training().resolve(**{"optimizer": AdamW(), "schedule": Constant(), **chosen})


def gradients(network: nn.Module) -> dict[str, Tensor]:
    return {n: p.grad.clone() for n, p in network.named_parameters() if p.grad is not None}


# Optimizers


@every_optimizer
def test_an_optimizer_lowers_the_loss(optimizer: Optimizer) -> None:
    plan = training(optimizer=optimizer.model_copy(update={"learning_rate": 0.02}))
    losses = toys.train(learner(), plan, toys.examples(PLAIN), 60)
    assert losses[-1] < 0.7 * losses[0]


@every_optimizer
def test_a_larger_rate_makes_a_larger_first_step(optimizer: Optimizer) -> None:
    data, moved = toys.examples(PLAIN), []
    for rate in (1e-4, 1e-2):
        network = learner()
        before = nn.utils.parameters_to_vector(network.parameters()).detach().clone()
        plan = training(optimizer=optimizer.model_copy(update={"learning_rate": rate}))
        toys.train(network, plan, data, 1)
        after = nn.utils.parameters_to_vector(network.parameters()).detach()
        moved.append((after - before).norm().item())
    assert moved[1] > 20 * moved[0] > 0


@every_optimizer
def test_weight_decay_makes_weights_smaller(optimizer: Optimizer) -> None:
    data, norms = toys.examples(PLAIN), []
    for decay in (0.0, 1.0):
        network = learner()
        plan = training(optimizer=optimizer.model_copy(update={"weight_decay": decay}))
        toys.train(network, plan, data, 30)
        norms.append(nn.utils.parameters_to_vector(network.parameters()).norm().item())
    assert norms[1] < 0.99 * norms[0]


def test_sgd_without_momentum_subtracts_the_gradient() -> None:
    network, data = learner(), toys.examples(PLAIN)
    before = {n: p.detach().clone() for n, p in network.named_parameters()}
    network.loss(data).backward()
    step = gradients(network)
    network.zero_grad()
    toys.train(network, training(optimizer=SGD(learning_rate=0.5, momentum=0)), data, 1)
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(parameter.detach(), before[name] - 0.5 * step[name])


# Schedules


@every_schedule
@settings(deadline=None, print_blob=True)
@given(steps=st.integers(1, 500), warmup=st.floats(0, 0.9))
def test_a_schedule_stays_between_nothing_and_the_full_rate(
    schedule: Schedule, steps: int, warmup: float
) -> None:
    schedule = schedule.model_copy(update={"warmup": warmup})
    factors = [schedule.factor(step, steps) for step in range(steps)]
    assert all(0 <= factor <= 1 + 1e-9 for factor in factors)
    assert factors[0] > 0


@every_schedule
def test_a_warm_up_rises_in_even_steps(schedule: Schedule) -> None:
    schedule = schedule.model_copy(update={"warmup": 0.25})
    rising = [schedule.factor(step, 16) for step in range(4)]
    assert rising == pytest.approx([0.2, 0.4, 0.6, 0.8])


def test_each_schedule_has_its_shape() -> None:
    assert {Constant().factor(step, 10) for step in range(10)} == {1.0}
    assert Cosine().factor(50, 100) == pytest.approx(0.5)
    assert Cosine(floor=0.1).factor(99_999, 100_000) == pytest.approx(0.1, abs=1e-3)
    assert [Step(drops=2).factor(s, 9) for s in (0, 2, 3, 6)] == pytest.approx([1, 1, 0.1, 0.01])
    one_cycle = [OneCycle().factor(step, 1000) for step in range(1000)]
    assert one_cycle[0] == pytest.approx(0.04)
    assert max(range(1000), key=one_cycle.__getitem__) == 300
    assert one_cycle[-1] == pytest.approx(1e-4, abs=1e-4)


def test_the_rate_of_a_step_is_the_schedules() -> None:
    network, data = learner(), toys.examples(PLAIN)
    plan = training(optimizer=SGD(learning_rate=0.5), schedule=Cosine())
    toys.train(network, plan, data, 4)
    (group,) = network.optimizers["main"].param_groups
    assert group["lr"] == pytest.approx(0.5 * Cosine().factor(3, 4))


# Clipping


def stride(clipping: Clipping, **chosen: object) -> Tensor:
    """What one step of plain gradient descent at rate 1 subtracts from the weights."""
    network, data = learner(), toys.examples(PLAIN)
    before = nn.utils.parameters_to_vector(network.parameters()).detach().clone()
    plan = training(optimizer=SGD(learning_rate=1, momentum=0)).model_copy(
        update={"clipping": clipping, **chosen}
    )
    toys.train(network, plan, data, 1)
    return before - nn.utils.parameters_to_vector(network.parameters()).detach()


def test_clipping_by_norm_keeps_the_direction() -> None:
    free, clipped = stride(Clipping()), stride(Clipping(norm=0.01))
    assert free.norm() > 0.1
    assert clipped.norm().item() == pytest.approx(0.01, rel=1e-3)
    assert F.cosine_similarity(free, clipped, dim=0).item() == pytest.approx(1, abs=1e-4)


def test_clipping_by_value_bounds_each_gradient() -> None:
    free, clipped = stride(Clipping()), stride(Clipping(value=0.01))
    torch.testing.assert_close(clipped, free.clamp(-0.01, 0.01), atol=1e-6, rtol=1e-4)
    assert free.abs().max() > 0.02


# Half the bits


def test_losses_are_scaled_in_float16_alone() -> None:
    for precision in get_args(Precision):
        network = learner()
        network.start(training().model_copy(update={"precision": precision}), None, 1)
        assert network.loss_scale.is_enabled() == (precision == "float16")


@pytest.mark.parametrize("pieces", [1, 3])
def test_float16_learns_with_scaled_losses(pieces: int) -> None:
    plan = training(optimizer=AdamW(learning_rate=0.02))
    halved = {"precision": "float16", "micro_batches": pieces}
    network, data = learner(), toys.examples(PLAIN)
    losses = toys.train(network, plan.model_copy(update=halved), data, 60)
    assert losses[-1] < 0.5 * losses[0]
    assert losses[0] < 2, "the loss is told as it is"
    assert network.loss_scale.get_scale() > 1


def test_clipping_looks_at_gradients_that_are_no_longer_scaled() -> None:
    free, clipped = (
        stride(clipping, precision="float16") for clipping in (Clipping(), Clipping(norm=0.01))
    )
    torch.testing.assert_close(free, stride(Clipping()), atol=1e-3, rtol=0.02)
    assert clipped.norm().item() == pytest.approx(0.01, rel=1e-3)


@every_optimizer
def test_a_step_whose_gradients_overflow_is_left_out_and_the_scale_halved(
    optimizer: Optimizer,
) -> None:
    network, data = learner(), toys.examples(PLAIN)
    plan = training(optimizer=optimizer).model_copy(update={"precision": "float16"})
    network.start(plan, None, 3)
    network.enter_epoch(0)
    network.loss_scale.load_state_dict({**network.loss_scale.state_dict(), "scale": 2.0**60})
    before = nn.utils.parameters_to_vector(network.parameters()).detach().clone()
    network.train_step(data, 0)
    assert nn.utils.parameters_to_vector(network.parameters()).equal(before)
    assert network.loss_scale.get_scale() == 2.0**59
    network.loss_scale.update(2.0**10)
    network.train_step(data, 1)
    assert not nn.utils.parameters_to_vector(network.parameters()).equal(before)
    assert network.loss_scale.get_scale() == 2.0**10


# Accumulation


@pytest.mark.parametrize("pieces", [2, 3, 7])
def test_a_batch_in_pieces_has_the_same_loss_and_gradients(pieces: int) -> None:
    whole, cut, data = learner(), learner(), toys.examples(PLAIN, count=20)
    cut.micro_batches = pieces
    losses = [network._accumulate(data) for network in (whole, cut)]
    torch.testing.assert_close(*losses)
    theirs = gradients(cut)
    for name, gradient in gradients(whole).items():
        torch.testing.assert_close(theirs[name], gradient, atol=1e-6, rtol=1e-4)


def test_pieces_of_a_batch_hold_each_example_once() -> None:
    batch = Batch((torch.arange(10), torch.arange(10) * 2), (torch.arange(10) * 3,))
    pieces = list(batch.split(4))
    assert [len(piece) for piece in pieces] == [3, 3, 3, 1]
    assert torch.cat([piece.inputs[1] for piece in pieces]).equal(batch.inputs[1])
    assert torch.cat([piece.targets[0] for piece in pieces]).equal(batch.targets[0])


# Batches


@settings(deadline=None, print_blob=True)
@given(
    examples=st.integers(1, 400),
    batch_size=st.integers(1, 50),
    seed=st.integers(0, 9),
    ragged=st.booleans(),
)
def test_an_epoch_takes_every_example_once(
    examples: int, batch_size: int, seed: int, ragged: bool
) -> None:
    random = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 99, (examples,), generator=random) if ragged else None
    batches = learner().batches(examples, lengths, batch_size, random)
    assert len(batches) == -(-examples // batch_size)
    assert torch.cat(list(batches)).sort().values.equal(torch.arange(examples))


def test_ragged_examples_of_similar_length_share_a_batch() -> None:
    random = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 100, (1000,), generator=random)
    batches = learner().batches(1000, lengths, 20, random)
    padded = sum(int(lengths[b].max()) * len(b) for b in batches)
    assert padded < 1.1 * int(lengths.sum())
    means = torch.tensor([lengths[b].float().mean() for b in batches])
    assert not means.equal(means.sort().values)


# Transfer


@pytest.mark.parametrize(
    ("transfer", "learning"),
    [
        (Transfer(), [4, 4, 4]),
        (Transfer(trainable_blocks=0), [0, 0, 0]),
        (Transfer(trainable_blocks=2), [2, 2, 2]),
        (Transfer(unfreeze_every=1), [0, 1, 2]),
        (Transfer(trainable_blocks=1, unfreeze_every=2), [1, 1, 2]),
        (Transfer(trainable_blocks=9), [4, 4, 4]),
    ],
)
def test_blocks_learn_from_the_last_to_the_first(transfer: Transfer, learning: list[int]) -> None:
    network = learner()
    network.start(training(), transfer, 10)
    for epoch, expected in enumerate(learning):
        network.enter_epoch(epoch)
        blocks = network.backbone.blocks()
        learns = [any(p.requires_grad for p in block.parameters()) for block in blocks]
        assert learns == [False] * (4 - expected) + [True] * expected
        assert [block.training for block in blocks] == learns
        assert all(p.requires_grad for p in network.head.parameters())


def test_the_backbone_learns_slower_than_a_new_head() -> None:
    network, data = learner(), toys.examples(PLAIN)
    plan = training(optimizer=SGD(learning_rate=0.5, momentum=0), schedule=Cosine())
    toys.train(network, plan, data, 4, Transfer(backbone_learning_rate=0.2))
    head, backbone = network.optimizers["main"].param_groups
    assert backbone["lr"] == pytest.approx(0.2 * head["lr"])
    assert head["lr"] == pytest.approx(0.5 * Cosine().factor(3, 4))


def test_each_block_learns_slower_than_the_one_behind_it() -> None:
    network, data = learner(), toys.examples(PLAIN)
    plan = training(optimizer=SGD(learning_rate=0.5, momentum=0))
    transfer = Transfer(backbone_learning_rate=0.5, layer_decay=0.5)
    toys.train(network, plan, data, 1, transfer)
    head, *blocks = network.optimizers["main"].param_groups
    rates = {id(weight): group["lr"] for group in blocks for weight in group["params"]}
    assert sum(len(group["params"]) for group in blocks) == len(rates)
    assert rates.keys() == {id(weight) for weight in network.backbone.parameters()}
    with_weights = [
        block for block in network.backbone.blocks() if any(True for _ in block.parameters())
    ]
    for block in with_weights:
        place = network.backbone.blocks()[::-1].index(block)
        (rate,) = {rates[id(weight)] for weight in block.parameters()}
        assert rate == pytest.approx(head["lr"] * 0.5 * 0.5**place)


def test_gradual_unfreezing_reaches_blocks_one_after_the_other() -> None:
    network, data = learner(), toys.examples(PLAIN)
    network.start(training(), Transfer(unfreeze_every=1), 3)
    for epoch in range(3):
        before = [nn.utils.parameters_to_vector(b.parameters()) for b in network.backbone.blocks()]
        network.enter_epoch(epoch)
        network.train_step(data, epoch)
        after = [nn.utils.parameters_to_vector(b.parameters()) for b in network.backbone.blocks()]
        moved = [not torch.equal(a, b) for a, b in zip(before, after, strict=True)]
        assert moved == [False] * (4 - epoch) + [True] * epoch


def test_a_new_head_keeps_its_own_weights() -> None:
    base, network = learner(), learner(seed=1)
    own = network.head.weight.clone()
    network.take_over(base, head=False)
    assert network.head.weight.equal(own)
    assert network.backbone.state_dict()["hidden.0.layer.0.weight"].equal(
        base.backbone.state_dict()["hidden.0.layer.0.weight"]
    )


def test_weights_of_another_shape_are_refused() -> None:
    wider = learner(PLAIN.model_copy(update={"width": 9}))
    with pytest.raises(NotTransferable, match="do not fit"):
        learner().take_over(wider, head=False)


def test_a_linear_model_passes_on_its_outputs_or_nothing() -> None:
    base, network = learner(Linear()), learner(Linear(), seed=1)
    with pytest.raises(NotTransferable):
        network.take_over(base, head=False)
    network.take_over(base, head=True)
    assert network.head.weight.equal(base.head.weight)


# Losses


def test_cross_entropy_is_the_log_likelihood() -> None:
    scores, classes = torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0])
    found = CrossEntropy().build([1, 1])(scores, classes).item()
    expected = (math.log(1 + math.exp(-2)) + math.log(1 + math.e)) / 2
    assert found == pytest.approx(expected)


def test_balanced_classes_count_the_same_however_rare() -> None:
    scores = torch.randn(10, 2, generator=torch.Generator().manual_seed(0))
    classes = torch.tensor([0] * 8 + [1] * 2)
    found = CrossEntropy(class_weights="balanced").build([8, 2])(scores, classes)
    each = F.cross_entropy(scores, classes, reduction="none")
    torch.testing.assert_close(found, (each[:8].mean() + each[8:].mean()) / 2)


def test_label_smoothing_punishes_certainty() -> None:
    scores, classes = torch.tensor([[20.0, -20.0]]), torch.tensor([0])
    plain, smooth = (CrossEntropy(label_smoothing=s).build([1, 1]) for s in (0.0, 0.2))
    assert smooth(scores, classes) > plain(scores, classes) + 1


def test_losses_of_values_differ_in_how_they_take_outliers() -> None:
    errors = torch.tensor([[0.5], [-4.0]])
    found = [
        o.build()(errors, torch.zeros(2, 1)).item() for o in (Euclidean(), Absolute(), Huber())
    ]
    assert found == pytest.approx([(0.25 + 16) / 2, (0.5 + 4) / 2, (0.125 + 3.5) / 2])


# What the network is made of


def test_a_linear_model_is_linear() -> None:
    built = Linear().build(3, [4], Target("values", 2, nn.MSELoss()))
    random = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 5, 3, generator=random)
    codes = torch.zeros(5, 1, dtype=torch.long)
    middle = built((a + b) / 2, codes)
    torch.testing.assert_close(middle, (built(a, codes) + built(b, codes)) / 2)


def test_a_list_of_widths_decides_how_many_layers_there_are() -> None:
    backbone = MLP(layers=9, width=[7, 5]).backbone(4, [3])
    assert backbone.width == 5
    assert len(backbone.blocks()) == 3
