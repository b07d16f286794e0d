"""Networks of timm and torchvision by name: whole, in stages, and with the numbers of their libraries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from medcls import fetch, networks
from medcls.errors import ConfigError, DataError, MissingInputError
from medcls.inputs import WEIGHTS_VARIABLE
from medcls.models.backbones import Backbone
from medcls.models.classifier import Answer, Input, build_classifier
from medcls.models.families import build_backbone, choose_family
from medcls.models.transfer import apply_plan, build_parameter_groups, choose_first_epochs, plan_transfer
from medcls.models.weights import check_licence, find_weights, load_backbone, read_weights

TIMM = ("timm/test_vit", "timm/test_convnext", "timm/test_resnet")
TORCHVISION = (
    "torchvision/densenet121",
    "torchvision/mobilenet_v3_small",
    "torchvision/swin_t",
    "torchvision/vit_b_16",
)
SMALL = (*TIMM, *TORCHVISION[:3])


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("Name or service not known")

    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, **__: None)
    monkeypatch.delenv(WEIGHTS_VARIABLE, raising=False)


def save_published(name: str, folder: Path, **settings: Any) -> Path:
    """Write the whole network of a library, random, as its own file; return the path."""
    torch.manual_seed(1)
    published = choose_family(name).published
    assert published is not None
    if name.startswith("timm/"):
        whole = timm.create_model(published.name, pretrained=False, **settings)
    else:
        whole = torchvision.models.get_model(published.name.partition(".")[0], weights=None)
    state = {key: value.contiguous() for key, value in whole.state_dict().items()}
    path = folder / f"{published.name}.safetensors"
    save_file(state, path)
    return path


def load(name: str, folder: Path, shape: tuple[int, ...] = (3, 64, 64)) -> Backbone:
    """Return the backbone with the file of the folder, checked that nothing stays random."""
    backbone = build_backbone(name, shape=shape).eval()
    file = find_weights("pretrained", architecture=name, weights_dir=folder)
    assert load_backbone(backbone.body, backbone.layout.convert(read_weights(file)), source=str(file.path)) == []
    return backbone


@pytest.mark.parametrize("name", TIMM)
def test_timm_network_from_a_file_gives_timms_own_features(name: str, tmp_path: Path) -> None:
    path = save_published(name, tmp_path, img_size=64) if name == "timm/test_vit" else save_published(name, tmp_path)
    backbone, images = load(name, tmp_path), torch.randn(2, 3, 64, 64)
    published = choose_family(name).published
    assert published is not None
    more: dict[str, Any] = {"img_size": 64} if published.fixed else {}
    torch.manual_seed(1)
    reference = timm.create_model(published.name, pretrained=False, **more).eval()
    with torch.inference_mode():
        expected = reference.forward_head(reference.forward_features(images), pre_logits=True)
        assert torch.equal(backbone(images), expected)
    assert path.is_file()
    assert backbone.num_features == expected.shape[1]


@pytest.mark.parametrize("name", TORCHVISION[:3])
def test_torchvisions_last_layer_on_the_features_gives_torchvisions_logits(name: str, tmp_path: Path) -> None:
    save_published(name, tmp_path)
    backbone, images = load(name, tmp_path), torch.randn(2, 3, 64, 64)
    torch.manual_seed(1)
    reference = torchvision.models.get_model(name.partition("/")[2], weights=None).eval()
    last = [module for module in reference.modules() if isinstance(module, nn.Linear)][-1]
    with torch.inference_mode():
        assert torch.equal(last(backbone(images)), reference(images))


@pytest.mark.parametrize("name", [*TIMM, *TORCHVISION])
def test_stages_of_a_library_hold_every_parameter_once(name: str) -> None:
    with torch.device("meta"):
        backbone = build_backbone(name)
    stages = backbone.stages
    held = [id(parameter) for stage in stages.values() for parameter in stage.parameters()]
    assert len(held) == len(set(held))
    assert set(held) == {id(parameter) for parameter in backbone.parameters()}
    assert {id(b) for stage in stages.values() for b in stage.buffers()} <= {id(b) for b in backbone.buffers()}
    assert next(iter(stages)) == "stem"
    assert len(stages) >= 4
    assert all(any(True for _ in stage.parameters()) for stage in stages.values())


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        ("timm/test_vit", ["stem", *(f"blocks.{i}" for i in range(6))]),
        ("timm/test_resnet", ["stem", "layer1", "layer2", "layer3", "layer4"]),
        ("torchvision/vit_b_16", ["stem", *(f"encoder.layers.encoder_layer_{i}" for i in range(12))]),
        (
            "torchvision/densenet121",
            [
                "stem",
                *(f"features.{s}{i}" for i in (1, 2, 3) for s in ("denseblock", "transition")),
                "features.denseblock4",
            ],
        ),
    ],
)
def test_stages_of_a_library_run_from_input_to_output(name: str, stages: list[str]) -> None:
    with torch.device("meta"):
        backbone = build_backbone(name)
    assert list(backbone.stages) == stages


def test_class_token_is_frozen_and_decayed_with_the_stem() -> None:
    model = build_classifier("timm/test_vit", Answer("multiclass", 3), Input((1, 64, 64)))
    epochs = choose_first_epochs(list(model.stages), kind="partial", train_from="blocks.4")
    apply_plan(model, plan_transfer(model, epochs, layer_decay=1.0, batchnorm="train"))
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    body = "backbone.body."
    assert {name.removeprefix(body).split(".")[0] for name in trained} == {"blocks", "norm", "head"}
    assert {name.split(".")[3] for name in trained if name.startswith(f"{body}blocks")} == {"4", "5"}
    all_epochs = choose_first_epochs(list(model.stages), kind="finetune")
    plans = plan_transfer(model, all_epochs, layer_decay=0.5, batchnorm="train")
    groups: list[dict[str, Any]] = build_parameter_groups(model, plans, lr=1.0, weight_decay=0.1)
    tokens = [g for g in groups if any(p is model.get_parameter(f"{body}cls_token") for p in g["params"])]
    assert [(group["stage"], group["lr"]) for group in tokens] == [("stem", 0.5**7)]
    assert sum(p.numel() for g in groups for p in g["params"]) == sum(p.numel() for p in model.parameters())


def test_vit_is_built_for_the_size_of_the_store_and_its_places_are_resized(tmp_path: Path) -> None:
    save_published("timm/test_vit", tmp_path)
    backbone = load("timm/test_vit", tmp_path, shape=(1, 96, 64))
    assert backbone.options == {"img_size": [96, 64]}
    torch.manual_seed(1)
    name = choose_family("timm/test_vit").published.name  # type: ignore[union-attr]
    reference = timm.create_model(name, pretrained=False)
    places: Any = reference.pos_embed
    expected = timm.layers.resample_abs_pos_embed(places, [6, 4], num_prefix_tokens=1)
    assert torch.equal(backbone.body.pos_embed, expected)  # type: ignore[arg-type]
    with torch.inference_mode():
        assert backbone(torch.zeros(1, 3, 96, 64)).shape == (1, 64)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    save_published("timm/test_resnet", tmp_path).rename(tmp_path / "test_vit.r160_in1k.safetensors")
    with pytest.raises(DataError, match="these weights are not of timm/test_vit"):
        load("timm/test_vit", tmp_path)


def test_weights_that_lack_a_layer_are_refused(tmp_path: Path) -> None:
    path = save_published("timm/test_vit", tmp_path)
    state = read_weights(find_weights(str(path), architecture="timm/test_vit", weights_dir=None))
    save_file({name: value for name, value in state.items() if name != "blocks.3.attn.qkv.weight"}, path)
    with pytest.raises(DataError, match="these weights are not of timm/test_vit"):
        load("timm/test_vit", tmp_path)


def test_network_of_fixed_size_that_cannot_be_built_names_the_size() -> None:
    with pytest.raises(ConfigError, match=r"torchvision/vit_b_16\S* cannot be built for images of 96 x 64.*224 x 224"):
        build_backbone("torchvision/vit_b_16", shape=(1, 96, 64))


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("timm/test_vitt", "nearest: test_vit"),
        ("torchvision/densenet21", "nearest: densenet201"),
        ("timm/hf-hub:somebody/net", "timm has no network of this name"),
        ("timm/local-dir:/tmp", "timm has no network of this name"),
    ],
)
def test_unknown_name_of_a_library_is_refused_with_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(ConfigError, match=nearest):
        build_backbone(name)


def test_volume_forms_of_a_library_are_refused() -> None:
    with pytest.raises(ConfigError, match="networks of a library cannot be applied to volumes"):
        build_backbone("slices_timm/test_resnet")


@pytest.mark.parametrize(("name", "own"), [("timm/test_vit", 0.0), ("torchvision/mobilenet_v3_small", 0.3)])
def test_dropout_is_the_networks_own_or_the_heads_and_never_lost(name: str, own: float) -> None:
    model = build_classifier(name, Answer("multiclass", 3), Input((1, 64, 64)), dropout=0.3)
    rates = {module.p for module in model.backbone.modules() if isinstance(module, nn.Dropout)}
    assert (max(rates), model.head.dropout.p) == (own, 0.3 - own)


def test_images_are_normalised_as_the_network_was_trained() -> None:
    published = timm.models.get_pretrained_cfg("vit_base_patch16_siglip_224.webli")
    assert published is not None
    family = choose_family("timm/vit_base_patch16_siglip_224.webli")
    assert (family.mean, family.std) == (published.mean, published.std) == ((0.5,) * 3, (0.5,) * 3)


@pytest.mark.parametrize(
    "place", ["{name}.safetensors", "{name}/model.safetensors"], ids=["by its name", "a copy of the repository"]
)
def test_weights_are_found_offline_by_name(place: str, tmp_path: Path) -> None:
    path = tmp_path / place.format(name="test_resnet.r160_in1k")
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"weights")
    for name in ("timm/test_resnet", "timm/test_resnet.r160_in1k"):
        assert find_weights("pretrained", architecture=name, weights_dir=tmp_path).path == path


def test_missing_weights_of_a_library_are_never_downloaded_by_a_training(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError) as caught:
        find_weights("pretrained", architecture="timm/test_vit", weights_dir=tmp_path)
    message = str(caught.value)
    assert "python -m medcls.fetch model=timm model.name=test_vit weights_dir=DIR" in message
    assert f"test_vit.r160_in1k.safetensors is not in {tmp_path}" in message


def test_network_without_published_weights_says_so() -> None:
    with pytest.raises(ConfigError, match="no weights are published for timm/resnet50_mlp"):
        find_weights("pretrained", architecture="timm/resnet50_mlp", weights_dir=None)


def test_fetch_brings_the_weights_of_a_library_into_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []

    def download(repository: str, file: str, *, local_dir: str) -> str:
        asked.append((repository, file))
        made = Path(local_dir) / file
        made.write_bytes(b"weights")
        return str(made)

    arguments = ["model=timm", "model.name=test_vit", f"weights_dir={tmp_path}"]
    assert fetch.main(arguments) == 66
    assert "Name or service not known" in capsys.readouterr().err
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    for _ in range(2):
        assert fetch.main(arguments) == 0
    told = capsys.readouterr()
    assert asked == [("timm/test_vit.r160_in1k", "model.safetensors")]
    assert told.out.count(f"{tmp_path / 'test_vit.r160_in1k.safetensors'} sha256 ") == 2
    assert "licence of the weights: apache-2.0" in told.err
    assert [path.name for path in tmp_path.iterdir()] == ["test_vit.r160_in1k.safetensors"]


@pytest.mark.parametrize(
    ("name", "licence", "free"),
    [
        ("timm/convnext_tiny.fb_in1k", "apache-2.0", True),
        ("timm/convnext_tiny.dinov3_lvd1689m", "dinov3-license", True),
        ("timm/convnextv2_nano.fcmae_ft_in1k", "cc-by-nc-4.0", False),
        ("torchvision/vit_h_14", "cc-by-nc-4.0", False),
        ("torchvision/densenet121", choose_family("resnet18").licence, True),
    ],
)
def test_non_commercial_licence_has_to_be_accepted_by_name(name: str, licence: str, free: bool) -> None:
    assert choose_family(name).licence == licence
    if free:
        check_licence(name, licence, accepted=None)
        return
    for accepted in (None, "mit"):
        with pytest.raises(ConfigError, match=f"set model.accept_license={licence}") as caught:
            check_licence(name, licence, accepted=accepted)
        assert caught.value.exit_code == 78
    check_licence(name, licence, accepted=licence)


def test_unknown_licence_has_to_be_accepted() -> None:
    unknown = [name for name in timm.list_pretrained() if choose_family(f"timm/{name}").licence == "unknown"]
    assert unknown
    with pytest.raises(ConfigError, match=r"weights is unknown: read it, then set model\.accept_license=unknown"):
        check_licence(f"timm/{unknown[0]}", "unknown", accepted=None)


def test_networks_are_listed_with_parameters_size_licence_and_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "test_vit.r160_in1k.safetensors").write_bytes(b"weights")
    assert networks.main(["TIMM/", "test_vit.", f"weights_dir={tmp_path}"]) == 0
    heading, line = capsys.readouterr().out.splitlines()
    with torch.device("meta"):
        parameters = sum(p.numel() for p in build_backbone("timm/test_vit").parameters())
    assert heading.split()[:3] == ["model.name", "parameters", "trained"]
    assert line.split() == ["timm/test_vit.r160_in1k", f"{parameters:,d}", "160x160", "here", "apache-2.0"]


def test_networks_without_a_word_are_ours_and_how_many_more(capsys: pytest.CaptureFixture[str]) -> None:
    assert networks.main([]) == 0
    told = capsys.readouterr().out
    assert "resnet18 " in told
    assert f"timm: {len({*timm.list_models(), *timm.list_pretrained()}):,} more" in told


@pytest.mark.parametrize(("arguments", "code"), [(["no-such-net"], 66), (["--all"], 64), (["model=timm"], 64)])
def test_mistake_in_a_filter_ends_with_one_line(
    arguments: list[str], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert networks.main(arguments) == code
    told = capsys.readouterr()
    assert (told.out, len(told.err.splitlines())) == ("", 1)


def randomize(tensors: dict[str, Tensor]) -> None:
    for tensor in tensors.values():
        if tensor.is_floating_point():
            tensor.uniform_(0.5, 1.5)


def test_mnasnet_loads_plain_tensors() -> None:
    # torchvision's class asks for a version, which a safetensors file does not have.
    backbone = build_backbone("torchvision/mnasnet0_5")
    state = {name: value.clone() for name, value in backbone.body.state_dict().items()}
    randomize(state)
    backbone.body.load_state_dict(state)
    assert all(torch.equal(value, state[name]) for name, value in backbone.body.state_dict().items())


def list_one_of_each() -> list[str]:
    """One network of each of timm's families, by its first name, and every one of torchvision's."""
    families = [timm.list_models(module=module) for module in timm.list_modules()]
    own = torchvision.models.list_models(module=torchvision.models)
    return [f"timm/{names[0]}" for names in families if names] + [f"torchvision/{name}" for name in own]


@pytest.mark.slow
def test_every_family_of_both_libraries_is_built_and_its_stages_hold_every_parameter() -> None:
    faults = []
    for name in list_one_of_each():
        with torch.device("meta"):
            backbone = build_backbone(name)
        stages = backbone.stages
        held = [id(parameter) for stage in stages.values() for parameter in stage.parameters()]
        if sorted(held) != sorted(id(parameter) for parameter in backbone.parameters()) or len(stages) < 4:
            faults.append(name)
    assert faults == []
