"""One flipped bit in any file that is read again is noticed, or changes nothing; what version 0.2.0 wrote is read."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from data_prep.key import main as make_key
from data_prep.prepare import prepare
from medcls.data.store import Store
from medcls.errors import ConfigError, DataError
from medcls.files import SEAL, is_sealed, parse_json, read_json, write_bytes, write_json
from medcls.identity import describe_key, read_identity
from medcls.imaging.catalog import build_index, write_index
from medcls.imaging.source import list_files
from medcls.predict.predict import predict
from medcls.runs import checksums
from medcls.runs.checksums import check_run, open_store
from medcls.runs.model_file import read_card
from tests.stages.flipping import Tree, find_reader, flip_bits

Run = Callable[..., Path]
FEW = 6
"""Flips of each file where there is little time."""
MANY = 2000
"""Flips of shards, weights and pictures where there is much time; of all small files every byte."""
SMALL = 65_536
"""Bytes up to which a file is small."""


@pytest.fixture(scope="module")
def tree(
    write_source: Run, run_prepare: Callable[..., Store], run_train: Run, run_evaluate: Run,
    tmp_path_factory: pytest.TempPathFactory,
) -> Tree:  # fmt: skip
    """A store, a run of a small network, its evaluation with a plan of analysis, an index and a key."""
    root = tmp_path_factory.mktemp("tree")
    raw = write_source(root / "raw", classes=("0", "1", "2"))
    run_prepare(raw, root / "store", "split.test=0.25", "split.val=0.25")
    run = run_train(root / "run", f"store={root / 'store'}", "model.name=cbr_tiny")
    plan = root / "raw" / "plan.yaml"
    plan.write_text("primary: macro_auc\ncriteria:\n  - {metric: macro_auc, low: 0.5}\n")
    run_evaluate(run, "split=test", "report=false")
    write_index(root / "index.parquet", build_index(raw, list_files(raw), workers=0).to_batches())
    assert make_key([f"out={root / 'key'}"]) == 0
    return Tree(root)


def test_every_file_of_a_pipeline_is_checked_or_read_by_nobody(tree: Tree) -> None:
    names = tree.list_files()
    assert len(names) > 20
    readers = {name: find_reader(name) for name in names}
    assert [name for name in readers if name.endswith((".parquet", ".npy", ".safetensors")) and not readers[name]] == [
        name for name in names if name.startswith("run/evaluation/store-val/") and name.endswith(".parquet")
    ]


def test_a_few_flipped_bits_of_every_file_are_noticed_or_change_nothing(tree: Tree) -> None:
    generator = np.random.default_rng(0)
    for name in tree.list_files():
        if find_reader(name) is None:
            continue
        size = (tree.root / name).stat().st_size
        tally = flip_bits(tree, name, generator.integers(size, size=FEW).tolist())
        assert tally.silent == 0, name
        assert tally.noticed + tally.equal == tally.flipped == FEW
        assert {error.exit_code for error in tally.errors} <= {65, 66, 78}
        assert [str(error) for error in tally.errors if "\n" in str(error)] == []


@pytest.mark.slow
def test_every_flipped_byte_is_noticed_or_changes_nothing(tree: Tree) -> None:
    """Prints the table; with MEDCLS_RESULTS=FOLDER it is written to flipped.md there."""
    generator, lines, silent = np.random.default_rng(0), [], 0
    for name in tree.list_files():
        if find_reader(name) is None:
            continue
        size = (tree.root / name).stat().st_size
        places = range(size) if size <= SMALL else sorted(generator.choice(size, MANY, replace=False).tolist())
        tally = flip_bits(tree, name, places)
        silent += tally.silent
        counts = [size, tally.flipped, tally.noticed, tally.equal, tally.silent]
        lines.append(f"| {name} | {' | '.join(f'{count:,}' for count in counts)} |")
    table = "\n".join(["| file | bytes | flipped | noticed | equal | silent |", "|---|--:|--:|--:|--:|--:|", *lines])
    print(table)
    if "MEDCLS_RESULTS" in os.environ:
        head = (
            "# Flipped bits\n\nOne bit of each byte (above 64 KiB: of 2,000 random bytes) of every file that a command "
            "reads again.\nNoticed: one line and exit code 65, 66 or 78. Equal: what the commands get of the "
            "file is the same.\n\n"
            "Command: `MEDCLS_RESULTS=docs/results python -m pytest -m slow tests/stages/test_checksums.py`; "
            f"{platform.machine()}, Python {platform.python_version()}, {datetime.now(UTC):%Y-%m-%d}.\n\n"
        )
        write_bytes(Path(os.environ["MEDCLS_RESULTS"]) / "flipped.md", (head + table + "\n").encode())
    assert silent == 0


@pytest.fixture
def copy(tree: Tree, tmp_path: Path) -> Tree:
    """A pipeline that may be damaged; its run remembers the store beside it."""
    for name in ("store", "run"):
        shutil.copytree(tree.root / name, tmp_path / name)
    return Tree(tmp_path)


def flip(path: Path, place: int = -30) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def change_value(path: Path) -> None:
    """Changes a digit of a JSON file as one flipped bit could."""
    text = path.read_text()
    place = next(i for i, character in enumerate(text) if character in "24680" and text[i - 1] in " .")
    path.write_text(text[:place] + str(int(text[place]) + 1) + text[place + 1 :])


@pytest.mark.parametrize("name", ["labels.parquet", "labels.json", "dataset.json", "splits/default.json"])
def test_training_on_a_damaged_store_is_refused(name: str, copy: Tree, run_train: Run) -> None:
    path = copy.store / name
    if path.suffix == ".json":
        change_value(path)
    else:
        flip(path, len(path.read_bytes()) // 2)
    with pytest.raises(DataError, match=f"{name.replace('.', '[.]')} has changed since it was written"):
        run_train(copy.root / "new", f"store={copy.store}", "model.name=cbr_tiny")
    assert not (copy.root / "new" / "model.safetensors").exists()


def test_file_that_a_browser_left_in_a_run_is_no_damage(copy: Tree) -> None:
    (copy.run / "config" / ".DS_Store").write_bytes(b"Bud1")
    check_run(copy.run)


@pytest.mark.parametrize(
    "name", ["metrics.jsonl", "config/config.yaml", "config/settings.json", "environment.json", "contact_sheet.png"]
)
def test_evaluating_a_damaged_run_is_refused(name: str, copy: Tree, run_evaluate: Run) -> None:
    path = copy.run / name
    if path.suffix == ".json":
        change_value(path)
    else:
        flip(path)
    with pytest.raises(DataError, match=f"changed since the training ended: {name.replace('.', '[.]')}"):
        run_evaluate(copy.run, f"store={copy.store}", "split=test", "report=false")


@pytest.mark.parametrize("name", ["operating_points.json", "calibration.json"])
def test_predicting_and_evaluating_with_damaged_choices_are_refused(
    name: str, copy: Tree, run_evaluate: Run, compose_job: Callable[..., Any], tree: Tree
) -> None:
    change_value(copy.run / name)
    with pytest.raises(DataError, match=f"{name} has changed since it was written .*remove both files"):
        run_evaluate(copy.run, f"store={copy.store}", "split=test", "report=false")
    job = compose_job(
        "predict", f"run={copy.run}", f"source={tree.root / 'raw' / 'images'}", f"out={copy.root / 'out.csv'}",
        "workers=0", "device=cpu",
    )  # fmt: skip
    with pytest.raises(DataError, match=f"{name} has changed since it was written"):
        predict(job)


def test_card_with_two_classes_swapped_is_refused(copy: Tree) -> None:
    """A swap is not one flipped bit, but what a flipped bit in a name comes to."""
    path = copy.run / "model.safetensors"
    content = path.read_bytes()
    names = b'class_names\\": [\\"0\\", \\"1\\", \\"2\\"]'
    assert content.count(names) == 1
    path.write_bytes(content.replace(names, b'class_names\\": [\\"0\\", \\"2\\", \\"1\\"]'))
    with pytest.raises(DataError, match="has changed since it was written"):
        read_card(path)


def test_another_model_in_the_folder_of_a_run_is_refused(copy: Tree, run_train: Run) -> None:
    other = run_train(copy.root / "other", f"store={copy.store}", "model.name=cbr_tiny", "seed=1")
    shutil.copyfile(other / "model.safetensors", copy.run / "model.safetensors")
    with pytest.raises(DataError, match=r"is not the model that checksums\.json was written with"):
        check_run(copy.run)


def unseal(path: Path) -> None:
    """The file as version 0.2.0 would have written it."""
    content = parse_json(path.read_text())
    del content[SEAL]
    write_json(path, content)
    text = path.read_text().splitlines()
    path.write_text("\n".join(line for line in text if SEAL not in line) + "\n")


def test_store_of_version_0_2_0_is_read_with_one_notice_and_sealed_by_data_prep(
    copy: Tree, tree: Tree, compose_job: Callable[..., Any], capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(checksums, "_said", set())
    before = Store(copy.store).sha256
    unseal(copy.store / "dataset.json")
    (copy.store / "labels.json").unlink()
    assert not is_sealed(copy.store / "dataset.json")
    assert open_store(copy.store).sha256 == open_store(copy.store).sha256 == before
    assert capsys.readouterr().err.count("lacks checksums of dataset.json or its labels") == 1
    prepare(
        compose_job(
            "prepare", f"source={tree.root / 'raw'}", f"labels={tree.root / 'raw' / 'labels.csv'}", "workers=0",
            f"store={copy.store}", "image.size=32", "split.test=0.25", "split.val=0.25",
        )
    )  # fmt: skip
    monkeypatch.setattr(checksums, "_said", set())
    capsys.readouterr()
    assert open_store(copy.store).sha256 == before
    assert capsys.readouterr().err == ""


def test_run_without_checksums_is_read_with_one_notice(
    copy: Tree, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checksums, "_said", set())
    (copy.run / "checksums.json").unlink()
    flip(copy.run / "metrics.jsonl")
    check_run(copy.run)
    check_run(copy.run)
    assert capsys.readouterr().err.count("has no checksums.json") == 1


def test_key_with_a_changed_digit_is_refused_and_one_without_a_check_is_said(tree: Tree, tmp_path: Path) -> None:
    text = (tree.root / "key").read_text()
    path = tmp_path / "key"
    for place in (0, 63, 70):
        path.write_text(text[:place] + ("0" if text[place] != "0" else "1") + text[place + 1 :])
        with pytest.raises(ConfigError, match=r"has changed since it was made|is not 64 hexadecimal digits"):
            read_identity("hmac", key_file=str(path))
    path.write_text(text.split()[0] + "\n")
    identity = read_identity("hmac", key_file=str(path))
    assert identity == read_identity("hmac", key_file=str(tree.root / "key"))
    assert text.split()[1] in describe_key(identity, key_file=str(path))
    assert describe_key(identity, key_file=str(tree.root / "key")) == ""


def test_key_file_that_is_gone_is_no_matter_if_ids_are_declared(tmp_path: Path) -> None:
    gone = str(tmp_path / "key")
    assert describe_key(read_identity("declared", key_file=gone), key_file=gone) == ""


@pytest.mark.parametrize("text", ['{"a": 1, "a": 2}', '{"a": NaN}', '{"a": -Infinity}', '{"a": 1e400}', "[1]", "null"])
def test_json_that_python_would_take_and_the_standard_does_not_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(DataError, match=r"a\.json"):
        read_json(path)


def test_checksum_is_that_of_the_content_and_not_of_the_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"b": 1.5, "a": ["ä"]})
    text = path.read_text()
    path.write_text(text.replace("\n", "\n   "))
    assert read_json(path) == {"b": 1.5, "a": ["ä"]}
    path.write_text(text.replace(SEAL, "content_shA256"))
    with pytest.raises(DataError, match=r"a\.json has changed since it was written"):
        read_json(path)
    path.write_text(text.replace("1.5", "1.4"))
    with pytest.raises(DataError, match=r"a\.json has changed since it was written \(its own checksum differs\)"):
        read_json(path)


def test_predictions_that_were_damaged_are_made_again(copy: Tree, run_evaluate: Run) -> None:
    path = copy.results / "predictions.parquet"
    before = pq.read_table(path)
    flip(path, 100)
    run_evaluate(copy.run, f"store={copy.store}", "split=test", "report=false")
    assert pq.read_table(path).equals(before)
