"""Run the planned commands of a comparison in order: skip finished ones; a failed arm does not stop the others."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medcls.compare.comparison_commands import Work, run_folder
from medcls.compare.comparison_executors import Executor, Handle
from medcls.compare.comparison_folds import PlannedFold
from medcls.compare.comparison_task import ComparisonTask
from medcls.console import say
from medcls.data.store import Store
from medcls.entry import INTERRUPTED
from medcls.evaluate.judged_rows import METRICS
from medcls.evaluate.split_predictions import INPUTS
from medcls.files import LABELS, MODEL, read_json, sha256_file

_TAIL = 12
_TRIES = 10
_PAUSE_SECONDS = 0.2


def describe_progress(name: str, seconds: Sequence[float], *, left: int, slots: int) -> str:
    """Return "3/20 finetune-r1f2 in 41 s; about 12 min left".

    `seconds` are those of all works so far, this one last; `left` wait or run, `slots` at once.
    """
    mean = sum(seconds) / len(seconds)
    rest = f"; about {describe_seconds(left * mean / min(slots, max(1, left)))} left" if left else ""
    return f"{len(seconds)}/{len(seconds) + left} {name} in {describe_seconds(seconds[-1])}{rest}"


def describe_seconds(seconds: float) -> str:
    """Return "41 s", "12 min" or "3.5 h"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def evaluation_folder(out: Path, work: Work, store: Store) -> Path:
    """Return where the evaluation of a work puts its predictions."""
    return run_folder(out, work.name) / "evaluation" / f"{store.name}-test"


def is_finished(out: Path, work: Work, *, store: Store, fold: PlannedFold | None) -> bool:
    """Return whether a work has its model and, where it is evaluated, predictions of this very model, fold and labels.

    A step on another store has no fold.
    """
    model = run_folder(out, work.name) / MODEL
    if not model.is_file():
        return False
    if not work.evaluated or fold is None:
        return True
    folder = evaluation_folder(out, work, store)
    if not (folder / INPUTS).is_file() or not (folder / METRICS).is_file():
        return False
    inputs = read_json(folder / INPUTS, remedy="restore it, or remove it to evaluate again")
    return all(
        inputs.get(key) == value
        for key, value in {
            "model_sha256": sha256_file(model),
            "store_sha256": store.sha256,
            "split_sha256": fold.split_sha256,
            "labels_sha256": sha256_file(store.folder / LABELS),
        }.items()
    )


def build_task(out: Path, work: Work, *, store: Store, threads: int) -> ComparisonTask:
    """Return the task of a work, with its log and number of threads; a model that is there is only evaluated."""
    run = run_folder(out, work.name)
    makes = [run / MODEL, evaluation_folder(out, work, store) / METRICS][: len(work.commands)]
    done = 1 if work.evaluated and makes[0].is_file() else 0
    return ComparisonTask(
        name=work.name,
        commands=work.commands[done:],
        makes=makes[done:],
        log=log_of(out, work.name),
        seconds=seconds_of(out, work.name),
        environment={"OMP_NUM_THREADS": str(threads)},
    )


def log_of(out: Path, name: str) -> Path:
    """Return the log of a work."""
    return out / "logs" / f"{name}.log"


def seconds_of(out: Path, name: str) -> Path:
    """Return the file with a work's wall times."""
    return out / "logs" / f"{name}.json"


def run_works(
    works: Sequence[Work], *, out: Path, store: Store, executor: Executor, threads: int
) -> dict[str, dict[str, Any]]:
    """Run the works that are left, and return the arms that failed: name -> {"work", "exit_code", "log"}."""
    waiting, unmade = list(works), {work.name for work in works}
    running: dict[str, tuple[Work, Handle, float]] = {}
    failed: dict[str, dict[str, Any]] = {}
    seconds: list[float] = []
    tries: Counter[str] = Counter()
    try:
        while waiting or running:
            waiting = _drop_failed(waiting, failed)
            ready = [work for work in waiting if not unmade & set(work.needs)]
            for work in ready[: executor.slots - len(running)]:
                waiting.remove(work)
                task = build_task(out, work, store=store, threads=threads)
                running[work.name] = (work, executor.start(task), time.monotonic())
            for work, handle, started in [one for one in running.values() if one[1].done()]:
                del running[work.name]
                code = handle.result()
                tries[work.name] += 1
                if code == INTERRUPTED and tries[work.name] < _TRIES:
                    say(f"{work.name} was interrupted (exit code {code}): it starts again")
                    waiting.insert(0, work)
                    continue
                if code:
                    failed |= _note_failure(work, code, out=out, failed=failed)
                    continue
                unmade.discard(work.name)
                seconds.append(time.monotonic() - started)
                left = len(_drop_failed(waiting, failed)) + len(running)
                say(describe_progress(work.name, seconds, left=left, slots=executor.slots))
            time.sleep(_PAUSE_SECONDS)
    except BaseException:
        executor.stop()
        raise
    return failed


def _drop_failed(waiting: Sequence[Work], failed: dict[str, dict[str, Any]]) -> list[Work]:
    """Return a work is left out when all arms that need it have failed."""
    return [work for work in waiting if not set(work.arms) <= failed.keys()]


def _note_failure(work: Work, code: int, *, out: Path, failed: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Say what the log says last, and return the arms that end with it; its lines go into no result."""
    log = log_of(out, work.name)
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else []
    tail = [line.rpartition("\r")[2] for line in lines if line.strip()][-_TAIL:]
    arms = [arm for arm in work.arms if arm not in failed]
    say(f"FAILED {work.name} (exit code {code}); its log {log} ends with:")
    for line in tail:
        say(f"    {line}")
    say(f"arm {', '.join(work.arms)} stops; the other arms go on")
    return {arm: {"work": work.name, "exit_code": code, "log": str(log.relative_to(out))} for arm in arms}
