"""Toy data and learners for every family of architectures, and a training without a service around it."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.base import (
    SENTENCE_END,
    Architecture,
    Backbone,
    Batch,
    ImageBackbone,
    ImageGenerator,
    ImageTranslator,
    Learner,
    SequenceEncoder,
    StyleNetwork,
    Supervised,
    TableLearner,
    Target,
    TextEncoder,
)
from models.parts.optimizers import AdamW
from models.parts.schedules import Constant
from models.parts.speech import WaveEncoder
from models.parts.training import Training, Transfer
from models.parts.writing import SequenceToSequence, Writer

FAMILIES: tuple[type[Architecture], ...] = (
    TableLearner,
    ImageBackbone,
    ImageTranslator,
    TextEncoder,
    SequenceToSequence,
    ImageGenerator,
    SequenceEncoder,
    WaveEncoder,
    StyleNetwork,
)
CARDINALITIES = [3, 5]
VOCABULARY, MAX_LENGTH = 20, 32
IMAGE = (3, 12, 10)
SIDE = 8
FEATURES = 4
STYLE = 6
HOP = 160


def shipped() -> list[type[Architecture]]:
    """The architectures that lie in the folder, not those a test makes up."""
    ours = [a for a in Architecture.options() if a is not Architecture]
    return [a for a in ours if a.__module__.startswith("models.")]


def family(architecture: Architecture) -> type[Architecture]:
    return next(family for family in FAMILIES if isinstance(architecture, family))


def build(architecture: Architecture, seed: int = 0, classes: int = 2) -> Learner:
    """A fresh learner of toy classes."""
    torch.manual_seed(seed)
    criterion = nn.CrossEntropyLoss()
    if isinstance(architecture, TableLearner):
        return architecture.build(4, CARDINALITIES, Target("classes", classes, criterion))
    if isinstance(architecture, ImageBackbone):
        images = architecture.build(IMAGE[0], IMAGE[1:])
        return Supervised(images, pooled_head(images, classes), criterion)
    if isinstance(architecture, ImageTranslator):
        translated = architecture.build(IMAGE[0])
        return Supervised(translated, pooled_head(translated, classes), criterion)
    if isinstance(architecture, StyleNetwork):
        painted = architecture.build(IMAGE[0], STYLE)
        return Supervised(painted, pooled_head(painted, classes), criterion)
    if isinstance(architecture, SequenceToSequence):
        return Writer(architecture.build(VOCABULARY), copying=True, label_smoothing=0.1)
    if isinstance(architecture, ImageGenerator):
        return architecture.build(IMAGE[0], SIDE, classes)
    if isinstance(architecture, WaveEncoder):
        listener = architecture.over_waves()
        return Supervised(listener, nn.Linear(listener.width, classes), criterion)
    if not isinstance(architecture, TextEncoder):
        assert isinstance(architecture, SequenceEncoder)
        vectors = architecture.over_vectors(FEATURES, MAX_LENGTH)
        return Supervised(vectors, nn.Linear(vectors.width, classes), criterion)
    texts = architecture.build(VOCABULARY, MAX_LENGTH)
    return Supervised(texts, nn.Linear(texts.width, classes), criterion)


def pooled_head(backbone: Backbone, classes: int) -> nn.Module:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(backbone.width, classes))


def examples(architecture: Architecture, count: int = 64, seed: int = 0) -> Batch:
    """Inputs of the architecture's family, and classes that follow from them by a simple rule."""
    random = torch.Generator().manual_seed(seed)
    makers = {
        TableLearner: rows,
        ImageBackbone: images,
        ImageTranslator: images,
        TextEncoder: texts,
        SequenceToSequence: pairs,
        ImageGenerator: made_images,
        SequenceEncoder: vectors,
        WaveEncoder: sounds,
        StyleNetwork: styled_images,
    }
    return makers[family(architecture)](count, random)


def rows(count: int, random: torch.Generator) -> Batch:
    """The class is the sign of a sum to which a category adds or takes."""
    numbers = torch.randn(count, 4, generator=random)
    categories = torch.stack(
        [torch.randint(size, (count,), generator=random) for size in CARDINALITIES], 1
    )
    classes = (numbers[:, 0] - numbers[:, 1] + 2.0 * (categories[:, 0] == 1) > 0.5).long()
    return Batch((numbers, categories), (classes,))


def images(count: int, random: torch.Generator) -> Batch:
    """The class is the half that is brighter."""
    classes = torch.randint(2, (count,), generator=random)
    pictures = torch.randn(count, *IMAGE, generator=random)
    half = IMAGE[1] // 2
    pictures[classes == 0, :, :half] += 2
    pictures[classes == 1, :, half:] -= 2
    return Batch((pictures,), (classes,))


def styled_images(count: int, random: torch.Generator) -> Batch:
    """The class is the sign of the style's first number."""
    classes = torch.randint(2, (count,), generator=random)
    styles = torch.randn(count, STYLE, generator=random)
    styles[:, 0] = 4.0 * classes - 2
    return Batch((torch.randn(count, *IMAGE, generator=random), styles), (classes,))


def texts(count: int, random: torch.Generator) -> Batch:
    """The class is told by a token that occurs somewhere; sentence ends occur here and there."""
    classes = torch.randint(2, (count,), generator=random)
    lengths = torch.randint(1, 13, (count,), generator=random)
    tokens = torch.randint(5, VOCABULARY, (count, 12), generator=random)
    tokens[torch.rand(count, 12, generator=random) < 0.2] = SENTENCE_END
    places = (torch.rand(count, generator=random) * lengths).long()
    tokens[torch.arange(count), places] = 3 + classes
    tokens[torch.arange(12) >= lengths[:, None]] = 0
    return Batch((tokens, lengths), (classes,))


def vectors(count: int, random: torch.Generator) -> Batch:
    """The class is told by a vector that stands somewhere in a sequence."""
    classes = torch.randint(2, (count,), generator=random)
    lengths = torch.randint(1, 13, (count,), generator=random)
    steps = 0.3 * torch.randn(count, 12, FEATURES, generator=random)
    places = (torch.rand(count, generator=random) * lengths).long()
    steps[torch.arange(count), places, 0] = 2 - 4.0 * classes
    steps[torch.arange(12) >= lengths[:, None]] = 0
    return Batch((steps, lengths), (classes,))


def sounds(count: int, random: torch.Generator) -> Batch:
    """The class is told by the pitch of a tone in noise."""
    classes = torch.randint(2, (count,), generator=random)
    lengths = torch.randint(2, 13, (count,), generator=random)
    pitches = (1_500.0 * classes + 400) * (0.9 + 0.2 * torch.rand(count, generator=random))
    time = torch.arange(12 * HOP) / (100 * HOP)
    waves = 0.5 * (2 * torch.pi * pitches[:, None] * time).sin()
    waves += 0.05 * torch.randn(waves.shape, generator=random)
    frames = waves.view(count, 12, HOP)
    frames[torch.arange(12) >= lengths[:, None]] = 0
    return Batch((frames, lengths), (classes,))


_WRITTEN = 8
"""The first token that is written: those before may be marks of a published tokenizer."""
GREEDILY = (1, 8, 1, 0, 0, 0, 1, 0)
"""How a target is written, as `Choice` has it."""


def pairs(count: int, random: torch.Generator) -> Batch:
    """The target is the source's tokens, each one further on in the vocabulary, and the end."""
    lengths = torch.randint(1, 6, (count,), generator=random)
    tokens = torch.randint(_WRITTEN, VOCABULARY - 1, (count, 6), generator=random)
    there = torch.arange(6) < lengths[:, None]
    targets = torch.where(there, tokens + 1, 0).scatter(1, lengths[:, None], SENTENCE_END)
    how = torch.tensor(GREEDILY, dtype=torch.float64).repeat(count, 1)
    return Batch((torch.where(there, tokens, 0), lengths, how), (targets, lengths + 1))


def made_images(count: int, random: torch.Generator) -> Batch:
    """Images of a class are bright in one half; they are made in two steps."""
    classes, seeds = torch.randint(2, (2, count), generator=random)
    images = torch.randint(0, 60, (count, IMAGE[0], SIDE, SIDE), generator=random)
    images[classes == 0, :, : SIDE // 2] += 180
    images[classes == 1, :, SIDE // 2 :] += 180
    asked = torch.stack([classes, torch.arange(count) + seeds, torch.full_like(classes, 2)], 1)
    return Batch((asked, torch.ones(count)), (images.to(torch.uint8),))


def plan(architecture: Architecture, count: int = 64, seed: int = 0) -> Training:
    """The architecture's own optimizer at a constant rate."""
    chosen = {"optimizer": AdamW(), **architecture.defaults(count), "schedule": Constant()}
    return Training(seed=seed).resolve(**chosen)


def train(
    learner: Learner,
    training: Training,
    data: Batch,
    steps: int,
    transfer: Transfer | None = None,
) -> list[float]:
    """The losses of `steps` steps, each on all examples."""
    torch.manual_seed(training.seed)
    learner.start(training, transfer, steps)
    learner.enter_epoch(0)
    return [learner.train_step(data, step).item() for step in range(steps)]


def outputs(learner: Learner, inputs: Sequence[Tensor]) -> Tensor:
    learner.eval()
    with torch.inference_mode():
        return learner.predict(*inputs)
