"""Explain images of a run: maps, pictures, and measurements of whether the maps are true."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from medcls.config import ExplainJob
from medcls.console import put, say, show_progress
from medcls.data.crops import Box
from medcls.errors import ConfigError, DataError
from medcls.evaluate.evaluation_data import RowRequest, open_rows
from medcls.evaluate.frozen_choices import read_choices
from medcls.evaluate.judged_rows import hold_evaluations
from medcls.evaluate.report_explanations import EXPLANATIONS, IMAGES
from medcls.evaluate.split_predictions import SplitPredictions, SplitRequest, predict_split
from medcls.explain.explanation_report import (
    MapPicture,
    Summary,
    describe_row,
    summarize,
    write_explanation_page,
    write_sentences,
)
from medcls.explain.faithfulness import Curves
from medcls.explain.lime import pick_submodular
from medcls.explain.map_checks import (
    estimate_time,
    is_blank,
    measure_curves,
    measure_place,
    read_boxes,
    summarize_areas,
)
from medcls.explain.method import Explained, Method, Subject, choose_target, freeze
from medcls.explain.overlay import write_nifti, write_overlay
from medcls.explain.sanity import check_sanity
from medcls.files import HOLDER, MODEL, ODDS_RATIOS, TEMPORARY, sha256_file, write_bytes, write_json
from medcls.inputs import check_run_folder
from medcls.models.backbones import CLINICAL
from medcls.models.classifier import Classifier
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
        results = measure_subjects(method, model, subjects)
        summary = _summarize(method, model, results)
        if card.clinical is not None:
            summary["held"] = card.clinical.columns
        page = write_explanation(folder, method, predictions, results, summary)
        put("\n".join(write_sentences(summary)))
        put(f"explanations: {page}")
        if not job.out:
            store = f" store={job.store}" if job.store else ""
            put(f"to put them into report.html: python -m medcls.evaluate run={run}{store} split={job.split}")


@dataclass(frozen=True, slots=True)
class Result:
    """One image, its map, and what was measured of it.

    Attributes:
        subject: The image.
        explained: The map.
        curves: The map's and those of the map moved; [] of a blank map or with curves=false.
        row: Its object in explanations.json.
    """

    subject: Subject
    explained: Explained
    curves: list[Curves]
    row: dict[str, object]


def measure_subjects(method: Method, model: Classifier, subjects: Sequence[Subject]) -> list[Result]:
    """Return the map of each image and what was measured of it."""
    job, results = method.job, []
    explained = [
        method.explain(model, subject.image, target=subject.target, name=subject.image_id)
        for subject in show_progress(subjects, desc=job.method, unit="image")
    ]
    for subject, each in zip(show_progress(subjects, desc="curves", unit="image"), explained, strict=True):
        curves = measure_curves(method, model, subject, each.heat) if job.curves else []
        row: dict[str, object] = {
            "image_id": subject.image_id,
            "row": subject.row,
            "picture": f"{file_name(subject.image_id)}.png",
            "target": subject.target.words,
            "true": subject.true,
            "predicted": subject.predicted,
            "score": method.score_image(model, subject.image, target=subject.target),
            "blank": is_blank(each.heat),
        }
        row |= each.facts | summarize_areas(curves)
        if subject.box is not None:
            row |= measure_place(each.heat, subject.box)
        results.append(Result(subject, each, curves, row))
    return results


def _summarize(method: Method, model: Classifier, results: Sequence[Result]) -> Summary:
    job = method.job
    sanity = None
    if job.sanity_images:
        checked = results[: job.sanity_images]
        sanity = check_sanity(method, model, [one.subject for one in checked], [one.explained for one in checked])
    patients = [one.subject.patient for one in results]
    summary = summarize([one.row for one in results], sanity, patients=patients, seed=job.seed)
    if job.method == "lime" and job.superpixels == "grid":
        # Only the cells of a grid are the same in all images.
        weights = np.stack([one.explained.weights for one in results if one.explained.weights is not None])
        summary["submodular_pick"] = [results[i].subject.image_id for i in pick_submodular(weights, _PICKED)]
    return summary


def write_explanation(
    folder: Path, method: Method, predictions: SplitPredictions, results: Sequence[Result], summary: Summary
) -> Path:
    """Write maps, pictures, explanation.html and explanations.json, and return the page's path."""
    # Pictures of other images, which an earlier explanation left, would look like this one's.
    for pattern in (EXPLANATIONS, "maps/*.npy", "maps/*.nii.gz", "images/*.png", "figures/*.png"):
        for path in folder.glob(pattern):
            path.unlink()
    pictures = []
    for one in results:
        path = write_files(folder, method, one)
        # An id may be a path, so it stands on the page only if asked for.
        name = one.subject.image_id if method.job.show_ids else f"Row {one.subject.row} of predictions.parquet"
        pictures.append(MapPicture(name, path, describe_row(one.row)))
    opened, curves = predictions.opened, [one.curves for one in results]
    facts = (opened.store.name, opened.notes)
    page = write_explanation_page(folder, method, summary, curves=curves, pictures=pictures, facts=facts)
    content = {
        "settings": asdict(method.job),
        "method": method.technique.title,
        "background": {"maps": method.background, "curves": method.curve_background},
        "model_sha256": predictions.key["model_sha256"],
        "store_sha256": predictions.key["store_sha256"],
        "summary": summary,
        "found": write_sentences(summary),
        "images": [one.row for one in results],
    }
    write_json(folder / EXPLANATIONS, content)
    return page


def predict(run: Path, request: SplitRequest) -> SplitPredictions:
    """Return the run's predictions on the split: those of an evaluation, or made and counted as one."""
    card = read_card(run / MODEL)
    note_version(run / MODEL)
    opened = open_rows(request.rows, run, card)
    found = predict_split(request, opened, use="explained")
    choices = read_choices(run, model_sha256=found.key["model_sha256"])
    if choices is None:
        return found
    return replace(found, rows=choices.apply(found.rows))


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
        stored = int(opened.rows[row])
        words = described.get(row, Worst(row, "", "", ""))
        image, box = store.image(stored), boxes.get(ids[row])
        if crop is not None:
            image = crop.take_center(image)
            box = box and crop.place_box(box, store.shape)
        aim = choose_target(predictions.card.task, checked.y_score[row], target=target)
        if opened.clinical is not None:
            aim = replace(aim, clinical=tuple(opened.clinical[row].tolist()))
        affine = None
        if "affine" in store.column_names:
            # The store's affine goes to DICOM's patient axes (LPS), NIfTI's to the right and the front (RAS).
            affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ np.reshape(store.column("affine", [stored])[0], (4, 4))
        subjects.append(
            Subject(
                image_id=ids[row],
                row=row,
                image=np.array(image),
                target=aim,
                true=words.true,
                predicted=words.predicted,
                patient=predictions.rows.patient_ids[row],
                box=box,
                affine=affine,
            )
        )
    return subjects


def write_files(folder: Path, method: Method, one: Result) -> Path:
    """Write the map and its picture, and note the picture's checksum in the row; return the picture's path."""
    subject, heat, row = one.subject, one.explained.heat, one.row
    name = file_name(subject.image_id)
    buffer = io.BytesIO()
    np.save(buffer, heat)
    write_bytes(folder / "maps" / f"{name}.npy", buffer.getvalue())
    if subject.affine is not None and heat.ndim == 3:
        write_nifti(folder / "maps" / f"{name}.nii.gz", heat, affine=subject.affine)
    path = folder / IMAGES / f"{name}.png"
    title = f"{row['target']}: {row['score']:.3f}"
    if row["blank"]:
        title += ", blank map"
    write_overlay(path, subject.image, heat, title=title, legend=method.technique.legend, box=subject.box)
    row["picture_sha256"] = sha256_file(path)
    return path


def file_name(image_id: str) -> str:
    """Return the id if it is a plain file name; otherwise its plain part and a checksum (declared ids may hold a /)."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "_", image_id).lstrip(".")
    if plain == image_id:
        return plain
    return f"{plain[:80]}-{hashlib.sha256(image_id.encode()).hexdigest()[:8]}"


def check_folder(folder: Path) -> None:
    """Check that the folder holds nothing but what an explanation wrote."""
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
