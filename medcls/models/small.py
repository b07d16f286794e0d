"""Small networks trained from random weights: Raghu's, the two of Antony et al. for knees, and VGG-M."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from medcls.models.backbones import Backbone, Blueprint, stage_by_child

_LAYERS: dict[str, tuple[int, tuple[int, ...]]] = {
    "cbr_larget": (7, (32, 64, 128, 256, 512)),
    "cbr_largew": (7, (64, 128, 256, 512)),
    "cbr_small": (7, (32, 64, 128, 256)),
    "cbr_tiny": (5, (64, 128, 256, 512)),
}
CBR = tuple(_LAYERS)
_POOLS = 4  # the fifth block of CBR-LargeT has none: own choice


def build_cbr(plan: Blueprint) -> Backbone:
    """Return a network of Raghu et al. (one of CBR) for images of any size; its stages are block1, block2, ….

    Source: filters, widths, max-pools between the blocks and the global average: Raghu et al., arXiv 1902.07208, as
    quoted by others. Own choice (docs/decisions/0016): pools of 3 x 3 with stride 2 after the first four blocks,
    padding that keeps the size, no bias beside BatchNorm, He's initialisation.
    """
    size, widths = _LAYERS[plan.name]
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    channels = 3
    for place, width in enumerate(widths, start=1):
        convolution = nn.Conv2d(channels, width, size, padding=size // 2, bias=False)
        nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
        pool = [nn.MaxPool2d(3, stride=2, padding=1)] if place <= _POOLS else []
        layers[f"block{place}"] = nn.Sequential(convolution, nn.BatchNorm2d(width), nn.ReLU(), *pool)
        channels = width
    layers["average"] = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return stage_by_child(nn.Sequential(layers), channels, plan)


def build_antony(plan: Blueprint) -> Backbone:
    """Return antony2017_class (for cross-entropy) or antony2017_joint (for classes and the grade at once).

    Its stages are block1 to block4 and fc5. The head follows the task. fc5 takes the whole map of the last block,
    whose size is that of the input: here the map is averaged to what 200 x 300 pixels give, which changes nothing at
    that size and makes any other possible, as torchvision does in a VGG. Dropout is after fc5: 0.2 (class) and 0.3
    (joint) in the source.

    Source: Antony et al., arXiv 1703.09856, as in joseph_models.py of co-authors' marc-gorriz/KneeOA-CNNAttention
    (padding "same", pools without padding, Glorot's initialisation). Own choice: three equal channels in place of one.
    """
    if plan.name == "antony2017_class":
        blocks, pool, final, hidden = [[(32, 11)], [(64, 5)], [(96, 3)], [(128, 3)]], 2, (6, 9), 1024
    else:
        blocks = [[(32, 11)], [(64, 3), (64, 3)], [(96, 3), (96, 3)], [(128, 3), (128, 3)]]
        pool, final, hidden = 3, (5, 8), 512
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    channels = 3
    for place, convolutions in enumerate(blocks, start=1):
        block: list[nn.Module] = []
        for width, size in convolutions:
            stride = 2 if place == 1 else 1
            block += [nn.Conv2d(channels, width, size, stride=stride, padding=size // 2), nn.ReLU()]
            channels = width
        layers[f"block{place}"] = nn.Sequential(*block, nn.MaxPool2d(pool, stride=2))
    layers["average"] = nn.Sequential(nn.AdaptiveAvgPool2d(final), nn.Flatten())
    layers["fc5"] = nn.Sequential(
        nn.Linear(channels * final[0] * final[1], hidden), nn.ReLU(), nn.Dropout(plan.dropout)
    )
    body = nn.Sequential(layers)
    for layer in body.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return stage_by_child(body, hidden, plan)


_MAP = 6  # of the last block, at 224 x 224


def build_vgg_m(plan: Blueprint) -> Backbone:
    """Return VGG-M; its stages are block1 to block5, fc6 and fc7.

    The last map is averaged to the one that 224 x 224 pixels give. Dropout is after fc6 and fc7: 0.5 in the source.

    Source: src/configs/vgg_224.py of the authors' learningtitans/melanoma-transfer (its "VGG-M"). Own choice: He's
    initialisation.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers["block1"] = nn.Sequential(
        nn.Conv2d(3, 96, 7, stride=2), nn.ReLU(), _normalization(), nn.MaxPool2d(3, stride=2)
    )
    layers["block2"] = nn.Sequential(
        nn.Conv2d(96, 256, 5, stride=2, padding=1), nn.ReLU(), _normalization(), nn.MaxPool2d(2)
    )
    layers["block3"] = nn.Sequential(nn.Conv2d(256, 512, 3, padding=1), nn.ReLU())
    layers["block4"] = nn.Sequential(nn.Conv2d(512, 512, 3, padding=1), nn.ReLU())
    layers["block5"] = nn.Sequential(nn.Conv2d(512, 512, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, stride=2))
    layers["average"] = nn.Sequential(nn.AdaptiveAvgPool2d(_MAP), nn.Flatten())
    layers["fc6"] = nn.Sequential(nn.Linear(512 * _MAP**2, 4096), nn.ReLU(), nn.Dropout(plan.dropout))
    layers["fc7"] = nn.Sequential(nn.Linear(4096, 4096), nn.ReLU(), nn.Dropout(plan.dropout))
    body = nn.Sequential(layers)
    for layer in body.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, mode="fan_in", nonlinearity="relu")
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return stage_by_child(body, 4096, plan)


def _normalization() -> nn.LocalResponseNorm:
    # The source adds alpha times the sum over five channels, torch alpha times their mean.
    return nn.LocalResponseNorm(5, alpha=5 * 1e-4, beta=0.75, k=2.0)
