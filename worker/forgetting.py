"""The forgetting report: what a base and what came of it are worth on the data that the base learned from."""

import logging
from typing import Any

from store.errors import Fenced
from tasks.parts.growing import covers
from tasks.parts.problems import Invalid
from tasks.trained import Trained
from worker.desk import Desk, Told
from worker.failures import explain
from worker.group import lost_peer
from worker.outages import Unreachable, disk_is_full

log = logging.getLogger(__name__)


def forgotten(trained: Trained, desk: Desk) -> dict[str, Any] | None:
    """Both models measured on the base's test split, or its validation split if it has none.

    None without a base, and where the new model's outputs are others. Why there is nothing to measure by is told
    as `skipped`: a training does not fail for it. Raises Told, Fenced and Unreachable.
    """
    if desk.job.base_checkpoint_id is None:
        return None
    try:
        return _measure(trained, desk)
    except (Told, Fenced, *Unreachable):
        raise
    except Exception as error:
        if disk_is_full(error) or lost_peer(error):
            raise
        log.info("%s does without a report of what it forgot", desk.job.id, exc_info=error)
        reason = error.problems[0].msg if isinstance(error, Invalid) else explain(error)["message"]
        return {"base": desk.job.base_checkpoint_id, "skipped": reason}


def _measure(trained: Trained, desk: Desk) -> dict[str, Any] | None:
    checkpoint = desk.materials.checkpoint(desk.job.base_checkpoint_id or "")
    base = desk.materials.trained(checkpoint, desk.device)
    if not covers(trained.task, trained.codec, base.task, base.codec):
        return None
    files = desk.base_files
    split = "test" if "test" in files else "validation"
    (before, examples), (after, _) = (
        desk.evaluation(model, files[split]) for model in (base, trained)
    )
    return {
        "base": checkpoint.id,
        "split": split,
        "examples": examples,
        **compared(before, after, trained),
    }


def compared(before: dict[str, Any], after: dict[str, Any], trained: Trained) -> dict[str, Any]:
    """Every metric before and after, and how it changed; the same per class where the task tells classes apart."""
    found: dict[str, Any] = {
        "metrics": {name: _change(before, after, name) for name in trained.task.measures}
    }
    classes, others = before.get("per_class"), after.get("per_class", {})
    if classes:
        found["per_class"] = {
            label: {name: _change(figures, others[label], name) for name in figures}
            for label, figures in classes.items()
            if label in others
        }
    return found


def _change(before: dict[str, Any], after: dict[str, Any], name: str) -> dict[str, Any]:
    old, new = before.get(name), after.get(name)
    change = None if old is None or new is None else new - old
    return {"before": old, "after": new, "change": change}
