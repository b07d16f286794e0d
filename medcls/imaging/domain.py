"""What a model has seen in training, and what an image has that training never had."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

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
    """

    modalities: list[str]
    photometrics: list[str]
    spacing_mm: list[float]


def summarize_domain(
    modalities: Iterable[str | None], photometrics: Iterable[str | None], *, spacings_mm: Iterable[float | None]
) -> Domain:
    """Returns the domain of manifest columns of the training rows (None = unknown)."""
    known = [spacing for spacing in spacings_mm if spacing is not None]
    return Domain(
        modalities=sorted({name or "" for name in modalities}),
        photometrics=sorted({name or "" for name in photometrics}),
        spacing_mm=[min(known), max(known)] if known else [],
    )


def find_unseen(image: DecodedImage, domain: Domain) -> dict[str, str]:
    """Returns what training never saw of an image: fixed reason word -> what was found and what training had.

    A spacing is unseen beyond 1.5 times the training range, either way; an unknown one, or one where training
    knew none, is not judged.

    Source: own choice.
    """
    unseen = {}
    modality = image.headers.get("Modality", "")
    if modality not in domain.modalities:
        unseen["unseen_modality"] = f"modality {_code(modality)}, training had {_codes(domain.modalities)}"
    if image.photometric not in domain.photometrics:
        had = _codes(domain.photometrics)
        unseen["unseen_photometric"] = f"photometric kind {_code(image.photometric)}, training had {had}"
    spacing = image.prepared.spacing_mm
    if spacing and domain.spacing_mm:
        low, high = domain.spacing_mm
        if min(spacing) < low / _SPACING_FACTOR or max(spacing) > high * _SPACING_FACTOR:
            found = f"{spacing[0]:.3g} x {spacing[1]:.3g} mm"
            unseen["unseen_spacing"] = f"stored pixels of {found}, training had {low:.3g} to {high:.3g} mm"
    return unseen


def _codes(names: Iterable[str]) -> str:
    return ", ".join(map(_code, names))


def _code(text: str) -> str:
    """A code as it is; what is none may be anything, a name even, and is not repeated."""
    return (text if re.fullmatch(r"[A-Z0-9_ ]{1,16}", text) else "of no code") if text else "none"
