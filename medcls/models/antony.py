"""The two networks of Antony et al. for the grade of a knee, trained from random weights on images of 200 x 300."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

ANTONY = ("antony2017_class", "antony2017_joint")


def build_antony(name: str, *, dropout: float) -> tuple[nn.Sequential, int]:
    """Returns a randomly initialised trunk (N, 3, H, W) -> (N, num_features), and num_features.

    Its children are block1 to block4, the pooling, and fc5. The head follows the task. fc5 takes the whole map of the
    last block, whose size is that of the input: here the map is averaged to what 200 x 300 pixels give, which changes
    nothing at that size and makes any other possible, as torchvision does in a VGG.

    Args:
        name: One of ANTONY: "class" for cross-entropy, "joint" for classes and the grade at once.
        dropout: After fc5; 0.2 (class) and 0.3 (joint) in the source.

    Source: Antony et al., arXiv 1703.09856, as in joseph_models.py of co-authors' marc-gorriz/KneeOA-CNNAttention
    (padding "same", pools without padding, Glorot's initialisation). Own choice: three equal channels in place of one.
    """
    if name == "antony2017_class":
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
    layers["fc5"] = nn.Sequential(nn.Linear(channels * final[0] * final[1], hidden), nn.ReLU(), nn.Dropout(dropout))
    body = nn.Sequential(layers)
    for layer in body.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return body, hidden
