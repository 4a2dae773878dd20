"""What joins an image backbone's maps of every scale into one that is fine and knows the whole image."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

FEWEST = 4
"""Coarser maps are made until a side has no more places than this."""


def block(inputs: int, width: int, stride: int = 1) -> nn.Sequential:
    """Convolution, norm and nonlinearity: (B, inputs, h, w) to (B, width, h / stride, w / stride)."""
    conv = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
    nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
    # Of groups, not of the batch: few images fit a step, and each is to be answered by itself.
    return nn.Sequential(conv, nn.GroupNorm(_groups(width), width), nn.ReLU())


def _groups(width: int) -> int:
    return next(groups for groups in (8, 4, 2, 1) if width % groups == 0)


class TopDown(nn.Module):
    """Maps from coarse to fine, each added to the one above it (Lin et al., 2017), coarser ones made at first."""

    def __init__(
        self, widths: Sequence[int], strides: Sequence[int], finest: int, side: int, width: int
    ) -> None:
        """To a map of `width` channels whose places stand for `finest` pixels, or what comes next to it."""
        super().__init__()
        fit = [n for n, stride in enumerate(strides) if stride >= finest]
        self.first = fit[0] if fit else len(strides) - 1
        used, places = widths[self.first :], side // strides[-1]
        inputs, coarser = widths[-1], []
        while places > FEWEST:
            coarser.append(block(inputs, width, 2))
            inputs, places = width, places // 2
        self.coarser = nn.ModuleList(coarser)
        self.lateral = nn.ModuleList(
            nn.Conv2d(channels, width, 1) for channels in [*used, *[width] * len(coarser)]
        )
        self.smooth = nn.ModuleList(block(width, width) for _ in self.lateral)

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Maps (B, widths[i], h, w), fine to coarse, to one (B, width, h, w) as fine as the finest in use."""
        used = list(maps[self.first :])
        for make in self.coarser:
            used.append(make(used[-1]))
        found: Tensor | None = None
        layers = zip(used, self.lateral, self.smooth, strict=True)
        for features, lateral, smooth in reversed(list(layers)):
            level = lateral(features)
            if found is not None:
                level = level + F.interpolate(found, level.shape[2:], mode="nearest")
            found = smooth(level)
        assert found is not None, "a backbone has a map at least"
        return found
