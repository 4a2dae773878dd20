"""How close images are, in known numbers."""

import numpy as np
import pytest

from tasks.parts.fidelity import MOST_PSNR, fidelity, luma


def plain(value: int, channels: int = 1, side: int = 16) -> np.ndarray:
    return np.full((channels, side, side), value, np.uint8)


def test_an_image_is_as_close_to_itself_as_can_be() -> None:
    draw = np.random.default_rng(0).integers(0, 256, (3, 20, 30), dtype=np.uint8)
    assert fidelity(draw, draw) == (MOST_PSNR, pytest.approx(1, abs=1e-4))


def test_psnr_is_that_of_the_mean_squared_error_of_all_channels() -> None:
    found = plain(10, 3)
    found[0] += 6
    assert fidelity(found, plain(10, 3)).psnr == pytest.approx(10 * np.log10(255**2 / 12))


def test_structural_similarity_of_plain_images_is_that_of_their_brightness() -> None:
    small = (0.01 * 255) ** 2
    expected = (2 * 100 * 150 + small) / (100**2 + 150**2 + small)
    assert fidelity(plain(100), plain(150)).ssim == pytest.approx(expected, abs=1e-4)


def test_structural_similarity_is_that_of_the_paper() -> None:
    """Each window is computed by the formula, pixel by pixel (Wang et al., 2004, equation 13)."""
    draw = np.random.default_rng(1)
    one = draw.integers(0, 256, (1, 13, 12)).astype(np.uint8)
    other = np.clip(one + draw.normal(0, 40, one.shape), 0, 255).astype(np.uint8)
    along = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2))
    weights = np.outer(along, along) / along.sum() ** 2
    values = []
    for top in range(3):
        for left in range(2):
            x, y = (
                image[0, top : top + 11, left : left + 11].astype(float) for image in (one, other)
            )
            mx, my = (weights * x).sum(), (weights * y).sum()
            vx, vy = (weights * (x - mx) ** 2).sum(), (weights * (y - my) ** 2).sum()
            xy = (weights * (x - mx) * (y - my)).sum()
            c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
            values.append(
                (2 * mx * my + c1) * (2 * xy + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
            )
    assert fidelity(one, other).ssim == pytest.approx(np.mean(values), abs=1e-4)


def test_only_what_a_mask_shows_is_compared() -> None:
    one, other = plain(50, 3, 30), plain(50, 3, 30)
    other[:, :5, :5] = 90
    where = np.ones((30, 30), bool)
    where[:10, :10] = False
    assert fidelity(one, other, ~where).psnr < fidelity(one, other).psnr < MOST_PSNR
    assert fidelity(one, other, where).psnr == MOST_PSNR


def test_images_smaller_than_a_window_are_compared_too() -> None:
    assert fidelity(plain(9, side=3), plain(9, side=3)).ssim == pytest.approx(1, abs=1e-4)


def test_brightness_is_that_of_video() -> None:
    assert luma(plain(255, 3))[0, 0, 0] == pytest.approx(235)
    assert luma(plain(0, 3))[0, 0, 0] == 16
    assert luma(plain(255))[0, 0, 0] == luma(plain(255, 3))[0, 0, 0]
    green = plain(0, 3)
    green[1] = 255
    assert luma(green)[0, 0, 0] == pytest.approx(16 + 128.553)
