"""A complete store met again: taken as it is where settings and files are the same, refused where they are not."""

from __future__ import annotations

import shutil
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from data_prep.identity_map import map_path, name_column, write_way_back
from data_prep.ledger import OK, QUARANTINED
from data_prep.plan import Plan
from data_prep.shard_work import PARTS, ShardSetting, checksum
from medcls.console import say
from medcls.data.manifest import read_table
from medcls.data.store import Store
from medcls.errors import ConfigError, DataError
from medcls.files import DATASET, LEDGER, is_sealed, write_json
from medcls.identity import PER_IMAGE, format_count

_BATCH = 65536


def reopen(plan: Plan, setting: ShardSetting) -> Store:
    """Returns a complete store, if it is of these settings and files; it is immutable.

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
        before, now = store.spec.to_json(), setting.spec.to_json()
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
    for start in range(0, len(paths), _BATCH):
        rows = slice(start, start + _BATCH)
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
