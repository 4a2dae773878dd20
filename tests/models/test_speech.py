"""The parts of networks that hear: spectra, subsampling, and what CTC finds and where."""

from itertools import groupby, product

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from models.gru import GRU
from models.parts.ctc import Grammar, Search, align, beam_search, ctc_loss, greedy
from models.parts.speech import (
    LogMel,
    SpeechBackbone,
    filterbank,
    hertz,
    mel,
    normalised,
    steps,
    waves,
)
from models.transformer import Transformer


def draw_logs(rows: int, frames: int, size: int, seed: int = 0) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(rows, frames, size, generator=random)).log_softmax(-1)


def collapsed(path: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(token for token, _ in groupby(path) if token)


def chances(logs: Tensor) -> dict[tuple[int, ...], float]:
    """The log-probability of every text, by walking all paths."""
    found: dict[tuple[int, ...], float] = {}
    for path in product(range(logs.shape[1]), repeat=len(logs)):
        value = sum(float(logs[frame, token]) for frame, token in enumerate(path))
        text = collapsed(path)
        found[text] = float(np.logaddexp(found.get(text, -np.inf), value))
    return found


def search(rows: int, beams: int, weight: float = 0.0, bonus: float = 0.0) -> Search:
    return Search(*(torch.full((rows,), float(value)) for value in (beams, weight, bonus)))


def texts(tokens: Tensor) -> list[tuple[int, ...]]:
    return [tuple(token for token in row if token) for row in tokens.tolist()]


def test_wide_beams_find_the_likeliest_text_of_all_paths() -> None:
    logs = draw_logs(12, 5, 3)
    found = texts(beam_search(logs, torch.full((12,), 5), search(12, 32)))
    for row, text in zip(logs, found, strict=True):
        every = chances(row)
        assert every[text] == pytest.approx(max(every.values()), abs=1e-4)


def test_the_likeliest_text_may_be_on_no_likely_path() -> None:
    logs = torch.tensor([[[0.6, 0.4], [0.6, 0.4]]]).log()
    assert texts(greedy(logs, torch.tensor([2]))) == [()]
    assert texts(beam_search(logs, torch.tensor([2]), search(1, 4))) == [(1,)]


def test_a_grammar_and_a_bonus_count_as_much_as_asked() -> None:
    random = torch.Generator().manual_seed(3)
    grammar = Grammar(
        torch.randint(4, (4, 3), generator=random),
        torch.randn(4, 3, generator=random).log_softmax(-1),
    )
    logs = draw_logs(10, 4, 3, seed=5)
    found = texts(beam_search(logs, torch.full((10,), 4), search(10, 32, 1.5, 0.4), grammar))

    def value(text: tuple[int, ...], heard: float) -> float:
        context, total = 0, heard
        for token in text:
            total += 1.5 * float(grammar.logs[context, token]) + 0.4
            context = int(grammar.after[context, token])
        return total + 1.5 * float(grammar.logs[context, 0])

    for row, text in zip(logs, found, strict=True):
        values = {other: value(other, heard) for other, heard in chances(row).items()}
        assert values[text] == pytest.approx(max(values.values()), abs=1e-4)


@pytest.mark.parametrize("grammar", [None, Grammar(torch.zeros(1, 5).long(), torch.zeros(1, 5))])
def test_a_sound_is_searched_as_if_it_were_alone(grammar: Grammar | None) -> None:
    logs, lengths = draw_logs(6, 9, 5), torch.tensor([9, 3, 7, 1, 5, 9])
    beams = torch.tensor([2.0, 8, 4, 8, 1, 16])
    how = Search(beams, torch.full((6,), 0.5), torch.full((6,), 0.1))
    together = texts(beam_search(logs, lengths, how, grammar))
    for row in range(6):
        alone = Search(*(part[row : row + 1] for part in how))
        cut = logs[row : row + 1, : lengths[row]]
        assert texts(beam_search(cut, lengths[row : row + 1], alone, grammar)) == [together[row]]


def test_greedy_merges_repeats_and_stops_at_the_end() -> None:
    path = torch.tensor([[1, 1, 0, 1, 2, 2], [2, 0, 0, 1, 1, 1]])
    logs = F.one_hot(path, 3).float().log_softmax(-1)
    assert texts(greedy(logs, torch.tensor([6, 3]))) == [(1, 1, 2), (2,)]


def test_tokens_are_placed_where_their_path_says_them() -> None:
    path = torch.tensor([[0, 1, 1, 0, 1, 2, 2, 0]])
    logs = (8.0 * F.one_hot(path, 3)).log_softmax(-1)
    placed = align(logs, torch.tensor([8]), torch.tensor([[1, 1, 2, 0]]))
    assert placed.start[0, :3].tolist() == [1, 4, 5]
    assert placed.end[0, :3].tolist() == [3, 5, 7]
    assert placed.score[0, :3].min() > 0.99


def test_an_alignment_is_the_best_of_all_paths_of_its_text() -> None:
    logs = draw_logs(1, 6, 3, seed=2)
    text = (1, 2, 1)
    placed = align(logs, torch.tensor([6]), torch.tensor([text]))
    best = max(
        (path for path in product(range(3), repeat=6) if collapsed(path) == text),
        key=lambda path: sum(float(logs[0, frame, token]) for frame, token in enumerate(path)),
    )
    runs, start = [], 0
    for token, run in groupby(best):
        length = len(list(run))
        if token:
            runs.append((start, start + length))
        start += length
    assert list(zip(placed.start[0].tolist(), placed.end[0].tolist(), strict=True)) == runs


def test_a_token_that_is_hardly_heard_is_placed_nevertheless() -> None:
    logs = torch.tensor([[[0.1, 0.8, 0.1], [0.98, 0.01, 0.01], [0.98, 0.01, 0.01]]]).log()
    placed = align(logs, torch.tensor([3]), torch.tensor([[1, 2]]))
    assert (placed.start[0] < placed.end[0]).all()
    assert placed.score[0, 1] == pytest.approx(0.01)


def test_the_loss_is_the_negative_logarithm_of_all_paths_per_token() -> None:
    logs = draw_logs(1, 5, 3)
    loss = ctc_loss(logs, torch.tensor([5]), torch.tensor([[1, 2]]), torch.tensor([2]))
    assert float(loss) == pytest.approx(-chances(logs[0])[(1, 2)] / 2, abs=1e-4)


def test_a_text_that_does_not_fit_its_sound_teaches_nothing() -> None:
    logs = draw_logs(1, 2, 3).requires_grad_()
    loss = ctc_loss(logs, torch.tensor([2]), torch.tensor([[1, 1]]), torch.tensor([2])).sum()
    loss.backward()
    assert loss.item() == 0
    assert logs.grad is not None
    assert not logs.grad.any()


# Spectra


def tone(pitch: float, rate: int = 8_000, seconds: float = 0.5) -> Tensor:
    wave = np.sin(2 * np.pi * pitch * np.arange(int(rate * seconds)) / rate)
    return torch.from_numpy((20_000 * wave).astype(np.int16)).view(1, -1, rate // 100)


def test_hertz_undoes_mel() -> None:
    pitches = torch.tensor([0.0, 440, 1_000, 7_999], dtype=torch.float64)
    assert torch.allclose(hertz(mel(pitches)), pitches)
    assert float(mel(torch.tensor(1_000.0))) == pytest.approx(1_000, abs=0.1)


@pytest.mark.parametrize(("bands", "rate", "size"), [(40, 8_000, 256), (128, 16_000, 512)])
def test_every_band_hears_something(bands: int, rate: int, size: int) -> None:
    filters = filterbank(bands, rate, size)
    assert filters.shape == (size // 2 + 1, bands)
    assert torch.allclose(filters.sum(0), torch.ones(bands))
    assert (filters >= 0).all()


@pytest.mark.parametrize("pitch", [300, 1_000, 3_000])
def test_a_tone_is_loudest_in_the_band_of_its_pitch(pitch: int) -> None:
    spectrum = LogMel(8_000, 40)
    found = spectrum(waves(tone(pitch)), torch.tensor([50]))
    middle = hertz(
        torch.linspace(float(mel(torch.tensor(20.0))), float(mel(torch.tensor(4_000.0))), 42)
    )
    loudest = int(found[0, 25].argmax())
    assert middle[loudest] <= pitch <= middle[loudest + 2]


def test_spectra_are_the_same_however_loud_a_sound_is() -> None:
    spectrum, lengths = LogMel(8_000, 40), torch.tensor([50])
    wave = waves(tone(700)) + 0.01 * torch.randn(1, 50, 80)
    quiet, loud = (normalised(spectrum(s * wave, lengths), lengths) for s in (0.1, 1.0))
    assert torch.allclose(quiet, loud, atol=1e-3)


def test_normalised_bands_have_mean_zero_and_deviation_one() -> None:
    found = normalised(5 + 3 * torch.randn(2, 60, 4), torch.tensor([60, 40]))
    assert found[1, 40:].abs().max() == 0
    assert torch.allclose(found[1, :40].mean(0), torch.zeros(4), atol=1e-4)
    assert torch.allclose(found[1, :40].std(0, correction=0), torch.ones(4), atol=0.02)


@pytest.mark.parametrize("architecture", [GRU(width=8, embedding=8), Transformer(width=8, heads=2)])
def test_states_do_not_depend_on_longer_sounds_beside(architecture: GRU | Transformer) -> None:
    torch.manual_seed(0)
    backbone = SpeechBackbone(16, 4, 100, architecture).eval()
    lengths = torch.tensor([37, 9, 1])
    spectra = torch.randn(3, 37, 16)
    spectra *= (torch.arange(37) < lengths[:, None])[..., None]
    together = backbone.states(spectra, lengths)
    assert steps(lengths).tolist() == [10, 3, 1]
    for row, length in enumerate(lengths.tolist()):
        alone = backbone.states(spectra[row : row + 1, :length], lengths[row : row + 1])
        there = alone.shape[1]
        assert there == int(steps(lengths)[row])
        assert torch.allclose(alone[0], together[row, :there], atol=1e-5)
