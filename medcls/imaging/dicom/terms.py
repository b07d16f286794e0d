"""Known terms for header values (modality, body part, maker); other header text may be a name and is dropped.

Every function here returns words of its own lists, never one of the header's, and what it has returned once as it is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pydicom import uid

# PS3.3 C.7.3.1.1.1, the retired ones in the last line.
_MODALITY_WORDS = """
    ANN AR ASMT AU BDUS BI BMD CFM CR CT CTPROTOCOL DG DMS DOC DX ECG EEG EMG EOG EPS ES FID GM HC HD IO IOL IVOCT
    IVUS KER KO LEN LS M3D MG MR NM OAM OCT OP OPM OPT OPTBSV OPTENF OPV OSS OT PA PLAN POS PR PT PX REG RESP RF RG
    RTDOSE RTIMAGE RTINTENT RTPLAN RTRAD RTRECORD RTSEGANN RTSTRUCT RWV SEG SM SMR SR SRF STAIN TEXTUREMAP TG US VA
    XA XAPROTOCOL XC
    AS CD CF CP CS DD DF DM DS EC FA FS LP MA MS OPR ST VF
"""
_MODALITIES = frozenset(_MODALITY_WORDS.split())
_PHOTOMETRICS = frozenset(
    {
        *("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR", "RGB", "YBR_FULL", "YBR_FULL_422", "YBR_RCT", "YBR_ICT"),
        *("YBR_PARTIAL_420", "YBR_PARTIAL_422", "XYB", "HSV", "ARGB", "CMYK", "L"),
    }
)
# Of PS3.16 table L-1 what is radiographed, scanned or photographed for itself; the last two lines are not in it, yet
# devices write them.
_BODY_PART_WORDS = """
    ABDOMEN ABDOMENPELVIS ABDOMINALAORTA ACJOINT ADRENAL ANKLE ANUS ANUSRECTUMSIGMD AORTA AORTICARCH APPENDIX ARM ARTERY
    AXILLA BACK BILEDUCT BILIARYTRACT BLADDER BRAIN BREAST BRONCHUS BUTTOCK CALCANEUS CALF CAROTID CEREBELLUM CERVIX
    CHEEK CHEST CHESTABDOMEN CHESTABDPELVIS CIRCLEOFWILLIS CLAVICLE COCCYX COLON COMMONBILEDUCT CORNEA CORONARYARTERY
    CSPINE CTSPINE DUODENUM EAR ELBOW ESOPHAGUS EXTREMITY EYE EYELID FACE FEMUR FIBULA FINGER FOOT FOREARM GALLBLADDER
    HAND HEAD HEADNECK HEART HIP HUMERUS IAC ILEUM ILIUM JAW JEJUNUM KIDNEY KNEE LARYNX LEG LIVER LSPINE LSSPINE LUNG
    MANDIBLE MAXILLA MEDIASTINUM MOUTH NECK NECKCHEST NECKCHESTABDOMEN NECKCHESTABDPELV NOSE OPTICCANAL ORBIT OVARY
    PANCREAS PARATHYROID PAROTID PATELLA PELVIS PELVISLOWEXTREMT PENIS PHARYNX PLACENTA PROSTATE RECTUM RETINA RIB SCALP
    SCAPULA SCROTUM SHOULDER SIJOINT SKULL SPINE SPLEEN SSPINE STERNUM STOMACH SUBMANDIBULAR TESTIS THIGH THUMB THYMUS
    THYROID TIBIA TLSPINE TMJ TOE TONGUE TRACHEA TSPINE URETER URETHRA UTERUS VAGINA VULVA WHOLEBODY WRIST ZYGOMA
    CARDIAC FEET LOWEREXTREMITY LOWERLEG PHANTOM SINUS TEETH THORAX TOOTH UPPERARM UPPEREXTREMITY
    CERVICALSPINE LUMBARSPINE THORACICSPINE
"""
_BODY_PARTS = frozenset(_BODY_PART_WORDS.split())
_COMPOUND = re.compile(f"(?:{'|'.join(sorted(_BODY_PARTS))})+")
_LONGEST = 64
_FOR_PROCESSING = frozenset(
    {
        uid.DigitalXRayImageStorageForProcessing,
        uid.DigitalMammographyXRayImageStorageForProcessing,
        uid.DigitalIntraOralXRayImageStorageForProcessing,
    }
)
_INTENTS = {"FOR PROCESSING": "processing", "FOR PRESENTATION": "presentation"}
AGE_UNITS = {"Y": 1.0, "M": 1 / 12, "W": 7 / 365.25, "D": 1 / 365.25}
_SIDES = frozenset({"L", "R", "LT", "RT", "LEFT", "RIGHT", "BILATERAL", "BOTH"})
_LINKS = frozenset({"AND", "WITH", "TO"})

# A vendor by its own name, or by the words behind the colon; the first that is in the text counts, so a buyer precedes
# what it bought.
_VENDOR_WORDS = """
    synthetic; Siemens: siemens, acuson; GE: ge, g e, gems, general electric; Philips; Canon: canon, toshiba;
    Fujifilm: fujifilm, fuji; Hitachi: hitachi, aloka; Agfa; Carestream; Kodak; Hologic; Lorad; Samsung: samsung,
    medison; Konica Minolta: konica, minolta; Shimadzu; Varian; Elekta; Accuray; United Imaging: united imaging,
    uih; Neusoft; Mindray; Esaote; Planmed; Planmeca; Sirona; Zeiss; Topcon; Heidelberg Engineering; Nidek; Optos;
    Olympus; Pentax; Bruker; Leica; Hamamatsu; Aperio; SuperSonic Imagine; Swissray; Vatech; Instrumentarium;
    Marconi; Elscint; Imatron; Picker; Vidar; Lumisys
"""
_VENDORS = {
    word.strip(): vendor
    for vendor, _, words in (" ".join(each.split()).partition(": ") for each in _VENDOR_WORDS.split(";"))
    for word in (words or vendor.lower()).split(",")
}


def name_modality(text: str) -> str:
    """Return the defined term that a Modality is, retired ones included; "" if it is not one.

    Source: PS3.3 C.7.3.1.1.1.
    """
    word = text.strip().upper()
    return word if word in _MODALITIES else ""


def name_photometric(text: str) -> str:
    """Return the defined term that a PhotometricInterpretation is, or "L" (grey, not DICOM); "" if it is neither.

    Source: PS3.3 C.7.6.3.1.2, retired terms included.
    """
    word = " ".join(text.upper().split())
    return word if word in _PHOTOMETRICS else ""


def name_body_part(text: str) -> str:
    """Return a BodyPartExamined as one word: "CHEST", "WHOLEBODY", "HEADNECK"; "" where a word of it is unknown.

    Case, spaces and plurals do not count. Sides do not either: they have attributes of their own.

    Source: PS3.16 annex L, table L-1; words that devices write besides are own choice.
    """
    if len(text) > _LONGEST:
        return ""
    joined = ""  # for "WHOLE BODY" is one term of which neither word is
    for word in re.findall(r"[^\W_]+", text.upper()):
        if word in _SIDES or word in _LINKS:
            continue
        if word.endswith("S") and word not in _BODY_PARTS and word[:-1] in _BODY_PARTS:
            word = word[:-1]  # KNEES, but not PELVIS
        joined += word
    return joined if _COMPOUND.fullmatch(joined) else ""


def name_manufacturer(text: str) -> str:
    """Return the vendor whose name is a word of a Manufacturer, "other" for any other text, "" for none.

    Source: own choice; PS3.3 C.7.5.1 leaves the text free, so that it may be a practice or a person.
    """
    words = " ".join(re.findall(r"[^\W\d_]+", text.lower()))
    for name, vendor in _VENDORS.items():
        if f" {name} " in f" {words} ":
            return vendor
    return "other" if text.strip() else ""


def parse_age_years(text: str) -> float | None:
    """Return the years of a DICOM age such as "057Y" or "006M"; None where it is none.

    Source: PS3.5 6.2, value representation AS.
    """
    if len(text) == 4 and text[:3].isdecimal() and text[3] in AGE_UNITS:
        return round(int(text[:3]) * AGE_UNITS[text[3]], 2)
    return None


def name_intent(text: str, sop_class_uid: str) -> str:
    """Return "processing" for raw detector values, "presentation" for values made for the eye, "" if unknown.

    Args:
        text: PresentationIntentType.
        sop_class_uid: SOPClassUID, which says it of digital radiographs that lack the attribute.

    Source: PS3.3 C.8.11.1.1.1 (PresentationIntentType), PS3.4 B.5 (classes of digital radiographs).
    """
    if named := _INTENTS.get(" ".join(text.upper().split())):
        return named
    return "processing" if sop_class_uid in _FOR_PROCESSING else ""


def describe_headers(headers: Mapping[str, str]) -> dict[str, Any]:
    """Return what a header says of an image and its patient, by the names of the manifest's columns.

    Args:
        headers: Allow-listed attributes by keyword.

    Returns:
        modality, intent, body_part, side, sex, age_years, manufacturer; None if it says nothing, or no known term.
    """
    coded = {"ImageLaterality": "LRBU", "Laterality": "LR", "PatientSex": "MFO"}
    known = dict.fromkeys(coded)
    for name, letters in coded.items():
        if headers.get(name, "") in tuple(letters):
            known[name] = headers[name]
    return {
        "modality": name_modality(headers.get("Modality", "")) or None,
        "intent": name_intent(headers.get("PresentationIntentType", ""), headers.get("SOPClassUID", "")) or None,
        "body_part": name_body_part(headers.get("BodyPartExamined", "")) or None,
        "side": known["ImageLaterality"] or known["Laterality"],
        "sex": known["PatientSex"],
        "age_years": parse_age_years(headers.get("PatientAge", "")),
        "manufacturer": name_manufacturer(headers.get("Manufacturer", "")) or None,
    }
