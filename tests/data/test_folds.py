"""Folds by patient: a partition, stratified, without leaks, the same in any row order, nested in size."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medcls.config import FoldsConfig
from medcls.data.columns import Codes, code_column
from medcls.data.duplicates import DuplicatePair
from medcls.data.folds import (
    Fold,
    Linked,
    check_labels,
    find_links,
    keep_earlier,
    link_patients,
    make_folds,
    shrink_training,
    write_fold,
)
from medcls.data.splits import SPLIT_NAMES, read_patients, read_split, write_split
from medcls.data.store import Store
from medcls.data.strata import Strata, build_strata, stratify
from medcls.data.stratification import EARLIER
from medcls.errors import ConfigError, DataError

TRAIN, VAL, TEST, OUT = range(4)
LIMITS = {"max_bits_of_256": 16, "min_correlation": 0.9}


def code(texts: Sequence[str | None]) -> Codes:
    return code_column(pa.chunked_array([pa.array(texts, pa.string())]))


def make_set(patients: int, images: int = 2, labels: int = 3) -> tuple[Codes, Strata]:
    """Patients with `images` each, labels in turn."""
    rows = [(f"p{p:03d}", str(p % labels)) for p in range(patients) for _ in range(images)]
    return code([p for p, _ in rows]), stratify(code([label for _, label in rows]))


def everyone(patients: Codes) -> np.ndarray:
    return np.ones(len(patients.values), dtype=bool)


def patients_in(fold: Fold, patients: Codes, split: int) -> set[int]:
    return set(patients.values[fold.splits == split].tolist())


@settings(deadline=None, max_examples=25)
@given(st.integers(36, 48), st.integers(2, 5), st.integers(1, 3), st.integers(0, 5))
def test_every_repeat_is_a_partition_by_patient(number: int, k: int, repeats: int, seed: int) -> None:
    patients, strata = make_set(number)
    pool = everyone(patients)
    pool[: 2 * (number // 6)] = False
    kind = "repeated" if repeats > 1 else "kfold"
    folds = make_folds(patients, strata, FoldsConfig(kind=kind, k=k, repeats=repeats, val=0.2, seed=seed), pool=pool)
    assert [(fold.repeat, fold.number) for fold in folds] == [
        (r, f) for r in range(1, repeats + 1) for f in range(1, k + 1)
    ]
    for repeat in range(1, repeats + 1):
        own = [fold for fold in folds if fold.repeat == repeat]
        tested = np.sum([fold.splits == TEST for fold in own], axis=0)
        assert (tested == pool).all(), "each image of the pool is tested once, none outside it"
    for fold in folds:
        assert ((fold.splits == OUT) == ~pool).all()
        parts = [patients_in(fold, patients, split) for split in (TRAIN, VAL, TEST)]
        assert all(parts)
        assert sum(map(len, parts)) == len(set.union(*parts)), "no patient in two splits"


def test_labels_are_in_proportion_in_folds_and_validation() -> None:
    patients, strata = make_set(90)
    for fold in make_folds(
        patients, strata, FoldsConfig(kind="repeated", k=5, repeats=2, val=0.25), pool=everyone(patients)
    ):
        counts = strata.count(fold.splits)
        assert counts[TEST].tolist() == [12, 12, 12]
        assert counts[VAL].tolist() == [12, 12, 12]


def test_repeats_and_seeds_differ_and_the_same_arguments_give_the_same() -> None:
    patients, strata = make_set(30)
    make = lambda seed: [
        f.splits.tolist()
        for f in make_folds(
            patients, strata, FoldsConfig(kind="repeated", k=2, repeats=2, seed=seed), pool=everyone(patients)
        )
    ]
    assert make(0) == make(0)
    assert make(0) != make(1)
    assert make(0)[0] != make(0)[2]


def test_row_order_does_not_matter() -> None:
    patients, strata = make_set(30)
    order = np.random.default_rng(0).permutation(60)
    texts = [patients.text(c) for c in patients.values[order]]
    labels = [strata.names[c] for c in strata.codes[order]]
    shuffled = make_folds(code(texts), stratify(code(labels)), FoldsConfig(k=3), pool=np.ones(60, bool))
    for fold, other in zip(
        make_folds(patients, strata, FoldsConfig(k=3), pool=np.ones(60, bool)), shuffled, strict=True
    ):
        assert fold.splits[order].tolist() == other.splits.tolist()
        small = shrink_training(fold, 12, patients=patients, strata=strata)
        again = shrink_training(other, 12, patients=code(texts), strata=stratify(code(labels)))
        assert small.splits[order].tolist() == again.splits.tolist()


def test_linked_patients_stay_together() -> None:
    patients, strata = make_set(20)
    pairs = [DuplicatePair(0, 39, 1.0, identical=True), DuplicatePair(39, 20, 0.97, identical=False)]
    linked = link_patients(patients, pairs)
    assert len(linked.texts) == 18
    assert linked.values[0] == linked.values[39] == linked.values[20]
    assert linked.text(linked.values[39]) == "p000"
    for seed in range(5):
        for fold in make_folds(linked, strata, FoldsConfig(k=4, seed=seed), pool=everyone(patients)):
            assert len({fold.splits[row] for row in (0, 1, 38, 39, 20, 21)}) == 1


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 9), st.integers(6, 40), st.integers(6, 40))
def test_a_smaller_training_set_lies_within_a_larger_one(seed: int, one: int, other: int) -> None:
    patients, strata = make_set(36)
    fold = make_folds(patients, strata, FoldsConfig(k=3, seed=seed), pool=everyone(patients))[0]
    small, large = (
        shrink_training(fold, size, patients=patients, strata=strata, seed=seed) for size in sorted((one, other))
    )
    for size, shrunk in zip(sorted((one, other)), (small, large), strict=True):
        assert size - 1 <= (shrunk.splits == TRAIN).sum() <= size
        for split in (VAL, TEST):
            assert ((shrunk.splits == split) == (fold.splits == split)).all(), "only training shrinks"
        assert (strata.count(shrunk.splits)[TRAIN] > 0).all(), "even the smallest has every label"
        assert np.ptp(strata.count(shrunk.splits)[TRAIN]) <= 2, "in proportion up to one patient"
    assert set(np.flatnonzero(small.splits == TRAIN)) <= set(np.flatnonzero(large.splits == TRAIN))
    assert shrink_training(fold, None, patients=patients, strata=strata) is fold


def test_a_size_beyond_the_training_images_is_refused() -> None:
    patients, strata = make_set(30)
    fold = make_folds(patients, strata, FoldsConfig(k=3), pool=everyone(patients))[0]
    with pytest.raises(DataError, match=r"sizes=60: fold r1f1 has \d+ training images; 0 takes all"):
        shrink_training(fold, 60, patients=patients, strata=strata)


def test_too_few_patients_and_missing_labels_are_refused() -> None:
    patients, strata = make_set(4)
    with pytest.raises(DataError, match=r"4 patients cannot make 5 folds"):
        make_folds(patients, strata, FoldsConfig(k=5), pool=everyone(patients))
    fold = make_folds(patients, strata, FoldsConfig(k=2), pool=everyone(patients))[0]
    with pytest.raises(DataError, match=r"fold r1f1: .*has no image of"):
        check_labels(fold, strata)


def test_a_fold_becomes_a_certified_split_and_is_written_once(fresh_store: Store) -> None:
    _, certificate = read_split(fresh_store, "default")
    pairs = find_links(fresh_store, certificate)
    assert pairs == []
    patients = fresh_store.codes("patient_id")
    strata = build_strata(pa.table({"label": fresh_store.read("side").column("side")}))
    folds = make_folds(patients, strata, FoldsConfig(k=2), pool=everyone(patients))
    provenance = {"source": "fold", "seed": 0, "near_duplicates": LIMITS}
    for _ in range(2):
        write_fold(
            fresh_store,
            "cv",
            fold=folds[0],
            strata=strata,
            linked=Linked(fresh_store.codes("patient_id"), pairs),
            provenance=provenance,
        )
    splits, written = read_split(fresh_store, "cv")
    assert splits.tolist() == folds[0].splits.tolist()
    assert written["on_leak"] == "refuse"
    assert sum(written["images"].values()) == 48
    with pytest.raises(ConfigError, match=r"split.name=cv is already in the store, made with other .*folds\.name="):
        write_fold(
            fresh_store,
            "cv",
            fold=folds[1],
            strata=strata,
            linked=Linked(fresh_store.codes("patient_id"), pairs),
            provenance=provenance,
        )


def test_a_fold_of_version_0_2_0_is_kept_for_the_same_arguments(fresh_store: Store) -> None:
    patients = fresh_store.codes("patient_id")
    strata = build_strata(pa.table({"label": fresh_store.read("side").column("side")}))
    first, second = make_folds(patients, strata, FoldsConfig(k=2, val=0.2), pool=everyone(patients))
    provenance = {"source": "fold", "seed": 0, "near_duplicates": LIMITS}
    arguments = {"fold": first, "provenance": provenance, "val": 0.2}
    assert keep_earlier(fresh_store, "cv", **arguments) is first
    write_fold(
        fresh_store,
        "cv",
        fold=second,
        strata=strata,
        linked=Linked(fresh_store.codes("patient_id"), []),
        provenance=provenance,
    )
    assert keep_earlier(fresh_store, "cv", **arguments) is first, "made by this version: compared, and refused"
    splits, certificate = read_split(fresh_store, "cv")
    old = {name: value for name, value in certificate.items() if name != "algorithm"}
    write_split(fresh_store, "cv", splits=splits, certificate=old)
    kept = keep_earlier(fresh_store, "cv", **arguments)
    assert kept.splits.tolist() == second.splits.tolist()
    write_fold(
        fresh_store,
        "cv",
        fold=kept,
        strata=strata,
        linked=Linked(fresh_store.codes("patient_id"), []),
        provenance=provenance,
    )
    assert read_split(fresh_store, "cv")[1]["algorithm"] == EARLIER
    assert keep_earlier(fresh_store, "cv", **arguments).splits.tolist() == second.splits.tolist()
    for change in ({"val": 0.4}, {"provenance": provenance | {"seed": 1}}):
        assert keep_earlier(fresh_store, "cv", **(arguments | change)) is first


def test_a_leaking_fold_is_never_written(fresh_store: Store) -> None:
    patients = fresh_store.codes("patient_id")
    strata = build_strata(pa.table({"label": fresh_store.read("side").column("side")}))
    fold = make_folds(patients, strata, FoldsConfig(k=2), pool=everyone(patients))[0]
    first_test = int(np.flatnonzero(fold.splits == TEST)[0])
    first_train = int(np.flatnonzero(fold.splits == TRAIN)[0])
    pairs = [DuplicatePair(*sorted((first_test, first_train)), 1.0, identical=True)]
    provenance = {"source": "fold", "seed": 0, "near_duplicates": LIMITS}
    with pytest.raises(DataError, match="leak between splits"):
        write_fold(
            fresh_store,
            "cv",
            fold=fold,
            strata=strata,
            linked=Linked(fresh_store.codes("patient_id"), pairs),
            provenance=provenance,
        )
    fold.splits[first_train] = SPLIT_NAMES.index("test")
    with pytest.raises(DataError, match="leak between splits: 1 patient is"):
        write_fold(
            fresh_store,
            "cv",
            fold=fold,
            strata=strata,
            linked=Linked(fresh_store.codes("patient_id"), []),
            provenance=provenance,
        )


def test_identical_images_of_two_patients_are_found_and_kept_together(
    write_source: Callable[..., object], run_prepare: Callable[..., Store], tmp_path
) -> None:
    def twin(rows: list[dict[str, str]]) -> list[dict[str, str]]:
        """The last row shows the first patient's image under another id."""
        shutil.copy(tmp_path / "raw" / rows[0]["path"], tmp_path / "raw" / "twin.png")
        return [*rows, rows[0] | {"path": "twin.png", "patient_id": "p99"}]

    raw = write_source(tmp_path / "raw", rewrite=twin)
    store = run_prepare(raw, tmp_path / "store", "split.on_leak=drop")
    splits, certificate = read_split(store, "default")
    pairs = find_links(store, certificate)
    assert [pair.identical for pair in pairs] == [True]
    linked = link_patients(store.codes("patient_id"), pairs)
    assert len(linked.texts) == 24
    pool = splits != OUT
    strata = build_strata(pa.table({"label": store.read("side").column("side")}))
    for fold in make_folds(linked, strata, FoldsConfig(k=3), pool=pool):
        provenance = {"source": "fold", "seed": 0, "near_duplicates": certificate["near_duplicates"]}
        write_fold(store, fold.name, fold=fold, strata=strata, linked=Linked(linked, pairs), provenance=provenance)
        written = read_split(store, fold.name)[1]
        assert written["merged_patients"] == 1
        assert sum(written["patients"].values()) == linked.count(pool), "as one in counts and intervals"
        assert read_patients(store, written).values.tolist() == linked.values.tolist()
