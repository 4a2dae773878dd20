"""What Prometheus may know of predictions."""

import asyncio
from functools import cache

from prometheus_client import Counter, Gauge, Histogram

from api.errors import Busy
from api.metrics import REGISTRY
from tasks.parts.problems import Invalid

MOST_MODELS = 200
"""Model names that are told apart; the ones after that are `other`, so that labels stay few."""

_BY_MODEL = ["task", "model"]
_SECONDS_FROM_HALF_A_MILLISECOND = (
    *(0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5),
    *(1, 2, 5, 10),
)
_PREDICTIONS = Counter(
    "modelyard_predictions", "Inputs that were predicted for.", _BY_MODEL, registry=REGISTRY
)
_SECONDS = Histogram(
    "modelyard_prediction_seconds",
    "Time a prediction request took once its body was read.",
    _BY_MODEL,
    registry=REGISTRY,
    buckets=_SECONDS_FROM_HALF_A_MILLISECOND,
)
_QUEUE_SECONDS = Histogram(
    "modelyard_prediction_queue_seconds",
    "Time a prediction request waited for the forward pass before its own.",
    _BY_MODEL,
    registry=REGISTRY,
    buckets=_SECONDS_FROM_HALF_A_MILLISECOND,
)
_FAILURES = Counter(
    "modelyard_prediction_failures",
    "Prediction requests without predictions: invalid, busy, left (by the caller, or late) and error.",
    [*_BY_MODEL, "reason"],
    registry=REGISTRY,
)
_BATCH = Histogram(
    "modelyard_prediction_batch_inputs",
    "Inputs per forward pass.",
    ["task"],
    registry=REGISTRY,
    buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024),
)
RESIDENT_BYTES = Gauge(
    "modelyard_resident_model_bytes", "Memory the models ready to predict take.", registry=REGISTRY
)
RESIDENT_MODELS = Gauge(
    "modelyard_resident_models", "Models that are ready to predict.", registry=REGISTRY
)
_names: set[str] = set()


class Measures:
    """The counters of one model."""

    def __init__(self, task: str, model: str) -> None:
        self._labels = task, model
        self._predictions = _PREDICTIONS.labels(task, model)
        self._seconds = _SECONDS.labels(task, model)
        self._queue_seconds = _QUEUE_SECONDS.labels(task, model)

    def answered(self, inputs: int, seconds: float, queued: float) -> None:
        """A request was answered, after so many seconds of which it was queued for some."""
        self._predictions.inc(inputs)
        self._seconds.observe(seconds)
        self._queue_seconds.observe(queued)

    def failed(self, error: BaseException) -> None:
        """A request was not answered, because of `error`."""
        kinds: dict[type, str] = {
            Invalid: "invalid",
            Busy: "busy",
            asyncio.CancelledError: "left",
            GeneratorExit: "left",
        }
        reason = next((kinds[kind] for kind in type(error).__mro__ if kind in kinds), "error")
        _FAILURES.labels(*self._labels, reason).inc()


def of_model(task: str, ref: str) -> Measures:
    """The counters of the model that `ref` names; checkpoints of jobs share one entry."""
    name, _, version = ref.partition("@")
    name = name if version and not name.startswith("job_") else "checkpoint"
    if name not in _names:
        if len(_names) >= MOST_MODELS:
            name = "other"
        _names.add(name)
    return _measures(task, name)


_measures = cache(Measures)


def of_batches(task: str) -> Histogram:
    """Inputs per forward pass of models for this task."""
    return _BATCH.labels(task)
