"""Evaluate a run on a split: predictions, metrics with intervals, report.html.

Scores of other tools: evaluate_scores.py. The command chooses between the two in __main__.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from medcls.config import EvaluateJob
from medcls.console import say
from medcls.data.targets import describe_positive
from medcls.errors import ConfigError, DataError, UsageError
from medcls.evaluate.baseline import measure_baseline
from medcls.evaluate.choices import Choices
from medcls.evaluate.ensemble import open_members, predict_members, read_run_card
from medcls.evaluate.evaluation_data import Opened, RowRequest, open_rows
from medcls.evaluate.far_images import describe_far, measure_far
from medcls.evaluate.frozen_analysis import FROZEN, FrozenAnalysis, freeze_analysis
from medcls.evaluate.frozen_choices import freeze_choices
from medcls.evaluate.image_views import ViewRequest
from medcls.evaluate.judged_rows import (
    Compared,
    Found,
    Judged,
    hold_evaluations,
    list_columns,
    measure_all,
    publish,
    read_measuring,
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
    SplitRequest,
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
    """Evaluate one run, or several together, on one split and print the metrics and the report's path.

    What has to be chosen (thresholds, recalibration, how images become patients) is chosen on the validation split
    and written into the run (of several: into out=) before another split is opened.

    Two evaluations of one run write the same files, and so do its explanations: the second waits for the first.
    """
    against = Path(job.against) if job.against else None
    with hold_evaluations([*job.runs, *filter(None, [against])], job.out, command="medcls.evaluate"):
        request, out = read_request(job), Path(job.out) if job.out else None
        if len(job.runs) > 1 and out is None:
            raise UsageError(
                f"out=DIR is missing: the joint results of {len(job.runs)} runs belong to no single one: set a folder "
                "for them"
            )
        members = open_members(job.runs, request.rows)
        task = members[0].card.task
        if job.robustness or job.shortcuts:
            check_sees_images(members)
        rehearsal = job.split not in TESTS
        plan = freeze_plan(members, job.analysis, folder=out, against=against is not None or rehearsal)
        choices = freeze_choices(request, members, asked=job.choosing, seed=job.seed, folder=out)
        choices.say_notes()
        other = open_other(against, members[0], request, asked=job.choosing, seed=job.seed) if against else None
        use = describe_use(other, robustness=job.robustness, shortcuts=bool(job.shortcuts))
        predictions = predict_members(request, members, folder=out, use=use)
        predictions = replace(predictions, rows=choices.apply(predictions.rows))
        describe_evaluated(predictions.folder / PREDICTIONS, task, choices.decide(predictions.rows.predictions))
        positive = describe_positive(task, recorded=bool(members[0].card.positive_class))
        if positive:
            say(positive)
        columns, absent = read_subgroup_columns(predictions, list_columns(job.subgroups, plan))
        judged = Judged(
            predictions.rows,
            choices,
            columns,
            image_ids=values_of(predictions.opened, "image_id"),
            labels=task.mapping,
            plan=plan,
            plan_notes=("these are not test rows: a rehearsal",) * (rehearsal and not job.store),
        )
        measuring = read_measuring(job)
        extra_metrics: dict[str, object] = {}
        if job.robustness:
            options = request.choose_options()
            extra_metrics["robustness"] = measure_robustness(predictions, options, **measuring.sampling)
        if job.shortcuts:
            options = request.choose_options()
            extra_metrics["shortcuts"] = measure_shortcuts(
                predictions, job.shortcuts, options, least_patients=measuring.least_patients, **measuring.sampling
            )
        extra_metrics |= measure_references(predictions, choices.operating, request, **measuring.sampling)
        found = measure_all(
            measuring,
            judged,
            facts=describe_origin(predictions),
            other=pair_with(predictions, other),
            beside=extra_metrics,
        )
        notes = list_notes(members, predictions, choices, positive=positive, absent=absent)
        notes += [*found.notes, *describe_far(found.metrics.get("training_distance"))]

        def build() -> Evaluation:
            explanations, explanation_notes = read_explanations(predictions, store=job.store)
            gallery = draw_gallery(predictions, choose_worst(predictions.rows.predictions, count=job.gallery))
            page = build_evaluation(predictions, found, notes=notes, show_ids=job.show_ids, seed=job.seed)
            return replace(
                page,
                operating=choices.operating,
                gallery=gallery,
                explanations=explanations,
                explanation_notes=explanation_notes,
            )

        publish(predictions.folder, judged, found, build if job.report else None, title=job.split, said=("", ""))


def list_notes(
    members: Sequence[Opened],
    predictions: SplitPredictions,
    choices: Choices,
    *,
    positive: str,
    absent: Sequence[str],
) -> list[str]:
    """Return what a reader has to know of the positive class, the rows, the choices, the openings and the subgroups."""
    notes = []
    if positive.startswith("notice"):
        notes.append(positive.removeprefix("notice: "))
    notes += dict.fromkeys(note for member in members for note in member.notes)
    notes += choices.notes
    notes += describe_openings(predictions.parts, split=predictions.key["split"])
    notes += describe_ensemble(predictions.parts)
    if absent:
        notes.append(f"no subgroups by {', '.join(absent)}: the store has no such column")
    return notes


def describe_origin(predictions: SplitPredictions) -> dict[str, object]:
    """Return what metrics.json says of the rows and the runs."""
    return {
        "patients_from": predictions.opened.store.patients_from,
        "openings": predictions.openings,
        "rows": measure_exposure_of(predictions).to_json(),
        **list_runs(predictions.parts),
    }


def read_request(job: EvaluateJob) -> SplitRequest:
    """Return which predictions a job asks for."""
    return SplitRequest(
        RowRequest(job.split, job.store, job.in_sample),
        ViewRequest(job.views, tuple(job.scales), job.flips, job.crops_per_side),
        device=job.device,
        precision=job.precision,
        batch_size=job.batch_size,
        workers=job.workers,
    )


def freeze_plan(
    members: Sequence[Opened], analysis: str | None, *, folder: Path | None, against: bool
) -> FrozenAnalysis | None:
    """Return the plan of analysis, frozen before test rows are opened; None = there is no plan.

    Args:
        members: The run, or several.
        analysis: File of the plan; None = as frozen.
        folder: Where the plan of several runs is frozen; that of one run is frozen in the run.
        against: Whether a comparison of two runs, which a plan may ask for, is made or not needed.

    Raises:
        ConfigError: It differs from the frozen one after test rows were opened, or the task cannot be judged by it.
    """
    task = members[0].card.task
    folder = members[0].run if len(members) == 1 or folder is None else folder
    openings = max(count_test_openings(member.run, sha256_file(member.run / MODEL)) for member in members)
    plan = freeze_analysis(folder, analysis, openings=openings, evaluated=openings > 0, where=str(folder))
    if plan is not None:
        check_analysis(
            plan.analysis,
            task.kind,
            class_names=task.class_names,
            grades=task.grades,
            against=against,
            where=f"analysis={analysis or folder / FROZEN}",
        )
    return plan


def describe_use(other: SplitPredictions | None, *, robustness: bool, shortcuts: bool) -> str:
    """Return what the rows are opened for: each other use of the same test rows is another opening."""
    uses = [f"compared with model {other.key['model_sha256'][:12]}"] if other else [EVALUATED]
    return ", ".join(uses + ["robustness"] * robustness + ["shortcuts"] * shortcuts)


def check_sees_images(members: Sequence[Opened]) -> None:
    """Check that every run takes images, which robustness and shortcuts are measured on.

    Raises:
        ConfigError: A run takes none.
    """
    blind = [member.run for member in members if member.card.architecture == CLINICAL]
    if blind:
        raise ConfigError(
            f"robustness and shortcuts need images, which run={blind[0]} does not take (model=clinical): remove these "
            "settings"
        )


def measure_references(
    predictions: SplitPredictions, operating: Mapping[str, Any], request: SplitRequest, *, replicates: int, seed: int
) -> dict[str, object]:
    """Measure the rows against what training left in the run: its distance, its baseline, its odds ratios.

    Returns:
        "training_distance", "baseline" and "odds_ratios", each if the run has it; several runs have none.
    """
    found: dict[str, object] = {}
    if predictions.members:
        return found
    run, opened = predictions.run, predictions.opened
    if opened.exposure.has_unseen:
        far = measure_far(opened, request.choose_options())
        found |= {"training_distance": far} if far else {}
    baseline = measure_baseline(predictions, operating, wanted=request.rows, replicates=replicates, seed=seed)
    if baseline is not None:
        found["baseline"] = baseline
    if (run / ODDS_RATIOS).is_file():
        found["odds_ratios"] = read_json(run / ODDS_RATIOS)
    return found


def open_other(
    run: Path, like: Opened, request: SplitRequest, *, asked: Mapping[str, Any], seed: int
) -> SplitPredictions:
    """Return the predictions of the run against=, on the very same images, kept and counted there.

    `asked` are the settings of the choices, which the other run makes for itself.

    Raises:
        UsageError: against= is run= itself.
        ConfigError: it has another task.
        DataError: other images; or as for the run itself.
    """
    if run.resolve() == like.run.resolve():
        raise UsageError(f"against={run} is run= itself: name another run")
    card = read_run_card(run)
    if not card.task.asks_the_same(like.card.task):
        raise ConfigError(f"against={run} has another task than run={like.run}: compare only runs of the same task")
    theirs = open_rows(request.rows, run, card)
    if values_of(theirs, "image_id") != values_of(like, "image_id"):
        raise DataError(f"split={request.rows.split}: run={like.run} and against={run} have different images in it")
    choices = freeze_choices(request, [theirs], asked=asked, seed=seed)
    use = f"compared with model {sha256_file(like.run / MODEL)[:12]}"
    found = predict_split(request, theirs, use=use)
    return replace(found, rows=choices.apply(found.rows))


def pair_with(predictions: SplitPredictions, other: SplitPredictions | None) -> Compared | None:
    """Return the other run's predictions, if there is one, under the names of both folders."""
    if other is None:
        return None
    return Compared(predictions.run.resolve().name, other.run.resolve().name, other.rows.predictions)


def measure_exposure_of(predictions: SplitPredictions) -> Exposure:
    """Return what has been seen of the rows by the run, or by the one of several that has seen most."""
    return max((part.opened.exposure for part in predictions.parts), key=lambda one: (one.trained, one.chose))


def build_evaluation(
    predictions: SplitPredictions, found: Found, *, notes: list[str], show_ids: bool, seed: int
) -> Evaluation:
    """Return what the report is made of, but for its pictures.

    The bands of its curves follow from `seed`; ids of patients and images, which may be paths, are listed if asked for.
    """
    opened, parts, split = predictions.opened, predictions.parts, predictions.key["split"]
    return Evaluation(
        predictions=predictions.rows.predictions,
        patient_ids=predictions.rows.patient_ids,
        metrics=found.metrics,
        split=split,
        store_name=opened.store.name,
        seed=seed,
        certificate=opened.certificate if show_ids else hide_ids(opened.certificate),
        split_facts=describe_certificate(opened.certificate),
        labelling=describe_labelling(opened.store),
        shows_ids=show_ids,
        config_yaml=read_configs(parts),
        environment=read_environment(predictions.run),
        history=read_history(parts),
        notes=notes,
        contact_sheets=list_sheets(parts),
        flow=describe_flow(predictions, split=split),
        demographics=describe_splits(predictions),
        model=describe_model(parts),
        exposure=measure_exposure_of(predictions),
        facts={**describe_study(predictions), **found.facts},
    )
