"""How memory grows with the rows of the manifest: peaks of child processes, above what their imports take.

`python -m benchmarks.memory STEP STORE` is such a child. Its peak is VmHWM: ru_maxrss of a child begins with that of
the process that started it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from medcls.data.manifest import COLUMNS, write_table
from medcls.data.shards import shard_name
from medcls.data.store import SCHEMA_VERSION, Store
from medcls.files import LABELS, MANIFEST, sha256_file, write_json
from medcls.imaging.preprocess import PreprocessSpec
from medcls.records import to_json

SIZES = (10_000, 100_000, 1_000_000)
HASHED_SIZES = (10_000, 100_000)
IMAGES_A_PATIENT = 10
AIM_BYTES = 400
_BATCH = 50_000


def measure(folder: Path) -> Iterator[tuple[str, str, str, str, str]]:
    """Yields a row for each step and size; the ratio is bytes a row, between this size and the one before."""
    stores = {size: write_store(folder / f"rows-{size}", size) for size in SIZES}
    for what, step in STEP_NAMES.items():
        before: tuple[int, float] | None = None
        for size, store in stores.items():
            peak, seconds = run_step(step, store)
            grown = f"{(peak - before[1]) / (size - before[0]):.0f}" if before else ""
            yield (
                f"{what}, {size:,} rows",
                f"+{peak / 1e6:.0f} MB",
                f"{seconds:.1f} s",
                grown,
                f"<= {AIM_BYTES}",
            )
            before = (size, peak)
    for size in HASHED_SIZES:
        peak, seconds = run_step("compare", write_store(folder / f"hashed-{size}", size, hashed=True))
        pairs = f"{1e9 * seconds / (size * size / 2):.1f} ns a pair"
        yield f"near-duplicate search, {size:,} rows", f"+{peak / 1e6:.0f} MB", f"{seconds:.1f} s = {pairs}", "", ""


def run_step(step: str, store: Path) -> tuple[float, float]:
    """Returns the peak in bytes above the imports, and the seconds, of one step in a process of its own."""
    result = run_child("benchmarks.memory", step, str(store))
    return result["peak_bytes"], result["seconds"]


def run_child(module: str, *arguments: str) -> dict[str, float]:
    """Returns the numbers that a module prints as JSON in a process of its own."""
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[1:])}: {done.stderr[-2000:]}")
    return {name: float(value) for name, value in json.loads(done.stdout.splitlines()[-1]).items()}


def write_store(folder: Path, size: int, *, hashed: bool = False) -> Path:
    """Writes a store of `size` rows: pseudonyms as data_prep makes them, images of 8 x 8 pixels, labels of 5 grades."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(size)
    np.save(folder / shard_name(0), np.zeros((size, 1, 8, 8), np.uint8))
    labels = pa.array(generator.integers(0, 5, size).astype(str), pa.string())
    with pq.ParquetWriter(folder / MANIFEST, COLUMNS, compression="zstd", store_schema=False) as writer:
        for start in range(0, size, _BATCH):
            writer.write_table(_rows(generator, start, min(_BATCH, size - start), hashed=hashed))
    image_ids = pq.read_table(folder / MANIFEST, columns=["image_id"])
    write_table(folder / LABELS, image_ids.append_column("label", labels))
    parts = {name: sha256_file(folder / name) for name in (MANIFEST, shard_name(0))}
    record = {
        "preprocess": to_json(PreprocessSpec(height=8, width=8)),
        "counts": {},
        "deidentify": {},
        "sha256": parts,
    }
    write_json(folder / "dataset.json", {"schema_version": SCHEMA_VERSION, **record})
    return folder


def _rows(generator: np.random.Generator, start: int, count: int, *, hashed: bool) -> pa.Table:
    def names(every: int, nbytes: int) -> list[str]:
        text, width = generator.bytes(nbytes * -(-count // every)).hex(), 2 * nbytes
        return [text[width * (row // every) :][:width] for row in range(count)] if every > 1 else _cut(text, width)

    filled: dict[str, Any] = {
        "image_id": names(1, 16),
        "patient_id": names(IMAGES_A_PATIENT, 16),
        "study_id": names(IMAGES_A_PATIENT, 16),
        "series_id": names(IMAGES_A_PATIENT, 16),
        "shard": [0] * count,
        "row": range(start, start + count),
        "valid_y": [0] * count,
        "valid_x": [0] * count,
        "valid_height": [1] * count,
        "valid_width": [1] * count,
        "spacing_row_mm": generator.uniform(0.1, 1, count),
        "spacing_column_mm": generator.uniform(0.1, 1, count),
        "modality": ["DX"] * count,
        "photometric": ["MONOCHROME2"] * count,
        "manufacturer": ["Maker"] * count,
        "pixel_sha256": names(1, 32),
    }
    if hashed:
        filled["pixel_dhash"] = [generator.bytes(32) for _ in range(count)]
    columns = [pa.array(filled.get(field.name, [None] * count), field.type) for field in COLUMNS]
    return pa.table(columns, schema=COLUMNS)


def _cut(text: str, width: int) -> list[str]:
    return [text[place : place + width] for place in range(0, len(text), width)]


def _plan(folder: Path) -> Callable[[], object]:
    from data_prep.labels.label_file import read_label_table
    from data_prep.labels.label_rows import PatientRule
    from data_prep.plan import Plan, plan_images
    from data_prep.series import LEFT_OUT

    size, none = len(Store(folder)), LEFT_OUT.empty_table()
    csv = folder / "labels.csv"
    with csv.open("w") as file:
        file.write("path,patient_id,label\n")
        file.writelines(f"{_path(i)},patient-{i // IMAGES_A_PATIENT:08d},{i % 5}\n" for i in range(size))

    def run() -> None:
        listed = pa.chunked_array(
            [pa.array(list(map(_path, range(i, min(size, i + _BATCH))))) for i in range(0, size, _BATCH)]
        )
        labels = read_label_table(csv, source=folder, rule=PatientRule(), listed=listed)
        plan = Plan(plan_images(labels), none, none, columns=(), rows_per_shard=4096)
        plan.shard(plan.shards - 1, source=folder, setting={})

    return run


def _path(row: int) -> str:
    return f"site/{row // 1000:06d}/image-{row:09d}.png"


def _account(folder: Path) -> Callable[[], object]:
    from data_prep.ledger import ENTRIES, build_ledger, count_states

    def run() -> None:
        ids = Store(folder).read("image_id", "pixel_sha256")
        count = ids.num_rows
        known = {"path": ids["image_id"], "file_sha256": ids["pixel_sha256"], "images": pa.repeat(pa.scalar(1), count)}
        empty = {"state": "ok", "reason": "", "detail": ""}
        columns = [
            known.get(f.name, pa.repeat(pa.scalar(empty.get(f.name), f.type), count)).cast(f.type) for f in ENTRIES
        ]
        count_states(build_ledger(pa.table(columns, schema=ENTRIES)))

    return run


def _open(folder: Path) -> Callable[[], object]:
    return lambda: Store(folder)


def _split(folder: Path) -> Callable[[], object]:
    from data_prep.splitting import split_store
    from medcls.config import SplitConfig
    from medcls.data.columns import read_columns

    def run() -> None:
        store = Store(folder)
        labels = read_columns(folder / LABELS, "label")
        labels = labels.append_column("listed", pa.repeat(pa.scalar(True), len(store)))
        split_store(store, labels.append_column("split", pa.nulls(len(store), pa.string())), SplitConfig())

    return run


def _read(folder: Path) -> Callable[[], object]:
    from medcls.data.splits import read_split

    return lambda: read_split(Store(folder), "default")


def _train(folder: Path) -> Callable[[], object]:
    from medcls.config import AugmentConfig, ClinicalConfig, CropConfig, TaskConfig
    from medcls.data.loaders import EpochSampler
    from medcls.runs.checksums import open_store
    from medcls.train.training_data import Variation, open_data, read_domain, write_seen

    def run() -> None:
        varied = Variation(CropConfig(), AugmentConfig(), 0)
        data = open_data(open_store(folder), "default", task=TaskConfig(), varied=varied, clinical=ClinicalConfig())
        write_seen(folder / "run", data)
        read_domain(data)
        next(iter(EpochSampler(len(data.train), batch_size=32, shuffle=True)))

    return run


STEP_NAMES = {
    "labels to a plan": "plan",
    "entries to the ledger": "account",
    "open": "open",
    "make and certify a split": "split",
    "read and check a split": "read",
    "rows of training": "train",
}


STEPS = {
    "plan": _plan,
    "account": _account,
    "open": _open,
    "split": _split,
    "compare": _split,
    "read": _read,
    "train": _train,
}


def read_memory(name: str) -> int:
    """Returns the bytes of one line of this process's status, such as VmRSS or VmHWM."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name))


def main(step: str, folder: str) -> None:
    """Runs one step in this process and prints its peak and time as JSON."""
    run = STEPS[step](Path(folder))
    before, start = read_memory("VmRSS"), time.perf_counter()
    run()
    seconds = time.perf_counter() - start
    print(json.dumps({"peak_bytes": read_memory("VmHWM") - before, "seconds": seconds}))


if __name__ == "__main__":
    main(*sys.argv[1:])
