"""Predict raw images with one or several runs: scores by class, or a reason, for every file.

Series and patients get their own rows, and every row what the run's operating points say of it. The pixels come from
imaging.decode, which filled the store that the runs were trained on.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from medcls.config import DeidentifyConfig, PredictJob
from medcls.console import put, say, show_progress
from medcls.errors import ConfigError, DataError, ImageRefusedError
from medcls.evaluate.own_predictions import COLUMNS_SUFFIX
from medcls.files import LOCK, PRIVATE, TEMPORARY, sha256_json
from medcls.identity import Identity, describe_key, read_identity
from medcls.imaging.catalog import build_index
from medcls.imaging.companions import NO_IMAGE
from medcls.imaging.decode import DecodedImage, DecodeTask, decode_image
from medcls.imaging.domain import find_unseen
from medcls.imaging.source import choose_identity, is_image, list_files
from medcls.imaging.volume.find import QUARANTINED, find_series
from medcls.imaging.volume.spec import VolumeSpec
from medcls.imaging.volume.volume import describe_notes
from medcls.imaging.worker import VOLUME_LIMITS, Limits, run_limited
from medcls.inputs import check_images
from medcls.locks import lock_file
from medcls.predict.clinical_values import ClinicalTable, read_clinical
from medcls.predict.prediction_levels import complete_cases, describe_answers, describe_repeats
from medcls.predict.prediction_table import (
    MAP_SUFFIX,
    OK,
    REFUSED,
    SKIPPED,
    Case,
    Row,
    build_rows,
    summarize,
    write_columns,
    write_identity_map,
    write_rows,
)
from medcls.predict.region_file import check_regions, read_regions, split_cases
from medcls.predict.scoring import Pending, Runs, open_runs, score
from medcls.records import to_json
from medcls.runs.model_file import ModelCard

INTENDED_USE = "research use; not a medical device"


@dataclass(frozen=True, slots=True)
class FileRequest:
    """Which raw files are predicted, and what belongs to them.

    Attributes:
        source: A folder of images, or one image.
        clinical_file: Clinical values, or None.
        boxes: Regions, or None.
        deidentify: How ids are shown.
        batch_size: Images at once.
        workers: Processes that decode; -1 = one a core, 0 = this process.
    """

    source: Path
    clinical_file: str | None
    boxes: str | None
    deidentify: DeidentifyConfig
    batch_size: int
    workers: int


@dataclass(slots=True)
class Answers:
    """What was found.

    Attributes:
        cases: One for each file, in order.
        everyone: Those, then one for each series and patient.
        rows: Rows of the table, one for each of `everyone`.
        identity: How ids are shown in them.
    """

    cases: list[Case]
    everyone: list[Case]
    rows: list[Row]
    identity: Identity


def predict(job: PredictJob) -> None:
    """Predict every image or volume of the source and write one row each, then one for each series and patient.

    Raises:
        DataError: no file ended in state ok; the table with the reasons is written all the same.
        MissingInputError, ConfigError, WriteError: as the message says.
    """
    out = Path(job.out or "")
    if out.is_dir() or (out.is_file() and is_image(out)):
        raise ConfigError(f"out={out} is {'a folder' if out.is_dir() else 'an image'}: choose a file for the table")
    with lock_file(out, suffixes=(MAP_SUFFIX, COLUMNS_SUFFIX), say=say):
        runs = open_runs(
            job.runs,
            choices=job.choices,
            out_of_domain=job.out_of_domain,
            device=job.device,
            precision=job.precision,
        )
        source, task, form = Path(job.source or ""), runs.cards[0].task, job.form
        request = FileRequest(source, job.clinical_file, job.boxes, job.deidentify, job.batch_size, job.workers)
        found = answer_files(runs, request)
        if found.identity.kind == "hmac":
            path = out.with_name(f"{out.name}{MAP_SUFFIX}")
            write_identity_map(path, found.cases, found.identity)
            say(f"pseudonyms: {path} (mode 0600) maps them back to files and patients: keep it apart from {out.name}")
        write_rows(out, found.rows, task=task, form=form)
        write_columns(out, found.rows, task=task, intended_use=INTENDED_USE)
        positive = f"; positive class {task.positive}" if task.positive else ""
        line = f"{summarize(found.cases)}{positive}; {out}; {INTENDED_USE}"
        if not any(case.state == OK for case in found.cases):
            raise DataError(f"no image could be classified: {line}")
        put("\n".join([line, *describe_answers(found.everyone, task)]))


def answer_files(runs: Runs, request: FileRequest) -> Answers:
    """Return the answers for every image or volume of the source, and for every series and patient.

    Raises:
        MissingInputError, ConfigError, DataError: as `predict`, but for files of which none could be classified.
    """
    boxes = Path(request.boxes) if request.boxes else None
    allow = runs.out_of_domain != "refuse"
    check_regions(boxes, runs.cards, runs=runs.folders, allow=allow)
    regions = read_regions(boxes) if boxes else {}
    table = read_clinical(Path(request.clinical_file) if request.clinical_file else None, runs.cards)
    root, files = find_files(request.source)
    # out= may be inside the source: its lock, and what another command is writing there, are no files of it.
    files = [(path, skip) for path, skip in files if not _is_temporary(path)]
    config = request.deidentify
    identity = read_identity(choose_identity(config.kind, root, files), key_file=config.key_file)
    notice = describe_key(identity, key_file=config.key_file)
    if notice:
        say(notice)
    spec, workers = runs.cards[0].preprocess, request.workers
    if workers < 0:
        workers = os.cpu_count() or 1
    if isinstance(spec, VolumeSpec):
        cases = find_volume_cases(root, files, spec, workers=workers)
    else:
        cases = []
        for path, skip in files:
            reason = skip or ("" if is_image(root / path) else "no_image")
            cases.append(Case(path, SKIPPED if reason else OK, reason))
    if boxes:
        domain = runs.cards[0].domain
        cases = split_cases(cases, regions, path=boxes, trained=domain.regions if domain else "", allow=allow)
    images = [case for case in cases if case.state == OK]
    if images:
        runs.load()
        pending: list[Pending] = []
        for case, pixels in decode_cases(images, runs, root, workers=workers):
            pending.append((case, pixels))
            if len(pending) == request.batch_size:
                score(pending, runs, table)
                pending = []
        if pending:
            score(pending, runs, table)
    return complete_answers(cases, runs, identity)


def decode_cases(cases: Sequence[Case], runs: Runs, root: Path, *, workers: int) -> Iterator[Pending]:
    """Decode the files in limited workers, and yield those with pixels to score; others are refused or skipped."""
    spec = runs.cards[0].preprocess
    limits = VOLUME_LIMITS if spec.spatial_dims == 3 else Limits()
    tasks = (
        DecodeTask(tuple(root / file for file in case.files or (case.path,)), case.region, spec, limits.memory_bytes)
        for case in cases
    )
    outcomes = run_limited(decode_image, tasks, workers=workers, limits=limits)
    pairs = zip(cases, outcomes, strict=True)
    for case, outcome in show_progress(pairs, total=len(cases), desc="predict", unit="image", mininterval=0.5):
        if isinstance(outcome, ImageRefusedError):
            case.state = SKIPPED if outcome.reason in NO_IMAGE else REFUSED
            case.reason, case.detail = outcome.reason, outcome.detail
            continue
        judge_image(case, outcome, cards=runs.cards, refuse=runs.out_of_domain == "refuse")
        if case.state == OK:
            case.pixel_sha256 = hashlib.sha256(outcome.prepared.pixels.tobytes()).hexdigest()
            yield case, outcome.prepared.pixels


def judge_image(case: Case, image: DecodedImage, *, cards: Sequence[ModelCard], refuse: bool) -> None:
    """Note what was found in the file, and what no run saw in training; refuse the image for the latter if told to."""
    case.headers = image.headers
    case.notes = image.volume.get("notes") or ""
    case.reason, case.detail = next(iter(image.notes), ""), "; ".join(image.notes.values())
    unseen: dict[str, str] = {}
    for card in cards:
        if card.domain is not None:
            unseen |= find_unseen(image, card.domain)
    if unseen:
        case.reason, case.detail = next(iter(unseen)), "; ".join([*unseen.values(), *image.notes.values()])
        if refuse:
            case.state = REFUSED


def answer_arrays(runs: Runs, images: NDArray[Any], *, batch_size: int) -> Answers:
    """Return the answers for stored arrays, named by their places from "0" on.

    An array has no header: whether its kind was in training is not known, which each row says (no_header); how far its
    features are from training is.

    The images are (N, C, *spatial), as stored: after preprocessing, before the crop that the runs take.
    """
    cases = [Case(str(place)) for place in range(len(images))]
    for start in range(0, len(images), batch_size):
        pending = list(zip(cases[start : start + batch_size], images[start : start + batch_size], strict=True))
        for case, pixels in pending:
            case.pixel_sha256 = hashlib.sha256(pixels.tobytes()).hexdigest()
        score(pending, runs, ClinicalTable())
    for case in cases:
        if not case.reason:
            case.reason = "no_header"
            case.detail = "an array: its modality, photometric kind and spacing are not compared with those of training"
    return complete_answers(cases, runs, Identity())


def complete_answers(cases: list[Case], runs: Runs, identity: Identity) -> Answers:
    """Return the answers with the rows of series and patients, and what the frozen choices say of all of them."""
    task = runs.cards[0].task
    origin = {
        "model_sha256": "+".join(runs.models_sha256),
        "preprocess_sha256": sha256_json(to_json(runs.cards[0].preprocess)),
    }
    everyone = complete_cases(cases, task=task, choices=runs.choices)
    for notice in (*describe_repeats(everyone), *describe_notes((case.notes for case in cases), settings=False)):
        say(f"notice: {notice}")
    return Answers(cases, everyone, build_rows(everyone, task=task, identity=identity, origin=origin), identity)


def _is_temporary(path: str) -> bool:
    *_, folder, name = ("", *path.split("/"))
    return folder.startswith(PRIVATE) and (name.endswith(LOCK) or name.startswith(TEMPORARY))


def find_files(source: Path) -> tuple[Path, list[tuple[str, str]]]:
    """Return the folder and its files with their skip reasons; of a single file its folder and that file."""
    check_images(source)
    if source.is_file():
        return source.parent, [(source.name, "")]
    files = list(list_files(source))
    if not files:
        raise DataError(f"source={source} has no files: expected a folder of images, or one image")
    return source, files


def find_volume_cases(root: Path, files: Sequence[tuple[str, str]], spec: VolumeSpec, *, workers: int) -> list[Case]:
    """Return a case for each volume of the source, by the rules that filled the store, and for each file of none.

    A volume is named by its series, as in the store, and its path is its first file; its other files have no row.
    """
    index = build_index(root, files, workers=workers)
    cases: list[Case] = []
    seen: set[str] = set()
    for found in find_series(index, series=spec.series, stack=spec.stack):
        for key, paths in found.volumes:
            cases.append(Case(min(paths), files=paths, key=key))
            seen.update(paths)
        for path, state, reason, detail in found.left:
            cases.append(Case(path, REFUSED if state == QUARANTINED else SKIPPED, reason, detail))
            seen.add(path)
    cases += [Case(path, SKIPPED, skip or "no_volume") for path, skip in files if path not in seen]
    return sorted(cases, key=lambda case: case.path)
