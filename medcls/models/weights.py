"""Published weights: find or download, check their licence and checksum, load into a network."""

from __future__ import annotations

import errno
import shutil
import socket
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from medcls.disk import check_disk
from medcls.errors import ConfigError, DataError, MissingInputError, WriteError
from medcls.files import sha256_file
from medcls.inputs import NAMED, check_weights, find_weights_dir, flat_name, locate_weights
from medcls.models.backbones import TORCHVISION_LICENCE, Published
from medcls.models.families import Family, find_family

_TIMEOUT_SECONDS = 20.0
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EIO)

# Of a ResNet and of a VGG; also inside a network over slices.
_LAST = tuple(f"{layer}.{kind}" for layer in ("fc", "classifier.6") for kind in ("weight", "bias"))

_HUB_FILE = "model.safetensors"
_FREE = frozenset(
    {"", "apache-2.0", "mit", "bsd-3-clause", "cc-by-4.0", TORCHVISION_LICENCE}
    | {"dinov3-license", "apple-ascl", "fastvit-license", "mobileone-license", "cvnets-license"}
)
"""Licences that allow commercial use: those that everybody knows, and terms of a company that do. All others ask."""

StateDict = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class WeightsFile:
    """A file of weights and its checksum, as a run records its ancestors."""

    path: Path
    sha256: str


def find_weights(
    weights: str, *, architecture: str, weights_dir: Path | None, sha256: str | None = None
) -> WeightsFile:
    """Return the file behind `model.weights`, looked for offline first and downloaded last.

    "imagenet" is looked for in weights_dir (or $MEDCLS_WEIGHTS_DIR) as <architecture>-imagenet.safetensors,
    <architecture>-imagenet-features.safetensors or under torchvision's own file name, then in torch's cache, then
    downloaded from torchvision's address (IMAGENET1K_V1); "pretrained" is the same. The weights of timm's and of
    torchvision's networks by name are looked for only (fetch_published brings them). Anything else is a path.

    Args:
        weights: "imagenet", "pretrained", the folder of a finished run, or a path to .safetensors or a torchvision .pth
            file.
        architecture: Name of the network, a volume form's too.
        weights_dir: Offline folder, or None.
        sha256: Expected checksum, hexadecimal; None takes that of FILE.sha256 beside the file, where there is one.

    Raises:
        MissingInputError: not there and not to be had; names the file and the folder to put it in.
        DataError: the checksum differs.
        ConfigError: the architecture has no ImageNet weights.
    """
    if weights in NAMED:
        path = _find_named(flat_name(architecture), weights_dir)
    else:
        check_weights(weights)
        path = locate_weights(weights)
    found = sha256_file(path)
    expected = sha256 or _pinned(path) or _expected_prefix(path)
    if expected and not found.startswith(expected.lower()):
        raise DataError(
            f"{path}: sha256 {found}, expected {expected}: the file is damaged or a different one: fetch it again"
        )
    return WeightsFile(path, found)


def _find_named(architecture: str, weights_dir: Path | None) -> Path:
    family = find_family(architecture)
    if family is None or family.published is None:
        return _find_imagenet(architecture, weights_dir)
    path = find_published(architecture, family.published, weights_dir=weights_dir)
    if path is None:
        library, _, name = architecture.partition("/")
        places = [str(folder) for folder in (find_weights_dir(weights_dir),) if folder]
        raise MissingInputError(
            f"model.weights=pretrained: {family.published.name}.safetensors is not in "
            f"{' or '.join([*places, 'the cache'])}: run python -m medcls.fetch model={library} model.name={name} "
            "weights_dir=DIR where there is a network, then set weights_dir=DIR; or set model.weights=null"
        )
    return path


def find_published(architecture: str, published: Published, *, weights_dir: Path | None) -> Path | None:
    """Return the file of a library's weights on this machine; None if there is none. Never asks a network.

    It is looked for in weights_dir (or $MEDCLS_WEIGHTS_DIR) as NAME.safetensors, NAME/model.safetensors, under the
    name of its address, or in a copy of Hugging Face's cache; then in the caches of Hugging Face and of torch.

    Args:
        architecture: Value of model.name.
        published: What the library says of it.
        weights_dir: Offline folder, or None.

    Raises:
        ConfigError: no weights are published for this network.
    """
    if not (published.hub or published.url):
        raise ConfigError(
            f"model.weights=pretrained: no weights are published for {architecture}: choose a name with a tag "
            f"(python -m medcls.networks {published.name}), or train it from scratch (transfer=scratch)"
        )
    official = published.url.rsplit("/", 1)[-1]
    names = [f"{published.name}.safetensors", f"{published.name}/model.safetensors", *([official] if official else [])]
    folder = find_weights_dir(weights_dir)
    places = [folder / name for name in names] if folder else []
    places += [cached for cached in [_find_in_hub(published.hub, folder)] if cached] if folder else []
    places += [cached for cached in [_find_in_hub(published.hub, None)] if cached]
    places += [Path(torch.hub.get_dir()) / "checkpoints" / official] if official else []
    return next((path for path in places if path.is_file()), None)


def _find_in_hub(repository: str, cache: Path | None) -> Path | None:
    """Return the file of Hugging Face's cache, looked up in its folders alone."""
    if not repository:
        return None
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repository, _HUB_FILE, cache_dir=cache)
    return Path(found) if isinstance(found, str) else None


def fetch_published(architecture: str, published: Published, *, weights_dir: Path | None) -> Path:
    """Return the file of a library's weights, after downloading it if it is not here: into weights_dir, or the cache.

    Args, raises: as find_published; MissingInputError: it cannot be downloaded.
    """
    path = find_published(architecture, published, weights_dir=weights_dir)
    folder = find_weights_dir(weights_dir)
    if path is not None:
        return path
    if not published.hub:
        official = published.url.rsplit("/", 1)[-1]
        cache = Path(torch.hub.get_dir()) / "checkpoints"
        return _download(published.url, (folder or cache) / official, folder=folder)
    from huggingface_hub import hf_hub_download

    try:
        if folder is None:
            return Path(hf_hub_download(published.hub, _HUB_FILE))
        with tempfile.TemporaryDirectory(dir=folder, prefix=".fetch-") as own:
            made = hf_hub_download(published.hub, _HUB_FILE, local_dir=own)
            return Path(shutil.move(made, folder / f"{published.name}.safetensors"))
    except (OSError, RuntimeError, ValueError) as error:  # of the hub: HTTP, no network, gated, no such file
        if isinstance(error, OSError) and error.errno in _FULL:
            raise WriteError(f"cannot write the weights of {published.name}: {error.strerror}; free space") from error
        raise MissingInputError(
            f"the weights of {published.name} are neither on this machine nor can they be downloaded from "
            f"{published.hub} ({_reason(error)}): run the same command where there is a network"
        ) from error


def check_licence(architecture: str, licence: str, *, accepted: str | None) -> None:
    """Check that published weights may be used: a non-commercial or unknown licence has to be accepted by its name.

    Raises:
        ConfigError: it has not been.
    """
    if licence in _FREE or accepted == licence:
        return
    fault = "is unknown" if licence == "unknown" else f"is {licence}, which may forbid commercial or clinical use"
    raise ConfigError(
        f"model.name={architecture}: the licence of its weights {fault}: read it, then set "
        f"model.accept_license={licence}, or choose other weights (python -m medcls.networks shows each licence)"
    )


def _find_imagenet(architecture: str, weights_dir: Path | None) -> Path:
    found = _find_torchvision_file(architecture, weights_dir)
    if found is not None:
        return found
    url = _imagenet_url(architecture)
    cache = Path(torch.hub.get_dir()) / "checkpoints"
    return _download(url, cache / url.rsplit("/", 1)[1], folder=find_weights_dir(weights_dir))


def _find_torchvision_file(architecture: str, weights_dir: Path | None) -> Path | None:
    official = _imagenet_url(architecture).rsplit("/", 1)[1]
    folder = find_weights_dir(weights_dir)
    names = [
        f"{architecture}-imagenet.safetensors",
        f"{architecture}-imagenet-features.safetensors",
        official,
    ]
    cache = Path(torch.hub.get_dir()) / "checkpoints"
    places = [folder / name for name in names] if folder else []
    return next((path for path in [*places, cache / official] if path.is_file()), None)


def describe_hand(architecture: str, family: Family, *, weights_dir: Path | None) -> str:
    """Return whether the published weights of a network are on this machine: "here", "fetch", or "none" published."""
    published = family.published
    if family.url is None and (published is None or not (published.hub or published.url)):
        return "none"
    if published is not None:
        path = find_published(architecture, published, weights_dir=weights_dir)
    else:
        path = _find_torchvision_file(architecture, weights_dir)
    return "fetch" if path is None else "here"


def _imagenet_url(architecture: str) -> str:
    family = find_family(architecture)
    if family is None or family.url is None:
        raise ConfigError(
            f"model.weights=imagenet: torchvision has no ImageNet weights for {architecture}: train it from scratch "
            "(transfer=scratch), or start from another run (model.weights=DIR)"
        )
    return family.url(architecture)


def _download(url: str, path: Path, *, folder: Path | None) -> Path:
    # torch sets none: behind a firewall that drops packets it would wait for ever.
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_TIMEOUT_SECONDS)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), hash_prefix=_expected_prefix(path), progress=True)
    except (OSError, RuntimeError) as error:
        place = folder or path.parent
        if isinstance(error, OSError) and error.errno in _FULL:
            raise WriteError(
                f"cannot write {path}: {error.strerror}; free space, or set TORCH_HOME to another folder"
            ) from error
        raise MissingInputError(
            f"model.weights=imagenet: {path.name} is neither in {place} nor can it be downloaded ({_reason(error)}): "
            f"put it into {place} (weights_dir=DIR), or choose model.weights=null to train without it"
        ) from error
    finally:
        socket.setdefaulttimeout(before)
    return path


def _reason(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _pinned(path: Path) -> str | None:
    """FILE.sha256 beside a weights file pins it, in sha256sum's own form."""
    pin = path.with_name(path.name + ".sha256")
    words = pin.read_text(encoding="ascii", errors="replace").split() if pin.is_file() else []
    return words[0] if words else None


def _expected_prefix(path: Path) -> str | None:
    """Torchvision puts the first eight digits of the sha256 into the name: resnet18-f37072fd.pth."""
    tail = path.stem.rsplit("-", 1)[-1]
    is_hash = path.suffix == ".pth" and len(tail) == 8 and all(c in "0123456789abcdef" for c in tail)
    return tail if is_hash else None


def read_weights(file: WeightsFile) -> StateDict:
    """Return the tensors of a weights file by its own parameter names, floating point ones as float32.

    Of a training checkpoint these are the ones under "state_dict" (MedicalNet's files are such).

    Raises:
        DataError: neither safetensors nor a plain dictionary of tensors; nothing in the file is executed.
    """
    try:
        if file.path.suffix == ".safetensors":
            tensors = load_file(file.path)
        else:
            _check_archive(file.path)
            content = torch.load(file.path, map_location="cpu", weights_only=True)
            inner = content.get("state_dict") if isinstance(content, dict) else None
            tensors = inner if isinstance(inner, dict) else content
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError) as error:
        check_disk(file.path, error)
        raise DataError(f"{file.path} cannot be read as weights: {_reason(error)}") from error
    except Exception as error:  # weights_only raises pickle.UnpicklingError for anything but tensors
        check_disk(file.path, error)
        raise DataError(f"{file.path} is refused: only plain tensors are loaded ({type(error).__name__})") from error
    if not isinstance(tensors, dict) or not all(_is_honest(name, value) for name, value in tensors.items()):
        raise DataError(f"{file.path}: expected a dictionary of tensors, named and whole")
    return {name: value.float() if value.is_floating_point() else value for name, value in tensors.items()}


def _check_archive(path: Path) -> None:
    """Torch stores tensors as they are; a packed one is a bomb: megabytes that unfold to all memory."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        packed = [entry.filename for entry in archive.infolist() if entry.compress_type != zipfile.ZIP_STORED]
    if packed:
        raise ValueError(f"{packed[0]} is compressed, which torch never does")


def _is_honest(name: object, value: object) -> bool:
    """Return a dense tensor under a name, with the memory that its shape says: one number may stand for a billion."""
    if not isinstance(name, str) or not isinstance(value, Tensor) or value.layout != torch.strided:
        return False
    return value.numel() * value.element_size() <= value.untyped_storage().nbytes()


def load_backbone(
    module: nn.Module, state: StateDict, *, source: str, optional: tuple[str, ...] = ("classifier.",)
) -> list[str]:
    """Copy `state` into a network without its last layer; returns the parameters left as they were.

    Args, raises: as match_state.
    """
    given, missing = match_state(module, state, source=source, optional=optional)
    module.load_state_dict(given, strict=False)
    return missing


def match_state(
    module: nn.Module, state: StateDict, *, source: str, optional: tuple[str, ...] = ("classifier.",)
) -> tuple[StateDict, list[str]]:
    """Return the tensors that a network takes of a file's, and the names of those it does not find there.

    Args:
        module: The network, a Backbone's body, or its shapes alone (device "meta").
        state: Weights by its names; the last layer of the file (fc, classifier.6) is not used.
        source: For messages.
        optional: Beginnings of the names that may be missing: the fully connected layers of a VGG (a file with the
            convolutional base only), or of a classifier that starts from an encoder.

    Returns:
        The tensors, and names that the file does not have; they keep their random weights and the caller says so.

    Raises:
        DataError: the file is of another architecture: other shapes, unknown names, or missing ones.
    """
    own = module.state_dict()
    given = {name: value for name, value in state.items() if name in own or not name.endswith(_LAST)}
    unknown = sorted(set(given) - set(own))
    shapes = [n for n in given if n in own and given[n].shape != own[n].shape]
    missing = sorted(set(own) - set(given) - {n for n in own if n.endswith("num_batches_tracked")})
    base_only = bool(missing) and all(name.startswith(optional) for name in missing)
    if unknown or shapes or (missing and not base_only):
        facts = [f"{len(shapes)} of other shape ({shapes[0]})"] if shapes else []
        facts += [f"{len(unknown)} unknown ({unknown[0]})"] if unknown else []
        facts += [f"{len(missing)} missing ({missing[0]})"] if missing and not base_only else []
        raise DataError(f"{source} is not for this architecture: {', '.join(facts)}; choose the model it was made for")
    return given, missing
