"""Published networks over texts: their states are those of `transformers`, whatever kind they are of."""

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from models.base import SENTENCE_END, UNKNOWN, Supervised
from models.parts.language import LanguageModel
from models.parts.published import Published, Unusable
from models.parts.published_texts import plain_tokenizer
from models.pretrained_text import DECODERS, SHIFT, PretrainedText, PublishedStates
from tasks.parts.vocabulary import Vocabulary
from tests.published import passing_folder
from tests.published_texts import KINDS, text_checkpoint

TEXTS = [
    "What a wonderful film, 7 times!",
    "Ann",
    "내일 서울에 비가 온다.",
    "the cat  eats\nplates",
]
every_kind = pytest.mark.parametrize("kind", KINDS)


@cache
def published(kind: str) -> Published:
    folder = passing_folder()
    text_checkpoint(folder, kind)
    return Published(folder)


@cache
def known(kind: str) -> PretrainedText:
    return PretrainedText().grounded(published(kind))


@cache
def begun(kind: str, pooling: str = "auto") -> PublishedStates:
    """A network of other weights, which then takes over those of the checkpoint."""
    architecture = known(kind).model_copy(update={"pooling": pooling})
    backbone = architecture.build(9, 64)
    learner = Supervised(backbone, nn.Linear(backbone.width, 2), nn.CrossEntropyLoss())
    architecture.begin(learner, published(kind))
    assert isinstance(backbone, PublishedStates)
    return backbone.eval()


@cache
def vocabulary(kind: str) -> Vocabulary:
    tokenizer, unknown = plain_tokenizer(published(kind))
    return Vocabulary(tokenizer=tokenizer, max_length=64, shift=SHIFT, unknown=unknown)


@cache
def theirs(kind: str) -> tuple[Any, Any]:
    """The network and the tokenizer as `transformers` has them."""
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    folder = published(kind).folder
    return AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


def batch(kind: str, texts: list[str], more: int = 3) -> tuple[Tensor, Tensor]:
    """Tokens and lengths of texts, with padding behind all of them."""
    ids = list(vocabulary(kind).ids(texts))
    lengths = torch.tensor([len(row) for row in ids])
    tokens = torch.zeros(len(ids), int(lengths.max()) + more, dtype=torch.long)
    for row, found in enumerate(ids):
        tokens[row, : len(found)] = torch.tensor(found)
    return tokens, lengths


@every_kind
@torch.no_grad()
def test_states_of_tokens_are_those_of_the_published_network_and_tokenizer(kind: str) -> None:
    tokens, lengths = batch(kind, TEXTS)
    network, tokenizer = theirs(kind)
    states, before = begun(kind).states(tokens, lengths), len(known(kind).reads.before)  # type: ignore[union-attr]
    for row, text in enumerate(TEXTS):
        expected = network(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        expected = expected[before : before + lengths[row]]
        torch.testing.assert_close(states[row, : lengths[row]], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["bert", "roberta", "deberta-v2", "llama"])
@torch.no_grad()
def test_a_pair_is_read_as_the_published_tokenizer_joins_it(kind: str) -> None:
    a, b = batch(kind, TEXTS), batch(kind, TEXTS[::-1])
    network, tokenizer = theirs(kind)
    vectors = begun(kind).joined(*a, *b)
    for row, pair in enumerate(zip(TEXTS, TEXTS[::-1], strict=True)):
        given = tokenizer(*pair, return_tensors="pt")
        states = network(**given).last_hidden_state[0]
        expected = states[-1] if kind == "llama" else states[0]
        torch.testing.assert_close(vectors[row], expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_of_pairs_that_are_too_long_the_longer_text_is_cut() -> None:
    backbone = begun("bert")  # 128 places, 3 of them for marks
    long, short = torch.randint(9, 90, (2, 120)), torch.randint(9, 90, (2, 10))
    cut = backbone.joined(long[:, :115], torch.tensor([115] * 2), short, torch.tensor([10] * 2))
    whole = backbone.joined(long, torch.tensor([120] * 2), short, torch.tensor([10] * 2))
    assert torch.equal(cut, whole)
    both = backbone.joined(long, torch.tensor([120] * 2), long, torch.tensor([120] * 2))
    assert both.isfinite().all()


@torch.no_grad()
def test_a_text_becomes_the_state_that_its_pooling_says() -> None:
    tokens, lengths = batch("bert", TEXTS[:1])
    network, tokenizer = theirs("bert")
    states = network(**tokenizer(TEXTS[0], return_tensors="pt")).last_hidden_state[0]
    for pooling, expected in (("first", states[0]), ("mean", states.mean(0)), ("last", states[-1])):
        found = begun("bert", pooling)(tokens, lengths)[0]
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_pooling_is_as_the_checkpoint_says_or_else_as_its_kind_was_trained(tmp_path: Path) -> None:
    assert known("bert").pooled(compares=False).pooling == "first"
    assert known("bert").pooled(compares=True).pooling == "mean"
    assert known("gpt2").pooled(compares=True).pooling == "last"
    text_checkpoint(tmp_path, "bert")
    (tmp_path / "1_Pooling").mkdir()
    file = tmp_path / "1_Pooling" / "config.json"
    file.write_text(json.dumps({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}))
    assert PretrainedText().grounded(Published(tmp_path)).pooled(compares=False).pooling == "mean"
    file.write_text(json.dumps({"pooling_mode_max_tokens": True}))
    with pytest.raises(Unusable, match="pooling_mode_max_tokens"):
        PretrainedText().grounded(Published(tmp_path))


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@torch.no_grad()
def test_a_language_model_finds_texts_as_likely_as_the_published_one(kind: str) -> None:
    from transformers import AutoModelForCausalLM

    words, architecture = vocabulary(kind), known(kind).one_way()
    learner = LanguageModel(architecture.build(words.size, 64), words.size)
    architecture.begin(learner, published(kind))
    (ids,) = words.whole(TEXTS[:1])
    tokens, count = torch.tensor([[SENTENCE_END, *ids, SENTENCE_END]]), len(ids)
    ours = learner.eval()(tokens, torch.tensor([count + 2])).log_softmax(-1)[0]
    reads = architecture.reads
    assert reads is not None
    network = AutoModelForCausalLM.from_pretrained(published(kind).folder).eval()
    given = torch.tensor([[reads.begin, *(id - SHIFT for id in ids), reads.end]])
    expected = network(given).logits.log_softmax(-1)[0]
    places = torch.arange(count + 1)
    torch.testing.assert_close(
        ours[places, tokens[0, 1:]], expected[places, given[0, 1:]], rtol=1e-5, atol=1e-4
    )


@every_kind
def test_its_blocks_are_embeddings_layers_and_the_rest_with_every_weight_once(kind: str) -> None:
    backbone = begun(kind)
    held = [weight for block in backbone.blocks() for weight in block.parameters()]
    assert {id(w) for w in held} == {id(w) for w in backbone.parameters()}
    assert len(held) == len({id(w) for w in held})
    assert len(backbone.blocks()) == 4
    first = {id(w) for w in backbone.blocks()[0].parameters()}
    assert id(backbone.network.get_input_embeddings().weight) in first


@pytest.mark.parametrize(("kind", "most"), [("bert", 126), ("roberta", 124), ("llama", 127)])
def test_texts_are_as_long_as_there_are_places_beside_the_marks(kind: str, most: int) -> None:
    assert known(kind).most == most
    tokens = torch.full((1, most), UNKNOWN)
    assert begun(kind)(tokens, torch.tensor([most])).isfinite().all()


@torch.no_grad()
def test_one_way_longer_texts_than_the_window_of_a_layer_are_not_asked_for() -> None:
    config = {"model_type": "mistral", "sliding_window": 8, "vocab_size": 30, "pad_token_id": 0}
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    small = {"num_key_value_heads": 1, "intermediate_size": 16, "max_position_embeddings": 64}
    reads = known("llama").reads
    architecture = PretrainedText(config={**config, **sizes, **small}, reads=reads).one_way()
    assert architecture.most == 7  # one more is the mark
    backbone = architecture.build(9, 8).eval()
    tokens = torch.randint(3, 20, (2, 8))
    whole = backbone.states(tokens, torch.tensor([8, 8]))
    _, memory = backbone.read_on(tokens[:, :7], torch.tensor([7, 1]))
    states, _ = backbone.read_on(tokens[:, 1:2], torch.tensor([1, 1]), memory)
    torch.testing.assert_close(states[1, 0], whole[1, 1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_what_is_dropped_can_be_chosen(kind: str) -> None:
    for share, expected in ((None, 0.1), (0.0, 0.0), (0.3, 0.3)):
        backbone = known(kind).model_copy(update={"dropout": share}).build(9, 8)
        dropped = {m.p for m in backbone.modules() if isinstance(m, nn.Dropout)}
        assert dropped == {expected}


def test_encoders_write_no_texts() -> None:
    with pytest.raises(Unusable, match="writes no texts; bloom"):
        known("bert").one_way()
    assert known("gpt2").config["model_type"] in DECODERS  # type: ignore[index]


def test_a_checkpoint_that_lacks_weights_is_of_no_use(tmp_path: Path) -> None:
    text_checkpoint(tmp_path, "bert")
    file = tmp_path / "model.safetensors"
    whole = load_file(file)
    name = next(name for name in whole if name.endswith("query.weight"))
    save_file({k: v for k, v in whole.items() if k != name}, file, {"format": "pt"})
    architecture = PretrainedText().grounded(Published(tmp_path))
    backbone = architecture.build(9, 8)
    learner = Supervised(backbone, nn.Linear(backbone.width, 2), nn.CrossEntropyLoss())
    with pytest.raises(Unusable, match="no weights for 1 parts"):
        architecture.begin(learner, Published(tmp_path))


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"model_type": "t5"}, "of kind t5"),
        ({"model_type": "bert", "is_decoder": True}, "decoder"),
        ({"model_type": "bert", "vocab_size": "many"}, "does not describe a network"),
    ],
)
def test_what_is_no_such_network_is_refused(
    config: dict[str, Any], why: str, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(Unusable, match=why):
        PretrainedText().grounded(Published(tmp_path))


@pytest.mark.parametrize("left", [None, "spiece.model", "tokenizer.json"])
def test_a_checkpoint_whose_tokenizer_is_missing_or_of_others_is_refused(
    left: str | None, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    kind = "albert" if left == "spiece.model" else "bert"
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind, "vocab_size": 50}))
    if left:
        (tmp_path / left).write_text("{}")
    with pytest.raises(Unusable, match="tokenizer"):
        PretrainedText().grounded(Published(tmp_path))
    assert capfd.readouterr().err == ""


LOADS = """
import torch
from torch import nn
from models.base import Supervised
from models.parts.published import from_hub
from models.pretrained_text import PretrainedText
asked = PretrainedText(checkpoint="org/tiny")
known = asked.grounded(from_hub(asked.checkpoint, None, weights=False))
found = from_hub(known.checkpoint, known.revision, weights=True)
backbone = known.build(9, 16)
known.begin(Supervised(backbone, nn.Linear(backbone.width, 2), nn.CrossEntropyLoss()), found)
print(known.revision, float(next(backbone.parameters()).detach().double().sum()))
"""


def test_a_checkpoint_is_found_by_name_in_the_cache_of_the_hub_and_nothing_is_said(
    tmp_path: Path,
) -> None:
    revision = "a" * 40
    checkpoint = tmp_path / "hub" / "models--org--tiny"
    snapshot = checkpoint / "snapshots" / revision
    for folder in (snapshot, checkpoint / "refs", checkpoint / "blobs"):
        folder.mkdir(parents=True)
    (checkpoint / "refs" / "main").write_text(revision)
    for number, file in enumerate(sorted(published("bert").folder.iterdir())):
        blob = checkpoint / "blobs" / str(number)
        blob.write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(blob)
    alone = {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(
        [sys.executable, "-c", LOADS],
        env=os.environ | alone,
        capture_output=True,
        text=True,
        check=True,
    )
    found, total = ran.stdout.split()
    assert found == revision
    expected = next(begun("bert").parameters()).detach().double().sum()
    assert float(total) == pytest.approx(float(expected))
    assert ran.stderr == ""
