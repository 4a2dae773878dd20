"""Networks over images whose first weights were published: residual, convolutional and transformer ones."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

import torch
from pydantic import Field, ValidationError
from torch import Tensor, nn
from torch.nn import functional as F

from models.base import ImageBackbone, Learner, MapBackbone, Supervised
from models.parts.layers import BatchNorm2d
from models.parts.optimizers import AdamW
from models.parts.options import Plain
from models.parts.pretrained import Pretrained
from models.parts.published import Published, Unusable
from models.parts.published_networks import configuration, load, of_backbone
from models.parts.schedules import Cosine

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

COLOURS = 3
PROBED = 128
"""Side in pixels of the image by which a network is asked how coarse its maps are."""
BRIGHTEST = 255.0
_PREPROCESSOR = "preprocessor_config.json"
Colour = Annotated[list[float], Field(min_length=COLOURS, max_length=COLOURS)]


class Shown(Plain):
    """How a network was shown images when its weights were learned; those of ImageNet, if nothing says it."""

    mean: Colour = Field(
        [123.675, 116.28, 103.53], description="Mean of red, green and blue, from 0 to 255."
    )
    std: Colour = Field(
        [58.395, 57.12, 57.375], description="Deviation of red, green and blue, from 0 to 255."
    )
    side: int = Field(224, ge=1, le=4096, description="Side in pixels of the squares.")


class PretrainedImage(ImageBackbone, Pretrained):
    """A published network over images, such as ResNet, ConvNeXt, Swin, ViT, DINOv2 or SegFormer's."""

    name: Literal["pretrained"] = "pretrained"
    checkpoint: str = Field(
        "microsoft/resnet-18",
        min_length=1,
        max_length=200,
        description="A checkpoint of the Hugging Face Hub, or one that was uploaded, of a network over images.",
    )
    shown: Shown | None = Field(
        None, description="How the checkpoint was shown images; read from it."
    )

    model_types: ClassVar[tuple[str, ...]] = (
        "convnext", "convnextv2", "deit", "dinov2", "dinov2_with_registers", "dinov3_convnext", "dinov3_vit",
        "efficientnet", "mobilenet_v2", "pvt_v2", "regnet", "resnet", "segformer", "swin", "swinv2", "vit",
    )  # fmt: skip

    def grounded(self, published: Published) -> Self:
        found = super().grounded(published)
        config = of_backbone(found.config or {})
        channels = config.get("num_channels", COLOURS)
        if channels != COLOURS:
            raise Unusable(f"it looks at {channels} channels; allowed are the {COLOURS} of colours")
        return found.model_copy(update={"config": config, "shown": read_shown(published)})

    def build(self, channels: int, size: tuple[int, int]) -> MapBackbone:
        return PublishedMaps(configuration(self.config))

    @property
    def returns(self) -> bool:
        return True

    def network_of(self, learner: Learner) -> nn.Module:
        return _maps_of(learner).network

    def begin(self, learner: Learner, published: Published) -> None:
        from transformers import AutoModel

        found = load(AutoModel, configuration(self.config), published, _used)
        _maps_of(learner).network.load_state_dict(found.state_dict())

    def defaults(self, examples: int) -> dict[str, Any]:
        # Behind `Transfer`, the backbone learns at a tenth of this.
        return {
            "optimizer": AdamW(learning_rate=1e-3),
            "schedule": Cosine(warmup=0.1),
            "epochs": max(3, min(20, 30_000 // examples)),
        }


def _maps_of(learner: Learner) -> "PublishedMaps":
    assert isinstance(learner, Supervised)
    assert isinstance(learner.backbone, PublishedMaps)
    return learner.backbone


def read_shown(published: Published) -> Shown:
    """How a checkpoint's images were cut, scaled and normalised, by its preprocessor. Raises Unusable."""
    if not published.has(_PREPROCESSOR):
        return Shown()
    said = published.read(_PREPROCESSOR)
    try:
        # Steps from 0 to 255 become numbers by this factor, which are normalised then.
        factor = said.get("rescale_factor", 1 / BRIGHTEST) if said.get("do_rescale", True) else 1.0
        found: dict[str, Any] = {}
        if said.get("size") or said.get("crop_size"):
            found["side"] = _side(said)
        if not said.get("do_normalize", True):
            found |= {"mean": [0.0] * COLOURS, "std": [1 / factor] * COLOURS}
        elif "image_mean" in said and "image_std" in said:
            found["mean"] = [value / factor for value in said["image_mean"]]
            found["std"] = [value / factor for value in said["image_std"]]
        shown = Shown.model_validate(found)
    except (ValidationError, TypeError, ValueError, ZeroDivisionError, KeyError):
        raise Unusable(f"its {_PREPROCESSOR} does not say how images are shown") from None
    if min(shown.std) <= 0:
        raise Unusable(f"its {_PREPROCESSOR} has a deviation that is not above 0")
    return shown


def _side(said: dict[str, Any]) -> int:
    """The side of what is left of an image when it was resized and cropped."""
    size: Any = said.get("size")
    if said.get("do_center_crop", "crop_size" in said) and said.get("crop_size"):
        size = said["crop_size"]
    if not isinstance(size, dict):
        return int(size[0] if isinstance(size, list) else size)
    names = ("shortest_edge", "height", "width", "longest_edge")
    return int(min(size[name] for name in names if size.get(name)))


def _used(network: Any) -> "PreTrainedModel":
    """The network without what only its own head would need, its norms and places as trainings here rely on them."""
    if any(True for _ in getattr(network, "pooler", nn.Identity()).parameters()):
        network.pooler = None
    if network.config.model_type in ("convnext", "convnextv2"):
        network.layernorm = nn.Identity()  # of what was pooled
    embeddings: Any = getattr(network, "embeddings", None)
    if getattr(embeddings, "mask_token", None) is not None:
        embeddings.mask_token = None
    if isinstance(places := getattr(embeddings, "position_embeddings", None), nn.Parameter):
        # They stay as they were published: on GPUs, their gradient would not come out the same
        # twice where images of another size have them resampled.
        del embeddings.position_embeddings
        embeddings.register_buffer("position_embeddings", places.data)
    for module in list(network.modules()):
        for name, norm in module.named_children():
            if type(norm) is nn.BatchNorm2d:
                module.add_module(name, _own_norm(norm))
    used: PreTrainedModel = network
    return used


def _own_norm(norm: nn.BatchNorm2d) -> BatchNorm2d:
    """The same, which also learns from a single place of a single image."""
    own = BatchNorm2d(norm.num_features, norm.eps, norm.momentum, norm.affine)
    own.load_state_dict(norm.state_dict())
    return own


class PublishedMaps(MapBackbone):
    """A network of `transformers`: of its states, the last of each size."""

    def __init__(self, config: "PretrainedConfig") -> None:
        super().__init__()
        from transformers import AutoModel

        self.network = _used(AutoModel.from_config(config, dtype=torch.float32))
        self._asked: dict[str, bool] = {}
        if config.model_type == "swin":
            _keep_windows(self.network)
            self._asked = {
                "always_partition": True,
                "output_hidden_states_before_downsampling": True,
            }
        elif config.model_type in ("vit", "deit", "swinv2"):
            self._asked = {"interpolate_pos_encoding": True}
        # A transformer of one scale has states of patches, among them one map at most.
        self._patch: int | None = None
        if config.model_type in ("vit", "deit", "dinov2", "dinov2_with_registers", "dinov3_vit"):
            self._patch = config.patch_size
        self._kept: list[int] = []
        self._measure()

    def _measure(self) -> None:
        """Find out which states are the maps, how wide and how coarse they are."""
        if self._patch is not None:
            self.width = self.network.config.hidden_size
            self.widths, self.strides = [self.width], [self._patch]
            return
        was = self.training
        with torch.no_grad():
            states, last = self.eval()._states(torch.zeros(1, COLOURS, PROBED, PROBED))
        self.train(was)
        of_stride = {PROBED // state.shape[-1]: number for number, state in enumerate(states)}
        of_stride.pop(1, None)
        self._kept = list(of_stride.values())
        self.strides = list(of_stride)
        self.widths = [states[number].shape[1] for number in self._kept[:-1]] + [last.shape[1]]
        self.width = self.widths[-1]

    def blocks(self) -> list[nn.Module]:
        found = [part for child in self.network.children() for part in _parts(child)]
        return [part for part in found if any(True for _ in part.parameters())]

    def maps(self, images: Tensor) -> list[Tensor]:
        images = _fitting(images.expand(-1, COLOURS, -1, -1), self.strides[-1], self._patch)
        if self._patch is not None:
            grid = [side // self._patch for side in images.shape[2:]]
            return [_as_map(self.network(images, **self._asked).last_hidden_state, grid)]
        states, last = self._states(images)
        return [*(states[number] for number in self._kept[:-1]), last]

    def _states(self, images: Tensor) -> tuple[Sequence[Tensor], Tensor]:
        """What the network makes of images on its way (B, D, h, w), and in the end (B, width, h, w)."""
        told = self.network(images, output_hidden_states=True, **self._asked)
        states = getattr(told, "reshaped_hidden_states", None) or told.hidden_states
        last = told.last_hidden_state
        return states, last if last.dim() == 4 else _as_map(last, states[-1].shape[2:])


def _as_map(states: Tensor, grid: Sequence[int]) -> Tensor:
    """States (B, T, D) whose last ones are those of patches, to a map (B, D, *grid)."""
    height, width = grid
    patches = states[:, -height * width :].transpose(1, 2)
    return patches.reshape(len(states), -1, height, width)


def _fitting(images: Tensor, stride: int, patch: int | None) -> Tensor:
    """Images (B, C, H, W), stretched until they are whole patches, or until the coarsest map has a place."""
    size = list(images.shape[2:])
    wanted = [max(side, stride) if patch is None else -(-side // patch) * patch for side in size]
    if wanted == size:
        return images
    return F.interpolate(images, wanted, mode="bilinear", align_corners=False)


def _parts(module: nn.Module) -> list[nn.Module]:
    """The members of its list of stages or layers, and what stands beside that; or itself."""
    if isinstance(module, nn.ModuleList):
        return list(module)
    children = list(module.children())
    if any(isinstance(child, nn.ModuleList) for child in children):
        return [part for child in children for part in _parts(child)]
    return [module]


def _keep_windows(network: Any) -> None:
    """Have a Swin transformer move its windows as it did when it was trained, whatever the images' size.

    `transformers` finds out anew for each image, and keeps what it found.
    """
    config = network.config
    side = config.image_size // config.patch_size
    for number, stage in enumerate(network.encoder.layers):
        if side >> number <= config.window_size:
            for layer in stage.blocks:
                layer.shift_size = 0
