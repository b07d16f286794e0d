"""The store: decoded pixels in memory-mapped shards, written once, verified by checksum.

store/
  dataset.json       schema version, PreprocessSpec, counts, sha256 of each part; written last = complete
  manifest.parquet   shard-00000.npy …   ledger.parquet
  labels.parquet     splits/<name>.parquet + <name>.json     beside the pixels: new ones decode nothing
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from medcls.data.columns import Codes, Words, compute_checksum, read_codes, read_columns, read_names, read_words
from medcls.data.manifest import column_list
from medcls.data.shards import shard_name
from medcls.disk import check_disk
from medcls.errors import DataError, MissingInputError
from medcls.files import (
    DATASET,
    LABELLING,
    LABELS,
    MANIFEST,
    read_json,
    sha256_file,
    sha256_json,
)
from medcls.identity import PER_IMAGE
from medcls.imaging.preprocess import PreprocessSpec
from medcls.imaging.volume.spec import VolumeSpec, read_spec
from medcls.inputs import check_store_folder

SCHEMA_VERSION = 2
PATIENTS_FROM = (PER_IMAGE, "labels", "pattern", "folders", "headers")
"""What can tell patients apart; per_image: nothing, each image counts as one."""

Rows = NDArray[np.int64] | Sequence[int]


class Store:
    """A complete store, opened for reading.

    It holds where each image lies, 12 bytes an image; other columns of the manifest are read when asked for.

    Args:
        folder: The store's folder.

    Raises:
        MissingInputError: no such folder.
        DataError: incomplete (no dataset.json), of another schema version, or changed.
    """

    def __init__(self, folder: Path) -> None:
        check_store_folder(folder)
        self.folder = folder
        self.info = read_json(folder / DATASET, remedy="restore it, or prepare the store again")
        if self.info.get("schema_version") != SCHEMA_VERSION:
            found = self.info.get("schema_version")
            raise DataError(f"store={folder}: schema_version {found}, expected {SCHEMA_VERSION}; prepare it again")
        absent = [name for name in ("preprocess", "counts", "deidentify", "sha256") if name not in self.info]
        if absent:
            raise DataError(f"{folder / DATASET}: no {', '.join(absent)}; it was changed: prepare the store again")
        if "patients_from" in self.info and self.info["patients_from"] not in PATIENTS_FROM:
            raise DataError(
                f"{folder / DATASET}: patients_from is not one of {', '.join(PATIENTS_FROM)}; it was changed: "
                "prepare the store again"
            )
        self.spec = self._read_spec()
        self._check_parts()
        self._verified: set[str] = set()
        # Before it is parsed: every command reads it.
        self.verify(MANIFEST)
        place = self.read("shard", "row")
        self._shard, self._row = (place.column(name).to_numpy() for name in ("shard", "row"))
        self._maps: dict[int, NDArray[Any]] = {}

    def _read_spec(self) -> PreprocessSpec | VolumeSpec:
        try:
            return read_spec(self.info["preprocess"])
        except DataError as error:
            raise DataError(
                f"{self.folder / DATASET}: {error}: prepare the store again, or use the version of medcls that wrote it"
            ) from error

    def _check_parts(self) -> None:
        """Parts lie in the folder itself, and none of those that are read goes without a checksum."""
        parts = self.info["sha256"]
        named = isinstance(parts, dict) and all(isinstance(sha, str) for sha in parts.values())
        if not named or MANIFEST not in parts or any(name != Path(name).name for name in parts):
            raise DataError(f"{self.folder / DATASET}: sha256 does not list the store's parts: prepare the store again")

    @property
    def sha256(self) -> str:
        """Checksum of dataset.json's content, which holds the checksum of every part."""
        return sha256_json(self.info)

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.folder.resolve().name

    @property
    def patients_from(self) -> str:
        """What told patients apart: per_image (unknown), labels, pattern, folders or headers; "" if not recorded."""
        return str(self.info.get("patients_from", ""))

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, *spatial) of every stored image."""
        return self.spec.shape

    def __len__(self) -> int:
        return len(self._row)

    def __getstate__(self) -> dict[str, Any]:
        """Memory maps are opened again in a worker process instead of being copied into it."""
        return self.__dict__ | {"_maps": {}}

    @property
    def column_names(self) -> list[str]:
        """Of the manifest."""
        return read_names(self.folder / MANIFEST)

    def read(self, *names: str, rows: Rows | None = None, coded: bool = False) -> pa.Table:
        """Return columns of the manifest, read from disk at each call.

        Args:
            names: Of the columns.
            rows: Manifest rows; None = all.
            coded: Strings come as dictionaries: 4 bytes a row, and each different text once.
        """
        table = read_columns(self.folder / MANIFEST, *names, coded=coded)
        return table if rows is None else table.take(pa.array(rows, pa.int64()))

    def column(self, name: str, rows: Rows | None = None) -> list[Any]:
        """Return a column of the manifest as Python values (None where null): for some rows, not for millions."""
        return column_list(self.read(name, rows=rows), name)

    def codes(self, name: str) -> Codes:
        """Return a column of strings that repeat, such as patient_id, coded."""
        return read_codes(self.folder / MANIFEST, name)

    def words(self, name: str) -> Words:
        """Return pixel_sha256 or pixel_dhash as 64-bit words."""
        return read_words(self.folder / MANIFEST, name)

    @functools.cached_property
    def images_checksum(self) -> str:
        """Checksum of the image_ids and their order."""
        return compute_checksum(self.folder / MANIFEST, "image_id")

    def read_labelling(self) -> Mapping[str, Any]:
        """Return labels.json, which says how labels.parquet was read, after checking that both are as written.

        {} if it is missing: version 0.2.0 wrote none, and labels without it are not covered by a checksum.

        Raises:
            DataError: labels.json or labels.parquet has changed.
            MissingInputError: there are no labels.
        """
        path = self.folder / LABELLING
        if not path.is_file():
            return {}
        remedy = "run the data_prep command of the store again, which writes the labels"
        record = read_json(path, remedy=remedy)
        if record.get("labels_sha256") != sha256_file(self.folder / LABELS):
            raise DataError(f"{self.folder / LABELS} has changed since it was written with {LABELLING}: {remedy}")
        return record

    def read_labels(self) -> pa.Table:
        """Return the label columns of labels.parquet, dictionary-coded: one row for each image in the store's order.

        Raises:
            DataError: it has changed, or its rows are not the store's images.
            MissingInputError: there are no labels.
        """
        self.read_labelling()
        path = self.folder / LABELS
        names = [name for name in read_names(path) if name != "image_id"]
        if not self.has_images_of(path):
            raise DataError(f"{path}: its rows are not the store's images: write it again with data_prep")
        return read_columns(path, *names, coded=True)

    def has_images_of(self, path: Path) -> bool:
        """Return whether a parquet file has the store's image_ids in the store's order."""
        return compute_checksum(path, "image_id") == self.images_checksum

    def image(self, index: int) -> NDArray[Any]:
        """Return one stored image, (C, *spatial), read-only view of the memory map."""
        view: NDArray[Any] = self._map(int(self._shard[index]))[self._row[index]]
        return view

    def images(self, indices: NDArray[np.int64]) -> NDArray[Any]:
        """Return stored images, (N, C, *spatial), copied in one go for each shard."""
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
        if path.name not in self.info["sha256"]:
            raise DataError(f"{path} is not a part that {DATASET} lists: prepare the store again")
        try:
            array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            check_disk(path, error)
            raise DataError(f"{path} cannot be read ({error}): prepare the store again") from error
        if array.shape[1:] != self.shape or array.dtype != np.dtype(self.spec.dtype):
            raise DataError(f"{path}: {array.shape[1:]} {array.dtype}, expected {self.shape} {self.spec.dtype}")
        # As a plain array: every index into a memmap object costs its constructor.
        return array.view(np.ndarray)

    def verify(self, *parts: str) -> None:
        """Check the sha256 of parts of the store, once for each.

        Args:
            parts: Names of files; none = every part that dataset.json lists.

        Raises:
            DataError: a part has changed; all changed parts are named.
            MissingInputError: a part is gone.
        """
        chosen = [name for name in parts or self.info["sha256"] if name not in self._verified]
        gone = [name for name in chosen if not (self.folder / name).is_file()]
        if gone:
            raise MissingInputError(
                f"store={self.folder} lacks {', '.join(gone)}: restore them, or remove the folder and prepare it again"
            )
        changed = [name for name in chosen if sha256_file(self.folder / name) != self.info["sha256"].get(name)]
        if changed:
            raise DataError(
                f"store={self.folder}: changed since it was written: {', '.join(changed)}; "
                "restore these files or prepare the store again under another name"
            )
        self._verified.update(chosen)
