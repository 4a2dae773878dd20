"""Writing a sequence token by token: beam search or sampling, with bounds, for many rows at once."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from models.base import PADDING, SENTENCE_END, State
from models.parts.sampling import draw, numbers

Step = Callable[[Tensor, State, State], tuple[Tensor, State]]
"""From the last tokens (R,), what never changes, and a state: log probabilities (R, V), and the next state."""


class Choice(NamedTuple):
    """How each row is written: the columns of a tensor (B, 8) of float64, in this order."""

    beams: Tensor
    """How many sequences are followed at once."""
    most: Tensor
    """Tokens at most."""
    length_penalty: Tensor
    """What power of the length a sum of log probabilities is divided by (Wu et al., 2016)."""
    ngram: Tensor
    """No n-gram of that length occurs twice (Paulus et al., 2018); 0: any may."""
    temperature: Tensor
    """Above 0 tokens are drawn at random, and there is one beam."""
    top_k: Tensor
    """Only so many tokens are drawn from (Fan et al., 2018); 0: all."""
    top_p: Tensor
    """Only the likeliest tokens are drawn from that together have that probability (Holtzman et al., 2020)."""
    seed: Tensor
    """What the draws are a function of."""

    def at(self, index: Tensor) -> "Choice":
        """The rows at `index`."""
        return Choice(*(column[index] for column in self))


def decode(step: Step, memory: State, state: State, how: Tensor) -> Tensor:
    """Scores and tokens (B, 1 + T), padded, of the sequences that are best as `how` (B, 8) says.

    Writing begins with padding and ends with `SENTENCE_END`, which is not given. A score is the mean
    probability of a token, geometrically. What is written in a row does not depend on the others.
    """
    choice = Choice(*how.unbind(1))
    beams = torch.where(choice.temperature > 0, 1, choice.beams).long()
    found = torch.zeros(len(how), 1 + int(choice.most.max()), device=how.device)
    for count in beams.unique().tolist():
        rows = (beams == count).nonzero().squeeze(1)
        written = _search(step, _at(memory, rows), _at(state, rows), choice.at(rows), count)
        found[rows, : written.shape[1]] = written
    return found


def _search(step: Step, memory: State, state: State, how: Choice, beams: int) -> Tensor:
    """`decode` for rows of equally many beams; rows whose best beam has ended leave the search."""
    rows = torch.arange(len(how.most), device=how.most.device)
    steps = int(how.most.max())
    found = torch.zeros(len(rows), 1 + steps, device=rows.device)
    draws = numbers(how.seed, steps) if (how.temperature > 0).any() else None
    wide = rows.repeat_interleave(beams)
    memory, state = _at(memory, wide), _at(state, wide)
    tokens = torch.full((len(rows), beams), PADDING, device=rows.device)
    history = tokens[..., None][..., :0]  # (R, beams, t)
    sums = torch.full((len(rows), beams), -torch.inf, device=rows.device)
    sums[:, 0] = 0
    lengths = torch.zeros_like(tokens)
    ended = torch.zeros_like(tokens, dtype=torch.bool)
    for place in range(steps):
        logs, state = step(tokens.flatten(), memory, state)
        logs = logs.float().view(len(rows), beams, -1)
        logs[..., :SENTENCE_END] = -torch.inf
        _forbid_repetition(logs, history, how.ngram)
        # What has ended goes on with padding, at no cost.
        logs = logs.masked_fill(ended[..., None], -torch.inf)
        logs[..., PADDING] = torch.where(ended, 0.0, -torch.inf)
        lengths = lengths + ~ended
        penalty = lengths.float() ** how.length_penalty.float()[:, None]
        total = sums[..., None] + logs
        best = (total / penalty[..., None]).flatten(1).topk(beams).indices
        if draws is not None:
            heat, share = how.temperature.float(), how.top_p.float()
            drawn = draw(logs[:, 0], draws[rows, place], heat, how.top_k, share)
            best = torch.where(how.temperature[:, None] > 0, drawn[:, None], best)
        origin, tokens = best // logs.shape[-1], best % logs.shape[-1]
        sums = total.flatten(1).gather(1, best)
        lengths, ended = lengths.gather(1, origin), ended.gather(1, origin)
        places = origin[..., None].expand(-1, -1, place)
        history = torch.cat([history.gather(1, places), tokens[..., None]], 2)
        ended = ended | (tokens == SENTENCE_END) | (place + 1 >= how.most[:, None])
        done = ended[:, 0]
        if done.any():
            written = history[done, 0].masked_fill(history[done, 0] == SENTENCE_END, PADDING)
            found[rows[done], 0] = (sums[done, 0] / lengths[done, 0]).exp()
            found[rows[done], 1 : place + 2] = written.to(found.dtype)
            if done.all():
                break
        kept = (~done).nonzero().squeeze(1)
        flat = (kept[:, None] * beams + origin[kept]).flatten()
        if beams > 1 or len(kept) < len(rows):
            state = _at(state, flat)
        if len(kept) < len(rows):
            memory = _at(memory, flat)
            rows, how, history = rows[kept], how.at(kept), history[kept]
            tokens, sums = tokens[kept], sums[kept]
            lengths, ended = lengths[kept], ended[kept]
    return found


def _at(state: State, rows: Tensor) -> State:
    return tuple(tensor.index_select(0, rows) for tensor in state)


def _forbid_repetition(logs: Tensor, history: Tensor, ngram: Tensor) -> None:
    """Make tokens impossible that would complete an n-gram of (R, beams, t) a second time."""
    for size in ngram.unique().long().tolist():
        before = size - 1
        if not 0 < size <= history.shape[2]:
            continue
        rows = (ngram == size).nonzero().squeeze(1)
        past = history[rows]
        last = past[..., past.shape[2] - before :]
        earlier = past.unfold(2, size, 1)  # (R, beams, windows, size)
        same = (earlier[..., :before] == last[:, :, None]).all(-1)
        # A token that was not found stands for padding, which is impossible anyway.
        again = torch.where(same, earlier[..., before], PADDING)
        logs[rows] = logs[rows].scatter(2, again, -torch.inf)
