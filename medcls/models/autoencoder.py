"""3-D convolutional autoencoders for pretraining without labels, trained by level or as a whole.

An autoencoder is a row of levels. A level encodes the maps under it to a code, which, brought down to the next level's
size, are the maps under that one; and it decodes its code back. Encoders have the weights and names of a classifier's
first stages (acnn3d, encoder3d), which takes them by name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from medcls.errors import ConfigError
from medcls.models.backbones import StateDict
from medcls.models.pooling import repeat_to
from medcls.models.volumetric import (
    ENCODER_CHANNELS,
    FILTERS,
    PooledConv,
    build_encoder_block,
    initialize_uniform,
)

CLASSIFIER_OF = {"autoencoder3d_hosseini": "acnn3d", "autoencoder3d": "encoder3d"}
"""Autoencoder -> the classifier whose first stages are its encoder."""

_LEVELS, _ENCODE = "levels.", "encode"


class Level(nn.Module):
    """One level of the modern autoencoder: a residual unit that halves each axis, and one that doubles it.

    Args:
        in_channels: Maps under it.
        out_channels: Maps of its code.
        first: The one at the input, whose decoder ends in a plain convolution: volumes have values of both signs.
    """

    def __init__(self, in_channels: int, out_channels: int, *, first: bool) -> None:
        super().__init__()
        from monai.networks.blocks.convolutions import Convolution, ResidualUnit

        self.encode = build_encoder_block(in_channels, out_channels)
        norm = ("group", {"num_groups": 8})
        width = out_channels if first else in_channels
        unit = ResidualUnit(3, width, in_channels, subunits=1, norm=norm, act="relu", last_conv_only=first)
        double = Convolution(3, out_channels, width, strides=2, norm=norm, act="relu", is_transposed=True)
        self.decoder = nn.Sequential(double, unit)

    def code(self, maps: Tensor) -> Tensor:
        """Return the code (N, C', …) of maps (N, C, D, H, W)."""
        code: Tensor = self.encode(maps)
        return code

    def down(self, code: Tensor) -> Tensor:
        """Return the maps under the next level: the code itself, which is smaller already."""
        return code

    def up(self, maps: Tensor, size: Sequence[int]) -> Tensor:
        """Return a code from the maps under the next level; `size` is that of the maps under this one."""
        return maps

    def decode(self, code: Tensor, size: Sequence[int]) -> Tensor:
        """Return the maps of a size that the code stands for."""
        maps: Tensor = self.decoder(code)
        # Halving has rounded up.
        return maps[:, :, : size[0], : size[1], : size[2]]


class PaperLevel(nn.Module):
    """One of Hosseini-Asl's stacked autoencoders: 3^3 filters, border full and back valid, ReLU after both.

    Args:
        in_channels: Maps under it, whose values are not negative.
        out_channels: Filters.

    Source: code of Hosseini-Asl et al. 2016 (class CAE3d): weights of encoder and decoder are apart; no pooling inside.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.encode = PooledConv(in_channels, out_channels, border="full")
        self.decoder = nn.Conv3d(out_channels, in_channels, 3)
        initialize_uniform(self.decoder)

    def code(self, maps: Tensor) -> Tensor:
        """Return the hidden maps (N, C', D + 2, H + 2, W + 2)."""
        return self.encode.hidden(maps)

    def down(self, code: Tensor) -> Tensor:
        """Return the hidden maps after 2^3 max-pooling."""
        maps: Tensor = self.encode.pool(code)
        return maps

    def up(self, maps: Tensor, size: Sequence[int]) -> Tensor:
        """Return pooled maps with every voxel repeated; own choice, where the paper never goes back through a pool."""
        return repeat_to(maps, [length + 2 for length in size])

    def decode(self, code: Tensor, size: Sequence[int]) -> Tensor:
        """Return the maps of a size that the hidden maps stand for."""
        maps: Tensor = self.decoder(code).relu()
        return maps


class Autoencoder(nn.Module):
    """Stored volumes to their reconstructions.

    Args:
        levels: By the names of the classifier's stages, from input to code.
        normalize: Stored volumes to float: a module that takes (volumes, like=volumes).
        in_channels: C of the volumes.

    Attributes:
        level: See `choose_level`.
        recompute: While training, levels compute their maps twice instead of keeping them.
    """

    def __init__(self, levels: dict[str, Level | PaperLevel], *, normalize: nn.Module, in_channels: int) -> None:
        super().__init__()
        self.levels = nn.ModuleDict(levels)
        self.normalize = normalize
        self.in_channels = in_channels
        self.level: int | None = None
        self.recompute = False

    @property
    def stages(self) -> dict[str, nn.Module]:
        """Level name -> level, from input to code."""
        return dict(self.levels.items())

    def choose_level(self, level: int | None) -> None:
        """Make `forward` reconstruct the maps under one level (0 at the input) by it alone; None = volumes by all."""
        self.level = level

    def forward(self, volumes: Tensor) -> Tensor:
        """Return reconstructions and what they should be, (N, 2, C', *spatial).

        Args:
            volumes: (N, C, D, H, W) as stored; or (N, 2 C, D, H, W), the volumes and their corrupted twins, which the
                network then sees instead. Both are normalised by the intact volume's own numbers.
        """
        clean, seen = volumes[:, : self.in_channels], volumes[:, -self.in_channels :]
        target, maps = self.normalize(clean), self.normalize(seen, like=clean)
        levels = [cast(Level, level) for level in self.levels.values()]
        with torch.no_grad():
            for level in levels[: self.level or 0]:
                target, maps = level.down(level.code(target)), level.down(level.code(maps))
        chosen = levels if self.level is None else [levels[self.level]]
        made = _reconstruct(chosen, maps, recompute=self.recompute and self.training)
        return torch.stack([made, target], dim=1)


def _reconstruct(levels: Sequence[Level], maps: Tensor, *, recompute: bool) -> Tensor:
    """Return what the levels make of the maps (N, C, D, H, W) under the first of them."""
    # Activation checkpointing; no BatchNorm here could count a batch twice.
    run = partial(checkpoint, use_reentrant=False) if recompute else _call
    sizes = []
    for level in levels:
        sizes.append(maps.shape[2:])
        code = run(level.code, maps)
        maps = level.down(code) if level is not levels[-1] else code
    for level, size in zip(reversed(levels), reversed(sizes), strict=True):
        code = maps if level is levels[-1] else level.up(maps, size)
        maps = run(level.decode, code, size)
    return maps


def _call(function: Callable[..., Tensor], *arguments: Any) -> Tensor:
    return function(*arguments)


def build_autoencoder(name: str, *, in_channels: int, normalize: nn.Module) -> Autoencoder:
    """Return a randomly initialised autoencoder.

    Args:
        name: "autoencoder3d" or "autoencoder3d_hosseini".
        in_channels: C of the volumes.
        normalize: Stored volumes to float.

    Raises:
        ConfigError: unknown name.

    Source: autoencoder3d_hosseini, Hosseini-Asl et al. 2016 and their code; autoencoder3d, own choice,
    docs/decisions/0022.
    """
    levels: dict[str, Level | PaperLevel]
    widths: tuple[int, ...]
    if name == "autoencoder3d_hosseini":
        widths = (in_channels, *FILTERS)
        levels = {f"conv{i}": PaperLevel(widths[i - 1], widths[i]) for i in range(1, len(widths))}
    elif name == "autoencoder3d":
        widths = (in_channels, *ENCODER_CHANNELS)
        levels = {f"block{i}": Level(widths[i - 1], widths[i], first=i == 1) for i in range(1, len(widths))}
    else:
        raise ConfigError(f"model.name={name}: expected one of {', '.join(CLASSIFIER_OF)}, or python -m medcls.train")
    return Autoencoder(levels, normalize=normalize, in_channels=in_channels)


def take_encoder(state: StateDict) -> StateDict:
    """Return the encoder's weights in an autoencoder's state, by the names of the classifier's stages."""
    names = {name: name.removeprefix(_LEVELS).split(".", 2) for name in state}
    return {f"{stage}.{rest}": state[name] for name, (stage, part, rest) in names.items() if part == _ENCODE}
