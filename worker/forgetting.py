"""The forgetting report: what a base and what came of it are worth on the data that the base learned from."""

import logging
from collections.abc import Iterator
from typing import Any

import polars as pl

from store.errors import Fenced
from tasks.parts.columns import Columns
from tasks.parts.growing import covers
from tasks.parts.problems import Invalid
from tasks.trained import Trained
from worker.desk import Desk, Told
from worker.encoded import columns_name
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
    before, after = (_measured(model, files[split], desk) for model in (base, trained))
    return {
        "base": checkpoint.id,
        "split": split,
        "examples": _examples(files[split], desk),
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


def _examples(blob_id: str, desk: Desk) -> int:
    return int(desk.materials.examples(blob_id).select(pl.len()).collect().item())


def _measured(model: Trained, blob_id: str, desk: Desk) -> dict[str, Any]:
    """What `evaluate` finds on a split."""
    examples = desk.materials.examples(blob_id)

    def pieces() -> Iterator[Columns]:
        for piece in model.codec.encode_pieces(examples):
            desk.go_on()
            yield piece

    name = columns_name(blob_id, model.task.name, model.codec.model_dump_json())
    columns = desk.materials.columns(name, pieces, desk.go_on)
    *_, predictions = desk.heard(model.answering(columns))
    assert predictions is not None
    return model.task.evaluate(predictions, examples.drop(model.task.bulky).collect())
