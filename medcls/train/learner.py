"""Build the parts of a training: rules of a step, optimizer, schedule, loss, sampler."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from medcls.config import ClinicalConfig, ModelConfig, OptimizerConfig, ScheduleConfig, TaskConfig, TrainerConfig
from medcls.data.loaders import EpochSampler, balance_weights
from medcls.distributed import count_ranks, get_part
from medcls.errors import ConfigError
from medcls.models.classifier import Classifier
from medcls.models.recomputation import recompute_blocks
from medcls.models.synchronization import synchronize_batchnorm
from medcls.models.transfer import StagePlan, build_parameter_groups, build_wide_group
from medcls.train.training_data import TrainingData
from medcls.training.forward import move_model
from medcls.training.losses import Loss, LossSettings, balanced_weights, build_loss, supervise_deeply
from medcls.training.optimizers import build_average, build_optimizer, build_schedule
from medcls.training.precision import build_scaler, choose_device, choose_precision
from medcls.training.state import Learner, StepRules


@dataclass(frozen=True, slots=True)
class Recipe:
    """How weights are trained.

    Attributes:
        optimizer: Update rule and rates.
        schedule: Course of the rates.
        trainer: Epochs, batches and safeguards.
        rules: How a step is made on this machine.
    """

    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    trainer: TrainerConfig
    rules: StepRules

    def build_learner(self, model: nn.Module, groups: list[dict[str, Any]], *, loss: Loss, batches: int) -> Learner:
        """Return what a step changes."""
        chosen = self.optimizer
        optimizer = build_optimizer(chosen.name, groups, lr=chosen.lr, momentum=chosen.momentum)
        return Learner(
            model=model,
            loss=loss,
            optimizer=optimizer,
            schedule=self.start_schedule(optimizer, batches=batches),
            scaler=build_scaler(self.rules.precision, device=self.rules.device),
            average=build_average(model, decay=self.trainer.ema_decay),
            forward=torch.compile(model) if self.trainer.compile else model,
        )

    def start_schedule(self, optimizer: Optimizer, *, batches: int) -> LambdaLR:
        """Return the schedule of trainer.epochs epochs of `batches` each, from their first step."""
        return build_schedule(
            optimizer,
            self.schedule,
            steps_per_epoch=-(-batches // self.rules.accumulate),
            epochs=self.trainer.epochs,
            max_steps=self.trainer.max_steps,
        )


def choose_rules(trainer: TrainerConfig, *, device: str, precision: str, seed: int) -> StepRules:
    """Return how a step is made; device and precision may be "auto"."""
    device = choose_device(device)
    return StepRules(
        device=device,
        precision=choose_precision(precision, device=device),
        accumulate=trainer.accumulate,
        clip_norm=trainer.clip_norm,
        max_nonfinite=trainer.max_nonfinite,
        channels_last=trainer.channels_last,
        seed=seed,
    )


def place_model(model: Classifier, recipe: Recipe, *, name: str) -> None:
    """Put the network on its device, with BatchNorm over all processes and recomputed blocks where asked for."""
    trainer = recipe.trainer
    if trainer.sync_batchnorm and count_ranks() > 1:
        if recipe.rules.device == "cpu":
            raise ConfigError("trainer.sync_batchnorm=true: torch has it only on GPUs: remove it, or set device=cuda")
        synchronize_batchnorm(model.backbone)
    move_model(model, recipe.rules)
    if trainer.activation_checkpointing and not recompute_blocks(model.backbone.stages):
        raise ConfigError(f"trainer.activation_checkpointing=true: {name} has no blocks to recompute: remove it")


def group_parameters(
    model: Classifier, plans: list[StagePlan], optimizer: OptimizerConfig, clinical: ClinicalConfig
) -> list[dict[str, Any]]:
    """Return the trained parameters of the network, each stage with its rate and weight decay."""
    groups = build_parameter_groups(model, plans, lr=optimizer.lr, weight_decay=optimizer.weight_decay)
    return groups + build_wide_group(model, lr=optimizer.lr, lr_scale=clinical.lr_scale, l2=clinical.l2)


def build_sampler(data: TrainingData, *, batch_size: int, seed: int, balanced: bool = False) -> EpochSampler:
    """Return the order of the training images, balanced by class where asked."""
    targets = data.train.targets.numpy().astype(np.float64)
    weights = balance_weights(targets) if balanced else None
    size = min(batch_size, len(data.train))
    # BatchNorm cannot take a batch of one image, which pairs of an odd number of images would end in.
    size += size == 2 and len(data.train) % 2
    return EpochSampler(len(data.train), batch_size=size, seed=seed, shuffle=True, weights=weights, part=get_part())


def build_task_loss(config: TaskConfig, model: ModelConfig, data: TrainingData, *, unit: float) -> Loss:
    """Return the training loss of the task, with class weights from the training rows where asked."""
    weights = None
    if config.class_weights == "balanced":
        targets = data.train.targets.numpy().astype(np.float64)
        weights = balanced_weights(data.task.output, targets, num_classes=data.task.num_classes)
    settings = LossSettings(
        name=config.loss,
        class_weights=weights,
        focal_gamma=config.focal_gamma,
        label_smoothing=config.label_smoothing,
        joint_lambda=config.joint_lambda,
        scale=unit,
    )
    loss = build_loss(data.task.output, settings)
    return supervise_deeply(loss, model.supervision) if model.supervision else loss
