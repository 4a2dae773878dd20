"""The outputs of a training on a base: the base's own, the base's and more behind them, or new ones."""

from typing import Any, NamedTuple

from models.parts.training import Transfer
from tasks.base import Codec, Task
from tasks.parts.labels import SHOWN, LabelCodec
from tasks.parts.problems import Invalid, Problem

_HEAD = ("transfer", "head")


class Outputs(NamedTuple):
    """What a training gives, and whether its head begins with the one of its base."""

    codec: Codec
    kept: bool


def outputs_on(task: Task, codec: Codec, base: Task, base_codec: Codec, plan: Transfer) -> Outputs:
    """What a training on a base gives, whose data alone comes to `codec`.

    Raises Invalid for a head that cannot be kept or grown.
    """
    if plan.head == "new":
        return Outputs(codec, kept=False)
    if type(task) is type(base):
        if task.same_outputs(codec, base_codec):
            return Outputs(codec, kept=True)
        if can_grow(task, codec, base_codec):
            return _of_labels(codec, base_codec, plan)
    if plan.head in ("kept", "grown"):
        message = f"the outputs of {base.name} are not those of {task.name} on this data"
        raise Invalid(Problem(_HEAD, message, plan.head, ["auto", "new"]))
    return Outputs(codec, kept=False)


def can_grow(task: Task, codec: Any, base: Any) -> bool:
    """Whether nothing but labels tells the outputs of a codec from those of its base."""
    if not (isinstance(codec, LabelCodec) and isinstance(base, LabelCodec) and codec.grows):
        return False
    alike = base.model_copy(update={"labels": codec.labels, "counts": codec.counts})
    return task.same_outputs(codec, alike)


def covers(task: Task, codec: Any, base: Task, base_codec: Any) -> bool:
    """Whether a model can give all that its base gives, and be measured on the same examples."""
    if type(task) is not type(base):
        return False
    if can_grow(task, codec, base_codec):
        return set(base_codec.labels) <= set(codec.labels)
    return task.same_outputs(codec, base_codec)


def check_kept(labels: list[str], base: list[str]) -> None:
    """Raises Invalid unless a head for the labels of the base is one for `labels`."""
    if set(labels) != set(base):
        differ = sorted(set(labels) ^ set(base))
        message = f"the labels differ from those of the base, by {', '.join(differ[:SHOWN])}"
        raise Invalid(Problem(_HEAD, message, "kept", ["auto", "grown", "new"]))


def _of_labels(codec: Any, base: Any, plan: Transfer) -> Outputs:
    if plan.head == "kept":
        check_kept(codec.labels, base.labels)
    contained = set(base.labels) <= set(codec.labels)
    if plan.head == "auto" and not (contained or plan.remembers):
        return Outputs(codec, kept=False)
    counts = dict(zip(codec.labels, codec.counts, strict=True))
    labels = [*base.labels, *(label for label in codec.labels if label not in set(base.labels))]
    update = {"labels": labels, "counts": [counts.get(label, 0) for label in labels]}
    return Outputs(codec.model_copy(update=update), kept=True)
