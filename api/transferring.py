"""What a transfer asks of its base and its teacher, looked at before a job is queued."""

import json

from sqlalchemy.orm import Session

from models.parts.training import Transfer
from store import blobs, checkpoints, datasets, models
from store.models import Resolved
from store.tables import Checkpoint, Dataset
from tasks.catalog import Spec, read_spec
from tasks.parts.growing import check_kept
from tasks.parts.labels import LabelCodec
from tasks.parts.problems import Invalid, Problem
from tasks.parts.teaching import check_taught, check_teacher


def with_teacher(session: Session, project_id: str, transfer: Transfer | None) -> Transfer | None:
    """The transfer with the very checkpoint that its teacher's name stands for now. Raises NotFound."""
    lessons = transfer.distillation if transfer is not None else None
    if transfer is None or lessons is None or lessons.teacher is None:
        return transfer
    found = models.resolve(session, project_id, lessons.teacher).checkpoint.id
    exact = lessons.model_copy(update={"teacher": found})
    return transfer.model_copy(update={"distillation": exact})


def check_transfer(session: Session, dataset: Dataset, spec: Spec, base: Resolved | None) -> None:
    """Raises Invalid for a head, a replay or a teacher that the data, the base or its data do not allow."""
    transfer = spec.transfer
    if transfer is None:
        return
    if base is not None:
        _check_head(session, dataset, spec, base.checkpoint)
        if transfer.replay:
            _check_replay(session, dataset, base.checkpoint)
    if transfer.distillation is not None:
        _check_lessons(session, dataset, spec, base)


def _check_head(session: Session, dataset: Dataset, spec: Spec, base: Checkpoint) -> None:
    assert spec.transfer is not None
    asked, learned = spec.transfer.head, read_spec(base.spec).task
    if asked not in ("kept", "grown"):
        return
    if type(spec.task) is not type(learned):
        message = f"the outputs of {learned.name} are not those of {spec.task.name}"
        raise Invalid(Problem(("transfer", "head"), message, asked, ["auto", "new"]))
    kind = spec.task.codec_type
    if asked == "grown" and not (issubclass(kind, LabelCodec) and kind.grows):
        message = f"the outputs of {spec.task.name} are not a score for each label"
        raise Invalid(Problem(("transfer", "head"), message, asked, ["auto", "kept", "new"]))
    if asked == "kept" and issubclass(kind, LabelCodec):
        replayed = _labels(session, base) if spec.transfer.replay else []
        check_kept(sorted({*dataset.schema["labels"], *replayed}), _labels(session, base))


def _check_replay(session: Session, dataset: Dataset, base: Checkpoint) -> None:
    place = ("transfer", "replay")
    found = checkpoints.dataset_of(session, base.id)
    if found is None:
        raise Invalid(Problem(place, "the data set that the base learned from was deleted"))
    old = datasets.load(session, found)
    if old.task != dataset.task:
        message = "the base learned from data for another task"
        raise Invalid(Problem(place, message, old.task, dataset.task))
    for name in ("target", "multi_label"):
        if old.schema.get(name) != dataset.schema.get(name):
            message = f"the base's data and this differ in their {name}"
            raise Invalid(Problem(place, message, old.schema.get(name), dataset.schema.get(name)))


def _check_lessons(session: Session, dataset: Dataset, spec: Spec, base: Resolved | None) -> None:
    assert spec.transfer is not None
    assert spec.transfer.distillation is not None
    name = spec.transfer.distillation.teacher
    if name is None:
        assert base is not None, "the catalog asks for a base or a teacher"
    teacher = base.checkpoint if name is None and base else checkpoints.load(session, name or "")
    check_teacher(spec.task, read_spec(teacher.spec).task)
    if name is None and spec.transfer.head == "new":
        message = "a base teaches its own labels, which a new head lacks"
        raise Invalid(Problem(("transfer", "head"), message, "new", ["auto", "grown", "kept"]))
    learned = set(dataset.schema["labels"])
    grows = spec.transfer.head == "grown" or spec.transfer.remembers
    if base is not None and grows and spec.transfer.head != "new":
        learned |= set(_labels(session, base.checkpoint))
    check_taught(sorted(learned), _labels(session, teacher))


def _labels(session: Session, checkpoint: Checkpoint) -> list[str]:
    """The labels that a checkpoint of a task of labels gives."""
    found: list[str] = json.loads(blobs.content(session, checkpoint.codec_blob))["labels"]
    return found
