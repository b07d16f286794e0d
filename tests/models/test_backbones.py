from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn

from medcls.errors import ConfigError
from medcls.models.backbones import ARCHITECTURES, RESNET, VGG, build_backbone


def test_every_architecture_of_the_issue_is_known() -> None:
    assert set(VGG) == {f"vgg{n}{bn}" for n in (11, 13, 16, 19) for bn in ("", "_bn")}
    assert set(RESNET) == {f"resnet{n}" for n in (18, 34, 50, 101, 152)}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_stages_hold_every_parameter_and_buffer_once_and_in_order(name: str) -> None:
    with torch.device("meta"):
        backbone = build_backbone(name)
    stages = backbone.stages.values()
    assert [id(p) for stage in stages for p in stage.parameters()] == [id(p) for p in backbone.parameters()]
    assert [id(b) for stage in stages for b in stage.buffers()] == [id(b) for b in backbone.buffers()]
    assert all(list(stage.parameters()) for stage in stages)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_any_size_gives_one_feature_vector_an_image(name: str) -> None:
    with torch.device("meta"):
        backbone = build_backbone(name).eval()
        shapes = [tuple(backbone(torch.empty(2, 3, h, w)).shape) for h, w in ((32, 32), (97, 64), (224, 224))]
    assert shapes == [(2, backbone.num_features)] * 3


def test_stages_run_from_input_to_output() -> None:
    backbone = build_backbone("resnet18").eval()
    ran: list[str] = []
    for name, stage in backbone.stages.items():
        next(m for m in stage.modules() if isinstance(m, nn.Conv2d)).register_forward_hook(
            lambda *_, name=name: ran.append(name)
        )
    backbone(torch.zeros(1, 3, 32, 32))
    assert ran == list(backbone.stages) == ["stem", "layer1", "layer2", "layer3", "layer4"]


@pytest.mark.parametrize(
    ("name", "blocks"),
    [("vgg11", (1, 1, 2, 2, 2)), ("vgg13", (2, 2, 2, 2, 2)), ("vgg16_bn", (2, 2, 3, 3, 3)), ("vgg19", (2, 2, 4, 4, 4))],
)
def test_vgg_blocks_have_the_convolutions_of_the_paper(name: str, blocks: tuple[int, ...]) -> None:
    with torch.device("meta"):
        stages = build_backbone(name).stages
    convolutions = [sum(isinstance(m, nn.Conv2d) for m in stages[f"block{i}"]) for i in range(1, 6)]
    assert (tuple(convolutions), list(stages)[5:]) == (blocks, ["fc6", "fc7"])


@pytest.mark.parametrize("name", ["resnet18", "vgg11_bn"])
def test_torchvisions_last_layer_on_the_features_gives_torchvisions_logits(name: str) -> None:
    torch.manual_seed(0)
    reference = torchvision.models.get_model(name, weights=None, num_classes=5).eval()
    with torch.device("meta"):
        backbone = build_backbone(name).eval()
    missing, unexpected = backbone.body.load_state_dict(reference.state_dict(), strict=False, assign=True)
    assert (missing, len(unexpected)) == ([], 2)
    last = reference.fc if name.startswith("resnet") else reference.classifier[6]
    images = torch.randn(2, 3, 40, 33)
    with torch.inference_mode():
        assert torch.equal(last(backbone(images)), reference(images))


def test_dropout_reaches_both_fully_connected_layers_of_a_vgg() -> None:
    with torch.device("meta"):
        rates = [m.p for m in build_backbone("vgg13", dropout=0.25).modules() if isinstance(m, nn.Dropout)]
    assert rates == [0.25, 0.25]


def test_unknown_architecture_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"model.name=resnet19: expected one of vgg11, .*resnet152"):
        build_backbone("resnet19")
