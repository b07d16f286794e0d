"""medcls from Python: the same numbers as the commands, strict about arrays, no Hydra, no test rows."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

import medcls
from medcls.data.regions import ALL
from medcls.data.splits import read_split, rows_of
from medcls.data.store import Store
from medcls.errors import ConfigError, DataError, MissingInputError, UsageError
from medcls.files import MODEL
from medcls.predict.predict import predict

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def raw(store: Store) -> Path:
    return store.folder.parent / "raw"


@pytest.fixture(scope="module")
def frozen(trained: Path, run_evaluate: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the run whose operating points and calibration are frozen."""
    run = tmp_path_factory.mktemp("frozen") / "run"
    shutil.copytree(trained, run)
    run_evaluate(run, "split=val", "report=false")
    return run


def test_folder_gives_the_table_of_the_command_to_the_bit(
    frozen: Path, raw: Path, compose_job: Callable[..., Any], tmp_path: Path
) -> None:
    out = tmp_path / "predictions.parquet"
    predict(compose_job("predict", f"run={frozen}", f"source={raw}", f"out={out}", "workers=0", "device=cpu"))
    expected = pq.read_table(out)
    table = medcls.load(frozen, device="cpu").predict(raw)
    assert table.schema.equals(expected.schema)
    assert table.equals(expected)
    assert any(name.startswith("calibrated_") or name.startswith("above_") for name in table.column_names)
    # A model that is kept answers the second time as the first.
    model = medcls.load(frozen / MODEL, device="cpu")
    model.predict(raw / "images" / "p00L.png")
    assert model.predict(raw).equals(expected)


def test_several_runs_are_averaged_as_by_the_command(
    frozen: Path, trained: Path, raw: Path, compose_job: Callable[..., Any], tmp_path: Path
) -> None:
    out = tmp_path / "predictions.parquet"
    given = (f"run=[{trained},{frozen}]", f"source={raw}", f"out={out}", "workers=0", "device=cpu")
    predict(compose_job("predict", *given))
    assert medcls.load([trained, frozen], device="cpu").predict(raw).equals(pq.read_table(out))


def test_array_of_the_store_has_the_scores_of_its_file(frozen: Path, raw: Path, store: Store) -> None:
    model = medcls.load(frozen, device="cpu")
    assert model.class_names == ["0", "1", "2"]
    pixels = model.read(raw / "images" / "p01L.png")
    row = store.column("image_id").index("images/p01L.png")
    assert pixels.dtype == np.uint8
    assert np.array_equal(pixels, store.image(row))
    (of_file,) = model.predict(raw / "images" / "p01L.png").to_pylist()
    (of_array,) = model.predict(pixels).to_pylist()
    same = set(of_file) - {"image_id", "reason", "detail"}
    assert {name: of_array[name] for name in same} == {name: of_file[name] for name in same}
    assert of_array["image_id"] == "0"
    # Nobody knows what kind of image an array is, and each row says so.
    assert of_array["reason"] == "no_header"
    assert "not compared with those of training" in of_array["detail"]
    batch = model.predict(store.images(np.array([3, row])))
    assert batch.column("image_id").to_pylist() == ["0", "1"]
    assert batch.column("predicted").to_pylist()[1] == of_file["predicted"]


@pytest.mark.parametrize(
    "change",
    [
        lambda pixels: pixels[0],
        lambda pixels: pixels.astype(np.float32) / 255,
        lambda pixels: pixels.astype(np.uint16),
        lambda pixels: pixels[:, :16],
        lambda pixels: np.repeat(pixels, 3, axis=0),
        lambda pixels: pixels[None][:0],
    ],
)
def test_array_that_is_not_as_stored_is_refused(frozen: Path, raw: Path, change: Callable[[Any], Any]) -> None:
    model = medcls.load(frozen, device="cpu")
    with pytest.raises(DataError, match=r"expected stored values, \(1, 32, 32\) or .* uint8"):
        model.predict(change(model.read(raw / "images" / "p01L.png")))


def test_array_has_neither_clinical_values_nor_regions(frozen: Path, raw: Path) -> None:
    model = medcls.load(frozen, device="cpu")
    with pytest.raises(UsageError, match="clinical_file=: an array has no path"):
        model.predict(model.read(raw / "images" / "p01L.png"), clinical_file=raw / "labels.csv")


def test_whole_image_is_not_read_for_a_run_trained_on_regions(
    frozen: Path, raw: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = raw / "images" / "p01L.png"
    for out_of_domain in ("refuse", "allow"):
        model = medcls.load(frozen, device="cpu", out_of_domain=out_of_domain)
        whole = model.read(file)
        (card,) = model.cards
        assert card.domain is not None
        model.cards[0] = replace(card, domain=replace(card.domain, regions=ALL))
        if out_of_domain == "refuse":
            # As the command, which asks for boxes=: the scores of an array of the whole film would look right.
            for look in (model.read, model.predict):
                with pytest.raises(ConfigError, match=r"trained on regions.*boxes=FILE.csv"):
                    look(file)
        else:
            assert np.array_equal(model.read(file), whole)
            assert "trained on regions" in caplog.text


def test_neither_path_nor_array_is_refused_without_its_content(frozen: Path) -> None:
    with pytest.raises(UsageError, match=r"^images: a list: expected a path or a numpy array of stored values$"):
        medcls.load(frozen, device="cpu").predict([[1, 2]])  # type: ignore[arg-type]


def test_refused_files_are_rows_with_a_reason_and_a_notice(
    frozen: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (row,) = medcls.load(frozen, device="cpu").predict(tmp_path).to_pylist()
    assert (row["state"], row["predicted"]) == ("refused", None)
    assert row["reason"]
    shown = capsys.readouterr()
    assert "notice: no image could be classified: 1 file: 0 ok, 1 refused" in shown.err
    assert shown.out == ""


@pytest.mark.parametrize(
    ("path", "error", "message"),
    [
        ("gone", MissingInputError, "run=.*gone is not a folder"),
        ("empty", MissingInputError, "model.safetensors is missing: the training of this run has not finished"),
        ("other.safetensors", ConfigError, "expected a run folder, or model.safetensors in one"),
    ],
)
def test_load_refuses_what_is_not_a_finished_run(
    tmp_path: Path, path: str, error: type[medcls.MedclsError], message: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "other.safetensors").write_bytes(b"")
    with pytest.raises(error, match=message):
        medcls.load(tmp_path / path)


def test_source_that_is_not_there_is_refused(frozen: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match=r"source=.*gone is not there"):
        medcls.load(frozen, device="cpu").predict(tmp_path / "gone")


def test_volume_is_read_and_predicted_as_by_its_file(
    volume_store: Store, run_train: Callable[..., Path], tiny3d: None, tmp_path: Path
) -> None:
    run = run_train(tmp_path / "run", f"store={volume_store.folder}", "model=resnet10_3d", "baseline=false")
    model = medcls.load(run, device="cpu", out_of_domain="allow")
    file = volume_store.folder.parent / "raw" / "v01.nii"
    pixels = model.read(file)
    assert np.array_equal(pixels, volume_store.image(volume_store.column("image_id").index("v01.nii")))
    (of_file,) = model.predict(file).to_pylist()
    (of_array,) = model.predict(pixels).to_pylist()
    assert of_array["logits"] == of_file["logits"]


def test_store_gives_train_and_val_and_keeps_test_closed(store: Store, raw: Path) -> None:
    opened = medcls.open_store(store.folder)
    splits, _ = read_split(store, "default")
    assert (len(opened), opened.shape, opened.split) == (len(store), (1, 32, 32), "default")
    with (raw / "labels.csv").open(newline="") as file:
        given = {row["path"]: row["label"] for row in csv.DictReader(file)}
    for part in ("train", "val"):
        rows = rows_of(splits, part)
        table = opened.labels(part)
        assert opened.counts[part] == len(table) == len(rows)
        assert table.column("image_id").to_pylist() == store.column("image_id", rows)
        assert table.column("label").to_pylist() == [given[name] for name in table.column("image_id").to_pylist()]
        assert np.array_equal(opened.images(part), store.images(rows))
    assert np.array_equal(opened.images("val", [2, 0]), store.images(rows_of(splits, "val")[[2, 0]]))
    for part in ("test", "all", "dropped"):
        for look in (opened.labels, opened.images):
            with pytest.raises(UsageError, match=f"part={part}: "):
                look(part)
    with pytest.raises(UsageError, match=r"part=test: .*medcls.evaluate run=DIR split=test, which counts it"):
        opened.images("test")
    with pytest.raises(UsageError, match="places: -1 is not one of"):
        opened.images("val", [-1])
    assert opened.images("val", []).shape == (0, 1, 32, 32)
    for mask in ([True, False], np.array([False, True, True]), [0.7]):
        # Taken for places it would be the images 1 and 0, again and again.
        with pytest.raises(UsageError, match=r"places: expected whole numbers .*np\.flatnonzero"):
            opened.images("val", mask)  # type: ignore[arg-type]


@pytest.mark.parametrize(("folder", "split"), [("gone", "default"), ("", "other")])
def test_store_or_split_that_is_not_there_is_refused(store: Store, folder: str, split: str) -> None:
    with pytest.raises(MissingInputError):
        medcls.open_store(store.folder / folder if folder else store.folder, split=split)


def test_package_is_imported_without_anything_and_predicts_without_hydra(frozen: Path, raw: Path, store: Store) -> None:
    code = (
        "import json, sys, time; start = time.process_time(); import medcls; seconds = time.process_time() - start; "
        "foreign = [n for n in ('torch', 'hydra', 'numpy', 'pyarrow', 'omegaconf') if n in sys.modules]; "
        f"medcls.load({str(frozen)!r}, device='cpu').predict({str(raw / 'images' / 'p00L.png')!r}); "
        f"medcls.open_store({str(store.folder)!r}).labels(); "
        "print(json.dumps([seconds, foreign, 'hydra' in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    seconds, foreign, hydra = json.loads(done.stdout)
    assert seconds < 0.3
    assert foreign == []
    assert not hydra
    # Of a process that sets up no logging notices are shown, and nothing else.
    assert all(line.startswith("notice: ") for line in done.stderr.splitlines()), done.stderr


def test_lines_of_the_readme_run(
    frozen: Path, raw: Path, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    section = (ROOT / "README.md").read_text(encoding="utf-8").split("## From Python\n")[1].split("\n## ")[0]
    (lines,) = re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL)
    for name, target in (("run", frozen), ("images", raw / "images"), ("store", store.folder)):
        (tmp_path / name).symlink_to(target)
    shutil.copy(raw / "images" / "p00L.png", tmp_path / "knee.png")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(compile(lines, "README.md", "exec"), names)
    assert names["table"].num_rows == 48
    assert names["pixels"].shape == (1, 32, 32)
    assert names["labels"].num_rows == len(names["images"]) == names["store"].counts["train"]
