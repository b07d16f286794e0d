"""Open runs for prediction and score pixels with them; the scores of several runs are averaged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from medcls.console import say
from medcls.data.dataset import Batch
from medcls.data.targets import describe_positive
from medcls.errors import ConfigError, DataError, MissingInputError
from medcls.evaluate.choices import Choices
from medcls.evaluate.ensemble import join_checksums
from medcls.evaluate.frozen_choices import name_files, read_choices
from medcls.files import MODEL, sha256_file
from medcls.inputs import check_run_folder
from medcls.models.classifier import Classifier
from medcls.models.heads import average_logits, compute_scores
from medcls.predict.clinical_values import ClinicalTable, encode_cases
from medcls.predict.prediction_table import OK, REFUSED, Case
from medcls.runs.checksums import note_version
from medcls.runs.model_file import ModelCard, read_card, read_model
from medcls.train.training_distance import read_training_distance
from medcls.training.feature_distance import FAR, FeatureDistance, tap_features
from medcls.training.forward import choose_options, predict_logits
from medcls.training.state import StepRules

MOST_FALSE_ALARMS = 0.02
"""Images that are far from training are refused if at most this share of validation's own kind is expected to be."""

Pending = tuple[Case, NDArray[Any]]
"""A file and its pixels."""


@dataclass(frozen=True, slots=True)
class Network:
    """One run's network, in evaluation mode and on its device.

    Attributes:
        model: Network that returns logits.
        card: Card of the model.
        rules: Device and precision.
        distance: Distance from the run's training images; None if none was recorded.
    """

    model: Classifier
    card: ModelCard
    rules: StepRules
    distance: FeatureDistance | None

    def predict(
        self, images: Sequence[NDArray[Any]], clinical: NDArray[np.float32]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return logits (N, L) of the crop that it was trained on, and distances (N,), NaN if not known."""
        if self.card.crop is not None:
            images = [self.card.crop.take_center(pixels) for pixels in images]
        places, targets = torch.arange(len(images)), torch.empty(len(images), 0)
        batch = Batch(torch.from_numpy(np.stack(images)), targets, places, torch.from_numpy(clinical))
        with tap_features(self.model.backbone) as features:
            logits = predict_logits(self.model, [batch], self.rules)
        if self.distance is None:
            return logits, np.full(len(images), np.nan)
        return logits, self.distance.measure(torch.cat(features).numpy())


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
        loaded: The networks; [] until the first image needs them.
    """

    folders: list[Path]
    cards: list[ModelCard]
    models_sha256: list[str]
    choices: Choices | None
    out_of_domain: str
    device: str
    precision: str
    loaded: list[Network] = field(default_factory=list)

    def load(self) -> list[Network]:
        """Return the networks on the chosen device, read once."""
        if not self.loaded:
            # Files come one by one, not from a loader: of the options only the rules apply.
            rules = choose_options(device=self.device, precision=self.precision, batch_size=1).rules
            for run, card in zip(self.folders, self.cards, strict=True):
                model = read_model(run / MODEL)[0].to(rules.device)
                self.loaded.append(Network(model, card, rules, read_training_distance(run, card)))
        return self.loaded


def open_runs(folders: list[Path], *, choices: str | None, out_of_domain: str, device: str, precision: str) -> Runs:
    """Return the cards of the runs and what was frozen for them; say what the positive class is."""
    cards = read_cards(folders, out_of_domain=out_of_domain)
    named = describe_positive(cards[0].task, recorded=bool(cards[0].positive_class))
    if named:
        say(named)
    models_sha256 = [sha256_file(run / MODEL) for run in folders]
    frozen = find_choices(folders, models_sha256, folder=Path(choices) if choices else None)
    return Runs(folders, cards, models_sha256, frozen, out_of_domain, device, precision)


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

    The folder is that of choices=, the out= of their evaluation; without it they are in the run itself, and of several
    runs nowhere.

    Raises:
        MissingInputError: folder holds no choices for the middle of each image.
        ConfigError: Its choices are those of other models, or of other runs together.
    """
    evaluated = str(runs[0])
    place: Path | None = folder or runs[0]
    model, next_step = "this model", "chooses them"
    if len(runs) > 1:
        # What several have chosen together is in no run.
        evaluated, place = f"[{','.join(map(str, runs))}]", folder
        model, next_step = f"the mean of {len(runs)} runs", "out=DIR chooses them; then set choices=DIR"
    command = f"python -m medcls.evaluate run={evaluated} split=val"
    if folder is not None:
        missing = [file.name for file in name_files(folder, "") if not file.is_file()]
        if missing:
            raise MissingInputError(f"choices={folder}: it contains no {missing[0]}: set the out= of {command}")
    choices = None
    if place is not None:
        choices = read_choices(place, model_sha256=join_checksums(models_sha256))
    if choices is None and folder is not None:
        raise ConfigError(f"choices={folder}: frozen for other models than run={evaluated}: set the out= of {command}")
    if choices is None:
        say(
            f"notice: no operating points for {model}: images are called at 0.5, or by the highest probability "
            f"(column rule): {command} {next_step}"
        )
        return None
    for note in choices.notes:
        say(f"notice: {note}")
    return choices


def score(pending: Sequence[Pending], runs: Runs, table: ClinicalTable) -> None:
    """Fill in logits and scores of one batch; the scores of several runs are averaged.

    Files without a clinical value that a run needs are refused.
    """
    encoded = [encode_cases([case for case, _ in pending], card, table) for card in runs.cards]
    faults = {place: why for _, found in encoded for place, why in found.items()}
    for place, why in faults.items():
        refused = pending[place][0]
        refused.state, refused.reason, refused.detail = REFUSED, "clinical_value", why
    kept = [place for place in range(len(pending)) if place not in faults]
    if not kept:
        return
    networks, images = runs.load(), [pending[place][1] for place in kept]
    answers = [network.predict(images, values[kept]) for network, (values, _) in zip(networks, encoded, strict=True)]
    logits, far = np.stack([answer[0] for answer in answers]), np.stack([answer[1] for answer in answers])
    false_alarms = max((each.distance.false_alarms for each in networks if each.distance is not None), default=0.0)
    kind = runs.cards[0].task.output
    # As evaluate averages: an image whose score set a threshold reaches it here, too.
    scores = compute_scores(kind, average_logits(kind, torch.from_numpy(logits))).numpy()
    for i, place in enumerate(kept):
        case = pending[place][0]
        if not np.isfinite(logits[:, i]).all():
            detail = "the network's outputs are not finite: try precision=fp32"
            case.state, case.reason, case.detail = REFUSED, "not_finite", detail
            continue
        if not np.isnan(far[:, i]).all():
            # Of several runs the one to which the image is strangest.
            value = float(np.nanmax(far[:, i]))
            judge_distance(case, value, false_alarms=false_alarms, out_of_domain=runs.out_of_domain)
            if case.state == REFUSED:
                continue
        case.scores = scores[i].tolist()
        if len(logits) == 1:
            case.logits = logits[0, i].tolist()


def judge_distance(case: Case, distance: float, *, false_alarms: float, out_of_domain: str) -> None:
    """Fill in how far the image is from those of training, and refuse or note it if it is far.

    Args:
        case: Case of the image.
        distance: Distance in units of the threshold that was frozen on validation.
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
