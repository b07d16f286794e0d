"""Builds the Dockerfile unmodified and runs the image as a strict cluster does; exits 0 where everything held.

    python -m tests.deploy.container [--work DIR] [--base IMAGE] [--keep] [-- further arguments of buildah bud]

As root, with Debian's buildah, runc and mmdebstrap; no Docker engine. Where no registry serves the base image, a
stand-in of the same name is made by mmdebstrap: Debian with Python 3.11. The build sees this machine's pip
configuration and certificates, mounted while it runs. The image is not copied: its root is mounted by buildah and run
by runc, read-only, without capabilities and network, with one writable folder. `make container-test` calls this.
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
FROM = "docker.io/library/python:3.11-slim"
IMAGE = "localhost/medcls:test"
UID = 10001
TOOLS = ("buildah", "runc", "mmdebstrap")
NEEDED_GIB = 33
# Where a machine says which index pip asks, and whom it trusts.
MOUNTED = ("/etc/pip.conf", "/etc/ssl/certs/ca-certificates.crt")
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


@dataclass(frozen=True, slots=True)
class Image:
    """What was built.

    Attributes:
        root: Its files, mounted.
        config: What the Dockerfile says of it: User, Env, Entrypoint, Cmd, WorkingDir, StopSignal, Labels.
        work: Folder in which its containers are described and write.
    """

    root: Path
    config: dict[str, Any]
    work: Path


def main() -> int:
    """Returns 0, or 1 after a line that says what did not hold."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("/var/tmp/medcls-container-test"))
    parser.add_argument("--base", help=f"an image that buildah can pull, instead of a stand-in for {FROM}")
    parser.add_argument("--keep", action="store_true", help="leave the image for a look")
    parser.add_argument("build_arguments", nargs="*")
    arguments = parser.parse_args()
    check_tools(arguments.work)
    try:
        with timed("base image"):
            make_base(arguments.work, arguments.base)
        with timed("build"):
            build(arguments.work, arguments.build_arguments)
        with timed("mount"):
            image = mount(arguments.work)
        check_image(image)
        check_inside(image)
        run_demo(image)
    except (AssertionError, subprocess.SubprocessError) as error:
        print(f"container-test FAILED: {error}", file=sys.stderr)
        return 1
    finally:
        if not arguments.keep:
            delete(arguments.work)
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
        sys.exit(f"{work} has {free:.0f} GiB free: {NEEDED_GIB} are needed (torch with CUDA, five times at most)")


def buildah(work: Path, *arguments: str, log: Path | None = None) -> str:
    """Returns what buildah prints, or leaves it in `log`; its images and containers lie under `work` alone."""
    command = ["buildah", "--root", f"{work}/storage", "--runroot", f"{work}/runroot", *arguments]
    if log is None:
        return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
    with log.open("w") as file:
        done = subprocess.run(command, stdout=file, stderr=file, check=False)
    assert done.returncode == 0, f"buildah {arguments[0]} failed:\n" + "\n".join(log.read_text().splitlines()[-15:])
    return ""


def delete(work: Path) -> None:
    """Deletes images, containers and files; what is still mounted is not deleted through its mount."""
    buildah(work, "rm", "--all")
    buildah(work, "rmi", "--all", "--force")
    # The storage mounts its own folder, so that the mounts in it stay in it.
    subprocess.run(["umount", "--quiet", f"{work}/storage/overlay"], check=False)
    shutil.rmtree(work, ignore_errors=True)


def make_base(work: Path, base: str | None) -> None:
    """Makes an image of the Dockerfile's FROM name: the one that was named, or a stand-in."""
    if base is not None:
        buildah(work, "pull", base)
        buildah(work, "tag", base, FROM)
        return
    container = buildah(work, "from", "scratch")
    root = Path(buildah(work, "mount", container))
    packages = "--include=ca-certificates,python3,python3-venv"
    command = ["mmdebstrap", "--quiet", "--variant=apt", packages, "bookworm", str(root), *find_mirror()]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 0, f"mmdebstrap: {done.stderr[-1500:]}"
    for name in ("python", "python3"):
        (root / "usr/local/bin" / name).symlink_to("/usr/bin/python3.11")
    buildah(work, "commit", "--quiet", "--rm", container, FROM)


def find_mirror() -> list[str]:
    """Returns the Debian mirror that apt uses on this machine, [] for mmdebstrap's own."""
    command = ["apt-get", "indextargets", "--format", "$(SITE) $(CODENAME)", "Created-By: Packages"]
    lines = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    return [line.split()[0] for line in lines if line.endswith(" bookworm")][:1]


def build(work: Path, arguments: list[str]) -> None:
    """Builds the Dockerfile as it stands."""
    options = ["--isolation", "chroot", "--pull-never", "--format", "oci", "--network", "host", "--tag", IMAGE]
    options += [f"--volume={path}:{path}:ro" for path in MOUNTED if Path(path).is_file()]
    buildah(work, "bud", *options, *arguments, str(ROOT), log=work / "build.log")


def mount(work: Path) -> Image:
    """Returns the image, its files mounted and not copied."""
    container = buildah(work, "from", "--pull-never", IMAGE)
    root = Path(buildah(work, "mount", container))
    described = json.loads(buildah(work, "inspect", "--type", "image", IMAGE))
    (work / "writable").mkdir()
    os.chown(work / "writable", UID, UID)
    return Image(root, described["OCIv1"]["config"], work)


def check_image(image: Image) -> None:
    """What the image says, and that neither sources nor what the build was given are left in it."""
    config = image.config
    assert config["User"] == str(UID), f"user {config['User']}"
    assert config["Entrypoint"] == ["/usr/bin/tini", "--", "python"], config["Entrypoint"]
    assert config["Cmd"] == ["-m", "medcls.train"], config["Cmd"]
    assert config["WorkingDir"] == "/work", config["WorkingDir"]
    assert config["StopSignal"] == "SIGTERM", config["StopSignal"]
    assert config["Labels"]["org.opencontainers.image.title"] == "medcls", f"labels {config['Labels']}"
    assert not (image.root / "src").exists(), "the sources are in the image"
    pip = image.root / "etc/pip.conf"
    assert not pip.exists() or not pip.read_text(), "pip's configuration of the building machine is in the image"
    size = subprocess.run(["du", "-sm", str(image.root)], check=True, stdout=subprocess.PIPE, text=True)
    print(f"image: {int(size.stdout.split()[0]) / 1024:.1f} GiB", flush=True)


def start(image: Image, arguments: list[str], *, name: str) -> subprocess.Popen[str]:
    """Starts a container, read-only, without capabilities and network; `arguments` follow the image's entry point."""
    bundle = image.work / name
    bundle.mkdir()
    subprocess.run(["runc", "spec", "--bundle", str(bundle)], check=True)
    config = json.loads((bundle / "config.json").read_text())
    config["root"] = {"path": str(image.root), "readonly": True}
    config["process"] |= {
        "terminal": False,
        "user": {"uid": UID, "gid": UID},
        "args": [*image.config["Entrypoint"], *arguments],
        "env": image.config["Env"],
        "cwd": image.config["WorkingDir"],
        "capabilities": {},
        "noNewPrivileges": True,
    }
    writable = {"type": "bind", "source": f"{image.work}/writable", "options": ["bind", "rw", "nosuid", "nodev"]}
    config["mounts"].append({"destination": "/work", **writable})
    assert {"type": "network"} in config["linux"]["namespaces"], "a network of its own has no devices but lo"
    (bundle / "config.json").write_text(json.dumps(config))
    return subprocess.Popen(runc(image, "run", "--bundle", str(bundle), name), stdout=subprocess.PIPE, text=True)


def runc(image: Image, *arguments: str) -> list[str]:
    """Returns a command of runc, which keeps its state under `work`."""
    return ["runc", "--root", f"{image.work}/state", *arguments]


def run(image: Image, arguments: list[str], *, name: str) -> str:
    """Returns what a container printed; its exit code has to be 0."""
    started = start(image, arguments, name=name)
    output, _ = started.communicate()
    assert started.returncode == 0, f"{' '.join(arguments)} ended with {started.returncode}"
    return output


def check_inside(image: Image) -> None:
    """What a process in a container is, and what it can reach."""
    found = json.loads(run(image, ["-c", PROBE], name="probe"))
    assert found == EXPECTED, f"inside the container: {found}, expected {EXPECTED}"
    print(f"inside: {json.dumps(found)}", flush=True)


def run_demo(image: Image) -> None:
    """The image's own command, put out by SIGTERM after an epoch, goes on when it is given again; its evaluation."""
    folder, command = image.work / "writable/demo/run-scratch", image.config["Cmd"]
    with timed("demo set, store and the first epoch"):
        started = start(image, command, name="ended")
        while not (folder / "metrics.jsonl").is_file() and started.poll() is None:
            time.sleep(0.2)
    assert started.poll() is None, f"the demo ended by itself with {started.returncode}"
    since = time.monotonic()
    subprocess.run(runc(image, "kill", "ended", "TERM"), check=True)
    code = started.wait(timeout=60)
    seconds = time.monotonic() - since
    print(f"SIGTERM: exit {code} after {seconds:.1f} s", flush=True)
    assert code == 75, f"SIGTERM ended the training with {code}, expected 75"
    assert seconds <= 30, f"SIGTERM took {seconds:.0f} s"
    assert list(folder.glob("checkpoints/*/COMPLETE")), "no checkpoint"
    with timed("the same command again, to the end"):
        run(image, command, name="again")
    assert (folder / "model.safetensors").stat().st_uid == UID, "the model belongs to somebody else"
    with timed("evaluation"):
        run(image, ["-m", "medcls.evaluate", "run=demo/run-scratch", "split=test"], name="evaluation")
    assert list(folder.glob("evaluation/*/report.html")), "no report.html"


if __name__ == "__main__":
    sys.exit(main())
