"""Tiny checkpoints of networks that read a text and write another, as they are published."""

import json
import struct
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from models.parts.published import Published
from models.parts.published_pieces import rebuilt
from tests.published_texts import HEADS, LAYERS, LINES, WIDTH, byte_pairs

_T5: dict[str, Any] = {
    "d_model": WIDTH,
    "d_kv": WIDTH // HEADS,
    "d_ff": WIDTH,
    "num_layers": LAYERS,
    "num_heads": HEADS,
    "decoder_start_token_id": 0,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 16,
}
_BART: dict[str, Any] = {
    "d_model": WIDTH,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": HEADS,
    "decoder_attention_heads": HEADS,
    "encoder_ffn_dim": WIDTH,
    "decoder_ffn_dim": WIDTH,
    "max_position_embeddings": 64,
    "init_std": 0.05,
}
_MARKS = {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}
_TOLD = {"pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2, "scale_embedding": True}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "t5": ("t5", _T5),
    "flan-t5": (
        "t5",
        {**_T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    ),
    "byt5": ("t5", {**_T5, "num_decoder_layers": 1}),
    "umt5": ("umt5", {**_T5, "feed_forward_proj": "gated-gelu"}),
    "mt5": ("mt5", {**_T5, "feed_forward_proj": "gated-gelu"}),
    "bart": (
        "bart",
        {**_BART, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 2},
    ),
    "marian": ("marian", {**_BART, "eos_token_id": 0, "scale_embedding": True}),
    "pegasus": ("pegasus", {**_BART, **_MARKS, "scale_embedding": True}),
    "mbart": ("mbart", {**_BART, **_TOLD}),
    "nllb": ("m2m_100", {**_BART, **_TOLD}),
}  # fmt: skip
"""For each of them: the kind of network, and its sizes."""
_NAMED = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
_ROBERTA = {"bos": "<s>", "pad": "<pad>", "eos": "</s>", "unk": "<unk>", "mask": "<mask>"}


def ended_pieces(folder: Path) -> None:
    """Likely pieces of texts, and a mark behind them, as of T5: a `tokenizer.json`."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
    )
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=300,
        special_tokens=["<pad>", "</s>", "<unk>", "<extra_id_0>"],
        unk_token="<unk>",
        show_progress=False,
    )
    tokenizer.train_from_iterator(LINES, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    told = {"tokenizer_class": "PreTrainedTokenizerFast", **_NAMED}
    (folder / "tokenizer_config.json").write_text(json.dumps(told))


def told_pieces(folder: Path) -> None:
    """Those of a tokenizer that is told languages, as of mBART-50."""
    from transformers import MBart50Tokenizer

    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=200,
        special_tokens=["<unk>", "<s>", "</s>"],
        unk_token="<unk>",
        show_progress=False,
    )
    tokenizer.train_from_iterator(LINES, trainer)
    pieces = json.loads(tokenizer.to_str())["model"]["vocab"]
    MBart50Tokenizer(vocab=pieces).save_pretrained(folder)


def two_files_of_pieces(folder: Path) -> None:
    """Pieces of two languages, each in a file of sentencepiece, and the ids that both share, as of Marian."""
    ids = {"</s>": 0, "<unk>": 1}
    for name, lines in (("source.spm", LINES[:4]), ("target.spm", LINES[2:6])):
        pieces = spelled(lines)
        (folder / name).write_bytes(as_sentencepiece(pieces))
        ids |= {
            text: len(ids) + n for n, (text, _) in enumerate(p for p in pieces if p[0] not in ids)
        }
    ids |= {">>fra<<": len(ids), "<pad>": len(ids) + 1}
    (folder / "vocab.json").write_text(json.dumps(ids))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "MarianTokenizer"})
    )


def spelled(lines: list[str]) -> list[tuple[str, float]]:
    """Likely pieces of these lines, and the logarithm of how likely each is."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=120, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(lines * 4, trainer)
    vocabulary = json.loads(tokenizer.to_str())["model"]["vocab"]
    return [(text, score) for text, score in vocabulary if text != "<unk>"]


def as_sentencepiece(pieces: list[tuple[str, float]]) -> bytes:
    """A model of pieces as Protocol Buffers write it, with marks and what a real one has besides."""

    def message(number: int, data: bytes) -> bytes:
        size, length = len(data), b""
        while size > 127:
            size, length = size >> 7, length + bytes([size & 127 | 128])
        return bytes([number << 3 | 2]) + length + bytes([size]) + data

    def piece(text: str, score: float, kind: int) -> bytes:
        told = message(1, text.encode()) + b"\x15" + struct.pack("<f", score)
        return message(1, told + (b"" if kind == 1 else bytes([3 << 3, kind])))

    marks = piece("<unk>", 0, 2) + piece("<s>", 0, 3) + piece("</s>", 0, 3)
    trained = message(2, bytes([3 << 3, 1, 4 << 3, 232, 7]) + b"\x55" + struct.pack("<f", 0.5))
    return (
        marks
        + b"".join(piece(*each, 1) for each in pieces)
        + trained
        + message(3, message(1, b"x"))
    )


def bytes_alone(folder: Path) -> None:
    """As of ByT5, which has no file of tokens."""
    told = {"tokenizer_class": "ByT5Tokenizer", "extra_ids": 5}
    (folder / "tokenizer_config.json").write_text(json.dumps(told))


def paired_bytes(folder: Path) -> None:
    """Pairs of bytes between marks, as of BART."""
    byte_pairs(folder, _ROBERTA)
    told = {f"{name}_token": mark for name, mark in _ROBERTA.items()}
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "BartTokenizer", **told})
    )


_TOKENIZERS = {
    "bart": paired_bytes,
    "byt5": bytes_alone,
    "marian": two_files_of_pieces,
    "mbart": told_pieces,
    "nllb": told_pieces,
}


def writer_checkpoint(folder: Path, kind: str = "bart") -> None:
    """A checkpoint of a kind whose tokens look different to it from the start."""
    # Loading it takes a second, which tests that begin with nothing published need not wait for.
    from transformers import AutoConfig, AutoModelForSeq2SeqLM, AutoTokenizer

    of_network, sizes = KINDS[kind]
    _TOKENIZERS.get(kind, ended_pieces)(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": of_network}))
    made = rebuilt(Published(folder))
    size = len(AutoTokenizer.from_pretrained(folder) if made is None else made)
    torch.manual_seed(1)
    last = {"pad_token_id": size - 1, "decoder_start_token_id": size - 1}
    more = {"decoder_vocab_size": size, **last} if kind == "marian" else {}
    told = {"model_type": of_network, "vocab_size": size, **sizes, **more}
    network = AutoModelForSeq2SeqLM.from_config(AutoConfig.for_model(**told))
    weights = network.state_dict()
    if kind in ("flan-t5", "mt5"):  # whose answers are scored by weights of their own
        weights["lm_head.weight"] = torch.randn_like(weights["lm_head.weight"])
    # By hand: of several processes, `save_pretrained` writes in the first one alone.
    (folder / "config.json").write_text(json.dumps(told))
    kept: dict[str, torch.Tensor] = {}
    for name, tensor in weights.items():
        if all(tensor.data_ptr() != other.data_ptr() for other in kept.values()):
            kept[name] = tensor
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
