"""Corrupt volumes for an autoencoder to restore; the corruption depends only on the sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from medcls.data.dataset import Batch, Position, StoreDataset
from medcls.errors import ConfigError
from medcls.reproducibility import make_generator

KINDS = ("noise", "mask", "inpaint")
_BOX_SHARES = (1 / 6, 1 / 3)


@dataclass(frozen=True, slots=True)
class Corruption:
    """What is done to a stored volume, within the range of its own values.

    Attributes:
        kind: "noise" adds Gaussian noise; "mask" blanks blocks of a grid to the volume's darkest value; "inpaint" fills
            boxes with uniform noise.
        noise_std: Standard deviation, as a share of the volume's range.
        mask_ratio: Share of the blocks that are blanked.
        mask_size: Side of a block, voxels.
        max_boxes: Largest number of boxes; at least one is filled. Their sides are 1/6 to 1/3 of the volume's.

    Raises:
        ConfigError: unknown kind.

    Source: noise, Vincent et al., JMLR 2010; mask, He et al., arXiv 2111.06377 (there without what is blanked);
    inpaint, after Zhou et al., arXiv 1908.06912 (Models Genesis). Numbers are our own choice, docs/decisions/0023.
    """

    kind: str
    noise_std: float = 0.1
    mask_ratio: float = 0.5
    mask_size: int = 8
    max_boxes: int = 5

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError(f"corruption.kind={self.kind}: expected one of {', '.join(KINDS)}")

    def __call__(self, volume: NDArray[Any], generator: np.random.Generator) -> NDArray[Any]:
        """Return the corrupted volume; all channels in the same places.

        Args:
            volume: (C, D, H, W), as stored; it is left as it is.
            generator: Of this sample alone.

        Returns:
            (C, D, H, W), same dtype, no value outside the volume's own range.
        """
        changed = volume.copy()
        low, high = volume.min(), volume.max()
        if self.kind == "noise":
            noise = generator.standard_normal(volume.shape, dtype=np.float32) * self.noise_std
            changed = _fit(volume + noise * (float(high) - float(low)), volume)
        elif self.kind == "mask":
            changed[:, self._choose_blocks(volume.shape[1:], generator)] = low
        else:
            for _ in range(int(generator.integers(1, self.max_boxes, endpoint=True))):
                box = _draw_box(volume.shape[1:], generator)
                noise = generator.random(changed[box].shape, dtype=np.float32)
                changed[box] = _fit(float(low) + noise * (float(high) - float(low)), volume)
        return changed

    def _choose_blocks(self, size: Sequence[int], generator: np.random.Generator) -> NDArray[np.bool_]:
        """(D, H, W), true in the blanked blocks; those at the far ends may be cut off."""
        blocks = [-(-length // self.mask_size) for length in size]
        order = generator.permutation(int(np.prod(blocks)))
        blank = (order < round(self.mask_ratio * order.size)).reshape(blocks)
        for axis, length in enumerate(size):
            blank = blank.repeat(self.mask_size, axis=axis).take(np.arange(length), axis=axis)
        return blank


def _fit(values: NDArray[Any], like: NDArray[Any]) -> NDArray[Any]:
    """Values of a volume's dtype within its range."""
    clipped = np.clip(values, float(like.min()), float(like.max()))
    fitted: NDArray[Any] = (np.rint(clipped) if like.dtype.kind in "iu" else clipped).astype(like.dtype)
    return fitted


def _draw_box(size: Sequence[int], generator: np.random.Generator) -> tuple[slice, ...]:
    places = [slice(None)]
    for length in size:
        smallest, largest = (max(1, round(share * length)) for share in _BOX_SHARES)
        side = int(generator.integers(smallest, largest, endpoint=True))
        start = int(generator.integers(0, length - side, endpoint=True))
        places.append(slice(start, start + side))
    return tuple(places)


class CorruptedDataset(Dataset[Batch]):
    """The volumes of a StoreDataset, each with its corrupted twin behind it: images (N, 2 C, D, H, W).

    Args:
        volumes: Where they come from, cropped and augmented.
        corruption: What is done to them.
        seed: Of it; every draw is a function of (seed, epoch, image_id).
        varies: False draws alike in every epoch, so that validation losses compare.
    """

    def __init__(self, volumes: StoreDataset, corruption: Corruption, *, seed: int, varies: bool = True) -> None:
        self.volumes, self.corruption, self.seed, self.varies = volumes, corruption, seed, varies
        self._image_ids = volumes.store.read("image_id", rows=volumes.rows).column(0)

    def __len__(self) -> int:
        return len(self.volumes)

    def __getitem__(self, position: Position) -> Batch:
        return self.__getitems__([position])

    def __getitems__(self, positions: Sequence[Position]) -> Batch:
        """Return one whole batch."""
        batch = self.volumes.__getitems__(positions)
        twins = [self.corrupt(v, *at) for v, at in zip(batch.images.numpy(), positions, strict=True)]
        return batch._replace(images=torch.cat([batch.images, torch.from_numpy(np.stack(twins))], dim=1))

    def corrupt(self, volume: NDArray[Any], epoch: int, position: int) -> NDArray[Any]:
        """Return the corrupted twin of the volume (C, D, H, W) at a position, as an epoch sees it."""
        image_id = self._image_ids[position].as_py()
        key = (self.seed, epoch) if self.varies else (self.seed, "fixed")
        return self.corruption(volume, make_generator("corruption", *key, image_id))
