"""Build one manifest row from the labels file and the image's own values, with no other header text."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from data_prep.plan import Unit
from medcls.files import sha256_json
from medcls.identity import Identity
from medcls.imaging.decode import DecodedImage
from medcls.imaging.dicom.terms import describe_headers, name_photometric


@dataclass(frozen=True, slots=True)
class StoredImage:
    """What a worker says of an image that it has written: all but the pixels.

    Attributes:
        image: The decoded image without its pixels; None where it was copied from an earlier store.
        pixel_sha256: Of the stored pixels.
        pixel_dhash: 32 bytes; None for volumes.
        file_sha256: Of each file, in the order of the task.
        notes: What was found in the files and is no reason to refuse: a fixed word, and a sentence.
    """

    image: DecodedImage | None
    pixel_sha256: str
    pixel_dhash: bytes | None
    file_sha256: tuple[str, ...]
    notes: dict[str, str] = field(default_factory=dict)


def build_row(unit: Unit, stored: StoredImage, *, place: tuple[int, int], identity: Identity) -> dict[str, Any]:
    """Return the manifest row of a stored image; ids as `identity` writes them, no free text, no dates.

    Args:
        unit: What was planned.
        stored: What was decoded.
        place: (shard, row).
        identity: Of the store.
    """
    image = stored.image
    if image is None:
        raise ValueError("a copied image has the row of the store that it was copied from")
    headers, prepared = image.headers, image.prepared
    said = describe_headers(headers)
    age = unit.age_years if unit.age_years is not None else said["age_years"]
    return {
        "image_id": identity.name("image", unit.key),
        "patient_id": identity.name("patient", unit.patient_id),
        "study_id": identity.name("study", headers.get("StudyInstanceUID", "")) or None,
        "series_id": identity.name("series", headers.get("SeriesInstanceUID", "")) or None,
        "shard": place[0],
        "row": place[1],
        **_geometry(image.source_size, prepared.valid_extent, prepared.spacing_mm),
        "spacing_source": image.spacing_source or None,
        "modality": said["modality"],
        "photometric": name_photometric(image.photometric) or None,
        "body_part": said["body_part"],
        "side": unit.side or said["side"],
        "sex": unit.sex or said["sex"],
        "age_years": identity.age_years(age),
        "manufacturer": said["manufacturer"],
        "pixel_sha256": stored.pixel_sha256,
        "pixel_dhash": stored.pixel_dhash,
        "declared_sha256": declared_sha256(unit, identity),
        **describe_values(image),
        "intent": said["intent"],
        **image.volume,
        **describe_region(unit),
        **unit.extra,
    }


def describe_values(image: DecodedImage) -> dict[str, Any]:
    """Return the manifest's columns of grey values: of the file, and of what is left in the stored pixels."""
    source = image.source
    return {
        "value_low": source.low if source else None,
        "value_high": source.high if source else None,
        "value_levels": source.levels if source else None,
        "value_scaling": source.scaling if source else None,
        "stored_levels": image.stored_levels,
        "stored_high": image.stored_high,
    }


def describe_region(unit: Unit) -> dict[str, int | None]:
    """Return the size of the region that an image is of its file, in pixels; None for the whole image."""
    return {"roi_height": unit.roi and unit.roi[3], "roi_width": unit.roi and unit.roi[2]}


def declared_sha256(unit: Unit, identity: Identity) -> str:
    """Return a (keyed) checksum of what the labels file says of an image: equal where nothing of it has changed."""
    return identity.pseudonym("declared", sha256_json(unit.declared))


def _geometry(
    source_size: tuple[int, ...], extent: tuple[int, ...], spacing_mm: tuple[float, ...] | None
) -> dict[str, Any]:
    """Columns of the last two axes of an image, or of all three of a volume."""
    n = len(source_size)
    columns: dict[str, Any] = {}
    names = list(zip(("depth", "height", "width"), "zyx", ("slice", "row", "column"), strict=True))[-n:]
    for i, (size, place, distance) in enumerate(names):
        columns[f"source_{size}"] = source_size[i]
        columns[f"valid_{place}"], columns[f"valid_{size}"] = extent[i], extent[n + i]
        columns[f"spacing_{distance}_mm"] = spacing_mm[i] if spacing_mm else None
    return columns
