"""Feature maps of the image networks: their shapes at all sizes, and their parts."""

import pytest
import torch
from torch import nn

from models.base import ImageBackbone
from models.cnn import CNN
from models.parts.layers import BatchNorm2d
from models.resnet import ResNet

networks = [
    CNN(),
    CNN(
        channels=[8] * 6, convolutions=2, kernel=5, norm="layer", activation="tanh", pooling="mean"
    ),
    ResNet(width=8),
    ResNet(width=8, depths=[1, 1, 1, 1], bottleneck=True, norm="none", dropout=0.1),
]


@pytest.mark.parametrize("network", networks, ids=lambda n: f"{n.name}-{n.norm}")
@pytest.mark.parametrize("size", [(1, 1), (3, 8), (8, 8), (28, 28), (65, 97)])
def test_maps_have_room_at_every_size(network: ImageBackbone, size: tuple[int, int]) -> None:
    backbone = network.build(1, size)
    maps = backbone(torch.randn(2, 1, *size))
    assert maps.shape[:2] == (2, backbone.width)
    assert min(maps.shape[2:]) >= min(2, *size)
    assert maps.isfinite().all()


def test_resnet_18_has_as_many_weights_as_in_the_paper() -> None:
    backbone = ResNet(width=64, depths=[2, 2, 2, 2]).build(3, (224, 224))
    assert sum(p.numel() for p in backbone.parameters()) == 11_176_512
    assert backbone.width == 512


def test_resnet_50_has_as_many_weights_as_in_the_paper() -> None:
    backbone = ResNet(width=64, depths=[3, 4, 6, 3], bottleneck=True).build(3, (224, 224))
    assert sum(p.numel() for p in backbone.parameters()) == 23_508_032
    assert backbone.width == 2048


def test_one_pixel_of_one_image_is_normalised_by_running_statistics() -> None:
    ours, theirs = BatchNorm2d(3), nn.BatchNorm2d(3).eval()
    ours.running_mean.fill_(0.5)
    theirs.running_mean.fill_(0.5)
    pixel = torch.randn(1, 3, 1, 1)
    assert ours(pixel).equal(theirs(pixel))
    assert ours.running_mean.eq(0.5).all()
