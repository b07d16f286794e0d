"""Features of a frozen backbone, computed once and cached for all runs that train heads on them.

A folder holds the features of one network, one preprocessing and one view of one store, by store row:

  key.json       what they follow from; its sha256 is the folder's name
  features.npy   (rows of the store, F) float32, sparse: only rows that some run asked for are filled
  digests.npy    (rows of the store,) uint64: a checksum of each row; 0 = not there

A row counts where its checksum fits, so a process may be killed at any moment (own choice, docs/decisions/0017).
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib.format import open_memmap
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from medcls.data.dataset import Batch, Position
from medcls.disk import describe_unwritten
from medcls.errors import DataError
from medcls.files import TEMPORARY, sha256_json, sync_folder, write_json
from medcls.locks import lock_folder
from medcls.models.classifier import Classifier
from medcls.training.forward import move_images
from medcls.training.precision import autocast
from medcls.training.state import StepRules

FEATURES = "features"
_KEY, _VALUES, _DIGESTS = "key.json", "features.npy", "digests.npy"
# Features of a large store take hours; whoever computes them longer hangs.
_WAIT_SECONDS = 24 * 3600.0
_CHUNK = 1024
# Of one pass: 16 images of up to 512 pixels, 2 volumes of 128. Small, because the last one is filled up.
_MOST_IMAGES, _MOST_PIXELS = 16, 2**22

Rows = NDArray[np.int64]
Features = NDArray[np.float32]
Portion = tuple[Rows, Features]
"""Rows or positions (N,) and their features (N, F)."""


class FeatureCache:
    """The features of one network and view, memory-mapped; every row is checked whenever it is read.

    Args:
        root: Folder of all caches.
        key: Everything the features follow from, as JSON.
        shape: (rows of the store, F).
    """

    def __init__(self, root: Path, key: dict[str, Any], *, shape: tuple[int, int]) -> None:
        self.folder = root / sha256_json(key)
        self._key, self._shape = key, shape
        self._maps: tuple[NDArray[Any], NDArray[Any]] | None = None

    def read(self, rows: Rows) -> Features:
        """Return the features (N, F) of rows that are there.

        Raises:
            DataError: a row is missing, or has changed since it was computed.
        """
        values, digests = self._open()
        chosen: Features = values[rows]
        wrong = rows[digests[rows] != _digest_rows(rows, chosen)]
        if len(wrong):
            raise DataError(
                f"{self.folder / _VALUES}: row {wrong[0]} has changed since it was computed: run the same command "
                "again, which recomputes that row"
            )
        return chosen

    def find_missing(self, rows: Rows) -> tuple[Rows, int]:
        """Return those of `rows` that have to be computed, and how many of them are there but damaged."""
        try:
            values, digests = self._open()
        except FileNotFoundError:
            return rows, 0
        except DataError:
            return rows, len(rows)
        parts = [rows[start : start + _CHUNK] for start in range(0, len(rows), _CHUNK)]
        missing = np.concatenate([part[digests[part] != _digest_rows(part, values[part])] for part in parts])
        return missing, int((digests[missing] != 0).sum())

    def fill(
        self,
        rows: Rows,
        compute: Callable[[Rows], Iterable[Portion]],
        *,
        say: Callable[[str], None] = lambda line: None,
    ) -> tuple[int, int]:
        """Compute what is missing of `rows`, keep it, and return how many rows that was, and how many were damaged.

        Another process that fills the same folder is waited for: it computes what would be computed here.

        Args:
            rows: That have to be there afterwards.
            compute: Rows -> (rows, features) in portions.
            say: Called with a line before waiting, and with one if the file system has no locks.
        """
        with lock_folder(self.folder, wait_seconds=_WAIT_SECONDS, say=say):
            missing, damaged = self.find_missing(rows)
            if len(missing):
                self._create()
                self._write(compute(missing))
        return len(missing), damaged

    def _open(self) -> tuple[NDArray[Any], NDArray[Any]]:
        if self._maps is None:
            paths = self.folder / _VALUES, self.folder / _DIGESTS
            try:
                values, digests = (np.load(path, mmap_mode="r", allow_pickle=False) for path in paths)
            except (ValueError, EOFError) as error:  # an OSError is the disk's: what cannot be read is not made anew
                raise DataError(f"{self.folder} is damaged ({error}): remove it") from error
            if (values.shape, values.dtype) != (self._shape, np.float32) or digests.shape != self._shape[:1]:
                raise DataError(f"{self.folder} is damaged: {values.shape} {values.dtype}: remove it")
            self._maps = values, digests
        return self._maps

    def _create(self) -> None:
        """Make the two files where they are not there, or cannot be read."""
        try:
            self._open()
        except (FileNotFoundError, DataError):
            write_json(self.folder / _KEY, self._key)
            _create_array(self.folder / _VALUES, self._shape, np.float32)
            _create_array(self.folder / _DIGESTS, self._shape[:1], np.uint64)

    def _write(self, portions: Iterable[Portion]) -> None:
        # Written as a file, not through the map: on a full disk a map ends the process without a word.
        starts = [array.offset for array in self._open()]  # type: ignore[attr-defined]
        try:
            with (self.folder / _VALUES).open("r+b") as values, (self.folder / _DIGESTS).open("r+b") as digests:
                for rows, features in portions:
                    _write_rows(values, rows, features, start=starts[0])
                    _write_rows(digests, rows, _digest_rows(rows, features), start=starts[1])
                for file in (values, digests):
                    os.fsync(file.fileno())
        except OSError as error:
            raise describe_unwritten(error, str(self.folder), remedy="free the folder") from error


def _digest_rows(rows: Rows, values: Features) -> NDArray[np.uint64]:
    """Return a checksum of each row's place and bytes: (N,), never 0 (but once in 2^64)."""
    values = np.ascontiguousarray(values, np.float32)
    parts = (hashlib.blake2b(v.data, digest_size=8, key=b"%d" % row) for row, v in zip(rows, values, strict=True))
    return np.frombuffer(b"".join(part.digest() for part in parts), np.uint64)


def _create_array(path: Path, shape: tuple[int, ...], dtype: Any) -> None:
    """A sparse file of zeros: it takes the disk that its written rows take."""
    temporary = path.with_name(f"{TEMPORARY}{path.name}")
    try:
        open_memmap(temporary, mode="w+", dtype=dtype, shape=shape)
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise describe_unwritten(error, str(path)) from error


def _write_rows(file: Any, rows: Rows, values: NDArray[Any], *, start: int) -> None:
    for row, value in zip(rows.tolist(), values, strict=True):
        file.seek(start + row * value.nbytes)
        file.write(value.tobytes())
    file.flush()


class FeatureDataset(Dataset[Batch]):
    """Cached features in place of a store's images: the same rows and targets, at the same positions.

    Args:
        views: Caches; epoch e reads view e % K.
        rows: Manifest rows.
        targets: (N, T) of them.
        clinical: (N, C) of them.
        soft: Targets that batches have in place of `targets`; None = `targets`.
    """

    def __init__(
        self,
        views: Sequence[FeatureCache],
        rows: Rows,
        *,
        targets: Tensor,
        clinical: Tensor,
        soft: Tensor | None = None,
    ) -> None:
        self.views, self.rows, self.targets, self.clinical = views, rows, targets, clinical
        self.soft = targets if soft is None else soft

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, position: Position) -> Batch:
        return self.__getitems__([position])

    def __getitems__(self, positions: Sequence[Position]) -> Batch:
        """Return one whole batch, all of one epoch."""
        epoch = positions[0][0]
        places = np.array([position for _, position in positions], dtype=np.int64)
        features = self.views[epoch % len(self.views)].read(self.rows[places])
        index = torch.from_numpy(places)
        return Batch(torch.from_numpy(features), self.soft[index], index, self.clinical[index])


def list_batches(positions: Sequence[int], *, epoch: int, shape: tuple[int, ...]) -> list[list[Position]]:
    """Return batches of (epoch, position), all of one size: the last position fills the last one up.

    The bits of a row depend on the size of its batch, so that there is one size for images of one shape, whichever rows
    a run asks for and whatever its own batches are.

    Args:
        positions: In a dataset.
        epoch: Whose view is taken.
        shape: (C, *spatial) of the images.
    """
    size = max(1, min(_MOST_IMAGES, _MOST_PIXELS // math.prod(shape[1:])))
    padded = [*positions, *[positions[-1]] * (-len(positions) % size)]
    return [[(epoch, p) for p in padded[i : i + size]] for i in range(0, len(padded), size)]


@torch.inference_mode()
def compute_features(model: Classifier, batches: Iterable[Batch], rules: StepRules) -> Iterator[Portion]:
    """Yield positions (N,) and features (N, F) of batches of images; puts the model into evaluation mode."""
    model.eval()
    for batch in batches:
        with autocast(rules.precision, device=rules.device):
            features = model.backbone(model.normalize(move_images(batch.images, rules)))
        yield batch.positions.numpy(), features.float().cpu().numpy()
