"""Run data_prep: source and labels to a complete store with its labels and a certified split."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from shutil import rmtree

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from data_prep.assemble import assemble_store, reopen
from data_prep.file_choice import FileChoice
from data_prep.grey_values import judge_sample
from data_prep.identity_map import map_path, name_column, write_identity_map
from data_prep.labels.label_rows import PatientRule, is_label
from data_prep.left_out import describe_left_out
from data_prep.plan import Plan, rows_per_shard
from data_prep.planning import RawSource, build_plan, build_spec, list_source, listed_files, read_file, read_folders
from data_prep.presentation import choose_presentation
from data_prep.reuse import Earlier
from data_prep.same_images import Origin, same_images_path
from data_prep.shard_work import PARTS, Refusals, ShardSetting, decode_shards, part_names, read_part
from data_prep.splitting import split_store
from medcls.config import DeidentifyConfig, LimitsConfig, PrepareJob, ShardConfig, SplitConfig
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
from medcls.identity import PER_IMAGE, Identity, describe_key, format_count, read_identity
from medcls.imaging.catalog import build_index, read_index
from medcls.imaging.source import choose_identity
from medcls.imaging.volume.volume import describe_notes
from medcls.imaging.worker import VOLUME_LIMITS, Limits, count_workers
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
    raw, folder = check_folders(job.source, job.store)
    check_columns(job.columns, has_file=job.labels is not None)
    alone = job.shard.count == 1 or not decode
    refuse = job.image.unreadable == "quarantine"
    with lock_folder(folder, shared=not alone, say=say), _offer_quarantine(refuse):
        clear_private(folder.resolve().parent, map_path(folder).name, same_images_path(folder).name)
        complete = (folder / DATASET).is_file()
        if complete and alone:
            delete_partial(folder)
            delete_partial(folder / SPLITS)
        listing = list_source(raw)
        if not listing.num_rows:
            raise MissingInputError(f"source={raw} contains no files: is the right folder mounted?")
        found = choose_identity("auto", raw, listed_files(listing), refuse_unreadable=refuse)
        identity = choose_names(job.deidentify, found)
        spec = build_spec(job.image, series=job.series, stack=job.stack)
        setting = ShardSetting(
            raw,
            folder,
            spec,
            identity,
            columns=tuple(job.columns),
            workers=count_workers(job.workers),
            limits=choose_limits(job.limits, spec.spatial_dims),
            refuse_unreadable=refuse,
            max_quarantined=job.max_quarantined,
            allow_few_levels=job.image.few_levels == "allow",
            on_ray=job.executor == "ray",
            key_file=job.deidentify.key_file,
        )
        source = RawSource(raw, listing, spec, identity, FileChoice.of(job.labelling))
        if job.index is not None:
            source = source.with_index(read_index(Path(job.index), source=raw))
        elif found == "hmac" or spec.spatial_dims == 3:
            source = source.with_index(_read_headers(setting, listing))
        rule = PatientRule(job.patients, job.patient_id.pattern, headers=source.index is not None)
        origin = Origin(patients_known=job.patients != PER_IMAGE, reuse=job.reuse)
        if job.labels is None:
            labels = read_folders(source, job.labelling, rule=rule, columns=job.columns)
            _say_cut(labels.cut, job.split, unit="patient" if origin.patients_known else "image (patients are unknown)")
            origin = replace(origin, name=f"source={raw}", giver="folders", cut=labels.cut)
        else:
            labels = read_file(Path(job.labels), source, job.labelling, rule=rule, columns=job.columns)
            origin = replace(origin, name=f"labels={job.labels}")
        plan = build_plan(source, labels, rule=rule, compare=job.compare)
        plan = choose_presentation(plan, source.index, job.image.presentation)
        most = rows_per_shard(spec.shape, spec.dtype, most=job.shard.rows)
        plan = replace(plan, columns=setting.columns, rows_per_shard=most)
        if job.reuse and not complete:
            earlier = Earlier(Path(job.reuse), spec=spec, identity=identity, columns=job.columns)
            setting = replace(setting, earlier=earlier)
        if complete:
            store = reopen(plan, setting)
        elif alone:
            store = _make(plan, setting, listing=listing, decode=decode)
        else:
            _decode_share(plan, setting, job.shard)
            return None
        table, places = align_labels(plan, store, identity)
        # The split first: if it is refused, the store keeps the labels and splits that it had.
        split_store(store, table, job.split, origin=replace(origin, plan=plan.table, places=places))
        write_table(store.folder / LABELS, table.drop_columns(["listed", "split"]).combine_chunks())
        # Beside it what was read how, bound to these labels by their checksum.
        record = dict(labels.record) | {"labels_sha256": sha256_file(store.folder / LABELS)}
        write_json(store.folder / LABELLING, record)
        _say_notes(plan, store, identity)
    return store


def check_folders(source: str | None, store: str | None) -> tuple[Path, Path]:
    """Return the folders of raw files and of the store, after checking that neither is inside the other.

    Raises:
        UsageError: one of them is missing.
        MissingInputError, ConfigError: the source is not a folder, or the store cannot be one.
    """
    if source is None or store is None:
        raise UsageError(
            "source=DIR and store=DIR are needed: python -m data_prep source=DIR labels=FILE.csv store=DIR"
        )
    raw, folder = Path(source), Path(store)
    check_source_folder(raw)
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"store={folder} is a file: expected a folder, new or of an earlier call")
    if folder.resolve().is_relative_to(raw.resolve()):
        raise ConfigError(f"store={folder} is inside source={raw}: choose a folder outside it")
    return raw, folder


def check_columns(columns: Sequence[str], *, has_file: bool) -> None:
    """Check the columns of the user's own: patient_id or path would carry what deidentify takes out.

    Args:
        columns: As columns=[…].
        has_file: The labels come from a file.

    Raises:
        ConfigError: a column that class folders do not have, that occurs twice or that the store itself uses.
    """
    if not has_file and set(columns) - {"site"}:
        raise ConfigError(
            f"columns={columns} needs labels=FILE.csv: without it the only column is site, from a layout such as "
            "labelling.layout=site/class"
        )
    own = {*COLUMNS.names, *VOLUME_COLUMNS.names, "path"}
    taken = [name for name in columns if name in own or columns.count(name) > 1]
    if taken:
        raise ConfigError(
            f"columns={columns}: {taken[0]} occurs twice, or is a name that the store itself uses: rename it"
        )


@contextlib.contextmanager
def _offer_quarantine(refuse: bool) -> Iterator[None]:
    """Name the way to go on without raw files that the disk does not give."""
    try:
        yield
    except ReadError as error:
        if SOURCE_FILE not in str(error) or refuse:
            raise
        raise ReadError(f"{error}; set image.unreadable=quarantine to continue without such files") from error


def choose_names(config: DeidentifyConfig, found: str) -> Identity:
    """Return how ids are written, and print what follows from it.

    Args:
        config: The setting and the key.
        found: What kind=auto means for this source.
    """
    kind = config.kind if config.kind != "auto" else found
    identity = read_identity(kind, key_file=config.key_file)
    notice = describe_key(identity, key_file=config.key_file)
    if kind == "declared":
        notice = (
            "deidentify=declared: paths and patient ids are kept as they are in the store; set deidentify=hmac "
            "deidentify.key_file=FILE if they tell who a patient is"
        )
    if notice:
        say(notice)
    return identity


def choose_limits(config: LimitsConfig, spatial_dims: int) -> Limits:
    """Return what decoding one image may use: what is set, else what the kind of image needs."""
    limits = VOLUME_LIMITS if spatial_dims == 3 else Limits()
    if config.memory_gib is not None:
        limits = replace(limits, memory_bytes=int(config.memory_gib * (1 << 30)))
    if config.seconds is not None:
        limits = replace(limits, seconds=config.seconds)
    return limits


def _read_headers(setting: ShardSetting, listing: pa.Table) -> pa.Table:
    """Return the index of the source."""
    # Without a volume's last slice nobody would know that one is missing: the volume looks whole.
    refuse = setting.refuse_unreadable and setting.spec.spatial_dims == 2
    files = listed_files(listing)
    return build_index(setting.source, files, workers=setting.workers, refuse_unreadable=refuse)


def _say_cut(cut: Sequence[str], config: SplitConfig, *, unit: str) -> None:
    """Print a line for each split that no folder is of; a share of 0 is the user's own wish."""
    for split in cut:
        share = getattr(config, split)
        if share:
            say(
                f"notice: no folder of {split} has classes: split.{split}={share:g} of train is cut off for "
                f"it by {unit}; split.{split}=0 leaves train whole"
            )


def _make(plan: Plan, setting: ShardSetting, *, listing: pa.Table, decode: bool) -> Store:
    """Return a store of all shards: those that earlier runs have left whole are not decoded again."""
    setting.folder.mkdir(parents=True, exist_ok=True)
    _check_only_ours(setting.folder)
    for path in setting.folder.iterdir():
        if path.name == PARTS or path.match("shard-?????.npy"):
            continue
        # Half-written by an interrupted run.
        if path.is_dir():
            rmtree(path)
        else:
            path.unlink()
    if decode:
        _decode(plan, setting, numbers=range(plan.shards))
    # Before the store is complete: whoever has the store has the way back.
    write_identity_map(setting.folder, plan, setting.identity)
    assemble_store(plan, setting, listing=listing)
    return Store(setting.folder)


def _decode_share(plan: Plan, setting: ShardSetting, shard: ShardConfig) -> None:
    """Decode every shard.count-th shard, under a lock of its own: the same job twice would write the same files."""
    _check_only_ours(setting.folder)
    numbers = range(shard.index, plan.shards, shard.count)
    with lock_folder(setting.folder / f"{PARTS}-{shard.index}-of-{shard.count}", say=say):
        _decode(plan, setting, numbers=numbers)
    say(
        f"store {setting.folder}: job {shard.index} of {shard.count} has done its {len(numbers)} of {plan.shards} "
        "shards; when all jobs have, the same command as python -m data_prep.merge (without shard.index) completes "
        "the store"
    )


def _decode(plan: Plan, setting: ShardSetting, *, numbers: range) -> None:
    """Decode those of the shards that are not whole yet."""
    refusals = Refusals.of(setting.max_quarantined, len(plan), plan.early)
    missing = []
    for number in numbers:
        # Without a part there is nothing to compare: its files need not be looked at twice.
        begun = (setting.folder / part_names(number)["json"]).is_file()
        part = read_part(setting.folder, setting.plan_shard(plan, number)) if begun else None
        if part is None:
            missing.append(number)
        else:
            refusals.add(part.refused)
    if len(missing) < len(numbers):
        say(f"store {setting.folder}: {len(numbers) - len(missing)} of {len(numbers)} shards are decoded already")
    if not missing:
        return
    if len(missing) == len(numbers):
        judge_sample(plan, setting)
    shards = (setting.plan_shard(plan, number) for number in missing)
    if setting.on_ray:
        from data_prep.ray_executor import decode_on_ray

        decode_on_ray(shards, setting, refusals=refusals, total=len(missing))
    else:
        decode_shards(shards, setting, refusals=refusals, total=sum(map(plan.count, missing)))


def _check_only_ours(folder: Path) -> None:
    """Check that a folder has nothing of somebody else's, and no link, which would take our files elsewhere."""
    paths = list(folder.iterdir())
    if any(path.is_symlink() for path in paths):
        raise ConfigError(f"store={folder} contains a link: remove it, or choose an empty folder")
    strangers = sum(not _OURS.fullmatch(path.name) for path in paths)
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


def _say_notes(plan: Plan, store: Store, identity: Identity) -> None:
    """Print what was left out, and what was done to volumes."""
    for line in describe_left_out(plan, store, identity):
        say(line)
    if store.spec.spatial_dims == 3:
        for line in describe_notes((note or "" for note in store.column("notes")), settings=True):
            say(f"notice: {line}")


def describe_store(store: Store) -> str:
    """Return what is in a store and what became of the files, for the terminal."""
    counts = store.info["counts"]
    states = ", ".join(f"{count} {state}" for state, count in counts["states"].items())
    text = f"store {store.folder}: {format_count(len(store), 'image')}; files: {states}"
    faces = counts.get("may_show_face", 0)
    if faces:
        text += (
            f"\n{format_count(faces, 'volume')} may show a face (heads, or no body part named): a face can be "
            "recognised from a volume; deface or skull-strip before you share the store"
        )
    return text
