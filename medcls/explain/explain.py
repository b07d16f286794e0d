"""Explain images of a run: maps, pictures, and measurements of whether the maps are true."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medcls.config import ExplainJob
from medcls.console import put, say, show_progress
from medcls.errors import ConfigError, DataError
from medcls.evaluate.evaluation_data import RowRequest, open_rows
from medcls.evaluate.frozen_choices import read_choices
from medcls.evaluate.judged_rows import hold_evaluations
from medcls.evaluate.report_explanations import EXPLANATIONS, IMAGES
from medcls.evaluate.split_predictions import SplitPredictions, SplitRequest, predict_split
from medcls.explain.explanation_report import METHODS, describe_row, summarize, write_explanation_page, write_sentences
from medcls.explain.faithfulness import Curves
from medcls.explain.lime import pick_submodular
from medcls.explain.map_checks import (
    Box,
    Subject,
    check_sanity,
    estimate_time,
    is_blank,
    measure_curves,
    measure_place,
    read_boxes,
    summarize_areas,
)
from medcls.explain.method import LEGENDS, Explained, Method, choose_target, freeze
from medcls.explain.overlay import write_nifti, write_overlay
from medcls.explain.page import MapPicture
from medcls.files import HOLDER, MODEL, ODDS_RATIOS, TEMPORARY, sha256_file, write_bytes, write_json
from medcls.inputs import check_run_folder
from medcls.models.backbones import CLINICAL
from medcls.report.gallery import Worst, choose_worst
from medcls.runs.checksums import note_version
from medcls.runs.model_file import read_card, read_model
from medcls.training.precision import choose_device, choose_precision

_OURS = {EXPLANATIONS, "explanation.html", "maps", IMAGES, "figures"}
_PICKED = 5


def explain(job: ExplainJob) -> None:
    """Explain the images and print what was found and where it is.

    Raises:
        ConfigError, DataError, MissingInputError: as the message says.
    """
    run = Path(job.run or "")
    check_run_folder(run)
    if job.out:
        check_folder(Path(job.out))
    with hold_evaluations([run], job.out, command="medcls.explain"):
        _explain(job, run)


def _explain(job: ExplainJob, run: Path) -> None:
    model, card = read_model(run / MODEL)
    if card.architecture == CLINICAL:
        raise ConfigError(
            f"run={run} takes no images (model=clinical), so it has no maps: see {ODDS_RATIOS} in the run"
        )
    device = choose_device(job.device)
    method = Method(job, device, choose_precision(job.precision, device=device))
    freeze(model, device)
    # Where the network looks in images that it was trained on is a fair question; the page says what they are.
    wanted = RowRequest(job.split, job.store, in_sample="allow")
    predictions = predict(run, SplitRequest(wanted, device=job.device, batch_size=job.batch_size))
    boxes = read_boxes(Path(job.boxes), predictions.opened.store) if job.boxes else {}
    subjects = choose_subjects(predictions, job.images, worst=job.worst, target=job.target, boxes=boxes)
    folder = Path(job.out) if job.out else predictions.folder / f"explanation-{job.method}"
    check_folder(folder)
    say(estimate_time(method, model, subjects))
    explained = [
        method.explain(model, subject.image, target=subject.target, name=subject.image_id)
        for subject in show_progress(subjects, desc=job.method, unit="image")
    ]
    curves = [
        measure_curves(method, model, subject, each.heat) if job.curves else []
        for subject, each in zip(show_progress(subjects, desc="curves", unit="image"), explained, strict=True)
    ]
    chosen = slice(0, job.sanity_images)
    sanity = check_sanity(method, model, subjects[chosen], explained[chosen]) if job.sanity_images else None
    scores = [method.score_image(model, subject.image, target=subject.target) for subject in subjects]
    rows = [describe(*each) for each in zip(subjects, explained, curves, scores, strict=True)]
    summary = summarize(rows, sanity, patients=[subject.patient for subject in subjects], seed=job.seed)
    if job.method == "lime" and job.superpixels == "grid":
        summary["submodular_pick"] = pick(subjects, explained)
    if card.clinical is not None:
        summary["held"] = card.clinical.columns
    clear(folder)
    pictures = [
        MapPicture(
            name_subject(subject, show_ids=job.show_ids),
            write_files(folder, method, subject, each, row),
            describe_row(row),
        )
        for subject, each, row in zip(subjects, explained, rows, strict=True)
    ]
    opened = predictions.opened
    page = write_explanation_page(
        folder, method, summary=summary, curves=curves, pictures=pictures, notes=opened.notes, store=opened.store.name
    )
    write_json(folder / EXPLANATIONS, build_content(method, predictions, summary=summary, rows=rows))
    put("\n".join(write_sentences(summary)))
    put(f"explanations: {page}")
    if not job.out:
        store = f" store={job.store}" if job.store else ""
        put(f"to put them into report.html: python -m medcls.evaluate run={run}{store} split={job.split}")


def build_content(
    method: Method, predictions: SplitPredictions, *, summary: dict[str, Any], rows: list[dict[str, Any]]
) -> dict[str, Any]:
    """Return what explanations.json holds."""
    return {
        "settings": asdict(method.job),
        "method": METHODS[method.job.method][0],
        "background": {"maps": method.background, "curves": method.curve_background},
        "model_sha256": predictions.key["model_sha256"],
        "store_sha256": predictions.key["store_sha256"],
        "summary": summary,
        "found": write_sentences(summary),
        "images": rows,
    }


def predict(run: Path, request: SplitRequest) -> SplitPredictions:
    """Return the run's predictions on the split: those of an evaluation, or made and counted as one."""
    card = read_card(run / MODEL)
    note_version(run / MODEL)
    opened = open_rows(request.rows, run, card)
    found = predict_split(request, run, card=card, opened=opened, use="explained")
    choices = read_choices(run, model_sha256=found.key["model_sha256"])
    return choices.decide_rows(found) if choices else found


def choose_subjects(
    predictions: SplitPredictions,
    images: Sequence[str],
    *,
    worst: int,
    target: str,
    boxes: Mapping[str, Box],
) -> list[Subject]:
    """Return the images asked for by id, or those with the largest loss (right ones nearest to a tie after them).

    Args:
        predictions: The split.
        images: Ids; () = choose by the loss.
        worst: Number of images that are chosen.
        target: What is explained of each.
        boxes: Image id to the place of its sign.

    Raises:
        DataError: An id that is not in the split.
    """
    opened = predictions.opened
    store, checked, crop = opened.store, predictions.rows.predictions, predictions.card.crop
    ids = store.column("image_id", opened.rows)
    described = {each.row: each for each in choose_worst(checked, count=len(ids))}
    if images:
        places = {image_id: row for row, image_id in enumerate(ids)}
        missing = [name for name in images if name not in places]
        if missing:
            raise DataError(
                f"images: {', '.join(missing[:5])} not in split={predictions.key['split']} of store={store.folder}"
            )
        chosen = [places[name] for name in images]
    else:
        chosen = list(described)[:worst]
    subjects = []
    for row in chosen:
        words = described.get(row, Worst(row, "", "", ""))
        image, box = store.image(int(opened.rows[row])), boxes.get(ids[row])
        if crop is not None:
            image, box = crop.take_center(image), box and crop.place_box(box, store.shape)
        subjects.append(
            Subject(
                image_id=ids[row],
                row=row,
                image=np.array(image),
                target=replace(
                    choose_target(predictions.card.task, checked.y_score[row], target=target),
                    clinical=() if opened.clinical is None else tuple(opened.clinical[row].tolist()),
                ),
                true=words.true,
                predicted=words.predicted,
                patient=predictions.rows.patient_ids[row],
                box=box,
                affine=_read_affine(store, int(opened.rows[row])),
            )
        )
    return subjects


def _read_affine(store: Any, row: int) -> NDArray[np.float64] | None:
    """Return the store's affine goes to DICOM's patient axes (LPS); NIfTI's go to the right and the front (RAS)."""
    if "affine" not in store.column_names:
        return None
    affine: NDArray[np.float64] = np.diag([-1.0, -1.0, 1.0, 1.0]) @ np.reshape(store.column("affine", [row])[0], (4, 4))
    return affine


def describe(subject: Subject, explained: Explained, curves: list[Curves], score: float) -> dict[str, Any]:
    """Return the JSON row of one image."""
    row: dict[str, Any] = {
        "image_id": subject.image_id,
        "row": subject.row,
        "picture": f"{file_name(subject.image_id)}.png",
    }
    row["target"] = subject.target.words
    row |= {"true": subject.true, "predicted": subject.predicted, "score": score, "blank": is_blank(explained.heat)}
    row |= explained.facts | summarize_areas(curves)
    return row | (measure_place(explained.heat, subject.box) if subject.box is not None else {})


def pick(subjects: list[Subject], explained: list[Explained]) -> list[str]:
    """Return the images that together show most of where the model looks (SP-LIME), over the cells of the grid."""
    weights = np.stack([each.weights for each in explained if each.weights is not None])
    return [subjects[i].image_id for i in pick_submodular(weights, _PICKED)]


def name_subject(subject: Subject, *, show_ids: bool) -> str:
    """Return what the page calls an image: never its id, which may be a path, unless show_ids asks for it."""
    return subject.image_id if show_ids else f"Row {subject.row} of predictions.parquet"


def write_files(folder: Path, method: Method, subject: Subject, explained: Explained, row: dict[str, Any]) -> Path:
    """Write the map and its picture, and note the picture's checksum in the row; return the picture's path."""
    name = file_name(subject.image_id)
    buffer = io.BytesIO()
    np.save(buffer, explained.heat)
    write_bytes(folder / "maps" / f"{name}.npy", buffer.getvalue())
    if subject.affine is not None and explained.heat.ndim == 3:
        write_nifti(folder / "maps" / f"{name}.nii.gz", explained.heat, affine=subject.affine)
    path = folder / IMAGES / str(row["picture"])
    title = f"{row['target']}: {row['score']:.3f}" + (", blank map" if row["blank"] else "")
    legend = LEGENDS[method.job.method]
    write_overlay(path, subject.image, explained.heat, title=title, legend=legend, box=subject.box)
    row["picture_sha256"] = sha256_file(path)
    return path


def file_name(image_id: str) -> str:
    """Return the id where it is a plain file name; else its plain part and a checksum (declared ids may hold a /)."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "_", image_id).lstrip(".")
    return plain if plain == image_id else f"{plain[:80]}-{hashlib.sha256(image_id.encode()).hexdigest()[:8]}"


def check_folder(folder: Path) -> None:
    """Raise ConfigError where the folder holds something that no explanation wrote."""
    if folder.is_file():
        raise ConfigError(f"out={folder} is a file: choose a folder")
    paths = list(folder.iterdir()) if folder.is_dir() else []
    links = sorted(path.name for path in paths if path.is_symlink())
    if links:
        raise ConfigError(f"out={folder} holds {links[0]}, a link, whose target would be cleared: remove it")
    names = [path.name for path in paths]
    strangers = sorted(name for name in names if name not in (*_OURS, HOLDER) and not name.startswith(TEMPORARY))
    if strangers:
        raise ConfigError(
            f"out={folder} holds {strangers[0]}, which is not an explanation: choose an empty or new folder"
        )


def clear(folder: Path) -> None:
    """Remove what an earlier explanation left: pictures of other images would look like this one's."""
    for pattern in (EXPLANATIONS, "maps/*.npy", "maps/*.nii.gz", "images/*.png", "figures/*.png"):
        for path in folder.glob(pattern):
            path.unlink()
