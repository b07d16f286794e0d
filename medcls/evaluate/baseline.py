"""Evaluate the linear baseline of volumes on the same split, with the network's paired differences from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from medcls.data.manifest import write_table
from medcls.evaluate.evaluation_data import RowRequest, open_rows
from medcls.evaluate.split_predictions import SplitPredictions, values_of
from medcls.files import sha256_file
from medcls.statistics.assessment import describe_rows
from medcls.statistics.decision import Decision, build_decision
from medcls.statistics.definitions import THRESHOLD, find_needs
from medcls.statistics.intervals import measure_predictions
from medcls.statistics.paired import compare_predictions
from medcls.statistics.predictions import check_predictions
from medcls.statistics.thresholds import Rule, choose_operating_points
from medcls.train.voxel_baseline import NAME, read_baseline, read_features
from medcls.train.voxels import VoxelModel

BASELINE_PREDICTIONS = "baseline_predictions.parquet"


def measure_baseline(
    predictions: SplitPredictions,
    operating: Mapping[str, Any],
    *,
    wanted: RowRequest,
    replicates: int,
    seed: int,
) -> dict[str, object] | None:
    """Return the baseline's metrics with intervals and the network's paired differences from it; None without one.

    Its threshold is chosen by the network's rule on the same validation rows; without these only numbers that need no
    threshold are compared. Its predictions are written beside the network's. It opens nothing that is not open already.
    """
    model = read_baseline(predictions.run)
    if model is None:
        return None
    opened, one = predictions.opened, predictions.rows.predictions
    scores = model.predict(read_features(opened.store, opened.rows))
    decision = choose_decision(model, predictions, operating, wanted=wanted)
    other = check_predictions(one.kind, one.y_true, scores, class_names=one.class_names, grades=one.grades)
    if decision is not None:
        other = decision.apply(other)
    columns = {"image_id": values_of(opened, "image_id"), "patient_id": list(predictions.rows.patient_ids)}
    table = pa.table(columns | {"y_true": opened.targets.tolist(), "y_score": scores.tolist()})
    write_table(predictions.folder / BASELINE_PREDICTIONS, table)
    metrics = measure_predictions(other, predictions.rows.patient_ids, replicates=replicates, seed=seed)
    compared = compare_predictions(one, other, predictions.rows.patients, replicates=replicates, seed=seed)
    said = ""
    if decision is None:
        for numbers in (metrics, compared["metrics"]):
            for name in [name for name in numbers if find_needs(name) == THRESHOLD]:
                del numbers[name]
        compared.pop("mcnemar", None)
        said = (
            "Numbers that need a threshold are left out: the validation rows, on which its threshold is chosen, are "
            "not in this store."
        )
    elif decision.thresholds:
        said = f"{NAME.capitalize()} uses the network's rule, with its own threshold. {decision.describe()}"
    comparison = {"first": "network", "second": NAME, "note": said, **compared}
    sha256 = sha256_file(predictions.folder / BASELINE_PREDICTIONS)
    return {"name": NAME, "metrics": metrics, "comparison": comparison, "predictions_sha256": sha256}


def choose_decision(
    model: VoxelModel, predictions: SplitPredictions, operating: Mapping[str, Any], *, wanted: RowRequest
) -> Decision | None:
    """Return the baseline's decision by the network's frozen rule; None if the rows that would choose it are gone."""
    one, run = predictions.rows.predictions, predictions.run
    if one.kind not in ("binary", "multilabel") or not operating:
        return build_decision(one)
    asked = predictions.opened.request_validation(wanted)
    if asked is None:
        return None
    opened = open_rows(asked, run, predictions.card)
    truth = opened.targets[:, 0]
    if one.kind == "multilabel":
        truth = opened.targets
    scores = model.predict(read_features(opened.store, opened.rows))
    chosen = check_predictions(one.kind, truth, scores, class_names=one.class_names)
    points = choose_operating_points(chosen, [Rule(rule["kind"], rule["target"]) for rule in operating["rules"]])
    where = describe_rows(operating["chosen_on"])
    return build_decision(one, operating["settings"].get("decision"), points=points, chosen_on=where)
