"""Evaluate a run on a split: predictions, metrics with intervals, report.html."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medcls.config import EvaluateJob
from medcls.console import put, say
from medcls.data.targets import describe_positive
from medcls.errors import ConfigError, DataError, UsageError
from medcls.evaluate.baseline import measure_baseline
from medcls.evaluate.ensemble import Member, open_members, predict_members, read_run_card
from medcls.evaluate.evaluation_data import RowRequest, open_rows
from medcls.evaluate.far_images import describe_far, measure_far
from medcls.evaluate.frozen_analysis import FROZEN, FrozenAnalysis, freeze_analysis
from medcls.evaluate.frozen_choices import Choices, freeze_choices
from medcls.evaluate.image_views import ViewRequest
from medcls.evaluate.judged_rows import (
    Compared,
    Found,
    Judged,
    Measuring,
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
    SplitRequest,
    count_test_openings,
    predict_split,
    values_of,
)
from medcls.files import MODEL, ODDS_RATIOS, read_json, sha256_file
from medcls.models.backbones import CLINICAL
from medcls.report.content import Evaluation, Explanation
from medcls.report.gallery import choose_worst
from medcls.runs.folder import read_environment
from medcls.statistics.analysis import check_analysis
from medcls.statistics.exposure import Exposure


@dataclass(frozen=True, slots=True)
class PageSettings:
    """What the page shows beside the numbers.

    Attributes:
        gallery: Number of images that the network has most wrong.
        show_ids: Whether ids of patients and images, which may be paths, are listed.
        seed: Seed of the bands of its curves.
    """

    gallery: int
    show_ids: bool
    seed: int


def evaluate(job: EvaluateJob) -> None:
    """Evaluate one run, or several together, on one split and print the metrics and the report's path.

    What has to be chosen (thresholds, recalibration, how images become patients) is chosen on the validation split
    and written into the run (of several: into out=) before another split is opened.

    Two evaluations of one run write the same files, and so do its explanations: the second waits for the first.
    """
    runs = [*job.runs, *([Path(job.against)] if job.against else [])]
    with hold_evaluations(runs, job.out, command="medcls.evaluate"):
        _evaluate(job)


def _evaluate(job: EvaluateJob) -> None:
    request, out = read_request(job), Path(job.out) if job.out else None
    if len(job.runs) > 1 and out is None:
        raise UsageError(
            f"out=DIR is missing: the joint results of {len(job.runs)} runs belong to no single one: set a folder for "
            f"them"
        )
    members = open_members(job.runs, request.rows)
    first = members[0]
    if job.robustness or job.shortcuts:
        check_sees_images(members)
    rehearsal = job.split not in TESTS
    plan = freeze_plan(members, job.analysis, folder=out, against=job.against is not None or rehearsal)
    choices = freeze_choices(request, members, asked=job.choosing, seed=job.seed, folder=out)
    choices.say_notes()
    other = open_other(Path(job.against), first, request, asked=job.choosing, seed=job.seed) if job.against else None
    use = describe_use(other, robustness=job.robustness, shortcuts=bool(job.shortcuts))
    predictions = choices.decide_rows(predict_members(request, members, folder=out, use=use))
    describe_evaluated(predictions.folder / PREDICTIONS, first.card.task, choices.decide(predictions.rows.predictions))
    positive = describe_positive(first.card.task, recorded=bool(first.card.positive_class))
    if positive:
        say(positive)
    columns, absent = read_subgroup_columns(predictions, list_columns(job.subgroups, plan))
    measuring = Measuring(
        job.prevalences, job.least_patients, job.replicates, job.seed, readers=job.readers, samplesize=job.samplesize
    )
    judged = Judged(
        predictions.rows,
        operating=choices.operating,
        calibration=choices.calibration,
        columns=columns,
        image_ids=values_of(predictions.opened, "image_id"),
        labels=first.card.task.mapping,
        plan=plan,
        plan_notes=("these are not test rows: a rehearsal",) if rehearsal and not job.store else (),
    )
    facts = {
        "patients_from": predictions.opened.store.patients_from,
        "openings": predictions.openings,
        "rows": measure_exposure_of(predictions).to_json(),
    } | list_runs(predictions.parts)
    beside = {}
    if job.robustness:
        options = request.choose_options()
        beside["robustness"] = measure_robustness(predictions, options, **measuring.sampling)
    if job.shortcuts:
        options = request.choose_options()
        beside["shortcuts"] = measure_shortcuts(
            predictions, job.shortcuts, options, least_patients=job.least_patients, **measuring.sampling
        )
    beside |= measure_references(predictions, choices.operating, request, **measuring.sampling)
    compared = None if other is None else name_compared(predictions, other)
    found = measure_all(measuring, judged, facts=facts, other=compared, beside=beside)
    notes = [positive.removeprefix("notice: ")] if positive.startswith("notice") else []
    notes += list(dict.fromkeys(note for member in members for note in member.opened.notes)) + choices.notes
    notes += [*describe_openings(predictions.parts, split=job.split), *describe_ensemble(predictions.parts)]
    if absent:
        notes.append(f"no subgroups by {', '.join(absent)}: the store has no such column")
    notes += [*found.notes, *describe_far(found.metrics.get("training_distance"))]
    page = PageSettings(job.gallery, job.show_ids, job.seed)

    def build() -> Evaluation:
        explained = read_explanations(predictions, store=job.store)
        return build_evaluation(predictions, choices, found, notes=notes, explained=explained, page=page)

    written = write_results(predictions.folder, found.metrics, build, report=job.report)
    print_results(found.metrics, predictions.rows.predictions, title=job.split)
    put(f"{written.stem}: {written}")


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
    members: Sequence[Member], analysis: str | None, *, folder: Path | None, against: bool
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


def check_sees_images(members: Sequence[Member]) -> None:
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
) -> dict[str, Any]:
    """Measure the rows against what training left in the run: its distance, its baseline, its odds ratios.

    Args:
        predictions: The rows.
        operating: operating_points.json.
        request: What the predictions were asked for.
        replicates: Resamples of the patients.
        seed: Seed of the resampling.

    Returns:
        "training_distance", "baseline" and "odds_ratios", each as far as the run has it.
    """
    found: dict[str, Any] = {}
    if not predictions.members and predictions.opened.exposure.has_unseen:
        options = request.choose_options()
        far = measure_far(predictions.run, card=predictions.card, opened=predictions.opened, options=options)
        found |= {"training_distance": far} if far else {}
    baseline = measure_baseline(predictions, operating, wanted=request.rows, replicates=replicates, seed=seed)
    if baseline is not None:
        found["baseline"] = baseline
    if not predictions.members and (predictions.run / ODDS_RATIOS).is_file():
        found["odds_ratios"] = read_json(predictions.run / ODDS_RATIOS)
    return found


def open_other(
    run: Path, like: Member, request: SplitRequest, *, asked: Mapping[str, Any], seed: int
) -> SplitPredictions:
    """Return the predictions of the run against=, on the very same images, kept and counted there.

    Args:
        run: The other run.
        like: The run that is evaluated, and its rows.
        request: What is asked of both.
        asked: Settings of the choices, which the other run makes for itself.
        seed: Seed of the choices.

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
    if values_of(theirs, "image_id") != values_of(like.opened, "image_id"):
        raise DataError(f"split={request.rows.split}: run={like.run} and against={run} have different images in it")
    choices = freeze_choices(request, [Member(run, card, theirs)], asked=asked, seed=seed)
    use = f"compared with model {sha256_file(like.run / MODEL)[:12]}"
    return choices.decide_rows(predict_split(request, run, card=card, opened=theirs, use=use))


def name_compared(predictions: SplitPredictions, other: SplitPredictions) -> Compared:
    """Return the other run's predictions under the names of both folders."""
    return Compared(predictions.run.resolve().name, other.run.resolve().name, other.rows.predictions)


def measure_exposure_of(predictions: SplitPredictions) -> Exposure:
    """Return what has been seen of the rows by the run, or by the one of several that has seen most."""
    return max((part.opened.exposure for part in predictions.parts), key=lambda one: (one.trained, one.chose))


def build_evaluation(
    predictions: SplitPredictions,
    choices: Choices,
    found: Found,
    *,
    notes: list[str],
    explained: tuple[list[Explanation], list[str]],
    page: PageSettings,
) -> Evaluation:
    """Return what the report is made of.

    Args:
        predictions: The rows.
        choices: What was chosen on validation.
        found: What was measured.
        notes: What a reader has to know.
        explained: The explanations beside the evaluation, and what to say below them.
        page: What the page shows.
    """
    opened, one, parts = predictions.opened, predictions.rows.predictions, predictions.parts
    split = predictions.key["split"]
    return Evaluation(
        predictions=one,
        patient_ids=predictions.rows.patient_ids,
        metrics=found.metrics,
        split=split,
        store_name=opened.store.name,
        seed=page.seed,
        certificate=opened.certificate if page.show_ids else hide_ids(opened.certificate),
        split_facts=describe_certificate(opened.certificate),
        labelling=describe_labelling(opened.store),
        shows_ids=page.show_ids,
        config_yaml=read_configs(parts),
        environment=read_environment(predictions.run),
        history=read_history(parts),
        notes=notes,
        contact_sheets=list_sheets(parts),
        flow=describe_flow(predictions, split=split),
        demographics=describe_splits(predictions),
        gallery=draw_gallery(predictions, choose_worst(one, count=page.gallery)),
        explanations=explained[0],
        explanation_notes=explained[1],
        operating=choices.operating,
        model=describe_model(parts),
        exposure=measure_exposure_of(predictions),
        facts=describe_study(predictions) | found.facts,
    )
