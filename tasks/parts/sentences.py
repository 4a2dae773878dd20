"""Sentences as tokens: requests that give them or a text, and how a text is cut in any script."""

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from itertools import accumulate
from typing import Annotated, NamedTuple, Self
from unicodedata import normalize

import numpy as np
import polars as pl
import torch
from pydantic import Field, model_validator
from tokenizers import Regex, pre_tokenizers

from models.base import PADDING, UNKNOWN
from models.parts.options import Plain
from tasks.parts.columns import Ragged
from tasks.parts.texts import check_text
from tasks.parts.vocabulary import MAX_TEXT, Vocabulary

MAX_TOKENS = 100_000
"""Tokens of one sentence."""
LETTERS = 20
"""Characters of a word that are looked at: of a longer one those at its ends."""
MAX_ALPHABET = 4_000
# Scripts that set no spaces between words; a character is what a reader takes for one.
_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
_HANGUL = r"\p{Hangul}"
_TOO_MANY = 100
"""Characters of a token, as many as hardly any has."""
Token = Annotated[str, Field(max_length=MAX_TEXT)]


class TokensInput(Plain):
    """One sentence: its tokens, or a text that is cut into tokens here."""

    tokens: list[Token] | None = Field(
        None,
        max_length=MAX_TOKENS,
        description="The tokens, as those of the data set are cut.",
        examples=[["Ada", "Lovelace", "lived", "in", "London", "."]],
    )
    text: str | None = Field(
        None,
        max_length=MAX_TEXT,
        description="Instead of tokens: any text.",
        examples=["Ada Lovelace lived in London."],
    )

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.tokens is None) == (self.text is None):
            raise ValueError("give either `tokens` or `text`")
        if sum(map(len, self.tokens or ())) > MAX_TEXT:
            raise ValueError(f"tokens have more than {MAX_TEXT} characters together")
        return self


def check_sentence(given: TokensInput) -> None:
    """Raises Invalid for what is no Unicode text."""
    check_text(given.text or "", "text")
    check_text("".join(given.tokens or ()), "tokens")


def cut(text: str, *, syllables: bool) -> list[str]:
    """The tokens of a text: words, punctuation marks, and single characters where no spaces part words.

    `syllables`: whether Korean is cut into these, too.
    """
    pieces = _cutter(syllables).pre_tokenize_str(text)
    return [piece for piece, _ in pieces if not piece.isspace()]


@cache
def _cutter(syllables: bool) -> pre_tokenizers.PreTokenizer:
    single = _UNSPACED + (_HANGUL if syllables else "")
    word = rf"[\p{{L}}\p{{M}}\p{{N}}\p{{Pc}}&&[^{single}]]+"
    # Marks join the character before them, and emoji each other (\X).
    pattern = rf"(?=[{single}])\X|{word}|(?!\s)\X|\s+"
    return pre_tokenizers.Split(Regex(pattern), "isolated")


def are_syllables(sentences: Iterable[Sequence[str]]) -> bool:
    """Whether most tokens that begin in Korean are single syllables; so, too, where there are none."""
    sizes = [len(t) for tokens in sentences for t in tokens if t and "가" <= t[0] <= "힣"]
    return 2 * sum(size == 1 for size in sizes) >= len(sizes)


def starts_in(text: str, tokens: Sequence[str]) -> list[int]:
    """Where each token begins in the text that has them all in this order."""
    found, end = [], 0
    for token in tokens:
        start = text.index(token, end)
        found.append(start)
        end = start + len(token)
    return found


def joined(tokens: Sequence[str]) -> str:
    """The text of tokens that came without one."""
    return " ".join(tokens)


def joined_starts(tokens: Sequence[str]) -> list[int]:
    """Where each token begins in `joined`."""
    return list(accumulate((len(token) + 1 for token in tokens[:-1]), initial=0))


class Sentence(NamedTuple):
    """Tokens and the text they are in."""

    tokens: Sequence[str]
    text: str
    starts: Sequence[int]
    """Where each token begins in the text."""


def sentence(given: TokensInput, *, syllables: bool, most: int) -> Sentence:
    """What was given as at most so many tokens."""
    if given.tokens is not None:
        tokens = given.tokens[:most]
        return Sentence(tokens, joined(tokens), joined_starts(tokens))
    assert given.text is not None
    tokens = cut(given.text[: most * _TOO_MANY], syllables=syllables)[:most]
    return Sentence(tokens, given.text, starts_in(given.text, tokens))


def of_examples(examples: pl.DataFrame) -> list[TokensInput]:
    """Examples as inputs: the text, if there is one, else the tokens."""
    return [
        TokensInput.model_construct(tokens=None if text is not None else tokens, text=text)
        for tokens, text in zip(examples["tokens"].to_list(), examples["text"], strict=True)
    ]


def alphabet_of(counts: Mapping[str, int]) -> str:
    """The characters that were seen more than once, the commonest of them."""
    seen = sorted((-count, character) for character, count in counts.items() if count > 1)
    return "".join(sorted(character for _, character in seen[:MAX_ALPHABET]))


def _composed(word: str) -> str:
    word = normalize("NFC", word[: 10 * LETTERS])
    return word if len(word) <= LETTERS else word[: LETTERS // 2] + word[-LETTERS // 2 :]


def letters_of(words: Sequence[str], alphabet: str) -> torch.Tensor:
    """The characters of words as numbers (len(words), LETTERS) int32; (len(words), 0) without an alphabet."""
    if not alphabet:
        return torch.zeros(len(words), 0, dtype=torch.int32)
    place = {character: number for number, character in enumerate(alphabet, UNKNOWN + 1)}
    found = np.full((len(words), LETTERS), PADDING, dtype=np.int32)
    for row, word in zip(found, map(_composed, words), strict=True):
        row[: len(word)] = [place.get(character, UNKNOWN) for character in word]
    return torch.from_numpy(found)


def encode_sentences(
    sentences: Sequence[Sequence[str]], vocabulary: Vocabulary, alphabet: str
) -> tuple[Ragged, Ragged]:
    """Token ids, and of each word the place of its first token and its characters (W, 1 + C) int32.

    A sentence without words becomes one unknown word; words behind the vocabulary's `max_length` tokens are cut.
    """
    read = [words[: vocabulary.max_length] or [""] for words in sentences]
    codes: dict[str, int] = {}
    code = torch.tensor(
        [codes.setdefault(w, len(codes)) for words in read for w in words], dtype=torch.int64
    )
    words = list(codes)
    table = vocabulary.encode_words(words)
    owner = torch.arange(len(read)).repeat_interleave(
        torch.tensor(list(map(len, read)), dtype=torch.int64)
    )
    place = _within(table.lengths[code], owner)
    kept = place < vocabulary.max_length
    code, owner, place = code[kept], owner[kept], place[kept]
    sizes = torch.minimum(table.lengths[code], vocabulary.max_length - place)
    tokens = _pieces(table, code, sizes)
    letters = letters_of(words, alphabet)[code]
    lengths = torch.zeros(len(read), dtype=torch.int64).index_add(0, owner, sizes)
    counts = torch.bincount(owner, minlength=len(read))
    return (
        Ragged(tokens, _offsets(lengths)),
        Ragged(torch.cat([place[:, None].int(), letters], 1), _offsets(counts)),
    )


def _within(sizes: torch.Tensor, owner: torch.Tensor) -> torch.Tensor:
    """Where each word's tokens begin in its sentence, from their numbers (W,)."""
    ends = sizes.cumsum(0)
    opens = owner.diff(prepend=owner.new_tensor([-1])) > 0
    return ends - sizes - (ends - sizes)[opens][owner]


def _pieces(table: Ragged, code: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
    """The first `sizes` tokens of each word, one behind the other."""
    before = sizes.cumsum(0) - sizes
    steps = torch.arange(int(sizes.sum())) - before.repeat_interleave(sizes)
    return table.values[table.offsets[code].repeat_interleave(sizes) + steps]


def _offsets(lengths: torch.Tensor) -> torch.Tensor:
    return torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
