"""Each stage with each of its writes failing: 74 and one line; killed at it; and then the result as never disturbed."""

from __future__ import annotations

import errno
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from medcls.cli.command_line import _explain
from medcls.compare.compare import compare
from medcls.data.store import Store
from medcls.evaluate.evaluate import evaluate
from medcls.files import PRIVATE, TEMPORARY, read_json, read_json_lines, sha256_file
from medcls.predict.predict import predict
from medcls.pretrain.pretrain import pretrain
from medcls.train.train import train
from tests.failing_disk import Disk, KilledError


class Stage(NamedTuple):
    """One command: what makes its folder and the inputs in it, and what runs it there and returns its results."""

    begin: Callable[[Path], Any]
    run: Callable[[Path], dict[str, Any]]


FAULTS = ((errno.ENOSPC, True), (errno.EIO, False), (errno.EROFS, True), (errno.ESTALE, False))
_VOLATILE = {"data_wait_share", "seconds", "images_per_second", "openings", "time", "created", "content_sha256", "cost"}
"""What differs from run to run; an evaluation that was broken off was an opening, too."""


def strip(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: strip(value) for key, value in content.items() if key not in _VOLATILE}
    return [strip(each) for each in content] if isinstance(content, list) else content


@pytest.fixture
def stages(
    compose_job: Callable[..., Any],
    compose_train: Callable[..., Any],
    store: Store,
    source: Path,
    run_prepare: Callable[..., Store],
    tmp_path: Path,
    tiny2d: None,
    request: pytest.FixtureRequest,
) -> dict[str, Stage]:
    """The stages by name; their results are to be the same every time."""
    quick = ("trainer.epochs=2", "trainer.max_steps=3", "checkpoint.minutes=0")
    base = tmp_path / "base"

    def make_base() -> Path:
        None if base.exists() else train(compose_train(base, *quick))
        return base

    def prepare_there(work: Path) -> dict[str, Any]:
        found = run_prepare(source, work / "store", "shard.rows=24")
        names = ["manifest.parquet", "ledger.parquet", "labels.parquet", *(f"shard-0000{n}.npy" for n in range(2))]
        return {name: sha256_file(found.folder / name) for name in [*names, "splits/default.parquet"]}

    def train_there(work: Path) -> dict[str, Any]:
        train(compose_train(work / "run", *quick))
        rows = [
            {k: v for k, v in row.items() if "second" not in k} for row in read_json_lines(work / "run/metrics.jsonl")
        ]
        names = ("model.safetensors", "patients.parquet", "images.parquet", "contact_sheet.png")
        return {"rows": strip(rows)} | {name: sha256_file(work / "run" / name) for name in names}

    def evaluate_there(work: Path) -> dict[str, Any]:
        run = work / "run"
        given = ("split=test", "report=false", "replicates=50", "workers=0", "device=cpu")
        evaluate(compose_job("evaluate", f"run={run}", *given))
        folder = run / "evaluation" / "store-test"
        kept = {name: strip(read_json(run / name)) for name in ("operating_points.json", "calibration.json")}
        predictions = sha256_file(folder / "predictions.parquet")
        return kept | {"metrics": strip(read_json(folder / "metrics.json")), "predictions": predictions}

    def predict_there(work: Path) -> dict[str, Any]:
        few = tmp_path / "few"
        if not few.exists():
            few.mkdir()
            for name in ("p00L.png", "p01L.png"):
                shutil.copy(source / "images" / name, few)
            (tmp_path / "key.txt").write_text("ab" * 32)
        given = (f"run={make_base()}", f"source={few}", f"out={work / 'p.csv'}", "workers=0", "device=cpu")
        key = ("deidentify.kind=hmac", f"deidentify.key_file={tmp_path / 'key.txt'}", "out_of_domain=allow")
        predict(compose_job("predict", *given, *key))
        return {path.name: path.read_bytes() for path in work.iterdir() if path.is_file()}

    def pretrain_there(work: Path) -> dict[str, Any]:
        volumes: Store = request.getfixturevalue("volume_store")
        given = ("trainer.batch_size=12", "trainer.epochs=1", "workers=0", "device=cpu", "figures=1")
        more = ("model=autoencoder3d_hosseini", "checkpoint.minutes=0")
        pretrain(compose_job("pretrain", f"store={volumes.folder}", f"run={work / 'run'}", *given, *more))
        return {name: sha256_file(work / "run" / name) for name in ("model.safetensors", "patients.parquet")}

    def compare_there(work: Path) -> dict[str, Any]:
        request.getfixturevalue("executor")
        common = "model.weights=null,trainer.batch_size=8,trainer.epochs=1,trainer.max_steps=1,workers=0,device=cpu"
        given = (f"store={work / 'store'}", f"out={work / 'out'}", f"common=[{common},task=multiclass,augment=none]")
        compare(compose_job("compare", *given, "arms.a=[]", "folds.k=2", "folds.val=0.34", "replicates=100"))
        return strip(read_json(work / "out" / "comparison.json")["sizes"])  # type: ignore[no-any-return]

    return {
        "prepare": Stage(Path.mkdir, prepare_there),
        "train": Stage(Path.mkdir, train_there),
        "evaluate": Stage(lambda work: shutil.copytree(make_base(), work / "run"), evaluate_there),
        "predict": Stage(Path.mkdir, predict_there),
        "pretrain": Stage(Path.mkdir, pretrain_there),
        "compare": Stage(lambda work: shutil.copytree(store.folder, work / "store"), compare_there),
    }


def count_steps(stage: Stage, work: Path) -> tuple[dict[str, Any], list[str]]:
    """What an undisturbed run gives, and its steps."""
    stage.begin(work)
    with Disk(work) as disk:
        whole = stage.run(work)
    return whole, disk.steps


def check_failure(stage: Stage, work: Path, number: int, whole: dict[str, Any], capsys: Any) -> None:
    """Let a step fail, then run undisturbed."""
    error, lasting = FAULTS[number % len(FAULTS)]
    stage.begin(work)
    capsys.readouterr()
    with Disk(work, fail_at=number, error=error, lasting=lasting) as disk:
        try:
            first, code = stage.run(work), 0
        except Exception as raised:
            first, code = {}, _explain("command", raised)
    said = capsys.readouterr().err
    where = f"step {number}: {disk.steps[number - 1]}, {errno.errorcode[error]}: exit {code}\n{said[-1500:]}"
    assert disk.failed, where
    assert code in (0, 74), where
    assert "Traceback" not in said, where
    lines = ("command: cannot write", "command: cannot read", "command: 1 of 1 arms failed")
    assert sum(said.count(line) for line in lines) == (code == 74), where
    assert code == 74 or first == whole, where
    assert stage.run(work) == whole, where
    check_tidy(work, where)


def check_kill(stage: Stage, work: Path, number: int, whole: dict[str, Any], capsys: Any) -> None:
    """Kill at a step, then run undisturbed."""
    stage.begin(work)
    with Disk(work, kill_at=number) as disk, pytest.raises(KilledError):
        stage.run(work)
    capsys.readouterr()
    where = f"killed at step {number}: {disk.steps[number - 1]}"
    assert stage.run(work) == whole, where
    check_tidy(work, where)


def check_tidy(work: Path, where: str) -> None:
    left = [str(path.relative_to(work)) for path in work.rglob("*") if path.name.startswith((TEMPORARY, PRIVATE))]
    assert left == [], where


def spread(number: int, count: int) -> Iterator[int]:
    yield from sorted({1 + round(k * (number - 1) / (count - 1)) for k in range(count)})


@pytest.mark.parametrize("name", ["prepare", "train", "evaluate", "predict"])
def test_stage_that_fails_or_is_killed_at_some_writes_gives_the_same_the_next_time(
    stages: dict[str, Stage], name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, steps = count_steps(stages[name], tmp_path / "whole")
    for number in spread(len(steps), 3):
        check_failure(stages[name], tmp_path / f"f{number}", number, whole, capsys)
    for number in (len(steps) // 2,):
        check_kill(stages[name], tmp_path / f"k{number}", number, whole, capsys)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["prepare", "train", "evaluate", "predict", "pretrain", "compare"])
def test_stage_that_fails_or_is_killed_at_any_write_gives_the_same_the_next_time(
    stages: dict[str, Stage], name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, steps = count_steps(stages[name], tmp_path / "whole")
    faults = []
    # A comparison is 429 steps of seconds each, most of them those of its trainings and evaluations: every 23rd.
    for number in range(1, len(steps) + 1, 23 if name == "compare" else 1):
        for check, work in ((check_failure, tmp_path / f"f{number}"), (check_kill, tmp_path / f"k{number}")):
            try:
                check(stages[name], work, number, whole, capsys)
            except (Exception, pytest.fail.Exception) as fault:  # all of them: a sweep takes minutes
                faults.append(f"step {number} of {len(steps)}, {check.__name__}: {type(fault).__name__}: {fault}")
            shutil.rmtree(work, ignore_errors=True)
    assert faults == [], "\n".join(faults)


@pytest.mark.parametrize("name", ["prepare", "predict"])
def test_disk_that_takes_little_at_a_time_and_slowly_changes_nothing(
    stages: dict[str, Stage], name: str, tmp_path: Path
) -> None:
    whole, _ = count_steps(stages[name], tmp_path / "whole")
    stages[name].begin(tmp_path / "slow")
    with Disk(tmp_path / "slow", piece=997, pause=0.0002):
        assert stages[name].run(tmp_path / "slow") == whole


@pytest.mark.slow
def test_disk_that_is_really_full_ends_data_prep_with_74_and_more_room_completes_the_store(
    stages: dict[str, Stage], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, _ = count_steps(stages["prepare"], tmp_path / "whole")
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=40k", "tmpfs", str(small)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting is not allowed")
    try:
        for _ in range(2):
            with pytest.raises(Exception, match="No space left on device") as caught:
                stages["prepare"].run(small)
            assert _explain("command", caught.value) == 74
        subprocess.run(["mount", "-o", "remount,size=8m", str(small)], check=True)
        assert stages["prepare"].run(small) == whole
        check_tidy(small, "a full disk")
    finally:
        subprocess.run(["umount", str(small)], check=True)
