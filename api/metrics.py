"""What Prometheus may know of this process."""

from prometheus_client import CollectorRegistry, Histogram

REGISTRY = CollectorRegistry()
"""Counters of this process; modules of the web side add theirs."""

SHARED_COUNTS = "PROMETHEUS_MULTIPROC_DIR"
"""Names the folder in which processes that share a port count, for prometheus_client."""

REQUEST_SECONDS = Histogram(
    "modelyard_http_request_seconds",
    "Time from a request's first byte to its answer's last one.",
    ["method", "route", "status"],
    registry=REGISTRY,
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 60),
)
