"""The plan of a store: one row per image to decode, in order, cut into shards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_prep.labels.label_rows import ROI
from data_prep.ledger import LOST, describe_refusal
from medcls.disk import SOURCE_FILE, read_again
from medcls.files import sha256_json
from medcls.imaging.preprocess import Box

SHARD_BYTES = 1 << 28


@dataclass(frozen=True, slots=True)
class Unit:
    """One image to decode: a file, a region of one, or the files of a volume.

    Attributes:
        key: Names the image; its pseudonym is the image_id.
        files: Relative paths; several for a volume of single-frame files.
        patient_id: As declared, or of the header.
        number: Line of the labels file, 0 where there is none.
        roi: (x, y, width, height) in pixels of the file, or None.
        sex: "M", "F", "O" or None, as the labels file says; likewise age_years and side.
        age_years: Years, or None.
        side: "L", "R" or None.
        extra: Columns asked for by columns=[…].
        header_ids: PatientID and SeriesInstanceUID that the index read in its header; "" where it has none.
    """

    key: str
    files: tuple[str, ...]
    patient_id: str
    number: int = 0
    roi: Box | None = None
    sex: str | None = None
    age_years: float | None = None
    side: str | None = None
    extra: Mapping[str, str | None] = field(default_factory=dict)
    header_ids: tuple[str, str] = ("", "")

    @property
    def declared(self) -> dict[str, object]:
        """What the manifest's row owes to the labels file and not to the image."""
        return {"patient_id": self.patient_id, "sex": self.sex, "age_years": self.age_years, "side": self.side}


@dataclass(frozen=True, slots=True)
class ShardPlan:
    """The units of one shard of the store.

    Attributes:
        number: Of the shard.
        units: In order.
        sha256: Of all that decides the shard's content: units, size and time of their files, settings.
    """

    number: int
    units: list[Unit]
    sha256: str


@dataclass(frozen=True, slots=True)
class Plan:
    """All units, as columns: millions of them are no Python objects.

    Attributes:
        table: key, files (list of paths), number, patient_id, sex, age_years, side, roi_x …, split, labels, extra.
        skipped: LEFT_OUT: files of images that a rule left out (another series, a localizer).
        refused: LEFT_OUT: files whose images were refused before decoding (a gap between slices).
        columns: Names of the extra columns.
        rows_per_shard: Units in every shard but the last.
        lost: LOST: a row for each volume refused before decoding.
        patients_from: What tells patients apart: per_image (they are unknown), labels, pattern, folders or headers.
        layout: How the class folders were read; "" = a labels file.
    """

    table: pa.Table
    skipped: pa.Table
    refused: pa.Table
    columns: Sequence[str] = ()
    rows_per_shard: int = 1
    lost: pa.Table = field(default_factory=LOST.empty_table)
    patients_from: str = ""
    layout: str = ""

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @property
    def early(self) -> list[str]:
        """A message for each volume refused before decoding."""
        rows = self.lost.select(["image_id", "reason", "detail"]).to_pylist()
        return [describe_refusal(0, row["image_id"], row["reason"], row["detail"]) for row in rows]

    @property
    def rest(self) -> str:
        """Reason of the files that nothing else is said of."""
        return "no_image" if self.layout else "not_in_labels"

    @property
    def classes(self) -> Any:
        """The label of each unit; null if it is unknown, or if there are several label columns."""
        if "label" in self.table.column_names:
            return self.table["label"]
        return pa.chunked_array([pa.nulls(len(self), pa.string())])

    @property
    def shards(self) -> int:
        """Number of shards, at least one image planned in each."""
        return -(-len(self) // self.rows_per_shard)

    def count(self, number: int) -> int:
        """Return how many units a shard has."""
        return min(self.rows_per_shard, len(self) - number * self.rows_per_shard)

    def shard(self, number: int, *, source: Path, setting: Mapping[str, object]) -> ShardPlan:
        """Return one shard's units, bound to their files as they are now and to the settings."""
        units = []
        for row in self.table.slice(number * self.rows_per_shard, self.rows_per_shard).to_pylist():
            roi: Any = tuple(row[name] for name in ROI)
            if roi[0] is None:
                roi = None
            unit = Unit(
                key=row["key"],
                files=tuple(row["files"]),
                patient_id=row["patient_id"],
                number=row["number"],
                roi=roi,
                sex=row["sex"],
                age_years=row["age_years"],
                side=row["side"],
                extra={name: row[name] for name in self.columns},
                header_ids=(row["dicom_patient_id"] or "", row["series_uid"] or ""),
            )
            units.append(unit)
        stamps = [_stamp(source / path) for unit in units for path in unit.files]
        content = [{k: v for k, v in asdict(unit).items() if k != "number"} for unit in units]
        return ShardPlan(number, units, sha256_json({"units": content, "stamps": stamps, "setting": setting}))


def rows_per_shard(shape: Sequence[int], dtype: str, *, most: int) -> int:
    """Return how many images a shard holds: at most `most`, and at most 256 MiB of pixels."""
    nbytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return max(1, min(most, SHARD_BYTES // nbytes))


def plan_images(labels: pa.Table) -> pa.Table:
    """Return the label table with the columns key and files: a unit for every file or region."""
    path = labels.column("path")
    corners = [pc.cast(labels.column(name), pa.string()) for name in ROI]
    region = pc.binary_join_element_wise(*corners, ",")
    key = pc.coalesce(pc.binary_join_element_wise(path, region, "@"), path)
    files: list[Any] = []
    for chunk in path.chunks:  # one array of all paths would overflow at 2 GiB of text
        offsets: Any = pa.array(np.arange(len(chunk) + 1, dtype=np.int64))
        files.append(pa.LargeListArray.from_arrays(offsets, chunk))
    kind: Any = pa.large_list(pa.string())
    return labels.append_column("key", key).append_column("files", pa.chunked_array(files, kind))


def _stamp(file: Path) -> tuple[int, int]:
    """Return size and time of a file: enough to notice that it is another since a run was interrupted."""
    try:
        status = read_again(file.stat, SOURCE_FILE)
    except OSError:
        return -1, -1
    return status.st_size, status.st_mtime_ns
