"""Run data_prep: source and labels to a complete store with its labels and a certified split."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from data_prep.assemble import assemble_store, reopen
from data_prep.grey_values import judge_sample
from data_prep.identity_map import map_path, name_column, write_way_back
from data_prep.labels.label_rows import is_label
from data_prep.left_out import describe_left_out
from data_prep.plan import Plan, ShardPlan
from data_prep.planning import build_plan, build_spec, list_source, listed_files
from data_prep.reuse import Earlier
from data_prep.same_images import Origin, same_images_path
from data_prep.shard_work import PARTS, Refusals, ShardSetting, decode_shards, part_names, read_part
from data_prep.splitting import split_store
from medcls.config import PrepareJob
from medcls.console import say
from medcls.data.manifest import COLUMNS, VOLUME_COLUMNS, write_table
from medcls.data.store import Store
from medcls.data.votes import VOTES
from medcls.disk import SOURCE_FILE
from medcls.errors import ConfigError, DataError, MissingInputError, ReadError, UsageError
from medcls.files import (
    DATASET,
    LABELLING,
    LABELS,
    LEDGER,
    MANIFEST,
    SPLITS,
    TEMPORARY,
    clear_private,
    delete_partial,
    sha256_file,
    write_json,
)
from medcls.identity import Identity, describe_key, format_count, read_identity
from medcls.imaging.source import choose_identity
from medcls.imaging.volume.volume import describe_notes
from medcls.imaging.worker import VOLUME_LIMITS, Limits
from medcls.inputs import check_source_folder
from medcls.locks import lock_folder

_NAMES = "|".join(map(re.escape, (MANIFEST, LEDGER, LABELS, LABELLING, SPLITS)))
_OURS = re.compile(rf"{_NAMES}|shard-\d{{5,}}\.npy|{PARTS}(-\d+-of-\d+)?|{re.escape(TEMPORARY)}.*")


def prepare(job: PrepareJob, *, decode: bool = True) -> Store | None:
    """Run the whole stage and return the store; a complete store with the same pixels is reused.

    Args:
        job: What to do. With shard.count above 1 only this job's shards are decoded, and None comes back.
        decode: False joins what other jobs have decoded, and decodes nothing.

    Raises:
        UsageError: source= or store= is missing.
        MissingInputError, DataError, ConfigError, WriteError, BusyError: as the message says.
    """
    source, folder = _check_folders(job)
    _check_columns(job)
    alone = job.shard.count == 1 or not decode
    with lock_folder(folder, shared=not alone, say=say), _offer_quarantine(job):
        beside = (map_path(folder), same_images_path(folder))
        clear_private(folder.resolve().parent, *(path.name for path in beside))
        if alone and (folder / DATASET).is_file():
            for each in (folder, folder / SPLITS):
                delete_partial(each)
        listing = list_source(source)
        if not listing.num_rows:
            raise MissingInputError(f"source={source} contains no files: is the right folder mounted?")
        refuse = job.image.unreadable == "quarantine"
        found = choose_identity("auto", source, listed_files(listing), refuse_unreadable=refuse)
        kind = found if job.deidentify.kind == "auto" else job.deidentify.kind
        identity = _find_identity(job, kind)
        if kind == "declared":
            say(
                "deidentify=declared: paths and patient ids are kept as they are in the store; set deidentify=hmac "
                "deidentify.key_file=FILE if they tell who a patient is"
            )
        plan = build_plan(job, source=source, listing=listing, identity=identity, has_dicom=found == "hmac")
        setting = _setting(job, source=source, folder=folder, identity=identity)
        if (folder / DATASET).is_file():
            store = reopen(plan, setting)
        elif alone:
            store = _make(job, plan, setting, listing=listing, decode=decode)
        else:
            _decode_share(job, plan, setting)
            return None
        labels, places = align_labels(plan, store, identity)
        # The split first: if it is refused, the store keeps the labels and splits that it had.
        name = f"labels={job.labels}" if job.labels else f"source={source}"
        split_store(
            store,
            labels,
            job.split,
            giver="folders" if job.labels is None else "labels file",
            cut=plan.cut,
            origin=Origin(name, plan.table, places),
            patients_known=job.patients != "per_image",
            reuse=job.reuse,
        )
        _write_labels(store, labels, plan.labelling)
        for line in describe_left_out(plan, store, identity):
            say(line)
        if setting.spec.spatial_dims == 3:
            for line in describe_notes((note or "" for note in store.column("notes")), settings=True):
                say(f"notice: {line}")
    return store


@contextlib.contextmanager
def _offer_quarantine(job: PrepareJob) -> Iterator[None]:
    """Name the way to go on without raw files that the disk does not give."""
    try:
        yield
    except ReadError as error:
        if SOURCE_FILE not in str(error) or job.image.unreadable == "quarantine":
            raise
        raise ReadError(f"{error}; set image.unreadable=quarantine to continue without such files") from error


def _find_identity(job: PrepareJob, kind: str) -> Identity:
    identity = read_identity(kind, key_file=job.deidentify.key_file)
    notice = describe_key(identity, key_file=job.deidentify.key_file)
    if notice:
        say(notice)
    return identity


def describe_store(store: Store) -> str:
    """Return what is in a store and what became of the files, for the terminal."""
    states = ", ".join(f"{count} {state}" for state, count in store.info["counts"]["states"].items())
    lines = [f"store {store.folder}: {format_count(len(store), 'image')}; files: {states}"]
    faces = store.info["counts"].get("may_show_face", 0)
    if faces:
        lines.append(
            f"{format_count(faces, 'volume')} may show a face (heads, or no body part named): a face can be "
            "recognised from a volume; deface or skull-strip before you share the store"
        )
    return "\n".join(lines)


def _check_folders(job: PrepareJob) -> tuple[Path, Path]:
    if job.source is None or job.store is None:
        raise UsageError(
            "source=DIR and store=DIR are needed: python -m data_prep source=DIR labels=FILE.csv store=DIR"
        )
    source, folder = Path(job.source), Path(job.store)
    check_source_folder(source)
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"store={folder} is a file: expected a folder, new or of an earlier call")
    if folder.resolve() == source.resolve() or folder.resolve().is_relative_to(source.resolve()):
        raise ConfigError(f"store={folder} is inside source={source}: choose a folder outside it")
    return source, folder


def _check_columns(job: PrepareJob) -> None:
    """Columns of the user's own; patient_id or path would carry what deidentify takes out."""
    if job.labels is None and set(job.columns) - {"site"}:
        raise ConfigError(
            f"columns={job.columns} needs labels=FILE.csv: without it the only column is site, from a layout such as "
            "labelling.layout=site/class"
        )
    taken = [c for c in job.columns if c in (*COLUMNS.names, *VOLUME_COLUMNS.names, "path") or job.columns.count(c) > 1]
    if taken:
        raise ConfigError(
            f"columns={job.columns}: {taken[0]} occurs twice, or is a name that the store itself uses: rename it"
        )


def _setting(job: PrepareJob, *, source: Path, folder: Path, identity: Identity) -> ShardSetting:
    spec = build_spec(job)
    workers = job.workers if job.workers >= 0 else os.cpu_count() or 1
    complete = (folder / DATASET).is_file()
    reuse = Path(job.reuse) if job.reuse and not complete else None
    earlier = Earlier(reuse, spec=spec, identity=identity, columns=job.columns) if reuse else None
    return ShardSetting(
        source,
        folder,
        spec,
        identity,
        tuple(job.columns),
        workers,
        _limits(job),
        earlier,
        refuse_unreadable=job.image.unreadable == "quarantine",
    )


def _limits(job: PrepareJob) -> Limits:
    """Return what the job says, else what the kind of image needs."""
    usual, given = VOLUME_LIMITS if job.image.kind == "volume" else Limits(), job.limits
    memory = usual.memory_bytes if given.memory_gib is None else int(given.memory_gib * (1 << 30))
    return Limits(memory, usual.seconds if given.seconds is None else given.seconds)


def _make(job: PrepareJob, plan: Plan, setting: ShardSetting, *, listing: pa.Table, decode: bool) -> Store:
    """Return a store of all shards: those that earlier runs have left whole are not decoded again."""
    _clear_rubbish(setting.folder)
    if decode:
        _decode(job, plan, setting, numbers=range(plan.shards))
    # Before the store is complete: whoever has the store has the way back.
    write_way_back(setting.folder, plan, setting.identity)
    assemble_store(plan, setting, listing=listing, max_quarantined=job.max_quarantined, few_levels=job.image.few_levels)
    return Store(setting.folder)


def _decode_share(job: PrepareJob, plan: Plan, setting: ShardSetting) -> None:
    """Decode every shard.count-th shard, under a lock of its own: the same job twice would write the same files."""
    index, count = job.shard.index, job.shard.count
    _check_only_ours(setting.folder)
    with lock_folder(setting.folder / f"{PARTS}-{index}-of-{count}", say=say):
        _decode(job, plan, setting, numbers=range(index, plan.shards, count))
    mine = len(range(index, plan.shards, count))
    say(
        f"store {setting.folder}: job {index} of {count} has done its {mine} of {plan.shards} shards; when all jobs "
        "have, the same command as python -m data_prep.merge (without shard.index) completes the store"
    )


def _decode(job: PrepareJob, plan: Plan, setting: ShardSetting, *, numbers: range) -> None:
    """Decode those of the shards that are not whole yet."""
    refusals = Refusals.of(job.max_quarantined, len(plan), plan.early)
    missing = []
    for number in numbers:
        # Without a part there is nothing to compare: its files need not be looked at twice.
        begun = (setting.folder / part_names(number)["json"]).is_file()
        part = read_part(setting.folder, _shard(plan, setting, number)) if begun else None
        if part is None:
            missing.append(number)
        else:
            refusals.add(part["refused"])
    if len(missing) < len(numbers):
        say(f"store {setting.folder}: {len(numbers) - len(missing)} of {len(numbers)} shards are decoded already")
    if not missing:
        return
    if len(missing) == len(numbers):
        judge_sample(plan, setting, allow=job.image.few_levels == "allow")
    if job.executor == "ray":
        from data_prep.ray_executor import decode_on_ray

        shards = (_shard(plan, setting, n) for n in missing)
        decode_on_ray(shards, setting, job=job, refusals=refusals, total=len(missing))
        return
    plans = (_shard(plan, setting, n) for n in missing)
    decode_shards(plans, setting, refusals=refusals, total=sum(map(plan.count, missing)))


def _shard(plan: Plan, setting: ShardSetting, number: int) -> ShardPlan:
    return plan.shard(number, source=setting.source, setting=setting.to_json())


def _clear_rubbish(folder: Path) -> None:
    """Remove half-written files of an interrupted run; parts and shards stay."""
    folder.mkdir(parents=True, exist_ok=True)
    _check_only_ours(folder)
    for path in folder.iterdir():
        if path.name == PARTS or path.match("shard-?????.npy"):
            continue
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _check_only_ours(folder: Path) -> None:
    """Anything unknown is somebody's and stops us, and so does a link: it would take our files elsewhere."""
    for path in sorted(folder.iterdir()):
        if path.is_symlink():
            raise ConfigError(f"store={folder} contains a link: remove it, or choose an empty folder")
    strangers = sum(not _OURS.fullmatch(path.name) for path in folder.iterdir())
    if strangers:
        # Names of files may be those of patients, where store= names the folder of the images by mistake.
        raise ConfigError(
            f"store={folder} holds {strangers} files or folders that are not parts of a store: choose an empty folder"
        )


def align_labels(plan: Plan, store: Store, identity: Identity) -> tuple[pa.Table, NDArray[np.int64]]:
    """Return what the labels file says of each stored image, in the store's order, and its row of the plan.

    Returns:
        image_id, listed (False if the labels file no longer names the image), split, label or label_NAME …, and
        votes or votes_NAME if there are soft targets; and the (N,) rows of the plan, -1 = not listed.

    Raises:
        DataError: an image has another patient than when it was stored.
    """
    stored = store.read("image_id", "patient_id")
    image_ids = stored.column("image_id").combine_chunks()
    place = pc.index_in(image_ids, value_set=name_column(plan.table.column("key"), "image", identity))
    patients = name_column(plan.table.column("patient_id"), "patient", identity).take(place)
    moved = pc.sum(pc.not_equal(patients, stored.column("patient_id").combine_chunks())).as_py()
    if moved:
        raise DataError(
            f"store={store.folder}: {format_count(moved, 'image')} with a patient_id that has changed "
            "since the store was made: choose a new store="
        )
    names = sorted(n for n in plan.table.column_names if is_label(n) or n.split("_")[0] == VOTES)
    labels = {name: plan.table.column(name).take(place) for name in ["split", *names]}
    places = pc.fill_null(place, -1).to_numpy().astype(np.int64)
    return pa.table({"image_id": image_ids, "listed": pc.is_valid(place), **labels}), places


def _write_labels(store: Store, labels: pa.Table, labelling: dict[str, Any]) -> None:
    """Write labels.parquet, and beside it labels.json: what was read how, bound to these labels by their checksum."""
    write_table(store.folder / LABELS, labels.drop_columns(["listed", "split"]).combine_chunks())
    content = labelling | {"labels_sha256": sha256_file(store.folder / LABELS)}
    write_json(store.folder / LABELLING, content)
