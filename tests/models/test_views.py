"""The grid of crops is the paper's, and its scores are averaged."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from medcls.models.heads import compute_scores
from medcls.models.views import ManyViews, place_grid


class Corner(nn.Module):
    """Two logits of an image: its first pixel and its last of the first row."""

    def forward(self, images: Tensor) -> Tensor:
        return torch.stack([images[:, 0, 0, 0], images[:, 0, 0, -1]], dim=1).float() / 10


@given(st.integers(1, 600), st.integers(0, 400), st.integers(1, 9))
def test_a_grid_goes_from_edge_to_edge_in_even_steps(length: int, room: int, count: int) -> None:
    starts = place_grid(length + room, length, count=count)
    assert starts == sorted(set(starts))
    if count == 1:
        assert starts == [room // 2]
    else:
        assert (starts[0], starts[-1], len(starts)) == (0, room, min(count, room + 1))
        assert all(abs(start - room * i / (len(starts) - 1)) <= 0.5 for i, start in enumerate(starts) if room)


def test_a_crop_larger_than_the_side_is_refused() -> None:
    with pytest.raises(ValueError, match="a crop of 9 pixels out of 8"):
        place_grid(8, 9, count=5)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16])
def test_fifty_crops_of_each_image(dtype: torch.dtype) -> None:
    images = torch.arange(2 * 12 * 14, dtype=torch.int32).view(2, 1, 12, 14).to(dtype)
    views = ManyViews(Corner(), output="multiclass", size=(8, 10), crops_per_side=5, flips=True)
    crops = views.list_crops(images)
    assert len(crops) == 25
    assert [int(crop[0, 0, 0, 0]) for crop in crops[:6]] == [0, 1, 2, 3, 4, 14]
    logits = [Corner()(each) for crop in crops for each in (crop, crop.float().flip(-1))]
    assert len(logits) == 50
    expected = torch.stack([compute_scores("multiclass", one) for one in logits]).mean(dim=0)
    torch.testing.assert_close(compute_scores("multiclass", views(images)), expected)


def test_one_crop_is_the_middle_and_no_size_the_whole() -> None:
    images = torch.arange(60, dtype=torch.uint8).view(1, 1, 6, 10)
    middle = ManyViews(Corner(), output="regression", size=(2, 4), flips=False)
    assert middle(images)[0].tolist() == pytest.approx([2.3, 2.6])
    whole = ManyViews(Corner(), output="regression", size=None, flips=True)
    assert whole(images)[0].tolist() == pytest.approx([0.45, 0.45])
