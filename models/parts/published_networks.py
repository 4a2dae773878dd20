"""Networks of `transformers`: built from what a configuration says, and their weights from a folder."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from torch import nn

from models.parts.published import Published, Unusable

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

_OTHERS = ("id2label", "label2id", "architectures", "transformers_version")
"""What a configuration says that no backbone needs; thousands of labels, some of them."""


def of_backbone(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a configuration says of a network without a head of its own."""
    return {name: value for name, value in config.items() if name not in _OTHERS}


def configuration(config: Mapping[str, Any] | None) -> "PretrainedConfig":
    """What `transformers` builds the network by. Raises Unusable."""
    # Loading it takes a second, which those who begin with no published weights need not spend.
    from transformers import AutoConfig

    assert config is not None, "a job's architecture was grounded"
    try:
        return AutoConfig.for_model(**config)
    except Exception as error:  # each class of them checks its fields in its own way
        raise Unusable(f"its config.json does not describe a network: {error}") from error


@contextmanager
def quiet() -> Iterator[None]:
    """Within, `transformers` says nothing and shows no progress."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def load(
    auto: type[Any],
    config: "PretrainedConfig",
    published: Published,
    used: Callable[[Any], "PreTrainedModel"] = lambda network: network,
) -> "PreTrainedModel":
    """The part that is `used` of the network that `auto`, an `AutoModel`, finds in a folder.

    Raises Unusable when that has no weights for all of it.
    """
    try:
        with quiet():
            whole, told = auto.from_pretrained(
                published.folder,
                config=config,
                use_safetensors=True,
                local_files_only=True,
                dtype=torch.float32,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise Unusable(f"its weights cannot be read: {error}") from error
    network = used(whole)
    names = network.state_dict().keys()
    missing = sorted(set(told["missing_keys"]) & names)
    other = sorted(name for name, *_ in told["mismatched_keys"] if name in names)
    if missing:
        raise Unusable(f"it has no weights for {len(missing)} parts of its network: {missing[0]}")
    if other:
        raise Unusable(f"{len(other)} of its weights have other shapes: {other[0]}")
    return network


def by_layers(
    network: nn.Module,
) -> tuple[list[nn.Module], list[nn.Module], list[nn.Module]]:
    """What stands before a network's layers, the layers, and what stands behind them."""
    children = list(network.children())
    for place, child in enumerate(children):
        before, layers, after = (
            ([], list(child), []) if isinstance(child, nn.ModuleList) else by_layers(child)
        )
        if layers:
            return [*children[:place], *before], layers, [*after, *children[place + 1 :]]
    return children, [], []


def joined(parts: list[nn.Module]) -> list[nn.Module]:
    return parts if len(parts) == 1 else [nn.ModuleList(parts)]


def drop(config: "PretrainedConfig", share: float) -> None:
    """Have layers drop that share of what they drop any of."""
    for name, value in config.to_dict().items():
        if ("dropout" in name or "pdrop" in name) and isinstance(value, float | int):
            setattr(config, name, share)
