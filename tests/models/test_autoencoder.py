from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medcls.errors import ConfigError
from medcls.models.autoencoder import CLASSIFIER_OF, Autoencoder, build_autoencoder, take_encoder
from medcls.models.families import build_backbone
from medcls.models.normalization import VolumeNormalization
from medcls.models.pooling import list_nondeterministic


def build(name: str, *, in_channels: int = 1, kind: str = "min_max") -> Autoencoder:
    torch.manual_seed(0)
    return build_autoencoder(name, in_channels=in_channels, normalize=VolumeNormalization(kind, (0.0, 255.0)))


def draw(channels: int = 1, size: tuple[int, ...] = (17, 12, 14)) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (2, channels, *size), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("name", CLASSIFIER_OF)
@pytest.mark.parametrize("size", [(16, 16, 16), (17, 12, 15), (8, 33, 9)])
@pytest.mark.parametrize("channels", [1, 2])
def test_reconstructions_have_the_size_of_their_targets(name: str, size: tuple[int, ...], channels: int) -> None:
    model = build(name, in_channels=channels)
    volumes = draw(channels, size)
    pairs = model(volumes)
    assert pairs.shape == (2, 2, channels, *size)
    assert torch.equal(pairs[:, 1], model.normalize(volumes))
    for level, stage in enumerate(model.stages):
        model.choose_level(level)
        pairs = model(volumes)
        assert pairs.shape[:2] == (2, 2)
        assert level == 0 or pairs.shape[3] < size[0], stage


def test_the_papers_level_is_full_then_valid_with_relu_after_both() -> None:
    model = build("autoencoder3d_hosseini")
    model.choose_level(0)
    volumes = draw()
    made, target = model(volumes).unbind(dim=1)
    level = model.stages["conv1"]
    encode, decode = level.encode.conv, level.decoder
    hidden = F.relu(F.conv3d(F.pad(target, [2] * 6), encode.weight, encode.bias))
    torch.testing.assert_close(made, F.relu(F.conv3d(hidden, decode.weight, decode.bias)))


def test_the_papers_next_level_learns_on_the_pooled_maps_of_the_one_below() -> None:
    model = build("autoencoder3d_hosseini")
    volumes = draw()
    maps = model.normalize(volumes)
    for level, name in enumerate(("conv1", "conv2", "conv3")):
        model.choose_level(level)
        torch.testing.assert_close(model(volumes)[:, 1], maps)
        maps = F.max_pool3d(model.stages[name].encode.hidden(maps), 2)


@pytest.mark.parametrize("name", CLASSIFIER_OF)
def test_only_the_chosen_level_gets_a_gradient(name: str) -> None:
    model = build(name)
    for level, chosen in enumerate(model.stages):
        model.choose_level(level)
        model.zero_grad(set_to_none=True)
        pairs = model(draw())
        (pairs[:, 0] - pairs[:, 1]).square().sum().backward()
        for stage, module in model.stages.items():
            assert any(p.grad is not None for p in module.parameters()) == (stage == chosen)


@pytest.mark.parametrize("name", CLASSIFIER_OF)
@pytest.mark.parametrize("kind", ["min_max", "stored"])
def test_the_network_sees_the_twin_and_is_asked_for_the_volume(name: str, kind: str) -> None:
    model = build(name, kind=kind)
    volumes, twins = draw(), draw().flip(0)
    pairs = model(torch.cat([volumes, twins], dim=1))
    assert torch.equal(pairs[:, 1], model(volumes)[:, 1])
    assert not torch.allclose(pairs[:, 0], model(volumes)[:, 0])
    assert torch.equal(model(torch.cat([volumes, volumes], dim=1)), model(volumes))


@pytest.mark.parametrize("name", CLASSIFIER_OF)
def test_the_encoder_is_the_classifiers_first_stages_by_name_and_nothing_else(name: str) -> None:
    model = build(name)
    backbone = build_backbone(CLASSIFIER_OF[name], shape=(1, 24, 24, 24))
    encoder = take_encoder(model.state_dict())
    missing, unexpected = backbone.body.load_state_dict(encoder, strict=False)
    assert unexpected == []
    assert {n.split(".")[0] for n in missing} == ({"fc1", "fc2"} if "hosseini" in name else set())
    assert {n.split(".")[0] for n in encoder} == set(model.stages)
    volumes = torch.rand(1, 1, 24, 24, 24)
    maps = volumes
    for stage, level in model.stages.items():
        maps = level.encode(maps)
        found = backbone.body.get_submodule(stage)
        if "hosseini" not in name:
            volumes = found(volumes)
            torch.testing.assert_close(maps, volumes)


@pytest.mark.parametrize("name", CLASSIFIER_OF)
@pytest.mark.parametrize("level", [None, 1])
def test_activation_checkpointing_changes_no_bit(name: str, level: int | None) -> None:
    gradients = []
    for recompute in (False, True):
        model = build(name).train()
        model.recompute = recompute
        model.choose_level(level)
        calls: list[bool] = []
        first = next(m for m in model.stages[list(model.stages)[level or 0]].modules() if isinstance(m, nn.Conv3d))
        first.register_forward_hook(lambda *_, calls=calls: calls.append(True))
        pairs = model(draw())
        (pairs[:, 0] - pairs[:, 1]).square().sum().backward()
        assert len(calls) == 1 + recompute
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(gradients[1]) > 0
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize(("name", "lr"), [("autoencoder3d", 1e-3), ("autoencoder3d_hosseini", 3e-3)])
def test_it_learns_one_batch(name: str, lr: float) -> None:
    model = build(name).train()
    grid = torch.linspace(-1, 1, 16)
    distance = (grid.view(16, 1, 1) ** 2 + grid.view(1, 16, 1) ** 2 + grid**2).sqrt()
    volumes = torch.stack([(distance < r).float() * 200 + 20 * distance for r in (0.5, 0.9)])[:, None].byte()
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    losses = []
    for _ in range(100):
        optimizer.zero_grad()
        made, target = model(volumes).unbind(dim=1)
        loss = F.mse_loss(made, target)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    spread = float(model.normalize(volumes).var())
    assert losses[-1] < 0.3 * min(losses[0], spread)


@pytest.mark.parametrize("name", CLASSIFIER_OF)
def test_every_layer_is_deterministic_on_cuda(name: str) -> None:
    assert list_nondeterministic(build(name)) == []


def test_unknown_autoencoder() -> None:
    with pytest.raises(
        ConfigError, match=r"model.name=encoder3d: expected one of autoencoder3d_hosseini, autoencoder3d"
    ):
        build("encoder3d")
