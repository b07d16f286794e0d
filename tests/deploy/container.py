"""Builds the Dockerfile unmodified and runs the image as a strict cluster does; exits 0 where everything held.

    python -m tests.deploy.container [--work DIR] [--base IMAGE] [--keep] [-- further arguments of buildah bud]

As root, with Debian's buildah, umoci, runc and debootstrap; no Docker engine. Where no registry serves the base image,
a stand-in of the same name is made by debootstrap: Debian with Python 3.11. The image is run by runc with a read-only
root, no capabilities, no network and one writable folder. `make container-test` calls this.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
FROM = "docker.io/library/python:3.11-slim"
IMAGE = "localhost/medcls:test"
UID = 10001
TOOLS = ("buildah", "umoci", "runc", "debootstrap")
NEEDED_GIB = 35
PROBE = """
import json, os, socket
from pathlib import Path

def writable(folder):
    try:
        (Path(folder) / "probe").write_text("")
    except OSError:
        return False
    (Path(folder) / "probe").unlink()
    return True

def connects():
    try:
        socket.create_connection(("192.0.2.1", 80), timeout=2)
    except OSError:
        return False
    return True

status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
print(json.dumps({
    "user": os.getuid(),
    "capabilities": int(status["CapEff"], 16) | int(status["CapPrm"], 16) | int(status["CapBnd"], 16),
    "no_new_privileges": status["NoNewPrivs"].strip(),
    "process 1": Path("/proc/1/comm").read_text().strip(),
    "writable": [f for f in ("/", "/etc", "/opt/venv", "/usr", "/var", "/tmp", "/home", "/work") if writable(f)],
    "network": [n for _, n in socket.if_nameindex() if n != "lo"] + ["connected"] * connects(),
    "home": os.environ["HOME"],
}))
"""
EXPECTED = {
    "user": UID,
    "capabilities": 0,
    "no_new_privileges": "1",
    "process 1": "tini",
    "writable": ["/work"],
    "network": [],
    "home": "/work",
}


def main() -> int:
    """Returns 0, or 1 after a line that says what did not hold."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("/var/tmp/medcls-container-test"))
    parser.add_argument("--base", help=f"an image that buildah can pull, instead of a stand-in for {FROM}")
    parser.add_argument("--keep", action="store_true", help="leave the unpacked image for a look")
    parser.add_argument("build_arguments", nargs="*")
    arguments = parser.parse_args()
    check_tools(arguments.work)
    try:
        with timed("base image"):
            make_base(arguments.work, arguments.base)
        with timed("build"):
            build(arguments.work, arguments.build_arguments)
        with timed("unpack"):
            bundle = unpack(arguments.work)
        check_image(bundle)
        run_demo(arguments.work, bundle)
    except (AssertionError, subprocess.SubprocessError) as error:
        print(f"container-test FAILED: {error}", file=sys.stderr)
        return 1
    finally:
        if not arguments.keep:
            shutil.rmtree(arguments.work, ignore_errors=True)
    print("container-test: passed")
    return 0


@contextmanager
def timed(what: str) -> Iterator[None]:
    """Prints how long a step took."""
    start = time.monotonic()
    yield
    print(f"{what}: {time.monotonic() - start:.0f} s", flush=True)


def check_tools(work: Path) -> None:
    """Ends the program where a tool or the room on the disk is missing."""
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing or os.getuid() != 0:
        sys.exit(f"container-test needs root and {', '.join(TOOLS)} (Debian packages); missing: {', '.join(missing)}")
    if work.exists():
        sys.exit(f"{work} is there already: remove it, or give another --work")
    work.mkdir(parents=True)
    free = shutil.disk_usage(work).free / 2**30
    if free < NEEDED_GIB:
        work.rmdir()
        sys.exit(f"{work} has {free:.0f} GiB free: {NEEDED_GIB} are needed (torch with CUDA, copied four times)")


def buildah(work: Path, *arguments: str) -> str:
    """Returns the standard output of buildah, whose images and containers lie under `work` alone."""
    storage = ["--root", f"{work}/storage", "--runroot", f"{work}/runroot", "--storage-driver", "vfs"]
    done = subprocess.run(["buildah", *storage, *arguments], check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout.strip()


def make_base(work: Path, base: str | None) -> None:
    """Makes an image of the Dockerfile's FROM name: the one that was named, or a stand-in."""
    if base is not None:
        buildah(work, "pull", base)
        buildah(work, "tag", base, FROM)
        return
    packages = "ca-certificates,python3,python3-venv"
    folder = work / "base"
    command = ["debootstrap", "--variant=minbase", f"--include={packages}", "bookworm", str(folder), *find_mirror()]
    with (work / "debootstrap.log").open("w") as log:
        done = subprocess.run(command, stdout=log, stderr=log, check=False)
    assert done.returncode == 0, "debootstrap: " + (work / "debootstrap.log").read_text()[-1500:]
    for name in ("python", "python3"):
        (folder / "usr/local/bin" / name).symlink_to("/usr/bin/python3.11")
    container = buildah(work, "from", "scratch")
    buildah(work, "copy", "--quiet", container, str(folder), "/")
    buildah(work, "commit", "--quiet", "--rm", container, FROM)
    shutil.rmtree(folder)


def find_mirror() -> list[str]:
    """Returns the Debian mirror that apt uses on this machine, [] for debootstrap's own."""
    command = ["apt-get", "indextargets", "--format", "$(SITE) $(CODENAME)", "Created-By: Packages"]
    lines = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    return [line.split()[0] for line in lines if line.endswith(" bookworm")][:1]


def build(work: Path, arguments: list[str]) -> None:
    """Builds the Dockerfile as it stands."""
    isolated = ["--isolation", "chroot", "--pull-never", "--format", "oci", "--tag", IMAGE]
    isolated += ["--network", "host", *arguments]
    with (work / "build.log").open("w") as log:
        storage = ["--root", f"{work}/storage", "--runroot", f"{work}/runroot", "--storage-driver", "vfs"]
        command = ["buildah", *storage, "bud", *isolated, str(ROOT)]
        done = subprocess.run(command, stdout=log, stderr=log, check=False)
    if done.returncode:
        tail = (work / "build.log").read_text().splitlines()[-15:]
        raise AssertionError("buildah bud failed:\n" + "\n".join(tail))


def unpack(work: Path) -> Path:
    """Returns the runtime bundle of the image (config.json and rootfs/); the build's storage is removed."""
    buildah(work, "push", "--quiet", "--disable-compression", IMAGE, f"oci:{work}/oci:test")
    shutil.rmtree(work / "storage")
    bundle = work / "bundle"
    command = ["umoci", "unpack", "--image", f"{work}/oci:test", str(bundle)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    shutil.rmtree(work / "oci")
    return bundle


def check_image(bundle: Path) -> None:
    """What the image itself says, and that neither sources nor tools of the build are left in it."""
    config = read_config(bundle)
    process, names = config["process"], config.get("annotations", {})
    assert process["user"]["uid"] == UID, f"user {process['user']}"
    assert process["args"] == ["/usr/bin/tini", "--", "python", "-m", "medcls.train"], process["args"]
    assert process["cwd"] == "/work", process["cwd"]
    assert names.get("org.opencontainers.image.stopSignal") == "SIGTERM", f"stop signal in {names}"
    assert names.get("org.opencontainers.image.title") == "medcls", f"labels in {names}"
    assert not (bundle / "rootfs/src").exists(), "the sources are in the image"
    size = subprocess.run(["du", "-sm", str(bundle / "rootfs")], check=True, stdout=subprocess.PIPE, text=True)
    print(f"image: {int(size.stdout.split()[0]) / 1024:.1f} GiB unpacked", flush=True)


def read_config(bundle: Path) -> dict[str, Any]:
    """Returns the runtime's configuration."""
    content: dict[str, Any] = json.loads((bundle / "config.json").read_text())
    return content


def harden(bundle: Path, work: Path, arguments: list[str] | None) -> None:
    """Writes how the next container runs: read-only, without capabilities and network, `work` as /work."""
    config = read_config(bundle)
    process = config["process"]
    process |= {"terminal": False, "noNewPrivileges": True, "capabilities": {}}
    if arguments is not None:
        process["args"] = [*process["args"][:3], *arguments]
    config["root"]["readonly"] = True
    config["mounts"] = [m for m in config["mounts"] if m["destination"] not in ("/work", "/etc/resolv.conf")]
    config["mounts"].append(
        {"destination": "/work", "type": "bind", "source": str(work), "options": ["bind", "rw", "nosuid", "nodev"]}
    )
    namespaces = {space["type"] for space in config["linux"]["namespaces"]} - {"user"} | {"network"}
    config["linux"] |= {"namespaces": [{"type": name} for name in sorted(namespaces)], "uidMappings": None}
    config["linux"].pop("gidMappings", None)
    config["linux"].pop("resources", None)
    config["process"].pop("rlimits", None)
    (bundle / "config.json").write_text(json.dumps(config))


def start(bundle: Path, work: Path, arguments: list[str] | None, *, name: str) -> subprocess.Popen[str]:
    """Starts a container of the image; `arguments` stand for the image's own command."""
    pristine = (bundle / "config.json").read_bytes()
    harden(bundle, work, arguments)
    command = ["runc", "--root", str(bundle / "state"), "run", "--bundle", str(bundle), name]
    started = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    while not (bundle / "state" / name / "state.json").is_file() and started.poll() is None:
        time.sleep(0.1)
    (bundle / "config.json").write_bytes(pristine)
    return started


def run(bundle: Path, work: Path, arguments: list[str], *, name: str) -> str:
    """Returns what a container printed; its exit code has to be 0."""
    started = start(bundle, work, arguments, name=name)
    output, _ = started.communicate()
    assert started.returncode == 0, f"{' '.join(arguments)} ended with {started.returncode}"
    return output


def run_demo(parent: Path, bundle: Path) -> None:
    """The demo in a container: whole, and ended by SIGTERM."""
    work = parent / "writable"
    work.mkdir()
    os.chown(work, UID, UID)
    found = json.loads(run(bundle, work, ["-c", PROBE], name="probe"))
    assert found == EXPECTED, f"inside the container: {found}, expected {EXPECTED}"
    print(f"inside: {json.dumps(found)}", flush=True)
    short = ["-m", "medcls.train", "experiment=demo", "run=demo/run-short", "trainer.epochs=1"]
    with timed("demo set, store and one epoch"):
        run(bundle, work, short, name="short")
    model = work / "demo/run-short/model.safetensors"
    assert model.is_file(), f"{model} is missing"
    assert model.stat().st_uid == UID, f"{model} belongs to {model.stat().st_uid}"
    with timed("evaluation"):
        run(bundle, work, ["-m", "medcls.evaluate", "run=demo/run-short", "split=test"], name="evaluation")
    assert list(work.glob("demo/run-short/evaluation/*/report.html")), "no report.html"
    end_early(bundle, work)


def end_early(bundle: Path, work: Path) -> None:
    """The image's own command gets SIGTERM after its first epoch: 75 within 30 s, and the same command goes on."""
    started = start(bundle, work, None, name="ended")
    log = work / "demo/run-scratch/metrics.jsonl"
    while not log.is_file() and started.poll() is None:
        time.sleep(0.5)
    assert started.poll() is None, f"the demo ended by itself with {started.returncode}"
    since = time.monotonic()
    subprocess.run(["runc", "--root", str(bundle / "state"), "kill", "ended", "TERM"], check=True)
    code = started.wait(timeout=60)
    seconds = time.monotonic() - since
    print(f"SIGTERM: exit {code} after {seconds:.1f} s", flush=True)
    assert code == 75, f"SIGTERM ended the training with {code}, expected 75"
    assert seconds <= 30, f"SIGTERM took {seconds:.0f} s"
    assert list(work.glob("demo/run-scratch/checkpoints/*/COMPLETE")), "no checkpoint"
    with timed("the same command again, to the end"):
        again = start(bundle, work, None, name="again")
        again.communicate()
    assert again.returncode == 0, f"the same command again ended with {again.returncode}"
    assert (work / "demo/run-scratch/model.safetensors").is_file(), "no model"


if __name__ == "__main__":
    sys.exit(main())
