"""Which examples a share of a train split has."""

from collections import Counter
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.parts.training import Training
from tasks import catalog
from tasks.base import Facts
from tasks.parts.shares import drawn, latest
from tests.toys import tasks_with_toys, toy

LABELS = st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=120)
SETS = st.lists(st.lists(st.sampled_from("abcd"), max_size=3, unique=True), min_size=1, max_size=60)
SHARES = st.floats(0.001, 1.0)


@settings(max_examples=60, deadline=None)
@given(labels=LABELS, one=SHARES, other=SHARES, seed=st.integers(0, 99))
def test_a_smaller_share_is_part_of_a_larger_one_and_each_has_every_label(
    labels: list[str], one: float, other: float, seed: int
) -> None:
    series = pl.Series(labels)
    small, large = (drawn(len(labels), series, s, seed).tolist() for s in sorted((one, other)))
    assert set(small) <= set(large)
    assert small == sorted(set(small))
    assert {labels[row] for row in small} == set(labels)
    assert len(small) == max(len(set(labels)), round(min(one, other) * len(labels)))
    assert drawn(len(labels), series, 1.0, seed).tolist() == list(range(len(labels)))


@settings(max_examples=30, deadline=None)
@given(sets=SETS, share=SHARES, seed=st.integers(0, 99))
def test_a_share_has_every_label_of_examples_that_have_several(
    sets: list[list[str]], share: float, seed: int
) -> None:
    rows = drawn(len(sets), pl.Series(sets, dtype=pl.List(pl.String)), share, seed)
    assert {label for row in rows for label in sets[row]} == {x for some in sets for x in some}


def test_a_share_keeps_how_often_labels_are() -> None:
    labels = ["often"] * 800 + ["seldom"] * 150 + ["rare"] * 50
    rows = drawn(1000, pl.Series(labels), 0.2, 0)
    assert Counter(labels[row] for row in rows) == {"often": 160, "seldom": 30, "rare": 10}


def test_another_seed_draws_other_examples_and_the_same_seed_the_same() -> None:
    first, again, other = (drawn(100, None, 0.1, seed).tolist() for seed in (1, 1, 2))
    assert first == again
    assert len(first) == len(other) == 10
    assert first != other


def test_a_share_of_series_is_the_last_of_each() -> None:
    series = pl.Series(["a"] * 10 + ["b"] * 4 + ["c"])
    assert latest(series, 0.25).tolist() == [8, 9, 13, 14]


@pytest.mark.parametrize("name", tasks_with_toys())
def test_a_codec_learned_from_a_share_reads_the_whole_of_every_split(
    name: str, tmp_path: Path
) -> None:
    kind = catalog.task_named(name)
    checked = kind.check(toy(name, tmp_path), kind.options_type())
    train = checked.splits["train"]
    facts = Facts(checked.schema, {s: frame.height for s, frame in checked.splits.items()})
    spec = catalog.resolve(name, facts, None, Training(share=0.2), None)
    rows = kind.share(train.lazy(), checked.schema, 0.2, 0)
    assert 0 < len(rows) < train.height
    assert np.all(np.diff(rows) > 0)
    codec = spec.task.learn_codec(train[rows].lazy(), checked.schema)
    for frame in checked.splits.values():
        assert codec.encode(frame).examples > 0


def test_a_share_of_a_search_has_all_documents_and_some_queries(tmp_path: Path) -> None:
    kind = catalog.task_named("search")
    checked = kind.check(toy("search", tmp_path), kind.options_type())
    train, documents = checked.splits["train"], checked.schema["documents"]
    rows = kind.share(train.lazy(), checked.schema, 0.5, 0).tolist()
    assert rows[:documents] == list(range(documents))
    assert len(rows) - documents == round(0.5 * (train.height - documents)) > 0


def test_a_share_of_a_table_is_even_over_its_target(tmp_path: Path) -> None:
    kind = catalog.task_named("tabular-classification")
    checked = kind.check(toy("tabular-classification", tmp_path), kind.options_type())
    train = checked.splits["train"]
    rows = kind.share(train.lazy(), checked.schema, 0.25, 3)
    counts = Counter(train[rows][checked.schema["target"]])
    assert max(counts.values()) - min(counts.values()) <= 1
