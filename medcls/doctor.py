"""python -m medcls.doctor: what this machine has, and whether training, resuming and prediction work on it.

    python -m medcls.doctor [device=auto|cuda|cpu] [trial=true|false] [out=FILE.md]

The trial uses synthetic images and the commands that a user types. In each number format it trains a ResNet-18 twice,
once without and once with an interruption, and predicts with the network that was trained in float32. The printed page
says how fast that was and how much the results differ.
"""

from __future__ import annotations

import medcls.entry  # noqa: F401 (before all others: it keeps the working folder's files from being imported)

# isort: split
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medcls.cli.command_line import check_printed
from medcls.config import check_choice
from medcls.entry import INTERRUPTED
from medcls.errors import MedclsError, UsageError
from medcls.files import MODEL, write_bytes
from medcls.inputs import find_weights_dir
from medcls.reproducibility import describe_software

_USAGE = "python -m medcls.doctor [device=auto|cuda|cpu] [trial=true|false] [out=FILE.md]"
_PRECISIONS = ("fp32", "bf16", "fp16")
_EPOCHS = 3
_EXTRAS = {"tensorboard": "trainer.tensorboard=true", "ray": "executor=ray", "submitit": "executor=slurm"}
"""Package that is not installed by default -> the setting that needs it."""
_TIGHT_SHM_GIB = 1
_GIB = 1 << 30


class TrialError(MedclsError):
    """A command of the trial did not end as it should."""


@dataclass(frozen=True, slots=True)
class Trial:
    """How one number format did.

    Attributes:
        precision: fp32, bf16 or fp16.
        images_per_second: Training, in the last epoch.
        seconds: Of all commands, their starts included.
        resumed: Largest absolute difference between the weights of the interrupted training and of the whole one.
        difference: Largest absolute difference, over images and classes, between the probabilities in this format and
            in float32, of the network trained in float32; in [0, 1].
    """

    precision: str
    images_per_second: float
    seconds: float
    resumed: float
    difference: float


def main(arguments: Sequence[str]) -> int:
    """Print the page, and write it if out= is set; return the exit code."""
    if {"-h", "--help"} & set(arguments):
        print(__doc__)
        return 0
    try:
        pairs = dict(argument.split("=", 1) for argument in arguments if "=" in argument)
        if len(pairs) != len(arguments) or not set(pairs) <= {"device", "trial", "out"}:
            raise UsageError(f"expected {_USAGE}")
        check_choice("device", pairs.get("device", "auto"), ("auto", "cuda", "cpu"))
        check_choice("trial", pairs.get("trial", "true"), ("true", "false"))
        page = examine(pairs.get("device", "auto"), trial=pairs.get("trial", "true") == "true")
        print(page, end="")
        if "out" in pairs:
            write_bytes(Path(pairs["out"]), page.encode())
        else:
            check_printed()
    except MedclsError as error:
        print(f"python -m medcls.doctor: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def examine(device: str, *, trial: bool) -> str:
    """Return the page, in Markdown.

    Args:
        device: auto, cuda or cpu.
        trial: Whether the number formats are tried, too.

    Raises:
        ConfigError: device=cuda on a machine without a CUDA device.
        TrialError: a command of the trial failed.
    """
    # torch takes seconds to import: a mistake does without it.
    from medcls.training.precision import choose_device

    chosen = choose_device(device)
    lines = ["# What this machine has", "", *list_machine(), ""]
    missing = list_missing()
    lines += ["## Missing or tight", "", *(f"- {line}" for line in missing or ["nothing"]), ""]
    if trial:
        with tempfile.TemporaryDirectory(prefix="medcls-doctor-") as folder:
            lines += format_trials(run_trials(Path(folder), device=chosen), device=chosen)
    return "\n".join(lines)


def list_machine() -> list[str]:
    """Return versions, processor, memory and CUDA devices as lines of a Markdown list."""
    import torch

    from medcls.data.limits import SHARED_MEMORY

    software = describe_software()
    packages = ", ".join(f"{name} {version}" for name, version in software["packages"].items() if version)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    lines = [
        f"- medcls {software['medcls']}, commit {software['git_commit'] or 'unknown'}; Python {software['python']}",
        f"- {packages}",
        f"- {platform.platform()}; {software['processor']}, {len(os.sched_getaffinity(0))} cores for this process",
        f"- memory {memory / _GIB:.1f} GiB; free: {_count_free(SHARED_MEMORY):.1f} GiB in {SHARED_MEMORY}, "
        f"{_count_free(Path(tempfile.gettempdir())):.1f} GiB for temporary files",
    ]
    cudnn = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    for index in range(torch.cuda.device_count()):
        found = torch.cuda.get_device_properties(index)
        lines.append(
            f"- CUDA device {index}: {found.name}, {found.total_memory / _GIB:.1f} GiB, compute capability "
            f"{found.major}.{found.minor}; CUDA {torch.version.cuda}, cuDNN {cudnn}"
        )
    if not torch.cuda.device_count():
        lines.append("- no CUDA device: training and evaluation use the CPU")
    return lines


def _count_free(folder: Path) -> float:
    return shutil.disk_usage(folder).free / _GIB if folder.is_dir() else 0.0


def list_missing() -> list[str]:
    """Return what is missing or tight, a sentence each, with its remedy."""
    import torch

    from medcls.data.limits import SHARED_MEMORY

    missing = []
    if not torch.cuda.is_available() and Path("/dev/nvidiactl").exists():
        missing.append(
            f"torch {torch.__version__} finds no GPU, but a driver is there: install torch for its CUDA version"
        )
    if _count_free(SHARED_MEMORY) < _TIGHT_SHM_GIB:
        tight = f"{SHARED_MEMORY} has less than {_TIGHT_SHM_GIB} GiB free"
        missing.append(f"{tight}: start the container with --shm-size 2g, or set workers=0")
    try:
        weights = find_weights_dir(None)
    except MedclsError as error:
        missing.append(str(error))
    else:
        if weights is None:
            missing.append(
                "no folder of ImageNet weights (weights_dir=, $MEDCLS_WEIGHTS_DIR): without internet access, run "
                "python -m medcls.fetch model=resnet18 elsewhere and copy its file"
            )
    missing += [f"{name} is not installed: {use} needs it" for name, use in _EXTRAS.items() if find_spec(name) is None]
    return missing


def run_trials(folder: Path, *, device: str) -> list[Trial]:
    """Prepare synthetic films, then train, resume and predict in each number format.

    Args:
        folder: Empty folder for all files of the trial.
        device: cuda or cpu. On a CPU the images are fewer and smaller, and half formats are emulated.

    Raises:
        TrialError: a command failed.
    """
    films, size, batch = (400, 224, 32) if device == "cuda" else (40, 32, 8)
    raw, store = folder / "raw", folder / "store"
    _run("data_prep.demo", f"out={raw}", f"num_images={films}")
    labels = f"labels={raw}/labels.csv"
    _run("data_prep", f"source={raw}", labels, f"store={store}", f"image.size={size}", "deidentify=declared")
    trials: list[Trial] = []
    reference: NDArray[np.float64] = np.zeros((0, 0))
    for precision in _PRECISIONS:
        start = time.monotonic()
        training = [
            *(f"store={store}", "model=resnet18", "transfer=scratch", "task=multiclass", "augment=radiograph"),
            *(f"trainer.epochs={_EPOCHS}", f"trainer.batch_size={batch}", f"precision={precision}", f"device={device}"),
        ]
        whole, cut = folder / f"whole-{precision}", folder / f"cut-{precision}"
        _run("medcls.train", f"run={whole}", *training)
        _interrupt("medcls.train", f"run={cut}", *training, watched=cut / "metrics.jsonl")
        _run("medcls.train", f"run={cut}", *training)
        scores = _predict(folder, device=device, precision=precision)
        if precision == "fp32":
            reference = scores
        epochs = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
        trials.append(
            Trial(
                precision,
                images_per_second=epochs[-1]["images_per_second"],
                seconds=time.monotonic() - start,
                resumed=_compare_weights(whole / MODEL, cut / MODEL),
                difference=float(np.abs(scores - reference).max()),
            )
        )
    return trials


def _predict(folder: Path, *, device: str, precision: str) -> NDArray[np.float64]:
    """Return the probabilities (N, K) that the network trained in float32 gives in a number format."""
    import pyarrow.parquet as pq

    out = folder / f"{precision}.parquet"
    _run(
        "medcls.predict",
        *(f"run={folder}/whole-fp32", f"source={folder}/raw", f"out={out}", "deidentify=declared"),
        *(f"device={device}", f"precision={precision}", "out_of_domain=note"),
    )
    table = pq.read_table(out)
    columns = [table[name].to_numpy() for name in table.column_names if name.startswith("score_")]
    scores = np.stack(columns, axis=1).astype(np.float64)
    return scores[~np.isnan(scores).any(axis=1)]


def _compare_weights(first: Path, second: Path) -> float:
    """Return the largest absolute difference between the tensors of two model files."""
    from safetensors.torch import load_file

    one, other = load_file(first), load_file(second)
    return max(float((one[name].double() - other[name].double()).abs().max()) for name in one if one[name].numel())


def _run(command: str, *arguments: str) -> None:
    done = subprocess.run([sys.executable, "-m", command, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise TrialError(_describe(command, arguments, done.returncode, done.stderr))


def _interrupt(command: str, *arguments: str, watched: Path) -> None:
    """Start a command, and ask it to end as soon as the file has a line."""
    with tempfile.TemporaryFile("w+") as log:
        child = subprocess.Popen([sys.executable, "-m", command, *arguments], stdout=log, stderr=log)
        try:
            while child.poll() is None and not (watched.is_file() and watched.stat().st_size):
                time.sleep(0.02)
            child.send_signal(signal.SIGTERM)
        finally:
            code = child.wait()
        if code != INTERRUPTED:
            log.seek(0)
            raise TrialError(_describe(command, arguments, code, log.read()))


def _describe(command: str, arguments: Sequence[str], code: int, log: str) -> str:
    lines = [line for line in log.splitlines() if line.strip()]
    last = lines[-1] if lines else "no line"
    return f"python -m {command} {' '.join(arguments)} exited with {code}: {last}: see docs/operations.md, or report it"


def format_trials(trials: Sequence[Trial], *, device: str) -> list[str]:
    """Return the table of the trial, in Markdown."""
    lines = [
        f"## Training, resuming and predicting on {device}",
        "",
        "| precision | training, images/s | seconds in all | resumed against uninterrupted | prediction against fp32 |",
        "|---|---|---|---|---|",
    ]
    for trial in trials:
        resumed = f"largest difference of a weight {trial.resumed:.1e}"
        if trial.resumed == 0:
            resumed = "the same bits"
        difference = f"largest difference of a probability {trial.difference:.1e}"
        if trial.precision == "fp32":
            difference = "–"
        seconds = f"{trial.images_per_second:.0f} | {trial.seconds:.0f}"
        lines.append(f"| {trial.precision} | {seconds} | {resumed} | {difference} |")
    each = "Each row: a training, the same training interrupted and resumed, and a prediction of all images."
    return [*lines, "", f"ResNet-18 on synthetic radiographs. {each}", ""]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
