"""The ledger: every file of the source exactly once, with what became of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import pyarrow as pa

OK, SKIPPED, QUARANTINED = "ok", "skipped", "quarantined"

_FIELDS: list[tuple[str, pa.DataType]] = [
    ("path", pa.string()),
    ("state", pa.string()),
    ("reason", pa.string()),
    ("detail", pa.string()),
    ("images", pa.int32()),
    ("file_sha256", pa.string()),
    ("refused", pa.list_(pa.string())),
]
_SCHEMA = pa.schema(_FIELDS)


@dataclass(frozen=True, slots=True)
class Entry:
    """What became of one file.

    Attributes:
        path: Relative path, or its pseudonym.
        state: "ok", "skipped" or "quarantined".
        reason: Fixed word; "" for ok.
        detail: What was found and expected; no identifying value.
        images: Images of it in the store (regions count one each).
        file_sha256: Of the file's bytes; "" where it was not read.
        refused: image_id of each image of it that could not be stored.
    """

    path: str
    state: str
    reason: str = ""
    detail: str = ""
    images: int = 0
    file_sha256: str = ""
    refused: tuple[str, ...] = ()

    def add(self, other: Entry) -> Entry:
        """Returns one entry for two regions of a file: quarantined where either is, in any order."""
        worse = other if self.state == OK else self
        return replace(worse, images=self.images + other.images, refused=self.refused + other.refused)


def build_ledger(entries: Sequence[Entry]) -> pa.Table:
    """Returns the ledger's table, sorted by path."""
    return pa.Table.from_pylist([asdict(e) for e in sorted(entries, key=lambda e: e.path)], schema=_SCHEMA)


def count_states(entries: Sequence[Entry]) -> dict[str, int]:
    """Returns how many files ended in each state, reasons apart: {"ok": n, "quarantined: truncated": n, …}."""
    counts = Counter(f"{e.state}: {e.reason}" if e.reason else e.state for e in entries)
    return dict(sorted(counts.items()))
