from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from medcls.data.corruption import KINDS, CorruptedDataset, Corruption
from medcls.data.dataset import StoreDataset
from medcls.errors import ConfigError
from medcls.reproducibility import make_generator

DTYPES = ("uint8", "uint16", "int16", "float16")


def draw_volume(dtype: str = "uint8", size: tuple[int, ...] = (2, 12, 14, 16), seed: int = 0) -> NDArray[Any]:
    generator = np.random.default_rng(seed)
    if dtype == "float16":
        return generator.random(size).astype(dtype)
    low = -1000 if dtype == "int16" else 3
    return generator.integers(low, 200, size).astype(dtype)


@settings(deadline=None, max_examples=40)
@given(
    kind=st.sampled_from(KINDS),
    dtype=st.sampled_from(DTYPES),
    size=st.tuples(st.integers(1, 3), *[st.integers(1, 13)] * 3),
    seed=st.integers(0, 5),
)
def test_twins_stay_within_the_range_and_the_volume_as_it_was(
    kind: str, dtype: str, size: tuple[int, ...], seed: int
) -> None:
    volume = draw_volume(dtype, size)
    before = volume.copy()
    twin = Corruption(kind, mask_size=3)(volume, make_generator(seed))
    assert (twin.shape, twin.dtype) == (volume.shape, volume.dtype)
    assert twin.min() >= volume.min()
    assert twin.max() <= volume.max()
    np.testing.assert_array_equal(volume, before)


@pytest.mark.parametrize("kind", KINDS)
def test_a_twin_is_a_function_of_its_key(kind: str) -> None:
    volume, corruption = draw_volume(), Corruption(kind, mask_size=4)
    first, again, other = (corruption(volume, make_generator("twin", key)) for key in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    assert (first != volume).any()


@pytest.mark.parametrize("share", [0.05, 0.2])
def test_noise_has_the_deviation_asked_for(share: float) -> None:
    volume = np.full((1, 30, 30, 30), 0.5, np.float16)
    volume[0, 0, 0, :2] = 0, 1
    noise = Corruption("noise", noise_std=share)(volume, make_generator(0)).astype(np.float64) - 0.5
    assert noise[0, 1:].std() == pytest.approx(share, rel=0.02)
    assert abs(noise[0, 1:].mean()) < 0.01


@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.75])
def test_whole_blocks_of_a_grid_are_blanked_in_every_channel(ratio: float) -> None:
    volume = draw_volume("uint16", (2, 16, 16, 16))
    twin = Corruption("mask", mask_ratio=ratio, mask_size=4)(volume, make_generator(0))
    blank = (twin == volume.min()).all(axis=0)
    blocks = blank.reshape(4, 4, 4, 4, 4, 4).transpose(0, 2, 4, 1, 3, 5).reshape(64, 64)
    assert (blocks.all(axis=1) == blocks.any(axis=1)).all()
    assert blocks.all(axis=1).sum() == round(64 * ratio)
    np.testing.assert_array_equal(twin[:, ~blank], volume[:, ~blank])


def test_boxes_are_of_the_sides_said_and_not_everything() -> None:
    volume = np.zeros((1, 24, 36, 48), np.uint8)
    volume[0, 0, 0, 0] = 255
    for seed in range(20):
        twin = Corruption("inpaint", max_boxes=1)(volume, make_generator(seed))
        changed = np.argwhere(twin[0] != volume[0])
        sides = changed.max(axis=0) - changed.min(axis=0) + 1
        assert all(length // 6 - 1 <= side <= length // 3 for side, length in zip(sides, (24, 36, 48), strict=True))


def test_unknown_kind() -> None:
    with pytest.raises(ConfigError, match=r"corruption.kind=blur: expected one of noise, mask, inpaint"):
        Corruption("blur")


@pytest.fixture
def volumes() -> StoreDataset:
    """Five volumes of a store in memory."""
    data = np.stack([draw_volume(size=(1, 8, 8, 8), seed=seed) for seed in range(5)])
    ids = pa.chunked_array([[f"image{i}" for i in range(5)]])
    store: Any = SimpleNamespace(
        images=lambda rows: data[rows],
        shape=data.shape[1:],
        read=lambda *names, rows: pa.table({"image_id": ids.take(pa.array(rows))}),
    )
    return StoreDataset(store, np.arange(5), targets=np.zeros((5, 1)))


def test_a_batch_holds_volumes_and_behind_them_their_twins(volumes: StoreDataset) -> None:
    dataset = CorruptedDataset(volumes, Corruption("noise"), seed=3)
    batch = dataset.__getitems__([(0, 4), (0, 1)])
    assert batch.images.shape == (2, 2, 8, 8, 8)
    assert torch.equal(batch.images[:, :1], volumes.__getitems__([(0, 4), (0, 1)]).images)
    assert (batch.images[:, 1] != batch.images[:, 0]).any()
    assert batch.positions.tolist() == [4, 1]
    alone = dataset[(0, 1)].images[0]
    assert torch.equal(batch.images[1], alone)  # whatever it is batched with


def test_training_twins_change_from_epoch_to_epoch_and_validation_twins_never(volumes: StoreDataset) -> None:
    varies = CorruptedDataset(volumes, Corruption("noise"), seed=3)
    fixed = CorruptedDataset(volumes, Corruption("noise"), seed=3, varies=False)
    assert not torch.equal(varies[(0, 2)].images, varies[(1, 2)].images)
    assert torch.equal(fixed[(0, 2)].images, fixed[(1, 2)].images)
    other = CorruptedDataset(volumes, Corruption("noise"), seed=4)
    assert not torch.equal(varies[(0, 2)].images, other[(0, 2)].images)
