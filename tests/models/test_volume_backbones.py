from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medcls.errors import ConfigError, DataError
from medcls.files import sha256_file
from medcls.models.backbones import Backbone
from medcls.models.families import build_backbone, list_names
from medcls.models.pooling import list_nondeterministic
from medcls.models.volumetric import (
    RESNET_3D,
    PaddedShortcut,
    PooledConv,
    initialize_uniform,
)
from medcls.models.weights import WeightsFile, load_backbone, read_weights


def build(name: str, shape: tuple[int, ...] = (1, 32, 33, 40), **settings: bool) -> Backbone:
    with torch.device("meta"):
        return build_backbone(name, shape=shape, options=settings)


@pytest.mark.parametrize("name", list_names(3))
def test_stages_hold_every_parameter_and_buffer_once_and_in_order(name: str) -> None:
    backbone = build(name)
    stages = backbone.stages.values()
    assert [id(p) for stage in stages for p in stage.parameters()] == [id(p) for p in backbone.parameters()]
    assert [id(b) for stage in stages for b in stage.buffers()] == [id(b) for b in backbone.buffers()]
    assert backbone.spatial_dims == 3
    assert list_nondeterministic(backbone) == []


@pytest.mark.parametrize("name", list_names(3))
@pytest.mark.parametrize("shape", [(1, 32, 33, 40), (2, 24, 64, 22)])
def test_any_size_and_any_channels_give_one_feature_vector_a_volume(name: str, shape: tuple[int, ...]) -> None:
    backbone = build(name, shape)
    with torch.device("meta"):
        assert backbone(torch.empty(2, *shape)).shape == (2, backbone.num_features)


@pytest.mark.parametrize(("name", "millions"), [*zip(RESNET_3D, (14.36, 32.99, 63.31, 46.21), strict=True)])
def test_resnets_have_the_parameters_that_medicalnet_states(name: str, millions: float) -> None:
    """Source: README of Tencent/MedicalNet, without the new last layers."""
    assert sum(p.numel() for p in build(name).parameters()) / 1e6 == pytest.approx(millions, rel=0.002)


@pytest.mark.parametrize("name", RESNET_3D)
def test_weights_in_medicalnets_layout_reach_the_network(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    original = build_backbone("resnet10_3d", shape=(1, 16, 16, 16))
    state = {f"module.{name}": value for name, value in original.body.state_dict().items()}
    state["module.conv_seg.0.weight"] = torch.zeros(2, 2)
    path = tmp_path / "resnet_10_23dataset.pth"
    torch.save({"state_dict": state, "epoch": 3}, path)
    given = read_weights(WeightsFile(path, sha256_file(path)))
    network = build_backbone(name, shape=(1, 16, 16, 16))
    if name != "resnet10_3d":
        with pytest.raises(DataError, match="is not for this architecture"):
            load_backbone(network.body, network.layout.convert(given), source=path.name)
        return
    assert load_backbone(network.body, network.layout.convert(given), source=path.name) == []
    volumes = torch.randn(1, 1, 16, 16, 16)
    assert torch.equal(network.eval()(volumes), original.eval()(volumes))
    other = build_backbone(name, shape=(3, 16, 16, 16))
    with pytest.raises(DataError, match=r"1 of other shape \(conv1.weight\)"):
        load_backbone(other.body, other.layout.convert(given), source=path.name)


MEDICALNET = {
    "resnet10_3d": ([1, 1, 1, 1], False, "B"),
    "resnet18_3d": ([2, 2, 2, 2], False, "A"),
    "resnet34_3d": ([3, 4, 6, 3], False, "A"),
    "resnet50_3d": ([3, 4, 6, 3], True, "B"),
}


def list_medicalnet(layers: list[int], *, bottleneck: bool, shortcut: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the encoder in Tencent/MedicalNet's files, counted out by hand after its models/resnet.py.

    Other people's code loads the files strictly into that network, "module." taken off.
    """
    shapes: dict[str, tuple[int, ...]] = {}

    def convolve(name: str, before: int, after: int, size: int) -> None:
        shapes[f"module.{name}.weight"] = (after, before, size, size, size)

    def normalize(name: str, width: int) -> None:
        shapes.update({f"module.{name}.{part}": (width,) for part in ("weight", "bias", "running_mean", "running_var")})

    convolve("conv1", 1, 64, 7)
    normalize("bn1", 64)
    before = 64
    for number, (blocks, width) in enumerate(zip(layers, (64, 128, 256, 512), strict=True), start=1):
        after = width * (4 if bottleneck else 1)
        for block in range(blocks):
            name = f"layer{number}.{block}"
            for part, size in enumerate((1, 3, 1) if bottleneck else (3, 3), start=1):
                last = part == (3 if bottleneck else 2)
                convolve(f"{name}.conv{part}", before if part == 1 else width, after if last else width, size)
                normalize(f"{name}.bn{part}", after if last else width)
            if block == 0 and shortcut == "B" and (number > 1 or before != after):
                convolve(f"{name}.downsample.0", before, after, 1)
                normalize(f"{name}.downsample.1", after)
            before = after
    return shapes


@pytest.mark.parametrize("name", MEDICALNET)
@pytest.mark.parametrize("segments", [False, True])
def test_a_file_of_medicalnets_published_layout_is_taken_whole(name: str, segments: bool, tmp_path: Path) -> None:
    """No real file is at hand: the keys are those of its code, with and without the layers that segment."""
    layers, bottleneck, shortcut = MEDICALNET[name]
    shapes = list_medicalnet(layers, bottleneck=bottleneck, shortcut=shortcut)
    generator = torch.Generator().manual_seed(0)
    # Small numbers of positive size: running variances are such.
    state = {key: torch.rand(shape, generator=generator) * 0.1 + 0.01 for key, shape in shapes.items()}
    extra = {"module.conv_seg.0.weight": torch.ones(512, 32, 2, 2, 2), "module.conv_seg.0.bias": torch.ones(32)}
    path = tmp_path / "resnet_23dataset.pth"
    torch.save({"state_dict": state | (extra if segments else {}), "optimizer": {}, "epoch": 9}, path)
    network = build_backbone(name, shape=(1, 16, 16, 16))
    read = network.layout.convert(read_weights(WeightsFile(path, sha256_file(path))))
    assert load_backbone(network.body, read, source=path.name) == []
    own = network.body.state_dict()
    counters = {key for key in own if key.endswith("num_batches_tracked")}
    assert {f"module.{key}" for key in set(own) - counters} == set(state), "every number comes from the file"
    assert all(torch.equal(own[key.removeprefix("module.")], value) for key, value in state.items())
    with pytest.raises(DataError, match=r"1 missing \(layer4.0.bn1.running_var\)"):
        load_backbone(
            network.body,
            {key: value for key, value in read.items() if key != "layer4.0.bn1.running_var"},
            source=path.name,
        )


def test_shortcut_without_parameters_lets_the_gradient_through() -> None:
    maps = torch.randn(2, 3, 5, 4, 6, requires_grad=True)
    taken = PaddedShortcut(5, stride=2)(maps)
    assert torch.equal(taken[:, :3], F.avg_pool3d(maps, 1, 2))
    assert not taken[:, 3:].any()
    taken.sum().backward()
    assert maps.grad is not None
    assert float(maps.grad.sum()) == 2 * 3 * 3 * 2 * 3


def test_a_resnet_of_shortcuts_a_learns_through_them() -> None:
    """MONAI's own shortcut A is cut off from the gradient: with dead convolutions nothing would reach the input."""
    network = build_backbone("resnet18_3d", shape=(1, 16, 16, 16))
    for layer in ("layer2", "layer3", "layer4"):
        for module in network.stages[layer].modules():
            if isinstance(module, nn.Conv3d):
                nn.init.zeros_(module.weight)
    volumes = torch.randn(2, 1, 32, 32, 32, requires_grad=True)
    network(volumes).sum().backward()
    assert volumes.grad is not None
    assert volumes.grad.abs().sum() > 0


def papers_classifier(volumes: Tensor, body: nn.Module) -> Tensor:
    """Convolution without a border, pool, then bias and ReLU; fully connected layers with ReLU."""
    maps = volumes
    for name in ("conv1", "conv2", "conv3"):
        conv = body.get_submodule(name).get_submodule("conv")
        assert isinstance(conv, nn.Conv3d)
        assert conv.bias is not None
        maps = F.max_pool3d(F.conv3d(maps, conv.weight), 2) + conv.bias.view(-1, 1, 1, 1)
        maps = 0.5 * (maps + maps.abs())
    for name in ("fc1", "fc2"):
        layer = body.get_submodule(name)
        maps = F.relu(layer(maps.flatten(1)))
    return maps


def test_acnn3d_is_the_papers_classifier() -> None:
    torch.manual_seed(0)
    backbone = build_backbone("acnn3d", shape=(1, 32, 24, 26))
    for name in ("conv1", "conv2", "conv3"):
        nn.init.normal_(backbone.body.get_submodule(name).get_submodule("conv").bias)  # type: ignore[arg-type]
    volumes = torch.rand(2, 1, 32, 24, 26)
    torch.testing.assert_close(backbone(volumes), papers_classifier(volumes, backbone.body))
    assert list(backbone.stages) == ["conv1", "conv2", "conv3", "fc1", "fc2"]


def test_acnn3d_at_64_has_the_features_of_the_size_arithmetic() -> None:
    fc1 = build("acnn3d", (1, 64, 64, 64)).body.get_submodule("fc1")
    assert isinstance(fc1, nn.Linear)
    assert (fc1.in_features, fc1.out_features) == (8 * 6**3, 2000)


def test_acnn3d_refuses_volumes_that_leave_nothing() -> None:
    assert build("acnn3d", (1, 22, 22, 22)).num_features == 500
    with pytest.raises(ConfigError, match=r"acnn3d takes volumes of 22 voxels and more"):
        build("acnn3d", (1, 64, 64, 21))


def test_all_levels_are_both_fully_connected_layers_side_by_side() -> None:
    torch.manual_seed(0)
    both = build_backbone("acnn3d", shape=(1, 24, 24, 24), options={"all_levels": True})
    last = build_backbone("acnn3d", shape=(1, 24, 24, 24))
    last.load_state_dict(both.state_dict())
    volumes = torch.rand(2, 1, 24, 24, 24)
    assert (both.levels, both.num_features) == ((2000, 500), 2500)
    assert torch.equal(both(volumes)[:, 2000:], last(volumes))
    with pytest.raises(ConfigError, match=r"model.supervision: encoder3d has no fully connected layers"):
        build("encoder3d", all_levels=True)


def test_uniform_weights_reach_their_bounds_and_not_further() -> None:
    torch.manual_seed(0)
    conv, linear = nn.Conv3d(8, 16, 3), nn.Linear(300, 100)
    initialize_uniform(conv, pool_volume=8)
    initialize_uniform(linear)
    for layer, bound in ((conv, math.sqrt(6 / (8 * 27 + 16 * 27 / 8))), (linear, math.sqrt(6 / 400))):
        assert 0.99 * bound < float(layer.weight.detach().abs().max()) <= bound
        assert layer.bias is not None
        assert not layer.bias.any()


def test_full_border_is_the_transposed_view_of_valid() -> None:
    full, valid = PooledConv(1, 8, border="full"), PooledConv(1, 8, border="valid")
    valid.load_state_dict(full.state_dict())
    volumes = torch.rand(1, 1, 9, 10, 11)
    hidden = full.hidden(volumes)
    assert hidden.shape[2:] == (11, 12, 13)
    torch.testing.assert_close(hidden[:, :, 2:-2, 2:-2, 2:-2], valid.hidden(volumes))


def test_unknown_network_lists_the_known() -> None:
    with pytest.raises(ConfigError, match=r"model.name=resnet11_3d: .*for volumes acnn3d, .*resnet50_3d"):
        build_backbone("resnet11_3d", shape=(1, 32, 32, 32))
