"""ONNX Runtime as one of the ways to compute a network, made while torch already answers."""

import json
import logging
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock

import torch
from safetensors.torch import save_file

from api.serving.export import INT8, NETWORK
from api.serving.loading import Source
from api.serving.runtimes import Way
from tasks.parts.columns import Columns
from tasks.parts.graphs import example_of, forward_of_onnx

log = logging.getLogger(__name__)

_SECONDS = 600
"""What writing a network may take."""
_TOLERANCES = {NETWORK: 1e-3, INT8: 0.05}


class Exporter:
    """Has networks written as ONNX, one at a time, in a process of its own, which may take a minute."""

    def __init__(self, folder: Path, *, int8: bool) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._int8 = folder, int8
        self._thread = ThreadPoolExecutor(1, "export")
        self._lock = Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._is_closed = False

    def finish(self) -> None:
        """Wait until all is written that was asked for."""
        self._thread.shutdown()

    def close(self) -> None:
        """End what is being written."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            self._is_closed = True
            if self._process is not None:
                self._process.kill()

    def submit(self, source: Source, sample: Columns, add: Callable[[Way], None]) -> None:
        """Have the network written that takes inputs like `sample`'s, and `add` the ways to compute it."""
        self._thread.submit(self._make, source, sample, add)

    def _make(self, source: Source, sample: Columns, add: Callable[[Way], None]) -> None:
        try:
            self._write(source, sample, add)
        except Exception as error:  # torch answers in any case
            log.warning("a network was not written as ONNX: %s", error)

    def _write(self, source: Source, sample: Columns, add: Callable[[Way], None]) -> None:
        with tempfile.TemporaryDirectory(dir=self._folder) as name:
            folder = Path(name)
            inputs, free = example_of(sample)
            named = {str(place): tensor for place, tensor in enumerate(inputs)}
            save_file(named, folder / "inputs.safetensors")
            asked = {"task": source.task, "codec": source.codec, "weights": str(source.weights)}
            asked |= {"free": free, "int8": self._int8}
            (folder / "model.json").write_text(json.dumps(asked))
            if fault := self._run(folder):
                log.info("a network cannot be written as ONNX: %s", fault)
            for file in (NETWORK, INT8):
                if (folder / file).exists():
                    forward = forward_of_onnx(folder / file, torch.get_num_threads())
                    add(Way(file, forward, _TOLERANCES[file]))

    def _run(self, folder: Path) -> str | None:
        """Why nothing was written, if so."""
        command = [sys.executable, "-m", "api.serving.export", str(folder)]
        with (folder / "said").open("w+") as said:
            with self._lock:
                if self._is_closed:
                    return "the service ends"
                # It ends when its input does, and so with this process.
                self._process = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=said, stderr=said
                )
            with self._process as process:
                try:
                    status = process.wait(_SECONDS)
                except subprocess.TimeoutExpired:
                    process.kill()
                    status = process.wait()
            said.seek(0)
            return f"exit status {status}: {said.read()[-500:]}" if status else None
