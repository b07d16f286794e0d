"""Train a classifier on a store. It transfers, fine-tunes, and never reads the test split."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from medcls.config import AugmentConfig, TaskConfig, TrainerConfig, TrainJob
from medcls.console import say
from medcls.data.dataset import Batch
from medcls.data.limits import check_room
from medcls.data.loaders import EpochSampler, choose_workers
from medcls.data.splits import VAL
from medcls.distributed import first_goes_ahead, get_part, is_first, join_ranks
from medcls.files import CHECKPOINTS, MODEL, delete_folder, sha256_json
from medcls.models.backbones import CLINICAL
from medcls.models.classifier import Classifier, FeatureClassifier
from medcls.models.heads import compute_scores
from medcls.models.transfer import set_train_mode
from medcls.reproducibility import seed_everything
from medcls.runs.checksums import finish_run, open_store
from medcls.runs.lineage import Lineage, write_lineage
from medcls.statistics.metrics import compute_metrics
from medcls.statistics.predictions import check_predictions
from medcls.statistics.selection import choose_score, describe_score, resolve_metric, unscore
from medcls.train.cached_features import cache_features, choose_features, describe_inputs, list_views
from medcls.train.claim import confirm_finished, hold_run, request_run
from medcls.train.learner import Recipe, build_sampler, build_task_loss, choose_rules, group_parameters, place_model
from medcls.train.network import check_lineage, choose_normalization, plan_network, start_network
from medcls.train.odds_ratios import write_odds
from medcls.train.session import Session, describe_model, describe_process
from medcls.train.solved_head import SOLVERS, find_solver, solve_logistic, solve_svm
from medcls.train.training_data import TrainingData, Variation, open_data
from medcls.train.training_distance import write_training_distance
from medcls.train.voxel_baseline import write_baseline
from medcls.training.forward import PredictOptions, predict_logits
from medcls.training.loop import NonFiniteError
from medcls.training.losses import LossSettings, build_loss
from medcls.training.state import Best, RunPlan, StepRules, build_feed
from medcls.training.tracking import Tracker


def train(job: TrainJob) -> None:
    """Train one run: data, model, loop, model file; a finished run of the same settings is left as it is."""
    asked = request_run(job)
    run = asked.folder
    with join_ranks(), hold_run(asked) as finished:
        if finished:
            confirm_finished(asked)
            return
        rules = choose_rules(job.trainer, device=job.device, precision=job.precision, seed=job.seed)
        recipe = Recipe(job.optimizer, job.schedule, job.trainer, rules)
        metric = resolve_metric(job.task.metric, job.task.kind)
        seed_everything(job.seed)

        # What the run learns from, and what a step changes.
        with first_goes_ahead():
            varied = Variation(job.crop, announce_augment(job.model.name, job.augment, job.augmented), job.seed)
            data = open_data(open_store(asked.store), asked.split, task=job.task, varied=varied, clinical=job.clinical)
            started = start_network(job.model, data, weights_dir=job.weights_dir, seed=job.seed, l2=job.clinical.l2)
            network, lineage = started.model, started.lineage
            check_lineage(data, lineage, split_name=asked.split, val_seen=job.transfer.val_seen)
            stage_plans = plan_network(started, job.transfer, init=job.model.init, recipe=recipe, clinical=job.clinical)
            cached = choose_features(stage_plans, model=job.model, transfer=job.transfer, varies=job.varies, run=run)
            soft, columns = data.train.has_soft_targets, data.clinical is not None
            solver = find_solver(job.model, job.task, clinical=columns, cached=cached, soft=soft)
            place_model(network, recipe, name=job.model.name)
            balanced = job.task.sampler == "balanced"
            sampler = build_sampler(data, batch_size=job.trainer.batch_size, seed=job.seed, balanced=balanced)
            learner = recipe.build_learner(
                FeatureClassifier(network) if cached else network,
                group_parameters(network, stage_plans, job.optimizer, job.clinical),
                loss=build_task_loss(job.task, job.model, data, unit=float(network.head.scale)),
                batches=len(sampler),
            )
            # A dry run of the validation: a metric that the task does not have is found now, not after an epoch.
            score_logits(job.task, torch.zeros(len(data.val), network.head.linear.out_features), data=data, unit=1.0)
            # Without gradients twice as many images fit. Fewer images than processes are refused here.
            held_out = EpochSampler(len(data.val), batch_size=2 * job.trainer.batch_size, part=get_part())
            options = PredictOptions(rules, held_out.batch_size, choose_workers(job.workers, device=rules.device))
            input_checksums = [data.store.sha256, data.certificate["split_sha256"], data.labels_sha256, lineage.content]
            environment = describe_process(network, rules)
            session = Session(asked, data, learner, recipe, sha256_json(input_checksums), environment)

        def write_more(run: Path) -> None:
            write_lineage(run, lineage)
            if job.baseline and data.store.spec.spatial_dims == 3:
                write_baseline(run, data, metric=metric, seed=job.seed)

        progress = session.begin(write_more)
        if cached:
            with first_goes_ahead():
                normalize = choose_normalization(job.model.normalize, data.store.spec)
                features_key = describe_inputs(
                    network, job.crop, architecture=job.model.name, normalize=normalize, store=data.store, rules=rules
                )
                views = list_views(data.train, job.varies * (job.transfer.views or 1))
                # From here on the inputs are features.
                data.features = cache_features(
                    run, data=data, model=network, key=features_key, views=views, options=options
                )

        if solver:
            best = solve(session, solver, network, lineage, job.task)
        else:
            # Features are read faster than a process could hand them over.
            workers = 0 if cached else options.workers
            # Validation takes twice as many images at once.
            check_room(data.train, workers=workers, batch_size=2 * sampler.batch_size)
            run_plan = RunPlan(
                train=build_feed(data.inputs[0], sampler, workers=workers, device=rules.device),
                val=build_feed(data.inputs[1], held_out, workers=workers, device=rules.device),
                epochs=job.trainer.epochs,
                max_steps=job.trainer.max_steps,
                patience=job.trainer.patience,
                set_modes=lambda epoch: set_train_mode(network, stage_plans, epoch=epoch),
                validate=partial(validate, job.task, data=data, rules=rules),
            )
            session.run(progress, run_plan, job.checkpoint)
            best = progress.best
        if not is_first():
            return
        state, distance = measure_best(
            session, network, best, options=options, l2=job.clinical.l2, sees_images=job.model.name != CLINICAL
        )
        training = {
            "transfer": job.transfer.kind,
            "init": job.model.init if job.model.weights else "random",
            "metric": metric,
            "score": unscore(metric, best.score),
            "augment": data.augment,
            "patients_from": data.store.patients_from or "not recorded",
        }
        card = replace(
            describe_model(session, job.model, best, training),
            ancestors=lineage.models,
            options=network.backbone.options,
            head=job.model.head_kind,
            head_width=job.model.head_width if job.model.head == "mlp" else 0,
            distance_sha256=distance,
        )
        finish_run(run, state, card)
        say(f"model {run / MODEL}: epoch {best.epoch + 1}, validation {describe_score(metric, best.score)}")
        delete_folder(run / CHECKPOINTS)


def announce_augment(model: str, asked: AugmentConfig, effective: AugmentConfig) -> AugmentConfig:
    """Return the augmentation of the training images, none where no image is looked at; say why it is left out."""
    if model == CLINICAL:
        return AugmentConfig()
    if asked.auto and not effective.auto:
        say("augment=auto: none, since features of a frozen network are computed once; transfer.views=K adds K views")
    return effective


def measure_best(
    session: Session, network: Classifier, best: Best, *, options: PredictOptions, l2: float, sees_images: bool
) -> tuple[dict[str, Tensor], str]:
    """Write what belongs to the weights of the best epoch: odds ratios, and the distance from the training images.

    Returns:
        All weights of the network, and the checksum of the file of distances, "" without one.

    Raises:
        NonFiniteError: no epoch gave finite outputs.
    """
    run, data, model = session.asked.folder, session.data, session.learner.model
    if best.state is None:
        raise NonFiniteError(
            "no epoch gave finite outputs on the validation images: lower optimizer.lr, set trainer.clip_norm, or "
            "precision=fp32"
        )
    if data.clinical is not None:
        model.load_state_dict(best.state)
        write_odds(run, data=data, model=model, options=options, l2=l2, seed=session.recipe.rules.seed)
    # With cached features only what is above the backbone was trained.
    state = network.state_dict() | best.state
    distance = ""
    if sees_images:
        distance = write_training_distance(run, data=data, model=network, state=state, options=options)
    return state, distance


def solve(session: Session, solver: str, model: Classifier, lineage: Lineage, config: TaskConfig) -> Best:
    """Solve a head that has no epochs, and return it as the only one, with the score that it has on validation."""
    data, seed = session.data, session.recipe.rules.seed
    start = time.perf_counter()
    say(f"the head is solved, not trained ({SOLVERS[solver]}): optimizer.*, schedule.* and trainer.* have no effect")
    if solver == "svm":
        chosen = solve_svm(data, model, lineage, seed=seed)
    else:
        chosen = solve_logistic(data, model, lineage, balanced=config.class_weights == "balanced", seed=seed)
    trained = FeatureClassifier(model).eval()
    val = data.features[VAL]
    with torch.inference_mode():
        logits = trained(torch.from_numpy(val.views[0].read(val.rows)).to(model.head.scale.device)).cpu()
    score, metrics = score_logits(config, logits, data=data, unit=float(model.head.scale))
    if is_first():
        tracker = Tracker(session.asked.folder, TrainerConfig())
        tracker.write({"epoch": 1, solver: chosen, "seconds": time.perf_counter() - start, **metrics})
        tracker.close()
    best = Best()
    best.update(score, 0, trained)
    return best


def validate(
    config: TaskConfig, model: nn.Module, batches: Iterable[Batch], *, data: TrainingData, rules: StepRules
) -> tuple[float, dict[str, float]]:
    """Return the score that chooses the best epoch and the validation metrics for the log."""
    logits = torch.from_numpy(predict_logits(model, batches, rules, total=len(data.val)))
    if not logits.isfinite().all():
        # A network that overflows here may recover; its epoch is logged and never kept.
        return math.nan, {"val_loss": math.nan, "val_score": math.nan}
    return score_logits(config, logits, data=data, unit=float(model.head.scale))  # type: ignore[union-attr, arg-type]


def score_logits(
    config: TaskConfig, logits: Tensor, *, data: TrainingData, unit: float
) -> tuple[float, dict[str, float]]:
    """Return what `validate` returns, of logits (N, L) of the validation images."""
    # Without smoothing and class weights, which belong to training; in the same unit as the training loss.
    settings = LossSettings(config.loss, focal_gamma=config.focal_gamma, joint_lambda=config.joint_lambda, scale=unit)
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
    score = choose_score(config.metric, metrics, loss=loss, kind=config.kind)
    return score, {"val_loss": loss, "val_score": score, **{f"val_{k}": v for k, v in metrics.items()}}
