"""What travels between clients and the routes of sweeps."""

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.orm import Session

from api.job_schemas import Budget, JobCreate, Status, Webhook
from models.parts.options import AUTO, Auto, OneOf, Plain
from store import gains, jobs, sweeps
from store.tables import Job, Sweep
from tasks.parts.spaces import NoPruner, Pruner, Sampler, Space, Tpe

MOST_TRIALS = 1_000
SweepStatus = Literal["running", "stopping", "cancelling", "succeeded", "failed", "cancelled"]
TrialStatus = Literal[Status, "pruned"]


class Comparison(Plain):
    """Which trainings show what a base is worth: each with it and from scratch, all else alike."""

    shares: list[Annotated[float, Field(gt=0, le=1)]] = Field(
        [0.1, 0.25, 0.5, 1.0],
        min_length=1,
        max_length=20,
        description="Shares of the train split to learn from, `training.share`; smaller ones are parts of larger ones.",
    )
    seeds: int = Field(
        3,
        ge=1,
        le=20,
        description="How often each is trained, with as many seeds from `training.seed` on, which draw other examples.",
    )


class SweepCreate(JobCreate):
    """A job whose best values for some fields are to be found: what its trials share, and what differs."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "name": "reviews",
                    "dataset": "ds_01jd2x7m0qk5t3v9r8w6y4z2ab",
                    "space": {
                        "task.architecture.name": {"type": "choice", "choices": ["lstm", "gru"]},
                        "training.optimizer.learning_rate": {
                            "type": "float",
                            "low": 0.0001,
                            "high": 0.01,
                            "log": True,
                        },
                        "training.batch_size": {"type": "int", "low": 16, "high": 128, "step": 16},
                    },
                    "trials": 20,
                    "parallel": 2,
                    "pruner": {"name": "median"},
                }
            ]
        }
    )

    space: Auto[Annotated[Space, Field(min_length=1, max_length=20)]] = Field(
        AUTO,
        description="What to search: paths of fields within `task`, `training` or `transfer`, each with what the "
        "field may be. Whatever the request leaves open around them is what a job without a sweep would have. "
        "If left out: the architectures that can learn the task, and how fast; the first trial is then the job as it "
        "would be without a sweep.",
    )
    compare: Comparison | None = Field(
        None,
        description="Find out what a `base` or published weights are worth: `gains` tells how much better they are "
        "than the same network from scratch, at each share of the data. `{}` compares as is usual; what is in `space` "
        "beside is chosen for either side by the validation split.",
    )
    trials: int = Field(
        20,
        ge=1,
        le=MOST_TRIALS,
        description="How many jobs to try at most; a grid has no more than it has points.",
    )
    parallel: int = Field(
        1,
        ge=1,
        le=100,
        description="How many of them may be queued or running at the same time. Fewer learn more from each other.",
    )
    sampler: OneOf[Sampler] = Field(Tpe(), description="How the next trial is chosen.")
    pruner: OneOf[Pruner] = Field(
        NoPruner(), description="Which trials are stopped before their end."
    )
    seed: int = Field(
        0,
        ge=0,
        lt=2**31,
        description="What choices depend on, besides the trials so far; `training.seed` is the trainings' own.",
    )
    budget: Budget | None = Field(
        None,
        description="What the whole sweep may use up, from the start of its first trial: after it, running trials "
        "are stopped, and the best so far is kept.",
    )


class TrialOut(BaseModel):
    """A trial of a sweep."""

    job: str = Field(description="Its job.")
    number: int = Field(description="Its number, from 0.")
    status: TrialStatus = Field(
        description="Where its job is in its life; `pruned` if it was stopped early by the sweep."
    )
    parameters: dict[str, Any] = Field(description="What was chosen for it, by path.")
    value: float | None = Field(description="The metric of its best epoch so far.")
    epoch: int = Field(description="Epochs done.")


class BestOut(BaseModel):
    """The best trial."""

    job: str = Field(description="Its job.")
    trial: int = Field(description="Its number.")
    value: float = Field(description="The metric of its best epoch.")
    parameters: dict[str, Any] = Field(description="What was chosen for it, by path.")


class GainOut(BaseModel):
    """What a share of the train split is learned to, means over seeds that both sides have been trained with."""

    share: float = Field(description="The share of the train split.")
    with_transfer: float | None = Field(
        description="The metric of trainings that take weights over."
    )
    from_scratch: float | None = Field(description="The metric of trainings that do not.")
    gain: float | None = Field(
        description="How much better it is to take over: above 0 if it is, whichever way the metric goes."
    )
    gain_error: float | None = Field(
        description="The standard error of the gain, over pairs of trainings with one seed; null for fewer than two."
    )
    seeds: int = Field(description="With how many seeds both have been trained.")


class GainsOut(BaseModel):
    """What it is worth to take weights over, as far as it is known."""

    metric: str = Field(description="The metric.")
    split: str = Field(
        description="The split it is measured on: test, or validation if there is no test."
    )
    rows: list[GainOut] = Field(description="By share, the smallest first.")
    as_good_from: float | None = Field(
        description="The smallest share from which weights that are taken over make as much as the largest share from "
        "scratch."
    )


class SweepProgress(BaseModel):
    """How far a sweep is."""

    made: int = Field(description="Trials that were submitted.")
    ended: int = Field(description="Trials that have ended, deleted ones among them.")
    trials: int = Field(description="Trials there will be.")
    percent: float = Field(description="Share of the trials that have ended.")


class SweepFailure(BaseModel):
    """Why a sweep failed."""

    code: str = Field(description="The kind of failure.")
    message: str = Field(description="What happened, in a sentence.")


class SweepOut(BaseModel):
    """A sweep as it is now."""

    id: str = Field(description="Its id.")
    name: str = Field(description="Its name, which the model it makes has, too.")
    status: SweepStatus = Field(description="Where it is in its life.")
    dataset: str | None = Field(description="The data set's id; null if that was deleted.")
    dataset_name: str | None = Field(description="The data set's name.")
    task: str = Field(description="The task's name.")
    metric: str = Field(description="What trials are compared by, on the validation split.")
    maximise: bool = Field(description="Whether more of it is better.")
    request: dict[str, Any] = Field(description="What its trials share.")
    space: dict[str, Any] = Field(description="What is searched.")
    sampler: dict[str, Any] = Field(description="How the next trial is chosen.")
    pruner: dict[str, Any] = Field(description="Which trials are stopped early.")
    seed: int = Field(description="What choices depend on.")
    parallel: int = Field(description="How many trials may be at work.")
    progress: SweepProgress = Field(description="How far it is.")
    trials: list[TrialOut] | None = Field(
        None, description="Its trials; only when one sweep is asked for."
    )
    best: BestOut | None = Field(description="The best of the trials that succeeded so far.")
    gains: GainsOut | None = Field(
        None,
        description="What it is worth to take weights over; only when one sweep is asked for that compares this.",
    )
    importances: dict[str, float] | None = Field(
        description="Each parameter's share of what made trials differ, once there is a best one at the end."
    )
    model: str | None = Field(description="The model version made of the best trial.")
    base: str | None = Field(description="The model that trials start from.")
    queue: str = Field(description="The queue of its trials.")
    devices: int = Field(description="How many devices each trial trains on.")
    priority: int = Field(description="The priority of its trials.")
    budget: Budget | None = Field(description="What it may use up.")
    webhook: Webhook | None = Field(None, description="Where its trials' events are sent.")
    error: SweepFailure | None = Field(description="Why it failed.")
    created_at: datetime = Field(description="When it was submitted.")
    finished_at: datetime | None = Field(description="When it ended.")


def sweep_out(session: Session, sweep: Sweep) -> SweepOut:
    """A sweep as clients see it in a list."""
    return _shown(sweep, sweeps.trials(session, sweep.id))


def sweep_in_detail(session: Session, sweep: Sweep) -> SweepOut:
    """A sweep as clients see it who ask for this one alone."""
    trials = sweeps.trials(session, sweep.id)
    shown = _shown(sweep, trials)
    shown.trials = [_trial_out(sweep, job) for job in trials]
    found = gains.of(sweep, trials)
    shown.gains = GainsOut.model_validate(found) if found else None
    return shown


def _shown(sweep: Sweep, trials: Sequence[Job]) -> SweepOut:
    return SweepOut(
        id=sweep.id,
        name=sweep.name,
        status=sweeps.shown_status(sweep),
        dataset=sweep.dataset_id,
        dataset_name=sweep.dataset_name,
        task=sweep.task,
        metric=sweep.metric,
        maximise=sweep.maximise,
        request=sweep.request,
        space=sweep.space,
        sampler=sweep.sampler,
        pruner=sweep.pruner,
        seed=sweep.seed,
        parallel=sweep.parallel,
        progress=_progress(sweep, trials),
        best=_best(sweep, trials),
        importances=sweep.importances,
        model=sweeps.shown_model(sweep),
        base=sweep.base["ref"] if sweep.base else None,
        queue=sweep.queue,
        devices=sweep.devices,
        priority=sweep.priority,
        budget=Budget(minutes=sweep.budget_seconds / 60) if sweep.budget_seconds else None,
        webhook=sweep.webhook,
        error=sweep.error,
        created_at=sweep.created_at,
        finished_at=sweep.finished_at,
    )


def _progress(sweep: Sweep, trials: Sequence[Job]) -> SweepProgress:
    ended = sweep.made - sum(sweeps.active(job) for job in trials)
    percent = round(100 * ended / sweep.trials, 1)
    return SweepProgress(made=sweep.made, ended=ended, trials=sweep.trials, percent=percent)


def _best(sweep: Sweep, trials: Sequence[Job]) -> BestOut | None:
    """What was decided on, or what leads so far."""
    if sweep.best is not None:
        return BestOut.model_validate(sweep.best)
    job = next(iter(sweeps.ranking(sweep, trials)), None)
    value = sweeps.value(sweep, job) if job else None
    if job is None or value is None or job.trial is None:
        return None
    return BestOut(job=job.id, trial=job.trial, value=value, parameters=job.parameters or {})


def _trial_out(sweep: Sweep, job: Job) -> TrialOut:
    pruned = job.pruned and not sweeps.active(job)
    return TrialOut.model_validate(
        {
            "job": job.id,
            "number": job.trial,
            "status": "pruned" if pruned else jobs.shown_status(job),
            "parameters": job.parameters or {},
            "value": sweeps.value(sweep, job),
            "epoch": job.progress.get("epoch", 0),
        }
    )
