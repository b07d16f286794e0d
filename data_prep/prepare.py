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
from data_prep.ledger import QUARANTINED, Entry, build_ledger, count_states, list_files
from data_prep.splitting import split_store
from medcls.command_line import say
from medcls.config import PrepareJob
from medcls.data.manifest import build_table, column_list, read_table, write_table
from medcls.data.store import SCHEMA_VERSION, ShardWriter, Store
from medcls.errors import ConfigError, DataError, MissingInputError, UsageError
from medcls.files import (
    DATASET,
    LABELS,
    LEDGER,
    MANIFEST,
    SPLITS,
    TEMPORARY,
    sha256_file,
    write_bytes,
    write_json,
)
from medcls.identity import Identity, read_identity
from medcls.imaging.preprocess import PreprocessSpec
from medcls.imaging.readers import SUPPORTED_SUFFIXES, is_dicom

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
    if folder.resolve() == source.resolve() or folder.resolve().is_relative_to(source.resolve()):
        raise ConfigError(f"store={folder} lies inside source={source}: choose a folder outside it")
    files = list(list_files(source))
    identity = read_identity(_identity_kind(job, source, files), key_file=job.deidentify.key_file)
    rows = _read_rows(job, source=source, files=files, identity=identity)
    store = _open_or_decode(job, folder=folder, source=source, rows=rows, files=files, identity=identity)
    stored = _keep_stored(store, rows, identity)
    _write_labels(store, stored)
    split_store(store, stored, job.split)
    return store


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


def _identity_kind(job: PrepareJob, source: Path, files: Files) -> str:
    """auto: pseudonyms wherever a DICOM file is met, since its ids are real until somebody says otherwise."""
    if job.deidentify.kind != "auto":
        return job.deidentify.kind
    return "hmac" if any(not skip and is_dicom(source / path) for path, skip in files) else "declared"


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
    images = [path for path, skip in files if not skip and _is_image(source / path)]
    return read_class_folders(source, files=images, rule=rule)


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUPPORTED_SUFFIXES or is_dicom(path)


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
        _check_reusable(store, spec=spec, source=source, rows=rows, identity=identity)
        say(f"store {folder}: complete, {len(store)} images; nothing to decode")
        return store
    _clear_partial(folder)
    workers = job.workers if job.workers >= 0 else os.cpu_count() or 1
    writer = ShardWriter(folder, shape=(spec.channels, spec.height, spec.width), dtype=spec.dtype)
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
    _write_store(folder, manifest=manifest, entries=entries, spec=spec, identity=identity, columns=job.columns)
    if identity.kind == "hmac":
        _write_identity_map(folder, rows, identity)
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
    write_bytes(path, b"")
    path.chmod(0o600)
    with path.open("w", encoding="utf-8", newline="") as file:
        file.write(text.getvalue())
    say(f"pseudonyms: the way back to the patients is in {path} (mode 0600): keep it apart from the store")


def _check_reusable(
    store: Store, *, spec: PreprocessSpec, source: Path, rows: Sequence[LabelRow], identity: Identity
) -> None:
    """A store is immutable: other pixels, other files or another key need another store."""
    where = f"store={store.folder} is complete and immutable"
    if store.spec != spec:
        before, now = store.spec.to_json(), spec.to_json()
        changed = [f"image.{k}: {before[k]} -> {now[k]}" for k in now if before[k] != now[k]]
        raise ConfigError(f"{where}, with other settings ({', '.join(changed)}): choose another store=")
    if store.info["deidentify"] != {"kind": identity.kind, "key_fingerprint": identity.fingerprint}:
        raise ConfigError(f"{where}, with other identities ({store.info['deidentify']}): choose another store=")
    store.verify()
    ledger = read_table(store.folder / LEDGER)
    names = ("path", "state", "file_sha256")
    of_file = {p: (s, h) for p, s, h in zip(*(column_list(ledger, n) for n in names), strict=True)}
    new, other = 0, 0
    for row in rows:
        state, sha = of_file.get(identity.name("path", row.path), ("", ""))
        known = state == QUARANTINED or identity.name("image", row.key) in store.index
        new += not known
        other += known and bool(sha) and sha256_file(source / row.path) != sha
    if new or other:
        raise DataError(
            f"{where}, but {new} images of the labels are not in it and {other} files changed: another store="
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
