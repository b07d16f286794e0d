"""Build the network that training starts from: checked against store and task, weights loaded, transfer planned."""

from __future__ import annotations

from typing import Any

from medcls.config import TrainJob
from medcls.console import say
from medcls.errors import ConfigError, DataError
from medcls.imaging.decode import Spec
from medcls.models.classifier import Classifier, build_classifier
from medcls.models.families import choose_family, count_dims, find_form
from medcls.models.initialization import PRETRAINED, describe_origins
from medcls.models.normalization import VolumeNormalization
from medcls.models.transfer import StagePlan, apply_plan, choose_first_epochs, format_plan, plan_transfer, plan_wide
from medcls.runs.lineage import RUN, Lineage, check_unseen, without_seen
from medcls.train.clinical_columns import start_wide
from medcls.train.initial_weights import choose_options, find_source, load_source
from medcls.train.training_data import TrainingData


def build_model(job: TrainJob, data: TrainingData) -> tuple[Classifier, list[StagePlan], Lineage]:
    """Build the network, load its weights, plan the transfer, and print the plan.

    Raises:
        DataError: a model that the weights went through has seen rows of val or test.
    """
    spec = data.store.spec
    check_dims(job.model.name, spec.shape)
    check_size(job.model.name, data.train.shape)
    source = find_source(job.model, weights_dir=job.weights_dir)
    kind = choose_normalization(job.model.normalize, spec)
    model = build_classifier(
        job.model.name,
        kind=data.task.output,
        num_classes=data.task.num_classes,
        in_channels=spec.channels,
        max_value=int(spec.value_range[1]),
        dropout=job.model.dropout,
        size=data.train.shape[1:],
        options=choose_options(job.model, source),
        normalize=VolumeNormalization(kind, spec.value_range) if spec.spatial_dims == 3 else None,
        num_clinical=len(data.clinical.terms) if data.clinical else 0,
        head=job.model.head_kind,
        head_width=job.model.head_width,
    )
    left, lineage = load_source(job.model, model, source, seed=job.seed)
    check_lineage(data, lineage, split_name=job.split.name, val_seen=job.transfer.val_seen)
    if data.task.kind == "regression":
        model.head.set_unit(data.train.targets)
    if data.task.output == "joint":
        model.head.set_grade(data.train.targets)
    if data.clinical:
        start_wide(model, data.task, data.train, l2=job.clinical.l2)
    epochs = choose_first_epochs(
        list(model.stages),
        kind=job.transfer.kind,
        train_from=job.transfer.train_from,
        thaw_every=job.transfer.thaw_every,
        fresh=stages_of(model, left) if source is not None else (),
    )
    origins = describe_origins(model.backbone, set(left), init=job.model.init)
    plans = plan_transfer(
        model,
        epochs,
        layer_decay=job.transfer.layer_decay,
        batchnorm=job.transfer.batchnorm,
        unsettled={stage for stage, origin in origins.items() if origin != PRETRAINED},
    )
    apply_plan(model, plans)
    warn_of_transfer(plans, origins, kind=job.transfer.kind, epochs=job.trainer.epochs)
    shown = [*plans, *plan_wide(model, lr_scale=job.clinical.lr_scale)]
    # The wide part starts at the regression on its columns alone.
    say(format_plan(shown, lr=job.optimizer.lr, origins=origins | {"wide": "regression"}))
    return model, plans, lineage


def check_lineage(data: TrainingData, lineage: Lineage, *, split_name: str, val_seen: str) -> None:
    """Check that no model of the lineage has seen patients or images that are held out now.

    With transfer.val_seen=allow an ancestor of the very same split passes: it selected on the same validation rows, and
    has seen nobody of test.

    Raises:
        DataError: One has.
    """
    own = [model for model in lineage.models if model["weights"] == RUN and _is_of_split(model, data)]
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


def _is_of_split(model: dict[str, Any], data: TrainingData) -> bool:
    here = (data.store.sha256, data.certificate["split_sha256"])
    return (model["store_sha256"], model["split_sha256"]) == here


def warn_of_transfer(plans: list[StagePlan], origins: dict[str, str], *, kind: str, epochs: int) -> None:
    """Print what of a plan may not be what was meant.

    Args:
        plans: How each stage is trained.
        origins: Stage to where its numbers come from.
        kind: Of the transfer.
        epochs: Of the training.
    """
    bare = [plan.name for plan in plans if plan.first_epoch != 0 and origins[plan.name] != PRETRAINED]
    if bare:
        say(f"notice: transfer={kind} freezes stages that hold random numbers: {', '.join(bare)}")
    late = [plan.name for plan in plans if plan.first_epoch and plan.first_epoch >= epochs]
    if late:
        say(f"notice: trainer.epochs={epochs} ends before {', '.join(late)} are trained")


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


def stages_of(model: Classifier, parameters: list[str]) -> set[str]:
    """Return the stages that hold any of the backbone's parameters of these names."""
    by_name = dict(model.backbone.body.named_parameters())
    wanted = {id(by_name[name]) for name in parameters}
    return {s for s, stage in model.backbone.stages.items() if wanted & {id(p) for p in stage.parameters()}}
