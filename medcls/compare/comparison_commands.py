"""The commands of a comparison: for each arm and fold, those that a user could type."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from medcls.cli.command_line import compose_job
from medcls.compare.comparison_folds import PlannedFold
from medcls.config import CompareJob, TrainJob
from medcls.data.splits import read_split
from medcls.data.store import Store
from medcls.errors import ConfigError, DataError, MissingInputError
from medcls.files import LABELS, sha256_file, sha256_json
from medcls.inputs import check_store_folder, find_own_weights

# Settings of a training that its evaluation takes as well.
_SHARED = ("device", "precision", "workers")
_OURS = ("run", "split.name", "seed")
_PYTHON = "python"


@dataclass(frozen=True, slots=True)
class Arm:
    """An arm as the user typed it.

    Attributes:
        name: Its name.
        steps: Overrides of each of its trainings, in order.
        common: Overrides of all arms, beneath its own.
        stores: NAME -> folder, for steps that train on another store first.
    """

    name: str
    steps: list[list[str]]
    common: list[str]
    stores: Mapping[str, str | None]


@dataclass(frozen=True, slots=True)
class Step:
    """One training of an arm, but for the fold.

    Attributes:
        chosen: Key -> override, the shared ones beneath the arm's own.
        job: What medcls.train makes of them.
        foreign: NAME of stores.NAME, or None for the store of the folds.
        folder: Folder of its store.
        inputs: Name -> sha256 of what it is trained on, as far as the folds do not decide it.
    """

    chosen: dict[str, str]
    job: TrainJob
    foreign: str | None
    folder: Path
    inputs: dict[str, str]


@dataclass(frozen=True, slots=True)
class Work:
    """One training and, after the last step of an arm, its evaluation.

    Attributes:
        name: Name of its folder in runs/ and of its log.
        arms: Those that need it.
        fold: The fold's folder name; None for a step on another store, which all folds of a seed share.
        settings: What its result follows from, without the places of store and results.
        inputs: Name -> sha256 of store, split, labels and a file of weights.
        commands: Argument lists, each starting with "python".
        needs: Names of the works that come before.
        evaluated: Whether the test rows are predicted.
    """

    name: str
    arms: tuple[str, ...]
    fold: str | None
    settings: list[str]
    inputs: dict[str, str]
    commands: list[list[str]]
    needs: tuple[str, ...]
    evaluated: bool


def list_arms(job: CompareJob) -> list[Arm]:
    """Return all arms, in their order."""
    return [Arm(name, job.steps(name), job.shared, job.stores) for name in job.arms]


def check_arms(arms: Sequence[Arm]) -> None:
    """Check, without torch, what can be said of arms before the store is opened.

    Raises:
        ConfigError: a step that medcls.train would refuse, or a setting that the comparison makes itself.
        MissingInputError, DataError: a store or weights that are not there, or are incomplete.
    """
    for arm in arms:
        for number in range(1, len(arm.steps) + 1):
            _, foreign, _ = _compose_step(arm, number)
            if foreign is not None:
                check_store_folder(Path(str(arm.stores[foreign])))


def plan_steps(arm: Arm, store: Store) -> list[Step]:
    """Return the steps of an arm, each composed, so that no mistake is found after hours.

    Raises:
        ConfigError: a step that medcls.train would refuse, or a setting that the comparison makes itself.
        DataError: a network for images on a store of volumes, or the other way round.
        MissingInputError: a store that is not there.
    """
    # torch takes seconds to import; check_arms does without it.
    from medcls.train.network import check_dims

    steps = []
    for number in range(1, len(arm.steps) + 1):
        chosen, foreign, composed = _compose_step(arm, number)
        trains_on = store if foreign is None else Store(Path(str(arm.stores[foreign])))
        try:
            check_dims(composed.model.name, trains_on.shape)
        except DataError as error:
            raise DataError(f"arms.{arm.name}: {error}") from error
        inputs = {"store": trains_on.sha256, "labels": sha256_file(trains_on.folder / LABELS)}
        if foreign is not None:
            inputs["split"] = read_split(trains_on, _own_split(chosen).partition("=")[2])[1]["split_sha256"]
        weights = find_own_weights(composed.model.weights)
        if number == 1 and weights is not None:
            inputs["weights"] = sha256_file(weights)
        steps.append(Step(chosen, composed, foreign, trains_on.folder.resolve(), inputs))
    if steps[-1].foreign is not None:
        raise ConfigError(
            f"arms.{arm.name}: its last step sets store=, but only earlier steps may train on another store: remove it"
        )
    return steps


def _compose_step(arm: Arm, number: int) -> tuple[dict[str, str], str | None, TrainJob]:
    """Return the overrides by key, NAME of stores.NAME or None, and what medcls.train makes of the overrides."""
    name, overrides = arm.name, arm.steps[number - 1]
    chosen, own = merge_overrides(arm.common, overrides), merge_overrides([], overrides)
    for key in _OURS:
        if key in chosen and not (key == "split.name" and "store" in chosen):
            raise ConfigError(f"arms.{name}: {chosen[key]}: the comparison sets {key}= itself")
    if number > 1 and "model.weights" in own:
        raise ConfigError(
            f"arms.{name}: step {number} sets {own['model.weights']}, but it starts from the step before: "
            "set weights only in the first step"
        )
    foreign = chosen["store"].partition("=")[2] if "store" in chosen else None
    if foreign is not None and not arm.stores.get(foreign):
        raise MissingInputError(f"stores.{foreign}=DIR is missing: arm {name} trains on it first")
    try:
        job = compose_job("train", choose_settings(chosen, weights="step before" if number > 1 else ""))
    except ConfigError as error:
        raise ConfigError(f"arms.{name}: {error}") from error
    weights = find_own_weights(job.model.weights)
    if number == 1 and weights is not None and not weights.is_file():
        raise MissingInputError(
            f"arms.{name}: model.weights={job.model.weights} is neither a finished run nor a file: train it first, "
            "or set another one for all arms with 'extra=[model.weights=RUN]'"
        )
    return chosen, foreign, job


def _own_split(chosen: dict[str, str]) -> str:
    return chosen.get("split.name", "split.name=default")


def merge_overrides(common: Sequence[str], overrides: Sequence[str]) -> dict[str, str]:
    """Return key -> override; a later one goes over an earlier one, as Hydra does not allow for groups."""
    return {text.partition("=")[0].lstrip("+~"): text for text in (*common, *overrides)}


def choose_settings(chosen: dict[str, str], *, weights: str) -> list[str]:
    """Return the overrides of a training but for store and split; `weights` of the step before go over all others."""
    if weights:
        chosen = chosen | {"model.weights": f"model.weights={weights}"}
    return [text for key, text in chosen.items() if key not in ("store", "split.name")]


def plan_arm(out: Path, arm: str, fold: PlannedFold, steps: Sequence[Step]) -> list[Work]:
    """Return the works of one arm on one fold: its steps, each starting from the one before."""
    works, shared, before = [], True, ""
    for number, step in enumerate(steps, start=1):
        # A step on another store sees nothing of the folds: all folds of a seed start from the same run.
        shared = shared and step.foreign is not None
        last = number == len(steps)
        split = f"split.name={fold.split}" if step.foreign is None else _own_split(step.chosen)
        settings = [split, f"seed={fold.seed}", *choose_settings(step.chosen, weights=before)]
        if shared:
            name = f"_shared-{step.foreign}-s{fold.seed}-{sha256_json(sorted(settings))[:8]}"
        else:
            name = f"{arm}-{fold.folder}" + ("" if last else f"-step{number}")
        run = run_folder(out, name)
        weights = str(run_folder(out, before)) if before else ""
        typed = [f"run={run}", f"store={step.folder}", *settings[:2], *choose_settings(step.chosen, weights=weights)]
        commands = [[_PYTHON, "-m", "medcls.train", *typed]]
        if last:
            # Without intervals: those of a comparison are over all folds together.
            typed = [f"run={run}", f"store={step.folder}", "split=test", "report=false", "replicates=1"]
            typed += [step.chosen[key] for key in _SHARED if key in step.chosen]
            commands.append([_PYTHON, "-m", "medcls.evaluate", *typed])
        works.append(
            Work(
                name=name,
                arms=(arm,),
                fold=None if shared else fold.folder,
                settings=settings,
                inputs={"split": fold.split_sha256} | step.inputs,
                commands=commands,
                needs=(before,) if before else (),
                evaluated=last,
            )
        )
        before = name
    return works


def run_folder(out: Path, name: str) -> Path:
    """Return the run folder of a work: all lie beside one another, and share the features that they cache."""
    return out.resolve() / "runs" / name
