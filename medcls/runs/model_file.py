"""The model file: safetensors with a card of what it is, its training, its input and its output."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from medcls.clinical.encode import ClinicalSpec
from medcls.config import check_value
from medcls.config.checks import check_crop
from medcls.data.crops import Crop
from medcls.data.targets import Task
from medcls.disk import check_disk
from medcls.errors import ConfigError, DataError
from medcls.files import ANCESTORS, IMAGES, PATIENTS, SEAL, open_seal, parse_json, seal
from medcls.imaging.domain import Domain
from medcls.imaging.preprocess import PreprocessSpec
from medcls.imaging.volume.spec import VolumeSpec, check_spec
from medcls.inputs import check_model_file
from medcls.kinds import KINDS, RECONSTRUCTION
from medcls.models.autoencoder import CLASSIFIER_OF, Autoencoder, build_autoencoder
from medcls.models.classifier import Answer, Classifier, Input, build_classifier
from medcls.models.normalization import VolumeNormalization
from medcls.records import from_json, newer, to_json

FORMAT: Final = 1
_MOST_CHARACTERS = 8 << 20
"""Of a card's JSON: real ones have some thousands."""
_DEEPEST = 12
"""Levels of a card's JSON; real ones have five."""
_DIGEST = "tensors_sha256"
"""Key beside the card's own fields."""
MOST_CLASSES = 10_000
_METADATA = "medcls"
_TOO_LARGE = (RecursionError, OverflowError)
_KNOWN_RUN = {"deidentify", "preprocess_sha256"}
"""What an ancestor whose patients are known says beside its names."""


@dataclass(frozen=True, slots=True)
class ModelCard:
    """The metadata of a model file.

    Attributes:
        architecture: Name for classifier.build_classifier, or of an autoencoder for autoencoder.build_autoencoder.
        in_channels: Channels of the stored images: 1 or 3, of volumes any number.
        max_value: Largest stored value.
        task: Classes and kind; of an autoencoder the kind is "reconstruction".
        preprocess: What the images or volumes must have gone through.
        labels_sha256: Checksum of labels.parquet; "" where no label was looked at.
        ancestors: The weights it went through, oldest first, as runs/lineage.py describes them.
        training: Epoch, metric and settings in short.
        domain: Kinds of images trained on; None in files from before it was recorded.
        crop: What was cut out of the images; None = nothing, they were taken whole.
        deidentify: The store's: {"kind": …, "key_fingerprint": …}; {} in files from before it was recorded.
        seen_sha256: Checksums of the run's files that say whom this model and its ancestors have seen, by name.
        normalize: "imagenet" for images, one of models.normalization.NORMALIZATIONS for volumes.
        clinical: How clinical columns are encoded; None where the model takes only images.
        options: Options of the architecture, for classifier.build_classifier.
        head: One of models.heads.HEADS.
        head_width: Its hidden units; 0 = none.
        positive_class: Of a binary task, as it was named at training; "" for other kinds, and in files from before it
            was recorded, whose positive class is the second one.
        distance_sha256: Of the run's feature_distance.safetensors; "" where there is none.
        format: Version of the layout of these fields.
    """

    architecture: str
    dropout: float
    in_channels: int
    max_value: int
    task: Task
    preprocess: PreprocessSpec | VolumeSpec
    store_sha256: str
    split_name: str
    split_sha256: str
    labels_sha256: str
    ancestors: list[dict[str, Any]] = field(default_factory=list, metadata=newer())
    training: dict[str, Any] = field(default_factory=dict, metadata=newer())
    domain: Domain | None = field(default=None, metadata=newer())
    crop: Crop | None = field(default=None, metadata=newer())
    deidentify: dict[str, Any] = field(default_factory=dict, metadata=newer())
    seen_sha256: dict[str, str] = field(default_factory=dict, metadata=newer())
    normalize: str = field(default="imagenet", metadata=newer())
    clinical: ClinicalSpec | None = field(default=None, metadata=newer())
    options: dict[str, Any] = field(default_factory=dict, metadata=newer())
    head: str = field(default="linear", metadata=newer())
    head_width: int = field(default=0, metadata=newer())
    positive_class: str = field(default="", metadata=newer())
    distance_sha256: str = field(default="", metadata=newer())
    format: Literal[1] = FORMAT

    def build(self) -> Classifier:
        """Return the network with random weights."""
        answer = Answer(
            self.task.output,
            self.task.num_classes,
            head=self.head,
            head_width=self.head_width,
            num_clinical=len(self.clinical.terms) if self.clinical else 0,
        )
        shape = (self.in_channels, *self.preprocess.shape[1:])
        stored = Input(shape, self.max_value, self.build_normalization())
        return build_classifier(self.architecture, answer, stored, dropout=self.dropout, options=self.options)

    def build_normalization(self) -> VolumeNormalization | None:
        """Return that of volumes; None for images, which are normalised as ImageNet's."""
        if self.preprocess.spatial_dims == 2:
            return None
        return VolumeNormalization(self.normalize, self.preprocess.value_range)


def _check_card(card: ModelCard) -> None:
    """Check every number before anything is built or allocated: the file may be anybody's.

    The bounds are those of the settings that the numbers come from; what follows from other numbers has
    to be equal to them.

    Raises:
        ValueError, ConfigError, DataError: a value could not have been written by a training.
    """
    spec = card.preprocess
    check_spec(spec)
    if (card.in_channels, card.max_value) != (spec.channels, int(spec.value_range[1])):
        raise ValueError(f"in_channels {card.in_channels}, max_value {card.max_value} are not those of preprocess")
    check_value("model.dropout", card.dropout)
    if card.head == "mlp":
        check_value("model.head_width", card.head_width)
    elif card.head_width:
        raise ValueError(f"head_width {card.head_width} of a {card.head[:20]} head")
    if card.crop is not None:
        check_crop(card.crop.size, [card.crop.scale_min, card.crop.scale_max])
        card.crop.check(spec.shape)
    if not set(card.seen_sha256) <= {PATIENTS, IMAGES, ANCESTORS}:
        raise ValueError("seen_sha256 names other files than a run's")
    if card.domain is not None and (len(card.domain.spacing_mm) not in (0, 2) or len(card.domain.region_share) > 2):
        raise ValueError("domain: expected [smallest, largest] spacing and [height, width] of regions")
    if card.clinical is not None and not all(number.std > 0 for number in card.clinical.numbers):
        raise ValueError("clinical: a standard deviation is not above 0")
    named = all(isinstance(model.get(key), str) for model in card.ancestors for key in ("weights", "file", "sha256"))
    if not named or any(model.get("seen") and not set(model) >= _KNOWN_RUN for model in card.ancestors):
        raise ValueError("ancestors: an entry lacks what a lineage needs")
    _check_task(card)
    if card.split_name != Path(card.split_name).name:
        raise ValueError(f"split_name {card.split_name[:60]}")


def _check_task(card: ModelCard) -> None:
    task, classes = card.task, len(card.task.class_names)
    if task.kind not in (*KINDS, RECONSTRUCTION.name):
        raise ValueError(f"task.kind {task.kind[:20]}")
    if (task.kind == RECONSTRUCTION.name) != (card.architecture in CLASSIFIER_OF):
        raise ValueError(f"task.kind {task.kind} of a {card.architecture[:60]}")
    if not task.traits.fewest <= classes <= (task.traits.most or MOST_CLASSES):
        raise ValueError(f"{classes} classes of a {task.kind} task")
    if card.positive_class not in ("", task.positive):
        raise ValueError("positive_class is not the second class")
    if any(not 0 <= place < classes for place in task.mapping.values()):
        raise ValueError("task.mapping names a class that does not exist")
    if task.traits.multiple and len(task.columns) != classes:
        raise ValueError(f"{len(task.columns)} columns of {classes} labels")
    if task.grades and not classes:
        raise ValueError("task.grades without classes")


def pack_model(state: dict[str, Tensor], card: ModelCard) -> tuple[bytes, str]:
    """Return the bytes of a model file and the checksum that its card carries; the same input gives the same bytes."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    # Of the card, too: a flipped bit in it would swap classes or grey values without a word.
    content = seal(to_json(card) | {_DIGEST: compute_digest(tensors)})
    # One entry alone: safetensors writes several in an order that changes from process to process.
    return save(tensors, metadata={_METADATA: json.dumps(content, sort_keys=True)}), content[SEAL]


def compute_digest(state: dict[str, Tensor]) -> str:
    """Return the SHA-256 of names, dtypes, shapes and bytes: safetensors does not notice a flipped bit."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def read_card(path: Path) -> ModelCard:
    """Return the metadata of a classifier's file without reading its tensors.

    Raises:
        MissingInputError: no such file.
        DataError: not a model file of medcls, damaged, of another format, or an autoencoder.
    """
    card = read_any_card(path)
    if card.task.kind == RECONSTRUCTION.name:
        start = f"python -m medcls.train model={CLASSIFIER_OF[card.architecture]} model.weights={path.parent}"
        raise DataError(f"{path.parent} holds an autoencoder, which has no classes: {start} starts from it")
    return card


def read_any_card(path: Path) -> ModelCard:
    """Return the metadata of a model file, of a classifier or an autoencoder, as `read_card` does."""
    check_model_file(path)
    return _read_metadata(path)[0]


def read_card_checksum(path: Path) -> str:
    """Return the checksum that a model file's card carries, after checking it; "" in files of version 0.2.0.

    Through the digest of the tensors, which is in the card, it is one of the whole file.
    """
    return str(_read_metadata(path)[1].get(SEAL, ""))


def _read_metadata(path: Path) -> tuple[ModelCard, dict[str, Any]]:
    """Return the card, and the JSON that it was read from."""
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {})[_METADATA]
        if len(text) > _MOST_CHARACTERS:
            raise ValueError(f"a card of {len(text)} characters")
        metadata = parse_json(text)
        if metadata["format"] != FORMAT:
            found = str(metadata["format"])[:20]
            raise DataError(f"{path}: format {found}, expected {FORMAT}: train again with this version")
        _check_depth(metadata, most=_DEEPEST)
        plain = open_seal(metadata, path, remedy="copy the model file again, or train again")
        if not isinstance(plain[_DIGEST], str):
            raise TypeError(f"{_DIGEST} is not a text")
        card = _parse_card({name: value for name, value in plain.items() if name != _DIGEST})
        return card, metadata
    except (SafetensorError, OSError, TypeError, ValueError, AttributeError, LookupError, *_TOO_LARGE) as error:
        check_disk(path, error)
        raise DataError(f"{path} is not a model file of medcls, or is damaged ({_shorten(error)})") from error


def _parse_card(content: dict[str, object]) -> ModelCard:
    """Return the checked card; raises ValueError for one that no training could have written."""
    try:
        card = from_json(ModelCard, content)
        _check_card(card)
    except (ConfigError, DataError) as error:
        raise ValueError(str(error)) from error
    return card


def _check_depth(value: Any, *, most: int) -> None:
    """Raise ValueError for lists and objects within one another that would take other code's stack."""
    if not most:
        raise ValueError("nested too deeply")
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for inner in value:
            _check_depth(inner, most=most - 1)


def _shorten(error: Exception) -> str:
    """Return what an error says, in one line: it may quote what somebody wrote into the file."""
    return " ".join(str(error).split())[:300]


def find_card(path: Path) -> ModelCard | None:
    """Return the card of a model file; None for a file that is none, such as weights by torchvision's names.

    Raises:
        DataError: it says that it is one, and is damaged or of another format.
    """
    try:
        with safe_open(path, framework="pt") as file:
            if _METADATA not in (file.metadata() or {}):
                return None
    except (SafetensorError, OSError) as error:
        check_disk(path, error)
        return None
    return read_any_card(path)


def read_state(path: Path) -> tuple[dict[str, Tensor], ModelCard]:
    """Return the tensors of a model file and its card.

    Raises:
        MissingInputError: no such file.
        DataError: damaged.
    """
    check_model_file(path)
    card, metadata = _read_metadata(path)
    try:
        with safe_open(path, framework="pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        digest = compute_digest(state)
    except (SafetensorError, OSError, RuntimeError, TypeError, ValueError) as error:
        check_disk(path, error)
        raise DataError(f"{path} is damaged ({_shorten(error)}): train again") from error
    if digest != metadata[_DIGEST]:
        raise DataError(f"{path} is damaged: its weights have changed since they were written; train again")
    return state, card


def read_model(path: Path) -> tuple[Classifier, ModelCard]:
    """Return the trained network and its card.

    Raises:
        MissingInputError: no such file.
        DataError: damaged, or its tensors are not those of the architecture and classes it names.
    """
    read_card(path)
    state, card = read_state(path)
    wanted = f"{card.architecture} with {card.task.num_classes} classes"
    return _fill(card.build, state, path=path, wanted=wanted).eval(), card


Network = TypeVar("Network", bound=nn.Module)


def _fill(build: Callable[[], Network], state: dict[str, Tensor], *, path: Path, wanted: str) -> Network:
    """Return a network with the tensors of a file, after comparing their shapes with those of an empty one.

    A card may describe a network that no memory holds: the empty one, on the device meta, takes none.

    Raises:
        DataError: the card describes no network, or the tensors are not its.
    """
    try:
        with torch.device("meta"):
            expected = {name: tensor.shape for name, tensor in build().state_dict().items()}
        found = {name: tensor.shape for name, tensor in state.items()}
        different = sorted(set(found.items()) ^ set(expected.items()))
        if different:
            name = different[0][0]
            here, there = (str(list(shapes[name])) if name in shapes else "missing" for shapes in (found, expected))
            raise DataError(f"{path}: its weights are not those of {wanted}: {name[:100]} is {here}, expected {there}")
        model = build()
        model.load_state_dict(state)
    except (ConfigError, ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
        raise DataError(f"{path} does not describe a network of this version ({_shorten(error)})") from error
    except (RuntimeError, OverflowError, ZeroDivisionError, AssertionError) as error:
        raise DataError(f"{path}: its weights are not those of {wanted}: {_shorten(error)}") from error
    return model


def read_autoencoder(path: Path) -> tuple[Autoencoder, ModelCard]:
    """Return the trained autoencoder and its card.

    Raises:
        MissingInputError: no such file.
        DataError: damaged, or no autoencoder.
    """
    state, card = read_state(path)
    normalize = card.build_normalization()
    if card.task.kind != RECONSTRUCTION.name or normalize is None:
        raise DataError(f"{path} is a {card.architecture}, which classifies: expected an autoencoder")
    build = partial(build_autoencoder, card.architecture, in_channels=card.in_channels, normalize=normalize)
    return _fill(build, state, path=path, wanted=card.architecture).eval(), card
