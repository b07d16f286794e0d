from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest

from medcls.errors import ConfigError
from medcls.files import read_json_lines
from medcls.training.tracking import Tracker


def test_one_line_an_epoch_and_null_for_what_is_not_finite(tmp_path: Path) -> None:
    tracker = Tracker(tmp_path)
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
    tracker = Tracker(tmp_path, tensorboard=True)
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
        Tracker(tmp_path, tensorboard=True)
