"""Build one manifest row from the labels file and the image's own values, with no other header text."""

from __future__ import annotations

from dataclasses import dataclass, field

from data_prep.plan import Unit
from medcls.files import sha256_json
from medcls.identity import Identity
from medcls.imaging.decode import DecodedImage
from medcls.imaging.dicom.terms import describe_headers, name_photometric

_AXES = (("depth", "z", "slice"), ("height", "y", "row"), ("width", "x", "column"))


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


def build_row(unit: Unit, stored: StoredImage, *, place: tuple[int, int], identity: Identity) -> dict[str, object]:
    """Return the manifest row of a stored image; ids as `identity` writes them, no free text, no dates.

    `place` is (shard, row).
    """
    image = stored.image
    if image is None:
        raise ValueError("a copied image has the row of the store that it was copied from")
    headers, prepared = image.headers, image.prepared
    said = describe_headers(headers)
    age = unit.age_years
    if age is None:
        age = said["age_years"]
    n = len(image.source_size)
    spacing_mm = prepared.spacing_mm or (None,) * n
    geometry: dict[str, object] = {}
    # The last two axes of an image, all three of a volume.
    for i, (size, place_of, distance) in enumerate(_AXES[-n:]):
        geometry[f"source_{size}"] = image.source_size[i]
        geometry[f"valid_{place_of}"], geometry[f"valid_{size}"] = (
            prepared.valid_extent[i],
            prepared.valid_extent[n + i],
        )
        geometry[f"spacing_{distance}_mm"] = spacing_mm[i]
    return {
        "image_id": identity.name("image", unit.key),
        "patient_id": identity.name("patient", unit.patient_id),
        "study_id": identity.name("study", headers.get("StudyInstanceUID", "")) or None,
        "series_id": identity.name("series", headers.get("SeriesInstanceUID", "")) or None,
        "shard": place[0],
        "row": place[1],
        **geometry,
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


def describe_values(image: DecodedImage) -> dict[str, object]:
    """Return the manifest's columns of grey values: of the file, and of what is left in the stored pixels."""
    stored: dict[str, object] = {"stored_levels": image.stored_levels, "stored_high": image.stored_high}
    source = image.source
    if source is None:
        return dict.fromkeys(("value_low", "value_high", "value_levels", "value_scaling")) | stored
    return {
        "value_low": source.low,
        "value_high": source.high,
        "value_levels": source.levels,
        "value_scaling": source.scaling,
        **stored,
    }


def describe_region(unit: Unit) -> dict[str, int | None]:
    """Return the size of the region that an image is of its file, in pixels; None for the whole image."""
    return {"roi_height": unit.roi and unit.roi[3], "roi_width": unit.roi and unit.roi[2]}


def declared_sha256(unit: Unit, identity: Identity) -> str:
    """Return a (keyed) checksum of what the labels file says of an image: equal where nothing of it has changed."""
    return identity.pseudonym("declared", sha256_json(unit.declared))
