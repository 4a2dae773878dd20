"""Whether the service is well, for load balancers and Prometheus."""

import os

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Gauge, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from pydantic import BaseModel, Field
from sqlalchemy.orm import Session

from api.auth import demand
from api.dependencies import CurrentDatabase, CurrentSettings, Reading
from api.errors import documented
from api.metrics import REGISTRY, SHARED_COUNTS
from store import jobs, projects, queues, workers

router = APIRouter(tags=["health"])


class HealthOut(BaseModel):
    """How the service is."""

    status: str = Field(description="`ok`, or `ready` to take jobs and predictions.")


@router.get("/healthz", summary="Is the process alive?")
async def healthz() -> HealthOut:
    """Looks at nothing but the process itself."""
    return HealthOut(status="ok")


@router.get("/readyz", summary="Can jobs and predictions be taken?", responses=documented(503))
def readyz(database: CurrentDatabase) -> HealthOut:
    """Asks the database; 503 while it does not answer."""
    with database.transaction(read_only=True) as session:
        projects.page(session, 1)
    return HealthOut(status="ready")


@router.get(
    "/metrics",
    response_class=Response,
    summary="Numbers for Prometheus",
    openapi_extra={"security": [{"key": []}]},
    responses={
        200: {"content": {"text/plain": {"schema": {"type": "string"}}}},
        **documented(401, 403, 503),
    },
)
def get_prometheus_metrics(
    request: Request, settings: CurrentSettings, session: Reading
) -> Response:
    """Requests, predictions, jobs, queues and workers. Needs an admin key unless the operator opened it."""
    if not settings.metrics_public:
        demand(request, "admin")
    numbers = generate_latest(_of_processes()) + generate_latest(_of_database(session))
    return Response(numbers, headers={"Content-Type": CONTENT_TYPE_LATEST})


def _of_processes() -> CollectorRegistry:
    """What this process has counted, and those that share its port, if there are any."""
    if SHARED_COUNTS not in os.environ:
        return REGISTRY
    registry = CollectorRegistry()
    MultiProcessCollector(registry)
    return registry


def _of_database(session: Session) -> CollectorRegistry:
    """What every API process sees alike, as it is at this moment."""
    registry = CollectorRegistry()
    by_kind = Gauge("modelyard_jobs", "Jobs.", ["status", "kind"], registry=registry)
    for (status, kind), number in jobs.counts(session).items():
        by_kind.labels(status, kind).set(number)
    depth = Gauge("modelyard_queue_jobs", "Jobs that wait.", ["queue"], registry=registry)
    oldest = Gauge(
        "modelyard_queue_oldest_seconds",
        "How long the oldest job has waited.",
        ["queue"],
        registry=registry,
    )
    for queue, load in queues.depths(session).items():
        depth.labels(queue).set(load["queued"])
        oldest.labels(queue).set(load["oldest_seconds"])
    seen = Gauge("modelyard_workers", "Workers alive.", ["status"], registry=registry)
    for worker in workers.open_for(session, None):
        seen.labels(worker.status).inc()
    return registry
