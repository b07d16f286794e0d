"""Reconstruction losses: what an autoencoder made of volumes against what it should have made of them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from medcls.errors import ConfigError
from medcls.training.losses import Loss

RECONSTRUCTION_LOSSES = ("mse", "l1", "ssim", "half_sse")
_WINDOW = 7


def build_reconstruction_loss(name: str) -> Loss:
    """Returns a loss of what `Autoencoder.forward` returns, (N, 2, C, D, H, W): reconstructions and their targets.

    Its second argument, the labels' place in the loop, is not used.

    Args:
        name: "mse" or "l1": mean over voxels and volumes; "ssim": one minus it; "half_sse": half the sum of squared
            errors over a volume, mean over volumes.

    Raises:
        ConfigError: unknown name.

    Source: half_sse, code of Hosseini-Asl et al. 2016; ssim, Wang et al. 2004.
    """
    if name not in RECONSTRUCTION_LOSSES:
        raise ConfigError(f"loss={name}: expected one of {', '.join(RECONSTRUCTION_LOSSES)}")

    def loss(pairs: Tensor, _: Tensor) -> Tensor:
        made, target = pairs.float().unbind(dim=1)
        if name == "l1":
            return F.l1_loss(made, target)
        if name == "ssim":
            return 1 - compute_ssim(made, target).mean()
        if name == "half_sse":
            return 0.5 * (made - target).square().flatten(1).sum(dim=1).mean()
        return F.mse_loss(made, target)

    return loss


def compute_ssim(volumes: Tensor, targets: Tensor) -> Tensor:
    """Returns the structural similarity of each channel of each volume, (N, C), at most 1.

    Means over cubic windows of 7 voxels (of smaller maps the largest odd number that fits), windows that reach over
    the border left out; the dynamic range is that of the target's channel.

    Args:
        volumes: (N, C, D, H, W) float32.
        targets: The same shape.

    Source: Wang et al., IEEE Transactions on Image Processing, 2004, equation 13, with uniform windows.
    """
    span = (targets.amax(dim=(2, 3, 4)) - targets.amin(dim=(2, 3, 4))).clamp(min=1e-6)
    # Scaled to the target's range: squares of large values would lose the variance between them.
    x, y = ((part - _lowest(targets)) / span[..., None, None, None] for part in (volumes, targets))
    mean_x, mean_y = _window_mean(x), _window_mean(y)
    variance_x = _window_mean(x * x) - mean_x**2
    variance_y = _window_mean(y * y) - mean_y**2
    covariance = _window_mean(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    contrast = (2 * covariance + c2) / (variance_x + variance_y + c2)
    similarity = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1) * contrast
    return similarity.mean(dim=(2, 3, 4))


def _lowest(volumes: Tensor) -> Tensor:
    return volumes.amin(dim=(2, 3, 4), keepdim=True)


def _window_mean(maps: Tensor) -> Tensor:
    """Axis by axis; torch's own average pooling has no deterministic backward pass on CUDA."""
    flat = maps.flatten(0, 1).unsqueeze(1)
    for axis in (2, 3, 4):
        length = min(_WINDOW, (maps.shape[axis] - 1) // 2 * 2 + 1)
        shape = [1, 1, 1, 1, 1]
        shape[axis] = length
        flat = F.conv3d(flat, torch.full(shape, 1 / length, device=maps.device, dtype=maps.dtype))
    return flat.view(*maps.shape[:2], *flat.shape[2:])
