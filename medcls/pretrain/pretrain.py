"""Pretrain an autoencoder on a store of volumes. It needs no labels and never reads the test split."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn

from medcls.config import ModelConfig, PretrainJob
from medcls.console import say
from medcls.data.dataset import Batch
from medcls.data.limits import check_room
from medcls.data.loaders import EpochSampler, choose_workers
from medcls.distributed import add_up, first_goes_ahead, get_part, is_first, join_ranks
from medcls.errors import ConfigError
from medcls.files import CHECKPOINTS, MODEL, RECONSTRUCTIONS, delete_folder, sha256_json
from medcls.imaging.decode import Spec
from medcls.models.autoencoder import CLASSIFIER_OF, Autoencoder, build_autoencoder
from medcls.models.normalization import VolumeNormalization
from medcls.models.transfer import build_parameter_groups, choose_first_epochs, plan_transfer
from medcls.pretrain.pretraining_data import PretrainingData, open_volumes
from medcls.pretrain.reconstructions import draw_reconstructions
from medcls.reproducibility import seed_everything
from medcls.runs.checksums import finish_run, open_store
from medcls.train.claim import confirm_finished, hold_run, request_run
from medcls.train.learner import Recipe, choose_rules
from medcls.train.network import choose_normalization
from medcls.train.session import Session, describe_model, describe_process
from medcls.training.forward import move_model, predict_pieces
from medcls.training.loop import NonFiniteError
from medcls.training.losses import Loss, build_reconstruction_loss
from medcls.training.state import Best, Learner, Progress, RunPlan, StepRules, build_feed


def pretrain(job: PretrainJob) -> str:
    """Train one autoencoder, or find it finished; return the command that starts from it."""
    asked = request_run(job)
    run = asked.folder
    with join_ranks(), hold_run(asked) as finished:
        if finished:
            confirm_finished(asked)
            return name_next(job.model.name, run)
        rules = choose_rules(job.trainer, device=job.device, precision=job.precision, seed=job.seed)
        recipe = Recipe(job.optimizer, job.schedule, job.trainer, rules)
        seed_everything(job.seed)

        with first_goes_ahead():
            data = open_volumes(
                open_store(asked.store),
                asked.split,
                patch=job.patch,
                augment=job.augment,
                corruption=job.corruption,
                seed=job.seed,
            )
            model = build_model(job.model, data.store.spec, is_paper=job.is_paper, greedy=job.greedy)
            model.recompute = job.trainer.activation_checkpointing
            size, part = job.trainer.batch_size, get_part()
            train_size = min(size, len(data.train))
            sampler = EpochSampler(len(data.train), batch_size=train_size, seed=job.seed, shuffle=True, part=part)
            learner = build_learner(model, recipe, loss=build_reconstruction_loss(job.loss_name), batches=len(sampler))
            # Fewer volumes than processes are found now, not after the first epoch.
            held_out = EpochSampler(len(data.val), batch_size=min(size, len(data.val)), part=part)
            inputs = sha256_json([data.store.sha256, data.certificate["split_sha256"]])
            session = Session(asked, data, learner, recipe, inputs, describe_process(model, rules))

        progress = session.begin()
        workers = choose_workers(job.workers, device=rules.device)
        check_room(data.train, workers=workers, batch_size=train_size, copies=2 if data.corruption else 1)
        levels = LevelSequence(
            model, learner, recipe, progress, greedy=job.greedy, loss=job.loss_name, batches=len(sampler)
        )
        plan = RunPlan(
            train=build_feed(data.inputs[0], sampler, workers=workers, device=rules.device),
            val=build_feed(data.inputs[1], held_out, workers=workers, device=rules.device),
            epochs=job.trainer.epochs * (len(model.stages) if job.greedy else 1),
            max_steps=job.trainer.max_steps,
            patience=job.trainer.patience,
            set_modes=levels.set_modes,
            validate=partial(validate, data=data, rules=rules, loss=learner.loss),
            after_epoch=levels.after_epoch,
        )
        session.run(progress, plan, job.checkpoint)
        if not is_first():
            return name_next(job.model.name, run)

        best = progress.best
        if best.state is None:
            raise NonFiniteError(describe_overflow(job.loss_name))
        model.load_state_dict(best.state)
        draw_reconstructions(run / RECONSTRUCTIONS, model, data.inputs[1], count=job.figures, rules=rules)
        training = {
            "stacking": "greedy" if job.greedy else "joint",
            "loss": job.loss_name,
            "corruption": job.corruption.kind,
            "patch": list(job.patch.size),
            "score": -best.score,
        }
        # Last of all: a run with a model file is a finished run.
        finish_run(run, model.state_dict(), describe_model(session, job.model, best, training))
        say(f"model {run / MODEL}: epoch {best.epoch + 1}, validation {job.loss_name} {-best.score:.4g}")
        delete_folder(run / CHECKPOINTS)
    return name_next(job.model.name, run)


def name_next(model: str, run: Path) -> str:
    """Return the command that starts from a pretrained model."""
    return f"python -m medcls.train store=TARGET run=DIR model={CLASSIFIER_OF[model]} model.weights={run}"


def build_model(config: ModelConfig, spec: Spec, *, is_paper: bool, greedy: bool) -> Autoencoder:
    """Return the autoencoder of a store's volumes, with random weights.

    Raises:
        ConfigError: no autoencoder, or values below zero for one that cannot return them.
    """
    kind = choose_normalization(config.normalize, spec)
    if is_paper and kind == "z_score":
        raise ConfigError(
            f"model.normalize={kind}: {config.name} ends in a ReLU, which gives no values below zero: set "
            f"model.normalize=min_max"
        )
    normalize = VolumeNormalization(kind, spec.value_range)
    model = build_autoencoder(config.name, in_channels=spec.channels, normalize=normalize)
    sizes = {name: sum(p.numel() for p in level.parameters()) for name, level in model.stages.items()}
    levels = ", ".join(f"{name} {size:,d}" for name, size in sizes.items())
    say(f"autoencoder {config.name}: {levels} parameters; {'level by level' if greedy else 'all levels at once'}")
    return model


def build_learner(model: Autoencoder, recipe: Recipe, *, loss: Loss, batches: int) -> Learner:
    """Put the model on its device and give it loss, optimizer, schedule and scaler."""
    move_model(model, recipe.rules)
    every = choose_first_epochs(list(model.stages), kind="scratch")
    plans = plan_transfer(model, every, layer_decay=1.0, batchnorm="train")
    chosen = recipe.optimizer
    groups = build_parameter_groups(model, plans, lr=chosen.lr, weight_decay=chosen.weight_decay)
    return recipe.build_learner(model, groups, loss=loss, batches=batches)


@dataclass(slots=True)
class LevelSequence:
    """The levels of an autoencoder in training: all at once, or each for trainer.epochs on the best of those below.

    Attributes:
        model: The autoencoder.
        learner: What is trained.
        recipe: How.
        progress: Where it is.
        greedy: Whether levels are trained one after the other.
        loss: Name of the loss.
        batches: Batches of an epoch.
    """

    model: Autoencoder
    learner: Learner
    recipe: Recipe
    progress: Progress
    greedy: bool
    loss: str
    batches: int

    def set_modes(self, epoch: int) -> None:
        """Put the level of an epoch (or all) into training mode and keep the others as they are."""
        level = epoch // self.recipe.trainer.epochs if self.greedy else None
        self.model.choose_level(level)
        self.model.train()
        for depth, stage in enumerate(self.model.stages.values()):
            stage.requires_grad_(level is None or depth == level)
        if isinstance(self.learner.evaluated, Autoencoder):
            self.learner.evaluated.choose_level(level)

    def after_epoch(self, epoch: int) -> None:
        """Start the next level where this one ends: with its epochs, or with its patience."""
        trainer, best = self.recipe.trainer, self.progress.best
        level, done = divmod(epoch, trainer.epochs)
        waited = trainer.patience is not None and epoch - best.epoch >= trainer.patience
        last = not self.greedy or level + 1 == len(self.model.stages)
        if not last and (waited or done + 1 == trainer.epochs):
            self.start_level(epoch=(level + 1) * trainer.epochs)

    def start_level(self, *, epoch: int) -> None:
        """Take the best weights of the level that ends, and set the mark for the next one's best."""
        learner, best = self.learner, self.progress.best
        if best.state is None:
            raise NonFiniteError(describe_overflow(self.loss))
        learner.evaluated.load_state_dict(best.state)
        learner.model.load_state_dict(best.state)
        # Patience counts from here.
        self.progress.epoch, self.progress.best = epoch, Best(epoch=epoch - 1)
        learner.schedule = self.recipe.start_schedule(learner.optimizer, batches=self.batches)


def describe_overflow(loss: str) -> str:
    """Return what to say where no epoch gave a finite loss."""
    return (
        f"no epoch gave a finite loss={loss} on the validation volumes: lower optimizer.lr, set "
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
    metrics = {"val_loss": mean}
    level = getattr(model, "level", None)
    if level is not None:
        metrics["level"] = float(level)
    return (-mean if math.isfinite(mean) else math.nan), metrics
