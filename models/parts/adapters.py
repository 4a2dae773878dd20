"""Adapters: a few weights that learn beside those of a network, which stay what they are (by `peft`)."""

import re
import warnings
from abc import abstractmethod
from collections.abc import Mapping
from copy import deepcopy
from fnmatch import fnmatchcase
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from models.parts.options import Option

if TYPE_CHECKING:
    from peft import PeftConfig

_PLAIN = "base_layer."
"""What the names of a layer's own weights begin with, once it has an adapter."""
_PLAINLY: tuple[tuple[str, Any], ...] = (("groups", 1), ("dilation", 1), ("padding_mode", "zeros"))
"""What a convolution is like whose adapter, another convolution, sees the same."""
Pattern = Annotated[str, Field(min_length=1, max_length=200)]


class Unadaptable(ValueError):
    """No layer of a network takes the adapters; the message says why."""


class Adapter(Option):
    """Weights that learn in the place of the backbone's own, and are merged into these for whoever uses the model."""

    where: Literal["all"] | Annotated[list[Pattern], Field(min_length=1, max_length=100)] = Field(
        "all",
        description="The layers that get one: `all` that can have one, or those whose names in the network, or the "
        "ends of these, match one of some patterns, such as `q_proj` or `layers.[0-3].*`.",
    )

    fits: ClassVar[tuple[type[nn.Module], ...]] = (nn.Linear, nn.Conv2d)
    """The kinds of layers that can have one."""

    @abstractmethod
    def config(self, layers: str) -> "PeftConfig":
        """What `peft` makes them by, for layers whose names match an expression."""

    def chosen(self, network: nn.Module) -> list[str]:
        """The names of the layers that get one. Raises Unadaptable when there are none."""
        fitting = [name for name, layer in network.named_modules() if self._fits(layer)]
        if not fitting:
            kinds = " or ".join(kind.__name__ for kind in self.fits)
            raise Unadaptable(f"no layer of its backbone can have an adapter: {kinds} can")
        found = [name for name in fitting if self._is_meant(name)]
        if not found:
            some = ", ".join(fitting[:20])
            raise Unadaptable(f"no layer matches transfer.adapters.where; among those are {some}")
        return found

    def _is_meant(self, name: str) -> bool:
        return self.where == "all" or any(
            fnmatchcase(name, pattern) or fnmatchcase(name, f"*.{pattern}")
            for pattern in self.where
        )

    def _fits(self, layer: nn.Module) -> bool:
        # Others that are made of these may compute with the weights themselves.
        if type(layer) in self.fits:
            return all(
                getattr(layer, name, plain) in (plain, (1,), (1, 1)) for name, plain in _PLAINLY
            )
        return type(layer).__module__ == "transformers.pytorch_utils"  # GPT-2's linear layer


class _LowRank(Adapter):
    """The product of two thin matrices is added to each weight matrix."""

    rank: int = Field(8, ge=1, le=1024, description="How thin the two are.")
    alpha: float = Field(
        16, gt=0, le=10_000, description="The product counts so much, divided by the rank."
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="Share of their inputs left out.")

    fits = (nn.Linear, nn.Conv1d, nn.Conv2d)
    decomposes: ClassVar[bool] = False

    def config(self, layers: str) -> "PeftConfig":
        from peft import LoraConfig

        return LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,  # type: ignore[arg-type]  # any number will do
            lora_dropout=self.dropout,
            use_dora=self.decomposes,
            target_modules=layers,
        )


class LoRA(_LowRank):
    """Low-rank adaptation: a matrix of low rank is added to each weight matrix (Hu et al., 2022)."""

    name: Literal["lora"] = "lora"


class DoRA(_LowRank):
    """LoRA of the directions of each weight matrix, and a length of each that learns by itself (Liu et al., 2024)."""

    name: Literal["dora"] = "dora"
    decomposes = True


class IA3(Adapter):
    """Each output of a layer is multiplied by a number, the fewest weights of all (Liu et al., 2022)."""

    name: Literal["ia3"] = "ia3"

    def config(self, layers: str) -> "PeftConfig":
        from peft import IA3Config

        return IA3Config(target_modules=layers, feedforward_modules=[])


class Adapted:
    """The adapters of a network, whose state is that of the plain one: its own weights, with the adapters merged.

    Loading such a state leaves the weights that have adapters as they are: these are the base's, and what was
    learned is in `weights`.
    """

    def __init__(self, network: nn.Module, adapter: Adapter) -> None:
        """Give a network adapters that change nothing yet. Raises Unadaptable."""
        # Loading it takes seconds, which those who begin with no adapters need not spend.
        from peft import inject_adapter_in_model
        from peft.tuners.tuners_utils import BaseTunerLayer

        names = "|".join(re.escape(name) for name in adapter.chosen(network))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of GPT-2's layers, which it sets itself up for
            inject_adapter_in_model(adapter.config(names), network)
        self._network = network
        self._layers = {
            name: layer
            for name, layer in network.named_modules()
            if isinstance(layer, BaseTunerLayer) and isinstance(layer, nn.Module)
        }
        # Torch writes on the hook, which a method does not let it.
        network.register_state_dict_post_hook(partial(self._merge))
        network.register_load_state_dict_pre_hook(self._keep)

    @property
    def weights(self) -> dict[str, nn.Parameter]:
        """What they learn, by names in the network."""
        return {
            f"{name}.{own}": weight
            for name, layer in self._layers.items()
            for own, weight in layer.named_parameters()
            if not own.startswith(_PLAIN)
        }

    def hold_the_rest(self) -> None:
        """Have no weight of the network learn that is no adapter's."""
        own = {id(weight) for weight in self.weights.values()}
        for weight in self._network.parameters():
            if id(weight) not in own:
                weight.requires_grad_(False)

    def _merge(self, _: nn.Module, state: dict[str, Tensor], prefix: str, __: Any) -> None:
        for name, layer in self._layers.items():
            place = f"{prefix}{name}."
            for key in [key for key in state if key.startswith(place)]:
                del state[key]
            state.update({place + key: tensor for key, tensor in _merged(layer).items()})

    def _keep(self, _: nn.Module, state: dict[str, Tensor], prefix: str, *__: Any) -> None:
        for name, layer in self._layers.items():
            place = f"{prefix}{name}."
            for key in [key for key in state if key.startswith(place)]:
                del state[key]
            state.update({place + key: tensor for key, tensor in layer.state_dict().items()})


def _merged(layer: Any) -> Mapping[str, Tensor]:
    """The weights of a plain layer that computes the same; the layer itself is not touched."""
    merged = deepcopy(layer)
    merged.merge()
    found: Mapping[str, Tensor] = merged.get_base_layer().state_dict()
    return found
