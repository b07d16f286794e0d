"""Every file that commands read, damaged in every way: one line and its exit code, or the same result as before."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep.index import main as index_folder
from data_prep.prepare import prepare
from data_prep.show import main as show
from medcls.data.store import Store
from medcls.errors import MedclsError
from medcls.evaluate.evaluate import evaluate
from medcls.evaluate.evaluate_scores import evaluate_scores
from medcls.explain.explain import explain
from medcls.files import SEAL, parse_json
from medcls.predict.predict import predict
from medcls.train.train import train
from tests.stages.flipping import Tree, find_reader, take_fingerprint

Run = Callable[..., Path]
CODES = {64, 65, 66, 78}


@pytest.fixture(scope="module")
def finished(
    write_source: Run, run_prepare: Callable[..., Store], run_train: Run, run_evaluate: Run,
    tmp_path_factory: pytest.TempPathFactory,
) -> Tree:  # fmt: skip
    """A store, a run of a small network and its evaluation."""
    root = tmp_path_factory.mktemp("damaged")
    raw = write_source(root / "raw", classes=("0", "1", "2"))
    run_prepare(raw, root / "store", "split.test=0.25", "split.val=0.25")
    run_evaluate(run_train(root / "run", f"store={root / 'store'}", "model.name=cbr_tiny"), "split=test")
    return Tree(root)


def damage_bytes(whole: bytes) -> Iterator[tuple[str, bytes]]:
    """What a disk, a copy or an editor makes of any file."""
    yield "empty", b""
    yield "cut", whole[: len(whole) // 2]
    yield "cut at its end", whole[:-1]
    yield "zeros", bytes(len(whole))
    yield "zeros in the middle", whole[: len(whole) // 3] + bytes(64) + whole[len(whole) // 3 + 64 :]
    yield "not UTF-8", whole[:40] + b"\xff\xfe" + whole[40:]
    yield "two halves swapped", whole[len(whole) // 2 :] + whole[: len(whole) // 2]


def damage_json(whole: bytes) -> Iterator[tuple[str, bytes]]:
    """What somebody's program makes of JSON."""
    text = whole.decode()
    for value in ("null", "NaN", "[]", "{}", '"text"', "-1", "1e400", "[" * 5000):
        yield f"only {value[:6]}", value.encode()
    lines = text.splitlines(keepends=True)
    first = next(i for i, line in enumerate(lines) if '": ' in line)
    yield "a key twice", "".join([*lines[: first + 1], *lines[first:]]).encode()
    yield "a key less", "".join([*lines[:first], *lines[first + 1 :]]).encode()
    for key, value in parse_json(text).items():
        if key != SEAL and f'"{key}": ' in text:
            yield f"{key} is null", text.replace(f'"{key}": ', f'"{key}": null, "{key}_": ', 1).encode()
        if isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{key} is NaN", text.replace(f'"{key}": {value}', f'"{key}": NaN', 1).encode()


def damage_table(path: Path) -> Iterator[tuple[str, bytes]]:
    """Whole parquet files with other columns."""
    table, whole = pq.read_table(path), path.read_bytes()
    for name in table.column_names:
        place = table.column_names.index(name)
        numbers = pa.array(range(table.num_rows), pa.int64())
        blank = pa.nulls(table.num_rows, table.schema.field(name).type)
        for what, changed in (
            (f"{name} of another type", table.set_column(place, name, numbers)),
            (f"without {name}", table.drop_columns([name])),
            (f"{name} all null", table.set_column(place, name, blank)),
        ):
            pq.write_table(changed, path)
            yield what, path.read_bytes()
    pq.write_table(table.slice(0, table.num_rows // 2), path)
    yield "half of its rows", path.read_bytes()
    path.write_bytes(whole)


def damage_lines(whole: bytes) -> Iterator[tuple[str, bytes]]:
    for line in (b"7", b"null", b"{}", b'{"key": 7}', b"{", b"\xff", b'{"epoch": NaN}', b"[" * 5000):
        yield f"a line {line[:10]!r}", whole + line + b"\n"


def damage(path: Path) -> Iterator[tuple[str, bytes]]:
    whole = path.read_bytes()
    if path.suffix == ".json":
        yield from damage_json(whole)
    if path.suffix == ".jsonl":
        yield from damage_lines(whole)
    if path.suffix == ".parquet":
        yield from damage_table(path)
    yield from damage_bytes(whole)


def test_every_damaged_file_is_refused_in_one_line_or_read_as_before(finished: Tree) -> None:
    wrong: list[str] = []
    for name in finished.list_files():
        reader = find_reader(name)
        if reader is None:
            continue
        path = finished.root / name
        whole, expected = path.read_bytes(), take_fingerprint(reader(finished))
        for what, content in damage(path):
            path.write_bytes(content)
            try:
                found = reader(finished)
            except MedclsError as error:
                wrong += [f"{name}: {what}: {error}"] * (error.exit_code not in CODES or "\n" in str(error))
            else:
                same = take_fingerprint(found) == expected or "made again" in str(found)
                wrong += [f"{name}: {what}: read differently"] * (not same)
        path.write_bytes(whole)
    assert wrong == []


@pytest.fixture
def commands(
    finished: Tree, compose_job: Callable[..., Any], compose_train: Callable[..., Any], tmp_path: Path
) -> dict[str, Callable[[Tree], Any]]:
    """The commands as a user types them, on a copy of the pipeline."""

    def run(name: str, main: Callable[[Any], Any], *arguments: str) -> Callable[[Tree], Any]:
        return lambda tree: main(
            compose_job(name, *(a.replace("ROOT", str(tree.root)) for a in arguments), "workers=0")
        )

    images = f"source={finished.root / 'raw' / 'images'}"
    return {
        "train": lambda tree: train(
            compose_train(tree.root / "new", f"store={tree.store}", "model.name=cbr_tiny", "trainer.epochs=1")
        ),
        "evaluate": run(
            "evaluate", evaluate, "run=ROOT/run", "store=ROOT/store", "split=test", "replicates=100", "device=cpu"
        ),
        "predict": run("predict", predict, "run=ROOT/run", images, "out=ROOT/out.csv", "device=cpu"),
    }


SAMPLE = [
    ("store/labels.parquet", "evaluate"),
    ("store/manifest.parquet", "train"),
    ("store/dataset.json", "evaluate"),
    ("store/splits/default.json", "train"),
    ("store/splits/default.parquet", "evaluate"),
    ("run/config/config.yaml", "evaluate"),
    ("run/config/settings.json", "evaluate"),
    ("run/environment.json", "evaluate"),
    ("run/metrics.jsonl", "evaluate"),
    ("run/checksums.json", "evaluate"),
    ("run/model.safetensors", "predict"),
    ("run/feature_distance.safetensors", "predict"),
    ("run/operating_points.json", "predict"),
    ("run/calibration.json", "evaluate"),
    ("run/evaluation/store-test/inputs.json", "evaluate"),
]


@pytest.mark.parametrize(("name", "command"), SAMPLE)
def test_command_on_a_damaged_file_ends_in_one_line(
    name: str, command: str, finished: Tree, commands: dict[str, Callable[[Tree], Any]], tmp_path: Path
) -> None:
    """Cut in the middle, and not UTF-8."""
    for part in ("store", "run"):
        shutil.copytree(finished.root / part, tmp_path / part)
    tree, path = Tree(tmp_path), tmp_path / name
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], whole[:40] + b"\xff" + whole[41:]):
        path.write_bytes(content)
        with pytest.raises(MedclsError) as caught:
            commands[command](tree)
        assert caught.value.exit_code in CODES
        assert "\n" not in str(caught.value)


CSV_DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda whole: b"",
    "not UTF-8": lambda whole: whole[:-4] + b"\xfc\xff" + whole[-4:],
    "NUL bytes": lambda whole: whole[:-3] + b"\x00" + whole[-3:],
    "UTF-16": lambda whole: whole.decode().encode("utf-16"),
    "a cell too many": lambda whole: whole.rstrip(b"\r\n") + b",1\r\n",
    "a cell too few": lambda whole: whole.rstrip(b"\r\n").rpartition(b",")[0] + b"\r\n",
    "a header alone": lambda whole: whole.splitlines()[0] + b"\r\n",
    "a quote that does not end": lambda whole: whole + b'"x,1\r\n',
    "zeros": lambda whole: bytes(300),
    "a column twice": lambda whole: whole.replace(whole.split(b",")[1], whole.split(b",")[0], 1),
}
TABLES: dict[str, tuple[str, str, str]] = {
    "labels": ("prepare", "path,patient_id,label\r\nimages/p00L.png,p0,0\r\nimages/p01L.png,p1,1\r\n", "labels"),
    "boxes of predict": ("predict", "path,roi_x,roi_y,roi_w,roi_h\r\np00L.png,1,2,8,8\r\n", "boxes"),
    "clinical values": ("predict", "path,age_years\r\np00L.png,61\r\n", "clinical_file"),
    "boxes of explain": ("explain", "image_id,x,y,width,height\r\nimages/p00L.png,1,2,8,8\r\n", "boxes"),
    "scores": ("scores", "patient_id,y_true,score\r\np0,0,0.25\r\np1,1,0.75\r\np2,1,0.5\r\n", "predictions"),
    "readers": ("evaluate", "image_id,reader,label\r\nimages/p00L.png,r1,0\r\nimages/p00R.png,r1,0\r\n", "readers"),
}


@pytest.mark.parametrize("table", TABLES)
def test_damaged_csv_of_a_user_ends_in_one_line(
    table: str, finished: Tree, compose_job: Callable[..., Any], tmp_path: Path
) -> None:
    command, text, setting = TABLES[table]
    path, root = tmp_path / "table.csv", finished.root
    source = f"source={root / 'raw' / ('images' if command == 'predict' else '')}"
    run, out = f"run={root / 'run'}", f"out={tmp_path / 'out'}"
    jobs: dict[str, tuple[str, Callable[[Any], Any], list[str]]] = {
        "prepare": ("prepare", prepare, [source, f"store={tmp_path / 'store'}", "image.size=32", "workers=0"]),
        "predict": ("predict", predict, [run, source, f"{out}.csv", "device=cpu", "workers=0"]),
        "explain": ("explain", explain, [run, out, "split=test", "method=gradcam", "worst=1", "device=cpu"]),
        "scores": ("evaluate", evaluate_scores, [out, "replicates=100", "report=false"]),
        "evaluate": ("evaluate", evaluate, [run, out, "split=test", "replicates=100", "report=false", "workers=0"]),
    }
    name, main, arguments = jobs[command]
    job = compose_job(name, *arguments, f"{setting}={path}")
    for what, make in CSV_DAMAGE.items():
        path.write_bytes(make(text.encode()))
        with pytest.raises(MedclsError) as caught:
            main(job)
        assert caught.value.exit_code in CODES, what
        assert "\n" not in str(caught.value), what


def test_index_and_contact_sheet_of_damaged_files_end_in_one_line(
    finished: Tree, compose_job: Callable[..., Any], tmp_path: Path
) -> None:
    index = tmp_path / "index.parquet"
    index_folder(compose_job("index", f"source={finished.root / 'raw'}", f"out={index}", "workers=0"))
    job = compose_job(
        "prepare", f"source={finished.root / 'raw'}", f"labels={finished.root / 'raw' / 'labels.csv'}",
        f"index={index}", f"store={tmp_path / 'store'}", "image=mr_volume", "workers=0",
    )  # fmt: skip
    for what, content in damage(index):
        index.write_bytes(content)
        with pytest.raises(MedclsError) as caught:
            prepare(job)
        assert caught.value.exit_code in CODES, what
    shutil.copytree(finished.store, tmp_path / "copy")
    path = tmp_path / "copy" / "shard-00000.npy"
    path.write_bytes(path.read_bytes()[:-1] + b"\x00")
    with pytest.raises(MedclsError, match="changed since it was written"):
        show(compose_job("show", f"store={tmp_path / 'copy'}", f"out={tmp_path / 'sheet.png'}"))
