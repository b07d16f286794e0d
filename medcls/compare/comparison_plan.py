"""The plan of a comparison: arms, folds and runs, checked before anything starts and kept in plan.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from medcls.compare.comparison_commands import Step, Work, list_arms, plan_arm, plan_steps
from medcls.compare.comparison_folds import PlannedFold, plan_folds
from medcls.config import CompareJob
from medcls.console import say
from medcls.data.splits import TEST, TRAIN, VAL, read_split, rows_of
from medcls.data.store import Store
from medcls.data.targets import Task, build_task
from medcls.errors import ConfigError, DataError, MedclsError
from medcls.files import read_json, write_json
from medcls.inputs import find_own_weights
from medcls.runs.checksums import open_store
from medcls.runs.lineage import check_unseen, read_lineage
from medcls.runs.model_file import find_card
from medcls.statistics.arms import FoldPredictions, assess_arms
from medcls.statistics.predictions import Predictions, check_predictions

PLAN = "plan.json"
FORMAT = 2


@dataclass(frozen=True, slots=True)
class ComparisonPlan:
    """All folds and works of a comparison.

    Attributes:
        store: Of the folds.
        arms: Those that are planned, in order; only= says which of them run.
        folds: Those of all sizes.
        works: In the order in which they start.
        test_share: Test images over the other images of a fold with all its training images, on average.
    """

    store: Store
    arms: list[str]
    folds: list[PlannedFold]
    works: list[Work]
    test_share: float

    def to_json(self) -> dict[str, Any]:
        """Return what plan.json keeps."""
        return {
            "format": FORMAT,
            "store": str(self.store.folder.resolve()),
            "store_sha256": self.store.sha256,
            "folds": [asdict(fold) for fold in self.folds],
            "works": [asdict(work) for work in self.works],
        }


def make_plan(job: CompareJob) -> ComparisonPlan:
    """Check every arm, write the folds into the store, and return what is to be done.

    Arms that only= leaves out are planned, too: what they have finished is compared.

    Raises:
        ConfigError: an arm that medcls.train would refuse, a setting that the comparison makes itself, arms that
            learn other things, or a metric that they do not have.
        DataError: folds that cannot be made, or that lack a label; weights that have seen patients of val or test.
        MissingInputError: a store that is not there.
    """
    store = open_store(Path(job.store or ""))
    arms: dict[str, list[Step]] = {}
    for arm in list_arms(job):
        try:
            arms[arm.name] = plan_steps(arm, store)
        except MedclsError as error:
            if arm.name in job.chosen:
                raise
            say(f"notice: arm {arm.name} is left out: {error}")
    folds, test_share = plan_folds(job.folds, store, sizes=job.sizes, seed=job.seed)
    asked = [name for name in (job.metric, *job.secondary) if name != "auto"]
    check_metrics(asked, arms, max(folds, key=lambda fold: fold.images[TRAIN]), store)
    check_held_out({arm: steps[0] for arm, steps in arms.items() if arm in job.chosen}, folds, store)
    works: dict[str, Work] = {}
    for fold in folds:
        for name, steps in arms.items():
            for work in plan_arm(Path(job.out or ""), name, fold, steps):
                # A step that several arms share is done once.
                known = works.get(work.name, work)
                works[work.name] = replace(known, arms=tuple(dict.fromkeys((*known.arms, *work.arms))))
    return ComparisonPlan(store, list(arms), folds, list(works.values()), test_share)


def check_metrics(names: Sequence[str], arms: Mapping[str, Sequence[Step]], fold: PlannedFold, store: Store) -> None:
    """Compare the arms on made-up rows, so that no other class and no wrong metric is found after hours.

    Raises:
        ConfigError: arms with other classes, or a metric that they do not share.
    """
    splits, _ = read_split(store, fold.split)
    labels = store.read_labels().take(rows_of(splits, TRAIN))
    made: dict[str, list[FoldPredictions]] = {}
    for arm, steps in arms.items():
        config = steps[-1].job.task
        try:
            task = build_task(config, labels)
        except MedclsError as error:
            raise type(error)(f"arms.{arm}: {error}") from error
        rows = make_up(task)
        ids = [str(number) for number in range(len(rows.y_true))]
        made[arm] = [FoldPredictions(fold.name, 1, 1, rows, ids, ids)]
    try:
        assess_arms(made, design="holdout", metrics=names, replicates=1)
    except ValueError as error:
        raise ConfigError(f"the arms cannot be compared: {error}") from error


def check_held_out(first: Mapping[str, Step], folds: Sequence[PlannedFold], store: Store) -> None:
    """Compare whom the run that an arm starts from has seen with the val and test rows of all folds.

    Every training does so for its own fold; here it is found before any of them runs. An arm that says
    transfer.val_seen=allow is left to them.

    Raises:
        DataError: patients or images that a fold holds out were trained or selected on (late split, biased transfer).
    """
    parts = [rows_of(read_split(store, fold.split)[0], name) for fold in folds for name in (VAL, TEST)]
    notices: dict[str, None] = {}
    for arm, step in first.items():
        path = find_own_weights(step.job.model.weights)
        if path is None or step.foreign or step.job.transfer.val_seen == "allow":
            continue
        card = find_card(path)
        if card is None:
            continue
        seen = read_lineage(path, card, sha256=step.inputs["weights"], weights=str(step.job.model.weights))
        remedy = "the folds hold them out: start from a run on other patients"
        try:
            found = check_unseen(store, np.unique(np.concatenate(parts)), seen, remedy=remedy)
        except DataError as error:
            raise DataError(f"arms.{arm}: {error}") from error
        notices |= dict.fromkeys(found)
    for notice in notices:
        say(f"notice: {notice}")


def make_up(task: Task) -> Predictions:
    """Return predictions of a task on rows without a patient: each class several times."""
    true = np.tile(np.arange(max(2, task.num_classes), dtype=np.float64), 3)
    score = 0.1 + 0.8 * (true[:, None] == np.arange(task.num_classes))
    if task.kind == "multilabel":
        true = np.repeat(true[:, None] % 2, task.num_classes, axis=1)
    elif task.kind in ("binary", "regression"):
        score = 0.1 + 0.8 * true[:, None]
    else:
        score /= score.sum(axis=1, keepdims=True)
    return check_predictions(task.kind, true, score, class_names=task.class_names, grades=task.grades)


def keep_plan(out: Path, plan: ComparisonPlan) -> None:
    """Write plan.json, after checking that what was planned there before is planned in the same way.

    Arms, folds and sizes may join; none may change, since finished runs are kept. Where store and results lie may.

    Raises:
        ConfigError: the folder holds another comparison, or one on other data.
    """
    now = plan.to_json()
    path = out / PLAN
    if path.is_file():
        before = read_json(path)
        if before.get("format") != FORMAT:
            raise ConfigError(f"out={out} holds a comparison of another version of medcls: choose another out=")
        if before["store_sha256"] != now["store_sha256"]:
            raise ConfigError(f"out={out} holds a comparison on another store ({before['store']}): choose another out=")
        known = {work["name"]: work for work in before["works"]}
        for work in plan.works:
            if work.name in known:
                _check_same(out, known[work.name], work)
        # Works of arms that are not named this time stay known.
        kept = [work for name, work in known.items() if name not in {one.name for one in plan.works}]
        now["works"] = [*now["works"], *kept]
    write_json(path, now)


def _check_same(out: Path, known: Mapping[str, Any], work: Work) -> None:
    old, new = sorted(set(known["settings"]) - set(work.settings)), sorted(set(work.settings) - set(known["settings"]))
    if old or new:
        raise ConfigError(
            f"out={out} holds {work.name} with other settings ({' '.join(old) or 'none'} -> "
            f"{' '.join(new) or 'none'}): choose another out="
        )
    changed = sorted(name for name, sha in work.inputs.items() if known["inputs"].get(name, sha) != sha)
    if changed:
        raise ConfigError(
            f"out={out} holds {work.name} on other {', '.join(changed)} than those found now: restore them, or choose "
            "another out="
        )
