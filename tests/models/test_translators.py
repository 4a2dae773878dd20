"""Networks from images to features of every pixel: any size, and what passes through their codes."""

import pytest
import torch

from models.autoencoder import Autoencoder, Bottleneck, cosines
from models.base import ImageTranslator
from models.edsr import EDSR
from models.parts.losses import Charbonnier
from models.unet import UNet

networks = [
    EDSR(width=4, depth=1),
    EDSR(width=4, depth=2, fold=2, scaling=0.1),
    UNet(widths=[4, 4, 8], norm="none"),
    UNet(widths=[4], convolutions=1, fold=4, norm="layer"),
    Autoencoder(code=3, patch=8, width=4),
    Autoencoder(code=200, patch=32, width=4),
]


@pytest.mark.parametrize("network", networks, ids=lambda n: n.model_dump_json())
@pytest.mark.parametrize("size", [(1, 1), (3, 8), (33, 47)])
def test_every_pixel_of_an_image_of_any_size_has_features(
    network: ImageTranslator, size: tuple[int, int]
) -> None:
    backbone = network.build(2).eval()
    features = backbone(torch.randn(2, 2, *size))
    assert features.shape == (2, backbone.width, *size)
    assert features.isfinite().all()


@pytest.mark.parametrize(("channels", "side"), [(1, 8), (3, 8), (3, 16)])
def test_cosines_are_orthogonal_and_of_length_1(channels: int, side: int) -> None:
    waves = cosines(64, channels, side).flatten(1)
    torch.testing.assert_close(waves @ waves.T, torch.eye(64), rtol=0, atol=1e-5)


def test_a_patch_has_no_more_cosines_than_pixels() -> None:
    assert len(cosines(1_000, 3, 8)) == 192


def test_the_first_numbers_of_a_code_are_brightness() -> None:
    first, second, third = cosines(3, 3, 8)
    assert first.std() < 1e-6
    assert all((wave[0] == wave[1]).all() for wave in (second, third))


def test_an_autoencoder_begins_by_keeping_what_is_smooth() -> None:
    backbone = Autoencoder(patch=16).build(3)
    assert isinstance(backbone, Bottleneck)
    slope = torch.linspace(-0.5, 0.5, 32).expand(1, 3, 32, 32)
    again = backbone.synthesis(backbone.analysis(slope))
    assert (again - slope).abs().max() < 0.05
    noise = torch.randn(1, 3, 32, 32)
    assert (backbone.synthesis(backbone.analysis(noise)) - noise).std() > 0.8


def test_all_that_an_autoencoder_knows_passes_through_its_code() -> None:
    backbone = Autoencoder(code=5, patch=16, width=8).build(3)
    assert isinstance(backbone, Bottleneck)
    images = torch.randn(1, 3, 32, 48)
    assert backbone.codes(images).shape == (1, 5, 2, 3)
    backbone.codes = lambda images: torch.zeros(1, 5, 2, 3)  # type: ignore[method-assign]
    assert torch.equal(backbone(images), backbone(images + 1))


def test_a_residual_network_sees_no_farther_than_its_convolutions() -> None:
    backbone = EDSR(width=4, depth=2).build(1).eval()
    image = torch.zeros(1, 1, 32, 32)
    other = image.clone()
    other[..., 16, 16] = 1
    changed = (backbone(other) - backbone(image)).abs().sum(1)[0] > 0
    rows = changed.any(1).nonzero()
    assert (int(rows.min()), int(rows.max())) == (16 - 6, 16 + 6)


def test_charbonnier_is_absolute_for_large_errors_and_smooth_for_none() -> None:
    criterion = Charbonnier(epsilon=1e-3).build()
    nothing = torch.zeros(2, 3, 4, 4)
    assert criterion(nothing + 0.5, nothing) == pytest.approx(0.5, abs=1e-5)
    assert criterion(nothing, nothing) == pytest.approx(1e-3)
