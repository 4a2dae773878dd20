"""Tiny checkpoints over texts, as they are published: random networks, and tokenizers learned from a few lines."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

LINES = [
    "What a wonderful film that was, 12 times! What an awful, boring song.",
    "The cat never sleeps in house 7; the dog eats and the child sings.",
    "Ann met Bob in Paris. She flew to Oslo, and he took a train on Monday.",
    "Wings in supersonic flow: heat, drag and lift of thin plates at 345 degrees.",
    "Play some jazz, book a table for two, and wake me at 8:30 (please)?",
    "내일 서울에 비가 온다. 고양이는 집에서 잔다.",
] * 4
WIDTH, LAYERS, HEADS = 64, 2, 2
SIZES = {
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": 64,
}
DISTINCT = 0.2
"""Deviation of the weights: with the usual 0.02, all tokens look alike to a network so small and fresh."""


def word_pieces(folder: Path, marks: dict[str, str]) -> None:
    """Pieces of words in lower case, as of BERT: a `vocab.txt`, and no more than that."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))  # type: ignore[call-arg]
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=400,
        special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(LINES, trainer)
    ids = tokenizer.get_vocab()
    (folder / "vocab.txt").write_text("\n".join(sorted(ids, key=ids.__getitem__)), "utf-8")


def byte_pairs(folder: Path, marks: dict[str, str]) -> None:
    """Pairs of bytes, as of GPT-2 and RoBERTa: a `vocab.json` and a `merges.txt`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=list(dict.fromkeys(marks.values())),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(LINES, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]), "utf-8")
    merges = "\n".join(" ".join(pair) for pair in model["merges"])
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n", "utf-8")


def spaced_pairs(folder: Path, marks: dict[str, str]) -> None:
    """Pairs of characters whose first one is the space before a word, as of Llama: a `tokenizer.json`."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=True)
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=520,
        special_tokens=["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))],
        show_progress=False,
    )
    tokenizer.train_from_iterator(LINES, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))


def single_pieces(folder: Path, marks: dict[str, str]) -> None:
    """Likely pieces of texts, as of DeBERTa-v3 and XLM-R: a `tokenizer.json`."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=300,
        special_tokens=["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"],
        unk_token="[UNK]",
        show_progress=False,
    )
    tokenizer.train_from_iterator(LINES, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 1), ("[SEP]", 2)],
    )
    tokenizer.save(str(folder / "tokenizer.json"))


Writes = Callable[[Path, dict[str, str]], None]
_BERT = {"cls": "[CLS]", "sep": "[SEP]", "pad": "[PAD]", "unk": "[UNK]", "mask": "[MASK]"}
_ROBERTA = {
    "bos": "<s>", "pad": "<pad>", "eos": "</s>", "unk": "<unk>", "mask": "<mask>", "cls": "<s>", "sep": "</s>",
}  # fmt: skip
_GPT = {"bos": "<|endoftext|>", "eos": "<|endoftext|>", "unk": "<|endoftext|>"}
_LLAMA = {"bos": "<s>", "eos": "</s>", "unk": "<unk>"}
KINDS: dict[str, tuple[Writes, dict[str, str], str | None, dict[str, Any]]] = {
    "bert": (word_pieces, _BERT, None, {"pad_token_id": 0, **SIZES}),
    "roberta": (
        byte_pairs,
        _ROBERTA,
        None,
        {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "type_vocab_size": 1, **SIZES},
    ),
    "deberta-v2": (
        single_pieces,
        _BERT,
        "PreTrainedTokenizerFast",
        {
            **SIZES,
            "pad_token_id": 0,
            "relative_attention": True,
            "position_buckets": 16,
            "norm_rel_ebd": "layer_norm",
            "share_att_key": True,
            "pos_att_type": ["p2c", "c2p"],
            "position_biased_input": False,
            "type_vocab_size": 0,
        },
    ),
    "gpt2": (
        byte_pairs,
        _GPT,
        None,
        {"n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS, "bos_token_id": 0, "eos_token_id": 0},
    ),
    "llama": (
        spaced_pairs,
        _LLAMA,
        "PreTrainedTokenizerFast",
        {**SIZES, "num_key_value_heads": 1, "bos_token_id": 1, "eos_token_id": 2},
    ),
}
"""For each kind: what writes its tokenizer, its marks, the class of that if it has to be told, and its sizes."""


def text_checkpoint(folder: Path, kind: str = "gpt2", places: int = 128, **more: Any) -> None:
    """A checkpoint of a kind, whose network has a head to write or to fill gaps with."""
    # Loading it takes a second, which tests that begin with nothing published need not wait for.
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

    write, marks, of_class, sizes = KINDS[kind]
    write(folder, marks)
    told: dict[str, Any] = {f"{name}_token": mark for name, mark in marks.items()}
    if of_class:
        told["tokenizer_class"] = of_class
    (folder / "tokenizer_config.json").write_text(json.dumps(told))
    (folder / "config.json").write_text(json.dumps({"model_type": kind}))
    size = len(AutoTokenizer.from_pretrained(folder))
    torch.manual_seed(1)
    config = AutoConfig.for_model(
        kind,
        vocab_size=size,
        max_position_embeddings=places,
        **{"initializer_range": DISTINCT, **sizes, **more},
    )
    # By hand: of several processes, `save_pretrained` writes in the first one alone.
    config.to_json_file(folder / "config.json")
    writes = kind in ("gpt2", "llama")
    auto = AutoModelForCausalLM if writes else AutoModelForMaskedLM
    network = auto.from_config(config)
    tied = set(getattr(network, "_tied_weights_keys", None) or ())
    weights = {
        n: t.clone()
        for n, t in network.state_dict().items()
        if n not in tied or not config.tie_word_embeddings
    }
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
