"""The evaluation stage: a run and a split to predictions, metrics with intervals, and report.html."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from medcls.command_line import put, say
from medcls.config import EvaluateJob
from medcls.data.targets import describe_positive
from medcls.errors import ConfigError, DataError, UsageError
from medcls.evaluation.assessment import assess, describe_rows
from medcls.evaluation.decision import describe_calls
from medcls.evaluation.evaluation import Evaluation
from medcls.evaluation.gallery import choose_worst
from medcls.evaluation.intervals import compute_intervals
from medcls.evaluation.paired import compare_predictions
from medcls.evaluation.report import REPORT, write_report
from medcls.files import ENVIRONMENT, ODDS_RATIOS, read_json, write_json
from medcls.models.backbones import CLINICAL
from medcls.stages.ensemble import Member, open_members, predict_members, read_run_card
from medcls.stages.evaluation_data import open_rows
from medcls.stages.frozen_choices import Choices, freeze_choices
from medcls.stages.report_explanations import read_explanations
from medcls.stages.report_facts import (
    describe_flow,
    describe_splits,
    describe_study,
    draw_gallery,
    read_subgroup_columns,
)
from medcls.stages.report_runs import (
    describe_ensemble,
    describe_model,
    describe_openings,
    list_runs,
    list_sheets,
    read_configs,
    read_history,
)
from medcls.stages.robustness import measure_robustness
from medcls.stages.shortcuts import measure_shortcuts
from medcls.stages.split_predictions import SplitPredictions, predict_split, values_of
from medcls.stages.voxel_baseline import describe_baseline, measure_baseline

METRICS = "metrics.json"
HEADLINES = frozenset(
    {"auc", "average_precision", "accuracy", "balanced_accuracy", "sensitivity", "specificity", "f1"}
    | {"quadratic_kappa", "mae", "mse", "rmse", "r2", "pearson", "spearman", "brier", "log_loss", "ece"}
)


def evaluate(job: EvaluateJob) -> None:
    """Evaluates one run, or several together, on one split and prints the metrics and the report's path.

    What has to be chosen (thresholds, recalibration, how images become patients) is chosen on the validation split
    and written into the run (of several: into out=) before another split is opened.
    """
    members = open_members(job)
    first = members[0]
    check_sees_images(job, members)
    choices = freeze_choices(job, members)
    other = open_other(job, like=first) if job.against else None
    predictions = choices.decide_rows(predict_members(job, members))
    metrics = measure(job, predictions, choices)
    positive = describe_positive(first.card.task, recorded=bool(first.card.positive_class))
    if positive:
        say(positive)
    notes = [positive.removeprefix("notice: ")] if positive.startswith("notice") else []
    notes += list(dict.fromkeys(note for member in members for note in member.opened.notes)) + choices.notes
    notes += [describe_openings(predictions.parts, split=job.split), *describe_ensemble(predictions.parts)]
    notes += describe_calls(predictions.rows.predictions)
    columns, absent = read_subgroup_columns(predictions, job.subgroups)
    if absent:
        notes.append(f"no subgroups by {', '.join(absent)}: the store has no such column")
    metrics |= assess(
        predictions.rows,
        operating=choices.operating,
        calibration=choices.calibration,
        columns=columns,
        prevalences=job.prevalences,
        least_patients=job.least_patients,
        replicates=job.replicates,
        seed=job.seed,
    )
    if other is not None:
        metrics["comparison"] = compare_runs(job, predictions, other)
    metrics |= measure_beside(job, predictions)
    write_json(predictions.folder / METRICS, metrics)
    written = predictions.folder / METRICS
    if job.report:
        written = report_results(job, predictions, metrics=metrics, choices=choices, notes=notes)
    elif (predictions.folder / REPORT).is_file():
        say(f"notice: {predictions.folder / REPORT} is of an earlier evaluation; report=true writes it anew")
    put(format_metrics(metrics, split=job.split, calls=describe_calls(predictions.rows.predictions)))
    put(f"{written.stem}: {written}")


def check_sees_images(job: EvaluateJob, members: Sequence[Member]) -> None:
    """Raises ConfigError where what is asked for is of images, and a run looks at none."""
    blind = [member.run for member in members if member.card.architecture == CLINICAL]
    if blind and (job.robustness or job.shortcuts):
        raise ConfigError(f"robustness and shortcuts are of images, and run={blind[0]} looks at none (model=clinical)")


def measure_beside(job: EvaluateJob, predictions: SplitPredictions) -> dict[str, Any]:
    """Returns what stands beside the metrics: what was asked for, and what training left in the run."""
    found: dict[str, Any] = {}
    if job.robustness:
        found["robustness"] = measure_robustness(job, predictions)
    if job.shortcuts:
        found["shortcuts"] = measure_shortcuts(job, predictions)
    baseline = measure_baseline(job, predictions)
    if baseline is not None:
        found["baseline"] = baseline
    if not predictions.members and (predictions.run / ODDS_RATIOS).is_file():
        found["odds_ratios"] = read_json(predictions.run / ODDS_RATIOS)
    return found


def measure(job: EvaluateJob, predictions: SplitPredictions, choices: Choices) -> dict[str, Any]:
    """Returns the plain metrics with intervals, the sizes, and what was chosen where."""
    rows = predictions.rows
    one = rows.predictions
    metrics: dict[str, Any] = compute_intervals(
        one.kind,
        one.y_true,
        one.y_score,
        patient_ids=rows.patient_ids,
        class_names=one.class_names,
        grades=one.grades,
        thresholds=one.thresholds,
        replicates=job.replicates,
        seed=job.seed,
    )
    chosen_on = choices.operating.get("chosen_on")
    metrics |= {
        "n_images": len(rows.patient_ids),
        "n_patients": len(set(rows.patient_ids)),
        "openings": predictions.openings,
        **({"positive_class": one.positive_class} if one.positive_class else {}),
        "chosen_on": chosen_on and {"where": describe_rows(chosen_on), **chosen_on},
        "decision": choices.decide(one).to_json(),
    }
    return metrics | list_runs(predictions.parts)


def open_other(job: EvaluateJob, *, like: Member) -> SplitPredictions:
    """Returns the predictions of the run against=, on the very same images, kept and counted there.

    Raises:
        UsageError: against= is run= itself.
        ConfigError: it has another task.
        DataError: other images; or as for the run itself.
    """
    run = Path(job.against or "")
    if run.resolve() == like.run.resolve():
        raise UsageError(f"against={run} is run= itself: name another run")
    card = read_run_card(run)
    if not card.task.asks_the_same(like.card.task):
        raise ConfigError(f"against={run} has another task than run={job.run}: only runs of one task compare")
    inner = replace(job, run=str(run), against=None, out=None)
    theirs = open_rows(inner, run, card)
    if values_of(theirs, "image_id") != values_of(like.opened, "image_id"):
        raise DataError(f"split={job.split}: run={job.run} and against={run} have different images in it")
    choices = freeze_choices(inner, [Member(run, card, theirs)])
    return choices.decide_rows(predict_split(inner, run, card=card, opened=theirs))


def compare_runs(job: EvaluateJob, predictions: SplitPredictions, other: SplitPredictions) -> dict[str, Any]:
    """Returns the paired statistics of two runs on the same images."""
    compared = compare_predictions(
        predictions.rows.predictions,
        other.rows.predictions,
        predictions.rows.patients,
        replicates=job.replicates,
        seed=job.seed,
    )
    return {"first": predictions.run.resolve().name, "second": other.run.resolve().name, **compared}


def report_results(
    job: EvaluateJob, predictions: SplitPredictions, *, metrics: dict[str, Any], choices: Choices, notes: list[str]
) -> Path:
    """Writes report.html and what goes with it, and returns its path."""
    opened, one, parts = predictions.opened, predictions.rows.predictions, predictions.parts
    explanations, explanation_notes = read_explanations(job, predictions)
    return write_report(
        predictions.folder,
        Evaluation(
            kind=one.kind,
            class_names=one.class_names,
            grades=one.grades,
            thresholds=one.thresholds,
            y_true=one.y_true,
            y_score=one.y_score,
            patient_ids=predictions.rows.patient_ids,
            metrics=metrics,
            split=job.split,
            store_name=opened.store.name,
            seed=job.seed,
            certificate=opened.certificate,
            config_yaml=read_configs(parts),
            environment=read_json(predictions.run / ENVIRONMENT),
            history=read_history(parts),
            notes=notes,
            contact_sheets=list_sheets(parts),
            flow=describe_flow(predictions, split=job.split),
            demographics=describe_splits(predictions),
            gallery=draw_gallery(predictions, choose_worst(one, count=job.gallery)),
            explanations=explanations,
            explanation_notes=explanation_notes,
            operating=choices.operating,
            model=describe_model(parts),
            facts=describe_study(predictions),
        ),
    )


def format_metrics(metrics: dict[str, Any], *, split: str, calls: Sequence[str] = ()) -> str:
    """Return the headline metrics with their intervals, one per line; metrics.json has those of each class too.

    Args:
        metrics: As in metrics.json.
        split: Name of the split.
        calls: Sentences on classes that none or all of the images were called.
    """
    lines = [f"{split}: {metrics['n_images']} images of {metrics['n_patients']} patients, 95 % intervals over patients"]
    if "positive_class" in metrics:
        lines[0] += f"; positive class {metrics['positive_class']}"
    lines += [f"  {line}" for line in (*([metrics["decision"]["words"]] if "decision" in metrics else []), *calls)]
    for name, entry in metrics.items():
        if not isinstance(entry, dict) or name not in HEADLINES:
            continue
        if entry["value"] is None:
            lines.append(f"  {name:28s} undefined: {entry.get('reason', '')}")
        else:
            interval = "" if entry["low"] is None else f"  [{entry['low']:.3f}, {entry['high']:.3f}]"
            lines.append(f"  {name:28s} {entry['value']:.3f}{interval}")
    if "baseline" in metrics:
        lines.append(describe_baseline(metrics["baseline"]))
    return "\n".join(lines)
