"""A store is complete, unchanged and of this version, or refused."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from medcls.data.manifest import build_table, write_table
from medcls.data.shards import shard_name
from medcls.data.store import SCHEMA_VERSION, Store
from medcls.errors import DataError, MissingInputError
from medcls.files import sha256_file, write_json
from medcls.imaging.volume.spec import VolumeSpec
from medcls.records import to_json

SHAPE = (1, 4, 6)


def images(count: int, dtype: str = "uint8") -> np.ndarray:
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (count, *SHAPE)).astype(dtype)


def test_reading(small_store: Store) -> None:
    assert len(small_store) == 48
    assert small_store.shape == (1, 32, 32)
    assert small_store.name == "store"
    ids = small_store.column("image_id")
    assert ids == pq.read_table(small_store.folder / "manifest.parquet").column("image_id").to_pylist()
    assert small_store.column("image_id", [5, 2]) == [ids[5], ids[2]]
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
    fresh_store.info["sha256"]["shard-00001.npy"] = ""
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
        ({"schema_version": 99}, f"schema_version 99, expected {SCHEMA_VERSION}"),
        ({"preprocess": None}, "no preprocess"),
        (
            {"preprocess": {"height": 32}},
            r"preprocess: no field width, .*: prepare the store again",
        ),
        ({"sha256": None}, "no sha256"),
    ],
)
def test_a_changed_record_is_refused(change: dict[str, object], part: str, fresh_store: Store) -> None:
    path = fresh_store.folder / "dataset.json"
    content = {k: v for k, v in (json.loads(path.read_text()) | change).items() if v is not None}
    write_json(path, content)
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


@pytest.mark.parametrize(("intensity", "dtype"), [("percentile", "uint16"), ("hounsfield", "int16")])
def test_volumes_are_served_as_stored(intensity: str, dtype: str, tmp_path: Path) -> None:
    """Three volumes (1, 8, 9, 10) in two shards."""
    spec = VolumeSpec(depth=8, height=9, width=10, intensity=intensity, dtype=dtype)
    given = np.random.default_rng(0).integers(0, 999, (3, *spec.shape)).astype(dtype)
    np.save(tmp_path / shard_name(0), given[:2])
    np.save(tmp_path / shard_name(1), given[2:])
    places = [{"image_id": f"v{i}", "patient_id": "p", "shard": i // 2, "row": i % 2} for i in range(3)]
    write_table(tmp_path / "manifest.parquet", build_table(places, volumes=True))
    record = {
        "schema_version": SCHEMA_VERSION,
        "preprocess": to_json(spec),
        "counts": {},
        "deidentify": {},
        "sha256": {name: sha256_file(tmp_path / name) for name in ("manifest.parquet", shard_name(0), shard_name(1))},
    }
    write_json(tmp_path / "dataset.json", record)
    store = Store(tmp_path)
    assert (store.shape, store.spec.spatial_dims, len(store)) == ((1, 8, 9, 10), 3, 3)
    assert store.image(2).dtype == dtype
    assert (store.image(2) == given[2]).all()
    assert (store.images(np.array([2, 0])) == given[[2, 0]]).all()
    assert len(store.words("pixel_dhash").rows) == 0


def test_columns_are_read_for_the_rows_asked_for(small_store: Store) -> None:
    table = small_store.read("side", "patient_id", rows=[1, 0])
    assert table.to_pylist() == [{"side": "R", "patient_id": "p00"}, {"side": "L", "patient_id": "p00"}]
    assert small_store.codes("patient_id").texts.to_pylist() == [f"p{i:02d}" for i in range(24)]
    assert small_store.column_names == build_table([]).column_names


def test_the_images_of_another_file_are_compared_in_their_order(small_store: Store, tmp_path: Path) -> None:
    table = small_store.read("image_id")
    for name, rows, same in (
        ("same", range(48), True),
        ("turned", range(47, -1, -1), False),
        ("part", range(9), False),
    ):
        write_table(tmp_path / name, table.take(list(rows)))
        assert small_store.has_images_of(tmp_path / name) is same
