"""Split a store by patient: deal or obey, search for contradictions and leaks, certify."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data_prep.extending import Known, read_known, warn_shared_patients
from data_prep.same_images import (
    Origin,
    SameImages,
    count_same_images,
    describe_contradictions,
    find_same_images,
    same_images_path,
    write_same_images,
)
from data_prep.split_table import build_table
from medcls.config import SplitConfig
from medcls.console import say
from medcls.data.columns import Codes, code_column, read_columns, read_names
from medcls.data.duplicates import DuplicatePair
from medcls.data.folds import link_patients
from medcls.data.splits import (
    DROPPED,
    ORDER,
    OUT,
    SPLIT_NAMES,
    TRAIN,
    Certificate,
    Splits,
    code_splits,
    count_leaks,
    read_certificate,
    read_split,
    resolve_leaks,
    write_split_once,
)
from medcls.data.store import Store
from medcls.data.strata import Strata, build_strata, describe_split, find_missing
from medcls.data.stratification import DEALING, assign_splits
from medcls.errors import ConfigError, DataError
from medcls.files import LABELS, SPLITS
from medcls.identity import format_count

RANDOM = "random by patient, stratified by label"
_EARLIER = " as they were when it was made"


@dataclass(frozen=True, slots=True)
class _Case:
    """What is split: the arguments of `split_store`, the patient of each image, and the images that are the same."""

    store: Store
    labels: pa.Table
    config: SplitConfig
    origin: Origin
    patients: Codes
    same: SameImages

    @property
    def listed(self) -> NDArray[np.bool_]:
        """(N,): the images that take part."""
        return self.labels.column("listed").to_numpy()

    @property
    def fractions(self) -> dict[str, float]:
        """Share of each split."""
        config = self.config
        return {"train": round(1 - config.test - config.val, 9), "val": config.val, "test": config.test}

    @property
    def policy(self) -> Certificate:
        """What a certificate states of leaks."""
        config = self.config
        limits = {"max_bits_of_256": config.near_duplicate_bits, "min_correlation": config.near_duplicate_correlation}
        return {"on_leak": config.on_leak, "near_duplicates": limits}

    def read_certificate(self) -> Certificate:
        """Return the certificate of the split of this name; {} if there is none."""
        path = self.store.folder / SPLITS / f"{self.config.name}.parquet"
        if not path.is_file() or not path.with_suffix(".json").is_file():
            return {}
        return read_certificate(path)


@dataclass(frozen=True, slots=True)
class _Made:
    """A split before leaks are looked for.

    Attributes:
        splits: Of each image.
        source: Where it comes from, as the certificate says.
        fractions: Shares by which patients were dealt; None if none were.
    """

    splits: Splits
    source: str
    fractions: dict[str, float] | None = None


def split_store(store: Store, labels: pa.Table, config: SplitConfig, *, origin: Origin | None = None) -> None:
    """Deal or obey the split, search it for contradictions and leaks, and write it with its certificate.

    Args:
        store: Store of the images.
        labels: One row for each stored image, in the store's order: "listed" (bool: the image has a label row; one
            without is left out), "split" (string, null where none is given), and "label" or "label_NAME" (strings,
            null = unknown).
        config: Fractions, seed and policies.
        origin: Where images, labels and given splits come from.

    Raises:
        DataError: too few patients, a class missing from a split, one image under two labels, or a leak, each under
            its policy "refuse".
        ConfigError: a split of this name is there already and differs, or split.extends contradicts the labels file.
    """
    origin = origin or Origin()
    given = labels.column("split").null_count < labels.num_rows
    if given and config.extends is not None:
        raise ConfigError(
            f"split.extends={config.extends}: {origin.name} already gives a split ({origin.giver}): remove one of the "
            "two"
        )
    patients = store.codes("patient_id")
    same = find_same_images(store, labels, patients=patients, config=config)
    case = _settle_contradictions(_Case(store, labels, config, origin, patients, same))
    if not given and _keep_first(case):
        return
    listed = case.listed
    strata = build_strata(case.labels).restrict(listed)
    links = [pair for pair in same.links if listed[pair.first] and listed[pair.second]]
    known, chain = None, []
    if config.extends is not None:
        known = read_known(store, config, patients=patients, links=links)
        chain = known.chain
    units = patients
    if config.merge_linked:
        units = link_patients(patients, links)
    merged = len(patients.texts) - len(units.texts)
    if given:
        made = _obey(case, units, strata)
    else:
        made = _deal(case, units, strata, known)
        made = _keep_dealt(case, made, {"extends": chain, "merged_patients": merged})
    write_same_images(same, store, case.labels, origin=origin, splits=made.splits)
    splits, found = resolve_leaks(
        made.splits,
        patients=units,
        name_images=lambda rows: store.column("image_id", rows),
        duplicates=links,
        on_leak=config.on_leak,
        remedy=_advise_leak(case, links, made.splits),
    )
    certificate: Certificate = {
        "source": made.source,
        "algorithm": DEALING,
        "seed": config.seed,
        "fractions": made.fractions,
        "patients_from": store.patients_from,
        **case.policy,
        "on_contradiction": config.on_contradiction,
        "contradictions": count_same_images(same),
        "extends": chain,
        "merged_patients": merged,
        **found,
        "classes_missing": _check_classes(case, splits, strata, given=given),
        **describe_split(splits, strata, patients=units),
    }
    if made.fractions is None:
        certificate |= {"algorithm": None, "seed": None}
    if origin.patients_known:
        certificate["table"] = build_table(case.labels, splits, patients=units)
    else:
        certificate["table"] = build_table(case.labels, splits, patients=None)
        certificate["patients"] = dict.fromkeys(certificate["patients"])
    fresh = not (store.folder / SPLITS / f"{config.name}.parquet").is_file()
    write_split_once(store, config.name, splits=splits, certificate=certificate, patients=units)
    _say_split(config.name, certificate, known=origin.patients_known)
    _list_links(case, splits, certificate)
    if fresh and known is None:
        warn_shared_patients(store, splits, patients=patients, reuse=origin.reuse)


def _advise_leak(case: _Case, links: Sequence[DuplicatePair], splits: Splits) -> str:
    """Return what to do about a leak: merging patients mends it only if one of them was dealt, not given."""
    advice = "correct the labels file"
    if case.origin.giver == "folders":
        advice = "correct the folders or patient_id.pattern"
    if case.same.links:
        advice += f" ({same_images_path(case.store.folder)} lists the same images, mode 0600)"
    given = case.labels.column("split")
    dealt: set[str | None] = {None}
    if case.origin.cut:
        dealt.add(TRAIN)
    for pair in links:
        ends = splits[[pair.first, pair.second]]
        crosses = ends[0] != ends[1] and OUT not in ends
        if (
            crosses
            and not case.config.merge_linked
            and {given[pair.first].as_py(), given[pair.second].as_py()} <= dealt
        ):
            return f"{advice}, set split.merge_linked=true if the images under different ids belong to one patient"
    return advice


def _settle_contradictions(case: _Case) -> _Case:
    """Name the images with several labels, first of all; refuse them, or leave them out if they are dropped."""
    same, origin, policy = case.same, case.origin, case.config.on_contradiction
    if not same.contradictions and not same.suspected:
        return case
    where = write_same_images(same, case.store, case.labels, origin=origin)
    if same.suspected:
        what = "of nearly identical images of one patient"
        found = format_count(len(same.suspected), f"pair {what} has", f"pairs {what} have")
        say(
            f"notice: {found} different labels, as neighbouring slices and frames may: {where}; correct the labels if "
            "they are copies"
        )
    if not same.contradictions:
        return case
    found = f"{origin.name}: {describe_contradictions(same, origin)}"
    every = "both"
    if len(same.contradicting) > 2:
        every = f"all {len(same.contradicting)}"
    if policy == "refuse":
        raise DataError(
            f"{found}: correct the labels ({where}), or set "
            f"split.on_contradiction=drop (leaves {every} images out) or report (keeps {every})"
        )
    if policy == "report":
        say(f"notice: {found}; {every} are kept as they are (split.on_contradiction=report); {where}")
        return case
    say(f"notice: {found}; {every} are left out (split.on_contradiction=drop); {where}")
    listed = case.listed.copy()
    listed[same.contradicting] = False
    place = case.labels.schema.get_field_index("listed")
    return replace(case, labels=case.labels.set_column(place, "listed", pa.array(listed)))


def _keep_first(case: _Case) -> bool:
    """Return whether version 0.2.0 dealt the split of this name from the same labels and settings, and say it stays.

    Runs are tied to its checksum. Whoever repeats a command has not asked for another split.
    """
    store, config, labels = case.store, case.config, case.labels
    written = case.read_certificate()
    expected = {"source": RANDOM, "seed": config.seed, "fractions": case.fractions, **case.policy}
    new = "algorithm" in written or config.extends is not None or config.merge_linked
    if new or any(written.get(key) != value for key, value in expected.items()):
        return False
    if not (store.folder / LABELS).is_file():
        return False
    splits, certificate = read_split(store, config.name)
    out, unlisted = splits == OUT, ~case.listed
    names = read_names(store.folder / LABELS)
    same = set(names) == set(labels.column_names) - {"listed", "split"} and (
        read_columns(store.folder / LABELS, *names).combine_chunks().equals(labels.select(names).combine_chunks())
    )
    if not same or not out[unlisted].all() or out.sum() - unlisted.sum() != certificate["dropped"]:
        return False
    say(
        f"notice: split {config.name} was made by version 0.2.0, which dealt the patients with most images to training "
        "first; it is kept for the runs that depend on it: set split.name=NEW for a random split"
    )
    _say_split(config.name, certificate)
    _list_links(case, splits, certificate)
    return True


def _obey(case: _Case, units: Codes, strata: Strata) -> _Made:
    """Return the given split; patients of train are dealt to the splits that were not given."""
    config, origin = case.config, case.origin
    splits = np.where(case.listed, code_splits(code_column(case.labels.column("split"))), np.int8(OUT))
    if not origin.cut:
        return _Made(splits, origin.giver)
    fractions = dict.fromkeys(ORDER, 0.0) | {name: case.fractions[name] for name in origin.cut}
    fractions[TRAIN] = round(1 - fractions["val"] - fractions["test"], 9)
    train = splits == SPLIT_NAMES.index(TRAIN)
    _check_patients(units.count(train), fractions)
    parts = assign_splits(units, strata.restrict(train), fractions=fractions, seed=config.seed, listed=train)
    source, cut = origin.giver, [name for name in ORDER if fractions[name] and name != TRAIN]
    if cut:
        source += f"; {' and '.join(cut)} cut from train at {_name_dealing(case)}"
    return _Made(np.where(train, parts, splits), source, fractions)


def _name_dealing(case: _Case) -> str:
    if case.origin.patients_known:
        return RANDOM
    return RANDOM.replace("patient", "image (patients unknown)")


def _deal(case: _Case, units: Codes, strata: Strata, known: Known | None) -> _Made:
    fractions, seed, listed = case.fractions, case.config.seed, case.listed
    _check_patients(units.count(listed), fractions)
    if known is None:
        splits = assign_splits(units, strata, fractions=fractions, seed=seed, listed=listed)
        return _Made(splits, _name_dealing(case), fractions)
    # Merged patients go where the most held-out of them was; each that was known stays, so that a contradiction shows.
    place = known.spread(case.patients, units)
    splits = assign_splits(units, strata, fractions=fractions, seed=seed, listed=listed, known=place)
    own = known.splits[case.patients.values]
    return _Made(np.where(listed & (own != OUT), own, splits), _name_dealing(case), fractions)


def _keep_dealt(case: _Case, made: _Made, expected: Mapping[str, object]) -> _Made:
    """Return the split of this name if it was dealt from the same images with the same settings; else the new one.

    Only a label can have changed then, which says nothing about who a patient is: leaks are looked for again all the
    same, and whoever corrects a label has not asked for another split (docs/decisions/0067-corrected-labels.md).
    """
    written, earlier = case.read_certificate(), made.source + _EARLIER
    settings = {"algorithm": DEALING, "seed": case.config.seed, "fractions": made.fractions, "dropped": 0}
    for key, value in {**settings, **expected, **case.policy}.items():
        if written.get(key) != value:
            return made
    if written.get("source") not in (made.source, earlier):
        return made
    splits, _ = read_split(case.store, case.config.name)
    if ((splits != OUT) != case.listed).any() or (splits == made.splits).all():
        return made
    say(
        f"notice: split {case.config.name} is kept as it was made, for the runs that depend on it; today's labels "
        "would give another one: set split.name=NEW for that"
    )
    return replace(made, splits=splits, source=earlier)


def _check_patients(found: int, fractions: Mapping[str, float]) -> None:
    needed = sum(share > 0 for share in fractions.values())
    if found < needed:
        raise DataError(
            f"{format_count(found, 'patient')} cannot fill {needed} splits: add patients, or set split.test=0 or "
            "split.val=0"
        )


def _check_classes(case: _Case, splits: Splits, strata: Strata, *, given: bool) -> dict[str, list[str]]:
    """Return the strata missing from each split that should have images; refuse unless told to report."""
    images = dict(zip(SPLIT_NAMES, np.bincount(splits, minlength=len(SPLIT_NAMES)).tolist(), strict=True))
    wanted = [s for s in ORDER if images[s] or (not given and case.fractions[s] > 0)]
    empty = [name for name in wanted if not images[name]]
    if empty:
        raise DataError(
            f"no image is in the split {', '.join(empty)}: add patients, or set a larger split.val or split.test"
        )
    missing = find_missing(splits, strata, wanted=wanted)
    if missing and case.config.on_missing == "refuse":
        listed = "; ".join(f"{name} has no image of {', '.join(labels)}" for name, labels in missing.items())
        raise DataError(
            f"classes missing from a split: {listed}: add patients, or set a larger split.val, another "
            "split.seed, or split.on_missing=report (to evaluate only: training needs every class in train and val)"
        )
    return missing


def _say_split(name: str, certificate: Certificate, *, known: bool = True) -> None:
    images, patients, counts = certificate["images"], certificate["patients"], []
    for split in (*ORDER, DROPPED):
        if split in images:
            owners, number = "", patients[split]
            if number is not None:
                owners = f" of {format_count(number, 'patient')}"
            counts.append(f"{split} {format_count(images[split], 'image')}{owners}")
    unknown, kind = "", ""
    if not known:
        unknown, kind = "; patients unknown: each image counts as one", " by image"
    leaks = len(certificate["patients_in_several_splits"]) + len(certificate["images_in_several_splits"])
    found = f"leaks found{kind}: {leaks} (on_leak={certificate['on_leak']})"
    if leaks:
        done = "nothing is left out"
        if certificate["on_leak"] == "drop":
            done = f"{format_count(certificate['dropped'], 'image')} left out of the split nearer to training"
        found += f": {count_leaks(certificate)}: {done}; {SPLITS}/{name}.json of the store lists them"
    say(f"split {name}: {', '.join(counts)}{unknown}; {found}")


def _list_links(case: _Case, splits: Splits, certificate: Certificate) -> None:
    """Write the list of same images with their splits, and say how many patients they link inside one split."""
    where = write_same_images(case.same, case.store, case.labels, origin=case.origin, splits=splits)
    inside = [pair for pair in case.same.links if splits[pair.first] == splits[pair.second] != OUT]
    if not inside:
        return
    number = len(np.unique(case.patients.values[[row for pair in inside for row in (pair.first, pair.second)]]))
    what = f"of images of {number} different patients"
    found = f"notice: {format_count(len(inside), f'pair {what} looks', f'pairs {what} look')} the same inside one split"
    if certificate.get("merged_patients"):
        say(f"{found}; these patients count as one (split.merge_linked=true); {where}")
        return
    say(
        f"{found}; {where}: if they are the same person, set split.merge_linked=true with "
        "another split.name=, since intervals over patients who are counted twice are too narrow"
    )
