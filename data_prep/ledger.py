"""The ledger: one row per file of the source, with its outcome (ok, skipped, quarantined) and the reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from medcls.errors import ImageRefusedError

OK, SKIPPED, QUARANTINED = "ok", "skipped", "quarantined"

_FIELDS: list[tuple[str, pa.DataType]] = [
    ("path", pa.string()),
    ("state", pa.string()),
    ("reason", pa.string()),
    ("detail", pa.string()),
    ("images", pa.int32()),
    ("file_sha256", pa.string()),
]
ENTRIES = pa.schema([*_FIELDS, ("refused", pa.string())])
"""One row a file and image, as shards write them."""

LEDGER = pa.schema([*_FIELDS, ("refused", pa.list_(pa.string()))])
"""One row a file."""

LEFT_OUT = pa.schema([("path", pa.string()), ("reason", pa.string()), ("detail", pa.string())])
"""Files that no image is planned of, by their real paths."""

_TEXTS: list[tuple[str, pa.DataType]] = [(n, pa.string()) for n in ("label", "reason", "detail", "image_id")]
LOST = pa.schema([("number", pa.int64()), *_TEXTS])
"""Images that were refused before decoding: line (0 without one), label (null if unknown), and why."""


@dataclass(frozen=True, slots=True)
class Entry:
    """What became of one file on behalf of one image.

    Attributes:
        path: Relative path, or its pseudonym.
        state: "ok", "skipped" or "quarantined".
        reason: Fixed word; of ok what is notable about the file (corrupt_stream, first_picture …), else "".
        detail: What was found and expected; no identifying value.
        images: Images of it in the store; of a volume's files the first counts it.
        file_sha256: Of the file's bytes; "" where it was not read.
        refused: image_id of the image that could not be stored; None where it is stored.
    """

    path: str
    state: str
    reason: str = ""
    detail: str = ""
    images: int = 0
    file_sha256: str = ""
    refused: str | None = None


def describe_refusal(number: int, path: str, reason: str, detail: str) -> str:
    """Return "row 3 truncated: …", or "a.png truncated: …" without a labels file; a path may hold a name."""
    if number:
        path = f"row {number}"
    return f"{path} {ImageRefusedError(reason, detail)}"


def build_entries(entries: Sequence[Entry]) -> pa.Table:
    """Return the entries as a table, in their order."""
    return pa.Table.from_pylist([asdict(entry) for entry in entries], schema=ENTRIES)


def build_ledger(entries: pa.Table) -> pa.Table:
    """Return one row a path, sorted by path; a file is quarantined where any image of it is.

    Args:
        entries: Table of ENTRIES; a file with several regions has several rows.
    """
    if not entries.num_rows:
        return LEDGER.empty_table()
    good = pc.cast(pc.not_equal(entries.column("state"), QUARANTINED), pa.int8())
    keys = entries.select(["path"]).append_column("good", good)
    order = pc.sort_indices(keys, sort_keys=[("path", "ascending"), ("good", "ascending")])  # stable
    paths = entries.column("path").take(order).combine_chunks()
    starts = np.flatnonzero(np.append(True, pc.not_equal(paths[1:], paths[:-1])))
    refused = entries.column("refused").take(order)
    before = np.append(0, np.cumsum(pc.is_valid(refused)))
    offsets: Any = pa.array(before[np.append(starts, len(paths))].astype(np.int32))
    columns: dict[str, object] = {
        **{name: entries.column(name).take(order.take(pa.array(starts))) for name, _ in _FIELDS},
        "images": np.add.reduceat(entries.column("images").take(order).to_numpy(), starts),
        "refused": pa.ListArray.from_arrays(offsets, pc.drop_null(refused).combine_chunks()),
    }
    return pa.table(columns).cast(LEDGER).combine_chunks()


def count_states(ledger: pa.Table) -> dict[str, int]:
    """Return how many files ended in each state, reasons apart: {"ok": n, "quarantined: truncated": n, …}."""
    counts: Counter[str] = Counter()
    for row in ledger.group_by(["state", "reason"]).aggregate([([], "count_all")]).to_pylist():
        state = row["state"]
        if row["reason"] and state != OK:
            state = f"{state}: {row['reason']}"
        counts[state] += row["count_all"]
    return dict(sorted(counts.items()))
