"""How a published checkpoint reads texts: its tokenizer, and the marks that it was shown around them."""

import json
from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, Self

import torch
from pydantic import Field
from torch import Tensor

from models.base import SENTENCE_END
from models.parts.options import Plain
from models.parts.pretrained import Pretrained
from models.parts.published import Published, Unusable
from models.parts.published_networks import configuration, of_backbone, quiet
from models.parts.published_pieces import rebuilt

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

SHIFT = SENTENCE_END + 1
"""What the ids of a published tokenizer are raised by, behind those that every vocabulary has."""
_POOLING = "1_Pooling/config.json"
"""Where checkpoints that were trained to compare texts say how states become a vector."""
_POOLINGS: dict[str, "Pooled"] = {
    "pooling_mode_cls_token": "first",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_lasttoken": "last",
}
_OFFSET = ("camembert", "mpnet", "roberta", "xlm-roberta", "xlm-roberta-xl")
"""Kinds whose places are counted from the one behind that of padding."""
_UNWRITTEN = "\ue002"
"""What begins words that nobody writes."""
Pooled = Literal["first", "mean", "last"]


class Reads(Plain):
    """What a network was shown around and between texts, by the ids of its own tokenizer."""

    before: list[int] = Field(description="Marks before a text.")
    between: list[int] = Field(description="Marks between two texts that are read as one.")
    behind: list[int] = Field(description="Marks behind what is read.")
    begin: int = Field(description="Where a text to go on with begins.")
    end: int = Field(description="Where a text is over.")
    unknown: int = Field(description="What stands for anything it has no token for.")
    padding: int = Field(description="What stands behind shorter texts.")
    second: bool = Field(description="Whether it is told which of two texts a token is of.")
    most: int | None = Field(
        description="Tokens that it has places for, marks included; null: any number."
    )
    pooling: Pooled | None = Field(
        description="How the states of a text become a vector, if that was learned."
    )


class Reader(Pretrained):
    """An architecture that reads texts by the tokenizer of its checkpoint."""

    @property
    @abstractmethod
    def most(self) -> int | None:
        """Tokens of a text that it can read between its marks, if there is a limit."""

    @abstractmethod
    def for_reading(self, *, compares: bool) -> Self:
        """A copy that reads texts as a whole, be it to compare them by their vectors, or else."""


def tokenizer_of(
    published: Published, *, writes: bool = False, told: Mapping[str, str] | None = None
) -> "PreTrainedTokenizerBase":
    """The tokenizer of a folder, none that needs code or packages of others; `told` its languages. Raises Unusable.

    `writes`: that of what a network writes, where it has another one for what it reads.
    """
    if (made := rebuilt(published, writes=writes)) is not None:
        return made
    # Loading it takes a second, which those who begin with no published weights need not spend.
    from transformers import AutoTokenizer

    try:
        with quiet():
            found = AutoTokenizer.from_pretrained(
                published.folder, local_files_only=True, trust_remote_code=False, **(told or {})
            )
    except Exception as error:  # what is written in Rust raises nothing narrower
        raise Unusable(f"its tokenizer cannot be read: {error}") from error
    if not getattr(found, "is_fast", False):
        raise Unusable("its tokenizer is none of the `tokenizers` library")
    tokenizer: PreTrainedTokenizerBase = found
    marks = len(tokenizer.all_special_ids)
    if tokenizer.backend_tokenizer.get_vocab_size() - marks < 2:  # without files, it has no more
        raise Unusable("it has no tokenizer")
    return tokenizer


def read_texts(published: Published) -> Reads:
    """How the checkpoint of a folder reads texts. Raises Unusable."""
    config, tokenizer = configuration(of_backbone(published.config)), tokenizer_of(published)
    size = config.vocab_size
    rust = tokenizer.backend_tokenizer
    plain = rust.encode("a", add_special_tokens=False).ids
    before, behind = around(plain, rust.encode("a").ids)
    ends = (tokenizer.eos_token_id, tokenizer.sep_token_id, *reversed(behind), 0)
    end = next(id for id in ends if is_id(id, size))
    begin = next(id for id in (*before, tokenizer.bos_token_id, end) if is_id(id, size))
    paddings = (config.pad_token_id, tokenizer.pad_token_id, end)
    padding = next(id for id in paddings if is_id(id, size))
    unknowns = (tokenizer.unk_token_id, tokenizer.mask_token_id, end, begin)
    unknown = next((id for id in unknowns if is_id(id, size) and id != padding), padding)
    return Reads(
        before=before,
        between=_between(tokenizer, before, behind),
        behind=behind,
        begin=begin,
        end=end,
        unknown=unknown,
        padding=padding,
        second=getattr(config, "type_vocab_size", 0) > 1,
        most=_places(config, padding),
        pooling=_pooling(published),
    )


def plain_tokenizer(published: Published, *, writes: bool = False) -> tuple[str, int | None]:
    """A published tokenizer as JSON, for which nothing that is written is a mark, and its id of what is unknown.

    Raises Unusable.
    """
    tokenizer = tokenizer_of(published, writes=writes)
    parts = json.loads(tokenizer.backend_tokenizer.to_str())
    # Marks have no place in what people write; others are words of it, such as runs of spaces.
    parts["added_tokens"] = [token for token in parts["added_tokens"] if not token["special"]]
    if parts["model"]["type"] == "Unigram":
        # Other models put tokens together, and marks from nothing.
        for mark in tokenizer.all_special_ids:
            if mark < len(parts["model"]["vocab"]) and mark != _unknown(parts["model"]):
                parts["model"]["vocab"][mark][0] = f"{_UNWRITTEN}{mark}"
    parts |= {"post_processor": None, "truncation": None, "padding": None}
    return json.dumps(parts, ensure_ascii=False), _unknown(parts["model"])


def _unknown(model: dict[str, Any]) -> int | None:
    """The id of what the tokens of a model are not."""
    if model.get("unk_id") is not None:
        return int(model["unk_id"])
    found = model["vocab"].get(model.get("unk_token")) if model.get("unk_token") else None
    return None if found is None else int(found)


def around(plain: list[int], marked: list[int]) -> tuple[list[int], list[int]]:
    """The marks before and behind a text, from its tokens without marks and with them. Raises Unusable."""
    for start in range(len(marked) - len(plain) + 1):
        if marked[start : start + len(plain)] == plain:
            return marked[:start], marked[start + len(plain) :]
    raise Unusable("its tokenizer reads a text in another way between marks")


def _between(
    tokenizer: "PreTrainedTokenizerBase", before: list[int], behind: list[int]
) -> list[int]:
    """The marks between two texts; those behind one where the tokenizer knows no pairs."""
    rust = tokenizer.backend_tokenizer
    plain = rust.encode("a", add_special_tokens=False).ids
    marked = rust.encode("a", "a").ids
    start, size = len(before), len(plain)
    stop = len(marked) - len(behind) - size
    known = start + size <= stop and marked[start : start + size] == plain
    found: list[int] = marked[start + size : stop] if known else []
    return found or behind or [_first(tokenizer)]


def _first(tokenizer: "PreTrainedTokenizerBase") -> int:
    """A mark to tell two texts apart, where the tokenizer has none for that."""
    ids = (tokenizer.sep_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id)
    return next((id for id in ids if isinstance(id, int)), 0)


def _places(config: "PretrainedConfig", padding: int) -> int | None:
    found: int | None = getattr(config, "max_position_embeddings", None)
    if found is not None and config.model_type in _OFFSET:
        return found - padding - 1
    return found


def _pooling(published: Published) -> Pooled | None:
    if not published.has(_POOLING):
        return None
    said = published.read(_POOLING)
    asked = [name for name, value in said.items() if name.startswith("pooling_mode_") and value]
    found = [_POOLINGS[name] for name in asked if name in _POOLINGS]
    if len(asked) != 1 or not found:
        raise Unusable(f"its {_POOLING} asks for {asked}; allowed is one of {sorted(_POOLINGS)}")
    return found[0]


def is_id(value: Any, size: int) -> bool:
    return isinstance(value, int) and 0 <= value < size


def as_published(tokens: Tensor, size: int, unknown: int, end: int) -> Tensor:
    """Tokens by the ids of a published tokenizer of that size, from ours; those that it lacks are its `unknown`."""
    known = (tokens >= SHIFT) & (tokens < SHIFT + size)
    return torch.where(known, tokens - SHIFT, unknown).masked_fill(tokens == SENTENCE_END, end)


def mark(ids: list[int], like: Tensor) -> tuple[Tensor, Tensor]:
    """The same marks for every text (B, N), and how many they are (B,)."""
    marks = torch.tensor(ids, dtype=torch.long, device=like.device)
    return marks.expand(len(like), -1), torch.full_like(like, len(ids))


def laid(
    parts: list[tuple[Tensor, Tensor]], padding: int, most: int | None
) -> tuple[Tensor, Tensor]:
    """Sequences (B, T) of lengths (B,) one behind the other: (B, N), N at the `most`, and lengths (B,)."""
    count = torch.stack([lengths for _, lengths in parts]).sum(0)
    width = sum(ids.shape[1] for ids, _ in parts)
    # What is padding in a part is written behind everything.
    whole = torch.full((len(count), width + 1), padding, device=count.device)
    start = torch.zeros_like(count)
    for ids, lengths in parts:
        places = torch.arange(ids.shape[1], device=ids.device)
        to = (start[:, None] + places).where(places < lengths[:, None], width)
        whole.scatter_(1, to, ids)
        start = start + lengths
    return whole[:, : min(width, most or width)], count
