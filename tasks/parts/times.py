"""When the rows of a series are, and the even steps between them: seconds, months or plain numbers."""

from collections.abc import Sequence
from datetime import datetime
from math import gcd
from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from models.parts.options import Plain
from tasks.parts.column_types import date_format, infer, to_dates, to_text

Ticks = NDArray[np.int64]
"""Times: microseconds since 1970, months since year 0, or numbers."""
Unit = Literal["microsecond", "month", "number"]

SECOND = 1_000_000
MINUTE, HOUR, DAY = 60 * SECOND, 3_600 * SECOND, 86_400 * SECOND
_MONTHLY = r"^\d{4}[-/]\d{1,2}$"
_NAMES = ((7 * DAY, "week"), (DAY, "day"), (HOUR, "hour"), (MINUTE, "minute"), (SECOND, "second"))


class Step(Plain):
    """How far the rows of a series are apart."""

    unit: Unit
    count: int

    def __str__(self) -> str:
        if self.unit != "microsecond":
            return f"{self.count} {self.unit}"
        size, name = next(
            ((size, name) for size, name in _NAMES if self.count % size == 0), (1, "microsecond")
        )
        return f"{self.count // size} {name}"

    @property
    def season(self) -> int:
        """After how many steps series of this kind usually repeat themselves; 1: they do not."""
        if self.unit == "month":
            return max(1, 12 // self.count)
        if self.unit == "number" or self.count > 7 * DAY:
            return 1
        if self.count == 7 * DAY:
            return 52
        if self.count >= DAY:
            return 7 if self.count == DAY else 1
        # A day of steps, or an hour of steps below five minutes.
        return max(1, (DAY if self.count >= 5 * MINUTE else HOUR) // self.count)

    @property
    def horizon(self) -> int:
        """How many steps ahead series of this kind are usually forecast (Makridakis et al., 2020)."""
        usual = {("month", 1): 12, ("month", 3): 8, ("month", 12): 6}
        by_days = {DAY: 14, 7 * DAY: 13}
        if self.unit == "microsecond":
            return by_days.get(self.count, max(6, min(self.season, 96)))
        return usual.get((self.unit, self.count), 12)

    def after(self, last: datetime | int, steps: int) -> list[datetime] | list[int]:
        """The times of so many steps after the last one."""
        if isinstance(last, int):
            return [last + self.count * number for number in range(1, steps + 1)]
        first = pl.Series([last], dtype=pl.Datetime("us"))
        if self.unit == "microsecond":
            ticks = int(first.to_physical()[0]) + self.count * np.arange(1, steps + 1)
            found: list[datetime] = pl.Series(ticks).cast(pl.Datetime("us")).to_list()
            return found
        is_end = bool((first.dt.month_end() == first)[0])
        moved = [first.dt.offset_by(f"{self.count * number}mo") for number in range(1, steps + 1)]
        return [(time.dt.month_end() if is_end else time)[0] for time in moved]


def read_times(values: pl.Series) -> pl.Series | None:
    """Times of rows, as Datetime without a zone or as Int64, null where a cell is none; None: no times at all.

    Months, such as 1949-01, are their first days.
    """
    if values.dtype.is_temporal():
        return values.cast(pl.Datetime("us")) if values.dtype != pl.Time else None
    if values.dtype.is_integer():
        return values.cast(pl.Int64)
    text = to_text(values)
    sound = text.drop_nulls()
    if len(sound) and sound.str.contains(_MONTHLY).mean() == 1:
        return to_dates(text.str.replace("/", "-") + "-01", "%Y-%m-%d")
    pattern = date_format(sound)
    if pattern is not None:
        return to_dates(text, pattern)
    numbers = text.cast(pl.Int64, strict=False)
    is_mostly = len(sound) > 0 and numbers.null_count() <= 0.01 * len(sound)
    return numbers if is_mostly and infer("", values, values).type == "numeric" else None


def read_time(given: str | int) -> datetime | int:
    """A time of a request. Raises ValueError."""
    if isinstance(given, int):
        return given
    found = read_times(pl.Series([given.strip()]))
    if found is not None and isinstance(first := found[0], datetime | int):
        return first
    read = datetime.fromisoformat(given.strip())
    return pl.Series([read]).dt.replace_time_zone(None).to_list()[0] if read.tzinfo else read


def find_step(times: Sequence[pl.Series]) -> Step | None:
    """The step between rows, from the sorted times of each series; None where no two differ."""
    whole = pl.concat(times)
    if whole.dtype == pl.Int64:
        return _commonest("number", [series.to_numpy() for series in times])
    if _is_monthly(whole):
        return _commonest("month", [months(series) for series in times])
    return _commonest("microsecond", [series.to_physical().to_numpy() for series in times])


def ticks(times: pl.Series, step: Step) -> Ticks:
    """Times (N,) in the unit of the step."""
    if step.unit == "month":
        return months(times)
    return times.to_physical().to_numpy()


def months(times: pl.Series) -> Ticks:
    """Months since year 0 (N,)."""
    return (times.dt.year().cast(pl.Int64) * 12 + times.dt.month() - 1).to_numpy()


def times_at(first: pl.Series, step: Step, positions: Ticks) -> pl.Series:
    """The times so many steps after the first one, a series of one."""
    if step.unit != "month":
        moved = first.to_physical()[0] + step.count * positions
        return pl.Series(moved).cast(first.dtype)
    table = pl.DataFrame({"by": positions * step.count}).select(
        pl.lit(first[0]).cast(pl.Datetime("us")).dt.offset_by(pl.format("{}mo", "by"))
    )
    moved_by_months = table.to_series()
    return moved_by_months.dt.month_end() if _is_end(first) else moved_by_months


def _is_end(times: pl.Series) -> bool:
    return bool((times.dt.month_end() == times).all())


def _is_monthly(times: pl.Series) -> bool:
    """Whether all of these are the same moment of some month, or ends of months."""
    since = times - times.dt.month_start()
    return (since.n_unique() == 1 or _is_end(times)) and np.unique(months(times)).size > 1


def _commonest(unit: Unit, series: Sequence[Ticks]) -> Step | None:
    apart = np.concatenate([np.diff(one) for one in series])
    found, counts = np.unique(apart[apart > 0], return_counts=True)
    if not len(found):
        return None
    commonest = int(found[counts.argmax()])
    # Months are of one length: a row a year and one in between make half years.
    return Step(unit=unit, count=gcd(*found.tolist()) if unit == "month" else commonest)
