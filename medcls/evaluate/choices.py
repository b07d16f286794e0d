"""Choose thresholds, aggregation and calibration on some rows, for the evaluation of others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from medcls.config.checks import check_choice
from medcls.console import say
from medcls.statistics.assessment import IMAGE, Rows, choose_calibration, choose_operating, read_decision
from medcls.statistics.decision import Decision, list_decisions
from medcls.statistics.predictions import Predictions
from medcls.statistics.thresholds import Rule, list_rules

FORMAT = 1
# Where nothing is asked for and nothing is frozen yet.
_DEFAULTS = {"sensitivity": [0.95], "specificity": [0.95], "cost": [], "alpha": 0.1, "decision": None}


@dataclass(frozen=True, slots=True)
class Choices:
    """What was chosen before the rows that are evaluated were opened.

    Attributes:
        operating: Content of operating_points.json, or a threshold that was set; {} = nothing was chosen.
        calibration: Content of calibration.json; {} likewise.
        notes: What a reader of the report has to know.
    """

    operating: Mapping[str, Any]
    calibration: Mapping[str, Any]
    notes: list[str] = field(default_factory=list)

    def decide(self, predictions: Predictions, *, level: str = IMAGE) -> Decision:
        """Return the decision for images, or for the studies or patients they belong to."""
        return read_decision(self.operating, predictions, level=level)

    def apply(self, rows: Rows) -> Rows:
        """Return the rows with the thresholds of the decision."""
        one = rows.predictions
        return replace(rows, predictions=self.decide(one).apply(one))

    def say_notes(self) -> None:
        """Say on the terminal what the report says of the choices."""
        for note in self.notes:
            say(f"notice: {note}")


def complete_settings(asked: Mapping[str, Any], *, kind: str, grades: bool) -> dict[str, Any]:
    """Return the settings of a choice with defaults, and with the decision named: a later version may have another.

    Raises:
        ConfigError: a decision that this kind of task or these rules do not have.
    """
    settings = _DEFAULTS | dict(asked)
    known = list_decisions(kind, _list_rules(settings), grades=grades)
    settings["decision"] = settings["decision"] or known[0]
    check_choice("decision", settings["decision"], known)
    return settings


def choose(
    rows: Rows, settings: Mapping[str, Any], chosen_on: Mapping[str, Any], *, seed: int, points_seed: int
) -> Choices:
    """Return what is chosen on these rows.

    Args:
        rows: Rows that choose.
        settings: As `complete_settings` returns them.
        chosen_on: What both files say of the rows.
        seed: Seed of the calibration.
        points_seed: Seed of the operating points.
    """
    rules = _list_rules(settings)
    shared = {"format": FORMAT, "chosen_on": chosen_on, "settings": settings}
    named = {"rules": [asdict(rule) for rule in rules]}
    operating = shared | named | choose_operating(rows, rules=rules, seed=points_seed)
    return Choices(operating, shared | choose_calibration(rows, alpha=settings["alpha"], seed=seed))


def _list_rules(settings: Mapping[str, Any]) -> tuple[Rule, ...]:
    return list_rules(sensitivity=settings["sensitivity"], specificity=settings["specificity"], cost=settings["cost"])
