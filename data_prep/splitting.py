"""Split a store by patient: deal or obey, search for contradictions and leaks, certify."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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


def split_store(
    store: Store,
    labels: pa.Table,
    config: SplitConfig,
    *,
    giver: str = "labels file",
    cut: Sequence[str] = (),
    origin: Origin | None = None,
    patients_known: bool = True,
    reuse: str | None = None,
) -> None:
    """Deal or obey the split, search it for contradictions and leaks, and write it with its certificate.

    Args:
        store: Store of the images.
        labels: One row for each stored image, in the store's order: "listed" (bool: the image has a label row; one
            without is left out), "split" (string, null where none is given), and "label" or "label_NAME" (strings,
            null = unknown).
        config: Fractions, seed and policies.
        giver: What gives "split", as the certificate names it.
        cut: Splits that are cut from the given train split by patient, by their fractions of it.
        origin: Where the images come from, for messages and the private list of same images.
        patients_known: False if every image was declared another patient for want of knowledge.
        reuse: An older store whose patients may be in other splits.

    Raises:
        DataError: too few patients, a class missing from a split, one image under two labels, or a leak, each under
            its policy "refuse".
        ConfigError: a split of this name is there already and differs, or split.extends contradicts the labels file.
    """
    origin = origin or Origin()
    given = labels.column("split").null_count < labels.num_rows
    if given and config.extends is not None:
        raise ConfigError(
            f"split.extends={config.extends}: {origin.name} already gives a split ({giver}): remove one of the two"
        )
    patients = store.codes("patient_id")
    same = find_same_images(store, labels, patients=patients, config=config)
    labels = _settle_contradictions(same, store, labels, config=config, origin=origin)
    listed = labels.column("listed").to_numpy()
    strata = build_strata(labels).restrict(listed)
    kept = None if given else _read_kept(store, labels, config)
    if kept is not None:
        _list_links(same, store, labels, splits=kept[0], certificate=kept[1], origin=origin, patients=patients)
        return
    links = [pair for pair in same.links if listed[pair.first] and listed[pair.second]]
    known = None if config.extends is None else read_known(store, config, patients=patients, links=links)
    units = link_patients(patients, links) if config.merge_linked else patients
    merged = len(patients.texts) - len(units.texts)
    fractions = None if given else _fractions(config)
    dealt = RANDOM if patients_known else RANDOM.replace("patient", "image (patients unknown)")
    if given:
        splits = np.where(listed, code_splits(code_column(labels.column("split"))), np.int8(OUT))
        if cut:
            fractions = {name: share if name in cut else 0.0 for name, share in _fractions(config).items()}
            fractions["train"] = round(1 - sum(share for name, share in fractions.items() if name != TRAIN), 9)
            splits = _cut(splits, patients=units, strata=strata, fractions=fractions, seed=config.seed)
    else:
        splits = _deal(units, strata, listed=listed, config=config, patients=patients, known=known)
        chain = [] if known is None else known.chain
        earlier = _read_dealt(store, config, dealt=dealt, chain=chain, merged=merged, listed=listed)
        if earlier is not None and (earlier != splits).any():
            splits, dealt = earlier, dealt + _EARLIER
            say(
                f"notice: split {config.name} is kept as it was made, for the runs that depend on it; today's labels "
                "would give another one: set split.name=NEW for that"
            )
    write_same_images(same, store, labels, origin=origin, splits=splits)
    splits, found = resolve_leaks(
        splits,
        patients=units,
        name_images=lambda rows: store.column("image_id", rows),
        duplicates=links,
        on_leak=config.on_leak,
        remedy=("correct the folders or patient_id.pattern" if giver == "folders" else "correct the labels file")
        + (f" ({same_images_path(store.folder)} lists the same images, mode 0600)" if same.links else "")
        + (
            ""
            if config.merge_linked or not _can_merge(links, splits, labels, cut=cut)
            else ", set split.merge_linked=true if the images under different ids belong to one patient"
        ),
    )
    empty = _check_classes(splits, strata, config=config, given=given)
    certificate: Certificate = {
        "source": _name_source(giver if given else "", fractions, dealt=dealt),
        "algorithm": None if fractions is None else DEALING,
        "seed": None if fractions is None else config.seed,
        "fractions": fractions,
        "patients_from": store.patients_from,
        **_policy(config),
        "on_contradiction": config.on_contradiction,
        "contradictions": count_same_images(same),
        "extends": [] if known is None else known.chain,
        "merged_patients": merged,
        **found,
        "classes_missing": empty,
        **describe_split(splits, strata, patients=units),
        "table": build_table(labels, splits, patients=units if patients_known else None),
    }
    if not patients_known:
        certificate["patients"] = dict.fromkeys(certificate["patients"])
    fresh = not (store.folder / SPLITS / f"{config.name}.parquet").is_file()
    write_split_once(store, config.name, splits=splits, certificate=certificate, patients=units)
    _say_split(config.name, certificate, known=patients_known)
    _list_links(same, store, labels, splits=splits, certificate=certificate, origin=origin, patients=patients)
    if fresh and known is None:
        warn_shared_patients(store, splits, patients=patients, reuse=reuse)


def _can_merge(links: Sequence[DuplicatePair], splits: Splits, labels: pa.Table, *, cut: Sequence[str]) -> bool:
    """Return whether merging the patients of same images can mend a leak: one was dealt, and not given by the user."""
    given = labels.column("split")
    dealt = {None, TRAIN} if cut else {None}
    crossing = [p for p in links if splits[p.first] != splits[p.second] and OUT not in splits[[p.first, p.second]]]
    return any({given[p.first].as_py(), given[p.second].as_py()} <= dealt for p in crossing)


def _settle_contradictions(
    same: SameImages, store: Store, labels: pa.Table, *, config: SplitConfig, origin: Origin
) -> pa.Table:
    """Name the images with several labels, first of all; refuse them, or return the labels without them if dropped."""
    if not same.contradictions and not same.suspected:
        return labels
    where = write_same_images(same, store, labels, origin=origin)
    if same.suspected:
        number = len(same.suspected)
        say(
            f"notice: {format_count(number, 'pair')} of nearly identical images of one patient "
            f"{'has' if number == 1 else 'have'} different labels, as "
            f"neighbouring slices and frames may: {where}; correct the labels if they are copies"
        )
    if not same.contradictions:
        return labels
    found = f"{origin.name}: {describe_contradictions(same, origin)}"
    every = "both" if len(same.contradicting) == 2 else f"all {len(same.contradicting)}"
    if config.on_contradiction == "refuse":
        raise DataError(
            f"{found}: correct the labels ({where}), or set "
            f"split.on_contradiction=drop (leaves {every} images out) or report (keeps {every})"
        )
    done = f"{every} are left out" if config.on_contradiction == "drop" else f"{every} are kept as they are"
    say(f"notice: {found}; {done} (split.on_contradiction={config.on_contradiction}); {where}")
    if config.on_contradiction == "report":
        return labels
    listed = labels.column("listed").to_numpy().copy()
    listed[same.contradicting] = False
    return labels.set_column(labels.schema.get_field_index("listed"), "listed", pa.array(listed))


def _policy(config: SplitConfig) -> Certificate:
    limits = {"max_bits_of_256": config.near_duplicate_bits, "min_correlation": config.near_duplicate_correlation}
    return {"on_leak": config.on_leak, "near_duplicates": limits}


def _read_kept(store: Store, labels: pa.Table, config: SplitConfig) -> tuple[Splits, Certificate] | None:
    """Return the split of this name if version 0.2.0 dealt it from the same labels and settings, and say that it stays.

    Runs are tied to its checksum. Whoever repeats a command has not asked for another split.
    """
    path = store.folder / SPLITS / f"{config.name}.parquet"
    if not path.is_file() or not path.with_suffix(".json").is_file() or not (store.folder / LABELS).is_file():
        return None
    written = read_certificate(path)
    expected = {"source": RANDOM, "seed": config.seed, "fractions": _fractions(config), **_policy(config)}
    new = "algorithm" in written or config.extends is not None or config.merge_linked
    if new or any(written.get(key) != value for key, value in expected.items()):
        return None
    splits, certificate = read_split(store, config.name)
    out, unlisted = splits == OUT, ~labels.column("listed").to_numpy()
    names = read_names(store.folder / LABELS)
    same = set(names) == set(labels.column_names) - {"listed", "split"} and (
        read_columns(store.folder / LABELS, *names).combine_chunks().equals(labels.select(names).combine_chunks())
    )
    if not same or not out[unlisted].all() or out.sum() - unlisted.sum() != certificate["dropped"]:
        return None
    say(
        f"notice: split {config.name} was made by version 0.2.0, which dealt the patients with most images to training "
        "first; it is kept for the runs that depend on it: set split.name=NEW for a random split"
    )
    _say_split(config.name, certificate)
    return splits, certificate


def _read_dealt(
    store: Store,
    config: SplitConfig,
    *,
    dealt: str,
    chain: list[dict[str, Any]],
    merged: int,
    listed: NDArray[np.bool_],
) -> Splits | None:
    """Return the split of this name if it was dealt from the same images with the same settings; None otherwise.

    Only a label can have changed then, which says nothing about who a patient is: leaks are looked for again all the
    same, and whoever corrects a label has not asked for another split (docs/decisions/0067-corrected-labels.md).
    """
    path = store.folder / SPLITS / f"{config.name}.parquet"
    if not path.is_file() or not path.with_suffix(".json").is_file():
        return None
    written = read_certificate(path)
    expected = {
        "algorithm": DEALING,
        "seed": config.seed,
        "fractions": _fractions(config),
        "extends": chain,
        "merged_patients": merged,
        "dropped": 0,
        **_policy(config),
    }
    if any(written.get(key) != value for key, value in expected.items()) or written.get("source") not in (
        dealt,
        dealt + _EARLIER,
    ):
        return None
    splits, _ = read_split(store, config.name)
    return splits if ((splits != OUT) == listed).all() else None


def _deal(
    units: Codes,
    strata: Strata,
    *,
    listed: NDArray[np.bool_],
    config: SplitConfig,
    patients: Codes,
    known: Known | None,
) -> Splits:
    fractions = _fractions(config)
    _check_patients(units.count(listed), fractions)
    if known is None:
        return assign_splits(units, strata, fractions=fractions, seed=config.seed, listed=listed)
    # Merged patients go where the most held-out of them was; each that was known stays, so that a contradiction shows.
    place = known.spread(patients, units)
    splits = assign_splits(units, strata, fractions=fractions, seed=config.seed, listed=listed, known=place)
    own = known.splits[patients.values]
    return np.where(listed & (own != OUT), own, splits)


def _cut(splits: Splits, *, patients: Codes, strata: Strata, fractions: dict[str, float], seed: int) -> Splits:
    """Return the splits after some patients of train went to the splits that were not given."""
    train = splits == SPLIT_NAMES.index(TRAIN)
    _check_patients(patients.count(train), fractions)
    parts = assign_splits(patients, strata.restrict(train), fractions=fractions, seed=seed, listed=train)
    return np.where(train, parts, splits)


def _name_source(giver: str, fractions: dict[str, float] | None, *, dealt: str) -> str:
    """Return where a split comes from, as its certificate says."""
    if not giver:
        return dealt
    cut = [name for name, share in (fractions or {}).items() if share and name != TRAIN]
    return giver + (f"; {' and '.join(cut)} cut from train at {dealt}" if cut else "")


def _fractions(config: SplitConfig) -> dict[str, float]:
    return {"train": round(1 - config.test - config.val, 9), "val": config.val, "test": config.test}


def _check_patients(found: int, fractions: dict[str, float]) -> None:
    needed = sum(share > 0 for share in fractions.values())
    if found < needed:
        raise DataError(
            f"{format_count(found, 'patient')} cannot fill {needed} splits: add patients, or set split.test=0 or "
            "split.val=0"
        )


def _check_classes(splits: Splits, strata: Strata, *, config: SplitConfig, given: bool) -> dict[str, list[str]]:
    """Return the strata missing from each split that should have images; refuse unless told to report."""
    images = dict(zip(SPLIT_NAMES, np.bincount(splits, minlength=len(SPLIT_NAMES)).tolist(), strict=True))
    wanted = [s for s in ORDER if images[s] or (not given and _fractions(config)[s] > 0)]
    empty = [name for name in wanted if not images[name]]
    if empty:
        raise DataError(
            f"no image is in the split {', '.join(empty)}: add patients, or set a larger split.val or split.test"
        )
    missing = find_missing(splits, strata, wanted=wanted)
    if missing and config.on_missing == "refuse":
        listed = "; ".join(f"{name} has no image of {', '.join(labels)}" for name, labels in missing.items())
        raise DataError(
            f"classes missing from a split: {listed}: add patients, or set a larger split.val, another "
            "split.seed, or split.on_missing=report (to evaluate only: training needs every class in train and val)"
        )
    return missing


def _say_split(name: str, certificate: Certificate, *, known: bool = True) -> None:
    images, patients = certificate["images"], certificate["patients"]
    parts = []
    for split in (*ORDER, DROPPED):
        if split in images:
            number = patients[split]
            owners = "" if number is None else f" of {format_count(number, 'patient')}"
            parts.append(f"{split} {format_count(images[split], 'image')}{owners}")
    counts = ", ".join(parts)
    counts += "" if known else "; patients unknown: each image counts as one"
    leaks = len(certificate["patients_in_several_splits"]) + len(certificate["images_in_several_splits"])
    found = f"leaks found{'' if known else ' by image'}: {leaks} (on_leak={certificate['on_leak']})"
    if leaks:
        done = (
            f"{format_count(certificate['dropped'], 'image')} left out of the split nearer to training"
            if certificate["on_leak"] == "drop"
            else "nothing is left out"
        )
        found += f": {count_leaks(certificate)}: {done}; {SPLITS}/{name}.json of the store lists them"
    say(f"split {name}: {counts}; {found}")


def _list_links(
    same: SameImages,
    store: Store,
    labels: pa.Table,
    *,
    splits: Splits,
    certificate: Certificate,
    origin: Origin,
    patients: Codes,
) -> None:
    """Write the list of same images with their splits, and say how many patients they link inside one split."""
    where = write_same_images(same, store, labels, origin=origin, splits=splits)
    inside = [pair for pair in same.links if splits[pair.first] == splits[pair.second] != OUT]
    if not inside:
        return
    number = len(np.unique(patients.values[[row for pair in inside for row in (pair.first, pair.second)]]))
    pairs = f"{format_count(len(inside), 'pair')} of images of {number} different patients"
    found = f"notice: {pairs} {'looks' if len(inside) == 1 else 'look'} the same inside one split"
    if certificate.get("merged_patients"):
        say(f"{found}; these patients count as one (split.merge_linked=true); {where}")
        return
    say(
        f"{found}; {where}: if they are the same person, set split.merge_linked=true with "
        "another split.name=, since intervals over patients who are counted twice are too narrow"
    )
