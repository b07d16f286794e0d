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


@dataclass(frozen=True, slots=True)
class Extras:
    """What is measured beside the metrics of the task.

    Attributes:
        columns: For subgroups: name to the value of each row.
        prevalences: Shares of cases for which PPV and NPV are given beside those of the rows.
        least_patients: Fewest patients of a subgroup that is measured.
    """

    columns: Mapping[str, Sequence[Any]]
    prevalences: Sequence[float] = ()
    least_patients: int = 20


def choose_operating(rows: Rows, *, rules: Sequence[Rule], seed: int = 0) -> dict[str, object]:
    """Return what operating_points.json keeps: thresholds at all levels, and how images become studies and patients."""
    points = choose_operating_points(rows.predictions, rules, patients=rows.patients, seed=seed)
    levels: dict[str, object] = {IMAGE: {"points": points}}
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


def choose_calibration(rows: Rows, *, alpha: float, seed: int) -> dict[str, object]:
    """Return what calibration.json keeps: the fitted maps, which is best on held-out patients, and the sets' bounds."""
    one = rows.predictions
    if one.traits.numeric:
        return {"reason": "a regression has no probabilities"}
    if not one.probabilities:
        return {"reason": "the scores are not probabilities in [0, 1]"}
    found = choose_recalibration(one, rows.patients, seed=seed)
    methods = list_methods(one, rows.patients)
    maps = [fit_recalibration(method, one) for method in methods]
    if found["method"] not in methods:
        maps.append(found["map"])
    return {
        "chosen": {name: value for name, value in found.items() if name != "map"},
        "map": found["map"],
        "maps": maps,
        "conformal": calibrate_conformal(one, rows.patients, alpha=alpha),
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
    metrics: dict[str, Any] = {
        **measure_predictions(rows.predictions, rows.patient_ids, replicates=replicates, seed=seed),
        "n_images": len(rows.patient_ids),
        "n_patients": len(set(rows.patient_ids)),
        "chosen_on": chosen_on and {"where": describe_rows(chosen_on), **chosen_on},
        "decision": read_decision(operating, rows.predictions).to_json(),
    }
    if rows.predictions.positive_class:
        metrics["positive_class"] = rows.predictions.positive_class
    return metrics


def assess(
    rows: Rows,
    *,
    operating: Mapping[str, Any],
    calibration: Mapping[str, Any],
    extras: Extras,
    replicates: int = 2000,
    seed: int = 0,
) -> dict[str, object]:
    """Return everything that is measured beside the plain metrics: what metrics.json has under names of its own.

    Args:
        rows: Of the split that is opened, with the thresholds of the decision.
        operating: Of `choose_operating`, on the split that choices are made on; {} where there is none.
        calibration: Of `choose_calibration`, likewise.
        extras: Subgroups and prevalences.
        replicates: Bootstrap samples.
        seed: Seed of the bootstrap.
    """
    one, patients = rows.predictions, rows.patients
    sampling = {"replicates": replicates, "seed": seed}
    levels: dict[str, object] = {}
    answer: dict[str, object] = {
        "operating_points": apply_operating_points(
            one, _read_points(operating, IMAGE), patients, prevalences=extras.prevalences, **sampling
        ),
        "levels": levels,
        "subgroups": compute_subgroups(
            one, rows.patient_ids, extras.columns, least_patients=extras.least_patients, **sampling
        ),
    }
    for level, units in rows.list_units().items():
        levels[level] = _assess_level(rows, level, units, operating, prevalences=extras.prevalences, **sampling)
    if "maps" in calibration:
        methods = {}
        for fitted in calibration["maps"]:
            # As they are, and after each frozen map.
            mapped = measure_predictions(apply_recalibration(fitted, one), rows.patient_ids, **sampling)
            wanted = {name: entry for name, entry in mapped.items() if name.startswith(CALIBRATION_METRICS)}
            methods[fitted["method"]] = wanted
        answer["recalibration"] = {"chosen": calibration["chosen"], "methods": methods}
        frozen = calibration["conformal"]
        answer["conformal"] = {
            "alpha": frozen["alpha"],
            "assumption": frozen["assumption"],
            "problems": evaluate_conformal(one, frozen, rows.patient_ids, **sampling),
        }
    return answer


def _assess_level(
    rows: Rows,
    level: str,
    units: Integers,
    operating: Mapping[str, Any],
    *,
    prevalences: Sequence[float],
    **sampling: int,
) -> dict[str, object]:
    """Return metrics of studies or patients by the frozen rule; mean if the level did not occur when it was chosen."""
    chosen = operating.get("levels", {}).get(level, {}).get("aggregation", {})
    rule = chosen.get("rule", "mean")
    try:
        merged = aggregate(rows.predictions, units, rule=rule)
    except ValueError as error:
        return {"reason": str(error)}
    patient_ids = np.asarray(rows.patient_ids, dtype=str)[merged.first].tolist()
    patients = number_patients(patient_ids, rows=len(patient_ids))
    decision = read_decision(operating, merged.predictions, level=level)
    one, points = decision.apply(merged.predictions), _read_points(operating, level)
    return {
        "rule": rule,
        "chosen": bool(chosen),
        "n_units": len(patient_ids),
        "left_out": merged.left_out,
        "decision": decision.to_json(),
        "metrics": measure_predictions(one, patient_ids, **sampling),
        "operating_points": apply_operating_points(one, points, patients, prevalences=prevalences, **sampling),
    }


def _read_points(operating: Mapping[str, Any], level: str) -> Sequence[Mapping[str, Any]]:
    """Return the frozen operating points of a level; () if it has none."""
    points: Sequence[Mapping[str, Any]] = operating.get("levels", {}).get(level, {}).get("points", ())
    return points


def read_decision(operating: Mapping[str, Any], predictions: Predictions, *, level: str = IMAGE) -> Decision:
    """Return the frozen decision of a level; of a level without frozen points that of images.

    Args:
        operating: operating_points.json; {} = nothing was frozen.
        predictions: Whose kind and class names count.
        level: "image", "study" or "patient".
    """
    chosen = operating.get("chosen_on")
    points = _read_points(operating, level) or _read_points(operating, IMAGE)
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
    relation = "of class"
    if any(f"no {name}" in counts for name in counts):
        relation = "with"  # of several labels: with and without each
    said = ", ".join(f"{format_count(count, 'patient')} {relation} {name}" for name, count in few.items())
    chance, where = ["thresholds"], chosen_on["split"]
    # Who made the scores of a file chose their epoch, on rows that are not known here.
    if chosen_on.get("frozen", True) is True:
        chance, where = ["epoch", "thresholds"], f"split {where}"
    for level, name in ((STUDY, "studies"), (PATIENT, "patients")):
        rule = operating.get("levels", {}).get(level, {}).get("aggregation", {}).get("rule")
        if rule:
            chance.append(f"the rule by which images become {name} ({NOISY_OR if rule == 'noisy_or' else rule})")
    listed = " and ".join(filter(None, [", ".join(chance[:-1]), chance[-1]]))
    return [f"few patients made the choices: {where} has {said} (fewer than {FEW_PATIENTS}): {listed} may be chance"]


def describe_rows(chosen_on: Mapping[str, Any]) -> str:
    """Return "val (40 images of 20 patients)"."""
    return f"{chosen_on['split']} ({count_patients(chosen_on['n_images'], chosen_on['n_patients'], '')})"
