"""The rows behind each number, so that its interval counts the right patients."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medcls.statistics.bounds import Base
from medcls.statistics.definitions import DEFINITIONS, find_stem
from medcls.statistics.predictions import Integers, Predictions

Mask = NDArray[np.bool_]
RATES = ("sensitivity", "specificity")


@dataclass(frozen=True, slots=True)
class Basis:
    """How the interval of one number is made.

    Attributes:
        scale: As in `definitions.Definition`; also "predictive" (a predictive value at a stated prevalence).
        sides: (N,) each: the rows it rests on, by class where two classes matter.
        parts: Names of the numbers that it follows from: of a mean all; of ratios sensitivity and specificity.
        positive: Of ratios and predictive values: those of a positive answer.
        prevalence: Of a predictive value.
        classes: (N,) each: the rows of each class of the question.
        side_names: What the rows of each side are, "with fracture"; () if a side is all rows or a class of several.
    """

    scale: str
    sides: tuple[Mask, ...] = ()
    parts: tuple[str, ...] = ()
    positive: bool = True
    prevalence: float = 0.0
    classes: tuple[Mask, ...] = ()
    side_names: tuple[str, ...] = ()

    def count(self, patients: Integers, *, repeats: int = 1, folds: int = 1) -> Base:
        """Return how many patients and rows there are on each side that has any.

        Args:
            patients: (N,) patient number of each row.
            repeats: How often each row occurs among them (test rows of several repeats of the folds).
            folds: The number is a mean over so many folds of other patients.
        """

        def count_patients(rows: Mask) -> int:
            return int(np.count_nonzero(np.bincount(patients[rows])))

        sides = [side for side in self.sides if side.any()] or [np.ones(len(patients), dtype=bool)]
        known = tuple(count_patients(side) for side in sides)
        rows = tuple(int(side.sum()) for side in sides)
        classes = self.classes
        if not classes and len(self.sides) > 1:
            classes = self.sides
        smallest = min((count_patients(side) for side in classes), default=None)
        counted = tuple(max(1, round(number / repeats)) for number in rows)
        return Base(known, counted, clustered=known != rows, smallest=smallest, folds=folds)


Support = dict[str, Basis]


def find_support(predictions: Predictions, names: Iterable[str]) -> Support:
    """Return the basis of each metric."""
    questions = _list_questions(predictions)
    everyone = np.ones(len(predictions.y_score), dtype=bool)
    classes: tuple[Mask, ...] = ()
    if predictions.has_classes:
        classes = tuple(predictions.grade_true == k for k in range(len(predictions.class_names)))
    known = set(names)
    support: Support = {}
    for name in known:
        stem = find_stem(name)
        definition, suffix = DEFINITIONS[stem], name[len(stem) :]
        parts = _find_parts(predictions, stem, suffix, known)
        if parts:
            support[name] = Basis("mean", parts=parts, classes=classes)
            continue
        if definition.scale == "ratio":
            parts = (f"recall{suffix}" if suffix else "sensitivity", f"specificity{suffix}")
        key = f"_above{suffix}" if stem == "auc_above" else suffix
        side_names: tuple[str, ...] = ()
        if key in questions:
            masks = questions[key]
            sides = tuple(masks[over] for over in definition.over)
            of_question: tuple[Mask, ...] = (masks["cases"], masks["others"])
            if "all" not in definition.over:
                words = name_sides(predictions, key)
                side_names = tuple(words[over] for over in definition.over)
        else:
            sides = classes if "cases" in definition.over else (everyone,)
            of_question = classes
        support[name] = Basis(
            definition.scale, sides, parts, stem == "lr_positive", classes=of_question, side_names=side_names
        )
    return support


def find_rate_support(
    positive: Mask, called: Mask, rows: Integers, *, total: int, side_names: Mapping[str, str]
) -> Support:
    """Return the basis of sensitivity, specificity, predictive values and likelihood ratios of a threshold.

    Args:
        positive: (n,) whether a row is a case.
        called: (n,) whether it is called one.
        rows: (n,) their row numbers.
        total: N.
        side_names: Of `name_sides`.
    """
    known, cases, chosen = np.zeros((3, total), dtype=bool)
    known[rows], cases[rows], chosen[rows] = True, positive, called
    masks = _list_masks(known, cases, chosen)
    classes = (masks["cases"], masks["others"])
    found: Support = {}
    for name in (*RATES, "ppv", "npv"):
        side = DEFINITIONS[name].over[0]
        found[name] = Basis("share", (masks[side],), classes=classes, side_names=(side_names[side],))
    for name in ("positive", "negative"):
        found[f"lr_{name}"] = Basis("ratio", (), RATES, name == "positive", classes=classes)
    return found


def _list_questions(predictions: Predictions) -> dict[str, dict[str, Mask]]:
    """Suffix of a metric's name to the masks of its yes-or-no question."""
    true, names = predictions.y_true, predictions.class_names
    everyone = np.ones(len(predictions.y_score), dtype=bool)
    if predictions.kind == "binary":
        return {"": _list_masks(everyone, true == 1, predictions.called[:, 0])}
    found = {}
    if predictions.kind == "multilabel":
        for k, name in enumerate(names):
            found[f"_{name}"] = _list_masks(~np.isnan(true[:, k]), true[:, k] == 1, predictions.called[:, k])
    elif predictions.has_classes:
        predicted = predictions.grade_predicted
        for k, name in enumerate(names):
            found[f"_{name}"] = _list_masks(everyone, true == k, predicted == k)
        # After all classes: one of them may be called "above_x".
        for k, name in enumerate(names):
            found[f"_above_{name}"] = _list_masks(everyone, true > k, predicted > k)
    return found


def name_sides(predictions: Predictions, key: str) -> dict[str, str]:
    """Return what the rows of each side of a yes-or-no question are, in words: "cases" to "with fracture".

    Args:
        predictions: Whose kind and class names count.
        key: Suffix of the question's metrics: "", "_fracture", "_above_mild".
    """
    name = (key or f"_{predictions.class_names[-1]}")[1:]
    case, other = f"of class {name}", f"of another class than {name}"
    if key.startswith("_above_") and name not in predictions.class_names:
        case, other = f"above {name[len('above_') :]}", f"not above {name[len('above_') :]}"
    elif predictions.kind == "multilabel":
        case, other = f"with {name}", f"without {name}"
    elif predictions.kind == "binary":
        other = f"of class {predictions.class_names[0]}"
    return {
        "cases": case,
        "others": other,
        "called": f"called {name}",
        "cleared": f"not called {name}",
        "either": f"{case} or called so",
    }


def _list_masks(known: Mask, cases: Mask, called: Mask) -> dict[str, Mask]:
    return {
        "all": known,
        "cases": known & cases,
        "others": known & ~cases,
        "called": known & called,
        "cleared": known & ~called,
        "either": known & (cases | called),
    }


def _find_parts(predictions: Predictions, stem: str, suffix: str, known: set[str]) -> tuple[str, ...]:
    """Return the numbers that a metric is the plain mean of; () for others."""
    if stem == "balanced_accuracy" and suffix:
        return (f"recall{suffix}", f"specificity{suffix}")
    if suffix or predictions.kind == "binary":
        return RATES if stem == "balanced_accuracy" else ()
    each = stem
    if stem == "sensitivity" or (stem == "balanced_accuracy" and predictions.kind != "multilabel"):
        each = "recall"
    names, above = predictions.class_names, f"{each.removesuffix('_above')}_above"
    for parts in ([f"{each}_{name}" for name in names], [f"{above}_{name}" for name in names[:-1]]):
        if parts and known.issuperset(parts):
            return tuple(parts)
    return ()
