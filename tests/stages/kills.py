"""Kills commands at random moments until they end, and compares what they made: python -m tests.stages.kills --kills N.

A trial gives one command again and again. It is killed at a random moment of its whole time, or within a phase that
is short: the first writes, a save, a validation, the last writes. SIGKILL goes to its whole group, as when a container
is gone; every fourth signal is SIGTERM, which it answers with 75. At last it ends: its models have the sha256
of those that a process of its own made and nothing broke off, and no half-written file is left.

Importing torch takes longer than these trainings: one process imports it and forks for every start. What runs in a fork
is the command itself, with its options, signal handlers and exit codes; the networks are narrow.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

# Before torch starts: equal bits need equal threads, and only a process of one thread can fork.
os.environ["OMP_NUM_THREADS"] = "1"

import nibabel
import numpy as np

from data_prep import __main__ as prepare
from data_prep.demo import __main__ as demo
from medcls.cli.command_line import run_command
from medcls.compare import __main__ as compare
from medcls.compare import compare as compare_stage
from medcls.compare import comparison_executors
from medcls.evaluate import __main__ as evaluate
from medcls.evaluate import evaluate as evaluate_stage
from medcls.files import TEMPORARY, sha256_file
from medcls.models import small as cbr
from medcls.pretrain import __main__ as pretrain
from medcls.pretrain import pretrain as pretrain_stage
from medcls.train import __main__ as train
from medcls.train import session
from medcls.train import train as train_stage
from medcls.training import checkpoint_manager

COMMANDS: dict[str, Callable[[Any], None]] = {
    "prepare": prepare.main,
    "train": train.main,
    "pretrain": pretrain.main,
    "evaluate": evaluate.main,
    "compare": compare.main,
}
# A checkpoint after every step, every validation and every epoch.
QUICK = ("trainer.channels_last=false", "trainer.batch_size=8", "device=cpu", "checkpoint.minutes=0")
NARROW = ("model=cbr_tiny", "task=multiclass", "model.dropout=0.3", "trainer.ema_decay=0.9", *QUICK)
PARENT = ("model.weights={parent}", "transfer.val_seen=allow")
CASES: dict[str, tuple[str, ...]] = {
    "train": ("train", *NARROW, "transfer=scratch", "trainer.epochs=3"),
    "accumulated": ("train", *NARROW, "transfer=scratch", "trainer.epochs=2", "trainer.accumulate=2", "precision=fp16"),
    "gradual": ("train", *NARROW, *PARENT, "transfer=gradual", "trainer.epochs=5"),
    "cached": ("train", *NARROW, *PARENT, "transfer=frozen", "transfer.views=2", "trainer.epochs=3"),
    "pretrain": ("pretrain", "model=autoencoder3d_hosseini", "figures=1", *QUICK, "trainer.epochs=2"),
    "compare": (
        *("compare", f"common=[{','.join((*NARROW, 'transfer=scratch', 'trainer.epochs=1', 'workers=0'))}]"),
        *("arms.small=[]", "arms.slow=[optimizer.lr=0.0001]", "folds.k=2", "folds.val=0.34", "replicates=100"),
    ),
}
# What a trial of each case may be killed in, beside its steps; the functions that are its phases.
PHASES = (
    (session, "start_run", "first writes"),
    (train_stage, "cache_features", "features"),
    (session, "run_epochs", "steps"),
    (train_stage, "validate", "validation"),
    (pretrain_stage, "validate", "validation"),
    (checkpoint_manager, "write_checkpoint", "save"),
    (train_stage, "finish_run", "last writes"),
    (pretrain_stage, "finish_run", "last writes"),
    (evaluate_stage, "evaluate", "evaluation"),
)
NAMES = ("beginning", *dict.fromkeys(name for *_, name in PHASES))


@dataclass(slots=True)
class Process:
    """A command that runs in a fork, and the phases that it has told of: (phase, seconds since its start)."""

    pid: int
    told: int
    since: float
    phases: list[tuple[str, float]]
    seconds: float = 0.0

    def follow(self, until: Callable[[list[tuple[str, float]]], bool], *, seconds: float) -> bool:
        """Reads its phases until `until` holds of them (True), or it has ended or `seconds` are over (False)."""
        end = time.monotonic() + seconds
        while not until(self.phases):
            ready, _, _ = select.select([self.told], [], [], max(0.0, end - time.monotonic()))
            text = os.read(self.told, 1) if ready else b""
            if not text:
                return False
            self.phases.append((NAMES[text[0]], time.monotonic() - self.since))
        return True

    def wait(self) -> int:
        """Returns its exit code, -n where signal n ended it; reads the phases that are left, and notes its seconds."""
        self.follow(lambda _: False, seconds=600)
        os.close(self.told)
        self.seconds = time.monotonic() - self.since
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


class Pipe:
    """Tells the phases of this process to the one that forked it."""

    end: int | None = None
    phase = 0

    @classmethod
    def tell(cls, phase: int) -> int:
        """Returns the phase before."""
        before, cls.phase = cls.phase, phase
        if cls.end is not None:
            os.write(cls.end, bytes([phase]))
        return before

    @classmethod
    def mark(cls, module: Any, function: str, name: str) -> None:
        """Makes a function tell its beginning and its end."""
        original = getattr(module, function)

        @functools.wraps(original)
        def told(*args: Any, **kwargs: Any) -> Any:
            before = cls.tell(NAMES.index(name))
            try:
                return original(*args, **kwargs)
            finally:
                cls.tell(before)

        setattr(module, function, told)


def run_here(command: str, arguments: list[str]) -> NoReturn:
    """Runs a command as `python -m medcls.COMMAND` does, and ends the process with its exit code."""
    sys.argv = [command, *arguments]
    run_command(command, COMMANDS[command], program=f"python -m medcls.{command}")


def fork(run: Callable[[], Any], *, log: Path) -> int:
    """Returns the id of a fork that does `run` and exits as it says; its output goes to the end of `log`."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(file, 1)
        os.dup2(file, 2)
        code = run() or 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    finally:
        os._exit(code)


def start(command: str, arguments: list[str], *, log: Path) -> Process:
    """Starts a command in a fork and a group of its own."""
    told, tell = os.pipe()

    def run() -> None:
        os.setsid()
        os.close(told)
        Pipe.end = tell
        run_here(command, arguments)

    since = time.monotonic()
    pid = fork(run, log=log)
    os.close(tell)
    return Process(pid, told, since, [("beginning", 0.0)])


class ForkExecutor:
    """Runs the trainings and evaluations of a comparison in forks, one at a time."""

    slots = 1
    child: int | None = None

    def start(self, task: comparison_executors.Task) -> Future[int]:
        """Returns when the task has ended."""
        task.log.parent.mkdir(parents=True, exist_ok=True)
        code = 0
        for _, _, module, *arguments in task.commands:
            run = functools.partial(run_here, module.removeprefix("medcls."), arguments)
            self.child = fork(run, log=task.log)
            code = code or os.waitstatus_to_exitcode(os.waitpid(self.child, 0)[1])
            self.child = None
        done: Future[int] = Future()
        done.set_result(code)
        return done

    def stop(self) -> None:
        """Ends what still runs, where the signal did not come between two tasks."""
        if self.child is None:
            return
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(self.child, signal.SIGTERM)
            os.waitpid(self.child, 0)


def prepare_process() -> None:
    """Narrows the network, marks the phases, and lets comparisons fork."""
    cbr._LAYERS["cbr_tiny"] = (3, (4, 8, 8, 16))
    compare_stage.build_executor = lambda job, out: (ForkExecutor(), 1)
    for phase in PHASES:
        Pipe.mark(*phase)


@dataclass(frozen=True, slots=True)
class Case:
    """One command to be killed, and what it makes where nothing does.

    Attributes:
        name: Of CASES.
        work: Folder of stores, of the parent's weights, and of all runs.
        models: Path below the run -> sha256.
        files: Names in the run.
        phases: Of one start, with their seconds.
        seconds: Of one start.
    """

    name: str
    work: Path
    models: dict[str, str]
    files: set[str]
    phases: list[tuple[str, float]]
    seconds: float


def arguments_of(name: str, run: Path, work: Path) -> list[str]:
    """Returns the command line of a case without its command."""
    place = "out" if CASES[name][0] == "compare" else "run"
    store = work / ("volumes" if CASES[name][0] == "pretrain" else "images")
    return [f"store={store}", f"{place}={run}", *(text.format(parent=work / "parent") for text in CASES[name][1:])]


def digest_models(run: Path) -> dict[str, str]:
    """Returns the sha256 of every model below a folder."""
    return {str(path.relative_to(run)): sha256_file(path) for path in sorted(run.rglob("model.safetensors"))}


def make_stores(work: Path) -> None:
    """Writes 48 images of 24 patients and 24 volumes, and makes stores of them."""
    raw = work / "raw-volumes"
    raw.mkdir()
    lines = ["path,patient_id,label"]
    for patient in range(24):
        values = np.random.default_rng(patient).normal(100, 20, (16, 16, 16))
        values[2:14, 2:14, 2 + 4 * (patient % 3) : 6 + 4 * (patient % 3)] += 150
        nibabel.save(
            nibabel.Nifti1Image(values.astype(np.int16), np.diag([2.0, 2.0, 2.0, 1.0])), raw / f"{patient}.nii"
        )
        lines.append(f"{patient}.nii,p{patient},{patient % 3}")
    (raw / "labels.csv").write_text("\n".join(lines) + "\n")
    images = work / "raw-images"
    finish(fork(lambda: demo.main([f"out={images}", "num_images=48"]), log=work / "stores.log"), work / "stores.log")
    for name, settings in (("images", ["image.size=32"]), ("volumes", ["image=mr_volume", "image.size=[16,16,16]"])):
        source = work / f"raw-{name}"
        arguments = [f"source={source}", f"labels={source}/labels.csv", f"store={work / name}", *settings]
        arguments += [
            "deidentify=declared",
            "workers=0",
            "split.on_missing=report",
            "split.test=0.25",
            "split.val=0.25",
        ]
        run = functools.partial(run_here, "prepare", arguments)
        finish(fork(run, log=work / "stores.log"), work / "stores.log")


def finish(pid: int, log: Path) -> None:
    """Waits for a fork; its exit code has to be 0."""
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code == 0, f"exit code {code}; {log} ends with:\n{log.read_text()[-1500:]}"


def measure(name: str, work: Path) -> Case:
    """Runs a case in a process of its own, and in a fork that tells its phases: the models are the same."""
    own, forked = (work / f"{name}-{how}" / "run" for how in ("own", "forked"))
    command = [sys.executable, "-m", "tests.stages.kills", "--run", name, "--out", str(own), "--work", str(work)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{name}: exit code {done.returncode}\n{done.stderr[-1500:]}"
    forked.parent.mkdir()
    log = forked.parent / "log"
    process = start(CASES[name][0], [*arguments_of(name, forked, work), *workers(name, 0)], log=log)
    assert process.wait() == 0, log.read_text()[-1500:]
    models = digest_models(own)
    assert models, f"{name} made no model"
    assert models == digest_models(forked), f"{name}: a fork made other models"
    files = {path.name for path in own.iterdir()}
    return Case(name, work, models, files, process.phases, process.seconds)


def workers(name: str, count: int) -> list[str]:
    """Returns how many processes load; a comparison's trainings are told by it."""
    return [] if CASES[name][0] == "compare" else [f"workers={count}"]


def choose_moment(case: Case, generator: np.random.Generator) -> tuple[str, int, float]:
    """Returns a phase, which of its occurrences, and how long after its beginning to kill."""
    if generator.random() < 0.25:
        return "beginning", 1, generator.uniform(0, case.seconds)
    name = str(generator.choice(sorted({name for name, _ in case.phases[1:]} - {"beginning"})))
    ends = [*[since for _, since in case.phases[1:]], case.seconds]
    lengths = [end - since for (other, since), end in zip(case.phases, ends, strict=True) if other == name]
    place = int(generator.integers(1, 1 + min(4, len(lengths))))
    return name, place, generator.uniform(0, lengths[place - 1])


def try_case(case: Case, run: Path, generator: np.random.Generator, *, kills: int) -> Counter[str]:
    """Kills one run up to so many times, lets it end, and compares; returns in which phases it was hit."""
    hits: Counter[str] = Counter()
    log = run.parent / "log"
    while True:
        chosen = workers(case.name, int(generator.integers(2)))
        process = start(CASES[case.name][0], [*arguments_of(case.name, run, case.work), *chosen], log=log)
        if hits.total() < kills:
            strike(process, *choose_moment(case, generator), group=generator.random() < 0.75)
        asked, code = process.phases[-1][0], process.wait()
        assert code in (0, 75, -signal.SIGKILL, -signal.SIGTERM), f"{run}: exit code {code}\n{log.read_text()[-2500:]}"
        if code == 0:
            break
        # What SIGKILL ends tells nothing more; after SIGTERM its phases end, too.
        killed = code == -signal.SIGKILL
        hits[f"SIGKILL {process.phases[-1][0]}" if killed else f"SIGTERM {asked}"] += 1
    found = digest_models(run)
    assert found == case.models, f"{run}: after {dict(hits)} it made {found}, expected {case.models}"
    files = {path.name for path in run.iterdir()}
    if case.name == "compare":
        files = {name for name in files if not name.startswith(TEMPORARY)}
    assert files == case.files, f"{run}: after {dict(hits)} it holds {sorted(files)}, expected {sorted(case.files)}"
    return hits


def strike(process: Process, phase: str, place: int, delay: float, *, group: bool) -> None:
    """Waits for a moment of a process and ends it then, if it has not ended before."""

    def reached(phases: list[tuple[str, float]]) -> bool:
        return sum(name == phase for name, _ in phases) >= place

    if process.follow(reached, seconds=600):
        process.follow(lambda _: False, seconds=delay)
        # It waits for us before its id is given to another process.
        os.killpg(process.pid, signal.SIGKILL) if group else os.kill(process.pid, signal.SIGTERM)


def main() -> int:
    """Returns 0 where every trial made the models of the uninterrupted command, else 1."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", choices=list(CASES), action="append", help="again for several; all by default")
    parser.add_argument("--work", type=Path, help="an empty folder; a temporary one by default")
    parser.add_argument("--run", choices=list(CASES), help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    prepare_process()
    if arguments.run:
        case = [*arguments_of(arguments.run, arguments.out, arguments.work), *workers(arguments.run, 0)]
        run_here(CASES[arguments.run][0], case)
    with tempfile.TemporaryDirectory(prefix="medcls-kills-", dir=arguments.work) as folder:
        try:
            hits = run_trials(Path(folder), arguments.case or list(CASES), kills=arguments.kills, seed=arguments.seed)
        except AssertionError as error:
            print(f"kills FAILED: {error}", file=sys.stderr)
            return 1
    for name, count in sorted(hits.items()):
        print(f"  {count:4d}  {name}")
    print(f"kills: {hits.total()} in {', '.join(arguments.case or CASES)}: the same models every time")
    return 0


def run_trials(work: Path, names: list[str], *, kills: int, seed: int) -> Counter[str]:
    """Returns in which phases the commands were hit, until `kills` hits are reached."""
    generator, started = np.random.default_rng(seed), time.monotonic()
    make_stores(work)
    if {"gradual", "cached"} & set(names):
        parent = arguments_of("train", work / "parent", work)
        finish(fork(functools.partial(run_here, "train", [*parent, "workers=0"]), log=work / "p.log"), work / "p.log")
    cases = [measure(name, work) for name in names]
    print(f"{len(cases)} commands uninterrupted: {time.monotonic() - started:.0f} s", flush=True)
    hits: Counter[str] = Counter()
    trial = 0
    while hits.total() < kills:
        case = cases[trial % len(cases)]
        run = work / "trials" / f"{case.name}-{trial}" / "run"
        run.parent.mkdir(parents=True)
        hits += try_case(case, run, generator, kills=min(4, kills - hits.total()))
        shutil.rmtree(run.parent)
        trial += 1
        seconds = time.monotonic() - started
        print(f"trial {trial} ({case.name}): {hits.total()} of {kills} kills after {seconds:.0f} s", flush=True)
    return hits


if __name__ == "__main__":
    sys.exit(main())
