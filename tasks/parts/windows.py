"""Windows of series: what came before, what came then, and the simple forecasts that a model has to beat."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from models.parts.options import AUTO, Plain
from models.parts.series import Start
from tasks.parts.problems import Invalid, Problem
from tasks.parts.timelines import (
    FILLED,
    MAX_CONTEXT,
    SERIES,
    TIME,
    Floats,
    SeriesOptions,
    values_of,
)
from tasks.parts.times import Step, find_step

MOST_VALUES = 24_000_000
"""Of all windows to train on: where every step would make more, they begin several steps apart."""
_JUDGED = 32
"""Windows that are enough to judge by; where there are fewer, they overlap."""
_MANY = 50
"""Seasons in the train split from which on a week of days, or seven years, is looked at."""


class Variable(Plain):
    """A column of numbers, and its values in the train split."""

    name: str
    mean: float
    deviation: float


class Size(NamedTuple):
    """How windows are cut, in steps."""

    horizon: int
    context: int
    season: int

    @property
    def least(self) -> int:
        """The shortest past that a forecast may begin from."""
        return max(2, min(self.season, self.context))


class Line(NamedTuple):
    """One series with what its train split says of it."""

    name: str
    values: Floats
    """(N, V), the target first."""
    times: pl.Series | None
    ends: dict[str, tuple[int, int]]
    """Where each split begins and ends."""
    scale: float
    """How far the target is from the value before, on average (Hyndman and Koehler, 2006)."""
    season_scale: float
    """How far it is from the value a season before."""


def lines_of(splits: Mapping[str, pl.DataFrame], names: Sequence[str], season: int) -> list[Line]:
    """The series, whole again. Raises Invalid for one whose target never changes in the train split."""
    found: dict[str, dict[str, pl.DataFrame]] = {}
    for split, frame in splits.items():
        for part in frame.partition_by(SERIES, maintain_order=True):
            found.setdefault(part[SERIES][0], {})[split] = part
    lines, problems = [], []
    for series, parts in found.items():
        where = ("train", "series", series or names[0])
        target = values_of(parts["train"], names[:1])[:, 0] if "train" in parts else np.zeros(0)
        scale = _steps(target, 1)
        if scale > 0:
            lines.append(_line(series, parts, names, scale, _steps(target, season) or scale))
        elif len(target) < 2:
            problems.append(Problem(where, "too short", f"{len(target)} steps", "2 or more"))
        else:
            problems.append(
                Problem(where, "the same value throughout", target[0], "values that vary")
            )
    if problems:
        raise Invalid(*problems)
    return lines


def _steps(values: Floats, apart: int) -> float:
    """The mean distance of values (N,) so many steps apart."""
    return float(np.abs(values[apart:] - values[:-apart]).mean()) if len(values) > apart else 0.0


def _line(
    series: str,
    parts: Mapping[str, pl.DataFrame],
    names: Sequence[str],
    scale: float,
    season_scale: float,
) -> Line:
    whole = pl.concat(parts.values())
    stops = np.cumsum([0, *(part.height for part in parts.values())]).tolist()
    ends = dict(zip(parts, pairwise(stops), strict=True))
    times = whole[TIME] if TIME in whole.columns else None
    return Line(series, values_of(whole, names), times, ends, scale, season_scale)


def step_of(splits: Mapping[str, pl.DataFrame], options: SeriesOptions) -> Step | None:
    """The step between rows; None without times, or where it is not asked for."""
    frame = splits["train"]
    if TIME not in frame.columns or options.gaps == "ignore":
        return None
    return find_step([part[TIME] for part in frame.partition_by(SERIES, maintain_order=True)])


def size_for(splits: Mapping[str, pl.DataFrame], step: Step | None, options: SeriesOptions) -> Size:
    """The horizon, context and season asked for, else those that suit the step and the length of the series."""
    heights = {n: f.group_by(SERIES).len()["len"] for n, f in splits.items()}
    held = min(int(lengths.min()) for name, lengths in heights.items() if name != "train")  # type: ignore[arg-type]
    longest = int(heights["train"].max())  # type: ignore[arg-type]
    season = options.season
    if season == AUTO:
        season = step.season if step is not None else 1
        season = season if 2 * season < longest else 1
    horizon = options.horizon
    if horizon == AUTO:
        horizon = max(1, min(step.horizon if step is not None else 12, held))
    context = options.context
    if context == AUTO:
        seasons = 7 if longest >= _MANY * season else 2
        wanted = max(seasons * season, 2 * horizon, 24) if season > 1 else max(2 * horizon, 32)
        context = max(2, min(wanted, 512, MAX_CONTEXT, longest // 2))
    return Size(horizon, context, season)


def windows(lines: Sequence[Line], size: Size, known: Sequence[int]) -> dict[str, pl.DataFrame]:
    """The examples of each split: a window for each forecast. Raises Invalid for series that are too short."""
    names = list(dict.fromkeys(name for line in lines for name in line.ends))
    problems = [problem for line in lines for problem in _too_short(line, size, names)]
    if problems:
        raise Invalid(*problems)
    wanted = {name: list(_begins(lines, name, size)) for name in names}
    return {
        name: pl.concat(_cut(line, begin, size, known) for line, begin in wanted[name])
        for name in names
    }


def _too_short(line: Line, size: Size, names: Sequence[str]) -> Iterator[Problem]:
    for name in names:
        start, stop = line.ends.get(name, (0, 0))
        least = size.horizon + (size.least if name == "train" else 0)
        if stop - start < least:
            allowed = f"{least} or more in this split; options.horizon makes do with fewer"
            where = (name, "series", line.name)
            yield Problem(where, "the series is too short", f"{stop - start} steps", allowed)


def _begins(lines: Sequence[Line], split: str, size: Size) -> Iterator[tuple[Line, range]]:
    """Where forecasts of each series begin in a split."""
    spans = [(line, *_span(line, split, size)) for line in lines]
    apart = size.horizon
    if split == "train":
        values = sum(stop - start for _, start, stop in spans) * size.context
        apart = -(-values * lines[0].values.shape[1] // MOST_VALUES)
    elif split == "validation":
        room = sum(stop - start for _, start, stop in spans)
        apart = max(1, min(size.horizon, room // _JUDGED))
    for line, start, stop in spans:
        yield line, range(start, stop, apart)


def _span(line: Line, split: str, size: Size) -> tuple[int, int]:
    """The first step that a forecast may begin with, and the one after the last."""
    start, stop = line.ends[split]
    last = stop - size.horizon + 1
    if split == "train":
        # Short series are also learned from where they have not much of a past yet.
        start = min(size.context, max(size.least, last // 2), last - 1)
    return start, last


def _cut(line: Line, begins: range, size: Size, known: Sequence[int]) -> pl.DataFrame:
    start = np.array(begins)
    ahead = start[:, None] + np.arange(size.horizon)
    pasts = np.stack([past(line.values[:first], size.context, size.season) for first in begins])
    target = line.values[:, 0]
    times = None if line.times is None else line.times[start]
    return pl.DataFrame(
        {
            "series": pl.Series([line.name] * len(start), dtype=pl.String),
            "step": start,
            "time": pl.Series([None] * len(start), dtype=pl.Int64) if times is None else times,
            "history": lists(pasts.reshape(len(start), -1)),
            "known": lists(line.values[ahead][:, :, list(known)].reshape(len(start), -1)),
            "future": lists(target[ahead]),
            "last": target[start - 1],
            "naive": lists(seasonal(pasts[:, :, 0], size)),
            "scale": pl.Series([line.scale] * len(start), dtype=pl.Float64),
            "season_scale": pl.Series([line.season_scale] * len(start), dtype=pl.Float64),
        }
    )


def lists(values: Floats) -> pl.Series:
    """Rows of numbers (N, M) as lists."""
    rows, width = values.shape
    if width == 0:
        return pl.Series([[]] * rows, dtype=pl.List(pl.Float64))
    found = pl.Series(np.ascontiguousarray(values), dtype=pl.Array(pl.Float64, width))
    return found.arr.to_list()


def rows_of(values: pl.Series, width: int) -> Floats:
    """Lists of so many numbers each, as (N, width)."""
    flat = values.explode(empty_as_null=False) if len(values) else pl.Series([], dtype=pl.Float64)
    return flat.to_numpy().astype(np.float64).reshape(len(values), width)


def past(values: Floats, context: int, season: int) -> Floats:
    """The last rows (context, V) of a history (N, V); a shorter one goes back on by repeating its first season."""
    if len(values) >= context:
        return values[len(values) - context :]
    places = np.arange(len(values) - context, len(values))
    return values[np.where(places < 0, places % min(season, len(values)), places)]


def seasonal(history: Floats, size: Size) -> Floats:
    """The last season again and again: (N, context) to (N, horizon)."""
    season = min(size.season, history.shape[1])
    return history[:, history.shape[1] - season + np.arange(size.horizon) % season]


def best_start(train: pl.DataFrame, size: Size) -> Start:
    """The simple forecast that comes nearest in the train split, by what errors are measured in."""
    if size.season == 1 or size.context <= size.season:
        return "last"
    future, naive = (rows_of(train[name], size.horizon) for name in ("future", "naive"))
    scale, last = (train[name].to_numpy()[:, None] for name in ("scale", "last"))
    before = train["history"].list.get(-_variables(train, size) * (size.season + 1))
    simple: dict[Start, Floats] = {
        "last": np.broadcast_to(last, future.shape),
        "season": naive,
        "drift": naive + last - before.to_numpy()[:, None],
    }
    return min(simple, key=lambda name: float(np.abs((future - simple[name]) / scale).mean()))


def _variables(train: pl.DataFrame, size: Size) -> int:
    return int(train["history"].list.len()[0]) // size.context


def moments(train: pl.DataFrame, names: Sequence[str]) -> list[Variable]:
    """Mean and deviation of each variable in the train split."""
    values = values_of(train, names)
    return [
        Variable(name=name, mean=float(column.mean()), deviation=float(column.std()) or 1.0)
        for name, column in zip(names, values.T, strict=True)
    ]


def summary(
    splits: Mapping[str, pl.DataFrame], names: Sequence[str], step: Step | None, size: Size
) -> dict[str, Any]:
    """What there is to say of series before any is forecast."""
    whole = pl.concat(splits.values())
    return {
        "target": names[0],
        "covariates": list(names[1:]),
        "series": whole[SERIES].n_unique(),
        "steps": {name: frame.height for name, frame in splits.items()},
        "time_step": None if step is None else str(step),
        "filled": int(whole[FILLED].sum()),
        **size._asdict(),
    }
