"""Log the epochs of a training: LOGGERS has a row for each place that they are written to."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from medcls.config import TrainerConfig
from medcls.errors import ConfigError
from medcls.files import METRICS_LOG, append_json_line


class Sink(Protocol):
    """A place that epochs are written to while a training runs."""

    def write(self, row: Mapping[str, Any]) -> None:
        """Write one epoch: numbers, null, or objects of them by name."""

    def close(self) -> None:
        """Finish; nothing is written after it."""


class JsonLines:
    """Appends rows to metrics.jsonl."""

    def __init__(self, run: Path) -> None:
        self.path = run / METRICS_LOG

    def write(self, row: Mapping[str, Any]) -> None:
        """Append one line."""
        append_json_line(self.path, dict(row))

    def close(self) -> None:
        """Every line is on the disk already."""


class TensorBoard:
    """Writes event files under run/tensorboard.

    Raises:
        ConfigError: TensorBoard is not installed.
    """

    def __init__(self, run: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ConfigError("trainer.tensorboard=true: pip install tensorboard") from error
        self._board: Any = SummaryWriter(str(run / "tensorboard"))

    def write(self, row: Mapping[str, Any]) -> None:
        """Write the numbers of one epoch as scalars."""
        for key, value in row.items():
            if isinstance(value, int | float) and key != "epoch":
                self._board.add_scalar(key, value, row["epoch"])
        self._board.flush()

    def close(self) -> None:
        """Close the event file."""
        self._board.close()


@dataclass(frozen=True, slots=True)
class Logger:
    """A row of LOGGERS.

    Attributes:
        open: Gets the run folder.
        is_asked: Whether the settings of the loop ask for it.
    """

    open: Callable[[Path], Sink]
    is_asked: Callable[[TrainerConfig], bool]


LOGGERS: tuple[Logger, ...] = (
    Logger(JsonLines, lambda trainer: True),
    Logger(TensorBoard, lambda trainer: trainer.tensorboard),
)


class Tracker:
    """Writes each epoch to every logger that the settings ask for."""

    def __init__(self, run: Path, trainer: TrainerConfig) -> None:
        self._sinks = [logger.open(run) for logger in LOGGERS if logger.is_asked(trainer)]

    def write(self, row: Mapping[str, Any]) -> None:
        """Write one epoch; a value that is not finite becomes null."""
        clean = {key: _finite(value) for key, value in row.items()}
        for sink in self._sinks:
            sink.write(clean)

    def close(self) -> None:
        """Close every logger."""
        for sink in self._sinks:
            sink.close()


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
