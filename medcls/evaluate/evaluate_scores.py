"""Evaluate a file of scores of any tool: the same numbers and report as for a run, without torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from medcls.config import EvaluateJob, check_choice
from medcls.console import put, say
from medcls.errors import ConfigError, DataError, UsageError
from medcls.evaluate.frozen_analysis import FROZEN, freeze_analysis
from medcls.evaluate.judged_rows import (
    METRICS,
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
from medcls.evaluate.score_file import read_number
from medcls.evaluate.score_table import ScoreTable, Wanted, read_scores
from medcls.files import MODEL, read_json, write_json
from medcls.identity import PER_IMAGE, format_count
from medcls.report.content import Evaluation
from medcls.reproducibility import describe_software
from medcls.statistics.analysis import check_analysis
from medcls.statistics.assessment import (
    IMAGE,
    choose_calibration,
    choose_operating,
    describe_few,
    read_decision,
)
from medcls.statistics.decision import list_decisions
from medcls.statistics.exposure import Exposure
from medcls.statistics.predictions import Predictions, select_rows
from medcls.statistics.recalibration import count_patients as count_by_class
from medcls.statistics.subgroups import count_patients, name_age_band
from medcls.statistics.thresholds import FROM_FILE, GIVEN, NEVER, list_rules

INPUTS = "inputs.json"
OPERATING, CALIBRATION = "operating_points.json", "calibration.json"
FORMAT = 1
UNKNOWN = "unknown"
UNPROVEN = {
    "training_rows": "whether these rows trained or selected the model",
    "leaks": "whether patients of these rows were in its training data",
    "frozen_choices": "whether thresholds were chosen before these rows were seen",
    "openings": "how often these rows were evaluated",
}
"""What a file of scores cannot prove, by its name in metrics.json."""
_AGE = ("age_years", "age")
_DEFAULTS: dict[str, Any] = {"sensitivity": [0.95], "specificity": [0.95], "cost": [], "alpha": 0.1}
# Settings of a run's evaluation that a file of scores has no use for, and their defaults.
_OF_RUNS = ("run", "store", "robustness", "shortcuts", "views", "scales", "flips")


@dataclass(frozen=True, slots=True)
class Chosen:
    """What was decided before the main file was opened.

    Attributes:
        operating: operating_points.json, or the threshold that was set; {} = nothing.
        calibration: calibration.json; {} = nothing.
        table: The rows of choices=, or None.
    """

    operating: dict[str, Any]
    calibration: dict[str, Any]
    table: ScoreTable | None = None

    def decide(self, predictions: Predictions) -> Predictions:
        """Return the predictions with the thresholds of the decision."""
        return read_decision(self.operating, predictions).apply(predictions)


def evaluate_scores(job: EvaluateJob) -> None:
    """Evaluate predictions=FILE, write metrics.json, report.html and the documents into out=, and print the metrics.

    Raises:
        UsageError: out= is missing.
        ConfigError: A setting that belongs to a run, or contradicts the files.
        DataError, MissingInputError: A file is missing or wrong.
    """
    folder = check_settings(job)
    with hold_evaluations([], job.out, command="medcls.evaluate"):
        _evaluate_scores(job, folder)


def _evaluate_scores(job: EvaluateJob, folder: Path) -> None:
    evaluated = (folder / METRICS).is_file()
    plan = freeze_analysis(folder, job.analysis, openings=None, evaluated=evaluated, where=f"out={folder}")
    wanted = Wanted(job.kind, job.positive, tuple(job.classes), job.grades, job.sums, job.patients)
    choices = Path(job.choices) if job.choices is not None else None
    chosen = choose(choices, wanted, folder=folder, asked=job.choosing, threshold=job.threshold, seed=job.seed)
    source = Path(str(job.predictions))
    table = read_scores(source, name="predictions", wanted=wanted, like=chosen.table, margins=use_margins(chosen))
    if chosen.table is not None:
        check_apart(chosen.table, table)
    if plan is not None:
        one = table.form
        where, against = f"analysis={job.analysis or folder / FROZEN}", job.against is not None
        check_analysis(
            plan.analysis, one.kind, class_names=one.class_names, grades=one.grades, against=against, where=where
        )
    other = read_other(Path(job.against), wanted, table) if job.against else None
    chosen = set_threshold(chosen, table, job.threshold)
    check_out(folder, table, chosen)
    table = replace(table, rows=replace(table.rows, predictions=chosen.decide(table.rows.predictions)))
    columns, absent = read_columns(table, list_columns(job.subgroups, plan))
    found = measure_all(
        Measuring(
            job.prevalences,
            job.least_patients,
            job.replicates,
            job.seed,
            readers=job.readers,
            samplesize=job.samplesize,
        ),
        Judged(
            table.rows,
            operating=chosen.operating,
            calibration=chosen.calibration,
            columns=columns,
            image_ids=table.image_ids,
            labels=table.form.labels,
            plan=plan,
        ),
        facts={
            "rows": Exposure(len(table.rows.patient_ids), known=False).to_json(),
            "patients_from": "declared" if table.patients_known else PER_IMAGE,
            "openings": UNKNOWN,
            "unproven": dict.fromkeys(UNPROVEN, UNKNOWN),
            "source": describe_source(table),
        },
        other=None if other is None else name_compared(source, Path(str(job.against)), chosen.decide(other)),
    )
    notes = [*list_notes(table, chosen, threshold=job.threshold, against=bool(job.against)), *found.notes]
    # The defaults are asked for by nobody.
    if absent and job.subgroups != EvaluateJob().subgroups:
        notes.append(f"no subgroups by {', '.join(absent)}: the file has no such column")
    written = write_results(
        folder,
        found.metrics,
        lambda: build_evaluation(table, chosen, found, notes=notes, name=source.name, seed=job.seed),
        report=job.report,
    )
    put(f"kind={table.form.kind} ({table.form.why}); {describe_classes(table)}")
    print_results(found.metrics, table.rows.predictions, title=source.name)
    put(f"{UNKNOWN}: {'; '.join(UNPROVEN.values())}")
    put(f"{written.stem}: {written}")


def check_settings(job: EvaluateJob) -> Path:
    """Return the folder of the results, after checking that no setting belongs to a run."""
    if not job.out:
        raise UsageError(f"out=DIR is missing: set the folder for the results of predictions={job.predictions}")
    fresh = EvaluateJob()
    for name in _OF_RUNS:
        if getattr(job, name) != getattr(fresh, name):
            raise ConfigError(f"{name}={getattr(job, name)} needs images, and predictions= has none: remove either")
    folder = Path(job.out)
    if (folder / MODEL).exists():
        raise ConfigError(f"out={folder} is a run: choose another folder")
    return folder


def use_margins(chosen: Chosen) -> bool:
    """Whether the file of choices has scores outside [0, 1]: then those of the main file are no probabilities."""
    return chosen.table is not None and not chosen.table.rows.predictions.probabilities


def choose(
    choices: Path | None,
    wanted: Wanted,
    *,
    folder: Path,
    asked: Mapping[str, Any],
    threshold: float | None,
    seed: int,
) -> Chosen:
    """Return what is chosen on the rows of choices=, written before the main file is opened; or what is set.

    Args:
        choices: File of the rows that choose; None = nothing is chosen.
        wanted: What the file is asked to be.
        folder: Of the results.
        asked: Settings of the choices that are given.
        threshold: As it was set, or None.
        seed: Seed of the choices.
    """
    if choices is None:
        if asked:
            named = {"sensitivity": "sensitivity_at_least", "specificity": "specificity_at_least", "cost": "miss_costs"}
            first = named.get(next(iter(asked)), next(iter(asked)))
            raise ConfigError(f"{first} is chosen on other rows than those that are judged: set choices=FILE")
        return Chosen({}, {})
    if threshold is not None:
        raise ConfigError(f"threshold={threshold:g} is set and choices= chooses one: remove either")
    table = read_scores(choices, name="choices", wanted=wanted)
    one = table.rows.predictions
    settings = _DEFAULTS | dict(asked)
    rules = list_rules(**{name: settings[name] for name in ("sensitivity", "specificity", "cost")})
    known = list_decisions(one.kind, rules, grades=one.grades)
    settings["decision"] = settings.get("decision") or known[0]
    check_choice("decision", settings["decision"], known)
    sizes = {"n_images": len(table.rows.patient_ids), "n_patients": len(set(table.rows.patient_ids))}
    chosen_on = {"split": f"the file {choices.name}", "sha256": table.sha256, "frozen": UNKNOWN, **sizes}
    chosen_on["patients_by_class"] = count_by_class(one, table.rows.patients)
    shared = {"format": FORMAT, "chosen_on": chosen_on, "settings": settings}
    operating = shared | {"rules": [asdict(rule) for rule in rules]} | choose_operating(table.rows, rules=rules)
    calibration = shared | choose_calibration(table.rows, alpha=settings["alpha"], seed=seed)
    check_frozen(folder, operating)
    write_json(folder / OPERATING, operating)
    write_json(folder / CALIBRATION, calibration)
    say(
        f"chosen on {choices} ({format_count(sizes['n_images'], 'image')} of "
        f"{format_count(sizes['n_patients'], 'patient')}): {folder / OPERATING}"
    )
    return Chosen(operating, calibration, table)


def set_threshold(chosen: Chosen, table: ScoreTable, threshold: float | None) -> Chosen:
    """Return the choices with threshold= for the positive class or every label, or with those that the file gives."""
    one = table.rows.predictions
    own = use_own(table, chosen) and threshold is None
    if threshold is None and not own:
        return chosen
    if one.kind not in ("binary", "multilabel"):
        raise ConfigError(f"threshold={threshold:g}: kind={one.kind} has no threshold: remove it")
    questions = one.class_names[1:] if one.kind == "binary" else one.class_names
    kind = FROM_FILE if own else GIVEN
    known = dict(zip(questions, table.thresholds.values(), strict=True)) if own else {}
    points = [
        {"question": question, "kind": kind, "target": None, **_give(known.get(question, threshold))}
        for question in questions
    ]
    return replace(chosen, operating={"levels": {IMAGE: {"points": points}}, "settings": {"decision": kind}})


def use_own(table: ScoreTable, chosen: Chosen) -> bool:
    """Return whether the thresholds are those that medcls wrote with the scores: nothing was chosen anew."""
    decides = table.form.kind in ("binary", "multilabel") and chosen.table is None
    return decides and len(table.thresholds) == len(table.rows.predictions.y_score[0])


def _give(value: float | None) -> dict[str, Any]:
    if value is None or np.isinf(value):
        return {"threshold": None, "reason": NEVER}
    return {"threshold": float(value)}


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


def check_out(folder: Path, table: ScoreTable, chosen: Chosen) -> None:
    """Check that out= does not hold the results of other rows, and note which rows these are."""
    inputs = {"predictions_sha256": table.sha256, "choices_sha256": chosen.table and chosen.table.sha256}
    if (folder / INPUTS).is_file() and read_json(folder / INPUTS).get("predictions_sha256") != table.sha256:
        raise ConfigError(f"out={folder} holds the results of other predictions: choose another folder")
    if chosen.table is None and (folder / OPERATING).is_file():
        raise ConfigError(f"out={folder} holds choices of an earlier choices=: set it again, or choose another folder")
    write_json(folder / INPUTS, inputs)


def read_other(path: Path, wanted: Wanted, table: ScoreTable) -> Predictions:
    """Return the predictions of against=, in the order of the rows of predictions=.

    Raises:
        DataError: Rows that cannot be matched, other rows, or another truth.
    """
    other = read_scores(path, name="against", wanted=wanted, like=table)
    mine, theirs = (name_rows(one) for one in (table, other))
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


def name_rows(table: ScoreTable) -> Sequence[str] | None:
    """Return what tells the rows apart: the images, or patients with one row each; None = nothing does."""
    if table.image_ids:
        return table.image_ids
    ids = table.rows.patient_ids
    return ids if table.patients_known and len(set(ids)) == len(ids) else None


def name_compared(source: Path, against: Path, other: Predictions) -> Compared:
    """Return the predictions of against= under the names of both files."""
    names = [source.name, against.name]
    if names[0] == names[1]:
        names = [f"{names[0]} (predictions)", f"{names[1]} (against)"]
    return Compared(names[0], names[1], other)


def read_columns(table: ScoreTable, names: Sequence[str]) -> tuple[dict[str, list[Any]], list[str]]:
    """Return the value of each row by column, and the columns asked for that the file does not have."""
    columns: dict[str, list[Any]] = {}
    absent: list[str] = []
    for name in names:
        source = next((age for age in _AGE if age in table.columns), "") if name == "age" else name
        if source not in table.columns:
            absent.append(name)
            continue
        cells = table.columns[source]
        columns[name] = [name_age_band(read_number(cell)) for cell in cells] if name == "age" else list(cells)
    return columns, absent


def describe_source(table: ScoreTable) -> dict[str, Any]:
    """Return what metrics.json says of the file."""
    return {
        "kind": "file of scores",
        "sha256": table.sha256,
        "probabilities": table.rows.predictions.probabilities,
        "left_out": table.left_out,
        "normalized": table.normalized,
        "patients_known": table.patients_known,
    }


def describe_classes(table: ScoreTable) -> str:
    """Return the classes, of a binary task which one is positive, in words."""
    names = table.form.class_names
    if table.form.kind == "binary":
        return f"positive class {names[1]}, negative {names[0]}"
    return f"classes {', '.join(names)}" if names else "a value"


def list_notes(table: ScoreTable, chosen: Chosen, *, threshold: float | None, against: bool) -> list[str]:
    """Return what a reader must know first, and say it on the terminal."""
    notes = [f"scores from a file (sha256 {table.sha256[:12]}…); {UNKNOWN}: {'; '.join(UNPROVEN.values())}"]
    if chosen.table is None and table.rows.predictions.decides and table.form.kind in ("binary", "multilabel"):
        how = "set by threshold=" if threshold is not None else "0.5 by default"
        how = f"as in the file (rule {table.rule})" if threshold is None and use_own(table, chosen) else how
        notes.append(f"nothing was chosen on other rows: the threshold is {how}")
    notes += describe_few(chosen.operating)
    if table.unscored:
        notes.append(
            f"{format_count(table.unscored, 'image')} without a score (refused or skipped by predict) left out: the "
            "numbers are those of the others"
        )
    if table.left_out:
        notes.append(f"{format_count(table.left_out, 'row')} without a truth left out")
    if not table.rows.predictions.probabilities and table.form.kind != "regression":
        notes.append(
            f"{format_count(table.outside, 'score')} outside [0, 1]: all are taken as margins, which rank images; "
            "calibration is not measured, since it needs probabilities"
        )
    if table.normalized:
        notes.append(
            f"sums=normalize: the probabilities of {format_count(table.normalized, 'row')} were divided by their sum"
        )
    if not table.patients_known:
        notes.append("patients are unknown: every row counts as a patient, so intervals may be too narrow")
    if against:
        notes.append("the thresholds of predictions= are also used for against=")
    # The first stands on the terminal below the numbers.
    for note in notes[1:]:
        say(f"notice: {note}")
    return notes


def build_evaluation(
    table: ScoreTable, chosen: Chosen, found: Found, *, notes: list[str], name: str, seed: int
) -> Evaluation:
    """Return what the report is made of; what a file cannot prove reads "unknown".

    Args:
        table: The rows, with the thresholds of the decision.
        chosen: What was decided before the file was opened.
        found: What was measured.
        notes: What a reader has to know.
        name: Of the file.
        seed: Seed of the bands of the curves.
    """
    rows, one, metrics = table.rows, table.rows.predictions, found.metrics
    sizes = {"images": metrics["n_images"], "patients": metrics["n_patients"]}
    flow = [
        {
            "title": "Rows in the file",
            **table.total,
            "images": table.total["images"] + table.unscored,
            "left_out": [("without a score", table.unscored)] * bool(table.unscored)
            + [("without a truth", table.left_out)] * bool(table.left_out),
        },
        {"title": "Evaluated", **sizes, "left_out": []},
    ]
    first = np.unique(rows.patients, return_index=True)[1].tolist()
    known = {column: [cells[row] or None for row in first] for column, cells in table.columns.items()}
    ages = [read_number(cell or "") for cell in next((known[column] for column in _AGE if column in known), [])]
    described = count_patients(
        ages, {column: known[column] for column in ("sex", "manufacturer", "modality") if column in known}
    )
    return Evaluation(
        predictions=one,
        patient_ids=rows.patient_ids,
        metrics=metrics,
        split="",
        store_name="",
        source=f"a file of scores, {name}",
        seed=seed,
        exposure=Exposure(metrics["n_images"], known=False),
        environment=describe_software(),
        notes=notes,
        flow=flow,
        demographics={"evaluated": sizes | described},
        operating=chosen.operating,
        facts=describe_unknown(table) | found.facts,
    )


def describe_unknown(table: ScoreTable) -> dict[str, Any]:
    """Return the items of the checklists that only the makers of the scores know, as unknown."""
    names = ", ".join(table.form.class_names)
    seen = f"{UNKNOWN}: {UNPROVEN['training_rows']}, and {UNPROVEN['leaks']}"
    return {
        "technology": f"{UNKNOWN}: scores of another tool for {table.form.kind}" + (f" ({names})" if names else ""),
        "initialization": UNKNOWN,
        "selection": UNKNOWN,
        "training": UNKNOWN,
        "preprocessing": UNKNOWN,
        "partitions": UNKNOWN,
        "disjoint": seen,
        "internal": seen,
        "external": seen,
        "missing": f"{format_count(table.left_out, 'row')} without a truth left out; other losses are {UNKNOWN}",
    }
