from __future__ import annotations

import pytest
import torch

from medcls.errors import ConfigError
from medcls.training.precision import autocast, build_scaler, choose_device, choose_precision


@pytest.mark.parametrize(
    ("available", "bf16", "device", "precision"),
    [(False, False, "cpu", "fp32"), (True, True, "cuda", "bf16"), (True, False, "cuda", "fp16")],
)
def test_automatic_choice(
    monkeypatch: pytest.MonkeyPatch, available: bool, bf16: bool, device: str, precision: str
) -> None:
    asked = []

    def supported(*, including_emulation: bool) -> bool:
        asked.append(including_emulation)
        return bf16

    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    assert choose_device("auto") == device
    assert choose_precision("auto", device=device) == precision
    assert not any(asked)  # an older GPU emulates bf16, slowly


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_what_is_asked_for_is_taken(precision: str) -> None:
    assert choose_precision(precision, device="cpu") == precision
    assert choose_device("cpu") == "cpu"


def test_cuda_without_a_device_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="device=cuda: torch finds no CUDA device here"):
        choose_device("cuda")


@pytest.mark.parametrize("device", ["cuda", "auto"])
def test_processes_without_a_gpu_of_their_own_are_refused_unless_on_the_cpu(
    monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="2 processes on a machine of 1 GPUs: set --nproc-per-node=1, or device=cpu"):
        choose_device(device)
    assert choose_device("cpu") == "cpu"
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    assert choose_device(device) == "cuda"


@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_autocast_computes_in_the_precision(precision: str, dtype: torch.dtype) -> None:
    layer = torch.nn.Linear(4, 4)
    with autocast(precision, device="cpu"):
        assert layer(torch.ones(2, 4)).dtype == dtype


def test_scaler_is_active_for_fp16_alone() -> None:
    enabled = {precision: build_scaler(precision, device="cpu").is_enabled() for precision in ("fp32", "bf16", "fp16")}
    assert enabled == {"fp32": False, "bf16": False, "fp16": True}


@pytest.mark.gpu
def test_automatic_precision_on_this_gpu_can_multiply() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    precision = choose_precision("auto", device=choose_device("auto"))
    assert precision == ("bf16" if torch.cuda.get_device_capability()[0] >= 8 else "fp16")
    with autocast(precision, device="cuda"):
        product = torch.nn.Linear(64, 64, device="cuda")(torch.ones(2, 64, device="cuda"))
    assert product.dtype in (torch.bfloat16, torch.float16)
    assert product.isfinite().all()
