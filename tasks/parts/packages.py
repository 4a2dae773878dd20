"""A trained model in one file: a zip of JSON and safetensors that others can read, and that comes in again."""

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from pydantic import BaseModel, Field
from safetensors.torch import load_file
from torch import Tensor

from models.parts.memory import ran_out
from models.parts.options import Plain
from models.parts.pretrained import Pretrained
from models.parts.published import Unusable
from tasks import trained
from tasks.base import read_fields
from tasks.catalog import Spec
from tasks.parts.archives import Archive, Limits, open_archive
from tasks.parts.hub_archives import weight_faults
from tasks.parts.problems import Invalid, Problem
from tasks.trained import Trained

Model = TypeVar("Model", bound=BaseModel)
ABOUT, CODEC, WEIGHTS, CARD = "modelyard.json", "codec.json", "model.safetensors", "README.md"
LIMITS = Limits(members=16, total=256 << 30, member=256 << 30)
_MOST_JSON = 256 << 20
"""Bytes of a codec: the vocabulary of the largest tokenizers takes a tenth of that."""


class About(Plain):
    """What a packed model is, besides its codec and its weights."""

    format: Literal["modelyard-model"] = "modelyard-model"
    version: Literal[1] = 1
    ref: str = Field(max_length=200, description="What it was called where it was packed.")
    spec: Spec = Field(description="Its task and architecture, and how it was trained.")
    metrics: dict[str, dict[str, float | None]] = Field({}, description="By split.")
    step: int = Field(0, ge=0, lt=2**63, description="Training steps behind its weights.")
    epoch: int = Field(0, ge=0, lt=2**31, description="Epochs behind them.")


class Packed(NamedTuple):
    """A trained model as files."""

    about: About
    codec: Path
    weights: Path

    def load(self) -> Trained:
        """The model, ready to predict."""
        codec = json.loads(self.codec.read_bytes())
        return trained.load(self.about.spec.task, codec, self.weights)


def pack(model: Packed, path: Path) -> None:
    """Write a model as one file; weights are stored as they are, so that they can be read in place."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(ABOUT, model.about.model_dump_json(indent=1))
        archive.write(model.codec, CODEC)
        archive.write(model.weights, WEIGHTS, zipfile.ZIP_STORED)
        archive.writestr(CARD, card(model.about))


def unpack(path: Path, folder: Path) -> Packed:
    """A model out of its file, once it was built and has answered; codec and weights lie in `folder`.

    Raises Invalid, naming what of the file is missing, unsafe, or does not fit together.
    """
    with open_archive(path, LIMITS) as archive:
        missing = [name for name in (ABOUT, CODEC, WEIGHTS) if name not in archive.names]
        if missing:
            allowed = "a zip that an export as safetensors has made"
            raise Invalid(
                *(Problem((name,), "is missing", archive.names[:10], allowed) for name in missing)
            )
        about = _read(About, ABOUT, _json(archive, ABOUT))
        codec = _json(archive, CODEC)
        archive.extract(WEIGHTS, folder / WEIGHTS)
    (folder / CODEC).write_text(json.dumps(codec), "utf-8")
    packed = Packed(about, folder / CODEC, folder / WEIGHTS)
    if faults := list(weight_faults(WEIGHTS, packed.weights)):
        raise Invalid(*faults)
    _try(packed, codec)
    return packed


def _json(archive: Archive, name: str) -> Any:
    read, size = [], 0
    for chunk in archive.chunks(name):
        read.append(chunk)
        size += len(chunk)
        if size > _MOST_JSON:
            raise Invalid(Problem((name,), "too large", None, f"at most {_MOST_JSON:,} bytes"))
    try:
        return json.loads(b"".join(read))
    except (ValueError, RecursionError) as error:
        raise Invalid(Problem((name,), f"not valid JSON: {error}")) from None


def _read(model: type[Model], name: str, data: Any) -> Model:
    try:
        return read_fields(model, data)
    except Invalid as error:
        raise Invalid(*(p._replace(loc=(name, *p.loc)) for p in error.problems)) from None


def _try(packed: Packed, codec: Any) -> None:
    """Build the model and have it answer. Raises Invalid for parts that do not fit together."""
    task = packed.about.spec.task
    try:
        if isinstance(task.architecture, Pretrained):
            task.architecture.vouch_for(task.architecture.config or {})
    except Unusable as error:
        raise Invalid(Problem((ABOUT, "spec", "task", "architecture"), str(error))) from None
    read = _read(task.codec_type, CODEC, codec)
    try:
        learner = task.build(read)
    except Exception as error:  # whatever a network says of sizes and codecs that it cannot have
        _check_memory(error)
        raise Invalid(Problem((ABOUT, "spec", "task"), f"cannot be built: {error}")) from error
    weights = load_file(packed.weights)
    try:
        learner.load_state_dict(weights)
    except RuntimeError as error:
        raise Invalid(Problem((WEIGHTS,), f"not those of this network: {error}")) from None
    _check_kinds(weights, learner.state_dict())
    _answer(Trained(task, read, learner.eval()))


def _check_kinds(weights: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    """Raises Invalid for tensors that were read as numbers of another kind."""
    problems = [
        Problem((WEIGHTS, name), "numbers of another kind", str(tensor.dtype), str(own[name].dtype))
        for name, tensor in weights.items()
        if tensor.dtype != own[name].dtype
    ]
    if problems:
        raise Invalid(*problems)


def _answer(model: Trained) -> None:
    blank = model.codec.blank()
    if blank is None:
        return
    try:
        model.predict(model.codec.read_inputs([blank]))
    except Exception as error:  # as above
        _check_memory(error)
        raise Invalid(Problem((CODEC,), f"does not fit the network: {error}")) from error


def _check_memory(error: Exception) -> None:
    """Raises MemoryError if that is what went wrong: it is no fault of the file's."""
    if ran_out(error):
        raise MemoryError from error


def card(about: About) -> str:
    """What the file says to people who open it."""
    return f"""{head(about)}
- `{WEIGHTS}`: the weights, named as in the network's `state_dict`.
- `{CODEC}`: what was learned from the data besides weights: labels, vocabulary, statistics of columns.
- `{ABOUT}`: task, architecture and training, with every field.

Modelyard takes the file in again: `POST /v1/models`. The weights alone, elsewhere:

```python
from safetensors.torch import load_file      # PyTorch
from safetensors.numpy import load_file      # NumPy, and with it Keras: layer.set_weights([...])
from safetensors.tensorflow import load_file # TensorFlow
from safetensors.flax import load_file       # JAX

weights = load_file("{WEIGHTS}")
```
"""


def head(about: About) -> str:
    """What a model is and how good, for people."""
    task = about.spec.task
    scores = "\n".join(
        f"| {split} | {name} | {value:.4g} |"
        for split, of in about.metrics.items()
        for name, value in of.items()
        if value is not None
    )
    return f"""# {about.ref}

A model for {task.name}: {type(task).summary()}
Its network: `{task.architecture.name}`, {type(task.architecture).summary()}

| split | metric | value |
|---|---|---|
{scores}
"""


def about_of(
    ref: str, spec: Spec, metrics: Mapping[str, Mapping[str, Any]], step: int, epoch: int
) -> About:
    """What is told of a model of this service; of its metrics, those that are numbers."""
    numbers = {
        split: {
            name: value
            for name, value in of.items()
            if value is None or isinstance(value, int | float)
        }
        for split, of in metrics.items()
        if isinstance(of, Mapping)
    }
    return About(ref=ref, spec=spec, metrics=numbers, step=step, epoch=epoch)
