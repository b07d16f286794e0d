"""Collect the report's facts about the runs: settings, training history, model, pictures, openings of the split."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medcls.errors import DataError
from medcls.evaluate.split_predictions import SplitPredictions, list_openings
from medcls.files import CONFIG, CONTACT_SHEET, METRICS_LOG, read_json_lines
from medcls.identity import format_count
from medcls.records import to_json

_SHEET = "Training images by class, stored above and augmented below"


def name_runs(parts: Sequence[SplitPredictions]) -> list[str]:
    """Return the folders' own names, with a number where two are the same."""
    names = [part.run.resolve().name for part in parts]
    if len(set(names)) == len(names):
        return names
    return [f"{name} ({number})" for number, name in enumerate(names, start=1)]


# A setting that is an absolute path, up to the last of its folders, which may have spaces in their names.
_SETTING = re.compile(r"(?m)^(\s*(?:- )?(?:[\w.]+: )?['\"]?)/.*/(?=[^/\n]+$)")
# An absolute path within a line.
_FOLDERS = re.compile(r"(?<![^\s='\"\[])/(?:[^\s/'\",\]]+/)+(?=[^\s/'\",\]])")


def hide_folders(text: str) -> str:
    """Return a text with absolute paths cut to their last part: folders are named after users and studies."""
    return _FOLDERS.sub("…/", _SETTING.sub(r"\1…/", text))


def read_configs(parts: Sequence[SplitPredictions]) -> str:
    """Return the composed configuration, of several runs one below the other; of paths their last part."""
    files = [part.run / CONFIG for part in parts]
    texts = []
    for file in files:
        try:
            texts.append(hide_folders(file.read_text(encoding="utf-8")) if file.is_file() else "")
        except UnicodeDecodeError as error:
            raise DataError(f"{file} is not UTF-8: restore it from a copy of the run") from error
    if len(parts) == 1:
        return texts[0]
    return "\n".join(f"# run {name}\n{text}" for name, text in zip(name_runs(parts), texts, strict=True))


def read_history(parts: Sequence[SplitPredictions]) -> Sequence[Mapping[str, Any]]:
    """Return the rows of metrics.jsonl; [] of several runs, whose curves are in their own reports."""
    return read_json_lines(parts[0].run / METRICS_LOG) if len(parts) == 1 else []


def list_sheets(parts: Sequence[SplitPredictions]) -> dict[str, Path]:
    """Return title and file of each run's contact sheet, where it has one."""
    titles = [_SHEET] if len(parts) == 1 else [f"{_SHEET} ({name})" for name in name_runs(parts)]
    sheets = {title: part.run / CONTACT_SHEET for title, part in zip(titles, parts, strict=True)}
    return {title: path for title, path in sheets.items() if path.is_file()}


def describe_model(parts: Sequence[SplitPredictions]) -> dict[str, object]:
    """Return the metadata of the model file; of several the values that differ side by side: "vgg16 + vgg19"."""
    cards = [to_json(part.card) for part in parts]
    ancestors = [ancestor for card in cards for ancestor in card["ancestors"]]
    return {**_join(cards), "ancestors": ancestors, "training": _join([card["training"] for card in cards])}


def _join(rows: Sequence[Mapping[str, object]]) -> dict[str, object]:
    joined: dict[str, object] = {}
    for key in dict.fromkeys(key for row in rows for key in row):
        values = [row.get(key) for row in rows]
        joined[key] = values[0]
        if values.count(values[0]) < len(values):
            joined[key] = " + ".join(map(str, values))
    return joined


def describe_ensemble(parts: Sequence[SplitPredictions]) -> list[str]:
    """Return which runs were averaged and which views of each image; [] for one run and the plain middle."""
    lines = []
    if len(parts) > 1:
        named = [
            f"{name} ({part.card.architecture}, {part.key['model_sha256'][:12]}…)"
            for name, part in zip(name_runs(parts), parts, strict=True)
        ]
        lines.append(f"scores of {len(parts)} runs averaged: {', '.join(named)}")
    return lines + list(dict.fromkeys(part.plan.describe() for part in parts if part.plan.name))


def describe_openings(parts: Sequence[SplitPredictions], *, split: str) -> list[str]:
    """Return "split test was opened 1 time by this run", or by each of several, then every opening if there are more.

    Openings count by the content of their rows: under another split, store, view, folder or use, too.
    """
    counts = [format_count(part.openings, "time") for part in parts]
    if len(parts) == 1:
        return [f"split {split} was opened {counts[0]} by this run", *_list_openings(parts[0])]
    named = [f"{count} by {name}" for name, count in zip(name_runs(parts), counts, strict=True)]
    lists = [
        f"{name}: {line}" for name, part in zip(name_runs(parts), parts, strict=True) for line in _list_openings(part)
    ]
    return [f"split {split} was opened {', '.join(named)}", *lists]


def _list_openings(part: SplitPredictions) -> list[str]:
    """Return one line for several openings; none for one, or of rows that cannot judge the run."""
    lines = list_openings(part.opened, split=part.key["split"])
    if len(lines) < 2 or not part.opened.exposure.has_unseen:
        return []
    said = []
    for number, line in enumerate(lines, start=1):
        where = f"split {line['key']['split']}"
        if "store" in line:
            where += f" of {line['store']}, {format_count(line['images'], 'image')}"
        said.append(f"{number}. {line.get('use', 'by an earlier version')} ({where})")
    return [f"all openings of these images: {'; '.join(said)}"]


def list_runs(parts: Sequence[SplitPredictions]) -> dict[str, object]:
    """Return what metrics.json says of several runs under "runs", and of other views under "views"; else {}."""
    if len(parts) == 1:
        return parts[0].plan.to_json()
    rows = [
        {"name": name, "model_sha256": part.key["model_sha256"], "openings": part.openings, **part.plan.to_json()}
        for name, part in zip(name_runs(parts), parts, strict=True)
    ]
    return {"runs": rows}
