"""Log the epochs of a training: metrics.jsonl, and TensorBoard by option."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from medcls.errors import ConfigError
from medcls.files import METRICS_LOG, append_json_line


class Tracker:
    """Appends rows to metrics.jsonl and, where asked, to TensorBoard.

    Args:
        run: The run folder.
        tensorboard: Also write event files under run/tensorboard.

    Raises:
        ConfigError: TensorBoard is asked for and not installed.
    """

    def __init__(self, run: Path, *, tensorboard: bool = False) -> None:
        self.path = run / METRICS_LOG
        self._board: Any = None
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise ConfigError("trainer.tensorboard=true: pip install tensorboard") from error
            self._board = SummaryWriter(str(run / "tensorboard"))

    def write(self, row: dict[str, Any]) -> None:
        """Write one epoch; a value that is not finite becomes null."""
        clean = {key: _finite(value) for key, value in row.items()}
        append_json_line(self.path, clean)
        if self._board is not None:
            for key, value in clean.items():
                if isinstance(value, int | float) and key != "epoch":
                    self._board.add_scalar(key, value, row["epoch"])
            self._board.flush()

    def close(self) -> None:
        """Close the event file."""
        if self._board is not None:
            self._board.close()


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
