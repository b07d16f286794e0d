"""The model file: safetensors whose metadata says what it is, what it was trained on, and how to feed it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from medcls.config import TASKS
from medcls.data.clinical import ClinicalSpec
from medcls.data.crops import Crop
from medcls.data.targets import Task
from medcls.disk import check_disk
from medcls.errors import ConfigError, DataError, MissingInputError
from medcls.files import write_bytes
from medcls.imaging.domain import Domain
from medcls.imaging.preprocess import PreprocessSpec
from medcls.imaging.volume_spec import VolumeSpec, read_spec
from medcls.models.autoencoder import CLASSIFIER_OF, Autoencoder, build_autoencoder
from medcls.models.classifier import Classifier, build_classifier
from medcls.models.normalization import VolumeNormalization
from medcls.typed_fields import check_types

FORMAT = 1
# Beside the card's own fields.
_FORMAT, _DIGEST = "format", "tensors_sha256"
MOST_CLASSES = 10_000
"""A card that names more would fill the memory with a head before its tensors are compared."""
_METADATA = "medcls"
RECONSTRUCTION = "reconstruction"
"""The kind of an autoencoder's task."""


@dataclass(frozen=True, slots=True)
class ModelCard:
    """The metadata of a model file.

    Attributes:
        architecture: Name for models.build_classifier, or of an autoencoder for models.build_autoencoder.
        dropout: As trained.
        in_channels: Of the stored images: 1 or 3, of volumes any number.
        max_value: Largest stored value.
        task: Classes and kind; of an autoencoder the kind is "reconstruction".
        preprocess: What the images or volumes must have gone through.
        store_sha256: Of the store trained on.
        split_name: Of the split.
        split_sha256: Of the split.
        labels_sha256: Of labels.parquet; "" where no label was looked at.
        ancestors: The weights it went through, oldest first, as stages/lineage.py describes them.
        training: Epoch, metric and settings in short.
        domain: Kinds of images trained on; None in files from before it was recorded.
        crop: What was cut out of the images; None = nothing, they were taken whole.
        deidentify: The store's: {"kind": …, "key_fingerprint": …}; {} in files from before it was recorded.
        seen_sha256: Of the run's files that say whom this model and its ancestors have seen, by name.
        normalize: "imagenet" for images, one of models.normalization.NORMALIZATIONS for volumes.
        clinical: How clinical columns are encoded; None where the model takes images alone.
        options: Of the architecture, for models.build_classifier.
        head: One of models.heads.HEADS.
        head_width: Its hidden units; 0 = none.
        positive_class: Of a binary task, as it was named at training; "" for other kinds, and in files from before it
            was recorded, whose positive class is the second one.
        distance_sha256: Of the run's feature_distance.safetensors; "" where there is none.
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
    ancestors: list[dict[str, Any]] = field(default_factory=list)
    training: dict[str, Any] = field(default_factory=dict)
    domain: Domain | None = None
    crop: Crop | None = None
    deidentify: dict[str, Any] = field(default_factory=dict)
    seen_sha256: dict[str, str] = field(default_factory=dict)
    normalize: str = "imagenet"
    clinical: ClinicalSpec | None = None
    options: dict[str, Any] = field(default_factory=dict)
    head: str = "linear"
    head_width: int = 0
    positive_class: str = ""
    distance_sha256: str = ""

    def to_json(self) -> dict[str, Any]:
        """Returns the JSON form."""
        return asdict(self) | {"preprocess": self.preprocess.to_json(), _FORMAT: FORMAT}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> ModelCard:
        """Returns the card that `to_json` wrote; raises KeyError, TypeError or ValueError for anything else."""
        rest = {key: value for key, value in content.items() if key not in (_FORMAT, _DIGEST)}
        preprocess = read_spec(content["preprocess"])
        domain = Domain(**content["domain"]) if content.get("domain") is not None else None
        crop = Crop(**content["crop"]) if content.get("crop") is not None else None
        clinical = ClinicalSpec.from_json(content["clinical"]) if content.get("clinical") else None
        parts = {"task": Task(**content["task"]), "preprocess": preprocess, "domain": domain, "crop": crop}
        card = cls(**rest | parts | {"clinical": clinical})
        _check_card(card)
        return card

    def build(self) -> Classifier:
        """Returns the network with random weights."""
        return build_classifier(
            self.architecture,
            kind=self.task.output,
            num_classes=self.task.num_classes,
            in_channels=self.in_channels,
            max_value=self.max_value,
            dropout=self.dropout,
            size=self.preprocess.shape[1:],
            options=self.options,
            normalize=self.build_normalization(),
            num_clinical=len(self.clinical.terms) if self.clinical else 0,
            head=self.head,
            head_width=self.head_width,
        )

    def build_normalization(self) -> VolumeNormalization | None:
        """Returns that of volumes; None for images, which are normalised as ImageNet's."""
        if self.preprocess.spatial_dims == 2:
            return None
        return VolumeNormalization(self.normalize, self.preprocess.value_range)


def _check_card(card: ModelCard) -> None:
    """What a network could be built of; the file may be anybody's."""
    check_types(card)
    if card.task.kind not in (*TASKS, RECONSTRUCTION):
        raise ValueError(f"task.kind {card.task.kind}")
    if (card.task.kind == RECONSTRUCTION) != (card.architecture in CLASSIFIER_OF):
        raise ValueError(f"task.kind {card.task.kind} of a {card.architecture}")
    classless = card.task.kind in ("regression", RECONSTRUCTION)
    if len(card.task.class_names) > MOST_CLASSES or not (card.task.class_names or classless):
        raise ValueError(f"{len(card.task.class_names)} classes")
    if card.positive_class not in ("", card.task.positive):
        raise ValueError("positive_class is not the second class")
    if card.max_value < 1 or not 0 <= card.dropout < 1:
        raise ValueError(f"max_value {card.max_value}, dropout {card.dropout}")
    if card.split_name != Path(card.split_name).name:
        raise ValueError(f"split_name {card.split_name}")


def write_model(path: Path, state: dict[str, Tensor], card: ModelCard) -> None:
    """Writes the model file atomically; the same weights and card give the same bytes."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    content = card.to_json() | {_DIGEST: compute_digest(tensors)}
    # One entry alone: safetensors writes several in an order that changes from process to process.
    write_bytes(path, save(tensors, metadata={_METADATA: json.dumps(content, sort_keys=True)}))


def compute_digest(state: dict[str, Tensor]) -> str:
    """Returns the SHA-256 of names, dtypes, shapes and bytes: safetensors does not notice a flipped bit."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def read_card(path: Path) -> ModelCard:
    """Returns the metadata of a classifier's file without reading its tensors.

    Raises:
        MissingInputError: no such file.
        DataError: not a model file of medcls, damaged, of another format, or an autoencoder.
    """
    card = read_any_card(path)
    if card.task.kind == RECONSTRUCTION:
        start = f"python -m medcls.train model={CLASSIFIER_OF[card.architecture]} model.weights={path.parent}"
        raise DataError(f"{path.parent} holds an autoencoder, which knows no classes: {start} starts from it")
    return card


def read_any_card(path: Path) -> ModelCard:
    """Returns the metadata of a model file, of a classifier or an autoencoder, as `read_card` does."""
    if not path.is_file():
        raise MissingInputError(f"{path} is missing: the training of this run has not finished; run it again")
    return _read_metadata(path)[0]


def _read_metadata(path: Path) -> tuple[ModelCard, str]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = json.loads((file.metadata() or {})[_METADATA])
        if metadata[_FORMAT] != FORMAT:
            raise DataError(f"{path}: format {metadata[_FORMAT]}, expected {FORMAT}: train again with this version")
        return ModelCard.from_json(metadata), metadata[_DIGEST]
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        check_disk(path, error)
        raise DataError(f"{path} is no model file of medcls, or damaged ({error})") from error


def find_card(path: Path) -> ModelCard | None:
    """Returns the card of a model file; None for a file that is none, such as weights by torchvision's names.

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
    """Returns the tensors of a model file and its card.

    Raises:
        MissingInputError: no such file.
        DataError: damaged.
    """
    card = read_any_card(path)
    _, digest = _read_metadata(path)
    try:
        with safe_open(path, framework="pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as error:
        check_disk(path, error)
        raise DataError(f"{path} is damaged ({error}): train again") from error
    if compute_digest(state) != digest:
        raise DataError(f"{path} is damaged: its weights have changed since they were written; train again")
    return state, card


def read_model(path: Path) -> tuple[Classifier, ModelCard]:
    """Returns the trained network and its card.

    Raises:
        MissingInputError: no such file.
        DataError: damaged, or its tensors are not those of the architecture and classes it names.
    """
    read_card(path)
    state, card = read_state(path)
    try:
        model = card.build()
    except (ConfigError, ValueError, TypeError) as error:
        raise DataError(f"{path} describes no network of this version ({error})") from error
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        wanted = f"{card.architecture} with {card.task.num_classes} classes"
        raise DataError(f"{path}: its weights are not those of {wanted}: {reason}") from error
    return model.eval(), card


def read_autoencoder(path: Path) -> tuple[Autoencoder, ModelCard]:
    """Returns the trained autoencoder and its card.

    Raises:
        MissingInputError: no such file.
        DataError: damaged, or no autoencoder.
    """
    state, card = read_state(path)
    normalize = card.build_normalization()
    if card.task.kind != RECONSTRUCTION or normalize is None:
        raise DataError(f"{path} is a {card.architecture}, which classifies: expected an autoencoder")
    model = build_autoencoder(card.architecture, in_channels=card.in_channels, normalize=normalize)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise DataError(f"{path}: its weights are not those of {card.architecture}: {reason}") from error
    return model.eval(), card
