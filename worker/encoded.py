"""Encoded splits as files: written piece by piece, and mapped into memory instead of read."""

import json
import warnings
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from hashlib import sha256
from mmap import ACCESS_READ, mmap
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from tasks.parts.columns import Columns, Dense, Ragged

_COLUMNS: Mapping[str, type[Dense] | type[Ragged]] = {"Dense": Dense, "Ragged": Ragged}
_DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}
"""By their names in safetensors files."""


def columns_name(blob_id: str, task: str, codec: str) -> str:
    """The file name of a split's columns: a function of its bytes and of all that encoded them."""
    key = sha256("\0".join((blob_id, task, codec)).encode()).hexdigest()
    return f"{key}.columns.safetensors"


def part_name(blob_id: str, task: str, schema: Mapping[str, Any], share: float, seed: int) -> str:
    """The file name of a share of a split: a function of its bytes and of all that it is drawn by."""
    drawn_by = json.dumps([task, schema, share, seed], sort_keys=True)
    return f"{sha256(f'{blob_id} {drawn_by}'.encode()).hexdigest()}.part.parquet"


def save_columns(pieces: Iterable[Columns], path: Path) -> None:
    """Write the columns that pieces (one at least) make up, so that `load_columns` maps them.

    One piece is in memory at a time; on disk there is room for all of them twice until they are joined.
    """
    kinds: dict[str, str] = {}
    grown: dict[str, _Growing] = {}
    with ExitStack() as closing:
        for columns in pieces:
            for place, column in _places(columns):
                if place in kinds:
                    tensors = column.continued(grown[f"{place}.values"].rows)
                else:
                    tensors = column.tensors()
                    kinds[place] = type(column).__name__
                for name, tensor in tensors.items():
                    key = f"{place}.{name}"
                    if key not in grown:
                        file = closing.enter_context(TemporaryFile(dir=path.parent))
                        grown[key] = _Growing(file, tensor)
                    grown[key].append(tensor)
        save_file({key: part.tensor() for key, part in grown.items()}, path, metadata=kinds)


def _places(columns: Columns) -> Iterable[tuple[str, Dense | Ragged]]:
    for role in ("inputs", "targets"):
        for number, column in enumerate(getattr(columns, role)):
            yield f"{role}.{number}", column


class _Growing:
    """A tensor in a file, made longer at its end."""

    def __init__(self, file: IO[bytes], like: Tensor) -> None:
        self._file, self._dtype, self._shape = file, like.dtype, like.shape[1:]
        self.rows = 0

    def append(self, rows: Tensor) -> None:
        assert (rows.dtype, rows.shape[1:]) == (self._dtype, self._shape)
        self._file.write(rows.contiguous().flatten().view(torch.uint8).numpy().data)
        self.rows += len(rows)

    def tensor(self) -> Tensor:
        self._file.flush()
        return _mapped(self._file).view(self._dtype).view(self.rows, *self._shape)


def load_columns(path: Path) -> Columns:
    """Columns whose bytes stay in the file until they are looked at, and cannot be written to."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header, whole = json.loads(file.read(size)), _mapped(file)[8 + size :]
    kinds = header.pop("__metadata__")

    def column(place: str) -> Dense | Ragged:
        prefix = f"{place}."
        fields = {k.removeprefix(prefix): v for k, v in header.items() if k.startswith(prefix)}
        return _COLUMNS[kinds[place]](**{name: _cut(whole, **v) for name, v in fields.items()})

    def role(name: str) -> tuple[Dense | Ragged, ...]:
        places = sorted((k for k in kinds if k.startswith(f"{name}.")), key=_number)
        return tuple(column(place) for place in places)

    return Columns(role("inputs"), role("targets"))


def _cut(whole: Tensor, dtype: str, shape: list[int], data_offsets: list[int]) -> Tensor:
    """The tensor that an entry of a safetensors header describes."""
    return whole[slice(*data_offsets)].view(_DTYPES[dtype]).view(shape)


def _mapped(file: IO[bytes]) -> Tensor:
    """The bytes of a file (n,), mapped to be read.

    As safetensors maps a file, to be written to in memory, it counts as data of the process: one larger than
    the machine's memory is refused, or than what a trainer may have.
    """
    if not file.seek(0, 2):
        return torch.empty(0, dtype=torch.uint8)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given buffer is not writable", UserWarning)
        return torch.frombuffer(mmap(file.fileno(), 0, access=ACCESS_READ), dtype=torch.uint8)


def _number(place: str) -> int:
    return int(place.rpartition(".")[2])
