"""Build the parts of a training: optimizer, schedule, loss, sampler."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from medcls.config import PretrainJob, TrainJob
from medcls.data.loaders import EpochSampler, balance_weights
from medcls.distributed import count_ranks, get_part
from medcls.errors import ConfigError
from medcls.models.classifier import Classifier, FeatureClassifier
from medcls.models.recomputation import recompute_blocks
from medcls.models.synchronization import synchronize_batchnorm
from medcls.models.transfer import StagePlan, build_parameter_groups, build_wide_group
from medcls.train.training_data import TrainingData
from medcls.training.forward import move_model
from medcls.training.losses import Loss, LossSettings, balanced_weights, build_loss, supervise_deeply
from medcls.training.optimizers import build_average, build_optimizer, build_schedule
from medcls.training.precision import build_scaler, choose_device, choose_precision
from medcls.training.state import Learner, StepRules


def choose_rules(job: TrainJob | PretrainJob) -> StepRules:
    """Return how a step is made, on the device that there is."""
    device = choose_device(job.device)
    return StepRules(
        device=device,
        precision=choose_precision(job.precision, device=device),
        accumulate=job.trainer.accumulate,
        clip_norm=job.trainer.clip_norm,
        max_nonfinite=job.trainer.max_nonfinite,
        channels_last=job.trainer.channels_last,
        seed=job.seed,
    )


def start_schedule(job: TrainJob | PretrainJob, optimizer: Optimizer, *, batches: int, rules: StepRules) -> LambdaLR:
    """Return the schedule of trainer.epochs epochs of `batches` each, from their first step."""
    return build_schedule(
        optimizer,
        job.schedule,
        steps_per_epoch=-(-batches // rules.accumulate),
        epochs=job.trainer.epochs,
        max_steps=job.trainer.max_steps,
    )


def build_learner(
    job: TrainJob,
    *,
    data: TrainingData,
    model: Classifier,
    plans: list[StagePlan],
    rules: StepRules,
    cached: bool = False,
) -> Learner:
    """Put the model on its device and give it loss, optimizer, schedule and scaler.

    With cached features the learner's model is what stands above the backbone.
    """
    if job.trainer.sync_batchnorm and count_ranks() > 1:
        if rules.device == "cpu":
            raise ConfigError("trainer.sync_batchnorm=true: torch has it only on GPUs: remove it, or set device=cuda")
        synchronize_batchnorm(model.backbone)
    move_model(model, rules)
    if job.trainer.activation_checkpointing and not recompute_blocks(model.backbone.stages):
        raise ConfigError(
            f"trainer.activation_checkpointing=true: {job.model.name} has no blocks to recompute: remove it"
        )
    groups = build_parameter_groups(model, plans, lr=job.optimizer.lr, weight_decay=job.optimizer.weight_decay)
    groups += build_wide_group(model, lr=job.optimizer.lr, lr_scale=job.clinical.lr_scale, l2=job.clinical.l2)
    trained = FeatureClassifier(model) if cached else model
    loss, batches = build_task_loss(job, data, unit=float(model.head.scale)), len(build_sampler(job, data))
    return assemble_learner(job, trained, groups=groups, loss=loss, batches=batches, rules=rules)


def assemble_learner(
    job: TrainJob | PretrainJob,
    model: nn.Module,
    *,
    groups: list[dict[str, Any]],
    loss: Loss,
    batches: int,
    rules: StepRules,
) -> Learner:
    """Return what a step changes, as job.optimizer, job.schedule and job.trainer say.

    Args:
        job: Of a training or a pretraining.
        model: On its device.
        groups: Its trained parameters, as `build_parameter_groups` returns them.
        loss: (outputs, targets) to a scalar.
        batches: Of an epoch.
        rules: How a step is made.
    """
    optimizer = build_optimizer(job.optimizer.name, groups, lr=job.optimizer.lr, momentum=job.optimizer.momentum)
    return Learner(
        model=model,
        loss=loss,
        optimizer=optimizer,
        schedule=start_schedule(job, optimizer, batches=batches, rules=rules),
        scaler=build_scaler(rules.precision, device=rules.device),
        average=build_average(model, decay=job.trainer.ema_decay),
        forward=torch.compile(model) if job.trainer.compile else model,
    )


def build_sampler(job: TrainJob, data: TrainingData) -> EpochSampler:
    """Return the order of the training images, balanced by class where asked."""
    targets = data.train.targets.numpy().astype(np.float64)
    weights = balance_weights(targets) if job.task.sampler == "balanced" else None
    size = min(job.trainer.batch_size, len(data.train))
    # BatchNorm cannot take a batch of one image, which pairs of an odd number of images would end in.
    size += size == 2 and len(data.train) % 2
    return EpochSampler(len(data.train), batch_size=size, seed=job.seed, shuffle=True, weights=weights, part=get_part())


def build_task_loss(job: TrainJob, data: TrainingData, *, unit: float) -> Loss:
    """Return the training loss of the task, with class weights from the training rows where asked."""
    weights = None
    if job.task.class_weights == "balanced":
        targets = data.train.targets.numpy().astype(np.float64)
        weights = balanced_weights(data.task.output, targets, num_classes=data.task.num_classes)
    settings = LossSettings(
        name=job.task.loss,
        class_weights=weights,
        focal_gamma=job.task.focal_gamma,
        label_smoothing=job.task.label_smoothing,
        joint_lambda=job.task.joint_lambda,
        scale=unit,
    )
    loss = build_loss(data.task.output, settings)
    return supervise_deeply(loss, job.model.supervision) if job.model.supervision else loss
