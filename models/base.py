"""The contracts of what learns: batches, learners, backbones, architectures and their families."""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, Self

import torch
from torch import Tensor, nn

from models.parts.adapters import Adapted, Unadaptable
from models.parts.anchors import Anchor
from models.parts.compiling import Compiled
from models.parts.distillation import Lessons
from models.parts.options import Option
from models.parts.precision import Precision, autocast, scaling
from models.parts.rates import layered
from models.parts.training import Training, Transfer
from models.parts.widening import widened

PADDING, UNKNOWN, SENTENCE_END = 0, 1, 2
"""The token ids every text backbone may rely on; a vocabulary starts with these three."""
State = tuple[Tensor, ...]
"""What a network knows of each text, of what it has read or written so far: tensors of length B."""


@dataclass(frozen=True)
class Batch:
    """Tensors for one step, all of length B; `targets` is empty when only an answer is wanted."""

    inputs: tuple[Tensor, ...]
    targets: tuple[Tensor, ...] = ()

    def __len__(self) -> int:
        return len(self.inputs[0])

    def to(self, device: torch.device | str) -> "Batch":
        move = lambda tensors: tuple(t.to(device, non_blocking=True) for t in tensors)  # noqa: E731
        return Batch(move(self.inputs), move(self.targets))

    def pinned(self) -> "Batch":
        """The same in memory from which a GPU copies by itself, while the CPU goes on."""
        return Batch(
            tuple(t.pin_memory() for t in self.inputs), tuple(t.pin_memory() for t in self.targets)
        )

    def split(self, parts: int) -> Iterator["Batch"]:
        """The same examples in `parts` smaller batches."""
        for index in torch.arange(len(self), device=self.inputs[0].device).chunk(parts):
            yield Batch(tuple(t[index] for t in self.inputs), tuple(t[index] for t in self.targets))


class NotTransferable(ValueError):
    """The base has nothing this learner could take over; the message says why."""


class Learner(nn.Module):
    """A network that can improve on a batch.

    Most learners follow the gradient of a loss, so `forward` and `loss` are all they write.
    Learners that improve another way (forests, GANs) override `start` and `train_step`.
    """

    micro_batches = 1
    """Pieces a batch is cut into to save memory; gradients are summed, the result is the same."""
    precision: Precision = "float32"
    """What `loss` computes in."""
    loss_scale = torch.amp.GradScaler("cpu", enabled=False)
    """What losses are multiplied with on their way to gradients, which float16 needs."""
    accumulates: ClassVar[bool] = True
    """Whether `micro_batches` means anything to it."""
    together: Callable[[Batch], Tensor] | None = None
    """Where several devices learn from each batch: how this one's share of it becomes the gradients of
    all of it, and a share () of its loss. Alone, `_accumulate` is what makes them."""

    def __init__(self) -> None:
        super().__init__()
        self.optimizers: dict[str, torch.optim.Optimizer] = {}

    @abstractmethod
    def loss(self, batch: Batch) -> Tensor:
        """The mean loss () over the examples of a batch."""
        raise NotImplementedError

    def weight(self, batch: Batch) -> Tensor | int:
        """How much a batch counts beside others: the number, or total weight (), that `loss` divides by."""
        return len(batch)

    def predict(self, *inputs: Tensor) -> Tensor:
        """Outputs (B, ...) that the codec turns into predictions."""
        outputs: Tensor = self(*inputs)
        return outputs

    def start(self, training: Training, transfer: Transfer | None, steps: int) -> None:
        """Get ready for `steps` steps: make the optimizers. Called once, before any state is restored."""
        self.training_plan, self.steps = training, steps
        # A job's is resolved, and stays as it is.
        self.transfer = transfer and transfer.resolve(published=False)
        self.micro_batches, self.precision = training.micro_batches, training.precision
        self.loss_scale = scaling(self.precision, next(self.parameters()).device)
        self.optimizers = {"main": training.optimizer.build(self.parameter_groups())}
        for group in self.optimizers["main"].param_groups:
            group["full_lr"] = group["lr"]

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Parameters and their learning rates."""
        return [{"params": list(self.parameters())}]

    def compile_for(self, samples: Sequence[Batch], *, ragged: bool) -> None:
        """Learn by kernels made for such batches from the next epoch on, if there is anything to compile.

        `ragged`: whether batches have many lengths beside those of the samples. Called after `start`.
        """

    def enter_epoch(self, epoch: int) -> None:
        """Switch to training mode for `epoch` (0-based); everything here depends on `epoch` alone."""
        self.train()

    @contextmanager
    def rehearsal(self) -> Iterator[None]:
        """Passes within that leave no trace: no gradients, no statistics, no numbers drawn."""
        kept = [(buffer, buffer.clone()) for buffer in self.buffers()]
        place = next(self.parameters()).device
        with torch.random.fork_rng([place] if place.type == "cuda" else []):
            yield
        for buffer, value in kept:
            buffer.copy_(value)
        self.zero_grad(set_to_none=True)

    def train_step(self, batch: Batch, step: int) -> Tensor:
        """Learn from one batch in `step` (0-based over the whole training); returns its loss ()."""
        plan, optimizer = self.training_plan, self.optimizers["main"]
        factor = plan.schedule.factor(step, self.steps)
        for group in optimizer.param_groups:
            group["lr"] = group["full_lr"] * factor
        total = (self.together or self._accumulate)(batch)
        self.loss_scale.unscale_(optimizer)
        self.bend_gradients()
        if plan.clipping.value is not None:
            nn.utils.clip_grad_value_(self.parameters(), plan.clipping.value)
        if plan.clipping.norm is not None:
            nn.utils.clip_grad_norm_(self.parameters(), plan.clipping.norm)
        self.loss_scale.step(optimizer)
        self.loss_scale.update()
        optimizer.zero_grad(set_to_none=True)
        return total

    def kept_aside(self) -> dict[str, Tensor]:
        """What it learns that its state does not tell, of which only a training that goes on needs to know."""
        return {}

    def bend_gradients(self) -> None:
        """Add to the gradients of a step what does not depend on its batch."""

    def _accumulate(self, batch: Batch) -> Tensor:
        """Gradients of the batch's mean loss, piece by piece; returns that loss ()."""
        if self.micro_batches == 1:
            loss = self.loss(batch)
            self.loss_scale.scale(loss).backward()
            return loss.detach()
        total, whole = torch.zeros((), device=batch.inputs[0].device), self.weight(batch)
        for part in batch.split(self.micro_batches):
            loss = self.loss(part) * (self.weight(part) / whole)
            self.loss_scale.scale(loss).backward()
            total += loss.detach()
        return total

    def epochs(self, asked: int) -> int:
        """How many epochs this learner makes of the number asked for."""
        return asked

    def batches(
        self, examples: int, lengths: Tensor | None, batch_size: int, generator: torch.Generator
    ) -> Sequence[Tensor]:
        """The examples of each step of an epoch, as indices.

        Ragged examples of similar length share a batch: little padding, and still a random order.
        """
        order = torch.randperm(examples, generator=generator)
        if lengths is None:
            return list(order.split(batch_size))
        pools = order.split(batch_size * 50)
        sorted_pools = [pool[lengths[pool].argsort(stable=True)] for pool in pools]
        batches = [batch for pool in sorted_pools for batch in pool.split(batch_size)]
        return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]

    def take_over(self, base: "Learner", *, head: bool) -> None:
        """Start from the weights of `base`, its head only when `head` says that the outputs mean the same.

        Outputs that the base lacks stand behind its own. Raises NotTransferable when there is nothing to take over.
        """
        raise NotTransferable("this architecture has no backbone that another training could use")


class Backbone(nn.Module):
    """A feature extractor that tells the width of its features."""

    width: int
    numbers_tokens: ClassVar[bool] = True
    """Whether its embeddings of tokens, if it has such, are in the order of their ids."""

    def blocks(self) -> list[nn.Module]:
        """Its parts from input to output: the units of freezing and gradual unfreezing."""
        return list(self.children())

    def kept(self) -> list[nn.Module]:
        """What of it never learns once its weights were taken over."""
        return []


class Supervised(Learner):
    """Backbone, head and loss: learns to map inputs to targets."""

    beside: ClassVar[int] = 0
    """How many of its inputs, the last ones, are for the head."""

    def __init__(self, backbone: Backbone, head: nn.Module, criterion: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.criterion = criterion
        self.probed = False
        """Whether batches bring features that were computed before, in the place of what they are computed from."""
        self.lessons: Lessons | None = None
        """What a teacher has to say, whose answers are then the last of a batch's targets."""
        self.adapted: Adapted | None = None
        self.anchor: Anchor | None = None
        self.kernels: Compiled | None = None
        self._samples: Sequence[Batch] = ()
        self._learning: list[str] = []
        """The weights that the kernels are made for."""

    def forward(self, *inputs: Tensor) -> Tensor:
        beside = inputs[len(inputs) - self.beside :]
        return self.answer(self.features_of(*inputs), *beside)

    def answer(self, features: Tensor, *beside: Tensor) -> Tensor:
        """Outputs (B, ...) from features (B, D), and what the head takes beside them."""
        outputs: Tensor = self.head(features, *beside)
        return outputs

    def features_of(self, *inputs: Tensor) -> Tensor:
        """What a linear head makes outputs of (B, D); of tasks that `embeds`."""
        features: Tensor = self.backbone(*inputs)
        return features

    def loss(self, batch: Batch) -> Tensor:
        with autocast(self.precision, batch.inputs[0].device):
            outputs = (self.answer if self.probed else self.kernels or self)(*batch.inputs)
        return self.graded(outputs.float(), *batch.targets)

    def graded(self, outputs: Tensor, *targets: Tensor) -> Tensor:
        """The mean loss () of outputs, by the labels and by the teacher, if there is one."""
        if self.lessons is not None:
            return self.lessons.loss(self.criterion, outputs, *targets)
        loss: Tensor = self.criterion(outputs, *targets)
        return loss

    def weight(self, batch: Batch) -> Tensor | int:
        weights = self.criterion.weight if isinstance(self.criterion, nn.CrossEntropyLoss) else None
        return len(batch) if weights is None else weights[batch.targets[0]].sum()

    def start(self, training: Training, transfer: Transfer | None, steps: int) -> None:
        """See `Learner`. Raises NotTransferable where adapters are asked for that no layer takes."""
        if transfer is not None and transfer.adapters is not None and self.adapted is None:
            try:
                self.adapted = Adapted(self.backbone, transfer.adapters)
            except Unadaptable as error:
                raise NotTransferable(str(error)) from None
        super().start(training, transfer, steps)
        pull = 0.0 if self.transfer is None else self.transfer.l2_sp
        self.anchor = Anchor(self.backbone, pull) if pull else None

    def kept_aside(self) -> dict[str, Tensor]:
        return {} if self.adapted is None else dict(self.adapted.weights)

    def bend_gradients(self) -> None:
        if self.anchor is not None:
            self.anchor.pull()

    def parameter_groups(self) -> list[dict[str, Any]]:
        if self.transfer is None:
            return super().parameter_groups()
        return [{"params": list(self.head.parameters())}, *self.backbone_groups(self.transfer)]

    def backbone_groups(self, transfer: Transfer) -> list[dict[str, Any]]:
        """The backbone's parameters and their learning rates, by blocks from the last to the first if these differ."""
        rate = self.training_plan.optimizer.learning_rate * transfer.backbone_learning_rate
        if transfer.layer_decay == 1:
            return [{"params": list(self.backbone.parameters()), "lr": rate}]
        return layered(self.backbone, self.backbone.blocks(), rate, transfer.layer_decay)

    def compile_for(self, samples: Sequence[Batch], *, ragged: bool) -> None:
        graphs = not ragged and self.micro_batches == 1 and samples[0].inputs[0].is_cuda
        self.kernels = Compiled(self.forward, ragged=ragged, graphs=graphs)
        self._samples, self._learning = samples, []

    def enter_epoch(self, epoch: int) -> None:
        super().enter_epoch(epoch)
        if self.transfer is not None:
            self._freeze(self.transfer, epoch)
        learning = [name for name, weight in self.named_parameters() if weight.requires_grad]
        if self.kernels is not None and learning != self._learning:
            self.kernels.make(self._rehearse)
            self._learning = learning

    def _rehearse(self) -> None:
        with self.rehearsal():
            for sample in self._samples:
                self.loss(sample).backward()

    def _freeze(self, transfer: Transfer, epoch: int) -> None:
        if transfer.linear_probe:
            self.backbone.requires_grad_(False).eval()
            return
        blocks = self.backbone.blocks()
        learning = transfer.learning_blocks(len(blocks), epoch)
        for place, block in enumerate(blocks):
            learns = place >= len(blocks) - learning
            block.requires_grad_(learns)
            # A frozen block keeps its batch statistics and drops nothing out.
            block.train(learns)
        if self.adapted is not None:
            self.adapted.hold_the_rest()
        for part in self.backbone.kept():
            part.requires_grad_(False).eval()

    def take_over(self, base: Learner, *, head: bool) -> None:
        if not isinstance(base, Supervised):
            raise NotTransferable("the base has no backbone that another training could use")
        try:
            self.backbone.load_state_dict(base.backbone.state_dict())
            if head:
                known = widened(base.head.state_dict(), self.head.state_dict())
                self.head.load_state_dict(known)
        except RuntimeError as error:
            raise NotTransferable(f"the base's weights do not fit: {error}") from error


class Target(NamedTuple):
    """What the outputs of a learner mean, and the loss they are trained with."""

    kind: Literal["classes", "values"]
    width: int
    criterion: nn.Module


class Architecture(Option):
    """What learns: a named kind of network and its hyperparameters, without weights."""

    has_backbone: ClassVar[bool] = True
    """Whether a later training can take over what this one learned."""
    graph: ClassVar[Literal["fixed", "ragged"] | None] = "ragged"
    """Whether a graph of its operations is for sequences of one length, as a loop over their steps is, or of any."""
    spreads: ClassVar[bool] = True
    """Whether it can learn on several devices: its learner follows gradients, and by `Learner.train_step`."""

    def defaults(self, examples: int) -> dict[str, Any]:
        """Values for the "auto" fields of `Training` that suit this architecture and so many examples."""
        return {}


# Families: the contracts between tasks and architectures. A task's field asks for one,
# an architecture joins one by implementing its method.


class TableLearner(Architecture):
    """Learns from rows of a table."""

    @abstractmethod
    def build(self, numeric: int, cardinalities: Sequence[int], target: Target) -> Learner:
        """A learner of rows given as numbers (B, numeric) and categories (B, len(cardinalities)).

        Numbers are float32, standardised, missing ones 0 beside an indicator column. Category `c` of
        column `i` is an int64 in [0, cardinalities[i]), 0 for missing or never seen.
        Outputs (B, target.width): class scores (logits) or standardised values.
        """


class TableBackbone(TableLearner):
    """Learns features of rows; a linear head turns them into outputs."""

    @abstractmethod
    def backbone(self, numeric: int, cardinalities: Sequence[int]) -> Backbone:
        """Numbers (B, numeric) and categories (B, columns) to features (B, width)."""

    def build(self, numeric: int, cardinalities: Sequence[int], target: Target) -> Learner:
        backbone = self.backbone(numeric, cardinalities)
        return Supervised(backbone, nn.Linear(backbone.width, target.width), target.criterion)


class MapBackbone(Backbone):
    """An image backbone that also gives the feature maps on its way, each as coarse as the last one or coarser.

    `widths` are their channels and `strides` how many pixels a place of each stands for, in both directions.
    """

    widths: Sequence[int]
    strides: Sequence[int]

    @abstractmethod
    def maps(self, images: Tensor) -> list[Tensor]:
        """Images (B, C, H, W) to maps (B, widths[i], H / strides[i], W / strides[i]).

        H and W are multiples of the last stride; if they are not, maps may be cut or wider by one.
        """

    def forward(self, images: Tensor) -> Tensor:
        """The last of the maps: (B, width, h, w)."""
        return self.maps(images)[-1]


class ImageBackbone(Architecture):
    """Learns features of images."""

    @abstractmethod
    def build(self, channels: int, size: tuple[int, int]) -> MapBackbone:
        """Images (B, channels, *size), float32 and normalised, to feature maps (B, width, h, w).

        Images of other sizes are welcome too; by `size` is chosen how often maps are halved.
        """


class ImageTranslator(Architecture):
    """Learns features of every pixel of an image, from which another image is made."""

    narrows: ClassVar[bool] = False
    """Whether all that it knows of an image passes through a code of fewer numbers than the image has."""

    @abstractmethod
    def build(self, channels: int) -> Backbone:
        """Images (B, channels, H, W) around 0 to features (B, width, H, W), whatever H and W are."""


class StyleNetwork(Architecture):
    """Learns to paint an image in a style that numbers tell."""

    @abstractmethod
    def build(self, channels: int, numbers: int) -> Backbone:
        """Images (B, channels, H, W) around 0 and styles (B, numbers) to features (B, width, H, W), of any size."""


class TextEncoder(Architecture):
    """Learns one vector per text."""

    @abstractmethod
    def build(self, vocabulary: int, max_length: int) -> Backbone:
        """Tokens (B, T) int64, 0 after the end, and lengths (B,) >= 1 to vectors (B, width); T <= max_length."""


class TokenBackbone(Backbone):
    """A text backbone that also gives the state of every token."""

    @abstractmethod
    def states(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Tokens (B, T) and lengths (B,) to states (B, T, width)."""


class SoundEncoder(Architecture):
    """Learns one vector for each short stretch of a sound, be it of its spectrum or of its samples."""


class SequenceEncoder(SoundEncoder):
    """Learns one vector per step of a sequence of vectors (of sound, of a series, of a clip), and one per sequence."""

    @abstractmethod
    def over_vectors(self, features: int, max_length: int) -> TokenBackbone:
        """Vectors (B, T, features) in the place of tokens, 0 after the end, to states (B, T, width)."""


class TokenEncoder(TextEncoder):
    """Learns one vector per token, and from these one per text."""

    @abstractmethod
    def build(self, vocabulary: int, max_length: int) -> TokenBackbone:
        """Tokens (B, T) and lengths (B,) to vectors (B, width); `states` gives (B, T, width)."""


class CausalBackbone(TokenBackbone):
    """A text backbone that, built one way, can read on from where it stopped."""

    @abstractmethod
    def read_on(
        self, tokens: Tensor, lengths: Tensor, memory: State | None = None
    ) -> tuple[Tensor, State]:
        """The next tokens (B, T) of texts, `lengths` (B,) of them, to states (B, T, width), and what to go on with.

        Without a memory these are the first ones. The memory given is used up.
        """


class CausalEncoder(TokenEncoder):
    """Learns vectors of tokens, and if asked to, from nothing but what stands before them."""

    @abstractmethod
    def one_way(self) -> Self:
        """The same architecture, reading forwards only, and with no weights besides those of states."""

    @abstractmethod
    def build(self, vocabulary: int, max_length: int) -> CausalBackbone:
        """As of any `TokenEncoder`; `read_on` is for what is built `one_way`."""


class ImageGenerator(Architecture):
    """Learns to make images like those it is shown."""

    @abstractmethod
    def build(self, channels: int, side: int, classes: int) -> Supervised:
        """A learner of images (B, channels, side, side) uint8, its only target.

        Its inputs say what to make: class, seed and steps (B, 3) int64, and guidance (B,) float32. A class is in
        [0, classes), or `classes` for any. Outputs (B, channels, side, side) in [0, 1]: a function of their row alone.
        """
