"""Shards are whole or not there; a store is complete, unchanged and of this version, or refused."""

from __future__ import annotations

import errno
import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from medcls.data.store import ShardWriter, Store, shard_name
from medcls.errors import DataError, MissingInputError, WriteError

SHAPE = (1, 4, 6)


def images(count: int, dtype: str = "uint8") -> np.ndarray:
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (count, *SHAPE)).astype(dtype)


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_shards_hold_what_was_appended_in_order(dtype: str, tmp_path: Path) -> None:
    given = images(7, dtype)
    size = given[0].nbytes
    with ShardWriter(tmp_path, shape=SHAPE, dtype=dtype, shard_bytes=3 * size) as writer:
        places = [writer.append(image) for image in given]
    assert places == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (2, 0)]
    shards = [np.load(tmp_path / shard_name(i), allow_pickle=False) for i in range(3)]
    assert [len(shard) for shard in shards] == [3, 3, 1]
    assert shards[0].dtype == dtype
    assert (np.concatenate(shards) == given).all()
    assert sorted(p.name for p in tmp_path.iterdir()) == [shard_name(i) for i in range(3)]


def test_a_full_last_shard_is_not_followed_by_an_empty_one(tmp_path: Path) -> None:
    given = images(2)
    with ShardWriter(tmp_path, shape=SHAPE, dtype="uint8", shard_bytes=given.nbytes) as writer:
        for image in given:
            writer.append(image)
    assert [p.name for p in tmp_path.iterdir()] == ["shard-00000.npy"]


def test_an_image_larger_than_a_shard_gets_its_own(tmp_path: Path) -> None:
    with ShardWriter(tmp_path, shape=SHAPE, dtype="uint8", shard_bytes=1) as writer:
        assert [writer.append(image) for image in images(2)] == [(0, 0), (1, 0)]


def test_a_shard_has_its_name_only_when_whole(tmp_path: Path) -> None:
    with ShardWriter(tmp_path, shape=SHAPE, dtype="uint8") as writer:
        writer.append(images(1)[0])
        assert [p.name for p in tmp_path.iterdir()] == [".partial-shard-00000.npy"]
    assert [p.name for p in tmp_path.iterdir()] == ["shard-00000.npy"]


def test_an_error_leaves_no_shard(tmp_path: Path) -> None:
    def fail() -> None:
        with ShardWriter(tmp_path, shape=SHAPE, dtype="uint8") as writer:
            writer.append(images(1)[0])
            raise DataError("elsewhere")

    with pytest.raises(DataError, match="elsewhere"):
        fail()
    assert not (tmp_path / "shard-00000.npy").exists()


@pytest.mark.parametrize("wrong", [np.zeros((1, 6, 4), np.uint8), np.zeros(SHAPE, np.uint16)])
def test_another_shape_or_dtype_is_refused(wrong: np.ndarray, tmp_path: Path) -> None:
    with (
        ShardWriter(tmp_path, shape=SHAPE, dtype="uint8") as writer,
        pytest.raises(ValueError, match=r"expected \(1, 4, 6\) uint8"),
    ):
        writer.append(wrong)


def test_no_space_is_a_write_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with ShardWriter(tmp_path, shape=SHAPE, dtype="uint8") as writer:
        monkeypatch.setattr(Path, "open", full)
        with pytest.raises(WriteError, match="No space left on device; free or change store="):
            writer.append(images(1)[0])


def test_a_folder_that_is_gone_is_a_write_error(tmp_path: Path) -> None:
    with (
        ShardWriter(tmp_path / "gone", shape=SHAPE, dtype="uint8") as writer,
        pytest.raises(WriteError, match="cannot write"),
    ):
        writer.append(images(1)[0])


def test_reading(small_store: Store) -> None:
    assert len(small_store) == 48
    assert small_store.shape == (1, 32, 32)
    assert small_store.name == "store"
    assert small_store.index[small_store.image_ids[5]] == 5
    image = small_store.image(5)
    assert (image.shape, image.dtype) == ((1, 32, 32), np.uint8)
    with pytest.raises(ValueError, match="read-only"):
        image[:] = 0


def test_a_batch_across_shards_comes_in_the_order_asked_for(
    small_store: Store, fresh_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = np.array([40, 3, 3, 17], dtype=np.int64)
    expected = np.stack([small_store.image(int(i)) for i in wanted])
    assert (small_store.images(wanted) == expected).all()
    assert small_store.images(wanted[:0]).shape == (0, 1, 32, 32)
    whole = np.load(fresh_store.folder / "shard-00000.npy")
    for shard in range(2):
        np.save(fresh_store.folder / f"shard-0000{shard}.npy", whole[24 * shard : 24 * shard + 24])
    monkeypatch.setattr(fresh_store, "_shard", fresh_store._row // 24)
    monkeypatch.setattr(fresh_store, "_row", fresh_store._row % 24)
    assert (fresh_store.images(wanted) == expected).all()
    assert all((fresh_store.image(int(i)) == image).all() for i, image in zip(wanted, expected, strict=True))


def test_a_pickled_store_opens_its_own_maps(small_store: Store) -> None:
    expected = small_store.image(3).copy()
    sent = pickle.dumps(small_store)
    assert len(sent) < 100_000
    assert (pickle.loads(sent).image(3) == expected).all()


def test_a_whole_store_verifies(small_store: Store) -> None:
    small_store.verify()


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-10] ^= 1
    path.write_bytes(bytes(content))


def test_all_changed_parts_are_named(fresh_store: Store) -> None:
    flip(fresh_store.folder / "shard-00000.npy")
    flip(fresh_store.folder / "ledger.parquet")
    with pytest.raises(DataError, match=r"changed since it was written: ledger\.parquet, shard-00000\.npy"):
        fresh_store.verify()


def test_a_part_that_is_gone_is_missing_input(fresh_store: Store) -> None:
    (fresh_store.folder / "shard-00000.npy").unlink()
    with pytest.raises(MissingInputError, match=r"lacks shard-00000\.npy: restore them"):
        fresh_store.verify()


def test_a_store_that_is_not_there_or_half_written(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match="python -m data_prep"):
        Store(tmp_path / "nowhere")
    with pytest.raises(DataError, match="run the same python -m data_prep command again"):
        Store(tmp_path)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"schema_version": 2}, "schema_version 2, expected 1"),
        ({"preprocess": None}, "no preprocess"),
        ({"preprocess": {"height": 32}}, "not of this version"),
        ({"sha256": None}, "no sha256"),
    ],
)
def test_a_changed_record_is_refused(change: dict[str, object], part: str, fresh_store: Store) -> None:
    path = fresh_store.folder / "dataset.json"
    content = {k: v for k, v in (json.loads(path.read_text()) | change).items() if v is not None}
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=part):
        Store(fresh_store.folder)


def test_the_checksum_is_of_all_parts(small_store: Store, make_store: Callable[..., Store]) -> None:
    assert small_store.sha256 == Store(small_store.folder).sha256
    assert small_store.sha256 != make_store("image.fit=stretch", "image.size=[32,16]").sha256


@pytest.mark.parametrize("content", [b"not numpy", b""])
def test_a_shard_that_is_no_array_is_a_data_error(content: bytes, fresh_store: Store) -> None:
    (fresh_store.folder / "shard-00000.npy").write_bytes(content)
    with pytest.raises(DataError, match="cannot be read"):
        fresh_store.image(0)


def test_a_shard_of_another_shape_is_a_data_error(fresh_store: Store) -> None:
    np.save(fresh_store.folder / "shard-00000.npy", np.zeros((48, 1, 16, 16), np.uint8))
    with pytest.raises(DataError, match="expected"):
        fresh_store.image(0)
