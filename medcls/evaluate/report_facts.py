"""Collect the report's facts about the data: flow of patients, splits, subgroups, labels, worst images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from medcls.data.columns import Codes, read_columns
from medcls.data.splits import ORDER, SPLIT_NAMES, Certificate, count_leaks, read_patients, read_split, rows_of
from medcls.data.store import Store
from medcls.evaluate.report_runs import describe_ensemble
from medcls.evaluate.split_predictions import SplitPredictions, values_of
from medcls.files import LEDGER
from medcls.identity import PER_IMAGE, format_count
from medcls.imaging.picture import draw_pixels
from medcls.report.gallery import Picture, Worst
from medcls.runs.folder import read_settings
from medcls.statistics.subgroups import count_patients, name_age_band

THUMBNAIL = 192
AGE = "age"


def read_subgroup_columns(
    predictions: SplitPredictions, names: Sequence[str]
) -> tuple[dict[str, list[Any]], list[str]]:
    """Return the value of each row by column, and the columns asked for that the store does not have.

    "age" stands for bands of age_years.
    """
    columns: dict[str, list[Any]] = {}
    absent: list[str] = []
    for name in names:
        source = {AGE: "age_years"}.get(name, name)
        if source not in predictions.opened.store.column_names:
            absent.append(name)
            continue
        columns[name] = values_of(predictions.opened, source)
        if name == AGE:
            columns[name] = [name_age_band(value) for value in columns[name]]
    return columns, absent


def describe_study(predictions: SplitPredictions) -> dict[str, str]:
    """Return what store and settings say for the checklists: "deidentification", "imbalance", "ensembling"."""
    kinds = {
        "hmac": "patient, study and file names replaced by keyed pseudonyms (HMAC)",
        "declared": "ids and file names as they were given, not replaced; of the headers only the columns of the "
        "manifest are kept",
    }
    kind = str(predictions.opened.store.info["deidentify"]["kind"])
    weights = []
    for part in predictions.parts:
        task = read_settings(part.run)["task"]
        weights.append(f"class weights {task['class_weights']}, sampler {task['sampler']}, loss {task['loss']}")
    facts = {"deidentification": kinds.get(kind, kind), "imbalance": "; ".join(dict.fromkeys(weights))}
    ensemble = describe_ensemble(predictions.parts)
    if ensemble:
        facts["ensembling"] = "; ".join(ensemble)
    return facts


# Parts of a certificate that are counts, settings, names of classes and checksums; others may list ids.
_WITHOUT_IDS = frozenset(
    [
        "source",
        "algorithm",
        "seed",
        "fractions",
        "on_leak",
        "near_duplicates",
        "dropped",
        "classes_missing",
        "images",
        "patients",
        "strata",
        "table",
        "contradictions",
        "linked_patients_in_one_split",
        "store_sha256",
        "split_sha256",
        "name",
    ]
)


def hide_ids(certificate: Mapping[str, Any]) -> dict[str, object]:
    """Return a split's certificate with the number of entries in place of each list that may hold ids or paths.

    The whole of it stays in the store, in splits/NAME.json.
    """
    shown = dict(certificate)
    for name, value in certificate.items():
        if name not in _WITHOUT_IDS and isinstance(value, list | dict):
            shown[name] = len(value)
    if certificate.get("patients_from") == PER_IMAGE:
        # Each image is a patient of its own there, so that the list of patients is empty whoever they are.
        shown["patients_in_several_splits"] = "unknown"
    return shown


def describe_certificate(certificate: Certificate) -> list[str]:
    """Return what a split's certificate says, a sentence each, in counts; [] without a certificate.

    Version 0.2.0 recorded fewer facts, and nothing is said of those that are missing.
    """
    if not certificate:
        return []
    said = [f"Split {certificate.get('name', '')}: {certificate.get('source', 'of unknown origin')}."]
    fractions = certificate.get("fractions")
    if fractions:
        shares = ", ".join(f"{100 * share:g} % {name}" for name, share in _in_order(fractions))
        said.append(f"Dealt {certificate.get('algorithm') or ''} with seed {certificate.get('seed')}: {shares}.")
    if certificate.get("extends"):
        number = format_count(len(certificate["extends"]), "earlier split")
        said.append(f"Patients of {number} keep their split.")
    if certificate.get("merged_patients"):
        number = format_count(certificate["merged_patients"], "patient id")
        said.append(f"{number} with images of another patient id counted as that patient.")
    leaks = count_leaks(certificate)
    looked = "the same patient, and the same image under two ids"
    if certificate.get("patients_from") == PER_IMAGE:
        # Each image is a patient of its own there, so that no patient is found in two splits whoever they are.
        looked = "the same image; patients are unknown"
    said.append(f"Leaks between splits (looked for: {looked}): {leaks or 'none'}.")
    if leaks:
        done = "nothing was left out"
        if certificate.get("on_leak") == "drop":
            done = f"{format_count(certificate.get('dropped', 0), 'image')} left out"
        said.append(f"What was done about them (on_leak={certificate.get('on_leak')}): {done}.")
    linked = certificate.get("linked_patients_in_one_split", 0)
    if linked:
        said.append(f"{format_count(linked, 'pair')} of the same image under two patient ids within one split.")
    missing = certificate.get("classes_missing") or {}
    said += [f"No image of {', '.join(names)} in split {split}." for split, names in _in_order(missing)]
    return said


def _in_order(by_split: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return sorted(by_split.items(), key=lambda item: SPLIT_NAMES.index(item[0]) if item[0] in SPLIT_NAMES else 9)


def describe_labelling(store: Store) -> list[str]:
    """Return how the labels of a store were read, a sentence each; [] if they were plain or nobody recorded it."""
    record = store.read_labelling()
    if not record:
        return ["How uncertain and blank labels were read is not recorded: the labels are of an earlier version."]
    sentences, unit = [], record["unit"]
    for name, column in record["columns"].items():
        for kept, spellings in column.get("spellings", {}).items():
            listed = ", ".join(f"{text} ({count})" for text, count in spellings.items())
            sentences.append(f"{name}: the spellings {listed} were read as one class, {kept}.")
        for kind in ("uncertain", "blank"):
            found = column.get(kind, {"rows": 0})
            if found["rows"]:
                sentences.append(
                    f"{name}: {found['rows']} of {record['rows']} {unit} {kind}, read as {found['read_as']}."
                )
    return sentences + [describe_readers(name, readers) for name, readers in record.get("readers", {}).items()]


def describe_readers(name: str, readers: Mapping[str, Any]) -> str:
    """Return one sentence: how many readers, how far they agree, and by which rule they became one label."""
    ties = format_count(readers["ties"], "tie")
    text = f"{name}: {len(readers['readers'])} readers, rule {readers['rule']}, {ties} unknown"
    if "alpha" not in readers:
        return f"{text}; no image has labels of two readers."
    agreement, alpha = readers["agreement"], readers["alpha"]
    text += f"; on {readers['images']} images of two or more readers {100 * agreement['value']:.1f} % of pairs agree"
    if alpha["value"] is not None:
        text += f", Krippendorff's alpha {alpha['value']:.2f}"
        if alpha["low"] is not None:
            interval = f"95 % interval {alpha['low']:.2f} to {alpha['high']:.2f}"
            text += f" ({interval}, bootstrap over {readers['interval_over']})"
    return f"{text}."


def describe_flow(predictions: SplitPredictions, *, split: str) -> list[dict[str, object]]:
    """Return the steps from files to evaluated images: title, count, and what was left out before the next."""
    opened = predictions.opened
    store = opened.store
    patients = read_patients(store, opened.certificate)

    def count(rows: NDArray[np.int64]) -> dict[str, object]:
        chosen = np.zeros(len(store), dtype=np.bool_)
        chosen[rows] = True
        known = store.patients_from != PER_IMAGE
        return {"images": len(rows), "patients": patients.count(chosen) if known else None}

    steps: list[dict[str, object]] = []
    if (store.folder / LEDGER).is_file():
        ledger = read_columns(store.folder / LEDGER, "state", "reason", coded=True)
        counted = ledger.group_by(["state", "reason"]).aggregate([([], "count_all")]).to_pylist()
        out = [(f"{row['state']}: {row['reason']}", row["count_all"]) for row in counted if row["state"] != "ok"]
        steps.append({"title": "Files found", "files": ledger.num_rows, "left_out": sorted(out)})
    everyone = np.arange(len(store), dtype=np.int64)
    steps.append({"title": "Images stored", **count(everyone)})
    here, left_out = everyone, list[tuple[str, int]]()
    if opened.certificate:
        splits, _ = read_split(store, predictions.card.split_name)
        here = rows_of(splits, split)
        sizes = [(name, int((splits == code).sum())) for code, name in enumerate(SPLIT_NAMES)]
        others = [(f"split {name}", size) for name, size in sizes if size and name != split]
        steps[-1]["left_out"] = [other for other in others if split != "all" or other[0] == "split dropped"]
        steps.append({"title": f"Split {split}", **count(here)})
    without = len(here) - len(opened.rows)
    if without:
        left_out.append(("no label of this task", without))
    steps[-1]["left_out"] = left_out
    return [*steps, {"title": "Evaluated", **count(opened.rows), "left_out": []}]


def describe_splits(predictions: SplitPredictions) -> dict[str, dict[str, object]]:
    """Return images, patients, sex, age, manufacturer and modality of each split, counted by patient."""
    opened = predictions.opened
    patients = read_patients(opened.store, opened.certificate)
    if not opened.certificate:
        return {"evaluated": _describe_patients(opened.store, opened.rows, patients)}
    splits, _ = read_split(opened.store, predictions.card.split_name)
    rows = {name: rows_of(splits, name) for name in ORDER}
    return {name: _describe_patients(opened.store, chosen, patients) for name, chosen in rows.items() if len(chosen)}


def _describe_patients(store: Store, rows: NDArray[np.int64], patients: Codes) -> dict[str, object]:
    first = rows[np.unique(patients.values[rows], return_index=True)[1]]
    columns = {column: store.column(column, first) for column in ("sex", "manufacturer", "modality")}
    sizes: dict[str, object] = {"images": len(rows), "patients": len(first)}
    if store.patients_from == PER_IMAGE:
        sizes["patients"] = "unknown"
    return sizes | count_patients(store.column("age_years", first), columns)


def draw_gallery(predictions: SplitPredictions, worst: Sequence[Worst]) -> list[Picture]:
    """Return the pictures of the chosen rows, small and without any identifier."""
    opened = predictions.opened
    images = [opened.store.image(int(opened.rows[one.row])) for one in worst]
    bounds = opened.store.spec.value_range
    return [Picture(one, encode_thumbnail(image, bounds)) for one, image in zip(worst, images, strict=True)]


def encode_thumbnail(image: NDArray[Any], value_range: tuple[float, float]) -> bytes:
    """Return a JPEG, at most THUMBNAIL pixels high and wide, of what `draw_pixels` shows of a stored image."""
    picture = np.ascontiguousarray(draw_pixels(image, value_range)[..., ::-1])
    scale = THUMBNAIL / max(picture.shape[:2])
    shape = (max(1, round(picture.shape[1] * scale)), max(1, round(picture.shape[0] * scale)))
    small = cv2.resize(picture, shape, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    return bytes(cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, 80])[1].tobytes())
