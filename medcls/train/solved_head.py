"""Solve a head on cached features instead of training it, and write the model file."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from medcls.config import ModelConfig, TaskConfig
from medcls.console import say, show_progress
from medcls.data.splits import TRAIN, VAL, read_patients
from medcls.data.strata import Strata
from medcls.data.stratification import assign_shares
from medcls.distributed import count_ranks
from medcls.errors import ConfigError, DataError
from medcls.models.classifier import Classifier
from medcls.models.heads import LinearHead
from medcls.reproducibility import draw_seed
from medcls.runs.lineage import Lineage, has_seen
from medcls.train.logistic_head import MAX_ITERATIONS as MAX_LOGISTIC_ITERATIONS
from medcls.train.logistic_head import STRENGTHS, fit_logistic_head
from medcls.train.svm import GRID, MAX_ITERATIONS, Svm, fit_svm
from medcls.train.training_data import TrainingData

FOLDS = 5
SOLVERS = {
    "svm": "model.head=svm: support vector machine",
    "logistic": "model.head=auto: logistic or ridge regression on cached features; model.head=linear trains it instead",
}


def find_solver(model: ModelConfig, task: TaskConfig, *, clinical: bool, cached: bool, soft: bool = False) -> str:
    """Return what solves the head: "svm", "logistic", or "" if it is trained.

    Args:
        model: The network asked for.
        task: The task asked for.
        clinical: The model takes clinical columns.
        cached: The features of the images are fixed, and cached.
        soft: Training has soft targets, which no solver takes.

    Raises:
        ConfigError: model.head=svm in several processes, or with soft targets.
    """
    if model.head == "svm":
        if soft:
            raise ConfigError(
                "model.head=svm takes one class for each image, and the store has votes of readers or labels of "
                "one half: set model.head=linear, or prepare it with labelling.readers_rule=majority"
            )
        if count_ranks() > 1:
            raise ConfigError(
                "model.head=svm is solved by one process: run python -m medcls.train without medcls.launch"
            )
        return "svm"
    if model.head != "auto" or not cached:
        return ""
    usual = TaskConfig(kind=task.kind)
    trained = [f"task.{name}" for name in ("label_smoothing", "sampler") if _differs(task, usual, name)]
    trained += [f"task.loss={task.loss}"] * (task.loss not in ("auto", "cross_entropy", "corn", "mse"))
    trained += ["clinical.*"] * clinical + ["model.supervision"] * bool(model.supervision)
    trained += ["model.dropout"] * bool(model.dropout) + ["soft targets"] * soft
    if trained:
        say(f"the head is trained, not solved: it has no closed form with {', '.join(trained)}")
        return ""
    return "logistic"


def _differs(given: TaskConfig, usual: TaskConfig, name: str) -> bool:
    return bool(getattr(given, name) != getattr(usual, name))


def solve_logistic(
    data: TrainingData, model: Classifier, lineage: Lineage, *, balanced: bool, seed: int
) -> dict[str, Any]:
    """Put a logistic (or ridge) regression into the model's head and return what was chosen, as JSON.

    Its strength is chosen by folds of the training patients.

    Raises:
        DataError: a class has fewer than two patients.
    """
    train = data.features[TRAIN]
    targets = train.targets.numpy().astype(np.float64)
    folds = assign_folds(data, targets, seed=seed)
    # Views of one image are further rows of it, in its fold.
    features, views = np.concatenate([view.read(train.rows) for view in train.views]), len(train.views)
    scaled = (targets - float(model.head.shift)) / float(model.head.scale)
    head = fit_logistic_head(
        data.task.output,
        features,
        np.tile(scaled, (views, 1)),
        folds=np.tile(folds, views),
        balanced=balanced,
        strengths=show_progress(STRENGTHS, desc="head", unit="C"),
    )
    with torch.no_grad():
        model.head.linear.weight.copy_(torch.from_numpy(head.weight))
        model.head.linear.bias.copy_(torch.from_numpy(head.bias))
    known = has_seen(lineage, data.store, data.train.rows)
    for row in head.table:
        say(f"head: C {row['C']:<10.4g} held-out loss {row['loss']:.4f}{' *' if row['C'] == head.strength else ''}")
    strongest = head.strength == STRENGTHS[0]
    if known and not strongest:
        say(
            "notice: the network was already trained on these training patients: C is chosen on features that have "
            "seen them, so its penalty is probably too weak"
        )
    if not head.converged:
        say(f"notice: the head with C={head.strength:.4g} did not converge in {MAX_LOGISTIC_ITERATIONS} iterations")
    if strongest:
        say(f"notice: C={head.strength:.4g} is the strongest penalty tried: features may say little about the labels")
    elif head.strength == STRENGTHS[-1]:
        say(f"notice: C={head.strength:.4g} is the weakest penalty tried")
    return {
        "C": head.strength,
        "table": head.table,
        "folds": int(folds.max()) + 1,
        "converged": head.converged,
        "training_patients_known_to_network": known,
    }


def solve_svm(data: TrainingData, model: Classifier, lineage: Lineage, *, seed: int) -> dict[str, Any]:
    """Put the machine into the model's head and return what was chosen, as JSON.

    C is chosen by folds of the training patients, and so is the map to probabilities. Where the network was trained on
    them before, their margins are too good in any fold: the map is then fitted on the validation rows.

    Raises:
        DataError: a class has fewer than two patients.
    """
    train = data.features[TRAIN]
    targets = train.targets[:, 0].numpy().astype(np.int64)
    folds = assign_folds(data, train.targets.numpy().astype(np.float64), seed=seed)
    # Views of one image are further rows of it, in its fold.
    features = np.concatenate([view.read(train.rows) for view in train.views])
    views = len(train.views)
    costs = show_progress(GRID, desc="svm", unit="C")
    known = has_seen(lineage, data.store, data.train.rows)
    apart = read_validation(data) if known else None
    if known:
        say(
            "notice: the network was already trained on these training patients: C is chosen on features that have "
            "seen them, and the map to probabilities is fitted on the validation rows"
        )
    svm = fit_svm(features, np.tile(targets, views), folds=np.tile(folds, views), costs=costs, apart=apart)
    fill_head(model.head, svm)
    describe_svm(svm)
    return {
        "C": svm.cost,
        "table": svm.table,
        "folds": int(folds.max()) + 1,
        "converged": svm.converged,
        "logit": {"slope": svm.slope, "shift": svm.shift, "fitted_on": "val" if known else "train, held out by fold"},
        "training_patients_known_to_network": known,
    }


def read_validation(data: TrainingData) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Return features (N, F) and classes (N,) of the validation rows."""
    val = data.features[VAL]
    return val.views[0].read(val.rows), val.targets[:, 0].numpy().astype(np.int64)


def assign_folds(data: TrainingData, targets: NDArray[np.float64], *, seed: int) -> NDArray[np.int64]:
    """Return the fold (N,) of each training image: patients whole, classes (labels, tenths of values) in proportion.

    Args:
        data: Store, training rows and task.
        targets: (N, T) as data.targets.encode_targets returns them.
        seed: Of the run.

    Raises:
        DataError: a class has fewer than two patients, or all of them come into one fold.
    """
    patients, rows = read_patients(data.store, data.certificate), data.train.rows
    names, strata = _stratify(data, targets)
    counts = [len(np.unique(patients.values[strata.rows[strata.codes == k]])) for k in range(len(names))]
    few = int(np.argmin(counts))
    if counts[few] < 2 and not data.task.traits.multiple:
        raise DataError(
            f"class {names[few]} has one patient in train, and a solved head needs two to choose its strength: add "
            "patients, or set model.head=linear"
        )
    size = min(FOLDS, max(2, counts[few]))
    listed = np.zeros(len(data.store), dtype=np.bool_)
    listed[rows] = True
    shares = {f"fold {number}": 1 / size for number in range(size)}
    places = assign_shares(patients, strata, shares=shares, seed=draw_seed("svm", seed), listed=listed)
    folds = places[rows].astype(np.int64)
    alone = [name for k, name in enumerate(names) if len(np.unique(places[strata.rows[strata.codes == k]])) < 2]
    if alone and not data.task.traits.multiple:
        raise DataError(f"all patients of class {alone[0]} fall into one fold: add patients, or change seed=")
    return folds


def _stratify(data: TrainingData, targets: NDArray[np.float64]) -> tuple[list[str], Strata]:
    rows, task = data.train.rows, data.task
    if task.traits.multiple:
        image, label = np.nonzero(targets == 1)
        return task.class_names, Strata(task.class_names, rows[image], label.astype(np.int32))
    if task.traits.numeric:
        bins = max(1, min(10, len(rows) // 20))
        edges = np.quantile(targets[:, 0], np.linspace(0, 1, bins + 1)[1:-1])
        names = [f"values {k + 1} of {bins}" for k in range(bins)]
        return names, Strata(names, rows, np.searchsorted(edges, targets[:, 0]).astype(np.int32))
    return task.class_names, Strata(task.class_names, rows, targets[:, 0].astype(np.int32))


def fill_head(head: LinearHead, svm: Svm) -> None:
    """Write the machine and its map to logits into a head on L2-normalised features.

    Two classes have one decision value. A head with a logit for each (task.kind=multiclass) gets half of it, taken from
    one and given to the other: its softmax is the sigmoid.

    Raises:
        ValueError: the head has another number of outputs or features than the machine.
    """
    weight, bias, shift = torch.from_numpy(svm.weight), torch.from_numpy(svm.bias), svm.shift
    if len(weight) == 1 and head.linear.out_features == 2:
        halves = torch.tensor([-0.5, 0.5], dtype=weight.dtype)
        weight, bias, shift = halves[:, None] * weight, halves * (bias + shift / svm.slope), 0.0
    if weight.shape != head.linear.weight.shape:
        raise ValueError(f"a machine of {tuple(weight.shape)} for a head of {tuple(head.linear.weight.shape)}")
    with torch.no_grad():
        head.linear.weight.copy_(weight)
        head.linear.bias.copy_(bias)
        head.scale.fill_(svm.slope)
        head.shift.fill_(shift)


def describe_svm(svm: Svm) -> None:
    """Print the search for C, and what a reader should doubt."""
    for row in svm.table:
        marks = " *" if row["C"] == svm.cost else ""
        marks += "" if row["converged"] else "  (not converged)"
        say(f"svm: C {row['C']:<8g} AUC {row['auc']:.4f} over folds by patient{marks}")
    if not svm.converged:
        say(f"notice: the svm with C={svm.cost:g} did not converge in {MAX_ITERATIONS} iterations")
    if svm.cost in (svm.table[0]["C"], svm.table[-1]["C"]):
        say(f"notice: C={svm.cost:g} is at the edge of the search range")
    if not svm.ranks:
        say("notice: decision values of held-out patients do not follow the classes; probabilities are constant")
