"""The story of one job, told in its trainer: prepare, fit, save, finish."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import NamedTuple

import polars as pl
import torch
from safetensors.torch import load_file

from models.parts.memory import ran_out
from models.parts.options import LARGEST
from models.parts.precision import choose_kernels
from store.errors import Fenced
from tasks.catalog import Spec, read_spec
from tasks.parts.growing import outputs_on
from tasks.parts.problems import Invalid, Problem
from tasks.trained import Trained
from worker import checkpoints, probes
from worker.advising import advise
from worker.checkpoints import Checkpoints, Position
from worker.desk import Desk, Told, settle, sit_down
from worker.exporting import export
from worker.failures import explain
from worker.forgetting import forgotten
from worker.group import ALONE, Group, lost_peer
from worker.loop import Diverged, Plan, Progress, Split, State, fit, judge, plan_of
from worker.outages import Unreachable, disk_is_full, persist
from worker.predictions import predict
from worker.probing import probed
from worker.profiles import profiled
from worker.remembering import Source, teach, with_replay
from worker.report import Report
from worker.samples import Samples
from worker.settings import WorkerSettings
from worker.trainer import Assignment, Command, Exit, Inbox

log = logging.getLogger(__name__)

PREEMPTED = {"code": "preempted", "message": "A job of higher priority has its device."}


def run(
    assignment: Assignment, settings: WorkerSettings, inbox: Inbox, group: Group = ALONE
) -> Exit:
    """Do a job. How it went stands in its row, unless the row is not to be had any more.

    Of the processes of a `group`, rank 0 does it, and the others help. Raises what says that one is gone.
    """
    settle(assignment, settings)
    try:
        with sit_down(assignment, settings, inbox, group) as desk:
            tell(desk) if group.rank == 0 else accompany(desk)
    except Fenced:
        return Exit.FENCED
    except Unreachable as error:
        log.warning("%s gives up on the database: %s", assignment.job_id, error.orig)
        return Exit.UNREACHABLE
    except Exception as error:
        if not disk_is_full(error):
            raise
        log.warning("%s has no room on this disk: %s", assignment.job_id, error)
        return Exit.DISK_FULL
    return Exit.DONE


def tell(desk: Desk) -> None:
    """Do the job, and say why if it fails.

    Raises Fenced, Unreachable, and what says that the disk is full or another process of the group gone.
    """
    try:
        DO[desk.job.kind](desk)
    except (Fenced, *Unreachable):
        raise
    except Told as told:
        leave(desk, told.command)
    except Exception as error:
        if disk_is_full(error) or lost_peer(error):
            raise
        log.info("%s failed", desk.job.id, exc_info=error)
        desk.finish("failed", error=explain(error))


def leave(desk: Desk, command: Command) -> None:
    """End the run before the job is done."""
    if command == "cancel":
        desk.finish("cancelled")
    elif command == "preempt":
        desk.give_back(PREEMPTED)
    else:
        desk.give_back()


def train(desk: Desk) -> None:
    """From a data set to a version of a model."""
    spec = read_spec(desk.job.spec)
    if probes.is_needed(spec.training):
        find_out(spec, desk)
        return
    ready = prepare(spec, desk)
    try:
        desk.group.meet()
        with (
            Report(desk.database, desk.job, ready.start.state.step) as report,
            Checkpoints(
                desk.database, desk.settings, desk.job, ready.trained.codec, desk.group
            ) as kept,
        ):
            if desk.group.restarts:
                times = f"restart {desk.group.restarts} of this run"
                report.say(f"a process of the training ended and all begin anew: {times}")
            report.say(opening(ready, desk))
            with profiled(desk, report, ready.trained.learner, ready.start.state, ready.plan):
                ended = follow(ready, desk, report, kept)
    except (RuntimeError, MemoryError) as error:
        smaller = in_smaller_pieces(ready, desk.group.size) if ran_out(error) else None
        if smaller is None:
            raise
        training = smaller.training
        message = (
            f"{desk.device} ran out of memory: each batch of {training.batch_size} is now learned from "
            f"in {training.micro_batches} pieces, whose gradients are accumulated."
        )
        go_on_with(smaller, desk, "out_of_memory", message)
    else:
        if ended not in (None, "stop"):
            raise Told(ended)
        publish(ready, desk)


def accompany(desk: Desk) -> None:
    """Train beside rank 0, which alone judges, tells, keeps, and says when it is over."""
    # What there is to fetch and to encode is in this machine's cache then.
    desk.group.meet()
    ready = prepare(read_spec(desk.job.spec), desk)
    try:
        for _ in progress(ready, desk):
            pass
        desk.group.attend()
    except Diverged:
        log.debug("rank 0 has found out as well")
    except (RuntimeError, MemoryError) as error:
        if ran_out(error):
            desk.group.ran_out()
        raise


class Ready(NamedTuple):
    """A training about to begin, or to go on."""

    spec: Spec
    trained: Trained
    splits: dict[str, Split]
    plan: Plan
    start: Position
    examples: pl.LazyFrame
    """Those of the validation split, none of them read."""


def prepare(spec: Spec, desk: Desk) -> Ready:
    """Read, encode, build, and go to where the job's last run was. Raises Invalid and NotTransferable."""
    job, materials = desk.job, desk.materials
    dataset, files = materials.dataset(job.dataset_id or "")
    find = checkpoints.last if desk.group.rank else checkpoints.newest
    checkpoint = find(desk.database, job)
    taking_over = spec.taking_over
    if checkpoint is not None and not (taking_over and taking_over.looks_back):
        taking_over = None
    base = desk.base if taking_over else None
    published = None
    if base is None and (taking_over or checkpoint is None):
        with_weights = taking_over is not None
        published = materials.published(spec.task.architecture, weights=with_weights)
    sources = {name: Source(blob, materials.examples(blob)) for name, blob in files.items()}
    if spec.training.share < 1:
        sources["train"] = Source(*materials.part(files["train"], spec, dataset.schema))
    if spec.taking_over is not None:
        sources = with_replay(sources, spec.taking_over.replay, spec.training.seed, desk)
    head = False
    if checkpoint is not None:
        codec = spec.task.codec_type.model_validate(materials.codec(checkpoint))
    else:
        reading = base.codec if base else published and spec.task.reading(published)
        codec = spec.task.learn_codec(sources["train"].examples, dataset.schema, reading)
    if checkpoint is None and base is not None and taking_over is not None:
        codec, head = outputs_on(spec.task, codec, base.task, base.codec, taking_over)
    splits = {
        name: materials.split(*source, spec.task, codec, desk.go_on)
        for name, source in sources.items()
    }

    choose_kernels(spec.training.precision, deterministic=spec.training.deterministic)
    torch.manual_seed(spec.training.seed)
    learner = spec.task.build(codec)
    if base is not None:
        learner.take_over(base.learner, head=head)
    if published is not None and taking_over is not None:
        spec.task.architecture.begin(learner, published)
    trained = Trained(spec.task, codec, learner)
    if spec.taking_over is not None and spec.taking_over.linear_probe:
        if checkpoint is not None:
            learner.load_state_dict(load_file(materials.blob(checkpoint.weights_blob)))
        trained, splits = probed(trained, splits, sources, desk)
    lessons = spec.taking_over and spec.taking_over.distillation
    if lessons:
        train = splits["train"], sources["train"]
        splits["train"] = teach(learner, *train, spec.task, codec, lessons, desk)
    desk.group.place(learner, desk.device)
    plan = plan_of(learner, splits["train"].columns, spec.training)
    learner.start(spec.training, spec.taking_over, plan.steps)

    start = Position(State(), 0.0)
    if checkpoint is not None:
        start = checkpoints.restore(learner, checkpoint, materials, desk.group)
    if start.state.epoch >= plan.epochs:
        start = start._replace(state=start.state.model_copy(update={"finished": True}))
    return Ready(spec, trained, splits, plan, start, sources["validation"].examples)


def follow(ready: Ready, desk: Desk, report: Report, kept: Checkpoints) -> Command | None:
    """Train, tell and keep what comes of it; the command that ended it early, if one did."""
    learner, at = ready.trained.learner, ready.start
    began, ended = time.monotonic() - at.seconds, None
    samples = samples_of(ready, desk)
    for news in progress(ready, desk):
        at = Position(news.state, time.monotonic() - began)
        report.add(news)
        if news.is_best:
            kept.hold_best(learner, at)
        if samples is not None and samples.due(at.state):
            samples.keep(at.state)
        ended = asked(desk, at, report)
        if ended is not None:
            break
        # In this order, or else a crash right after the checkpoint leaves a hole in the curves.
        if kept.due and report.write():
            kept.save(learner, at)
    if ended == "cancel" or at is ready.start:
        return ended
    if ended == "stop" and at.state.best is None:  # before the first epoch was judged
        at = at._replace(state=judged(at.state, ready.trained, ready.splits["validation"]))
        kept.hold_best(learner, at)
    persist(report.write_now)
    kept.save(learner, at)
    kept.wait()
    return ended


def samples_of(ready: Ready, desk: Desk) -> Samples | None:
    """What shows a user how it learns; a network that lies on several devices shows nothing before its end."""
    if desk.group.size > 1:
        return None
    columns = ready.splits["validation"].columns
    return Samples(desk.database, desk.job, ready.trained, columns, ready.examples)


def progress(ready: Ready, desk: Desk) -> Iterator[Progress]:
    """The training, as it goes."""
    train, validation = ready.splits["train"], ready.splits["validation"]
    training, state = ready.spec.training, ready.start.state
    return fit(ready.trained, train, validation, training, state=state, group=desk.group)


def asked(desk: Desk, at: Position, report: Report) -> Command | None:
    """What the user, the worker or the budget want the training to do instead of going on."""
    command, budget = desk.inbox.look(), desk.job.budget_seconds
    if command is None and budget is not None and at.seconds >= budget:
        report.say(f"the budget of {budget:g} seconds is used up")
        command = "stop"
    if command is not None:
        report.say(f"{command} at step {at.state.step}")
    return command


def judged(state: State, trained: Trained, validation: Split) -> State:
    """The state with what it is worth now, in the middle of its first epoch."""
    *_, metrics = judge(trained, {"validation": validation})
    assert metrics is not None
    best = metrics["validation"][trained.task.aim.metric]
    return state.model_copy(update={"best": best, "metrics": metrics})


def publish(ready: Ready, desk: Desk) -> None:
    """Score the best state on the test split, and its base's, and make it a version of the job's model."""
    best = desk.best
    metrics = dict(best.metrics)
    trained = ready.trained
    if ready.trained.learner.kept_aside():  # its weights are none to load others into
        trained = desk.materials.trained(best, desk.device)
    elif "test" in ready.splits or desk.job.base_checkpoint_id:
        desk.group.load(trained.learner, desk.materials.blob(best.weights_blob))
    if "test" in ready.splits:
        *_, judged = desk.heard(judge(trained, {"test": ready.splits["test"]}))
        metrics |= judged or {}
    forgetting = forgotten(replace(trained, forward=None), desk)
    result = {"forgetting": forgetting} if forgetting else None
    desk.finish("succeeded", metrics=metrics, checkpoint_id=best.id, result=result)


def in_smaller_pieces(ready: Ready, devices: int) -> Spec | None:
    """The same training with batches in twice as many pieces; None when that cannot save memory."""
    training, learner = ready.spec.training, ready.trained.learner
    pieces = 2 * training.micro_batches
    largest = min(training.batch_size, ready.splits["train"].columns.examples)
    if not learner.accumulates or pieces > -(-largest // devices):
        return None
    smaller = training.model_copy(update={"micro_batches": pieces})
    return ready.spec.model_copy(update={"training": smaller})


def find_out(spec: Spec, desk: Desk) -> None:
    """Try what the request leaves to the device, and have the job go on as that turned out."""
    asked = spec.training
    tried = spec.model_copy(update={"training": probes.as_tried(asked)})
    ready = prepare(tried, desk)
    learner, train, plan = ready.trained.learner, ready.splits["train"].columns, ready.plan
    if asked.batch_size == LARGEST:
        code, size = "batch_size", desk.group.size
        trying = probes.find_batch_size(learner, train, asked, plan.epochs, desk.device, size)
    else:
        code, steps = "compile", plan.steps - ready.start.state.step
        trying = probes.find_compiling(learner, train, asked, steps, desk.job.budget_seconds)
    *_, found = desk.heard(trying)
    assert found is not None
    with Report(desk.database, desk.job) as report:
        report.say(found.message)
    go_on_with(spec.model_copy(update={"training": found.training}), desk, code, found.message)


def go_on_with(spec: Spec, desk: Desk, code: str, message: str) -> None:
    """Have the job go on from its last checkpoint as `spec` says, in a process whose memory is fresh."""
    log.info("%s: %s", desk.job.id, message)
    desk.give_back({"code": code, "message": message}, spec.model_dump(mode="json"))


def evaluate(desk: Desk) -> None:
    """What a trained model is worth on a split of a data set."""
    materials, split = desk.materials, desk.job.request.get("split", "test")
    checkpoint = materials.checkpoint(desk.job.base_checkpoint_id or "")
    trained = materials.trained(checkpoint, desk.device)
    _, files = materials.dataset(desk.job.dataset_id or "")
    if split not in files:
        raise Invalid(Problem(("split",), "the data set has no such split", split, sorted(files)))
    result, _ = desk.evaluation(trained, files[split])
    metrics = {name: value for name, value in result.items() if name in trained.task.metrics}
    desk.finish("succeeded", result=result, metrics={split: metrics})


def opening(ready: Ready, desk: Desk) -> str:
    """Such as "training lstm on 8000 examples, 10 epochs of 250 steps, on cpu"."""
    state, plan = ready.start.state, ready.plan
    begin = f"going on at step {state.step} with" if state.step else "training"
    pieces = ready.spec.training.micro_batches
    compiled = ", compiled" if ready.spec.training.compile == "always" else ""
    cut = f", each batch in {pieces} pieces" if pieces > 1 else ""
    others = f" and {desk.group.size - 1} beside it" if desk.group.size > 1 else ""
    return (
        f"{begin} {ready.spec.task.architecture.name} on {ready.splits['train'].columns.examples} "
        f"examples, {plan.epochs} epochs of {plan.steps_per_epoch} steps{cut}{compiled}, on {desk.device}{others}"
    )


DO: Mapping[str, Callable[[Desk], None]] = {
    "train": train,
    "evaluate": evaluate,
    "predict": predict,
    "advise": advise,
    "export": export,
}
"""What is done for each kind of job."""
