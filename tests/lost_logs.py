"""Runs every command with a log that goes away, in forks of one process: python -m tests.lost_logs WORK DISTURBANCE….

Importing torch takes longer than these commands. Prints {command: {disturbance: [exit code, {file: sha256}]}} as JSON.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"

import contextlib
import hashlib
import importlib
import json
import runpy
import shutil
import sys
import traceback
from pathlib import Path

import cv2
import numpy as np
from safetensors.numpy import save_file

from medcls import entry

DISTURBANCES = ("none", "closed", "full", "reader_ends", "errors_full")
IMPORTED = ("prepare", "stages.evaluate", "stages.explain", "stages.pretrain", "stages.compare", "stages.predict")
QUICK = ("workers=0", "device=cpu")
TRAINING = ("model=cbr_tiny", "transfer=scratch", "task=multiclass", "trainer.batch_size=8", "trainer.epochs=1", *QUICK)
COMMON = ",".join(TRAINING)
FOLDS = ("folds.k=2", "folds.val=0.4", "replicates=100")
_SAME = (".parquet", ".npy", ".safetensors", ".csv", ".dcm", ".nii.gz")
"""Files without times and durations in them."""
COMMANDS: dict[str, tuple[str, ...]] = {
    "data_prep.key": ("out={own}/key.txt",),
    "data_prep.demo": ("out={own}/set", "num_images=2"),
    "data_prep.demo3d": ("out={own}/set", "num_source=1", "num_target=1"),
    "data_prep.index": ("source={raw}", "out={own}/index.parquet", "workers=0"),
    "data_prep": ("source={raw}", "labels={raw}/labels.csv", "store={own}/store", "image.size=32", "workers=0"),
    "data_prep.merge": ("source={raw}", "labels={raw}/labels.csv", "store={own}/store", "image.size=32", "workers=0"),
    "data_prep.show": ("store={store}", "out={own}/sheet.png"),
    "medcls.train": ("store={store}", "run={own}/run", *TRAINING),
    "medcls.evaluate": ("run={run}", "out={own}/results", "split=val", "replicates=50", "report=false", *QUICK),
    "medcls.explain": ("run={run}", "out={own}/maps", "split=val", "worst=1", "curves=false", "sanity_images=0"),
    "medcls.predict": ("run={run}", "source={raw}", "out={own}/p.parquet", "out_of_domain=allow", *QUICK),
    "medcls.compare": ("store={own}/s", "out={own}/out", f"common=[{COMMON}]", "arms.a=[]", *FOLDS),
    "medcls.pretrain": ("store={store}", "run={own}/run"),
    "medcls.samplesize": ("expected=0.8", "half_width=0.2", "replicates=200", "out={own}/size.json"),
    "medcls.fetch": ("model=resnet18", "weights_dir={weights}"),
    "medcls.launch": ("--nproc-per-node=1", "pretrain"),
}
"""Some end with a message here: merge has no parts, the store of pretraining no volumes, launch no store=."""
ONLY_PRINTED = {
    "medcls.samplesize": ("expected=0.8", "half_width=0.2", "replicates=200"),
    "data_prep.index": ("source={raw}", "workers=0"),
    "medcls.train": ("--help",),
}


def build_inputs(work: Path) -> dict[str, Path]:
    """Draw images, and make the store, run and weights that commands start from."""
    raw, weights = work / "raw", work / "weights"
    raw.mkdir(parents=True)
    weights.mkdir()
    lines = ["path,patient_id,label"]
    for number in range(18):
        picture = np.random.default_rng(number).normal(90 + 60 * (number % 2), 20, (32, 32)).clip(0, 255)
        cv2.imwrite(str(raw / f"{number:02d}.png"), picture.astype(np.uint8))
        lines.append(f"{number:02d}.png,p{number:02d},{'ab'[number % 2]}")
    (raw / "labels.csv").write_text("\n".join(lines) + "\n")
    save_file({"x": np.zeros(1, np.float32)}, weights / "resnet18-imagenet.safetensors")
    places = {"raw": raw, "weights": weights, "store": work / "made" / "store", "run": work / "made" / "run"}
    (work / "made").mkdir()
    for command in ("data_prep", "medcls.train"):
        code = run(command, COMMANDS[command], places | {"own": work / "made"}, "none")
        assert code == 0, command
    return places


def run(command: str, arguments: tuple[str, ...], places: dict[str, Path], disturbance: str) -> int:
    """Return the exit code of a command in a fork whose log goes away."""
    given = [text.format(**places) for text in arguments]
    taken, end = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(taken)
        os._exit(run_here(command, given, disturbance, end))
    os.close(end)
    if disturbance == "reader_ends":
        os.read(taken, 1)  # as head -1 does, more or less: it takes the beginning and ends
    else:
        while os.read(taken, 1 << 16):
            pass
    os.close(taken)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def run_here(command: str, given: list[str], disturbance: str, pipe: int) -> int:
    """Run a command in this process; return its exit code."""
    full = os.open("/dev/full", os.O_WRONLY)
    for descriptor in (1, 2):
        os.close(descriptor)
        if disturbance != "closed":
            is_full = disturbance == "full" or (disturbance == "errors_full" and descriptor == 2)
            os.dup2(full if is_full else pipe, descriptor)
    os.close(pipe)
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        setattr(sys, name, None if disturbance == "closed" else os.fdopen(descriptor, "w", closefd=False))
    entry._keep_output()
    sys.argv = [command, *given]
    try:
        runpy.run_module(command, run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
        return int(ended.code or 0)
    except BaseException:
        traceback.print_exc()
        return 99
    return 0


def digest(folder: Path) -> dict[str, str]:
    """The names of the files of a folder, and the checksums of those that are the same every time."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    found = {}
    for path in files:
        same = path.name.endswith(_SAME)
        found[str(path.relative_to(folder))] = hashlib.sha256(path.read_bytes()).hexdigest() if same else ""
    return found


def main(work: Path, disturbances: list[str]) -> None:
    """Run every command undisturbed and disturbed."""
    for name in IMPORTED[1:]:
        importlib.import_module(f"medcls.{name}")
    importlib.import_module("data_prep.prepare")
    places, found = build_inputs(work), {}
    for number, command in enumerate(COMMANDS):
        # Without a list each command gets one disturbance in turn.
        turn = [DISTURBANCES[1 + number % (len(DISTURBANCES) - 1)]]
        for disturbance in ["none", *(disturbances or turn)]:
            own = work / command / disturbance
            own.mkdir(parents=True)
            if command == "medcls.compare":
                shutil.copytree(places["store"], own / "s")
            given = COMMANDS[command]
            if command == "medcls.compare" and not disturbances:
                given = (*given, "plan_only=true")  # its trainings start interpreters of their own
            code = run(command, given, places | {"own": own}, disturbance)
            found.setdefault(command, {})[disturbance] = [code, digest(own)]
    printed = {
        command: {each: run(command, given, places | {"own": work}, each) for each in ("none", "full")}
        for command, given in ONLY_PRINTED.items()
    }
    (work / "found.json").write_text(json.dumps({"commands": found, "printed": printed}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
