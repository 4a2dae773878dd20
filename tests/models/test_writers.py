"""What holds of every learner that writes sequences, and of how sequences are written."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from models.base import SENTENCE_END, Architecture, State
from models.parts.decoding import decode
from models.parts.writing import SequenceToSequence, Writer
from tests.models import toys
from tests.published import smallest

writers = pytest.mark.parametrize("name", ["lstm-seq2seq", "pretrained", "transformer-seq2seq"])


def test_every_writer_is_tested_here() -> None:
    assert {a.option_name() for a in SequenceToSequence.options()} == set(writers.args[1])


def architecture(name: str) -> Architecture:
    found = smallest(next(a for a in SequenceToSequence.options() if a.option_name() == name))
    # A network so small that begins with random weights takes long to learn with what is usual.
    return found.model_copy(update={"dropout": 0.0}) if name == "pretrained" else found


def writer(name: str, steps: int = 0) -> Writer:
    learner = toys.build(architecture(name))
    assert isinstance(learner, Writer)
    toys.train(learner, toys.plan(architecture(name)), toys.examples(architecture(name)), steps)
    return learner


def choices(count: int, **changed: float) -> Tensor:
    names = ("beams", "most", "length_penalty", "ngram", "temperature", "top_k", "top_p", "seed")
    chosen = dict(zip(names, toys.GREEDILY, strict=True)) | changed
    return torch.tensor([chosen[name] for name in names], dtype=torch.float64).repeat(count, 1)


@writers
def test_it_learns_a_rule_and_answers_with_its_end(name: str) -> None:
    learner, data = writer(name, 200), toys.examples(architecture(name))
    written = toys.outputs(learner, data.inputs)[:, 1:]
    targets = F.pad(data.targets[0], (0, 2)).masked_fill(
        F.pad(data.targets[0], (0, 2)) == SENTENCE_END, 0
    )
    assert (written == targets).all(1).float().mean() > 0.9


@writers
def test_tokens_one_by_one_have_the_states_of_all_at_once(name: str) -> None:
    learner, data = writer(name, 2), toys.examples(architecture(name), count=5)
    backbone = learner.eval().backbone
    tokens, lengths, _ = data.inputs
    written = torch.randint(3, toys.VOCABULARY, (5, 7), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        states, attention = backbone(tokens, lengths, written)
        memory = backbone.read(tokens, lengths)
        state = backbone.begin(memory)
        for place in range(7):
            one, looked, state = backbone.step(written[:, place], memory, state)
            torch.testing.assert_close(one, states[:, place], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(looked, attention[:, place], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(attention.sum(-1), torch.ones(5, 7))
    assert (attention * (tokens == 0)[:, None]).abs().max() == 0


@writers
def test_what_is_learned_is_the_probability_of_what_is_written(name: str) -> None:
    learner, data = writer(name, 2), toys.examples(architecture(name), count=4)
    learner.eval()
    learner.label_smoothing = 0.0
    tokens, lengths, _ = data.inputs
    targets, target_lengths = data.targets
    with torch.inference_mode():
        states, attention = learner.backbone(tokens, lengths, F.pad(targets[:, :-1], (1, 0)))
        total = 0.0
        for row in range(4):
            for place in range(int(target_lengths[row])):
                logs = learner.head(
                    states[row, place][None],
                    attention[row, place][None],
                    tokens[row][None],
                    learner.backbone,
                )
                total -= float(logs[0, targets[row, place]])
        expected = total / int(target_lengths.sum())
        assert float(learner.loss(data)) == pytest.approx(expected, rel=1e-4)
        assert learner.weight(data) == target_lengths.sum()


@writers
def test_rows_that_are_written_in_different_ways_share_a_batch(name: str) -> None:
    learner, data = writer(name, 30), toys.examples(architecture(name), count=6)
    ways = [
        choices(1),
        choices(1, beams=3),
        choices(1, temperature=1.5, seed=3),
        choices(1, temperature=1.5, seed=4, top_k=2),
        choices(1, beams=3, most=2),
        choices(1, ngram=1),
    ]
    tokens, lengths, _ = data.inputs
    together = toys.outputs(learner, [tokens, lengths, torch.cat(ways)])
    for row, way in enumerate(ways):
        alone = toys.outputs(learner, [tokens[row : row + 1], lengths[row : row + 1], way])[0]
        assert torch.equal(alone[1:], together[row, 1 : len(alone)])
        assert not together[row, len(alone) :].any()
        torch.testing.assert_close(alone[0], together[row, 0], rtol=1e-4, atol=1e-5)


def written(table: Tensor, **changed: float) -> tuple[list[int], float]:
    def step(tokens: Tensor, memory: State, state: State) -> tuple[Tensor, State]:
        return table[tokens].clone(), state

    nothing = (torch.zeros(1, 1),)
    found = decode(step, nothing, nothing, choices(1, **changed))[0]
    return [int(token) for token in found[1:] if token], float(found[0])


# By the last token, 0 being the beginning: 3 looks better at first, but 4 leads to a sure end.
TABLE = torch.tensor(
    [
        [0.0, 0.0, 0.0, 0.6, 0.4],
        [0.2] * 5,
        [0.2] * 5,
        [0.0, 0.0, 0.3, 0.4, 0.3],
        [0.0, 0.0, 1.0, 0.0, 0.0],
    ]
).log()


def test_beams_find_what_is_better_in_the_end() -> None:
    assert written(TABLE, beams=1, most=1)[0] == [3]
    tokens, score = written(TABLE, beams=2)
    assert tokens == [4]
    assert score == pytest.approx(0.4**0.5)


def test_an_ngram_is_not_written_twice() -> None:
    assert written(TABLE, most=4)[0] == [3, 3, 3, 3]
    assert written(TABLE, most=4, ngram=2)[0] == [3, 3]
    assert written(TABLE, most=4, ngram=1)[0] in ([3], [3, 4])


def test_what_is_written_is_as_long_as_was_asked_for_at_most() -> None:
    for most in (1, 2, 7):
        for beams in (1, 3):
            assert len(written(TABLE, most=most, beams=beams)[0]) <= most


def test_draws_are_a_function_of_their_seed() -> None:
    drawn = [tuple(written(TABLE, temperature=1, seed=seed)[0]) for seed in range(40)]
    again = [tuple(written(TABLE, temperature=1, seed=seed)[0]) for seed in range(40)]
    assert drawn == again
    assert len(set(drawn)) > 3
    first = sum(tokens[0] == 3 for tokens in drawn) / 40
    assert 0.35 < first < 0.85


def test_few_tokens_to_draw_from_are_the_likeliest() -> None:
    for bound in ({"top_k": 1}, {"top_p": 0.1}):
        for seed in range(5):
            assert written(TABLE, temperature=1, seed=seed, most=3, **bound)[0] == [3, 3, 3]
