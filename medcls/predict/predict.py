"""Predict raw images with one or several runs: scores by class, or a reason, for every file.

Series and patients get their own rows, and every row what the run's operating points say of it. The pixels come from
imaging.decode, which filled the store that the runs were trained on.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from medcls.config import DeidentifyConfig, PredictJob
from medcls.console import put, say, show_progress
from medcls.data.dataset import Batch
from medcls.data.targets import describe_positive
from medcls.errors import ConfigError, DataError, ImageRefusedError, MissingInputError
from medcls.evaluate.ensemble import join_checksums
from medcls.evaluate.frozen_choices import Choices, name_files, read_choices
from medcls.evaluate.own_predictions import COLUMNS_SUFFIX
from medcls.files import LOCK, MODEL, PRIVATE, TEMPORARY, sha256_file, sha256_json
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
from medcls.inputs import check_images, check_run_folder
from medcls.locks import lock_file
from medcls.models.classifier import Classifier
from medcls.models.heads import average_logits, compute_scores
from medcls.predict.clinical_values import ClinicalTable, encode_cases, read_clinical
from medcls.predict.prediction_levels import complete_cases, describe_answers, describe_repeats
from medcls.predict.prediction_table import (
    MAP_SUFFIX,
    OK,
    REFUSED,
    SKIPPED,
    Case,
    build_rows,
    summarize,
    write_columns,
    write_identity_map,
    write_rows,
)
from medcls.predict.region_file import check_regions, read_regions, split_cases
from medcls.records import to_json
from medcls.runs.checksums import note_version
from medcls.runs.model_file import ModelCard, read_card, read_model
from medcls.train.training_distance import read_training_distance
from medcls.training.feature_distance import FAR, FeatureDistance, tap_features
from medcls.training.forward import choose_options, predict_logits
from medcls.training.state import StepRules

INTENDED_USE = "research use; not a medical device"
MOST_FALSE_ALARMS = 0.02
"""Images that are far from training are refused if at most this share of validation's own kind is expected to be."""

Pending = tuple[Case, NDArray[Any]]
"""A file and its pixels."""


@dataclass(slots=True)
class Ensemble:
    """One or several runs of the same task and preprocessing.

    Attributes:
        models: In evaluation mode, on their device.
        cards: Of each.
        rules: Device and precision.
        table: Of clinical values.
        distances: From the training images of each; None where none was recorded.
    """

    models: list[Classifier]
    cards: list[ModelCard]
    rules: StepRules
    table: ClinicalTable
    distances: list[FeatureDistance | None]


@dataclass(slots=True)
class Runs:
    """One or several runs that predict together, with what was frozen for them.

    Attributes:
        folders: The runs' folders.
        cards: Cards of the models.
        models_sha256: Checksums of the model files; read before the networks are, so that they are theirs.
        choices: Operating points and recalibration; None if nothing was frozen.
        out_of_domain: What happens to images unlike those of training: "refuse", "note" or "allow".
        device: "auto", "cpu" or "cuda".
        precision: "auto", "fp32", "bf16" or "fp16".
        ensemble: The networks, read when the first image needs them.
    """

    folders: list[Path]
    cards: list[ModelCard]
    models_sha256: list[str]
    choices: Choices | None
    out_of_domain: str = "refuse"
    device: str = "auto"
    precision: str = "auto"
    ensemble: Ensemble | None = None


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
    clinical_file: Path | None
    boxes: Path | None
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
    rows: list[dict[str, Any]]
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
        _predict_files(job, out)


def _predict_files(job: PredictJob, out: Path) -> None:
    form, runs = job.form, open_runs(job)
    task, found = runs.cards[0].task, answer_files(runs, read_files(job))
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
    put(line)
    for answer in describe_answers(found.everyone, task):
        put(answer)


def open_runs(job: PredictJob) -> Runs:
    """Return the cards of the runs and what was frozen for them; say what the positive class is."""
    cards = read_cards(job.runs, out_of_domain=job.out_of_domain)
    named = describe_positive(cards[0].task, recorded=bool(cards[0].positive_class))
    if named:
        say(named)
    models_sha256 = [sha256_file(run / MODEL) for run in job.runs]
    choices = find_choices(job.runs, models_sha256, folder=Path(job.choices) if job.choices else None)
    return Runs(
        job.runs,
        cards,
        models_sha256,
        choices,
        out_of_domain=job.out_of_domain,
        device=job.device,
        precision=job.precision,
    )


def read_files(job: PredictJob) -> FileRequest:
    """Return which files a job asks for."""
    return FileRequest(
        Path(job.source or ""),
        Path(job.clinical_file) if job.clinical_file else None,
        Path(job.boxes) if job.boxes else None,
        job.deidentify,
        job.batch_size,
        job.workers,
    )


def answer_files(runs: Runs, request: FileRequest) -> Answers:
    """Return the answers for every image or volume of the source, and for every series and patient.

    Raises:
        MissingInputError, ConfigError, DataError: as `predict`, but for files of which none could be classified.
    """
    cards = runs.cards
    boxes, allow = request.boxes, runs.out_of_domain != "refuse"
    check_regions(boxes, cards, runs=runs.folders, allow=allow)
    regions = read_regions(boxes) if boxes else {}
    table = read_clinical(request.clinical_file, cards)
    root, files = find_files(request.source)
    # out= may be inside the source: its lock, and what another command is writing there, are no files of it.
    files = [(path, skip) for path, skip in files if not _is_temporary(path)]
    identity = find_identity(request.deidentify, root, files)
    spec, workers = cards[0].preprocess, request.workers if request.workers >= 0 else os.cpu_count() or 1
    if isinstance(spec, VolumeSpec):
        cases = find_volume_cases(root, files, spec, workers=workers)
    else:
        cases = [judge_file(root, path, skip) for path, skip in files]
    if boxes:
        trained = cards[0].domain.regions if cards[0].domain else ""
        cases = split_cases(cases, regions, path=boxes, trained=trained, allow=allow)
    images = [case for case in cases if case.state == OK]
    if images:
        predict_cases(images, runs, root=root, table=table, batch_size=request.batch_size, workers=workers)
    return complete_answers(cases, runs, identity)


def answer_arrays(runs: Runs, images: NDArray[Any], *, batch_size: int) -> Answers:
    """Return the answers for stored arrays, named by their places from "0" on.

    An array has no header: whether its kind was in training is not known, which each row says (no_header); how far its
    features are from training is.

    Args:
        runs: The runs.
        images: (N, C, *spatial), as stored: after preprocessing, before the crop that the runs take.
        batch_size: Images at once.
    """
    cases = [Case(str(place)) for place in range(len(images))]
    ensemble = load_models(runs, ClinicalTable())
    for start in range(0, len(images), batch_size):
        pending = list(zip(cases[start : start + batch_size], images[start : start + batch_size], strict=True))
        for case, pixels in pending:
            case.pixel_sha256 = hashlib.sha256(pixels.tobytes()).hexdigest()
        score(pending, ensemble, out_of_domain=runs.out_of_domain)
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


def find_identity(config: DeidentifyConfig, root: Path, files: list[tuple[str, str]]) -> Identity:
    """Return how ids are shown; say if the key of pseudonyms cannot be checked."""
    identity = read_identity(choose_identity(config.kind, root, files), key_file=config.key_file)
    notice = describe_key(identity, key_file=config.key_file)
    if notice:
        say(notice)
    return identity


def read_cards(runs: Sequence[Path], *, out_of_domain: str) -> list[ModelCard]:
    """Return the cards of the runs, all of the same task and preprocessing and with a known domain."""
    for run in runs:
        check_run_folder(run)
    cards = [read_card(run / MODEL) for run in runs]
    for run, card in zip(runs, cards, strict=True):
        note_version(run / MODEL)
        different = [name for name in ("task", "preprocess") if getattr(card, name) != getattr(cards[0], name)]
        if different:
            raise ConfigError(
                f"run={run} has another {' and '.join(different)} than run={runs[0]}: only runs of the same "
                "classes and preprocessing are averaged"
            )
        if card.domain is None and out_of_domain == "refuse":
            raise DataError(
                f"run={run} does not record which images it was trained on (an older version wrote it): train it "
                "again, or set out_of_domain=allow"
            )
    return cards


def find_choices(runs: Sequence[Path], models_sha256: Sequence[str], *, folder: Path | None = None) -> Choices | None:
    """Return what evaluate froze for the model, or for several together; None if nothing was frozen, which is said.

    Args:
        runs: The runs.
        models_sha256: Checksum of the model of each.
        folder: Of choices=, the out= of their evaluation; None = the run itself, and of several nowhere.

    Raises:
        MissingInputError: folder holds no choices for the middle of each image.
        ConfigError: Its choices are those of other models, or of other runs together.
    """
    evaluated = f"[{','.join(map(str, runs))}]" if len(runs) > 1 else str(runs[0])
    place = folder or (runs[0] if len(runs) == 1 else None)
    remedy = f"set the out= of python -m medcls.evaluate run={evaluated} split=val"
    missing = next((file.name for file in name_files(folder, "") if not file.is_file()), "") if folder else ""
    if missing:
        raise MissingInputError(f"choices={folder}: it contains no {missing}: {remedy}")
    choices = read_choices(place, model_sha256=join_checksums(models_sha256)) if place else None
    if choices is None and folder:
        raise ConfigError(f"choices={folder}: frozen for other models than run={evaluated}: {remedy}")
    if choices is None:
        model = "this model" if len(runs) == 1 else f"the mean of {len(runs)} runs"
        freeze = f"python -m medcls.evaluate run={evaluated} split=val"
        freeze += " chooses them" if len(runs) == 1 else " out=DIR chooses them; then set choices=DIR"
        say(
            f"notice: no operating points for {model}: images are called at 0.5, or by the highest probability "
            f"(column rule): {freeze}"
        )
        return None
    for note in choices.notes:
        say(f"notice: {note}")
    return choices


def find_files(source: Path) -> tuple[Path, list[tuple[str, str]]]:
    """Return the folder and its files with their skip reasons; of a single file its folder and that file."""
    check_images(source)
    if source.is_file():
        return source.parent, [(source.name, "")]
    files = list(list_files(source))
    if not files:
        raise DataError(f"source={source} has no files: expected a folder of images, or one image")
    return source, files


def judge_file(root: Path, path: str, skip: str) -> Case:
    """Return the case of a file before it is decoded: to be read, or skipped."""
    reason = skip or ("" if is_image(root / path) else "no_image")
    return Case(path, SKIPPED if reason else OK, reason)


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


def predict_cases(
    cases: Sequence[Case], runs: Runs, *, root: Path, table: ClinicalTable, batch_size: int, workers: int
) -> None:
    """Decode the files in limited workers and fill in scores, or refusals, batch by batch."""
    ensemble, cards = load_models(runs, table), runs.cards
    spec = cards[0].preprocess
    limits = VOLUME_LIMITS if spec.spatial_dims == 3 else Limits()
    tasks = (
        DecodeTask(tuple(root / file for file in case.files or (case.path,)), case.region, spec, limits.memory_bytes)
        for case in cases
    )
    outcomes = run_limited(decode_image, tasks, workers=workers, limits=limits)
    pending: list[Pending] = []
    bar = show_progress(
        zip(cases, outcomes, strict=True), total=len(cases), desc="predict", unit="image", mininterval=0.5
    )
    for case, outcome in bar:
        if isinstance(outcome, ImageRefusedError):
            case.state = SKIPPED if outcome.reason in NO_IMAGE else REFUSED
            case.reason, case.detail = outcome.reason, outcome.detail
            continue
        judge_image(case, outcome, cards=cards, refuse=runs.out_of_domain == "refuse")
        if case.state == OK:
            case.pixel_sha256 = hashlib.sha256(outcome.prepared.pixels.tobytes()).hexdigest()
            pending.append((case, outcome.prepared.pixels))
        if len(pending) == batch_size:
            score(pending, ensemble, out_of_domain=runs.out_of_domain)
            pending = []
    if pending:
        score(pending, ensemble, out_of_domain=runs.out_of_domain)


def load_models(runs: Runs, table: ClinicalTable) -> Ensemble:
    """Return the networks of the runs on the chosen device, read once."""
    if runs.ensemble is not None:
        runs.ensemble.table = table
        return runs.ensemble
    cards = runs.cards
    # Files come one by one, not from a loader: of the options only the rules apply.
    rules = choose_options(device=runs.device, precision=runs.precision, batch_size=1).rules
    models = [read_model(run / MODEL)[0].to(rules.device) for run in runs.folders]
    distances = [read_training_distance(run, card) for run, card in zip(runs.folders, cards, strict=True)]
    runs.ensemble = Ensemble(models, cards, rules, table, distances)
    return runs.ensemble


def judge_image(case: Case, image: DecodedImage, *, cards: Sequence[ModelCard], refuse: bool) -> None:
    """Note what was found in the file, and what no run saw in training; refuse the image for the latter if told to."""
    case.headers = image.headers
    case.notes = image.volume.get("notes") or ""
    case.reason, case.detail = next(iter(image.notes), ""), "; ".join(image.notes.values())
    unseen: dict[str, str] = {}
    for card in cards:
        unseen |= find_unseen(image, card.domain) if card.domain else {}
    if unseen:
        case.reason, case.detail = next(iter(unseen)), "; ".join([*unseen.values(), *image.notes.values()])
        case.state = REFUSED if refuse else OK


def judge_distance(case: Case, distance: float, *, false_alarms: float, out_of_domain: str) -> None:
    """Fill in how far the image is from those of training, and refuse or note it if it is far.

    Args:
        case: Of the image.
        distance: In units of the threshold that was frozen on validation.
        false_alarms: Expected share of images like those of validation that are far.
        out_of_domain: "refuse", "note" or "allow".
    """
    case.distance = distance
    if distance <= FAR or out_of_domain == "allow":
        return
    # With few validation images the threshold is the farthest of them: too many sound images would be refused by it.
    refuse = out_of_domain == "refuse" and false_alarms <= MOST_FALSE_ALARMS
    case.state = REFUSED if refuse else OK
    case.reason = case.reason or "far_from_training"
    found = f"its features are {distance:.2f} times as far from the training images as nearly all validation images"
    case.detail = "; ".join(filter(None, [case.detail, found]))


def _predict(
    pending: Sequence[Pending],
    model: Classifier,
    card: ModelCard,
    *,
    clinical: NDArray[np.float32],
    rules: StepRules,
    distance: FeatureDistance | None,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return logits (N, L) of one run, of the crop that it was trained on, and distances (N,), NaN if not known."""
    images = [pixels if card.crop is None else card.crop.take_center(pixels) for _, pixels in pending]
    places, targets = torch.arange(len(pending)), torch.empty(len(pending), 0)
    batch = Batch(torch.from_numpy(np.stack(images)), targets, places, torch.from_numpy(clinical))
    with tap_features(model.backbone) as features:
        logits = predict_logits(model, [batch], rules)
    if distance is None:
        return logits, np.full(len(pending), np.nan)
    return logits, distance.measure(torch.cat(features).numpy())


def score(pending: Sequence[Pending], ensemble: Ensemble, *, out_of_domain: str) -> None:
    """Fill in logits and scores of one batch; the scores of several runs are averaged.

    Files without a clinical value that a run needs are refused.
    """
    encoded = [encode_cases([case for case, _ in pending], card, ensemble.table) for card in ensemble.cards]
    faults = {place: why for _, found in encoded for place, why in found.items()}
    for place, why in faults.items():
        refused = pending[place][0]
        refused.state, refused.reason, refused.detail = REFUSED, "clinical_value", why
    kept = [place for place in range(len(pending)) if place not in faults]
    if kept:
        clinical = [values[kept] for values, _ in encoded]
        _fill_scores([pending[place] for place in kept], ensemble, clinical, out_of_domain=out_of_domain)


def _fill_scores(
    pending: Sequence[Pending], ensemble: Ensemble, clinical: Sequence[NDArray[np.float32]], *, out_of_domain: str
) -> None:
    members = zip(ensemble.models, ensemble.cards, clinical, ensemble.distances, strict=True)
    answers = [
        _predict(pending, model, card, clinical=values, rules=ensemble.rules, distance=distance)
        for model, card, values, distance in members
    ]
    logits, far = np.stack([answer[0] for answer in answers]), np.stack([answer[1] for answer in answers])
    false_alarms = max((d.false_alarms for d in ensemble.distances if d is not None), default=0.0)
    kind = ensemble.cards[0].task.output
    # As evaluate averages: an image whose score set a threshold reaches it here, too.
    scores = compute_scores(kind, average_logits(kind, torch.from_numpy(logits))).numpy()
    for i, (case, _) in enumerate(pending):
        if not np.isfinite(logits[:, i]).all():
            detail = "the network's outputs are not finite: try precision=fp32"
            case.state, case.reason, case.detail = REFUSED, "not_finite", detail
            continue
        if not np.isnan(far[:, i]).all():
            # Of several runs the one to which the image is strangest.
            value = float(np.nanmax(far[:, i]))
            judge_distance(case, value, false_alarms=false_alarms, out_of_domain=out_of_domain)
            if case.state == REFUSED:
                continue
        case.scores = scores[i].tolist()
        case.logits = logits[0, i].tolist() if len(logits) == 1 else None
