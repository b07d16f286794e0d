"""Choose thresholds and calibration on one split, and measure everything on another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from medcls.identity import count_patients, format_count
from medcls.statistics.aggregation import NOISY_OR, aggregate, choose_aggregation
from medcls.statistics.conformal import calibrate_conformal, evaluate_conformal
from medcls.statistics.decision import Decision, build_decision
from medcls.statistics.intervals import measure_predictions, number_patients
from medcls.statistics.predictions import Integers, Predictions
from medcls.statistics.recalibration import (
    apply_recalibration,
    choose_recalibration,
    fit_recalibration,
    list_methods,
)
from medcls.statistics.subgroups import compute_subgroups
from medcls.statistics.thresholds import Rule, apply_operating_points, choose_operating_points

FEW_PATIENTS = 10
"""Below so many patients of a class a choice is reported as uncertain."""
IMAGE, STUDY, PATIENT = "image", "study", "patient"
CALIBRATION_METRICS = ("brier", "log_loss", "ece", "calibration_slope", "calibration_intercept", "auc")


@dataclass(frozen=True, slots=True)
class Rows:
    """Predictions of images, and whose they are.

    Attributes:
        predictions: Of N images.
        patient_ids: (N,).
        study_ids: (N,), None where not recorded; () where nothing is known of studies.
    """

    predictions: Predictions
    patient_ids: Sequence[str]
    study_ids: Sequence[str | None] = ()

    @property
    def patients(self) -> Integers:
        """Patient number of each row, 0 … P-1; (N,)."""
        return number_patients(self.patient_ids, rows=len(self.predictions.y_score))

    def list_units(self) -> dict[str, Integers]:
        """Unit number of each row at every level above the image that differs from those below it."""
        patients, levels = self.patients, {}
        if len(self.study_ids) == len(patients) and all(self.study_ids):
            joined = [f"{patient} {study}" for patient, study in zip(self.patient_ids, self.study_ids, strict=True)]
            studies = number_patients(joined, rows=len(patients))
            if studies.max() + 1 < len(patients) and studies.max() > patients.max():
                levels[STUDY] = studies
        if patients.max() + 1 < len(patients):
            levels[PATIENT] = patients
        return levels


def choose_operating(rows: Rows, *, rules: Sequence[Rule], seed: int = 0) -> dict[str, Any]:
    """What operating_points.json keeps: thresholds at every level, and how images become studies and patients."""
    points = choose_operating_points(rows.predictions, rules, patients=rows.patients, seed=seed)
    levels: dict[str, Any] = {IMAGE: {"points": points}}
    for level, units in rows.list_units().items():
        try:
            chosen = choose_aggregation(rows.predictions, units)
        except ValueError as error:
            levels[level] = {"reason": str(error), "points": []}
            continue
        merged = aggregate(rows.predictions, units, rule=chosen["rule"])
        patients = np.unique(rows.patients[merged.first], return_inverse=True)[1]
        points = choose_operating_points(merged.predictions, rules, patients=patients, seed=seed)
        levels[level] = {"aggregation": chosen, "points": points}
    return {"levels": levels}


def choose_calibration(rows: Rows, *, alpha: float, seed: int) -> dict[str, Any]:
    """Return what calibration.json keeps: the fitted maps, which is best on held-out patients, and the sets' bounds."""
    if rows.predictions.kind == "regression":
        return {"reason": "a regression has no probabilities"}
    if not rows.predictions.probabilities:
        return {"reason": "the scores are not probabilities in [0, 1]"}
    one = rows.predictions
    found = choose_recalibration(one, rows.patients, seed=seed)
    methods = list_methods(one, rows.patients)
    maps = [fit_recalibration(method, one) for method in methods]
    return {
        "chosen": {name: value for name, value in found.items() if name != "map"},
        "map": found["map"],
        "maps": [*maps, *([] if found["method"] in methods else [found["map"]])],
        "conformal": calibrate_conformal(rows.predictions, rows.patients, alpha=alpha),
    }


def measure_rows(rows: Rows, operating: Mapping[str, Any], *, replicates: int, seed: int) -> dict[str, Any]:
    """Return the plain metrics with intervals, the sizes, the decision, and the rows that chose it.

    Args:
        rows: Of the split that is opened, with the thresholds of the decision.
        operating: operating_points.json; {} = nothing was frozen.
        replicates: Bootstrap samples.
        seed: Seed of the bootstrap.
    """
    chosen_on = operating.get("chosen_on")
    metrics: dict[str, Any] = measure_predictions(rows.predictions, rows.patient_ids, replicates=replicates, seed=seed)
    return metrics | {
        "n_images": len(rows.patient_ids),
        "n_patients": len(set(rows.patient_ids)),
        **({"positive_class": rows.predictions.positive_class} if rows.predictions.positive_class else {}),
        "chosen_on": chosen_on and {"where": describe_rows(chosen_on), **chosen_on},
        "decision": read_decision(operating, rows.predictions).to_json(),
    }


def assess(
    rows: Rows,
    *,
    operating: Mapping[str, Any],
    calibration: Mapping[str, Any],
    columns: Mapping[str, Sequence[Any]],
    prevalences: Sequence[float] = (),
    least_patients: int = 20,
    replicates: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """Everything that is measured beside the plain metrics: what metrics.json has under names of its own.

    Args:
        rows: Of the split that is opened, with the thresholds of the decision.
        operating: Of `choose_operating`, on the split that choices are made on; {} where there is none.
        calibration: Of `choose_calibration`, likewise.
        columns: For subgroups: name to the value of each row.
        prevalences: As in `apply_operating_points`.
        least_patients: As in `compute_subgroups`.
        replicates: Bootstrap samples.
        seed: Of the bootstrap.
    """
    sampling: dict[str, Any] = {"replicates": replicates, "seed": seed}
    levels = operating.get("levels", {})
    points = levels.get(IMAGE, {}).get("points", [])
    answer: dict[str, Any] = {
        "operating_points": apply_operating_points(
            rows.predictions, points, rows.patients, prevalences=prevalences, **sampling
        ),
        "levels": _assess_levels(rows, operating, prevalences=prevalences, **sampling),
        "subgroups": compute_subgroups(
            rows.predictions,
            rows.patient_ids,
            columns,
            least_patients=least_patients,
            **sampling,
        ),
    }
    if "maps" in calibration:
        answer["recalibration"] = _assess_recalibration(rows, calibration, **sampling)
        frozen = calibration["conformal"]
        answer["conformal"] = {
            "alpha": frozen["alpha"],
            "assumption": frozen["assumption"],
            "problems": evaluate_conformal(rows.predictions, frozen, rows.patient_ids, **sampling),
        }
    return answer


def read_decision(operating: Mapping[str, Any], predictions: Predictions, *, level: str = IMAGE) -> Decision:
    """Return the frozen decision of a level; of a level without frozen points that of images.

    Args:
        operating: operating_points.json; {} = nothing was frozen.
        predictions: Whose kind and class names count.
        level: "image", "study" or "patient".
    """
    levels, chosen = operating.get("levels", {}), operating.get("chosen_on")
    points = levels.get(level, {}).get("points") or levels.get(IMAGE, {}).get("points", [])
    rule = operating.get("settings", {}).get("decision")
    return build_decision(predictions, rule, points=points, chosen_on=describe_rows(chosen) if chosen else "")


def describe_few(operating: Mapping[str, Any]) -> list[str]:
    """Return a warning if few patients of a class made the choices; [] for enough, and for files of version 0.2.0.

    Args:
        operating: operating_points.json; {} = nothing was chosen.
    """
    chosen_on = operating.get("chosen_on", {})
    counts = chosen_on.get("patients_by_class", {})
    few = {name: count for name, count in counts.items() if count < FEW_PATIENTS}
    if not few:
        return []
    labels = any(f"no {name}" in counts for name in counts)  # of several labels: with and without each
    said = ", ".join(
        f"{format_count(count, 'patient')} {'with' if labels else 'of class'} {name}" for name, count in few.items()
    )
    # Who made the scores of a file chose their epoch, on rows that are not known here.
    of_run = chosen_on.get("frozen", True) is True
    where = f"split {chosen_on['split']}" if of_run else chosen_on["split"]
    chance = ["epoch"] * of_run + ["thresholds"]
    for level, name in ((STUDY, "studies"), (PATIENT, "patients")):
        rule = operating.get("levels", {}).get(level, {}).get("aggregation", {}).get("rule")
        chance += (
            [f"the rule by which images become {name} ({NOISY_OR if rule == 'noisy_or' else rule})"] if rule else []
        )
    listed = " and ".join(filter(None, [", ".join(chance[:-1]), chance[-1]]))
    return [f"few patients made the choices: {where} has {said} (fewer than {FEW_PATIENTS}): {listed} may be chance"]


def describe_rows(chosen_on: Mapping[str, Any]) -> str:
    """Return "val (40 images of 20 patients)"."""
    return f"{chosen_on['split']} ({count_patients(chosen_on['n_images'], chosen_on['n_patients'], '')})"


def _assess_levels(
    rows: Rows, operating: Mapping[str, Any], *, prevalences: Sequence[float], replicates: int, seed: int
) -> dict[str, Any]:
    """Metrics of studies and patients, by the frozen rule; mean where the level did not occur when it was chosen."""
    frozen = operating.get("levels", {})
    answer: dict[str, Any] = {}
    ids = np.asarray(rows.patient_ids, dtype=str)
    for level, units in rows.list_units().items():
        chosen = frozen.get(level, {})
        rule = chosen.get("aggregation", {}).get("rule", "mean")
        try:
            merged = aggregate(rows.predictions, units, rule=rule)
        except ValueError as error:
            answer[level] = {"reason": str(error)}
            continue
        patient_ids = ids[merged.first].tolist()
        decision = read_decision(operating, merged.predictions, level=level)
        one = decision.apply(merged.predictions)
        metrics = measure_predictions(one, patient_ids, replicates=replicates, seed=seed)
        answer[level] = {
            "rule": rule,
            "chosen": "aggregation" in chosen,
            "n_units": len(patient_ids),
            "left_out": merged.left_out,
            "decision": decision.to_json(),
            "metrics": metrics,
            "operating_points": apply_operating_points(
                one,
                chosen.get("points", []),
                number_patients(patient_ids, rows=len(patient_ids)),
                prevalences=prevalences,
                replicates=replicates,
                seed=seed,
            ),
        }
    return answer


def _assess_recalibration(rows: Rows, calibration: Mapping[str, Any], *, replicates: int, seed: int) -> dict[str, Any]:
    """Calibration metrics of the scores as they are and after each frozen map."""
    methods = {}
    for fitted in calibration["maps"]:
        mapped = apply_recalibration(fitted, rows.predictions)
        metrics = measure_predictions(mapped, rows.patient_ids, replicates=replicates, seed=seed)
        wanted = [name for name in metrics if name.startswith(CALIBRATION_METRICS)]
        methods[fitted["method"]] = {name: metrics[name] for name in wanted}
    return {"chosen": calibration["chosen"], "methods": methods}
