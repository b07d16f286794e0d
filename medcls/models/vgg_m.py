"""VGG-M, the network of Menegola's melanoma studies."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

_MAP = 6  # of the last block, at 224 x 224


def build_vgg_m(*, dropout: float) -> tuple[nn.Sequential, int]:
    """Returns a randomly initialised trunk (N, 3, H, W) -> (N, 4096), and 4096.

    Its children are block1 to block5, the pooling (to the map that 224 x 224 pixels give), fc6 and fc7.

    Args:
        dropout: After fc6 and fc7; 0.5 in the source.

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
    layers["fc6"] = nn.Sequential(nn.Linear(512 * _MAP**2, 4096), nn.ReLU(), nn.Dropout(dropout))
    layers["fc7"] = nn.Sequential(nn.Linear(4096, 4096), nn.ReLU(), nn.Dropout(dropout))
    body = nn.Sequential(layers)
    for layer in body.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, mode="fan_in", nonlinearity="relu")
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return body, 4096


def _normalization() -> nn.LocalResponseNorm:
    # The source adds alpha times the sum over five channels, torch alpha times their mean.
    return nn.LocalResponseNorm(5, alpha=5 * 1e-4, beta=0.75, k=2.0)
