from __future__ import annotations

import pytest
import torch

from medcls.errors import ConfigError
from medcls.models.families import build_backbone
from medcls.models.from_2d import AttentionPool, SliceNetwork
from medcls.models.weights import load_backbone


@pytest.fixture
def volumes() -> torch.Tensor:
    return torch.randn(2, 3, 6, 32, 40, generator=torch.Generator().manual_seed(0))


def test_mean_of_slices_is_the_mean_of_the_features_of_a_2d_network(volumes: torch.Tensor) -> None:
    flat, cubic = build_backbone("resnet18").eval(), build_backbone("slices_resnet18").eval()
    assert (
        load_backbone(
            cubic.body, cubic.layout.convert(flat.body.state_dict()), source="f", optional=cubic.layout.optional
        )
        == []
    )
    with torch.inference_mode():
        expected = torch.stack([flat(volumes[:, :, k]) for k in range(6)]).mean(dim=0)
        torch.testing.assert_close(cubic(volumes), expected, rtol=1e-4, atol=1e-4)


def test_orthogonal_slices_are_the_middle_ones_of_the_three_axes(volumes: torch.Tensor) -> None:
    flat, cubic = (
        build_backbone("resnet18").eval(),
        build_backbone("slices_resnet18", options={"planes": "orthogonal"}).eval(),
    )
    load_backbone(cubic.body, cubic.layout.convert(flat.body.state_dict()), source="f", optional=cubic.layout.optional)
    middles = [volumes[:, :, 3], volumes[:, :, :, 16], volumes[..., 20]]
    with torch.inference_mode():
        expected = torch.stack([flat(images) for images in middles]).mean(dim=0)
        torch.testing.assert_close(cubic(volumes), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("depth", "count", "expected"),
    [(6, 0, range(6)), (6, 9, range(6)), (6, 1, [3]), (6, 3, [1, 3, 5]), (9, 3, [1, 4, 7])],
)
def test_slices_are_evenly_spaced(depth: int, count: int, expected: list[int]) -> None:
    network = SliceNetwork(torch.nn.Identity(), None, planes="axial", num_slices=count)
    marked = torch.arange(depth).float().view(1, 1, depth, 1, 1).expand(1, 3, depth, 2, 2)
    assert network.cut(marked)[0][0, :, 0, 0, 0].tolist() == list(expected)


def test_attention_weights_sum_to_one_and_follow_their_slices(volumes: torch.Tensor) -> None:
    torch.manual_seed(0)
    pool = AttentionPool(8)
    features = torch.randn(2, 5, 8)
    weights = pool.weigh(features)
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(2, 1))
    assert float(weights.detach().std()) > 0
    order = [3, 1, 4, 0, 2]
    torch.testing.assert_close(pool.weigh(features[:, order]), weights[:, order])
    torch.testing.assert_close(pool(features[:, order]), pool(features))


def test_attention_is_new_where_weights_come_from_imagenet(volumes: torch.Tensor) -> None:
    cubic = build_backbone("slices_resnet18", options={"pooling": "attention"})
    assert list(cubic.stages) == ["stem", "layer1", "layer2", "layer3", "layer4", "attention"]
    assert [id(p) for s in cubic.stages.values() for p in s.parameters()] == [id(p) for p in cubic.parameters()]
    state = cubic.layout.convert(build_backbone("resnet18").body.state_dict())
    left = load_backbone(cubic.body, state, source="file", optional=cubic.layout.optional)
    assert left == ["attention.hidden.weight", "attention.score.weight"]
    assert cubic(volumes).shape == (2, cubic.num_features)


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"planes": "coronal"}, r"model\.planes=coronal: expected one of axial, orthogonal"),
        ({"pooling": "max"}, r"model\.pooling=max: expected one of mean, attention"),
    ],
)
def test_unknown_settings(settings: dict[str, str], part: str) -> None:
    with pytest.raises(ConfigError, match=part):
        build_backbone("slices_resnet18", options=settings)
