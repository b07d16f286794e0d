"""The model file: safetensors whose metadata says what it is, what it was trained on, and how to feed it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from medcls.data.targets import Task
from medcls.errors import DataError, MissingInputError
from medcls.files import write_bytes
from medcls.imaging.preprocess import PreprocessSpec
from medcls.models.classifier import Classifier, build_classifier

FORMAT = 1


@dataclass(frozen=True, slots=True)
class ModelCard:
    """The metadata of a model file.

    Attributes:
        architecture: Name for models.build_classifier.
        dropout: As trained.
        in_channels: 1 or 3.
        max_value: Largest stored integer.
        task: Classes and kind.
        preprocess: What the images must have gone through.
        store_sha256: Of the store trained on.
        split_name: Of the split.
        split_sha256: Of the split.
        labels_sha256: Of labels.parquet.
        ancestors: Where the weights started: {"weights": …, "sha256": …}.
        training: Epoch, metric and settings in short.
    """

    architecture: str
    dropout: float
    in_channels: int
    max_value: int
    task: Task
    preprocess: PreprocessSpec
    store_sha256: str
    split_name: str
    split_sha256: str
    labels_sha256: str
    ancestors: list[dict[str, str]] = field(default_factory=list)
    training: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Returns the JSON form."""
        return asdict(self) | {"preprocess": self.preprocess.to_json(), "format": FORMAT}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> ModelCard:
        """Returns the card that `to_json` wrote; raises KeyError or TypeError for anything else."""
        rest = {key: value for key, value in content.items() if key != "format"}
        preprocess = PreprocessSpec.from_json(content["preprocess"])
        return cls(**rest | {"task": Task(**content["task"]), "preprocess": preprocess})

    def build(self) -> Classifier:
        """Returns the network with random weights."""
        return build_classifier(
            self.architecture,
            kind=self.task.kind,
            num_classes=self.task.num_classes,
            in_channels=self.in_channels,
            max_value=self.max_value,
            dropout=self.dropout,
        )


def write_model(path: Path, state: dict[str, Tensor], card: ModelCard) -> None:
    """Writes the model file atomically."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    write_bytes(path, save(tensors, metadata={"medcls": json.dumps(card.to_json(), sort_keys=True)}))


def read_card(path: Path) -> ModelCard:
    """Returns the metadata of a model file without reading its tensors.

    Raises:
        MissingInputError: no such file.
        DataError: not a model file of medcls, damaged, or of another format.
    """
    if not path.is_file():
        raise MissingInputError(f"{path} is missing: the training of this run has not finished; run it again")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = json.loads((file.metadata() or {})["medcls"])
        if metadata["format"] != FORMAT:
            raise DataError(f"{path}: format {metadata['format']}, expected {FORMAT}: train again with this version")
        return ModelCard.from_json(metadata)
    except (SafetensorError, OSError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise DataError(f"{path} is no model file of medcls, or damaged ({error})") from error


def read_model(path: Path) -> tuple[Classifier, ModelCard]:
    """Returns the trained network and its card.

    Raises:
        MissingInputError: no such file.
        DataError: damaged, or its tensors are not those of the architecture and classes it names.
    """
    card = read_card(path)
    model = card.build()
    try:
        with safe_open(path, framework="pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        model.load_state_dict(state)
    except (SafetensorError, OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        wanted = f"{card.architecture} with {card.task.num_classes} classes"
        raise DataError(f"{path}: its weights are not those of {wanted}: {reason}") from error
    return model.eval(), card
