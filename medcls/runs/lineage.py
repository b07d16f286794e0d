"""Lineage of weights: ancestor models and the patients they have seen; biased transfer is refused.

A patient or an image that an earlier model trained or selected on is no unseen one for its heirs. So every run keeps
those of all its ancestors (ancestors.parquet): no earlier run has to stay for a later check.

Source: Wen et al., Medical Image Analysis, 2020 ("biased transfer"); own choice, docs/decisions/0015-lineage.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from medcls.data.columns import read_columns
from medcls.data.manifest import write_table
from medcls.data.store import Rows, Store
from medcls.errors import DataError
from medcls.files import ANCESTORS, IMAGES, MANIFEST, PATIENTS, sha256_file, sha256_json
from medcls.identity import format_count
from medcls.inputs import NAMED
from medcls.records import to_json
from medcls.runs.model_file import ModelCard

RUN, FILE = "run", "file"
_KINDS = {"patient_id": ("patient", PATIENTS), "pixel_sha256": ("image", IMAGES)}
_SCHEMA = pa.schema([("ancestor", pa.string()), ("kind", pa.string()), ("value", pa.string())])


@dataclass(frozen=True, slots=True)
class Lineage:
    """The models that weights went through, and what they have seen.

    Attributes:
        models: Oldest first, as a model card keeps them: "weights" (imagenet | pretrained | run | file), "file",
            "sha256"; of a library's weights "name" and "licence"; of a run
            also "run", "architecture", "task", "seed", "store_sha256", "split_sha256", "preprocess_sha256",
            "deidentify", and "seen": whether its patients and images are known.
        seen: Columns ancestor (sha256 of a model file), kind (patient_id | pixel_sha256) and value.
    """

    models: list[dict[str, Any]]
    seen: pa.Table

    @property
    def content(self) -> list[list[Any]]:
        """What the models are, whatever their files and folders are called now: sha256, and whether "seen" is known."""
        return [[model["sha256"], model.get("seen")] for model in self.models]


def no_lineage() -> Lineage:
    """Return the lineage of random weights."""
    return Lineage([], _SCHEMA.empty_table())


def read_lineage(
    path: Path, card: ModelCard | None, *, sha256: str, weights: str, published: dict[str, str] | None = None
) -> Lineage:
    """Return the lineage of a file of weights, the file itself as its last model.

    Args:
        path: The file; the patients of a run's model are read from the files beside it.
        card: Of a run's model; None for other weights.
        sha256: Of the file.
        weights: As in model.weights.
        published: Name and licence of a library's weights; None for others.

    Raises:
        DataError: a file beside a run's model is not the one that was written with it.
    """
    if card is None:
        origin = weights if weights in NAMED else FILE
        known = {"weights": origin, "file": path.name, "sha256": sha256} | (published or {})
        return Lineage([known], _SCHEMA.empty_table())
    here = all((path.parent / name).is_file() for _, name in _KINDS.values())
    earlier = card.ancestors if here else [model | {"seen": False} for model in card.ancestors]
    own = {
        "weights": RUN,
        "run": path.resolve().parent.name,
        "file": path.name,
        "sha256": sha256,
        "architecture": card.architecture,
        "task": {"kind": card.task.kind, "classes": card.task.class_names},
        "seed": card.training.get("seed"),
        "store_sha256": card.store_sha256,
        "split_sha256": card.split_sha256,
        "preprocess_sha256": sha256_json(to_json(card.preprocess)),
        "deidentify": card.deidentify,
        "seen": here,
    }
    return Lineage([*earlier, own], _read_seen(path.parent, card, sha256=sha256) if here else _SCHEMA.empty_table())


def _read_seen(run: Path, card: ModelCard, *, sha256: str) -> pa.Table:
    for name, expected in card.seen_sha256.items():
        if sha256_file(run / name) != expected:
            raise DataError(f"{run / name} is not the file that was written with this run's model: restore it")
    parts = [read_columns(run / ANCESTORS, *_SCHEMA.names)] if ANCESTORS in card.seen_sha256 else []
    for kind, (_, name) in _KINDS.items():
        values = read_columns(run / name, kind).column(kind)
        parts.append(pa.table([pa.repeat(sha256, len(values)), pa.repeat(kind, len(values)), values], schema=_SCHEMA))
    return pa.concat_tables(parts)


def write_lineage(run: Path, lineage: Lineage) -> None:
    """Write ancestors.parquet, where an ancestor has seen anybody."""
    if lineage.seen.num_rows:
        write_table(run / ANCESTORS, lineage.seen)


def without_seen(lineage: Lineage, models: Sequence[str]) -> Lineage:
    """Return the lineage without what some of its models (sha256) have seen."""
    theirs = pc.is_in(lineage.seen.column("ancestor"), value_set=pa.array(models, pa.string()))
    return Lineage(lineage.models, lineage.seen.filter(pc.invert(theirs)))


def hash_seen(run: Path) -> dict[str, str]:
    """Return the sha256, by name, of the files of a run that say whom its model and its ancestors have seen."""
    return {name: sha256_file(run / name) for name in (PATIENTS, IMAGES, ANCESTORS) if (run / name).is_file()}


def has_seen(lineage: Lineage, store: Store, rows: Rows) -> bool:
    """Return whether a model of the lineage trained or selected on a patient or an image of these rows."""
    return bool(find_seen(lineage, store, rows).any())


def find_seen(lineage: Lineage, store: Store, rows: Rows) -> NDArray[np.bool_]:
    """Return which rows are of a patient or an image that a model of the lineage trained or selected on; (N,)."""
    found = np.zeros(len(rows), dtype=np.bool_)
    for kind in _KINDS:
        seen = lineage.seen.filter(pc.equal(lineage.seen.column("kind"), kind)).column("value")
        found |= pc.is_in(store.read(kind, rows=rows).column(kind), value_set=seen).to_numpy().astype(np.bool_)
    return found


def check_unseen(store: Store, rows: Rows, lineage: Lineage, *, remedy: str, own: str = "") -> list[str]:
    """Return what could not be compared, after checking that no model of the lineage has seen these rows.

    Images are compared, too: two sites' ids, or two keys' pseudonyms, never agree.

    Args:
        store: The store.
        rows: Manifest rows that have to be unseen.
        lineage: Of the network.
        remedy: What to do about it, for the error.
        own: sha256 of the model that the user calls "this run".

    Raises:
        DataError: patients or images were trained or selected on.
    """
    for kind, (what, _) in _KINDS.items():
        seen = lineage.seen.filter(pc.equal(lineage.seen.column("kind"), kind))
        values = store.read(kind, rows=rows).column(kind)
        shared = values.filter(pc.is_in(values, value_set=seen.column("value"))).unique().sort()
        if len(shared):
            by = seen.column("ancestor")[pc.index(seen.column("value"), shared[0]).as_py()].as_py()
            who = "this run" if by == own else f"its ancestor {_name(lineage, by)}"
            first = int(rows[pc.index(values, shared[0]).as_py()])
            raise DataError(
                f"{format_count(len(shared), what)} of store={store.folder} {'was' if len(shared) == 1 else 'were'} "
                f"trained or selected on by {who}, the first in row {first} of {MANIFEST} (counted from 0): {remedy}"
            )
    return list_incomparable(store, lineage)


def _name(lineage: Lineage, sha256: str) -> str:
    names = [str(model.get("run") or model["file"]) for model in lineage.models if model["sha256"] == sha256]
    return f"{names[0] if names else 'model'} (sha256 {sha256[:12]}…)"


def list_incomparable(store: Store, lineage: Lineage) -> list[str]:
    """Return one sentence, or none: models whose patients or images could be here without being found."""
    preprocess = sha256_json(to_json(store.spec))
    found = []
    for model in (model for model in lineage.models if model["weights"] not in NAMED):
        name = _name(lineage, model["sha256"])
        if not model.get("seen"):
            found.append(f"patients and images of {name}, which are unknown (a file without its run)")
            continue
        if model["deidentify"] != store.info["deidentify"]:
            found.append(f"patients of {name}, whose store has other pseudonym keys, or declared ids")
        if model["preprocess_sha256"] != preprocess:
            found.append(f"images of {name}, whose store was prepared differently")
    return [f"not comparable with store={store.folder}: {'; '.join(found)}"] if found else []
