"""The schema of medcls.samplesize: the aim, the assumptions and the simulation."""

from __future__ import annotations

from dataclasses import dataclass

from medcls.config.machine import seed_setting
from medcls.config.schema import PATH, check_settings, setting
from medcls.errors import ConfigError

_METRICS = ("auc", "sensitivity", "specificity", "accuracy", "quadratic_kappa")


@dataclass(slots=True)
class SampleSizeJob:
    """python -m medcls.samplesize: an aim and assumptions to a number of patients."""

    metric: str = setting("auc", "Metric that the study is about.", choices=_METRICS)
    expected: float | None = setting(
        None,
        "Value that the metric is expected to have, of the first of two models; required.",
        low=0,
        high=0.999999,
        open_low=True,
    )
    half_width: float | None = setting(
        None, "Aim for one model: half the width of the 95 % interval.", low=0, high=0.999999, open_low=True
    )
    margin: float | None = setting(
        None,
        "Aim for two models: show that the first is not worse by more than this.",
        low=0,
        high=0.999999,
        open_low=True,
    )
    difference: float | None = setting(
        None,
        "Aim for two models: show this lead of the first; with margin=, the lead that it truly has.",
        low=-1,
        high=1,
    )
    power: float = setting(0.8, "Share of studies of two models that reach the aim.", low=0.05, high=0.99)
    prevalence: float = setting(0.5, "Share of patients who are cases.", low=0.001, high=0.999)
    images_per_patient: int = setting(1, "Images of each patient.", low=1, high=1000, unit="images")
    correlation: float = setting(0.5, "Correlation between the scores of two images of one patient.", low=0, high=1)
    model_correlation: float = setting(
        0.5, "Correlation between the scores of the two models on one image.", low=0, high=0.999
    )
    grades: int = setting(5, "Number of grades, for metric=quadratic_kappa.", low=3, high=20)
    replicates: int = setting(
        1000, "Simulated studies of each size; raise it for a smaller Monte Carlo error.", low=200, high=100_000
    )
    seed: int = seed_setting("the simulation")
    out: str | None = setting(
        None, "File for the result (.json), which medcls.evaluate takes as samplesize=; null only prints it.", kind=PATH
    )

    def __post_init__(self) -> None:
        check_settings(self)
        if self.half_width is not None and (self.margin is not None or self.difference is not None):
            other = "margin" if self.margin is not None else "difference"
            raise ConfigError(
                f"half_width={self.half_width:g} is an aim for one model, {other}={getattr(self, other):g} for two: "
                "remove one of them"
            )
