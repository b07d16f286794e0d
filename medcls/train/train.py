"""Train a classifier on a store. It transfers, fine-tunes, and never reads the test split."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from medcls.config import TrainerConfig, TrainJob
from medcls.console import say
from medcls.data.crops import Crop
from medcls.data.dataset import Batch
from medcls.data.limits import check_room
from medcls.data.loaders import EpochSampler, build_loader, choose_workers
from medcls.data.splits import VAL
from medcls.distributed import count_ranks, first_goes_ahead, get_part, is_first, join_ranks
from medcls.files import MODEL, sha256_json
from medcls.models.backbones import CLINICAL
from medcls.models.classifier import Classifier, FeatureClassifier
from medcls.models.heads import compute_scores
from medcls.models.pooling import list_nondeterministic
from medcls.models.transfer import set_train_mode
from medcls.reproducibility import describe_environment, seed_everything
from medcls.runs.checksums import finish_run
from medcls.runs.lineage import Lineage, hash_seen, write_lineage
from medcls.runs.model_file import ModelCard
from medcls.statistics.metrics import compute_metrics
from medcls.statistics.predictions import check_predictions
from medcls.statistics.selection import choose_score, describe_score, name_metric, unscore
from medcls.train.cached_features import cache_features, choose_features, describe_inputs, list_views
from medcls.train.claim import hold_run, start_run
from medcls.train.learner import build_learner, build_sampler, choose_rules
from medcls.train.network import build_model, choose_normalization
from medcls.train.odds_ratios import write_odds
from medcls.train.resume import check_space, delete_checkpoints, keep_checkpoints, resume_training
from medcls.train.same_data import confirm_finished
from medcls.train.solved_head import SOLVERS, find_solver, solve_logistic, solve_svm
from medcls.train.training_data import TrainingData, look_at_data, open_data, read_domain, write_seen
from medcls.train.training_distance import write_training_distance
from medcls.train.voxel_baseline import write_baseline
from medcls.training.checkpoint_manager import CheckpointManager
from medcls.training.forward import PredictOptions, predict_logits
from medcls.training.loop import NonFiniteError, run_epochs
from medcls.training.losses import LossSettings, build_loss
from medcls.training.state import Best, Feed, Progress, RunPlan, StepRules
from medcls.training.tracking import Tracker


def train(job: TrainJob) -> None:
    """Train one run: data, model, loop, model file; a finished run of the same settings is left as it is."""
    with join_ranks(), hold_run(job) as (run, finished):
        if finished:
            confirm_finished(job, run)
        else:
            _train(job, run)


def _train(job: TrainJob, run: Path) -> None:
    rules = choose_rules(job)
    seed_everything(job.seed)
    with first_goes_ahead():
        data = open_data(job)
        model, plans, lineage = build_model(job, data)
        cached = choose_features(plans, model=job.model, transfer=job.transfer, varies=job.varies, run=run)
        clinical, soft = data.clinical is not None, data.train.has_soft_targets
        solver = find_solver(job.model, job.task, clinical=clinical, cached=cached, soft=soft)
        learner = build_learner(job, data=data, model=model, plans=plans, rules=rules, cached=cached)
        # A dry run of the validation: a metric that this task does not have, and fewer images than processes, are found
        # now, not after the first epoch.
        score_logits(job, torch.zeros(len(data.val), model.head.linear.out_features), data=data, unit=1.0)
        build_validation_sampler(job, data)
        inputs = sha256_json([data.store.sha256, data.certificate["split_sha256"], data.labels_sha256, lineage.content])
        environment = describe_environment(device=rules.device, precision=rules.precision)
        environment |= {"processes": count_ranks(), "not_deterministic_on_cuda": list_nondeterministic(model)}
    progress = resume_training(job, run, learner, environment=environment, inputs=inputs)
    if progress is None and is_first():
        start_run(run, job, environment=environment)
        write_seen(run, data)
        write_lineage(run, lineage)
        look_at_data(run, data)
        if job.baseline and data.store.spec.spatial_dims == 3:
            write_baseline(run, data, metric=name_metric(job.task.metric, job.task.kind), seed=job.seed)
        check_space(run, learner)
    # Without gradients twice as many images fit.
    workers = choose_workers(job.workers, device=rules.device)
    options = PredictOptions(rules, 2 * job.trainer.batch_size, workers)
    if cached:
        with first_goes_ahead():
            key = describe_inputs(job.model, job.crop, data=data, model=model, rules=rules)
            views = list_views(data.train, (job.transfer.views or 1) if job.varies else 0)
            data.features = cache_features(run, data=data, model=model, key=key, views=views, options=options)

    def set_modes(epoch: int) -> None:
        set_train_mode(model, plans, epoch=epoch)

    if solver:
        best = solve(job, run, data=data, model=model, lineage=lineage, solver=solver)
    else:
        progress = progress or Progress()
        with keep_checkpoints(job, run, learner, progress, rules=rules, images=data.train, inputs=inputs) as keeper:
            fit(job, data=data, keeper=keeper, set_modes=set_modes)
        best = progress.best
    if is_first():
        distance = ""
        if best.state is not None and data.clinical is not None:
            learner.model.load_state_dict(best.state)
            write_odds(run, data=data, model=learner.model, options=options, l2=job.clinical.l2, seed=job.seed)
        if cached and best.state is not None:
            best.state = model.state_dict() | best.state
        if best.state is not None and job.model.name != CLINICAL:
            distance = write_training_distance(run, data=data, model=model, state=best.state, options=options)
        write_best(
            job,
            run,
            data=data,
            best=best,
            ancestors=lineage.models,
            options=model.backbone.options,
            distance_sha256=distance,
        )
        delete_checkpoints(run)


def fit(job: TrainJob, *, data: TrainingData, keeper: CheckpointManager, set_modes: Callable[[int], None]) -> None:
    """Run the loop from where it is to its end."""
    rules, sampler, held_out = keeper.rules, build_sampler(job, data), build_validation_sampler(job, data)
    workers = choose_loading(job, data, rules)
    # Validation takes twice as many images at once.
    check_room(data.train, workers=workers, batch_size=2 * sampler.batch_size)
    inputs = data.inputs
    plan = RunPlan(
        train=Feed(build_loader(inputs[0], sampler, workers=workers, device=rules.device), sampler),
        val=Feed(build_loader(inputs[1], held_out, workers=workers, device=rules.device), held_out),
        epochs=job.trainer.epochs,
        max_steps=job.trainer.max_steps,
        patience=job.trainer.patience,
        set_modes=set_modes,
        validate=partial(validate, job, data=data, rules=rules),
    )
    sink = Tracker(keeper.run, job.trainer) if is_first() else None
    run_epochs(keeper.learner, keeper.progress, plan, rules=rules, keeper=keeper, sink=sink)


def choose_loading(job: TrainJob, data: TrainingData, rules: StepRules) -> int:
    """Return the loading processes: none for features, which are read faster than a process could hand them over."""
    return 0 if data.features else choose_workers(job.workers, device=rules.device)


def solve(job: TrainJob, run: Path, *, data: TrainingData, model: Classifier, lineage: Lineage, solver: str) -> Best:
    """Solve a head that has no epochs, and return it as the only one, with the score that it has on validation."""
    start = time.perf_counter()
    say(f"the head is solved, not trained ({SOLVERS[solver]}): optimizer.*, schedule.* and trainer.* have no effect")
    if solver == "svm":
        chosen = solve_svm(data, model, lineage, seed=job.seed)
    else:
        balanced = job.task.class_weights == "balanced"
        chosen = solve_logistic(data, model, lineage, balanced=balanced, seed=job.seed)
    trained = FeatureClassifier(model).eval()
    val = data.features[VAL]
    with torch.inference_mode():
        logits = trained(torch.from_numpy(val.views[0].read(val.rows)).to(model.head.scale.device)).cpu()
    score, metrics = score_logits(job, logits, data=data, unit=float(model.head.scale))
    if is_first():
        tracker = Tracker(run, TrainerConfig())
        tracker.write({"epoch": 1, solver: chosen, "seconds": time.perf_counter() - start, **metrics})
        tracker.close()
    best = Best()
    best.update(score, 0, trained)
    return best


def build_validation_sampler(job: TrainJob, data: TrainingData) -> EpochSampler:
    """Return this process's part of the validation images, in the store's order."""
    return EpochSampler(len(data.val), batch_size=2 * job.trainer.batch_size, part=get_part())


def validate(
    job: TrainJob, model: nn.Module, batches: Iterable[Batch], *, data: TrainingData, rules: StepRules
) -> tuple[float, dict[str, float]]:
    """Return the score that chooses the best epoch and the validation metrics for the log."""
    logits = torch.from_numpy(predict_logits(model, batches, rules, total=len(data.val)))
    if not logits.isfinite().all():
        # A network that overflows here may recover; its epoch is logged and never kept.
        return math.nan, {"val_loss": math.nan, "val_score": math.nan}
    return score_logits(job, logits, data=data, unit=float(model.head.scale))  # type: ignore[union-attr, arg-type]


def score_logits(job: TrainJob, logits: Tensor, *, data: TrainingData, unit: float) -> tuple[float, dict[str, float]]:
    """Return what `validate` returns, of logits (N, L) of the validation images."""
    # Without class weights, which belong to training; in the same unit as the training loss.
    settings = LossSettings(
        job.task.loss, focal_gamma=job.task.focal_gamma, joint_lambda=job.task.joint_lambda, scale=unit
    )
    loss = float(build_loss(data.task.output, settings)(logits, data.val.targets))
    targets = data.val.targets.double().numpy()
    predictions = check_predictions(
        data.task.kind,
        targets if data.task.kind == "multilabel" else targets[:, 0],
        compute_scores(data.task.output, logits).numpy(),
        class_names=data.task.class_names,
        grades=data.task.grades,
    )
    metrics = compute_metrics(predictions)
    score = choose_score(job.task.metric, metrics, loss=loss, kind=job.task.kind)
    return score, {"val_loss": loss, "val_score": score, **{f"val_{k}": v for k, v in metrics.items()}}


def write_best(
    job: TrainJob,
    run: Path,
    *,
    data: TrainingData,
    best: Best,
    ancestors: list[dict[str, Any]],
    options: dict[str, Any],
    distance_sha256: str,
) -> None:
    """Write model.safetensors, last of all: a run with a model file is a finished run."""
    if best.state is None:
        raise NonFiniteError(
            "no epoch gave finite outputs on the validation images: lower optimizer.lr, set trainer.clip_norm, or "
            "precision=fp32"
        )
    metric = name_metric(job.task.metric, job.task.kind)
    spec = data.store.spec
    card = ModelCard(
        architecture=job.model.name,
        dropout=job.model.dropout,
        in_channels=spec.channels,
        max_value=int(spec.value_range[1]),
        task=data.task,
        preprocess=spec,
        store_sha256=data.store.sha256,
        split_name=job.split.name,
        split_sha256=data.certificate["split_sha256"],
        labels_sha256=data.labels_sha256,
        ancestors=ancestors,
        training={
            "transfer": job.transfer.kind,
            "init": job.model.init if job.model.weights else "random",
            "seed": job.seed,
            "best_epoch": best.epoch + 1,
            "metric": metric,
            "score": unscore(metric, best.score),
            "augment": data.augment,
            "train_images": len(data.train),
            "val_images": len(data.val),
            "patients_from": data.store.patients_from or "not recorded",
        },
        domain=read_domain(data),
        crop=data.train.crop if isinstance(data.train.crop, Crop) else None,
        deidentify=data.store.info["deidentify"],
        seen_sha256=hash_seen(run),
        normalize=choose_normalization(job.model.normalize, spec),
        clinical=data.clinical,
        options=options,
        head=job.model.head_kind,
        distance_sha256=distance_sha256,
        head_width=job.model.head_width if job.model.head == "mlp" else 0,
        positive_class=data.task.positive,
    )
    finish_run(run, best.state, card)
    say(f"model {run / MODEL}: epoch {best.epoch + 1}, validation {describe_score(metric, best.score)}")
