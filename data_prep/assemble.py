"""Join the parts of all shards into one complete store, and account for every file of the source."""

from __future__ import annotations

import shutil
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

import medcls
from data_prep.grey_values import judge_levels
from data_prep.identity_map import map_path, name_column, write_identity_map
from data_prep.ledger import OK, QUARANTINED, SKIPPED, build_ledger, count_states
from data_prep.plan import Plan
from data_prep.shard_work import PARTS, Refusals, ShardSetting, checksum, part_names, read_part
from medcls.console import say
from medcls.data.manifest import read_table, write_table
from medcls.data.store import SCHEMA_VERSION, Store
from medcls.errors import ConfigError, DataError, MedclsError, MissingInputError
from medcls.files import DATASET, LEDGER, MANIFEST, is_sealed, sha256_file, write_json
from medcls.identity import PER_IMAGE, format_count
from medcls.records import to_json

_BATCH = 8192
_PATHS_AT_ONCE = 65536


def assemble_store(plan: Plan, setting: ShardSetting, *, listing: pa.Table) -> None:
    """Write manifest, ledger and dataset.json of a store whose shards are all decoded, and remove the parts.

    Raises:
        MissingInputError: a shard is not decoded yet, or not from these files; they are named.
        DataError: too many refused images, none stored, or too few grey levels left.
    """
    folder = setting.folder
    found = {number: read_part(folder, setting.plan_shard(plan, number)) for number in range(plan.shards)}
    parts = {number: part for number, part in found.items() if part is not None}
    absent = sorted(found.keys() - parts.keys())
    if absent:
        raise MissingInputError(
            f"store={folder}: {len(absent)} of {plan.shards} shards are not decoded from these files, labels and "
            f"settings: {_list_ranges(absent)}; give the arguments of the jobs, or run those jobs (shard.index: the "
            "number modulo shard.count)"
        )
    refusals = Refusals.of(setting.max_quarantined, len(plan), plan.early)
    for part in parts.values():
        refusals.add(part.refused)
    if not len(plan):
        raise DataError(f"no image is left to decode: {'; '.join(refusals.shown) or 'a rule excluded every image'}")
    tables = [read_table(folder / part_names(n)["manifest"]) for n in parts]
    # Parts that an earlier version left lack columns: what they would say is unknown.
    manifest = pa.concat_tables(tables, promote_options="default")
    if not manifest.num_rows:
        raise DataError(f"no image could be read: {'; '.join(refusals.shown)}")
    judge_levels(manifest, setting.spec, allow=setting.allow_few_levels)
    ledger = _account(plan, setting, listing)
    if pc.sum(ledger.column("images")).as_py() != manifest.num_rows or ledger.num_rows != listing.num_rows:
        raise MedclsError(
            f"store={folder}: {listing.num_rows} files and {manifest.num_rows} images, but the ledger has "
            f"{ledger.num_rows} and {pc.sum(ledger.column('images')).as_py()}: files changed while they were read; "
            "run the same command again"
        )
    write_table(folder / MANIFEST, manifest)
    write_table(folder / LEDGER, ledger)
    sums = {name: sha for part in parts.values() for name, sha in part.sha256.items() if not name.startswith(PARTS)}
    for path in folder.glob("shard-*.npy"):
        if path.name not in sums:  # of an earlier, longer plan
            path.unlink()
    counts: dict[str, object] = {"files": ledger.num_rows, "states": count_states(ledger), "images": manifest.num_rows}
    counts["patients"] = None
    if plan.patients_from != PER_IMAGE:
        counts["patients"] = pc.count_distinct(manifest.column("patient_id")).as_py()
    if "may_show_face" in manifest.column_names:
        # A head that is not skull-stripped can be rendered as a face: whoever shares the store has to know.
        counts["may_show_face"] = pc.sum(manifest.column("may_show_face")).as_py() or 0
    content = {
        "schema_version": SCHEMA_VERSION,
        "medcls": medcls.__version__,
        "preprocess": to_json(setting.spec),
        "counts": counts,
        "patients_from": plan.patients_from,
        "deidentify": {"kind": setting.identity.kind, "key_fingerprint": setting.identity.fingerprint},
        "sha256": {name: sha256_file(folder / name) for name in (MANIFEST, LEDGER)} | sums,
    }
    write_json(folder / DATASET, content)
    shutil.rmtree(folder / PARTS)


def _account(plan: Plan, setting: ShardSetting, listing: pa.Table) -> pa.Table:
    """Return the ledger: the parts' entries, and every other file of the source as skipped or refused."""
    entries = pa.concat_tables([read_table(setting.folder / part_names(n)["ledger"]) for n in range(plan.shards)])
    planned = _join_chunks(pc.list_flatten(plan.table.column("files")))
    known = pc.is_in(listing.column("path").cast(pa.large_string()), value_set=planned)
    rest = listing.filter(pc.invert(known))
    early = pa.concat_tables([plan.skipped, plan.refused])
    place = pc.index_in(rest.column("path").cast(pa.large_string()), value_set=_join_chunks(early.column("path")))
    no_text = pa.scalar(None, pa.string())
    skip = pc.if_else(pc.equal(rest.column("skip"), ""), no_text, rest.column("skip"))
    refused = pc.greater_equal(pc.fill_null(place, -1), plan.skipped.num_rows)
    found = pa.table(
        {
            "path": rest.column("path"),
            "state": pc.if_else(refused, QUARANTINED, SKIPPED),
            "reason": pc.coalesce(early.column("reason").take(place), skip, plan.rest),
            "detail": pc.fill_null(early.column("detail").take(place), ""),
        }
    )
    tables = [entries]
    for start in range(0, found.num_rows, _BATCH):
        batch = found.slice(start, _BATCH)
        rows = batch.num_rows
        columns: dict[str, object] = {name: batch.column(name) for name in ("state", "reason", "detail")}
        columns["path"] = name_column(batch.column("path"), "path", setting.identity)
        blank = {"images": [0] * rows, "file_sha256": [""] * rows, "refused": pa.nulls(rows, pa.string())}
        tables.append(pa.table({**columns, **blank}).select(entries.column_names).cast(entries.schema))
    return build_ledger(pa.concat_tables(tables))


def _join_chunks(column: Any) -> Any:
    """Return a column of paths as one array, which may be larger than 2 GiB of text."""
    column = column.cast(pa.large_string())
    if isinstance(column, pa.ChunkedArray):
        return column.combine_chunks()
    return column


def _list_ranges(numbers: list[int]) -> str:
    """Return ascending numbers as text: 3, 5-9 and so on."""
    runs: list[list[int]] = []
    for n in numbers:
        if runs and n == runs[-1][-1] + 1:
            runs[-1].append(n)
        else:
            runs.append([n])
    shown = []
    for run in runs[:10]:
        ends = dict.fromkeys((run[0], run[-1]))  # one number if they are the same
        shown.append("-".join(map(str, ends)))
    return ", ".join(shown + ["…"] * (len(runs) > 10))


def reopen(plan: Plan, setting: ShardSetting) -> Store:
    """Return a complete store, if it is of these settings and files; it is immutable.

    Raises:
        ConfigError: other settings, another key or columns that it lacks.
        DataError: other images or files, or a part of it has changed.
    """
    store = Store(setting.folder)
    shutil.rmtree(setting.folder / PARTS, ignore_errors=True)
    _check_reusable(store, setting)
    _check_same_files(store, plan, setting)
    if store.patients_from and (store.patients_from == PER_IMAGE) != (plan.patients_from == PER_IMAGE):
        raise ConfigError(
            f"store={store.folder} is complete and immutable, and its patients come from {store.patients_from}, not "
            f"from {plan.patients_from}: choose another store="
        )
    if not is_sealed(setting.folder / DATASET):
        # Of version 0.2.0; the content, and so the store's checksum, stays the same.
        write_json(setting.folder / DATASET, store.info)
    if not map_path(setting.folder).exists():
        write_identity_map(setting.folder, plan, setting.identity)
    say(f"store {setting.folder}: complete, {format_count(len(store), 'image')}; nothing to decode")
    return store


def _check_reusable(store: Store, setting: ShardSetting) -> None:
    """Check that a store has these pixels, this key and these columns: it is immutable."""
    where = f"store={store.folder} is complete and immutable"
    if store.spec != setting.spec:
        before, now = to_json(store.spec), to_json(setting.spec)
        names = [k for k in {**before, **now} if before.get(k) != now.get(k)]
        changed = [f"image.{k}: {before.get(k)} -> {now.get(k)}" for k in names]
        raise ConfigError(f"{where}, with other settings ({', '.join(changed)}): choose another store=")
    identity = setting.identity
    if store.info["deidentify"] != {"kind": identity.kind, "key_fingerprint": identity.fingerprint}:
        raise ConfigError(f"{where}, with other identities ({store.info['deidentify']}): choose another store=")
    absent = [name for name in setting.columns if name not in store.column_names]
    if absent:
        raise ConfigError(f"{where}, without the columns {', '.join(absent)}: choose another store=")
    store.verify()


def _check_same_files(store: Store, plan: Plan, setting: ShardSetting) -> None:
    """Check that every image of the labels is stored or was refused, from the same files as now."""
    ledger = read_table(store.folder / LEDGER)
    planned = name_column(plan.table.column("key"), "image", setting.identity)
    known = pa.chunked_array(
        [*store.read("image_id").column(0).chunks, *pc.list_flatten(ledger.column("refused")).chunks], pa.string()
    )
    new = len(planned) - (pc.sum(pc.is_in(planned, value_set=known.combine_chunks())).as_py() or 0)
    changed = _count_changed(plan, ledger, setting)
    if "source_files" in store.column_names:
        # Volumes of more or fewer files than when they were stored.
        stored = store.read("image_id", "source_files")
        place = pc.index_in(planned, value_set=stored.column("image_id").combine_chunks())
        before = stored.column("source_files").take(place).cast(pa.int64())
        now = pc.cast(pc.list_value_length(plan.table.column("files")), pa.int64())
        changed += pc.sum(pc.not_equal(before, now)).as_py() or 0
    if new or changed:
        raise DataError(
            f"store={store.folder} is complete and immutable, but {format_count(new, 'image')} of the labels not in "
            f"it and {format_count(changed, 'file')} changed: choose another store=, with reuse={store.folder} only "
            "these are decoded"
        )


def _count_changed(plan: Plan, ledger: pa.Table, setting: ShardSetting) -> int:
    """Return how many files of stored and refused images have another checksum than in the ledger."""
    paths = pc.unique(pc.list_flatten(plan.table.column("files")))
    places = pc.index_in(name_column(paths, "path", setting.identity), value_set=ledger.column("path").combine_chunks())
    before = ledger.column("file_sha256").take(places)
    state = ledger.column("state").take(places)
    volumes = setting.spec.spatial_dims == 3
    whole = ledger.filter(pc.equal(ledger.column("state"), OK)).column("path").combine_chunks()
    broken = name_column(plan.refused.column("path"), "path", setting.identity)
    count = pc.sum(pc.is_in(broken, value_set=whole)).as_py() or 0
    most = setting.limits.memory_bytes
    for start in range(0, len(paths), _PATHS_AT_ONCE):
        rows = slice(start, start + _PATHS_AT_ONCE)
        columns = (paths[rows].to_pylist(), before[rows].to_pylist(), state[rows].to_pylist())
        for path, sha, was in zip(*columns, strict=True):
            # An unknown file is that of a new image, which is counted as such, or a new slice of an old volume.
            grown = volumes and was not in (OK, QUARANTINED)
            count += grown or (bool(sha) and sha != checksum(setting.source / str(path), most_bytes=most))
    return count
