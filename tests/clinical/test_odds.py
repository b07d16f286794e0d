"""Odds ratios that were put into synthetic patients come back, and their intervals cover the truth."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from medcls.clinical.odds import compute_ratios, fit_contrast, list_contrasts, read_own

TRUE = np.log([2.0, 0.5])  # of a level, and of one standard deviation
NAMES = ("no", "yes")


def draw(patients: int, *, seed: int, image: float = 0.0, images: int = 1) -> dict[str, Any]:
    """Patients with a level, a number and what an image says, whose log odds are the sum; (N, …) rows."""
    generator = np.random.default_rng(seed)
    level, number = generator.integers(0, 2, patients).astype(float), generator.normal(size=patients)
    signal = image * generator.normal(size=patients)
    clinical = np.stack([level, number], axis=1)
    chance = 1 / (1 + np.exp(-(-0.3 + clinical @ TRUE + signal)))
    sick = (generator.random(patients) < chance).astype(float)
    rows = np.repeat(np.arange(patients), images)
    return {"targets": sick[rows, None], "clinical": clinical[rows], "signal": signal[rows, None], "patients": rows}


def ratios(data: dict[str, Any], *, image: np.ndarray | None = None, replicates: int = 200) -> list[dict[str, Any]]:
    logits = data["signal"] if image is None else image
    contrasts = list_contrasts("binary", data["targets"], logits, class_names=NAMES)
    assert [each.name for each in contrasts] == ["yes against no"]
    settings: dict[str, Any] = {"l2": 1e-3, "replicates": replicates, "seed": 0}
    return compute_ratios(contrasts, data["clinical"], data["patients"], **settings)[0]


def covers(found: list[dict[str, Any]]) -> list[bool]:
    return [entry["low"] <= np.exp(true) <= entry["high"] for entry, true in zip(found, TRUE, strict=True)]


@pytest.mark.parametrize("image", [0.0, 2.0], ids=["images that say nothing", "images that say something of their own"])
def test_known_ratios_come_back_and_the_intervals_cover_them(image: float) -> None:
    found = ratios(draw(4000, seed=1, image=image))
    assert [entry["value"] for entry in found] == pytest.approx(np.exp(TRUE).tolist(), rel=0.15)
    assert covers(found) == [True, True]


@pytest.mark.parametrize("image", [0.0, 2.0])
def test_about_95_of_100_intervals_cover_the_truth(image: float) -> None:
    covered = [covers(ratios(draw(300, seed=seed, image=image), replicates=100)) for seed in range(60)]
    # Of 120 intervals at 95 % fewer than 105 cover with a chance below 1 in 10,000.
    assert np.sum(covered) >= 105


def test_without_the_image_ratios_shrink_as_they_do() -> None:
    data = draw(8000, seed=2, image=3.0)
    adjusted, crude = ratios(data), ratios(data, image=np.zeros((8000, 1)))
    assert crude[0]["value"] < adjusted[0]["value"]
    assert covers(adjusted)[0]
    assert not covers(crude)[0]


def test_a_network_that_is_too_sure_of_itself_bends_nothing() -> None:
    data = draw(4000, seed=3, image=2.0)
    plain, sure = ratios(data), ratios(data, image=5 * data["signal"])
    assert [a["value"] for a in sure] == pytest.approx([b["value"] for b in plain], rel=0.02)


def test_more_images_of_the_same_patients_make_no_interval_narrower() -> None:
    one, four = (ratios(draw(300, seed=4, images=images)) for images in (1, 4))
    for single, several in zip(one, four, strict=True):
        for key in ("value", "low", "high"):
            assert several[key] == pytest.approx(single[key], rel=0.01)


def test_a_level_that_is_hardly_ever_drawn_has_no_interval() -> None:
    data = draw(60, seed=5)
    data["clinical"][:, 0] = 0
    data["clinical"][0, 0] = 1
    found = ratios(data)
    assert (found[0]["low"], found[0]["high"]) == (None, None)
    assert "resamples of the patients" in found[0]["reason"]
    assert found[1]["low"] is not None


def test_a_column_of_one_value_has_no_ratio() -> None:
    data = draw(60, seed=5)
    data["clinical"][:, 0] = 0
    assert ratios(data)[0]["value"] is None


def test_coefficients_of_a_value_come_back_in_its_unit() -> None:
    generator = np.random.default_rng(0)
    clinical, image = generator.normal(size=(2000, 2)), generator.normal(size=(2000, 1))
    value = 100 + 10 * image + clinical @ np.array([[3.0], [-5.0]]) + generator.normal(size=(2000, 1))
    contrasts = list_contrasts("regression", value, 100 + 10 * image, class_names=[])
    settings: dict[str, Any] = {"l2": 1e-3, "replicates": 100, "seed": 0}
    found = compute_ratios(contrasts, clinical, np.arange(2000), **settings)[0]
    for entry, true in zip(found, (3.0, -5.0), strict=True):
        assert entry["low"] < true < entry["high"]
        assert entry["high"] - entry["low"] < 0.2


def test_classes_are_compared_with_the_first() -> None:
    """The odds of each pair of classes in a softmax are those of the difference of its logits."""
    generator = np.random.default_rng(0)
    clinical = generator.normal(size=(20_000, 1))
    weight = np.array([[0.5], [1.2], [-0.3]])
    logits = clinical @ weight.T
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    targets = (generator.random((20_000, 1)) > shares.cumsum(axis=1)).sum(axis=1, keepdims=True).astype(float)
    for output in ("multiclass", "joint"):
        contrasts = list_contrasts(output, targets, np.zeros((20_000, 3)), class_names=["a", "b", "c"])
        assert [each.name for each in contrasts] == ["b against a", "c against a"]
        everyone = np.ones((1, 20_000))
        found = [fit_contrast(each, clinical, weights=everyone, l2=1e-6)[1][0, 0] for each in contrasts]
        assert found == pytest.approx([0.7, -0.8], abs=0.06)
    assert [x.tolist() for x in read_own("multiclass", weight)] == [[pytest.approx(0.7)], [pytest.approx(-0.8)]]
    extra = np.concatenate([weight, [[9.0]]])
    assert [x.tolist() for x in read_own("joint", extra)] == [[pytest.approx(0.7)], [pytest.approx(-0.8)]]


def test_grades_share_the_odds_of_going_on() -> None:
    generator = np.random.default_rng(0)
    clinical = generator.normal(size=(20_000, 1))
    grade = np.zeros(20_000)
    for step, bias in enumerate((0.4, -0.2)):
        going = generator.random(20_000) < 1 / (1 + np.exp(-(bias + 0.9 * clinical[:, 0])))
        grade += going & (grade == step)
    (contrast,) = list_contrasts("ordinal", grade[:, None], np.zeros((20_000, 2)), class_names=["0", "1", "2"])
    assert len(contrast.rows) == 20_000 + int((grade >= 1).sum())
    intercepts, coefficients = fit_contrast(contrast, clinical, weights=np.ones((1, 20_000)), l2=1e-6)
    assert intercepts[0] == pytest.approx([0.4, -0.2], abs=0.06)
    assert coefficients[0] == pytest.approx([0.9], abs=0.06)


def test_unknown_labels_take_no_part() -> None:
    targets = np.array([[0, np.nan], [1, 0], [np.nan, 1], [1, 1]])
    first, second = list_contrasts("multilabel", targets, np.zeros((4, 2)), class_names=["a", "b"])
    assert (first.name, first.rows.tolist(), first.outcome.tolist()) == ("a", [0, 1, 3], [0.0, 1.0, 1.0])
    assert (second.name, second.rows.tolist(), second.outcome.tolist()) == ("b", [1, 2, 3], [0.0, 1.0, 1.0])
