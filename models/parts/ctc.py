"""Connectionist temporal classification (Graves et al., 2006): its loss, how texts are found, and where they stand."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.parts.pooling import inside

BLANK = 0
"""The token that says nothing, and stands between two that are the same."""
NEVER = -1e30
"""The logarithm of no probability: adding to it leaves it what it is, and it is a number."""
_TOKENS = 16
"""Tokens that a step of a search may go on with: the likeliest ones."""
_PRIME = 1_000_003


def ctc_loss(logs: Tensor, lengths: Tensor, tokens: Tensor, counts: Tensor) -> Tensor:
    """The negative log-likelihood of tokens (B, N), `counts` (B,) of them, per token (B,).

    Log-probabilities (B, T, V) of so many steps (B,). What is too short for its tokens counts as 0.
    """
    device = logs.device
    if device.type == "cuda" and torch.are_deterministic_algorithms_enabled():
        # The kernels of GPUs add up gradients in any order.
        logs, lengths, tokens, counts = (t.cpu() for t in (logs, lengths, tokens, counts))
    losses = F.ctc_loss(
        logs.transpose(0, 1), tokens, lengths, counts, BLANK, "none", zero_infinity=True
    )
    return (losses / counts.clamp(min=1)).to(device)


class Grammar(nn.Module):
    """How likely tokens are after each other: an automaton of contexts, one of which is where texts begin.

    `after` (S, V) is the context behind each token, `logs` (S, V) its log-probability, that of the end in place of
    the blank.
    """

    after: Tensor
    logs: Tensor

    def __init__(self, after: Tensor, logs: Tensor) -> None:
        super().__init__()
        self.register_buffer("after", after, persistent=False)
        self.register_buffer("logs", logs, persistent=False)


class Search(NamedTuple):
    """How texts are looked for: (B,) each."""

    beams: Tensor
    weight: Tensor
    """Of the grammar's log-probabilities beside the network's."""
    bonus: Tensor
    """Added for every token, since a grammar makes texts short."""


class _Beams(NamedTuple):
    """Beginnings of texts (B, K): log-probabilities to end in a blank and in a token, and what leads to them."""

    blank: Tensor
    token: Tensor
    value: Tensor
    """What the grammar adds."""
    last: Tensor
    context: Tensor
    name: Tensor
    """A number that no other beginning has."""
    origin: Tensor
    """(B, K): where in the last step each one was; `last` of it was added if `grown`."""
    grown: Tensor


def greedy(logs: Tensor, lengths: Tensor) -> Tensor:
    """The tokens of the likeliest path through (B, T, V), 0 behind the last one: (B, T)."""
    path = logs.argmax(-1).masked_fill(~inside(logs, lengths), BLANK)
    said = (path != BLANK) & (path != F.pad(path[:, :-1], (1, 0), value=BLANK))
    return _together(path, said)


def _together(values: Tensor, wanted: Tensor) -> Tensor:
    """Those of (B, T) that are wanted in their order, and 0 behind them."""
    order = (~wanted).to(torch.uint8).sort(dim=1, stable=True).indices
    return (values * wanted).gather(1, order)


def beam_search(
    logs: Tensor, lengths: Tensor, search: Search, grammar: Grammar | None = None
) -> Tensor:
    """The tokens (B, T) of the best texts found, 0 behind the last one: prefix beam search (Hannun et al., 2014).

    Log-probabilities (B, T, V). All beginnings of all sounds take a step at once.
    """
    rows, frames, size = logs.shape
    most, tokens = int(search.beams.max()), min(_TOKENS, size - 1)
    beams = _nothing_said(logs, most)
    beyond = torch.arange(most, device=logs.device) >= search.beams[:, None]
    history: list[tuple[Tensor, Tensor]] = []
    for frame in range(frames):
        beams = _step(beams, logs[:, frame], search, grammar, beyond, tokens, frame < lengths)
        history.append((beams.origin, torch.where(beams.grown, beams.last, BLANK)))
    total = torch.logaddexp(beams.blank, beams.token) + beams.value
    if grammar is not None:
        total = total + search.weight[:, None] * grammar.logs[beams.context, BLANK]
    place = total.argmax(1, keepdim=True)
    said = []
    for origin, token in reversed(history):
        said.append(token.gather(1, place))
        place = origin.gather(1, place)
    found = torch.cat(said[::-1], 1) if said else logs.new_zeros(rows, 0).long()
    return _together(found, found != BLANK)


def _nothing_said(logs: Tensor, most: int) -> _Beams:
    """One beginning without a token for each sound, and others that are impossible."""
    never = logs.new_full((len(logs), most), NEVER)
    zeros = torch.zeros_like(never, dtype=torch.long)
    first = never.clone()
    first[:, 0] = 0
    names = zeros + torch.arange(1, most + 1, device=logs.device)
    return _Beams(first, never, torch.zeros_like(never), zeros, zeros, names, zeros, zeros > 0)


def _step(
    beams: _Beams,
    logs: Tensor,
    search: Search,
    grammar: Grammar | None,
    beyond: Tensor,
    count: int,
    goes_on: Tensor,
) -> _Beams:
    """The best beginnings after one more frame (B, V); where a sound does not go on, the same ones."""
    rows, most = beams.last.shape
    whole = torch.logaddexp(beams.blank, beams.token)
    likely, tokens = logs[:, 1:].topk(count)
    tokens = tokens + 1
    stay_blank = whole + logs[:, :1]
    stay_token = beams.token + logs.gather(1, beams.last).masked_fill(beams.last == BLANK, NEVER)

    # Another token: the same one again only behind a blank.
    again = tokens[:, None] == beams.last[..., None]
    grown = torch.where(again, beams.blank[..., None], whole[..., None]) + likely[:, None]
    names = beams.name[..., None] * _PRIME + tokens[:, None]
    # What grows into a beginning that is there already is the same text: their probabilities add up.
    same = names[..., None] == beams.name[:, None, None]
    merged = grown[..., None].masked_fill(~same, NEVER).flatten(1, 2).logsumexp(1)
    stay_token = torch.logaddexp(stay_token, merged)
    grown = grown.masked_fill(same.any(-1), NEVER)
    value = beams.value[..., None] + search.bonus[:, None, None]
    if grammar is not None:
        at = beams.context[..., None].expand(-1, -1, count)
        by = tokens[:, None].expand(-1, most, -1)
        value = value + search.weight[:, None, None] * grammar.logs[at, by]
        context = grammar.after[at, by]
    else:
        context = beams.context[..., None].expand(-1, -1, count)

    stay = torch.logaddexp(stay_blank, stay_token) + beams.value
    scores = torch.cat([stay, (grown + value).flatten(1)], 1)
    best, place = scores.topk(most)
    best_blank = torch.cat([stay_blank, torch.full_like(grown, NEVER).flatten(1)], 1)
    best_token = torch.cat([stay_token, grown.flatten(1)], 1)
    pick = lambda old, new: torch.cat([old, new.expand(rows, most, count).flatten(1)], 1).gather(  # noqa: E731
        1, place
    )
    here = torch.arange(most, device=logs.device).expand(rows, -1)
    out = best_blank.gather(1, place), best_token.gather(1, place)
    lost = beyond | (best < NEVER / 2)
    moved = _Beams(
        out[0].masked_fill(lost, NEVER),
        out[1].masked_fill(lost, NEVER),
        pick(beams.value, value),
        pick(beams.last, tokens[:, None]),
        pick(beams.context, context),
        pick(beams.name, names),
        pick(here, here[..., None]),
        place >= most,
    )
    still = beams._replace(origin=here, grown=torch.zeros_like(moved.grown))
    return _Beams(
        *(torch.where(goes_on[:, None], new, old) for new, old in zip(moved, still, strict=True))
    )


class Placed(NamedTuple):
    """Where each token of a text is heard: steps (B, N) from its first to the one behind its last, and how surely."""

    start: Tensor
    end: Tensor
    score: Tensor
    """The mean probability of the token there, from 0 to 1."""


def align(logs: Tensor, lengths: Tensor, tokens: Tensor) -> Placed:
    """The likeliest path of tokens (B, N), 0 behind the last, through (B, T, V): Viterbi's.

    Numbers of tokens that do not fit their sound are placed wherever the search ends.
    """
    frames = logs.shape[1]
    count = (tokens != BLANK).sum(1)
    labels = torch.stack([torch.full_like(tokens, BLANK), tokens], 2).flatten(1)
    labels = F.pad(labels, (0, 1), value=BLANK)  # (B, 2N + 1), blanks between
    skips = (labels != BLANK) & (labels != F.pad(labels[:, :-2], (2, 0), value=BLANK))
    best = logs.new_full(labels.shape, NEVER)
    best[:, 0] = 0
    entered = torch.zeros_like(
        labels
    )  # where nothing was said yet, either of the first two may follow
    moves = []
    for frame in range(frames):
        one = F.pad(best[:, :-1], (1, 0), value=NEVER)
        two = F.pad(best[:, :-2], (2, 0), value=NEVER).masked_fill(~skips, NEVER)
        value, move = torch.stack([best, one, two]).max(0)
        value = value + logs[:, frame].gather(1, labels)
        goes_on = (frame < lengths)[:, None]
        best = torch.where(goes_on, value, best)
        moves.append(torch.where(goes_on, move, entered))
    places = torch.arange(labels.shape[1], device=logs.device)
    # At the last token, or at the blank behind it.
    ends = (places - 2 * count[:, None] + 0.5).abs() < 1
    at = torch.where(ends, best, 2 * NEVER).argmax(1, keepdim=True)
    path = []
    for move in reversed(moves):
        path.append(at)
        at = (at - move.gather(1, at)).clamp(min=0)
    return _placed(logs, lengths, labels, torch.cat(path[::-1], 1), tokens)


def _placed(logs: Tensor, lengths: Tensor, labels: Tensor, path: Tensor, tokens: Tensor) -> Placed:
    """First and last step of each token on a path (B, T) over labels (B, 2N + 1)."""
    frames = torch.arange(path.shape[1], device=logs.device)
    said = (path % 2 == 1) & (frames < lengths[:, None])
    owner = (path // 2).masked_fill(~said, tokens.shape[1])
    room = logs.new_zeros(len(tokens), tokens.shape[1] + 1)
    times = frames.expand_as(path).to(logs.dtype)
    start = (room + path.shape[1]).scatter_reduce(1, owner, times, "amin")
    end = room.scatter_reduce(1, owner, times + 1, "amax")
    chance = logs.exp().gather(2, labels.gather(1, path)[..., None])[..., 0]
    mean = room.scatter_reduce(1, owner, chance, "mean", include_self=False)
    return Placed(*(found[:, :-1] for found in (start, end, mean)))
