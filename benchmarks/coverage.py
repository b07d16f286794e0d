"""How often do the 95 % intervals hold the truth? Simulated data sets with a known truth, by size and prevalence.

    python -m benchmarks.coverage --datasets 1000 --state coverage.jsonl --page docs/results/coverage.md

Every number that carries an interval is listed from what the code answers. A run that is stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import functools
import json
import platform
import re
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from medcls.clinical.odds import compute_ratios, list_contrasts
from medcls.identity import format_count
from medcls.statistics.conformal import calibrate_conformal, evaluate_conformal
from medcls.statistics.intervals import explain_plainly
from medcls.statistics.metrics import compute_metrics
from medcls.statistics.paired import describe_areas, describe_difference, draw_pair
from medcls.statistics.predictions import Predictions, check_predictions
from medcls.statistics.reader_study import Readings, compare_readers
from medcls.statistics.thresholds import apply_operating_points

PATIENTS = (40, 100, 400)
PREVALENCES = (0.05, 0.2, 0.5)
IMAGES = (1, 3)
ROUND = 50  # data sets of a cell before the next cell: what is stopped early has seen all cells
PROMISED, LOWEST = 0.95, 0.93
LEAST_GIVEN = 30  # intervals of a cell from which a share is shown
_TRUTH_PATIENTS = 300_000
_SEPARATION = 1.5  # standard deviations between cases and others: an AUC of .86
_SHARED = 0.5  # share of the variance that the images of a patient have in common
_SECOND = 0.6  # correlation of the second model's scores with the first's, given the truth
_POINT = {"kind": "youden", "target": None, "threshold": 0.0}
_STATED = (0.02,)
_COMMAND = "python -m benchmarks.coverage --datasets 1000 --state coverage.jsonl --page docs/results/coverage.md"

Floats = NDArray[np.float64]


class Number(NamedTuple):
    """Value and limits, NaN for a missing one, and whether the entry has a note beside its interval."""

    value: float
    low: float
    high: float
    noted: bool


Numbers = dict[str, Number]
COUNTS = ("given", "held", "above", "width", "noted", "held_noted")
"""What is counted of each number: intervals, those that hold the truth, those above it, their widths added up, those
with a note, and those of these that hold the truth."""


@dataclass(frozen=True, slots=True)
class Cell:
    """What is simulated.

    Attributes:
        kind: Of the task; "graded" is a regression of grades.
        patients: Number of them.
        prevalence: Of the second class, of each label, of the highest class.
        images: Of each patient.
    """

    kind: str
    patients: int
    prevalence: float
    images: int


@dataclass(frozen=True, slots=True)
class Draw:
    """Two models' predictions on the same rows, a column beside them, and whose rows they are."""

    first: Predictions
    second: Predictions
    column: Floats
    patients: NDArray[np.int64]


def list_cells() -> list[Cell]:
    """Return the cells of the table; a plain regression has no prevalence."""
    kinds = ("binary", "multiclass", "ordinal", "multilabel", "graded", "regression")
    cells = [Cell(*one) for one in product(kinds, PATIENTS, PREVALENCES, IMAGES)]
    return [cell for cell in cells if cell.kind != "regression" or cell.prevalence == PREVALENCES[-1]]


def draw(cell: Cell, generator: np.random.Generator) -> Draw:
    """Return one data set: normal scores, half of their variance shared by the images of a patient."""
    patients = np.repeat(np.arange(cell.patients), cell.images)
    shape = (len(patients), 3)

    def noise() -> Floats:
        own, shared = generator.normal(size=shape), generator.normal(size=(cell.patients, 3))[patients]
        return np.asarray(np.sqrt(1 - _SHARED) * own + np.sqrt(_SHARED) * shared)

    base, other, column = noise(), noise(), generator.normal(size=(cell.patients, 3))[patients]
    beside = _SECOND * base + np.sqrt(1 - _SECOND**2) * other
    if cell.kind in ("binary", "multilabel"):
        truth = (generator.random((cell.patients, 3)) < cell.prevalence)[patients]
        truth = truth[:, : 1 if cell.kind == "binary" else 2]
        both = [_posterior(truth, each[:, : truth.shape[1]], cell.prevalence) for each in (base, beside)]
        labels = truth[:, 0] if cell.kind == "binary" else truth
        first, second = (_check(cell.kind, labels, score) for score in both)
        return Draw(first, second, column[:, 0] + 0.5 * truth[:, 0], patients)
    shares = np.array([0.6 * (1 - cell.prevalence), 0.4 * (1 - cell.prevalence), cell.prevalence])
    true = generator.choice(3, size=cell.patients, p=shares)[patients]
    if cell.kind in ("multiclass", "ordinal"):
        places = np.eye(3) * _SEPARATION if cell.kind == "multiclass" else np.outer(np.arange(3), [_SEPARATION, 0, 0])
        both = [
            _softmax((places[true] + each) @ places.T - (places**2).sum(1) / 2 + np.log(shares))
            for each in (base, beside)
        ]
        first, second = (_check(cell.kind, true, score) for score in both)
        return Draw(first, second, column[:, 0], patients)
    value = true.astype(np.float64) if cell.kind == "graded" else column[:, 1] + column[:, 2]
    both = [0.8 * value[:, None] + 0.6 * each[:, :1] for each in (base, beside)]
    first, second = (_check(cell.kind, value, score) for score in both)
    return Draw(first, second, column[:, 0], patients)


def _check(kind: str, true: Any, score: Floats) -> Predictions:
    names = {"binary": ["no", "yes"], "regression": [], "multilabel": ["a", "b"]}.get(kind, ["a", "b", "c"])
    grades = kind in ("ordinal", "graded")
    return check_predictions("regression" if kind == "graded" else kind, true, score, class_names=names, grades=grades)


def _posterior(truth: NDArray[np.bool_], noise: Floats, prevalence: float) -> Floats:
    """Calibrated probabilities."""
    log_odds = _SEPARATION * (_SEPARATION * truth + noise - _SEPARATION / 2) + np.log(prevalence / (1 - prevalence))
    return np.asarray(1 / (1 + np.exp(-log_odds)))


def _softmax(logits: Floats) -> Floats:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def measure(one: Draw, *, frozen: Mapping[str, Any], prevalence: float, replicates: int, seed: int) -> Numbers:
    """Return every number of the evaluation that has an interval.

    Args:
        one: The data set.
        frozen: Bounds of the conformal sets, from other patients; {} for none.
        prevalence: Of the cell: the threshold is where the scores of cases and others cross.
        replicates: Bootstrap samples; 0 for the values alone.
        seed: Of the bootstrap.
    """
    point = {**_POINT, "question": "yes", "threshold": prevalence}
    sampling = {"replicates": max(replicates, 1), "seed": seed}
    found: Numbers = {}
    if replicates:
        first, second = draw_pair(one.first, one.second, one.patients, replicates=replicates, seed=seed)
        found |= {name: _read(entry) for name, entry in first.describe(explain_plainly).items()}
        for name in first.values:
            found[f"difference of {name}"] = _read(describe_difference(name, first, second))
    else:
        plain = [compute_metrics(model) for model in (one.first, one.second)]
        found |= {name: _read({"value": value}) for name, value in plain[0].items()}
        found |= {f"difference of {name}": _read({"value": plain[0][name] - plain[1][name]}) for name in plain[0]}
    if frozen:
        ids = one.patients.astype(str)
        for problem in evaluate_conformal(one.first, frozen, ids, **sampling):
            for kind in ("marginal", "by_class"):
                found |= {f"conformal {kind} {problem['label']} {k}": _read(v) for k, v in problem[kind].items()}
    if one.first.kind == "binary":
        (applied,) = apply_operating_points(one.first, [point], one.patients, prevalences=_STATED, **sampling)
        found |= {f"operating point {name}": _read(entry) for name, entry in applied["rates"].items()}
        ((_, entry),) = describe_areas(one.first, one.second, one.patients).items()
        found |= {"DeLong difference of auc": _read(entry)} | _measure_reader(one, prevalence, **sampling)
    if one.first.kind in ("binary", "regression") and not one.first.grades:
        found |= _measure_odds(one, **sampling)
    return found


def _measure_reader(one: Draw, threshold: float, *, replicates: int, seed: int) -> Numbers:
    """A reader who calls by the second model's scores."""
    answers = (one.second.y_score[:, 0] >= threshold).astype(np.int64)
    reader = Readings("reader", np.arange(len(answers)), answers)
    (entry,) = compare_readers(one.first, one.patients, [reader], replicates=replicates, seed=seed)["entries"]
    names = ("sensitivity", "specificity", "model_sensitivity", "difference")
    return {f"reader {name}": _read(entry[name]) for name in names}


def _measure_odds(one: Draw, *, replicates: int, seed: int) -> Numbers:
    output = one.first.kind
    score = one.first.y_score
    image = score if output == "regression" else np.log(score / (1 - score))
    contrasts = list_contrasts(
        output, np.asarray(one.first.y_true, dtype=np.float64)[:, None], image, class_names=["no", "yes"]
    )
    ((entry,),) = compute_ratios(
        contrasts,
        one.column[:, None],
        one.patients,
        l2=1e-4,
        replicates=replicates,
        seed=seed,
    )
    return {"odds ratio" if output == "binary" else "coefficient of a column": _read(entry)}


def _read(entry: Mapping[str, Any]) -> Number:
    known = {**entry, "value": entry.get("value", entry.get("difference"))}
    value, low, high = (np.nan if known.get(key) is None else float(known[key]) for key in ("value", "low", "high"))
    return Number(value, low, high, "note" in entry)


@functools.cache
def find_truth(kind: str, prevalence: float) -> tuple[dict[str, Any], dict[str, float]]:
    """Return the bounds of the conformal sets, and every number of a data set that is very large."""
    large = Cell(kind, _TRUTH_PATIENTS, prevalence, 1)
    other = draw(large, np.random.default_rng([1, 1]))
    frozen = calibrate_conformal(other.first, other.patients, alpha=0.1) if kind in ("binary", "multiclass") else {}
    one = draw(large, np.random.default_rng([1, 0]))
    found = measure(one, frozen=frozen, prevalence=prevalence, replicates=0, seed=0)
    return frozen, {name: number.value for name, number in found.items()}


def simulate(cell: Cell, *, datasets: int, start: int, replicates: int) -> dict[str, Any]:
    """Return for each number what `COUNTS` names, over the data sets that gave an interval.

    Args:
        cell: What is drawn.
        datasets: How many.
        start: Number of the first.
        replicates: Bootstrap samples of each.
    """
    frozen, truth = find_truth(cell.kind, cell.prevalence)
    counts: dict[str, list[float]] = {}
    for number in range(start, start + datasets):
        seed = [cell.patients, round(100 * cell.prevalence), cell.images, number]
        one = draw(cell, np.random.default_rng(seed))
        found = measure(one, frozen=frozen, prevalence=cell.prevalence, replicates=replicates, seed=number)
        for name, (_, low, high, noted) in found.items():
            row = counts.setdefault(name, [0.0] * len(COUNTS))
            true = truth.get(name, np.nan)
            if np.isfinite([low, high, true]).all():
                held = low <= true <= high
                new = (1, held, low > true, high - low, noted, held and noted)
                row[:] = [float(old + more) for old, more in zip(row, new, strict=True)]
    return {"cell": asdict(cell), "datasets": datasets, "start": start, "replicates": replicates, "counts": counts}


def build_page(done: Sequence[Mapping[str, Any]]) -> str:
    """Return the Markdown page: for each kind of task a row for each number, a column for each cell.

    Args:
        done: What `simulate` returned, in any order; rounds of one cell are added up, classes of one number, too.
    """
    totals: dict[tuple[str, str], dict[Cell, NDArray[np.float64]]] = {}
    datasets: dict[Cell, int] = {}
    for one in done:
        cell = Cell(**one["cell"])
        datasets[cell] = datasets.get(cell, 0) + one["datasets"]
        for name, counts in one["counts"].items():
            plain = re.sub(r"( yes| no|_yes|_no|_a|_b|_c)+$", "", name.replace("  ", " "))
            row = totals.setdefault((cell.kind, plain), {})
            row[cell] = row.get(cell, np.zeros(len(COUNTS))) + np.array(counts)
    replicates = sorted({one["replicates"] for one in done})
    fewest, most = min(datasets.values()), max(datasets.values())
    lines = [
        "# How often 95 % intervals hold the truth",
        "",
        f"Data sets per cell: {fewest if fewest == most else f'{fewest} to {most}'}; bootstrap replicates of each: "
        f"{', '.join(map(str, replicates))} (evaluate takes 2,000). {date.today():%d %B %Y}, {platform.machine()}, "
        f"Python {platform.python_version()}, numpy {np.__version__}. Command:",
        "",
        f"    {_COMMAND}",
        "",
        "Scores are normal and calibrated, cases 1.5 standard deviations above the others; images of a patient share",
        "half of the variance; the scores of the second model of a difference, and of the reader, have correlation 0.6",
        "with the first's. The truth is that of 300,000 patients.",
        "Columns: patients / share of the rarer class / images per patient.",
        "Cells: percent of the intervals that hold the truth; in brackets: given in less than half of the data sets;",
        "empty: in fewer than 30. Numbers of single classes are added up. ECE has no interval (decision 0047).",
        "Below 93 the interval should carry a note (decision 0053). The mark n: it does, in most data sets, or the",
        "intervals without a note hold the truth in 93 percent. Bold: it does not. Under each table these are listed;",
        "by chance alone a number that holds the truth in 94 percent is below 93 in one of ten cells of 1,000 each.",
        "",
    ]
    for kind in dict.fromkeys(kind for kind, _ in totals):
        cells = [cell for cell in list_cells() if cell.kind == kind and cell in datasets]
        rows = {name: row for (other, name), row in sorted(totals.items()) if other == kind}
        rows = {name: row for name, row in rows.items() if any(counts[0] for counts in row.values())}
        lines += [f"## {kind}", "", f"| number | {' | '.join(map(_name_cell, cells))} |"]
        lines += ["|---" * (len(cells) + 1) + "|"]
        lines += [
            f"| {name} | {' | '.join(_format(row.get(cell), datasets[cell]) for cell in cells)} |"
            for name, row in rows.items()
        ]
        lines += ["", *_list_unsaid(rows), ""]
    return "\n".join(lines)


def _name_cell(cell: Cell) -> str:
    return f"{cell.patients} / {cell.prevalence:g} / {cell.images}"


def _format(counts: NDArray[np.float64] | None, datasets: int) -> str:
    if counts is None or counts[0] < LEAST_GIVEN:
        return ""
    text = f"{100 * counts[1] / counts[0]:.0f}"
    if _is_low(counts):
        text = f"{text} n" if _is_said(counts) else f"**{text}**"
    return f"({text})" if counts[0] < datasets / 2 else text


def _is_low(counts: NDArray[np.float64], *, errors: float = 0.0) -> bool:
    """Whether a cell is below what is promised, by more than so many standard errors of the simulation."""
    given, held = counts[:2]
    spare = errors * np.sqrt(PROMISED * (1 - PROMISED) / max(given, 1))
    return bool(given >= LEAST_GIVEN and held / given < LOWEST - spare)


def _is_said(counts: NDArray[np.float64]) -> bool:
    """Whether most intervals of a cell have a note, or those without one hold the truth as often as promised."""
    given, held, _, _, noted, held_noted = counts
    return bool(noted >= given / 2 or held - held_noted >= LOWEST * (given - noted))


def _list_unsaid(rows: Mapping[str, Mapping[Cell, NDArray[np.float64]]]) -> list[str]:
    """Sentences on the cells of a kind that are low without a note, and on notes in cells that are not low."""
    low = {name: {cell: counts for cell, counts in row.items() if _is_low(counts)} for name, row in rows.items()}
    unsaid = {name: {cell: one for cell, one in row.items() if not _is_said(one)} for name, row in low.items()}
    unsaid = {name: row for name, row in unsaid.items() if row}
    flat = [counts for row in unsaid.values() for counts in row.values()]
    beyond = sum(_is_low(counts, errors=2) for counts in flat)
    listed = "; ".join(
        f"{name} ({', '.join(f'{_name_cell(cell)}: {100 * one[1] / one[0]:.1f}' for cell, one in row.items())})"
        for name, row in unsaid.items()
    )
    sound = [one for row in rows.values() for one in row.values() if one[0] >= LEAST_GIVEN and not _is_low(one)]
    large = [
        one
        for row in rows.values()
        for cell, one in row.items()
        if cell.patients == max(PATIENTS) and one[0] >= LEAST_GIVEN and not _is_low(one)
    ]
    shares = [100 * sum(one[4] for one in some) / max(1, sum(one[0] for one in some)) for some in (sound, large)]
    number = sum(map(len, low.values()))
    return [
        f"Below 93 and not said: {format_count(len(flat), 'cell')} ({beyond} by more than two standard errors)"
        + (f": {listed}." if listed else "."),
        f"Below 93 and said: {format_count(number - len(flat), 'cell')}. Of the intervals in the {len(sound)} cells "
        f"from 93, {shares[0]:.1f} percent have a note; with {max(PATIENTS)} patients {shares[1]:.1f} percent.",
    ]


def main(arguments: list[str]) -> int:
    """Simulate what is still missing in the state, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--datasets", type=int, default=1000)
    parser.add_argument("--replicates", type=int, default=100)
    parser.add_argument("--state", type=Path, default=Path("coverage.jsonl"))
    parser.add_argument("--page", type=Path)
    parser.add_argument("--kinds", default="")
    parser.add_argument("--patients", default="")
    options = parser.parse_args(arguments)
    cells = [
        c
        for c in list_cells()
        if (not options.kinds or c.kind in options.kinds.split(","))
        and (not options.patients or str(c.patients) in options.patients.split(","))
    ]
    done = [json.loads(line) for line in options.state.read_text().splitlines()] if options.state.is_file() else []
    for start in range(0, options.datasets, ROUND):
        for cell in cells:
            if any(one["cell"] == asdict(cell) and one["start"] == start for one in done):
                continue
            began = time.process_time()
            found = simulate(
                cell, datasets=min(ROUND, options.datasets - start), start=start, replicates=options.replicates
            )
            with options.state.open("a") as file:
                file.write(json.dumps(found) + "\n")
            done.append(found)
            print(f"{cell} {start} {time.process_time() - began:.1f} s", file=sys.stderr, flush=True)
    if options.page:
        options.page.write_text(build_page(done), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
