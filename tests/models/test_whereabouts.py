"""What is to be seen, and where."""

import torch

from models.parts.whereabouts import WhatAndWhere


def spot(row: int, column: int) -> torch.Tensor:
    """Maps (1, 2, 4, 8) of which the second is bright in one place."""
    maps = torch.zeros(1, 2, 4, 8)
    maps[0, 1, row, column] = 50
    return maps


def test_means_come_first_and_do_not_tell_where() -> None:
    layer = WhatAndWhere(2)
    assert layer.width == 6
    for place in ((0, 0), (3, 5)):
        assert layer(spot(*place))[0, :2].tolist() == [0, 50 / 32]


def test_places_run_from_minus_one_to_one_across_and_down() -> None:
    layer = WhatAndWhere(2)
    torch.testing.assert_close(layer(spot(0, 0))[0, 2:], torch.tensor([0, -0.875, 0, -0.75]))
    torch.testing.assert_close(layer(spot(3, 5))[0, 2:], torch.tensor([0, 0.375, 0, 0.75]))


def test_maps_of_one_place_have_it_in_the_middle() -> None:
    assert WhatAndWhere(3)(torch.rand(2, 3, 1, 1))[:, 3:].abs().max() == 0
