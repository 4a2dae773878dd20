"""Networks that read a text and write another, whose first weights were published: T5, BART, Marian and their like."""

import copy
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from models.base import Learner, State
from models.parts.optimizers import AdamW
from models.parts.pooling import inside
from models.parts.published import Published, Unusable
from models.parts.published_networks import configuration, drop, load, of_backbone
from models.parts.published_texts import Reader, as_published, laid, mark
from models.parts.published_writers import Writes, read_writing
from models.parts.schedules import Cosine
from models.parts.writing import SequenceToSequence, Writer, WritingBackbone

if TYPE_CHECKING:
    from transformers import DynamicCache, PretrainedConfig

_IMPOSSIBLE = -100.0
"""What the score of a token loses that is never written."""
_LEAST = 1e-9
_SELDOM = 4.0
"""How sure a fresh gate is that tokens are none copied from the source: 98 %."""


class PretrainedWriter(SequenceToSequence, Reader):
    """A published network that reads and writes, such as T5, mT5, BART, mBART, Marian, Pegasus or NLLB."""

    name: Literal["pretrained"] = "pretrained"
    checkpoint: str = Field(
        "google/flan-t5-small",
        min_length=1,
        max_length=200,
        description="A checkpoint of the Hugging Face Hub, or one that was uploaded, of a network that reads texts "
        "and writes others.",
    )
    prefix: str = Field(
        "",
        max_length=200,
        description="What stands before every source, such as `summarize: `, by which some checkpoints are told "
        "what to do.",
    )
    source_language: str | None = Field(
        None,
        max_length=40,
        description="The language of sources as the checkpoint calls it, such as `en_XX` or `eng_Latn`, if it has to "
        "be told.",
    )
    target_language: str | None = Field(
        None, max_length=40, description="The language of targets likewise, such as `ko_KR`."
    )
    dropout: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="Share of states and attention dropped in training; as it was published if left out.",
    )
    writes: Writes | None = Field(
        None, description="Which marks the checkpoint was shown around texts; read from it."
    )

    copies: ClassVar[bool] = False
    model_types: ClassVar[tuple[str, ...]] = (
        "bart", "m2m_100", "marian", "mbart", "mt5", "pegasus", "t5", "umt5",
    )  # fmt: skip

    def grounded(self, published: Published) -> Self:
        found = super().grounded(published)
        languages = self.source_language, self.target_language
        writes = read_writing(published, self.prefix, *languages)
        config = of_backbone(found.config or {})
        return found.model_copy(update={"config": config, "writes": writes})

    @property
    def most(self) -> int | None:
        if self.writes is None or self.writes.most is None:
            return None
        return self.writes.most - len(self.writes.before) - len(self.writes.behind)

    @property
    def most_written(self) -> int | None:
        """Tokens of a target that it can write, if there is a limit."""
        if self.writes is None or self.writes.most is None:
            return None
        return self.writes.most - len(self.writes.begins) + 1

    def for_reading(self, *, compares: bool) -> Self:
        return self

    def build(self, vocabulary: int) -> WritingBackbone:
        from transformers import AutoModelForSeq2SeqLM

        network = AutoModelForSeq2SeqLM.from_config(self._configuration(), dtype=torch.float32)
        return PublishedWriter(network, self)

    def begin(self, learner: Learner, published: Published) -> None:
        from transformers import AutoModelForSeq2SeqLM

        assert isinstance(learner, Writer)
        network: Any = load(AutoModelForSeq2SeqLM, self._configuration(), published)
        learner.backbone.load_state_dict(PublishedWriter(network, self).state_dict())
        _begin_choosing(learner, getattr(network, "final_logits_bias", None))

    def _configuration(self) -> "PretrainedConfig":
        config = configuration(self.config)
        if self.dropout is not None:
            drop(config, self.dropout)
        return config

    def defaults(self, examples: int) -> dict[str, Any]:
        # Behind `Transfer`, the backbone learns at a tenth of this.
        return {
            "optimizer": AdamW(learning_rate=1e-3),
            "schedule": Cosine(warmup=0.1),
            "batch_size": 16 if examples < 4_000 else 32,
            "epochs": max(3, min(20, 20_000 // examples)),
        }


@torch.no_grad()
def _begin_choosing(learner: Writer, bias: Tensor | None) -> None:
    """Have a fresh head choose what the published network would, whose scores have a bias (1, V) added or none."""
    head = learner.head
    if bias is not None:
        head.bias.copy_(bias[0])
    if head.copying is not None:
        head.copying.weight.zero_()
        head.copying.bias.fill_(_SELDOM)


class PublishedWriter(WritingBackbone):
    """An encoder and a decoder of `transformers` that are given tokens by our ids, with their own marks around them."""

    numbers_tokens = False
    mixes = False
    begins: Tensor
    never: Tensor
    marks: Tensor

    def __init__(self, network: Any, architecture: PretrainedWriter) -> None:
        super().__init__()
        writes = architecture.writes
        assert writes is not None, "a job's architecture was grounded"
        config = network.config
        self.writes, self.most, self.width = writes, architecture.most_written, config.d_model
        # What is written is scored by the embeddings, which are scaled where they were scaled in training.
        self.scale = self.width**-0.5 if getattr(config, "scale_decoder_outputs", False) else 1.0
        self.encoder, self.decoder = network.get_encoder(), network.get_decoder()
        _set_apart(self.decoder)
        self.embedding = self.decoder.embed_tokens
        self.answering = _answering(network, self.embedding)
        for stack in (self.encoder, self.decoder):
            if stack.embed_tokens.weight is self.embedding.weight:
                _refer(stack, self.embedding)
        self.register_buffer("begins", torch.tensor(writes.begins), persistent=False)
        # Some end texts by what they put behind them.
        never = {writes.padding} - {writes.end}
        self.register_buffer("never", self._among(never), persistent=False)
        marks = {writes.padding, writes.unknown, writes.end}
        self.register_buffer("marks", self._among(marks), persistent=False)

    def _among(self, ids: set[int]) -> Tensor:
        """Which of their tokens are these: (P,), bool."""
        found = torch.zeros(self.scored, dtype=torch.bool)
        found[list(ids)] = True
        return found

    @property
    def scored(self) -> int:
        answered = self.embedding if self.answering is None else self.answering
        return len(answered.weight)

    def blocks(self) -> list[nn.Module]:
        (places, readers, between), (more, writers, after) = map(
            _parts, (self.encoder, self.decoder)
        )
        last = after if self.answering is None else [*after, self.answering]
        first, middle = [self.embedding, *places], [*between, *more]
        joined = [nn.ModuleList(some) for some in (first, middle, last)]
        found = [joined[0], *readers, joined[1], *writers, joined[2]]
        return [block for block in found if any(True for _ in block.parameters())]

    def read(self, tokens: Tensor, lengths: Tensor) -> State:
        """See `WritingBackbone`: which tokens are there (B, N), and are of the source, states, keys and values."""
        size = self.encoder.embed_tokens.num_embeddings
        source = as_published(tokens, size, self.writes.unknown, self.writes.end)
        parts = [
            mark(self.writes.before, lengths),
            (source, lengths),
            mark(self.writes.behind, lengths),
        ]
        ids, count = laid(parts, self.writes.padding, self.writes.most)
        there = inside(ids, count)
        states = self.encoder(input_ids=ids, attention_mask=there.long()).last_hidden_state
        own = inside(tokens, lengths)
        looked = [part for layer in _parts(self.decoder)[1] for part in _remembered(layer, states)]
        return there, own, states, *looked

    def begin(self, memory: State) -> State:
        return tuple(part[:, :, :0] for part in memory[3:])

    def write(self, written: Tensor, memory: State) -> tuple[Tensor, Tensor]:
        ids = torch.cat([self._begun(written), self.places(written[:, 1:])], 1)
        states, attention, _ = self._go_on(ids, memory, self.begin(memory))
        start = len(self.begins) - 1
        return states[:, start:], attention[:, start:]

    def step(self, written: Tensor, memory: State, state: State) -> tuple[Tensor, Tensor, State]:
        begun = state[0].shape[2] > 0
        ids = self.places(written[:, None]) if begun else self._begun(written)
        states, attention, state = self._go_on(ids, memory, state)
        return states[:, -1], attention[:, -1], state

    def _begun(self, like: Tensor) -> Tensor:
        return self.begins.expand(len(like), -1)

    def places(self, tokens: Tensor) -> Tensor:
        return as_published(tokens, self.scored, self.writes.unknown, self.writes.end)

    def _go_on(self, ids: Tensor, memory: State, state: State) -> tuple[Tensor, Tensor, State]:
        """Their ids (B, T) to states (B, T, width), attention (B, T, S), and keys and values of all that is written."""
        from transformers import EncoderDecoderCache

        there, own, source, *looked = memory
        cache = EncoderDecoderCache(_cache(state), _cache(tuple(looked)))
        # Only this way of computing attention shows it, and it is the slower one.
        self.decoder.config._attn_implementation = "eager" if self.attends else "sdpa"
        told = self.decoder(
            input_ids=ids,
            encoder_hidden_states=source,
            encoder_attention_mask=there.long(),
            cache=cache,
            use_cache=True,
            **({"output_attentions": True} if self.attends else {}),
        )
        held: list[Any] = cache.self_attention_cache.layers
        state = tuple(part for layer in held for part in (layer.keys, layer.values))
        states = told.last_hidden_state * self.scale
        if not self.attends:
            return states, states[:, :, :0], state
        return states, self._of_source(told.cross_attentions[-1].mean(1), own), state

    def _of_source(self, attention: Tensor, own: Tensor) -> Tensor:
        """Attention (B, T, N) to all that was read, as shares of what the source (B, S) itself is given."""
        start = len(self.writes.before)
        given = attention[:, :, start : start + own.shape[1]] * own[:, None]
        total = given.sum(-1, keepdim=True)
        # Dropout may leave nothing of it, of which there are no shares.
        return given / torch.where(total > _LEAST, total, 1.0)

    def scores(self, states: Tensor, bias: Tensor) -> Tensor:
        answered = self.embedding if self.answering is None else self.answering
        return F.linear(states, answered.weight, bias.masked_fill(self.never, _IMPOSSIBLE))

    def by_tokens(self, chances: Tensor) -> Tensor:
        """Each token of theirs is one of ours, but that their marks are our own, and that nobody writes padding."""
        unknown, end = (chances[:, id, None] for id in (self.writes.unknown, self.writes.end))
        own = chances.masked_fill(self.marks, 0.0)
        return torch.cat([torch.zeros_like(end), unknown, end, own], 1)


def _answering(network: Any, embedding: nn.Embedding) -> nn.Linear | None:
    """What scores tokens, where that is something else than their embeddings. Raises Unusable."""
    found: nn.Linear = network.get_output_embeddings()
    config = network.config
    tied = config.tie_word_embeddings and getattr(config, "scale_decoder_outputs", True)
    # T5 of version 1.1 and after has two, which `transformers` calls tied until it finds them to differ.
    if tied and config.model_type != "mt5":
        if found.weight is not embedding.weight:
            raise Unusable("it scores tokens by other weights than its config.json says")
        return None
    own = nn.Linear(found.in_features, found.out_features, bias=False)
    own.load_state_dict({"weight": found.weight.detach()})
    return own


def _set_apart(stack: nn.Module) -> None:
    """Give all of a stack one configuration that it shares with no other."""
    own = copy.deepcopy(stack.config)
    for module in stack.modules():
        if hasattr(module, "config"):
            module.config = own


def _refer(stack: nn.Module, embedding: nn.Module) -> None:
    """Have a stack use embeddings that are part of something else, so that each weight has one name."""
    del stack.embed_tokens
    stack.__dict__["embed_tokens"] = embedding


def _parts(stack: nn.Module) -> tuple[list[nn.Module], list[nn.Module], list[nn.Module]]:
    """What a stack does to embeddings, its layers, and what stands behind them."""
    places: list[nn.Module] = []
    layers: list[nn.Module] = []
    after: list[nn.Module] = []
    for name, child in stack.named_children():
        if isinstance(child, nn.ModuleList):
            layers += child
        else:
            (places if "embed" in name else after).append(child)
    return places, layers, after


def _remembered(layer: Any, source: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values (B, heads, N, D / heads) by which a layer looks at a source's states (B, N, D)."""
    if hasattr(layer, "encoder_attn"):
        looks = layer.encoder_attn
        keys, values, width = looks.k_proj(source), looks.v_proj(source), looks.head_dim
    else:
        looks = layer.layer[1].EncDecAttention
        keys, values, width = looks.k(source), looks.v(source), looks.key_value_proj_dim
    keys, values = (x.unflatten(-1, (-1, width)).transpose(1, 2) for x in (keys, values))
    return keys, values


def _cache(parts: State) -> "DynamicCache":
    """Keys and values of each layer, one after the other, as `transformers` keeps them; nothing is copied."""
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    cache = DynamicCache()
    for keys, values in zip(parts[::2], parts[1::2], strict=True):
        layer = DynamicLayer()
        layer.lazy_initialization(keys, values)
        layer.keys, layer.values = keys, values
        cache.layers.append(layer)
    return cache
