"""How a training runs: the part of a request that is the same for every task."""

from typing import Annotated, Literal

from pydantic import Field

from models.parts.adapters import Adapter
from models.parts.distillation import Distillation
from models.parts.optimizers import Optimizer
from models.parts.options import AUTO, Auto, Largest, OneOf, Plain
from models.parts.precision import Precision
from models.parts.schedules import Schedule

MOST_PER_STEP = 65_536


class Clipping(Plain):
    """Bounds on the gradient of one step."""

    norm: float | None = Field(
        None, gt=0, description="Largest norm over all gradients (Pascanu et al., 2013)."
    )
    value: float | None = Field(None, gt=0, description="Largest absolute value of each gradient.")


class EarlyStopping(Plain):
    """End a training whose objective no longer improves."""

    patience: int = Field(5, ge=1, le=10_000, description="Epochs without improvement allowed.")
    min_delta: float = Field(0.0, ge=0, description="Improvement that counts as one.")


class Training(Plain):
    """Epochs, batches, optimizer, schedule, clipping, early stopping and the seed."""

    epochs: Auto[Annotated[int, Field(ge=1, le=100_000)]] = Field(
        AUTO, description="Passes over the train split."
    )
    batch_size: Auto[Largest[Annotated[int, Field(ge=1, le=MOST_PER_STEP)]]] = Field(
        AUTO,
        description="Examples per step. `largest` finds out before the first step how many the memory of the "
        "device takes, in powers of two; neither the learning rate nor the number of epochs follows it.",
    )
    micro_batches: int = Field(
        1,
        ge=1,
        le=65_536,
        description="Pieces each batch is cut into to save memory; gradients are accumulated over them. "
        "A training that runs out of memory doubles it by itself.",
    )
    precision: Precision = Field(
        "device",
        description="What the network computes in while it learns: `bfloat16`, `float16`, `tf32` (float32 that GPUs "
        "multiply with fewer bits), `float32`, or what suits the `device`: bfloat16 on GPUs made for it, float16 on "
        "older ones made for that, and float32 elsewhere. Weights are float32 in any case; with float16, "
        "losses are scaled so that gradients neither vanish nor overflow.",
    )
    compile: Literal["never", "when-it-pays", "always"] = Field(
        "never",
        description="Learn by kernels made for the network (torch.compile), on a GPU by CUDA graphs where "
        "batches all have the same size. Compiling takes from seconds to minutes at the start of each run. "
        "`when-it-pays` measures before the first step whether that comes back within the job. Weights come "
        "out as good, but not the same as without; what was found out stays so for the job.",
    )
    deterministic: bool = Field(
        True,
        description="Same request, same weights, bit for bit. `false` lets a GPU use whatever is fastest: "
        "a training that is paused or killed then ends with weights as good, but not the same.",
    )
    optimizer: Auto[OneOf[Optimizer]] = Field(AUTO, description="How gradients change the weights.")
    schedule: Auto[OneOf[Schedule]] = Field(
        AUTO, description="How the learning rate changes over the steps."
    )
    clipping: Clipping = Field(Clipping(), description="Bounds on the gradient of one step.")
    early_stopping: EarlyStopping | None = Field(
        None, description="End when the objective no longer improves; null trains all epochs."
    )
    share: float = Field(
        1.0,
        gt=0,
        le=1,
        description="How much of the train split is learned from: examples drawn by the `seed`, labels as often as in "
        "all of it and each at least once; a smaller share is part of a larger one.",
    )
    seed: int = Field(
        0, ge=0, lt=2**31, description="The only source of randomness: same seed, same weights."
    )

    def resolve(self, **chosen: object) -> "Training":
        """A copy in which every field still "auto" has the value chosen for it."""
        fill = {name: value for name, value in chosen.items() if getattr(self, name) == AUTO}
        return self.model_copy(update=fill)


class Transfer(Plain):
    """What happens to what a base knows: the weights taken over from it, its outputs, its answers and its data."""

    trainable_blocks: Annotated[int, Field(ge=0)] | Literal["all"] = Field(
        "all",
        description="How many of the backbone's last blocks learn; 0 freezes the backbone.",
    )
    unfreeze_every: int | None = Field(
        None,
        ge=1,
        description="Unfreeze one more block, from the last to the first, each time so many "
        "epochs have passed (gradual unfreezing, Howard and Ruder, 2018).",
    )
    backbone_learning_rate: Auto[Annotated[float, Field(gt=0, le=1)]] = Field(
        AUTO,
        description="Learning rate of the backbone as a factor of the head's. `auto` is 0.1 where the architecture is "
        "`pretrained`, whose weights are to change little, and else, or with `adapters`, 1.",
    )
    layer_decay: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Each block of the backbone learns at so much of the rate of the block behind it (layer-wise "
        "decay, Howard and Ruder, 2018); 1: all at the same.",
    )
    l2_sp: float = Field(
        0.0,
        ge=0,
        le=100,
        description="How strongly each weight of the backbone is pulled to where it began: so many times half the "
        "squared distance are added to what is minimised (L2-SP, Li et al., 2018); 0: not at all.",
    )
    adapters: OneOf[Adapter] | None = Field(
        None,
        description="Have the backbone's own weights stay what they are, and a few others learn in their place. They "
        "are merged into the backbone's in every checkpoint, so that a model is served as if it had none.",
    )
    linear_probe: bool = Field(
        False,
        description="Learn the head alone, from features that the backbone as it is computes once (linear probing, "
        "Alain and Bengio, 2017): as `trainable_blocks` 0, and in a fraction of its time. Nothing is varied at random "
        "before the head.",
    )
    from_scratch: bool = Field(
        False,
        description="Take nothing over: the same network begins with random weights, and the other fields mean "
        "nothing. What a job with it comes to shows what the base is worth.",
    )
    head: Literal["auto", "kept", "grown", "new"] = Field(
        "auto",
        description="What becomes of the base's outputs: `kept`, which takes the same labels; `grown`, so that the "
        "labels that only the data has stand behind those of the base; or `new`. `auto` keeps them where they mean "
        "the same, grows them where the data has all of the base's labels and more, or where `replay` or "
        "`distillation` are to keep them, and else makes new ones.",
    )
    replay: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Share of the examples that come from the train split of the base's own data set, so that what it "
        "knows is not forgotten (Rolnick et al., 2019); of the validation split likewise.",
    )
    distillation: Distillation | None = Field(
        None, description="Learn what another model answers, too: the base, or any other."
    )

    def resolve(self, *, published: bool) -> "Transfer":
        """A copy with nothing left open; `published`: whether the weights are others', or began with such."""
        if self.backbone_learning_rate != AUTO:
            return self
        slower = published and self.adapters is None
        return self.model_copy(update={"backbone_learning_rate": 0.1 if slower else 1.0})

    @property
    def looks_back(self) -> bool:
        """Whether a training that goes on has to know, beside its checkpoint, what it began with."""
        return self.l2_sp > 0 or self.adapters is not None

    @property
    def takes_it_whole(self) -> bool:
        """Whether no device can do with a part of the network."""
        return self.linear_probe or self.adapters is not None

    @property
    def remembers(self) -> bool:
        """Whether something keeps what the base knows of its own outputs."""
        from_base = self.distillation is not None and self.distillation.teacher is None
        return self.replay > 0 or from_base

    def learning_blocks(self, blocks: int, epoch: int) -> int:
        """How many of the last of `blocks` learn in `epoch` (0-based)."""
        if self.trainable_blocks == "all":
            start = 0 if self.unfreeze_every else blocks
        else:
            start = self.trainable_blocks
        grown = epoch // self.unfreeze_every if self.unfreeze_every else 0
        return min(blocks, start + grown)
