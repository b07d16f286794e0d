"""What a comparison does: its folds as split files, and for each arm and fold the commands that a user could type."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from medcls.command_line import compose_job, say
from medcls.config import CompareJob, check_choice
from medcls.data.folds import Fold, check_labels, find_links, link_patients, make_folds, shrink_training, write_fold
from medcls.data.splits import DROPPED, SPLIT_NAMES, TEST, TRAIN, VAL, read_split, rows_of
from medcls.data.store import Store
from medcls.data.strata import build_strata
from medcls.errors import ConfigError, DataError, MissingInputError
from medcls.files import read_json, sha256_json, write_json
from medcls.stages.training_data import read_store_labels

PLAN = "plan.json"
# Of the training, where the arm's overrides say them, for its evaluation.
_SHARED = ("device", "precision", "workers")
_OURS = ("run", "split.name", "seed")
_PYTHON = "python"


@dataclass(frozen=True, slots=True)
class PlannedFold:
    """A fold, or a seed of a holdout, with all or some of its training images.

    Attributes:
        name: Of the fold: r1f2, or s1 for the second seed.
        repeat: Of the partition or seed, from 1.
        number: In it, from 1.
        size: Training images asked for; None = all.
        split: Name of the split file in the store.
        split_sha256: Its checksum.
        seed: Of the trainings.
        images: Split -> images.
    """

    name: str
    repeat: int
    number: int
    size: int | None
    split: str
    split_sha256: str
    seed: int
    images: dict[str, int]

    @property
    def folder(self) -> str:
        """Such as r1f2-n100."""
        return self.name + (f"-n{self.size}" if self.size else "")


@dataclass(frozen=True, slots=True)
class Work:
    """One training and, after the last step of an arm, its evaluation.

    Attributes:
        name: Of its folder under runs/ and its log.
        arms: Those that need it.
        commands: Argument lists, each starting with "python".
        needs: Names of the works that come before.
        evaluated: Whether the test rows are predicted.
    """

    name: str
    arms: tuple[str, ...]
    commands: list[list[str]]
    needs: tuple[str, ...]
    evaluated: bool


@dataclass(frozen=True, slots=True)
class Plan:
    """All folds and works of a comparison.

    Attributes:
        store: Of the folds.
        folds: Those of all sizes.
        works: In the order in which they start.
        test_share: Test images over the other images of a fold, on average.
    """

    store: Store
    folds: list[PlannedFold]
    works: list[Work]
    test_share: float

    def to_json(self) -> dict[str, Any]:
        """Returns what plan.json keeps."""
        return {
            "store": str(self.store.folder.resolve()),
            "store_sha256": self.store.sha256,
            "folds": [asdict(fold) for fold in self.folds],
            "works": [asdict(work) for work in self.works],
        }


def make_plan(job: CompareJob) -> Plan:
    """Checks every arm, writes the folds into the store, and returns what is to be done.

    Raises:
        ConfigError: an arm that medcls.train would refuse, or a setting that the comparison makes itself.
        DataError: folds that cannot be made, or that lack a label.
        MissingInputError: a store that is not there.
    """
    for name in job.only:
        check_choice("only", name, list(job.arms))
    store = Store(Path(job.store or ""))
    for arm in job.chosen:
        _check_arm(job, arm, store)
    base = plan_folds(job, store)
    works: dict[str, Work] = {}
    for fold in base:
        for arm in job.chosen:
            for work in plan_arm(job, arm, fold, store):
                known = works.get(work.name)
                works[work.name] = _join(known, work) if known else work
    whole = [fold.images for fold in base if fold.size is None] or [fold.images for fold in base]
    shares = [images[TEST] / (images[TRAIN] + images[VAL]) for images in whole]
    return Plan(store, base, list(works.values()), sum(shares) / len(shares))


def _join(known: Work, work: Work) -> Work:
    """A step that several arms share is done once."""
    arms = tuple(dict.fromkeys((*known.arms, *work.arms)))
    return Work(known.name, arms, known.commands, known.needs, known.evaluated)


def _check_arm(job: CompareJob, arm: str, store: Store) -> None:
    """Composes each step's training, so that no mistake is found after hours."""
    for number, overrides in enumerate(job.steps(arm), start=1):
        chosen = merge_overrides(job.shared, overrides)
        for key in _OURS:
            if key in chosen and not (key == "split.name" and "store" in chosen):
                raise ConfigError(f"arms.{arm}: {chosen[key]}: the comparison sets {key}= itself")
        own = merge_overrides([], overrides)
        if number > 1 and "model.weights" in own:
            raise ConfigError(
                f"arms.{arm}: step {number} says {own['model.weights']}, and starts from the step before: "
                "only the first step takes weights"
            )
        _find_store(job, arm, chosen, store)
        arguments = choose_settings(chosen, weights="step before" if number > 1 else "")
        try:
            compose_job("train", arguments)
        except ConfigError as error:
            raise ConfigError(f"arms.{arm}: {error}") from error


def merge_overrides(common: Sequence[str], overrides: Sequence[str]) -> dict[str, str]:
    """Returns key -> override; a later one goes over an earlier one, as Hydra does not allow for groups."""
    return {text.partition("=")[0].lstrip("+~"): text for text in (*common, *overrides)}


def choose_settings(chosen: dict[str, str], *, weights: str) -> list[str]:
    """Returns the overrides of a training but for store and split; `weights` of the step before go over all others."""
    last = {"model.weights": f"model.weights={weights}"} if weights else {}
    return [text for key, text in (chosen | last).items() if key not in ("store", "split.name")]


def _find_store(job: CompareJob, arm: str, chosen: dict[str, str], store: Store) -> Path:
    """The folder of the store that a step trains on."""
    if "store" not in chosen:
        return store.folder.resolve()
    name = chosen["store"].partition("=")[2]
    if not job.stores.get(name):
        raise MissingInputError(f"stores.{name}=DIR is missing: arm {arm} trains on it first")
    return Store(Path(str(job.stores[name]))).folder.resolve()


def plan_folds(job: CompareJob, store: Store) -> list[PlannedFold]:
    """Returns the folds of all sizes, written as splits of the store."""
    config = job.folds
    splits, certificate = read_split(store, config.split)
    strata = build_strata(read_store_labels(store), label=_find_label(store, config.label))
    pairs = find_links(store, certificate)
    patients = link_patients(store.codes("patient_id"), pairs)
    k, repeats = config.shape
    if config.kind == "holdout":
        folds = [Fold(1, 1, splits)]
    else:
        pool = splits != SPLIT_NAMES.index(DROPPED)
        if config.over == "development":
            pool &= splits != SPLIT_NAMES.index(TEST)
        folds = make_folds(
            patients,
            strata,
            pool=pool,
            k=k,
            repeats=repeats,
            val=config.val,
            seed=config.seed,
        )
    provenance = {
        "source": f"fold of {config.prefix} by patient, stratified by label, of the rows of {config.split} "
        f"({'train, val and test' if config.over == 'all' else 'train and val'})",
        "seed": config.seed,
        "near_duplicates": certificate["near_duplicates"],
    }
    planned = []
    for fold in folds:
        for size in job.sizes:
            part = shrink_training(fold, size or None, patients=patients, strata=strata, seed=config.seed)
            if config.on_missing == "refuse":
                check_labels(part, strata)
            own = config.kind == "holdout" and not size
            name = config.split if own else _name_split(config.prefix, part, holdout=config.kind == "holdout")
            if not own:
                write_fold(store, name, fold=part, strata=strata, pairs=pairs, provenance=provenance)
            planned += list(_plan_seeds(job, store, part, split=name))
    say(f"folds: {len(folds)} ({config.prefix}), {len({fold.split for fold in planned})} splits in {store.folder}")
    return planned


def _find_label(store: Store, label: str | None) -> str | None:
    names = read_store_labels(store).column_names if label else []
    if label and label not in names:
        raise DataError(f"folds.label={label}: the store's labels have {', '.join(names)}")
    return label


def _name_split(prefix: str, fold: Fold, *, holdout: bool) -> str:
    return f"{prefix}-n{fold.size}" if holdout else f"{prefix}-{fold.name}"


def _plan_seeds(job: CompareJob, store: Store, fold: Fold, *, split: str) -> Iterator[PlannedFold]:
    """A fold has the seed of its repeat; a holdout stands for several seeds."""
    splits, certificate = read_split(store, split)
    images = {name: len(rows_of(splits, name)) for name in (TRAIN, VAL, TEST)}
    holdout = job.folds.kind == "holdout"
    for repeat in range(1, job.folds.shape[1] + 1) if holdout else [fold.repeat]:
        yield PlannedFold(
            name=f"s{repeat}" if holdout else f"r{fold.repeat}f{fold.number}",
            repeat=repeat,
            number=fold.number,
            size=fold.size,
            split=split,
            split_sha256=certificate["split_sha256"],
            seed=job.seed + (0 if job.folds.same_seed else repeat - 1),
            images=images,
        )


def plan_arm(job: CompareJob, arm: str, fold: PlannedFold, store: Store) -> list[Work]:
    """Returns the works of one arm on one fold: its steps, each starting from the one before."""
    steps, works = job.steps(arm), []
    shared, before = True, ""
    for number, overrides in enumerate(steps, start=1):
        chosen = merge_overrides(job.shared, overrides)
        # A step on another store sees nothing of the folds: all folds of a seed start from the same run.
        shared = shared and "store" in chosen
        last = number == len(steps)
        folder = _find_store(job, arm, chosen, store)
        split = f"split.name={fold.split}"
        if "store" in chosen:
            split = chosen.get("split.name", "split.name=default")
        settings = choose_settings(chosen, weights=str(_run(job, before)) if before else "")
        head = [f"store={folder}", split, f"seed={fold.seed}"]
        if shared:
            name = f"_shared/{folder.name}-s{fold.seed}-{sha256_json([*head, *sorted(settings)])[:8]}"
        else:
            name = f"{arm}/{fold.folder}" + ("" if last else f"-step{number}")
        commands = [[_PYTHON, "-m", "medcls.train", f"run={_run(job, name)}", *head, *settings]]
        if last:
            commands.append(_evaluate(_run(job, name), chosen))
        works.append(Work(name, (arm,), commands, (before,) if before else (), last))
        before = name
    if shared:
        raise ConfigError(f"arms.{arm}: its last step says store=: only steps before the last train on another store")
    return works


def _evaluate(run: Path, chosen: dict[str, str]) -> list[str]:
    """The numbers of metrics.json come without intervals: those of a comparison are over all folds together."""
    kept = [chosen[key] for key in _SHARED if key in chosen]
    return [_PYTHON, "-m", "medcls.evaluate", f"run={run}", "split=test", "report=false", "replicates=1", *kept]


def _run(job: CompareJob, name: str) -> Path:
    return run_folder(Path(job.out or ""), name)


def run_folder(out: Path, name: str) -> Path:
    """Returns the run folder of a work."""
    return out.resolve() / "runs" / name


def keep_plan(out: Path, plan: Plan) -> None:
    """Writes plan.json, after checking that what was planned there before is planned in the same way.

    Arms, folds and sizes may join; none may change, since finished runs are kept.

    Raises:
        ConfigError: the folder holds another comparison.
    """
    now = plan.to_json()
    path = out / PLAN
    if path.is_file():
        before = read_json(path)
        if before["store_sha256"] != now["store_sha256"]:
            raise ConfigError(f"out={out} holds a comparison on another store ({before['store']}): choose another out=")
        commands = {work["name"]: work["commands"] for work in before["works"]}
        for work in plan.works:
            if commands.get(work.name, work.commands) != work.commands:
                old, new = (
                    sorted(set(map(str, one[0])) - set(map(str, other[0])))
                    for one, other in ((commands[work.name], work.commands), (work.commands, commands[work.name]))
                )
                raise ConfigError(
                    f"out={out} holds {work.name} with other settings ({' '.join(old) or 'none'} -> "
                    f"{' '.join(new) or 'none'}): choose another out="
                )
        # Works that only= leaves out this time stay known.
        kept = [work for work in before["works"] if work["name"] not in {one.name for one in plan.works}]
        now["works"] = [*now["works"], *kept]
    write_json(path, now)
