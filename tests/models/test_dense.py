"""The convolutional form answers as the ordinary one, at every place of its map, and averages what it says it does."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import VGG

from medcls.errors import ConfigError
from medcls.models.backbones import Backbone
from medcls.models.classifier import Answer, Classifier, build_classifier
from medcls.models.heads import LinearHead
from medcls.models.views import DenseClassifier, ManyViews


@pytest.fixture(autouse=True)
def without_gradients() -> object:
    with torch.inference_mode():
        yield


def draw_images(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def build_small(features: nn.Sequential, *, channels: int, grid: int) -> Classifier:
    """A VGG in all but size: features, adaptive pooling to a grid, two fully connected layers, head."""
    torch.manual_seed(1)
    body = VGG(features, num_classes=1, init_weights=False)
    body.avgpool = nn.AdaptiveAvgPool2d(grid)
    layers = [nn.Linear(channels * grid**2, 24), nn.ReLU(), nn.Dropout(0.5), nn.Linear(24, 16), nn.ReLU(), nn.Dropout()]
    body.classifier = nn.Sequential(*layers, nn.Identity())
    head = LinearHead(16, 3)
    nn.init.normal_(head.linear.weight)
    return Classifier(Backbone(body, num_features=16, stages={}), head).eval()


@pytest.fixture(scope="module")
def padded() -> Classifier:
    """Zero-padded as a VGG, halved twice, pooled to 7 x 7."""
    torch.manual_seed(0)
    convolutions = [nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 8, 3, padding=1)]
    layers = [layer for convolution in convolutions for layer in (convolution, nn.ReLU(), nn.MaxPool2d(2))]
    return build_small(nn.Sequential(*layers), channels=8, grid=7)


@pytest.fixture(scope="module")
def unpadded() -> Classifier:
    """Without padding, stride 4: features of 15 pixels are 3 x 3 and know nothing of what lies beside them."""
    torch.manual_seed(0)
    features = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.MaxPool2d(2))
    return build_small(features, channels=8, grid=3)


@pytest.mark.parametrize("name", [pytest.param("vgg11", marks=pytest.mark.slow), "vgg11_bn", "resnet18"])
def test_dense_form_equals_the_ordinary_one_at_224(name: str) -> None:
    torch.manual_seed(0)
    model = build_classifier(name, Answer("multiclass", 3)).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2)
    nn.init.normal_(model.head.linear.weight)
    images = draw_images(2, 1, 224, 224)
    dense = DenseClassifier(model, size=(224, 224))
    torch.testing.assert_close(dense(images), model(images), rtol=1e-5, atol=1e-5)
    side = 1 if name.startswith("vgg") else 7
    assert dense.compute_map(images).shape == (2, 3, side, side)


@pytest.mark.parametrize("size", [(12, 12), (28, 28), (32, 44), (61, 40), (8, 8)])
def test_dense_form_equals_the_ordinary_one_at_the_training_size(padded: Classifier, size: tuple[int, int]) -> None:
    images = draw_images(3, 3, *size)
    dense = DenseClassifier(padded, size=size)
    torch.testing.assert_close(dense(images), padded(images), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [(28, 28), (36, 36), (20, 32)])
def test_it_is_the_convolution_with_the_pooling_folded_into_its_kernel(
    padded: Classifier, size: tuple[int, int]
) -> None:
    """fc6's weights, pooled backwards to the window: torch's own conv2d, then 1 x 1 convolutions."""
    dense = DenseClassifier(padded, size=size)
    body, (height, width) = padded.backbone.body, dense.window
    grid = nn.AdaptiveAvgPool2d(7)
    unit = torch.eye(height * width).view(height * width, 1, height, width)
    operator = grid(unit).view(height, width, 7, 7)
    fc6, fc7, head = body.classifier[0], body.classifier[3], padded.head.linear
    kernel = torch.einsum("ocij,hwij->ochw", fc6.weight.view(24, 8, 7, 7), operator)
    images = draw_images(2, 1, 56, 48)
    maps = F.conv2d(body.features(padded.normalize(images)), kernel, fc6.bias).relu()
    for layer, link in ((fc7, F.relu), (head, lambda logits: logits)):
        maps = link(F.conv2d(maps, layer.weight[:, :, None, None], layer.bias))
    torch.testing.assert_close(dense.compute_map(images), maps, rtol=1e-4, atol=1e-5)


def test_every_place_of_the_map_is_the_classifier_on_its_window(padded: Classifier) -> None:
    dense = DenseClassifier(padded, size=(28, 28))
    images = draw_images(2, 1, 44, 36)
    features = padded.backbone.body.features(padded.normalize(images))
    found = dense.compute_map(images)
    assert found.shape == (2, 3, 5, 3)
    for row in range(5):
        for column in range(3):
            window = features[:, :, row : row + 7, column : column + 7]
            one = padded.backbone.body.classifier(window.flatten(1))
            torch.testing.assert_close(found[:, :, row, column], padded.head(one), rtol=1e-5, atol=1e-5)


def test_dense_is_the_mean_over_the_crops_at_the_stride(unpadded: Classifier) -> None:
    """Exactly so only where nothing is padded: the reason why the paper says that both together do better."""
    dense = DenseClassifier(unpadded, size=(15, 15))
    images = draw_images(2, 1, 27, 31)
    crops = [images[..., y : y + 15, x : x + 15] for y in range(0, 13, 4) for x in range(0, 17, 4)]
    expected = torch.stack([unpadded(crop) for crop in crops])
    torch.testing.assert_close(dense(images), expected.mean(dim=0), rtol=1e-5, atol=1e-5)
    places = dense.compute_map(images).flatten(2).permute(2, 0, 1)
    torch.testing.assert_close(places, expected, rtol=1e-5, atol=1e-5)


def test_padding_tells_dense_from_crops(padded: Classifier) -> None:
    dense = DenseClassifier(padded, size=(28, 28))
    images = draw_images(2, 1, 32, 28)
    crops = torch.stack([padded(images[:, :, y : y + 28]) for y in (0, 4)]).mean(dim=0)
    assert (dense(images) - crops).abs().max() > 1e-3


def test_residual_network_pools_over_the_whole_image() -> None:
    torch.manual_seed(0)
    model = build_classifier("resnet18", Answer("binary", 2)).eval()
    images = draw_images(2, 3, 96, 160)
    dense = DenseClassifier(model, size=(64, 64))
    assert dense.compute_map(images).shape == (2, 1, 3, 5)
    torch.testing.assert_close(dense(images), model(images), rtol=1e-5, atol=1e-6)


def test_clinical_columns_add_the_same_whatever_the_form() -> None:
    torch.manual_seed(0)
    model = build_classifier("resnet18", Answer("multiclass", 3, num_clinical=2)).eval()
    assert model.wide is not None
    nn.init.normal_(model.wide.weight)
    images, clinical = draw_images(2, 1, 64, 64), torch.randn(2, 2, generator=torch.Generator().manual_seed(0))
    dense = DenseClassifier(model, size=(64, 64))
    torch.testing.assert_close(dense(images, clinical), model(images, clinical), rtol=1e-5, atol=1e-6)
    views = ManyViews(dense, output="multiclass", size=None, flips=False)
    torch.testing.assert_close(views(images, clinical).float(), model(images, clinical), rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="clinical columns are missing"):
        dense(images)


def test_images_smaller_than_the_window_are_refused(padded: Classifier) -> None:
    with pytest.raises(ValueError, match="smaller than"):
        DenseClassifier(padded, size=(28, 28))(draw_images(1, 1, 24, 40))


def test_another_network_is_refused() -> None:
    model = Classifier(Backbone(nn.Flatten(), num_features=4, stages={}), LinearHead(4, 1))
    with pytest.raises(ConfigError, match="a Flatten has no dense form"):
        DenseClassifier(model, size=(28, 28))


def test_memory_stays_far_below_all_windows_at_once(padded: Classifier, monkeypatch: pytest.MonkeyPatch) -> None:
    """One row of places at a time is unfolded."""
    dense = DenseClassifier(padded, size=(28, 28))
    largest: list[int] = []
    read: Callable[[Tensor], Tensor] = dense.read.forward
    monkeypatch.setattr(dense.read, "forward", lambda windows: largest.append(len(windows)) or read(windows))
    dense(draw_images(2, 1, 100, 60))
    assert largest == [2 * 9] * 19


@pytest.mark.parametrize("head", ["mlp", "svm"])
def test_pooling_and_a_head_that_is_not_linear_do_not_change_places(head: str) -> None:
    model = build_classifier("resnet18", Answer("binary", 2, head=head, head_width=4)).eval()
    with pytest.raises(ConfigError, match=r"only with model.head=linear"):
        DenseClassifier(model, size=(64, 64))
