"""The domain of a model: kinds of images seen in training, and what is new about a given image."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from medcls.imaging.decode import DecodedImage
from medcls.imaging.dicom.terms import name_body_part, name_intent, name_modality, name_photometric
from medcls.imaging.grey_levels import loses_levels
from medcls.records import newer

_SPACING_FACTOR = 1.5


@dataclass(frozen=True, slots=True)
class Domain:
    """The kinds of images in a training split; kept in the model file.

    Attributes:
        modalities: DICOM modalities; "" stands for files without one, such as PNG, or with text that is none.
        photometrics: Photometric interpretations ("L" and "RGB" for other formats than DICOM).
        spacing_mm: [smallest, largest] distance of stored pixels, mm: what the network sees, resizing and
            regions included; [] where no training image had one.
        body_parts: BodyPartExamined as terms.name_body_part writes it; [] where no training image had one, or the
            model file is an older one.
        intents: "processing" and "presentation" (terms.name_intent) as far as training images say it; None in older
            model files.
        few_levels: Whether an image of many grey levels was stored with few (grey_levels.loses_levels); None in older
            model files, and where nothing was measured.
        regions: Whether training images were regions of files: "all", "some", "none"; "" = not known.
        region_share: Median share of the file's height and width that a region took; [] without regions.
    """

    modalities: list[str]
    photometrics: list[str]
    spacing_mm: list[float]
    body_parts: list[str] = field(default_factory=list, metadata=newer())
    intents: list[str] | None = field(default=None, metadata=newer())
    few_levels: bool | None = field(default=None, metadata=newer())
    regions: str = field(default="", metadata=newer())
    region_share: list[float] = field(default_factory=list, metadata=newer())


def summarize_domain(
    modalities: Iterable[str | None],
    photometrics: Iterable[str | None],
    *,
    spacings_mm: Iterable[float | None],
    body_parts: Iterable[str | None] = (),
    intents: Iterable[str | None] | None = None,
) -> Domain:
    """Return the domain of manifest columns of the training rows (None = unknown), in terms of the standard only."""
    spacing_mm = [spacing for spacing in spacings_mm if spacing is not None]
    if spacing_mm:
        spacing_mm = [min(spacing_mm), max(spacing_mm)]
    known = None
    if intents is not None:
        known = sorted({name for name in intents if name})
    return Domain(
        modalities=_names(modalities, name_modality),
        photometrics=_names(photometrics, name_photometric),
        spacing_mm=spacing_mm,
        body_parts=[name for name in _names(body_parts, name_body_part) if name],
        intents=known,
    )


def find_unseen(image: DecodedImage, domain: Domain) -> dict[str, str]:
    """Return what training never saw of an image: fixed reason word -> what was found and what training had.

    A spacing is unseen beyond 1.5 times the training range, either way; an unknown one, or one where training
    knew none, is not judged. Nor is a body part that the image or all of training does not name: many devices leave
    it out. Raw detector values (FOR PROCESSING) are unseen unless training had them, and images for the eye if training
    had nothing but raw ones. Only terms of the standard are compared and said: a header's own words may be a name.

    Source: own choice.
    """
    unseen = {}
    text = image.headers.get("Modality", "")
    had = _names(domain.modalities, name_modality)
    if name_modality(text) not in had:
        unseen["unseen_modality"] = f"modality {_say(text, name_modality)}, training had {_list(had)}"
    had = _names(domain.photometrics, name_photometric)
    if name_photometric(image.photometric) not in had:
        found = _say(image.photometric, name_photometric)
        unseen["unseen_photometric"] = f"photometric kind {found}, training had {_list(had)}"
    part = name_body_part(image.headers.get("BodyPartExamined", ""))
    had = [name for name in _names(domain.body_parts, name_body_part) if name]
    if part and had and part not in had:
        unseen["unseen_body_part"] = f"body part {part}, training had {_list(had)}"
    intent = name_intent(image.headers.get("PresentationIntentType", ""), image.headers.get("SOPClassUID", ""))
    known = domain.intents
    if known is not None and intent not in ("", *known) and (intent == "processing" or known):
        unseen["unseen_intent"] = f"image FOR {intent.upper()}, training had {_list(known or [''])}"
    source = image.source
    if source and domain.few_levels is False and loses_levels(source=source.levels, stored=image.stored_levels):
        detail = (
            f"{image.stored_levels} grey levels are left of {source.levels} or more ({source.low:g} to {source.high:g})"
        )
        unseen["few_grey_levels"] = f"{detail}; no training image lost so many: convert it as the training images were"
    spacing = image.prepared.spacing_mm
    if spacing and domain.spacing_mm:
        low, high = domain.spacing_mm
        if min(spacing) < low / _SPACING_FACTOR or max(spacing) > high * _SPACING_FACTOR:
            found = " x ".join(f"{each:.3g}" for each in spacing) + " mm"
            unseen["unseen_spacing"] = f"stored pixels of {found}, training had {low:.3g} to {high:.3g} mm"
    return unseen


def _names(texts: Iterable[str | None], name: Callable[[str], str]) -> list[str]:
    """Return each term once; those of older stores and model files may be a header's own words yet."""
    return sorted({name(text or "") for text in texts})


def _say(text: str, name: Callable[[str], str]) -> str:
    return name(text) or ("of no known term" if text else "none")


def _list(names: Iterable[str]) -> str:
    return ", ".join(name or "none" for name in names)
