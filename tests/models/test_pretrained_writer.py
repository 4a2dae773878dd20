"""Published networks that read and write: they say what those of `transformers` say, whatever kind they are of."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from models.base import PADDING, SENTENCE_END, UNKNOWN, Batch
from models.parts.published import Published, Unusable
from models.parts.published_pieces import rebuilt
from models.parts.published_texts import SHIFT, plain_tokenizer
from models.parts.writing import Writer
from models.pretrained_writer import PretrainedWriter, PublishedWriter
from tasks.parts.vocabulary import Vocabulary
from tests.models import toys
from tests.published import passing_folder
from tests.published_writers import KINDS, writer_checkpoint

SOURCES = ["What a wonderful film, 7 times!", "Ann", "The cat never sleeps."]
TARGETS = ["the dog eats and the child sings", "Paris", "a train on Monday. Oslo"]
LANGUAGES = {"source_language": "en_XX", "target_language": "ko_KR"}
TOLD = ("mbart", "nllb")
every_kind = pytest.mark.parametrize("kind", KINDS)


@cache
def published(kind: str) -> Published:
    folder = passing_folder()
    writer_checkpoint(folder, kind)
    return Published(folder)


@cache
def known(kind: str) -> PretrainedWriter:
    asked = PretrainedWriter(**LANGUAGES) if kind in TOLD else PretrainedWriter()
    return asked.grounded(published(kind))


@cache
def begun(kind: str, copying: bool = False) -> Writer:
    """A learner of other weights, which then takes over those of the checkpoint."""
    torch.manual_seed(3)
    learner = Writer(known(kind).build(9), copying=copying, label_smoothing=0.0)
    known(kind).begin(learner, published(kind))
    return learner.eval()


@cache
def vocabulary(kind: str, *, writes: bool = False) -> Vocabulary:
    tokenizer, unknown = plain_tokenizer(published(kind), writes=writes)
    return Vocabulary(tokenizer=tokenizer, max_length=50, shift=SHIFT, unknown=unknown)


@cache
def theirs(kind: str) -> tuple[Any, Any]:
    """The network and the tokenizer as `transformers` has them."""
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    told = {"src_lang": "en_XX", "tgt_lang": "ko_KR"} if kind in TOLD else {}
    folder = published(kind).folder
    network = AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    made = rebuilt(published(kind))
    return network, made or AutoTokenizer.from_pretrained(folder, **told)


def padded(rows: list[list[int]], more: int = 2) -> tuple[Tensor, Tensor]:
    lengths = torch.tensor([len(row) for row in rows])
    tokens = torch.zeros(len(rows), int(lengths.max()) + more, dtype=torch.long)
    for place, row in enumerate(rows):
        tokens[place, : len(row)] = torch.tensor(row)
    return tokens, lengths


def batch(kind: str) -> Batch:
    """All pairs, with padding behind them."""
    sources = padded(list(vocabulary(kind).whole(SOURCES)))
    written = vocabulary(kind, writes=True).whole(TARGETS)
    targets = padded([[*ids, SENTENCE_END] for ids in written])
    return Batch(sources, targets)


@every_kind
@torch.no_grad()
def test_what_is_likely_to_be_written_is_what_the_published_network_says(kind: str) -> None:
    learner, (network, tokenizer), data = begun(kind), theirs(kind), batch(kind)
    writes = known(kind).writes
    assert writes is not None
    never = [id for id in {writes.padding} if id != writes.end]
    written = F.pad(data.targets[0][:, :-1], (1, 0))
    states, _ = learner.backbone(*data.inputs, written)
    for row, (source, target) in enumerate(zip(SOURCES, TARGETS, strict=True)):
        given = tokenizer(source, text_target=target, return_tensors="pt")
        labels = given.pop("labels")
        if kind == "marian":
            labels = rebuilt(published(kind), writes=True)(target, return_tensors="pt").input_ids  # type: ignore[misc]
        logits = network(**given, labels=labels).logits[0].clone()
        logits[:, never] = -torch.inf
        count = int(data.targets[1][row])
        expected = logits.log_softmax(-1)[-count:].gather(1, labels[0, -count:, None])
        logs = learner.head.logits(states[row, :count], learner.backbone).log_softmax(-1)
        places = learner.backbone.places(data.targets[0][row, :count, None])
        found = logs.gather(1, places)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@every_kind
@torch.no_grad()
def test_the_likeliest_token_each_time_is_what_the_published_network_generates(kind: str) -> None:
    learner, (network, tokenizer), data = begun(kind), theirs(kind), batch(kind)
    writes = known(kind).writes
    assert writes is not None
    how = torch.tensor(toys.GREEDILY, dtype=torch.float64).repeat(len(SOURCES), 1)
    how[:, 1] = 12
    written = learner.predict(*data.inputs, how)[:, 1:].long()
    forced = writes.begins[1] if len(writes.begins) > 1 else None
    for row, source in enumerate(SOURCES):
        found = network.generate(
            **tokenizer(source, return_tensors="pt"),
            num_beams=1,
            do_sample=False,
            min_new_tokens=12,
            max_new_tokens=12 + (forced is not None),
            forced_bos_token_id=forced,
            forced_eos_token_id=None,
            suppress_tokens=[writes.padding, writes.unknown],
        )[0]
        expected = [id + SHIFT for id in found[len(writes.begins) :].tolist()]
        ours = [id for id in written[row].tolist() if id]
        assert ours == expected[: len(ours)]
        assert ours


@every_kind
def test_its_blocks_hold_every_weight_once_and_each_has_one_name(kind: str) -> None:
    backbone = begun(kind).backbone
    held = [weight for block in backbone.blocks() for weight in block.parameters()]
    assert {id(w) for w in held} == {id(w) for w in backbone.parameters()}
    assert len(held) == len({id(w) for w in held})
    assert len(backbone.blocks()) >= 4
    places = [tensor.data_ptr() for tensor in backbone.state_dict().values()]
    assert len(places) == len(set(places))


@torch.no_grad()
def test_where_tokens_are_copied_the_published_network_still_decides_what_is_written() -> None:
    data = batch("bart")
    written = F.pad(data.targets[0][:, :-1], (1, 0))
    states, attention = begun("bart", copying=True).backbone(*data.inputs, written)
    alone, nothing = begun("bart").backbone(*data.inputs, written)
    torch.testing.assert_close(states, alone, rtol=1e-4, atol=1e-4)
    assert nothing.shape == (*states.shape[:2], 0)
    assert attention.shape == (*states.shape[:2], data.inputs[0].shape[1])
    torch.testing.assert_close(attention.sum(-1), torch.ones(states.shape[:2]))
    assert not attention[1, :, data.inputs[1][1] :].any()
    copying, writing = (float(begun("bart", copying=c).loss(data)) for c in (True, False))
    assert copying == pytest.approx(writing, abs=0.1)


def test_marks_and_places_are_those_of_the_checkpoint() -> None:
    found = {kind: known(kind).writes for kind in KINDS}
    assert all(found.values())
    marks = {kind: (w.before, w.behind, w.begins, w.end) for kind, w in found.items() if w}
    assert marks["t5"] == ([], [1], [0], 1)
    assert marks["bart"] == ([0], [2], [2, 0], 2)
    tokenizer = theirs("mbart")[1]
    codes = [tokenizer.convert_tokens_to_ids(code) for code in LANGUAGES.values()]
    assert marks["mbart"] == ([codes[0]], [2], [2, codes[1]], 2)
    assert (known("t5").most, known("t5").most_written) == (None, None)
    assert (known("bart").most, known("bart").most_written) == (62, 63)
    how = torch.tensor([[1, 900, 1, 0, 0, 0, 1, 0]], dtype=torch.float64)
    written = begun("bart").predict(torch.full((1, 62), 9), torch.tensor([62]), how)
    assert written.shape[1] <= 1 + 63


def test_a_prefix_stands_before_every_source() -> None:
    asked = PretrainedWriter(prefix="The cat: ").grounded(published("t5"))
    assert asked.writes is not None
    (ids,) = vocabulary("t5").whole(["The cat:"])
    assert asked.writes.before == [id - SHIFT for id in ids]
    told = PublishedWriter(theirs("t5")[0], asked).eval()
    rows = list(vocabulary("t5").whole(["The cat: sings", "sings"]))
    tokens, lengths = padded(rows)
    with torch.no_grad():
        whole = begun("t5").backbone.read(tokens[:1], lengths[:1])[2]
        prefixed = told.read(tokens[1:, : lengths[1]], lengths[1:])[2]
    torch.testing.assert_close(whole[:, : prefixed.shape[1]], prefixed, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "asked", "why"),
    [
        ("mbart", {}, "told both languages"),
        ("mbart", {"source_language": "en_XX", "target_language": "xx"}, "no language xx"),
        ("t5", LANGUAGES, "told no languages"),
    ],
)
def test_languages_are_told_to_checkpoints_that_know_them(
    kind: str, asked: dict[str, Any], why: str
) -> None:
    with pytest.raises(Unusable, match=why):
        PretrainedWriter(**asked).grounded(published(kind))


def test_what_is_unknown_is_read_as_such_and_never_written() -> None:
    learner, writes = begun("t5"), known("t5").writes
    assert writes is not None
    scores = learner.backbone.scores(torch.randn(2, 64), learner.head.bias)
    likely = learner.backbone.by_tokens(scores.softmax(-1))
    for ours in (PADDING, SHIFT + writes.padding, SHIFT + writes.unknown, SHIFT + writes.end):
        assert not likely[:, ours].any()
    assert likely[:, [UNKNOWN, SENTENCE_END]].all()


@pytest.mark.parametrize("lost", ["decoder.block.0.layer.1.EncDecAttention.k.weight"])
def test_a_checkpoint_that_lacks_weights_is_of_no_use(lost: str, tmp_path: Path) -> None:
    writer_checkpoint(tmp_path, "t5")
    file = tmp_path / "model.safetensors"
    save_file({k: v for k, v in load_file(file).items() if k != lost}, file, {"format": "pt"})
    learner = Writer(known("t5").build(9), copying=False, label_smoothing=0.1)
    with pytest.raises(Unusable, match="no weights for 1 parts"):
        known("t5").begin(learner, Published(tmp_path))


def test_a_checkpoint_that_scores_tokens_otherwise_than_it_says_is_of_no_use(
    tmp_path: Path,
) -> None:
    writer_checkpoint(tmp_path, "flan-t5")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    asked = PretrainedWriter().grounded(Published(tmp_path))
    learner = Writer(asked.build(9), copying=False, label_smoothing=0.1)
    with pytest.raises(Unusable, match="scores tokens by other weights"):
        asked.begin(learner, Published(tmp_path))
