"""Arms over folds: averages within folds, one bootstrap for all, the right test, Holm."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from sklearn import metrics as reference

from medcls.compare.comparison_results import format_pair
from medcls.statistics import arms as arms_module
from medcls.statistics import intervals
from medcls.statistics.arms import FoldPredictions, assess_arms
from medcls.statistics.fold_tests import compute_5x2_f, compute_corrected_t
from medcls.statistics.intervals import measure_predictions
from medcls.statistics.paired import adjust_holm
from medcls.statistics.predictions import check_predictions

Folds = list[FoldPredictions]
GRADES = ("0", "1", "2", "3")


def soften(generator: np.random.Generator, grades: np.ndarray, skill: float) -> np.ndarray:
    """Probabilities (N, 4) that lean to the true grade."""
    logits = generator.normal(size=(len(grades), 4)) + skill * np.eye(4)[grades]
    return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)


@pytest.fixture
def make_arm() -> Callable[..., Folds]:
    """An arm over folds of 80 images of 40 patients with grades 0 to 3: make_arm("ordinal", skill=2, k=5)."""

    def make(kind: str, *, skill: float = 1.5, k: int = 2, repeats: int = 1, seed: int = 0) -> Folds:
        generator = np.random.default_rng([seed, round(10 * skill), len(kind)])
        grades = np.repeat(np.arange(40) % 4, 2)
        patients = np.repeat(np.arange(40), 2)
        score = soften(generator, grades, skill)
        if kind == "regression":
            score = (score @ np.arange(4))[:, None]
        elif kind == "binary":
            grades, score = (grades > 1).astype(int), score[:, 2:].sum(axis=1, keepdims=True)
        names = ("0", "1") if kind == "binary" else GRADES
        folds = []
        for repeat in range(1, repeats + 1):
            place = np.random.default_rng(repeat).permutation(40)[patients] % k
            for number in range(1, k + 1):
                rows = np.flatnonzero(place == number - 1)
                one = check_predictions(
                    kind, grades[rows], score[rows], class_names=names, grades=kind in ("ordinal", "regression")
                )
                ids = [f"i{row}" for row in rows]
                folds.append(
                    FoldPredictions(
                        f"r{repeat}f{number}", repeat, number, one, ids, [f"p{patients[row]}" for row in rows]
                    )
                )
        return folds

    return make


def assess(arms: dict[str, Folds], **changes: Any) -> dict[str, Any]:
    return assess_arms(arms, **{"design": "kfold", "replicates": 200} | changes)


def kappa(one: FoldPredictions) -> float:
    p = one.predictions
    return float(reference.cohen_kappa_score(p.grade_true, p.grade_predicted, weights="quadratic"))


def test_a_metric_is_computed_within_folds_and_averaged(make_arm: Callable[..., Folds]) -> None:
    folds = make_arm("ordinal", k=4)
    found = assess({"a": folds})["arms"]["a"]
    by_fold = [kappa(one) for one in folds]
    assert found["metrics"]["quadratic_kappa"]["value"] == pytest.approx(np.mean(by_fold))
    assert [row["metrics"]["quadratic_kappa"] for row in found["folds"]] == pytest.approx(by_fold)
    assert sum(row["images"] for row in found["folds"]) == 80
    assert sum(row["patients"] for row in found["folds"]) == 40


def test_scores_of_folds_are_never_pooled(make_arm: Callable[..., Folds]) -> None:
    """Shifting the values of one fold's model changes the AUC of pooled rows, but of no fold."""
    folds = make_arm("regression", k=2)
    shifted = folds[0].predictions
    moved = check_predictions("regression", shifted.y_true, shifted.y_score + 50, class_names=GRADES, grades=True)
    other = [FoldPredictions(*[getattr(folds[0], n) for n in ("fold", "repeat", "number")], moved, folds[0].image_ids,
                             folds[0].patient_ids), folds[1]]  # fmt: skip
    found = assess({"a": folds, "b": other})["arms"]
    assert found["a"]["metrics"]["auc_above"] == found["b"]["metrics"]["auc_above"]


def test_one_fold_has_the_interval_of_an_ordinary_evaluation(make_arm: Callable[..., Folds]) -> None:
    one = make_arm("binary", k=1)[0]
    ordinary = measure_predictions(one.predictions, one.patient_ids, replicates=200, seed=3)
    found = assess({"a": [one]}, design="holdout", seed=3)["arms"]["a"]["metrics"]
    ordinary["ece"] = ordinary["ece"] | {"reason": found["ece"]["reason"]}
    del ordinary["ece"]["calibrated"]
    assert found == ordinary


def test_a_patient_is_drawn_alike_in_all_repeats(make_arm: Callable[..., Folds]) -> None:
    """Holdout with the same predictions for each seed: the mean over seeds has the interval of one."""
    one = make_arm("ordinal", k=1)[0]
    seeds = [FoldPredictions(f"s{n}", n, 1, one.predictions, one.image_ids, one.patient_ids) for n in (1, 2, 3)]
    single = assess({"a": seeds[:1]}, design="holdout")["arms"]["a"]["metrics"]["accuracy"]
    assert assess({"a": seeds}, design="holdout")["arms"]["a"]["metrics"]["accuracy"] == pytest.approx(single)


@pytest.mark.parametrize(("design", "least", "most"), [("holdout", 0.95, 0.98), ("repeated", 0.3, 0.45)])
def test_seeds_of_a_holdout_are_drawn_like_patients(design: str, least: float, most: float) -> None:
    """One seed is right about every patient and one about none: other patients change nothing, other seeds all.

    A half of two seeds is one of two: 1.3 % to 98.7 % by Clopper and Pearson.
    """
    true = np.arange(20) % 2
    ids = [f"p{row}" for row in range(20)]
    score = [np.eye(2)[true], np.eye(2)[1 - true]]
    seeds = [
        FoldPredictions(
            f"s{n}", n, 1, check_predictions("multiclass", true, score[n - 1], class_names=("0", "1")), ids, ids
        )
        for n in (1, 2)
    ]
    found = assess({"a": seeds}, design=design, metrics=["accuracy"])["arms"]["a"]["metrics"]["accuracy"]
    assert found["value"] == 0.5
    assert least < found["high"] - found["low"] < most


def test_grades_as_classes_and_as_a_number_share_definitions(make_arm: Callable[..., Folds]) -> None:
    classes, number = make_arm("ordinal"), make_arm("regression")
    found = assess({"classes": classes, "number": number})["arms"]
    for name, folds in (("classes", classes), ("number", number)):
        of = found[name]["metrics"]
        steps = [np.abs(one.predictions.grade_true - one.predictions.grade_predicted) for one in folds]
        assert of["mae"]["value"] == pytest.approx(np.mean([s.mean() for s in steps]))
        assert of["mse"]["value"] == pytest.approx(np.mean([(s**2).mean() for s in steps]))
        score = [one.predictions.y_score for one in folds]
        value = [s @ np.arange(4) if s.shape[1] == 4 else s[:, 0] for s in score]
        errors = [v - one.predictions.y_true for v, one in zip(value, folds, strict=True)]
        assert of["mse_value"]["value"] == pytest.approx(np.mean([(e**2).mean() for e in errors]))
        assert of["mae_value"]["value"] == pytest.approx(np.mean([np.abs(e).mean() for e in errors]))
        above = [
            np.mean([reference.roc_auc_score(one.predictions.y_true > g, v) for g in range(3)])
            for v, one in zip(value, folds, strict=True)
        ]
        assert of["auc_above"]["value"] == pytest.approx(np.mean(above))
        assert {"recall_0", "recall_3", "accuracy", "quadratic_kappa"} <= of.keys()
    assert "auc" not in found["classes"]["metrics"], "one against the rest is no question of a number"
    alone = assess({"classes": classes})["arms"]["classes"]["metrics"]
    assert {"auc", "log_loss"} <= alone.keys()
    assert alone["mse"] == found["classes"]["metrics"]["mse"]


def test_a_multiclass_arm_of_numbered_grades_joins_graded_ones(make_arm: Callable[..., Folds]) -> None:
    found = assess({"a": make_arm("multiclass"), "b": make_arm("ordinal")}, metrics=["quadratic_kappa"])
    assert found["pairs"]["quadratic_kappa"][0]["difference"] is not None


def differences(first: Folds, second: Folds) -> list[float]:
    return [kappa(a) - kappa(b) for a, b in zip(first, second, strict=True)]


@pytest.mark.parametrize(("design", "k", "repeats"), [("kfold", 5, 1), ("repeated", 4, 3)])
def test_folds_take_the_corrected_t_test(design: str, k: int, repeats: int, make_arm: Callable[..., Folds]) -> None:
    one, two = (make_arm("ordinal", skill=skill, k=k, repeats=repeats) for skill in (2.5, 1.5))
    found = assess({"one": one, "two": two}, design=design, test_share=1 / (k - 1), metrics=["quadratic_kappa"])
    (pair,) = found["pairs"]["quadratic_kappa"]
    expected = compute_corrected_t(differences(one, two), test_share=1 / (k - 1))
    assert pair["by_fold"] == pytest.approx(differences(one, two))
    assert pair["test"]["p_value"] == pytest.approx(expected.p_value)
    assert (pair["test"]["low"], pair["test"]["high"]) == pytest.approx((expected.low, expected.high))
    assert pair["test"]["p_holm"] == pair["test"]["p_value"], "one pair needs no correction"
    assert pair["bootstrap"]["low"] < pair["difference"] < pair["bootstrap"]["high"]


def test_five_halvings_take_the_f_test(make_arm: Callable[..., Folds]) -> None:
    one, two = (make_arm("ordinal", skill=skill, k=2, repeats=5) for skill in (2.5, 1.5))
    (pair,) = assess({"one": one, "two": two}, design="5x2", metrics=["quadratic_kappa"])["pairs"]["quadratic_kappa"]
    expected = compute_5x2_f(np.reshape(differences(one, two), (5, 2)))
    assert (pair["test"]["statistic"], pair["test"]["p_value"]) == pytest.approx((expected.statistic, expected.p_value))
    assert pair["test"]["low"] is None


def test_a_holdout_has_the_bootstrap_alone(make_arm: Callable[..., Folds]) -> None:
    found = assess({"one": make_arm("ordinal", k=1), "two": make_arm("ordinal", skill=3, k=1)}, design="holdout")
    (pair,) = found["pairs"]["accuracy"]
    assert pair["test"] is None
    assert 0 < pair["bootstrap"]["p_value"] <= 1


def test_pairs_of_arms_with_few_patients_of_a_class_have_a_note(make_arm: Callable[..., Folds]) -> None:
    """Three patients of the second class in all folds together."""

    def thin(folds: Folds) -> Folds:
        few = {f"p{number}" for number in (2, 3, 6)}
        made = []
        for one in folds:
            true = np.array([int(patient in few) for patient in one.patient_ids])
            made.append(replace(one, predictions=replace(one.predictions, y_true=true)))
        return made

    arms = {f"arm{skill}": thin(make_arm("binary", skill=skill, k=1)) for skill in (0.5, 2.5)}
    found = assess(arms, design="holdout", metrics=["brier", "auc"])
    note = "3 patients in the smallest class, fewer than 4: such intervals"
    assert found["arms"]["arm0.5"]["metrics"]["brier"]["note"].startswith(note)
    (pair,) = found["pairs"]["brier"]
    assert pair["bootstrap"]["note"].startswith(note)
    assert format_pair({**pair, "bootstrap": {**pair["bootstrap"], "p_holm": 1.0}}).count(note) == 1
    (pair,) = found["pairs"]["auc"]
    assert "note" not in pair["bootstrap"]


def test_all_pairs_are_there_and_holm_is_over_them(make_arm: Callable[..., Folds]) -> None:
    arms = {f"arm{skill}": make_arm("ordinal", skill=skill, k=5) for skill in (0.5, 1.5, 2.5, 3.5)}
    pairs = assess(arms, metrics=["accuracy"])["pairs"]["accuracy"]
    assert len(pairs) == 6
    for kind in ("test", "bootstrap"):
        expected = adjust_holm([pair[kind]["p_value"] for pair in pairs])
        assert [pair[kind]["p_holm"] for pair in pairs] == pytest.approx(expected)


def test_equal_arms_differ_by_nothing(make_arm: Callable[..., Folds]) -> None:
    arm = make_arm("ordinal", k=5)
    (pair,) = assess({"one": arm, "two": list(reversed(arm))}, metrics=["accuracy"])["pairs"]["accuracy"]
    assert (pair["difference"], pair["test"]["p_value"], pair["bootstrap"]["p_value"]) == (0, 1, 1)


def test_what_is_undefined_in_a_fold_is_undefined_with_a_reason(make_arm: Callable[..., Folds]) -> None:
    def without(folds: Folds) -> Folds:
        """Grade 3 is not among the rows of the first fold."""
        first = folds[0]
        rows = np.flatnonzero(first.predictions.y_true != 3)
        p = first.predictions
        kept = check_predictions(p.kind, p.y_true[rows], p.y_score[rows], class_names=GRADES, grades=True)
        ids = [[getattr(first, name)[row] for row in rows] for name in ("image_ids", "patient_ids")]
        return [FoldPredictions(first.fold, 1, 1, kept, *ids), *folds[1:]]

    found = assess({"a": without(make_arm("ordinal", k=4)), "b": without(make_arm("ordinal", skill=3, k=4))})
    recall = found["arms"]["a"]["metrics"]["recall_3"]
    assert recall["value"] is None
    assert recall["reason"] == "fold r1f1: no image of class 3"
    (pair,) = found["pairs"]["recall_3"]
    assert (pair["difference"], pair["test"]["p_value"], pair["test"]["p_holm"]) == (None, None, None)


def change(folds: Folds, rows: Sequence[int]) -> Folds:
    one = folds[0]
    ids = list(one.image_ids)
    for row in rows:
        ids[row] = f"x{row}"
    return [FoldPredictions(one.fold, one.repeat, one.number, one.predictions, ids, one.patient_ids), *folds[1:]]


def test_arms_of_other_rows_labels_classes_or_folds_are_refused(make_arm: Callable[..., Folds]) -> None:
    arm = make_arm("ordinal")
    with pytest.raises(ValueError, match=r"arms a and b have other images or labels in fold r1f1"):
        assess({"a": arm, "b": change(arm, [0])})
    with pytest.raises(ValueError, match="other folds"):
        assess({"a": arm, "b": arm[:1]})
    with pytest.raises(ValueError, match=r"learn other things: classes"):
        assess({"a": arm, "b": make_arm("binary")})
    with pytest.raises(ValueError, match=r"do not share a metric log_loss; they share accuracy"):
        assess({"a": arm, "b": make_arm("regression")}, metrics=["log_loss"])


def test_the_bootstrap_is_paired(make_arm: Callable[..., Folds]) -> None:
    """Arms that differ in one row differ far less surely than two single intervals would say."""
    arm = make_arm("ordinal", k=1)
    p = arm[0].predictions
    score = p.y_score.copy()
    score[0] = np.eye(4)[(p.y_true[0] + 1) % 4]
    other = check_predictions("ordinal", p.y_true, score, class_names=GRADES, grades=True)
    twin = [FoldPredictions("r1f1", 1, 1, other, arm[0].image_ids, arm[0].patient_ids)]
    found = assess({"one": arm, "two": twin}, design="holdout", metrics=["mse"])
    alone = found["arms"]["one"]["metrics"]["mse"]
    (pair,) = found["pairs"]["mse"]
    assert pair["bootstrap"]["high"] - pair["bootstrap"]["low"] < 0.5 * (alone["high"] - alone["low"])


def test_bootstrap_samples_go_through_in_chunks(
    make_arm: Callable[..., Folds], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each chunk is used up before the next is drawn, and how many there are changes no number."""
    arms = {"a": make_arm("ordinal"), "b": make_arm("ordinal", seed=1)}
    whole = assess(arms, replicates=20)
    monkeypatch.setattr(intervals, "CHUNK_VALUES", 3 * 40)
    alive, most = 0, 0

    def watch(*args: Any, **kwargs: Any) -> Any:
        nonlocal alive, most
        for weights in intervals.draw_replicates(*args, **kwargs):
            alive, most = alive + 1, max(most, alive + 1)
            weakref.finalize(weights, lower)
            yield weights
            del weights

    def lower() -> None:
        nonlocal alive
        alive -= 1

    monkeypatch.setattr(arms_module, "draw_replicates", watch)
    of_chunks = assess(arms, replicates=20)
    for name in arms:
        one, other = (found["arms"][name]["metrics"]["quadratic_kappa"] for found in (whole, of_chunks))
        assert other == pytest.approx(one)
    assert most <= 2
