"""What it is worth to take weights over: trials of a sweep with them, beside the same ones from scratch."""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from statistics import fmean, stdev
from typing import Any

from store import sweeps
from store.columns import Object
from store.tables import Job, Sweep

FROM_SCRATCH = "transfer.from_scratch"
SHARE = "training.share"
SEED = "training.seed"

Scores = dict[Any, float]
"""{seed: score}"""


def of(sweep: Sweep, trials: Sequence[Job]) -> Object | None:
    """A table of what trials that were trained to their end came to, share by share; None for other sweeps."""
    if FROM_SCRATCH not in sweep.space:
        return None
    done = [job for job in trials if job.status == "succeeded" and _is_whole(job)]
    split = "test" if done and all("test" in job.metrics for job in done) else "validation"
    rows = [_row(sweep, done, share, split) for share in _shares(sweep)]
    return {
        "metric": sweep.metric,
        "split": split,
        "rows": rows,
        "as_good_from": _as_good_from(rows, maximise=sweep.maximise),
    }


def _is_whole(job: Job) -> bool:
    """Whether nobody stopped it, which would leave it less to learn from than others had."""
    training = job.spec["training"]
    return bool(training["early_stopping"] or job.progress.get("epoch", 0) >= training["epochs"])


def _shares(sweep: Sweep) -> list[float]:
    """Those that are searched, or the one that all trials have."""
    searched = sweep.space.get(SHARE, {}).get("choices")
    return sorted(searched or [sweep.request.get("training", {}).get("share", 1.0)])


def _row(sweep: Sweep, done: Iterable[Job], share: float, split: str) -> Object:
    here = [job for job in done if _chosen(job).get(SHARE, share) == share]
    sides = [
        _scores(sweep, [job for job in here if _chosen(job)[FROM_SCRATCH] is scratch], split)
        for scratch in (False, True)
    ]
    seeds = [seed for seed in sides[0] if seed in sides[1]]
    ours, theirs = ([side[seed] for seed in seeds] for side in sides)
    sign = 1 if sweep.maximise else -1
    gains = [sign * (one - other) for one, other in zip(ours, theirs, strict=True)]
    return {
        "share": share,
        "with_transfer": fmean(ours) if seeds else None,
        "from_scratch": fmean(theirs) if seeds else None,
        "gain": fmean(gains) if seeds else None,
        "gain_error": stdev(gains) / math.sqrt(len(gains)) if len(gains) > 1 else None,
        "seeds": len(seeds),
    }


def _scores(sweep: Sweep, jobs: Sequence[Job], split: str) -> Scores:
    """Those of what does best on the validation split, of whatever else was varied."""
    tried: dict[str, list[Job]] = defaultdict(list)
    for job in jobs:
        others = {p: v for p, v in _chosen(job).items() if p not in (FROM_SCRATCH, SHARE, SEED)}
        if sweeps.value(sweep, job) is not None and _score(sweep, job, split) is not None:
            tried[repr(sorted(others.items()))].append(job)
    if not tried:
        return {}
    sign = 1 if sweep.maximise else -1
    # What was trained with more seeds is known better.
    best = max(tried.values(), key=lambda them: (len(them), sign * _mean(sweep, them)))
    return {_chosen(job).get(SEED): _score(sweep, job, split) or 0.0 for job in best}


def _mean(sweep: Sweep, jobs: Iterable[Job]) -> float:
    return fmean(sweeps.value(sweep, job) or 0.0 for job in jobs)


def _score(sweep: Sweep, job: Job, split: str) -> float | None:
    found = job.metrics.get(split, {}).get(sweep.metric)
    return float(found) if isinstance(found, int | float) and math.isfinite(found) else None


def _as_good_from(rows: Sequence[Object], *, maximise: bool) -> float | None:
    """The smallest share that, with weights taken over, makes as much as the largest one from scratch."""
    goal, sign = rows[-1]["from_scratch"], 1 if maximise else -1
    if goal is None:
        return None
    enough: list[float] = [
        row["share"]
        for row in rows
        if row["with_transfer"] is not None and sign * (row["with_transfer"] - goal) >= 0
    ]
    return min(enough, default=None)


def _chosen(job: Job) -> Object:
    return job.parameters or {}
