"""A finished pipeline on disk, what commands read of each of its files, and what becomes of one flipped bit.

Every file of the tree belongs to a reader or is named as one that no command reads: a new file has to be put somewhere.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from medcls.data.splits import read_certificate, read_split
from medcls.data.store import Store
from medcls.errors import MedclsError
from medcls.evaluate.frozen_analysis import _read_frozen
from medcls.evaluate.frozen_choices import read_choices
from medcls.evaluate.split_predictions import INPUTS, _read_opened, _read_openings, read_repetition
from medcls.files import MODEL, read_json, read_json_lines, sha256_file
from medcls.identity import read_identity
from medcls.imaging.catalog import read_index
from medcls.runs.checksums import check_run, open_store
from medcls.runs.folder import read_environment, read_settings
from medcls.runs.lineage import read_lineage
from medcls.runs.model_file import compute_digest, read_card, read_model
from medcls.train.training_distance import read_training_distance


@dataclass(frozen=True)
class Tree:
    """Where a finished pipeline lies.

    Attributes:
        root: Folder of everything.
    """

    root: Path

    @property
    def store(self) -> Path:
        return self.root / "store"

    @property
    def run(self) -> Path:
        return self.root / "run"

    @property
    def results(self) -> Path:
        return self.run / "evaluation" / "store-test"

    def list_files(self) -> list[str]:
        """Every file, relative to the root; the sources are the user's own."""
        names = [str(path.relative_to(self.root)) for path in self.root.rglob("*") if path.is_file()]
        return sorted(name for name in names if not name.startswith("raw/"))


def read_store(tree: Tree) -> Any:
    store = open_store(tree.store)
    table = store.read(*store.column_names)
    return store.info, hash_table(table), hash_pixels(store), sha256_file(tree.store / "ledger.parquet")


def hash_pixels(store: Store) -> str:
    return hashlib.sha256(b"".join(store.image(row).tobytes() for row in range(len(store)))).hexdigest()


def hash_table(table: Any) -> str:
    return hashlib.sha256(repr(table.to_pylist()).encode()).hexdigest()


def read_labels(tree: Tree) -> Any:
    store = Store(tree.store)
    return store.read_labels().to_pylist(), store.read_labelling()


def read_splits(tree: Tree) -> Any:
    store = Store(tree.store)
    splits, certificate = read_split(store, "default")
    return splits.tolist(), certificate, read_certificate(tree.store / "splits" / "default.parquet")


def read_weights(tree: Tree) -> Any:
    card = read_card(tree.run / MODEL)
    model, _ = read_model(tree.run / MODEL)
    return asdict(card), compute_digest(model.state_dict())


def read_run(tree: Tree) -> Any:
    check_run(tree.run)
    history = read_json_lines(tree.run / "metrics.jsonl")
    config = (tree.run / "config/config.yaml").read_text()
    return read_settings(tree.run), read_environment(tree.run), history, config


def read_seen(tree: Tree) -> Any:
    lineage = read_lineage(tree.run / MODEL, read_card(tree.run / MODEL), sha256="0", weights="run")
    return lineage.models, hash_table(lineage.seen)


def read_distance(tree: Tree) -> Any:
    distance = read_training_distance(tree.run, read_card(tree.run / MODEL))
    return repr(distance)


def read_frozen(tree: Tree) -> Any:
    choices = read_choices(tree.run, model_sha256=sha256_file(tree.run / MODEL))
    return asdict(choices) if choices else None, repr(_read_frozen(tree.run))


def read_results(tree: Tree) -> Any:
    key = {k: v for k, v in read_json(tree.results / INPUTS).items() if k != "predictions_sha256"}
    logits = read_repetition(tree.results, key)
    # None: not whole, and made again from the same inputs.
    return key, "made again" if logits is None else logits.tolist(), read_json(tree.results / "metrics.json")


def read_openings(tree: Tree) -> Any:
    lines = _read_openings(tree.results / "opened.jsonl")
    rows = [_read_opened(tree.results / line["rows"], sha256=line["rows_sha256"]).to_pylist() for line in lines]
    return lines, [sorted(values) for values in rows]


def read_documents(tree: Tree) -> Any:
    return [read_json(path) for path in sorted(tree.root.glob("compare/*.json"))] + [
        read_json(path) for path in sorted(tree.results.glob("explanation-*/explanations.json"))
    ]


def read_source_index(tree: Tree) -> Any:
    return hash_table(read_index(tree.root / "index.parquet", source=tree.root / "raw"))


def read_key(tree: Tree) -> Any:
    return read_identity("hmac", key_file=str(tree.root / "key")).fingerprint


READERS: list[tuple[str, Callable[[Tree], Any]]] = [
    ("store/labels.*", read_labels),
    ("store/splits/*", read_splits),
    ("store/dataset.json", read_store),
    ("store/manifest.parquet", read_store),
    ("store/ledger.parquet", read_store),
    ("store/shard-*.npy", read_store),
    ("run/model.safetensors", read_weights),
    ("run/patients.parquet", read_seen),
    ("run/images.parquet", read_seen),
    ("run/ancestors.parquet", read_seen),
    ("run/feature_distance.safetensors", read_distance),
    ("run/operating_points.json", read_frozen),
    ("run/calibration.json", read_frozen),
    ("run/analysis.json", read_frozen),
    ("run/evaluation/*/predictions.parquet", read_results),
    ("run/evaluation/*/inputs.json", read_results),
    ("run/evaluation/*/metrics.json", read_results),
    ("run/evaluation/*/opened*", read_openings),
    ("run/evaluation/*/explanations.json", read_documents),
    ("run/config/*", read_run),
    ("run/*.*", read_run),
    ("compare/*.json", read_documents),
    ("index.parquet", read_source_index),
    ("key", read_key),
]
"""The first pattern that fits says what the commands get of a file."""

NEVER_READ = (
    "*/report.html",
    "*/MODEL_CARD.md",
    "*/claim.json",
    "*/tripod_ai.json",
    "*/figures/*",
    "*/explanation-*/maps/*",
    "*/explanation-*/explanation.html",
    "*.identity-map.csv",
    "predictions.csv*",
    "store/same_images*",
    "store-identity-map.csv",
    "run/evaluation/store-val/*",
)
"""Written for people, and results that were read before; those of validation are of the same kind as those of test."""


def find_reader(name: str) -> Callable[[Tree], Any] | None:
    """What reads a file; None for one that no command reads.

    Raises:
        LookupError: neither is known of it.
    """
    if any(fnmatch(name, pattern) for pattern in NEVER_READ):
        return None
    for pattern, reader in READERS:
        if fnmatch(name, pattern):
            return reader
    raise LookupError(f"{name} is covered by nothing: give it a reader that checks it, or say that nobody reads it")


def take_fingerprint(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


@dataclass
class Tally:
    """What became of the flips of one file."""

    flipped: int = 0
    noticed: int = 0
    equal: int = 0
    silent: int = 0
    errors: list[MedclsError] = field(default_factory=list)


def flip_bits(tree: Tree, name: str, places: Iterator[int] | range | list[int]) -> Tally:
    """Flip one bit of each place by itself, read the file as commands do, and count what becomes of it."""
    reader = find_reader(name)
    assert reader is not None
    path, tally = tree.root / name, Tally()
    whole = path.read_bytes()
    expected = take_fingerprint(reader(tree))
    try:
        for place in places:
            content = bytearray(whole)
            content[place] ^= 1 << (place * 5 + 1) % 8
            path.write_bytes(content)
            tally.flipped += 1
            try:
                found = take_fingerprint(reader(tree))
            except MedclsError as error:
                tally.noticed += 1
                # Without its frames: they hold whole files, and there are thousands of errors.
                tally.errors.append(error.with_traceback(None))
                continue
            same = found == expected or "made again" in str(reader(tree))
            tally.equal += same
            tally.silent += not same
    finally:
        path.write_bytes(whole)
    return tally
