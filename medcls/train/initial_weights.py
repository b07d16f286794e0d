"""Load a network's initial weights: random, or from a file or run, whole, in part, or by their distribution."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from medcls.config import ModelConfig
from medcls.console import say
from medcls.errors import ConfigError
from medcls.inputs import NAMED
from medcls.models.autoencoder import CLASSIFIER_OF, take_encoder
from medcls.models.backbones import CLINICAL, StateDict
from medcls.models.classifier import Classifier
from medcls.models.families import build_backbone, choose_family, find_form
from medcls.models.initialization import Slim, choose_below, choose_shallower, draw_mean_variance, list_shallower
from medcls.models.weights import WeightsFile, check_licence, find_weights, load_backbone, match_state, read_weights
from medcls.runs.checksums import note_version
from medcls.runs.lineage import Lineage, no_lineage, read_lineage
from medcls.runs.model_file import ModelCard, find_card, read_state

_BODY = "backbone.body."


@dataclass(frozen=True, slots=True)
class Source:
    """What model.weights names.

    Attributes:
        file: The file.
        card: Of a run's model; None for weights by torchvision's names.
        architecture: Whose weights they are.
    """

    file: WeightsFile
    card: ModelCard | None
    architecture: str


def find_source(config: ModelConfig, *, weights_dir: str | None = None) -> Source | None:
    """Return what the network starts from; None for random numbers.

    Raises:
        ConfigError: weights of another architecture than model.name and model.init can take.
    """
    name, init = config.name, config.init
    if config.weights is None or name == CLINICAL:
        return None
    takes = [name]
    if init == "shallower":
        takes = list_shallower(name)
    if not takes:
        raise ConfigError(f"model.init=shallower: no VGG is shallower than model.name={name}: set model=vgg16 or vgg19")
    if init == "hybrid" and (choose_family(name).slim is None or find_form(name) is not None):
        raise ConfigError(
            f"model.init=hybrid: model.name={name} cannot be slimmer above a stage: choose a VGG or ResNet"
        )
    published = choose_family(name).published
    if published is not None and config.weights in NAMED:
        check_licence(name, published.licence, accepted=config.accept_license)
    file = find_weights(
        config.weights,
        architecture=takes[0],
        weights_dir=Path(weights_dir) if weights_dir else None,
        sha256=config.weights_sha256,
    )
    card = find_card(file.path)
    if card is None:
        return Source(file, None, takes[0])
    note_version(file.path)
    check_ancestor(config, card, takes=takes)
    return Source(file, card, card.architecture)


def check_ancestor(model: ModelConfig, card: ModelCard, *, takes: list[str]) -> None:
    """Raise ConfigError where the weights of a run are neither of these architectures nor of their autoencoder."""
    name = CLASSIFIER_OF.get(card.architecture, card.architecture)
    if name not in takes:
        advice = f"it takes {' or '.join(takes)}" if model.init == "shallower" else f"say model={name}"
        raise ConfigError(
            f"model.weights={model.weights} is a {card.architecture}, model.name={model.name} with "
            f"model.init={model.init}: {advice}, or choose other weights"
        )
    if model.init in ("hybrid", "shallower") and card.options:
        raise ConfigError(
            f"model.init={model.init}: model.weights={model.weights} is itself a hybrid: set model.init=full"
        )


def choose_options(model: ModelConfig, source: Source | None) -> dict[str, Any]:
    """Return what an architecture is told beside its name, as models.classifier.build_classifier takes it.

    A run that was a hybrid is handed on as one.
    """
    if model.init == "hybrid":
        return asdict(Slim(str(model.init_to), model.width))
    if (form := find_form(model.name)) is not None:
        return {key: getattr(model, key) for key in form.options}
    if choose_family(model.name).slim is not None:
        if source is None or source.card is None or model.init == "shallower":
            return {}
        return dict(source.card.options)
    return {"all_levels": True} if model.supervision else {}


def load_source(
    config: ModelConfig, model: Classifier, source: Source | None, *, seed: int
) -> tuple[list[str], Lineage]:
    """Load the backbone, say from where, and leave the head as it is: new.

    Returns:
        The backbone's parameters that were left at random numbers, and what the weights went through.

    Raises:
        DataError: the file is damaged, or not for this architecture.
    """
    if config.name == CLINICAL:
        say("no image network: only the clinical columns (model=clinical)")
        return [], no_lineage()
    if source is None:
        say(f"weights: none; {config.name} starts from random numbers (model.weights=null)")
        return [name for name, _ in model.backbone.body.named_parameters()], no_lineage()
    file, init = source.file, config.init
    state = read_source(model, source)
    if init in ("full", "mean_var"):
        numbers = state if init == "full" else draw_mean_variance(state, seed=seed)
        left = load_backbone(
            model.backbone.body, numbers, source=str(file.path), optional=model.backbone.layout.optional
        )
    else:
        left = load_part(config, model, state, source=source)
    how = {
        "full": "",
        "mean_var": "; each tensor redrawn with its mean and variance",
        "hybrid": f"; up to {config.init_to}, above it new and {config.width:g} times as wide",
        "shallower": f"; the first four convolutions, fc6 and fc7 of a {source.architecture}",
    }
    known = describe_published(config)
    says = f"; {known['name']}, licence {known['licence']}" if known else ""
    say(f"weights: {file.path} (sha256 {file.sha256[:12]}…{says}){how[init]}")
    if left and init in ("full", "mean_var"):
        say(f"notice: the file has the convolutional base only; random: {', '.join(left)}")
    lineage = read_lineage(file.path, source.card, sha256=file.sha256, weights=str(config.weights), published=known)
    return left, lineage


def describe_published(config: ModelConfig) -> dict[str, str]:
    """Return name and licence of a library's published weights, as a model card keeps them; {} for other weights."""
    published = choose_family(config.name).published
    if published is None or config.weights not in NAMED:
        return {}
    return {"name": published.name, "licence": published.licence}


def read_source(model: Classifier, source: Source) -> StateDict:
    """Return the tensors of the weights by the names of a backbone's body."""
    if source.card is None:
        return model.backbone.layout.convert(read_weights(source.file))
    state, _ = read_state(source.file.path)
    if source.architecture in CLASSIFIER_OF:
        return take_encoder(state)
    own = {name.removeprefix(_BODY): value for name, value in state.items() if name.startswith(_BODY)}
    # A network of fixed size that was trained at another one has other places.
    return own if source.card.options == model.backbone.options else model.backbone.layout.convert(own)


def load_part(config: ModelConfig, model: Classifier, state: StateDict, *, source: Source) -> list[str]:
    """Load what model.init=hybrid or shallower takes of the weights; return the parameters that stay random."""
    with torch.device("meta"):
        donor = build_backbone(source.architecture)
    there, _ = match_state(donor.body, state, source=str(source.file.path), optional=donor.layout.optional)
    if config.init == "hybrid":
        taken = choose_below(donor, there, stage=str(config.init_to))
    else:
        taken = choose_shallower(donor, model.backbone, there)
    model.backbone.body.load_state_dict(taken, strict=False)
    return [name for name, _ in model.backbone.body.named_parameters() if name not in taken]
