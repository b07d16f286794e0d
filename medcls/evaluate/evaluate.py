"""Evaluate a run on a split: predictions, metrics with intervals, report.html."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from medcls.config import EvaluateJob
from medcls.console import put, say
from medcls.data.targets import describe_positive
from medcls.errors import ConfigError, DataError, UsageError
from medcls.evaluate.baseline import measure_baseline
from medcls.evaluate.ensemble import Member, open_members, predict_members, read_run_card
from medcls.evaluate.evaluation_data import open_rows
from medcls.evaluate.far_images import describe_far, measure_far
from medcls.evaluate.frozen_analysis import FROZEN, FrozenAnalysis, freeze_analysis
from medcls.evaluate.frozen_choices import Choices, freeze_choices
from medcls.evaluate.judged_rows import (
    Compared,
    Judged,
    hold_evaluations,
    list_columns,
    measure_all,
    print_results,
    write_results,
)
from medcls.evaluate.own_predictions import describe_evaluated
from medcls.evaluate.report_explanations import read_explanations
from medcls.evaluate.report_facts import (
    describe_certificate,
    describe_flow,
    describe_labelling,
    describe_splits,
    describe_study,
    draw_gallery,
    hide_ids,
    read_subgroup_columns,
)
from medcls.evaluate.report_runs import (
    describe_ensemble,
    describe_model,
    describe_openings,
    list_runs,
    list_sheets,
    read_configs,
    read_history,
)
from medcls.evaluate.robustness import measure_robustness
from medcls.evaluate.shortcuts import measure_shortcuts
from medcls.evaluate.split_predictions import (
    EVALUATED,
    PREDICTIONS,
    TESTS,
    SplitPredictions,
    count_test_openings,
    predict_split,
    values_of,
)
from medcls.files import MODEL, ODDS_RATIOS, read_json, sha256_file
from medcls.models.backbones import CLINICAL
from medcls.report.content import Evaluation
from medcls.report.gallery import choose_worst
from medcls.runs.folder import read_environment
from medcls.statistics.analysis import check_analysis
from medcls.statistics.exposure import Exposure


def evaluate(job: EvaluateJob) -> None:
    """Evaluates one run, or several together, on one split and prints the metrics and the report's path.

    What has to be chosen (thresholds, recalibration, how images become patients) is chosen on the validation split
    and written into the run (of several: into out=) before another split is opened.

    Two evaluations of one run write the same files, and so do its explanations: the second waits for the first.
    """
    runs = [*job.runs, *([Path(job.against)] if job.against else [])]
    with hold_evaluations(runs, job.out, command="medcls.evaluate"):
        _evaluate(job)


def _evaluate(job: EvaluateJob) -> None:
    members = open_members(job)
    first = members[0]
    check_sees_images(job, members)
    plan = freeze_plan(job, members)
    choices = freeze_choices(job, members)
    choices.say_notes()
    other = open_other(job, like=first) if job.against else None
    predictions = choices.decide_rows(predict_members(job, members, use=describe_use(job, other)))
    describe_evaluated(predictions.folder / PREDICTIONS, first.card.task, choices.decide(predictions.rows.predictions))
    positive = describe_positive(first.card.task, recorded=bool(first.card.positive_class))
    if positive:
        say(positive)
    columns, absent = read_subgroup_columns(predictions, list_columns(job, plan))
    rehearsal = ("these are not test rows: a rehearsal",) if job.split not in TESTS and not job.store else ()
    found = measure_all(
        job,
        Judged(
            predictions.rows,
            operating=choices.operating,
            calibration=choices.calibration,
            columns=columns,
            image_ids=values_of(predictions.opened, "image_id"),
            labels=first.card.task.mapping,
            plan=plan,
            plan_notes=rehearsal,
        ),
        facts={
            "patients_from": predictions.opened.store.patients_from,
            "openings": predictions.openings,
            "rows": measure_exposure_of(predictions).to_json(),
        }
        | list_runs(predictions.parts),
        other=None if other is None else name_compared(predictions, other),
        beside=measure_beside(job, predictions, choices),
    )
    notes = [positive.removeprefix("notice: ")] if positive.startswith("notice") else []
    notes += list(dict.fromkeys(note for member in members for note in member.opened.notes)) + choices.notes
    notes += [*describe_openings(predictions.parts, split=job.split), *describe_ensemble(predictions.parts)]
    if absent:
        notes.append(f"no subgroups by {', '.join(absent)}: the store has no such column")
    notes += [*found.notes, *describe_far(found.metrics.get("training_distance"))]
    written = write_results(
        job,
        predictions.folder,
        found.metrics,
        lambda: build_evaluation(
            job, predictions, metrics=found.metrics, choices=choices, notes=notes, facts=found.facts
        ),
    )
    print_results(found.metrics, predictions.rows.predictions, title=job.split)
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


def measure_beside(job: EvaluateJob, predictions: SplitPredictions, choices: Choices) -> dict[str, Any]:
    """Returns what stands beside the metrics: what was asked for, and what training left in the run."""
    found: dict[str, Any] = {}
    if job.robustness:
        found["robustness"] = measure_robustness(job, predictions)
    if job.shortcuts:
        found["shortcuts"] = measure_shortcuts(job, predictions)
    if not predictions.members and predictions.opened.exposure.has_unseen:
        far = measure_far(job, predictions.run, card=predictions.card, opened=predictions.opened)
        found |= {"training_distance": far} if far else {}
    baseline = measure_baseline(job, predictions, choices.operating)
    if baseline is not None:
        found["baseline"] = baseline
    if not predictions.members and (predictions.run / ODDS_RATIOS).is_file():
        found["odds_ratios"] = read_json(predictions.run / ODDS_RATIOS)
    return found


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


def name_compared(predictions: SplitPredictions, other: SplitPredictions) -> Compared:
    """Return the other run's predictions under the names of both folders."""
    return Compared(predictions.run.resolve().name, other.run.resolve().name, other.rows.predictions)


def measure_exposure_of(predictions: SplitPredictions) -> Exposure:
    """Return what has been seen of the rows by the run, or by the one of several that has seen most."""
    return max((part.opened.exposure for part in predictions.parts), key=lambda one: (one.trained, one.chose))


def build_evaluation(
    job: EvaluateJob,
    predictions: SplitPredictions,
    *,
    metrics: dict[str, Any],
    choices: Choices,
    notes: list[str],
    facts: dict[str, Any],
) -> Evaluation:
    """Return what the report is made of."""
    opened, one, parts = predictions.opened, predictions.rows.predictions, predictions.parts
    explanations, explanation_notes = read_explanations(job, predictions)
    return Evaluation(
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
        split_facts=describe_certificate(opened.certificate),
        labelling=describe_labelling(opened.store),
        shows_ids=job.show_ids,
        config_yaml=read_configs(parts),
        environment=read_environment(predictions.run),
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
    )
