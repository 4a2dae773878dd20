"""Ways of fine-tuning: what each of them does to the weights that were taken over."""

from typing import Any

import pytest
import torch
from torch import nn

from models.base import (
    Architecture,
    ImageGenerator,
    NotTransferable,
    Supervised,
)
from models.linear import Linear
from models.mlp import MLP
from models.parts.adapters import IA3, Adapter, DoRA, LoRA
from models.parts.optimizers import SGD
from models.parts.rates import layered
from models.parts.schedules import Constant
from models.parts.training import Training, Transfer
from models.parts.writing import SequenceToSequence
from tasks import catalog
from tasks.parts.methods import check_methods
from tasks.parts.probing import probe
from tasks.parts.problems import Invalid
from tests.models import toys
from tests.published import smallest

PLAIN = MLP(layers=3, width=8, norm="none", dropout=0)
STEEP = Training().resolve(optimizer=SGD(learning_rate=0.5, momentum=0), schedule=Constant())


def learner(architecture: MLP | Linear = PLAIN) -> Supervised:
    found = toys.build(architecture)
    assert isinstance(found, Supervised)
    return found


# Layer-wise decay


def test_a_norm_behind_the_blocks_learns_with_the_last_of_them() -> None:
    first, last, norm = nn.Linear(2, 2), nn.Linear(2, 2), nn.LayerNorm(2)
    groups = layered(nn.Sequential(first, last, norm), [first, last], 1.0, 0.5)
    rates = {id(weight): group["lr"] for group in groups for weight in group["params"]}
    assert [rates[id(part.weight)] for part in (first, last, norm)] == [0.5, 1.0, 1.0]


def test_what_stands_before_all_blocks_learns_with_the_first() -> None:
    token, first, last = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2)
    groups = layered(nn.Sequential(token, first, last), [first, last], 1.0, 0.5)
    rates = {id(weight): group["lr"] for group in groups for weight in group["params"]}
    assert [rates[id(part.weight)] for part in (token, first, last)] == [0.5, 0.5, 1.0]


def test_a_backbone_without_weights_has_nothing_to_decay() -> None:
    network = learner(Linear())
    network.start(STEEP, Transfer(layer_decay=0.5), 1)
    assert len(network.optimizers["main"].param_groups) == 1


# A pull to where weights began


def moved(transfer: Transfer, steps: int) -> tuple[Supervised, list[torch.Tensor]]:
    """A learner after some steps, and how far each weight of its backbone has come."""
    network = learner()
    began = [weight.detach().clone() for weight in network.backbone.parameters()]
    toys.train(network, STEEP, toys.examples(PLAIN), steps, transfer)
    ends = network.backbone.parameters()
    return network, [end.detach() - start for end, start in zip(ends, began, strict=True)]


def test_a_pull_is_the_gradient_of_half_the_squared_distance() -> None:
    # After one step, which begins where all began, there is a distance.
    (_, first), (_, free), (_, pulled) = (
        moved(transfer, steps)
        for transfer, steps in [(Transfer(), 1), (Transfer(), 2), (Transfer(l2_sp=0.3), 2)]
    )
    for one, without, ours in zip(first, free, pulled, strict=True):
        torch.testing.assert_close(ours, without - 0.5 * 0.3 * one, rtol=1e-4, atol=1e-6)


def test_the_stronger_the_pull_the_nearer_weights_stay() -> None:
    distances = [
        sum(part.norm().item() for part in moved(Transfer(l2_sp=pull), 20)[1])
        for pull in (0.0, 0.03, 0.3)
    ]
    assert distances[0] > 1.1 * distances[1] > 1.2 * distances[2]


def test_where_weights_began_is_not_among_them() -> None:
    network, _ = moved(Transfer(l2_sp=0.3), 1)
    assert network.state_dict().keys() == learner().state_dict().keys()


def test_weights_that_are_frozen_are_not_pulled() -> None:
    _, away = moved(Transfer(l2_sp=0.3, trainable_blocks=0), 3)
    assert not any(bool(part.any()) for part in away)


@pytest.mark.parametrize("pieces", [1, 4])
def test_a_pull_counts_once_however_many_pieces_a_batch_has(pieces: int) -> None:
    network = learner()
    plan = STEEP.model_copy(update={"micro_batches": pieces})
    toys.train(network, plan, toys.examples(PLAIN), 3, Transfer(l2_sp=0.3))
    whole, _ = moved(Transfer(l2_sp=0.3), 3)
    for ours, theirs in zip(network.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


# Adapters

ADAPTERS: list[Adapter] = [LoRA(rank=2), DoRA(rank=2), IA3()]
WITHOUT_LAYERS = {"bag-of-embeddings", "bag-of-ngrams", "gru", "lstm", "rnn"}
"""Architectures whose backbones compute by nothing that takes adapters."""


def adaptable() -> list[Architecture]:
    kinds = sorted(toys.shipped(), key=lambda kind: kind.__name__)
    found = [smallest(kind) for kind in kinds if kind.spreads and kind.has_backbone]
    return [made for made in found if not isinstance(made, ImageGenerator | Linear)]


def adapted(architecture: Architecture, adapter: Adapter) -> Supervised:
    """A learner with adapters that have learned for some steps."""
    network, data = toys.build(architecture), toys.examples(architecture, 16)
    assert isinstance(network, Supervised)
    toys.train(network, STEEP, data, 3, Transfer(adapters=adapter))
    return network


@pytest.mark.parametrize("architecture", adaptable(), ids=lambda made: type(made).__name__)
def test_what_adapters_learned_is_served_without_them(architecture: Architecture) -> None:
    if architecture.name in WITHOUT_LAYERS:
        with pytest.raises(NotTransferable, match="no layer of its backbone"):
            adapted(architecture, LoRA())
        return
    network, inputs = adapted(architecture, LoRA(rank=2)), toys.examples(architecture, 4).inputs
    plain = toys.build(architecture, seed=1)
    plain.load_state_dict(network.state_dict())
    torch.testing.assert_close(
        toys.outputs(plain, inputs), toys.outputs(network, inputs), rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize("adapter", ADAPTERS, ids=lambda adapter: adapter.name)
def test_adapters_learn_and_nothing_else_of_the_backbone_does(adapter: Adapter) -> None:
    began, network = learner().backbone.state_dict(), adapted(PLAIN, adapter)
    learning = {name for name, weight in network.named_parameters() if weight.requires_grad}
    assert learning == {
        *(f"backbone.{name}" for name in network.kept_aside()),
        *(f"head.{name}" for name, _ in network.head.named_parameters()),
    }
    own = {
        name.replace("base_layer.", ""): weight
        for name, weight in network.backbone.named_parameters()
        if name not in network.kept_aside()
    }
    assert all(weight.equal(began[name]) for name, weight in own.items())
    merged = network.backbone.state_dict()
    assert any(not merged[name].equal(weight) for name, weight in began.items())
    assert merged.keys() == began.keys()


def test_adapters_change_nothing_before_they_learn() -> None:
    inputs = toys.examples(PLAIN, 8).inputs
    for adapter in ADAPTERS:
        network = learner()
        before = toys.outputs(network, inputs)
        network.start(STEEP, Transfer(adapters=adapter), 1)
        torch.testing.assert_close(toys.outputs(network, inputs), before, rtol=1e-4, atol=1e-5)


def test_a_state_is_loaded_into_the_weights_that_have_no_adapters() -> None:
    network, other = adapted(PLAIN, LoRA(rank=2)), adapted(PLAIN, LoRA(rank=2))
    before = {name: weight.clone() for name, weight in other.named_parameters()}
    with torch.no_grad():
        network.head.weight.add_(1)
        network.backbone.get_parameter("hidden.0.layer.0.base_layer.weight").add_(1)
    other.load_state_dict(network.state_dict())
    after = dict(other.named_parameters())
    changed = {name for name, weight in before.items() if not after[name].equal(weight)}
    assert changed == {"head.weight"}


def test_adapters_are_where_they_are_asked_for() -> None:
    network = learner()
    transfer = Transfer(adapters=LoRA(where=["hidden.1.*"]))
    network.start(STEEP, transfer, 1)
    assert {name.rsplit(".", 3)[0] for name in network.kept_aside()} == {"hidden.1.layer.0"}


def test_a_place_that_is_not_there_is_named_with_those_that_are() -> None:
    with pytest.raises(NotTransferable, match=r"among those are .*hidden\.0\.layer\.0"):
        adapted(PLAIN, LoRA(where=["q_proj"]))


def test_adapters_of_frozen_blocks_do_not_learn_yet() -> None:
    network = learner()
    network.start(STEEP, Transfer(adapters=LoRA(), unfreeze_every=1), 3)
    counts = []
    for epoch in range(3):
        network.enter_epoch(epoch)
        counts.append(sum(weight.requires_grad for weight in network.backbone.parameters()))
    assert counts == [0, 2, 4]


def test_adapters_of_published_weights_learn_at_the_full_rate() -> None:
    assert Transfer().resolve(published=True).backbone_learning_rate == 0.1
    assert Transfer(adapters=LoRA()).resolve(published=True).backbone_learning_rate == 1


# A linear probe


def test_a_head_that_takes_more_than_features_is_not_probed() -> None:
    with pytest.raises(NotTransferable, match="more than features"):
        probe(toys.build(smallest(catalog.architectures(SequenceToSequence)["lstm-seq2seq"])))


def test_weights_between_backbone_and_head_are_not_probed() -> None:
    network = learner()
    network.between = nn.Linear(2, 2)
    with pytest.raises(NotTransferable, match="between"):
        probe(network)


# What goes together

SMALL = {"name": "mlp", "layers": 1, "width": 8}
TABLE = catalog.tasks()["tabular-classification"].model_validate(
    {"name": "tabular-classification", "architecture": SMALL}
)
CONTRADICTIONS: dict[str, tuple[dict[str, Any], dict[str, Any], list[str]]] = {
    "probe and blocks": (
        {"linear_probe": True, "trainable_blocks": 1},
        {},
        ["transfer", "trainable_blocks"],
    ),
    "probe and thawing": (
        {"linear_probe": True, "unfreeze_every": 1},
        {},
        ["transfer", "unfreeze_every"],
    ),
    "probe and decay": (
        {"linear_probe": True, "layer_decay": 0.5},
        {},
        ["transfer", "layer_decay"],
    ),
    "probe and pull": ({"linear_probe": True, "l2_sp": 1}, {}, ["transfer", "l2_sp"]),
    "probe and adapters": (
        {"linear_probe": True, "adapters": {"name": "lora"}},
        {},
        ["transfer", "adapters"],
    ),
    "compiled probe": ({"linear_probe": True}, {"compile": "always"}, ["training", "compile"]),
    "adapters and pull": ({"adapters": {"name": "ia3"}, "l2_sp": 1}, {}, ["transfer", "l2_sp"]),
    "compiled adapters": (
        {"adapters": {"name": "lora"}},
        {"compile": "when-it-pays"},
        ["training", "compile"],
    ),
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_what_contradicts_itself_is_refused(name: str) -> None:
    transfer, training, place = CONTRADICTIONS[name]
    with pytest.raises(Invalid) as refused:
        check_methods(TABLE, Training.model_validate(training), Transfer.model_validate(transfer))
    assert [list(problem.loc) for problem in refused.value.problems] == [place]


@pytest.mark.parametrize(
    ("task", "architecture", "transfer"),
    [
        ("speech-recognition", "gru", Transfer(linear_probe=True)),
        ("text-pair-classification", "lstm", Transfer(linear_probe=True)),
        ("tabular-classification", "linear", Transfer(l2_sp=1)),
        ("tabular-classification", "linear", Transfer(adapters=LoRA())),
        ("image-generation", "gan", Transfer(l2_sp=1)),
        ("image-generation", "ddpm", Transfer(adapters=LoRA())),
    ],
)
def test_what_a_task_or_an_architecture_cannot_is_refused(
    task: str, architecture: str, transfer: Transfer
) -> None:
    asked = {"name": task, "architecture": {"name": architecture}}
    made = catalog.tasks()[task].model_validate(asked)
    with pytest.raises(Invalid):
        check_methods(made, Training(), transfer)
    check_methods(made, Training(), transfer.model_copy(update={"from_scratch": True}))
