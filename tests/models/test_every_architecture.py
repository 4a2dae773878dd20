"""What must hold of every architecture in the folder, found by being there."""

import copy

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor

from models.base import (
    Architecture,
    Batch,
    CausalBackbone,
    CausalEncoder,
    ImageBackbone,
    ImageGenerator,
    Learner,
    NotTransferable,
    SequenceEncoder,
    Supervised,
    TextEncoder,
    TokenBackbone,
    TokenEncoder,
)
from models.parts.training import Training, Transfer
from models.parts.writing import SequenceToSequence
from tests.models import toys
from tests.published import smallest


def each(architectures: list[type[Architecture]]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        "architecture",
        [smallest(a) for a in architectures],
        ids=[a.option_name() for a in architectures],
    )


every = each(toys.shipped())
of_classes = each(
    [a for a in toys.shipped() if not issubclass(a, SequenceToSequence | ImageGenerator)]
)
with_backbone = each([a for a in toys.shipped() if a.has_backbone])
of_texts = each([a for a in toys.shipped() if issubclass(a, TextEncoder)])
one_way = each([a for a in toys.shipped() if issubclass(a, CausalEncoder)])
of_images = each([a for a in toys.shipped() if issubclass(a, ImageBackbone)])
of_vectors = each([a for a in toys.shipped() if issubclass(a, SequenceEncoder)])
of_tokens = each([a for a in toys.shipped() if issubclass(a, TokenEncoder)])


def supervised(architecture: Architecture, seed: int = 0) -> Supervised:
    learner = toys.build(architecture, seed)
    assert isinstance(learner, Supervised)
    return learner


def weights(learner: Learner) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in learner.state_dict().items()}


def equal(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


@every
def test_it_belongs_to_a_family_that_is_tested_here(architecture: Architecture) -> None:
    assert isinstance(architecture, toys.FAMILIES)


@of_classes
def test_it_gives_a_score_for_every_class(architecture: Architecture) -> None:
    learner, data = toys.build(architecture, classes=3), toys.examples(architecture)
    toys.train(learner, toys.plan(architecture), data, 1)
    scores = toys.outputs(learner, data.inputs)
    assert scores.shape == (64, 3)
    assert scores.dtype == torch.float32
    assert scores.isfinite().all()


@every
def test_one_step_changes_what_it_answers(architecture: Architecture) -> None:
    learner, data = toys.build(architecture), toys.examples(architecture)
    before = weights(learner)
    (loss,) = toys.train(learner, toys.plan(architecture), data, 1)
    assert 0 < loss < 20
    assert not equal(before, weights(learner))


@of_classes
def test_it_learns_a_toy_rule(architecture: Architecture) -> None:
    learner, data = toys.build(architecture), toys.examples(architecture)
    toys.train(learner, toys.plan(architecture), data, 40)
    right = toys.outputs(learner, data.inputs).argmax(1) == data.targets[0]
    unseen = toys.examples(architecture, seed=1)
    also_right = toys.outputs(learner, unseen.inputs).argmax(1) == unseen.targets[0]
    assert right.float().mean() > 0.9
    assert also_right.float().mean() > 0.75


@with_backbone
def test_it_learns_in_half_the_bits_and_keeps_whole_weights(architecture: Architecture) -> None:
    data, losses = toys.examples(architecture, count=4), {}
    for precision in ("float32", "bfloat16", "float16"):
        learner = toys.build(architecture)
        plan = toys.plan(architecture).model_copy(update={"precision": precision})
        (losses[precision],) = toys.train(learner, plan, data, 1)
        assert all(weight.dtype == torch.float32 for weight in learner.parameters())
        assert toys.outputs(learner, data.inputs).dtype == torch.float32
    for halved in ("bfloat16", "float16"):
        assert losses[halved] != losses["float32"]
        assert losses[halved] == pytest.approx(losses["float32"], rel=0.05)


@every
def test_the_same_seed_gives_the_same_weights(architecture: Architecture) -> None:
    data = toys.examples(architecture)
    learners = [toys.build(architecture) for _ in range(2)]
    for learner in learners:
        toys.train(learner, toys.plan(architecture), data, 3)
    assert equal(*map(weights, learners))


@every
def test_another_seed_gives_other_weights(architecture: Architecture) -> None:
    data = toys.examples(architecture)
    learners = [toys.build(architecture, seed) for seed in range(2)]
    for seed, learner in enumerate(learners):
        toys.train(learner, toys.plan(architecture, seed=seed), data, 3)
    assert not equal(*map(weights, learners))


@every
def test_a_saved_learner_answers_as_before(architecture: Architecture) -> None:
    learner, data = toys.build(architecture), toys.examples(architecture)
    toys.train(learner, toys.plan(architecture), data, 2)
    again = toys.build(architecture, seed=1)
    again.load_state_dict(load(save(weights(learner))))
    assert torch.equal(toys.outputs(learner, data.inputs), toys.outputs(again, data.inputs))


@every
def test_a_training_that_was_interrupted_ends_with_the_same_weights(
    architecture: Architecture,
) -> None:
    data, training = toys.examples(architecture), toys.plan(architecture)
    whole, halves = toys.build(architecture), toys.build(architecture)
    start_and_step(whole, training, data, range(4))
    start_and_step(halves, training, data, range(2))
    resumed = toys.build(architecture, seed=1)
    start_and_step(resumed, training, data, range(2, 4), after=halves)
    assert equal(weights(whole), weights(resumed))


def start_and_step(
    learner: Learner, training: Training, data: Batch, steps: range, after: Learner | None = None
) -> None:
    """Steps of a training of four, whose randomness depends on the step alone."""
    learner.start(training, None, 4)
    if after is not None:
        learner.load_state_dict(weights(after))
        for name, optimizer in learner.optimizers.items():
            optimizer.load_state_dict(copy.deepcopy(after.optimizers[name].state_dict()))
    learner.enter_epoch(0)
    for step in steps:
        torch.manual_seed(step)
        learner.train_step(data, step)


@every
def test_a_batch_of_one_can_be_learned_from(architecture: Architecture) -> None:
    learner, data = toys.build(architecture), toys.examples(architecture, count=2)
    one = next(data.split(2))
    (loss,) = toys.train(learner, toys.plan(architecture), one, 1)
    assert loss >= 0
    assert toys.outputs(learner, data.inputs).isfinite().all()


@every
def test_an_example_is_answered_alike_alone_and_among_others(architecture: Architecture) -> None:
    learner, data = toys.build(architecture), toys.examples(architecture)
    toys.train(learner, toys.plan(architecture), data, 2)
    together = toys.outputs(learner, data.inputs)
    for place in (0, 31, 63):
        alone = toys.outputs(learner, [t[place : place + 1] for t in data.inputs])
        torch.testing.assert_close(alone[0], together[place], rtol=1e-4, atol=1e-5)


@every
def test_every_field_is_described_in_its_schema(architecture: Architecture) -> None:
    fields = type(architecture).model_json_schema()["properties"]
    assert fields.pop("name")["const"] == architecture.name
    assert all(len(field["description"]) > 15 for field in fields.values())
    assert len(architecture.summary()) > 20


@every
def test_its_defaults_fit_the_training_they_fill(architecture: Architecture) -> None:
    for examples in (10, 5_000, 1_000_000):
        chosen = architecture.defaults(examples)
        assert set(chosen) <= {"epochs", "batch_size", "optimizer", "schedule"}
        filled = Training().resolve(**chosen)
        assert Training.model_validate(filled.model_dump()) == filled


@every
def test_it_comes_back_the_same_from_json(architecture: Architecture) -> None:
    again = type(architecture).model_validate_json(architecture.model_dump_json())
    assert again == architecture


@with_backbone
def test_its_blocks_hold_every_parameter_once(architecture: Architecture) -> None:
    backbone = supervised(architecture).backbone
    held = [p for block in backbone.blocks() for p in block.parameters()]
    assert len(held) == len({id(p) for p in held})
    assert {id(p) for p in held} == {id(p) for p in backbone.parameters()}


@with_backbone
def test_its_frozen_blocks_stay_as_they_are_while_the_head_learns(
    architecture: Architecture,
) -> None:
    learner, data = supervised(architecture), toys.examples(architecture)
    backbone, head = weights_of(learner.backbone), weights_of(learner.head)
    toys.train(learner, toys.plan(architecture), data, 2, Transfer(trainable_blocks=0))
    assert equal(backbone, weights_of(learner.backbone))
    assert not equal(head, weights_of(learner.head))


@with_backbone
def test_it_takes_over_the_backbone_of_a_base(architecture: Architecture) -> None:
    base, learner = supervised(architecture), supervised(architecture, seed=1)
    data = toys.examples(architecture)
    toys.train(base, toys.plan(architecture), data, 1)
    learner.take_over(base, head=True)
    assert equal(weights(base), weights(learner))


@each([a for a in toys.shipped() if not a.has_backbone])
def test_without_a_backbone_there_is_nothing_to_take_over(architecture: Architecture) -> None:
    with pytest.raises(NotTransferable):
        toys.build(architecture).take_over(toys.build(architecture), head=True)


def weights_of(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


@of_texts
def test_padding_changes_nothing(architecture: Architecture) -> None:
    learner, data = toys.build(architecture), toys.examples(architecture)
    toys.train(learner, toys.plan(architecture), data, 2)
    tokens, lengths = data.inputs
    padded = torch.nn.functional.pad(tokens, (0, 7))
    torch.testing.assert_close(
        toys.outputs(learner, [padded, lengths]),
        toys.outputs(learner, [tokens, lengths]),
        rtol=1e-4,
        atol=1e-5,
    )


@of_tokens
def test_every_token_has_a_state_of_the_backbones_width(architecture: Architecture) -> None:
    backbone = supervised(architecture).backbone.eval()
    assert isinstance(backbone, TokenBackbone)
    tokens, lengths = toys.examples(architecture).inputs
    states = backbone.states(tokens, lengths)
    assert states.shape == (64, 12, backbone.width)
    alone = backbone.states(tokens[:1, : lengths[0]], lengths[:1])
    torch.testing.assert_close(alone[0], states[0, : lengths[0]], rtol=1e-4, atol=1e-5)


@of_images
@pytest.mark.parametrize("sides", [(64, 64), (64, 96), (32, 128)])
def test_its_maps_are_as_coarse_and_as_wide_as_it_says(
    architecture: Architecture, sides: tuple[int, int]
) -> None:
    assert isinstance(architecture, ImageBackbone)
    backbone = architecture.build(3, (64, 64)).eval()
    images = torch.rand(2, 3, *sides)
    maps = backbone.maps(images)
    assert [tuple(found.shape) for found in maps] == [
        (2, width, sides[0] // stride, sides[1] // stride)
        for width, stride in zip(backbone.widths, backbone.strides, strict=True)
    ]
    assert list(backbone.strides) == sorted(backbone.strides)
    assert backbone.width == backbone.widths[-1]
    assert torch.equal(backbone(images), maps[-1])


@of_vectors
def test_every_vector_of_a_sequence_has_a_state_whatever_stands_behind_it(
    architecture: Architecture,
) -> None:
    assert isinstance(architecture, SequenceEncoder)
    backbone = architecture.over_vectors(5, 16).eval()
    vectors, lengths = torch.randn(3, 12, 5), torch.tensor([12, 7, 1])
    vectors[torch.arange(12) >= lengths[:, None]] = 0
    states, pooled = backbone.states(vectors, lengths), backbone(vectors, lengths)
    assert states.shape == (3, 12, backbone.width)
    assert pooled.shape == (3, backbone.width)
    alone = vectors[1:2, :7], lengths[1:2]
    torch.testing.assert_close(backbone.states(*alone)[0], states[1, :7], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(backbone(*alone)[0], pooled[1], rtol=1e-4, atol=1e-5)
    parameters = {id(p) for block in backbone.blocks() for p in block.parameters()}
    assert parameters == {id(p) for p in backbone.parameters()}


def built_one_way(architecture: Architecture) -> CausalBackbone:
    assert isinstance(architecture, CausalEncoder)
    torch.manual_seed(0)
    return architecture.one_way().build(toys.VOCABULARY, toys.MAX_LENGTH).eval()


@one_way
def test_one_way_no_state_knows_of_later_tokens(architecture: Architecture) -> None:
    backbone = built_one_way(architecture)
    tokens, _ = toys.examples(architecture).inputs
    lengths = torch.full((64,), 12)
    states, other = backbone.states(tokens, lengths), tokens.clone()
    other[:, 6:] = 7
    torch.testing.assert_close(backbone.states(other, lengths)[:, :6], states[:, :6])
    assert not torch.equal(backbone.states(other, lengths)[:, 6:], states[:, 6:])


@one_way
@torch.no_grad()
def test_one_way_it_reads_on_to_the_states_of_the_whole(architecture: Architecture) -> None:
    backbone = built_one_way(architecture)
    tokens, lengths = toys.examples(architecture).inputs
    first = torch.ones_like(lengths).where(lengths < 6, lengths // 2)
    whole, rows = backbone.states(tokens, lengths), torch.arange(64)
    states, memory = backbone.read_on(tokens[:, : int(first.max())], first)
    torch.testing.assert_close(states[rows, first - 1], whole[rows, first - 1])
    for step in range(6):
        place = first + step
        token = tokens.gather(1, place.clamp(max=11)[:, None])
        states, memory = backbone.read_on(token, torch.ones_like(first), memory)
        inside = place < lengths
        assert inside.any()
        torch.testing.assert_close(states[inside, 0], whole[rows, place.clamp(max=11)][inside])


@one_way
def test_one_way_nothing_is_built_that_no_state_needs(architecture: Architecture) -> None:
    backbone = built_one_way(architecture)
    tokens, lengths = toys.examples(architecture).inputs
    backbone.states(tokens, lengths).sum().backward()
    assert all(weight.grad is not None for weight in backbone.parameters())
