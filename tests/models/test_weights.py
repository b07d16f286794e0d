from __future__ import annotations

import hashlib
import io
import os
import pickle
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor

from medcls.errors import ConfigError, DataError, MissingInputError
from medcls.inputs import WEIGHTS_VARIABLE
from medcls.models.families import build_backbone
from medcls.models.weights import WeightsFile, find_weights, load_backbone, read_weights

OFFICIAL = "resnet18-f37072fd.pth"


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(url: str, *_: Any, **__: Any) -> None:
        raise URLError("Name or service not known")

    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "cache"))
    monkeypatch.delenv(WEIGHTS_VARIABLE, raising=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "weights"
    path.mkdir()
    return path


@pytest.fixture(scope="module")
def resnet18() -> dict[str, Tensor]:
    torch.manual_seed(0)
    state: dict[str, Tensor] = torchvision.models.resnet18(weights=None).state_dict()
    return state


def find(folder: Path | None, weights: str = "imagenet", **more: Any) -> WeightsFile:
    return find_weights(weights, architecture="resnet18", weights_dir=folder, **more)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_offline_folder_is_searched_in_a_fixed_order(folder: Path) -> None:
    (folder / "resnet18-imagenet-features.safetensors").write_bytes(b"base")
    assert find(folder).path.name == "resnet18-imagenet-features.safetensors"
    (folder / "resnet18-imagenet.safetensors").write_bytes(b"whole")
    assert find(folder) == WeightsFile(folder / "resnet18-imagenet.safetensors", sha256(b"whole"))


def test_environment_names_the_folder_where_the_setting_does_not(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "resnet18-imagenet.safetensors").write_bytes(b"mine")
    other = tmp_path / "other"
    other.mkdir()
    (other / "resnet18-imagenet.safetensors").write_bytes(b"theirs")
    monkeypatch.setenv(WEIGHTS_VARIABLE, str(other))
    assert find(None).sha256 == sha256(b"theirs")
    assert find(folder).sha256 == sha256(b"mine")


def test_folder_that_is_none_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MissingInputError, match=r"weights_dir=.*nowhere .*is not a folder"):
        find(tmp_path / "nowhere")
    monkeypatch.setenv(WEIGHTS_VARIABLE, str(tmp_path / "nowhere"))
    with pytest.raises(MissingInputError, match=WEIGHTS_VARIABLE):
        find(None)


def test_torchvisions_own_file_must_have_the_hash_of_its_name(folder: Path) -> None:
    (folder / OFFICIAL).write_bytes(b"half a download")
    with pytest.raises(DataError, match=f"{OFFICIAL}: sha256 {sha256(b'half a download')}, expected f37072fd"):
        find(folder)


def test_hash_in_any_file_name_is_checked(folder: Path) -> None:
    right = folder / f"mine-{sha256(b'right')[:8]}.pth"
    right.write_bytes(b"right")
    assert find(None, str(right)).path == right
    right.write_bytes(b"wrong")
    with pytest.raises(DataError, match="damaged or a different one"):
        find(None, str(right))


def test_stated_sha256_is_checked(folder: Path) -> None:
    path = folder / "resnet18-imagenet.safetensors"
    path.write_bytes(b"content")
    assert find(folder, sha256=sha256(b"content").upper()).path == path
    with pytest.raises(DataError, match="expected 0000"):
        find(folder, sha256="0" * 64)


def test_without_network_and_file_one_line_says_which_file_to_put_where(folder: Path) -> None:
    with pytest.raises(MissingInputError) as caught:
        find(folder)
    message = str(caught.value)
    assert "\n" not in message
    for part in (
        OFFICIAL,
        f"put it into {folder}",
        "Name or service not known",
        "weights_dir=DIR",
        "model.weights=null",
    ):
        assert part in message
    assert caught.value.exit_code == 66


def test_without_a_folder_the_cache_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match=f"put it into {tmp_path / 'cache' / 'checkpoints'}"):
        find(None)


def test_read_only_home_gives_the_same_line(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the cache should be")
    with pytest.raises(MissingInputError, match=f"{OFFICIAL} is neither in .* nor can it be downloaded"):
        find(None)


def test_download_is_asked_for_the_hash_and_checked_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = []

    def download(url: str, path: str, *, hash_prefix: str, progress: bool) -> None:
        asked.append((url, hash_prefix))
        Path(path).write_bytes(b"something else")

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    for _ in range(2):  # the second time it lies in the cache, and is no better for it
        with pytest.raises(DataError, match="expected f37072fd"):
            find(None)
    assert asked == [(f"https://download.pytorch.org/models/{OFFICIAL}", "f37072fd")]


def test_path_that_is_not_there(folder: Path) -> None:
    with pytest.raises(MissingInputError, match="is not there: give a file, a run's folder, imagenet, or null"):
        find(None, str(folder / "none.safetensors"))


def test_architecture_without_imagenet_weights() -> None:
    with pytest.raises(ConfigError, match="no ImageNet weights for resnet19"):
        find_weights("imagenet", architecture="resnet19", weights_dir=None)


class Malice:
    """Unpickling it would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_code_in_a_weights_file_is_refused_and_not_run(folder: Path) -> None:
    trap = folder / "executed"
    torch.save({"fc.weight": Malice(trap)}, folder / "bad.pth")
    with pytest.raises(DataError, match="only plain tensors are loaded"):
        read_weights(WeightsFile(folder / "bad.pth", ""))
    assert not trap.exists()


def test_plain_pickle_is_refused(folder: Path) -> None:
    (folder / "bad.pth").write_bytes(pickle.dumps(Malice(folder / "executed")))
    with pytest.raises(DataError):
        read_weights(WeightsFile(folder / "bad.pth", ""))
    assert not (folder / "executed").exists()


@pytest.mark.parametrize("content", [[torch.zeros(1)], {"state_dict": {"a": 1.0}}, {"epoch": 3}])
def test_what_is_no_dictionary_of_tensors_is_refused(folder: Path, content: Any) -> None:
    torch.save(content, folder / "other.pth")
    with pytest.raises(DataError, match="expected a dictionary of tensors"):
        read_weights(WeightsFile(folder / "other.pth", ""))


@pytest.mark.parametrize("name", ["cut.safetensors", "cut.pth"])
def test_truncated_files_are_refused(folder: Path, name: str) -> None:
    buffer = io.BytesIO()
    torch.save({"a": torch.zeros(1000)}, buffer)
    (folder / name).write_bytes(buffer.getvalue()[:2000])
    with pytest.raises(DataError, match=name):
        read_weights(WeightsFile(folder / name, ""))


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_complete_file_fills_every_parameter(folder: Path, resnet18: dict[str, Tensor], suffix: str) -> None:
    path = folder / f"weights{suffix}"
    halved = {n: v.half() if v.is_floating_point() else v for n, v in resnet18.items()}
    save_file(halved, path) if suffix == ".safetensors" else torch.save(halved, path)
    state = read_weights(WeightsFile(path, ""))
    assert {value.dtype for value in state.values()} == {torch.float32, torch.int64}
    torch.manual_seed(1)
    body = build_backbone("resnet18").body
    assert load_backbone(body, state, source="file") == []
    for name, value in body.state_dict().items():
        assert torch.equal(value, halved[name].float() if halved[name].is_floating_point() else halved[name]), name
        assert value.dtype == resnet18[name].dtype


def test_convolutional_base_loads_and_what_is_left_is_named() -> None:
    with torch.device("meta"):  # a VGG's own random numbers take seconds
        body = build_backbone("vgg11").body
    body.to_empty(device="cpu").load_state_dict({n: torch.zeros(v.shape) for n, v in body.state_dict().items()})
    base = {f"features.{n}": torch.randn_like(v) for n, v in body.features.state_dict().items()}
    classifier = {n: v.clone() for n, v in body.classifier.state_dict().items()}
    left = load_backbone(body, base, source="file")
    assert left == ["classifier.0.bias", "classifier.0.weight", "classifier.3.bias", "classifier.3.weight"]
    assert all(torch.equal(body.state_dict()[name], value) for name, value in base.items())
    assert all(torch.equal(body.classifier.state_dict()[name], value) for name, value in classifier.items())


def meta_state(name: str) -> dict[str, Tensor]:
    with torch.device("meta"):
        state: dict[str, Tensor] = torchvision.models.get_model(name, weights=None).state_dict()
    return state


@pytest.mark.parametrize(
    ("file", "network", "fact"),
    [
        ("resnet18", "resnet34", "missing"),
        ("resnet34", "resnet18", "unknown"),
        ("resnet18", "resnet50", "of other shape"),
        ("resnet18", "vgg11", "unknown"),
        ("vgg11", "resnet18", "unknown"),
        ("vgg16", "vgg16_bn", "of other shape"),
        ("vgg13", "vgg16", "of other shape"),
        ("vgg16", "vgg19", "of other shape"),
    ],
)
def test_file_of_another_architecture_is_refused_in_one_line(file: str, network: str, fact: str) -> None:
    with torch.device("meta"):
        body = build_backbone(network).body
    with pytest.raises(DataError, match=r"weights.pth is not for this architecture: ") as caught:
        load_backbone(body, meta_state(file), source="weights.pth")
    assert fact in str(caught.value)
    assert "\n" not in str(caught.value)


def test_resnet_without_a_layer_is_no_convolutional_base(resnet18: dict[str, Tensor]) -> None:
    part = {name: value for name, value in resnet18.items() if not name.startswith("layer4")}
    with pytest.raises(DataError, match=r"missing \(layer4.0.bn1.bias\)"):
        load_backbone(build_backbone("resnet18").body, part, source="file")


@pytest.fixture
def shared() -> Path:
    folder = os.environ.get("MEDCLS_SHARED")
    if not folder or not (Path(folder) / "weights").is_dir():
        pytest.skip("MEDCLS_SHARED does not name the folder with real weights")
    return Path(folder) / "weights"


def draw_photograph() -> Tensor:
    """Smooth shading, edges and grain, as a photograph has."""
    y, x = np.mgrid[0:96, 0:96] / 96
    shade = 0.5 + 0.3 * np.sin(5 * x + 2 * y) + 0.2 * ((x - 0.5) ** 2 + (y - 0.4) ** 2 < 0.08)
    grain = np.random.default_rng(0).normal(0, 0.03, (3, 96, 96))
    return torch.from_numpy(np.clip(shade + grain, 0, 1)).float()[None]


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "digest"),
    [
        ("resnet18", "af1865e86f265f6d46f1c51cdc6bcb4b791b1815c01c9ac117208b6dcc41097d"),
        ("vgg16", "1fb04b1bb92155b4e6469a88108a99f8ceb6ea946d57505544998c6a70f096f3"),
    ],
)
def test_real_weights_load_and_give_finite_features_that_differ(shared: Path, name: str, digest: str) -> None:
    file = find_weights("imagenet", architecture=name, weights_dir=shared, sha256=digest)
    torch.manual_seed(0)
    backbone = build_backbone(name).eval()
    left = load_backbone(backbone.body, read_weights(file), source=str(file.path))
    assert left == (
        []
        if name == "resnet18"
        else ["classifier.0.bias", "classifier.0.weight", "classifier.3.bias", "classifier.3.weight"]
    )
    photograph = draw_photograph()
    with torch.inference_mode():
        features = backbone(torch.cat([photograph, photograph.flip(2)]))
    assert features.isfinite().all()
    assert (features[0] - features[1]).abs().max() > 1e-3
