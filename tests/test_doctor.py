"""The command medcls.doctor: what it finds, what its table says, and the trial itself."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from medcls import doctor
from medcls.doctor import Trial, TrialError, format_trials, list_missing, main


def test_page_without_a_trial_names_versions_and_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MEDCLS_WEIGHTS_DIR", raising=False)
    assert main(["trial=false", f"out={tmp_path / 'machine.md'}"]) == 0
    page = capsys.readouterr().out
    assert page == (tmp_path / "machine.md").read_text()
    for word in ("torch", "pydicom", "cores for this process", "GiB in /dev/shm", "$MEDCLS_WEIGHTS_DIR"):
        assert word in page
    assert "Training, resuming" not in page


def test_small_shared_memory_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=64 << 20))
    assert (
        "/dev/shm has less than 1 GiB free: start the container with --shm-size 2g, or set workers=0" in list_missing()
    )


@pytest.mark.parametrize("argument", ["divice=cpu", "cpu", "trial=maybe", "device=tpu"])
def test_mistake_in_an_argument_is_one_line(argument: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([argument]) in (64, 78)
    assert capsys.readouterr().err.count("\n") == 1


def test_equal_bits_and_differences_are_told_apart() -> None:
    lines = format_trials([Trial("fp32", 10.4, 61.2, 0.0, 0.0), Trial("fp16", 31.0, 40.0, 2e-6, 3.1e-4)], device="cuda")
    assert lines[4] == "| fp32 | 10 | 61 | the same bits | – |"
    assert (
        lines[5]
        == "| fp16 | 31 | 40 | largest difference of a weight 2.0e-06 | largest difference of a probability 3.1e-04 |"
    )


def test_weights_are_compared_over_all_tensors(tmp_path: Path) -> None:
    ones = np.ones(3, np.float32)
    for name, last in (("a", ones), ("b", np.array([1, 1, 1.5], np.float32))):
        save_file({"first": ones, "last": last, "none": np.zeros(0, np.float32)}, tmp_path / f"{name}.safetensors")
    assert doctor._compare_weights(tmp_path / "a.safetensors", tmp_path / "b.safetensors") == 0.5


def test_command_of_the_trial_that_fails_ends_with_its_last_line(tmp_path: Path) -> None:
    with pytest.raises(TrialError, match=r"medcls\.fetch model=resnet81 exited with 78: .*nearest: resnet18"):
        doctor._run("medcls.fetch", "model=resnet81")


@pytest.mark.slow
def test_every_precision_trains_resumes_to_the_same_bits_and_predicts_alike(tmp_path: Path, request: Any) -> None:
    trials = doctor.run_trials(tmp_path, device="cpu")
    assert [trial.precision for trial in trials] == ["fp32", "bf16", "fp16"]
    for trial, tolerance in zip(trials, (0.0, 0.05, 0.01), strict=True):
        assert trial.resumed == 0
        assert trial.difference <= tolerance
        assert trial.images_per_second > 0
