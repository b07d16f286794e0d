from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn

from medcls.errors import ConfigError
from medcls.models.backbones import RESNET, VGGS, Backbone
from medcls.models.families import build_backbone, choose_family, list_names
from medcls.models.initialization import Slim, slim_vgg

ARCHITECTURES = list_names(2)
OWN = [name for name in ARCHITECTURES if choose_family(name).url is None]


def test_every_architecture_of_the_issue_is_known() -> None:
    assert set(VGGS) == {f"vgg{n}{bn}" for n in (11, 13, 16, 19) for bn in ("", "_bn")}
    assert set(RESNET) == {f"resnet{n}" for n in (18, 34, 50, 101, 152)}
    assert set(OWN) == {f"cbr_{n}" for n in ("larget", "largew", "small", "tiny")} | {
        "antony2017_class", "antony2017_joint", "vgg_m",
    }  # fmt: skip


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
        least = max(32, choose_family(name).least_size)
        shapes = [tuple(backbone(torch.empty(2, 3, h, w)).shape) for h, w in ((least, least), (97, 64), (224, 224))]
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


def test_nearest_architecture_is_named() -> None:
    with pytest.raises(ConfigError, match=r"\(nearest: antony2017_class\)"):
        build_backbone("antony2017_clas")


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if choose_family(name).least_size > 1])
def test_smaller_images_than_the_least_leave_no_pixel(name: str) -> None:
    least = choose_family(name).least_size
    with torch.device("meta"):
        body = build_backbone(name).eval().body
        convolutions = body[: list(dict(body.named_children())).index("average")] if name in OWN else body.features
        assert 1 in convolutions(torch.empty(1, 3, least, least)).shape[2:]
        with pytest.raises(RuntimeError, match="Output size is too small"):
            convolutions(torch.empty(1, 3, least - 1, least + 64))


# --- networks that the studies trained themselves


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def on_grey(name: str) -> int:
    """Parameters with one input channel, as the sources have it: two of the three planes of the first filters less."""
    with torch.device("meta"):
        backbone = build_backbone(name)
    return count(backbone) - 2 * next(backbone.parameters())[:, 0].numel()


# Convolutions with their biases, as joseph_models.py lists them for 200 x 300, and fc5 over the last map.
ANTONY_CLASS = (121 * 32 + 32) + (25 * 32 * 64 + 64) + (9 * 64 * 96 + 96) + (9 * 96 * 128 + 128)
ANTONY_JOINT = (
    (121 * 32 + 32)
    + (9 * 32 * 64 + 64) + (9 * 64 * 64 + 64)
    + (9 * 64 * 96 + 96) + (9 * 96 * 96 + 96)
    + (9 * 96 * 128 + 128) + (9 * 128 * 128 + 128)
)  # fmt: skip
COUNTS = {
    "antony2017_class": (ANTONY_CLASS + 6 * 9 * 128 * 1024 + 1024, 7_300_192),
    "antony2017_joint": (ANTONY_JOINT + 5 * 8 * 128 * 512 + 512, 3_078_016),
}


@pytest.mark.parametrize("name", COUNTS)
def test_antonys_networks_have_the_parameters_of_their_layers(name: str) -> None:
    assert COUNTS[name][0] == COUNTS[name][1] == on_grey(name)


@pytest.mark.parametrize(("name", "size"), [("antony2017_class", (6, 9)), ("antony2017_joint", (5, 8))])
def test_antonys_map_is_taken_whole_at_the_size_of_the_paper(name: str, size: tuple[int, int]) -> None:
    body = build_backbone(name).eval().body
    with torch.inference_mode():
        shapes, maps = [], torch.rand(1, 3, 200, 300)
        for block in body[:4]:
            maps = block(maps)
            shapes.append(tuple(maps.shape[2:]))
        assert torch.equal(body.average(maps), maps.flatten(1))
    halved = [(50, 75), (25, 37), (12, 18), (6, 9)] if size == (6, 9) else [(49, 74), (24, 36), (11, 17), (5, 8)]
    assert shapes == halved


def test_vgg_m_has_the_maps_and_parameters_of_its_layers() -> None:
    with torch.device("meta"):
        backbone = build_backbone("vgg_m", dropout=0.5).eval()
        maps, shapes = torch.empty(1, 3, 224, 224), []
        for block in backbone.body[:5]:
            maps = block(maps)
            shapes.append(maps.shape[2])
    assert shapes == [54, 13, 13, 13, 6]
    convolutions = (49 * 3 * 96 + 96) + (25 * 96 * 256 + 256) + (9 * 256 * 512 + 512) + 2 * (9 * 512 * 512 + 512)
    assert count(backbone) == convolutions + (36 * 512 * 4096 + 4096) + (4096 * 4096 + 4096)


def test_vgg_m_normalises_by_the_sum_over_five_channels() -> None:
    """The source's formula: x / (2 + 1e-4 * sum of squares) ** 0.75."""
    with torch.device("meta"):
        layer = build_backbone("vgg_m").body.block1[2]
    maps = 50 * torch.rand(1, 12, 3, 3, generator=torch.Generator().manual_seed(0))
    padded = nn.functional.pad(maps.square(), (0, 0, 0, 0, 2, 2))
    sums = sum(padded[:, i : i + 12] for i in range(5))
    torch.testing.assert_close(layer(maps), maps / (2 + 1e-4 * sums) ** 0.75)


CBR = {
    "cbr_larget": (7, [32, 64, 128, 256, 512]),
    "cbr_largew": (7, [64, 128, 256, 512]),
    "cbr_small": (7, [32, 64, 128, 256]),
    "cbr_tiny": (5, [64, 128, 256, 512]),
}


@pytest.mark.parametrize("name", CBR)
def test_cbr_networks_are_those_of_the_paper(name: str) -> None:
    size, widths = CBR[name]
    with torch.device("meta"):
        backbone = build_backbone(name)
        blocks = [[type(layer).__name__ for layer in stage[0]] for stage in backbone.stages.values()]
        filters = [m.weight.shape for m in backbone.modules() if isinstance(m, nn.Conv2d)]
        small = nn.Sequential(*list(backbone.body.children())[:-1])(torch.empty(1, 3, 64, 96)).shape
    assert [[f[0], *f[2:]] for f in filters] == [[width, size, size] for width in widths]
    assert [block[:3] for block in blocks] == [["Conv2d", "BatchNorm2d", "ReLU"]] * len(widths)
    assert [block[3:] for block in blocks] == [["MaxPool2d"]] * 4 + [[]] * (len(widths) - 4)
    assert tuple(small) == (1, widths[-1], 4, 6)


# --- hybrids


def build_slim(name: str, above: str, width: float = 0.5) -> Backbone:
    return build_backbone(name, options={"above": above, "width": width})


@pytest.mark.parametrize(
    ("name", "above", "features"),
    [
        ("resnet18", "stem", 256),
        ("resnet18", "layer3", 256),
        ("resnet50", "layer2", 1024),
        ("vgg16_bn", "block2", 2048),
        ("vgg11", "block5", 2048),
        ("vgg11", "fc6", 2048),
    ],
)
def test_hybrid_is_full_up_to_the_stage_and_half_as_wide_above(name: str, above: str, features: int) -> None:
    with torch.device("meta"):
        full, slim = build_backbone(name), build_slim(name, above)
        assert slim(torch.empty(2, 3, 64, 64)).shape == (2, features) == (2, slim.num_features)
    names = list(full.stages)
    assert list(slim.stages) == names
    assert sum(count(stage) for stage in slim.stages.values()) == count(slim)
    for stage in names[: names.index(above) + 1]:
        assert [p.shape for p in slim.stages[stage].parameters()] == [p.shape for p in full.stages[stage].parameters()]
    for stage in names[names.index(above) + 1 :]:
        # A slimmer layer1 of a ResNet projects its input, which the full one need not: a set.
        mine, theirs = ({p.shape[0] for p in b.stages[stage].parameters() if p.ndim > 1} for b in (slim, full))
        assert {2 * width for width in mine} == theirs


@pytest.mark.parametrize(("name", "above"), [("resnet18", "layer4"), ("vgg11", "fc7"), ("resnet18", "layer9")])
def test_hybrid_without_anything_above_is_refused(name: str, above: str) -> None:
    expected = f"model.init_to={above}: this network can be slimmer above (stem|block1), "
    with torch.device("meta"), pytest.raises(ConfigError, match=expected):
        build_slim(name, above)


def test_small_networks_have_no_hybrid() -> None:
    with pytest.raises(ConfigError, match="cannot be slimmer above a stage: choose a VGG or ResNet"):
        build_slim("cbr_tiny", "block1")


def test_new_layers_of_a_hybrid_start_as_torchvisions_do() -> None:
    torch.manual_seed(0)
    with torch.device("meta"):
        body = torchvision.models.vgg11_bn()
    slim_vgg(Slim("block1", 0.125), body)  # what it makes has numbers, what it keeps has none
    new = [m for m in body.modules() if isinstance(m, nn.Conv2d | nn.Linear) and not m.weight.is_meta]
    assert [m.weight.shape[0] for m in new] == [16, 32, 32, 64, 64, 64, 64, 512, 512]
    for layer in new:
        deviation = (2 / (layer.weight.shape[0] * 9)) ** 0.5 if isinstance(layer, nn.Conv2d) else 0.01
        assert float(layer.weight.detach().std()) == pytest.approx(deviation, rel=0.05)
        assert not layer.bias.detach().any()
