"""What keeps a training from forgetting its base: the base's examples once more, and a teacher's answers."""

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import polars as pl
import torch

from models.base import Learner
from models.parts.distillation import Distillation
from store import models
from store.tables import Checkpoint
from tasks.base import Codec, Task
from tasks.catalog import read_spec
from tasks.parts.columns import Columns
from tasks.parts.examples import height
from tasks.parts.teaching import answers, check_teacher, give_lessons
from worker.desk import Desk
from worker.encoded import columns_name
from worker.loop import Split


class Source(NamedTuple):
    """The examples of a split, none of them read yet, and a name that says exactly which."""

    name: str
    examples: pl.LazyFrame


def with_replay(
    sources: dict[str, Source], share: float, seed: int, desk: Desk
) -> dict[str, Source]:
    """Splits to train and to judge by, so large a share of which is of the base's own data set. Raises Invalid."""
    if not share:
        return sources
    files = desk.base_files
    mixed = {
        name: _mixed(sources[name], files[name], share, seed, desk)
        for name in ("train", "validation")
    }
    return sources | mixed


def _mixed(source: Source, blob_id: str, share: float, seed: int, desk: Desk) -> Source:
    """The examples, and behind them those of the blob that a function of the seed chooses."""
    known = height(desk.materials.examples(blob_id))
    wanted = min(known, max(1, round(height(source.examples) * share / (1 - share))))
    order = torch.randperm(known, generator=torch.Generator().manual_seed(seed))
    rows = sorted(order[:wanted].tolist())
    name = f"{blob_id}.{wanted}.{seed}.replay.parquet"
    chosen = desk.materials.some(blob_id, rows, name)
    columns = source.examples.collect_schema().names()
    present = set(chosen.collect_schema().names())
    chosen = chosen.select([column for column in columns if column in present])
    examples = pl.concat([source.examples, chosen], how="diagonal_relaxed").select(columns)
    return Source(f"{source.name}+{name}", examples)


def teach(
    learner: Learner,
    train: Split,
    source: Source,
    task: Task,
    codec: Codec,
    plan: Distillation,
    desk: Desk,
) -> Split:
    """The split with a teacher's answers behind its targets, and the learner ready for them. Raises Invalid."""
    checkpoint = teacher_of(plan, desk)
    teaches = read_spec(checkpoint.spec).task
    check_teacher(task, teaches)
    known = teaches.codec_type.model_validate(desk.materials.codec(checkpoint))
    give_lessons(learner, plan, codec, known)

    def pieces() -> Iterator[Columns]:
        teacher = desk.materials.trained(checkpoint, desk.device)
        for piece in answers(teacher, source.examples):
            desk.go_on()
            if piece is not None:
                yield piece

    # Devices of different kinds round differently.
    kind = torch.device(desk.device).type
    name = columns_name(source.name, f"answers on {kind}", checkpoint.id)
    (given,) = desk.materials.columns(name, pieces, desk.go_on).inputs
    columns = train.columns
    return replace(train, columns=Columns(columns.inputs, (*columns.targets, given)))


def teacher_of(plan: Distillation, desk: Desk) -> Checkpoint:
    """The checkpoint that teaches. Raises NotFound."""
    if plan.teacher is None:
        return desk.materials.checkpoint(desk.job.base_checkpoint_id or "")
    with desk.database.transaction(read_only=True) as session:
        return models.resolve(session, desk.job.project_id, plan.teacher).checkpoint
