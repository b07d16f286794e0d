"""The network that training starts from: built for the store and the task, its weights loaded, its transfer planned."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from medcls.command_line import say
from medcls.config import TrainJob
from medcls.errors import ConfigError
from medcls.models.classifier import Classifier, build_classifier
from medcls.models.transfer import StagePlan, apply_plan, format_plan, plan_transfer
from medcls.models.weights import find_weights, load_backbone, read_weights
from medcls.stages.training_data import TrainingData, image_spec

_LEAST_VGG_SIZE = 32


def build_model(job: TrainJob, data: TrainingData) -> tuple[Classifier, list[StagePlan], list[dict[str, str]]]:
    """Builds the network, loads its weights, plans the transfer, and prints the plan."""
    check_size(job.model.name, data.train.shape)
    spec = image_spec(data.store)
    model = build_classifier(
        job.model.name,
        kind=data.task.output,
        num_classes=data.task.num_classes,
        in_channels=spec.channels,
        max_value=int(np.iinfo(spec.dtype).max),
        dropout=job.model.dropout,
    )
    ancestors: list[dict[str, str]] = []
    left: list[str] = []
    if job.model.weights is None:
        say(f"weights: none; {job.model.name} starts from random numbers (model.weights=null)")
        if job.transfer.kind == "frozen":
            say("notice: transfer=frozen keeps these random numbers; only the head learns")
    else:
        file = find_weights(
            job.model.weights,
            architecture=job.model.name,
            weights_dir=None if job.weights_dir is None else Path(job.weights_dir),
            sha256=job.model.weights_sha256,
        )
        left = load_backbone(model.backbone.body, read_weights(file), source=str(file.path))
        say(f"weights: {file.path} (sha256 {file.sha256[:12]}…)")
        if left:
            say(f"notice: the file has the convolutional base only; random: {', '.join(left)}")
        ancestors.append({"weights": job.model.weights, "file": file.path.name, "sha256": file.sha256})
    if data.task.kind == "regression":
        model.head.set_unit(data.train.targets)
    if data.task.output == "joint":
        model.head.set_grade(data.train.targets)
    plans = plan_transfer(
        model,
        kind=job.transfer.kind,
        layer_decay=job.transfer.layer_decay,
        batchnorm=job.transfer.batchnorm,
        fresh=stages_of(model, left),
    )
    apply_plan(model, plans)
    say(format_plan(plans, lr=job.optimizer.lr))
    return model, plans, ancestors


def check_size(name: str, shape: tuple[int, ...]) -> None:
    """Raises ConfigError where images (C, H, W) are too small for the network: a VGG halves them five times."""
    if name.startswith("vgg") and min(shape[1:]) < _LEAST_VGG_SIZE:
        raise ConfigError(
            f"model.name={name} takes images of {_LEAST_VGG_SIZE} pixels and more, these have {shape[1]} x {shape[2]}: "
            "prepare the store with a larger image.size (or raise crop.size), or take a ResNet"
        )


def stages_of(model: Classifier, parameters: list[str]) -> set[str]:
    """Returns the stages that hold any of the backbone's parameters of these names."""
    by_name = dict(model.backbone.body.named_parameters())
    wanted = {id(by_name[name]) for name in parameters}
    return {s for s, stage in model.backbone.stages.items() if wanted & {id(p) for p in stage.parameters()}}
