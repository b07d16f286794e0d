"""deploy/slurm: the scripts by bash and shellcheck, and the requeueing with a stand-in for Slurm's commands."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "deploy/slurm"
SCRIPTS = sorted([*FOLDER.glob("*.sbatch"), *FOLDER.glob("*.sh")])


def test_the_scripts_are_found() -> None:
    assert [path.name for path in SCRIPTS] == ["merge.sbatch", "prepare.sbatch", "requeue.sh", "train.sbatch"]


@pytest.mark.parametrize("path", SCRIPTS, ids=[path.name for path in SCRIPTS])
def test_a_script_is_bash(path: Path) -> None:
    subprocess.run(["bash", "-n", str(path)], check=True)
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not here (Debian: shellcheck)")
    done = subprocess.run(
        ["shellcheck", "-x", str(path)], capture_output=True, text=True, cwd=FOLDER.parents[1], check=False
    )
    assert done.returncode == 0, done.stdout


def test_a_training_is_told_two_minutes_ahead_and_may_be_requeued() -> None:
    options = re.findall(r"^#SBATCH (\S+)", (FOLDER / "train.sbatch").read_text(), re.M)
    assert {"--requeue", "--signal=B:USR1@120", "--open-mode=append"} <= set(options)


@pytest.fixture
def submit(tmp_path: Path) -> dict[str, str]:
    """An environment in which srun runs the command here and scontrol notes what it was asked."""
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    (bin_folder / "srun").write_text('#!/bin/bash\n[[ $1 == --* ]] && shift\nexec "$@"\n')
    (bin_folder / "scontrol").write_text(f'#!/bin/bash\necho "$*" >> {tmp_path}/scontrol.log\n')
    for path in bin_folder.iterdir():
        path.chmod(0o755)
    return os.environ | {
        "PATH": f"{bin_folder}:{os.environ['PATH']}",
        "MEDCLS_SLURM": str(FOLDER),
        "SLURM_SUBMIT_DIR": "/nowhere",
        "SLURM_JOB_ID": "41",
        "SLURM_ARRAY_TASK_ID": "3",
        "SLURM_ARRAY_TASK_COUNT": "8",
        "SLURM_CPUS_PER_TASK": "2",
    }


def write_python(tmp_path: Path, body: str) -> str:
    """Stands for the environment's python; it gets the command line that the script makes."""
    path = tmp_path / "python"
    path.write_text(f"#!{sys.executable}\nimport os, signal, sys, time\n{body}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("code", "restarts", "again"), [(75, 0, True), (75, 100, False), (65, 0, False), (0, 0, False)]
)
def test_only_an_interrupted_job_goes_back_into_the_queue(
    code: int, restarts: int, again: bool, submit: dict[str, str], tmp_path: Path
) -> None:
    environment = submit | {"PYTHON": write_python(tmp_path, f"sys.exit({code})"), "SLURM_RESTART_COUNT": str(restarts)}
    done = subprocess.run(["bash", str(FOLDER / "train.sbatch"), "run=r"], env=environment, check=False, timeout=60)
    assert done.returncode == code
    log = tmp_path / "scontrol.log"
    assert (log.read_text() if log.is_file() else "") == ("requeue 41\n" if again else "")


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_the_signal_ahead_of_the_limit_reaches_the_training(
    number: signal.Signals, submit: dict[str, str], tmp_path: Path
) -> None:
    """It ends the shell's wait and not the training, which takes its time and then says 75."""
    body = (
        "def end(number, frame):\n    time.sleep(0.5)\n    print(number, flush=True)\n    sys.exit(75)\n"
        f"signal.signal({int(number)}, end)\nopen({str(tmp_path / 'ready')!r}, 'w').close()\ntime.sleep(60)"
    )
    environment = submit | {"PYTHON": write_python(tmp_path, body)}
    job = subprocess.Popen(["bash", str(FOLDER / "train.sbatch")], env=environment, stdout=subprocess.PIPE, text=True)
    while not (tmp_path / "ready").exists():
        assert job.poll() is None
        time.sleep(0.05)
    job.send_signal(number)
    output, _ = job.communicate(timeout=60)
    assert (job.returncode, output) == (75, f"{int(number)}\n")
    assert (tmp_path / "scontrol.log").read_text() == "requeue 41\n"


def test_an_array_task_decodes_its_own_shards(submit: dict[str, str], tmp_path: Path) -> None:
    environment = submit | {"PYTHON": write_python(tmp_path, "print(*sys.argv[1:])")}
    command = ["bash", str(FOLDER / "prepare.sbatch"), "source=my raw", "store=s"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "-m data_prep source=my raw store=s shard.index=3 shard.count=8 workers=2\n"
