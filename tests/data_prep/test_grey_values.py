"""A store most of whose images lost their grey levels: refused with the measured values and the setting."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from data_prep import grey_values
from data_prep.grey_values import judge_levels
from data_prep.prepare import prepare
from medcls.data.manifest import read_table, write_table
from medcls.data.store import Store
from medcls.errors import ConfigError, DataError
from medcls.files import sha256_file, write_json
from medcls.imaging.preprocess import PreprocessSpec

HALVES = ("split.test=0.25", "split.val=0.25")
RANGE = ("image.intensity=range", "image.range=[0,4095]")


@pytest.fixture
def deep(write_source: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """A source of 12 patients, 24 images, of which the first `count` are 12 bits in 16-bit PNG."""

    def write(count: int = 24, factor: int = 16) -> Path:
        folder = write_source(tmp_path / f"raw{count}-{factor}", patients=12)
        for path in sorted((folder / "images").iterdir())[:count]:
            picture = cv2.imread(str(path), cv2.IMREAD_UNCHANGED).astype(np.uint16)
            spread = np.arange(picture.size, dtype=np.uint16).reshape(picture.shape) % 16
            cv2.imwrite(str(path), picture * factor + spread)
        return folder

    return write


def test_twelve_bits_in_sixteen_are_refused_and_the_proposed_settings_mend_it(
    deep: Callable[..., Path], run_prepare: Callable[..., Store], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, folder = deep(), tmp_path / "store"
    with pytest.raises(DataError, match=r"24 of 24 images keep fewer than 32 grey levels .*image\.range=\[0,4095\]"):
        run_prepare(source, folder)
    store = run_prepare(source, folder, *RANGE, *HALVES)
    assert min(store.column("stored_levels")) > 100
    assert store.spec.range == (0.0, 4095.0)
    assert set(store.column("value_scaling")) == {"range"}
    assert "grey levels" not in capsys.readouterr().err
    for settings in (("image.intensity=minmax",), ("image.dtype=uint16",)):
        store = run_prepare(source, tmp_path / settings[0], *settings, *HALVES)
        assert min(store.column("stored_levels")) > 100
    assert " images dark: " in capsys.readouterr().err  # uint16 keeps every level, in 1/16 of its range


def test_few_levels_can_be_allowed_without_decoding_again(
    deep: Callable[..., Path],
    run_prepare: Callable[..., Store],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source, folder = deep(), tmp_path / "store"
    with pytest.raises(DataError, match=r"image\.few_levels=allow"):
        run_prepare(source, folder)
    monkeypatch.setattr("data_prep.prepare.decode_shards", lambda *_, **__: pytest.fail("decoded again"))
    store = run_prepare(source, folder, "image.few_levels=allow", *HALVES)
    assert max(store.column("stored_levels")) < 20
    assert "notice: " in capsys.readouterr().err


def test_some_images_of_few_levels_are_said_and_stored(
    deep: Callable[..., Path], run_prepare: Callable[..., Store], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = run_prepare(deep(8), tmp_path / "store", *HALVES)
    assert len(store) == 24
    said = capsys.readouterr().err
    assert "notice: " in said
    assert "8 of 24 images keep fewer than 32 grey levels" in said


def test_eight_bit_images_of_few_levels_are_dark_and_not_a_loss(
    write_source: Callable[..., Path],
    run_prepare: Callable[..., Store],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = write_source(tmp_path / "raw", patients=12)
    for path in (source / "images").iterdir():
        cv2.imwrite(str(path), cv2.imread(str(path), cv2.IMREAD_UNCHANGED) // 12)
    run_prepare(source, tmp_path / "store", *HALVES)
    said = capsys.readouterr().err
    assert "24 of 24 images dark" in said
    assert "image.range=[0,31]" in said


def test_jobs_that_share_the_work_judge_alike(
    deep: Callable[..., Path], run_prepare: Callable[..., Any], compose_job: Callable[..., Any], tmp_path: Path
) -> None:
    source, folder = deep(16), tmp_path / "store"
    shared = ("shard.rows=8", "shard.count=3")
    for index in range(3):  # the last job alone has not one image of few levels
        assert run_prepare(source, folder, *shared, f"shard.index={index}") is None
    arguments = [f"source={source}", f"store={folder}", f"labels={source / 'labels.csv'}", "image.size=32", "workers=0"]
    with pytest.raises(DataError, match="16 of 24 images keep fewer"):
        prepare(compose_job("prepare", *arguments, "shard.rows=8"), decode=False)


def test_a_sample_of_a_large_set_refuses_before_decoding(
    deep: Callable[..., Path], run_prepare: Callable[..., Store], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grey_values, "_WORTH_SAMPLING", 20)
    monkeypatch.setattr(grey_values, "_SAMPLED", 10)
    monkeypatch.setattr("data_prep.prepare.decode_shards", lambda *_, **__: pytest.fail("decoded"))
    with pytest.raises(DataError, match="10 of a sample of 10 images keep fewer than 32 grey levels"):
        run_prepare(deep(), tmp_path / "store")


def test_parts_that_version_0_2_0_left_are_completed(
    deep: Callable[..., Path], run_prepare: Callable[..., Store], tmp_path: Path
) -> None:
    source, folder = deep(0), tmp_path / "store"
    shared = ("shard.rows=12", "shard.count=2")
    for index in range(2):
        run_prepare(source, folder, *shared, f"shard.index={index}")
    for path in (folder / "parts").glob("*0.manifest.parquet"):
        table = read_table(path)
        write_table(path, table.drop_columns([n for n in table.column_names if n.startswith(("value_", "stored_"))]))
        names = path.with_name(path.name.replace("manifest.parquet", "json"))
        part = json.loads(names.read_text())
        part["sha256"][f"parts/{path.name}"] = sha256_file(path)
        write_json(names, part)
    store = run_prepare(source, folder, "shard.rows=12", *HALVES)
    levels = store.column("stored_levels")
    assert (levels[:12], min(levels[12:]) > 100) == ([None] * 12, True)


def test_a_store_that_says_nothing_of_grey_values_is_not_judged() -> None:
    judge_levels(pa.table({"image_id": ["a"]}), PreprocessSpec(), allow=False)


@pytest.mark.parametrize(
    ("low", "high", "proposed"),
    [
        ([0, 5], [3900, 4000], "[0,4095]"),
        ([0, 5], [900, 1000], "[0,1023]"),
        ([0, 5], [4096, 9000], "[0,16383]"),
        ([64512, 64600], [65535, 65535], "[64516,65535]"),
        ([-1024, -1000], [1900, 2000], "[-1023,1995]"),
        ([0.0, 0.0], [0.4, 0.4], "[0,0.4]"),
    ],
)
def test_the_range_proposed_is_that_of_the_files(low: list[float], high: list[float], proposed: str) -> None:
    table = pa.table({"value_low": [float(n) for n in low], "value_high": [float(n) for n in high]})
    assert grey_values._propose(table) == f"image.intensity=range image.range={proposed}"


@pytest.mark.parametrize(
    "arguments",
    [
        ["image.intensity=range"],
        ["image.range=[0,4095]"],
        ["image.intensity=range", "image.range=[5,5]"],
        ["image.intensity=range", "image.range=[5]"],
        ["image.intensity=range", "image.range=[0,5]", "image.windows_hu=[[40,80]]"],
        ["image.few_levels=maybe"],
        ["image.implausible_hu=maybe"],
    ],
)
def test_settings_that_contradict_are_refused(compose_job: Callable[..., Any], arguments: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"image\."):
        compose_job("prepare", *arguments)


def test_values_are_measured_of_the_region_s_file(small_store: Store) -> None:
    assert set(small_store.column("value_scaling")) == {"type"}
    high: NDArray[Any] = np.array(small_store.column("value_high"))
    assert high.max() <= 255
    assert min(small_store.column("stored_levels")) > 100
