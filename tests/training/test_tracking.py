from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from medcls.config import TrainerConfig
from medcls.errors import ConfigError
from medcls.files import read_json_lines
from medcls.training import tracking
from medcls.training.tracking import Logger, Tracker


def test_one_line_an_epoch_and_null_for_what_is_not_finite(tmp_path: Path) -> None:
    tracker = Tracker(tmp_path, TrainerConfig())
    tracker.write({"epoch": 0, "lr": {"head": 0.1, "stem": math.nan}, "train_loss": math.inf, "val_auc": 0.5})
    tracker.write({"epoch": 1, "lr": {"head": 0.2}, "train_loss": 1.5, "seconds": None})
    tracker.close()
    text = (tmp_path / "metrics.jsonl").read_text()
    assert [json.loads(line) for line in text.splitlines()] == [
        {"epoch": 0, "lr": {"head": 0.1, "stem": None}, "train_loss": None, "val_auc": 0.5},
        {"epoch": 1, "lr": {"head": 0.2}, "train_loss": 1.5, "seconds": None},
    ]
    assert "NaN" not in text


def test_tensorboard_gets_the_numbers(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    tracker = Tracker(tmp_path, TrainerConfig(tensorboard=True))
    tracker.write({"epoch": 3, "lr": {"head": 0.1}, "train_loss": 1.5, "val_auc": math.nan})
    tracker.close()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert {"train_loss"} <= set(events.Tags()["scalars"])
    assert "val_auc" not in events.Tags()["scalars"]
    assert [(event.step, event.value) for event in events.Scalars("train_loss")] == [(3, 1.5)]
    assert len(read_json_lines(tmp_path / "metrics.jsonl")) == 1


def test_tensorboard_that_is_not_installed_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ConfigError, match="pip install tensorboard"):
        Tracker(tmp_path, TrainerConfig(tensorboard=True))


class Ledger:
    """A made-up logger: one function and one row."""

    def __init__(self, run: Path) -> None:
        self.file = (run / "ledger.txt").open("w")

    def write(self, row: Mapping[str, Any]) -> None:
        self.file.write(f"{row['epoch']} {row['loss']}\n")

    def close(self) -> None:
        self.file.close()


def test_logger_of_one_row_gets_every_epoch_if_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = Logger(Ledger, lambda trainer: trainer.epochs > 1)
    monkeypatch.setattr(tracking, "LOGGERS", (*tracking.LOGGERS, row))
    for folder, epochs in (("one", 1), ("two", 2)):
        (tmp_path / folder).mkdir()
        tracker = Tracker(tmp_path / folder, TrainerConfig(epochs=epochs))
        for epoch in range(1, epochs + 1):
            tracker.write({"epoch": epoch, "loss": math.nan if epoch == 1 else 0.5})
        tracker.close()
        assert len(read_json_lines(tmp_path / folder / "metrics.jsonl")) == epochs
    assert not (tmp_path / "one" / "ledger.txt").exists()
    assert (tmp_path / "two" / "ledger.txt").read_text() == "1 None\n2 0.5\n"
