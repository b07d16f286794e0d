"""A shard is the images that were kept, in order, whatever order they came in, and never half of one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medcls.data.shards import ShardFile, Slot, write_slot
from medcls.errors import WriteError


def fill(folder: Path, images: Any, *, order: list[int], kept: list[int]) -> Path:
    shard = ShardFile(folder, 3, shape=images.shape[1:], dtype=images.dtype, slots=len(images))
    shard.create()
    for i in order:
        write_slot(shard.slot(i), images[i])
    shard.finish(kept)
    return shard.path


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_the_kept_images_stand_in_order(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    count = data.draw(st.integers(1, 7))
    dtype = data.draw(st.sampled_from(["uint8", "uint16", "int16", "float16"]))
    images = np.random.default_rng(0).integers(0, 100, (count, 2, 3, 5)).astype(dtype)
    kept = sorted(data.draw(st.sets(st.integers(0, count - 1), min_size=1)))
    order = data.draw(st.permutations(kept))
    folder = tmp_path_factory.mktemp("shard")
    path = fill(folder, images, order=order, kept=kept)
    assert (np.load(path) == images[kept]).all()
    np.save(folder / "numpy.npy", images[kept])
    assert path.read_bytes()[-images[kept].nbytes :] == (folder / "numpy.npy").read_bytes()[-images[kept].nbytes :]
    assert np.load(path, mmap_mode="r").dtype == dtype


def test_until_it_is_whole_it_has_another_name(tmp_path: Path) -> None:
    shard = ShardFile(tmp_path, 0, shape=(1, 4), dtype="uint8", slots=2)
    shard.create()
    assert not shard.path.exists()
    (partial,) = tmp_path.iterdir()
    assert partial.name.startswith(".partial-")
    write_slot(shard.slot(1), np.ones((1, 4), np.uint8))
    shard.finish([1])
    assert [p.name for p in tmp_path.iterdir()] == ["shard-00000.npy"]


def test_two_jobs_on_one_shard_do_not_meet(tmp_path: Path) -> None:
    images = np.arange(8, dtype=np.uint8).reshape(2, 1, 4)
    first, second = (ShardFile(tmp_path, 0, shape=(1, 4), dtype="uint8", slots=2) for _ in range(2))
    first.create()
    write_slot(first.slot(0), images[0])
    second.create()
    write_slot(first.slot(1), images[1])
    first.finish([0, 1])
    assert (np.load(first.path) == images).all()
    for index in (0, 1):
        write_slot(second.slot(index), images[index])
    second.finish([0, 1])
    assert (np.load(first.path) == images).all()


def test_where_all_images_are_refused_there_is_no_file(tmp_path: Path) -> None:
    shard = ShardFile(tmp_path, 0, shape=(1, 4), dtype="uint8", slots=2)
    shard.create()
    shard.finish([])
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_size_is_an_error_and_not_a_neighbour_overwritten(tmp_path: Path) -> None:
    shard = ShardFile(tmp_path, 0, shape=(1, 4), dtype="uint8", slots=2)
    shard.create()
    with pytest.raises(ValueError, match="has 5 bytes: expected 4"):
        write_slot(shard.slot(0), np.ones((1, 5), np.uint8))


def test_a_full_disk_is_met_before_anything_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(WriteError, match="No space left on device"):
        ShardFile(tmp_path, 0, shape=(1, 4), dtype="uint8", slots=2).create()


def test_a_shard_that_is_gone_is_an_error_of_its_own_kind(tmp_path: Path) -> None:
    with pytest.raises(WriteError, match="No such file"):
        write_slot(Slot(tmp_path / "gone.npy", 128, 4), np.ones(4, np.uint8))
