"""A short soak: whatever changes, every answer is right. `./run bench soak` is a long one."""

from pathlib import Path

import pytest

from bench._soak_meanings import SHOWS_SECONDS, Meanings
from bench._soak_play import play


@pytest.mark.slow
def test_no_answer_is_wrong_while_models_come_and_go(tmp_path: Path, seed: int) -> None:
    url = f"sqlite:///{tmp_path / 'soak.sqlite'}"
    report = play(tmp_path / "soak", url, apis=1, seconds=10, seed=seed)
    assert not report.violations, str(report)
    assert report.answers["200"] >= 50
    assert set(report.changes) == {"switch", "renew", "replace"}


def test_a_name_means_both_versions_while_it_is_switched_and_the_new_one_after() -> None:
    meanings = Meanings()
    for version, at in ((1, 100.0), (2, 200.0)):
        meanings.begin("m@live", version, at)
        meanings.end("m@live", at + 1)
    shown = 201 + SHOWS_SECONDS
    assert meanings.of("m@live", 150, 151) == {1}
    assert meanings.of("m@live", 150, 200) == {1, 2}
    assert meanings.of("m@live", shown, shown) == {1, 2}
    assert meanings.of("m@live", shown + 0.1, shown + 9) == {2}


def test_a_name_means_nothing_before_it_is_made_and_after_it_is_gone() -> None:
    meanings = Meanings()
    assert meanings.of("m", 1, 2) == {None}
    meanings.begin("m", 1, 100)
    assert meanings.of("m", 90, 99) == {None}
    assert meanings.of("m", 101, 102) == {None, 1}
    meanings.end("m", 110)
    meanings.begin("m", None, 200)
    meanings.end("m", 201)
    assert meanings.of("m", 150, 151) == {1}
    assert meanings.of("m", 202 + SHOWS_SECONDS, 300) == {None}
