"""Decode the planned images into shards: limited workers, every file accounted for, resumable.

A finished shard leaves a part in store/parts/: its manifest rows, its ledger entries, and a JSON file with their
checksums, written last. A run that is interrupted goes on with the first shard whose part is not there or not whole.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import medcls
from data_prep.ledger import OK, QUARANTINED, Entry, build_entries, describe_refusal
from data_prep.manifest_rows import StoredImage, build_row
from data_prep.plan import Plan, ShardPlan, Unit
from data_prep.reuse import Earlier, Previous
from medcls.console import show_progress
from medcls.data.duplicates import compute_dhash, hash_pixels
from medcls.data.manifest import build_table, write_table
from medcls.data.shards import ShardFile, Slot, shard_name, write_slot
from medcls.disk import SOURCE_FILE, describe_failure, find_disk_failure
from medcls.errors import DataError, ImageRefusedError, MissingInputError, ReadError
from medcls.files import read_json, sha256_file, write_json
from medcls.identity import Identity
from medcls.imaging.decode import DecodeTask, Spec, check_sizes, decode_image
from medcls.imaging.preprocess import PreparedImage
from medcls.imaging.worker import Limits, run_limited
from medcls.records import from_json, to_json

PARTS = "parts"
# Tolerate a few bad files; many suggest a wrong folder or setting.
_ALLOWED_ANYWAY = 1
_SHOWN = 5


@dataclass(frozen=True, slots=True)
class ShardSetting:
    """What all shards of a store share.

    Attributes:
        source: Folder of the raw files.
        folder: The store.
        spec: What is done to every image.
        identity: How ids are written.
        columns: Extra manifest columns.
        workers: Processes; 0 decodes in this one.
        limits: Of one image in a worker.
        earlier: A complete store whose unchanged images are copied, or None.
        refuse_unreadable: An image that the disk does not give is quarantined, instead of a ReadError.
        max_quarantined: Share of refused images that is accepted.
        allow_few_levels: Keep a store most of whose images keep few of their grey levels.
        on_ray: Shards are decoded on a Ray cluster.
        key_file: File in which nodes of a cluster read the key of the pseudonyms; None = in their environment.
    """

    source: Path
    folder: Path
    spec: Spec
    identity: Identity
    columns: Sequence[str] = ()
    workers: int = 0
    limits: Limits = field(default_factory=Limits)
    earlier: Earlier | None = None
    refuse_unreadable: bool = False
    max_quarantined: float = 0.0
    allow_few_levels: bool = False
    on_ray: bool = False
    key_file: str | None = None

    def to_json(self) -> dict[str, object]:
        """Return what decides the content of a shard besides its units."""
        return {
            "medcls": medcls.__version__,
            "preprocess": to_json(self.spec),
            "key_fingerprint": self.identity.fingerprint,
            "columns": list(self.columns),
        }

    def plan_shard(self, plan: Plan, number: int) -> ShardPlan:
        """Return a shard of a plan, bound to the files of the source and to these settings."""
        return plan.shard(number, source=self.source, setting=self.to_json())


@dataclass(frozen=True, slots=True)
class StoreTask:
    """One image to decode into its slot.

    Attributes:
        decode: What to read.
        slot: Where to write.
        previous: Where an earlier store has it, if the files are the same.
        header_ids: PatientID and SeriesInstanceUID of the index: a file that was replaced since has others.
    """

    decode: DecodeTask
    slot: Slot
    previous: Previous | None = None
    header_ids: tuple[str, str] = ("", "")


def store_image(task: StoreTask) -> StoredImage:
    """Write one image into its slot and say what it is. Runs in a worker process: no torch, nothing global."""
    check_sizes(task.decode)
    try:
        files = tuple(sha256_file(file) for file in task.decode.files)
    except (OSError, MissingInputError) as error:
        # A failing disk is found among the causes by the worker: it is no refusal.
        raise ImageRefusedError("cannot_open", "missing, or its permissions forbid reading it") from error
    if task.previous is not None and task.previous.file_sha256 == files:
        write_slot(task.slot, task.previous.read())
        return StoredImage(None, "", None, files, task.previous.notes)
    image = decode_image(task.decode)
    for keyword, indexed in zip(("PatientID", "SeriesInstanceUID"), task.header_ids, strict=True):
        if indexed and image.headers.get(keyword, "").strip() != indexed:
            raise ImageRefusedError("changed_since_index", f"{keyword} in the header differs from the index")
    pixels = image.prepared.pixels
    write_slot(task.slot, pixels)
    dhash = None
    if isinstance(image.prepared, PreparedImage):
        y, x, height, width = image.prepared.valid_extent
        dhash = compute_dhash(pixels[:, y : y + height, x : x + width])
    # The pixels are in the shard: they need not travel to the parent, too.
    bare: Any = replace(image.prepared, pixels=pixels[:0])
    return StoredImage(replace(image, prepared=bare), hash_pixels(pixels), dhash, files, image.notes)


@dataclass(slots=True)
class Refusals:
    """Counts refused images and stops where there are too many.

    Attributes:
        allowed: At most so many.
        total: Images planned, and volumes that were refused while planning.
        count: Refused so far.
        shown: The first of them, as a message names them.
    """

    allowed: int
    total: int
    count: int = 0
    shown: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, max_quarantined: float, total: int, early: Sequence[str] = ()) -> Refusals:
        """Return the counter for a share of the images; one bad file is allowed unless the share is 0.

        `early` are messages of further images that were refused while planning.

        Raises:
            DataError: these are too many already.
        """
        total += len(early)
        allowed = 0
        if max_quarantined:
            allowed = max(_ALLOWED_ANYWAY, int(max_quarantined * total))
        refusals = cls(allowed, total)
        refusals.add(early)
        return refusals

    def add(self, messages: Sequence[str]) -> None:
        """Count these.

        Raises:
            DataError: more than allowed; the first of them are named.
        """
        self.count += len(messages)
        self.shown += messages[: _SHOWN - len(self.shown)]
        if self.count > self.allowed:
            raise DataError(
                f"more than {self.allowed} of {self.total} images are unreadable: {'; '.join(self.shown)}; repair or "
                "remove them, or set max_quarantined=0.2 to allow more"
            )


def decode_shards(plans: Iterator[ShardPlan], setting: ShardSetting, *, refusals: Refusals, total: int) -> None:
    """Decode shards one after another, all by one pool of workers, and write each one's part when it is whole.

    `total` is the number of units in all of `plans`, for the progress bar.

    Raises:
        DataError: too many refused images.
        WriteError: no space left.
    """
    (setting.folder / PARTS).mkdir(parents=True, exist_ok=True)
    pending: deque[tuple[_OpenPart, ShardFile]] = deque()

    def tasks() -> Iterator[StoreTask]:
        spec = setting.spec
        for plan in plans:
            slots = len(plan.units)
            shard = ShardFile(setting.folder, plan.number, shape=spec.shape, dtype=spec.dtype, slots=slots)
            shard.create()
            pending.append((_OpenPart(plan, setting), shard))
            for index, unit in enumerate(plan.units):
                files = tuple(setting.source / path for path in unit.files)
                previous = None
                if setting.earlier is not None:
                    previous = setting.earlier.find(unit, setting.identity)
                task = DecodeTask(files, unit.roi, spec, setting.limits.memory_bytes)
                yield StoreTask(task, shard.slot(index), previous, unit.header_ids)

    outcomes = run_limited(
        store_image,
        tasks(),
        workers=setting.workers,
        limits=setting.limits,
        refuse_unreadable=setting.refuse_unreadable,
    )
    with show_progress(total=total, desc="decode", unit="image", mininterval=0.5) as bar:
        for first in outcomes:
            part, shard = pending.popleft()
            part.add(0, first, refusals)
            bar.update()
            for index in range(1, len(part.plan.units)):
                part.add(index, next(outcomes), refusals)
                bar.update()
            shard.finish(part.kept)
            part.write()


@dataclass(frozen=True, slots=True)
class Part:
    """The record of a whole shard.

    Attributes:
        plan_sha256: Of the shard's plan.
        images: Stored.
        refused: A message for each image that was refused.
        sha256: Checksum of each file, by its name in the store.
    """

    plan_sha256: str
    images: int
    refused: list[str]
    sha256: dict[str, str]


class _OpenPart:
    """What is known of a shard while its images come back."""

    def __init__(self, plan: ShardPlan, setting: ShardSetting) -> None:
        self.plan, self.setting = plan, setting
        self.kept: list[int] = []
        self._rows: list[dict[str, object]] = []
        self._entries: list[Entry] = []
        self._refused: list[str] = []

    def add(self, index: int, outcome: StoredImage | ImageRefusedError, refusals: Refusals) -> None:
        """Add what became of a unit.

        Raises:
            DataError: too many refused images.
        """
        unit, identity = self.plan.units[index], self.setting.identity
        paths = [identity.name("path", path) for path in unit.files]
        if not unit.patient_id and not isinstance(outcome, ImageRefusedError):
            outcome = ImageRefusedError("no_patient", "neither the labels nor its header name the patient")
        if isinstance(outcome, ImageRefusedError):
            self._refuse(unit, paths, outcome)
            refusals.add(self._refused[-1:])
            return
        place = (self.plan.number, len(self.kept))
        self.kept.append(index)
        earlier = self.setting.earlier
        if outcome.image is None and earlier is not None:
            row = earlier.row(unit, identity) | {"shard": place[0], "row": place[1], **unit.extra}
        else:
            row = build_row(unit, outcome, place=place, identity=identity)
        self._rows.append(row)
        reason, detail = next(iter(outcome.notes), ""), "; ".join(outcome.notes.values())
        for number, (path, sha) in enumerate(zip(paths, outcome.file_sha256, strict=True)):
            # The first file of a volume counts it.
            self._entries.append(Entry(path, OK, reason, detail, images=int(number == 0), file_sha256=sha))

    def _refuse(self, unit: Unit, paths: Sequence[str], error: ImageRefusedError) -> None:
        image_id = self.setting.identity.name("image", unit.key)
        for path, shown in zip(unit.files, paths, strict=True):
            # Of refused files, too: one that is repaired later is another file.
            sha = ""
            if error.reason != "disk_failure":
                sha = checksum(self.setting.source / path, most_bytes=self.setting.limits.memory_bytes)
            entry = Entry(shown, QUARANTINED, error.reason, error.detail, file_sha256=sha, refused=image_id)
            self._entries.append(entry)
        self._refused.append(describe_refusal(unit.number, paths[0], error.reason, error.detail))

    def write(self) -> None:
        """Write the part; its JSON file is last."""
        names = part_names(self.plan.number)
        folder = self.setting.folder
        volumes = self.setting.spec.spatial_dims == 3
        write_table(folder / names["manifest"], build_table(self._rows, extra=self.setting.columns, volumes=volumes))
        write_table(folder / names["ledger"], build_entries(self._entries))
        written = [names["manifest"], names["ledger"]]
        if self.kept:
            written.append(shard_name(self.plan.number))
        checksums = {name: sha256_file(folder / name) for name in written}
        part = Part(self.plan.sha256, len(self.kept), self._refused, checksums)
        write_json(folder / names["json"], to_json(part))


def part_names(number: int) -> dict[str, str]:
    """Return the names of a shard's part inside the store, by what they hold."""
    stem = f"{PARTS}/{number:05d}"
    return {"json": f"{stem}.json", "manifest": f"{stem}.manifest.parquet", "ledger": f"{stem}.ledger.parquet"}


def read_part(folder: Path, plan: ShardPlan) -> Part | None:
    """Return the record of a whole part of this very plan; None if it must be decoded (again).

    Raises:
        ReadError: the disk fails: a part that cannot be read is not decoded again over it.
    """
    try:
        part = from_json(Part, read_json(folder / part_names(plan.number)["json"]))
        if part.plan_sha256 != plan.sha256:
            return None
        whole = all(sha256_file(folder / name) == sha for name, sha in part.sha256.items())
    except (DataError, MissingInputError):
        return None
    return part if whole else None


def checksum(file: Path, *, most_bytes: int) -> str:
    """Return the sha256 of a file outside workers; "" if it cannot be read, or is larger than an image may be.

    Raises:
        ReadError: the disk fails; the message does not name the file.
    """
    try:
        return sha256_file(file) if file.stat().st_size <= most_bytes else ""
    except MissingInputError:
        return ""
    except (OSError, ReadError) as error:
        failure = find_disk_failure(error)
        if failure:
            raise describe_failure(failure, SOURCE_FILE) from error
        if isinstance(error, ReadError):
            raise
        return ""
