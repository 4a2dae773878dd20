"""Decoders of feature maps, and losses of pixels and objects."""

import pytest
import torch
from torch.nn import functional as F

from models.base import ImageBackbone
from models.parts.dense import IGNORED, AllMLP, Decoder, PixelLoss, UNet
from models.parts.instances import BESIDE_CLASSES, InstanceLoss, centres, expect_few, told
from models.resnet import ResNet
from tests.models import toys
from tests.published import smallest

of_images = pytest.mark.parametrize(
    "architecture",
    [smallest(a) for a in toys.shipped() if issubclass(a, ImageBackbone)],
    ids=[a.option_name() for a in toys.shipped() if issubclass(a, ImageBackbone)],
)


@of_images
@pytest.mark.parametrize("decoder", [UNet(width=4), UNet(width=4, stride=1), AllMLP(width=8)])
def test_every_backbone_can_be_decoded_at_sizes_it_was_not_made_for(
    architecture: ImageBackbone, decoder: Decoder
) -> None:
    backbone = architecture.build(1, (32, 32)).eval()
    head = decoder.build(backbone, 1, 3).eval()
    for size in ((32, 32), (64, 32)):
        images = torch.randn(2, 1, *size)
        with torch.no_grad():
            answers = head(images, backbone.maps(images))
            alone = head(images[:1], backbone.maps(images[:1]))
        assert answers.shape[:2] == (2, 3)
        assert answers.shape[2] * size[1] == answers.shape[3] * size[0]
        assert torch.allclose(answers[:1], alone, atol=1e-4)


def test_a_finer_decoder_answers_for_smaller_places() -> None:
    backbone = ResNet().build(1, (64, 64))
    images = torch.randn(1, 1, 64, 64)
    for stride in (1, 2, 4):
        answers = UNet(width=4, stride=stride).build(backbone, 1, 2)(images, backbone.maps(images))
        assert answers.shape == (1, 2, 64 // stride, 64 // stride)


def test_what_is_unlabelled_teaches_nothing() -> None:
    scores = torch.randn(1, 3, 4, 4, requires_grad=True)
    classes = torch.zeros(1, 4, 4, dtype=torch.uint8)
    classes[0, :2] = IGNORED
    PixelLoss().build([1, 1, 1])(scores, classes).backward()
    assert scores.grad is not None
    assert (scores.grad[0, :, :2] == 0).all()
    assert (scores.grad[0, :, 2:] != 0).any()
    nothing = torch.full((2, 4, 4), IGNORED, dtype=torch.uint8)
    assert PixelLoss().build([1, 1, 1])(torch.randn(2, 3, 4, 4), nothing).isfinite()


def test_the_loss_of_a_batch_is_the_mean_of_its_images() -> None:
    torch.manual_seed(0)
    scores, classes = torch.randn(3, 4, 5, 5), torch.randint(0, 4, (3, 5, 5)).to(torch.uint8)
    classes[0, :4] = IGNORED
    objects = torch.randint(0, 3, (3, 5, 5)).to(torch.int16)
    pixels = PixelLoss(class_weights="balanced").build([9, 1, 4, 2])
    assert torch.allclose(
        pixels(scores, classes),
        torch.stack(
            [pixels(s[None], c[None]) for s, c in zip(scores, classes, strict=True)]
        ).mean(),
    )
    whole = InstanceLoss().build(4)
    outputs = torch.randn(3, 4 + BESIDE_CLASSES, 5, 5)
    each = [
        whole(o[None], c[None], n[None]) for o, c, n in zip(outputs, classes, objects, strict=True)
    ]
    assert torch.allclose(whole(outputs, classes, objects), torch.stack(each).mean())


def test_without_weights_and_dice_it_is_cross_entropy() -> None:
    scores, classes = torch.randn(1, 3, 4, 4), torch.randint(0, 3, (1, 4, 4))
    found = PixelLoss(class_weights="none", dice=0).build([5, 1, 1])(
        scores, classes.to(torch.uint8)
    )
    assert torch.allclose(found, F.cross_entropy(scores, classes))


def test_dice_is_nothing_where_all_is_right_and_one_where_all_is_wrong() -> None:
    classes = torch.zeros(1, 40, 40, dtype=torch.uint8)
    classes[0, :, 20:] = 1
    right = F.one_hot(classes.long(), 2).movedim(-1, 1) * 60.0
    criterion = PixelLoss(dice=1).build([1, 1])
    entropy = PixelLoss(dice=0).build([1, 1])
    for scores, dice in ((right, 0), (-right, 1)):
        assert float(criterion(scores, classes) - entropy(scores, classes)) == pytest.approx(
            dice, abs=1e-2
        )


@pytest.mark.parametrize("weights", ["balanced", "logarithmic"])
def test_a_rare_class_weighs_more(weights: str) -> None:
    criterion = PixelLoss.model_validate({"class_weights": weights}).build([900, 100])
    common, rare = criterion.weights.tolist()
    assert rare > common
    # The mean pixel weighs 1.
    assert 0.9 * common + 0.1 * rare == pytest.approx(1)


def test_only_the_summit_of_a_heap_is_a_centre() -> None:
    objects = torch.zeros(1, 20, 20, dtype=torch.int16)
    objects[0, 2:9, 2:9], objects[0, 2:9, 9:16] = 1, 2
    truth = centres(objects)
    heat = truth.heat.clamp(1e-3, 1 - 1e-3).logit()[:, None]
    scores = torch.stack([(objects == 0), (objects > 0)], 1) * 9.0
    said = told(torch.cat([scores, heat, truth.offsets], 1), 2)
    assert (said[0, 2] > 0.3).nonzero().tolist() == [[5, 5], [5, 12]]
    assert said[0, 0].eq(objects[0] > 0).all()


def test_a_fresh_decoder_takes_hardly_any_pixel_for_a_centre() -> None:
    backbone = ResNet().build(1, (32, 32))
    decoder = UNet(width=4).build(backbone, 1, 2 + BESIDE_CLASSES)
    expect_few(decoder, 2)
    assert decoder.answer.bias is not None
    assert float(decoder.answer.bias.detach()[2].sigmoid()) < 0.05
