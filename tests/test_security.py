"""What the sources may not do, what importing may not do, and versions with known holes that nobody may install."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted(path for package in ("medcls", "data_prep") for path in (ROOT / package).rglob("*.py"))
MODULES = [".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for p in SOURCES]

CODE_LOADERS = {
    "pickle",
    "_pickle",
    "cPickle",
    "dill",
    "cloudpickle",
    "shelve",
    "marshal",
    "joblib",
    "jsonpickle",
    "code",
}
FORBIDDEN_CALLS = {
    *("eval", "exec", "compile", "__import__", "execfile"),
    *("yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.full_load"),
    *("hydra.utils.instantiate", "hydra.utils.call", "hydra.utils.get_class", "hydra.utils.get_method", "instantiate"),
    *("os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput", "pty.spawn"),
    *("torch.hub.load", "torch.hub.load_state_dict_from_url", "torch.jit.load", "torch.package.PackageImporter"),
    *("pandas.read_pickle", "pd.read_pickle", "tempfile.mktemp", "importlib.import_module"),
}
FORBIDDEN_METHODS = {"extractall", "read_pickle", "to_pickle", "map_array"}
FORBIDDEN_ATTRIBUTES = {
    *("UnsafeLoader", "FullLoader", "UnpicklingError", "result_pickle", "submitted_pickle"),
    *("add_safe_globals", "load_module", "exec_module", "PyDataType", "ExtensionType", "PyExtensionType"),
}
"""Loaders that build objects, submitit's pickles, and ways to allow more than plain tensors."""


def dotted(node: ast.expr) -> str:
    """ "torch.hub.load" of such an expression, "" for others."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return ""


def says(call: ast.Call, name: str, value: object) -> bool:
    return any(k.arg == name and isinstance(k.value, ast.Constant) and k.value.value is value for k in call.keywords)


def find_offences(source: str) -> Iterator[str]:
    """What a module's syntax tree holds of the forbidden."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            yield from (f"import {name}" for name in names if name.split(".")[0] in CODE_LOADERS)
            if isinstance(node, ast.ImportFrom):
                whole = {f"{node.module}.{a.name}" for a in node.names}
                yield from (f"from-import {name}" for name in sorted(whole & FORBIDDEN_CALLS))
        if isinstance(node, ast.Attribute) and node.attr in FORBIDDEN_ATTRIBUTES:
            yield dotted(node)
        if isinstance(node, ast.Call):
            yield from judge_call(node, dotted(node.func))


def judge_call(call: ast.Call, name: str) -> Iterator[str]:
    if name in FORBIDDEN_CALLS or name.rpartition(".")[2] in FORBIDDEN_METHODS or re.match(r"os\.(exec|spawn)", name):
        yield name
    if name == "torch.load" and not says(call, "weights_only", True):
        yield "torch.load without weights_only=True"
    if any(k.arg == "allow_pickle" for k in call.keywords) and not says(call, "allow_pickle", False):
        yield "allow_pickle="
    if name.partition(".")[0] == "submitit" and name not in ("submitit.AutoExecutor",):
        yield f"{name}: submitit pickles"
    if any(
        k.arg == "shell" and not (isinstance(k.value, ast.Constant) and k.value.value is False) for k in call.keywords
    ):
        yield "shell="
    if name.rpartition(".")[2] == "Environment" and not says(call, "autoescape", True):
        yield "a jinja environment without autoescape=True"


def test_the_rules_see_what_they_forbid() -> None:
    bad = [
        "import pickle", "from pickle import loads", "import joblib", "import torch\ntorch.load('x')",
        "torch.load('x', weights_only=False)", "torch.load('x', weights_only=flag)", "eval('1')", "exec('1')",
        "compile('1', '', 'eval')", "yaml.load(text)", "hydra.utils.instantiate(cfg)", "instantiate(cfg)",
        "from hydra.utils import instantiate", "subprocess.run('x', shell=True)", "subprocess.run('x', shell=flag)",
        "np.load('x', allow_pickle=flag)", "yaml.load(x, Loader=yaml.UnsafeLoader)", "job.paths.result_pickle",
        "submitit.SlurmJob(folder='x', job_id='1')", "pd.read_pickle('x')", "torch.serialization.add_safe_globals([x])",
        "os.system('x')", "os.execv('x', [])", "archive.extractall()", "np.load('x', allow_pickle=True)",
        "Environment(loader=x)", "__import__('os')", "importlib.import_module(name)",
    ]  # fmt: skip
    assert [code for code in bad if not list(find_offences(code))] == []
    good = [
        "torch.load('x', weights_only=True)",
        "re.compile('x')",
        "torch.compile(model)",
        "np.load('x')",
        "model.eval()",
    ]
    assert [code for code in good if list(find_offences(code))] == []


@pytest.mark.parametrize("path", SOURCES, ids=MODULES)
def test_no_source_runs_what_it_reads(path: Path) -> None:
    assert list(find_offences(path.read_text(encoding="utf-8"))) == []


def test_configurations_and_templates_are_data() -> None:
    for path in (ROOT / "conf").rglob("*.yaml"):
        text = path.read_text(encoding="utf-8")
        assert "_target_" not in text, path
        assert not re.search(r"\$\{[^}]*:", text), f"{path}: a resolver"
    raw = [
        found
        for path in (ROOT / "medcls").rglob("*.j2")
        for found in re.findall(r"\{\{[^}]*\|\s*safe\b[^}]*\}\}|autoescape", path.read_text(encoding="utf-8"))
    ]
    assert sorted(raw) == ["{{ script | safe }}", "{{ slider_json | safe }}"]


IMPORT_ALL = """
import importlib, sys
import socket
events = []
def note(name, arguments):
    # urllib3, which pydicom brings in, asks whether there is IPv6: it binds a port of the loopback and closes it.
    probe = name == "socket.__new__" or (name == "socket.bind" and arguments[1] == ("::1", 0))
    if name.startswith("socket.") and not probe:
        events.append(f"{name} {arguments}")
sys.addaudithook(note)
socket.socket.listen = lambda *arguments: sys.exit("something listens")
for name in sys.argv[1:]:
    importlib.import_module(name)
if events:
    sys.exit(f"sockets: {events}")
"""


def test_importing_connects_to_nothing_and_nothing_listens() -> None:
    names = [name for name in MODULES if not name.endswith(("__main__", "ray_executor"))]
    done = run_python("-c", IMPORT_ALL, *names)
    assert done.returncode == 0, done.stderr


def run_python(*arguments: str, prefix: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [*prefix, sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600, check=False)


WITHOUT_NETWORK = """
import socket, sys
from medcls.cli.command_line import run_command
try:
    socket.create_connection(("192.0.2.1", 80), timeout=2)
    sys.exit("there is a network")
except OSError:
    pass
import medcls.train.__main__, data_prep.__main__
for name, main, arguments in (("prepare", data_prep.__main__.main, 1), ("train", medcls.train.__main__.main, 2)):
    words = sys.argv[arguments].split("|")
    saved, sys.argv = sys.argv, ["prog", *words]
    try:
        run_command(name, main, program="prog")
    except SystemExit as stop:
        if stop.code:
            raise
    sys.argv = saved
"""


def test_the_stages_need_no_network(write_source: Callable[..., Path], tmp_path: Path) -> None:
    prefix = ("unshare", "--map-root-user", "--net")
    trial = shutil.which("unshare") and subprocess.run([*prefix, "true"], capture_output=True, check=False)
    if not trial or trial.returncode:
        pytest.skip("unshare --net is not allowed here: the network cannot be cut off")
    raw = write_source(tmp_path / "raw", patients=12)
    prepare = f"source={raw}|labels={raw}/labels.csv|store={tmp_path}/store|image.size=32|workers=0|split.val=0.25"
    train = f"store={tmp_path}/store|run={tmp_path}/run|model.weights=null|trainer.epochs=1|trainer.max_steps=1"
    train += "|workers=0|trainer.channels_last=false|trainer.batch_size=4"
    done = run_python("-c", WITHOUT_NETWORK, prepare, train, prefix=prefix)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run/model.safetensors").is_file()


# The first version without the hole, and the advisory. Only packages that read what others wrote, or could run it.
FLOORS = {
    "torch": ("2.13.0", "CVE-2025-32434, CVE-2026-24747: weights_only=True ran code (2.6, 2.10); CVE-2025-3000"),
    "monai": ("1.6.1", "CVE-2026-109361, CVE-2026-109360: pickles behind nnU-Net results and SENet weights"),
    "hydra-core": ("1.3.7", "CVE-2026-68508, CVE-2026-106439, CVE-2026-106441: instantiate and log handlers run code"),
    "pillow": ("13.0.0", "CVE-2026-96639, GHSA-5x8w-8jj5-q52h, GHSA-462x-pgg6-55fp: memory errors in JPEG and TIFF"),
    "pydicom": ("3.0.2", "CVE-2026-32711: path traversal in FileSet"),
    "jinja2": ("3.1.6", "CVE-2025-27516: |attr leaves the sandbox"),
    "pyarrow": ("17.0.0", "CVE-2023-47248: parquet ran code (14.0.1); CVE-2024-52338"),
    "opencv-python-headless": ("4.12.0", "CVE-2025-53644: uninitialised pointer in JPEG (4.10, 4.11)"),
    "imagecodecs": ("2023.9.18", "PYSEC-2023-174: bundled libwebp, CVE-2023-4863"),
    "tqdm": ("4.66.3", "CVE-2024-34062: eval of command-line arguments"),
    "ray": ("2.56.0", "CVE-2026-41486, CVE-2026-57516: parquet metadata and WebDataset ran pickles"),
    "scikit-learn": ("1.5.0", "CVE-2024-5206: stored tokens of the training text"),
}  # fmt: skip


def read_requirements() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [line for lines in project["optional-dependencies"].values() for line in lines]
    return [Requirement(line) for line in [*project["dependencies"], *extras]]


@pytest.mark.parametrize("name", FLOORS)
def test_no_version_with_a_known_hole_can_be_installed(name: str) -> None:
    floor, advisory = Version(FLOORS[name][0]), FLOORS[name][1]
    ranges = [r.specifier for r in read_requirements() if r.name.lower() == name]
    assert ranges, f"{name} is required no more: take it out of FLOORS"
    for specifier in ranges:
        lowest = min(Version(s.version) for s in specifier if s.operator in (">=", "=="))
        assert lowest >= floor, f"pyproject.toml allows {name} {lowest}: {advisory}"
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line[:60])
    pinned = {key.strip().lower(): Version(value.strip()) for key, value in pins.items() if not key.startswith("#")}
    assert pinned[name] >= floor, f"constraints.txt pins {name} {pinned[name]}: {advisory}"
