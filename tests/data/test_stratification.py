"""Splits made by patient: disjoint, stratified, the same whatever the row order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from medcls.data import strata as strata_room
from medcls.data import stratification
from medcls.data.columns import Codes, code_column
from medcls.data.splits import DROPPED, ORDER, SPLIT_NAMES, find_shared_patients
from medcls.data.strata import Strata

FRACTIONS = {"train": 0.7, "val": 0.1, "test": 0.2}


def code(texts: Sequence[str | None]) -> Codes:
    return code_column(pa.chunked_array([pa.array(texts, pa.string())]))


def assign_splits(patients: Sequence[str], strata: Sequence[Sequence[str]], **arguments: object) -> list[str]:
    """The function under test, given and giving lists."""
    names = sorted({label for labels in strata for label in labels})
    pairs = [(row, names.index(label)) for row, labels in enumerate(strata) for label in labels]
    rows, codes = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    splits = stratification.assign_splits(
        code(patients), Strata(names, rows, codes.astype(np.int32)), **{"seed": 0, **arguments}
    )
    assert splits.dtype == np.int8
    return [SPLIT_NAMES[split] for split in splits]


def stratify(labels: Sequence[str | None]) -> list[list[str]]:
    strata = strata_room.stratify(code(labels))
    found: list[list[str]] = [[] for _ in labels]
    for row, label in zip(strata.rows, strata.codes, strict=True):
        found[row].append(strata.names[label])
    return found


# One patient: the labels of its images.
PATIENT = st.lists(st.sampled_from("abc"), min_size=1, max_size=4)
COHORT = st.lists(PATIENT, min_size=1, max_size=30)


def as_codes(splits: Sequence[str]) -> np.ndarray:
    return np.array([SPLIT_NAMES.index(name) for name in splits], dtype=np.int8)


def spread(cohort: list[list[str]]) -> tuple[list[str], list[list[str]]]:
    pairs = [(f"p{number}", [label]) for number, labels in enumerate(cohort) for label in labels]
    return [patient for patient, _ in pairs], [labels for _, labels in pairs]


@settings(max_examples=60, deadline=None)
@given(cohort=COHORT, seed=st.integers(0, 5), order=st.randoms(use_true_random=False))
def test_a_split_is_disjoint_and_does_not_depend_on_the_row_order(cohort, seed, order) -> None:
    patients, strata = spread(cohort)
    splits = assign_splits(patients, strata, fractions=FRACTIONS, seed=seed)
    assert find_shared_patients(code(patients), as_codes(splits)) == {}
    assert set(splits) <= set(ORDER)
    shuffled = list(range(len(patients)))
    order.shuffle(shuffled)
    again = assign_splits(
        [patients[i] for i in shuffled], [strata[i] for i in shuffled], fractions=FRACTIONS, seed=seed
    )
    assert again == [splits[i] for i in shuffled]


@settings(max_examples=30, deadline=None)
@given(
    counts=st.dictionaries(st.sampled_from("abcde"), st.integers(20, 80), min_size=2),
    images=st.integers(1, 3),
    seed=st.integers(0, 100),
)
def test_every_stratum_is_shared_out_in_proportion(counts: dict[str, int], images: int, seed: int) -> None:
    cohort = [[label] * images for label, number in counts.items() for _ in range(number)]
    patients, strata = spread(cohort)
    splits = assign_splits(patients, strata, fractions=FRACTIONS, seed=seed)
    for label, number in counts.items():
        got = Counter(split for split, labels in zip(splits, strata, strict=True) if labels == [label])
        for name, share in FRACTIONS.items():
            # Patients are whole: at most two of them off the exact share.
            assert abs(got[name] / images - share * number) <= 2, (label, name, got)


def test_each_of_several_labels_has_its_share_of_patients() -> None:
    """Within one patient: patients are dealt, and what one label's patients got another's make up for."""
    generator = np.random.default_rng(0)
    shares = {"a": 0.5, "b": 0.3, "rare": 0.05}
    strata = [[label for label in shares if generator.random() < shares[label]] for _ in range(600)]
    patients = [f"p{i // 2}" for i in range(600)]
    having = {label: {p for p, labels in zip(patients, strata, strict=True) if label in labels} for label in shares}
    for seed in range(5):
        splits = assign_splits(patients, strata, fractions=FRACTIONS, seed=seed)
        for name, share in FRACTIONS.items():
            there = {patient for patient, split in zip(patients, splits, strict=True) if split == name}
            assert all(abs(len(there & own) - share * len(own)) < 1 for own in having.values())


def test_every_split_has_a_label_of_as_many_patients_as_splits() -> None:
    cohort = [["rare"]] * 3 + [["common"]] * 60
    for seed in range(20):
        splits = assign_splits(*spread(cohort), fractions=FRACTIONS, seed=seed)
        assert sorted(splits[:3]) == sorted(ORDER)


def test_few_patients_of_as_many_labels_leave_no_split_empty() -> None:
    for seed in range(20):
        assert set(assign_splits(*spread([["a"], ["b"], ["c"], ["d"]]), fractions=FRACTIONS, seed=seed)) == set(ORDER)


def test_known_patients_stay_and_new_ones_make_up_for_their_shares() -> None:
    patients, strata = spread([["a"]] * 20 + [["a"]] * 20)
    codes = code(patients)
    known = np.full(40, SPLIT_NAMES.index(DROPPED), np.int8)
    known[[int(codes.text(place)[1:]) < 20 for place in range(40)]] = 0  # all in train
    for seed in range(5):
        splits = assign_splits(patients, strata, fractions=FRACTIONS, seed=seed, known=known)
        assert set(splits[:20]) == {"train"}
        assert Counter(splits) == {"train": 28, "val": 4, "test": 8}


def test_the_seed_changes_the_split_and_nothing_else_does() -> None:
    patients, strata = spread([["a"], ["b"]] * 20)
    first = assign_splits(patients, strata, fractions=FRACTIONS, seed=0)
    assert first == assign_splits(patients, strata, fractions=FRACTIONS, seed=0)
    assert len({tuple(assign_splits(patients, strata, fractions=FRACTIONS, seed=s)) for s in range(10)}) > 5


def test_a_split_is_the_same_on_every_machine() -> None:
    """Written down once: a changed recipe would move patients between the splits of finished studies."""
    patients, strata = spread([["a"], ["b"]] * 5)
    splits = assign_splits(patients, strata, fractions={"train": 0.5, "test": 0.5}, seed=0)
    assert "".join(split[1] for split in splits) == EXPECTED


EXPECTED = "rrrereeree"


def test_unlabelled_images_are_shared_out() -> None:
    splits = assign_splits([f"p{i}" for i in range(100)], [[]] * 100, fractions=FRACTIONS, seed=0)
    assert Counter(splits) == {"train": 70, "val": 10, "test": 20}


def test_a_share_of_zero_gets_none() -> None:
    splits = assign_splits(list("abcdef"), [["x"]] * 6, fractions={"train": 1.0, "val": 0.0, "test": 0.0}, seed=0)
    assert set(splits) == {"train"}


def test_few_labels_are_strata_and_many_numbers_are_binned() -> None:
    assert stratify(["1", None, "x"]) == [["1"], [], ["x"]]
    assert stratify([str(i) for i in range(20)])[3] == ["3"]
    assert stratify([f"name{i}" for i in range(50)])[3] == ["name3"]
    bins = stratify([*(str(i / 7) for i in range(400)), None])
    assert Counter(label for labels in bins for label in labels) == {f"bin {i}": 40 for i in range(10)}
    few = stratify([str(i / 7) for i in range(100)])
    assert Counter(label for labels in few for label in labels) == {f"bin {i}": 20 for i in range(5)}
    assert bins[-1] == []
    assert bins[0] == ["bin 0"]


def test_images_that_are_not_listed_are_dropped_and_count_for_nothing() -> None:
    patients, strata = spread([["a"], ["b"]] * 20)
    listed = np.arange(60) < 40
    more = [*patients, *[f"extra{i}" for i in range(20)]], [*strata, *[[]] * 20]
    splits = assign_splits(*more, fractions=FRACTIONS, listed=listed)
    assert splits[40:] == [DROPPED] * 20
    assert splits[:40] == assign_splits(patients, strata, fractions=FRACTIONS)


def test_strata_are_counted_by_split() -> None:
    strata = Strata(["a", "b"], np.array([0, 1, 1, 3]), np.array([0, 0, 1, 1], dtype=np.int32))
    splits = np.array([0, 2, 2, 3], dtype=np.int8)
    assert strata.count(splits).tolist() == [[1, 0], [0, 0], [1, 1], [0, 1]]
