"""The table of metrics: title, meaning, source, direction and range of each number of metrics.json."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from medcls.statistics.predictions import Floats, Predictions

HIGH, LOW = "high", "low"
RANKS, THRESHOLD, PROBABILITIES = "ranks", "threshold", "probabilities"
HOW_INTERVALS = (
    "95 % intervals over patients, each with all their images: Wilson for shares, Newcombe for AUCs, Student with a "
    "bootstrap's standard error for the rest (docs/results/coverage.md); DeLong over patients for differences of AUCs; "
    "Holm if two runs are compared."
)
"""How the intervals are made, in words for the report and the checklists."""


@dataclass(frozen=True, slots=True)
class Definition:
    """One metric in words.

    Attributes:
        title: Name for a reader.
        text: How it is computed; "of a class" forms follow from it.
        source: Where the definition comes from.
        ideal: HIGH, LOW, or the value that is best.
        scale: On which its interval is made: "share" of rows, "area" under a ROC curve, "precision" (0 to 1, no plain
            share), "agreement" (-1 to 1), "error" (>= 0), "explained" (at most 1), "real", "mean" or a likelihood
            "ratio" of other metrics, or "none".
        over: The rows that it rests on: "all", "cases", "others", "called", "cleared", "either" (cases or called).
        needs: What the scores of a classification must give: RANKS (any score), THRESHOLD (a decision) or
            PROBABILITIES.
        undefined: Why it has no value where nothing is known but its name.
        unit_range: Whether the page draws it as a bar in [0, 1].
        printed: Whether the terminal shows it.
        by_class: Whether it is a column of the page's table of classes.
        averaged: Whether the mean over several labels means anything.
        build: Predictions -> function of weights (R, N) that returns the metric, (R,), NaN if undefined; None if
            metrics.build_estimator computes it together with others.
        kinds: Kinds of task for which `build` is called.
    """

    title: str
    text: str
    source: str
    ideal: str | float = HIGH
    scale: str = "real"
    over: tuple[str, ...] = ("all",)
    needs: str = THRESHOLD
    undefined: str = "undefined for these rows"
    unit_range: bool = False
    printed: bool = False
    by_class: bool = False
    averaged: bool = True
    build: Callable[[Predictions], Callable[[Floats], Floats]] | None = None
    kinds: tuple[str, ...] = ("binary", "multiclass", "ordinal")


_BEFORE_ROUNDING = (
    "before any rounding: of the predicted value, or of the expected grade (sum of grade times probability)."
)
_SHARE = partial(Definition, source="Altman & Bland 1994", scale="share", unit_range=True)
_RANKING = partial(Definition, over=("cases", "others"), needs=RANKS, by_class=True)
_RATIO = partial(Definition, source="Deeks & Altman 2004", scale="ratio", averaged=False)
_CALIBRATION = partial(Definition, over=("cases", "others"), needs=PROBABILITIES, averaged=False)
_PROPER = partial(Definition, ideal=LOW, scale="error", needs=PROBABILITIES, printed=True)
_ERROR = partial(Definition, source="—", ideal=LOW, scale="error")
_CORRELATION = partial(
    Definition, scale="agreement", undefined="the true or the predicted values are all equal", printed=True
)

DEFINITIONS: dict[str, Definition] = {
    "loss": Definition("Loss", "What training minimises, on the validation split.", "—", LOW),
    "auc": _RANKING(
        "AUC",
        "Probability that a random case scores above a random non-case, ties counting one half. Several "
        "classes: plain mean of one class against all others, also for grades that are predicted as classes; several "
        "labels: mean over the labels; grades predicted as one value: mean over 'above this grade'.",
        "Hanley & McNeil 1982; macro mean after Provost & Domingos 2000",
        scale="area",
        unit_range=True,
        printed=True,
    ),
    "auc_above": _RANKING(
        "AUC above a grade",
        "AUC of the predicted value for 'true grade above this one'; auc is their mean over the grades.",
        "Hanley & McNeil 1982; mean over thresholds after Waegeman et al. 2008",
        scale="area",
    ),
    "average_precision": _RANKING(
        "Average precision",
        "Sum of precision times step in recall over distinct scores, not interpolated; mean over classes.",
        "Manning, Raghavan & Schütze 2008, chapter 8",
        scale="precision",
        unit_range=True,
        printed=True,
    ),
    "accuracy": _SHARE(
        "Accuracy",
        "Share of correct classes; several labels: mean over the labels, each at its threshold.",
        source="—",
        printed=True,
    ),
    "balanced_accuracy": Definition(
        "Balanced accuracy",
        "Mean of the recalls of all classes; for one label the mean of sensitivity and specificity.",
        "Brodersen et al. 2010",
        scale="mean",
        unit_range=True,
        printed=True,
    ),
    "sensitivity": _SHARE(
        "Sensitivity",
        "Share of cases that are called positive: their score is at or above the threshold.",
        over=("cases",),
        printed=True,
    ),
    "recall": _SHARE("Recall", "Share of the class that is predicted as this class.", over=("cases",), by_class=True),
    "specificity": _SHARE(
        "Specificity",
        "Share of the others that are not called this class.",
        over=("others",),
        printed=True,
        by_class=True,
    ),
    "ppv": _SHARE(
        "PPV",
        "Share of predictions of the class that are correct, at the prevalence seen here.",
        over=("called",),
        undefined="a class is never predicted",
        by_class=True,
    ),
    "npv": _SHARE(
        "NPV",
        "Share of predictions of other classes that are correct, at the prevalence seen here.",
        over=("cleared",),
        undefined="a class is always predicted",
        by_class=True,
    ),
    "lr_positive": _RATIO("LR+", "Sensitivity / (1 - specificity).", undefined="no false positive: no finite ratio"),
    "lr_negative": _RATIO(
        "LR−", "(1 - sensitivity) / specificity.", ideal=LOW, undefined="no true negative: no finite ratio"
    ),
    "f1": Definition(
        "F1",
        "Harmonic mean of recall and PPV; of class 1 if there are two, otherwise the mean over classes.",
        "van Rijsbergen 1979",
        scale="precision",
        over=("either",),
        unit_range=True,
        printed=True,
        by_class=True,
    ),
    "mcc": Definition(
        "MCC",
        "Correlation of true and predicted class, -1 to 1.",
        "Matthews 1975; Gorodkin 2004",
        scale="agreement",
        over=("cases", "others"),
        undefined="all images have one true or one predicted class",
    ),
    "quadratic_kappa": Definition(
        "Quadratic kappa",
        "Agreement beyond chance, disagreements weighted by squared distance of the grades.",
        "Cohen 1968",
        scale="agreement",
        over=("cases", "others"),
        undefined="all images have one and the same true and predicted grade",
        printed=True,
    ),
    "brier": _PROPER(
        "Brier score",
        "Mean squared error of the probabilities; one probability (binary, each label): 0 to "
        "1; one for each class (multiclass, ordinal): summed over the classes, 0 to 2.",
        "Brier 1950",
    ),
    "log_loss": _PROPER(
        "Log loss", "Mean negative natural logarithm of the probability of the true class.", "Good 1952"
    ),
    "ece": Definition(
        "Calibration error (ECE)",
        "Mean distance of forecast and outcome over 15 equal-width bins; of P(class 1) if a label is yes "
        "or no, otherwise of the highest probability. Biased upwards in small samples.",
        "Guo et al. 2017; Naeini et al. 2015",
        LOW,
        scale="none",
        needs=PROBABILITIES,
        unit_range=True,
        printed=True,
    ),
    "calibration_slope": _CALIBRATION(
        "Calibration slope",
        "Slope of the logistic regression of outcome on logit; below 1: too extreme.",
        "Cox 1958; Van Calster et al. 2019",
        ideal=1.0,
        undefined="the two classes are separated completely: no finite slope",
    ),
    "calibration_intercept": _CALIBRATION(
        "Calibration intercept",
        "Logistic intercept with the logit as offset; below 0: too high overall.",
        "Cox 1958; Van Calster et al. 2019",
        ideal=0.0,
    ),
    "mae": _ERROR("MAE", "Mean absolute error; of classes: distance in grades.", printed=True),
    "mse": _ERROR("MSE", "Mean squared error; of classes: squared distance in grades.", printed=True),
    "mae_value": _ERROR("MAE of the value", f"Mean absolute error {_BEFORE_ROUNDING}"),
    "mse_value": _ERROR("MSE of the value", f"Mean squared error {_BEFORE_ROUNDING}"),
    "rmse": _ERROR("RMSE", "Square root of the mean squared error.", printed=True),
    "r2": Definition(
        "R²",
        "1 - squared error / squared error of the mean; may be negative.",
        "Draper & Smith 1998",
        scale="explained",
        undefined="the true values are all equal",
        printed=True,
    ),
    "pearson": _CORRELATION("Pearson r", "Linear correlation of true and predicted value.", "Pearson 1895"),
    "spearman": _CORRELATION("Spearman ρ", "Correlation of the ranks, ties by midranks.", "Spearman 1904"),
}


@dataclass(frozen=True, slots=True)
class TaskMetrics:
    """The metrics that count for a kind of task, by their names in DEFINITIONS.

    Attributes:
        epoch: Chooses the best epoch on the validation split (task.metric=auto).
        joining: Decides between the rules that join images to patients, and measures robustness.
        headlines: At the top of the page, in the order of their weight.
        subgroups: Shown for each subgroup.
        primary: What a comparison is about.
        secondary: What it also tests.
    """

    epoch: str
    joining: str
    headlines: tuple[str, ...]
    subgroups: tuple[str, ...]
    primary: str
    secondary: tuple[str, ...]


_GRADED = ("accuracy", "balanced_accuracy", "mae", "mse", "mse_value", "auc_above")
_GRADED_SUBGROUPS = ("quadratic_kappa", "auc", "balanced_accuracy", "mae")
GRADED_REGRESSION = "graded regression"
TASK_METRICS: dict[str, TaskMetrics] = {
    "binary": TaskMetrics(
        epoch="auc",
        joining="auc",
        headlines=("auc", "sensitivity", "specificity", "average_precision", "brier", "calibration_slope"),
        subgroups=("auc", "sensitivity", "specificity", "brier"),
        primary="auc",
        secondary=("average_precision", "sensitivity", "specificity", "balanced_accuracy", "brier"),
    ),
    "multiclass": TaskMetrics(
        epoch="auc",
        joining="auc",
        headlines=("auc", "balanced_accuracy", "accuracy", "f1", "brier", "ece"),
        subgroups=("auc", "balanced_accuracy", "accuracy", "brier"),
        primary="auc",
        secondary=("balanced_accuracy", "accuracy", "f1", "brier"),
    ),
    "ordinal": TaskMetrics(
        epoch="quadratic_kappa",
        joining="quadratic_kappa",
        headlines=("quadratic_kappa", "auc", "balanced_accuracy", "mae", "brier", "ece"),
        subgroups=_GRADED_SUBGROUPS,
        primary="quadratic_kappa",
        secondary=_GRADED,
    ),
    "multilabel": TaskMetrics(
        epoch="auc",
        joining="auc",
        headlines=("auc", "average_precision", "balanced_accuracy", "f1", "brier", "ece"),
        subgroups=("auc", "balanced_accuracy", "brier"),
        primary="auc",
        secondary=("average_precision", "balanced_accuracy", "brier"),
    ),
    "regression": TaskMetrics(
        epoch="mse",
        joining="mae",
        headlines=("mae", "rmse", "r2", "pearson", "spearman"),
        subgroups=("mae", "r2", "spearman"),
        primary="mae",
        secondary=("rmse", "r2", "spearman"),
    ),
    GRADED_REGRESSION: TaskMetrics(
        epoch="mse",
        joining="mae",
        headlines=("quadratic_kappa", "auc", "balanced_accuracy", "mae", "spearman", "r2"),
        subgroups=_GRADED_SUBGROUPS,
        primary="quadratic_kappa",
        secondary=_GRADED,
    ),
}


def choose_task_metrics(kind: str, *, grades: bool) -> TaskMetrics:
    """Return the metrics that count for a kind of task; classes that are grades have those of an ordinal task.

    Args:
        kind: Kind of task.
        grades: Whether the classes, or the values of a regression, are ordered grades.
    """
    graded = {"multiclass": "ordinal", "regression": GRADED_REGRESSION}
    return TASK_METRICS[graded.get(kind, kind) if grades else kind]


def find_needs(name: str) -> str:
    """Return what a metric needs of the scores, also in its per-class form; THRESHOLD without a definition."""
    definition = find_definition(name)
    return definition.needs if definition else THRESHOLD


def find_definition(name: str) -> Definition | None:
    """Return the definition of a metric, also of its per-class form (recall_KL2); None for a count."""
    return DEFINITIONS.get(find_stem(name))


def score_metric(name: str, value: float) -> float:
    """Return a number that is higher the better the metric is: its value, minus it, or minus its distance to the ideal.

    Args:
        name: Of the metric, also of its per-class form (brier_effusion).
        value: Finite.

    Raises:
        KeyError: `DEFINITIONS` has no such metric.
    """
    ideal = DEFINITIONS[find_stem(name)].ideal
    if isinstance(ideal, float):
        return -abs(value - ideal)
    return -value if ideal == LOW else value


def describe_direction(name: str) -> str:
    """Return "higher is better", "lower is better" or "best at 1"; "" for a number without a definition."""
    definition = find_definition(name)
    if definition is None:
        return ""
    if isinstance(definition.ideal, float):
        return f"best at {definition.ideal:g}"
    return f"{'lower' if definition.ideal == LOW else 'higher'} is better"


def name_metric(name: str) -> str:
    """Return the metric's name for a reader, of its per-class form with the class: "Recall KL2"."""
    stem = find_stem(name)
    return f"{DEFINITIONS[stem].title} {name[len(stem) + 1 :]}".strip() if stem else name


def find_stem(name: str) -> str:
    """Return the name of the definition that a metric's name begins with; "" for none."""
    stems = [stem for stem in DEFINITIONS if name == stem or name.startswith(f"{stem}_")]
    return max(stems, key=len, default="")


def choose_headlines(predictions: Predictions) -> tuple[str, ...]:
    """Return the names of the headline numbers of this kind of task, in the order of their weight."""
    return choose_task_metrics(predictions.kind, grades=predictions.grades).headlines
