"""Cached features: what is read is what was computed, whatever happened in between."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medcls.data.dataset import Batch
from medcls.errors import DataError, WriteError
from medcls.files import read_json, sha256_json
from medcls.locks import lock_folder
from medcls.models.classifier import Classifier
from medcls.training.features import FeatureCache, FeatureDataset, compute_features, list_batches
from medcls.training.state import StepRules

SHAPE = (40, 6)
TRUTH = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
Open = Callable[..., FeatureCache]


@pytest.fixture
def open_cache(tmp_path: Path) -> Open:
    def open_one(**key: str) -> FeatureCache:
        return FeatureCache(tmp_path / "features", {"weights": "a"} | key, shape=SHAPE)

    return open_one


class Compute:
    """TRUTH in portions of three; remembers what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def __call__(self, rows: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        self.asked += rows.tolist()
        for i in range(0, len(rows), 3):
            yield rows[i : i + 3], TRUTH[rows[i : i + 3]]


def flip_bit(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def test_only_rows_asked_for_are_computed_and_each_once(open_cache: Open) -> None:
    first, second = np.array([3, 30, 7]), np.array([7, 8, 3])
    compute = Compute()
    assert open_cache().fill(first, compute) == (3, 0)
    assert open_cache().fill(second, compute) == (1, 0)
    assert compute.asked == [3, 30, 7, 8]
    np.testing.assert_array_equal(open_cache().read(second), TRUTH[second])
    with pytest.raises(DataError, match="row 9 "):
        open_cache().read(np.array([3, 9]))


def test_the_folder_says_what_its_features_follow_from(open_cache: Open) -> None:
    cache = open_cache(view="1")
    cache.fill(np.arange(2), Compute())
    assert read_json(cache.folder / "key.json") == {"weights": "a", "view": "1"}
    assert cache.folder.name == sha256_json({"weights": "a", "view": "1"})
    assert open_cache().folder != cache.folder


def test_files_are_sparse(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path, {}, shape=(100_000, 512))
    cache.fill(np.array([5, 99_999]), lambda rows: [(rows, np.ones((2, 512), np.float32))])
    files = [path.stat() for path in cache.folder.iterdir()]
    assert sum(file.st_size for file in files) > 200_000_000
    assert sum(file.st_blocks * 512 for file in files) < 2_000_000


@settings(max_examples=25, deadline=None)
@given(place=st.integers(0, SHAPE[0] * SHAPE[1] * 4 - 1), name=st.sampled_from(["features.npy", "digests.npy"]))
def test_a_flipped_bit_is_found_and_computed_again(
    tmp_path_factory: pytest.TempPathFactory, place: int, name: str
) -> None:
    cache = FeatureCache(tmp_path_factory.mktemp("flip"), {}, shape=SHAPE)
    rows = np.arange(SHAPE[0])
    cache.fill(rows, Compute())
    width, size = (SHAPE[1] * 4, 128) if name == "features.npy" else (8, 128)
    place %= SHAPE[0] * width
    flip_bit(cache.folder / name, size + place)
    again, compute = FeatureCache(cache.folder.parent, {}, shape=SHAPE), Compute()
    with pytest.raises(DataError, match=f"row {place // width} has changed"):
        again.read(rows)
    assert again.fill(rows, compute) == (1, 1)
    assert compute.asked == [place // width]
    np.testing.assert_array_equal(again.read(rows), TRUTH)


@pytest.mark.parametrize("name", ["features.npy", "digests.npy"])
@pytest.mark.parametrize("size", [0, 60, 200])
def test_a_broken_off_file_is_made_anew(open_cache: Open, name: str, size: int) -> None:
    cache = open_cache()
    cache.fill(np.arange(5), Compute())
    os.truncate(cache.folder / name, size)
    assert open_cache().fill(np.arange(5), Compute()) == (5, 5)
    np.testing.assert_array_equal(open_cache().read(np.arange(5)), TRUTH[:5])


def test_a_row_that_lies_at_another_place_is_not_taken_for_this_one(open_cache: Open) -> None:
    cache = open_cache()
    cache.fill(np.arange(2), Compute())
    for name, width in (("features.npy", SHAPE[1] * 4), ("digests.npy", 8)):
        path = cache.folder / name
        content = path.read_bytes()
        path.write_bytes(content[:128] + content[128 + width : 128 + 2 * width] + content[128 + width :])
    with pytest.raises(DataError, match="row 0 "):
        open_cache().read(np.arange(2))


def _fill_and_die(cache: FeatureCache, after: int) -> None:
    def compute(rows: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for i, portion in enumerate(Compute()(rows)):
            if i == after:
                os.kill(os.getpid(), signal.SIGKILL)
            yield portion

    cache.fill(np.arange(12), compute)


@pytest.mark.parametrize("after", [0, 2])
def test_a_killed_process_leaves_what_it_computed_and_no_lock(open_cache: Open, after: int) -> None:
    process = multiprocessing.get_context("fork").Process(target=_fill_and_die, args=(open_cache(), after))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    compute = Compute()
    assert open_cache().fill(np.arange(12), compute) == (12 - 3 * after, 0)
    assert compute.asked == list(range(3 * after, 12))
    np.testing.assert_array_equal(open_cache().read(np.arange(12)), TRUTH[:12])


def test_another_process_is_waited_for_and_its_rows_are_taken(open_cache: Open) -> None:
    cache, waiting = open_cache(), threading.Event()
    results: list[tuple[int, int]] = []
    other = Compute()
    with lock_folder(cache.folder):
        thread = threading.Thread(
            target=lambda: results.append(cache.fill(np.arange(6), other, say=lambda _: waiting.set())), daemon=True
        )
        thread.start()
        assert waiting.wait(20)
        holder = open_cache()
        holder._create()
        holder._write(Compute()(np.arange(5)))
    thread.join(20)
    assert results == [(1, 0)]
    assert other.asked == [5]


def test_a_full_disk_is_an_error_and_no_signal(open_cache: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = open_cache()
    cache.fill(np.arange(2), Compute())
    monkeypatch.setattr(os, "fsync", lambda file: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(WriteError, match="No space left"):
        cache.fill(np.arange(4), Compute())


# --- as a dataset


def test_epochs_read_their_views_in_turn(open_cache: Open) -> None:
    rows = np.array([4, 9, 20])
    views = [open_cache(view=str(v)) for v in range(2)]
    for v, view in enumerate(views):
        view.fill(rows, lambda missing, v=v: [(missing, TRUTH[missing] + v)])
    dataset = FeatureDataset(views, rows, targets=torch.tensor([[0.0], [1], [2]]), clinical=torch.empty(3, 0))
    for epoch in range(4):
        batch = dataset.__getitems__([(epoch, 2), (epoch, 0)])
        np.testing.assert_array_equal(batch.images, TRUTH[[20, 4]] + epoch % 2)
        assert (batch.targets.tolist(), batch.positions.tolist()) == ([[2.0], [0.0]], [2, 0])
    assert len(dataset) == 3
    assert dataset[(0, 1)].targets.tolist() == [[1.0]]


def test_maps_do_not_travel_to_workers(open_cache: Open) -> None:
    cache = open_cache()
    cache.fill(np.arange(3), Compute())
    cache.read(np.arange(3))
    content = pickle.dumps(cache)
    assert len(content) < 2000
    np.testing.assert_array_equal(pickle.loads(content).read(np.arange(3)), TRUTH[:3])


@given(
    st.lists(st.integers(0, 500), min_size=1, max_size=100),
    st.sampled_from([((1, 224, 224), 16), ((3, 1024, 1024), 4), ((1, 128, 128, 128), 2), ((1, 4096, 4096), 1)]),
)
def test_every_batch_has_one_size_and_every_position_is_there(
    positions: list[int], shape: tuple[tuple[int, ...], int]
) -> None:
    batches = list_batches(positions, epoch=3, shape=shape[0])
    size = shape[1]
    assert {len(batch) for batch in batches} == {size}
    flat = [pair for batch in batches for pair in batch]
    assert flat[: len(positions)] == [(3, position) for position in positions]
    assert set(flat[len(positions) :]) <= {(3, positions[-1])}
    assert len(batches) == -(-len(positions) // size)


def test_features_are_those_of_the_network_in_evaluation_mode(
    build_tiny: Callable[..., Classifier], make_batch: Callable[..., Batch]
) -> None:
    model, batch = build_tiny(), make_batch(8)
    model.train()
    ((positions, features),) = compute_features(model, [batch], StepRules(channels_last=False))
    model.eval()
    with torch.inference_mode():
        logits, expected = model.head(torch.from_numpy(features)), model(batch.images)
    torch.testing.assert_close(logits, expected, rtol=0, atol=0)
    assert positions.tolist() == list(range(8))
