"""The command medcls.samplesize: what it prints, what it writes, what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from medcls.errors import ConfigError, UsageError
from medcls.files import read_json
from medcls.samplesize import main

Compose = Callable[..., Any]
SENSITIVITY = ("metric=sensitivity", "expected=0.9", "half_width=0.1", "prevalence=0.2", "replicates=200")


def test_number_and_every_assumption_are_printed(compose_job: Compose, capsys: pytest.CaptureFixture[str]) -> None:
    main(compose_job("samplesize", *SENSITIVITY, "images_per_patient=2", "correlation=0.3", "seed=4"))
    printed = capsys.readouterr().out
    assert "patients for a 95 % interval of Sensitivity of ± 0.1" in printed
    for part in ("expected Sensitivity: 0.9", "prevalence: 0.2", "2 images per patient", "two of them: 0.3"):
        assert part in printed
    assert "200 simulated studies of each size, seed 4" in printed
    assert "Monte Carlo error" in printed


def test_out_holds_number_assumptions_and_sentence(compose_job: Compose, tmp_path: Path) -> None:
    main(compose_job("samplesize", *SENSITIVITY, f"out={tmp_path / 'size.json'}"))
    record = read_json(tmp_path / "size.json")
    assert record["format"] == 1
    assert record["aim"] == {"kind": "half_width", "half_width": 0.1}
    assert record["sentence"].startswith(f"{record['patients']} patients for ")
    assert (record["settings"]["prevalence"], record["settings"]["level"]) == (0.2, 0.95)
    assert 170 < record["patients"] < 230  # 39 cases by Wilson, at one case in five


@pytest.mark.parametrize(
    ("arguments", "kind", "words"),
    [
        (
            ("expected=0.9", "margin=0.1"),
            "non_inferiority",
            "80 % power to show that AUC is not inferior by more than 0.1",
        ),
        (("expected=0.9", "difference=0.1"), "difference", "80 % power to show a difference in AUC of 0.1"),
    ],
)
def test_two_models_have_their_own_aims(
    arguments: tuple[str, ...], kind: str, words: str, compose_job: Compose, tmp_path: Path
) -> None:
    main(compose_job("samplesize", *arguments, "replicates=200", f"out={tmp_path / 'size.json'}"))
    record = read_json(tmp_path / "size.json")
    assert record["aim"]["kind"] == kind
    assert record["sentence"].endswith(words)


@pytest.mark.parametrize(
    ("arguments", "error", "part"),
    [
        ((), UsageError, "expected= is missing"),
        (("expected=0.8",), UsageError, "the aim is missing"),
        (("expected=0.8", "difference=-0.1"), ConfigError, "their sum must be above 0"),
    ],
)
def test_incomplete_or_impossible_aims_are_refused(
    arguments: tuple[str, ...], error: type[Exception], part: str, compose_job: Compose
) -> None:
    with pytest.raises(error, match=part):
        main(compose_job("samplesize", *arguments))


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("half_width=0.1", "margin=0.1"), "remove one of them"),
        (("metric=aucc",), "nearest: auc"),
        (("expected=1.2",), "expected=1.2"),
        (("prevalence=0",), "prevalence"),
    ],
)
def test_settings_out_of_range_are_refused(arguments: tuple[str, ...], part: str, compose_job: Compose) -> None:
    with pytest.raises(ConfigError, match=part):
        compose_job("samplesize", *arguments)
