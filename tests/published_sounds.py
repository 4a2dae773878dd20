"""Tiny checkpoints of networks over the samples of sounds, as they are published."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

CHARACTERS = ["<pad>", "<s>", "</s>", "<unk>", "|", "E", "T", "A", "O", "b"]
_SIZES: dict[str, Any] = {
    "conv_dim": [16] * 7,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
    "layerdrop": 0.0,
}
_NORMED = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "wav2vec2": ("wav2vec2", _SIZES),
    "wav2vec2-large": ("wav2vec2", {**_SIZES, **_NORMED}),
    "hubert": ("hubert", _SIZES),
    "wavlm": ("wavlm", {**_SIZES, "num_buckets": 16, "max_bucket_distance": 20}),
    "data2vec-audio": (
        "data2vec-audio",
        {**_SIZES, "num_conv_pos_embeddings": 3, "conv_pos_kernel_size": 5},
    ),
    "unispeech": ("unispeech", _SIZES),
    "unispeech-sat": ("unispeech-sat", {**_SIZES, **_NORMED}),
}
"""For each of them: the kind of network, and its sizes."""


def sound_checkpoint(folder: Path, kind: str = "wav2vec2", **more: Any) -> None:
    """A checkpoint of a kind, of which some were shown each sound with mean 0 and deviation 1, and others as it is."""
    # Loading it takes a second, which tests that begin with nothing published need not wait for.
    from transformers import AutoConfig, AutoModelForCTC

    of_network, sizes = KINDS[kind]
    torch.manual_seed(1)
    told = {"model_type": of_network, "vocab_size": len(CHARACTERS), **sizes, **more}
    network = AutoModelForCTC.from_config(AutoConfig.for_model(**told))
    told["architectures"] = [type(network).__name__]
    (folder / "vocab.json").write_text(json.dumps({c: n for n, c in enumerate(CHARACTERS)}))
    # By hand: of several processes, `save_pretrained` writes in the first one alone.
    (folder / "config.json").write_text(json.dumps(told))
    shown = {"sampling_rate": 16_000, "do_normalize": kind != "hubert"}
    (folder / "preprocessor_config.json").write_text(json.dumps(shown))
    save_file(network.state_dict(), folder / "model.safetensors", {"format": "pt"})
