"""Run the planned commands of a comparison in order: skip finished ones; a failed arm does not stop the others."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

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


@dataclass(frozen=True, slots=True)
class ComparisonFolder:
    """Where the works of a comparison leave their files.

    Attributes:
        out: The comparison's folder.
        store: Store of the folds.
    """

    out: Path
    store: Store

    def run(self, work: Work) -> Path:
        """Return the run folder of a work."""
        return run_folder(self.out, work.name)

    def evaluation(self, work: Work) -> Path:
        """Return where the evaluation of a work puts its predictions."""
        return self.run(work) / "evaluation" / f"{self.store.name}-test"

    def log(self, work: Work) -> Path:
        """Return the log of a work."""
        return self.out / "logs" / f"{work.name}.log"

    def seconds(self, work: Work) -> Path:
        """Return the file with a work's wall times."""
        return self.out / "logs" / f"{work.name}.json"


@dataclass(frozen=True, slots=True)
class FailedArm:
    """Why an arm ended, as comparison.json keeps it.

    Attributes:
        work: The work that failed.
        exit_code: Exit code of its command.
        log: Its log, seen from the comparison's folder.
    """

    work: str
    exit_code: int
    log: str


def is_finished(folder: ComparisonFolder, work: Work, *, fold: PlannedFold | None) -> bool:
    """Return whether a work has its model and, where it is evaluated, predictions of this very model, fold and labels.

    A step on another store has no fold.
    """
    model, store = folder.run(work) / MODEL, folder.store
    if not model.is_file():
        return False
    if not work.evaluated or fold is None:
        return True
    evaluation = folder.evaluation(work)
    if not (evaluation / INPUTS).is_file() or not (evaluation / METRICS).is_file():
        return False
    inputs = read_json(evaluation / INPUTS, remedy="restore it, or remove it to evaluate again")
    expected = {
        "model_sha256": sha256_file(model),
        "store_sha256": store.sha256,
        "split_sha256": fold.split_sha256,
        "labels_sha256": sha256_file(store.folder / LABELS),
    }
    return all(inputs.get(key) == value for key, value in expected.items())


def build_task(folder: ComparisonFolder, work: Work, *, threads: int) -> ComparisonTask:
    """Return the task of a work, with its log and number of threads; a model that is there is only evaluated."""
    makes = [folder.run(work) / MODEL, folder.evaluation(work) / METRICS][: len(work.commands)]
    done = int(work.evaluated and makes[0].is_file())
    return ComparisonTask(
        name=work.name,
        commands=work.commands[done:],
        makes=makes[done:],
        log=folder.log(work),
        seconds=folder.seconds(work),
        environment={"OMP_NUM_THREADS": str(threads)},
    )


def run_works(
    works: Sequence[Work], folder: ComparisonFolder, executor: Executor, *, threads: int
) -> dict[str, FailedArm]:
    """Run the works that are left, in their order, and return the arms that failed."""
    waiting, unmade = list(works), {work.name for work in works}
    running: dict[str, tuple[Work, Handle, float]] = {}
    failed: dict[str, FailedArm] = {}
    seconds: list[float] = []
    tries: Counter[str] = Counter()
    try:
        while waiting or running:
            waiting = _drop_failed(waiting, failed)
            ready = [work for work in waiting if not unmade & set(work.needs)]
            for work in ready[: executor.slots - len(running)]:
                waiting.remove(work)
                handle = executor.start(build_task(folder, work, threads=threads))
                running[work.name] = (work, handle, time.monotonic())
            for work, handle, started in [one for one in running.values() if one[1].done()]:
                del running[work.name]
                code = handle.result()
                tries[work.name] += 1
                if code == INTERRUPTED and tries[work.name] < _TRIES:
                    say(f"{work.name} was interrupted (exit code {code}): it starts again")
                    waiting.insert(0, work)
                    continue
                if code:
                    _say_failure(folder, work, code)
                    ended = FailedArm(work.name, code, str(folder.log(work).relative_to(folder.out)))
                    for arm in work.arms:
                        failed.setdefault(arm, ended)
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


def _drop_failed(waiting: Sequence[Work], failed: Mapping[str, FailedArm]) -> list[Work]:
    """Return the works that are still needed: all arms that need a work may have failed."""
    return [work for work in waiting if not set(work.arms) <= failed.keys()]


def _say_failure(folder: ComparisonFolder, work: Work, code: int) -> None:
    """Say how the log of a work ends; its lines go into no result."""
    log = folder.log(work)
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else []
    say(f"FAILED {work.name} (exit code {code}); its log {log} ends with:")
    for line in [line for line in lines if line.strip()][-_TAIL:]:
        say(f"    {line.rpartition(chr(13))[2]}")
    say(f"arm {', '.join(work.arms)} stops; the other arms go on")
