from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from medcls.errors import ConfigError
from medcls.models.normalization import NORMALIZATIONS, VolumeNormalization


def draw_volumes(seed: int = 0, dtype: type = np.uint8) -> torch.Tensor:
    values = np.random.default_rng(seed).integers(0, 200, (3, 2, 4, 5, 6)).astype(dtype)
    values[:, :, :1] = 0
    return torch.from_numpy(values)


@pytest.mark.parametrize(
    ("dtype", "value_range"),
    [(np.uint8, (0.0, 255.0)), (np.uint16, (0.0, 65535.0)), (np.int16, (-1024.0, 3071.0)), (np.float16, (0.0, 1.0))],
)
def test_stored_maps_the_range_of_the_store_to_0_and_1(dtype: type, value_range: tuple[float, float]) -> None:
    ends = torch.from_numpy(np.array(value_range).reshape(1, 1, 1, 1, 2).astype(dtype))
    out = VolumeNormalization("stored", value_range)(ends)
    assert out.dtype == torch.float32
    assert out.flatten().tolist() == [0.0, 1.0]


def test_min_max_gives_every_channel_of_every_volume_its_own_range() -> None:
    volumes = draw_volumes()
    out = VolumeNormalization("min_max", (0.0, 255.0))(volumes)
    assert out.amin(dim=(2, 3, 4)).tolist() == [[0.0] * 2] * 3
    assert out.amax(dim=(2, 3, 4)).tolist() == [[1.0] * 2] * 3
    # Of values that start at 0 it is (x - min) / max, as in the authors' code.
    expected = volumes[1, 0].float() / volumes[1, 0].max()
    torch.testing.assert_close(out[1, 0], expected)


def test_z_score_is_that_of_the_foreground_and_padding_changes_nothing() -> None:
    volumes = draw_volumes()
    normalize = VolumeNormalization("z_score", (0.0, 255.0))
    out = normalize(volumes)
    inside = volumes[2, 1] > 0
    values = volumes[2, 1][inside].numpy()
    np.testing.assert_allclose(out[2, 1][inside].numpy(), (values - values.mean()) / values.std(), atol=1e-5)
    assert out[2, 1][~inside].unique().numel() == 1
    assert out[2, 1][~inside][0] < out[2, 1][inside].min()
    padded = torch.nn.functional.pad(volumes, (3, 3, 0, 0, 2, 0))
    torch.testing.assert_close(normalize(padded)[:, :, 2:, :, 3:-3], out)


@given(st.sampled_from(["min_max", "z_score"]), st.floats(0.2, 1.2), st.integers(0, 99))
def test_a_scanners_gain_is_taken_out(kind: str, gain: float, seed: int) -> None:
    """Both are the same for a volume that is brighter by a factor; the store's rounding is left away here."""
    volumes = draw_volumes(seed, np.float32)
    normalize = VolumeNormalization(kind, (0.0, 255.0))
    torch.testing.assert_close(normalize(volumes * gain), normalize(volumes), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", NORMALIZATIONS)
@pytest.mark.parametrize("value", [0, 7])
def test_a_volume_of_one_value_stays_finite(kind: str, value: int) -> None:
    out = VolumeNormalization(kind, (0.0, 255.0))(torch.full((1, 1, 3, 3, 3), value, dtype=torch.uint8))
    assert out.isfinite().all()
    assert kind == "stored" or out.abs().max() < 1e-3 or value == 0


def test_unknown_kind_is_named() -> None:
    with pytest.raises(ConfigError, match="normalize=minmax: expected one of stored, min_max, z_score"):
        VolumeNormalization("minmax", (0.0, 1.0))


@pytest.mark.parametrize("kind", NORMALIZATIONS)
def test_changed_volumes_are_normalised_by_the_numbers_of_others(kind: str) -> None:
    normalize = VolumeNormalization(kind, (0.0, 255.0))
    intact = draw_volumes()
    assert torch.equal(normalize(intact, like=intact), normalize(intact))
    changed = intact.clone()
    changed[:, :, 2:] = 250
    out = normalize(changed, like=intact)
    assert torch.equal(out[:, :, :2], normalize(intact)[:, :, :2])
    assert kind == "stored" or not torch.allclose(out[:, :, :2], normalize(changed)[:, :, :2])
