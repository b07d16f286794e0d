"""Collect the results of a comparison's runs as comparison.json and a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from medcls.compare.comparison_commands import Work, merge_overrides
from medcls.compare.comparison_folds import PlannedFold
from medcls.compare.comparison_plan import ComparisonPlan
from medcls.compare.comparison_runs import ComparisonFolder, FailedArm
from medcls.config import VOXELS, CompareJob
from medcls.console import say
from medcls.data.manifest import column_list, read_table
from medcls.errors import DataError
from medcls.evaluate.baseline import BASELINE_PREDICTIONS
from medcls.evaluate.ensemble import read_run_card
from medcls.evaluate.judged_rows import METRICS
from medcls.evaluate.split_predictions import INPUTS, PREDICTIONS
from medcls.files import METRICS_LOG, OPENED, open_seal, read_json, read_json_lines, sha256_file, write_json
from medcls.identity import name_units
from medcls.records import to_json
from medcls.report.comparison_page import ALL
from medcls.statistics.arms import FoldPredictions, assess_arms
from medcls.statistics.definitions import describe_direction
from medcls.statistics.predictions import check_predictions
from medcls.statistics.shared_metrics import choose_metrics

COMPARISON = "comparison.json"
FORMAT = 1
_RESTORE = "restore it, or remove the evaluation's folder and compare again"
NO_COST: dict[str, float | None] = {
    "train_seconds": None,
    "evaluate_seconds": None,
    "shared_seconds": None,
    "trainings": 0,
    "train_images_per_second": None,
}
_NOTE = (
    f"{VOXELS} is not a network, but the regression on coarse voxels that every training on volumes fits beside its "
    "network, on the same rows; its time is in theirs"
)


def write_results(
    job: CompareJob,
    folder: ComparisonFolder,
    plan: ComparisonPlan,
    *,
    arms: Sequence[str],
    failed: Mapping[str, FailedArm],
) -> dict[str, Any]:
    """Return what comparison.json holds; {} where no arm is whole.

    Fields: "arms", "folds", "metric", "secondary", "design" {…}, "failed"; "sizes": training images ("all", "100") ->
    {"arms": name -> {"metrics", "folds", "cost"}, "pairs": metric -> pairs} as `assess_arms` describes them.
    """
    if not arms:
        return {}
    patients_from, opened = plan.store.patients_from, folder.out / OPENED
    say(f"statistics: bootstrap over {name_units('patients', patients_from)} …")
    folds_of = {size: [fold for fold in plan.folds if fold.size == size] for size in {f.size: 0 for f in plan.folds}}
    read = {size: read_arms(folder, plan, arms, folds) for size, folds in folds_of.items()}
    metric, secondary = choose(read, asked=job.metric, secondary=job.secondary)
    sizes = {}
    for size, folds in read.items():
        try:
            found = assess_arms(
                folds,
                design=job.folds.kind,
                metrics=[metric, *secondary],
                test_share=plan.test_share,
                replicates=job.replicates,
                seed=job.seed,
            )
        except ValueError as error:
            raise DataError(f"the arms cannot be compared: {error}") from error
        for arm, entry in found["arms"].items():
            entry["cost"] = NO_COST if arm == VOXELS else measure_cost(folder, arm, plan, folds_of[size])
        sizes[ALL if size is None else str(size)] = found
    results = {
        "format": FORMAT,
        "store": plan.store.name,
        "store_sha256": plan.store.sha256,
        "arms": {arm: job.steps(arm) for arm in plan.arms if arm in arms or arm in failed},
        "common": list(merge_overrides(job.shared, []).values()),
        "metric": metric,
        "direction": describe_direction(metric),
        "positive_class": next(iter(next(iter(read.values())).values()))[0].predictions.positive_class,
        "secondary": secondary,
        "patients_from": patients_from,
        "design": {
            "kind": job.folds.kind,
            "k": job.folds.shape[0],
            "repeats": job.folds.shape[1],
            "over": job.folds.over,
            "validation": job.folds.val,
            "folds_seed": job.folds.seed,
            "seed": job.seed,
            "test_share": plan.test_share,
            "replicates": job.replicates,
            "openings": sum(bool(open_seal(line, opened, remedy=_RESTORE)) for line in read_json_lines(opened)),
        },
        "folds": [{"fold": f.name, "size": f.size, "split": f.split, "images": f.images} for f in plan.folds],
        "failed": {arm: to_json(one) for arm, one in failed.items()},
        "notes": [_NOTE] if any(VOXELS in found["arms"] for found in sizes.values()) else [],
        "sizes": sizes,
    }
    write_json(folder.out / COMPARISON, results)
    return results


def read_arms(
    folder: ComparisonFolder, plan: ComparisonPlan, arms: Sequence[str], folds: Sequence[PlannedFold]
) -> dict[str, list[FoldPredictions]]:
    """Return what each arm says about folds of one size, and the baseline of voxels beside them.

    Every training of an arm that keeps it fits the baseline on the fold's rows: of equal tasks it is the same one, so
    the first such arm's is taken. Stores of images have none.
    """
    works = {arm: [find_work(plan, arm, fold) for fold in folds] for arm in arms}
    read = {arm: list(map(partial(read_fold, folder), folds, works[arm])) for arm in arms}
    for arm in arms:
        if all((folder.evaluation(work) / BASELINE_PREDICTIONS).is_file() for work in works[arm]):
            read_baseline = partial(read_fold, folder, file=BASELINE_PREDICTIONS)
            return read | {VOXELS: list(map(read_baseline, folds, works[arm]))}
    return read


def find_work(plan: ComparisonPlan, arm: str, fold: PlannedFold) -> Work:
    """Return the work of an arm that predicts the test rows of a fold."""
    return next(one for one in plan.works if one.evaluated and one.arms == (arm,) and one.fold == fold.folder)


def read_fold(out: ComparisonFolder, fold: PlannedFold, work: Work, *, file: str = PREDICTIONS) -> FoldPredictions:
    """Return what an arm, or the baseline in its runs, say about the test rows of a fold."""
    task = read_run_card(out.run(work)).task
    names = ("image_id", "patient_id", "y_true", "y_score")
    folder = out.evaluation(work)
    metrics = read_json(folder / METRICS, remedy=_RESTORE)
    record = read_json(folder / INPUTS, remedy=_RESTORE) if file == PREDICTIONS else metrics.get("baseline", {})
    sha256 = sha256_file(folder / file)
    # Version 0.2.0 kept none of the baseline's.
    if record.get("predictions_sha256", sha256) != sha256:
        raise DataError(f"{folder / file} has changed since the evaluation: {_RESTORE}")
    table = read_table(folder / file, columns=names)
    images, patients, true, score = (column_list(table, name) for name in names)
    truth = np.array(true, dtype=np.float64)
    # The arm's own decision, frozen on the fold's validation rows; the baseline, and runs of 0.2.0, have none: 0.5.
    frozen = metrics.get("decision", {}).get("thresholds", {}) if file == PREDICTIONS else {}
    predictions = check_predictions(
        task.kind,
        truth if task.kind == "multilabel" else truth[:, 0],
        np.array(score, dtype=np.float64),
        class_names=task.class_names,
        grades=task.grades,
        thresholds=[np.inf if value is None else value for value in frozen.values()],
    )
    return FoldPredictions(fold.name, fold.repeat, fold.number, predictions, images, patients)


def choose(
    read: Mapping[int | None, Mapping[str, Sequence[FoldPredictions]]], *, asked: str, secondary: Sequence[str]
) -> tuple[str, list[str]]:
    """Return the metric that the comparison is about, and the others in which pairs are tested."""
    every = [folds[0].predictions for arms in read.values() for folds in arms.values()]
    graded = next((one for one in every if one.has_grades), None)
    metric, usual = choose_metrics(graded or every[0])
    metric = metric if asked == "auto" else asked
    chosen = list(secondary) or list(usual)
    return metric, [name for name in chosen if name != metric]


def measure_cost(
    folder: ComparisonFolder, arm: str, plan: ComparisonPlan, folds: Sequence[PlannedFold]
) -> dict[str, float | None]:
    """Return the wall times of an arm's works of one size, all folds together, and how fast it trained.

    "train_seconds" and "evaluate_seconds" count whole processes, start included; "shared_seconds" those of steps on
    another store, which serve all folds and arms that start from them. None where a time was not kept.
    """
    names = {fold.folder for fold in folds}
    own = [work for work in plan.works if arm in work.arms and work.fold in names]
    shared = [work for work in plan.works if arm in work.arms and work.fold is None]
    history = [row for work in own for row in read_json_lines(folder.run(work) / METRICS_LOG)]
    timed = [row for row in history if row.get("images_per_second") and row.get("seconds")]
    seconds = sum(row["seconds"] for row in timed)
    images = sum(row["seconds"] * row["images_per_second"] for row in timed)
    return {
        "train_seconds": _sum_seconds(folder, own, "train"),
        "evaluate_seconds": _sum_seconds(folder, [work for work in own if work.evaluated], "evaluate"),
        "shared_seconds": _sum_seconds(folder, shared, "train") if shared else 0.0,
        "trainings": len(own),
        "train_images_per_second": images / seconds if seconds else None,
    }


def _sum_seconds(folder: ComparisonFolder, works: Sequence[Work], command: str) -> float | None:
    total = 0.0
    for work in works:
        path = folder.seconds(work)
        known = read_json(path).get(command) if path.is_file() else None
        if known is None:
            return None
        total += known
    return total


def format_comparison(results: Mapping[str, Any]) -> str:
    """Return the arms with intervals and cost, and all pairs, as lines of text."""
    metric = results["metric"]
    over = name_units("patients", str(results.get("patients_from", "")))
    over += " and seeds" if results["design"]["kind"] == "holdout" else ""
    lines = []
    for size, found in results["sizes"].items():
        lines.append(f"{metric} ({results['direction']}), training images: {size}; 95 % intervals over {over}")
        width = max(len(arm) for arm in found["arms"])
        for arm, entry in found["arms"].items():
            cost = entry["cost"]
            minutes = "" if cost["train_seconds"] is None else f"  train {cost['train_seconds'] / 60:.1f} min"
            lines.append(f"  {arm:{width}s}  {_format(entry['metrics'][metric])}{minutes}")
        for pair in found["pairs"][metric]:
            lines.append(f"  {pair['first']} - {pair['second']}: {format_pair(pair)}")
    return "\n".join(lines)


def _format(entry: Mapping[str, Any]) -> str:
    if entry["value"] is None:
        return f"undefined: {entry.get('reason', '')}"
    interval = "" if entry["low"] is None else f"  [{entry['low']:.3f}, {entry['high']:.3f}]"
    return f"{entry['value']:.3f}{interval}" + (f"  ({entry['note']})" if "note" in entry else "")


def format_pair(pair: Mapping[str, Any]) -> str:
    """Return "+0.031; corrected resampled t test p 0.021 (Holm 0.063); bootstrap p 0.004 (Holm 0.012)"."""
    if pair["difference"] is None:
        return "undefined"
    parts = [f"{pair['difference']:+.3f}"]
    for name, entry in ((pair["test"] and pair["test"]["name"], pair["test"]), ("bootstrap", pair["bootstrap"])):
        if entry:
            p_value, holm = (
                "undefined" if entry[key] is None else f"{entry[key]:.3f}" for key in ("p_value", "p_holm")
            )
            parts.append(f"{name} p {p_value} (Holm {holm})")
    parts += [pair["bootstrap"]["note"]] if "note" in pair["bootstrap"] else []
    return "; ".join(parts)
