"""The store: decoded pixels in memory-mapped shards, written once, verified by checksum.

store/
  dataset.json       schema version, PreprocessSpec, counts, sha256 of each part; written last = complete
  manifest.parquet   shard-00000.npy …   ledger.parquet
  labels.parquet     splits/<name>.parquet + <name>.json     beside the pixels: new ones decode nothing
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import DTypeLike, NDArray

from medcls.data.manifest import column_list, read_table
from medcls.errors import DataError, MissingInputError, WriteError
from medcls.files import DATASET, MANIFEST, TEMPORARY, read_json, sha256_file, sha256_json, sync_folder
from medcls.imaging.preprocess import PreprocessSpec

SCHEMA_VERSION = 1
SHARD_BYTES = 1 << 30


def shard_name(shard: int) -> str:
    """Returns the file name of a shard."""
    return f"shard-{shard:05d}.npy"


class ShardWriter:
    """Writes images of one shape one after another into .npy shards; a shard is renamed when it is whole.

    A context manager: its end completes the last shard, an error leaves that one under its temporary name.

    Args:
        folder: The store.
        shape: (C, H, W) of every image.
        dtype: Of every image.
        shard_bytes: A new shard begins beyond this size.
    """

    def __init__(
        self, folder: Path, *, shape: tuple[int, ...], dtype: DTypeLike, shard_bytes: int = SHARD_BYTES
    ) -> None:
        self.folder, self.shape, self.dtype = folder, shape, np.dtype(dtype)
        self._rows_per_shard = max(1, shard_bytes // (int(np.prod(shape)) * self.dtype.itemsize))
        self._shard, self._row = 0, 0
        self._file: Any = None

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        try:
            if kind is None:
                self.close()
        finally:
            # What is still buffered may meet the same full disk; it is lost anyway.
            with contextlib.suppress(OSError):
                if self._file is not None:
                    self._file.close()

    def append(self, image: NDArray[Any]) -> tuple[int, int]:
        """Writes one image and returns its (shard, row).

        Raises:
            ValueError: another shape or dtype.
            WriteError: no space left.
        """
        if image.shape != self.shape or image.dtype != self.dtype:
            raise ValueError(f"image {image.shape} {image.dtype}: expected {self.shape} {self.dtype}")
        try:
            if self._file is None:
                self._file = self._temporary.open("wb")
                self._write_header()
            self._file.write(np.ascontiguousarray(image).data)
            place = (self._shard, self._row)
            self._row += 1
            if self._row == self._rows_per_shard:
                self._finish_shard()
        except OSError as error:
            raise WriteError(f"cannot write {self.folder}: {error.strerror}; free or change store=") from error
        return place

    def close(self) -> None:
        """Completes the last shard."""
        try:
            self._finish_shard()
        except OSError as error:
            raise WriteError(f"cannot write {self.folder}: {error.strerror}; free or change store=") from error

    @property
    def _temporary(self) -> Path:
        return self.folder / f"{TEMPORARY}{shard_name(self._shard)}"

    def _write_header(self) -> None:
        # numpy pads the header so that the first axis can grow in place: the final count fits the same bytes.
        header = {"shape": (self._row, *self.shape), "fortran_order": False, "descr": self.dtype.str}
        np.lib.format.write_array_header_1_0(self._file, header)

    def _finish_shard(self) -> None:
        if self._file is None:
            return
        self._file.seek(0)
        self._write_header()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._temporary.replace(self.folder / shard_name(self._shard))
        sync_folder(self.folder)
        self._file, self._shard, self._row = None, self._shard + 1, 0


class Store:
    """A complete store, opened for reading.

    Args:
        folder: The store's folder.

    Raises:
        MissingInputError: no such folder.
        DataError: incomplete (no dataset.json), of another schema version, or inconsistent.
    """

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise MissingInputError(f"store={folder} is not there: make it with python -m data_prep … store={folder}")
        if not (folder / DATASET).is_file():
            raise DataError(
                f"store={folder} is incomplete (no {DATASET}): run the same python -m data_prep command again"
            )
        self.folder = folder
        self.info = read_json(folder / DATASET)
        if self.info.get("schema_version") != SCHEMA_VERSION:
            found = self.info.get("schema_version")
            raise DataError(f"store={folder}: schema_version {found}, expected {SCHEMA_VERSION}; prepare it again")
        absent = [name for name in ("preprocess", "counts", "deidentify", "sha256") if name not in self.info]
        if absent:
            raise DataError(f"{folder / DATASET}: no {', '.join(absent)}; it was changed: prepare the store again")
        self.spec = PreprocessSpec.from_json(self.info["preprocess"])
        self.manifest: pa.Table = read_table(folder / MANIFEST)
        self.image_ids: list[str] = column_list(self.manifest, "image_id")
        self.index = {image_id: i for i, image_id in enumerate(self.image_ids)}
        self._shard = self.manifest.column("shard").to_numpy()
        self._row = self.manifest.column("row").to_numpy()
        self._maps: dict[int, NDArray[Any]] = {}

    @property
    def sha256(self) -> str:
        """Checksum of dataset.json's content, which holds the checksum of every part."""
        return sha256_json(self.info)

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.folder.resolve().name

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every stored image."""
        return self.spec.channels, self.spec.height, self.spec.width

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getstate__(self) -> dict[str, Any]:
        """Memory maps are opened again in a worker process instead of being copied into it."""
        return self.__dict__ | {"_maps": {}}

    def column(self, name: str) -> list[Any]:
        """Returns one manifest column as Python values."""
        return column_list(self.manifest, name)

    def image(self, index: int) -> NDArray[Any]:
        """Returns one stored image, (C, H, W), read-only view of the memory map."""
        view: NDArray[Any] = self._map(int(self._shard[index]))[self._row[index]]
        return view

    def images(self, indices: NDArray[np.int64]) -> NDArray[Any]:
        """Returns stored images, (N, C, H, W), copied in one go for each shard."""
        shards, rows = self._shard[indices], self._row[indices]
        first = int(shards[0]) if len(shards) else 0
        if (shards == first).all():
            batch: NDArray[Any] = self._map(first)[rows]
            return batch
        batch = np.empty((len(rows), *self.shape), dtype=self.spec.dtype)
        for shard in np.unique(shards):
            chosen = shards == shard
            batch[chosen] = self._map(int(shard))[rows[chosen]]
        return batch

    def _map(self, shard: int) -> NDArray[Any]:
        if shard not in self._maps:
            self._maps[shard] = self._open(shard)
        return self._maps[shard]

    def _open(self, shard: int) -> NDArray[Any]:
        path = self.folder / shard_name(shard)
        try:
            array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise DataError(f"{path} cannot be read ({error}): prepare the store again") from error
        if array.shape[1:] != self.shape or array.dtype != np.dtype(self.spec.dtype):
            raise DataError(f"{path}: {array.shape[1:]} {array.dtype}, expected {self.shape} {self.spec.dtype}")
        # As a plain array: every index into a memmap object costs its constructor.
        return array.view(np.ndarray)

    def verify(self) -> None:
        """Checks the sha256 of every part that dataset.json lists.

        Raises:
            DataError: a part has changed; all changed parts are named.
            MissingInputError: a part is gone.
        """
        gone = [name for name in self.info["sha256"] if not (self.folder / name).is_file()]
        if gone:
            raise MissingInputError(
                f"store={self.folder} lacks {', '.join(gone)}: restore them, or remove the folder and prepare it again"
            )
        changed = [name for name, sha in self.info["sha256"].items() if sha256_file(self.folder / name) != sha]
        if changed:
            raise DataError(
                f"store={self.folder}: changed since it was written: {', '.join(changed)}; "
                "restore these files or prepare the store again under another name"
            )
