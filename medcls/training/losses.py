"""The loss of each task: (logits, targets) -> one number; unknown targets are masked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from medcls.errors import ConfigError

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class LossSettings:
    """What a loss can be told; each takes what it needs.

    Attributes:
        name: "auto" or another of LOSSES, for these outputs.
        class_weights: (2,) binary, (K,) multiclass and joint, (K, 2) multilabel as [negative, positive], or None.
        focal_gamma: Focusing exponent of the focal loss.
        label_smoothing: Of multiclass cross-entropy, [0, 1).
        joint_lambda: Share of the cross-entropy in the joint loss, [0, 1]; the squared error of the grade has the rest.
        scale: Unit of a regression target; residuals are divided by it.
    """

    name: str = "auto"
    class_weights: Tensor | None = None
    focal_gamma: float = 2.0
    label_smoothing: float = 0.0
    joint_lambda: float = 0.5
    scale: float = 1.0

    @property
    def gamma(self) -> float:
        """The focusing exponent; 0 = cross-entropy."""
        return self.focal_gamma * (self.name == "focal")


PLAIN = LossSettings()


def build_loss(output: str, settings: LossSettings = PLAIN) -> Loss:
    """Return the loss of a network's outputs.

    It takes logits (N, L), any floating dtype, and targets (N, T), float32 with NaN for unknown, and returns a
    scalar float32: the mean over known targets (0 with no gradient where none is known). Targets may be soft: shares
    from 0 to 1 for binary and multilabel, (N, K) shares that add up to 1 for multiclass. The loss of a soft target is
    the mean of the losses of its classes, weighted by their shares (cross-entropy is linear in the target).

    Args:
        output: One of models.heads.OUTPUTS.
        settings: Which of its losses, and how.

    Raises:
        ConfigError: these outputs have no such loss.

    Source: focal loss, Lin et al., arXiv 1708.02002, equation 4; CORN, Shi, Cao and Raschka, arXiv 2111.08851,
    equation 7; joint, Antony et al., arXiv 1703.09856 (a weighted ratio of cross-entropy and squared error; the two
    shares add up to one here).
    """
    build = LOSSES.get(output, {}).get(settings.name)
    if build is None:
        raise ConfigError(f"task.loss={settings.name}: task.kind={output} has no such loss")
    return build(settings)


def supervise_deeply(loss: Loss, weights: Sequence[float]) -> Loss:
    """Return sum_k w_k loss(logits_k) of the logits of several heads side by side, (N, len(weights) L).

    The last head is the one that answers after training.

    Source: Lee et al., arXiv 1409.5185 (there with SVMs); weights are our own choice, docs/decisions/0022.
    """

    def total(logits: Tensor, targets: Tensor) -> Tensor:
        parts = logits.chunk(len(weights), dim=1)
        return torch.stack([w * loss(part, targets) for w, part in zip(weights, parts, strict=True)]).sum()

    return total


def _mean(losses: Tensor, weights: Tensor) -> Tensor:
    return _divide((losses * weights).sum(), weights.sum())


def _divide(total: Tensor, weight: Tensor) -> Tensor:
    """Return total / weight; without any weight 0 instead of NaN."""
    return total / torch.where(weight > 0, weight, torch.ones_like(weight))


def _focus(error: Tensor, gamma: float) -> Tensor:
    """Return the focal factor; below gamma = 1 its slope at error = 0 is infinite and would make the gradient NaN."""
    return error.clamp_min(1e-12) ** gamma


def _multiclass_loss(settings: LossSettings) -> Loss:
    class_weights, gamma, label_smoothing = settings.class_weights, settings.gamma, settings.label_smoothing

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        weights = torch.ones_like(logits[0], dtype=torch.float32)
        if class_weights is not None:
            weights = class_weights.to(logits.device)
        if targets.shape[1] > 1:
            return soft(logits.float(), targets, weights)
        known = (~targets[:, 0].isnan()).float()
        index = targets[:, 0].nan_to_num().long()
        # The weights go in here, not on the result: the smoothed part of the loss carries those of all classes.
        losses = F.cross_entropy(
            logits.float(), index, weight=weights, reduction="none", label_smoothing=label_smoothing
        )
        if gamma:
            chance = logits.float().softmax(dim=1).gather(1, index[:, None])[:, 0]
            losses = _focus(1 - chance, gamma) * losses
        return _divide((losses * known).sum(), (known * weights[index]).sum())

    def soft(logits: Tensor, shares: Tensor, weights: Tensor) -> Tensor:
        # Each class of a row counts like a row of its own, with its share.
        each = -weights * logits.log_softmax(dim=1)
        losses = (1 - label_smoothing) * each + label_smoothing * each.mean(dim=1, keepdim=True)
        if gamma:
            losses = _focus(1 - logits.softmax(dim=1), gamma) * losses
        known = shares.nan_to_num()
        return _divide((losses * known).sum(), (known * weights).sum())

    return loss


def _joint_loss(settings: LossSettings) -> Loss:
    """The first K logits are classes, the last one is the grade."""
    classes = _multiclass_loss(LossSettings(class_weights=settings.class_weights))
    grade, share = _value_loss(LossSettings("mse")), settings.joint_lambda

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        return share * classes(logits[:, :-1], targets) + (1 - share) * grade(logits[:, -1:], targets)

    return loss


def _binary_loss(settings: LossSettings) -> Loss:
    class_weights, gamma = settings.class_weights, settings.gamma

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        known = (~targets.isnan()).float()
        flags = targets.nan_to_num()
        if class_weights is None and not gamma:
            return _mean(F.binary_cross_entropy_with_logits(logits.float(), flags, reduction="none"), known)
        # Each side of a target counts with its share; of a hard one that is a single side.
        total, weight = torch.zeros_like(flags), torch.zeros_like(flags)
        for side, share in ((1, flags), (0, 1 - flags)):
            target = torch.full_like(flags, side)
            losses = F.binary_cross_entropy_with_logits(logits.float(), target, reduction="none")
            if gamma:
                losses = _focus((target - logits.float().sigmoid()).abs(), gamma) * losses
            weights = known * share
            if class_weights is not None:
                weights = weights * class_weights.to(losses.device).view(-1, 2)[:, side]
            total, weight = total + weights * losses, weight + weights
        return _divide(total.sum(), weight.sum())

    return loss


def _grade_loss(settings: LossSettings) -> Loss:
    """Logit k learns P(y > k) on the images with y > k - 1 only."""

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        steps = torch.arange(logits.shape[1], device=logits.device)
        # log-sigmoid of the signed logit: torch's own form subtracts two large numbers and loses small losses.
        losses = -F.logsigmoid(torch.where(targets > steps, logits.float(), -logits.float()))
        return _mean(losses, (targets >= steps).float())

    return loss


def _value_loss(settings: LossSettings) -> Loss:
    function, scale = _ERRORS[settings.name], settings.scale

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        known = ~targets.isnan()
        losses = function(logits.float() / scale, targets.nan_to_num() / scale, reduction="none")
        return _mean(losses, known.float())

    return loss


_ERRORS: dict[str, Callable[..., Tensor]] = {
    "auto": F.mse_loss,
    "mse": F.mse_loss,
    "mae": F.l1_loss,
    "huber": F.huber_loss,
}
_CROSS_ENTROPIES = ("auto", "cross_entropy", "focal")
LOSSES: dict[str, dict[str, Callable[[LossSettings], Loss]]] = {
    "binary": dict.fromkeys(_CROSS_ENTROPIES, _binary_loss),
    "multiclass": dict.fromkeys(_CROSS_ENTROPIES, _multiclass_loss),
    "multilabel": dict.fromkeys(_CROSS_ENTROPIES, _binary_loss),
    "ordinal": dict.fromkeys(("auto", "corn"), _grade_loss),
    "joint": dict.fromkeys(("auto", "joint"), _joint_loss),
    "regression": dict.fromkeys(_ERRORS, _value_loss),
}
"""Outputs of a network (models.heads.OUTPUTS) -> value of task.loss -> the function that builds the loss."""


def balanced_weights(output: str, targets: NDArray[np.float64], *, num_classes: int) -> Tensor:
    """Return class weights inversely proportional to the counts in the training rows, with mean 1 over rows.

    Args:
        output: One of models.heads.OUTPUTS whose loss has class weights.
        targets: (N, T) of the training rows; NaN = unknown, not counted.
        num_classes: K.

    Raises:
        ConfigError: outputs without class weights.

    Source: King and Zeng, Logistic regression in rare events data, 2001 (n / (K n_c)).
    """
    if output not in _CLASS_WEIGHTS:
        raise ConfigError(
            f"task.class_weights=balanced: task.kind={output} has none: set task.sampler=balanced instead, or remove it"
        )
    return torch.as_tensor(_CLASS_WEIGHTS[output](targets, num_classes), dtype=torch.float32)


def _balance_classes(targets: NDArray[np.float64], num_classes: int) -> NDArray[np.float64]:
    known = targets[~np.isnan(targets[:, 0]), 0]
    counts = np.bincount(known.astype(np.int64), minlength=num_classes)
    return np.asarray(len(known) / (num_classes * np.maximum(counts, 1)))


def _balance_labels(targets: NDArray[np.float64], num_classes: int) -> NDArray[np.float64]:
    counts = np.stack([np.nansum(targets == side, axis=0) for side in (0, 1)], axis=1)
    return np.asarray(counts.sum(axis=1, keepdims=True) / (2 * np.maximum(counts, 1)))


_CLASS_WEIGHTS = {
    "binary": _balance_classes,
    "multiclass": _balance_classes,
    "joint": _balance_classes,
    "multilabel": _balance_labels,
}


RECONSTRUCTION_LOSSES: dict[str, Loss] = {
    "mse": F.mse_loss,
    "l1": F.l1_loss,
    "ssim": lambda made, target: 1 - compute_ssim(made, target).mean(),
    "half_sse": lambda made, target: 0.5 * (made - target).square().flatten(1).sum(dim=1).mean(),
}
"""(reconstructions, volumes), both (N, C, D, H, W), to a scalar: mean over voxels and volumes; one minus the mean
similarity; half the sum of squared errors over a volume, mean over volumes.

Source: half_sse, code of Hosseini-Asl et al. 2016; ssim, Wang et al. 2004.
"""
_WINDOW = 7


def build_reconstruction_loss(name: str) -> Loss:
    """Return a loss of what `Autoencoder.forward` returns, (N, 2, C, D, H, W): reconstructions and their targets.

    Its second argument, the labels' place in the loop, is not used.

    Raises:
        ConfigError: unknown name.
    """
    if name not in RECONSTRUCTION_LOSSES:
        raise ConfigError(f"loss={name}: expected one of {', '.join(RECONSTRUCTION_LOSSES)}")

    def loss(pairs: Tensor, _: Tensor) -> Tensor:
        made, target = pairs.float().unbind(dim=1)
        return RECONSTRUCTION_LOSSES[name](made, target)

    return loss


def compute_ssim(volumes: Tensor, targets: Tensor) -> Tensor:
    """Return the structural similarity of each channel of each volume, (N, C), at most 1.

    Means over cubic windows of 7 voxels (of smaller maps the largest odd number that fits), windows that reach over
    the border left out; the dynamic range is that of the target's channel.

    Source: Wang et al., IEEE Transactions on Image Processing, 2004, equation 13, with uniform windows.
    """
    low = targets.amin(dim=(2, 3, 4), keepdim=True)
    span = (targets.amax(dim=(2, 3, 4), keepdim=True) - low).clamp(min=1e-6)
    # Scaled to the target's range: squares of large values would lose the variance between them.
    x, y = (volumes - low) / span, (targets - low) / span
    mean_x, mean_y = _window_mean(x), _window_mean(y)
    variance_x = _window_mean(x * x) - mean_x**2
    variance_y = _window_mean(y * y) - mean_y**2
    covariance = _window_mean(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    contrast = (2 * covariance + c2) / (variance_x + variance_y + c2)
    similarity = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1) * contrast
    return similarity.mean(dim=(2, 3, 4))


def _window_mean(maps: Tensor) -> Tensor:
    """Axis by axis; torch's own average pooling has no deterministic backward pass on CUDA."""
    flat = maps.flatten(0, 1).unsqueeze(1)
    for axis in (2, 3, 4):
        length = min(_WINDOW, (maps.shape[axis] - 1) // 2 * 2 + 1)
        shape = [1, 1, 1, 1, 1]
        shape[axis] = length
        flat = F.conv3d(flat, torch.full(shape, 1 / length, device=maps.device, dtype=maps.dtype))
    return flat.view(*maps.shape[:2], *flat.shape[2:])
