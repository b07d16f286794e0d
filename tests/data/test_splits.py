"""Splits: disjoint by patient, stratified, the same whatever the row order; leaks found; certificates checked."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medcls.data.duplicates import DuplicatePair
from medcls.data.manifest import write_table
from medcls.data.splits import (
    DROPPED,
    ORDER,
    assign_splits,
    count_by_split,
    find_shared_patients,
    read_split,
    resolve_leaks,
    rows_of,
    stratify,
    write_split,
)
from medcls.data.store import Store
from medcls.errors import DataError, MissingInputError

FRACTIONS = {"train": 0.7, "val": 0.1, "test": 0.2}

# One patient: the labels of its images.
PATIENT = st.lists(st.sampled_from("abc"), min_size=1, max_size=4)
COHORT = st.lists(PATIENT, min_size=1, max_size=30)


def spread(cohort: list[list[str]]) -> tuple[list[str], list[list[str]]]:
    pairs = [(f"p{number}", [label]) for number, labels in enumerate(cohort) for label in labels]
    return [patient for patient, _ in pairs], [labels for _, labels in pairs]


@settings(max_examples=60, deadline=None)
@given(cohort=COHORT, seed=st.integers(0, 5), order=st.randoms(use_true_random=False))
def test_a_split_is_disjoint_and_does_not_depend_on_the_row_order(cohort, seed, order) -> None:
    patients, strata = spread(cohort)
    splits = assign_splits(patients, strata, fractions=FRACTIONS, seed=seed)
    assert find_shared_patients(patients, splits) == {}
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


def test_rare_labels_of_several_are_shared_out_too() -> None:
    generator = np.random.default_rng(0)
    shares = {"a": 0.5, "b": 0.3, "rare": 0.05}
    strata = [[label for label in shares if generator.random() < shares[label]] for _ in range(600)]
    patients = [f"p{i // 2}" for i in range(600)]
    splits = assign_splits(patients, strata, fractions=FRACTIONS, seed=0)
    total = Counter(label for labels in strata for label in labels)
    for name, share in FRACTIONS.items():
        got = Counter(label for s, labels in zip(splits, strata, strict=True) if s == name for label in labels)
        assert {label: abs(got[label] - share * total[label]) <= 3 for label in total} == dict.fromkeys(total, True)


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


EXPECTED = "erreerreer"


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


def pair(first: int, second: int) -> DuplicatePair:
    return DuplicatePair(first, second, 0.99, identical=False)


def resolve(splits: list[str], patients: list[str], duplicates: list[DuplicatePair], on_leak: str):
    ids = [f"i{i}" for i in range(len(splits))]
    return resolve_leaks(splits, patient_ids=patients, image_ids=ids, duplicates=duplicates, on_leak=on_leak)


@given(
    rows=st.lists(st.tuples(st.sampled_from(ORDER), st.integers(0, 5)), min_size=2, max_size=20),
    data=st.data(),
)
def test_drop_leaves_no_leak_and_the_most_held_out_split_whole(rows, data) -> None:
    splits, patients = [split for split, _ in rows], [f"p{number}" for _, number in rows]
    index = st.integers(0, len(rows) - 1)
    pairs = data.draw(st.lists(st.tuples(index, index).filter(lambda p: p[0] < p[1]), unique=True))
    duplicates = [pair(i, j) for i, j in pairs if patients[i] != patients[j]]
    result, found = resolve(splits, patients, duplicates, "drop")
    assert find_shared_patients(patients, result) == {}
    for d in duplicates:
        assert DROPPED in (result[d.first], result[d.second]) or result[d.first] == result[d.second]
    assert [r for r, s in zip(result, splits, strict=True) if s == "test"] == ["test"] * splits.count("test")
    assert found["dropped"] == result.count(DROPPED)
    assert all(r in (s, DROPPED) for r, s in zip(result, splits, strict=True))


def test_refuse_lists_patients_and_images_and_report_changes_nothing() -> None:
    splits, patients = ["train", "test", "val", "test"], ["p", "p", "q", "r"]
    with pytest.raises(DataError) as error:
        resolve(splits, patients, [pair(2, 3)], "refuse")
    message = str(error.value)
    assert "1 patients are in more than one split: 'p' in train and test" in message
    assert "1 images are in more than one split: i2 (val) = i3 (test), correlation 0.990" in message
    assert "\n" not in message
    result, found = resolve(splits, patients, [pair(2, 3)], "report")
    assert (result, found["dropped"]) == (splits, 0)
    assert found["patients_in_several_splits"] == {"p": ["train", "test"]}


def test_a_long_list_is_cut_and_counted() -> None:
    patients = [f"p{i // 2}" for i in range(50)]
    with pytest.raises(DataError, match=r"25 patients are in more than one split.* and 15 more"):
        resolve(["train", "test"] * 25, patients, [], "refuse")


def test_pairs_within_one_split_and_of_dropped_images_are_no_leak() -> None:
    result, found = resolve(["train", "train", DROPPED, "test"], list("abcd"), [pair(0, 1), pair(2, 3)], "refuse")
    assert result == ["train", "train", DROPPED, "test"]
    assert (found["linked_patients_in_one_split"], found["images_in_several_splits"]) == (1, [])


def test_counts() -> None:
    assert count_by_split(["train", "test", "train"], ["a", "b", "a"]) == {
        "train": {"a": 2, "b": 0},
        "test": {"a": 0, "b": 1},
    }


def test_rows_of_a_split(small_store: Store) -> None:
    splits, _ = read_split(small_store, "default")
    rows = {name: rows_of(small_store, splits, name) for name in (*ORDER, "all")}
    assert sorted(np.concatenate([rows[name] for name in ORDER])) == list(range(48)) == rows["all"].tolist()
    assert all(splits[small_store.image_ids[row]] == "val" for row in rows["val"])
    without = splits | {small_store.image_ids[0]: DROPPED}
    assert rows_of(small_store, without, "all").tolist() == list(range(1, 48))


def test_a_written_split_is_read_and_checked(small_store: Store) -> None:
    splits, certificate = read_split(small_store, "default")
    assert certificate["name"] == "default"
    assert certificate["store_sha256"] == small_store.sha256
    assert set(splits) == set(small_store.image_ids)


def test_an_unknown_split_lists_those_there_are(small_store: Store) -> None:
    with pytest.raises(MissingInputError, match=r"split\.name=second: store has default; data_prep makes them"):
        read_split(small_store, "second")


def move_patient(store: Store, splits: dict[str, str]) -> dict[str, str]:
    """One image of a training patient goes to test."""
    first = next(i for i in store.image_ids if splits[i] == "train")
    return splits | {first: "test"}


def test_a_tampered_split_is_refused(fresh_store: Store) -> None:
    splits = move_patient(fresh_store, read_split(fresh_store, "default")[0])
    table = pa.table({"image_id": list(splits), "split": list(splits.values())})
    write_table(fresh_store.folder / "splits" / "default.parquet", table)
    with pytest.raises(DataError, match="has changed since its certificate was written"):
        read_split(fresh_store, "default")


def test_a_leak_with_a_certificate_is_refused_all_the_same(fresh_store: Store) -> None:
    splits, certificate = read_split(fresh_store, "default")
    write_split(fresh_store, "forged", splits=list(move_patient(fresh_store, splits).values()), certificate=certificate)
    with pytest.raises(DataError, match=r"patient_id 'p.*' is in train and test; splits must be disjoint by patient"):
        read_split(fresh_store, "forged")


def test_identical_pixels_in_two_splits_are_refused(fresh_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    splits, certificate = read_split(fresh_store, "default")
    same = ["0" * 64] * len(fresh_store)
    column = fresh_store.column
    monkeypatch.setattr(fresh_store, "column", lambda name: same if name == "pixel_sha256" else column(name))
    with pytest.raises(DataError, match="pixel_sha256"):
        read_split(fresh_store, "default")
    write_split(fresh_store, "known", splits=list(splits.values()), certificate=certificate | {"on_leak": "report"})
    assert read_split(fresh_store, "known")[0] == splits


def test_the_split_of_another_store_is_refused(fresh_store: Store, make_store: Callable[..., Store]) -> None:
    other = make_store("image.dtype=uint16")
    for suffix in (".parquet", ".json"):
        path = fresh_store.folder / "splits" / f"default{suffix}"
        path.write_bytes((other.folder / "splits" / path.name).read_bytes())
    with pytest.raises(DataError, match="was made for another store"):
        read_split(fresh_store, "default")


def test_a_tampered_store_does_not_fit_its_split(fresh_store: Store) -> None:
    path = fresh_store.folder / "dataset.json"
    content = json.loads(path.read_text())
    content["sha256"]["shard-00000.npy"] = "0" * 64
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match="was made for another store"):
        read_split(Store(fresh_store.folder), "default")


def test_a_split_of_other_images_is_refused(fresh_store: Store) -> None:
    _, certificate = read_split(fresh_store, "default")
    fresh_store.image_ids = [f"{image_id}x" for image_id in fresh_store.image_ids]
    write_split(fresh_store, "other", splits=["train"] * 48, certificate=certificate)
    with pytest.raises(DataError, match="its images are not the store's"):
        read_split(Store(fresh_store.folder), "other")


def test_a_dropped_image_shares_no_patient() -> None:
    assert find_shared_patients(["p", "p", "q", "q"], ["train", DROPPED, "test", "val"]) == {"q": ["val", "test"]}
