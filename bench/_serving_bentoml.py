"""The serving benchmark's model as a BentoML service, which its server imports by name."""

import os
from pathlib import Path
from typing import Any

import bentoml  # type: ignore[import-not-found]

from bench._serving_contestants import BATCH_SIZE, Model

# Patient enough to refuse nobody: it gives up requests that it expects to be late.
_BATCHED = {"batchable": True, "max_batch_size": BATCH_SIZE, "max_latency_ms": 10_000}


@bentoml.service(
    workers=1,
    traffic={"timeout": 60},
    logging={"access": {"enabled": False}},
    metrics={"enabled": False},
)
class Predictor:
    def __init__(self) -> None:
        self.model = Model(Path(os.environ["BENCH_FOLDER"]), int(os.environ["BENCH_THREADS"]))

    @bentoml.api(**_BATCHED)  # type: ignore[untyped-decorator]
    def predict(self, inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        read = [self.model.read_json(value) for value in inputs]
        return self.model.predict(self.model.batch(read))
