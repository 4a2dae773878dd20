"""What in an input speaks for an output."""

from typing import Protocol, runtime_checkable

from torch import Tensor, einsum, nn


@runtime_checkable
class Localising(Protocol):
    """A network that tells where in an input it sees what it answers by."""

    def evidence(self, *inputs: Tensor) -> Tensor:
        """What each place adds to each output (B, K, H, W): the mean over the places is the output (B, K)."""
        ...


def class_activations(head: nn.Linear, maps: Tensor) -> Tensor:
    """What each place of feature maps (B, C, H, W) adds to the K outputs of a head over their mean: (B, K, H, W).

    Class activation maps (Zhou et al., 2016), which Grad-CAM (Selvaraju et al., 2017) equals for such heads but for
    a factor. The bias is a part of every place.
    """
    found: Tensor = einsum("kc,bchw->bkhw", head.weight, maps) + head.bias[:, None, None]
    return found
