"""From a request for advice to a job: what may be compared for this data set, and what each would come to."""

from collections.abc import Iterator, Mapping
from typing import Any

from sqlalchemy.orm import Session

from api import faults
from api.advice_schemas import MOST, AdviceCreate
from api.published import Find
from api.submitting import chosen_queue, chosen_webhook
from models.parts.pretrained import Pretrained
from models.parts.training import Training
from store import checkpoints, datasets, jobs, models
from store.errors import Conflict
from store.models import Resolved
from store.tables import Dataset, Job
from tasks.base import Facts, Task
from tasks.catalog import grounded, read_spec, resolve, task_named
from tasks.parts.advice import Candidate, LeftOut, Order, check_advised
from tasks.parts.problems import Invalid, Problem


def ask_for_advice(
    session: Session,
    project_id: str,
    dataset_id: str,
    asked: AdviceCreate,
    *,
    find: Find,
    webhook_private: bool,
) -> Job:
    """A queued comparison. Raises NotFound, Conflict for a data set that is not ready, and Invalid."""
    dataset = datasets.get(session, project_id, dataset_id)
    if dataset.status != "ready":
        raise Conflict(f"Dataset {dataset.id} is {dataset.status}; only a ready one can be used.")
    check_advised(dataset.task)
    left_out: list[LeftOut] = []
    if asked.models is None:
        bases = list(_of_project(session, project_id, dataset, left_out))
    else:
        bases = [_named(session, project_id, dataset, n, r) for n, r in enumerate(asked.models)]
    published = [
        _published(dataset, number, task, find)
        for number, task in enumerate(published_tasks(dataset.task, asked))
    ]
    order = Order(
        candidates=[*bases, *published, _alone(dataset)],
        left_out=left_out,
        examples=asked.examples,
        seed=asked.seed,
    )
    return jobs.create(
        session,
        project_id,
        kind="advise",
        name=f"bases for {dataset.name}"[:200],
        dataset_id=dataset.id,
        task=dataset.task,
        spec=order.model_dump(mode="json"),
        request=asked.model_dump(mode="json", exclude_unset=True),
        priority=asked.priority,
        queue=chosen_queue(session, asked.resources.queue),
        webhook=chosen_webhook(asked.webhook, private=webhook_private),
    )


def published_tasks(task: str, asked: AdviceCreate) -> list[Task]:
    """The task with each of the architectures asked for. Raises Invalid for one that is not pretrained."""
    found = []
    for number, architecture in enumerate(asked.architectures):
        place = ("architectures", number)
        try:
            made: Task = faults.read(task_named(task), {"name": task, "architecture": architecture})
        except Invalid as error:
            raise Invalid(*(p._replace(loc=(*place, *p.loc[1:])) for p in error.problems)) from None
        if not isinstance(made.architecture, Pretrained):
            message = "begins with nothing that was learned"
            raise Invalid(Problem((*place, "name"), message, architecture["name"], "pretrained"))
        found.append(made)
    return found


def _of_project(
    session: Session, project_id: str, dataset: Dataset, left_out: list[LeftOut]
) -> Iterator[Candidate]:
    """The newest version of each model that may be a base; why others may not is added to those left out."""
    for name, version in models.newest(session, project_id, MOST):
        found = Resolved(
            f"{name}@{version.version}", checkpoints.load(session, version.checkpoint_id)
        )
        try:
            yield _on(dataset, found)
        except Invalid as error:
            left_out.append(LeftOut(base=found.ref, reason=error.problems[0].msg))


def _named(session: Session, project_id: str, dataset: Dataset, number: int, ref: str) -> Candidate:
    """Raises NotFound, and Invalid for a model of no use."""
    found = models.resolve(session, project_id, ref)
    try:
        return _on(dataset, found)
    except Invalid as error:
        message = error.problems[0].msg
        problem = error.problems[0]._replace(loc=("models", number), msg=f"{found.ref}: {message}")
        raise Invalid(problem) from None


def _on(dataset: Dataset, base: Resolved) -> Candidate:
    """Raises Invalid for a base that the data set's task cannot start from."""
    learned = read_spec(base.checkpoint.spec).task
    spec = resolve(dataset.task, _facts(dataset), None, Training(), None, learned)
    return Candidate(base=base.ref, checkpoint=base.checkpoint.id, spec=spec)


def _published(dataset: Dataset, number: int, task: Task, find: Find) -> Candidate:
    """Raises Invalid for a checkpoint that cannot be had or is of no use."""
    try:
        known = grounded(task, find)
    except Invalid as error:
        place = ("architectures", number)
        raise Invalid(*(p._replace(loc=(*place, *p.loc[2:])) for p in error.problems)) from None
    return Candidate(spec=resolve(dataset.task, _facts(dataset), known, Training(), None))


def _alone(dataset: Dataset) -> Candidate:
    """What begins with nothing."""
    return Candidate(spec=resolve(dataset.task, _facts(dataset), None, Training(), None))


def _facts(dataset: Dataset) -> Facts:
    splits: Mapping[str, Any] = dataset.splits
    return Facts(dataset.schema, dict(splits))
