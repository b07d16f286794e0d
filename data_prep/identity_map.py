"""The identity map: the only file with both pseudonyms and real names, for the holder of the key."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import pyarrow as pa

from data_prep.labels.label_rows import Column
from data_prep.plan import Plan
from medcls.console import say
from medcls.files import atomic_file
from medcls.identity import Identity, guard_cell

_BATCH = 8192


def map_path(folder: Path) -> Path:
    """Return the path of a store's map: beside the store, never inside."""
    folder = folder.resolve()
    return folder.parent / f"{folder.name}.identity-map.csv"


def write_identity_map(folder: Path, plan: Plan, identity: Identity) -> None:
    """Write a CSV of mode 0600 beside a store, one row for each image and file; declared ids need no map."""
    if identity.kind != "hmac":
        return
    path = map_path(folder)
    with atomic_file(path, private=True) as file:
        text = io.TextIOWrapper(file, encoding="utf-8", newline="")
        writer = csv.writer(text)
        writer.writerow(["image_id", "patient_pseudonym", "path_id", "path", "patient_id"])
        for batch in plan.table.select(["key", "patient_id", "files"]).to_batches(_BATCH):
            for row in batch.to_pylist():
                names = (identity.name("image", row["key"]), identity.name("patient", row["patient_id"]))
                for each in row["files"]:
                    cells = (*names, identity.name("path", each), each, row["patient_id"])
                    writer.writerow(map(guard_cell, cells))
        text.flush()
        text.detach()
    say(f"pseudonyms: {path} (mode 0600) maps them back to the patients: keep it apart from the store")


def name_column(column: Column, domain: str, identity: Identity) -> pa.Array[Any]:
    """Return a column of ids or paths as outputs show it; pseudonyms are made piece by piece."""
    if identity.kind == "hmac":
        chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
        named = [pa.array([identity.name(domain, value.as_py()) for value in chunk], pa.string()) for chunk in chunks]
        column = pa.chunked_array(named, pa.string())
    if isinstance(column, pa.ChunkedArray):
        return column.combine_chunks()
    return column
