"""Networks over the samples of sounds whose first weights were published: wav2vec 2.0, HuBERT, WavLM, data2vec."""

import math
from collections.abc import Sequence
from types import MethodType
from typing import Any, ClassVar, Literal, Self, TypeVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from models.base import Learner, Supervised
from models.parts.ctc import BLANK
from models.parts.optimizers import AdamW
from models.parts.options import Plain
from models.parts.pooling import MeanPooling, inside
from models.parts.pretrained import Pretrained
from models.parts.published import Published, Unusable
from models.parts.published_networks import configuration, drop, load, of_backbone
from models.parts.published_texts import is_id
from models.parts.schedules import Cosine
from models.parts.speech import FRAMES_PER_SECOND, Listener, Transcriber, WaveEncoder, steps

_PREPROCESSOR = "preprocessor_config.json"
_RATES = (8_000, 16_000)
_CHARACTERS, _SPACE = "vocab.json", "|"
_QUIETEST = 1e-7
"""Added to the variance of a sound, as in training of what was published."""
_TRIED = 1_000
"""Frames of the longest sound for which is counted how many states it has."""
Convolutions = Sequence[tuple[int, int]]
"""The kernel and the stride of each of them, in their order."""
Count = TypeVar("Count", int, Tensor)


class Sampled(Plain):
    """How a network was shown sounds when its weights were learned; as all but a few were, if nothing says it."""

    rate: int = Field(16_000, description="Samples per second.")
    normalised: bool = Field(
        True, description="Whether each sound was given mean 0 and deviation 1 first."
    )


class PretrainedSound(WaveEncoder, Pretrained):
    """A published network over the samples of sounds: wav2vec 2.0, HuBERT, WavLM or data2vec (Baevski et al., 2020)."""

    name: Literal["pretrained"] = "pretrained"
    checkpoint: str = Field(
        "facebook/wav2vec2-base",
        min_length=1,
        max_length=200,
        description="A checkpoint of the Hugging Face Hub, or one that was uploaded, of a network over sounds.",
    )
    freeze_features: bool = Field(
        True,
        description="Leave the convolutions that read samples as they were published, which little data makes worse "
        "(Baevski et al., 2020).",
    )
    hidden: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="Share of states that are hidden in training, in stretches of a fifth of a second (Park et al., "
        "2019); as it was published if left out.",
    )
    dropout: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="Share of states and attention dropped in training; as it was published if left out.",
    )
    sampled: Sampled | None = Field(
        None, description="How the checkpoint was shown sounds; read from it."
    )

    model_types: ClassVar[tuple[str, ...]] = (
        "data2vec-audio", "hubert", "unispeech", "unispeech-sat", "wav2vec2", "wavlm",
    )  # fmt: skip

    @property
    def rate(self) -> int | None:
        return None if self.sampled is None else self.sampled.rate

    def grounded(self, published: Published) -> Self:
        found = super().grounded(published)
        config, sampled = of_backbone(found.config or {}), read_sampled(published)
        _check(configuration(config), sampled)
        return found.model_copy(update={"config": config, "sampled": sampled})

    def over_waves(self) -> Listener:
        from transformers import AutoModel

        network = AutoModel.from_config(self._configuration(), dtype=torch.float32)
        return PublishedSound(network, self)

    def begin(self, learner: Learner, published: Published) -> None:
        from transformers import AutoModel, AutoModelForCTC

        assert isinstance(learner, Supervised)
        known = read_characters(published) if isinstance(learner, Transcriber) else {}
        if known:
            whole: Any = load(AutoModelForCTC, self._configuration(), published)
            network = whole.base_model
            assert isinstance(learner, Transcriber)
            _begin_writing(learner, whole.lm_head, known, network.config.pad_token_id)
        else:
            network = load(AutoModel, self._configuration(), published)
        learner.backbone.load_state_dict(PublishedSound(network, self).state_dict())

    def _configuration(self) -> Any:
        config = configuration(self.config)
        if self.dropout is not None:
            drop(config, self.dropout)
        return config

    def defaults(self, examples: int) -> dict[str, Any]:
        # Behind `Transfer`, the backbone learns at a tenth of this.
        return {
            "optimizer": AdamW(learning_rate=1e-3),
            "schedule": Cosine(warmup=0.1),
            "batch_size": 8 if examples < 4_000 else 16,
            "epochs": max(5, min(30, 20_000 // examples)),
        }


def read_sampled(published: Published) -> Sampled:
    """How a checkpoint's sounds were sampled and normalised, by its preprocessor. Raises Unusable."""
    said = published.read(_PREPROCESSOR) if published.has(_PREPROCESSOR) else {}
    rate, normalised = said.get("sampling_rate", 16_000), said.get("do_normalize", True)
    if rate not in _RATES:
        raise Unusable(f"it was shown {rate} samples per second; allowed are {_RATES}")
    return Sampled(rate=rate, normalised=bool(normalised))


def read_characters(published: Published) -> dict[str, int]:
    """Which of its outputs are which characters, if it was published to write down speech by single ones."""
    kinds = published.config.get("architectures") or []
    if not any(str(kind).endswith("ForCTC") for kind in kinds) or not published.has(_CHARACTERS):
        return {}
    found, config = published.read(_CHARACTERS), configuration(of_backbone(published.config))
    size = config.vocab_size
    if not is_id(config.pad_token_id, size):
        return {}
    known = {" " if name == _SPACE else name: id for name, id in found.items() if is_id(id, size)}
    return {name: id for name, id in known.items() if len(name) == 1}


@torch.no_grad()
def _begin_writing(
    learner: Transcriber, published: nn.Linear, known: dict[str, int], nothing: int
) -> None:
    """Give characters the published scores, those of the other case where it knows no better; `nothing` the blank's."""
    rows = [(BLANK, nothing)]
    for place, character in enumerate(learner.alphabet, start=1):
        ways = (character, character.upper(), character.lower())
        rows += [(place, known[way]) for way in ways if way in known][:1]
    ours, theirs = (list(ids) for ids in zip(*rows, strict=True))
    assert isinstance(learner.head, nn.Linear)
    learner.head.weight[ours] = published.weight[theirs]
    learner.head.bias[ours] = published.bias[theirs]


def _check(config: Any, sampled: Sampled) -> None:
    """Raises Unusable for networks whose states would depend on longer sounds beside, or are too few."""
    if getattr(config, "add_adapter", False):
        raise Unusable("it has an adapter behind its states, which is not supported")
    if getattr(config, "conv_pos_batch_norm", False):
        raise Unusable("it tells places by statistics of batches, which is not supported")
    convolutions, hop = _convolutions(config), sampled.rate // FRAMES_PER_SECOND
    frames = torch.arange(1, _TRIED)
    samples = (frames * hop).clamp(min=least(convolutions))
    if (outputs(convolutions, samples) < steps(frames)).any():
        raise Unusable("its states are too far apart for the characters of speech")


def _convolutions(config: Any) -> Convolutions:
    return list(zip(config.conv_kernel, config.conv_stride, strict=True))


def outputs(convolutions: Convolutions, inputs: Count) -> Count:
    """How many numbers convolutions make of so many."""
    for kernel, stride in convolutions:
        inputs = (inputs - kernel) // stride + 1
    return inputs


def least(convolutions: Convolutions) -> int:
    """How many numbers one number behind convolutions is made of."""
    count = 1
    for kernel, stride in reversed(convolutions):
        count = (count - 1) * stride + kernel
    return count


class PublishedSound(Listener):
    """A network of `transformers`, of which a sound has the same states alone and beside longer ones."""

    # 82 seconds, of which the first convolution makes half a gigabyte.
    at_once = 1 << 13
    normed = True

    def __init__(self, network: Any, architecture: PretrainedSound) -> None:
        super().__init__()
        assert architecture.sampled is not None, "a job's architecture was grounded"
        config, self.sampled = network.config, architecture.sampled
        self.width: int = config.hidden_size
        self.hop = self.sampled.rate // FRAMES_PER_SECOND
        self.stride = math.prod(config.conv_stride) / self.hop
        self.features: nn.ModuleList = network.feature_extractor.conv_layers
        self.projection: nn.Module = network.feature_projection
        self.encoder: Any = network.encoder
        if config.model_type == "data2vec-audio":
            self.encoder.pos_conv_embed = Places(self.encoder.pos_conv_embed.layers)
        if config.model_type == "wavlm":
            for layer in self.encoder.layers:
                looks = layer.attention
                looks.torch_multi_head_self_attention = MethodType(_attend, looks)
        hidden = getattr(network, "masked_spec_embed", None)
        self.mask = nn.ParameterList([] if hidden is None else [hidden])
        share = architecture.hidden
        self.share: float = config.mask_time_prob if share is None else share
        self.stretch: int = config.mask_time_length
        self.mean = MeanPooling()
        self._freezes = architecture.freeze_features
        self._convolutions = _convolutions(config)
        self._least = least(self._convolutions)

    def blocks(self) -> list[nn.Module]:
        before: list[nn.Module] = [self.projection, self.mask]
        after: list[nn.Module] = [self.mean]
        for name, child in self.encoder.named_children():
            if name != "layers":
                (before if "pos" in name else after).append(child)
        return [self.features, nn.ModuleList(before), *self.encoder.layers, nn.ModuleList(after)]

    def kept(self) -> list[nn.Module]:
        return [self.features] if self._freezes else []

    def steps(self, frames: Tensor) -> Tensor:
        return outputs(self._convolutions, self._samples(frames))

    def _samples(self, frames: Tensor) -> Tensor:
        """Samples (B,) that are read of sounds; those that are too short for a state are made longer."""
        return (frames * self.hop).clamp(min=self._least)

    def states(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Frames of samples (B, T, hop), so many (B,), to states (B, S, width)."""
        waves = self._shown(tokens, lengths)
        found = self._projected(self._features(waves, self._samples(lengths)))
        there = inside(found, self.steps(lengths))
        states: Tensor = self.encoder(self._hidden(found), attention_mask=there).last_hidden_state
        return states

    def forward(self, sounds: Tensor, frames: Tensor) -> Tensor:
        """The same to one vector for each sound (B, width)."""
        pooled: Tensor = self.mean(self.states(sounds, frames), self.steps(frames))
        return pooled

    def _shown(self, sounds: Tensor, frames: Tensor) -> Tensor:
        """Samples (B, N) as the network was shown them, 0 behind a sound's end."""
        waves = sounds.flatten(1)
        if self.sampled.normalised:
            count = frames[:, None] * sounds.shape[2]
            there = inside(waves, count[:, 0])
            centred = (waves - (waves * there).sum(1, keepdim=True) / count) * there
            variance = centred.square().sum(1, keepdim=True) / count
            waves = centred / (variance + _QUIETEST).sqrt()
        return F.pad(waves, (0, max(0, self._least - waves.shape[1])))

    def _features(self, waves: Tensor, samples: Tensor) -> Tensor:
        """Samples (B, N), so many (B,), to (B, S, D)."""
        found, layers = waves[:, None], list[Any](self.features)
        for place, layer in enumerate(layers):
            norm = getattr(layer, "layer_norm", None)
            if isinstance(norm, nn.GroupNorm):
                left = outputs(self._convolutions[: place + 1], samples)
                found = layer.activation(normed(layer.conv(found), norm, left))
            else:
                found = layer(found)
        return found.transpose(1, 2)

    def _projected(self, features: Tensor) -> Tensor:
        found: Any = self.projection(features)
        states: Tensor = found[0] if isinstance(found, tuple) else found
        return states

    def _hidden(self, states: Tensor) -> Tensor:
        """States (B, S, width), in training without what stretches that are drawn at random say."""
        if not self.training or not self.share:
            return states
        begins = torch.rand(states.shape[:2], device=states.device) < self.share / self.stretch
        wide = F.pad(begins.float(), (self.stretch - 1, 0))[:, None]
        hidden = F.max_pool1d(wide, self.stretch, 1)[:, 0] > 0
        instead = self.mask[0] if len(self.mask) else states.new_zeros(self.width)
        return torch.where(hidden[..., None], instead.to(states.dtype), states)


def normed(x: Tensor, norm: nn.GroupNorm, lengths: Tensor) -> Tensor:
    """(B, C, T), each channel with mean 0 and deviation 1 over so many places (B,), then weighted as `norm` says.

    As `norm` itself does over all places: of what is padded, those behind the end would count.
    """
    there, count = inside(x[:, 0], lengths)[:, None], lengths.view(-1, 1, 1)
    centred = x - (x * there).sum(2, keepdim=True) / count
    variance = (centred * there).square().sum(2, keepdim=True) / count
    scaled = centred * (variance + norm.eps).rsqrt()
    return scaled * norm.weight[:, None] + norm.bias[:, None]


class Places(nn.Module):
    """Layers of convolutions that tell states their places; none of them sees what another made of padding."""

    def __init__(self, layers: nn.ModuleList) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, states: Tensor) -> Tensor:
        """States (B, S, D), those of padding 0, to (B, S, D)."""
        found, there = states.transpose(1, 2), (states != 0).any(2)[:, None]
        for layer in self.layers:
            found = layer(found) * there
        return found.transpose(1, 2)


def _attend(layer: Any, states: Tensor, there: Tensor, bias: Tensor) -> tuple[Tensor, None]:
    """What a layer of WavLM finds (B, S, D) where states (B, S) are, with a bias (B * heads, S, S) of its scores.

    As its own way does, which torch calls deprecated, and in less memory.
    """
    split = (len(states), -1, layer.num_heads, layer.head_dim)
    queries, keys, values = (
        project(states).view(split).transpose(1, 2)
        for project in (layer.q_proj, layer.k_proj, layer.v_proj)
    )
    bias = bias.view(len(states), layer.num_heads, *bias.shape[1:]).to(queries.dtype)
    bias = bias.masked_fill(~there[:, None, None], -torch.inf)
    rate = layer.dropout if layer.training else 0.0
    found = F.scaled_dot_product_attention(queries, keys, values, bias, rate)
    return layer.out_proj(found.transpose(1, 2).flatten(2)), None
