"""Published networks over images: their maps are those of `transformers`, whatever kind they are of."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from models.base import MapBackbone, Supervised
from models.parts.layers import Normalised
from models.parts.published import Published, Unusable
from models.pretrained_image import PretrainedImage, read_shown
from tasks.parts.images import decode
from tests.models import toys

SCALES = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}
PATCHES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}
WINDOWS = {
    "embed_dim": 8,
    "depths": [2, 2],
    "num_heads": [2, 2],
    "window_size": 4,
    "image_size": 32,
    "patch_size": 4,
}
TINY: dict[str, dict[str, Any]] = {
    "convnext": SCALES,
    "convnextv2": SCALES,
    "deit": {**PATCHES, "intermediate_size": 32},
    "dinov2": {**PATCHES, "mlp_ratio": 2},
    "dinov2_with_registers": {**PATCHES, "mlp_ratio": 2},
    "dinov3_convnext": SCALES,
    "dinov3_vit": {**PATCHES, "intermediate_size": 32, "num_register_tokens": 4},
    "efficientnet": {"width_coefficient": 0.25, "depth_coefficient": 0.1, "hidden_dim": 320},
    "mobilenet_v2": {"depth_multiplier": 0.25},
    "pvt_v2": {**SCALES, "num_attention_heads": [1, 2, 2, 2]},
    "regnet": {**SCALES, "embedding_size": 8, "groups_width": 8},
    "resnet": {**SCALES, "embedding_size": 8},
    "segformer": {**SCALES, "num_attention_heads": [1, 2, 2, 2]},
    "swin": WINDOWS,
    "swinv2": WINDOWS,
    "vit": {**PATCHES, "intermediate_size": 32},
}
every_kind = pytest.mark.parametrize("kind", PretrainedImage.model_types)


def published(kind: str, folder: Path) -> tuple[Published, Any]:
    """A tiny checkpoint of a kind, whose norms have seen images, and its network as `transformers` has it."""
    from transformers import AutoConfig, AutoModel

    torch.manual_seed(3)
    network = AutoModel.from_config(AutoConfig.for_model(kind, **TINY[kind])).eval()
    for name, buffer in network.named_buffers():
        if "running" in name:
            buffer.uniform_(0.5, 1.5)
    network.save_pretrained(folder)
    return Published(folder), network


def begun(found: Published) -> MapBackbone:
    """A network of other weights, which then takes over those of the checkpoint."""
    architecture = PretrainedImage().grounded(found)
    learner = toys.build(architecture)
    architecture.begin(learner, found)
    assert isinstance(learner, Supervised)
    backbone = learner.backbone.eval()
    assert isinstance(backbone, MapBackbone)
    return backbone


@every_kind
@torch.no_grad()
def test_its_last_map_is_the_last_state_of_the_published_network(kind: str, tmp_path: Path) -> None:
    found, network = published(kind, tmp_path)
    backbone, images = begun(found), torch.randn(2, 3, 32, 32)
    last, maps = network(images).last_hidden_state, backbone.maps(images)
    if last.dim() == 3:  # what is of the whole image stands before its patches
        side = 32 // backbone.strides[-1]
        last = last[:, -side * side :].transpose(1, 2).unflatten(2, (side, side))
    torch.testing.assert_close(maps[-1], last, rtol=1e-5, atol=1e-5)
    assert [m.shape[1] for m in maps] == list(backbone.widths)


@every_kind
def test_images_of_any_size_have_maps_and_every_weight_learns_from_them(
    kind: str, tmp_path: Path
) -> None:
    config = {"model_type": kind, **TINY[kind]}
    backbone = PretrainedImage(config=config).build(3, (64, 64))
    held = [weight for block in backbone.blocks() for weight in block.parameters()]
    assert {id(w) for w in held} == {id(w) for w in backbone.parameters()}
    assert len(held) == len({id(w) for w in held})
    for sides in ((64, 96), (41, 70), (8, 8)):
        maps = backbone.maps(torch.randn(2, 3, *sides))
        assert all(found.isfinite().all() and min(found.shape) > 0 for found in maps)
    found = backbone.maps(torch.randn(2, 3, 64, 96))
    strides = zip(found, backbone.strides, strict=True)
    assert all(m.shape[2:] == (64 // stride, 96 // stride) for m, stride in strides)
    sum(m.square().mean() for m in found).backward()
    assert all(weight.grad is not None for weight in backbone.parameters())


@pytest.mark.parametrize("kind", ["swin", "vit"])
@torch.no_grad()
def test_an_image_is_answered_alike_whatever_size_the_one_before_had(kind: str) -> None:
    backbone = PretrainedImage(config={"model_type": kind, **TINY[kind]}).build(3, (32, 32)).eval()
    image = torch.randn(1, 3, 64, 64)
    first = backbone(image)
    backbone(torch.randn(1, 3, 12, 10))
    assert torch.equal(backbone(image), first)


def test_grey_images_are_looked_at_as_if_they_had_colours() -> None:
    config = {"model_type": "resnet", **TINY["resnet"]}
    backbone, grey = (
        PretrainedImage(config=config).build(1, (32, 32)).eval(),
        torch.rand(1, 1, 32, 32),
    )
    assert torch.equal(backbone(grey), backbone(grey.repeat(1, 3, 1, 1)))


def test_a_checkpoint_that_lacks_weights_or_has_others_is_of_no_use(tmp_path: Path) -> None:
    found, _ = published("resnet", tmp_path)
    file = tmp_path / "model.safetensors"
    whole = load_file(file)
    name = next(name for name in whole if name.endswith("convolution.weight"))
    save_file({k: v for k, v in whole.items() if k != name}, file, {"format": "pt"})
    with pytest.raises(Unusable, match="no weights for 1 parts"):
        begun(found)
    save_file({**whole, name: torch.zeros(2, 2)}, file, {"format": "pt"})
    with pytest.raises(Unusable, match="other shapes"):
        begun(found)
    file.write_bytes(b"no weights")
    with pytest.raises(Unusable, match="cannot be read"):
        begun(found)


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"model_type": "timm_wrapper"}, "of kind timm_wrapper"),
        ({"model_type": "resnet", "num_channels": 1}, "1 channels"),
    ],
)
def test_what_is_no_network_over_colours_is_refused(
    config: dict[str, Any], why: str, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(Unusable, match=why):
        PretrainedImage().grounded(Published(tmp_path))


@pytest.mark.parametrize(
    ("said", "side"),
    [
        ({"size": 256}, 256),
        ({"size": {"height": 384, "width": 384}}, 384),
        ({"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}}, 224),
        ({"size": {"shortest_edge": 256}, "crop_size": 224, "do_center_crop": False}, 256),
        ({}, 224),
    ],
)
def test_the_side_is_that_of_what_the_preprocessor_leaves(
    said: dict[str, Any], side: int, tmp_path: Path
) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(said))
    assert read_shown(Published(tmp_path)).side == side


@pytest.mark.parametrize(
    "said", [{"size": "large"}, {"image_mean": [0.5], "image_std": [0.5]}, {"size": {}, "crop_size": []},
             {"image_mean": [0, 0, 0], "image_std": [0, 1, 1]}, {"size": {"pixels": 5}}]
)  # fmt: skip
def test_a_preprocessor_that_says_nonsense_is_of_no_use(said: Any, tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(said))
    if said == {"size": {}, "crop_size": []}:
        assert read_shown(Published(tmp_path)).side == 224
        return
    with pytest.raises(Unusable):
        read_shown(Published(tmp_path))


@pytest.mark.parametrize("said", [{}, {"rescale_factor": 1 / 127.5}, {"do_normalize": False}])
def test_pixels_are_normalised_as_the_published_preprocessor_does(
    said: dict[str, Any], tmp_path: Path
) -> None:
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    means = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.25, 0.5]}
    processor = ViTImageProcessorPil(size={"height": 16, "width": 16}, **means, **said)
    processor.save_pretrained(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file := io.BytesIO(), "png")
    shown = read_shown(Published(tmp_path))
    theirs = processor(Image.fromarray(pixels), return_tensors="pt")["pixel_values"][0]
    ours = torch.from_numpy(decode(file.getvalue(), shown.side, 3).copy())
    torch.testing.assert_close(
        Normalised(shown.mean, shown.std)(ours), theirs, rtol=1e-4, atol=1e-4
    )
