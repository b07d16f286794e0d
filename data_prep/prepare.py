"""The stage itself: source and labels to a complete store, its labels and a certified split."""

from __future__ import annotations

import csv
import io
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

import medcls
from data_prep.decode import account, decode_rows
from data_prep.labels import LabelRow, PatientRule, read_class_folders, read_labels
from data_prep.ledger import Entry, build_ledger, count_states
from data_prep.splitting import split_store
from medcls.command_line import say
from medcls.config import PrepareJob
from medcls.data.manifest import COLUMNS, build_table, column_list, read_table, write_table
from medcls.data.store import SCHEMA_VERSION, ShardWriter, Store
from medcls.errors import ConfigError, DataError, MissingInputError, UsageError
from medcls.files import (
    DATASET,
    LABELS,
    LEDGER,
    MANIFEST,
    SPLITS,
    TEMPORARY,
    lock_folder,
    sha256_file,
    write_bytes,
    write_json,
)
from medcls.identity import Identity, read_identity
from medcls.imaging.preprocess import PreprocessSpec
from medcls.imaging.source import choose_identity, is_image, list_files

Files = Sequence[tuple[str, str]]


def prepare(job: PrepareJob) -> Store:
    """Runs the whole stage and returns the store; a complete store with the same pixels is reused.

    Raises:
        UsageError: source= or store= is missing.
        MissingInputError, DataError, ConfigError, WriteError: as the message says.
    """
    if job.source is None or job.store is None:
        raise UsageError(
            "source=DIR and store=DIR are needed: python -m data_prep source=DIR labels=FILE.csv store=DIR"
        )
    source, folder = Path(job.source), Path(job.store)
    if not source.is_dir():
        raise MissingInputError(f"source={source} is not a folder")
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"store={folder} is a file: expected a folder, new or of an earlier call")
    if folder.resolve() == source.resolve() or folder.resolve().is_relative_to(source.resolve()):
        raise ConfigError(f"store={folder} lies inside source={source}: choose a folder outside it")
    _check_columns(job)
    with lock_folder(folder):
        files = list(list_files(source))
        identity = read_identity(choose_identity(job.deidentify.kind, source, files), key_file=job.deidentify.key_file)
        rows = _read_rows(job, source=source, files=files, identity=identity)
        store = _open_or_decode(job, folder=folder, source=source, rows=rows, files=files, identity=identity)
        stored = _keep_stored(store, rows, identity)
        # The split first: where it is refused, the store keeps the labels and splits that it had.
        split_store(store, stored, job.split)
        _write_labels(store, stored)
    return store


def _check_columns(job: PrepareJob) -> None:
    """Columns of the user's own; patient_id or path would carry what deidentify takes out."""
    if job.columns and job.labels is None:
        raise ConfigError(f"columns={job.columns} needs labels=FILE.csv: class-named folders have no columns")
    taken = [c for c in job.columns if c in (*COLUMNS.names, "path") or job.columns.count(c) > 1]
    if taken:
        raise ConfigError(f"columns={job.columns}: {taken[0]} is there twice, or a name of the store's own: rename it")


def build_spec(job: PrepareJob) -> PreprocessSpec:
    """Returns the preprocessing that the image group describes."""
    size = job.image.size if isinstance(job.image.size, list) else [job.image.size] * 2
    height, width = (size * 2)[:2]
    return PreprocessSpec(
        height=height,
        width=width,
        channels=job.image.channels,
        dtype=job.image.dtype,
        fit=job.image.fit,
        intensity=job.image.intensity,
        percentiles=(job.image.percentiles[0], job.image.percentiles[1]),
        window_index=job.image.window_index,
        windows_hu=tuple((float(center), float(width)) for center, width in job.image.windows_hu),
    )


def _read_rows(job: PrepareJob, *, source: Path, files: Files, identity: Identity) -> list[LabelRow]:
    rule = PatientRule(job.patients, job.patient_id.pattern)
    if job.labels is not None:
        return read_labels(
            Path(job.labels),
            source=source,
            rule=rule,
            columns=job.columns,
            show=lambda path: identity.name("path", path),
        )
    images = [path for path, skip in files if not skip and is_image(source / path)]
    return read_class_folders(source, files=images, rule=rule)


def _open_or_decode(
    job: PrepareJob,
    *,
    folder: Path,
    source: Path,
    rows: Sequence[LabelRow],
    files: Files,
    identity: Identity,
) -> Store:
    spec = build_spec(job)
    if (folder / DATASET).is_file():
        store = Store(folder)
        _check_reusable(store, spec=spec, identity=identity, columns=job.columns)
        _check_same_files(store, source=source, rows=rows, identity=identity)
        say(f"store {folder}: complete, {len(store)} images; nothing to decode")
        return store
    _clear_partial(folder)
    workers = job.workers if job.workers >= 0 else os.cpu_count() or 1
    with ShardWriter(folder, shape=(spec.channels, spec.height, spec.width), dtype=spec.dtype) as writer:
        manifest, decoded = decode_rows(
            rows,
            source=source,
            spec=spec,
            writer=writer,
            identity=identity,
            workers=workers,
            max_quarantined=job.max_quarantined,
        )
    entries = account(files, decoded, identity=identity)
    if identity.kind == "hmac":
        _write_identity_map(folder, rows, identity)
    _write_store(folder, manifest=manifest, entries=entries, spec=spec, identity=identity, columns=job.columns)
    return Store(folder)


def _clear_partial(folder: Path) -> None:
    """An interrupted run leaves only files of known names; anything else is somebody's and stops us."""
    folder.mkdir(parents=True, exist_ok=True)
    known = {MANIFEST, LEDGER, LABELS, SPLITS}
    for path in sorted(folder.iterdir()):
        ours = path.name in known or path.name.startswith(TEMPORARY) or path.match("shard-?????.npy")
        if not ours:
            raise ConfigError(f"store={folder} holds {path.name}, which is no part of a store: choose an empty folder")
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _write_store(
    folder: Path,
    *,
    manifest: list[dict[str, Any]],
    entries: list[Entry],
    spec: PreprocessSpec,
    identity: Identity,
    columns: Sequence[str],
) -> None:
    table = build_table(manifest, extra=columns)
    write_table(folder / MANIFEST, table)
    write_table(folder / LEDGER, build_ledger(entries))
    shards = sorted(path.name for path in folder.glob("shard-*.npy"))
    write_json(
        folder / DATASET,
        {
            "schema_version": SCHEMA_VERSION,
            "medcls": medcls.__version__,
            "preprocess": spec.to_json(),
            "counts": {
                "files": len(entries),
                "states": count_states(entries),
                "images": table.num_rows,
                "patients": len(set(column_list(table, "patient_id"))),
            },
            "deidentify": {"kind": identity.kind, "key_fingerprint": identity.fingerprint},
            "sha256": {name: sha256_file(folder / name) for name in (MANIFEST, LEDGER, *shards)},
        },
    )


def _write_identity_map(folder: Path, rows: Sequence[LabelRow], identity: Identity) -> None:
    """The only file with both names; outside the store, readable by its owner alone."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["image_id", "patient_pseudonym", "path_id", "path", "patient_id"])
    for row in rows:
        pseudonyms = (identity.name("image", row.key), identity.name("patient", row.patient_id))
        writer.writerow([*pseudonyms, identity.name("path", row.path), row.path, row.patient_id])
    path = folder.parent / f"{folder.name}.identity-map.csv"
    write_bytes(path, text.getvalue().encode(), private=True)
    say(f"pseudonyms: the way back to the patients is in {path} (mode 0600): keep it apart from the store")


def _check_reusable(store: Store, *, spec: PreprocessSpec, identity: Identity, columns: Sequence[str]) -> None:
    """A store is immutable: other pixels, another key or other columns need another store."""
    where = f"store={store.folder} is complete and immutable"
    if store.spec != spec:
        before, now = store.spec.to_json(), spec.to_json()
        changed = [f"image.{k}: {before[k]} -> {now[k]}" for k in now if before[k] != now[k]]
        raise ConfigError(f"{where}, with other settings ({', '.join(changed)}): choose another store=")
    if store.info["deidentify"] != {"kind": identity.kind, "key_fingerprint": identity.fingerprint}:
        raise ConfigError(f"{where}, with other identities ({store.info['deidentify']}): choose another store=")
    absent = [name for name in columns if name not in store.manifest.column_names]
    if absent:
        raise ConfigError(f"{where}, without the columns {', '.join(absent)}: choose another store=")
    store.verify()


def _check_same_files(store: Store, *, source: Path, rows: Sequence[LabelRow], identity: Identity) -> None:
    """Every image of the labels is in the store or was refused before, from a file that has not changed."""
    ledger = read_table(store.folder / LEDGER)
    known = set(store.image_ids).union(*column_list(ledger, "refused"))
    before = dict(zip(column_list(ledger, "path"), column_list(ledger, "file_sha256"), strict=True))
    new = sum(identity.name("image", row.key) not in known for row in rows)
    paths = {row.path for row in rows if before.get(identity.name("path", row.path))}
    changed = sum(sha256_file(source / path) != before[identity.name("path", path)] for path in paths)
    if new or changed:
        raise DataError(
            f"store={store.folder} is complete and immutable, but {new} images of the labels are not in it and "
            f"{changed} files have changed: choose another store="
        )


def _keep_stored(store: Store, rows: Sequence[LabelRow], identity: Identity) -> list[LabelRow | None]:
    """The label row of each stored image, in the store's order; None for an image without one."""
    of_image = {identity.name("image", row.key): row for row in rows}
    kept = [of_image.get(image_id) for image_id in store.image_ids]
    patients = store.column("patient_id")
    moved = sum(
        row is not None and identity.name("patient", row.patient_id) != patients[i] for i, row in enumerate(kept)
    )
    if moved:
        raise DataError(f"store={store.folder}: {moved} images have another patient_id than before: another store=")
    return kept


def _write_labels(store: Store, rows: Sequence[LabelRow | None]) -> None:
    names = sorted({name for row in rows if row for name in row.labels})
    columns = {name: [row.labels.get(name) if row else None for row in rows] for name in names}
    schema = pa.schema([("image_id", pa.string()), *((name, pa.string()) for name in names)])
    write_table(store.folder / LABELS, pa.table({"image_id": store.image_ids, **columns}, schema=schema))
