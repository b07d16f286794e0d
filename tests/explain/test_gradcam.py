from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from monai.visualize import GradCAM, GradCAMpp
from numpy.typing import NDArray
from torch import Tensor, nn

from medcls.errors import ConfigError
from medcls.explain.gradcam import (
    explain_gradcam,
    find_arrangement,
    find_grid,
    find_layer,
)
from medcls.models.classifier import Answer, Input, build_classifier
from medcls.models.families import count_dims

Score = Callable[[Tensor], Tensor]


class Pooled(nn.Module):
    """Convolutions, global sum, linear: here Grad-CAM is the class activation map."""

    def __init__(self, spatial_dims: int = 2) -> None:
        super().__init__()
        torch.manual_seed(0)
        convolution = nn.Conv2d if spatial_dims == 2 else nn.Conv3d
        self.body = nn.Sequential(convolution(1, 5, 3, stride=2, padding=1), nn.ReLU(inplace=True))
        self.head = nn.Linear(5, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.body(images / 255).flatten(2).sum(dim=2))


def normalise(heat: NDArray[np.floating]) -> NDArray[np.floating]:
    return (heat - heat.min()) / (heat.max() - heat.min())


@pytest.mark.parametrize("plus", [False, True])
def test_map_points_at_the_planted_place(
    network: nn.Module, score: Score, image: NDArray[np.uint8], region: NDArray[np.bool_], plus: bool
) -> None:
    heat = explain_gradcam(score, image, layer=network.second, plus=plus)  # type: ignore[arg-type]
    assert heat.shape == image.shape[1:]
    assert heat.min() >= 0
    assert region[np.unravel_index(heat.argmax(), heat.shape)]
    assert heat[region].mean() > 20 * heat[~region].mean()


@pytest.mark.parametrize("plus", [False, True])
def test_volume_map_points_at_the_planted_place(
    volume_parts: tuple[NDArray[np.uint8], nn.Module, NDArray[np.bool_]], plus: bool
) -> None:
    volume, network, place = volume_parts
    heat = explain_gradcam(lambda x: network(x)[:, 0], volume, layer=network.second, plus=plus)  # type: ignore[arg-type]
    assert heat.shape == place.shape
    assert place[np.unravel_index(heat.argmax(), heat.shape)]


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize(("plus", "peer"), [(False, GradCAM), (True, GradCAMpp)])
def test_maps_are_monais(spatial_dims: int, plus: bool, peer: type) -> None:
    model = Pooled(spatial_dims).eval()
    image = np.random.default_rng(4).integers(0, 255, (1, *[16] * spatial_dims)).astype(np.uint8)
    compared = 0
    for target in range(3):
        expected = peer(nn_module=model, target_layers="body.1")(
            torch.from_numpy(image[None].astype(np.float32)), class_idx=target
        )
        got = explain_gradcam(lambda x, t=target: model(x)[:, t], image, layer=model.body[1], plus=plus)
        if got.max() > 0:
            compared += 1
            # MONAI stretches to [0, 1] and inverts.
            np.testing.assert_allclose(normalise(got), 1 - np.asarray(expected)[0, 0], atol=2e-3)
    assert compared >= 1


def test_with_sum_and_linear_layer_it_is_the_class_activation_map() -> None:
    """Selvaraju et al., section 3.1: Grad-CAM generalises CAM; with a sum for the mean, without a factor."""
    model = Pooled()
    model.head.weight.data.abs_()
    image = np.random.default_rng(1).integers(0, 255, (1, 16, 16)).astype(np.uint8)
    with torch.inference_mode():
        features = model.body(torch.from_numpy(image[None].astype(np.float32)) / 255)
        weights = model.head.weight[1]
        cam = (weights[:, None, None] * features[0]).sum(dim=0).relu()
        expected = nn.functional.interpolate(cam[None, None], size=(16, 16), mode="bilinear")[0, 0].numpy()
    assert expected.max() > 0
    got = explain_gradcam(lambda x: model(x)[:, 1], image, layer=model.body[1])
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("plus", [False, True])
def test_a_larger_logit_changes_the_scale_alone(
    network: nn.Module, score: Score, image: NDArray[np.uint8], plus: bool
) -> None:
    layer = network.second
    once = explain_gradcam(score, image, layer=layer, plus=plus)  # type: ignore[arg-type]
    shifted = explain_gradcam(lambda x: score(x) + 7, image, layer=layer, plus=plus)  # type: ignore[arg-type]
    np.testing.assert_allclose(shifted, once, rtol=1e-5)
    if not plus:
        tripled = explain_gradcam(lambda x: 3 * score(x), image, layer=layer)  # type: ignore[arg-type]
        np.testing.assert_allclose(tripled, 3 * once, rtol=1e-4)
        against = explain_gradcam(lambda x: -score(x), image, layer=layer)  # type: ignore[arg-type]
        assert against.max() == 0


def test_frozen_network_is_explained_and_left_as_it_was(network: nn.Module, image: NDArray[np.uint8]) -> None:
    network.requires_grad_(False)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    heat = explain_gradcam(lambda x: network(x)[:, 0], image, layer=network.second)  # type: ignore[arg-type]
    assert heat.max() > 0
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert not network.second._forward_hooks  # type: ignore[union-attr]
    assert all(p.grad is None for p in network.parameters())


@pytest.mark.parametrize(("name", "stage"), [("resnet18", "layer4"), ("vgg11", "block5"), ("vgg11_bn", "block5")])
def test_last_convolutional_stage_is_the_default(name: str, stage: str) -> None:
    model = build_classifier(name, Answer("multiclass", 3))
    found, layer = find_layer(model.stages)
    assert found == stage
    model.eval()
    image = np.random.default_rng(0).integers(0, 255, (1, 64, 64)).astype(np.uint8)
    shapes: list[tuple[int, ...]] = []
    layer.register_forward_hook(lambda module, inputs, output: shapes.append(tuple(output.shape)))
    heat = explain_gradcam(lambda x: model(x)[:, 0], image, layer=layer)
    assert np.isfinite(heat).all()
    # VGG: before the pooling that ends the block.
    assert shapes[0][2:] == ((2, 2) if name == "resnet18" else (4, 4))


@pytest.mark.parametrize(
    ("name", "size"),
    [("cbr_tiny", 28), ("antony2017_class", 14), ("vgg_m", 13), ("inflated_vgg11_bn", 2), ("acnn3d", 4)],
)
def test_layer_of_each_small_network_is_before_its_pool(name: str, size: int) -> None:
    dims = count_dims(name)
    shape = (224, 224) if dims == 2 else (32, 32, 32)
    model = build_classifier(name, Answer("binary", 2), Input((1, *shape))).eval()
    _, layer = find_layer(model.stages)
    shapes: list[tuple[int, ...]] = []
    layer.register_forward_hook(lambda module, inputs, output: shapes.append(tuple(output.shape)))
    with torch.inference_mode():
        model.backbone(torch.zeros(1, 3 if dims == 2 or name.startswith("inflated_") else 1, *shape))
    assert shapes[0][2:] == (size,) * dims


def test_stage_is_chosen_by_name_and_unknown_ones_are_refused() -> None:
    model = build_classifier("vgg11", Answer("binary", 2))
    assert find_layer(model.stages, "block2")[0] == "block2"
    with pytest.raises(ConfigError, match="stage=fc6: expected a stage with convolutions, one of block1, block2"):
        find_layer(model.stages, "fc6")


@pytest.mark.parametrize(
    ("name", "stage", "grid"),
    [
        ("timm/test_vit", "blocks.5", (4, 6)),
        ("timm/test_convnext", "stages.3", (2, 3)),
        ("timm/test_resnet", "layer4", (2, 3)),
        ("torchvision/mobilenet_v3_small", "features.12", (2, 3)),
        ("torchvision/densenet121", "features.denseblock4", (2, 3)),
        ("torchvision/swin_t", "features.7", (2, 3)),
    ],
)
def test_map_of_a_library_is_the_last_one_with_places(name: str, stage: str, grid: tuple[int, int]) -> None:
    torch.manual_seed(0)
    model = build_classifier(name, Answer("multiclass", 3), Input((1, 64, 96))).eval().requires_grad_(False)
    image = np.random.default_rng(0).integers(0, 255, (1, 64, 96)).astype(np.uint8)

    def score(images: torch.Tensor) -> torch.Tensor:
        return model(images)[:, 0]

    found, layer, arrange = find_grid(score, image, model.backbone.stages)
    shapes: list[tuple[int, ...]] = []
    layer.register_forward_hook(lambda module, inputs, output: shapes.append(tuple(arrange(output).shape)))
    heat = explain_gradcam(score, image, layer=layer, arrange=arrange)
    assert (found, shapes[0][2:], heat.shape) == (stage, grid, (64, 96))
    assert np.isfinite(heat).all()
    with pytest.raises(ConfigError, match="stage=head: expected a stage with a map of places, one of stem, "):
        find_grid(score, image, model.backbone.stages, "head")


def test_map_of_tokens_lies_where_the_score_comes_from() -> None:
    torch.manual_seed(0)
    model = build_classifier("timm/test_vit", Answer("multiclass", 3), Input((1, 64, 96))).eval()
    maps = torch.zeros(1, 25, 8)
    arrange = find_arrangement(maps, (64, 96))
    assert arrange is not None
    assert model.backbone.options == {"img_size": [64, 96]}
    # Token 1 + 6 row + column, behind the class token.
    maps[0, 1 + 6 * 2 + 5] = 1
    assert arrange(maps)[0, 0].nonzero().tolist() == [[2, 5]]
    last = torch.zeros(1, 2, 3, 8)
    last[0, 1, 2] = 1
    after = find_arrangement(last, (64, 96))
    assert after is not None
    assert after(last)[0, 0].nonzero().tolist() == [[1, 2]]
    assert find_arrangement(torch.zeros(1, 8, 1, 1), (64, 96)) is None
    assert find_arrangement(torch.zeros(1, 8), (64, 96)) is None
