"""Agreement of readers against published examples, definitions and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from medcls.statistics.reader_agreement import measure_agreement

# Krippendorff 2011, Computing Krippendorff's Alpha-Reliability, section C: four readers, twelve units, gaps.
KRIPPENDORFF = [
    "1.2.3.3.2.1.4.1.2. . . ",
    "1.2.3.3.2.2.4.1.2.5. .3",
    " .3.3.3.2.3.4.2.2.5.1. ",
    "1.2.3.3.2.4.4.1.2.5.1. ",
]


def count_votes(readers: list[list[int]], classes: int) -> np.ndarray:
    votes = np.zeros((len(readers[0]), classes))
    for reader in readers:
        for row, label in enumerate(reader):
            if label >= 0:
                votes[row, label] += 1
    return votes


def test_alpha_of_krippendorffs_own_example() -> None:
    readers = [[int(cell) - 1 if cell.strip() else -1 for cell in row.split(".")] for row in KRIPPENDORFF]
    found = measure_agreement(count_votes(readers, 5), np.arange(12), replicates=200)
    assert found["alpha"]["value"] == pytest.approx(0.743, abs=0.0005)
    assert found["images"] == 11, "a unit with one reader says nothing about agreement"


def test_alpha_of_two_readers_approaches_cohens_kappa() -> None:
    generator = np.random.default_rng(0)
    first = generator.integers(3, size=4000)
    second = np.where(generator.random(4000) < 0.7, first, generator.integers(3, size=4000))
    found = measure_agreement(count_votes([first.tolist(), second.tolist()], 3), np.arange(4000) // 2, replicates=200)
    assert found["alpha"]["value"] == pytest.approx(cohen_kappa_score(first, second), abs=0.002)
    assert found["agreement"]["value"] == pytest.approx(np.mean(first == second))
    assert found["patients"] == 2000
    assert found["alpha"]["low"] < found["alpha"]["value"] < found["alpha"]["high"]


def test_the_interval_is_wider_if_few_patients_have_many_images() -> None:
    generator = np.random.default_rng(1)
    of_patient = generator.random(40) < 0.5  # patients whose images readers find hard, and easy
    patients = np.repeat(np.arange(40), 10)
    first = generator.integers(2, size=400)
    second = np.where(of_patient[patients] & (generator.random(400) < 0.8), 1 - first, first)
    votes = count_votes([first.tolist(), second.tolist()], 2)
    clustered, single = (measure_agreement(votes, each, replicates=400)["alpha"] for each in (patients, np.arange(400)))
    assert clustered["high"] - clustered["low"] > 1.5 * (single["high"] - single["low"])


def test_readers_who_never_differ_have_no_alpha_but_full_agreement() -> None:
    found = measure_agreement(np.array([[2.0, 0], [2, 0], [3, 0]]), np.arange(3), replicates=50)
    assert found["agreement"]["value"] == 1
    assert found["alpha"]["value"] is None
    assert "all readers gave all images one class" in found["alpha"]["reason"]


def test_single_readers_have_no_agreement() -> None:
    assert measure_agreement(np.array([[1.0, 0], [0, 1]]), np.arange(2)) == {"images": 0, "patients": 0}
