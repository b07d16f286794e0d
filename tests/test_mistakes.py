"""A mistake in a command line or a missing input is said before torch is imported, by every command."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from medcls.files import DATASET, MODEL
from tests.test_entry import COMMANDS

# {gone}: a path that is not there; {store}, {run}: what looks complete from outside; {new}: a path for output.
MISTAKES: dict[str, list[tuple[int, str, list[str]]]] = {
    "data_prep": [
        (78, "image.sise", ["source={gone}", "image.sise=64"]),
        (66, "source=", ["source={gone}", "store={new}"]),
        (66, "labels=", ["source={store}", "labels={gone}", "store={new}"]),
    ],
    "data_prep.demo": [(64, "num_images=0", ["out={new}", "num_images=0"])],
    "data_prep.demo3d": [(64, "num_source=0", ["out={new}", "num_source=0"])],
    "data_prep.index": [(78, "sources", ["sources={gone}"]), (66, "source=", ["source={gone}"])],
    "data_prep.key": [(64, "expected out=FILE", ["file={new}"])],
    "data_prep.merge": [
        (78, "shard.cuont", ["source={gone}", "shard.cuont=2"]),
        (66, "source=", ["source={gone}", "store={new}"]),
        (66, "labels=", ["source={store}", "labels={gone}", "store={new}"]),
    ],
    "data_prep.show": [(78, "stroe", ["stroe={gone}"]), (66, "store=", ["store={gone}"])],
    "medcls.compare": [
        (78, "arms.a: optimizer.lrr", ["store={store}", "out={new}", "arms.a=[optimizer.lrr=1]"]),
        (78, "arms.a: optimizer.lr=-1", ["store={store}", "out={new}", "arms.a=[optimizer.lr=-1]"]),
        (78, "only=b", ["store={store}", "out={new}", "arms.a=[seed=1]", "only=[b]"]),
        (66, "store=", ["store={gone}", "out={new}", "arms.a=[model=resnet18]"]),
        (66, "model.weights=", ["store={store}", "out={new}", "arms.a=['model.weights={gone}']"]),
        (
            66,
            "store=",
            ["store={store}", "out={new}", "stores.b={gone}", "arms.a={{steps:[['store=b'],['model=vgg11']]}}"],
        ),
    ],
    "medcls.evaluate": [
        (78, "splitt", ["run={run}", "splitt=val"]),
        (66, "run=", ["run={gone}"]),
        (66, "run=", ["run=[{run},{gone}]", "out={new}"]),
        (66, "model.safetensors", ["run={store}"]),
        (66, "against=", ["run={run}", "against={gone}"]),
        (66, "store=", ["run={run}", "store={gone}"]),
        (66, "analysis=", ["run={run}", "analysis={gone}"]),
        (66, "readers=", ["run={run}", "readers={gone}"]),
        (66, "samplesize=", ["run={run}", "samplesize={gone}"]),
        (66, "predictions=", ["predictions={gone}", "out={new}"]),
    ],
    "medcls.explain": [
        (78, "method=gradcamm", ["run={run}", "method=gradcamm"]),
        (66, "run=", ["run={gone}"]),
        (66, "store=", ["run={run}", "store={gone}"]),
        (66, "boxes=", ["run={run}", "boxes={gone}"]),
    ],
    "medcls.doctor": [(64, "device=auto|cuda|cpu", ["divice=cpu"]), (78, "device=gpu", ["device=gpu", "trial=false"])],
    "medcls.fetch": [
        (64, "expected model=NAME", ["modle=resnet18"]),
        (78, "nearest: resnet18", ["model=resnet81"]),
        (64, "model=timm: model.name=NAME", ["model=timm"]),
        (66, "weights_dir=", ["model=resnet18", "weights_dir={gone}"]),
    ],
    "medcls.launch": [
        (64, "predict: expected train or pretrain", ["predict", "run={run}"]),
        (78, "optimizer.lrr", ["--nproc-per-node=2", "train", "store={store}", "run={new}", "optimizer.lrr=1"]),
        (66, "store=", ["--nproc-per-node", "2", "store={gone}", "run={new}"]),
        (66, "store=", ["--nproc-per-node=2", "pretrain", "store={gone}", "run={new}", "model=autoencoder3d"]),
        (64, "run=DIR is missing", ["--standalone", "train", "store={store}"]),
    ],
    "medcls.networks": [
        (64, "expected [WORD", ["model=timm"]),
        (66, "weights_dir=", ["resnet18", "weights_dir={gone}"]),
    ],
    "medcls.predict": [
        (78, "out_of_domain=alow", ["run={run}", "source={store}", "out={new}.csv", "out_of_domain=alow"]),
        (66, "run=", ["run={gone}", "source={store}", "out={new}.csv"]),
        (66, "source=", ["run={run}", "source={gone}", "out={new}.csv"]),
        (66, "clinical_file=", ["run={run}", "source={store}", "out={new}.csv", "clinical_file={gone}"]),
        (66, "boxes=", ["run={run}", "source={store}", "out={new}.csv", "boxes={gone}"]),
    ],
    "medcls.pretrain": [
        (78, "stakcing", ["store={store}", "run={new}", "stakcing=joint"]),
        (66, "store=", ["store={gone}", "run={new}"]),
    ],
    "medcls.samplesize": [(78, "expectd", ["expectd=0.8"]), (64, "aim is missing", ["expected=0.8"])],
    "medcls.compare.comparison_task": [(64, "medcls.compare executor=slurm starts it", [])],
    "medcls.train": [
        (78, "optimizer.lrr", ["store={store}", "run={new}", "optimizer.lrr=1"]),
        (78, "optimizer.lr=-1", ["store={store}", "run={new}", "optimizer.lr=-1"]),
        (66, "store=", ["store={gone}", "run={new}"]),
        (66, "model.weights=", ["store={store}", "run={new}", "model.weights={gone}"]),
        (66, "weights_dir=", ["store={store}", "run={new}", "model=resnet18", "weights_dir={gone}"]),
    ],
}

# One process for all, and a fork for each command, which runs as by python -m; an import of torch ends it with 99.
_RUN_ALL = """
import json, os, runpy, sys, tempfile
import medcls.cli.command_line
class Slow(BaseException): pass
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name in ("torch", "torchvision", "monai", "albumentations"):
            raise Slow(name)
sys.meta_path.insert(0, Finder())
found = []
for command, arguments in json.load(sys.stdin):
    with tempfile.TemporaryFile() as told:
        child = os.fork()
        if not child:
            for descriptor in (1, 2):
                os.dup2(told.fileno(), descriptor)
            sys.argv = [command, *arguments]
            try:
                runpy.run_module(command, run_name="__main__", alter_sys=True)
                code = 0
            except SystemExit as end:
                code = end.code or 0
            except Slow as slow:
                print(f"imports {slow}")
                code = 99
            sys.stdout.flush()
            os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        told.seek(0)
        found.append((code, told.read().decode()))
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def answer(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int], tuple[Any, str]]:
    """What a command said to its Nth mistake, and its exit code."""
    folder = tmp_path_factory.mktemp("mistakes")
    places = {name: folder / name for name in ("gone", "store", "run", "new")}
    for name, file in (("store", DATASET), ("run", MODEL)):
        places[name].mkdir()
        (places[name] / file).write_text("{}")
    asked = [(command, place) for command, cases in MISTAKES.items() for place in range(len(cases))]
    typed = [
        (command, [argument.format(**places) for argument in MISTAKES[command][place][2]]) for command, place in asked
    ]
    done = subprocess.run(
        [sys.executable, "-c", _RUN_ALL], input=json.dumps(typed), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert not places["new"].exists()
    found = dict(zip(asked, json.loads(done.stdout), strict=True))
    return lambda command, place: found[command, place]


def test_every_command_is_tried() -> None:
    assert sorted(MISTAKES) == COMMANDS


@pytest.mark.parametrize(
    ("command", "place"), [(command, place) for command, cases in MISTAKES.items() for place in range(len(cases))]
)
def test_mistake_is_said_in_one_line_before_torch(
    answer: Callable[[str, int], tuple[Any, str]], command: str, place: int
) -> None:
    code, text, _ = MISTAKES[command][place]
    assert answer(command, place)[0] == code, answer(command, place)[1][-2000:]
    last = answer(command, place)[1].strip().splitlines()[-1]
    assert text in last
    assert command.removeprefix("medcls.compare.") in last
