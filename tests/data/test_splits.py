"""Splits: leaks found and resolved; certificates checked."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medcls.data.columns import Codes, code_column
from medcls.data.duplicates import DuplicatePair
from medcls.data.manifest import write_table
from medcls.data.splits import (
    DROPPED,
    ORDER,
    SPLIT_NAMES,
    Splits,
    code_splits,
    find_shared_patients,
    read_split,
    resolve_leaks,
    rows_of,
    write_split,
)
from medcls.data.store import Store
from medcls.errors import DataError, MissingInputError
from medcls.files import sha256_file, write_json


def code(texts: Sequence[str | None]) -> Codes:
    return code_column(pa.chunked_array([pa.array(texts, pa.string())]))


def as_codes(names: Sequence[str | None]) -> Splits:
    return code_splits(code(names))


def shared(patients: Sequence[str], splits: Sequence[str]) -> dict[str, list[str]]:
    return find_shared_patients(code(patients), as_codes(splits))


def test_names_become_codes_and_null_is_dropped() -> None:
    splits = as_codes(["test", None, "train", "dropped", "val"])
    assert (splits.dtype, splits.tolist()) == (np.int8, [2, 3, 0, 3, 1])
    with pytest.raises(ValueError, match="holdout"):
        as_codes(["holdout"])


def pair(first: int, second: int) -> DuplicatePair:
    return DuplicatePair(first, second, 0.99, identical=False)


def resolve(splits: list[str], patients: list[str], duplicates: list[DuplicatePair], on_leak: str):
    """The function under test, given and giving lists."""
    result, found = resolve_leaks(
        as_codes(splits),
        patients=code(patients),
        name_images=lambda rows: [f"i{row}" for row in rows],
        duplicates=duplicates,
        on_leak=on_leak,
    )
    return [SPLIT_NAMES[split] for split in result], found


@settings(deadline=None)
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
    assert shared(patients, result) == {}
    for d in duplicates:
        assert DROPPED in (result[d.first], result[d.second]) or result[d.first] == result[d.second]
    assert [r for r, s in zip(result, splits, strict=True) if s == "test"] == ["test"] * splits.count("test")
    assert found["dropped"] == result.count(DROPPED)
    assert all(r in (s, DROPPED) for r, s in zip(result, splits, strict=True))


def test_refuse_counts_patients_and_images_and_report_changes_nothing() -> None:
    splits, patients = ["train", "test", "val", "test"], ["p", "p", "q", "r"]
    with pytest.raises(DataError) as error:
        resolve(splits, patients, [pair(2, 3)], "refuse")
    message = str(error.value)
    assert "1 patient is in more than one split: 1 in train and test" in message
    assert "1 pair of the same image is in more than one split, 0 of them identical: 1 in val and test" in message, (
        "ids of patients and images may be names and paths"
    )
    assert "\n" not in message
    result, found = resolve(splits, patients, [pair(2, 3)], "report")
    assert (result, found["dropped"]) == (splits, 0)
    assert found["patients_in_several_splits"] == {"p": ["train", "test"]}


def test_leaks_are_counted_by_the_splits_between_which_they_are() -> None:
    patients = [f"Mustermann {i // 2}" for i in range(50)]
    splits = ["test", "train"] * 20 + ["train", "val"] * 5
    with pytest.raises(
        DataError, match="25 patients are in more than one split: 20 in train and test, 5 in train and val"
    ) as error:
        resolve(splits, patients, [], "refuse")
    assert "Mustermann" not in str(error.value)


def test_pairs_within_one_split_and_of_dropped_images_are_no_leak() -> None:
    result, found = resolve(["train", "train", DROPPED, "test"], list("abcd"), [pair(0, 1), pair(2, 3)], "refuse")
    assert result == ["train", "train", DROPPED, "test"]
    assert (found["linked_patients_in_one_split"], found["images_in_several_splits"]) == (1, [])


def test_rows_of_a_split(small_store: Store) -> None:
    splits, _ = read_split(small_store, "default")
    rows = {name: rows_of(splits, name) for name in (*ORDER, "all")}
    assert sorted(np.concatenate([rows[name] for name in ORDER])) == list(range(48)) == rows["all"].tolist()
    assert all(SPLIT_NAMES[splits[row]] == "val" for row in rows["val"])
    splits[0] = SPLIT_NAMES.index(DROPPED)
    assert rows_of(splits, "all").tolist() == list(range(1, 48))


def test_a_written_split_is_read_and_checked(small_store: Store) -> None:
    splits, certificate = read_split(small_store, "default")
    assert certificate["name"] == "default"
    assert certificate["store_sha256"] == small_store.sha256
    assert (len(splits), certificate["images"]) == (48, {n: (splits == i).sum() for i, n in enumerate(ORDER)})


def test_an_unknown_split_lists_those_there_are(small_store: Store) -> None:
    with pytest.raises(MissingInputError, match=r"split\.name=second: store has default; make it with data_prep"):
        read_split(small_store, "second")


def move_image(splits: Splits) -> Splits:
    """One image of a training patient goes to test."""
    moved = splits.copy()
    moved[np.flatnonzero(splits == ORDER.index("train"))[0]] = ORDER.index("test")
    return moved


def test_a_tampered_split_is_refused(fresh_store: Store) -> None:
    splits = move_image(read_split(fresh_store, "default")[0])
    table = pa.table({"image_id": fresh_store.column("image_id"), "split": [SPLIT_NAMES[code] for code in splits]})
    write_table(fresh_store.folder / "splits" / "default.parquet", table)
    with pytest.raises(DataError, match="has changed since its certificate was written"):
        read_split(fresh_store, "default")


def test_a_leak_with_a_certificate_is_refused_all_the_same(fresh_store: Store) -> None:
    splits, certificate = read_split(fresh_store, "default")
    write_split(fresh_store, "forged", splits=move_image(splits), certificate=certificate)
    with pytest.raises(DataError, match="1 values of patient_id are in several splits, which must be"):
        read_split(fresh_store, "forged")


def change_manifest(store: Store, certify: Callable[[Path], None], **columns: list[str]) -> Store:
    """The store with other columns, certified as if they had always been so."""
    path = store.folder / "manifest.parquet"
    table = pq.read_table(path)
    for name, values in columns.items():
        table = table.set_column(table.column_names.index(name), name, pa.array(values))
    write_table(path, table)
    certify(store.folder)
    return Store(store.folder)


def test_identical_pixels_in_two_splits_are_refused(fresh_store: Store, certify: Callable[[Path], None]) -> None:
    splits, certificate = read_split(fresh_store, "default")
    train, test = (int(rows_of(splits, name)[0]) for name in ("train", "test"))
    values = fresh_store.column("pixel_sha256")
    values[train] = values[test]
    store = change_manifest(fresh_store, certify, pixel_sha256=values)
    with pytest.raises(DataError, match="1 values of pixel_sha256 are in several splits"):
        read_split(store, "default")
    write_split(store, "known", splits=splits, certificate=certificate | {"on_leak": "report"})
    assert (read_split(store, "known")[0] == splits).all()


def test_identical_pixels_in_one_split_are_none_of_a_leak(fresh_store: Store, certify: Callable[[Path], None]) -> None:
    splits, _ = read_split(fresh_store, "default")
    first, second = rows_of(splits, "train")[:2].tolist()
    values = fresh_store.column("pixel_sha256")
    values[first] = values[second]
    assert (read_split(change_manifest(fresh_store, certify, pixel_sha256=values), "default")[0] == splits).all()


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
    write_json(path, content)
    with pytest.raises(DataError, match="was made for another store"):
        read_split(Store(fresh_store.folder), "default")


@pytest.mark.parametrize("change", [lambda ids: [f"{i}x" for i in ids], lambda ids: ids[::-1], lambda ids: ids[1:]])
def test_a_split_of_other_images_or_another_order_is_refused(
    change: Callable[..., list[str]], fresh_store: Store
) -> None:
    _, certificate = read_split(fresh_store, "default")
    path = write_split(fresh_store, "other", splits=np.zeros(48, np.int8), certificate=certificate)
    ids = change(fresh_store.column("image_id"))
    write_table(path, pa.table({"image_id": ids, "split": ["train"] * len(ids)}))
    content = json.loads(path.with_suffix(".json").read_text()) | {"split_sha256": sha256_file(path)}
    write_json(path.with_suffix(".json"), content)
    with pytest.raises(DataError, match="its images are not the store's"):
        read_split(Store(fresh_store.folder), "other")


def test_a_dropped_image_shares_no_patient() -> None:
    assert shared(["p", "p", "q", "q"], ["train", DROPPED, "test", "val"]) == {"q": ["val", "test"]}
