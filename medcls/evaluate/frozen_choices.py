"""Freeze thresholds and calibration: chosen on the validation split, written into the run, before test opens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from medcls.config.checks import check_choice
from medcls.console import say
from medcls.data.splits import VAL
from medcls.data.targets import Task
from medcls.errors import ConfigError, DataError
from medcls.evaluate.ensemble import Member, check_out, identify, predict_members
from medcls.evaluate.evaluation_data import open_rows
from medcls.evaluate.image_views import ViewRequest, find_sides_of, plan_views
from medcls.evaluate.split_predictions import SplitPredictions, SplitRequest, count_test_openings
from medcls.files import MODEL, read_json, sha256_file, write_json
from medcls.identity import PER_IMAGE, format_count, name_units
from medcls.runs.folder import read_store_folder
from medcls.statistics.assessment import (
    IMAGE,
    choose_calibration,
    choose_operating,
    describe_few,
    describe_rows,
    read_decision,
)
from medcls.statistics.decision import Decision, list_decisions
from medcls.statistics.predictions import Predictions
from medcls.statistics.recalibration import count_patients
from medcls.statistics.thresholds import Rule, list_rules

_FORMAT = 1
_ANEW = "remove both files and evaluate again, which notes that choices were made later"
_EARLIER = "version 0.2.0 chose it for any number of patients"
# Where nothing is asked for and nothing is frozen yet.
_DEFAULTS: dict[str, Any] = {"sensitivity": [0.95], "specificity": [0.95], "cost": [], "alpha": 0.1, "decision": None}


@dataclass(frozen=True, slots=True)
class Choices:
    """The two files as they stand in the run; {} both where the run's own store is out of reach.

    Attributes:
        operating: Of operating_points.json.
        calibration: Of calibration.json.
        notes: What a reader of the report has to know.
    """

    operating: dict[str, Any]
    calibration: dict[str, Any]
    notes: list[str]

    def decide(self, predictions: Predictions, *, level: str = IMAGE) -> Decision:
        """Return the run's decision for images, or for the studies or patients they belong to."""
        return read_decision(self.operating, predictions, level=level)

    def decide_rows(self, found: SplitPredictions) -> SplitPredictions:
        """Return the predictions of a split with the thresholds of the decision."""
        one = found.rows.predictions
        return replace(found, rows=replace(found.rows, predictions=self.decide(one).apply(one)))

    def say_notes(self) -> None:
        """Say on the terminal what the report says of the choices."""
        for note in self.notes:
            say(f"notice: {note}")


def freeze_choices(
    request: SplitRequest, members: list[Member], *, asked: Mapping[str, Any], seed: int, folder: Path | None = None
) -> Choices:
    """Return what was chosen on the validation split for the model; choose and write it now if it was not yet chosen.

    The choices of one run are in the run; those of several together in a folder, after each run's own were frozen.

    Args:
        request: How the validation rows are predicted.
        members: One run, or several whose scores are averaged.
        asked: Settings of the choice that are given; the others are as frozen, or the defaults.
        seed: Seed of the bootstrap.
        folder: Of several runs, for what they choose together.

    Raises:
        ConfigError: other rules are asked for than those that were frozen before a test split was opened.
    """
    if len(members) == 1 or folder is None:
        folder = members[0].run
    else:
        check_out(folder, members)
        for member in members:
            freeze_choices(request, [member], asked={}, seed=seed)
    views = name_views(request.views, members)
    model_sha256 = identify(members)
    openings = max(count_test_openings(member.run, sha256_file(member.run / MODEL)) for member in members)
    files = name_files(folder, views)
    kept = _read_unfinished(files, model_sha256=model_sha256, openings=openings)
    before = None if kept else read_choices(folder, model_sha256=model_sha256, views=views)
    if before is not None:
        changed = _list_changes(before.operating["settings"], asked)
        if not changed:
            return before
        if openings:
            raise ConfigError(
                f"{files[0]} was frozen with other settings ({'; '.join(changed)}) and a test "
                "split has been opened since: remove the option, or train another run"
            )
        kept = before.operating["settings"]
    settings = _complete(_DEFAULTS | kept | dict(asked), members[0].card.task)
    validation = _predict_validation(request, members)
    if validation is None:
        return Choices({}, {}, ["no operating points: the run's own store, on which they are chosen, is not available"])
    choices = _choose(validation, settings=settings, openings=openings, seed=seed)
    for file, content in zip(files, (choices.operating, choices.calibration), strict=True):
        write_json(file, content)
    use = f"; medcls.predict uses them with choices={folder}" if len(members) > 1 and not views else ""
    say(f"chosen on {describe_rows(choices.operating['chosen_on'])} and frozen: {files[0]}, {files[1]}{use}")
    return choices


def name_views(wanted: ViewRequest, members: list[Member]) -> str:
    """Return the name of the views of all members; "" for the plain middle."""
    plans = [
        plan_views(wanted, crop=each.card.crop, stored=each.opened.store.shape, sides=find_sides_of(each.card))
        for each in members
    ]
    return "+".join(sorted({plan.name for plan in plans} - {""}))


def _list_changes(frozen: Mapping[str, Any], asked: Mapping[str, Any]) -> list[str]:
    """Return what differs from the frozen settings; version 0.2.0 froze no decision, which then is the default."""
    return [f"{name}: {frozen.get(name)} -> {value}" for name, value in asked.items() if frozen.get(name) != value]


def name_files(run: Path, views: str) -> tuple[Path, Path]:
    """Return where operating points and calibration lie: scores of other views are others, and so are thresholds.

    Args:
        run: Folder.
        views: Name of the views; "" = the middle of each image, as predict takes it.
    """
    suffix = f"-{views}.json" if views else ".json"
    return run / f"operating_points{suffix}", run / f"calibration{suffix}"


def read_choices(run: Path, *, model_sha256: str, views: str = "") -> Choices | None:
    """Return the frozen choices for these views; None if there are none, or only those of another model.

    Raises:
        DataError: a file has changed, one of both is gone, or they are from two choices.
    """
    files = name_files(run, views)
    parts = _read_parts(files, model_sha256)
    if not parts:
        return None
    if not _fit(parts):
        gone = [file for file in files if file not in parts]
        fault = f"{gone[0]} is missing" if gone else f"{files[0]} and {files[1].name} were not written together"
        raise DataError(f"{fault}: restore both from one copy, or {_ANEW}")
    operating, calibration = parts.values()
    try:
        notes = _describe(operating)
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{files[0]} is not as evaluate wrote it ({error}): restore it") from error
    if "maps" in calibration and "map" not in calibration:
        calibration = calibration | {"map": {"method": "none"}, "chosen": {"method": "none", "reason": _EARLIER}}
        notes.append(f"no recalibration is applied: {_EARLIER}")
    return Choices(operating, calibration, notes)


def _read_unfinished(files: tuple[Path, Path], *, model_sha256: str, openings: int) -> dict[str, Any]:
    """Return the settings of a choice that was interrupted between its two files; {} if none was.

    A file may also have been deleted. As no test split was opened since, the same choice can be made again.
    """
    parts = _read_parts(files, model_sha256)
    if (
        not parts
        or _fit(parts)
        or any(part["chosen_on"]["test_openings_before"] != openings for part in parts.values())
    ):
        return {}
    first = next(iter(parts))
    say(f"notice: {first} was written without its other file: both are chosen again with its settings")
    return dict(parts[first]["settings"])


def _read_parts(files: tuple[Path, Path], model_sha256: str) -> dict[Path, dict[str, Any]]:
    """Return the frozen files that are there and belong to this model."""
    parts = {file: read_json(file, remedy=f"restore it, or {_ANEW}") for file in files if file.is_file()}
    for file, part in parts.items():
        places = {"chosen_on": ("model_sha256", "test_openings_before"), "settings": ()}
        for place, names in places.items():
            if not isinstance(part.get(place), dict) or any(name not in part[place] for name in names):
                raise DataError(f"{file} is not as evaluate wrote it ({place}): restore it, or {_ANEW}")
    own = {file: part for file, part in parts.items() if part["chosen_on"]["model_sha256"] == model_sha256}
    return {file: part for file, part in own.items() if part.get("format") == _FORMAT}


def _fit(parts: dict[Path, dict[str, Any]]) -> bool:
    """Return whether there are two files, from one choice."""
    first, *others = parts.values()
    return len(others) == 1 and all(first[name] == others[0][name] for name in ("settings", "chosen_on"))


def _predict_validation(request: SplitRequest, members: list[Member]) -> SplitPredictions | None:
    """Predictions of the validation split of the runs' own store; None where that store is not here."""
    first = members[0]
    here = first.opened.store.sha256 == first.card.store_sha256
    own = first.opened.store.folder if here else read_store_folder(first.run)
    if not own.is_dir():
        return None
    wanted = replace(request.rows, store=str(own), split=VAL)
    return predict_members(
        replace(request, rows=wanted),
        [replace(each, opened=open_rows(wanted, each.run, each.card)) for each in members],
    )


def _list_rules(settings: dict[str, Any]) -> tuple[Rule, ...]:
    return list_rules(**{name: settings[name] for name in ("sensitivity", "specificity", "cost")})


def _complete(settings: dict[str, Any], task: Task) -> dict[str, Any]:
    """Return the settings with the decision named: a later version may have another default."""
    known = list_decisions(task.kind, _list_rules(settings), grades=task.grades)
    decision = settings["decision"] or known[0]
    check_choice("decision", decision, known)
    return settings | {"decision": decision}


def _choose(validation: SplitPredictions, *, settings: dict[str, Any], openings: int, seed: int) -> Choices:
    rows = validation.rows
    rules = _list_rules(settings)
    unknown = validation.opened.store.patients_from == PER_IMAGE
    chosen_on = {key: validation.key[key] for key in ("model_sha256", "store_sha256", "split", "split_sha256")}
    chosen_on |= {
        "labels_sha256": validation.key["labels_sha256"],
        "n_images": len(rows.patient_ids),
        "n_patients": None if unknown else len(set(rows.patient_ids)),
        "patients_by_class": count_patients(rows.predictions, rows.patients),
        "test_openings_before": openings,
    } | validation.plan.to_json()
    shared = {"format": _FORMAT, "chosen_on": chosen_on, "settings": settings}
    operating = shared | {"rules": [asdict(rule) for rule in rules]} | choose_operating(rows, rules=rules, seed=seed)
    calibration = shared | choose_calibration(rows, alpha=settings["alpha"], seed=seed)
    return Choices(operating, calibration, _describe(operating))


def _describe(operating: dict[str, Any]) -> list[str]:
    # Patients are None where they are unknown; a file of an earlier version always counts them.
    unknown = operating["chosen_on"].get("n_patients", 0) is None
    few = [name_units(text, PER_IMAGE) for text in describe_few(operating)] if unknown else describe_few(operating)
    late = operating["chosen_on"]["test_openings_before"]
    if not late:
        return few
    return [
        *few,
        f"operating points were chosen on validation after a test split had been opened {format_count(late, 'time')}",
    ]
