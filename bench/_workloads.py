"""What the training benchmark trains: made-up data, and a network as one writes it by hand."""

import io
import json
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import polars as pl
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from models.parts.training import Training
from tasks.base import Codec, Facts, Upload
from tasks.catalog import Spec, read_spec, read_task, resolve
from worker.encoded import load_columns, save_columns
from worker.loop import Split

CLASSES = 10
WORDS, LONGEST, MARKERS = 5_000, 128, 50
LEARNING_RATE = 1e-3
Sample = tuple[Tensor, Tensor]
"""Inputs and target of an example, or inputs and targets of a batch."""


class Prepared(NamedTuple):
    """A workload as the service sees it: checked, encoded, and mapped into memory."""

    spec: Spec
    codec: Codec
    train: Split
    few: Split
    """Examples to judge by: a few, so that the loop is measured and not the judging."""


class Workload(ABC):
    """Data in the form of an upload, and how one would train on it without any service."""

    name: ClassVar[str]
    batch_size: ClassVar[int]
    examples: int
    task: ClassVar[dict[str, Any]]
    suffix: ClassVar[str]
    """Of the upload's file name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / self.name
        self.upload = self.folder / f"upload{self.suffix}"

    def of(self, examples: int, folder: Path) -> "Workload":
        """The same kind of data, so many of it, as an upload in `folder`."""
        other = type(self)(folder)
        other.examples = examples
        other.folder.mkdir(parents=True)
        other.write()
        return other

    @abstractmethod
    def write(self) -> None:
        """Make the upload."""

    @abstractmethod
    def network(self) -> nn.Module:
        """A batch's inputs to scores (B, CLASSES)."""

    @abstractmethod
    def samples(self) -> Dataset[Sample]:
        """Example by example, as data loaders want it."""

    @abstractmethod
    def batches(self, epoch: int) -> Iterator[Sample]:
        """Whole batches cut out of tensors in memory."""

    collate: ClassVar[Any] = None
    """How samples become a batch, where torch cannot tell."""

    @property
    def training(self) -> dict[str, Any]:
        """What the service is asked for, and the others do."""
        optimizer = {"name": "adamw", "learning_rate": LEARNING_RATE, "weight_decay": 0.0}
        schedule = {"name": "constant"}
        options = {"epochs": 1_000, "batch_size": self.batch_size}
        return {**options, "optimizer": optimizer, "schedule": schedule}

    def make(self) -> None:
        """Write the upload, check it and encode it, as the service does once for all jobs."""
        self.folder.mkdir(parents=True)
        self.write()
        asked = read_task(self.task)
        upload = {"train": Upload(self.upload, self.upload.name)}
        checked = asked.check(upload, asked.options_type())
        train = checked.splits["train"]
        facts = Facts(checked.schema, {name: len(frame) for name, frame in checked.splits.items()})
        training = Training.model_validate(self.training)
        spec = resolve(asked.name, facts, asked, training, None)
        codec = spec.task.learn_codec(train.lazy(), checked.schema)
        for name, frame in {"train": train, "few": train.head(8)}.items():
            frame.write_parquet(self.folder / f"{name}.parquet")
            save_columns([codec.encode(frame)], self.folder / f"{name}.safetensors")
        (self.folder / "spec.json").write_text(spec.model_dump_json())
        (self.folder / "codec.json").write_text(codec.model_dump_json())

    def prepared(self) -> Prepared:
        """What `make` left."""
        spec = read_spec(json.loads((self.folder / "spec.json").read_text()))
        codec = spec.task.codec_type.model_validate_json((self.folder / "codec.json").read_text())
        return Prepared(spec, codec, self._split("train"), self._split("few"))

    @cached_property
    def tensors(self) -> list[Tensor]:
        """Inputs, the offsets of ragged ones, and targets; in memory, not mapped."""
        columns = load_columns(self.folder / "train.safetensors")
        held = (columns.inputs[0], columns.targets[0])
        return [tensor.clone() for column in held for tensor in column.tensors().values()]

    def _split(self, name: str) -> Split:
        examples = pl.read_parquet(self.folder / f"{name}.parquet")
        return Split(load_columns(self.folder / f"{name}.safetensors"), examples)


def _order(examples: int, epoch: int) -> Tensor:
    return torch.randperm(examples, generator=torch.Generator().manual_seed(epoch))


class _Pairs(Dataset[Sample]):
    def __init__(self, inputs: Sequence[Tensor] | Tensor, targets: Tensor) -> None:
        self._inputs, self._targets = inputs, targets

    def __len__(self) -> int:
        return len(self._targets)

    def __getitem__(self, place: int) -> Sample:
        return self._inputs[place], self._targets[place]


class Rows(Workload):
    """100,000 rows of 32 numbers."""

    name = "mlp"
    suffix = ".parquet"
    batch_size = 256
    examples, features, width = 100_000, 32, 256
    task: ClassVar[dict[str, Any]] = {
        "name": "tabular-classification",
        "architecture": {
            "name": "mlp",
            "width": width,
            "norm": "none",
            "dropout": 0,
            "skip": False,
        },
    }

    def write(self) -> None:
        draw = np.random.default_rng(1)
        rows = draw.standard_normal((self.examples, self.features), dtype=np.float32)
        hidden = np.tanh(rows @ draw.standard_normal((self.features, 24)) / 5)
        labels = (hidden @ draw.standard_normal((24, CLASSES))).argmax(1)
        columns = {f"x{place}": rows[:, place] for place in range(self.features)}
        named = [f"class {label}" for label in labels]
        pl.DataFrame({**columns, "label": named}).write_parquet(self.upload)

    def network(self) -> nn.Module:
        return nn.Sequential(
            nn.Linear(self.features, self.width),
            nn.ReLU(),
            nn.Linear(self.width, self.width),
            nn.ReLU(),
            nn.Linear(self.width, CLASSES),
        )

    def samples(self) -> Dataset[Sample]:
        return _Pairs(*self.tensors)

    def batches(self, epoch: int) -> Iterator[Sample]:
        inputs, targets = self.tensors
        for index in _order(len(targets), epoch).split(self.batch_size):
            yield inputs[index], targets[index]


class _Images(Workload):
    """Coloured squares, moved and mirrored at random."""

    side: ClassVar[int]
    encoding: ClassVar[str]
    suffix = ".zip"
    channels: ClassVar[list[int]] = [16, 32, 64]

    @property
    def reach(self) -> int:
        """Pixels by which an image is moved at most."""
        return self.side // 8

    def write(self) -> None:
        draw = np.random.default_rng(2)
        colours = draw.normal(128, 40, (CLASSES, 4, 4, 3)).repeat(self.side // 4, 1)
        colours = colours.repeat(self.side // 4, 2)
        with zipfile.ZipFile(self.upload, "w") as archive:
            for number in range(self.examples):
                noise = draw.normal(0, 45, (self.side // 2, self.side // 2, 3))
                picture = colours[number % CLASSES] + noise.repeat(2, 0).repeat(2, 1)
                packed = io.BytesIO()
                image = Image.fromarray(picture.clip(0, 255).astype(np.uint8))
                image.save(packed, self.encoding, quality=88)
                name = f"class {number % CLASSES}/{number}.{self.encoding}"
                archive.writestr(name, packed.getvalue())

    def network(self) -> nn.Module:
        layers: list[nn.Module] = []
        for inputs, width in pairwise([3, *self.channels]):
            convolution = nn.Conv2d(inputs, width, 3, padding=1)
            layers += [convolution, nn.ReLU(), nn.MaxPool2d(2)]
        layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(self.channels[-1], CLASSES)]
        network: nn.Module = nn.Sequential(*layers)
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return network

    def samples(self) -> Dataset[Sample]:
        return _Pictures(self)

    def picture(self, place: int) -> Tensor:
        """(3, side, side) uint8."""
        return self.tensors[0][place]

    def batches(self, epoch: int) -> Iterator[Sample]:
        images, targets = self.tensors
        generator = torch.Generator().manual_seed(epoch)
        reach, side = self.reach, self.side
        kept = torch.empty((self.batch_size, 3, side, side), dtype=torch.uint8)
        for index in _order(len(targets), epoch).split(self.batch_size):
            padded = F.pad(images[index], (reach,) * 4, value=128)
            moves = torch.randint(0, 2 * reach + 1, (2, len(index)), generator=generator)
            mirrored = torch.rand(len(index), generator=generator) < 0.5
            draws = zip(*moves.tolist(), mirrored.tolist(), strict=True)
            for place, (down, across, mirror) in enumerate(draws):
                cut = padded[place, :, down : down + side, across : across + side]
                kept[place] = cut.flip(2) if mirror else cut
            batch = kept[: len(index)].contiguous(memory_format=torch.channels_last)
            yield batch.float().mul_(1 / 64).sub_(2), targets[index]


class _Pictures(Dataset[Sample]):
    """Picture by picture, as in any tutorial."""

    def __init__(self, workload: _Images) -> None:
        self._of, self._targets = workload, workload.tensors[1]

    def __len__(self) -> int:
        return len(self._targets)

    def __getitem__(self, place: int) -> Sample:
        reach, side = self._of.reach, self._of.side
        picture = F.pad(self._of.picture(place).float().div_(64).sub_(2), (reach,) * 4)
        down, across = torch.randint(0, 2 * reach + 1, (2,)).tolist()
        picture = picture[:, down : down + side, across : across + side]
        mirrored = picture.flip(2) if torch.rand(()) < 0.5 else picture
        return mirrored, self._targets[place]


class Thumbnails(_Images):
    """8,000 images of 32 x 32 pixels, in memory for everybody."""

    name = "cnn"
    batch_size = 128
    examples, side, encoding = 8_000, 32, "png"
    task: ClassVar[dict[str, Any]] = {
        "name": "image-classification",
        "architecture": {
            "name": "cnn",
            "channels": _Images.channels,
            "norm": "none",
            "dropout": 0,
        },
        "image_size": side,
        "augmentation": {"shift": 0.125, "flip": True},
    }


class Photographs(Thumbnails):
    """500 JPEGs of 128 x 128 pixels, which loaders decode in every epoch."""

    name = "jpeg"
    batch_size = 64
    examples, side, encoding = 500, 128, "jpeg"
    task: ClassVar[dict[str, Any]] = {**Thumbnails.task, "image_size": side}

    @cached_property
    def _files(self) -> list[bytes]:
        return pl.read_parquet(self.folder / "train.parquet")["image"].to_list()

    def picture(self, place: int) -> Tensor:
        with Image.open(io.BytesIO(self._files[place])) as image:
            return torch.from_numpy(np.array(image)).permute(2, 0, 1)


class _Texts(Workload):
    """8,000 texts of 5 to 128 of 5,000 words, some of which give the label away."""

    examples = 8_000
    batch_size = 64
    suffix = ".jsonl"
    read_as: ClassVar[dict[str, Any]] = {
        "name": "text-classification",
        "tokenizer": {"name": "words"},
        "max_length": LONGEST,
    }

    def write(self) -> None:
        draw = np.random.default_rng(3)
        lengths = draw.lognormal(3.2, 0.7, self.examples).clip(5, LONGEST).astype(int)
        with self.upload.open("w") as file:
            for number, length in enumerate(lengths):
                said = (draw.zipf(1.2, length) + MARKERS).clip(max=WORDS - 1)
                label = number % CLASSES
                marked = draw.integers(0, length, max(1, length // 12))
                said[marked] = label * 5 + draw.integers(0, 5, len(marked))
                text = " ".join(f"w{word}" for word in said)
                file.write(json.dumps({"text": text, "label": f"class {label}"}) + "\n")

    @property
    def vocabulary(self) -> int:
        return int(self.tensors[0].max()) + 1

    def samples(self) -> Dataset[Sample]:
        values, offsets, targets = self.tensors
        texts = [values[start:end] for start, end in pairwise(offsets.tolist())]
        return _Pairs(texts, targets)

    @staticmethod
    def collate(samples: list[Sample]) -> Sample:
        texts, targets = ([pair[part] for pair in samples] for part in (0, 1))
        return pad_sequence(texts, batch_first=True), torch.stack(targets)

    def batches(self, epoch: int) -> Iterator[Sample]:
        """Of similar length, sorted within windows of fifty batches."""
        values, offsets, targets = self.tensors
        lengths = offsets.diff()
        windows = _order(len(targets), epoch).split(50 * self.batch_size)
        sorted_ = [window[lengths[window].argsort()] for window in windows]
        batches = [batch for window in sorted_ for batch in window.split(self.batch_size)]
        for place in _order(len(batches), epoch).tolist():
            index = batches[place]
            here = torch.arange(int(lengths[index].max()))
            inside = here < lengths[index][:, None]
            at = (offsets[index][:, None] + here).clamp_(max=len(values) - 1)
            yield torch.where(inside, values[at], 0), targets[index]


class _MeanState(nn.Module):
    """The mean of what a network makes of each token, to scores."""

    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width, padding_idx=0)
        self.head = nn.Linear(width, CLASSES)

    def states(self, tokens: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, tokens: Tensor) -> Tensor:
        kept = (tokens != 0).unsqueeze(-1)
        scores: Tensor = self.head((self.states(tokens) * kept).sum(1) / kept.sum(1))
        return scores


class LSTMTexts(_Texts):
    __doc__ = _Texts.__doc__

    name = "lstm"
    task: ClassVar[dict[str, Any]] = {
        **_Texts.read_as,
        "architecture": {
            "name": "lstm",
            "embedding": 64,
            "width": 64,
            "bidirectional": False,
            "pooling": "mean",
            "dropout": 0,
        },
    }

    class Network(_MeanState):
        def __init__(self, vocabulary: int) -> None:
            super().__init__(vocabulary, 64)
            self.lstm = nn.LSTM(64, 64, batch_first=True)

        def states(self, tokens: Tensor) -> Tensor:
            states: Tensor = self.lstm(self.embedding(tokens))[0]
            return states

    def network(self) -> nn.Module:
        return self.Network(self.vocabulary)


class TransformerTexts(_Texts):
    __doc__ = _Texts.__doc__

    name = "transformer"
    task: ClassVar[dict[str, Any]] = {
        **_Texts.read_as,
        "architecture": {
            "name": "transformer",
            "width": 64,
            "layers": 1,
            "heads": 4,
            "feedforward": 128,
            "dropout": 0,
            "pooling": "mean",
        },
    }

    class Network(_MeanState):
        def __init__(self, vocabulary: int) -> None:
            super().__init__(vocabulary, 64)
            self.places = nn.Parameter(0.02 * torch.randn(LONGEST, 64))
            layer = nn.TransformerEncoderLayer(
                64, 4, 128, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
            )
            norm = nn.LayerNorm(64)
            self.layers = nn.TransformerEncoder(layer, 1, norm, enable_nested_tensor=False)

        def states(self, tokens: Tensor) -> Tensor:
            embedded = self.embedding(tokens) + self.places[: tokens.shape[1]]
            states: Tensor = self.layers(embedded, src_key_padding_mask=tokens == 0)
            return states

    def network(self) -> nn.Module:
        return self.Network(self.vocabulary)


WORKLOADS: dict[str, type[Workload]] = {
    workload.name: workload
    for workload in (Rows, Thumbnails, LSTMTexts, TransformerTexts, Photographs)
}
