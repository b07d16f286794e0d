"""Splits and folds differ by chance alone: in images per patient, age, sex and label, over many seeds.

The test: a variable's mean in a split, less its mean in the cohort, is compared with what dealing the same numbers of
patients without any rule would give. Two statements are tested for each variable and split:

- no bias: the differences of all seeds, each divided by its standard error without replacement, sum to zero (z test);
- no excess: differences beyond the 95 % limit of 4,000 permutations are no more than one in twenty (binomial test).

Both at a level of 0.001 over all variables, splits, designs and cohorts of a run (Bonferroni). Seeds are fixed: the
outcome is the same every time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import binom, norm

from medcls.config import FoldsConfig
from medcls.data.columns import Codes, code_column
from medcls.data.folds import make_folds
from medcls.data.strata import Strata
from medcls.data.stratification import assign_shares, assign_splits

LEVEL = 0.001
FRACTIONS = {"train": 0.7, "val": 0.1, "test": 0.2}


def code(texts: list[str]) -> Codes:
    return code_column(pa.chunked_array([pa.array(texts, pa.string())]))


@dataclass
class Cohort:
    """Patients with what is known of each: images, and the columns that have to differ by chance alone."""

    images: NDArray[np.int64]
    known: dict[str, NDArray[np.float64]]
    labels: list[list[str]]

    def __post_init__(self) -> None:
        texts = [f"p{number:05d}" for number in range(len(self.images))]
        self.patients = code([text for text, size in zip(texts, self.images, strict=True) for _ in range(size)])
        names = sorted({label for own in self.labels for label in own})
        owner = np.repeat(np.arange(len(self.images)), self.images)
        pairs = [(row, names.index(label)) for row, one in enumerate(owner) for label in self.labels[one]]
        rows, codes = np.array(pairs, np.int64).reshape(-1, 2).T
        self.strata = Strata(names, rows, codes.astype(np.int32))
        self.first = np.unique(owner, return_index=True)[1]
        self.known = {"images": self.images.astype(float)} | self.known
        for name in names:
            self.known[f"label {name}"] = np.array([name in own for own in self.labels], float)


def make_cohort(images: NDArray[np.int64], labels: list[list[str]], seed: int) -> Cohort:
    """Older patients and men have more images: a rule about images would show in age and sex, too."""
    generator = np.random.default_rng(seed)
    age = 50 + 3 * np.log(images) + generator.normal(0, 10, len(images))
    sex = generator.random(len(images)) < np.where(images > np.median(images), 0.7, 0.4)
    return Cohort(images, {"age": age, "sex": sex.astype(float)}, labels)


def few_with_several() -> Cohort:
    """165 subjects of whom 28 have more than one scan."""
    sizes = np.array([1] * 137 + [2] * 15 + [3] * 8 + [9] * 5)
    return make_cohort(sizes, [[("AD", "CN")[i % 2]] for i in range(165)], 0)


def skewed() -> Cohort:
    """500 patients, numbers of images with a long tail, one label in three grades, the rarest in a twentieth."""
    generator = np.random.default_rng(1)
    grades = generator.choice(["0", "1", "2"], 500, p=[0.6, 0.35, 0.05]).tolist()
    return make_cohort(np.minimum(generator.zipf(1.7, 500), 60), [[grade] for grade in grades], 1)


def several_labels() -> Cohort:
    """400 patients with any of five findings, some with none, rare ones and many images together."""
    generator = np.random.default_rng(2)
    images = generator.geometric(0.3, 400)
    shares = dict(zip("abcde", (0.4, 0.3, 0.15, 0.08, 0.04), strict=True))
    chance = generator.random((400, 5)) / (1 + (images > 3))[:, None]
    labels = [[name for name, draw in zip(shares, row, strict=True) if draw < shares[name]] for row in chance.tolist()]
    return make_cohort(images, labels, 2)


Deal = Callable[[Cohort, int], list[NDArray[np.bool_]]]


def deal_splits(cohort: Cohort, seed: int) -> list[NDArray[np.bool_]]:
    splits = assign_splits(cohort.patients, cohort.strata, fractions=FRACTIONS, seed=seed)[cohort.first]
    return [splits == place for place in range(3)]


def deal_folds(cohort: Cohort, seed: int) -> list[NDArray[np.bool_]]:
    """The test parts of three folds, and the validation part of the first."""
    pool = np.ones(len(cohort.patients.values), bool)
    folds = make_folds(cohort.patients, cohort.strata, FoldsConfig(k=3, val=0.2, seed=seed), pool=pool)
    parts = [fold.splits[cohort.first] for fold in folds]
    return [*(part == 2 for part in parts), parts[0] == 1]


def deal_halves(cohort: Cohort, seed: int) -> list[NDArray[np.bool_]]:
    """One half of a 5x2 design, in its fifth repeat."""
    pool = np.ones(len(cohort.patients.values), bool)
    folds = make_folds(
        cohort.patients, cohort.strata, FoldsConfig(kind="repeated", k=2, repeats=5, val=0.1, seed=seed), pool=pool
    )
    return [folds[8].splits[cohort.first] == 2]


def deal_shares(cohort: Cohort, seed: int) -> list[NDArray[np.bool_]]:
    """The inner folds of the support vector machine."""
    shares = {f"fold {number}": 0.2 for number in range(5)}
    places = assign_shares(cohort.patients, cohort.strata, shares=shares, seed=seed)[cohort.first]
    return [places == place for place in range(5)]


def find_more_than_chance(
    cohorts: list[Callable[[], Cohort]], designs: list[Deal], *, seeds: int, permutations: int = 4000
) -> list[str]:
    """Return the comparisons that say more than chance; the level is shared by all of them."""
    results = []
    for make in cohorts:
        cohort = make()
        for deal in designs:
            dealt = [deal(cohort, seed) for seed in range(seeds)]
            for part in range(len(dealt[0])):
                chosen = np.array([parts[part] for parts in dealt])
                for name, values in cohort.known.items():
                    where = f"{make.__name__}, {deal.__name__}, part {part}: {name}"
                    results.append((where, *_compare(values, chosen, permutations=permutations)))
    level = LEVEL / (2 * len(results))
    limit = norm.isf(level / 2)
    most = binom.isf(level, seeds, 0.05)
    return [f"{where}: z {z:.1f}, beyond {beyond}" for where, z, beyond in results if abs(z) > limit or beyond > most]


def _compare(values: NDArray[np.float64], chosen: NDArray[np.bool_], *, permutations: int) -> tuple[float, int]:
    """Return the z of the summed differences, and how many lie beyond the limit of permutations."""
    total = len(values)
    sizes = chosen.sum(axis=1)
    differences = (chosen @ values) / sizes - values.mean()
    errors = np.sqrt(values.var(ddof=1) / sizes * (1 - sizes / total))
    z = float((differences / errors).sum() / np.sqrt(len(sizes)))
    generator = np.random.default_rng(0)
    shuffled = np.array([generator.permutation(values) for _ in range(permutations)])
    beyond = 0
    for size in np.unique(sizes):
        expected = np.abs(shuffled[:, :size].mean(axis=1) - values.mean())
        beyond += int((np.abs(differences[sizes == size]) > np.quantile(expected, 0.95) + 1e-12).sum())
    return z, beyond


@pytest.mark.slow
def test_splits_and_folds_of_200_seeds_differ_by_chance_alone() -> None:
    designs: list[Deal] = [deal_splits, deal_folds, deal_halves, deal_shares]
    assert find_more_than_chance([few_with_several, skewed, several_labels], designs, seeds=200) == []


def test_splits_and_folds_of_25_seeds_differ_by_chance_alone() -> None:
    assert find_more_than_chance([few_with_several], [deal_splits, deal_folds], seeds=25, permutations=1000) == []


def test_patients_with_most_images_reach_every_split_as_often_as_others() -> None:
    """Of the 28 with several scans 0.7, 0.1 and 0.2 by 40 seeds: within 4.5 standard errors of independent draws."""
    cohort = few_with_several()
    counts = np.array(
        [[(part & (cohort.images > 1)).sum() for part in deal_splits(cohort, seed)] for seed in range(40)]
    )
    expected = 28 * 40 * np.array([0.7, 0.1, 0.2])
    assert (np.abs(counts.sum(axis=0) - expected) < 4.5 * np.sqrt(expected * [0.3, 0.9, 0.8])).all()


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 40), min_size=30, max_size=120),
    labels=st.integers(1, 3),
    seed=st.integers(0, 10**6),
)
def test_shares_of_images_stay_within_five_of_a_labels_largest_patients(sizes, labels, seed) -> None:
    """The stated tolerance; patients of a label are within two of their share."""
    cohort = make_cohort(np.array(sizes), [[f"c{i % labels}"] for i in range(len(sizes))], 0)
    for part, share in zip(deal_splits(cohort, seed), FRACTIONS.values(), strict=True):
        for name in cohort.strata.names:
            own = cohort.known[f"label {name}"] == 1
            assert abs((part & own).sum() - share * own.sum()) < 2
            images = cohort.images[own]
            assert abs(cohort.images[part & own].sum() - share * images.sum()) <= 5 * images.max()


def test_shares_of_images_of_5000_patients_stay_within_one_percent() -> None:
    generator = np.random.default_rng(3)
    cohort = make_cohort(generator.geometric(0.35, 5000), [["ab"[i % 2]] for i in range(5000)], 3)
    for seed in range(3):
        parts = deal_splits(cohort, seed)
        shares = [cohort.images[part].sum() / cohort.images.sum() for part in parts]
        assert np.abs(np.array(shares) - [0.7, 0.1, 0.2]).max() < 0.01
        per_patient = [cohort.images[part].mean() for part in parts]
        assert np.ptp(per_patient) < 0.1
