"""What labels say of themselves: order, health, sides; what they leave open stays open."""

from __future__ import annotations

import pytest

from medcls.data.label_words import HEALTHY, find_order, find_sides, fold, is_healthy, propose_order

SURE = [
    ["0", "1", "2", "10"],
    ["-2", "1.5", "3"],
    ["KL0", "KL2", "KL10"],
    ["grade 1", "Grade_2", "GRADE-3"],
    ["T1a", "T1b", "T2"],
    ["I", "II", "III", "IV", "IX"],
    ["stage I", "stage IIa", "stage IIb", "stage III"],
    ["0", "I", "II"],
    ["<10", "10-29", ">=30"],
    ["0", "1-3", "4+"],
    ["<10 mm", "10-30 mm", ">30 mm"],
    ["10 to 20", "20 to 30"],
]
OPEN = [
    ["mild", "none"],
    ["A", "B"],
    # A stage beside its own parts, bounds that overlap, two numbers, two names, letters that are no numbers.
    ["T1", "T1a", "T2"],
    ["<10", ">5"],
    ["3+3", "3+4", "4+4"],
    ["H1N1", "H5N1"],
    ["N0", "N1", "M1"],
    ["V", "I"],
    ["1", "2", "x"],
    ["COVID-19", "flu"],
]


@pytest.mark.parametrize("labels", SURE)
def test_numbers_in_labels_order_them(labels: list[str]) -> None:
    assert find_order(labels) == labels
    assert find_order(sorted(labels, reverse=True)) == labels


@pytest.mark.parametrize("labels", OPEN)
def test_labels_that_leave_their_order_open_have_none(labels: list[str]) -> None:
    assert find_order(labels) is None


SCALES = [
    ["none", "mild", "moderate", "severe"],
    ["No_DR", "Mild", "Moderate", "Severe", "Proliferate_DR"],
    ["NonDemented", "VeryMildDemented", "MildDemented", "ModerateDemented"],
    ["Normal", "Benign", "InSitu", "Invasive"],
    ["CN", "MCI", "AD"],
    ["small", "medium", "large"],
]


@pytest.mark.parametrize("labels", SCALES)
def test_words_of_a_known_scale_have_a_likely_order(labels: list[str]) -> None:
    assert propose_order(sorted(labels)) == labels


@pytest.mark.parametrize(
    "labels", [["nevus", "melanoma"], ["mild to moderate", "none", "severe"], ["not mild", "mild"]]
)
def test_words_of_no_scale_or_of_two_steps_have_no_likely_order(labels: list[str]) -> None:
    assert propose_order(labels) is None


def test_healthy_words_are_found_in_any_spelling_and_only_whole() -> None:
    assert all(fold(word) == word for word in HEALTHY)
    assert all(map(is_healthy, ("Normal ", "no_finding", "CN", "0.0", "NC+control", "Healthy-Control")))
    assert not any(map(is_healthy, ("abnormal", "not normal", "NC+AD", "1", "", "noise", "MCI")))


def test_sides_are_words_of_their_own() -> None:
    sided = ["left", "lesion_R", "lesion_L", "LeftEye", "laterality", "effusion, right"]
    assert find_sides([*sided, "L1", "bright", "cleft", "leftover", "normal"]) == sided
    assert find_sides(["OD", "OS"]) == ["OD", "OS"]
    # Overall survival, and one letter by itself.
    assert find_sides(["OS", "group L", "RT"]) == []
