"""Bootstrap over patients: determinism, the unit, and what happens where there is too little."""

from __future__ import annotations

import json
import re
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from scipy.special import stdtrit
from sklearn.metrics import accuracy_score, roc_auc_score

from benchmarks import coverage
from medcls.statistics import intervals
from medcls.statistics.bounds import Base, bound, bound_area, bound_by_variance, compute_wilson
from medcls.statistics.definitions import find_definition
from medcls.statistics.intervals import measure_predictions
from medcls.statistics.metrics import build_estimator
from medcls.statistics.predictions import KINDS, check_predictions
from medcls.statistics.support import find_support


def proportion_wilson(successes, rows):
    """Wilson 1927, as a root of (p - share)^2 = z^2 p (1 - p) / n."""
    z2, share = 1.959963984540054**2, successes / rows
    return np.sort(np.roots([1 + z2 / rows, -(2 * share + z2 / rows), share**2]).real)


def compute(task, patients, **change):
    task = dict(task) | change
    sampling = {"replicates": 200} | {name: task.pop(name) for name in ("replicates", "seed", "level") if name in task}
    return measure_predictions(check_predictions(**task), patients, **sampling)


@pytest.mark.parametrize("kind", KINDS)
def test_same_seed_same_intervals_whatever_the_chunks(make_task, make_patients, kind):
    task, patients = make_task(kind), make_patients(60)
    first = compute(task, patients)
    assert compute(task, patients) == first
    assert compute(task, patients, seed=1) != first
    with mock.patch.object(intervals, "CHUNK_VALUES", 7 * 60):
        chunked = compute(task, patients)
    assert chunked.keys() == first.keys()
    for name, entry in first.items():
        # Products of matrices differ in last bits.
        numbers = {key: entry[key] for key in ("value", "low", "high") if entry[key] is not None}
        assert {key: chunked[name][key] for key in numbers} == pytest.approx(numbers, rel=1e-8), name


@pytest.mark.parametrize("kind", KINDS)
def test_value_lies_in_its_interval_and_all_is_json(make_task, make_patients, kind):
    found = compute(make_task(kind, rows=120), make_patients(120))
    json.dumps(found, allow_nan=False)
    given = {name: entry for name, entry in found.items() if entry["low"] is not None}
    assert len(given) >= 0.9 * len(found)
    assert all(entry["low"] <= entry["value"] <= entry["high"] for entry in given.values())
    assert all(entry["low"] < entry["high"] for entry in given.values())
    assert all(("reason" in entry) == (name not in given) for name, entry in found.items())


@pytest.mark.parametrize(("patients", "images"), [(40, 1), (60, 3)])
def test_intervals_hold_the_truth(patients, images):
    """120 data sets: 0.86 is 4.5 standard errors below 95 %; a biased interval or one without width fails."""
    cell = coverage.Cell("binary", patients, 0.5, images)
    found = coverage.simulate(cell, datasets=120, start=0, replicates=60)["counts"]
    held = {name: hold / given for name, (given, hold, *_) in found.items() if given > 60}
    assert len(held) > 40
    assert {name: share for name, share in held.items() if share < 0.86} == {}


@pytest.mark.parametrize("kind", ["binary", "multiclass", "ordinal", "multilabel"])
def test_no_interval_of_a_perfect_model_has_zero_width(make_task, make_patients, kind):
    task = make_task(kind, rows=120)
    true = np.nan_to_num(task["y_true"])
    score = true if kind == "multilabel" else np.eye(int(true.max()) + 1)[true.astype(int)]
    if kind == "binary":
        score = score[:, 1:]
    found = compute(task, make_patients(120), y_true=true, y_score=0.9 * score + 0.1 / max(score.shape[1], 2))
    for name, entry in found.items():
        assert entry["low"] is None or entry["low"] < entry["high"], name
        assert entry["low"] is not None or entry["reason"], name
    ratios = [name for name in found if name.startswith("lr_positive")]
    shares = [name for name in found if find_definition(name).scale in ("share", "area", "mean", "agreement")]
    assert all(found[name]["value"] == 1 and found[name]["low"] < 1 for name in shares)
    assert all(found[name]["value"] is None for name in ratios)


def test_share_of_all_rows_has_wilsons_interval(make_task):
    task = make_task("binary")
    cases = int(task["y_true"].sum())
    found = compute(task, [str(row) for row in range(60)], y_score=0.2 + 0.6 * task["y_true"])["sensitivity"]
    low, _ = proportion_wilson(cases, cases)
    assert (found["value"], found["high"]) == (1.0, 1.0)
    assert found["low"] == pytest.approx(low)


def test_share_of_patients_with_copies_has_the_interval_of_the_patients(make_task):
    """Three copies of each image: as many independent rows as patients, by Student's quantile for few patients."""
    task = make_task("binary")
    single = compute(task, [str(row) for row in range(60)], replicates=2000)["accuracy"]
    copied = {name: np.repeat(task[name], 3, axis=0) for name in ("y_true", "y_score")}
    several = compute(task, [str(row) for row in np.repeat(np.arange(60), 3)], replicates=2000, **copied)["accuracy"]
    width, alone = (one["high"] - one["low"] for one in (several, single))
    assert alone < width < 1.12 * alone


def test_interval_that_is_known_to_hold_too_rarely_says_so(make_task):
    task = make_task("binary")
    ids = [str(row) for row in range(60)]
    assert "note" not in compute(task, ids)["brier"]
    few = np.zeros(60, dtype=int)
    few[:4] = 1
    assert not [name for name, entry in compute(task, ids, y_true=few).items() if "smallest" in entry.get("note", "")]
    few[3] = 0
    found = compute(task, ids, y_true=few)
    for name in ("brier", "log_loss", "calibration_intercept"):
        assert found[name]["note"].startswith("3 patients in the smallest class, fewer than 4: such intervals contain")
    assert "note" not in found["auc"]


@pytest.mark.parametrize(("hits", "rows", "limit"), [(1, 30, 0.0512933), (2, 30, 0.3553615), (3, 30, 0.8176914)])
def test_share_with_few_exceptions_has_the_limit_of_a_poisson_number(hits, rows, limit):
    """Brown, Cai & DasGupta 2001: half the 5 % quantile of chi squared with twice as many degrees of freedom."""
    low, high = compute_wilson(hits / rows, rows)
    assert low == pytest.approx(limit / rows, rel=1e-5)
    assert high == pytest.approx(proportion_wilson(hits, rows)[1])
    assert compute_wilson(1 - hits / rows, rows) == pytest.approx((1 - high, 1 - low))
    assert compute_wilson(4 / rows, rows) == pytest.approx(tuple(proportion_wilson(4, rows)))
    assert compute_wilson(0, rows)[0] == 0
    # Three of 57: 1 - 54 / 57 times 57 is a little more than 3 in floating point.
    assert compute_wilson(54 / 57, 57)[1] == pytest.approx(1 - 0.8176914 / 57, rel=1e-5)


def test_an_area_with_one_patient_on_a_side_has_no_interval_nor_has_its_mean(make_task):
    """One positive patient says nothing of how much an AUC varies between patients."""
    task, ids = make_task("multilabel"), [str(row) for row in range(60)]
    true = np.nan_to_num(task["y_true"])
    true[:, 1] = np.arange(60) == 7
    found = compute(task, ids, y_true=true)
    assert found["auc_KL0"]["low"] is not None
    for name in ("auc_KL1", "auc", "average_precision", "recall_KL1", "balanced_accuracy"):
        assert found[name]["value"] is not None
        assert found[name]["low"] is None
        assert found[name]["reason"] == "1 patient with KL1: there is nothing to resample", name
    binary = compute(make_task("binary"), ids, y_true=(np.arange(60) != 7).astype(int))
    assert binary["auc"]["reason"] == f"1 patient of class {make_task('binary')['class_names'][0]}" + (
        ": there is nothing to resample"
    )


@pytest.mark.parametrize(("positives", "words"), [(0, "0 patients"), (1, "1 patient"), (3, "3 patients")])
def test_the_note_of_a_label_is_that_of_the_mean_also_without_positives(make_task, positives, words):
    task = make_task("multilabel", rows=120)
    true = np.zeros_like(task["y_true"])
    true[::2] = 1
    true[:, 2] = np.arange(120) < positives
    found = compute(task, [str(row) for row in range(120)], y_true=true)
    note = f"{words} in the smallest class, fewer than 4: such intervals contain the truth less often than 95 %"
    assert found["brier_KL2"]["note"].startswith(note)
    assert found["brier"]["note"].startswith(f"Brier score KL2: {note}")
    assert "note" not in found["brier_KL1"]


def test_exceptions_of_one_patient_count_as_copies(make_task):
    """Three wrong rows of one patient of twenty with three images: the interval is that of 19 of 20 patients."""
    one, few = Base((20,), (60,), clustered=True), 3 / 60
    found = bound_by_variance("share", 1 - few, few * (1 - few) / 55, one)
    effective = 20 * (1.959964 / stdtrit(19, 0.975)) ** 2
    assert found == pytest.approx(compute_wilson(1 - few, effective), rel=1e-5)
    # Of six wrong rows the measured variance decides.
    assert bound_by_variance("share", 0.9, 0.09 / 55, one) == pytest.approx(
        compute_wilson(0.9, 55 * (1.959964 / stdtrit(19, 0.975)) ** 2), rel=1e-5
    )


def test_skewness_of_few_replicates_is_taken_for_chance():
    """Symmetric replicates: the two sides of the interval differ by 19 % on average instead of 37 %."""
    generator, base = np.random.default_rng(0), Base((90,), (90,), clustered=False)

    def compare_sides(drawn, value):
        low, high = bound("error", value, drawn, base)
        return np.log((high - value) / (value - low))

    apart = [abs(compare_sides(generator.normal(0.5, 0.02, 100), 0.5)) for _ in range(300)]
    assert np.mean(apart) < 0.25
    assert compare_sides(generator.gamma(4, 0.1, 4000), 0.4) > 1.4  # of skewed ones they do


def test_variance_of_a_mean_over_folds_is_corrected_for_the_patients_of_one_fold():
    """A bootstrap of 20 patients within 5 folds has 3/4 of the variance, not 19/20."""
    drawn = np.random.default_rng(0).normal(0.5, 0.02, 4000)
    whole, folds = (Base((20,), (20,), clustered=False, folds=count) for count in (1, 5))
    wide, narrow = (np.ptp(bound("real", 0.5, drawn, base)) for base in (folds, whole))
    assert wide / narrow == pytest.approx(np.sqrt((4 / 3) / (20 / 19)))


def test_few_patients_of_a_class_widen_the_interval_of_an_error_and_of_a_precision(make_task):
    """Student's quantile has the degrees of freedom of the smallest class, and never fewer than four."""
    drawn = np.random.default_rng(0).normal(0.5, 0.02, 400)
    few, many = (Base((100,), (100,), clustered=False, smallest=n) for n in (7, 90))
    narrow, wide = (np.ptp(bound("error", 0.5, drawn, base)) for base in (many, few))
    assert wide / narrow == pytest.approx(stdtrit(6, 0.975) / stdtrit(89, 0.975), rel=0.02)
    least = np.ptp(bound("error", 0.5, drawn, Base((100,), (100,), clustered=False, smallest=2)))
    assert least / narrow == pytest.approx(stdtrit(4, 0.975) / stdtrit(89, 0.975), rel=0.03)
    sides = [Base(sides, sides, clustered=False, smallest=min(sides)) for sides in ((7, 93), (47, 53))]
    narrow, wide = (np.ptp(bound("precision", 0.5, drawn, base)) for base in reversed(sides))
    assert wide > 1.15 * narrow


@pytest.mark.parametrize("kind", KINDS)
def test_mean_metrics_are_the_mean_of_their_parts(make_task, kind):
    predictions = check_predictions(**make_task(kind, rows=120))
    values = {name: value[0] for name, value in build_estimator(predictions)(np.ones((1, 120))).items()}
    support = find_support(predictions, values)
    assert set(support) == set(values)
    means = {name: basis.parts for name, basis in support.items() if basis.scale == "mean"}
    assert all(
        values[name] == pytest.approx(np.mean([values[part] for part in parts])) for name, parts in means.items()
    )
    assert means or kind == "regression"


def test_calibration_error_has_no_interval_and_says_what_chance_makes_of_it():
    """The mean of a calibrated model's calibration errors is what `calibrated` says, one image per patient or three."""
    generator = np.random.default_rng(0)
    for images in (1, 3):
        found, expected = [], []
        for _ in range(60):
            shared = np.repeat(generator.normal(size=80), images)
            truth = np.repeat(generator.random(80) < 0.5, images)
            logit = 1.5 * (1.5 * (truth - 0.5) + np.sqrt(0.5) * (shared + generator.normal(size=80 * images)))
            ids = np.repeat(np.arange(80), images).astype(str)
            one = check_predictions("binary", truth, 1 / (1 + np.exp(-logit)), class_names=("a", "b"))
            entry = measure_predictions(one, ids, replicates=1)["ece"]
            assert entry["low"] is None
            assert "calibrated model would show" in entry["reason"]
            found.append(entry["value"])
            expected.append(entry["calibrated"])
        assert np.mean(expected) == pytest.approx(np.mean(found), rel=0.1)


def test_agrees_with_an_explicit_bootstrap_of_rows(make_task):
    task, patients = make_task("binary"), [f"p{row // 3:03d}" for row in range(60)]
    found = compute(task, patients)
    generator, areas, accuracies = np.random.default_rng(0), [], []
    true, score = task["y_true"], task["y_score"][:, 0]
    for _ in range(200):
        rows = np.concatenate([np.arange(3 * p, 3 * p + 3) for p in generator.integers(20, size=20)])
        areas.append(roc_auc_score(true[rows], score[rows]))
        accuracies.append(accuracy_score(true[rows], score[rows] >= 0.5))
    for name, drawn in (("auc", areas), ("accuracy", accuracies)):
        spread, value = np.std(drawn, ddof=1) * np.sqrt(20 / 19), found[name]["value"]
        if name == "accuracy":
            effective = min(60, value * (1 - value) / spread**2) * (1.959964 / 2.093024) ** 2  # t of 19 patients
            low, high = proportion_wilson(value * effective, effective)
            assert (found[name]["low"], found[name]["high"]) == pytest.approx((low, high), rel=1e-5)
        else:
            sides = [len(set(np.arange(60)[true == side] // 3)) for side in (1, 0)]
            variance = np.var(drawn, ddof=1) * min(sides) / (min(sides) - 1)
            limits = bound_area(value, variance, tuple(sides))
            assert (found[name]["low"], found[name]["high"]) == pytest.approx(limits)


def test_copies_of_an_image_do_not_narrow_the_interval(make_task):
    task = make_task("binary")
    single = compute(task, [str(row) for row in range(60)])
    copied = {name: np.repeat(task[name], 5, axis=0) for name in ("y_true", "y_score")}
    several = compute(task, [str(row) for row in np.repeat(np.arange(60), 5)], **copied)
    assert several["auc"] == pytest.approx(single["auc"], rel=1e-6)
    naive = compute(task, [str(row) for row in range(300)], **copied)
    assert naive["auc"]["high"] - naive["auc"]["low"] < 0.6 * (single["auc"]["high"] - single["auc"]["low"])


def test_the_order_of_the_rows_does_not_matter_to_the_value_nor_much_to_the_interval(make_task, make_patients):
    task, patients = make_task("multiclass"), np.array(make_patients(60))
    order = np.random.default_rng(3).permutation(60)
    shuffled = {name: task[name][order] for name in ("y_true", "y_score")}
    assert compute(task, patients[order], **shuffled)["auc"] == pytest.approx(compute(task, patients)["auc"])


def test_one_patient_has_values_and_no_intervals(make_task):
    found = compute(make_task("binary"), ["only"] * 60)
    assert found["auc"]["value"] > 0.5
    assert found["auc"]["low"] is None
    assert found["brier"]["reason"] == "one patient only: there is nothing to resample"


def test_an_absent_class_is_null_with_its_name(make_task, make_patients):
    task = make_task("multiclass")
    rows = task["y_true"] != 2
    shorter = {name: task[name][rows] for name in ("y_true", "y_score")}
    found = compute(task, make_patients(int(rows.sum())), **shorter)
    assert found["auc"] == {"value": None, "low": None, "high": None, "reason": "no image of class KL2"}
    assert found["auc_KL0"]["low"] is not None


def test_a_label_without_positives_is_named(make_task, make_patients):
    task = make_task("multilabel")
    task["y_true"][:, 1] = np.where(np.isnan(task["y_true"][:, 1]), np.nan, 0)
    found = compute(task, make_patients(60))
    assert found["auc_KL1"]["reason"] == "no image with KL1"
    assert found["auc"]["value"] is None
    assert found["auc_KL0"]["value"] is not None


def test_a_class_of_one_patient_with_two_images_has_a_value_and_no_interval(make_task, make_patients):
    task = make_task("binary")
    true = np.zeros(60, dtype=int)
    true[:2] = 1
    found = compute(task, make_patients(60), y_true=true)["sensitivity"]
    assert found["value"] is not None
    assert found["low"] is None
    assert found["reason"] == f"1 patient of class {task['class_names'][1]}: there is nothing to resample"


def test_separated_classes_have_no_slope_and_the_reason_says_so(make_task, make_patients):
    task = make_task("binary")
    score = 0.1 + 0.8 * task["y_true"] + 0.001 * np.arange(60)
    found = compute(task, make_patients(60), y_score=score)
    assert found["auc"]["value"] == found["auc"]["high"] == 1.0
    assert 0.8 < found["auc"]["low"] < 0.9
    assert found["calibration_slope"]["reason"].startswith("the two classes are separated completely")
    assert found["lr_positive"]["reason"] == "no false positive: no finite ratio"


def test_no_replicates_are_refused(make_task, make_patients):
    with pytest.raises(ValueError, match="replicates is"):
        compute(make_task("binary"), make_patients(60), replicates=0)


def test_patients_must_match_the_rows(make_task, make_patients):
    with pytest.raises(ValueError, match="expected one for each of the 60 rows"):
        compute(make_task("binary"), make_patients(59))


def test_notes_are_counted_and_cells_that_lack_one_are_listed():
    """Of 40 patients with two cases each Brier score has a note if fewer than four came; a sensitivity has none."""
    cell = coverage.Cell("binary", 40, 0.05, 1)
    one = coverage.simulate(cell, datasets=40, start=0, replicates=40)
    counts = {name: dict(zip(coverage.COUNTS, row, strict=True)) for name, row in one["counts"].items()}
    draws = [coverage.draw(cell, np.random.default_rng([40, 5, 1, number])).first.y_true.sum() for number in range(40)]
    assert counts["brier"]["noted"] == sum(cases < 4 for cases in draws)
    assert counts["difference of brier"]["noted"] > 0
    made = {
        "loud": [1000, 880, 0, 1, 600, 500],  # low, most have a note
        "right": [1000, 920, 0, 1, 150, 100],  # low, but without those that have a note 820 of 850
        "silent": [1000, 880, 0, 1, 0, 0],
        "good": [1000, 950, 0, 1, 100, 90],
    }
    page = coverage.build_page([{**one, "datasets": 1000, "counts": made}])
    rows = {line.split(" | ")[0][2:]: line.split(" | ")[1].rstrip(" |") for line in page.splitlines() if " | " in line}
    assert {name: rows[name] for name in made} == {
        "loud": "88 n",
        "right": "92 n",
        "silent": "**88**",
        "good": "95",
    }
    assert "Below 93 and not said: 1 cell (1 by more than two standard errors): silent" in page
    assert "silent (40 / 0.05 / 1: 88.0)." in page
    assert "Below 93 and said: 2 cells. Of the intervals in the 1 cells from 93, 10.0 percent have a note" in page


@pytest.mark.slow
@pytest.mark.parametrize("cell", [("binary", 100, 0.2, 1), ("multiclass", 40, 0.2, 3), ("regression", 100, 0.5, 3)])
def test_coverage_of_the_page_is_found_again(cell):
    """150 data sets: each number within four standard errors (and half a percent of rounding) of what the page says."""
    page = (Path(coverage.__file__).parents[1] / "docs" / "results" / "coverage.md").read_text(encoding="utf-8")
    part = page.split(f"\n## {cell[0]}\n")[1].split("\n## ")[0]
    table = [line.strip("|").split("|") for line in part.splitlines() if line.startswith("|")]
    column = [text.strip() for text in table[0]].index(f"{cell[1]} / {cell[2]:g} / {cell[3]}")
    said = {row[0].strip(): re.sub(r"[^0-9]", "", row[column]) for row in table[2:]}
    found = coverage.simulate(coverage.Cell(*cell), datasets=150, start=5000, replicates=100)["counts"]
    compared = 0
    for name, (given, held, *_) in found.items():
        if given >= 140 and said.get(name):
            promised = int(said[name]) / 100
            error = np.sqrt(max(promised * (1 - promised), 0.02) / given)
            assert abs(held / given - promised) < 4 * error + 0.005, name
            compared += 1
    assert compared > 5


@pytest.mark.slow
def test_the_nominal_95_percent_cover_93_to_97_percent():
    """Two correlated images a patient; the truth is known from the normal distributions that they come from."""
    generator, covered, trials = np.random.default_rng(0), {"auc": 0, "mae": 0, "accuracy": 0}, 1000
    patients = [str(row // 2) for row in range(300)]
    truth = {"auc": 0.7602499389065233, "accuracy": 0.6914624612740131}  # Phi(1 / sqrt 2), Phi(1 / 2)
    for trial in range(trials):
        true = np.repeat(generator.integers(0, 2, size=150), 2)
        shared, own = np.repeat(generator.normal(size=150), 2), generator.normal(size=300)
        noise = (shared + own) / np.sqrt(2)
        logit = true - 0.5 + noise
        drawn = {"replicates": 500, "seed": trial}
        score = 1 / (1 + np.exp(-logit))
        one, other = (
            check_predictions("binary", true, score, class_names=("a", "b")),
            check_predictions("regression", true, true + noise, class_names=()),
        )
        classes, values = measure_predictions(one, patients, **drawn), measure_predictions(other, patients, **drawn)
        mean_error = np.sqrt(2 / np.pi)
        covered["auc"] += classes["auc"]["low"] <= truth["auc"] <= classes["auc"]["high"]
        covered["accuracy"] += classes["accuracy"]["low"] <= truth["accuracy"] <= classes["accuracy"]["high"]
        covered["mae"] += values["mae"]["low"] <= mean_error <= values["mae"]["high"]
    assert all(0.93 <= count / trials <= 0.97 for count in covered.values()), covered
