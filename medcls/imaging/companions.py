"""Name files that accompany images and are not images of a job: reports, plans, raw data, presentation states."""

from __future__ import annotations

NO_IMAGE = frozenset({"no_pixel_data", "not_an_image", "dicomdir", "hidden", "symbolic_link", "special_file"})
"""Problems of files that are skipped wherever they are found: nothing is missing without them."""

_STORAGE = "1.2.840.10008.5.1.4.1.1."
_CLASSES = (
    *(_STORAGE + part for part in ("9.", "11.", "66", "67", "88.", "104.", "4.2")),
    *(_STORAGE + f"481.{part}" for part in ("3", "4", "5", "6", "7", "8", "9", "10", "11", "12", "13", "14")),
    "1.2.840.10008.5.1.4.34.",
    "1.2.840.10008.5.1.4.38.",
    "1.2.840.10008.5.1.4.39.",
    "1.2.840.10008.5.1.4.43.",
)
"""How SOPClassUIDs begin of waveforms, presentation states, raw data, registrations, segmentations, value mappings,
reports, documents and spectra; of structures, plans and records of radiotherapy; of protocols and palettes."""


def name_companion(problem: str, sop_class_uid: str) -> str:
    """Return the reason why a file is skipped wherever it is found; "" for what may be an image.

    What a raw-data object or a plan has in the place of pixels need not be whole, or readable.

    Args:
        problem: Of the Instance.
        sop_class_uid: Of the Instance.

    Source: PS3.4 B.5, PS3.6 A.
    """
    if problem in NO_IMAGE:
        return problem
    if any(sop_class_uid == each or sop_class_uid.startswith(f"{each.rstrip('.')}.") for each in _CLASSES):
        return "not_an_image"
    return ""
