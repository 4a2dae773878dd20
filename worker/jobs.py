"""The story of one job, told in its trainer: prepare, fit, save, finish."""

import logging
import time
from typing import NamedTuple

import torch
from safetensors.torch import load_file

from store.errors import Fenced
from tasks.catalog import Spec, read_spec
from tasks.parts.problems import Invalid, Problem
from tasks.trained import Trained
from worker import checkpoints
from worker.checkpoints import Checkpoints, Position
from worker.desk import Desk, settle, sit_down
from worker.failures import explain
from worker.loop import Plan, Split, State, fit, plan_of, score
from worker.outages import Unreachable, persist
from worker.report import Report
from worker.settings import WorkerSettings
from worker.trainer import Assignment, Command, Exit, Inbox

log = logging.getLogger(__name__)


def run(assignment: Assignment, settings: WorkerSettings, inbox: Inbox) -> Exit:
    """Do a job. How it went stands in its row, unless the row is not to be had any more."""
    settle(assignment)
    try:
        with sit_down(assignment, settings, inbox) as desk:
            tell(desk)
    except Fenced:
        return Exit.FENCED
    except Unreachable as error:
        log.warning("%s gives up on the database: %s", assignment.job_id, error.orig)
        return Exit.UNREACHABLE
    return Exit.DONE


def tell(desk: Desk) -> None:
    """Do the job, and say why if it fails. Raises Fenced and Unreachable."""
    try:
        train(desk) if desk.job.kind == "train" else evaluate(desk)
    except (Fenced, Unreachable):
        raise
    except Exception as error:
        log.info("%s failed", desk.job.id, exc_info=error)
        desk.finish("failed", error=explain(error))


def train(desk: Desk) -> None:
    """From a data set to a version of a model."""
    ready = prepare(desk)
    with (
        Report(desk.database, desk.job, ready.start.state.step) as report,
        Checkpoints(desk.database, desk.settings, desk.job, ready.trained.codec) as kept,
    ):
        report.say(opening(ready, desk.device))
        ended = follow(ready, desk, report, kept)
        persist(report.write_now)
    match ended:
        case "cancel":
            desk.finish("cancelled")
        case "pause" | "drain":
            desk.give_back()
        case _:
            publish(ready, desk)


class Ready(NamedTuple):
    """A training about to begin, or to go on."""

    spec: Spec
    trained: Trained
    splits: dict[str, Split]
    plan: Plan
    start: Position


def prepare(desk: Desk) -> Ready:
    """Read, encode, build, and go to where the job's last run was. Raises Invalid and NotTransferable."""
    job, materials, spec = desk.job, desk.materials, read_spec(desk.job.spec)
    dataset, files = materials.dataset(job.dataset_id or "")
    checkpoint = checkpoints.newest(desk.database, job)
    base = None if checkpoint else desk.base
    examples = {name: materials.examples(blob) for name, blob in files.items()}
    if checkpoint is not None:
        codec = spec.task.codec_type.model_validate(materials.codec(checkpoint))
    else:
        codec = spec.task.learn_codec(examples["train"], dataset.schema, base and base.codec)
    splits = {
        name: materials.split(files[name], frame, spec.task, codec)
        for name, frame in examples.items()
    }

    torch.manual_seed(spec.training.seed)
    learner = spec.task.build(codec)
    if base is not None:
        learner.take_over(base.learner, head=spec.task.same_outputs(codec, base.codec))
    learner.to(desk.device)
    plan = plan_of(learner, splits["train"].columns, spec.training)
    learner.start(spec.training, spec.transfer, plan.steps)

    start = Position(State(), 0.0)
    if checkpoint is not None:
        start = checkpoints.restore(learner, checkpoint, materials)
    if start.state.epoch >= plan.epochs:
        start = start._replace(state=start.state.model_copy(update={"finished": True}))
    return Ready(spec, Trained(spec.task, codec, learner), splits, plan, start)


def follow(ready: Ready, desk: Desk, report: Report, kept: Checkpoints) -> Command | None:
    """Train, tell and keep what comes of it; the command that ended it early, if one did."""
    learner, at = ready.trained.learner, ready.start
    train, validation = ready.splits["train"], ready.splits["validation"]
    began, ended = time.monotonic() - at.seconds, None
    for progress in fit(ready.trained, train, validation, ready.spec.training, state=at.state):
        at = Position(progress.state, time.monotonic() - began)
        report.add(progress)
        if progress.is_best:
            kept.hold_best(learner, at)
        ended = asked(desk, at, report)
        if ended is not None:
            break
        if kept.due:
            report.write()  # or else a crash right after the checkpoint leaves a hole in the curves
            kept.save(learner, at)
    if ended == "cancel" or at is ready.start:
        return ended
    if ended == "stop" and at.state.best is None:  # before the first epoch was judged
        at = at._replace(state=judged(at.state, ready.trained, validation))
        kept.hold_best(learner, at)
    kept.save(learner, at)
    kept.wait()
    return ended


def asked(desk: Desk, at: Position, report: Report) -> Command | None:
    """What the user, the worker or the budget want the training to do instead of going on."""
    command, budget = desk.inbox.latest, desk.job.budget_seconds
    if command is None and budget is not None and at.seconds >= budget:
        report.say(f"the budget of {budget:g} seconds is used up")
        command = "stop"
    if command is not None:
        report.say(f"{command} at step {at.state.step}")
    return command


def judged(state: State, trained: Trained, validation: Split) -> State:
    """The state with what it is worth now, in the middle of its first epoch."""
    metrics = score(trained, validation)
    best = metrics[trained.task.objective.metric]
    return state.model_copy(update={"best": best, "metrics": {"validation": metrics}})


def publish(ready: Ready, desk: Desk) -> None:
    """Score the best state on the test split, and make it a version of the job's model."""
    best = desk.best
    metrics = dict(best.metrics)
    if "test" in ready.splits:
        weights = load_file(desk.materials.blob(best.weights_blob))
        ready.trained.learner.load_state_dict(weights)
        metrics["test"] = score(ready.trained, ready.splits["test"])
    desk.finish("succeeded", metrics=metrics, checkpoint_id=best.id)


def evaluate(desk: Desk) -> None:
    """What a trained model is worth on a split of a data set."""
    materials, split = desk.materials, desk.job.request.get("split", "test")
    checkpoint = materials.checkpoint(desk.job.base_checkpoint_id or "")
    trained = materials.trained(checkpoint, desk.device)
    _, files = materials.dataset(desk.job.dataset_id or "")
    if split not in files:
        raise Invalid(Problem(("split",), "the data set has no such split", split, sorted(files)))
    examples = materials.examples(files[split])
    found = materials.split(files[split], examples, trained.task, trained.codec)
    predictions = list(trained.predictions(found.columns))
    result = trained.task.evaluate(predictions, found.examples)
    metrics = {name: value for name, value in result.items() if name in trained.task.metrics}
    desk.finish("succeeded", result=result, metrics={split: metrics})


def opening(ready: Ready, device: str) -> str:
    """Such as "training lstm on 8000 examples, 10 epochs of 250 steps, on cpu"."""
    state, plan = ready.start.state, ready.plan
    begin = f"going on at step {state.step} with" if state.step else "training"
    return (
        f"{begin} {ready.spec.task.architecture.name} on {ready.splits['train'].columns.examples} "
        f"examples, {plan.epochs} epochs of {plan.steps_per_epoch} steps, on {device}"
    )
