"""Build the network that training starts from: checked against store and task, weights loaded, transfer planned."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from medcls.config import ClinicalConfig, ModelConfig, TransferConfig
from medcls.console import say
from medcls.errors import ConfigError, DataError
from medcls.imaging.decode import Spec
from medcls.models.classifier import Answer, Classifier, Input, build_classifier
from medcls.models.families import choose_family, count_dims, find_form
from medcls.models.initialization import PRETRAINED, describe_origins
from medcls.models.normalization import VolumeNormalization
from medcls.models.transfer import StagePlan, apply_plan, choose_first_epochs, format_plan, plan_transfer, plan_wide
from medcls.runs.lineage import RUN, Lineage, check_unseen, without_seen
from medcls.train.clinical_columns import start_wide
from medcls.train.initial_weights import choose_options, find_source, load_source
from medcls.train.learner import Recipe
from medcls.train.training_data import TrainingData


@dataclass(frozen=True, slots=True)
class Start:
    """The network that training starts from.

    Attributes:
        model: With its first weights.
        left: Parameters of the backbone that hold random numbers.
        is_new: Whether no weights were loaded at all.
        lineage: What the weights went through.
    """

    model: Classifier
    left: list[str]
    is_new: bool
    lineage: Lineage


def start_network(config: ModelConfig, data: TrainingData, *, weights_dir: str | None, seed: int, l2: float) -> Start:
    """Build the network for a store and a task, load its weights, and set its head to the targets."""
    spec = data.store.spec
    check_dims(config.name, spec.shape)
    check_size(config.name, data.train.shape)
    source = find_source(config, weights_dir=weights_dir)
    kind = choose_normalization(config.normalize, spec)
    answer = Answer(
        data.task.output,
        data.task.num_classes,
        head=config.head_kind,
        head_width=config.head_width,
        num_clinical=len(data.clinical.terms) if data.clinical else 0,
    )
    stored = Input(
        (spec.channels, *data.train.shape[1:]),
        max_value=int(spec.value_range[1]),
        normalize=VolumeNormalization(kind, spec.value_range) if spec.spatial_dims == 3 else None,
    )
    options = choose_options(config, source)
    model = build_classifier(config.name, answer, stored, dropout=config.dropout, options=options)
    check_forward(model, config.name, data.train.shape)
    left, lineage = load_source(config, model, source, seed=seed)
    if data.task.kind == "regression":
        model.head.set_unit(data.train.targets)
    if data.task.output == "joint":
        model.head.set_grade(data.train.targets)
    if data.clinical:
        start_wide(model, data.task, data.train, l2=l2)
    return Start(model, left, source is None, lineage)


def plan_network(
    start: Start, transfer: TransferConfig, *, init: str, recipe: Recipe, clinical: ClinicalConfig
) -> list[StagePlan]:
    """Return how each stage is trained, apply it, and print it with what may not be meant."""
    model, left, epochs = start.model, set(start.left), recipe.trainer.epochs
    # Stages that the weights lack are never frozen; without any weights the transfer is taken as it is said.
    fresh = set() if start.is_new else stages_of(model, start.left)
    first = choose_first_epochs(
        list(model.stages),
        kind=transfer.kind,
        train_from=transfer.train_from,
        thaw_every=transfer.thaw_every,
        fresh=fresh,
    )
    origins = describe_origins(model.backbone, left, init=init)
    unsettled = {stage for stage, origin in origins.items() if origin != PRETRAINED}
    plans = plan_transfer(
        model, first, layer_decay=transfer.layer_decay, batchnorm=transfer.batchnorm, unsettled=unsettled
    )
    apply_plan(model, plans)
    bare = [plan.name for plan in plans if plan.first_epoch != 0 and plan.name in unsettled]
    if bare:
        say(f"notice: transfer={transfer.kind} freezes stages that hold random numbers: {', '.join(bare)}")
    late = [plan.name for plan in plans if plan.first_epoch and plan.first_epoch >= epochs]
    if late:
        say(f"notice: trainer.epochs={epochs} ends before {', '.join(late)} are trained")
    shown = [*plans, *plan_wide(model, lr_scale=clinical.lr_scale)]
    # The wide part starts at the regression on its columns alone.
    say(format_plan(shown, lr=recipe.optimizer.lr, origins=origins | {"wide": "regression"}))
    return plans


def check_lineage(data: TrainingData, lineage: Lineage, *, split_name: str, val_seen: str) -> None:
    """Check that no model of the lineage has seen patients or images that are held out now.

    With transfer.val_seen=allow an ancestor of the very same split passes: it selected on the same validation rows, and
    has seen nobody of test.

    Raises:
        DataError: One has.
    """
    here = (data.store.sha256, data.certificate["split_sha256"])
    runs = [model for model in lineage.models if model["weights"] == RUN]
    own = [model for model in runs if (model["store_sha256"], model["split_sha256"]) == here]
    remedy = (
        f"they are in val or test of split.name={split_name} (biased transfer); make a split with them in train or in "
        "no part, or start from other weights"
    )
    if own and val_seen == "allow":
        say(f"notice: val is not held out for this run: its ancestor {own[0]['run']} was selected on it")
        lineage = without_seen(lineage, [model["sha256"] for model in own])
    elif own:
        remedy += "; transfer.val_seen=allow takes the val of an ancestor's own split"
    for notice in check_unseen(data.store, data.held_out, lineage, remedy=remedy):
        say(f"notice: {notice}")


def check_dims(name: str, shape: tuple[int, ...]) -> None:
    """Raise DataError if a network for images meets a store of volumes, or the other way round."""
    dims = count_dims(name)
    if dims not in (0, len(shape) - 1):
        takes, holds = ("volumes", "images") if dims == 3 else ("images", "volumes")
        raise DataError(
            f"model.name={name} takes {takes}, the store holds {holds} {shape}: choose another model= or store="
        )


def choose_normalization(kind: str, spec: Spec) -> str:
    """Return how stored values become the network's input; "auto" follows from what the values are.

    auto: images as ImageNet's; volumes by one scale where a value has a unit (Hounsfield units, windows), and to zero
    mean and unit deviation where each volume was stretched to its own range (MR).

    Raises:
        ConfigError: a kind for volumes, asked for of images.
    """
    if spec.spatial_dims == 2:
        if kind != "auto":
            raise ConfigError(
                f"model.normalize={kind}: images are always normalised like ImageNet's (auto); only volumes can "
                "choose: set model.normalize=auto"
            )
        return "imagenet"
    if kind != "auto":
        return kind
    return "z_score" if spec.intensity in ("percentile", "minmax") else "stored"


def check_size(name: str, shape: tuple[int, ...]) -> None:
    """Raise ConfigError if images (C, H, W) are too small for the network: a VGG halves them five times."""
    form = find_form(name)
    halved = shape[2:] if form is not None and form.keeps_depth else shape[1:]
    least = choose_family(name).least_size
    if min(halved) < least:
        size = " x ".join(map(str, shape[1:]))
        raise ConfigError(
            f"model.name={name} takes images of at least {least} pixels, these have {size}: "
            "prepare the store with a larger image.size (or raise crop.size), or set model=resnet50"
        )


def check_forward(model: Classifier, name: str, shape: tuple[int, ...]) -> None:
    """Check that a library's network takes images (C, H, W): what it needs is known to nobody but itself.

    Raises:
        ConfigError: it does not.
    """
    published = choose_family(name).published
    if published is None:
        return
    model.backbone.eval()
    try:
        with torch.no_grad():
            model.backbone(torch.zeros(1, 3, *shape[1:]))
    except (RuntimeError, AssertionError, ValueError, IndexError) as error:
        sides = " x ".join(map(str, shape[1:]))
        raise ConfigError(published.refuse_size(name, sides)) from error


def stages_of(model: Classifier, parameters: list[str]) -> set[str]:
    """Return the stages that hold any of the backbone's parameters of these names."""
    by_name = dict(model.backbone.body.named_parameters())
    wanted = {id(by_name[name]) for name in parameters}
    return {s for s, stage in model.backbone.stages.items() if wanted & {id(p) for p in stage.parameters()}}
