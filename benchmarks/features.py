"""A head on a frozen network: epochs on cached features beside the ordinary loop, from command to model file."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.images import make_store
from medcls.config import ModelConfig, TaskConfig, TrainerConfig, TrainJob, TransferConfig
from medcls.files import METRICS_LOG, MODEL, read_json_lines
from medcls.runs.model_file import read_model
from medcls.train.train import train

_EPOCHS = 30
_IMAGES = 64
_CLOCK = ("seconds", "images_per_second", "data_wait_share")


def measure(folder: Path) -> Iterator[tuple[str, str, str, str, str]]:
    """Yields the whole training several ways, by the clock and in processor time, and how far the results are apart.

    The ordinary loop takes minutes, and another load of the machine may come and go meanwhile: the cached run is made
    anew before and after it, and processor time stands beside the clock.
    """
    _, store = make_store(folder / "features", size=224, count=_IMAGES)
    # The first run in a process pays for what torch builds once.
    _train(store.folder, folder / "warm" / "run", epochs=1, features="live")
    before = _train(store.folder, folder / "before" / "cached", features="cached")
    live = _train(store.folder, folder / "before" / "live", features="live")
    after = _train(store.folder, folder / "after" / "cached", features="cached")
    again = _train(store.folder, folder / "after" / "again", features="cached")
    what = f"{_EPOCHS} epochs of a frozen ResNet-18 at 224, {_IMAGES} images"
    for how, ours in ((f"{what}: before", before), ("the same: after", after), ("the same: features there", again)):
        for clock, mine, theirs in zip(("", ", processor"), ours, live, strict=True):
            yield f"{how}{clock}", f"{mine:.1f} s", f"ordinary loop {theirs:.1f} s", f"{theirs / mine:.1f}", ">= 10"
    runs = folder / "before" / "cached", folder / "before" / "live"
    differences = {"weights": _compare_weights(*runs), "losses and validation scores": _compare_logs(*runs)}
    for name, difference in differences.items():
        yield f"largest difference of {name}", f"{difference:.1e}", "ordinary loop", "", "<= 1e-4"


def _train(store: Path, run: Path, *, features: str, epochs: int = _EPOCHS) -> tuple[float, float]:
    """Seconds by the clock and of all processors."""
    job = TrainJob(
        store=str(store),
        run=str(run),
        device="cpu",
        workers=0,
        model=ModelConfig(weights=None),
        transfer=TransferConfig(kind="frozen", batchnorm="frozen", features=features),
        task=TaskConfig(kind="binary"),
        trainer=TrainerConfig(epochs=epochs, batch_size=16),
    )
    start, used = time.perf_counter(), time.process_time()
    train(job)
    return time.perf_counter() - start, time.process_time() - used


def _compare_weights(first: Path, second: Path) -> float:
    states = [read_model(run / MODEL)[0].state_dict() for run in (first, second)]
    return max(float((value - states[1][name]).abs().max()) for name, value in states[0].items())


def _compare_logs(first: Path, second: Path) -> float:
    logs = [read_json_lines(run / METRICS_LOG) for run in (first, second)]
    return max(
        abs(value - other[name])
        for row, other in zip(*logs, strict=True)
        for name, value in row.items()
        if isinstance(value, float) and name not in _CLOCK
    )
