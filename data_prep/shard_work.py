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
from data_prep.plan import ShardPlan, Unit
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
from medcls.records import to_json

PARTS = "parts"
# A few bad files are life; many mean a wrong folder or a wrong setting.
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

    def to_json(self) -> dict[str, Any]:
        """Return what decides the content of a shard besides its units."""
        return {
            "medcls": medcls.__version__,
            "preprocess": to_json(self.spec),
            "key_fingerprint": self.identity.fingerprint,
            "columns": list(self.columns),
        }


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

        Args:
            max_quarantined: The share.
            total: Images planned.
            early: Messages of those that were refused while planning.

        Raises:
            DataError: these are too many already.
        """
        total += len(early)
        refusals = cls(max(_ALLOWED_ANYWAY, int(max_quarantined * total)) if max_quarantined else 0, total)
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

    Args:
        plans: The shards to decode.
        setting: What they share.
        refusals: Counts over all shards.
        total: Units in all of `plans`, for the progress bar.

    Raises:
        DataError: too many refused images.
        WriteError: no space left.
    """
    (setting.folder / PARTS).mkdir(parents=True, exist_ok=True)
    pending: deque[tuple[ShardPlan, ShardFile]] = deque()

    def tasks() -> Iterator[StoreTask]:
        for plan in plans:
            shard = ShardFile(
                setting.folder,
                plan.number,
                shape=setting.spec.shape,
                dtype=setting.spec.dtype,
                slots=len(plan.units),
            )
            shard.create()
            pending.append((plan, shard))
            yield from build_tasks(plan, shard, setting)

    outcomes = run_limited(
        store_image,
        tasks(),
        workers=setting.workers,
        limits=setting.limits,
        refuse_unreadable=setting.refuse_unreadable,
    )
    with show_progress(total=total, desc="decode", unit="image", mininterval=0.5) as bar:
        for first in outcomes:
            plan, shard = pending.popleft()
            result = _Part(plan, setting)
            result.add(0, first, refusals)
            bar.update()
            for index in range(1, len(plan.units)):
                result.add(index, next(outcomes), refusals)
                bar.update()
            shard.finish(result.kept)
            result.write()


def build_tasks(plan: ShardPlan, shard: ShardFile, setting: ShardSetting) -> Iterator[StoreTask]:
    """Yield a task for each unit of a shard."""
    earlier = setting.earlier
    for index, unit in enumerate(plan.units):
        files = tuple(setting.source / path for path in unit.files)
        previous = earlier.find(unit, setting.identity) if earlier else None
        task = DecodeTask(files, unit.roi, setting.spec, setting.limits.memory_bytes)
        yield StoreTask(task, shard.slot(index), previous, unit.header_ids)


class _Part:
    """What is known of a shard while its images come back."""

    def __init__(self, plan: ShardPlan, setting: ShardSetting) -> None:
        self.plan, self.setting = plan, setting
        self.kept: list[int] = []
        self._rows: list[dict[str, Any]] = []
        self._entries: list[Entry] = []
        self._refused: list[str] = []

    def add(self, index: int, outcome: StoredImage | ImageRefusedError, refusals: Refusals) -> None:
        unit, identity = self.plan.units[index], self.setting.identity
        image_id = identity.name("image", unit.key)
        paths = [identity.name("path", path) for path in unit.files]
        if not unit.patient_id and not isinstance(outcome, ImageRefusedError):
            outcome = ImageRefusedError("no_patient", "neither the labels nor its header name the patient")
        if isinstance(outcome, ImageRefusedError):
            # Of refused files, too: one that is mended later is another file.
            most_bytes = self.setting.limits.memory_bytes
            unreadable = outcome.reason == "disk_failure"
            checksums = [
                "" if unreadable else checksum(self.setting.source / path, most_bytes=most_bytes) for path in unit.files
            ]
            self._entries += [
                Entry(path, QUARANTINED, outcome.reason, outcome.detail, file_sha256=sha, refused=image_id)
                for path, sha in zip(paths, checksums, strict=True)
            ]
            self._refused.append(describe_refusal(unit.number, paths[0], outcome.reason, outcome.detail))
            refusals.add(self._refused[-1:])
            return
        place = (self.plan.number, len(self.kept))
        self.kept.append(index)
        self._rows.append(self._row(unit, outcome, place))
        reason, detail = next(iter(outcome.notes), ""), "; ".join(outcome.notes.values())
        self._entries += [
            Entry(path, OK, reason, detail, images=int(i == 0), file_sha256=sha)
            for i, (path, sha) in enumerate(zip(paths, outcome.file_sha256, strict=True))
        ]

    def _row(self, unit: Unit, stored: StoredImage, place: tuple[int, int]) -> dict[str, Any]:
        if stored.image is None and self.setting.earlier is not None:
            row = self.setting.earlier.row(unit, self.setting.identity)
            return row | {"shard": place[0], "row": place[1], **unit.extra}
        return build_row(unit, stored, place=place, identity=self.setting.identity)

    def write(self) -> None:
        """Write the part; its JSON file is last."""
        names = part_names(self.plan.number)
        folder = self.setting.folder
        volumes = self.setting.spec.spatial_dims == 3
        write_table(folder / names["manifest"], build_table(self._rows, extra=self.setting.columns, volumes=volumes))
        write_table(folder / names["ledger"], build_entries(self._entries))
        shard = shard_name(self.plan.number)
        written = [names["manifest"], names["ledger"], *([shard] if self.kept else [])]
        write_json(
            folder / names["json"],
            {
                "plan_sha256": self.plan.sha256,
                "images": len(self.kept),
                "refused": self._refused,
                "sha256": {name: sha256_file(folder / name) for name in written},
            },
        )


def part_names(number: int) -> dict[str, str]:
    """Return the names of a shard's part inside the store, by what they hold."""
    stem = f"{PARTS}/{number:05d}"
    return {"json": f"{stem}.json", "manifest": f"{stem}.manifest.parquet", "ledger": f"{stem}.ledger.parquet"}


def read_part(folder: Path, plan: ShardPlan) -> dict[str, Any] | None:
    """Return the JSON of a whole part of this very plan; None where it must be decoded (again).

    Raises:
        ReadError: the disk fails: a part that cannot be read is not decoded again over it.
    """
    try:
        part = read_json(folder / part_names(plan.number)["json"])
        if part["plan_sha256"] != plan.sha256:
            return None
        whole = all(sha256_file(folder / name) == sha for name, sha in part["sha256"].items())
    except (DataError, KeyError, AttributeError, MissingInputError):
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
