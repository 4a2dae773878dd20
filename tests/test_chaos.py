"""A short chaos: whatever is hurt, every job ends as if nothing had happened. `./run chaos` is a long one."""

from pathlib import Path

import pytest

from tests.chaos.play import Script, play


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_job_ends_right_whatever_is_hurt(server_folder: Path, seed: int) -> None:
    script = Script(seconds=35, seed=seed, kinds=4)
    folder = server_folder / "chaos"
    folder.mkdir()
    report = play(script, folder)
    assert not report.violations, str(report)
    assert report.strikes.total() >= 5
    assert report.ends.total() >= 5
