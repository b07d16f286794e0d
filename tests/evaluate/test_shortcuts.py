from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from medcls.evaluate import shortcuts
from medcls.evaluate.shortcuts import _solve_ridge, compute_shortcut

ROWS = 240
PATIENTS = [f"p{row // 2}" for row in range(ROWS)]
SITE = np.array(["A", "B", "C"])[np.arange(ROWS) // 2 % 3]


def draw_features(*, seen):
    """Noise, and if asked a trace of the site."""
    features = np.random.default_rng(0).normal(size=(ROWS, 8))
    features[:, 0] += 3 * (SITE == "B") * seen
    features[:, 1] += 3 * (SITE == "C") * seen
    return features


def test_a_site_that_shows_is_found_and_one_that_does_not_is_chance():
    true = np.random.default_rng(1).integers(2, size=(ROWS, 1)).astype(float)
    shown, hidden = (
        compute_shortcut({"features": draw_features(seen=seen), "labels": true}, SITE, PATIENTS, replicates=100)
        for seen in (1, 0)
    )
    assert shown["values"] == {"A": 40, "B": 40, "C": 40}
    assert shown["features"]["low"] > 0.85
    assert shown["features"]["p_value"] == pytest.approx(1 / 201)
    assert hidden["features"]["p_value"] > 0.05
    assert hidden["features"]["low"] < 0.5 < hidden["features"]["high"] + 0.03
    assert abs(shown["labels"]["value"] - 0.5) < 0.12


def test_noise_tells_no_site(monkeypatch):
    """Features of pure noise, 100 data sets: the AUC is 0.5 on average, and p below 0.1 in about a tenth of them.

    40 permutations tell p below 0.1 as often as the 200 of a report: with a probability of 4 / 41, there 20 / 201.
    """
    monkeypatch.setattr(shortcuts, "PERMUTATIONS", 40)
    areas, chances = [], []
    for seed in range(100):
        generator = np.random.default_rng(seed)
        site = generator.choice(["A", "B"], 60)
        ids = [str(patient) for patient in range(60)]
        noise = generator.normal(size=(60, 12))
        entry = compute_shortcut(
            {"features": noise, "labels": np.zeros((60, 1))}, site, ids, least_patients=5, replicates=40, seed=seed
        )
        areas.append(entry["features"]["value"])
        chances.append(entry["features"]["p_value"])
    assert abs(np.mean(areas) - 0.5) < 0.025
    assert 0.03 < np.mean(np.array(chances) < 0.1) < 0.2


def test_labels_that_differ_between_sites_explain_it():
    true = (SITE == "A").astype(float)[:, None]
    found = compute_shortcut({"features": draw_features(seen=0), "labels": true}, SITE, PATIENTS, replicates=100)
    assert found["labels"]["value"] > 0.7


def test_patients_are_held_out_whole():
    """Two copies of each row of pure noise: known copies would give the site away."""
    noise = np.random.default_rng(2).normal(size=(ROWS // 2, 200)).repeat(2, axis=0)
    site = np.random.default_rng(3).choice(["A", "B"], ROWS // 2).repeat(2)
    told_from = {"features": noise, "labels": np.zeros((ROWS, 1))}
    whole = compute_shortcut(told_from, site, PATIENTS, replicates=100)["features"]["value"]
    mixed = compute_shortcut(told_from, site, [str(row) for row in range(ROWS)], replicates=100)["features"]["value"]
    assert whole < 0.65 < 0.8 < mixed


def test_values_of_few_patients_and_unknown_ones_are_left_out():
    site = ["A"] * 100 + [None] * 40 + ["B"] * 80 + ["rare"] * 20
    told_from = {"features": draw_features(seen=0), "labels": np.zeros((ROWS, 1))}
    assert compute_shortcut(told_from, site, PATIENTS, replicates=100)["values"] == {"A": 50, "B": 40}
    found = compute_shortcut(told_from, ["A"] * ROWS, PATIENTS)
    assert found["reason"] == "1 value with 20 patients or more: nothing to tell apart"


@pytest.mark.parametrize("columns", [5, 60])
def test_ridge_is_that_of_scikit_learn(columns):
    generator = np.random.default_rng(4)
    known, new, target = (
        generator.normal(size=(40, columns)),
        generator.normal(size=(7, columns)),
        np.eye(2)[[0, 1] * 20],
    )
    mean, spread = known.mean(axis=0), known.std(axis=0)
    oracle = Ridge(alpha=40.0).fit((known - mean) / spread, target)
    # A fold's intercept ranks nothing, so it is left out.
    found = _solve_ridge(known, new) @ target + target.mean(axis=0)
    np.testing.assert_allclose(found, oracle.predict((new - mean) / spread), atol=1e-9)
