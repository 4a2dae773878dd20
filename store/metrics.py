"""The numbers of a training, step by step."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import Select, delete, func, or_, select
from sqlalchemy.orm import Session

from store.session import now
from store.statements import dialect
from store.tables import Metric

Point = tuple[int, int, Mapping[str, float]]
"""Step, epoch and {name: value}."""


def add(session: Session, job_id: str, points: Iterable[Point]) -> None:
    """Add points of a job that this transaction has locked; numbers of a step that is there join it."""
    points, moment = list(points), now(session)
    wanted = [step for step, _, _ in points]
    known = session.scalars(select(Metric).where(Metric.job_id == job_id, Metric.step.in_(wanted)))
    rows = {row.step: row for row in known}
    for step, epoch, values in points:
        row = rows.get(step)
        if row is None:
            row = Metric(job_id=job_id, step=step, values={})
            rows[step] = row
            session.add(row)
        row.epoch, row.at, row.values = epoch, moment, {**row.values, **values}


def curve(
    session: Session,
    job_id: str,
    names: Sequence[str] | None = None,
    points: int | None = None,
) -> dict[str, list[tuple[int, int, float]]]:
    """{name: [(step, epoch, value), ...]}, of `names` or all; numbers that are not finite are left out.

    With `points`, at most so many of each, evenly taken, the first and the last among them.
    """
    known = _names(session, job_id)
    asked = known if names is None else [name for name in names if name in known]
    return {name: _points(session, job_id, name, points) for name in asked}


def truncate(session: Session, job_id: str, after_step: int) -> None:
    """Forget the steps after `after_step`: they will be made again. Belongs behind `leases.fence`."""
    session.execute(delete(Metric).where(Metric.job_id == job_id, Metric.step > after_step))


def _names(session: Session, job_id: str) -> list[str]:
    if dialect(session) == "postgresql":
        keys = func.jsonb_object_keys(Metric.values).table_valued("key").render_derived()
    else:
        keys = func.json_each(Metric.values).table_valued("key")
    query = select(keys.c.key).select_from(Metric).join(keys, Metric.job_id == job_id)
    return list(session.scalars(query.distinct().order_by(keys.c.key)))


def _points(
    session: Session, job_id: str, name: str, points: int | None
) -> list[tuple[int, int, float]]:
    value = Metric.values[name].as_float().label("value")
    query = select(Metric.step, Metric.epoch, value)
    query = query.where(Metric.job_id == job_id, value.is_not(None))
    if points is not None:
        query = _thinned(query, max(points, 2))
    return [tuple(row) for row in session.execute(query.order_by("step"))]


def _thinned(query: Select[Any], points: int) -> Select[Any]:
    """Of n rows those where k * (points - 1) / (n - 1) reaches its next whole number, k from 0."""
    place = func.row_number().over(order_by=Metric.step) - 1
    rows = query.add_columns(place.label("place"), func.count().over().label("n")).subquery()
    gaps = func.nullif(rows.c.n - 1, 0)
    reached = rows.c.place * (points - 1) // gaps
    before = (rows.c.place - 1) * (points - 1) // gaps
    kept = or_(rows.c.n <= points, rows.c.place == 0, reached != before)
    return select(rows.c.step, rows.c.epoch, rows.c.value).where(kept)
