"""What is on offer, and how a request becomes exactly what will be trained."""

from collections.abc import Callable, Sequence
from typing import Any

from pydantic import Field, TypeAdapter

from models.base import Architecture
from models.parts.optimizers import AdamW
from models.parts.options import AUTO, LARGEST, OneOf, Plain
from models.parts.pretrained import Pretrained
from models.parts.published import Published, Unusable
from models.parts.schedules import Cosine
from models.parts.training import Training, Transfer
from tasks.base import Facts, Task
from tasks.parts.methods import check_methods
from tasks.parts.problems import Invalid, Problem

AnyTask = OneOf[Task]


class Spec(Plain):
    """What a job trains, with nothing left open: stored with the job, and enough to run it again."""

    task: AnyTask = Field(description="What to learn, and the architecture that learns it.")
    training: Training = Field(description="How the training runs.")
    transfer: Transfer | None = Field(None, description="What happens to a base's weights.")

    @property
    def taking_over(self) -> Transfer | None:
        """What happens to weights that are taken over; None where none are."""
        scratch = self.transfer is not None and self.transfer.from_scratch
        return None if scratch else self.transfer


def tasks() -> dict[str, type[Task]]:
    """Every task on offer, by name."""
    return {task.option_name(): task for task in Task.options()}


def task_named(name: str, loc: Sequence[str | int] = ("task",)) -> type[Task]:
    """The task of that name. Raises Invalid, listing what is on offer."""
    offered = tasks()
    if name not in offered:
        raise Invalid(Problem(tuple(loc), "no such task", name, sorted(offered)))
    return offered[name]


def family_of(task: type[Task]) -> type[Architecture]:
    """The family that a task's architecture must be of."""
    family = task.model_fields["architecture"].annotation
    assert isinstance(family, type)
    assert issubclass(family, Architecture)
    return family


def architectures(family: type[Architecture] = Architecture) -> dict[str, type[Architecture]]:
    """Every architecture of a family, by name."""
    return {option.option_name(): option for option in family.options()}


def resolve(
    dataset_task: str,
    facts: Facts,
    task: Task | None,
    training: Training,
    transfer: Transfer | None,
    base: Task | None = None,
) -> Spec:
    """The spec of a job on a data set of `dataset_task`; `base` is the task of the model it starts from.

    Raises Invalid when the task is not the data set's, or the architecture not the base's.
    """
    offered = task_named(dataset_task)
    task = offered.model_validate({"name": dataset_task}) if task is None else task
    if not isinstance(task, offered):
        raise Invalid(
            Problem(("task", "name"), "the data set is for another task", task.name, dataset_task)
        )
    if base is not None:
        task = _on_base(task, base)
    if base is not None or isinstance(task.architecture, Pretrained):
        transfer = transfer or Transfer()
    elif transfer is not None:
        transfer = _without_base(transfer)
    if transfer is not None and base is None:
        _check_alone(transfer)
    facts = facts.share(training.share)
    probes = transfer is not None and transfer.linear_probe and not transfer.from_scratch
    task = (task.unvaried() if probes else task).resolve(facts)
    if transfer is not None:
        check_methods(task, training, transfer)
        transfer = transfer.resolve(published=isinstance(task.architecture, Pretrained))
    return Spec(task=task, training=_resolve(training, task, facts), transfer=transfer)


def grounded(task: Task, find: Callable[[Pretrained], Published]) -> Task:
    """The task with what the published checkpoint says that its architecture begins with, if it does.

    What a request says of that itself does not count. `find` may take long. Raises Invalid when the checkpoint
    cannot be had or is of no use.
    """
    architecture = task.architecture
    if not isinstance(architecture, Pretrained):
        return task
    try:
        found = architecture.grounded(find(architecture))
    except Unusable as error:
        place = ("task", "architecture", "checkpoint")
        raise Invalid(Problem(place, str(error), architecture.checkpoint)) from None
    return task.model_copy(update={"architecture": found})


def _without_base(transfer: Transfer) -> Transfer:
    """What is left of it where no weights are taken over: a teacher. Raises Invalid for anything else."""
    lessons = transfer.distillation
    rest = transfer.model_copy(update={"distillation": None, "backbone_learning_rate": AUTO})
    if lessons is None or lessons.teacher is None or rest != Transfer():
        allowed = "a `base`, or an architecture that is pretrained"
        raise Invalid(Problem(("transfer",), "there is nothing to take over", None, allowed))
    return transfer


def _check_alone(transfer: Transfer) -> None:
    """Raises Invalid for what only a model of this service could be remembered by."""
    if transfer.head in ("kept", "grown"):
        message = "there is no `base` whose outputs could be"
        raise Invalid(Problem(("transfer", "head"), message, transfer.head, ["auto", "new"]))
    if transfer.replay:
        message = "there is no `base` whose data could be replayed"
        raise Invalid(Problem(("transfer", "replay"), message, transfer.replay, 0))
    if transfer.distillation is not None and transfer.distillation.teacher is None:
        message = "there is no `base` that could teach; name one"
        raise Invalid(Problem(("transfer", "distillation", "teacher"), message))


def _on_base(task: Task, base: Task) -> Task:
    """The task with what its base decides. Raises Invalid when the base is of no use for it."""
    if not base.architecture.has_backbone:
        raise Invalid(
            Problem(
                ("base",),
                f"{base.architecture.name} has no backbone that another training could use",
                base.architecture.name,
                sorted(name for name, a in architectures().items() if a.has_backbone),
            )
        )
    families = (family_of(type(task)), *task.bases)
    if not isinstance(base.architecture, families):
        raise Invalid(
            Problem(
                ("base",),
                f"its architecture cannot learn {task.name}",
                base.architecture.name,
                sorted(name for family in families for name in architectures(family)),
            )
        )
    return task.on_base(base)


def _resolve(training: Training, task: Task, facts: Facts) -> Training:
    chosen = {
        "batch_size": 32 if facts.examples < 4_000 else 64 if facts.examples < 40_000 else 256,
        "optimizer": AdamW(),
        "schedule": Cosine(warmup=0.05),
        **task.architecture.defaults(facts.examples),
        **task.defaults(facts),
    }
    if not task.architecture.spreads:  # it follows no gradient
        asked = AUTO if training.batch_size == LARGEST else training.batch_size
        training = training.model_copy(update={"batch_size": asked, "compile": "never"})
    training = training.resolve(**chosen)
    usual = chosen["batch_size"] if training.batch_size == LARGEST else training.batch_size
    per_epoch = -(-facts.examples // usual)
    # Enough steps to learn something from a small set, few enough passes over a large one.
    return training.resolve(epochs=max(5, min(60, -(-3_000 // per_epoch))))


def read_spec(data: Any) -> Spec:
    """A stored spec."""
    return Spec.model_validate(data)


def read_task(data: Any) -> Task:
    """A stored task."""
    task: Task = TypeAdapter(AnyTask).validate_python(data)
    return task
