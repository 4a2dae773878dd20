"""Published networks over sounds: their states are those of `transformers`, alone and beside longer sounds."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from models.base import Supervised
from models.parts.published import Published, Unusable
from models.parts.speech import Transcriber, steps
from models.parts.training import Transfer
from models.pretrained_sound import PretrainedSound, PublishedSound, Sampled
from tests.models import toys
from tests.published import passing_folder
from tests.published_sounds import CHARACTERS, KINDS, sound_checkpoint

FRAMES = torch.tensor([40, 9, 23])
every_kind = pytest.mark.parametrize("kind", KINDS)


@cache
def published(kind: str) -> Published:
    folder = passing_folder()
    sound_checkpoint(folder, kind)
    return Published(folder)


@cache
def known(kind: str) -> PretrainedSound:
    return PretrainedSound().grounded(published(kind))


def learner(architecture: PretrainedSound) -> Supervised:
    listener = architecture.over_waves()
    return Supervised(listener, nn.Linear(listener.width, 2), nn.CrossEntropyLoss())


@cache
def begun(kind: str) -> PublishedSound:
    """A network of other weights, which then takes over those of the checkpoint."""
    torch.manual_seed(3)
    fresh = learner(known(kind))
    known(kind).begin(fresh, published(kind))
    assert isinstance(fresh.backbone, PublishedSound)
    return fresh.backbone.eval()


@cache
def theirs(kind: str) -> tuple[Any, Any]:
    """The network and what prepares sounds for it, as `transformers` has them."""
    from transformers import AutoModel, Wav2Vec2FeatureExtractor
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    folder = published(kind).folder
    shows = Wav2Vec2FeatureExtractor.from_pretrained(folder)
    return AutoModel.from_pretrained(folder).eval(), shows


@cache
def sounds() -> Tensor:
    """Noise of three lengths, silent behind its end."""
    random = torch.Generator().manual_seed(0)
    found = 0.1 * torch.randn(3, 40, 160, generator=random) + 0.02
    found[torch.arange(40) >= FRAMES[:, None]] = 0
    return found


@every_kind
@torch.no_grad()
def test_states_of_sounds_of_any_length_are_those_of_the_published_network(kind: str) -> None:
    network, shows = theirs(kind)
    listener = begun(kind)
    states, counts = listener.states(sounds(), FRAMES), listener.steps(FRAMES)
    for row, frames in enumerate(FRAMES.tolist()):
        wave = sounds()[row, :frames].flatten().numpy()
        given = shows(wave, sampling_rate=16_000, return_tensors="pt")
        expected = network(given.input_values).last_hidden_state[0]
        assert len(expected) == counts[row]
        torch.testing.assert_close(states[row, : counts[row]], expected, rtol=1e-4, atol=1e-4)


@every_kind
def test_its_blocks_hold_every_weight_once(kind: str) -> None:
    listener = begun(kind)
    held = [weight for block in listener.blocks() for weight in block.parameters()]
    assert {id(w) for w in held} == {id(w) for w in listener.parameters()}
    assert len(held) == len({id(w) for w in held})
    assert len(listener.blocks()) == 5


@torch.no_grad()
def test_sounds_that_are_too_short_for_a_state_have_one() -> None:
    frames = torch.arange(1, 60)
    counts = begun("wav2vec2").steps(frames)
    assert (counts >= steps(frames)).all()
    assert counts[0] == 1
    states = begun("wav2vec2").states(sounds()[:, :1], torch.ones(3, dtype=torch.long))
    assert states.shape == (3, 1, 32)
    beside = begun("wav2vec2").states(sounds()[:2], torch.tensor([40, 1]))
    quiet = sounds()[1:2].clone()
    quiet[:, 1:] = 0
    alone = begun("wav2vec2").states(quiet[:, :1], torch.tensor([1]))
    beside = begun("wav2vec2").states(torch.cat([sounds()[:1], quiet]), torch.tensor([40, 1]))
    torch.testing.assert_close(beside[1, :1], alone[0], rtol=1e-4, atol=1e-5)


def transcriber(alphabet: str) -> Transcriber:
    torch.manual_seed(5)
    found = Transcriber(known("wav2vec2").over_waves(), alphabet, nn.Identity())
    return found.eval()


@torch.no_grad()
def test_characters_that_the_published_network_writes_have_its_scores() -> None:
    from transformers import AutoModelForCTC

    fresh, again = transcriber(" aboxé"), transcriber(" aboxé")
    known("wav2vec2").begin(fresh, published("wav2vec2"))
    network = AutoModelForCTC.from_pretrained(published("wav2vec2").folder).eval()
    wave = theirs("wav2vec2")[1](sounds()[0].flatten().numpy(), sampling_rate=16_000)
    expected = network(torch.from_numpy(wave.input_values[0])[None]).logits
    scores = fresh.head(fresh.backbone.states(sounds()[:1], FRAMES[:1]))
    ids = [CHARACTERS.index(name) for name in ("<pad>", "|", "A", "b", "O")]
    torch.testing.assert_close(scores[..., :5], expected[..., ids], rtol=1e-4, atol=1e-4)
    for unknown in (5, 6):
        assert torch.equal(fresh.head.weight[unknown], again.head.weight[unknown])  # type: ignore[index]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", {"architectures": ["Wav2Vec2ForPreTraining"]}),
        ("vocab.json", {"eng": {"a": 1}}),
    ],
)
def test_a_network_that_writes_no_characters_begins_with_fresh_scores(
    name: str, content: dict[str, Any], tmp_path: Path
) -> None:
    sound_checkpoint(tmp_path)
    said = json.loads((tmp_path / name).read_text()) if name == "config.json" else {}
    (tmp_path / name).write_text(json.dumps({**said, **content}))
    fresh, again = transcriber("ab"), transcriber("ab")
    known("wav2vec2").begin(fresh, Published(tmp_path))
    assert torch.equal(fresh.head.weight, again.head.weight)  # type: ignore[arg-type]
    assert not torch.equal(
        fresh.backbone.state_dict()["projection.projection.weight"],
        again.backbone.state_dict()["projection.projection.weight"],
    )


def trained(architecture: PretrainedSound, transfer: Transfer | None) -> dict[str, bool]:
    """Which parts of a network change when it learns."""
    fresh, data = learner(architecture), toys.examples(architecture, count=8)
    before = {name: weight.clone() for name, weight in fresh.backbone.state_dict().items()}
    toys.train(fresh, toys.plan(architecture), data, 2, transfer)
    after = fresh.backbone.state_dict()
    parts = {name.partition(".")[0] for name in before}
    return {
        part: any(not torch.equal(before[n], after[n]) for n in before if n.startswith(part))
        for part in parts
    }


def test_what_reads_samples_stays_as_it_was_published_unless_asked_otherwise() -> None:
    architecture = known("wav2vec2")
    assert trained(architecture, Transfer()) == {
        "features": False,
        "projection": True,
        "encoder": True,
        "mask": True,
    }
    thawed = architecture.model_copy(update={"freeze_features": False})
    assert trained(thawed, Transfer())["features"]
    assert trained(architecture, None)["features"], "random weights are worth nothing as they are"


def test_stretches_are_hidden_in_training_alone_and_as_often_as_asked() -> None:
    architecture = known("wav2vec2").model_copy(update={"hidden": 0.3})
    listener = architecture.over_waves()
    assert isinstance(listener, PublishedSound)
    states = torch.zeros(50, 400, 32)
    assert torch.equal(listener.eval()._hidden(states), states)
    with torch.no_grad():
        hidden = (listener.train()._hidden(states) != 0).any(2)
    assert 0.2 < hidden.float().mean() < 0.3
    stretches = [len(run) for row in hidden.tolist() for run in "".join(".#"[x] for x in row).split(".")]  # fmt: skip
    assert sum(length >= 10 for length in stretches) > 0.9 * sum(length > 0 for length in stretches)
    nothing = architecture.model_copy(update={"hidden": 0.0}).over_waves()
    assert isinstance(nothing, PublishedSound)
    assert torch.equal(nothing.train()._hidden(states), states)


def test_a_checkpoint_says_how_it_was_shown_sounds(tmp_path: Path) -> None:
    assert known("wav2vec2").sampled == Sampled(rate=16_000, normalised=True)
    assert known("hubert").sampled == Sampled(rate=16_000, normalised=False)
    sound_checkpoint(tmp_path)
    (tmp_path / "preprocessor_config.json").unlink()
    assert PretrainedSound().grounded(Published(tmp_path)).sampled == Sampled()


@pytest.mark.parametrize(
    ("config", "shown", "why"),
    [
        ({"add_adapter": True}, {}, "has an adapter"),
        ({"conv_stride": [5, 2, 2, 2, 2, 2, 4]}, {}, "too far apart"),
        ({}, {"sampling_rate": 44_100}, "44100 samples per second"),
        ({"model_type": "whisper"}, {}, "of kind whisper"),
        ({"model_type": "hubert", "conv_pos_batch_norm": True}, {}, "statistics of batches"),
    ],
)
def test_what_is_no_such_network_is_refused(
    config: dict[str, Any], shown: dict[str, Any], why: str, tmp_path: Path
) -> None:
    sound_checkpoint(tmp_path)
    for name, more in (("config.json", config), ("preprocessor_config.json", shown)):
        said = json.loads((tmp_path / name).read_text())
        (tmp_path / name).write_text(json.dumps({**said, **more}))
    with pytest.raises(Unusable, match=why):
        PretrainedSound().grounded(Published(tmp_path))


def test_a_checkpoint_that_lacks_weights_is_of_no_use(tmp_path: Path) -> None:
    sound_checkpoint(tmp_path)
    file = tmp_path / "model.safetensors"
    whole = load_file(file)
    name = next(name for name in whole if name.endswith("q_proj.weight"))
    save_file({k: v for k, v in whole.items() if k != name}, file, {"format": "pt"})
    with pytest.raises(Unusable, match="no weights for 1 parts"):
        known("wav2vec2").begin(learner(known("wav2vec2")), Published(tmp_path))
