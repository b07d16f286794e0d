"""What a model has seen in training, and what an image has that training never had."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from medcls.imaging.decode import DecodedImage

_SPACING_FACTOR = 1.5


@dataclass(frozen=True, slots=True)
class Domain:
    """The kinds of images in a training split; kept in the model file.

    Attributes:
        modalities: DICOM modalities; "" stands for files without one, such as PNG.
        photometrics: Photometric interpretations ("L" and "RGB" for other formats than DICOM).
        spacing_mm: [smallest, largest] distance of stored pixels, mm: what the network sees, resizing and
            regions included; [] where no training image had one.
        body_parts: BodyPartExamined codes; [] where no training image had one, or the model file is an older one.
    """

    modalities: list[str]
    photometrics: list[str]
    spacing_mm: list[float]
    body_parts: list[str] = field(default_factory=list)


def summarize_domain(
    modalities: Iterable[str | None],
    photometrics: Iterable[str | None],
    *,
    spacings_mm: Iterable[float | None],
    body_parts: Iterable[str | None] = (),
) -> Domain:
    """Returns the domain of manifest columns of the training rows (None = unknown)."""
    known = [spacing for spacing in spacings_mm if spacing is not None]
    return Domain(
        modalities=sorted({name or "" for name in modalities}),
        photometrics=sorted({name or "" for name in photometrics}),
        spacing_mm=[min(known), max(known)] if known else [],
        body_parts=sorted({name for name in body_parts if name}),
    )


def find_unseen(image: DecodedImage, domain: Domain) -> dict[str, str]:
    """Returns what training never saw of an image: fixed reason word -> what was found and what training had.

    A spacing is unseen beyond 1.5 times the training range, either way; an unknown one, or one where training
    knew none, is not judged. Nor is a body part that the image or all of training does not name: many devices leave
    it out.

    Source: own choice.
    """
    unseen = {}
    modality = image.headers.get("Modality", "")
    if modality not in domain.modalities:
        unseen["unseen_modality"] = f"modality {_code(modality)}, training had {_codes(domain.modalities)}"
    if image.photometric not in domain.photometrics:
        had = _codes(domain.photometrics)
        unseen["unseen_photometric"] = f"photometric kind {_code(image.photometric)}, training had {had}"
    part = image.headers.get("BodyPartExamined", "")
    if part and domain.body_parts and part not in domain.body_parts:
        unseen["unseen_body_part"] = f"body part {_code(part)}, training had {_codes(domain.body_parts)}"
    spacing = image.prepared.spacing_mm
    if spacing and domain.spacing_mm:
        low, high = domain.spacing_mm
        if min(spacing) < low / _SPACING_FACTOR or max(spacing) > high * _SPACING_FACTOR:
            found = " x ".join(f"{each:.3g}" for each in spacing) + " mm"
            unseen["unseen_spacing"] = f"stored pixels of {found}, training had {low:.3g} to {high:.3g} mm"
    return unseen


def _codes(names: Iterable[str]) -> str:
    return ", ".join(map(_code, names))


def _code(text: str) -> str:
    """A code as it is; what is none may be anything, a name even, and is not repeated."""
    return (text if re.fullmatch(r"[A-Z0-9_ ]{1,16}", text) else "of no code") if text else "none"
