"""A support vector machine as the head: solved on cached features, kept as a model file like any other."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from medcls.command_line import say
from medcls.config import TrainJob
from medcls.data.splits import TRAIN, VAL
from medcls.data.strata import Strata
from medcls.data.stratification import assign_shares
from medcls.errors import DataError
from medcls.models.classifier import Classifier
from medcls.models.heads import LinearHead
from medcls.reproducibility import draw_seed
from medcls.stages.lineage import Lineage, has_seen
from medcls.stages.training_data import TrainingData
from medcls.training.svm import GRID, MAX_ITERATIONS, Svm, fit_svm

FOLDS = 5


def solve_head(job: TrainJob, *, data: TrainingData, model: Classifier, lineage: Lineage) -> dict[str, Any]:
    """Puts the machine into the model's head and returns what was chosen, as JSON.

    C is chosen by folds of the training patients, and so is the map to probabilities. Where the network was trained on
    them before, their margins are too good in any fold: the map is then fitted on the validation rows.

    Raises:
        DataError: a class has fewer than two patients.
    """
    say("notice: model.head=svm is solved, not trained: optimizer.*, schedule.* and trainer.* have no effect")
    train = data.features[TRAIN]
    targets = train.targets[:, 0].numpy().astype(np.int64)
    folds = assign_folds(data, targets, seed=job.seed)
    # Views of one image are further rows of it, in its fold.
    features = np.concatenate([view.read(train.rows) for view in train.views])
    views = len(train.views)
    costs = tqdm(GRID, desc="svm", unit="C")
    known = has_seen(lineage, data.store, data.train.rows)
    apart = read_validation(data) if known else None
    if known:
        say(
            "notice: the network was trained on these training patients before: C is chosen on features that know "
            "them, and the map to probabilities is fitted on the validation rows"
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
    """Returns features (N, F) and classes (N,) of the validation rows."""
    val = data.features[VAL]
    return val.views[0].read(val.rows), val.targets[:, 0].numpy().astype(np.int64)


def assign_folds(data: TrainingData, targets: NDArray[np.int64], *, seed: int) -> NDArray[np.int64]:
    """Returns the fold (N,) of each training image: patients whole, classes in proportion.

    Raises:
        DataError: a class has fewer than two patients, or all of them come into one fold.
    """
    patients, rows = data.store.codes("patient_id"), data.train.rows
    names = data.task.class_names
    counts = [len(np.unique(patients.values[rows[targets == k]])) for k in range(len(names))]
    few = int(np.argmin(counts))
    if counts[few] < 2:
        raise DataError(
            f"model.head=svm: class {names[few]} has one patient in train: two and more are needed for folds"
        )
    listed = np.zeros(len(data.store), dtype=np.bool_)
    listed[rows] = True
    shares = {f"fold {number}": 1 / min(FOLDS, counts[few]) for number in range(min(FOLDS, counts[few]))}
    strata = Strata(names, rows, targets.astype(np.int32))
    places = assign_shares(patients, strata, shares=shares, seed=draw_seed("svm", seed), listed=listed)
    folds = places[rows].astype(np.int64)
    alone = [name for k, name in enumerate(names) if len(np.unique(folds[targets == k])) < 2]
    if alone:
        raise DataError(f"model.head=svm: all patients of class {alone[0]} come into one fold: more patients, or seed=")
    return folds


def fill_head(head: LinearHead, svm: Svm) -> None:
    """Writes the machine and its map to logits into a head on L2-normalised features.

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
    """Prints the search for C, and what a reader should doubt."""
    for row in svm.table:
        marks = " *" if row["C"] == svm.cost else ""
        marks += "" if row["converged"] else "  (not converged)"
        say(f"svm: C {row['C']:<8g} AUC {row['auc']:.4f} over folds by patient{marks}")
    if not svm.converged:
        say(f"notice: the svm with C={svm.cost:g} did not converge in {MAX_ITERATIONS} iterations")
    if svm.cost in (svm.table[0]["C"], svm.table[-1]["C"]):
        say(f"notice: C={svm.cost:g} is an end of the search")
    if not svm.ranks:
        say("notice: decision values of patients that were held out do not follow the classes; probabilities are flat")
