"""Every command as a user types it, with a log that goes away: its exit code, and the files that it leaves."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from safetensors.numpy import save_file

ROOT = Path(__file__).resolve().parent.parent
LOGS = {
    "whole": "{command} >{log} 2>&1",
    "closed": "{command} >&- 2>&-",
    "full": "{command} >/dev/full 2>&1",
    "piped": "{command} 2>&1 | head -1",
}
"""What becomes of standard output and standard error."""
_SAME = (".parquet", ".npy", ".safetensors", ".csv", ".png", ".dcm", ".nii.gz")
"""Files without times and durations in them."""
_QUICK = ("workers=1", "device=cpu")
_STEP = ("trainer.batch_size=8", "trainer.epochs=1", "trainer.max_steps=1", *_QUICK)
_TRAINING = ("model=cbr_tiny", "transfer=scratch", "task=multiclass", *_STEP)
_PREPARATION = ("source={raw}", "labels={raw}/labels.csv", "store={own}/store", "image.size=32", "workers=1")
_TASK = {
    "name": "key",
    "commands": [["python", "-m", "data_prep.key", "out={own}/key.txt"]],
    "makes": ["{own}/key.txt"],
    "log": "{own}/task.log",
    "seconds": "{own}/seconds.json",
    "environment": {},
}
COMMANDS: dict[str, tuple[str, ...]] = {
    "data_prep": _PREPARATION,
    "data_prep.demo": ("out={own}/set", "num_images=2"),
    "data_prep.demo3d": ("out={own}/set", "num_source=1", "num_target=1"),
    "data_prep.index": ("source={raw}", "out={own}/index.parquet", "workers=1"),
    "data_prep.key": ("out={own}/key.txt",),
    "data_prep.merge": _PREPARATION,
    "data_prep.show": ("store={store}", "out={own}/sheet.png"),
    "medcls.compare": (
        *("store={own}/store", "out={own}/out", f"common=[{','.join(_TRAINING)}]", "arms.a=[]"),
        *("folds.kind=holdout", "folds.k=null", "folds.repeats=1", "replicates=100"),
    ),
    "medcls.evaluate": ("run={run}", "out={own}/results", "split=val", "replicates=100", *_QUICK),
    "medcls.doctor": ("trial=false", "out={own}/page.md"),
    "medcls.explain": (
        "run={run}",
        "out={own}/maps",
        "split=val",
        "worst=1",
        "curves=false",
        "sanity_images=0",
        "device=cpu",
    ),
    "medcls.fetch": ("model=resnet18", "weights_dir={weights}"),
    "medcls.launch": ("--standalone", "--nproc-per-node=1", "train", "store={store}", "run={own}/run", *_TRAINING),
    "medcls.networks": ("cbr_tiny",),
    "medcls.predict": ("run={run}", "source={raw}", "out={own}/p.parquet", "out_of_domain=allow", *_QUICK),
    "medcls.pretrain": (
        *("store={volumes}", "run={own}/run", "model=autoencoder3d_hosseini", "figures=1"),
        *("trainer.batch_size=4", "trainer.epochs=1", *_QUICK),
    ),
    "medcls.samplesize": ("expected=0.8", "half_width=0.2", "replicates=200", "out={own}/size.json"),
    "medcls.compare.comparison_task": (json.dumps(_TASK), "{own}/result.json"),
    "medcls.train": ("store={store}", "run={own}/run", *_TRAINING),
}
"""An input that each command finishes within seconds; {own} is empty but for what _GIVEN copies there."""
_GIVEN = {"data_prep.merge": "parts", "medcls.compare": "store"}
ONLY_PRINTED = {
    "medcls.doctor": ("trial=false",),
    "medcls.networks": ("cbr_tiny",),
    "medcls.samplesize": ("expected=0.8", "half_width=0.2", "replicates=200"),
    "data_prep.index": ("source={raw}", "workers=1"),
    "medcls.train": ("--help",),
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a command came to.

    Attributes:
        code: Its exit code.
        files: Name -> sha256 of the files that it left; "" if they differ from run to run.
        log: The end of its log, if that was kept.
    """

    code: int
    files: dict[str, str]
    log: str = ""


def draw_images(raw: Path) -> None:
    """Write 18 pictures of 18 patients and two classes, and labels.csv."""
    raw.mkdir()
    lines = ["path,patient_id,label"]
    for number in range(18):
        picture = np.random.default_rng(number).normal(90 + 60 * (number % 2), 20, (32, 32)).clip(0, 255)
        cv2.imwrite(str(raw / f"{number:02d}.png"), picture.astype(np.uint8))
        lines.append(f"{number:02d}.png,p{number:02d},{'ab'[number % 2]}")
    (raw / "labels.csv").write_text("\n".join(lines) + "\n")


def build_inputs(work: Path) -> dict[str, Path]:
    """Make what the commands start from: raw images, stores, the parts of one, a run, and a file of weights."""
    names = ("raw", "weights", "store", "parts", "heads", "volumes", "run")
    places = {name: work / name for name in names}
    draw_images(places["raw"])
    places["weights"].mkdir()
    save_file({"x": np.zeros(1, np.float32)}, places["weights"] / "resnet18-imagenet.safetensors")
    heads = places["heads"] / "source"
    volumes = ("image=mr_volume", "image.size=[16,16,16]", "deidentify=declared", "split.test=0", "split.val=0.34")
    made = (
        ("data_prep", *_PREPARATION, "store={store}"),
        *(("data_prep", *_PREPARATION, "store={parts}", "shard.count=2", f"shard.index={n}") for n in range(2)),
        ("data_prep.demo3d", "out={heads}", "num_source=6", "num_target=1"),
        ("data_prep", f"source={heads}", f"labels={heads}/labels.csv", "store={volumes}", *volumes, "workers=1"),
        ("medcls.train", *COMMANDS["medcls.train"], "run={run}"),
    )
    for command, *arguments in made:
        # An argument that is given twice holds as it is given last.
        last = {text.partition("=")[0]: text for text in arguments}
        outcome = run(command, tuple(last.values()), places, work / "own", log="whole")
        assert outcome.code == 0, f"{command}: {outcome.log}"
    return places


def run(command: str, arguments: Sequence[str], places: dict[str, Path], own: Path, *, log: str) -> Outcome:
    """Give a shell a command, and return its outcome; `own` is always the same folder, and gone afterwards."""
    own.mkdir()
    if command in _GIVEN and _GIVEN[command] in places:
        shutil.copytree(places[_GIVEN[command]], own / "store")
    texts = list(arguments)
    for name, place in (places | {"own": own}).items():
        texts = [text.replace(f"{{{name}}}", str(place)) for text in texts]
    kept = own.with_suffix(".log")
    line = LOGS[log].format(command=shlex.join([sys.executable, "-m", command, *texts]), log=shlex.quote(str(kept)))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    # pipefail: the exit code of the command, not that of the reader of its pipe.
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {line}"], cwd=own, env=environment, capture_output=True, check=False
    )
    outcome = Outcome(done.returncode, digest(own), kept.read_text(errors="replace")[-2000:] if log == "whole" else "")
    shutil.rmtree(own)
    return outcome


def digest(folder: Path) -> dict[str, str]:
    """Return the names of the files of a folder, and the checksums of those that are the same every time."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.suffix in _SAME else ""
        for path in files
    }


def format_table(outcomes: dict[str, dict[str, Outcome]]) -> str:
    """Return a line per command: its exit code with each log, and whether its files are those of a log that stays."""
    lines = [f"| command | {' | '.join(LOGS)} |", f"|---|{'---|' * len(LOGS)}"]
    for command, found in outcomes.items():
        whole = found["whole"]
        count = f"{len(whole.files)} file{'s' * (len(whole.files) != 1)}" if whole.files else "prints"
        cells = [f"{whole.code}, {count}"]
        for log in list(LOGS)[1:]:
            cells.append(f"{found[log].code}, {'same' if found[log].files == whole.files else 'DIFFERENT'}")
        lines.append(f"| `{command}` | {' | '.join(cells)} |")
    return "\n".join(lines)
