"""The story of advice, told in its trainer: draw a sample, see what each base makes of it, rank them."""

import logging
import time
from typing import Any, NamedTuple

import torch

from models.base import Learner, NotTransferable
from models.parts.published import Unusable
from store import jobs
from store.errors import NotFound
from tasks.base import Codec
from tasks.parts.advice import (
    Candidate,
    LeftOut,
    Order,
    epoch_seconds,
    looked_at,
    measured,
    measured_plainly,
    ranked,
)
from tasks.parts.problems import Invalid
from tasks.trained import Trained
from worker.desk import Desk
from worker.loop import Split
from worker.outages import Unreachable
from worker.remembering import Source

log = logging.getLogger(__name__)


class Sample(NamedTuple):
    """Some examples of the train split, and how many there are in all."""

    source: Source
    schema: dict[str, Any]
    examples: int


def advise(desk: Desk) -> None:
    """From bases to an order among them.

    A run that is ended loses what it has found: all of it takes as long as an epoch or two of one training.
    """
    order = Order.model_validate(desk.job.spec)
    sample = sample_of(desk, order)
    rows, left_out = [], list(order.left_out)
    for place, candidate in enumerate(order.candidates):
        report(desk, candidate, place, len(order.candidates))
        desk.go_on()
        try:
            rows.append(figures(desk, candidate, sample, order.seed))
        except (Invalid, NotTransferable, Unusable, NotFound) as error:
            reason = error.problems[0].msg if isinstance(error, Invalid) else str(error)
            left_out.append(LeftOut(base=candidate.name, reason=reason))
    desk.finish("succeeded", result=advice(rows, left_out, order))


def sample_of(desk: Desk, order: Order) -> Sample:
    """As many examples as were asked for, labels as often among them as in all, each at least once."""
    materials, spec = desk.materials, order.candidates[-1].spec
    dataset, files = materials.dataset(desk.job.dataset_id or "")
    examples = dataset.splits["train"]
    blob, share = files["train"], order.examples / examples
    if share >= 1:
        return Sample(Source(blob, materials.examples(blob)), dataset.schema, examples)
    training = spec.training.model_copy(update={"share": share, "seed": order.seed})
    drawn = materials.part(blob, spec.model_copy(update={"training": training}), dataset.schema)
    return Sample(Source(*drawn), dataset.schema, examples)


def figures(desk: Desk, candidate: Candidate, sample: Sample, seed: int) -> dict[str, Any]:
    """What a candidate promises, and what it costs. Raises Invalid, NotTransferable, Unusable and NotFound."""
    spec = candidate.spec
    codec, learner = begun(desk, candidate, sample, seed)
    split = desk.materials.split(*sample.source, spec.task, codec, desk.go_on)
    learner.to(desk.device)
    if candidate.begins:
        told, seconds = seen(desk, Trained(spec.task, codec, learner), split, seed)
    else:
        given = spec.task, codec, split.columns, split.examples, seed
        told, seconds = measured_plainly(*given), None
    return {
        "base": candidate.base,
        "checkpoint": candidate.checkpoint,
        "architecture": spec.task.architecture.name,
        "published": getattr(spec.task.architecture, "checkpoint", None),
        **told,
        "parameters": sum(weight.numel() for weight in learner.parameters()),
        "forward_seconds": seconds,
        "epoch_seconds": epoch_seconds(learner, split.columns, spec, sample.examples),
    }


def begun(desk: Desk, candidate: Candidate, sample: Sample, seed: int) -> tuple[Codec, Learner]:
    """A learner for the sample as a training would begin with it, and the codec that it reads by."""
    task, materials = candidate.spec.task, desk.materials
    base = published = None
    if candidate.checkpoint is not None:
        base = materials.trained(materials.checkpoint(candidate.checkpoint))
    elif candidate.begins:
        published = materials.published(task.architecture, weights=True)
    reading = base.codec if base else published and task.reading(published)
    codec = task.learn_codec(sample.source.examples, sample.schema, reading)
    torch.manual_seed(seed)  # of what stands between a backbone and its head
    learner = task.build(codec)
    if base is not None:
        learner.take_over(base.learner, head=False)
    if published is not None:
        task.architecture.begin(learner, published)
    return codec, learner


def seen(desk: Desk, trained: Trained, split: Split, seed: int) -> tuple[dict[str, Any], float]:
    """What the features of the sample tell, and how many seconds a thousand examples took."""
    began = time.perf_counter()
    *_, features = desk.heard(looked_at(trained, split.columns))
    assert features is not None
    seconds = (time.perf_counter() - began) / len(features) * 1_000
    task, codec, examples = trained.task, trained.codec, split.examples
    return measured(task, codec, split.columns, examples, features, seed), seconds


def advice(rows: list[dict[str, Any]], left_out: list[LeftOut], order: Order) -> dict[str, Any]:
    """The answer: the order, and in words what it comes to."""
    task = order.candidates[-1].spec.task
    ranking = ranked(rows, task)
    return {
        "metric": task.aim.metric,
        "ranking": ranking,
        "left_out": [each.model_dump() for each in left_out],
        "advice": in_words(ranking, task.aim.metric),
    }


def in_words(ranking: list[dict[str, Any]], metric: str) -> str:
    """Such as "signs@2 promises most: accuracy 0.93 +- 0.01 by a linear head, the inputs alone 0.61"."""
    bases = [row for row in ranking if row["base"] or row["published"]]
    plain = next((row for row in ranking if row not in bases), None)
    alone = f"the inputs alone {plain['score']:.4f}" if plain else "no word of the inputs alone"
    if not bases:
        return f"There is no model that could be a base; a linear head makes of {alone}."
    best = bases[0]
    score = f"{metric} {best['score']:.4f} +- {best['score_error']:.4f}"
    name = best["base"] or best["published"]
    if plain is not None and ranking[0] is plain:
        return f"No base promises more than {alone}; the best of them is {name}: {score}."
    return f"{name} promises most: {score} by a linear head, {alone}."


def report(desk: Desk, candidate: Candidate, done: int, total: int) -> None:
    """Write how far it is; an outage of the database is no reason to wait. Raises Fenced."""
    progress = {"percent": round(100 * done / total, 1)}
    lines = [("info", f"looking at the sample with {candidate.name}")]
    try:
        with desk.database.transaction() as session:
            jobs.record(session, desk.job.id, desk.job.lease_epoch, progress=progress, lines=lines)
    except Unreachable:
        return
