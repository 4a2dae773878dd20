"""The next batches, prepared by a thread while this one trains, where the loop would wait for them."""

import ctypes
import mmap
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from models.base import Batch
from tasks.parts.columns import Columns, Dense, Ragged

_AHEAD = 2
_SHARE = 0.5
"""Of the machine's memory: the cache of its disk is trusted to hold columns of that size, and not more."""


class Source(Protocol):
    """Where batches come from."""

    def batch(self, index: Tensor) -> Batch:
        """The examples at `index` (B,)."""
        ...


@contextmanager
def feed(columns: Columns, coming: Iterable[Tensor], device: torch.device) -> Iterator[Source]:
    """The same batches as those of the columns, where `coming` are all that will be asked for, in order.

    They are made ahead for a GPU, which reads them from pinned memory, and from a disk. From memory to the
    CPU they are made as they are asked for, which is faster than handing them over.
    """
    from_disk = _size(columns) > _SHARE * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if not from_disk and device.type != "cuda":
        yield columns
        return
    ahead = Ahead(columns, coming, device, from_disk=from_disk)
    try:
        yield ahead
    finally:
        ahead.close()


class Ahead:
    """A source that makes a few batches before they are asked for. What its thread raises, `batch` does."""

    def __init__(
        self, columns: Columns, coming: Iterable[Tensor], device: torch.device, *, from_disk: bool
    ) -> None:
        self._columns, self._coming = columns, iter(coming)
        self._from_disk, self._pins = from_disk, device.type == "cuda"
        # A thread begins on the first GPU, and what it pins there would take memory of that.
        settle = partial(torch.cuda.set_device, device) if self._pins else None
        self._thread = ThreadPoolExecutor(1, "feed", initializer=settle)
        self._made: deque[tuple[Tensor, Future[Batch]]] = deque()
        for _ in range(_AHEAD):
            self._begin_next()

    def batch(self, index: Tensor) -> Batch:
        expected, made = self._made.popleft()
        assert torch.equal(expected, index), "another batch than the next one was asked for"
        self._begin_next()
        return made.result()

    def close(self) -> None:
        """Stop, after the batch under way."""
        self._thread.shutdown(cancel_futures=True)

    def _begin_next(self) -> None:
        index = next(self._coming, None)
        if index is not None:
            self._made.append((index, self._thread.submit(self._make, index)))

    def _make(self, index: Tensor) -> Batch:
        if self._from_disk:
            _fetch(self._columns, index)
        batch = self._columns.batch(index)
        return batch.pinned() if self._pins else batch


def _columns_of(columns: Columns) -> tuple[Dense | Ragged, ...]:
    return columns.inputs + columns.targets


def _size(columns: Columns) -> int:
    return sum(t.nbytes for column in _columns_of(columns) for t in column.tensors().values())


def _fetch(columns: Columns, index: Tensor) -> None:
    """Have the kernel read the examples at `index` (B,) from disk, all of them at once and nothing else.

    On its own it reads one after the other, and 128 KiB for each: 702 MiB instead of 60 for batches of images
    of 64 x 64 pixels, in 1.3 s instead of 0.8.
    """
    madvise = ctypes.CDLL(None).madvise
    for column in _columns_of(columns):
        item = column.values[:1].nbytes
        start = column.values.data_ptr()
        if isinstance(column, Ragged):
            first, last = column.offsets[index] * item, column.offsets[index + 1] * item
        else:
            first, last = index * item, (index + 1) * item
        for begin, end in zip((first + start).tolist(), (last + start).tolist(), strict=True):
            page = begin - begin % mmap.PAGESIZE
            madvise(ctypes.c_void_p(page), ctypes.c_size_t(end - page), mmap.MADV_WILLNEED)
