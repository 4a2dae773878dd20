"""Feature maps of the image networks: their shapes at all sizes, and their parts."""

import pytest
import torch
from torch import nn

from models.base import ImageBackbone
from models.cnn import CNN
from models.convnext import ConvNeXt
from models.mix_transformer import MixTransformer
from models.parts.layers import BatchNorm2d, ChannelNorm, PathDropout
from models.resnet import ResNet
from models.vit import ViT, plane_of_sinusoids

networks = [
    CNN(),
    CNN(
        channels=[8] * 6, convolutions=2, kernel=5, norm="layer", activation="tanh", pooling="mean"
    ),
    ResNet(width=8),
    ResNet(width=8, depths=[1, 1, 1, 1], bottleneck=True, norm="none", dropout=0.1),
    ViT(width=16, heads=2, layers=1),
    ViT(width=16, heads=2, layers=1, patch=16, stem="patches", positions="learned"),
    ConvNeXt(width=8, depths=[1, 1, 1, 1], path_dropout=0.5),
    MixTransformer(
        widths=[8, 8, 8, 8], depths=[1, 1, 1, 1], heads=[1, 2, 4, 8], reductions=[8, 4, 2, 1]
    ),
]
of_patches = [network for network in networks if not isinstance(network, CNN | ResNet)]


@pytest.mark.parametrize(
    "network", networks[:5] + networks[6:], ids=lambda n: f"{n.name}-{getattr(n, 'norm', '')}"
)
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


@pytest.mark.parametrize("network", of_patches, ids=lambda n: n.name)
def test_images_of_another_size_than_it_was_built_for_have_maps(network: ImageBackbone) -> None:
    backbone = network.build(3, (64, 64)).eval()
    for sides in ((64, 128), (41, 70), (33, 65)):
        for found, stride in zip(
            backbone.maps(torch.randn(2, 3, *sides)), backbone.strides, strict=True
        ):
            assert all(
                side // stride <= cells <= -(-side // stride)
                for side, cells in zip(sides, found.shape[2:], strict=True)
            )
            assert found.isfinite().all()


def test_a_vision_transformer_of_the_papers_size_has_as_many_weights() -> None:
    base = ViT(width=768, layers=12, heads=12, feedforward=3072, patch=16, stem="patches")
    backbone = base.build(3, (224, 224))
    # The paper's base has a head of 1000 classes, learned places of 196 patches and a class token besides.
    rest = 1000 * 769 + 197 * 768 + 768
    assert sum(p.numel() for p in backbone.parameters()) == 86_567_656 - rest


def test_convnext_t_has_as_many_weights_as_in_the_paper() -> None:
    backbone = ConvNeXt(width=96, depths=[3, 3, 9, 3]).build(3, (224, 224))
    assert sum(p.numel() for p in backbone.parameters()) == 28_589_128 - 1000 * 769
    assert list(backbone.strides) == [4, 8, 16, 32]


def test_mit_b0_has_as_many_weights_as_in_the_paper() -> None:
    backbone = MixTransformer(
        widths=[32, 64, 160, 256], depths=[2, 2, 2, 2], heads=[1, 2, 5, 8], reductions=[8, 4, 2, 1]
    ).build(3, (512, 512))
    assert sum(p.numel() for p in backbone.parameters()) == 3_319_392
    assert list(backbone.strides) == [4, 8, 16, 32]


def test_a_vision_transformer_tells_rows_from_columns_by_their_places() -> None:
    places = plane_of_sinusoids(5, 7, 8)[0]
    assert places.shape == (8, 5, 7)
    assert (places[:4] == places[:4, :, :1]).all()
    assert (places[4:] == places[4:, :1]).all()
    assert len({tuple(place) for place in places.flatten(1).T.tolist()}) == 35


def test_learned_places_are_interpolated_to_images_of_another_size() -> None:
    patches = (
        ViT(width=4, heads=1, layers=1, patch=8, stem="patches", positions="learned")
        .build(3, (16, 16))
        .patches
    )
    patches.pixels.weight.data.zero_()
    patches.pixels.bias.data.zero_()
    patches.eval()
    grown = patches(torch.zeros(1, 3, 32, 32))
    assert grown.shape == (1, 4, 4, 4)
    torch.testing.assert_close(grown[..., 0, 0], patches.places[..., 0, 0])
    torch.testing.assert_close(grown.mean((2, 3)), patches.places.mean((2, 3)))


def test_every_place_is_normalised_over_its_channels() -> None:
    found = ChannelNorm(6)(torch.randn(2, 6, 3, 4) * 5 + 2)
    torch.testing.assert_close(found.mean(1), torch.zeros(2, 3, 4), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.var(1, correction=0), torch.ones(2, 3, 4), atol=1e-3, rtol=0)


def test_paths_are_left_out_by_example_and_kept_as_large_in_the_mean() -> None:
    torch.manual_seed(0)
    dropout, added = PathDropout(0.25), torch.ones(2000, 3, 2)
    found = dropout(added)
    assert {len(example.unique()) for example in found} == {1}
    assert found.unique().tolist() == pytest.approx([0, 1 / 0.75])
    assert found.mean() == pytest.approx(1, abs=0.05)
    assert torch.equal(dropout.eval()(added), added)
