"""The way back from pseudonyms to patients and files: the only file that has both names, for the key's holder."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from data_prep.plan import Plan
from medcls.files import atomic_file
from medcls.identity import Identity

_BATCH = 8192


def write_identity_map(path: Path, plan: Plan, identity: Identity) -> None:
    """Writes a CSV of mode 0600, one row an image and file; it belongs outside the store."""
    with atomic_file(path, private=True) as file:
        text = io.TextIOWrapper(file, encoding="utf-8", newline="")
        writer = csv.writer(text)
        writer.writerow(["image_id", "patient_pseudonym", "path_id", "path", "patient_id"])
        for batch in plan.table.select(["key", "patient_id", "files"]).to_batches(_BATCH):
            for row in batch.to_pylist():
                names = (identity.name("image", row["key"]), identity.name("patient", row["patient_id"]))
                for each in row["files"]:
                    writer.writerow([*names, identity.name("path", each), each, row["patient_id"]])
        text.flush()
        text.detach()
