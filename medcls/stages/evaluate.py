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
from medcls.evaluation.analysis import check_analysis, format_analysis
from medcls.evaluation.assessment import assess, measure_rows
from medcls.evaluation.decision import describe_calls
from medcls.evaluation.evaluation import Evaluation
from medcls.evaluation.exposure import Exposure
from medcls.evaluation.gallery import choose_worst
from medcls.evaluation.paired import compare_predictions
from medcls.evaluation.report import REPORT, write_report
from medcls.evaluation.tables import count_labels, format_metrics
from medcls.files import ENVIRONMENT, MODEL, ODDS_RATIOS, read_json, sha256_file, write_json
from medcls.identity import PER_IMAGE, name_units
from medcls.models.backbones import CLINICAL
from medcls.stages.ensemble import Member, open_members, predict_members, read_run_card
from medcls.stages.evaluation_data import open_rows
from medcls.stages.frozen_analysis import FROZEN, FrozenAnalysis, freeze_analysis, read_sample_size
from medcls.stages.frozen_choices import Choices, freeze_choices
from medcls.stages.reader_file import measure_readers
from medcls.stages.report_explanations import read_explanations
from medcls.stages.report_facts import (
    describe_flow,
    describe_labelling,
    describe_splits,
    describe_study,
    draw_gallery,
    hide_ids,
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
from medcls.stages.split_predictions import (
    EVALUATED,
    TESTS,
    SplitPredictions,
    count_test_openings,
    predict_split,
    values_of,
)
from medcls.stages.training_distance import describe_far, measure_far
from medcls.stages.voxel_baseline import describe_baseline, measure_baseline

METRICS = "metrics.json"


def evaluate(job: EvaluateJob) -> None:
    """Evaluates one run, or several together, on one split and prints the metrics and the report's path.

    What has to be chosen (thresholds, recalibration, how images become patients) is chosen on the validation split
    and written into the run (of several: into out=) before another split is opened.
    """
    members = open_members(job)
    first = members[0]
    check_sees_images(job, members)
    plan = freeze_plan(job, members)
    choices = freeze_choices(job, members)
    choices.say_notes()
    other = open_other(job, like=first) if job.against else None
    predictions = choices.decide_rows(predict_members(job, members, use=describe_use(job, other)))
    metrics = measure(job, predictions, choices)
    positive = describe_positive(first.card.task, recorded=bool(first.card.positive_class))
    if positive:
        say(positive)
    notes = [positive.removeprefix("notice: ")] if positive.startswith("notice") else []
    notes += list(dict.fromkeys(note for member in members for note in member.opened.notes)) + choices.notes
    notes += [*describe_openings(predictions.parts, split=job.split), *describe_ensemble(predictions.parts)]
    notes += describe_calls(predictions.rows.predictions)
    planned = plan.analysis.columns if plan else ()
    columns, absent = read_subgroup_columns(predictions, list(dict.fromkeys([*planned, *job.subgroups])))
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
    notes += describe_far(metrics.get("training_distance"))
    if job.readers:
        metrics["readers"], found = measure_readers(
            Path(job.readers),
            predictions.rows,
            image_ids=values_of(predictions.opened, "image_id"),
            labels=first.card.task.mapping,
            operating=choices.operating,
            replicates=job.replicates,
            seed=job.seed,
        )
        notes += found
    size, found = read_sample_size(job.samplesize, patients=metrics["n_patients"])
    notes += found
    if plan is not None:
        rehearsal = ("these are not test rows: a rehearsal",) if job.split not in TESTS and not job.store else ()
        metrics["analysis"] = plan.judge(metrics, notes=rehearsal)
    metrics = name_reasons(metrics, patients_from=metrics["patients_from"])
    write_json(predictions.folder / METRICS, metrics)
    written = predictions.folder / METRICS
    if job.report:
        written = report_results(job, predictions, metrics=metrics, choices=choices, notes=notes, facts=size)
    elif (predictions.folder / REPORT).is_file():
        say(f"notice: {predictions.folder / REPORT} is of an earlier evaluation; report=true writes it anew")
    one = predictions.rows.predictions
    put(format_metrics(metrics, title=job.split, calls=describe_calls(one), labels=count_labels(one)))
    if "baseline" in metrics:
        put(describe_baseline(metrics["baseline"]))
    if plan is not None:
        put(format_analysis(metrics["analysis"]))
    put(f"{written.stem}: {written}")


def freeze_plan(job: EvaluateJob, members: Sequence[Member]) -> FrozenAnalysis | None:
    """Return the plan of analysis, frozen in the run (of several: in out=) before test rows are opened; None = none.

    Raises:
        ConfigError: It differs from the frozen one after test rows were opened, or the task cannot be judged by it.
    """
    task, folder = members[0].card.task, members[0].run if len(members) == 1 else Path(str(job.out))
    openings = max(count_test_openings(member.run, sha256_file(member.run / MODEL)) for member in members)
    plan = freeze_analysis(folder, job.analysis, openings=openings, evaluated=openings > 0, where=str(folder))
    if plan is not None:
        check_analysis(
            plan.analysis,
            task.kind,
            class_names=task.class_names,
            grades=task.grades,
            against=job.against is not None or job.split not in TESTS,
            where=f"analysis={job.analysis or folder / FROZEN}",
        )
    return plan


def describe_use(job: EvaluateJob, other: SplitPredictions | None) -> str:
    """Return what the rows are opened for: each other use of the same test rows is another opening."""
    uses = [f"compared with model {other.key['model_sha256'][:12]}"] if other else [EVALUATED]
    return ", ".join(uses + ["robustness"] * job.robustness + ["shortcuts"] * bool(job.shortcuts))


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
    if not predictions.members and predictions.opened.exposure.has_unseen:
        far = measure_far(job, predictions.run, card=predictions.card, opened=predictions.opened)
        found |= {"training_distance": far} if far else {}
    baseline = measure_baseline(job, predictions)
    if baseline is not None:
        found["baseline"] = baseline
    if not predictions.members and (predictions.run / ODDS_RATIOS).is_file():
        found["odds_ratios"] = read_json(predictions.run / ODDS_RATIOS)
    return found


def name_reasons(found: Any, *, patients_from: str) -> Any:
    """Return metrics whose reasons, notes and sizes say nothing about patients if these are unknown."""
    if isinstance(found, list):
        return [name_reasons(each, patients_from=patients_from) for each in found]
    if not isinstance(found, dict) or patients_from != PER_IMAGE:
        return found
    inner = {key: name_reasons(value, patients_from=patients_from) for key, value in found.items()}
    if isinstance(inner.get("claim"), str):
        inner["claim"] = inner["claim"].replace("by patient", "by image; patients unknown")
    texts = {key: inner[key] for key in ("reason", "note", "assumption") if isinstance(inner.get(key), str)}
    inner |= {key: name_units(text, patients_from) for key, text in texts.items()}
    return inner | ({"n_patients": None} if isinstance(inner.get("n_patients"), int) else {})


def measure(job: EvaluateJob, predictions: SplitPredictions, choices: Choices) -> dict[str, Any]:
    """Returns the plain metrics with intervals, the sizes, and what was chosen where."""
    metrics = measure_rows(predictions.rows, choices.operating, replicates=job.replicates, seed=job.seed)
    found = {
        "patients_from": predictions.opened.store.patients_from,
        "openings": predictions.openings,
        "rows": measure_exposure_of(predictions).to_json(),
    }
    return metrics | found | list_runs(predictions.parts)


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
    use = f"compared with model {sha256_file(like.run / MODEL)[:12]}"
    return choices.decide_rows(predict_split(inner, run, card=card, opened=theirs, use=use))


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


def measure_exposure_of(predictions: SplitPredictions) -> Exposure:
    """Return what has been seen of the rows by the run, or by the one of several that has seen most."""
    return max((part.opened.exposure for part in predictions.parts), key=lambda one: (one.trained, one.chose))


def report_results(
    job: EvaluateJob,
    predictions: SplitPredictions,
    *,
    metrics: dict[str, Any],
    choices: Choices,
    notes: list[str],
    facts: dict[str, Any],
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
            certificate=opened.certificate if job.show_ids else hide_ids(opened.certificate),
            labelling=describe_labelling(opened.store),
            shows_ids=job.show_ids,
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
            exposure=measure_exposure_of(predictions),
            facts=describe_study(predictions) | facts,
        ),
    )
