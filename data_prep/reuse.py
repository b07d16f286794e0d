"""Copy unchanged images from an earlier store (reuse=OLD): same file, same labels row, same settings."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

import medcls
from data_prep.manifest_rows import declared_sha256, describe_region
from data_prep.plan import Unit
from medcls.data.manifest import read_table
from medcls.data.shards import shard_name
from medcls.data.store import Store
from medcls.errors import ConfigError, DataError, MissingInputError
from medcls.files import LEDGER, MANIFEST
from medcls.identity import Identity
from medcls.imaging.decode import Spec
from medcls.records import to_json


@dataclass(frozen=True, slots=True)
class Previous:
    """Where an earlier store has an image, the checksums of its files, and what was noted of them."""

    shard: Path
    row: int
    file_sha256: tuple[str, ...]
    notes: dict[str, str]

    def read(self) -> NDArray[Any]:
        """Return the stored pixels, (C, *spatial)."""
        pixels: NDArray[Any] = np.load(self.shard, mmap_mode="r", allow_pickle=False)[self.row]
        return pixels


class Lookup:
    """Rows of a table by the values of one column, without a Python object for each."""

    def __init__(self, column: pa.ChunkedArray[Any]) -> None:
        self._values = column.cast(pa.large_string()).combine_chunks()
        self._order = pc.sort_indices(self._values).to_numpy()

    def find(self, value: str) -> int | None:
        """Return the row that holds `value`, None where there is none."""
        place = bisect_left(self._order, value, key=lambda row: self._values[row].as_py())
        if place == len(self._order) or self._values[self._order[place]].as_py() != value:
            return None
        return int(self._order[place])


class Earlier:
    """A complete store to copy from.

    Args:
        folder: The store; every part is verified.
        spec: Of the new store.
        identity: Of the new store.
        columns: Extra columns of the new store: they are taken from the labels anew.

    Raises:
        ConfigError: it was made with other settings, another key or another version, so nothing could be copied.
        DataError, MissingInputError: it is damaged or not there.
    """

    def __init__(self, folder: Path, *, spec: Spec, identity: Identity, columns: Sequence[str] = ()) -> None:
        try:
            store = Store(folder)
            store.verify()
        except (MissingInputError, DataError) as error:
            raise type(error)(
                f"reuse={folder} is not a complete store: remove reuse=, or name a finished one"
            ) from error
        expected = {
            "version": medcls.__version__,
            "preprocessing": to_json(spec),
            "key": identity.fingerprint,
        }
        found = {
            "version": store.info["medcls"],
            "preprocessing": store.info["preprocess"],
            "key": store.info["deidentify"]["key_fingerprint"],
        }
        different = [name for name in expected if expected[name] != found[name]]
        if different:
            raise ConfigError(f"reuse={folder} was made with another {' and '.join(different)}: remove reuse=")
        self._folder, self._manifest = folder, read_table(folder / MANIFEST)
        self._columns = [n for n in self._manifest.column_names if n not in columns]
        ledger = read_table(folder / LEDGER)
        self._images = Lookup(self._manifest.column("image_id"))
        self._paths = Lookup(ledger.column("path"))
        self._ledger = ledger.select(["file_sha256", "reason", "detail"])

    def find(self, unit: Unit, identity: Identity) -> Previous | None:
        """Return where the image is stored; None where it is not, or the labels file says something else of it."""
        row = self._images.find(identity.name("image", unit.key))
        if row is None or self._cell("declared_sha256", row) != declared_sha256(unit, identity):
            return None
        places = [self._paths.find(identity.name("path", path)) for path in unit.files]
        said = [{"file_sha256": "", "reason": "", "detail": ""} for _ in places]
        for number, place in enumerate(places):
            if place is not None:
                said[number] = self._ledger.slice(place, 1).to_pylist()[0]
        checksums = tuple(str(each["file_sha256"]) for each in said)
        notes = {each["reason"]: each["detail"] for each in said[:1] if each["reason"]}
        shard = self._folder / shard_name(self._cell("shard", row))
        return Previous(shard, self._cell("row", row), checksums, notes)

    def row(self, unit: Unit, identity: Identity) -> dict[str, object]:
        """Return the manifest row of an image that `find` found."""
        place = self._images.find(identity.name("image", unit.key))
        if place is None:
            raise DataError(f"reuse={self._folder} changed while it was being read: run the same command again")
        return {name: self._cell(name, place) for name in self._columns} | describe_region(unit)

    def _cell(self, name: str, row: int) -> Any:
        return self._manifest.column(name)[row].as_py()
