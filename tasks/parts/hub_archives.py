"""Zips of checkpoints in the layout of the Hugging Face Hub: what is kept of them, once it was looked at."""

import json
import math
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from models.parts.published import is_light, is_weights
from tasks.parts.archives import Limits, open_archive
from tasks.parts.problems import Invalid, Problem

LIMITS = Limits(members=10_000, total=256 << 30, member=64 << 30)
CONFIG = "config.json"
_MOST_LIGHT, _MOST_CONFIG, _MOST_HEADER = 64 << 20, 1 << 20, 64 << 20
_BITS = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("F8_E4M3", "F8_E5M2", "F8_E8M0", "I8", "U8", "BOOL"), 8),
}


class Unpacked(NamedTuple):
    """What was kept of a checkpoint: its files' names within a folder, and the kind of network it says it is."""

    names: list[str]
    model_type: str
    ignored: list[str]
    """Files of other kinds, which nobody reads."""


def unpack(path: Path, folder: Path) -> Unpacked:
    """The files of a zipped checkpoint, written into `folder` under numbers in the order of their names.

    Raises Invalid, naming the files, for what is no checkpoint, unsafe, or has no weights as safetensors.
    """
    with open_archive(path, LIMITS) as archive:
        top = _top(archive.names)
        named = {name.removeprefix(top): name for name in archive.names}
        kept = sorted(name for name in named if is_light(name) or is_weights(name))
        ignored = sorted(set(named) - set(kept))
        if not any(is_weights(name) for name in kept):
            allowed = "weights as .safetensors: other formats can hold code"
            raise Invalid(Problem((), "the archive has no weights", ignored[:10] or None, allowed))
        for place, name in enumerate(kept):
            archive.extract(named[name], folder / str(place))
    files = {name: folder / str(place) for place, name in enumerate(kept)}
    problems = [problem for name, file in files.items() for problem in _faults(name, file)]
    if problems:
        raise Invalid(*problems)
    return Unpacked(kept, _model_type(files[CONFIG]), ignored)


def _top(names: list[str]) -> str:
    """The folder in which all of a checkpoint lies. Raises Invalid when it has no configuration."""
    configs = [name for name in names if PurePosixPath(name).name == CONFIG]
    if not configs:
        raise Invalid(Problem((CONFIG,), "is missing", sorted(names)[:10], "a config.json"))
    highest = min(configs, key=lambda name: (name.count("/"), name))
    top = highest.removesuffix(CONFIG)
    outside = sorted(name for name in names if not name.startswith(top))
    if outside:
        raise Invalid(Problem((outside[0],), "lies beside the checkpoint", None, f"files in {top}"))
    return top


def _faults(name: str, path: Path) -> Iterator[Problem]:
    """What is wrong with one file of a checkpoint."""
    size = path.stat().st_size
    if is_weights(name):
        yield from weight_faults(name, path)
    elif size > (most := _MOST_CONFIG if name == CONFIG else _MOST_LIGHT):
        yield Problem((name,), "too large", size, f"at most {most:,} bytes")
    elif name.endswith(".json"):
        try:
            json.loads(path.read_bytes())
        except (ValueError, RecursionError) as error:
            yield Problem((name,), f"not valid JSON: {error}")


def weight_faults(name: str, path: Path) -> Iterator[Problem]:
    """What is wrong with a file of weights: its header must tell of all of its bytes, once each."""
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(_MOST_HEADER, size - 8):
                raise ValueError(f"a header of {length} bytes")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        end = 0
        for tensor in sorted(header.values(), key=lambda tensor: tensor["data_offsets"]):
            begin, stop = tensor["data_offsets"]
            bits = math.prod(tensor["shape"]) * _BITS[tensor["dtype"]]
            if begin != end or 8 * (stop - begin) != bits:
                raise ValueError(f"a tensor at bytes {begin} to {stop} of shape {tensor['shape']}")
            end = stop
        if end != size - 8 - length:
            raise ValueError(f"tensors of {end} bytes in a file of {size - 8 - length}")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        yield Problem((name,), f"not a whole safetensors file: {error}")


def _model_type(path: Path) -> str:
    """What a configuration calls its kind of network. Raises Invalid when it does not."""
    config = json.loads(path.read_bytes())
    kind = config.get("model_type") if isinstance(config, dict) else None
    if not isinstance(kind, str) or not 0 < len(kind) <= 200:
        allowed = "the name that transformers gives the network"
        raise Invalid(Problem((CONFIG, "model_type"), "says no kind of network", kind, allowed))
    return kind
