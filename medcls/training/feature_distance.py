"""The distance of an image from the training images, in the network's own features.

Headers tell a mammogram from a knee; they do not tell a photograph of blood cells from one of a mole.

Source: Mahalanobis distance of features, Lee et al., arXiv 1807.03888, here of all classes together, with the principal
components of the training features and one variance for the rest (probabilistic PCA, Tipping and Bishop 1999). Our
choice (docs/decisions/0052): features of length 1, and the threshold as the conformal quantile of validation images.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from torch import Tensor, nn

from medcls.disk import check_disk
from medcls.errors import DataError
from medcls.files import write_bytes

FALSE_ALARMS = 0.01
"""Share of images like those of validation that lie beyond the threshold."""

FAR = 1 + 1e-4
"""Distance in units of the threshold above which an image is far: the one that set it is not, whatever the rounding."""

LEAST_IMAGES = 10
"""Of training and of validation each, for a distance to be fitted."""

_MOST_COMPONENTS = 64
_EXPLAINED = 0.95  # share of the variance that the components hold, if 64 of them can
_KEY = "medcls_feature_distance"
_TENSORS = ("mean", "components", "variances")
_NUMBERS = ("rest", "threshold", "false_alarms")
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class FeatureDistance:
    """The training images of one network as a cloud of features.

    Attributes:
        mean: (F,), of features of length 1.
        components: (Q, F), orthonormal.
        variances: (Q,), of the training images along each component.
        rest: Variance along each of the F - Q other directions.
        threshold: Distance beyond which an image counts as far.
        false_alarms: Expected share of images like those of validation beyond it.
        model_sha256: Of the tensors of the network (model_file.compute_digest).
    """

    mean: Floats
    components: Floats
    variances: Floats
    rest: float
    threshold: float
    false_alarms: float
    model_sha256: str

    def measure(self, features: NDArray[Any]) -> Floats:
        """Return the distance of each row of features (N, F) in units of the threshold, (N,): far is above FAR."""
        centred = _normalize(features) - self.mean
        along = centred @ self.components.T
        outside = np.maximum((centred**2).sum(axis=1) - (along**2).sum(axis=1), 0)
        distances = np.sqrt((along**2 / self.variances).sum(axis=1) + outside / self.rest)
        return np.asarray(distances / self.threshold)


def fit_distance(train: NDArray[Any], val: NDArray[Any], *, model_sha256: str) -> FeatureDistance | None:
    """Return the distance from training images, its threshold frozen on validation images.

    Args:
        train: (N, F) features of training images, unchanged by augmentation.
        val: (M, F) of validation images.
        model_sha256: Of the network that made them.

    Returns:
        None with fewer than LEAST_IMAGES of either, or where the features do not vary.
    """
    if min(len(train), len(val)) < LEAST_IMAGES:
        return None
    rows = _normalize(train)
    mean = rows.mean(axis=0)
    _, lengths, components = np.linalg.svd(rows - mean, full_matrices=False)
    variances = lengths**2 / (len(rows) - 1)
    total = variances.sum()
    if not np.isfinite(total) or total <= 1e-12:
        return None
    held = int(np.searchsorted(np.cumsum(variances), _EXPLAINED * total)) + 1
    held = min(held, _MOST_COMPONENTS, len(variances))
    # Of few images the last components are rounding: a variance of 0 would make every other image infinitely far.
    rest = max(float(total - variances[:held].sum()) / max(1, rows.shape[1] - held), 1e-6 * float(total))
    cloud = FeatureDistance(mean, components[:held], np.maximum(variances[:held], rest), rest, 1.0, 0.0, model_sha256)
    distances = np.sort(cloud.measure(val))
    place = min(math.ceil((1 - FALSE_ALARMS) * (len(val) + 1)), len(val))
    return replace(cloud, threshold=float(distances[place - 1]), false_alarms=1 - place / (len(val) + 1))


def _normalize(features: NDArray[Any]) -> Floats:
    rows = np.asarray(features, dtype=np.float64)
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12))


@contextlib.contextmanager
def tap_features(backbone: nn.Module) -> Iterator[list[Tensor]]:
    """Collect what a backbone returns while logits are computed: (N, F) float32 on the CPU, batch by batch."""
    found: list[Tensor] = []

    def keep(_: nn.Module, __: Any, output: Tensor) -> None:
        found.append(output.detach().float().cpu())

    handle = backbone.register_forward_hook(keep)
    try:
        yield found
    finally:
        handle.remove()


def write_distance(path: Path, distance: FeatureDistance) -> None:
    """Write the file atomically; the same distance gives the same bytes."""
    tensors = {name: getattr(distance, name) for name in _TENSORS}
    numbers = {name: getattr(distance, name) for name in _NUMBERS} | {"model_sha256": distance.model_sha256}
    write_bytes(path, save(tensors, metadata={_KEY: json.dumps(numbers, sort_keys=True)}))


def read_distance(path: Path) -> FeatureDistance:
    """Return what `write_distance` wrote.

    Raises:
        DataError: not such a file, or damaged.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            numbers = json.loads((file.metadata() or {})[_KEY])
            tensors = {name: np.asarray(file.get_tensor(name), np.float64) for name in _TENSORS}
        rest, threshold, false_alarms = (float(numbers[name]) for name in _NUMBERS)
        mean, components, variances = tensors.values()
        sha256 = str(numbers["model_sha256"])
        distance = FeatureDistance(mean, components, variances, rest, threshold, false_alarms, sha256)
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        check_disk(path, error)
        raise DataError(f"{path} is not a file of feature distances, or damaged: train the run again") from error
    sizes = distance.components.shape
    if distance.mean.shape != sizes[1:] or distance.variances.shape != sizes[:1] or not distance.threshold > 0:
        raise DataError(f"{path} is damaged: its tensors do not fit together: train the run again")
    return distance
