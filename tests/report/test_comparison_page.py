"""The page of a comparison: whole, self-contained, and true to comparison.json."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medcls.report.comparison_page import build_curves, write_comparison_page
from medcls.statistics.arms import FoldPredictions, assess_arms
from medcls.statistics.definitions import name_metric
from medcls.statistics.number_text import format_p
from medcls.statistics.predictions import check_predictions
from medcls.statistics.shared_metrics import choose_metrics

GRADES = ("0", "1", "2", "3", "4")
SKILLS = {"scratch": 0.6, "features + <svm>": 1.0, "classification": 1.5, "regression": 1.6, "corn": 1.55}


def make_folds(skill: float, *, size: int | None, seed: int) -> list[FoldPredictions]:
    """Five folds of 40 patients with two knees each; more images, more skill."""
    grades = np.repeat(np.arange(200) % 5, 2)
    patients = np.repeat(np.arange(200), 2)
    own = np.random.default_rng([seed, size or 0])
    logits = own.normal(size=(400, 5)) + np.random.default_rng(1).normal(size=(400, 5))
    logits -= skill * (1 if size is None else 0.3 * np.log10(size)) * np.abs(np.arange(5) - grades[:, None])
    score = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    folds = []
    for number in range(1, 6):
        rows = np.flatnonzero((patients // 5) % 5 == number - 1)
        one = check_predictions("ordinal", grades[rows], score[rows], class_names=GRADES, grades=True)
        ids = [f"secret-image-{row}" for row in rows]
        folds.append(FoldPredictions(f"r1f{number}", 1, number, one, ids, [f"secret-{p}" for p in patients[rows]]))
    return folds


@pytest.fixture(scope="session")
def make_results() -> Callable[..., dict[str, Any]]:
    """What comparison.json of five arms holds: make_results(sizes=[100, None])."""

    def make(sizes: tuple[int | None, ...] = (100, 300, None), replicates: int = 100) -> dict[str, Any]:
        found = {}
        metric, secondary = choose_metrics(make_folds(1, size=None, seed=0)[0].predictions)
        for size in sizes:
            arms = {name: make_folds(skill, size=size, seed=k) for k, (name, skill) in enumerate(SKILLS.items())}
            assessed = assess_arms(arms, design="kfold", metrics=[metric, *secondary], replicates=replicates)
            for k, arm in enumerate(assessed["arms"].values()):
                arm["cost"] = {
                    "train_seconds": 100.0 * (k + 1),
                    "shared_seconds": 0.0,
                    "evaluate_seconds": None,
                    "trainings": 5,
                    "train_images_per_second": 12.34,
                }
            found["all" if size is None else str(size)] = assessed
        images = {"train": 288, "val": 32, "test": 80}
        folds = [
            {"fold": f"r1f{n}", "size": s, "split": "x", "images": images | {"train": s or 288}}
            for s in sizes
            for n in range(1, 6)
        ]
        design = {"kind": "kfold", "k": 5, "repeats": 1, "openings": 1, "over": "all", "seed": 0}
        return {
            "store": "knees",
            "arms": {name: [["task=ordinal", f"note={name}"], ["transfer=frozen"]] for name in SKILLS},
            "common": ["model=resnet18"],
            "metric": metric,
            "direction": "higher is better",
            "secondary": list(secondary),
            "design": design,
            "folds": folds,
            "failed": {"broken": {"work": "broken-r1f1", "exit_code": 70, "log": "l"}},
            "sizes": found,
        }

    return make


def test_the_page_says_what_the_results_say(make_results: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    results = make_results()
    page = write_comparison_page(tmp_path, results).read_text()
    for size in ("100", "300", "all"):
        for arm in results["sizes"][size]["arms"].values():
            assert f"{arm['metrics']['quadratic_kappa']['value']:.3f}" in page
        for pair in results["sizes"][size]["pairs"]["quadratic_kappa"]:
            assert format_p(pair["test"]["p_holm"]).replace("<", "&lt;") in page
            assert format_p(pair["bootstrap"]["p_value"]).replace("<", "&lt;") in page
    assert "arm broken failed in broken-r1f1 (exit code 70)" in page
    assert "test rows were opened 1 time for this comparison" in page
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {"arms.png", "folds.png", "learning_curves.png"}
    assert "<b>400</b> images tested" in page
    assert "<b>200</b> patients" in page


def test_the_page_is_one_file_without_identity_script_or_network(
    make_results: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    page = write_comparison_page(tmp_path, make_results()).read_text()
    assert "secret" not in page
    assert "<script" not in page
    assert "<svm>" not in page, "names of arms are escaped"
    assert not re.search(r"(src|href)=\"(?!data:|#)", page)
    assert "http" not in re.sub(r"http-equiv", "", re.sub(r"data:[^\"]*", "", page))


def test_one_size_has_no_curve_and_the_page_is_the_same_again(
    make_results: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    results = make_results(sizes=(None,))
    first = write_comparison_page(tmp_path / "a", results).read_bytes()
    assert not (tmp_path / "a" / "figures" / "learning_curves.png").exists()
    assert write_comparison_page(tmp_path / "b", results).read_bytes() == first


def test_a_holdout_speaks_of_seeds_and_of_no_other_test(
    make_results: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    results = make_results(sizes=(None,))
    results["design"] |= {"kind": "holdout", "k": 1, "repeats": 5}
    for pair in (pair for pairs in results["sizes"]["all"]["pairs"].values() for pair in pairs):
        pair["test"] = None
    page = write_comparison_page(tmp_path, results).read_text()
    assert "5 seeds, one test set" in page
    assert "Mean over seeds with 95 % interval over patients and seeds" in page
    assert "Intervals and p values: bootstrap over patients and seeds." in page
    assert "second opinion" not in page
    assert "p of the test" not in page


def test_curves_rise_in_size(make_results: Callable[..., dict[str, Any]]) -> None:
    curves = build_curves(make_results(sizes=(None, 100)))
    assert [size for size, _ in curves["corn"]] == [100, 288]


def test_undefined_numbers_are_dashes_with_reasons(make_results: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    results = make_results(sizes=(None,))
    arm = results["sizes"]["all"]["arms"]["corn"]
    reason = "fold r1f1: no image of class 4"
    arm["metrics"]["quadratic_kappa"] = {"value": None, "low": None, "high": None, "reason": reason}
    arm["folds"][0]["metrics"]["quadratic_kappa"] = None
    pair = results["sizes"]["all"]["pairs"]["quadratic_kappa"][-1]
    pair |= {"difference": None, "test": dict.fromkeys(("p_value", "p_holm", "low", "high")) | {"name": "t"}}
    pair["bootstrap"] = dict.fromkeys(("low", "high", "p_value", "p_holm"))
    page = write_comparison_page(tmp_path, results).read_text()
    assert reason in page
    assert "undefined in a fold" in page


def test_note_on_an_interval_stands_beside_it(make_results: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    results = make_results(sizes=(None,))
    pair = results["sizes"]["all"]["pairs"]["quadratic_kappa"][0]
    pair["bootstrap"]["note"] = "3 patients in the smallest class"
    assert "3 patients in the smallest class" in write_comparison_page(tmp_path, results).read_text()


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("recall_KL 2", "Recall KL 2"),
        ("auc_above_3", "AUC above a grade 3"),
        ("mse_value", "MSE of the value"),
        ("n", "n"),
    ],
)
def test_metrics_have_names_for_readers(name: str, title: str) -> None:
    assert name_metric(name) == title
