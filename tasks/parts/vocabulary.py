"""Tokenizers that are learned from the train split, and texts as token ids."""

import json
import re
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import islice
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as Rust

from models.base import PADDING, SENTENCE_END, UNKNOWN
from models.parts.options import Option, Plain
from tasks.parts.columns import Ragged, ragged

SPECIAL = ("<padding>", "<unknown>", "\ue002")
"""The tokens of ids 0, 1 and 2. The last is put into texts, so it is a character nobody writes."""
MAX_TEXT = 1_000_000
"""Characters of one text."""
_MARK = SPECIAL[SENTENCE_END]
# A full stop ends a sentence only before a space; the marks of Chinese and Japanese always do.
_SENTENCE_END = re.compile(r"(?:[.!?…]+[\"'”’)\]]*(?=\s|$)\n*)|(?:[。！？]+[」』”’）]*)|\n+")
_CHARACTERS_PER_TOKEN = 100
_BATCH = 2_000
_LONGEST_WORD, _TOKENS_PER_WORD = 200, 16
_FORMS = {"nfc": normalizers.NFC, "nfkc": normalizers.NFKC, "nfd": normalizers.NFD}


class Tokenizer(Option):
    """How texts become tokens; the tokens themselves are learned from the train split."""

    @abstractmethod
    def train(self, tokenizer: Rust, texts: Iterable[str]) -> None:
        """Learn the tokens."""

    @abstractmethod
    def empty(self) -> Rust:
        """A tokenizer without tokens."""

    def learn(self, texts: Iterable[str]) -> str:
        """The learned tokenizer as JSON."""
        tokenizer = self.empty()
        self.train(tokenizer, map(unmarked, texts))
        return _only_mark_added(tokenizer.to_str())

    def bound(self, characters: int, words: int) -> int:
        """Tokens of a text of so many characters and words, at most or nearly so."""
        return characters


class Folding(Tokenizer):
    """Takes for the same what hardly differs: spaces, forms of letters, upper and lower case."""

    size: int = Field(8_000, ge=16, le=200_000, description="Most tokens in the vocabulary.")
    lowercase: bool = Field(True, description="Make no difference between upper and lower case.")
    normalization: Literal["nfc", "nfkc", "nfd"] = Field(
        "nfc",
        description="Unicode normal form; `nfkc` also merges full-width and styled letters, `nfd` takes "
        "syllables of Korean apart and accents off their letters.",
    )
    letters: int | None = Field(
        None,
        ge=1,
        le=100,
        description="Letters of a word that count; endings behind them are cut off. For Latin, Greek and Cyrillic.",
    )

    @abstractmethod
    def model(self) -> Rust:
        """A tokenizer without tokens that changes nothing before it cuts."""

    def empty(self) -> Rust:
        tokenizer = self.model()
        tokenizer.normalizer = normalizers.Sequence(
            [
                _FORMS[self.normalization](),
                *([normalizers.Lowercase()] if self.lowercase else []),
                *([normalizers.Replace(_ending(self.letters), "")] if self.letters else []),
                normalizers.Replace(Regex(r"\s+"), " "),
                normalizers.Strip(),
            ]
        )
        return tokenizer


class Lossless(Tokenizer):
    """Keeps every character, or nearly, so that tokens can be written out again."""


class ByteLevel(Lossless):
    """Tells characters that it never saw as bytes of UTF-8."""

    size: int

    def empty(self) -> Rust:
        tokenizer = Rust(models.BPE())
        # Pieces never reach over the end of a word, of a number or of a run of marks (Radford et al., 2019).
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        return tokenizer

    def train(self, tokenizer: Rust, texts: Iterable[str]) -> None:
        trainer = trainers.BpeTrainer(
            vocab_size=self.size,
            min_frequency=2,
            special_tokens=list(SPECIAL),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(texts, trainer)


class PublishedTokens(Lossless):
    """That of the checkpoint which a pretrained architecture begins with; nothing of it is learned."""

    name: Literal["pretrained"] = "pretrained"

    def empty(self) -> Rust:
        raise NotImplementedError("it comes with a checkpoint")

    def train(self, tokenizer: Rust, texts: Iterable[str]) -> None:
        raise NotImplementedError("it comes with a checkpoint")


def _ending(letters: int) -> Regex:
    """What follows on the first letters of a word, in scripts that put endings behind words."""
    letter = r"[\p{Latin}\p{Greek}\p{Cyrillic}]"
    return Regex(rf"(?<={letter}{{{letters}}}){letter}+")


def _only_mark_added(tokenizer: str) -> str:
    """A tokenizer's JSON that reads "<padding>" and "<unknown>" in a text as any other text."""
    parts = json.loads(tokenizer)
    added = [token for token in parts["added_tokens"] if token["id"] == SENTENCE_END]
    return json.dumps({**parts, "added_tokens": added}, ensure_ascii=False)


class Words(Folding):
    """Words and punctuation marks; the rarest words are unknown."""

    name: Literal["words"] = "words"
    size: int = Field(20_000, ge=16, le=200_000, description="Most tokens in the vocabulary.")
    min_count: int = Field(2, ge=1, le=1_000, description="Rarer words are unknown.")

    def model(self) -> Rust:
        tokenizer = Rust(models.WordLevel(unk_token=SPECIAL[UNKNOWN]))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        return tokenizer

    def train(self, tokenizer: Rust, texts: Iterable[str]) -> None:
        trainer = trainers.WordLevelTrainer(
            vocab_size=self.size,
            min_frequency=self.min_count,
            special_tokens=list(SPECIAL),
            show_progress=False,
        )
        tokenizer.train_from_iterator(texts, trainer)

    def bound(self, characters: int, words: int) -> int:
        return words


class BytePairs(Folding):
    """Frequent pieces of words: byte-pair encoding over characters (Sennrich et al., 2016)."""

    name: Literal["bpe"] = "bpe"
    min_count: int = Field(2, ge=1, le=1_000, description="Rarer pieces are not joined.")

    def model(self) -> Rust:
        tokenizer = Rust(models.BPE(unk_token=SPECIAL[UNKNOWN], fuse_unk=False))
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation()]
        )
        tokenizer.decoder = decoders.Metaspace()
        return tokenizer

    def train(self, tokenizer: Rust, texts: Iterable[str]) -> None:
        trainer = trainers.BpeTrainer(
            vocab_size=self.size,
            min_frequency=self.min_count,
            special_tokens=list(SPECIAL),
            limit_alphabet=max(1, self.size // 2),
            show_progress=False,
        )
        tokenizer.train_from_iterator(texts, trainer)


class Characters(Folding):
    """Single characters, spaces included."""

    name: Literal["characters"] = "characters"
    min_count: int = Field(2, ge=1, le=1_000, description="Rarer characters are unknown.")

    def model(self) -> Rust:
        tokenizer = Rust(models.WordLevel(unk_token=SPECIAL[UNKNOWN]))
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
        tokenizer.decoder = decoders.Fuse()
        return tokenizer

    def train(self, tokenizer: Rust, texts: Iterable[str]) -> None:
        trainer = trainers.WordLevelTrainer(
            vocab_size=self.size,
            min_frequency=self.min_count,
            special_tokens=list(SPECIAL),
            show_progress=False,
        )
        tokenizer.train_from_iterator(texts, trainer)


class ByteLevelPairs(ByteLevel):
    """Frequent pieces of words and whatever else there is: byte-pair encoding over bytes (Radford et al., 2019)."""

    name: Literal["byte-bpe"] = "byte-bpe"
    size: int = Field(
        1_000,
        ge=259,
        le=200_000,
        description="Most tokens in the vocabulary; 256 of them are the bytes.",
    )

    def bound(self, characters: int, words: int) -> int:
        return characters // 2


class Bytes(ByteLevel):
    """Single bytes of UTF-8: characters, as far as texts are English."""

    name: Literal["bytes"] = "bytes"
    size: Literal[259] = Field(259, description="The bytes, and three tokens that are no text.")


class Vocabulary(Plain):
    """A learned tokenizer, and the most tokens a text may have: longer texts are cut."""

    tokenizer: str
    """JSON of the `tokenizers` library."""
    max_length: int
    shift: int = 0
    """What its ids are raised by, where it is a published one, whose first ids are not ours; no sentence is marked."""
    unknown: int | None = None
    """The id by which a published one tells what it does not know."""

    @cached_property
    def _rust(self) -> Rust:
        tokenizer = Rust.from_str(self.tokenizer)
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer

    @cached_property
    def _plain(self) -> Rust:
        """The same tokenizer, for which no character is a mark."""
        if self.shift:
            return self._rust
        return Rust.from_str(json.dumps({**json.loads(self.tokenizer), "added_tokens": []}))

    @cached_property
    def size(self) -> int:
        """How many token ids there are."""
        if self.shift:
            return self.shift + 1 + max(self._rust.get_vocab().values())
        return int(self._rust.get_vocab_size())

    @cached_property
    def before_words(self) -> str:
        """What a word has to stand behind to be read as one within a text: a space, or nothing."""
        of = lambda text: self._rust.encode(text, add_special_tokens=False).ids  # noqa: E731
        spaced = self.shift and of("a a") != of("a") * 2 and of("a a") == of("a") + of(" a")
        return " " if spaced else ""

    def _ours(self, ids: list[int]) -> list[int]:
        """The ids of tokens, from those that the tokenizer has for them."""
        if not self.shift:
            return ids
        return [UNKNOWN if id == self.unknown else id + self.shift for id in ids]

    def ids(self, texts: Iterable[str]) -> Iterator[list[int]]:
        """The token ids of each text, `SENTENCE_END` after each sentence; at most `max_length`."""
        rest = iter(texts)
        while some := list(islice(rest, _BATCH)):
            marked = [self._mark(text) for text in some]
            for encoding in self._rust.encode_batch_fast(marked, add_special_tokens=False):
                yield self._ours(encoding.ids[: self.max_length])

    def whole(self, texts: Iterable[str]) -> Iterator[list[int]]:
        """The token ids of each text just as it stands, unmarked and of any number."""
        rest = iter(texts)
        while some := list(islice(rest, _BATCH)):
            for encoding in self._plain.encode_batch_fast(some, add_special_tokens=False):
                yield self._ours(encoding.ids)

    def whole_text(self, ids: Sequence[int]) -> str:
        """The text that these tokens are all of; U+FFFD for bytes that are no character."""
        theirs = [id - self.shift for id in ids if id >= self.shift]
        return self._plain.decode(theirs, skip_special_tokens=False)

    def text(self, ids: Sequence[int]) -> str:
        """What these tokens stand for behind other text; U+FFFD for bytes that are no character."""
        if not self.shift:
            return self.whole_text(ids)
        # Since some tokenizers drop the space that a text begins with.
        before = self._plain.encode("a", add_special_tokens=False).ids
        whole = [*before, *(id - self.shift for id in ids if id >= self.shift)]
        start, found = (
            self._plain.decode(some, skip_special_tokens=False) for some in (before, whole)
        )
        return found.removeprefix(start)

    def encode(self, texts: Iterable[str]) -> Ragged:
        """Token ids; a text without any becomes a single padding token."""
        lengths, values = [0], []
        for ids in self.ids(texts):
            ids = ids or [PADDING]
            lengths.append(len(ids))
            values.append(np.array(ids, dtype=np.int64))
        return Ragged(torch.from_numpy(np.concatenate(values)), torch.tensor(lengths).cumsum(0))

    def encode_words(self, words: Sequence[str]) -> Ragged:
        """The token ids of each word by itself, at least one; ends of sentences are not marked."""
        found: list[list[int]] = []
        for start in range(0, len(words), _BATCH):
            some = [
                self.before_words + unmarked(word[:_LONGEST_WORD])
                for word in words[start : start + _BATCH]
            ]
            encodings = self._rust.encode_batch_fast(some, add_special_tokens=False)
            found += [
                self._ours(encoding.ids[:_TOKENS_PER_WORD]) or [UNKNOWN] for encoding in encodings
            ]
        return ragged(found)

    def _mark(self, text: str) -> str:
        """A text with its sentence ends marked; what cannot matter is cut off first."""
        text = text[: self.max_length * _CHARACTERS_PER_TOKEN]
        if self.shift:
            return text
        text = unmarked(text)
        return _SENTENCE_END.sub(rf"\g<0>{_MARK}", text)


def unmarked(text: str) -> str:
    """A text without the character that marks ends of sentences."""
    return text.replace(_MARK, " ")
