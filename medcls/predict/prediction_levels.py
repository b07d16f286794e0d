"""Combine image scores to series, study and patient rows, and apply the frozen thresholds and calibration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from medcls.data.targets import Task
from medcls.evaluate.choices import Choices
from medcls.identity import format_count
from medcls.predict.prediction_table import (
    IMAGE,
    OK,
    REFUSED,
    Case,
    build_predictions,
    name_answers,
    name_scores,
    name_thresholds,
)
from medcls.statistics.aggregation import RULES, aggregate
from medcls.statistics.curves import list_questions
from medcls.statistics.decision import build_decision, describe_calls
from medcls.statistics.number_text import format_threshold
from medcls.statistics.recalibration import apply_recalibration
from medcls.statistics.thresholds import Rule

# Level -> the attributes that tell its units apart, the last of which a file must have. A series is a patient's own:
# should two patients' files carry one SeriesInstanceUID by mistake, they are not mixed.
UNITS = {"series": ("PatientID", "SeriesInstanceUID"), "patient": ("PatientID",)}
# Level -> the attributes that a row of it shows.
_IDS = {"series": ("PatientID", "StudyInstanceUID", "SeriesInstanceUID"), "patient": ("PatientID",)}


def complete_cases(cases: Sequence[Case], *, task: Task, choices: Choices | None) -> list[Case]:
    """Return the cases of the files, then of the series and patients, with what each is called.

    The rule is the one that evaluate reports: 0.5 if nothing is frozen. With frozen choices there are also the columns
    above_<point> of every level, and calibrated_<class> of images, on which the map was fitted and judged.

    Args:
        cases: Files, with the scores of those that have any.
        task: Task that the runs were trained on.
        choices: What was frozen for the runs; None: no such columns.
    """
    frozen = choices.operating.get("levels", {}) if choices else {}
    everyone = list(cases)
    for level in UNITS:
        # The rule that was chosen on validation for the level, the mean if none was.
        rule = frozen.get(level, {}).get("aggregation", {}).get("rule", RULES[0])
        everyone += _merge_level(cases, level, task=task, rule=rule)
    columns: dict[str, float | bool | None] = {}
    if choices is not None and _find_map(choices) is not None:
        columns |= name_scores(task, None, prefix="calibrated")
        columns |= name_thresholds(task, None, prefix="calibrated_threshold")
    columns |= {name_point(task, point): None for point in frozen.get(IMAGE, {}).get("points", [])}
    for case in everyone:
        case.chosen = dict(columns)
    for level in (IMAGE, *UNITS):
        scored = [case for case in everyone if case.level == level and case.scores is not None]
        if scored:
            _decide_level(scored, level, task=task, choices=choices)
    return everyone


def _merge_level(cases: Sequence[Case], level: str, *, task: Task, rule: str) -> list[Case]:
    """Return a case for each series or patient with an image that has scores."""
    members: dict[tuple[str, ...], list[Case]] = {}
    seen: set[tuple[str, ...]] = set()
    refused: dict[tuple[str, ...], int] = {}
    for case in cases:
        unit = tuple(case.headers.get(name, "") for name in UNITS[level])
        if unit[-1] and case.scores is not None:
            # The same pixels twice are one image, whatever their files are called.
            if case.pixel_sha256 and (*unit, case.pixel_sha256) in seen:
                continue
            seen.add((*unit, case.pixel_sha256))
            members.setdefault(unit, []).append(case)
        elif unit[-1] and case.state == REFUSED:
            refused[unit] = refused.get(unit, 0) + 1
    if not members:
        return []
    units = np.repeat(np.arange(len(members)), [len(images) for images in members.values()])
    scores = np.array([case.scores for images in members.values() for case in images])
    merged = aggregate(build_predictions(task, scores), units, rule=rule).predictions.y_score.tolist()
    cases_of_level = []
    for (unit, images), values in zip(members.items(), merged, strict=True):
        # What was noted of an image, or kept one out, is noted of its unit.
        details = [case.detail for case in images if case.detail]
        if unit in refused:
            details.append(f"{refused[unit]} more of its images refused")
        studies = len({case.headers.get("StudyInstanceUID", "") for case in images})
        if level == "patient" and studies > 1:
            details.append(f"images of {studies} studies, combined by {rule}")
        if level == "series" and len(images) > 1 and images[0].files:
            details.append(f"{len(images)} volumes of one series, combined by {rule}")
        reason = next((case.reason for case in images if case.reason), "")
        merged_case = Case("", OK, reason, "; ".join(dict.fromkeys(details)), level=level, aggregation=rule)
        merged_case.headers = {name: images[0].headers.get(name, "") for name in _IDS[level]}
        merged_case.scores, merged_case.images = values, len(images)
        cases_of_level.append(merged_case)
    return cases_of_level


def describe_repeats(cases: Sequence[Case]) -> list[str]:
    """Return what was combined or counted once in the rows of series and patients, in words."""
    scored = [case for case in cases if case.scores is not None]
    images = [case for case in scored if case.level == IMAGE and case.pixel_sha256]
    notices = []
    repeated = len(images) - len({case.pixel_sha256 for case in images})
    if repeated:
        notices.append(
            f"{repeated} of {len(images)} images {'has' if repeated == 1 else 'have'} the same pixels as another one: "
            "each has a row, and counts once in the rows of its series and patient"
        )
    several = sum(case.level == "patient" and " studies, combined by " in case.detail for case in scored)
    if several:
        notices.append(
            f"{format_count(several, 'patient')} with images of several studies: the row of such a patient combines "
            "them by the rule in its column aggregation; rows with level=series keep them apart"
        )
    volumes = sum(case.level == "series" and " volumes of one series, " in case.detail for case in scored)
    if volumes:
        notices.append(
            f"{volumes} series of several volumes (other echoes, times or orientations): the row of such a series "
            "combines them; rows with level=image keep them apart"
        )
    return notices


def describe_answers(cases: Sequence[Case], task: Task) -> list[str]:
    """Return how many images were called each class, by which rule and threshold; of values nothing."""
    scored = [case for case in cases if case.level == IMAGE and case.scores is not None]
    if not scored or task.traits.numeric:
        return []
    decision = scored[0].decision
    if decision is None:
        return []
    predictions = decision.apply(build_predictions(task, np.array([case.scores for case in scored])))
    if predictions.traits.thresholds:
        counts = dict(zip(decision.thresholds, predictions.called.sum(axis=0).tolist(), strict=True))
    else:
        called = np.bincount(predictions.grade_predicted, minlength=len(task.class_names))
        counts = dict(zip(predictions.class_names, called.tolist(), strict=True))
    lines = []
    for name, count in counts.items():
        threshold = decision.thresholds.get(name)
        by = "" if threshold is None or np.isinf(threshold) else f", threshold {format_threshold(threshold)}"
        lines.append(f"{name}: {count} of {format_count(len(scored), 'image')}, rule {decision.rule}{by}")
    return [*lines, *describe_calls(predictions)]


def _decide_level(scored: Sequence[Case], level: str, *, task: Task, choices: Choices | None) -> None:
    """Fill in what each case is called; a series, which has no frozen points, is decided by those of images."""
    predictions = build_predictions(task, np.array([case.scores for case in scored]))
    decision = choices.decide(predictions, level=level) if choices else build_decision(predictions)
    decided = decision.apply(predictions)
    for case, answer in zip(scored, name_answers(decided), strict=True):
        case.predicted, case.decision = answer, decision
    if choices is None:
        return
    scores = {question.name: question.score for question in list_questions(predictions)}
    for point in choices.operating.get("levels", {}).get(level, {}).get("points", []):
        # A level or rule that got no threshold on validation has null.
        if point["threshold"] is not None:
            # As evaluation counts: called positive from the threshold on.
            for case, above in zip(scored, scores[point["question"]] >= point["threshold"], strict=True):
                case.chosen[name_point(task, point)] = bool(above)
    fitted = _find_map(choices)
    if level == IMAGE and fitted is not None:
        mapped = apply_recalibration(fitted, decided)
        # Rising maps keep who is called: the threshold of the recalibrated score is the mapped threshold.
        moved = replace(decision, thresholds=dict(zip(decision.thresholds, mapped.thresholds, strict=True)))
        for case, values in zip(scored, mapped.y_score.tolist(), strict=True):
            case.chosen |= name_scores(task, values, prefix="calibrated")
            case.chosen |= name_thresholds(task, moved, prefix="calibrated_threshold")


def _find_map(choices: Choices) -> Mapping[str, Any] | None:
    """Return the recalibration that was chosen; None if the scores are best as they are, and for a regression."""
    fitted: Mapping[str, Any] = choices.calibration.get("map", {"method": "none"})
    return None if fitted["method"] == "none" else fitted


def name_point(task: Task, point: Mapping[str, Any]) -> str:
    """Return the column of an operating point: above_sensitivity_0.95; above_<class>_youden unless binary."""
    rule = Rule(point["kind"], point["target"]).name
    return f"above_{rule}" if task.traits.pair else f"above_{point['question']}_{rule}"
