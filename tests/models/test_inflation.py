from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from medcls.errors import ConfigError
from medcls.models.backbones import Backbone
from medcls.models.families import build_backbone
from medcls.models.from_2d import InflatedConv, inflate_state
from medcls.models.weights import load_backbone

NAMES = ("resnet18", "resnet50", "vgg11_bn", "vgg11")


def randomize(network: nn.Module) -> None:
    """Weights of a layer's own scale, and statistics of BatchNorm that are not those it starts with."""
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)


def pair(name: str) -> tuple[Backbone, Backbone]:
    torch.manual_seed(0)
    flat, cubic = build_backbone(name), build_backbone(f"inflated_{name}")
    randomize(flat)
    state = cubic.layout.convert(flat.body.state_dict())
    assert load_backbone(cubic.body, state, source="file") == []
    return flat.eval(), cubic.eval()


@pytest.mark.parametrize("name", NAMES)
def test_a_volume_constant_along_depth_has_the_features_of_its_slice(name: str) -> None:
    flat, cubic = pair(name)
    images = torch.randn(2, 3, 40, 33, generator=torch.Generator().manual_seed(1))
    volumes = images.unsqueeze(2).expand(-1, -1, 33, -1, -1)
    with torch.inference_mode():
        expected, found = flat(images), cubic(volumes)
    assert found.shape == (2, cubic.num_features)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


def test_other_volumes_have_other_features() -> None:
    _, cubic = pair("resnet18")
    volumes = torch.randn(1, 3, 16, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        assert not torch.allclose(cubic(volumes), cubic(volumes[:, :, :1].expand_as(volumes)), rtol=0.1)


@pytest.mark.parametrize(("kernel", "stride", "padding"), [(3, 1, 1), (7, 2, 3), (1, 2, 0), (3, 2, 1)])
@pytest.mark.parametrize("depth", [1, 2, 5, 8])
def test_filters_have_their_full_weight_up_to_the_ends_of_depth(
    kernel: int, stride: int, padding: int, depth: int
) -> None:
    flat = nn.Conv2d(3, 4, kernel, stride=stride, padding=padding)
    cubic = InflatedConv(flat)
    cubic.load_state_dict(inflate_state(flat.state_dict()))
    images = torch.randn(1, 3, 9, 8, generator=torch.Generator().manual_seed(0))
    maps = cubic(images.unsqueeze(2).expand(-1, -1, depth, -1, -1))
    for place in range(maps.shape[2]):
        torch.testing.assert_close(maps[:, :, place], flat(images), rtol=1e-4, atol=1e-5)


def test_between_the_ends_it_is_the_plain_convolution() -> None:
    cubic = InflatedConv(nn.Conv2d(2, 3, 3, padding=1))
    volumes = torch.randn(1, 2, 7, 6, 6, generator=torch.Generator().manual_seed(0))
    plain = F.conv3d(volumes, cubic.weight, cubic.bias, padding=1)
    torch.testing.assert_close(cubic(volumes)[:, :, 1:-1], plain[:, :, 1:-1])
    assert not torch.allclose(cubic(volumes)[:, :, 0], plain[:, :, 0])


def test_half_precision_stays_half_precision() -> None:
    cubic = InflatedConv(nn.Conv2d(2, 3, 3, padding=1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert cubic(torch.randn(1, 2, 4, 4, 4)).dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["resnet34", "vgg13_bn"])
def test_stages_hold_every_parameter_once_and_in_order(name: str) -> None:
    with torch.device("meta"):
        flat, cubic = build_backbone(name), build_backbone(f"inflated_{name}")
    assert list(cubic.stages) == list(flat.stages)
    held = [id(p) for stage in cubic.stages.values() for p in stage.parameters()]
    assert held == [id(p) for p in cubic.parameters()]
    assert cubic.spatial_dims == 3
    two_dimensional = (nn.Conv2d, nn.BatchNorm2d, nn.MaxPool2d, nn.AdaptiveAvgPool2d)
    assert not [m for m in cubic.modules() if isinstance(m, two_dimensional)]


def test_convolutional_base_alone_is_enough_for_a_vgg() -> None:
    flat, cubic = build_backbone("vgg11"), build_backbone("inflated_vgg11")
    base = {name: value for name, value in flat.body.state_dict().items() if name.startswith("features.")}
    left = load_backbone(cubic.body, cubic.layout.convert(base), source="file", optional=cubic.layout.optional)
    assert left == ["classifier.0.bias", "classifier.0.weight", "classifier.3.bias", "classifier.3.weight"]


def test_dropout_reaches_the_fully_connected_layers() -> None:
    with torch.device("meta"):
        cubic = build_backbone("inflated_vgg11", dropout=0.25)
    assert [m.p for m in cubic.modules() if isinstance(m, nn.Dropout)] == [0.25, 0.25]


def test_unknown_network() -> None:
    with pytest.raises(ConfigError, match=r"model.name=resnet19: expected one of vgg11"):
        build_backbone("inflated_resnet19")
