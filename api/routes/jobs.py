"""Jobs: trainings and evaluations, from the request to the end."""

from collections.abc import Iterable
from contextlib import suppress
from typing import Annotated, Any

from fastapi import APIRouter, BackgroundTasks, Body, Depends, Query, Request
from pydantic import AfterValidator, BaseModel, Field

from api import faults
from api.auth import Train
from api.dependencies import CurrentDatabase, CurrentSettings, Reading, Writing
from api.errors import documented
from api.job_schemas import (
    Extension,
    JobCreate,
    JobOut,
    JobUpdate,
    Status,
    job_in_detail,
    job_out,
)
from api.new_job import NewJob
from api.published import finding
from api.queue import Bell
from api.schemas import After, Limit, PageOut, page_out
from api.submitting import clone, extend, merged, retry, submit
from store import jobs, metrics
from store.errors import NotFound
from store.tables import Job
from tasks.parts.problems import Invalid

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])


class Curve(BaseModel):
    """A metric over the training."""

    steps: list[int] = Field(description="Steps it was measured after.")
    epochs: list[float] = Field(description="Epochs these steps are in.")
    values: list[float] = Field(description="What was measured.")


class CurvesOut(BaseModel):
    """Metrics over the training, by name."""

    curves: dict[str, Curve] = Field(description="Such as `train/loss`, `validation/accuracy`.")


_DEEPEST = 50


def _not_too_deep(patch: dict[str, Any] | None) -> dict[str, Any] | None:
    """No request has so many levels, and whoever walks down each of them would stumble."""
    level: list[Any] = [patch]
    for _ in range(_DEEPEST):
        level = [child for item in level for child in _children(item)]
    if level:
        raise ValueError(f"is nested deeper than {_DEEPEST} levels")
    return patch


def _children(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


Patch = Annotated[
    dict[str, Any] | None,
    AfterValidator(_not_too_deep),
    Body(
        description="Changes to the request as a JSON merge patch (RFC 7396); `{}` changes nothing.",
        examples=[{"training": {"seed": 1}}],
    ),
]


class AskedJob:
    """A request for a job, and what finds published checkpoints for it: looked up before there is a transaction."""

    def __init__(self, request: Request, principal: Train, body: JobCreate) -> None:
        self.body, self.find = body, finding(request, principal, body.task)


class AskedClone:
    """The changes to a job's request, and what finds published checkpoints for what comes of it."""

    def __init__(
        self,
        request: Request,
        principal: Train,
        database: CurrentDatabase,
        job_id: str,
        body: Patch = None,
    ) -> None:
        self.body = body or {}
        task = None
        with suppress(NotFound, Invalid), database.transaction(read_only=True) as session:
            job = jobs.get(session, principal.project_id, job_id)
            task = faults.read(JobCreate, merged(job.request, self.body)).task
        self.sent, self.find = body, finding(request, principal, task)


@router.post("", status_code=202, summary="Submit a job", responses=documented(404, 409))
def create_job(
    principal: Train,
    asked: Annotated[AskedJob, Depends()],
    session: Writing,
    settings: CurrentSettings,
    new_job: NewJob,
) -> JobOut:
    """Queues a training. Only `dataset` is required; whatever is left out is chosen for the data, and
    `resolved` shows what was chosen.

    To fine-tune, name a `base`; its backbone's weights are taken over, and its head too where the
    labels are the same.
    """

    project_id, private = principal.project_id, settings.webhook_private

    def make() -> Job:
        return submit(session, project_id, asked.body, find=asked.find, webhook_private=private)

    return new_job(asked.body, make)


@router.get("", response_model=PageOut[JobOut], summary="List jobs")
def list_jobs(
    principal: Train,
    session: Reading,
    limit: Limit = 20,
    after: After = None,
    status: Annotated[Status | None, Query(description="Only those in this status.")] = None,
    task: Annotated[str | None, Query(description="Only those for this task.")] = None,
    dataset: Annotated[str | None, Query(description="Only those on this data set.")] = None,
) -> Any:
    """The project's jobs, newest first."""
    page = jobs.page(session, principal.project_id, limit, after, status, task, dataset)
    return page_out(page, job_out)


@router.get("/{job_id}", summary="Show a job", responses=documented(404))
def get_job(principal: Train, session: Reading, job_id: str) -> JobOut:
    """Status, progress, metrics, and why it waits or failed."""
    return job_in_detail(session, jobs.get(session, principal.project_id, job_id))


@router.patch("/{job_id}", summary="Rename or move a job", responses=documented(404, 409))
def update_job(principal: Train, session: Writing, job_id: str, body: JobUpdate) -> JobOut:
    """Changes the name that people see, or the place in the queue."""
    job = jobs.update(session, principal.project_id, job_id, name=body.name, priority=body.priority)
    return job_in_detail(session, job)


@router.delete("/{job_id}", status_code=204, summary="Delete a job", responses=documented(404, 409))
def delete_job(principal: Train, session: Writing, job_id: str) -> None:
    """Forgets a job that has ended, with its metrics, logs, checkpoints and artifacts; its model stays."""
    jobs.delete(session, principal.project_id, job_id)


@router.post("/{job_id}/cancel", summary="Cancel a job", responses=documented(404, 409))
def cancel_job(principal: Train, session: Writing, job_id: str) -> JobOut:
    """Ends the job and throws away what it learned. A running one is `cancelling` until its next step."""
    return job_in_detail(session, jobs.cancel(session, principal.project_id, job_id))


@router.post("/{job_id}/stop", summary="Stop a job, keep its best", responses=documented(404, 409))
def stop_job(principal: Train, session: Writing, job_id: str) -> JobOut:
    """Ends the training early; the best it has learned so far becomes a model."""
    return job_in_detail(session, jobs.stop(session, principal.project_id, job_id))


@router.post("/{job_id}/pause", summary="Pause a job", responses=documented(404, 409))
def pause_job(principal: Train, session: Writing, job_id: str) -> JobOut:
    """Frees the worker until `resume`. A running job is `pausing` until its checkpoint is saved."""
    return job_in_detail(session, jobs.pause(session, principal.project_id, job_id))


@router.post("/{job_id}/resume", summary="Resume a paused job", responses=documented(404, 409))
def resume_job(
    request: Request, after: BackgroundTasks, principal: Train, session: Writing, job_id: str
) -> JobOut:
    """Puts a paused job back into its queue; it goes on exactly where it was."""
    job = job_in_detail(session, jobs.resume(session, principal.project_id, job_id))
    bell: Bell = request.app.state.bell
    after.add_task(bell.ring, job.queue)
    return job


@router.post(
    "/{job_id}/retry", status_code=202, summary="Retry a job", responses=documented(404, 409)
)
def retry_job(principal: Train, session: Writing, new_job: NewJob, job_id: str) -> JobOut:
    """Queues a failed or cancelled job once more, as a new one, from its last checkpoint if it has one."""
    return new_job(None, lambda: retry(session, principal.project_id, job_id))


@router.post(
    "/{job_id}/clone", status_code=202, summary="Clone a job", responses=documented(404, 409)
)
def clone_job(
    principal: Train,
    asked: Annotated[AskedClone, Depends()],
    session: Writing,
    settings: CurrentSettings,
    new_job: NewJob,
    job_id: str,
) -> JobOut:
    """Submits the same request again with changes."""
    project_id, private = principal.project_id, settings.webhook_private

    def make() -> Job:
        return clone(
            session, project_id, job_id, asked.body, find=asked.find, webhook_private=private
        )

    return new_job(asked.sent, make)


@router.post(
    "/{job_id}/extend", status_code=202, summary="Train on", responses=documented(404, 409)
)
def extend_job(
    principal: Train, session: Writing, new_job: NewJob, job_id: str, body: Extension
) -> JobOut:
    """Queues a new job that goes on where this one ended, for so many epochs more."""
    return new_job(body, lambda: extend(session, principal.project_id, job_id, body.epochs))


@router.get("/{job_id}/metrics", summary="Learning curves", responses=documented(404))
def get_metrics(
    principal: Train,
    session: Reading,
    job_id: str,
    names: Annotated[
        list[str] | None,
        Query(description="Which ones, separated by commas or repeated; all if left out."),
    ] = None,
    points: Annotated[
        int | None, Query(ge=2, le=10_000, description="At most so many of each, evenly taken.")
    ] = None,
) -> CurvesOut:
    """Every metric over the training."""
    jobs.get(session, principal.project_id, job_id)
    wanted = [name.strip() for each in names for name in each.split(",")] if names else None
    found = metrics.curve(session, job_id, wanted, points)
    return CurvesOut(curves={name: _columns(curve) for name, curve in found.items()})


def _columns(curve: list[tuple[int, int, float]]) -> Curve:
    return Curve(
        steps=[step for step, _, _ in curve],
        epochs=[epoch for _, epoch, _ in curve],
        values=[value for _, _, value in curve],
    )
