"""Extend an earlier split (split.extends): known patients keep their split, only new ones are dealt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from medcls.config import SplitConfig
from medcls.console import say
from medcls.data.columns import Codes
from medcls.data.duplicates import DuplicatePair
from medcls.data.folds import link_patients
from medcls.data.splits import OUT, Splits, read_split
from medcls.data.store import Store
from medcls.disk import find_disk_failure
from medcls.errors import ConfigError, MedclsError, MissingInputError
from medcls.files import DATASET, SPLITS
from medcls.identity import format_count, name_units

_DEFAULT = "default"
# Stores beside this one that are looked at, the newest first.
_MOST_STORES = 8


@dataclass(frozen=True, slots=True)
class Known:
    """Where an earlier split has the patients of a store.

    Attributes:
        splits: (patients.texts,) split of each patient, OUT for a new one.
        chain: Splits that are extended, the nearest first, as the certificate states them.
    """

    splits: NDArray[np.int8]
    chain: list[Mapping[str, object]]

    def spread(self, patients: Codes, units: Codes) -> NDArray[np.int8]:
        """Return the most held-out known split of each unit of merged patients."""
        return _most_held_out(self.splits[patients.values], units)


def _most_held_out(of_row: Splits, owners: Codes) -> NDArray[np.int8]:
    """Return the most held-out split among the rows of each owner, OUT if it has none."""
    found = np.full(len(owners.texts), -1, np.int8)
    kept = of_row != OUT
    np.maximum.at(found, owners.values[kept], of_row[kept])
    return np.where(found < 0, np.int8(OUT), found)


def read_known(store: Store, config: SplitConfig, *, patients: Codes, links: Sequence[DuplicatePair]) -> Known:
    """Return where the split that is extended has the patients of a store.

    A patient is known by its id, or by an image that is identical to one of a known patient (if both stores were
    prepared alike) or linked to one inside this store.

    Args:
        store: Store that is split.
        config: With `extends`.
        patients: patient_id of each image.
        links: Pairs of images of different patients of this store that are the same.

    Raises:
        MissingInputError: no such store or split.
        ConfigError: the stores have other pseudonym keys, or share no patient.
        DataError: the earlier split is damaged.
    """
    folder, name = _locate(str(config.extends), config.name)
    old = Store(folder)
    splits, certificate = read_split(old, name)
    if old.info["deidentify"] != store.info["deidentify"]:
        kinds = [f"{s.info['deidentify']['kind']}, key {s.info['deidentify']['key_fingerprint']}" for s in (old, store)]
        raise ConfigError(
            f"split.extends={config.extends}: its patients have other pseudonyms (found {kinds[0]}; here {kinds[1]}), "
            "so none can be recognised: set deidentify and deidentify.key_file as that store had them"
        )
    by_id = _look_up(patients, old.codes("patient_id"), splits)
    by_image = np.full(len(patients.texts), OUT, np.int8)
    if old.spec == store.spec:
        by_image = _most_held_out(_find_identical(store, old, splits), patients)
    found = np.where(by_id != OUT, by_id, by_image)
    linked = link_patients(patients, links)
    together = _most_held_out(found[patients.values], linked)
    first = np.unique(patients.values, return_index=True)[1]
    found = np.where(found != OUT, found, together[linked.values[first]])
    count = int((by_id != OUT).sum())
    unit = name_units("patients", store.patients_from)
    if not (found != OUT).any():
        raise ConfigError(
            f"split.extends={config.extends}: none of the {len(patients.texts)} {unit} of this store is in it "
            f"({len(old.codes('patient_id').texts)} {name_units('patients', old.patients_from)}), "
            "by id or by image: check patient_id and "
            "deidentify.key_file, or remove split.extends"
        )
    follow = int((found != OUT).sum()) - count
    say(
        f"split {config.name} extends split {name} of store {old.name}: {count} {unit} keep their split, "
        f"{follow} more follow an identical image, {len(found) - count - follow} are new and dealt"
    )
    if old.spec != store.spec:
        say("notice: split.extends: the two stores were prepared differently, so patients can be matched only by id")
    link = {
        "store": old.name,
        "store_sha256": old.sha256,
        "split": name,
        "split_sha256": certificate["split_sha256"],
        "patients_known": count,
        "patients_known_by_image": follow,
    }
    return Known(found.astype(np.int8), [link, *certificate.get("extends", [])])


def _locate(given: str, name: str) -> tuple[Path, str]:
    """Return the store's folder and the split's name."""
    path = Path(given)
    if path.suffix == ".json" and path.parent.name == SPLITS:
        return path.parent.parent, path.stem
    if not (path / DATASET).is_file():
        raise MissingInputError(f"split.extends={given}: expected a store's folder, or STORE/{SPLITS}/NAME.json")
    for candidate in (name, _DEFAULT):
        if (path / SPLITS / f"{candidate}.json").is_file():
            return path, candidate
    names = sorted(file.stem for file in (path / SPLITS).glob("*.json"))
    raise MissingInputError(
        f"split.extends={given}: the store has no split {name} or {_DEFAULT} (it has {', '.join(names) or 'none'}): "
        f"set split.extends={given}/{SPLITS}/NAME.json"
    )


def _look_up(patients: Codes, old: Codes, splits: Splits) -> NDArray[np.int8]:
    """Return the earlier split of each patient by its id, OUT if it has none."""
    known = np.append(_most_held_out(splits, old), np.int8(OUT))
    return np.asarray(known[pc.fill_null(pc.index_in(patients.texts, value_set=old.texts), -1).to_numpy()])


def _find_identical(store: Store, old: Store, splits: Splits) -> NDArray[np.int8]:
    """Return for each image the earlier split of an identical one, OUT if there is none."""
    kept = np.flatnonzero(splits != OUT)
    before = old.read("pixel_sha256", rows=kept).column(0).combine_chunks()
    place = pc.fill_null(pc.index_in(store.read("pixel_sha256").column(0), value_set=before), -1).to_numpy()
    return np.asarray(np.append(splits[kept], np.int8(OUT))[place])


def warn_shared_patients(store: Store, splits: Splits, *, patients: Codes, reuse: str | None) -> None:
    """Print a notice if older stores have some of these patients in other splits: the first named, others counted.

    Looked at are reuse= and the newest stores beside this one, if their ids can be compared.
    """
    folder = store.folder.resolve()
    beside = [path.parent for path in folder.parent.glob(f"*/{DATASET}") if path.parent != folder]
    newest = sorted(beside, key=lambda path: (-(path / DATASET).stat().st_mtime_ns, path.name))[:_MOST_STORES]
    if reuse:
        newest.insert(0, Path(reuse).resolve())
    here = _most_held_out(splits, patients)
    found: list[tuple[Path, int, int]] = []
    for path in dict.fromkeys(newest):
        try:
            location, name = _locate(str(path), _DEFAULT)
            old = Store(location)
            if old.info["deidentify"] != store.info["deidentify"]:
                continue
            there = _look_up(patients, old.codes("patient_id"), read_split(old, name)[0])
        except (MedclsError, OSError) as error:  # whatever else is in the folder is not asked for
            if failure := find_disk_failure(error):
                say(f"notice: store {path} cannot be read ({failure.strerror}): its splits are not compared with these")
            continue
        shared = (there != OUT) & (here != OUT)
        moved = int((shared & (there != here)).sum())
        if moved:
            found.append((path, int(shared.sum()), moved))
    if not found:
        return
    path, number, moved = found[0]
    ids = name_units("patient id", store.patients_from)
    held_out = name_units("patients", store.patients_from)
    more = ""
    if found[1:]:
        more = f" (and {format_count(len(found) - 1, 'more store')} beside it)"
    say(
        f"notice: {format_count(number, f'{ids} is', f'{ids}s are')} also in store {path}, {moved} in "
        f"another of its splits{more}: a model of one store may have been trained on the held-out {held_out} of the "
        f"other; set split.extends={path} with another split.name= to keep them in the split they had"
    )
