"""A training on a real Slurm of one node: preempted, requeued by deploy/slurm, and the same model as without.

    python -m tests.deploy.slurm [--work DIR] [--keep]

As root, with Debian's slurmctld, slurmd, slurm-client and munge; everything lies under `work`, on ports of its own.
`make slurm-test` calls this.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ("slurmctld", "slurmd", "sbatch", "scontrol", "munged", "mungekey")
SETTINGS = ("model=resnet18", "model.weights=null", "transfer=scratch", "task=multiclass", "trainer.epochs=6")
SETTINGS += ("trainer.batch_size=16", "trainer.channels_last=false", "workers=0", "device=cpu", "checkpoint.minutes=0")
CONF = """
ClusterName=medcls
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmctldPort=26817
SlurmdPort=26818
AuthType=auth/munge
AuthInfo=socket={work}/munge/socket,cred_expire=15
StateSaveLocation={work}/state
SlurmdSpoolDir={work}/spool
SlurmctldPidFile={work}/slurmctld.pid
SlurmdPidFile={work}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
ReturnToService=2
KillWait=60
NodeName={host} NodeAddr=127.0.0.1 CPUs=1 RealMemory=2000
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=60 MaxTime=60
PartitionName=high Nodes=ALL PriorityTier=10 PreemptMode=OFF MaxTime=60
"""


def main() -> int:
    """Returns 0 where the interrupted training gave the same model as the other."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("/var/tmp/medcls-slurm-test"))
    parser.add_argument("--keep", action="store_true")
    arguments = parser.parse_args()
    work: Path = arguments.work
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing or os.getuid() != 0:
        sys.exit(f"slurm-test needs root and slurmctld, slurmd, slurm-client, munge (Debian); missing: {missing}")
    if work.exists():
        sys.exit(f"{work} is there already: remove it, or give another --work")
    environment = os.environ | {"SLURM_CONF": f"{work}/slurm.conf", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    daemons: list[subprocess.Popen[bytes]] = []
    try:
        start(work, environment, daemons)
        run_test(work, environment)
    except AssertionError as error:
        print(f"slurm-test FAILED: {error}", file=sys.stderr)
        return 1
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
            daemon.wait(timeout=60)
        if not arguments.keep:
            shutil.rmtree(work, ignore_errors=True)
    print("slurm-test: passed")
    return 0


def start(work: Path, environment: dict[str, str], daemons: list[subprocess.Popen[bytes]]) -> None:
    """Starts munge, the controller and one node in the foreground, and waits until the node is idle."""
    for name in ("munge", "state", "spool"):
        (work / name).mkdir(parents=True)
    work.chmod(0o755)
    (work / "munge").chmod(0o755)
    (work / "slurm.conf").write_text(CONF.format(host=socket.gethostname().split(".")[0], work=work))
    key = work / "munge/key"
    subprocess.run(["mungekey", "--create", f"--keyfile={key}"], check=True)
    files = [f"--{name}={work}/munge/{name.split('-')[0]}" for name in ("socket", "pid-file", "log-file", "seed-file")]
    munged = ["munged", "--foreground", "--force", f"--key-file={key}", *files]
    for name, command in (("munged", munged), ("slurmctld", ["slurmctld", "-D"]), ("slurmd", ["slurmd", "-D"])):
        log = (work / f"{name}.log").open("w")
        daemons.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
        time.sleep(2)
    wait_for(lambda: "idle" in ask(environment, "sinfo", "--noheader", "--format=%T"), "an idle node", seconds=60)


def ask(environment: dict[str, str], *command: str) -> str:
    """Returns what a command prints."""
    return subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=False).stdout


def wait_for(condition: Callable[[], bool], what: str, *, seconds: float) -> None:
    """Waits until the condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited {seconds:g} s for {what}"
        time.sleep(0.5)


def run_test(work: Path, environment: dict[str, str]) -> None:
    """One training by hand and one under Slurm, which a job of higher priority puts out in its middle."""
    python, raw, store = sys.executable, work / "raw", f"store={work}/store"
    prepare = [f"source={raw}", f"labels={raw}/labels.csv", store, "image.size=32", "deidentify=declared", "workers=1"]
    for command in (
        ["data_prep.demo", f"out={raw}", "num_images=120"],
        ["data_prep", *prepare, "split.on_missing=report"],
        ["medcls.train", store, f"run={work}/whole", *SETTINGS],
    ):
        with (work / "commands.log").open("a") as log:
            done = subprocess.run([python, "-m", *command], env=environment, stdout=log, stderr=log, check=False)
        assert done.returncode == 0, f"{command[0]} ended with {done.returncode}"
    environment |= {"PYTHON": python, "MEDCLS_SLURM": str(ROOT / "deploy/slurm")}
    options = ["--gres=none", "--cpus-per-task=1", "--mem=0", "--time=30", f"--output={work}/job.log", "--parsable"]
    script = str(ROOT / "deploy/slurm/train.sbatch")
    job = ask(environment, "sbatch", *options, script, store, f"run={work}/broken", *SETTINGS).strip()
    assert job.isdigit(), f"sbatch: {job!r}"
    print(f"job {job} submitted", flush=True)
    epochs = work / "broken/metrics.jsonl"
    wait_for(epochs.is_file, "the first epoch", seconds=600)
    other = ["--partition=high", "--cpus-per-task=1", "--mem=0", "--output=/dev/null", "--wrap=sleep 1"]
    ask(environment, "sbatch", *other)
    wait_for(lambda: state_of(environment, job) == ("PENDING", 1), "the job in the queue again", seconds=300)
    print(f"preempted after {len(epochs.read_text().splitlines())} epochs, in the queue again", flush=True)
    assert not (work / "broken/model.safetensors").exists(), "it ended before it was preempted"
    wait_for(lambda: state_of(environment, job)[0] == "COMPLETED", "the end of the job", seconds=900)
    text = (work / "job.log").read_text()
    assert "resuming" in text, f"nothing was resumed:\n{text[-2000:]}"
    first, second = (digest(work / name / "model.safetensors") for name in ("whole", "broken"))
    assert first == second, f"the models differ: {first}, {second}"
    print(f"the same model: sha256 {first}", flush=True)


def state_of(environment: dict[str, str], job: str) -> tuple[str, int]:
    """Returns the state of a job and how often it was restarted."""
    text = ask(environment, "scontrol", "show", "job", job)
    facts = dict(word.split("=", 1) for word in text.split() if "=" in word)
    return facts.get("JobState", ""), int(facts.get("Restarts", 0))


def digest(path: Path) -> str:
    """Returns the sha256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


if __name__ == "__main__":
    sys.exit(main())
