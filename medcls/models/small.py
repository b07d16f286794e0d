"""Raghu's small networks: convolution, BatchNorm, ReLU and max-pooling by turns, and a global average at the end."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

_LAYERS: dict[str, tuple[int, tuple[int, ...]]] = {
    "cbr_larget": (7, (32, 64, 128, 256, 512)),
    "cbr_largew": (7, (64, 128, 256, 512)),
    "cbr_small": (7, (32, 64, 128, 256)),
    "cbr_tiny": (5, (64, 128, 256, 512)),
}
CBR = tuple(_LAYERS)
_POOLS = 4  # the fifth block of CBR-LargeT has none: own choice


def build_cbr(name: str) -> tuple[nn.Sequential, int]:
    """Returns a randomly initialised network (N, 3, H, W) -> (N, num_features) of any input size, and num_features.

    Its children are block1, block2, … and the global average.

    Args:
        name: One of CBR.

    Source: filters, widths, max-pools between the blocks and the global average: Raghu et al., arXiv 1902.07208, as
    quoted by others. Own choice (docs/decisions/0016): pools of 3 x 3 with stride 2 after the first four blocks,
    padding that keeps the size, no bias beside BatchNorm, He's initialisation.
    """
    size, widths = _LAYERS[name]
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    channels = 3
    for place, width in enumerate(widths, start=1):
        convolution = nn.Conv2d(channels, width, size, padding=size // 2, bias=False)
        nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
        pool = [nn.MaxPool2d(3, stride=2, padding=1)] if place <= _POOLS else []
        layers[f"block{place}"] = nn.Sequential(convolution, nn.BatchNorm2d(width), nn.ReLU(), *pool)
        channels = width
    layers["average"] = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(layers), channels
