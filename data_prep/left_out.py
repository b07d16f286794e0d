"""Print which images were left out: how many of each class, why, an example, and the setting to change."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from data_prep.identity_map import name_column
from data_prep.labels.class_folders import name_classes
from data_prep.ledger import OK, QUARANTINED, SKIPPED
from data_prep.plan import Plan
from medcls.data.label_words import spelling_key
from medcls.data.manifest import read_table
from medcls.data.store import Store
from medcls.files import LEDGER
from medcls.identity import Identity, format_count, list_first

_SHOWN = 8
# By the reason of the ledger. Without a setting the file itself has to change.
_SETTINGS = {
    "not_grey": "image=photo stores colour; or convert the images to grey",
    "burnt_in": "look at the images; if none shows a name, image.burnt_in=allow keeps them",
    "gap": "stack.gap=resample keeps them",
    "jitter": "stack.jitter=resample keeps them",
    "mixed_spacing": "stack.mixed_spacing=resample keeps them",
    "duplicate_position": "stack.duplicate=drop keeps the first slice of each position",
    "tilt": "stack.tilt=shear keeps them",
    "too_few_slices": "stack.min_slices sets the fewest slices of a volume",
    "too_large": "image.max_voxels or limits.memory_gib raises the limit",
    "out_of_memory": "limits.memory_gib raises the limit",
    "disk_failure": "repair the disk, or copy these files from elsewhere, and prepare another store=",
    "timeout": "limits.seconds raises the limit",
    "killed": "free memory on this machine, or set limits.memory_gib to less than is free",
    "no_window": "image.windows_hu gives one",
    "no_patient": "patient_id in the labels file names the patient",
    "nifti_pair": "copy the missing file",
    "corrupt_stream": "fetch the files again; image.damaged=allow keeps whatever the decoder returns",
    "several_parts": "stack.parts=apart takes each stack as a volume",
    "lateral_offset": "stack.tolerance=0.02 tolerates coarser positions; or convert the series to NIfTI (dcm2niix)",
    "affine_conflict": "image.nifti_affine=sform or image.nifti_affine=qform takes one affine; or correct the header",
    "time": "image.nifti_volume=0 takes the first volume of each file",
    "not_hounsfield": "image.nifti_unit=HU for NIfTI in HU, or image=mr_volume, which needs no unit",
    "implausible_hu": "image.implausible_hu=allow takes them",
    "field_of_view": "image.fit=crop keeps the middle, or a larger image.size or image.spacing_mm",
    "window": "image.intensity=range with image.range=[low,high] replaces it",
    "mosaic": "convert it to NIfTI (dcm2niix), then image.nifti_volume=0",
    "cine": "name files of single frames, or convert the frame that you want",
    "multi_frame": "image=ct_volume or image=mr_volume reads enhanced files; otherwise convert the frame that you want",
}
_NOTED = {
    "corrupt_stream": "parts of these images are the decoder's guess: image.damaged=refuse leaves them out",
    "first_picture": "the file holds several pictures, of which the first was read",
    "bytes_behind_image": "bytes after the end of the coded image were ignored",
}
_SKIPPED = {
    "not_in_labels": "no row of the labels file names them",
    "no_image": "not an image of this job by name or content",
    "no_class": "no class folder of train is above them; a labels file can name them",
    "no_pixel_data": "reports, plans, raw data, bare headers",
    "not_an_image": "segmentations, doses, plans, raw data, presentation states",
    "dicomdir": "DICOMDIR files of discs",
    "localizer": "scouts, according to their ImageType",
    "too_few_slices": "references and scouts beside a volume; stack.min_slices or series.min_slices sets the minimum",
    "leftover_stack": "slices in another plane or size than the volume of their series, and not a volume themselves",
    "sparse_stack": "slices farther apart than stack.max_gap_mm beside a denser volume; stack.parts=apart takes them",
    "not_grey": "colour pictures beside a volume (dose sheets, screen shots)",
    "cine": "frames that differ in time, beside a volume",
    "multi_frame": "frames without positions, beside a volume",
    "no_orientation": "pictures without a place in the patient, beside a volume",
    "no_position": "pictures without a place in the patient, beside a volume",
    "no_spacing": "pictures of unknown size, beside a volume",
    "other_file": "labelling.files or labelling.not_files leaves them out",
    "second_copy": "the folder around them contains the same files",
}


@dataclass(frozen=True, slots=True)
class _Refused:
    """An image that was planned and not stored.

    Attributes:
        reason: Word of the ledger.
        detail: What was found.
        number: Line of the labels file, 0 without one.
        label: Its class; None if unknown.
        row: Row of the ledger; -1 for a volume refused before decoding.
    """

    reason: str
    detail: str
    number: int
    label: str | None
    row: int = -1


def describe_left_out(plan: Plan, store: Store, identity: Identity) -> Iterator[str]:
    """Yield a line for each reason why images were refused, files were skipped, or stored images are notable.

    Examples are lines of the labels file or rows of the ledger; classes are named, paths and ids, which may be a
    person's name, are not.
    """
    ledger = read_table(store.folder / LEDGER).select(["path", "state", "reason", "detail", "refused"])
    groups: dict[str, list[_Refused]] = defaultdict(list)
    for image in _list_refused(plan, ledger, identity):
        groups[image.reason].append(image)
    for reason, images in sorted(groups.items()):
        first = min(images, key=lambda image: (image.number, max(image.row, 0)))
        if first.number:
            where = f"line {first.number}"
        else:
            row = first.row
            if row < 0:
                row = pc.index(ledger["reason"], reason).as_py()
            where = f"row {row} of {LEDGER} (counted from 0)"
        setting = _SETTINGS.get(reason, "correct or convert the files")
        what = f"{format_count(len(images), 'image')}{list_classes(image.label for image in images)}"
        yield f"{QUARANTINED}: {what}: {reason}: {first.detail or 'no detail'}; e.g. {where}; {setting}"
    counts = Counter(zip(ledger["state"].to_pylist(), ledger["reason"].to_pylist(), strict=True))
    for state, meanings in ((SKIPPED, _SKIPPED), (OK, _NOTED)):
        for reason, meaning in meanings.items():
            if number := counts[state, reason]:
                classes = ""
                if reason == "other_file" and plan.layout:
                    classes = _list_chosen_out(plan, ledger)
                yield f"{state}: {format_count(number, 'file')}{classes}: {reason}: {meaning}"


def _list_chosen_out(plan: Plan, ledger: pa.Table) -> str:
    """Return the classes of files that patterns leave out; a folder that is not a class may be a patient's."""
    known = {spelling_key(label): label for label in pc.unique(plan.table["label"]).drop_null().to_pylist()}
    names = name_classes(ledger.filter(pc.equal(ledger["reason"], "other_file"))["path"], plan.layout)
    return list_classes(known.get(spelling_key(name or "")) for name in names)


def _list_refused(plan: Plan, ledger: pa.Table, identity: Identity) -> Iterator[_Refused]:
    """Yield each image that was planned and not stored, once."""
    bad = ledger.append_column("row", pa.array(range(len(ledger)), pa.int64()))
    bad = bad.filter(pc.equal(ledger["state"], QUARANTINED))
    if pc.sum(pc.list_value_length(bad["refused"])).as_py():
        rows: dict[str, tuple[str, str, int]] = {}
        for row in bad.to_pylist():
            for image_id in row["refused"]:
                rows.setdefault(image_id, (row["reason"], row["detail"], row["row"]))
        names = name_column(plan.table["key"], "image", identity)
        places = pc.index_in(pa.array(rows, pa.string()), value_set=names)
        numbers = pc.fill_null(plan.table["number"].take(places), 0).to_pylist()
        labels = plan.classes.take(places).to_pylist()
        for (reason, detail, at), number, label in zip(rows.values(), numbers, labels, strict=True):
            yield _Refused(reason, detail, number, label, at)
    for row in plan.lost.to_pylist():
        yield _Refused(row["reason"], row["detail"], row["number"], row["label"])


def list_classes(labels: Iterable[str | None]) -> str:
    """Return " (nevus 12, melanoma 3)", most frequent first; "" without labels."""
    counts = Counter(label for label in labels if label is not None)
    if not counts:
        return ""
    listed = [f"{name} {count}" for name, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]
    return f" ({list_first(listed, _SHOWN)})"
