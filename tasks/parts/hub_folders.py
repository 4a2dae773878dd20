"""A network that began with a published checkpoint, as a folder in the layout that this one came in."""

import json
from pathlib import Path

import torch

from models.parts.pretrained import Pretrained
from models.parts.published import Published, is_light, is_uploaded
from tasks.parts.packages import ABOUT, CARD, CODEC, About, head
from tasks.trained import Trained, save_weights

CONFIG, WEIGHTS, HEAD = "config.json", "model.safetensors", "head.safetensors"
_METADATA = {"format": "pt"}
"""Without it `transformers` does not open a file of weights."""
_INDEX = ".index.json"
"""Which of several files of weights has which: there is one here."""


def write(model: Trained, about: About, codec: Path, published: Published, folder: Path) -> None:
    """Write the folder: the files that came beside the weights, weights as they are now, and what else was learned."""
    architecture = model.task.architecture
    assert isinstance(architecture, Pretrained)
    network = architecture.network_of(model.learner)
    for path in sorted(published.folder.rglob("*")):
        name = path.relative_to(published.folder).as_posix()
        if path.is_file() and is_light(name) and not name.endswith(_INDEX):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(path.read_bytes())
    config = {**(architecture.config or {}), "architectures": [type(network).__name__]}
    (folder / CONFIG).write_text(json.dumps(config, indent=1), "utf-8")
    own = {id(tensor) for tensor in network.state_dict(keep_vars=True).values()}
    rest = model.learner.state_dict(keep_vars=True)
    save_weights(network.state_dict(), folder / WEIGHTS, _METADATA)
    head_alone = {name: tensor for name, tensor in rest.items() if id(tensor) not in own}
    save_weights(head_alone, folder / HEAD, _METADATA)
    (folder / CODEC).write_bytes(codec.read_bytes())
    (folder / ABOUT).write_text(about.model_dump_json(indent=1), "utf-8")
    (folder / CARD).write_text(_card(about, architecture), "utf-8")


def begins_alike(model: Trained, folder: Path) -> bool:
    """Whether a training that begins with the folder begins with this very network. Raises Unusable."""
    architecture = model.task.architecture
    assert isinstance(architecture, Pretrained)
    fresh = model.task.build(model.codec)
    architecture.begin(fresh, Published(folder))
    found = architecture.network_of(fresh).state_dict()
    own = architecture.network_of(model.learner).state_dict()
    return found.keys() == own.keys() and all(torch.equal(found[name], own[name]) for name in own)


def _card(about: About, architecture: Pretrained) -> str:
    known = not is_uploaded(architecture.checkpoint)
    base = f"base_model: {architecture.checkpoint}\n" if known else ""
    return f"""---
library_name: transformers
{base}---

{head(about)}
- `{WEIGHTS}` and `{CONFIG}`: the network without a head, for `AutoModel`, with the files that came with it.
- `{HEAD}`: what was learned on top of it, named as in Modelyard's `state_dict`.
- `{CODEC}`: how inputs are read and outputs named: labels, vocabulary.
- `{ABOUT}`: task, architecture and training, with every field.

```python
from transformers import AutoModel

network = AutoModel.from_pretrained(".")
```

As an upload to `POST /v1/pretrained` it is what trainings begin with.
"""
