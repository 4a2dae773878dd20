"""Tokenizers that are published in other layouts than that of the `tokenizers` library, made anew for it."""

import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from models.parts.published import Published, Unusable

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_CONFIG = "tokenizer_config.json"
_SOURCE, _TARGET = "source.spm", "target.spm"
_PADDING, _END, _UNKNOWN = "<pad>", "</s>", "<unk>"
_NORMAL = 1
"""The type of pieces that texts are cut into, and that of those for which nothing is said."""
_FOREIGN = 100.0
"""How much less likely pieces of the other language are than any of a tokenizer's own."""


def rebuilt(published: Published, *, writes: bool = False) -> "PreTrainedTokenizerFast | None":
    """Marian's or ByT5's tokenizer, that of what it `writes` where this is another; None: it is none of these.

    Raises Unusable.
    """
    told = published.read(_CONFIG) if published.has(_CONFIG) else {}
    if told.get("tokenizer_class") == "ByT5Tokenizer":
        return _ended(_of_bytes())
    if not published.has(_SOURCE):
        return None
    if told.get("separate_vocabs"):
        raise Unusable("it has tokens of two vocabularies, which is not supported")
    return _ended(_of_pieces(published, _TARGET if writes else _SOURCE))


def _ended(tokenizer: Tokenizer) -> "PreTrainedTokenizerFast":
    """The same with an end behind every text, as `transformers` has it."""
    # Loading it takes a second, which those who begin with no published weights need not spend.
    from transformers import PreTrainedTokenizerFast

    end = (_END, tokenizer.token_to_id(_END))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {_END}", pair=f"$A {_END} $B {_END}", special_tokens=[end]
    )
    marks = {"pad_token": _PADDING, "eos_token": _END, "unk_token": _UNKNOWN}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **marks)


def _of_bytes() -> Tokenizer:
    """Bytes of UTF-8 behind three marks (Xue et al., 2022)."""
    marks = {_PADDING: 0, _END: 1, _UNKNOWN: 2}
    letters = {letter: len(marks) + byte for byte, letter in enumerate(_letters())}
    tokenizer = Tokenizer(models.BPE(vocab=marks | letters, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _letters() -> Iterator[str]:
    """What stands for each byte: itself if it can be seen, or else a letter behind all (Radford et al., 2019)."""
    seen = {*range(33, 127), *range(161, 173), *range(174, 256)}
    unseen = 256
    for byte in range(256):
        if byte in seen:
            yield chr(byte)
        else:
            yield chr(unseen)
            unseen += 1


class Piece(NamedTuple):
    text: str
    score: float
    kind: int


class Pieces(NamedTuple):
    """What a file of sentencepiece says: likely pieces of texts, and how characters are folded (Kudo, 2018)."""

    pieces: list[Piece]
    folding: bytes


def _of_pieces(published: Published, name: str) -> Tokenizer:
    """Marian's: the pieces of one language by the ids that both languages share."""
    ids = published.read("vocab.json")
    found = read_pieces((published.folder / name).read_bytes())
    scores = {piece.text: piece.score for piece in found.pieces if piece.kind == _NORMAL}
    if not scores or sorted(ids.values()) != list(range(len(ids))) or _UNKNOWN not in ids:
        raise Unusable(f"its vocab.json and {name} are no tokenizer of Marian's")
    foreign = min(scores.values()) - _FOREIGN
    vocabulary = [(text, scores.get(text, foreign)) for text in sorted(ids, key=ids.__getitem__)]
    # Pieces without an id are unknown, but texts are cut into them nevertheless.
    vocabulary += [(text, score) for text, score in scores.items() if text not in ids]
    tokenizer = Tokenizer(models.Unigram(vocabulary, ids[_UNKNOWN], byte_fallback=False))
    spaces = normalizers.Replace(Regex(r"\s+"), " ")
    tokenizer.normalizer = normalizers.Sequence(
        [*_folding(found.folding), spaces, normalizers.Strip()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    # Such as >>fra<<, by which a checkpoint is told into which language it translates.
    tokenizer.add_tokens([text for text in ids if text.startswith(">>") and text.endswith("<<")])
    return tokenizer


def _folding(rules: bytes) -> list[normalizers.Normalizer]:
    if not rules:
        return []
    try:
        return [normalizers.Precompiled(rules)]
    except Exception as error:  # what is written in Rust raises nothing narrower
        raise Unusable(f"its tokenizer folds characters in no known way: {error}") from error


def read_pieces(data: bytes) -> Pieces:
    """What a file of sentencepiece says. Raises Unusable when it is none, or of another kind."""
    try:
        whole = list(_fields(data))
        pieces = [_piece(value) for number, value in whole if number == 1]
        trained = dict(_fields(next((v for n, v in whole if n == 2), b"")))
        folded = dict(_fields(next((v for n, v in whole if n == 3), b"")))
    except (ValueError, KeyError, IndexError, TypeError, struct.error) as error:
        raise Unusable("it has a file of sentencepiece that cannot be read") from error
    if trained.get(3, 1) != 1:
        raise Unusable("its tokenizer of sentencepiece is none of likely pieces (unigram)")
    folding = folded.get(2, b"")
    return Pieces(pieces, folding if isinstance(folding, bytes) else b"")


def _piece(data: bytes | int) -> Piece:
    found = dict(_fields(data))
    text, score, kind = found[1], found.get(2, bytes(4)), found.get(3, _NORMAL)
    if not (isinstance(text, bytes) and isinstance(score, bytes) and isinstance(kind, int)):
        raise TypeError("no such piece")
    return Piece(text.decode(), struct.unpack("<f", score)[0], kind)


def _fields(data: bytes | int) -> Iterator[tuple[int, bytes | int]]:
    """The fields of a message as Protocol Buffers write it: their numbers, and integers or bytes."""
    if isinstance(data, int):
        raise TypeError("a number is no message")
    place = 0
    while place < len(data):
        key, place = _number(data, place)
        match key & 7:
            case 0:
                value, place = _number(data, place)
                yield key >> 3, value
                continue
            case 1:
                size = 8
            case 5:
                size = 4
            case 2:
                size, place = _number(data, place)
            case other:
                raise ValueError(f"no such type of a field: {other}")
        if place + size > len(data):
            raise ValueError("a field is cut off")
        yield key >> 3, data[place : place + size]
        place += size


def _number(data: bytes, place: int) -> tuple[int, int]:
    """A number of any length, and the place behind it."""
    value = shift = 0
    while True:
        byte = data[place]
        value |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
        if byte < 128:
            return value, place
