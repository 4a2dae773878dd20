"""Tokenizers in other layouts than that of the `tokenizers` library read texts as they did."""

import json
from pathlib import Path
from typing import Any

import pytest

from models.parts.published import Published, Unusable
from models.parts.published_pieces import read_pieces, rebuilt
from models.pretrained_writer import PretrainedWriter
from tests.published_texts import LINES
from tests.published_writers import as_sentencepiece, spelled, writer_checkpoint

TEXT = "내일  서울에 비가 온다 ☃\n\tAnn's"


@pytest.fixture
def marian(tmp_path: Path) -> Path:
    writer_checkpoint(tmp_path, "marian")
    return tmp_path


def made(folder: Path, **options: Any) -> Any:
    found = rebuilt(Published(folder), **options)
    assert found is not None
    return found


def test_a_file_of_sentencepiece_says_which_pieces_are_how_likely() -> None:
    pieces = spelled(LINES)
    found = read_pieces(as_sentencepiece(pieces))
    assert [piece.kind for piece in found.pieces[:3]] == [2, 3, 3]
    assert [piece.text for piece in found.pieces[3:]] == [text for text, _ in pieces]
    scores = [piece.score for piece in found.pieces[3:]]
    assert scores == pytest.approx([score for _, score in pieces], rel=1e-6)
    assert found.folding == b""


@pytest.mark.parametrize(("writes", "lines"), [(False, LINES[:4]), (True, LINES[2:6])])
def test_each_language_is_cut_into_its_own_pieces_by_ids_that_both_share(
    writes: bool, lines: list[str], marian: Path
) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer, ids = made(marian, writes=writes), json.loads((marian / "vocab.json").read_text())
    own = Tokenizer(models.Unigram([("<unk>", 0.0), *spelled(lines)], 0, byte_fallback=False))
    own.pre_tokenizer = pre_tokenizers.Metaspace()
    for line in lines:
        expected = own.encode(line).tokens
        found = tokenizer.tokenize(line)
        assert found == expected
        assert tokenizer(line).input_ids == [*(ids[token] for token in expected), ids["</s>"]]
        assert tokenizer.decode(tokenizer(line).input_ids, skip_special_tokens=True) == line


def test_a_checkpoint_is_told_into_which_language_it_translates_by_one_token(marian: Path) -> None:
    ids = json.loads((marian / "vocab.json").read_text())
    asked = PretrainedWriter(prefix=">>fra<<").grounded(Published(marian))
    assert asked.writes is not None
    assert asked.writes.before == [ids[">>fra<<"]]
    assert (asked.writes.behind, asked.writes.begins) == ([0], [ids["<pad>"]])


def test_bytes_are_read_and_written_as_they_are(tmp_path: Path) -> None:
    writer_checkpoint(tmp_path, "byt5")
    tokenizer = made(tmp_path)
    assert tokenizer(TEXT).input_ids == [*(byte + 3 for byte in TEXT.encode()), 1]
    assert tokenizer.decode(tokenizer(TEXT).input_ids, skip_special_tokens=True) == TEXT
    assert len(tokenizer) == 259


def spoil(folder: Path, name: str, content: Any) -> None:
    if isinstance(content, bytes):
        (folder / name).write_bytes(content)
    else:
        (folder / name).write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("source.spm", b"no such file", "cannot be read"),
        ("source.spm", as_sentencepiece([("a", -1.0)])[:-3], "cannot be read"),
        ("source.spm", as_sentencepiece([]), "no tokenizer of Marian's"),
        ("source.spm", b"\x12\x02\x18\x02", "none of likely pieces"),
        ("source.spm", as_sentencepiece([("a", -1.0)])[:-5] + b"\x1a\x03\x12\x01x", "no known way"),
        ("vocab.json", {"</s>": 0, "<unk>": 5}, "no tokenizer of Marian's"),
        ("tokenizer_config.json", {"separate_vocabs": True}, "two vocabularies"),
    ],
)
def test_what_is_no_tokenizer_is_refused(name: str, content: Any, why: str, marian: Path) -> None:
    spoil(marian, name, content)
    with pytest.raises(Unusable, match=why):
        PretrainedWriter().grounded(Published(marian))
