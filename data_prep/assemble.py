"""Join the parts of all shards into one complete store, and account for every file of the source."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

import medcls
from data_prep.grey_values import judge_levels
from data_prep.identity_map import map_path, name_column, write_way_back
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


def assemble_store(
    plan: Plan, setting: ShardSetting, *, listing: pa.Table, max_quarantined: float, few_levels: str = "refuse"
) -> None:
    """Write manifest, ledger and dataset.json of a store whose shards are all decoded, and remove the parts.

    Args:
        plan: All units.
        setting: What the shards share.
        listing: path, skip: every file of the source.
        max_quarantined: Share of refused images that is accepted.
        few_levels: "refuse" or "allow" a store most of whose images keep few of their grey levels.

    Raises:
        MissingInputError: a shard is not decoded yet, or not from these files; they are named.
        DataError: too many refused images, none stored, or too few grey levels left.
    """
    folder = setting.folder
    numbers = range(plan.shards)
    parts = [read_part(folder, plan.shard(n, source=setting.source, setting=setting.to_json())) for n in numbers]
    absent = [n for n, part in enumerate(parts) if part is None]
    if absent:
        raise MissingInputError(
            f"store={folder}: {len(absent)} of {plan.shards} shards are not decoded from these files, labels and "
            f"settings: {_ranges(absent)}; give the arguments of the jobs, or run those jobs (shard.index: the number "
            "modulo shard.count)"
        )
    whole: list[dict[str, Any]] = [part for part in parts if part is not None]
    refusals = Refusals.of(max_quarantined, len(plan), plan.early)
    for part in whole:
        refusals.add(part["refused"])
    if not len(plan):
        raise DataError(f"no image is left to decode: {'; '.join(refusals.shown) or 'a rule excluded every image'}")
    tables = [read_table(folder / part_names(n)["manifest"]) for n in numbers]
    # Parts that an earlier version left lack columns: what they would say is unknown.
    manifest = pa.concat_tables(tables, promote_options="default")
    if not manifest.num_rows:
        raise DataError(f"no image could be read: {'; '.join(refusals.shown)}")
    judge_levels(manifest, setting.spec, allow=few_levels == "allow")
    ledger = _account(plan, setting, listing)
    if pc.sum(ledger.column("images")).as_py() != manifest.num_rows or ledger.num_rows != listing.num_rows:
        raise MedclsError(
            f"store={folder}: {listing.num_rows} files and {manifest.num_rows} images, but the ledger has "
            f"{ledger.num_rows} and {pc.sum(ledger.column('images')).as_py()}: files changed while they were read; "
            "run the same command again"
        )
    write_table(folder / MANIFEST, manifest)
    write_table(folder / LEDGER, ledger)
    sums = {name: sha for part in whole for name, sha in part["sha256"].items() if not name.startswith(PARTS)}
    for path in folder.glob("shard-*.npy"):
        if path.name not in sums:  # of an earlier, longer plan
            path.unlink()
    write_json(folder / DATASET, _describe(manifest, ledger, setting, sums, patients_from=plan.patients_from))
    shutil.rmtree(folder / PARTS)


def _account(plan: Plan, setting: ShardSetting, listing: pa.Table) -> pa.Table:
    """The ledger: the parts' entries, and every other file of the source as skipped or refused before decoding."""
    tables = [read_table(setting.folder / part_names(n)["ledger"]) for n in range(plan.shards)]
    entries = pa.concat_tables(tables)
    planned = pc.list_flatten(plan.table.column("files")).cast(pa.large_string())
    known = pc.is_in(listing.column("path").cast(pa.large_string()), value_set=_one_array(planned))
    rest = listing.filter(pc.invert(known))
    return build_ledger(pa.concat_tables([entries, *_rest(rest, plan, setting, entries.schema)]))


def _rest(rest: pa.Table, plan: Plan, setting: ShardSetting, schema: pa.Schema) -> Iterator[pa.Table]:
    """The files that no image was planned of, under the names that outputs may show."""
    early = pa.concat_tables([plan.skipped, plan.refused])
    place = pc.index_in(
        rest.column("path").cast(pa.large_string()), value_set=_one_array(early.column("path").cast(pa.large_string()))
    )
    reason = pc.coalesce(early.column("reason").take(place), _not_blank(rest.column("skip")), plan.rest)
    state = pc.if_else(pc.greater_equal(pc.fill_null(place, -1), plan.skipped.num_rows), QUARANTINED, SKIPPED)
    detail = pc.fill_null(early.column("detail").take(place), "")
    found = pa.table({"path": rest.column("path"), "state": state, "reason": reason, "detail": detail})
    for start in range(0, found.num_rows, _BATCH):
        batch = found.slice(start, _BATCH)
        shown = name_column(batch.column("path"), "path", setting.identity)
        rows = len(shown)
        columns = {name: batch.column(name) for name in ("state", "reason", "detail")}
        blank = {"images": [0] * rows, "file_sha256": [""] * rows, "refused": pa.nulls(rows, pa.string())}
        yield pa.table({"path": shown, **columns, **blank}).cast(schema)


def _one_array(column: Any) -> Any:
    """Return a chunked column as one array."""
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _not_blank(column: pa.ChunkedArray[Any]) -> pa.ChunkedArray[Any]:
    known: pa.ChunkedArray[Any] = pc.if_else(pc.equal(column, ""), pa.scalar(None, pa.string()), column)
    return known


def _describe(
    manifest: pa.Table, ledger: pa.Table, setting: ShardSetting, shards: dict[str, str], *, patients_from: str
) -> dict[str, Any]:
    """Return the content of dataset.json."""
    folder, identity = setting.folder, setting.identity
    return {
        "schema_version": SCHEMA_VERSION,
        "medcls": medcls.__version__,
        "preprocess": to_json(setting.spec),
        "counts": {
            "files": ledger.num_rows,
            "states": count_states(ledger),
            "images": manifest.num_rows,
            "patients": None
            if patients_from == PER_IMAGE
            else pc.count_distinct(manifest.column("patient_id")).as_py(),
            **_count_faces(manifest),
        },
        "patients_from": patients_from,
        "deidentify": {"kind": identity.kind, "key_fingerprint": identity.fingerprint},
        "sha256": {name: sha256_file(folder / name) for name in (MANIFEST, LEDGER)} | shards,
    }


def _count_faces(manifest: pa.Table) -> dict[str, int]:
    """Return a head that is not skull-stripped can be rendered as a face: whoever shares the store has to know."""
    if "may_show_face" not in manifest.column_names:
        return {}
    return {"may_show_face": pc.sum(manifest.column("may_show_face")).as_py() or 0}


def _ranges(numbers: list[int]) -> str:
    """Ascending numbers as text: 3, 5-9, …."""
    runs: list[list[int]] = []
    for n in numbers:
        if runs and n == runs[-1][1] + 1:
            runs[-1][1] = n
        else:
            runs.append([n, n])
    shown = [str(a) if a == b else f"{a}-{b}" for a, b in runs[:10]]
    return ", ".join(shown) + (", …" if len(runs) > 10 else "")


_PATHS_AT_ONCE = 65536


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
        write_way_back(setting.folder, plan, setting.identity)
    say(f"store {setting.folder}: complete, {format_count(len(store), 'image')}; nothing to decode")
    return store


def _check_reusable(store: Store, setting: ShardSetting) -> None:
    """A store is immutable: other pixels, another key or other columns need another store."""
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
    """Every image of the labels is in the store or was refused before, from the same files as now."""
    ledger = read_table(store.folder / LEDGER)
    planned = name_column(plan.table.column("key"), "image", setting.identity)
    known = pa.chunked_array(
        [*store.read("image_id").column(0).chunks, *pc.list_flatten(ledger.column("refused")).chunks], pa.string()
    )
    new = len(planned) - (pc.sum(pc.is_in(planned, value_set=known.combine_chunks())).as_py() or 0)
    changed = _count_changed(plan, ledger, setting) + _count_regrouped(plan, store, planned)
    if new or changed:
        raise DataError(
            f"store={store.folder} is complete and immutable, but {format_count(new, 'image')} of the labels not in "
            f"it and {format_count(changed, 'file')} changed: choose another store=, with reuse={store.folder} only "
            "these are decoded"
        )


def _count_changed(plan: Plan, ledger: pa.Table, setting: ShardSetting) -> int:
    """Files of stored and refused images whose checksum is not the ledger's."""
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


def _count_regrouped(plan: Plan, store: Store, planned: pa.Array[Any]) -> int:
    """Volumes that are of more or fewer files than when they were stored."""
    if "source_files" not in store.column_names:
        return 0
    stored = store.read("image_id", "source_files")
    place = pc.index_in(planned, value_set=stored.column("image_id").combine_chunks())
    before = stored.column("source_files").take(place).cast(pa.int64())
    now = pc.cast(pc.list_value_length(plan.table.column("files")), pa.int64())
    return pc.sum(pc.not_equal(before, now)).as_py() or 0
