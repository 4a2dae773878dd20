"""Holes that are made in images and filled in by rule."""

import pytest
import torch

from tasks.parts.holes import filled, hole_mask


@pytest.mark.parametrize("shape", ["rectangles", "ellipses"])
def test_holes_cover_about_as_much_as_asked_for(shape: str) -> None:
    images = torch.zeros(4, 3, 200, 150)
    holes = hole_mask(images, shape, 16, 0.1, torch.Generator().manual_seed(0))
    assert holes.shape == (4, 1, 200, 150)
    assert set(holes.unique().tolist()) == {0, 1}
    assert 0.06 < holes.mean() < 0.11


def test_the_smallest_image_has_a_hole_and_something_else() -> None:
    for seed in range(20):
        random = torch.Generator().manual_seed(seed)
        holes = hole_mask(torch.zeros(1, 1, 8, 8), "rectangles", 24, 0.01, random)
        assert 0 < holes.mean() < 1


@pytest.mark.parametrize(("start", "stop"), [(12, 20), (9, 21)])
def test_what_is_known_stays_and_a_slope_goes_on_in_a_hole(start: int, stop: int) -> None:
    slope = torch.linspace(0, 1, 32).expand(1, 3, 32, 32)
    holes = torch.zeros(1, 1, 32, 32)
    holes[..., start:stop, start:stop] = 1
    found = filled(slope * (1 - holes), holes)
    known = (holes == 0).expand_as(slope)
    torch.testing.assert_close(found[known], slope[known])
    assert (found - slope).abs().max() < 0.015


def test_an_image_that_is_all_hole_is_filled_with_something() -> None:
    assert filled(torch.zeros(1, 3, 9, 14), torch.ones(1, 1, 9, 14)).isfinite().all()
