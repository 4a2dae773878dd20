"""Which examples are held out."""

from collections import Counter

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.parts.problems import Invalid
from tasks.parts.splits import LINE, SplitOptions, overlap, split


def frame(labels: list[str]) -> pl.DataFrame:
    return pl.DataFrame({"x": range(len(labels)), "y": labels}, schema_overrides={"y": pl.String})


def sizes(splits: dict[str, pl.DataFrame]) -> dict[str, int]:
    return {name: part.height for name, part in splits.items()}


@settings(max_examples=40, deadline=None)
@given(
    labels=st.lists(st.sampled_from("abcdefgh"), min_size=12, max_size=120),
    fraction=st.floats(0.1, 0.5),
    test=st.floats(0.0, 0.4),
    seed=st.integers(0, 99),
)
def test_every_example_is_in_one_split_and_every_class_in_train(
    labels: list[str], fraction: float, test: float, seed: int
) -> None:
    options = SplitOptions(fraction=fraction, test_fraction=test, seed=seed)
    splits = split({"file": frame(labels)}, options, "y")
    rows = [row for part in splits.values() for row in part["x"]]
    assert sorted(rows) == list(range(len(labels)))
    # A class of one, or too few rows to go round, may have to leave the train split.
    if all(count > 3 for count in Counter(labels).values()):
        assert set(splits["train"]["y"]) == set(labels)


def test_shares_of_classes_are_kept_in_every_split() -> None:
    options = SplitOptions(fraction=0.2, test_fraction=0.1)
    splits = split({"file": frame(["a"] * 900 + ["b"] * 100)}, options, "y")
    assert sizes(splits) == {"train": 700, "validation": 200, "test": 100}
    assert splits["validation"]["y"].value_counts(name="n").sort("y")["n"].to_list() == [180, 20]


def test_many_small_classes_still_give_the_fraction_asked_for() -> None:
    labels = [str(number) for number in range(100) for _ in range(2)]
    splits = split({"file": frame(labels)}, SplitOptions(fraction=0.2), "y")
    assert sizes(splits) == {"train": 160, "validation": 40}


def test_classes_of_one_cost_the_large_ones_nothing() -> None:
    labels = [str(number) for number in range(100)] + ["large"] * 20
    splits = split({"file": frame(labels)}, SplitOptions(fraction=0.2), "y")
    assert sizes(splits) == {"train": 116, "validation": 4}


def test_the_seed_decides_which_examples_are_drawn() -> None:
    whole = {"file": frame(["a", "b"] * 50)}
    first, again, other = (split(whole, SplitOptions(seed=seed), "y") for seed in (0, 0, 1))
    assert first["validation"].equals(again["validation"])
    assert not first["validation"].equals(other["validation"])


def test_files_given_as_splits_are_kept_and_validation_is_drawn_from_train() -> None:
    files = {"train": frame(["a", "b"] * 10), "test": frame(["a", "b"])}
    splits = split(files, SplitOptions(), "y")
    assert sizes(splits) == {"train": 16, "validation": 4, "test": 2}
    files["validation"] = frame(["a"])
    assert sizes(split(files, SplitOptions(), "y")) == {"train": 20, "validation": 1, "test": 2}


def test_a_column_can_say_the_split() -> None:
    whole = frame(["a", "b", "a", "b"]).with_columns(
        s=pl.Series(["train", "Train ", "dev", "test"])
    )
    splits = split({"file": whole}, SplitOptions(by="s"), "y")
    assert sizes(splits) == {"train": 2, "validation": 1, "test": 1}
    assert splits["train"].columns == ["x", "y"]


def test_a_word_that_is_no_split_is_named_by_its_line() -> None:
    whole = frame(["a", "b"]).with_columns(
        pl.Series("s", ["train", "nope"]), pl.Series(LINE, [2, 5])
    )
    with pytest.raises(Invalid) as caught:
        split({"file": whole}, SplitOptions(by="s"), "y")
    (found,) = caught.value.problems
    assert (found.loc, found.found) == (("file", "line", 5, "s"), "nope")


def test_a_missing_split_column_lists_the_columns() -> None:
    with pytest.raises(Invalid) as caught:
        split({"file": frame(["a", "b"])}, SplitOptions(by="s"), "y")
    assert caught.value.problems[0].allowed == ["x", "y"]


def test_fractions_must_leave_something_to_train_on() -> None:
    with pytest.raises(Invalid, match="nothing would be left"):
        split({"file": frame(["a"] * 9)}, SplitOptions(fraction=0.5, test_fraction=0.5), None)


def test_one_example_is_too_few() -> None:
    with pytest.raises(Invalid, match="no examples"):
        split({"file": frame(["a"])}, SplitOptions(), None)


def test_duplicates_and_overlap_are_counted() -> None:
    train = pl.DataFrame({"x": [1, 1, 2], "y": ["a", "a", "b"]})
    test = pl.DataFrame({"x": [2, 3], "y": ["c", "c"]})
    found = overlap({"train": train, "test": test}, ["x"])
    assert found == {"duplicates": 1, "overlap": {"train/test": 1}}
    assert overlap({"train": train, "test": test}, ["x", "y"])["overlap"] == {"train/test": 0}
