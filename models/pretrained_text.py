"""Networks over texts whose first weights were published: encoders such as BERT, and decoders such as GPT."""

import inspect
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn

from models.base import (
    SENTENCE_END,
    CausalBackbone,
    CausalEncoder,
    Learner,
    State,
    Supervised,
)
from models.parts.language import LanguageModel
from models.parts.matching import PairBackbone
from models.parts.optimizers import AdamW
from models.parts.options import AUTO, Auto
from models.parts.pooling import MeanPooling
from models.parts.published import Published, Unusable
from models.parts.published_networks import (
    by_layers,
    configuration,
    drop,
    joined,
    load,
    of_backbone,
)
from models.parts.published_texts import (
    SHIFT,
    Pooled,
    Reader,
    Reads,
    as_published,
    laid,
    mark,
    read_texts,
)
from models.parts.schedules import Cosine

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

ENCODERS = (
    "albert", "bert", "camembert", "deberta", "deberta-v2", "distilbert", "electra", "ernie",
    "megatron-bert", "modernbert", "mpnet", "rembert", "roberta", "roformer", "xlm-roberta", "xlm-roberta-xl",
)  # fmt: skip
DECODERS = (
    "bloom", "cohere", "falcon", "gemma", "gemma2", "gemma3_text", "gpt2", "gpt_neox", "gptj",
    "granite", "llama", "mistral", "olmo", "olmo2", "opt", "phi", "phi3", "qwen2", "qwen3", "smollm3",
    "stablelm", "starcoder2", "xglm",
)  # fmt: skip
_IMPOSSIBLE = -100.0
"""The score of tokens that are never written."""


class PretrainedText(CausalEncoder, Reader):
    """A published network over texts, such as BERT, RoBERTa, DeBERTa or MPNet, GPT-2, Llama, Qwen or Gemma."""

    name: Literal["pretrained"] = "pretrained"
    checkpoint: str = Field(
        "distilbert/distilbert-base-multilingual-cased",
        min_length=1,
        max_length=200,
        description="A checkpoint of the Hugging Face Hub, or one that was uploaded, of a network over texts.",
    )
    pooling: Auto[Pooled] = Field(
        AUTO,
        description="How the states of a text become one vector: the `first`, which is that of [CLS], their `mean`, or "
        "the `last`. `auto`: as the checkpoint says; else the first of an encoder, for search the mean, and the "
        "last of a decoder.",
    )
    dropout: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="Share of states and attention dropped in training; as it was published if left out.",
    )
    causal: bool = Field(
        False,
        description="Whether it goes on with texts; what writes texts asks for that by itself.",
    )
    reads: Reads | None = Field(
        None, description="Which marks the checkpoint was shown around texts; read from it."
    )

    model_types: ClassVar[tuple[str, ...]] = (*ENCODERS, *DECODERS)

    def grounded(self, published: Published) -> Self:
        found = super().grounded(published)
        config = of_backbone(found.config or {})
        if config.get("model_type") in ENCODERS and config.get("is_decoder"):
            raise Unusable("it is of an encoder that was made a decoder, which is not supported")
        return found.model_copy(
            update={"config": config, "reads": read_texts(published), "causal": False}
        )

    @property
    def goes_on(self) -> bool:
        """Whether the checkpoint is of a decoder, which only looks back."""
        return self.config is not None and self.config.get("model_type") in DECODERS

    @property
    def most(self) -> int | None:
        """Tokens of a text that it can read between its marks, if there is a limit."""
        if self.config is None or self.reads is None:
            return None
        around = len(self.reads.before) + len(self.reads.behind)
        window = configuration(self.config).to_dict().get("sliding_window")
        limits = [limit for limit in (self.reads.most, window if self.goes_on else None) if limit]
        return min(limits) - around if limits else None

    def for_reading(self, *, compares: bool) -> Self:
        """A copy that reads texts as a whole, be it to compare them by their vectors, or else."""
        return self.pooled(compares=compares).model_copy(update={"causal": False})

    def pooled(self, *, compares: bool) -> Self:
        """A copy that says how states become a vector, be it to compare texts by, or else."""
        if self.pooling != AUTO or self.reads is None:
            return self
        usual = "last" if self.goes_on else "mean" if compares or not self.reads.before else "first"
        return self.model_copy(update={"pooling": self.reads.pooling or usual})

    def one_way(self) -> Self:
        if self.config is not None and not self.goes_on:
            kind = self.config.get("model_type")
            raise Unusable(f"it is of kind {kind}, which writes no texts; {', '.join(DECODERS)} do")
        return self.model_copy(update={"causal": True})

    def build(self, vocabulary: int, max_length: int) -> CausalBackbone:
        return PublishedStates(self, max_length)

    @property
    def returns(self) -> bool:
        return not self.causal  # the scores of its tokens are in the order of ours

    def network_of(self, learner: Learner) -> nn.Module:
        assert isinstance(learner, Supervised)
        assert isinstance(learner.backbone, PublishedStates)
        return learner.backbone.network

    def begin(self, learner: Learner, published: Published) -> None:
        from transformers import AutoModel, AutoModelForCausalLM

        assert isinstance(learner, Supervised)
        assert isinstance(learner.backbone, PublishedStates)
        config = configuration(self.config)
        if isinstance(learner, LanguageModel):
            whole = load(AutoModelForCausalLM, config, published)
            network = _used(whole.base_model)
            _begin_writing(learner.head, whole.get_output_embeddings(), learner.backbone.reads.end)
        else:
            network = load(AutoModel, config, published, _used)
        learner.backbone.network.load_state_dict(network.state_dict())

    def defaults(self, examples: int) -> dict[str, Any]:
        # Behind `Transfer`, the backbone learns at a tenth of this.
        return {
            "optimizer": AdamW(learning_rate=3e-4),
            "schedule": Cosine(warmup=0.1),
            "batch_size": 16 if examples < 4_000 else 32,
            "epochs": max(3, min(20, 20_000 // examples)),
        }


@torch.no_grad()
def _begin_writing(head: nn.Module, published: Any, end: int) -> None:
    """Give scores of next tokens, SHIFT + V of them, what the published network says of its V tokens."""
    assert isinstance(head, nn.Linear)
    count = min(len(published.weight), len(head.weight) - SHIFT)
    head.bias.fill_(_IMPOSSIBLE)
    head.weight[SHIFT : SHIFT + count] = published.weight[:count]
    head.weight[SENTENCE_END] = published.weight[end]
    bias = published.bias
    if bias is None:
        bias = published.weight.new_zeros(len(published.weight))
    head.bias[SHIFT : SHIFT + count] = bias[:count]
    head.bias[SENTENCE_END] = bias[end]
    if end < count:  # texts end with the token that every vocabulary has for it
        head.bias[SHIFT + end] = _IMPOSSIBLE


def _used(network: Any) -> "PreTrainedModel":
    """The network without what only its own head would need."""
    if getattr(network, "pooler", None) is not None:
        network.pooler = None
    used: PreTrainedModel = network
    return used


class PublishedStates(PairBackbone, CausalBackbone):
    """A network of `transformers` that is given tokens by our ids, and puts its own marks around them."""

    numbers_tokens = False

    def __init__(self, architecture: PretrainedText, max_length: int) -> None:
        super().__init__()
        from transformers import AutoModel

        config = configuration(architecture.config)
        _widen_windows(config, max_length)
        if architecture.dropout is not None:
            drop(config, architecture.dropout)
        assert architecture.reads is not None, "a job's architecture was grounded"
        self.network = _used(AutoModel.from_config(config, dtype=torch.float32))
        self.width: int = getattr(config, "word_embed_proj_dim", config.hidden_size)
        self.reads, self.causal = architecture.reads, architecture.causal
        self.pooling = architecture.pooled(compares=False).pooling
        self.mean, self.tokens = MeanPooling(), config.vocab_size
        taken = inspect.signature(self.network.forward).parameters
        self._placed = "position_ids" in taken
        self._memory = "cache" if "cache" in taken else "past_key_values"
        # Keys and values that nobody asks for would be kept until the backward pass.
        self._unkept = {"use_cache": False} if "use_cache" in taken else {}

    def blocks(self) -> list[nn.Module]:
        before, layers, after = by_layers(self.network)
        return [*joined(before), *layers, *joined([*after, self.mean])]

    def states(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        if self.causal:
            return self._read(self._theirs(tokens, begins=True), lengths)
        before = len(self.reads.before)
        whole = self._read(*self._marked([(tokens, lengths)]))
        return whole[:, before : before + tokens.shape[1]]

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        ids, count = self._marked([(tokens, lengths)])
        return self._pool(self._read(ids, count), count)

    def joined(self, a: Tensor, a_lengths: Tensor, b: Tensor, b_lengths: Tensor) -> Tensor:
        a_lengths, b_lengths = self._fitting(a_lengths, b_lengths)
        ids, count = self._marked([(a, a_lengths), (b, b_lengths)])
        second = len(self.reads.before) + a_lengths + len(self.reads.between)
        places = torch.arange(ids.shape[1], device=ids.device)
        told = (places >= second[:, None]) & (places < count[:, None])
        return self._pool(self._read(ids, count, told.long()), count)

    def read_on(
        self, tokens: Tensor, lengths: Tensor, memory: State | None = None
    ) -> tuple[Tensor, State]:
        """See `CausalBackbone`. The memory: how much was read (B,), where it lies (B, S), keys and values."""
        from transformers import DynamicCache

        there = torch.arange(tokens.shape[1], device=tokens.device) < lengths[:, None]
        read, seen, *kept = memory or (torch.zeros_like(lengths), there[:, :0])
        seen = torch.cat([seen, there], 1)
        cache = DynamicCache(list(zip(kept[::2], kept[1::2], strict=True)))
        placed = {}
        if self._placed:
            places = read[:, None] + torch.arange(tokens.shape[1], device=tokens.device)
            # Rows that are over are read on with others.
            placed = {"position_ids": places.clamp(max=(self.reads.most or int(1e9)) - 1)}
        states: Tensor = self.network(
            input_ids=self._theirs(tokens, begins=memory is None),
            attention_mask=seen.long(),
            use_cache=True,
            **{self._memory: cache},
            **placed,
        ).last_hidden_state
        held: list[Any] = cache.layers
        kept = [part for layer in held for part in (layer.keys, layer.values)]
        return states, (read + lengths, seen, *kept)

    def _theirs(self, tokens: Tensor, *, begins: bool = False) -> Tensor:
        """Tokens (B, T) by the ids of the published tokenizer; `begins`: the first ones may open a text."""
        ids = as_published(tokens, self.tokens, self.reads.unknown, self.reads.end)
        if begins:
            opens = tokens[:, 0] == SENTENCE_END
            ids[:, 0] = torch.where(opens, self.reads.begin, ids[:, 0])
        return ids

    def _marked(self, texts: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """One or two texts (B, T) of lengths (B,) with the marks around them: (B, N), and how many (B,)."""
        first = texts[0][1]
        parts = [mark(self.reads.before, first)]
        for number, (tokens, lengths) in enumerate(texts):
            if number:
                parts.append(mark(self.reads.between, first))
            parts.append((self._theirs(tokens), lengths))
        parts.append(mark(self.reads.behind, first))
        return laid(parts, self.reads.padding, self.reads.most)

    def _fitting(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """How much is read of two texts of lengths (B,): of the longer one less, where both are too long."""
        marks = (self.reads.before, self.reads.between, self.reads.behind)
        if self.reads.most is None:
            return a, b
        room = self.reads.most - sum(map(len, marks))
        a = torch.minimum(a, (room - b).clamp(min=room // 2))
        return a, torch.minimum(b, room - a)

    def _read(self, ids: Tensor, count: Tensor, second: Tensor | None = None) -> Tensor:
        """Their ids (B, N), so many (B,), and which are of a second text, to states (B, N, width)."""
        told = {}
        if self.reads.second:
            told["token_type_ids"] = torch.zeros_like(ids) if second is None else second
        there = torch.arange(ids.shape[1], device=ids.device) < count[:, None]
        states: Tensor = self.network(
            input_ids=ids, attention_mask=there.long(), **told, **self._unkept
        ).last_hidden_state
        return states

    def _pool(self, states: Tensor, count: Tensor) -> Tensor:
        if self.pooling == "first":
            return states[:, 0]
        if self.pooling == "mean":
            pooled: Tensor = self.mean(states, count)
            return pooled
        return states[torch.arange(len(states), device=states.device), count - 1]


def _widen_windows(config: "PretrainedConfig", max_length: int) -> None:
    """Have layers that look back so far look at all of texts that are no longer.

    How far is counted with the padding between what was read and what is read on.
    """
    window = getattr(config, "sliding_window", None)
    if window is not None and max_length <= window:
        config.sliding_window = 1 << 30
