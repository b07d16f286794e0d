"""What a manifest row takes over from labels and headers, and what it leaves."""

from __future__ import annotations

from dataclasses import replace

import pytest

from data_prep.manifest_rows import declared_sha256
from data_prep.plan import Unit
from medcls.identity import Identity
from medcls.imaging.dicom.terms import parse_age_years


@pytest.mark.parametrize(
    ("text", "years"),
    [
        ("057Y", 57.0),
        ("006M", 0.5),
        ("052W", 1.0),
        ("100D", 0.27),
        ("", None),
        ("57Y", None),
        ("0570Y", None),
        ("abcY", None),
        ("057X", None),
        ("²²²Y", None),
        ("-57Y", None),
    ],
)
def test_dicom_ages(text: str, years: float | None) -> None:
    assert parse_age_years(text) == years


def test_the_declaration_is_known_by_its_content_and_guessed_by_nobody() -> None:
    unit = Unit("a.png", ("a.png",), "P1", sex="F", age_years=50.0)
    keyed, other = Identity("hmac", bytes(32)), Identity("hmac", bytes([1] * 32))
    first = declared_sha256(unit, keyed)
    assert first == declared_sha256(replace(unit, number=9, extra={"site": "n"}), keyed)
    for changed in (replace(unit, sex="M"), replace(unit, age_years=51.0), replace(unit, patient_id="P2")):
        assert declared_sha256(changed, keyed) != first
    assert declared_sha256(unit, other) != first
