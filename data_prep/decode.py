"""Files to shards: decode in limited workers, write in the order of the rows, account for every file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data_prep.labels import LabelRow
from data_prep.ledger import OK, QUARANTINED, SKIPPED, Entry
from medcls.data.duplicates import compute_dhash, hash_pixels
from medcls.data.store import ShardWriter
from medcls.errors import DataError, ImageRefusedError, MissingInputError
from medcls.files import sha256_file
from medcls.identity import Identity
from medcls.imaging.decode import DecodedImage, DecodeTask, decode_image
from medcls.imaging.preprocess import PreprocessSpec
from medcls.imaging.worker import run_limited

# A few bad files are life; many mean a wrong folder or a wrong setting.
_ALLOWED_ANYWAY = 1
_SHOWN = 5
_AGE_UNITS = {"Y": 1.0, "M": 1 / 12, "W": 7 / 365.25, "D": 1 / 365.25}


@dataclass(frozen=True, slots=True)
class HashedImage:
    """A decoded image, and the checksums of its stored pixels and of its file."""

    image: DecodedImage
    pixel_sha256: str
    pixel_dhash: bytes
    file_sha256: str


def decode_and_hash(task: DecodeTask) -> HashedImage:
    """Returns one image as stored. Runs in a worker process: no torch, nothing global."""
    image = decode_image(task)
    pixels = image.prepared.pixels
    y, x, height, width = image.prepared.valid_extent
    return HashedImage(
        image=image,
        pixel_sha256=hash_pixels(pixels),
        pixel_dhash=compute_dhash(pixels[:, y : y + height, x : x + width]),
        file_sha256=sha256_file(task.file),
    )


def decode_rows(
    rows: Sequence[LabelRow],
    *,
    source: Path,
    spec: PreprocessSpec,
    writer: ShardWriter,
    identity: Identity,
    workers: int,
    max_quarantined: float,
) -> tuple[list[dict[str, Any]], dict[str, Entry]]:
    """Decodes every row into an open `writer`; returns the manifest rows and an entry for each file by its path.

    Raises:
        DataError: more than max_quarantined of the images are refused; the reasons are counted.
    """
    allowed = max(_ALLOWED_ANYWAY, int(max_quarantined * len(rows))) if max_quarantined else 0
    tasks = (DecodeTask(source / row.path, row.roi, spec) for row in rows)
    manifest: list[dict[str, Any]] = []
    entries: dict[str, Entry] = {}
    refused: list[str] = []
    outcomes = run_limited(decode_and_hash, tasks, workers=workers)
    bar = tqdm(zip(rows, outcomes, strict=True), total=len(rows), desc="decode", unit="image", mininterval=0.5)
    for row, outcome in bar:
        shown = identity.name("path", row.path)
        if isinstance(outcome, ImageRefusedError):
            where = f"row {row.number}" if row.number else ""
            refused.append(" ".join(filter(None, (where, shown, str(outcome)))))
            if len(refused) > allowed:
                raise DataError(_too_many(refused, allowed, len(rows)))
            # Of a refused file, too: one that is mended later is another file.
            sha, images = _checksum(source / row.path), (identity.name("image", row.key),)
            entry = Entry(shown, QUARANTINED, outcome.reason, outcome.detail, file_sha256=sha, refused=images)
        else:
            shard, index = writer.append(outcome.image.prepared.pixels)
            manifest.append(_manifest_row(row, outcome, place=(shard, index), identity=identity))
            entry = Entry(shown, OK, images=1, file_sha256=outcome.file_sha256)
        entries[row.path] = entries[row.path].add(entry) if row.path in entries else entry
    if not manifest:
        raise DataError(f"no image could be read: {'; '.join(refused[:_SHOWN])}")
    return manifest, entries


def _checksum(file: Path) -> str:
    """The sha256 of a refused file, "" where not even its bytes can be read."""
    try:
        return sha256_file(file)
    except (OSError, MissingInputError):
        return ""


def _too_many(refused: Sequence[str], allowed: int, total: int) -> str:
    return (
        f"more than {allowed} of {total} images are unreadable: {'; '.join(refused[:_SHOWN])}; mend or remove them, "
        "or allow more by max_quarantined=0.2"
    )


def _manifest_row(row: LabelRow, hashed: HashedImage, *, place: tuple[int, int], identity: Identity) -> dict[str, Any]:
    image = hashed.image
    headers, prepared = image.headers, image.prepared
    y, x, height, width = prepared.valid_extent
    spacing = prepared.spacing_mm or (None, None)
    age = row.age_years if row.age_years is not None else parse_age_years(headers.get("PatientAge", ""))
    return {
        "image_id": identity.name("image", row.key),
        "patient_id": identity.name("patient", row.patient_id),
        "study_id": identity.name("study", headers.get("StudyInstanceUID", "")) or None,
        "series_id": identity.name("series", headers.get("SeriesInstanceUID", "")) or None,
        "shard": place[0],
        "row": place[1],
        "source_height": image.source_size[0],
        "source_width": image.source_size[1],
        "valid_y": y,
        "valid_x": x,
        "valid_height": height,
        "valid_width": width,
        "spacing_row_mm": spacing[0],
        "spacing_column_mm": spacing[1],
        "spacing_source": image.spacing_source or None,
        "modality": headers.get("Modality") or None,
        "photometric": image.photometric or None,
        "side": row.side or _allowed(headers, "ImageLaterality", "LRBU") or _allowed(headers, "Laterality", "LR"),
        "sex": row.sex or _allowed(headers, "PatientSex", "MFO"),
        "age_years": identity.age_years(age),
        "manufacturer": headers.get("Manufacturer") or None,
        "pixel_sha256": hashed.pixel_sha256,
        "pixel_dhash": hashed.pixel_dhash,
        **row.extra,
    }


def _allowed(headers: dict[str, str], keyword: str, codes: str) -> str | None:
    """The value of a coded attribute where it is one of its codes; free text may hold anything, so None."""
    value = headers.get(keyword, "")
    return value if value and value in tuple(codes) else None


def parse_age_years(text: str) -> float | None:
    """Returns the years of a DICOM age such as "057Y" or "006M"; None where it is none.

    Source: PS3.5 6.2, value representation AS.
    """
    if len(text) == 4 and text[:3].isdecimal() and text[3] in _AGE_UNITS:
        return round(int(text[:3]) * _AGE_UNITS[text[3]], 2)
    return None


def account(files: Iterable[tuple[str, str]], decoded: dict[str, Entry], *, identity: Identity) -> list[Entry]:
    """Returns an entry for every file of the source: the decoded ones, and the others as skipped."""
    return [
        decoded.get(path) or Entry(identity.name("path", path), SKIPPED, reason or "not_in_labels")
        for path, reason in files
    ]
