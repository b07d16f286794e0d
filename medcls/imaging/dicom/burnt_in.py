"""Burnt-in text: find images that may contain it, black out areas by rule, and tell who may show a face.

Nothing here looks at pixels: headers say which images are marked or of a kind where text is usual.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydicom import uid

from medcls.config import check_value
from medcls.errors import ConfigError, ImageRefusedError

Box = tuple[int, int, int, int]
"""(x, y, width, height), pixels of the file."""


_TEXT_CLASSES: dict[str, str] = {
    uid.SecondaryCaptureImageStorage: "secondary capture",
    uid.MultiFrameSingleBitSecondaryCaptureImageStorage: "secondary capture",
    uid.MultiFrameGrayscaleByteSecondaryCaptureImageStorage: "secondary capture",
    uid.MultiFrameGrayscaleWordSecondaryCaptureImageStorage: "secondary capture",
    uid.MultiFrameTrueColorSecondaryCaptureImageStorage: "secondary capture",
    uid.UltrasoundImageStorage: "ultrasound",
    uid.UltrasoundMultiFrameImageStorage: "ultrasound",
    uid.XRayAngiographicImageStorage: "angiography",
    uid.XRayRadiofluoroscopicImageStorage: "fluoroscopy",
    uid.VLEndoscopicImageStorage: "endoscopy",
    uid.VideoEndoscopicImageStorage: "endoscopy",
    uid.VLPhotographicImageStorage: "photography",
    uid.VideoPhotographicImageStorage: "photography",
}
# PS3.3 C.7.3.1.1.1, its retired ultrasound and fluoroscopy terms included; SC is none, and yet is written.
_TEXT_MODALITY_WORDS = "US IVUS BDUS EC DD CD XA RF DS CF DF VF ES LP XC OT SC DOC HC BMD"
_TEXT_MODALITIES = frozenset(_TEXT_MODALITY_WORDS.split())
# PS3.3 C.8.6.1: from video, film, paper, a drawing or a workstation. DI and SYN are pixels that came as such.
_TEXT_CONVERSIONS = frozenset({"DV", "DF", "SD", "SI", "DRW", "WSD"})
# What scanners and workstations call pictures of a screen or of a form in ImageType; no standard has them.
_TEXT_IMAGE_TYPES = ("SCREEN", "DOSE", "PROTOCOL", "CT_SOM5 PROT", "REPORT", "SUMMARY", "SAVE")
# Their objects are grey (PS3.3 C.8.2.1.1.2, C.8.3.1.1.2, C.8.11.3): in colour they are pictures of a screen.
_GREY_MODALITIES = frozenset({"CT", "MR", "CR", "DX", "MG", "PT"})

_FACE_MODALITIES = frozenset({"", "CT", "MR", "PT", "OT", "XC"})
_FACELESS_WORDS = """
    ABDOMEN ADRENAL ANKLE AORTA ARM ARMS BACK BLADDER BREAST CALCANEUS CARDIAC CHEST CLAVICLE COCCYX COLON COR
    ELBOW EXTREMITY FEMUR FINGER FOOT FOREARM GALLBLADDER HAND HEART HIP HUMERUS ILIAC KIDNEY KNEE LEG LEGS LIVER
    LOWER LSPINE LSSPINE LUMBAR LUNG LUNGS MEDIASTINUM PANCREAS PELVIS PROSTATE RECTUM RENAL RIB RIBS SACRUM
    SCAPULA SHOULDER SPLEEN SSPINE STERNUM STOMACH THIGH THORACIC THORAX TLSPINE TOE TSPINE UPPER URETER UTERUS
    WRIST SPINE AND TO WITH L R LEFT RIGHT BILATERAL
"""
_FACELESS_PARTS = frozenset(_FACELESS_WORDS.split())


TEXT_KEYWORDS = (
    "BurnedInAnnotation",
    "SOPClassUID",
    "Modality",
    "ConversionType",
    "ImageType",
    "PhotometricInterpretation",
)
"""What `find_text_risk` looks at."""


@dataclass(frozen=True, slots=True)
class BurntInRule:
    """What is done about text in the pixels.

    Attributes:
        policy: "refuse" refuses images that are marked, or of a kind where text is usual, unless one of the boxes
            below says where the text stands; "allow" reads every image; "ultrasound_regions" keeps of an image
            only the regions its header declares, and refuses suspects that declare none.
        mask_boxes: Boxes to black out, in every image whatever its header says, PNG and the like included.
        keep_box: The one box to keep, likewise; the rest is blacked out.

    Raises:
        ConfigError: an unknown policy, or a box that is none.
    """

    policy: str = "refuse"
    mask_boxes: tuple[Box, ...] = ()
    keep_box: Box | None = None

    def __post_init__(self) -> None:
        check_value("image.burnt_in", self.policy)
        for name, box in [("mask_boxes", b) for b in self.mask_boxes] + [("keep_box", self.keep_box or (0, 0, 1, 1))]:
            whole = len(box) == 4 and all(isinstance(n, int) and not isinstance(n, bool) for n in box)
            if not whole or min(box[:2]) < 0 or min(box[2:]) < 1:
                raise ConfigError(f"image.{name}: {list(box)}: expected [x, y, width, height] in pixels")


def find_text_risk(headers: Mapping[str, str]) -> str:
    """Return why an image may show text that names the patient, "" where its header gives no reason.

    BurnedInAnnotation decides where it is there: NO is a statement about identifying text, and is how a cleaned
    image is marked; any other value counts as YES. Without it, the kind of image decides.

    Args:
        headers: Allow-listed DICOM attributes by keyword; missing ones count as absent.

    Source: PS3.3 C.7.6.1 (Burned In Annotation), PS3.15 E.3.1 (NO after cleaning; "Ultrasound images routinely
    do"); the list of kinds is our own choice, docs/decisions/0010-burnt-in-text.md.
    """
    marked = _code(headers, "BurnedInAnnotation")
    if marked:
        return "" if marked == "NO" else "BurnedInAnnotation is not NO"
    kind = _TEXT_CLASSES.get(_code(headers, "SOPClassUID"))
    if kind:
        return f"the SOP class is {kind}"
    modality, conversion = _code(headers, "Modality"), _code(headers, "ConversionType")
    if modality in _TEXT_MODALITIES:
        return f"Modality is {modality}"
    if conversion in _TEXT_CONVERSIONS:
        return f"ConversionType is {conversion}"
    for word in _TEXT_IMAGE_TYPES:
        if word in _code(headers, "ImageType"):
            return f"ImageType has {word}"
    photometric = _code(headers, "PhotometricInterpretation")
    if modality in _GREY_MODALITIES and photometric and not photometric.startswith("MONOCHROME"):
        return f"{modality} in colour is a picture of a screen"
    return ""


def check_burnt_in(headers: Mapping[str, str], rule: BurntInRule) -> None:
    """Raise where a rule does not let an image through; for volumes, whose slices take no boxes.

    Raises:
        ImageRefusedError: burnt_in.
    """
    risk = find_text_risk(headers)
    if risk and rule.policy != "allow":
        raise ImageRefusedError(
            "burnt_in", f"{risk}; look at the images; if none shows a name, set image.burnt_in=allow"
        )


def find_hidden(
    headers: Mapping[str, str], *, regions: Sequence[Box], shape: tuple[int, int], rule: BurntInRule
) -> NDArray[np.bool_] | None:
    """Return where a 2-D image is to be black, (H, W), True = hidden; None where nothing is.

    Args:
        headers: Allow-listed attributes; {} for formats without a header, which nothing makes suspect.
        regions: Ultrasound regions of image data (header.read_ultrasound_regions), boxes in pixels.
        shape: (H, W) of the image.
        rule: What to do.

    Raises:
        ImageRefusedError: burnt_in, where text is likely and the rule does not say where it stands, or its boxes
            or the file's regions do not fit the image.

    Source: PS3.3 C.8.5.5 (ultrasound regions); boxes: own choice, docs/decisions/0010-burnt-in-text.md.
    """
    risk = find_text_risk(headers)
    hidden = np.zeros(shape, np.bool_)
    if rule.policy == "ultrasound_regions" and (risk or regions):
        hidden |= ~_cover(_fit_regions(regions, shape, risk), shape)
        if risk and not hidden.any():
            raise ImageRefusedError("burnt_in", f"{risk}, and its ultrasound regions are the whole image")
    elif risk and rule.policy == "refuse" and not (rule.mask_boxes or rule.keep_box):
        raise ImageRefusedError("burnt_in", f"{risk}; see image.burnt_in, image.mask_boxes and image.keep_box")
    elif not (rule.mask_boxes or rule.keep_box):
        return None
    hidden |= _cover(rule.mask_boxes, shape)
    if rule.keep_box is not None:
        hidden |= ~_cover([rule.keep_box], shape)
    if hidden.all():
        raise ImageRefusedError("burnt_in", "the rule blacks out the whole image")
    return hidden if hidden.any() else None


def find_kept_box(hidden: NDArray[np.bool_]) -> Box:
    """Return the smallest box around what is not hidden; `hidden` (H, W) is not all True."""
    rows, columns = np.flatnonzero(~hidden.all(axis=1)), np.flatnonzero(~hidden.all(axis=0))
    top, left = int(rows[0]), int(columns[0])
    return left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top


def _fit_regions(regions: Sequence[Box], shape: tuple[int, int], risk: str) -> list[Box]:
    """Return the regions inside the image; some writers take the last row and column for the first beyond."""
    if not regions:
        raise ImageRefusedError("burnt_in", f"{risk or 'no reason'}, and the file declares no ultrasound region")
    fitted = []
    for x, y, width, height in regions:
        fitted.append((x, y, min(width, shape[1] - x), min(height, shape[0] - y)))
        if min(fitted[-1]) < 0 or width - fitted[-1][2] > 1 or height - fitted[-1][3] > 1:
            raise ImageRefusedError("burnt_in", f"an ultrasound region leaves the image of {shape[1]} x {shape[0]}")
    return fitted


def _cover(boxes: Sequence[Box], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """True inside the boxes; a box that leaves the image was meant for another kind of image."""
    covered = np.zeros(shape, np.bool_)
    for x, y, width, height in boxes:
        if x + width > shape[1] or y + height > shape[0]:
            raise ImageRefusedError("burnt_in", f"box {[x, y, width, height]} leaves the {shape[1]} x {shape[0]} image")
        covered[y : y + height, x : x + width] = True
    return covered


def may_show_face(headers: Mapping[str, str]) -> bool:
    """Return whether a face may be rendered from a volume, or seen in a photograph, as far as its header says.

    RecognizableVisualFeatures decides where it says YES or NO. Otherwise a tomograph's volume may show a face
    unless every word of its BodyPartExamined is known to have none; so does one of unknown origin (NIfTI).
    Whether a head was skull-stripped stands in no attribute.

    Source: PS3.3 C.7.6.1 (Recognizable Visual Features); Schwarz et al., N Engl J Med 2019;381:1684 (faces from
    MR); PS3.16 annex L (body parts); the list of body parts is our own choice.
    """
    marked = _code(headers, "RecognizableVisualFeatures")
    if marked in ("YES", "NO"):
        return marked == "YES"
    words = re.findall(r"[A-Z]+", _code(headers, "BodyPartExamined"))
    faceless = bool(words) and all(word in _FACELESS_PARTS for word in words)
    return _code(headers, "Modality") in _FACE_MODALITIES and not faceless


def _code(headers: Mapping[str, str], keyword: str) -> str:
    """Return an attribute as a code: upper case, no blanks around."""
    return headers.get(keyword, "").strip().upper()
