"""Measure predicted rows, write the files and print the lines; for a run and for scores of any tool alike."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medcls.config import EvaluateJob
from medcls.console import put, say
from medcls.evaluate.choices import Choices
from medcls.evaluate.frozen_analysis import FrozenAnalysis, read_sample_size
from medcls.evaluate.reader_file import measure_readers, read_readers
from medcls.files import EVALUATION, delete_partial, write_json
from medcls.identity import PER_IMAGE, name_units
from medcls.locks import lock_folders
from medcls.report.content import Evaluation
from medcls.report.page_tables import count_labels, format_comparison, format_metrics
from medcls.report.report import REPORT, write_report
from medcls.statistics.analysis import format_analysis
from medcls.statistics.assessment import Extras, Rows, assess, measure_rows
from medcls.statistics.decision import describe_calls
from medcls.statistics.paired import compare_predictions
from medcls.statistics.predictions import Predictions

METRICS = "metrics.json"
WAIT_SECONDS = 3600.0
"""How long an evaluation waits for another one of the same run, which takes minutes."""

_BELOW_OUT = ("figures", "images", "maps")
"""Folders that evaluations and explanations make in out=."""


@dataclass(frozen=True, slots=True)
class Measuring:
    """What is measured of rows beside the metrics of their task, and how.

    Attributes:
        prevalences: At which predictive values are computed.
        least_patients: Fewest patients of a subgroup that is measured.
        replicates: Resamples of the patients.
        seed: Seed of the resampling.
        readers: File of readers' answers to the same images, or None.
        samplesize: File of the intended size of the study, or None.
    """

    prevalences: Sequence[float]
    least_patients: int
    replicates: int
    seed: int
    readers: str | None = None
    samplesize: str | None = None

    @property
    def sampling(self) -> dict[str, int]:
        """The settings of the bootstrap."""
        return {"replicates": self.replicates, "seed": self.seed}


def read_measuring(job: EvaluateJob) -> Measuring:
    """Return what the settings ask to be measured, of a run and of a file of scores alike."""
    return Measuring(
        job.prevalences,
        job.least_patients,
        job.replicates,
        job.seed,
        readers=job.readers,
        samplesize=job.samplesize,
    )


@dataclass(frozen=True, slots=True)
class Judged:
    """Rows, and what was decided before they were opened.

    Attributes:
        rows: Scores and truth with the thresholds of the decision, and whose they are.
        choices: What was chosen on other rows.
        columns: Columns of subgroups: name to the value of each row.
        image_ids: Name of each row; () if nothing names them.
        labels: Cell of a reader's answer to class index.
        plan: The frozen plan of analysis, or None.
        plan_notes: What a reader of its verdicts has to know.
    """

    rows: Rows
    choices: Choices
    columns: Mapping[str, Sequence[Any]]
    image_ids: Sequence[str]
    labels: Mapping[str, int]
    plan: FrozenAnalysis | None = None
    plan_notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Compared:
    """Other predictions of the same rows.

    Attributes:
        first: Name of the rows that are judged.
        second: Name of the others.
        predictions: Theirs.
    """

    first: str
    second: str
    predictions: Predictions


@dataclass(frozen=True, slots=True)
class Found:
    """What was measured.

    Attributes:
        metrics: Content of metrics.json.
        notes: What a reader of the report has to know.
        facts: Items of the checklists: the planned size of the study.
    """

    metrics: dict[str, Any]
    notes: list[str] = field(default_factory=list)
    facts: Mapping[str, object] = field(default_factory=dict)


@contextlib.contextmanager
def hold_evaluations(runs: Sequence[Path], out: str | None, *, command: str) -> Iterator[None]:
    """Hold what evaluations and explanations of runs write, and clear what killed ones have left.

    Raises:
        BusyError: another one has held it for an hour.
    """
    # A run that is not there is not made; whoever opens it says so.
    folders = [run / EVALUATION for run in runs if run.is_dir()]
    results = [Path(out)] if out else []
    with lock_folders([*folders, *results], command=command, wait_seconds=WAIT_SECONDS, say=say):
        inner = [path for folder in folders for path in folder.rglob("*") if path.is_dir()]
        # Not all that is in out=: a training may be writing a checkpoint into a run below it.
        inner += [folder / name for folder in results for name in _BELOW_OUT]
        for each in [*runs, *folders, *results, *inner]:
            delete_partial(each)
        yield


def list_columns(subgroups: Sequence[str], plan: FrozenAnalysis | None) -> list[str]:
    """Return the columns whose subgroups are measured: those of the plan, then those asked for."""
    planned = plan.analysis.columns if plan else ()
    return list(dict.fromkeys([*planned, *subgroups]))


def measure_all(
    measuring: Measuring,
    judged: Judged,
    *,
    facts: Mapping[str, Any],
    other: Compared | None = None,
    beside: Mapping[str, Any] | None = None,
) -> Found:
    """Measure everything that the rows and the choices answer.

    `facts` is what metrics.json says of the rows themselves, `beside` what only images tell (robustness, a baseline).
    """
    rows, operating, sampling = judged.rows, judged.choices.operating, measuring.sampling
    metrics = measure_rows(rows, operating, **sampling) | dict(facts)
    metrics |= assess(
        rows,
        operating=operating,
        calibration=judged.choices.calibration,
        extras=Extras(judged.columns, measuring.prevalences, measuring.least_patients),
        **sampling,
    )
    if other is not None:
        compared = compare_predictions(rows.predictions, other.predictions, rows.patients, **sampling)
        metrics["comparison"] = {"first": other.first, "second": other.second, **compared}
    metrics |= beside or {}
    notes = describe_calls(rows.predictions)
    if measuring.readers:
        readers = read_readers(Path(measuring.readers), rows, image_ids=judged.image_ids, labels=judged.labels)
        metrics["readers"] = measure_readers(readers, rows, operating, **sampling)
        notes += readers.notes
    size, found = read_sample_size(measuring.samplesize, patients=metrics["n_patients"])
    notes += found
    if judged.plan is not None:
        metrics["analysis"] = judged.plan.judge(metrics, notes=judged.plan_notes)
    return Found(name_reasons(metrics, patients_from=metrics["patients_from"]), notes, size)


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
    if isinstance(inner.get("n_patients"), int):
        inner["n_patients"] = None
    return inner


def publish(
    folder: Path,
    judged: Judged,
    found: Found,
    build: Callable[[], Evaluation] | None,
    *,
    title: str,
    said: tuple[str, str],
) -> None:
    """Write metrics.json and, unless report=false, the report, and print the results and the path.

    `build` collects what the report is made of (None = report=false); `said` is printed above and below the results.
    """
    metrics, written = found.metrics, folder / METRICS
    write_json(written, metrics)
    if build is not None:
        written = write_report(folder, build())
    elif (folder / REPORT).is_file():
        say(f"notice: {folder / REPORT} is from an earlier evaluation: set report=true to rewrite it")
    one = judged.rows.predictions
    lines = [said[0], format_metrics(metrics, title=title, calls=describe_calls(one), labels=count_labels(one))]
    if "comparison" in metrics:
        lines.append(format_comparison(metrics["comparison"], patients_from=metrics["patients_from"]))
    if "baseline" in metrics:
        lines.append(_describe_baseline(metrics["baseline"]))
    if "analysis" in metrics:
        lines.append(format_analysis(metrics["analysis"]))
    for line in filter(None, [*lines, said[1], f"{written.stem}: {written}"]):
        put(line)


def _describe_baseline(baseline: Mapping[str, Any]) -> str:
    """Return the first headline metric of the baseline and the network's difference from it, in one line."""
    name, entry = next(iter(baseline["comparison"]["metrics"].items()))
    value, difference = _format(baseline["metrics"][name], "value"), _format(entry, "difference")
    return f"baseline, {baseline['name']}: {name} {value}; network minus baseline {difference}"


def _format(entry: Mapping[str, Any], key: str) -> str:
    if entry[key] is None:
        return "undefined"
    text = f"{entry[key]:.3f}"
    if entry["low"] is not None:
        text += f" [{entry['low']:.3f}, {entry['high']:.3f}]"
    if "note" in entry:
        text += f" ({entry['note']})"
    return text
