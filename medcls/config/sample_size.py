"""The schema of medcls.samplesize."""

from __future__ import annotations

from dataclasses import dataclass

from medcls.config.checks import check_choice, check_range
from medcls.errors import ConfigError

_METRICS = ("auc", "sensitivity", "specificity", "accuracy", "quadratic_kappa")


@dataclass(slots=True)
class SampleSizeJob:
    """python -m medcls.samplesize: an aim and assumptions to a number of patients."""

    metric: str = "auc"
    # What the metric is expected to be; required.
    expected: float | None = None
    # The aim, one of three: half the width of the interval, a margin of non-inferiority, a difference of two models.
    half_width: float | None = None
    margin: float | None = None
    difference: float | None = None
    power: float = 0.8
    prevalence: float = 0.5
    images_per_patient: int = 1
    correlation: float = 0.5
    model_correlation: float = 0.5
    grades: int = 5
    replicates: int = 1000
    seed: int = 0
    out: str | None = None

    def __post_init__(self) -> None:
        check_choice("metric", self.metric, _METRICS)
        for name in ("expected", "half_width", "margin"):
            value = getattr(self, name)
            if value is not None:
                check_range(name, value, low=0, high=0.999999, open_low=True)
        if self.difference is not None:
            check_range("difference", self.difference, low=-1, high=1)
        check_range("power", self.power, low=0.05, high=0.99)
        check_range("prevalence", self.prevalence, low=0.001, high=0.999)
        check_range("images_per_patient", self.images_per_patient, low=1, high=1000)
        check_range("correlation", self.correlation, low=0, high=1)
        check_range("model_correlation", self.model_correlation, low=0, high=0.999)
        check_range("grades", self.grades, low=3, high=20)
        check_range("replicates", self.replicates, low=200, high=100_000)
        check_range("seed", self.seed, low=0)
        if self.half_width is not None and (self.margin is not None or self.difference is not None):
            other = "margin" if self.margin is not None else "difference"
            raise ConfigError(
                f"half_width={self.half_width:g} is an aim for one model, {other}={getattr(self, other):g} for two: "
                "remove one of them"
            )
