"""Order is a pure function of (seed, epoch); batches are even; workers change nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medcls.data import loaders
from medcls.data.augment import Augmentation
from medcls.data.dataset import ImageView, StoreDataset
from medcls.data.loaders import EpochSampler, balance_weights, build_loader, choose_workers
from medcls.data.store import Store
from medcls.errors import ConfigError

SIZES = {"num_samples": st.integers(1, 100), "batch_size": st.integers(1, 40)}


def order_of(sampler: EpochSampler) -> list[int]:
    return [position for batch in sampler for _, position in batch]


@settings(deadline=None)
@given(**SIZES, seed=st.integers(0, 3), shuffle=st.booleans())
def test_batches_hold_each_sample_once_and_are_even(num_samples, batch_size, seed, shuffle) -> None:
    sampler = EpochSampler(num_samples, batch_size=batch_size, seed=seed, shuffle=shuffle)
    sizes = [len(batch) for batch in sampler]
    assert max(sizes) - min(sizes) <= 1
    assert max(sizes) <= batch_size
    assert len(sizes) == len(sampler)
    assert sorted(order_of(sampler)) == list(range(num_samples))
    assert shuffle or order_of(sampler) == list(range(num_samples))


def test_the_order_is_a_pure_function_of_seed_and_epoch() -> None:
    sampler = EpochSampler(50, batch_size=8, seed=3, shuffle=True)
    orders = []
    for epoch in (0, 1, 2):
        sampler.epoch = epoch
        orders.append(order_of(sampler))
        assert order_of(sampler) == orders[-1]
    other = EpochSampler(50, batch_size=8, seed=3, shuffle=True)
    other.epoch = 2
    assert order_of(other) == orders[2]
    assert orders[0] != orders[1] != orders[2] != orders[0]
    assert order_of(EpochSampler(50, batch_size=8, seed=4, shuffle=True)) != orders[0]


def test_the_order_does_not_depend_on_the_batch_size() -> None:
    orders = {tuple(order_of(EpochSampler(50, batch_size=size, seed=1, shuffle=True))) for size in (1, 7, 50, 64)}
    assert len(orders) == 1


def test_positions_carry_the_epoch() -> None:
    sampler = EpochSampler(3, batch_size=2)
    sampler.epoch = 7
    assert list(sampler) == [[(7, 0), (7, 1)], [(7, 2)]]


def test_balanced_sampling_draws_every_class_alike() -> None:
    classes = np.repeat([0.0, 1, 2], [80, 15, 5])
    sampler = EpochSampler(100, batch_size=10, shuffle=True, weights=balance_weights(classes[:, None]))
    drawn: Counter[float] = Counter()
    for epoch in range(60):
        sampler.epoch = epoch
        drawn.update(classes[order_of(sampler)])
    for count in drawn.values():  # 6,000 draws, a third each: 4 standard deviations are 146
        assert abs(count - 2000) < 146


def test_a_weighted_order_repeats_and_changes_with_the_epoch() -> None:
    weights = balance_weights(np.repeat([0.0, 1], [9, 1])[:, None])
    between = balance_weights(np.array([0.0] * 9 + [1, np.nan])[:, None])
    np.testing.assert_allclose(between, [*weights, weights.mean()])
    first, second = (EpochSampler(10, batch_size=4, seed=1, weights=weights) for _ in range(2))
    assert order_of(first) == order_of(second)
    second.epoch = 1
    assert order_of(first) != order_of(second)


def test_the_weights_of_several_labels_follow_the_rarest() -> None:
    targets = np.array([[1, 0], [1, 0], [1, 0], [1, 1], [0, 0], [0, np.nan]])
    weights = balance_weights(targets)
    np.testing.assert_allclose(weights, [1 / 4, 1 / 4, 1 / 4, 1, 1 / 2, 1 / 2])


def test_workers_are_chosen_by_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loaders.os, "cpu_count", lambda: 16)
    assert choose_workers(-1, device="cpu") == 0
    assert choose_workers(-1, device="cuda") == 8
    assert [choose_workers(n, device=device) for n in (0, 3) for device in ("cpu", "cuda")] == [0, 0, 3, 3]
    monkeypatch.setattr(loaders.os, "cpu_count", lambda: 1)
    assert choose_workers(-1, device="cuda") == 1


@pytest.fixture
def load_epoch(small_store: Store) -> Callable[..., dict[int, bytes]]:
    """Image position -> augmented pixels of one epoch, through a real loader."""

    def load(*, workers: int, epoch: int = 0, batch_size: int = 5) -> dict[int, bytes]:
        transforms = {"Affine": {"rotate": [-20, 20], "p": 1.0}, "RandomBrightnessContrast": {"p": 0.5}}
        augmentation = Augmentation(transforms, shape=small_store.shape)
        rows = np.arange(24, dtype=np.int64)
        dataset = StoreDataset(small_store, rows, targets=np.zeros((24, 1)), view=ImageView(None, augmentation, 1))
        sampler = EpochSampler(24, batch_size=batch_size, seed=1, shuffle=True)
        sampler.epoch = epoch
        found: dict[int, bytes] = {}
        for batch in build_loader(dataset, sampler, workers=workers, device="cpu"):
            assert batch.images.dtype == torch.uint8
            found |= {int(p): image.numpy().tobytes() for p, image in zip(batch.positions, batch.images, strict=True)}
        return found

    return load


def test_workers_and_batch_size_change_no_pixel(load_epoch: Callable[..., dict[int, bytes]]) -> None:
    alone = load_epoch(workers=0)
    assert len(set(alone.values())) == 24
    assert load_epoch(workers=1) == alone
    assert load_epoch(workers=2, batch_size=3) == alone


def test_every_epoch_is_augmented_anew(load_epoch: Callable[..., dict[int, bytes]]) -> None:
    first, second = load_epoch(workers=0), load_epoch(workers=2, epoch=1)
    assert not any(first[position] == second[position] for position in first)


def test_batches_come_in_the_samplers_order(small_store: Store) -> None:
    dataset = StoreDataset(small_store, np.arange(10, dtype=np.int64), targets=np.zeros((10, 1)))
    sampler = EpochSampler(10, batch_size=4, seed=2, shuffle=True)
    loader = build_loader(dataset, sampler, workers=0, device="cpu")
    assert len(loader) == 3
    assert torch.cat([batch.positions for batch in loader]).tolist() == order_of(sampler)


@settings(deadline=None)
@given(ranks=st.integers(1, 4), size=st.integers(8, 40), seed=st.integers(0, 3), weighted=st.booleans())
def test_parts_of_several_processes_make_the_batches_of_one(ranks: int, size: int, seed: int, weighted: bool) -> None:
    weights = balance_weights((np.arange(60.0) % 7 < 2)[:, None].astype(float)) if weighted else None

    def batches(part: tuple[int, int]) -> list[list[int]]:
        sampler = EpochSampler(60, batch_size=size, seed=seed, shuffle=True, weights=weights, part=part)
        sampler.start = 1
        return [[position for _, position in batch] for batch in sampler]

    parts = [batches((rank, ranks)) for rank in range(ranks)]
    whole = batches((0, 1))
    assert [Counter(p for part in each for p in part) for each in zip(*parts, strict=True)] == [*map(Counter, whole)]
    sizes = [len(part) for each in parts for part in each]
    assert min(sizes) >= 1
    assert all(max(map(len, each)) - min(map(len, each)) <= 1 for each in zip(*parts, strict=True))


def test_batch_without_an_image_for_every_process_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"9 images in batches of 8 over 5 processes: each needs an image of every"):
        EpochSampler(9, batch_size=8, part=(0, 5))
    EpochSampler(10, batch_size=8, part=(0, 5))
