"""Freeze thresholds and calibration: chosen on the validation split, written into the run, before test opens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from medcls.console import say
from medcls.errors import ConfigError, DataError
from medcls.evaluate.choices import FORMAT, Choices, choose, complete_settings
from medcls.evaluate.ensemble import check_out, identify, predict_members
from medcls.evaluate.evaluation_data import Opened, open_rows
from medcls.evaluate.image_views import ViewRequest, find_sides_of, plan_views
from medcls.evaluate.split_predictions import SplitPredictions, SplitRequest, count_test_openings
from medcls.files import MODEL, read_json, sha256_file, write_json
from medcls.identity import PER_IMAGE, format_count, name_units
from medcls.statistics.assessment import describe_few, describe_rows
from medcls.statistics.recalibration import count_patients

_ANEW = "remove both files and evaluate again, which notes that choices were made later"
_EARLIER = "version 0.2.0 chose it for any number of patients"


def freeze_choices(
    request: SplitRequest, members: list[Opened], *, asked: Mapping[str, Any], seed: int, folder: Path | None = None
) -> Choices:
    """Return what was chosen on the validation split for the model; choose and write it now if it was not yet chosen.

    The choices of one run are in the run; those of several together in a folder, after each run's own were frozen.

    Args:
        request: How the validation rows are predicted.
        members: One run, or several whose scores are averaged.
        asked: Settings of the choice that are given; the others are as frozen, or the defaults.
        seed: Seed of the bootstrap.
        folder: Folder for what several runs choose together.

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
        frozen = before.operating["settings"]
        # Version 0.2.0 froze no decision.
        changed = [
            f"{name}: {frozen.get(name)} -> {value}" for name, value in asked.items() if frozen.get(name) != value
        ]
        if not changed:
            return before
        if openings:
            raise ConfigError(
                f"{files[0]} was frozen with other settings ({'; '.join(changed)}) and a test "
                "split has been opened since: remove the option, or train another run"
            )
        kept = frozen
    task = members[0].card.task
    settings = complete_settings({**kept, **asked}, kind=task.kind, grades=task.grades)
    validation = _predict_validation(request, members)
    if validation is None:
        return Choices({}, {}, ["no operating points: the run's own store, on which they are chosen, is not available"])
    rows = validation.rows
    chosen_on = {key: validation.key[key] for key in ("model_sha256", "store_sha256", "split", "split_sha256")}
    chosen_on["labels_sha256"] = validation.key["labels_sha256"]
    chosen_on |= {"n_images": len(rows.patient_ids), "n_patients": None}
    if validation.opened.store.patients_from != PER_IMAGE:
        chosen_on["n_patients"] = len(set(rows.patient_ids))
    chosen_on["patients_by_class"] = count_patients(rows.predictions, rows.patients)
    chosen_on["test_openings_before"] = openings
    choices = choose(rows, settings, chosen_on | validation.plan.to_json(), seed=seed, points_seed=seed)
    choices.notes.extend(_describe(choices.operating))
    for file, content in zip(files, (choices.operating, choices.calibration), strict=True):
        write_json(file, dict(content))
    use = f"; medcls.predict uses them with choices={folder}" if len(members) > 1 and not views else ""
    say(f"chosen on {describe_rows(choices.operating['chosen_on'])} and frozen: {files[0]}, {files[1]}{use}")
    return choices


def name_views(wanted: ViewRequest, members: list[Opened]) -> str:
    """Return the name of the views of all members; "" for the plain middle."""
    names = set()
    for each in members:
        sides = find_sides_of(each.card)
        names.add(plan_views(wanted, crop=each.card.crop, stored=each.store.shape, sides=sides).name)
    return "+".join(sorted(names - {""}))


def name_files(run: Path, views: str) -> tuple[Path, Path]:
    """Return where operating points and calibration lie: scores of other views are others, and so are thresholds."""
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
        calibration = {**calibration, "map": {"method": "none"}, "chosen": {"method": "none", "reason": _EARLIER}}
        notes.append(f"no recalibration is applied: {_EARLIER}")
    return Choices(operating, calibration, notes)


def _read_unfinished(files: tuple[Path, Path], *, model_sha256: str, openings: int) -> Mapping[str, Any]:
    """Return the settings of a choice that was interrupted between its two files; {} if none was.

    A file may also have been deleted. As no test split was opened since, the same choice can be made again.
    """
    parts = _read_parts(files, model_sha256)
    before = {part["chosen_on"]["test_openings_before"] for part in parts.values()}
    if not parts or _fit(parts) or before != {openings}:
        return {}
    first = next(iter(parts))
    say(f"notice: {first} was written without its other file: both are chosen again with its settings")
    settings: Mapping[str, Any] = parts[first]["settings"]
    return settings


def _read_parts(files: tuple[Path, Path], model_sha256: str) -> dict[Path, Mapping[str, Any]]:
    """Return the frozen files that are there and belong to this model."""
    needed = {"chosen_on": {"model_sha256", "test_openings_before"}, "settings": set[str]()}
    parts: dict[Path, Mapping[str, Any]] = {}
    for file in files:
        if not file.is_file():
            continue
        part = read_json(file, remedy=f"restore it, or {_ANEW}")
        for place, names in needed.items():
            if not isinstance(part.get(place), dict) or not names <= set(part[place]):
                raise DataError(f"{file} is not as evaluate wrote it ({place}): restore it, or {_ANEW}")
        if part["chosen_on"]["model_sha256"] == model_sha256 and part.get("format") == FORMAT:
            parts[file] = part
    return parts


def _fit(parts: Mapping[Path, Mapping[str, Any]]) -> bool:
    """Return whether there are two files, from one choice."""
    first, *others = parts.values()
    return len(others) == 1 and all(first[name] == others[0][name] for name in ("settings", "chosen_on"))


def _predict_validation(request: SplitRequest, members: list[Opened]) -> SplitPredictions | None:
    """Return the predictions of the validation split of the runs' own store; None if that store is not here."""
    wanted = members[0].request_validation(request.rows)
    if wanted is None:
        return None
    return predict_members(replace(request, rows=wanted), [open_rows(wanted, each.run, each.card) for each in members])


def _describe(operating: Mapping[str, Any]) -> list[str]:
    # Patients are None where they are unknown; a file of an earlier version always counts them.
    notes = describe_few(operating)
    if operating["chosen_on"].get("n_patients", 0) is None:
        notes = [name_units(text, PER_IMAGE) for text in notes]
    late = operating["chosen_on"]["test_openings_before"]
    if late:
        times = format_count(late, "time")
        notes.append(f"operating points were chosen on validation after a test split had been opened {times}")
    return notes
