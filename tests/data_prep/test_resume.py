"""A store is the same to the byte however it came to be: in one go, after kill -9, by several jobs, or by reuse."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import pytest

from data_prep import prepare as stage
from data_prep import shard_work as decoding
from medcls.data.store import Store
from medcls.errors import BusyError, ConfigError, DataError, MissingInputError
from medcls.locks import lock_folder
from tests.failing_disk import Disk, KilledError

Prepare = Callable[..., Store]
ROOT = Path(__file__).resolve().parent.parent.parent
SMALL = "shard.rows=7"


def digests(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.fixture(scope="module")
def whole(source: Path, run_prepare: Prepare, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Checksums of a store of seven shards, made in one go."""
    return digests(run_prepare(source, tmp_path_factory.mktemp("whole") / "store", SMALL).folder)


@pytest.fixture
def raw(source: Path, tmp_path: Path) -> Path:
    """A copy of the source that a test may change."""
    shutil.copytree(source, tmp_path / "raw")
    return tmp_path / "raw"


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are decoded in this process from here on."""
    names: list[str] = []
    original = decoding.decode_image

    def watch(task: Any) -> Any:
        names.extend(file.name for file in task.files)
        return original(task)

    monkeypatch.setattr(decoding, "decode_image", watch)
    return names


def test_seven_shards_are_seven_shards(whole: dict[str, str]) -> None:
    assert [name for name in sorted(whole) if name.startswith("shard-")] == [f"shard-{n:05d}.npy" for n in range(7)]
    assert not [name for name in whole if name.startswith("parts")]


@pytest.mark.parametrize("workers", [1, 2, pytest.param(8, marks=pytest.mark.slow)])
def test_any_number_of_workers(
    workers: int, whole: dict[str, str], source: Path, tmp_path: Path, run_prepare: Any
) -> None:
    store = run_prepare(source, tmp_path / "store", SMALL, f"workers={workers}")
    assert digests(store.folder) == whole


def command(source: Path, store: Path, *arguments: str) -> list[str]:
    given = [f"source={source}", f"labels={source / 'labels.csv'}", f"store={store}", "image.size=32", "workers=1"]
    return [sys.executable, "-m", "data_prep", *given, SMALL, *arguments]


def kill_after(seconds: float, arguments: list[str]) -> None:
    process = subprocess.Popen(
        arguments, cwd=ROOT, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    time.sleep(seconds)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def kill_when(condition: Callable[[], bool], arguments: list[str]) -> None:
    process = subprocess.Popen(
        arguments, cwd=ROOT, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while process.poll() is None and not condition():
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.mark.parametrize("parts", [0, 2, 6])
def test_after_kill_9_the_same_command_ends_the_same(
    parts: int, whole: dict[str, str], source: Path, tmp_path: Path, run_prepare: Prepare, decoded: list[str]
) -> None:
    store = tmp_path / "store"
    kill_when(lambda: len(list(store.glob("parts/[0-9]*.json"))) >= parts and store.is_dir(), command(source, store))
    left = len(list(store.glob("parts/[0-9]*.json")))
    assert digests(run_prepare(source, store, SMALL).folder) == whole
    assert len(decoded) <= 48 - 7 * min(left, 6)


@pytest.mark.slow
@pytest.mark.parametrize("trial", range(20))
def test_after_kill_9_at_any_moment(trial: int, whole: dict[str, str], source: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    for k in range(3):
        kill_after(0.7 + 0.11 * trial + 0.3 * k, command(source, store))
    subprocess.run(command(source, store), cwd=ROOT, check=True, capture_output=True)
    assert digests(store) == whole


def test_a_file_changed_after_the_interruption_is_read_again(
    raw: Path, source: Path, tmp_path: Path, run_prepare: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(stage, "assemble_store", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run_prepare(raw, tmp_path / "store", SMALL)
    picture = cv2.imread(str(raw / "images" / "p09L.png"), cv2.IMREAD_UNCHANGED)
    cv2.imwrite(str(raw / "images" / "p09L.png"), 255 - picture)
    store = run_prepare(raw, tmp_path / "store", SMALL)
    assert (store.image(store.column("image_id").index("images/p09L.png"))[0] == 255 - picture).all()
    assert digests(store.folder) == digests(run_prepare(raw, tmp_path / "again", SMALL).folder)


def test_jobs_in_any_order_and_a_merge_make_the_same_store(
    whole: dict[str, str], source: Path, tmp_path: Path, run_prepare: Any, compose_job: Any
) -> None:
    store = tmp_path / "store"
    for index in (2, 0):
        assert run_prepare(source, store, SMALL, "shard.count=3", f"shard.index={index}") is None
    job = compose_job(
        "prepare", f"source={source}", f"store={store}", f"labels={source / 'labels.csv'}", "image.size=32", SMALL
    )
    with pytest.raises(MissingInputError, match=r"2 of 7 shards are not decoded .* settings: 1, 4"):
        stage.prepare(job, decode=False)
    run_prepare(source, store, SMALL, "shard.count=3", "shard.index=1")
    merged = stage.prepare(job, decode=False)
    assert merged is not None
    assert digests(merged.folder) == whole


def test_the_merge_command(whole: dict[str, str], source: Path, tmp_path: Path, run_prepare: Any) -> None:
    store = tmp_path / "store"
    for index in (0, 1):
        run_prepare(source, store, SMALL, "shard.count=2", f"shard.index={index}")
    merge = [
        part.replace("data_prep", "data_prep.merge") if part == "data_prep" else part for part in command(source, store)
    ]
    done = subprocess.run(merge, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "48 images" in done.stderr
    assert digests(store) == whole


def test_one_job_twice_at_a_time_is_refused(source: Path, tmp_path: Path, run_prepare: Prepare) -> None:
    store = tmp_path / "store"
    store.mkdir()
    with (
        lock_folder(store, shared=True),
        lock_folder(store / "parts-0-of-2"),
        pytest.raises(BusyError, match="parts-0-of-2 is in use"),
    ):
        run_prepare(source, store, SMALL, "shard.count=2", "shard.index=0")
    with lock_folder(store, shared=True), pytest.raises(BusyError, match="store is in use"):
        run_prepare(source, store, SMALL)


def test_shards_that_do_not_exist_are_a_configuration_error(source: Path, tmp_path: Path, run_prepare: Prepare) -> None:
    with pytest.raises(ConfigError, match=r"shard\.index=3: expected >= 0 and <= 2"):
        run_prepare(source, tmp_path / "store", "shard.count=3", "shard.index=3")


def test_only_what_changed_is_decoded_again(
    raw: Path, tmp_path: Path, run_prepare: Prepare, read_labels_csv: Any, write_labels: Any, decoded: list[str]
) -> None:
    old = run_prepare(raw, tmp_path / "old")
    rows = read_labels_csv(raw / "labels.csv")
    picture = cv2.imread(str(raw / "images" / "p03L.png"), cv2.IMREAD_UNCHANGED)
    cv2.imwrite(str(raw / "images" / "p03L.png"), 255 - picture)  # changed
    cv2.imwrite(str(raw / "images" / "new.png"), picture[::-1])  # new
    rows[0]["side"] = "R"  # another declaration
    write_labels(raw / "labels.csv", [{**rows[0], "path": "images/new.png"}, *rows[:-2]])
    with pytest.raises(DataError, match=f"with reuse={old.folder} only these are decoded"):
        run_prepare(raw, old.folder)
    decoded.clear()
    new = run_prepare(raw, tmp_path / "new", f"reuse={old.folder}")
    assert sorted(decoded) == ["new.png", "p00L.png", "p03L.png"]
    assert digests(new.folder) == digests(run_prepare(raw, tmp_path / "from scratch").folder)


def test_reuse_of_another_kind_of_store_is_refused(
    small_store: Store, source: Path, tmp_path: Path, run_prepare: Prepare
) -> None:
    with pytest.raises(ConfigError, match="was made with another preprocessing: remove reuse="):
        run_prepare(source, tmp_path / "new", f"reuse={small_store.folder}", "image.fit=stretch")


def test_ray_makes_the_same_store(whole: dict[str, str], source: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="ray is an optional dependency")
    store = tmp_path / "store"
    done = subprocess.run(
        [*command(source, store, "executor=ray"), "workers=2"], cwd=ROOT, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    assert digests(store) == whole


def test_a_node_with_another_key_is_refused(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from data_prep.plan import ShardPlan
    from data_prep.ray_executor import _decode_one
    from data_prep.shard_work import ShardSetting
    from medcls.identity import KEY_VARIABLE, Identity
    from medcls.imaging.preprocess import PreprocessSpec

    setting = ShardSetting(source, tmp_path, PreprocessSpec(), Identity())
    monkeypatch.setenv(KEY_VARIABLE, "42" * 32)
    with pytest.raises(ConfigError, match="another de-identification key"):
        _decode_one(ShardPlan(0, [], ""), setting, "hmac", None, Identity("hmac", bytes(32)).fingerprint)


def test_identity_map_killed_at_any_step_is_nowhere_but_in_the_private_folder(
    source: Path, tmp_path: Path, run_prepare: Callable[..., Store]
) -> None:
    (tmp_path / "key.txt").write_text("ab" * 32)
    work = tmp_path / "work"
    arguments = ("deidentify.kind=hmac", f"deidentify.key_file={tmp_path / 'key.txt'}")
    with Disk(work) as disk:
        run_prepare(source, work / "store", *arguments)
    whole = (work / "store.identity-map.csv").read_bytes()
    steps = [number for number, step in enumerate(disk.steps, start=1) if "identity-map" in step]
    assert len(steps) >= 4
    for step in steps:
        shutil.rmtree(work)
        with Disk(work, kill_at=step), pytest.raises(KilledError):
            run_prepare(source, work / "store", *arguments)
        beside = {path.name for path in work.iterdir()}
        assert beside <= {"store", ".private", "store.identity-map.csv"}
        if ".private" in beside:
            assert stat.S_IMODE((work / ".private").stat().st_mode) == 0o700
    # The last one was killed within the map: the next command clears it, also one that ends early.
    (work / ".partial-a1b2c3d4store.identity-map.csv").write_text("of version 0.2.0")
    with pytest.raises(MissingInputError, match="labels="):
        run_prepare(source, work / "store", *arguments, labels="absent.csv")
    assert {path.name for path in work.iterdir()} <= {"store", "store.identity-map.csv"}
    run_prepare(source, work / "store", *arguments)
    assert (work / "store.identity-map.csv").read_bytes() == whole
    assert stat.S_IMODE((work / "store.identity-map.csv").stat().st_mode) == 0o600
