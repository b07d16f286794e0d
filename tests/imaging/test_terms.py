"""Terms that a header's words are known by: free text never comes back."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medcls.imaging.dicom import terms
from medcls.imaging.dicom.terms import name_body_part, name_manufacturer, name_modality, name_photometric

NAMES = [
    "MUELLER HANS",
    "Praxis Dr. Hans Mueller",
    "Doe^Jane",
    "ANNOON",
    "Любимов^Иван",
    "HANS CHEST",
    "CHESTER",
    "CTR",
]
OWN = {
    name_modality: terms._MODALITIES,
    name_photometric: terms._PHOTOMETRICS,
    name_body_part: terms._BODY_PARTS,
    name_manufacturer: {*terms._VENDORS.values(), "other"},
}


@pytest.mark.parametrize("name", [name_modality, name_body_part, name_photometric])
@pytest.mark.parametrize("text", [*NAMES, "", "  ", "L R", "AND"])
def test_what_is_no_term_is_dropped(name: Callable[[str], str], text: str) -> None:
    assert name(text) == ""


@pytest.mark.parametrize(
    ("text", "term"),
    [("CT", "CT"), (" mr ", "MR"), ("DX", "DX"), ("OPTBSV", "OPTBSV"), ("VF", "VF"), ("SC", ""), ("CT MR", "")],
)
def test_a_modality_is_a_defined_term(text: str, term: str) -> None:
    assert name_modality(text) == term


@pytest.mark.parametrize(
    ("text", "term"),
    [
        ("CHEST", "CHEST"),
        ("Brain", "BRAIN"),
        ("WHOLE BODY", "WHOLEBODY"),
        ("WHOLEBODY", "WHOLEBODY"),
        ("HEAD_NECK", "HEADNECK"),
        ("Head and Neck", "HEADNECK"),
        ("C-SPINE", "CSPINE"),
        ("CHEST/ABDOMEN/PELVIS", "CHESTABDOMENPELVIS"),
        ("LEFT KNEE", "KNEE"),
        ("R Hand", "HAND"),
        ("KNEES", "KNEE"),
        ("PELVIS", "PELVIS"),
        ("LKNEE", ""),
        ("KNEE HANS", ""),
        ("NECKCHEST" * 500, ""),
    ],
)
def test_a_body_part_is_one_word_without_its_side(text: str, term: str) -> None:
    assert name_body_part(text) == term


@pytest.mark.parametrize(
    ("text", "vendor"),
    [
        ("SIEMENS", "Siemens"),
        ("Siemens Healthineers", "Siemens"),
        ("GE MEDICAL SYSTEMS", "GE"),
        ("G.E. Medical Systems", "GE"),
        ("GE_HEALTHCARE", "GE"),
        ("Philips Medical Systems, Inc.", "Philips"),
        ("TOSHIBA_MEC", "Canon"),
        ("Canon Medical Systems", "Canon"),
        ("FUJI PHOTO FILM CO. LTD.", "Fujifilm"),
        ("LORAD, A Hologic Company", "Hologic"),
        ("LORAD", "Lorad"),
        ("Agfa-Gevaert AG", "Agfa"),
        ("KONICA MINOLTA", "Konica Minolta"),
        ("UIH", "United Imaging"),
        ("medcls demo (synthetic)", "synthetic"),
        ("", ""),
        (" ", ""),
        ("日本", "other"),
        ("4711", "other"),
    ],
)
def test_a_manufacturer_is_known_by_a_word(text: str, vendor: str) -> None:
    assert name_manufacturer(text) == vendor


@pytest.mark.parametrize("text", [*NAMES, "GERHARD", "Gerhard Siemensen", "Praxis Angela Fujimoto", "ORANGE", "Other"])
def test_no_vendor_is_found_inside_a_name(text: str) -> None:
    assert name_manufacturer(text) == "other"


@pytest.mark.parametrize(
    ("text", "term"),
    [("MONOCHROME2", "MONOCHROME2"), ("palette  color ", "PALETTE COLOR"), ("RGB", "RGB"), ("L", "L"), ("YBR", "")],
)
def test_a_photometric_kind_is_a_defined_term(text: str, term: str) -> None:
    assert name_photometric(text) == term


@pytest.mark.parametrize("name", OWN)
def test_a_term_is_its_own_name(name: Callable[[str], str]) -> None:
    assert {name(term) for term in OWN[name]} == set(OWN[name])
    assert all(name(term) == term for term in OWN[name])


@given(st.lists(st.sampled_from(sorted(terms._BODY_PARTS)), min_size=1, max_size=4), st.sampled_from(" _-/"))
def test_a_compound_is_its_own_name(parts: list[str], link: str) -> None:
    text = link.join(parts)
    expected = "".join(parts) if len(text) <= 64 else ""
    assert name_body_part(text) == expected
    assert name_body_part(expected) == expected


@given(st.text(max_size=30))
def test_nothing_but_own_words_comes_back(text: str) -> None:
    assert name_modality(text) in {"", *OWN[name_modality]}
    assert name_photometric(text) in {"", *OWN[name_photometric]}
    assert name_manufacturer(text) in {"", *OWN[name_manufacturer]}
