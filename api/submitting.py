"""From a request to a job: what it means for this data set, and what other jobs it may come from."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy.orm import Session

from api import faults
from api.addresses import read_url
from api.job_schemas import JobCreate, Resources, Webhook, model_name_of
from api.published import Find
from api.transferring import check_transfer, with_teacher
from models.parts.options import LARGEST
from store import artifacts, checkpoints, datasets, jobs, models, workers
from store.columns import Object
from store.errors import Conflict
from store.models import Resolved
from store.tables import Dataset, Job
from tasks.base import Facts
from tasks.catalog import Spec, grounded, read_spec, resolve
from tasks.parts.problems import Invalid, Problem


def submit(
    session: Session,
    project_id: str,
    asked: JobCreate,
    *,
    find: Find,
    webhook_private: bool,
    parent_id: str | None = None,
) -> Job:
    """A queued training. Raises NotFound, Invalid, and Conflict for a data set that is not ready.

    `find` finds published checkpoints; `webhook_private`: whether its webhook may be at a private address.
    """
    dataset, base = chosen_sources(session, project_id, asked)
    exact = with_teacher(session, project_id, asked.transfer)
    spec = chosen_spec(dataset, asked.model_copy(update={"transfer": exact}), base, find)
    check_transfer(session, dataset, spec, base)
    return jobs.create(
        session,
        project_id,
        kind="train",
        name=asked.name or model_name_of(dataset.name),
        dataset_id=dataset.id,
        task=spec.task.name,
        spec=spec.model_dump(mode="json"),
        request=asked.model_dump(mode="json", exclude_unset=True),
        base={"ref": base.ref, "checkpoint": base.checkpoint.id} if base else None,
        base_checkpoint_id=base.checkpoint.id if base else None,
        parent_id=parent_id,
        priority=asked.priority,
        queue=chosen_queue(session, asked.resources.queue),
        devices=asked.resources.devices,
        budget_seconds=asked.budget.minutes * 60 if asked.budget else None,
        webhook=chosen_webhook(asked.webhook, private=webhook_private),
        profile=asked.profile.model_dump() if asked.profile else None,
    )


def retry(session: Session, project_id: str, job_id: str) -> Job:
    """The same job once more, from where it got to. Raises Conflict unless it failed or was cancelled."""
    job = jobs.get(session, project_id, job_id)
    if job.status not in ("failed", "cancelled"):
        raise Conflict(f"Job {job_id} is {jobs.shown_status(job)}; there is nothing to retry.")
    last = checkpoints.last(session, job_id)
    return _again(session, job, resume_checkpoint_id=last.id if last else job.resume_checkpoint_id)


def clone(
    session: Session,
    project_id: str,
    job_id: str,
    changes: Mapping[str, Any],
    *,
    find: Find,
    webhook_private: bool,
) -> Job:
    """A new job whose request is this one's with changes. Raises Conflict unless it is a training."""
    job = _training(session, project_id, job_id)
    asked = faults.read(JobCreate, merged(job.request, changes))
    return submit(
        session, project_id, asked, find=find, webhook_private=webhook_private, parent_id=job.id
    )


def extend(session: Session, project_id: str, job_id: str, epochs: int) -> Job:
    """A new job that trains on for so many epochs. Raises Conflict unless the job succeeded."""
    job = _training(session, project_id, job_id)
    last = checkpoints.last(session, job_id)
    if job.status != "succeeded" or last is None:
        raise Conflict(
            f"Job {job_id} is {jobs.shown_status(job)}; only one that succeeded can be extended."
        )
    longer = {"training": {"epochs": job.spec["training"]["epochs"] + epochs}}
    spec = faults.read(Spec, merged(job.spec, longer))
    return _again(
        session,
        job,
        resume_checkpoint_id=last.id,
        spec=spec.model_dump(mode="json"),
        request=merged(job.request, longer),
    )


def merged(target: Any, patch: Any) -> Any:
    """`target` with a JSON merge patch (RFC 7396): null takes a field away.

    Beyond the standard, an option with another `name` takes the place of the one before: the fields
    of an lstm mean nothing to a transformer.
    """
    if not isinstance(patch, Mapping):
        return patch
    kept = dict(target) if isinstance(target, Mapping) else {}
    for field, value in patch.items():
        if value is None:
            kept.pop(field, None)
        else:
            kept[field] = merged({} if _another(kept.get(field), value) else kept.get(field), value)
    return kept


def _another(before: Any, option: Any) -> bool:
    """Whether both are options, and not the same one."""
    if not (isinstance(before, Mapping) and isinstance(option, Mapping)):
        return False
    return "name" in option and option["name"] != before.get("name", option["name"])


def chosen_sources(
    session: Session, project_id: str, asked: JobCreate
) -> tuple[Dataset, Resolved | None]:
    """The data set to learn from, and the base. Raises NotFound, and Conflict for one that is not ready."""
    dataset = datasets.get(session, project_id, asked.dataset)
    if dataset.status != "ready":
        raise Conflict(f"Dataset {dataset.id} is {dataset.status}; only a ready one can be used.")
    base = models.resolve(session, project_id, asked.base) if asked.base is not None else None
    return dataset, base


def chosen_spec(dataset: Dataset, asked: JobCreate, base: Resolved | None, find: Find) -> Spec:
    """What the request comes to. Raises Invalid."""
    facts = Facts(dataset.schema, dataset.splits)
    base_task = read_spec(base.checkpoint.spec).task if base else None
    task = asked.task and grounded(asked.task, find)
    spec = resolve(dataset.task, facts, task, asked.training, asked.transfer, base_task)
    _check_resources(asked.resources, spec)
    return spec


def _check_resources(asked: Resources, spec: Spec) -> None:
    """Raises Invalid for several devices and what learns on one, and for parts of what is not divided."""
    architecture, training = spec.task.architecture, spec.training
    if asked.devices > 1 and not architecture.spreads:
        message = f"{architecture.name} cannot learn on several devices"
        raise Invalid(Problem(("resources", "devices"), message, asked.devices, 1))
    if asked.devices > 1 and training.compile != "never":
        message = "a network that learns on several devices is not compiled"
        raise Invalid(Problem(("training", "compile"), message, training.compile, "never"))
    if asked.devices == 1 and asked.sharded:
        message = "what one device learns is not divided: ask for several `devices`"
        raise Invalid(Problem(("resources", "sharded"), message, asked.sharded, False))
    if asked.sharded and not spec.task.divides:
        message = f"the network of {spec.task.name} is not divided"
        raise Invalid(Problem(("resources", "sharded"), message, asked.sharded, False))
    if asked.sharded and spec.taking_over is not None and spec.taking_over.takes_it_whole:
        message = "a network with adapters, or that of a linear probe, is not divided"
        raise Invalid(Problem(("resources", "sharded"), message, asked.sharded, False))
    if asked.sharded and training.batch_size == LARGEST:
        message = "cannot be found out for a network that is divided"
        raise Invalid(Problem(("training", "batch_size"), message, LARGEST, "a number"))


def chosen_split(
    session: Session, project_id: str, dataset_id: str, split: str, task: str
) -> Dataset:
    """The data set, which has such a split for such a task. Raises NotFound, Conflict and Invalid."""
    dataset = datasets.get(session, project_id, dataset_id)
    if dataset.status != "ready":
        raise Conflict(f"Dataset {dataset.id} is {dataset.status}; only a ready one can be used.")
    if dataset.task != task:
        raise Invalid(Problem(("dataset",), "the data set is for another task", dataset.task, task))
    if split not in dataset.splits:
        splits = list(dataset.splits)
        raise Invalid(Problem(("split",), "the data set has no such split", split, splits))
    return dataset


def chosen_queue(session: Session, asked: str) -> str:
    """The queue asked for; instead of "auto" the GPUs' one when any worker alive serves it."""
    if asked != "auto":
        return asked
    return "gpu" if workers.open_for(session, "gpu") else "cpu"


def chosen_webhook(asked: Webhook | None, *, private: bool) -> Object | None:
    """The webhook as a job keeps it. Raises Invalid for a URL that is not to be called."""
    if asked is None:
        return None
    url = read_url(asked.url, private=private)
    return {"url": url, "events": list(dict.fromkeys(asked.events))}


def _training(session: Session, project_id: str, job_id: str) -> Job:
    job = jobs.get(session, project_id, job_id)
    if job.kind != "train":
        raise Conflict(f"Job {job_id} is no training.")
    return job


def _again(
    session: Session,
    job: Job,
    *,
    resume_checkpoint_id: str | None,
    spec: Object | None = None,
    request: Object | None = None,
) -> Job:
    inputs = artifacts.inputs(session, job.id)
    if job.dataset_id is None and inputs is None and job.kind != "export":
        raise Conflict(f"The data set of job {job.id} was deleted.")
    return jobs.create(
        session,
        job.project_id,
        kind=job.kind,  # type: ignore[arg-type]  # its column takes no other
        name=job.name,
        dataset_id=job.dataset_id,
        task=job.task,
        spec=spec or job.spec,
        request=request or job.request,
        base=job.base,
        base_checkpoint_id=job.base_checkpoint_id,
        parent_id=job.id,
        resume_checkpoint_id=resume_checkpoint_id,
        priority=job.priority,
        queue=job.queue,
        devices=job.devices,
        budget_seconds=job.budget_seconds,
        model_name=job.model_name,
        max_attempts=job.max_attempts,
        webhook=job.webhook,
        profile=job.profile,
        inputs_blob=inputs,
    )
