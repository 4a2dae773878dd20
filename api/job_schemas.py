"""What travels between clients and the routes of jobs."""

import re
from datetime import datetime
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from sqlalchemy.orm import Session

from models.parts.options import Plain
from models.parts.training import Training, Transfer
from store import jobs, queues
from store.tables import Job
from tasks.catalog import AnyTask

Status = Literal[
    "queued", "running", "pausing", "paused", "cancelling", "succeeded", "failed", "cancelled"
]


def _not_an_id(name: str) -> str:
    if name.startswith(("job_", "ckpt_")):
        raise ValueError("a model's name must not look like the id of a job or a checkpoint")
    return name


ModelName = Annotated[str, Field(pattern=r"^[a-z0-9_.-]{1,64}$"), AfterValidator(_not_an_id)]
"""What a model may be called: it stands in paths, before an @."""


def model_name_of(text: str) -> str:
    """The model name that comes nearest to a text."""
    name = re.sub(r"[^a-z0-9_.-]+", "-", text.lower())[:64].strip("-._")
    return re.sub(r"^(job|ckpt)_", r"\1-", name) or "model"


class Resources(Plain):
    """What the job runs on."""

    devices: int = Field(
        1,
        ge=1,
        le=64,
        description="How many devices of one worker learn from each batch together: GPUs, or on the CPU "
        "processes that share a job's threads.",
    )
    sharded: bool = Field(
        False,
        description="Divide weights, gradients and the optimizer's memory among the devices, for a network "
        "that does not fit one of them; takes at least two.",
    )
    queue: Literal["auto", "cpu", "gpu"] = Field(
        "auto", description="Which workers may take it; auto prefers a GPU if any worker has one."
    )


class Budget(Plain):
    """What the job may use up at most."""

    minutes: float = Field(
        gt=0, le=525_600, description="Training time; after it the best so far is kept."
    )


class Profile(Plain):
    """Which steps PyTorch's profiler records, and what it notes of them besides operators and times."""

    from_step: int = Field(
        10, ge=1, le=2**31, description="The first step it records; the training's first is 1."
    )
    steps: int = Field(5, ge=1, le=20, description="How many steps it records.")
    memory: bool = Field(False, description="Whether it notes what operators allocate and free.")
    shapes: bool = Field(False, description="Whether it notes the shapes of operators' inputs.")


class Webhook(Plain):
    """Where a job's events are sent, and which of them."""

    url: str = Field(
        max_length=2000, description="An https:// URL.", examples=["https://hooks.example.com/jobs"]
    )
    events: list[Status] = Field(
        list(get_args(Status)),
        min_length=1,
        description="The statuses to tell of; all if left out.",
    )


def _with_url(value: object) -> object:
    return {"url": value} if isinstance(value, str) else value


Hook = Annotated[Webhook, BeforeValidator(_with_url, json_schema_input_type=str | Webhook)]
"""A webhook; its URL alone is short for one that wants every event."""


class JobCreate(Plain):
    """What to train, on which data, and how. Whatever is left out is chosen for the data."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "name": "reviews",
                    "dataset": "ds_01jd2x7m0qk5t3v9r8w6y4z2ab",
                    "training": {"epochs": 5, "seed": 0},
                }
            ]
        }
    )

    name: ModelName | None = Field(
        None, description="The name of the model it makes; the data set's name if left out."
    )
    dataset: str = Field(description="The id of the data set.", max_length=100)
    task: AnyTask | None = Field(
        None, description="What to learn and what learns it; the data set's task if left out."
    )
    training: Training = Field(Training(), description="How the training runs.")
    base: str | None = Field(
        None,
        max_length=200,
        description="A model to start from: `name`, `name@3`, `name@alias`, `job_...`, `ckpt_...`.",
    )
    transfer: Transfer | None = Field(
        None, description="What happens to what the base knows, and whether somebody teaches."
    )
    resources: Resources = Field(Resources(), description="What the job runs on.")
    priority: int = Field(0, ge=-100, le=100, description="Jobs with a higher one run first.")
    budget: Budget | None = Field(None, description="What the job may use up at most.")
    webhook: Hook | None = Field(
        None, description="Where its events are sent: a URL, or a URL and which events."
    )
    profile: Profile | None = Field(
        None, description="Record where the time of a few steps goes; `{}` chooses them."
    )


class JobUpdate(Plain):
    """What may change after a job was submitted."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"priority": 10}]})

    name: Annotated[str, Field(pattern=r"^[^\x00-\x1f]{1,200}$")] | None = Field(
        None, description="A new name for people; the model keeps its own."
    )
    priority: int | None = Field(None, ge=-100, le=100, description="A new place in the queue.")


class Extension(Plain):
    """How much longer to train."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"epochs": 5}]})

    epochs: int = Field(ge=1, le=100_000, description="Epochs to add.")


class ProgressOut(BaseModel):
    """How far a job is."""

    epoch: int = Field(0, description="Epochs done.")
    epochs: int | None = Field(None, description="Epochs there will be.")
    step: int = Field(0, description="Steps done.")
    steps: int | None = Field(None, description="Steps there will be.")
    rows_done: int | None = Field(None, description="Inputs of a batch prediction that are done.")
    rows: int | None = Field(None, description="Inputs there are.")
    percent: float = Field(0.0, description="Share of the steps or inputs done.")
    eta_seconds: float | None = Field(None, description="Time it will probably still take.")


class FailureOut(BaseModel):
    """Why a job failed."""

    code: str = Field(
        description="The kind of failure; `poison` if every run of the job was ended by something."
    )
    message: str = Field(description="What happened, in one sentence.")
    cause: str | None = Field(None, description="What ended the last run of a poison job.")
    signal: str | None = Field(None, description="The signal that killed the training process.")
    memory_bytes: int | None = Field(
        None, description="The most memory the training process was seen to use before it ended."
    )
    traceback: str | None = Field(None, description="Where in the code it happened.")


class TrialOf(BaseModel):
    """What a job is to a sweep."""

    sweep: str = Field(description="The sweep's id.")
    number: int = Field(description="Its number among the trials, from 0.")
    parameters: dict[str, Any] = Field(description="What the sweep chose, by path in the request.")
    pruned: bool = Field(description="Whether the sweep stopped it early.")


class JobOut(BaseModel):
    """A job as it is now."""

    id: str = Field(description="Its id.")
    kind: Literal["train", "evaluate", "predict", "advise", "export"] = Field(
        description="A training, an evaluation, a batch prediction, advice on bases, or an export."
    )
    name: str = Field(description="Its name.")
    status: Status = Field(description="Where it is in its life.")
    waiting: str | None = Field(
        None, description="Why it is queued; only when one job is asked for."
    )
    dataset: str | None = Field(
        description="The data set's id; null if that was deleted, or inputs came as a file."
    )
    dataset_name: str | None = Field(description="The data set's name.")
    task: str = Field(description="The task's name.")
    resolved: dict[str, Any] = Field(
        description="Exactly what is trained, with everything chosen that was left open."
    )
    request: dict[str, Any] = Field(description="What was asked for.")
    progress: ProgressOut = Field(description="How far it is.")
    metrics: dict[str, Any] = Field(description="Of the best checkpoint, by split.")
    result: dict[str, Any] | None = Field(
        description="What an evaluation found; what a batch prediction came to; of a training on a base, what it "
        "forgot; which bases suit a data set; how near an exported network comes."
    )
    model: str | None = Field(description="The model version it made, once succeeded.")
    base: str | None = Field(description="The model it started from.")
    base_checkpoint: str | None = Field(description="The checkpoint it started from.")
    parent: str | None = Field(description="The job it repeats, changes or continues.")
    trial: TrialOf | None = Field(
        None, description="What it is to a sweep, if it is a trial of one."
    )
    error: FailureOut | None = Field(description="Why it failed.")
    attempts: int = Field(description="Times it was tried since it last made progress.")
    queue: str = Field(description="The queue it is in.")
    devices: int = Field(description="How many devices it trains on.")
    priority: int = Field(description="Jobs with a higher one run first.")
    budget: Budget | None = Field(description="What it may use up at most.")
    webhook: Webhook | None = Field(None, description="Where its events are sent.")
    profile: Profile | None = Field(None, description="Which steps are recorded, if any.")
    worker: str | None = Field(description="The worker that ran it last.")
    created_at: datetime = Field(description="When it was submitted.")
    started_at: datetime | None = Field(description="When it first ran.")
    finished_at: datetime | None = Field(description="When it ended.")


def job_out(job: Job) -> JobOut:
    """A job as clients see it."""
    epochs = job.spec.get("training", {}).get("epochs")
    return JobOut(
        id=job.id,
        kind=job.kind,
        name=job.name,
        status=jobs.shown_status(job),
        dataset=job.dataset_id,
        dataset_name=job.dataset_name,
        task=job.task,
        resolved=job.spec,
        request=job.request,
        progress=ProgressOut.model_validate({"epochs": epochs, **job.progress}),
        metrics=job.metrics,
        result=job.result,
        model=jobs.shown_model(job),
        base=job.base["ref"] if job.base else None,
        base_checkpoint=job.base_checkpoint_id,
        parent=job.parent_id,
        trial=_trial_of(job),
        error=job.error,
        attempts=job.attempt,
        queue=job.queue,
        devices=job.devices,
        priority=job.priority,
        budget=Budget(minutes=job.budget_seconds / 60) if job.budget_seconds else None,
        webhook=job.webhook,
        profile=job.profile,
        worker=job.worker_id,
        created_at=job.created_at,
        started_at=job.started_at,
        finished_at=job.finished_at,
    )


def _trial_of(job: Job) -> TrialOf | None:
    if job.sweep_id is None or job.trial is None:
        return None
    chosen = job.parameters or {}
    return TrialOf(sweep=job.sweep_id, number=job.trial, parameters=chosen, pruned=job.pruned)


def job_in_detail(session: Session, job: Job) -> JobOut:
    """A job as clients see it who ask for this one alone."""
    shown = job_out(job)
    if job.status == "queued":
        shown.waiting = queues.waiting(session, job)
    return shown
