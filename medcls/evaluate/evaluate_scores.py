"""Evaluate a file of scores of any tool: the same numbers and report as for a run, without torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from medcls.config import EvaluateJob
from medcls.console import say
from medcls.errors import ConfigError, DataError, UsageError
from medcls.evaluate.choices import Choices, choose, complete_settings
from medcls.evaluate.frozen_analysis import FROZEN, freeze_analysis
from medcls.evaluate.judged_rows import (
    METRICS,
    Compared,
    Judged,
    hold_evaluations,
    list_columns,
    measure_all,
    publish,
    read_measuring,
)
from medcls.evaluate.score_file import read_number
from medcls.evaluate.score_form import Wanted
from medcls.evaluate.score_table import ScoreTable, read_scores
from medcls.evaluate.scores_report import (
    AGE,
    UNKNOWN,
    UNPROVEN,
    build_evaluation,
    describe_facts,
    describe_loss,
)
from medcls.files import MODEL, read_json, write_json
from medcls.identity import format_count
from medcls.report.content import Evaluation
from medcls.statistics.analysis import check_analysis
from medcls.statistics.assessment import IMAGE, describe_few
from medcls.statistics.predictions import Predictions, select_rows
from medcls.statistics.recalibration import count_patients as count_by_class
from medcls.statistics.subgroups import name_age_band
from medcls.statistics.thresholds import FROM_FILE, GIVEN, NEVER

INPUTS = "inputs.json"
OPERATING, CALIBRATION = "operating_points.json", "calibration.json"
# Settings of a run's evaluation that a file of scores has no use for.
_OF_RUNS = ("run", "store", "robustness", "shortcuts", "views", "scales", "flips")
# Settings of choices by the name that they have as a rule.
_NAMED = {"sensitivity": "sensitivity_at_least", "specificity": "specificity_at_least", "cost": "miss_costs"}


@dataclass(frozen=True, slots=True)
class Scores:
    """The files of scores, read and checked against one another.

    Attributes:
        table: Rows of predictions=.
        choices: What was chosen, set, or in the file before its rows are judged.
        chosen: Rows of choices=, or None.
        other: Predictions of against= in the order of the rows, or None.
    """

    table: ScoreTable
    choices: Choices
    chosen: ScoreTable | None
    other: Predictions | None


def evaluate_scores(job: EvaluateJob) -> None:
    """Evaluate predictions=FILE, write metrics.json, report.html and the documents into out=, and print the metrics.

    Raises:
        UsageError: out= is missing.
        ConfigError: A setting that belongs to a run, or contradicts the files.
        DataError, MissingInputError: A file is missing or wrong.
    """
    if not job.out:
        raise UsageError(f"out=DIR is missing: set the folder for the results of predictions={job.predictions}")
    fresh, folder, source = EvaluateJob(), Path(job.out), Path(str(job.predictions))
    for name in _OF_RUNS:
        if getattr(job, name) != getattr(fresh, name):
            raise ConfigError(f"{name}={getattr(job, name)} needs images, and predictions= has none: remove either")
    if (folder / MODEL).exists():
        raise ConfigError(f"out={folder} is a run: choose another folder")
    with hold_evaluations([], job.out, command="medcls.evaluate"):
        evaluated = (folder / METRICS).is_file()
        plan = freeze_analysis(folder, job.analysis, openings=None, evaluated=evaluated, where=f"out={folder}")
        wanted = Wanted(job.kind, job.positive, tuple(job.classes), job.grades, job.sums, job.patients)
        chosen, choices = None, Choices({}, {})
        if job.choices is not None:
            chosen, choices = choose_on_file(
                Path(job.choices), folder, wanted, asked=job.choosing, threshold=job.threshold, seed=job.seed
            )
        elif job.choosing:
            asked = next(iter(job.choosing))
            raise ConfigError(
                f"{_NAMED.get(asked, asked)} is chosen on other rows than those that are judged: set choices=FILE"
            )
        scores = read_files(source, wanted, job.against, choices=choices, chosen=chosen, threshold=job.threshold)
        table, form = scores.table, scores.table.form
        if plan is not None:
            where, against = f"analysis={job.analysis or folder / FROZEN}", job.against is not None
            check_analysis(
                plan.analysis, form.kind, class_names=form.class_names, grades=form.grades, against=against, where=where
            )
        check_out(folder, table, chosen)
        columns, absent = read_columns(table, list_columns(job.subgroups, plan))
        rows = scores.choices.apply(table.rows)
        judged = Judged(rows, scores.choices, columns, table.image_ids, form.labels, plan)
        compared = name_compared(source, job.against, scores)
        found = measure_all(read_measuring(job), judged, facts=describe_facts(table), other=compared)
        notes = list_notes(scores, threshold=job.threshold) + found.notes
        # The defaults are asked for by nobody.
        if absent and job.subgroups != fresh.subgroups:
            notes.append(f"no subgroups by {', '.join(absent)}: the file has no such column")
        said = f"kind={form.kind} ({form.why}); {_name_classes(table)}", f"{UNKNOWN}: {'; '.join(UNPROVEN.values())}"

        def build() -> Evaluation:
            return build_evaluation(table, judged, found, notes=notes, name=source.name, seed=job.seed)

        publish(folder, judged, found, build if job.report else None, title=source.name, said=said)


def read_files(
    source: Path,
    wanted: Wanted,
    against: str | None,
    *,
    choices: Choices,
    chosen: ScoreTable | None,
    threshold: float | None,
) -> Scores:
    """Return the rows of predictions= and against=, with the thresholds that are set or in the file."""
    # If one file has scores outside [0, 1], those of the other are no probabilities either.
    margins = chosen is not None and not chosen.rows.predictions.probabilities
    table = read_scores(source, name="predictions", wanted=wanted, like=chosen, margins=margins)
    if chosen is not None:
        check_apart(chosen, table)
    other = read_other(Path(against), wanted, table) if against else None
    if chosen is None:
        thresholds = find_thresholds(table, threshold)
        if thresholds:
            choices = replace(choices, operating=set_thresholds(thresholds, given=threshold is not None))
    return Scores(table, choices, chosen, other)


def choose_on_file(
    path: Path,
    folder: Path,
    wanted: Wanted,
    *,
    asked: Mapping[str, object],
    threshold: float | None,
    seed: int,
) -> tuple[ScoreTable, Choices]:
    """Return the rows of choices= and what is chosen on them, written before the main file is opened."""
    if threshold is not None:
        raise ConfigError(f"threshold={threshold:g} is set and choices= chooses one: remove either")
    table = read_scores(path, name="choices", wanted=wanted)
    rows, one = table.rows, table.rows.predictions
    settings = complete_settings(asked, kind=one.kind, grades=one.grades)
    images, patients = len(rows.patient_ids), len(set(rows.patient_ids))
    chosen_on = {
        "split": f"the file {path.name}",
        "sha256": table.sha256,
        "frozen": UNKNOWN,
        "n_images": images,
        "n_patients": patients,
        "patients_by_class": count_by_class(one, rows.patients),
    }
    choices = choose(rows, settings, chosen_on, seed=seed, points_seed=0)
    check_frozen(folder, choices.operating)
    write_json(folder / OPERATING, dict(choices.operating))
    write_json(folder / CALIBRATION, dict(choices.calibration))
    of = f"{format_count(images, 'image')} of {format_count(patients, 'patient')}"
    say(f"chosen on {path} ({of}): {folder / OPERATING}")
    return table, choices


def find_thresholds(table: ScoreTable, given: float | None) -> dict[str, float]:
    """Return threshold= for the positive class or every label, or the thresholds that the file has; {} = neither.

    Raises:
        ConfigError: threshold= for a kind of task that has none.
    """
    one = table.rows.predictions
    questions = one.traits.list_questions(one.class_names)
    if given is not None and not questions:
        raise ConfigError(f"threshold={given:g}: kind={one.kind} has no threshold: remove it")
    if given is not None:
        return dict.fromkeys(questions, given)
    if questions and len(table.thresholds) == len(questions):
        return dict(zip(questions, table.thresholds.values(), strict=True))
    return {}


def set_thresholds(thresholds: Mapping[str, float], *, given: bool) -> dict[str, object]:
    """Return the content of operating_points.json for thresholds that were given, or that the file has."""
    kind = GIVEN if given else FROM_FILE
    points: list[dict[str, object]] = []
    for question, value in thresholds.items():
        point: dict[str, object] = {"question": question, "kind": kind, "target": None, "threshold": float(value)}
        if np.isinf(value):
            point |= {"threshold": None, "reason": NEVER}
        points.append(point)
    return {"levels": {IMAGE: {"points": points}}, "settings": {"decision": kind}}


def check_frozen(folder: Path, operating: Mapping[str, Any]) -> None:
    """Check that other choices than before are not made once the rows have been evaluated in this folder."""
    if not (folder / METRICS).is_file() or not (folder / OPERATING).is_file():
        return
    before = read_json(folder / OPERATING)
    # What only a later version notes of the same rows is no change.
    known = before.get("chosen_on", {})
    now = dict(operating) | {"chosen_on": {key: value for key, value in operating["chosen_on"].items() if key in known}}
    changed = [key for key in ("chosen_on", "settings") if before.get(key) != now[key]]
    if changed:
        raise ConfigError(
            f"out={folder}: its rows were evaluated with other choices ({' and '.join(changed)} differ): use the same "
            "choices= and settings, or another out="
        )


def check_apart(chosen: ScoreTable, table: ScoreTable) -> None:
    """Check that no patient is in both files, and that both have scores of one kind."""
    if table.patients_known and chosen.patients_known:
        shared = set(chosen.rows.patient_ids) & set(table.rows.patient_ids)
        if shared:
            raise DataError(
                f"predictions= and choices= share {len(shared)} of {len(set(table.rows.patient_ids))} patients: "
                "thresholds cannot be chosen and evaluated on the same patients: remove them from choices="
            )
    if chosen.rows.predictions.probabilities and not table.rows.predictions.probabilities:
        raise DataError(
            f"predictions= has {format_count(table.outside, 'score')} outside [0, 1] and choices= has none: give both "
            "on one scale"
        )


def check_out(folder: Path, table: ScoreTable, chosen: ScoreTable | None) -> None:
    """Check that out= does not hold the results of other rows, and note which rows these are."""
    inputs = {"predictions_sha256": table.sha256, "choices_sha256": chosen and chosen.sha256}
    if (folder / INPUTS).is_file() and read_json(folder / INPUTS).get("predictions_sha256") != table.sha256:
        raise ConfigError(f"out={folder} holds the results of other predictions: choose another folder")
    if chosen is None and (folder / OPERATING).is_file():
        raise ConfigError(f"out={folder} holds choices of an earlier choices=: set it again, or choose another folder")
    write_json(folder / INPUTS, inputs)


def read_other(path: Path, wanted: Wanted, table: ScoreTable) -> Predictions:
    """Return the predictions of against=, in the order of the rows of predictions=.

    Raises:
        DataError: Rows that cannot be matched, other rows, or another truth.
    """
    other = read_scores(path, name="against", wanted=wanted, like=table)
    mine, theirs = _name_rows(table), _name_rows(other)
    if mine is None or theirs is None:
        raise DataError(
            f"against={path}: a patient has several rows, which are matched by image_id: add it to both files"
        )
    order = {name: row for row, name in enumerate(theirs)}
    missing, extra = len(set(mine) - set(theirs)), len(set(theirs) - set(mine))
    if missing or extra:
        raise DataError(
            f"against={path}: {format_count(missing, 'row')} of predictions= missing in it and {extra} not in "
            "predictions=: give both files the same rows"
        )
    aligned = select_rows(other.rows.predictions, np.array([order[name] for name in mine]))
    one = table.rows.predictions
    same = np.array_equal(aligned.y_true, one.y_true, equal_nan=one.y_true.dtype.kind == "f")
    patients = [other.rows.patient_ids[order[name]] for name in mine]
    if not same or (table.patients_known and other.patients_known and patients != list(table.rows.patient_ids)):
        what = "patients" if same else "truths"
        raise DataError(f"against={path}: some {what} differ from those of predictions=: correct either file")
    return aligned


def _name_rows(table: ScoreTable) -> Sequence[str] | None:
    """Return what tells the rows apart: the images, or patients with one row each; None = nothing does."""
    if table.image_ids:
        return table.image_ids
    ids = table.rows.patient_ids
    return ids if table.patients_known and len(set(ids)) == len(ids) else None


def read_columns(table: ScoreTable, names: Sequence[str]) -> tuple[dict[str, list[Any]], list[str]]:
    """Return the value of each row by column, and the columns asked for that the file does not have."""
    columns: dict[str, list[Any]] = {}
    absent: list[str] = []
    for name in names:
        source = name
        if name == "age":
            source = next((age for age in AGE if age in table.columns), "")
        if source not in table.columns:
            absent.append(name)
            continue
        cells = table.columns[source]
        columns[name] = list(cells)
        if name == "age":
            columns[name] = [name_age_band(read_number(cell)) for cell in cells]
    return columns, absent


def name_compared(source: Path, against: str | None, scores: Scores) -> Compared | None:
    """Return the predictions of against=, called as those of predictions= are, under the names of both files."""
    if against is None or scores.other is None:
        return None
    names = [source.name, Path(against).name]
    if names[0] == names[1]:
        names = [f"{names[0]} (predictions)", f"{names[1]} (against)"]
    return Compared(names[0], names[1], scores.choices.decide(scores.other).apply(scores.other))


def _name_classes(table: ScoreTable) -> str:
    names = table.form.class_names
    if table.rows.predictions.traits.pair:
        return f"positive class {names[1]}, negative {names[0]}"
    return f"classes {', '.join(names)}" if names else "a value"


def list_notes(scores: Scores, *, threshold: float | None) -> list[str]:
    """Return what a reader must know first, and say it on the terminal."""
    table = scores.table
    notes = [f"scores from a file (sha256 {table.sha256[:12]}…); {UNKNOWN}: {'; '.join(UNPROVEN.values())}"]
    if scores.chosen is None and table.rows.predictions.decides and table.rows.predictions.traits.thresholds:
        how = "0.5 by default"
        if threshold is not None:
            how = "set by threshold="
        elif scores.choices.operating:
            how = f"as in the file (rule {table.rule})"
        notes.append(f"nothing was chosen on other rows: the threshold is {how}")
    notes += describe_few(scores.choices.operating)
    notes += describe_loss(table)
    if scores.other is not None:
        notes.append("the thresholds of predictions= are also used for against=")
    # The first is printed below the numbers.
    for note in notes[1:]:
        say(f"notice: {note}")
    return notes
