"""Pretrain an autoencoder on a store of volumes. It needs no labels and never reads the test split."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from medcls.config import PretrainJob
from medcls.console import say
from medcls.data.dataset import Batch
from medcls.data.limits import check_room
from medcls.data.loaders import EpochSampler, build_loader, choose_workers
from medcls.distributed import add_up, count_ranks, first_goes_ahead, get_part, is_first, join_ranks
from medcls.errors import ConfigError
from medcls.files import MODEL, RECONSTRUCTIONS, sha256_json
from medcls.models.autoencoder import CLASSIFIER_OF, Autoencoder, build_autoencoder
from medcls.models.normalization import VolumeNormalization
from medcls.models.pooling import list_nondeterministic
from medcls.models.transfer import build_parameter_groups, choose_first_epochs, plan_transfer
from medcls.pretrain.pretraining_data import PretrainingData, open_volumes
from medcls.pretrain.reconstructions import draw_reconstructions
from medcls.reproducibility import describe_environment, seed_everything
from medcls.runs.checksums import finish_run
from medcls.runs.lineage import hash_seen
from medcls.runs.model_file import ModelCard
from medcls.train.claim import hold_run, start_run
from medcls.train.learner import assemble_learner, choose_rules, start_schedule
from medcls.train.network import choose_normalization
from medcls.train.resume import check_space, delete_checkpoints, keep_checkpoints, resume_training
from medcls.train.same_data import confirm_finished
from medcls.train.training_data import look_at_data, read_domain, write_seen
from medcls.training.checkpoint_manager import CheckpointManager
from medcls.training.forward import move_model, predict_pieces
from medcls.training.loop import NonFiniteError, run_epochs
from medcls.training.losses import Loss, build_reconstruction_loss
from medcls.training.state import Best, Feed, Learner, Progress, RunPlan, StepRules
from medcls.training.tracking import Tracker


def pretrain(job: PretrainJob) -> str:
    """Train one autoencoder, or finds it finished; returns the command that starts from it."""
    with join_ranks(), hold_run(job) as (run, finished):
        if finished:
            confirm_finished(job, run)
        else:
            _pretrain(job, run)
    return f"python -m medcls.train store=TARGET run=DIR model={CLASSIFIER_OF[job.model.name]} model.weights={job.run}"


def _pretrain(job: PretrainJob, run: Path) -> None:
    rules = choose_rules(job)
    seed_everything(job.seed)
    with first_goes_ahead():
        data = open_volumes(job)
        model = build_model(job, data)
        learner = build_learner(job, data, model=model, rules=rules)
        build_validation_sampler(job, data)  # fewer volumes than processes are found now, not after the first epoch
        inputs = sha256_json([data.store.sha256, data.certificate["split_sha256"]])
        environment = describe_environment(device=rules.device, precision=rules.precision)
        environment |= {"processes": count_ranks(), "not_deterministic_on_cuda": list_nondeterministic(model)}
    progress = resume_training(job, run, learner, environment=environment, inputs=inputs)
    if progress is None and is_first():
        start_run(run, job, environment=environment)
        write_seen(run, data)
        look_at_data(run, data)
        check_space(run, learner)
    progress = progress or Progress()
    with keep_checkpoints(job, run, learner, progress, rules=rules, images=data.train, inputs=inputs) as keeper:
        fit(job, data, keeper=keeper, model=model)
    if is_first():
        take_best(job, model, progress.best)
        draw_reconstructions(run / RECONSTRUCTIONS, model, data.inputs[1], count=job.figures, rules=rules)
        write_best(job, run, data=data, model=model, best=progress.best)
        delete_checkpoints(run)


def build_model(job: PretrainJob, data: PretrainingData) -> Autoencoder:
    """Return the autoencoder of the store's volumes, with random weights.

    Raises:
        ConfigError: no autoencoder, or values below zero for one that cannot return them.
    """
    spec = data.store.spec
    kind = choose_normalization(job.model.normalize, spec)
    if job.is_paper and kind == "z_score":
        raise ConfigError(
            f"model.normalize={kind}: {job.model.name} ends in a ReLU, which gives no values below zero: set "
            f"model.normalize=min_max"
        )
    normalize = VolumeNormalization(kind, spec.value_range)
    model = build_autoencoder(job.model.name, in_channels=spec.channels, normalize=normalize)
    model.recompute = job.trainer.activation_checkpointing
    levels = ", ".join(
        f"{name} {sum(p.numel() for p in level.parameters()):,d}" for name, level in model.stages.items()
    )
    say(
        f"autoencoder {job.model.name}: {levels} parameters; {'level by level' if job.greedy else 'all levels at once'}"
    )
    return model


def build_learner(job: PretrainJob, data: PretrainingData, *, model: Autoencoder, rules: StepRules) -> Learner:
    """Put the model on its device and give it loss, optimizer, schedule and scaler."""
    move_model(model, rules)
    every = choose_first_epochs(list(model.stages), kind="scratch")
    plans = plan_transfer(model, every, layer_decay=1.0, batchnorm="train")
    groups = build_parameter_groups(model, plans, lr=job.optimizer.lr, weight_decay=job.optimizer.weight_decay)
    batches = len(build_sampler(job, data))
    loss = build_reconstruction_loss(job.loss_name)
    return assemble_learner(job, model, groups=groups, loss=loss, batches=batches, rules=rules)


def build_sampler(job: PretrainJob, data: PretrainingData) -> EpochSampler:
    """Return the order of the training volumes."""
    size = min(job.trainer.batch_size, len(data.train))
    return EpochSampler(len(data.train), batch_size=size, seed=job.seed, shuffle=True, part=get_part())


def build_validation_sampler(job: PretrainJob, data: PretrainingData) -> EpochSampler:
    """Return this process's part of the validation volumes, in the store's order."""
    size = min(job.trainer.batch_size, len(data.val))
    return EpochSampler(len(data.val), batch_size=size, part=get_part())


def fit(job: PretrainJob, data: PretrainingData, *, keeper: CheckpointManager, model: Autoencoder) -> None:
    """Train all levels at once, or each for trainer.epochs with the best weights of those below it."""
    learner, progress, rules = keeper.learner, keeper.progress, keeper.rules
    evaluated = learner.evaluated
    workers = choose_workers(job.workers, device=rules.device)
    sampler, held_out = build_sampler(job, data), build_validation_sampler(job, data)
    check_room(data.train, workers=workers, batch_size=sampler.batch_size, copies=2 if data.corruption else 1)
    levels = len(model.stages) if job.greedy else 1

    def set_modes(epoch: int) -> None:
        level = epoch // job.trainer.epochs if job.greedy else None
        train_level(model, level)
        if isinstance(evaluated, Autoencoder):
            evaluated.choose_level(level)

    def after_epoch(epoch: int) -> None:
        # A level ends with its epochs, or with its patience; the next one starts from its best epoch.
        level, done = divmod(epoch, job.trainer.epochs)
        waited = job.trainer.patience is not None and epoch - progress.best.epoch >= job.trainer.patience
        if level + 1 < levels and (done + 1 == job.trainer.epochs or waited):
            start_level(job, learner, progress, epoch=(level + 1) * job.trainer.epochs)
            learner.schedule = start_schedule(
                job, learner.optimizer, batches=len(build_sampler(job, data)), rules=rules
            )

    inputs = data.inputs
    plan = RunPlan(
        train=Feed(build_loader(inputs[0], sampler, workers=workers, device=rules.device), sampler),
        val=Feed(build_loader(inputs[1], held_out, workers=workers, device=rules.device), held_out),
        epochs=levels * job.trainer.epochs,
        max_steps=job.trainer.max_steps,
        patience=job.trainer.patience,
        set_modes=set_modes,
        validate=partial(validate, data=data, rules=rules, loss=learner.loss),
        after_epoch=after_epoch,
    )
    sink = Tracker(keeper.run, job.trainer) if is_first() else None
    run_epochs(learner, progress, plan, rules=rules, keeper=keeper, sink=sink)


def train_level(model: Autoencoder, level: int | None) -> None:
    """Put one level (None = all) into training mode and keep the others as they are."""
    model.choose_level(level)
    model.train()
    for depth, stage in enumerate(model.stages.values()):
        stage.requires_grad_(level is None or depth == level)


def start_level(job: PretrainJob, learner: Learner, progress: Progress, *, epoch: int) -> None:
    """Take the best weights of the level that ends, and set the mark for the next one's best."""
    best = progress.best
    if best.state is None:
        raise NonFiniteError(describe_overflow(job))
    learner.evaluated.load_state_dict(best.state)
    learner.model.load_state_dict(best.state)
    # Patience counts from here.
    progress.epoch, progress.best = epoch, Best(epoch=epoch - 1)


def describe_overflow(job: PretrainJob) -> str:
    """Return what to say where no epoch gave a finite loss."""
    return (
        f"no epoch gave a finite loss={job.loss_name} on the validation volumes: lower optimizer.lr, set "
        "trainer.clip_norm, or precision=fp32"
    )


@torch.inference_mode()
def validate(
    model: nn.Module, batches: Iterable[Batch], *, data: PretrainingData, rules: StepRules, loss: Loss
) -> tuple[float, dict[str, float]]:
    """Return the negative mean loss over the validation volumes, which chooses the best epoch, and what to log."""
    model.eval()
    total = 0.0
    for batch, pairs in predict_pieces(model, batches, rules):
        total += float(loss(pairs, batch.targets)) * len(batch.images)
    mean = add_up(total)[0] / len(data.val)
    level = {} if getattr(model, "level", None) is None else {"level": float(model.level)}  # type: ignore[arg-type]
    return (-mean if math.isfinite(mean) else math.nan), {"val_loss": mean, **level}


def take_best(job: PretrainJob, model: Autoencoder, best: Best) -> None:
    """Put the weights of the best epoch into the model.

    Raises:
        NonFiniteError: no epoch gave finite outputs.
    """
    if best.state is None:
        raise NonFiniteError(describe_overflow(job))
    model.load_state_dict(best.state)


def write_best(job: PretrainJob, run: Path, *, data: PretrainingData, model: Autoencoder, best: Best) -> None:
    """Write model.safetensors, last of all: a run with a model file is a finished run."""
    spec = data.store.spec
    card = ModelCard(
        architecture=job.model.name,
        dropout=0.0,
        in_channels=spec.channels,
        max_value=int(spec.value_range[1]),
        task=data.task,
        preprocess=spec,
        store_sha256=data.store.sha256,
        split_name=job.split.name,
        split_sha256=data.certificate["split_sha256"],
        labels_sha256="",
        training=describe_training(job, data, best),
        domain=read_domain(data),
        deidentify=data.store.info["deidentify"],
        seen_sha256=hash_seen(run),
        normalize=choose_normalization(job.model.normalize, spec),
    )
    finish_run(run, model.state_dict(), card)
    say(f"model {run / MODEL}: epoch {best.epoch + 1}, validation {job.loss_name} {-best.score:.4g}")


def describe_training(job: PretrainJob, data: PretrainingData, best: Best) -> dict[str, Any]:
    """Return what the card says of how it was made."""
    return {
        "stacking": "greedy" if job.greedy else "joint",
        "loss": job.loss_name,
        "corruption": job.corruption.kind,
        "patch": list(job.patch.size),
        "seed": job.seed,
        "best_epoch": best.epoch + 1,
        "score": -best.score,
        "train_images": len(data.train),
        "val_images": len(data.val),
    }
