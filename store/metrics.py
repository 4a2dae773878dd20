"""The numbers of a training, step by step.

The points of a metric lie packed in blocks, of which the last one grows: a row of its own for each point
would take most of the time of writing and reading it.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import starmap
from struct import Struct

from sqlalchemy import BindParameter, Select, bindparam, func, select
from sqlalchemy.orm import Session

from store.columns import storable
from store.tables import MetricBlock

Point = tuple[int, int, Mapping[str, float]]
"""Step, epoch and {name: value}."""
_Packed = tuple[int, int, float]
"""Step, epoch and value: a point of one metric."""

BLOCK_POINTS = 1_000
_FORM = Struct("<qid")


def add(session: Session, job_id: str, points: Iterable[Point]) -> None:
    """Add points of a job that this transaction has locked; one that is there already is replaced."""
    added: dict[str, dict[int, _Packed]] = defaultdict(dict)
    for step, epoch, values in points:
        for name, value in values.items():
            added[name][step] = (step, epoch, value)
    for name, new in added.items():
        blocks = _blocks_from(session, job_id, storable(name), min(new))
        known = {point[0]: point for block in blocks for point in _read(block)}
        _write(session, job_id, storable(name), blocks, sorted((known | new).values()))


def curve(
    session: Session,
    job_id: str,
    names: Sequence[str] | None = None,
    points: int | None = None,
) -> dict[str, list[_Packed]]:
    """{name: [(step, epoch, value), ...]}, of `names` or all; numbers that are not finite are left out.

    With `points`, at most so many of each, evenly taken, the first and the last among them.
    """
    query = select(MetricBlock).where(MetricBlock.job_id == job_id).order_by(MetricBlock.first_step)
    if names is not None:
        query = query.where(MetricBlock.name.in_(storable(list(names))))
    found: dict[str, list[_Packed]] = defaultdict(list)
    for block in session.scalars(query):
        found[block.name] += [point for point in _read(block) if math.isfinite(point[2])]
    return {name: _thinned(found[name], points) for name in sorted(found)}


def truncate(session: Session, job_id: str, after_step: int) -> None:
    """Forget the steps after `after_step`: they will be made again. Belongs behind `leases.fence`."""
    names = select(MetricBlock.name).where(MetricBlock.job_id == job_id).distinct()
    for name in session.scalars(names).all():
        blocks = _blocks_from(session, job_id, name, after_step + 1)
        kept = [point for block in blocks for point in _read(block) if point[0] <= after_step]
        _write(session, job_id, name, blocks, kept)


def _blocks_from(session: Session, job_id: str, name: str, step: int) -> list[MetricBlock]:
    """The block of a metric that `step` lies in or would join, and all later ones."""
    given = {"job_id": job_id, "name": name, "step": step}
    return list(session.scalars(_BLOCKS_FROM, given))


def _query_blocks_from() -> Select[MetricBlock]:
    job_id: BindParameter[str] = bindparam("job_id")
    name: BindParameter[str] = bindparam("name")
    step: BindParameter[int] = bindparam("step")
    of_metric = (MetricBlock.job_id == job_id) & (MetricBlock.name == name)
    earlier = of_metric & (MetricBlock.first_step <= step)
    begin = select(func.max(MetricBlock.first_step)).where(earlier).scalar_subquery()
    from_there = of_metric & (MetricBlock.first_step >= func.coalesce(begin, step))
    return select(MetricBlock).where(from_there).order_by(MetricBlock.first_step)


_BLOCKS_FROM = _query_blocks_from()
"""Built once: that takes longer than to ask it."""


def _read(block: MetricBlock) -> Iterator[_Packed]:
    return _FORM.iter_unpack(block.points)


def _write(
    session: Session, job_id: str, name: str, blocks: list[MetricBlock], points: list[_Packed]
) -> None:
    """Have `points`, in order, stand in place of what `blocks` hold."""
    rows = {block.first_step: block for block in blocks}
    for start in range(0, len(points), BLOCK_POINTS):
        held = points[start : start + BLOCK_POINTS]
        packed = b"".join(starmap(_FORM.pack, held))
        row = rows.pop(held[0][0], None)
        if row is None:
            row = MetricBlock(job_id=job_id, name=name, first_step=held[0][0])
            session.add(row)
        row.points = packed
    for left in rows.values():
        session.delete(left)


def _thinned(curve: list[_Packed], points: int | None) -> list[_Packed]:
    if points is None or len(curve) <= max(points, 2):
        return curve
    gaps, last = max(points, 2) - 1, len(curve) - 1
    return [curve[-(-place * last // gaps)] for place in range(gaps + 1)]
