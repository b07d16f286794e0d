"""Print the overview of an index: counts, geometry and problems of a folder, without naming a patient."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from data_prep.presentation import describe_mixture
from medcls.config import StackRule
from medcls.imaging.catalog import instances_of
from medcls.imaging.companions import NO_IMAGE
from medcls.imaging.dicom.terms import name_body_part, name_modality
from medcls.imaging.instance import Instance
from medcls.imaging.volume.find import find_unnamed, stack_series
from medcls.imaging.volume.pieces import fit_slices
from medcls.imaging.volume.select import SeriesKey, summarize_series
from medcls.imaging.volume.stack import Stack

_KINDS = {"dicom": "DICOM", "nifti": "NIfTI", "raster": "pictures", "other": "others"}
_SYNTAXES = {
    "1.2.840.10008.1.2": "implicit",
    "1.2.840.10008.1.2.1": "explicit",
    "1.2.840.10008.1.2.1.99": "deflated",
    "1.2.840.10008.1.2.2": "big endian",
    "1.2.840.10008.1.2.5": "RLE",
    "1.2.840.10008.1.2.4.50": "JPEG",
    "1.2.840.10008.1.2.4.51": "JPEG 12 bit",
    "1.2.840.10008.1.2.4.57": "JPEG lossless",
    "1.2.840.10008.1.2.4.70": "JPEG lossless",
    "1.2.840.10008.1.2.4.80": "JPEG-LS",
    "1.2.840.10008.1.2.4.81": "JPEG-LS lossy",
    "1.2.840.10008.1.2.4.90": "JPEG 2000",
    "1.2.840.10008.1.2.4.91": "JPEG 2000 lossy",
    "1.2.840.10008.1.2.4.201": "HTJ2K",
    "1.2.840.10008.1.2.4.202": "HTJ2K",
    "1.2.840.10008.1.2.4.203": "HTJ2K lossy",
}
_MEANINGS = {
    "animated": "several pictures in one file",
    "axes": "an array that is not an image",
    "burnt_in": "text in the pixels may name the patient: image.burnt_in",
    "cine": "frames that differ in time",
    "damaged": "a picture whose header cannot be read",
    "dicomdir": "the DICOMDIR of a disc",
    "empty_file": "no bytes",
    "format_not_read": "a picture in an unsupported format (GIF, WebP, JPEG 2000 …): convert it to PNG or TIFF",
    "hidden": "a name that begins with a dot",
    "mosaic": "many slices tiled into one picture (Siemens)",
    "multi_frame": "several frames: try image=ct_volume or mr_volume",
    "no_file_meta": "DICOM without its file meta group: the transfer syntax is unknown",
    "missing_element": "DICOM without an element that pixels need",
    "no_pixel_data": "DICOM without an image: reports, plans, bare headers",
    "no_transfer_syntax": "DICOM that does not state its transfer syntax",
    "no_window": "CT without a window: image.windows_hu, or as a volume",
    "not_an_image": "segmentations: labels drawn on other images",
    "pixel_length": "fewer or more bytes of pixels than the header states",
    "special_file": "a pipe, socket or device",
    "symbolic_link": "a link, not followed",
    "system_file": "left by an operating system: __MACOSX, Thumbs.db, @eaDir",
    "truncated": "the file ends early",
    "unknown_format": "named like an image, but in no known format",
    "unreadable": "no parser can read it",
    "unsupported_colour": "unsupported colours (CMYK …)",
    "unsupported_transfer_syntax": "a transfer syntax that is private or unknown",
    "window": "a window without meaning: image.intensity=range replaces it",
}
_NO_GEOMETRY = frozenset({"no_orientation", "no_position", "no_spacing"})
_NO_VOLUME = _NO_GEOMETRY | {"too_few_slices", "colour"}
_WORDS = {
    "not_grey": "colour",
    "sheared": "tilt",
    "resampled_gap": "gap",
    "resampled_jitter": "jitter",
    "resampled_spacing": "mixed_spacing",
}
_RULE = StackRule()
_ONLY_DECODING = (
    "These are the verdicts of data_prep from headers alone. Only decoding can find: damaged pixels, few grey levels, "
    "implausible HU, colour in a grey store, the frames of enhanced files."
)
_HEADINGS = ("patient", "study", "series", "modality", "body part", "plane", "images", "size", "spacing mm", "syntax")
_RIGHT = frozenset({"images"})


def describe_folder(table: pa.Table, *, lines: int) -> Iterator[str]:
    """Yield the lines of the overview: counts, one line a series, problems by reason.

    Args:
        table: From catalog.build_index.
        lines: Series to show at most; 0 shows all.
    """
    rows = _group_by_series(table)
    yield from _describe_counts(table, rows)
    unnamed = find_unnamed(table)
    described = [
        (*names, *_describe_series(table.take(pa.array(rows[key])), unnamed=unnamed.get(key, 0)))
        for key, names in _number_series(rows)
    ]
    if described:
        shown = described[: lines or None]
        table_lines: list[tuple[str, ...]] = [(*_HEADINGS, "as volume", "as images")]
        patient, study = "", ""
        for line in shown:
            # Patient and study are said once, so that the eye sees where the next begins.
            cells = list(line)
            if line[0] == patient:
                cells[0] = ""
                if line[1] == study:
                    cells[1] = ""
            patient, study = line[:2]
            table_lines.append(tuple(cells))
        yield ""
        yield from _align(table_lines)
        if len(described) > len(shown):
            yield f"… and {len(described) - len(shown)} more series: lines=0 shows all"
            for place, name in ((-2, "as volumes"), (-1, "as images")):
                counts = Counter(line[place] for line in described)
                yield f"all series {name}: " + "; ".join(f"{n} {word}" for word, n in counts.most_common())
    yield from _describe_problems(table)


def _group_by_series(table: pa.Table) -> dict[SeriesKey, array[int]]:
    """Return the row numbers of every series with an identifier or an image."""
    rows: dict[SeriesKey, array[int]] = {}
    names = ("kind", "problem", "patient_id", "study_uid", "series_uid")
    number = 0
    for batch in table.select(names).to_batches():
        for kind, problem, *key in zip(*batch.to_pydict().values(), strict=True):
            if kind == "dicom" and (key[2] or not problem):
                rows.setdefault((key[0], key[1], key[2]), array("q")).append(number)
            number += 1
    return rows


def _number_series(keys: Iterable[SeriesKey]) -> Iterator[tuple[SeriesKey, tuple[str, str, str]]]:
    """Yield every series with the running numbers that stand for patient, study and series, in their order.

    They count by first appearance; a patient without PatientID is "-", for it may be several.
    """
    tree: dict[str, dict[str, list[SeriesKey]]] = {}
    for key in keys:
        tree.setdefault(key[0], {}).setdefault(key[1], []).append(key)
    for patient, name in enumerate(sorted(tree, key=lambda name: not name), start=1):
        for study, of_study in enumerate(tree[name].values(), start=1):
            for series, key in enumerate(of_study, start=1):
                yield key, (f"P{patient}" if name else "-", str(study), f"S{series}")


def _describe_counts(table: pa.Table, rows: Iterable[SeriesKey]) -> Iterator[str]:
    kinds = Counter(table.column("kind").to_pylist())
    listed = ", ".join(f"{kinds[kind]:,} {name}" for kind, name in _KINDS.items() if kinds[kind])
    keys = list(rows)
    patients, studies = {key[0] for key in keys if key[0]}, {key[:2] for key in keys}
    yield f"files     {table.num_rows:>9,}   {listed}".rstrip()
    line = f"patients  {len(patients):>9,}"
    nameless = sum(not patient for patient, _ in studies)
    if nameless:
        line += f"   and {nameless:,} {'study' if nameless == 1 else 'studies'} without PatientID"
    yield line
    yield f"studies   {len(studies):>9,}"
    yield f"series    {len(keys):>9,}"
    for kind in ("raster", "nifti"):
        if kinds[kind]:
            # The most frequent sizes of files without series.
            chosen = table.filter(pc.equal(table.column("kind"), kind)).select(["rows", "columns", "frames"])
            sizes = Counter(zip(*chosen.to_pydict().values(), strict=True))
            known = [(size, count) for size, count in sizes.most_common() if size[0]]
            shown = [f"{count:,} of {_times(size if size[2] > 1 else size[:2])}" for size, count in known[:3]]
            shown += ["…"] * (len(known) > 3)
            yield f"{_KINDS[kind]:<9} {kinds[kind]:>9,}   {', '.join(shown)}".rstrip()


def _times(numbers: Iterable[float | str]) -> str:
    return " x ".join(map(str, numbers))


def _describe_series(table: pa.Table, *, unnamed: int) -> tuple[str, ...]:
    """Return one line of the table, from modality to what becomes of the files."""
    instances = list(instances_of(table))
    images = [each for each in instances if not each.problem]
    summary = summarize_series(instances)[0]
    spacing = _only(_times(f"{mm:.3g}" for mm in each.pixel_spacing_mm) or "-" for each in images)
    if summary.distance_mm is not None and spacing != "-":
        spacing += f" x {summary.distance_mm:.3g}"
    verdicts = Counter(each.image_problem or "ok" for each in images)
    one_by_one = next(iter(verdicts), "-")
    if len(verdicts) > 1:
        ordered = sorted(verdicts.items(), key=lambda item: item[0] != "ok")
        one_by_one = ", ".join(f"{word} ({count})" for word, count in ordered)
    return (
        _name(summary.modality or instances[0].modality, name_modality),
        _name(summary.body_part, name_body_part),
        summary.plane or "-",
        f"{summary.slices:,}",
        _only(_times((each.rows, each.columns)) for each in images),
        spacing,
        _only(_SYNTAXES.get(each.transfer_syntax, "other") for each in instances),
        judge_geometry(instances, unnamed=unnamed),
        one_by_one,
    )


def _name(text: str, name: Callable[[str], str]) -> str:
    """Return a term of the standard; free text in its place may name somebody."""
    return name(text) or ("(text)" if text else "-")


def _only(texts: Iterable[str]) -> str:
    distinct = set(texts)
    if len(distinct) > 1:
        return "mixed"
    return next(iter(distinct), "-")


def judge_geometry(instances: Sequence[Instance], *, unnamed: int = 0) -> str:
    """Return what data_prep would make of all files of one series: "ok", "2 volumes", "gap", "ok, tilt" or "2-D".

    It asks what data_prep asks (find.stack_series), with the default rule.

    Args:
        instances: Of one series.
        unnamed: Files that may be slices of it, of find.find_unnamed.
    """
    images = [each for each in instances if not each.problem]
    stacks, leftovers = stack_series(instances, _RULE, unnamed=unnamed)
    reasons = Counter(_WORDS.get(reason, reason) for _, _, reason, _ in leftovers if reason not in NO_IMAGE)
    if not images and not reasons:
        return "no image"
    if sum(each.frames for each in images) == 1 and set(reasons) <= _NO_VOLUME:
        return "single"
    if not stacks:
        return "2-D" if set(reasons) <= _NO_GEOMETRY else ", ".join(sorted(reasons))
    words = ["ok" if len(stacks) == 1 else f"{len(stacks)} volumes"]
    words += sorted({note for stack in stacks for note in _list_notes(stack)})
    return ", ".join(words + [f"{reason} ({count})" for reason, count in sorted(reasons.items())])


def _list_notes(stack: Stack) -> Iterator[str]:
    if stack.parted_by:
        yield "joined"
    if stack.instances[0].frames == 1:
        geometry = fit_slices(stack.instances, _RULE)
        yield from (_WORDS.get(note, note) for note in geometry.notes)
        if any(len(level) > 1 for level in geometry.levels):
            yield "duplicates"


def _align(table: Iterable[tuple[str, ...]]) -> Iterator[str]:
    rows = list(table)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = zip(rows[0], row, widths, strict=True)
        yield "  ".join(c.rjust(w) if name in _RIGHT else c.ljust(w) for name, c, w in cells).rstrip()


def _describe_problems(table: pa.Table) -> Iterator[str]:
    for column, heading in (
        ("problem", "no images"),
        ("image_problem", "not readable as single images (default settings)"),
    ):
        counts = Counter(str(problem) for problem in table.column(column).to_pylist() if problem)
        if counts:
            yield ""
            yield heading
            ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
            yield from _align([(f"{n:>6,}", reason, _MEANINGS.get(reason, "")) for reason, n in ordered])
    # One by one they are fine, and together they are refused.
    images = pc.and_(pc.equal(table.column("problem"), ""), pc.not_equal(table.column("kind"), "other"))
    mixture = describe_mixture(table.filter(images)["intent"])
    if mixture:
        yield ""
        yield f"refused as a whole by data_prep (default settings): {mixture}"
    if table.num_rows:
        yield ""
        yield _ONLY_DECODING
