"""3-D networks: the classifier of Hosseini-Asl, a modern small one, and MONAI's ResNets."""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn

from medcls.errors import ConfigError
from medcls.models.backbones import Backbone, Blueprint, StateDict, WeightsLayout
from medcls.models.pooling import GlobalAveragePool, MaxPool3d

# MedicalNet's own: blocks, layers, and how a shortcut changes its width (A: zeros, B: a convolution).
_RESNETS: dict[str, tuple[str, list[int], str]] = {
    "resnet10_3d": ("basic", [1, 1, 1, 1], "B"),
    "resnet18_3d": ("basic", [2, 2, 2, 2], "A"),
    "resnet34_3d": ("basic", [3, 4, 6, 3], "A"),
    "resnet50_3d": ("bottleneck", [3, 4, 6, 3], "B"),
}
RESNET_3D = tuple(_RESNETS)
FILTERS = (8, 8, 8)
_FULLY_CONNECTED = (2000, 500)
ENCODER_CHANNELS = (16, 32, 64, 128)
_GROUPS = 8


def initialize_uniform(layer: nn.Conv3d | nn.Linear, *, pool_volume: int = 1) -> None:
    """Draw weights from ±sqrt(6 / (fan_in + fan_out / pool_volume)) and set biases to zero.

    Source: code of Hosseini-Asl et al. 2016 (after Glorot and Bengio 2010).
    """
    window = math.prod(layer.kernel_size) if isinstance(layer, nn.Conv3d) else 1
    fan_out, fan_in = layer.weight.shape[0] * window, layer.weight.shape[1] * window
    bound = math.sqrt(6 / (fan_in + fan_out / pool_volume))
    nn.init.uniform_(layer.weight, -bound, bound)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


class PooledConv(nn.Module):
    """3^3 convolution, 2^3 max-pool, ReLU: a layer of the classifier, and of the autoencoder's encoder.

    Args:
        in_channels: Maps in.
        out_channels: Maps out.
        border: "valid" (the classifier's) or "full" (the encoder's).

    Source: code of Hosseini-Asl et al. 2016, which pools before it adds the bias: the same number.
    """

    def __init__(self, in_channels: int, out_channels: int, *, border: str) -> None:
        super().__init__()
        self.conv = nn.Conv3d(in_channels, out_channels, 3, padding=2 if border == "full" else 0)
        self.pool = MaxPool3d(2)
        initialize_uniform(self.conv, pool_volume=1 if border == "full" else 8)

    def hidden(self, maps: Tensor) -> Tensor:
        """Return the maps before pooling."""
        hidden: Tensor = self.conv(maps).relu()
        return hidden

    def forward(self, maps: Tensor) -> Tensor:
        """Return the pooled maps."""
        # ReLU rises, so it may follow the pool: an eighth of the work and of the memory.
        pooled: Tensor = self.pool(self.conv(maps)).relu()
        return pooled


class _FullyConnected(nn.Module):
    """conv1 to conv3, flattened, then fc1 and fc2 with ReLU."""

    def __init__(self, in_channels: int, num_flat: int, *, all_levels: bool) -> None:
        super().__init__()
        self.all_levels = all_levels
        for i, (before, after) in enumerate(zip((in_channels, *FILTERS), FILTERS, strict=False), start=1):
            self.add_module(f"conv{i}", PooledConv(before, after, border="valid"))
        self.fc1 = nn.Linear(num_flat, _FULLY_CONNECTED[0])
        self.fc2 = nn.Linear(*_FULLY_CONNECTED)
        initialize_uniform(self.fc1)
        initialize_uniform(self.fc2)

    def forward(self, volumes: Tensor) -> Tensor:
        maps = self.get_submodule("conv3")(self.get_submodule("conv2")(self.get_submodule("conv1")(volumes)))
        first = self.fc1(maps.flatten(1)).relu()
        second: Tensor = self.fc2(first).relu()
        return torch.cat([first, second], dim=1) if self.all_levels else second


def build_acnn(plan: Blueprint) -> Backbone:
    """Return acnn3d; the option all_levels makes the features those of both fully connected layers side by side.

    Raises:
        ConfigError: a volume that is too small.

    Source: Hosseini-Asl et al. 2016 (arXiv 1607.00455, 1607.00556) and their code.
    """
    channels, *size = plan.shape
    all_levels = bool(plan.options.get("all_levels"))
    for _ in FILTERS:
        size = [(length - 2) // 2 for length in size]
    if min(size) < 1:
        raise ConfigError(
            f"model.name=acnn3d takes volumes of 22 voxels and more along each axis, these are {plan.shape}"
        )
    body = _FullyConnected(channels, FILTERS[-1] * math.prod(size), all_levels=all_levels)
    stages = {name: [body.get_submodule(name)] for name in ("conv1", "conv2", "conv3", "fc1", "fc2")}
    levels = _FULLY_CONNECTED if all_levels else _FULLY_CONNECTED[-1:]
    layout = WeightsLayout(optional=("fc1.", "fc2."))
    return Backbone(body, num_features=sum(levels), stages=stages, spatial_dims=3, levels=levels, layout=layout)


def build_encoder_block(in_channels: int, out_channels: int) -> nn.Module:
    """Return one level of `encoder3d`: MONAI's residual unit, which halves each axis (rounded up).

    Group normalisation, not batch normalisation: batches of volumes are small, and every volume is normalised by
    itself alike in training and after. Source: own choice, docs/decisions/0022.
    """
    # MONAI takes seconds to import; networks for images do without it.
    from monai.networks.blocks.convolutions import ResidualUnit

    norm = ("group", {"num_groups": _GROUPS})
    unit: nn.Module = ResidualUnit(3, in_channels, out_channels, strides=2, subunits=2, norm=norm, act="relu")
    return unit


class _Pooled(nn.Module):
    """Blocks in a row, then the mean over all voxels."""

    def __init__(self, blocks: OrderedDict[str, nn.Module]) -> None:
        super().__init__()
        for name, block in blocks.items():
            self.add_module(name, block)
        self.names = list(blocks)

    def forward(self, volumes: Tensor) -> Tensor:
        for name in self.names:
            volumes = self.get_submodule(name)(volumes)
        return volumes.mean(dim=(2, 3, 4))


def build_encoder(plan: Blueprint) -> Backbone:
    """Return encoder3d: four blocks that halve each axis, then the mean over all voxels."""
    widths = (plan.shape[0], *ENCODER_CHANNELS)
    blocks = OrderedDict((f"block{i}", build_encoder_block(widths[i - 1], widths[i])) for i in range(1, len(widths)))
    stages = {name: [block] for name, block in blocks.items()}
    return Backbone(_Pooled(blocks), num_features=widths[-1], stages=stages, spatial_dims=3)


class PaddedShortcut(nn.Module):
    """Every second voxel, and zeros for the new channels: a shortcut without parameters ("A").

    MONAI's own cuts the gradient (it takes out.data), as MedicalNet's did.

    Args:
        out_channels: Channels after padding.
        stride: From voxel to voxel.
    """

    def __init__(self, out_channels: int, *, stride: int) -> None:
        super().__init__()
        self.out_channels, self.stride = out_channels, stride

    def forward(self, maps: Tensor) -> Tensor:
        """Return (N, out_channels, D', H', W')."""
        taken = maps[:, :, :: self.stride, :: self.stride, :: self.stride]
        missing = self.out_channels - taken.shape[1]
        return torch.cat([taken, taken.new_zeros(len(taken), missing, *taken.shape[2:])], dim=1)


def build_resnet_3d(plan: Blueprint) -> Backbone:
    """Return one of RESNET_3D, built by MONAI.

    Source: He et al., arXiv 1512.03385, in 3-D as in MedicalNet (Chen et al., arXiv 1904.00625).
    """
    from monai.networks.nets.resnet import ResNet

    block, layers, shortcut = _RESNETS[plan.name]
    body: Any = ResNet(
        block=block,
        layers=layers,
        block_inplanes=[64, 128, 256, 512],
        n_input_channels=plan.shape[0],
        conv1_t_stride=2,
        shortcut_type=shortcut,
        bias_downsample=False,
        feed_forward=False,
    )
    body.maxpool, body.avgpool = MaxPool3d(3, stride=2, padding=1), GlobalAveragePool()
    stages = {"stem": [body.conv1, body.bn1]}
    stages |= {layer: [getattr(body, layer)] for layer in ("layer1", "layer2", "layer3", "layer4")}
    for layer in ("layer2", "layer3", "layer4") if shortcut == "A" else ():
        first = getattr(body, layer)[0]
        first.downsample = PaddedShortcut(first.conv2.out_channels, stride=2)
    num_features = body.layer4[-1].bn2.num_features * (4 if block == "bottleneck" else 1)
    layout = WeightsLayout(convert=strip_medicalnet)
    return Backbone(body, num_features=num_features, stages=stages, spatial_dims=3, layout=layout)


def strip_medicalnet(state: StateDict) -> StateDict:
    """Return the tensors of a MedicalNet file by MONAI's names: without "module." and the layers that segment."""
    names = {name: name.removeprefix("module.") for name in state}
    return {new: state[old] for old, new in names.items() if not new.startswith(("conv_seg.", "fc."))}
