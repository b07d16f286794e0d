from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.transforms import v2

from medcls.errors import ConfigError
from medcls.models.classifier import Answer, Classifier, Input, InputNormalization, build_classifier
from medcls.models.families import count_dims, list_names
from medcls.models.normalization import IMAGENET_MEAN, IMAGENET_STD, ColourNormalization, VolumeNormalization


@pytest.fixture(scope="module")
def network() -> Classifier:
    torch.manual_seed(0)
    return build_classifier("resnet18", Answer("multiclass", 4)).eval()


def draw_grey(dtype: torch.dtype = torch.uint8) -> torch.Tensor:
    top = np.iinfo(np.uint8 if dtype == torch.uint8 else np.uint16).max
    return torch.from_numpy(np.random.default_rng(0).integers(0, top + 1, (3, 1, 40, 36))).to(dtype)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16])
def test_grey_gives_the_logits_of_the_same_image_saved_as_rgb(network: Classifier, dtype: torch.dtype) -> None:
    network.normalize.max_value = 255.0 if dtype == torch.uint8 else 65535.0
    grey = draw_grey(dtype)
    with torch.inference_mode():
        assert torch.equal(network(grey), network(torch.cat([grey] * 3, dim=1)))
    network.normalize.max_value = 255.0


def test_sixteen_bits_give_the_logits_of_the_same_image_in_eight(network: Classifier) -> None:
    grey = draw_grey()
    wide = build_classifier("resnet18", Answer("multiclass", 4), Input(max_value=65535)).eval()
    wide.load_state_dict(network.state_dict())
    with torch.inference_mode():
        torch.testing.assert_close(wide((grey.int() * 257).to(torch.uint16)), network(grey), atol=1e-5, rtol=0)


def test_normalisation_is_torchvisions() -> None:
    colour = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (2, 3, 8, 9), dtype=np.uint8))
    reference = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(IMAGENET_MEAN, IMAGENET_STD)])
    torch.testing.assert_close(InputNormalization(255)(colour), reference(colour))


def test_normalisation_is_no_part_of_the_weights(network: Classifier) -> None:
    assert not [name for name in network.state_dict() if name.startswith("normalize")]


@pytest.mark.parametrize("name", list_names(2))
def test_stages_end_in_the_head_and_hold_every_parameter_once(build_meta: Callable[..., Classifier], name: str) -> None:
    model = build_meta(name)
    staged = [id(p) for stage in model.stages.values() for p in stage.parameters()]
    assert list(model.stages)[-1] == "head"
    assert staged == [id(p) for p in model.parameters()]


@pytest.mark.parametrize(
    ("kind", "logits"), [("binary", 1), ("multiclass", 5), ("multilabel", 5), ("ordinal", 4), ("regression", 1)]
)
def test_outputs_fit_the_task(build_meta: Callable[..., Classifier], kind: str, logits: int) -> None:
    model = build_meta("resnet18", Answer(kind, 5), Input((3,)))
    assert model(torch.empty(2, 3, 32, 32, device="meta")).shape == (2, logits)


def test_dropout_stands_once_before_the_last_layer(build_meta: Callable[..., Classifier]) -> None:
    def rates(name: str) -> list[float]:
        return [m.p for m in build_meta(name, dropout=0.3).modules() if isinstance(m, nn.Dropout) and m.p]

    assert rates("resnet34") == [0.3]
    assert rates("cbr_tiny") == rates("antony2017_class") == [0.3]
    assert rates("vgg11") == rates("vgg_m") == [0.3, 0.3]  # after fc6 and fc7; none of the head's own


def test_two_channels_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"the store has 2 channels: resnet18 takes 1 .* or 3"):
        build_classifier("resnet18", Answer("binary", 2), Input((2,)))


VOLUME_NAMES = (*list_names(3), "inflated_resnet18", "inflated_vgg11", "slices_resnet18", "slices_vgg11_bn")


@pytest.mark.parametrize("name", VOLUME_NAMES)
@pytest.mark.parametrize("kind", ["min_max", "z_score", "stored"])
def test_stored_volumes_become_logits(build_meta: Callable[..., Classifier], name: str, kind: str) -> None:
    normalize = VolumeNormalization(kind, (0.0, 255.0))
    with torch.device("meta"):
        model = build_meta(name, stored=Input((1, 32, 40, 33), normalize=normalize))
        assert model(torch.empty(2, 1, 32, 40, 33, dtype=torch.uint8)).shape == (2, 3)
    assert list(model.stages)[-1] == "head"
    assert model.backbone.spatial_dims == count_dims(name) == 3


@pytest.mark.parametrize("name", ["inflated_resnet18", "slices_resnet18"])
def test_networks_from_imagenet_take_grey_or_three_windows(build_meta: Callable[..., Classifier], name: str) -> None:
    normalize = VolumeNormalization("stored", (0.0, 255.0))
    with torch.device("meta"):
        model = build_meta(name, stored=Input((3, 16, 16, 16), normalize=normalize))
        assert model(torch.empty(2, 3, 16, 16, 16, dtype=torch.uint8)).shape == (2, 3)
    with pytest.raises(ConfigError, match="the store has 2 channels"):
        build_meta(name, stored=Input((2, 16, 16, 16), normalize=normalize))


def test_colours_of_a_volume_are_normalised_as_those_of_its_slices() -> None:
    volumes = torch.randint(0, 256, (2, 1, 3, 8, 9), dtype=torch.uint8)
    colour = ColourNormalization(VolumeNormalization("stored", (0.0, 255.0)))(volumes)
    torch.testing.assert_close(colour[:, :, 1], InputNormalization(255)(volumes[:, :, 1]))
    standard = VolumeNormalization("z_score", (0.0, 255.0))
    assert torch.equal(ColourNormalization(standard)(volumes), standard(volumes).expand(-1, 3, -1, -1, -1))


def test_deep_supervision_answers_from_every_layer_while_training_and_from_the_last_after() -> None:
    torch.manual_seed(0)
    normalize = VolumeNormalization("min_max", (0.0, 255.0))
    answer, stored = Answer("multiclass", 3, num_clinical=2), Input((1, 24, 24, 24), normalize=normalize)
    model = build_classifier("acnn3d", answer, stored, options={"all_levels": True})
    volumes, clinical = torch.randint(0, 256, (2, 1, 24, 24, 24), dtype=torch.uint8), torch.randn(2, 2)
    both, last = model.train()(volumes, clinical), model.eval()(volumes, clinical)
    assert (both.shape, last.shape) == ((2, 6), (2, 3))
    assert torch.equal(both[:, 3:], last)
    assert not torch.allclose(both[:, :3], last)


def test_unknown_names_and_autoencoders_say_what_to_do() -> None:
    with pytest.raises(ConfigError, match=r"expected one of vgg11, .*; for volumes acnn3d, .*nearest: encoder3d"):
        build_classifier("encodr3d", Answer("binary", 2))
    with pytest.raises(ConfigError, match=r"is an autoencoder: python -m medcls.pretrain trains it"):
        build_classifier("autoencoder3d", Answer("binary", 2))
