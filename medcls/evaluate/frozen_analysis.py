"""The plan of analysis (analysis=FILE.yaml) and the intended sample size (samplesize=FILE.json) of an evaluation."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from medcls.console import say
from medcls.errors import ConfigError, DataError
from medcls.files import read_json, sha256_file, write_json
from medcls.identity import format_count
from medcls.inputs import check_file
from medcls.statistics.analysis import Analysis, judge_analysis, parse_analysis

FROZEN = "analysis.json"
_FORMAT = 1
_MOST_BYTES = 100_000
_TWICE = "a key occurs twice"


@dataclass(frozen=True, slots=True)
class FrozenAnalysis:
    """A plan as it is kept beside the choices.

    Attributes:
        analysis: The plan.
        sha256: Checksum of the file that it was read from.
        notes: What a reader has to know of when it was written.
    """

    analysis: Analysis
    sha256: str
    notes: tuple[str, ...] = ()

    def judge(self, metrics: Mapping[str, Any], *, notes: tuple[str, ...] = ()) -> dict[str, object]:
        """Return what metrics.json holds under "analysis"."""
        return judge_analysis(self.analysis, metrics) | {"sha256": self.sha256, "notes": [*self.notes, *notes]}


def freeze_analysis(
    folder: Path, path: str | None, *, openings: int | None, evaluated: bool, where: str
) -> FrozenAnalysis | None:
    """Return the plan, written into the folder before any row that it judges is opened; None without one.

    Without a file the plan that is frozen already holds.

    Args:
        folder: The run, or the folder of the results.
        path: The YAML file; None = the frozen plan, if there is one.
        openings: How often test rows were opened before; None = not known.
        evaluated: Whether rows that the plan judges have been opened already: then no other plan is taken.
        where: What holds the plan, for messages: "run=DIR".

    Raises:
        ConfigError: The file has an unknown key or a wrong value, or differs from the plan that was frozen.
        MissingInputError: No such file.
    """
    frozen = _read_frozen(folder)
    if path is None:
        return frozen
    setting = f"analysis={path}"
    content, sha256 = read_plan(Path(path), setting), sha256_file(Path(path))
    analysis = parse_analysis(content, where=setting)
    if frozen is not None and frozen.sha256 == sha256:
        return frozen
    if frozen is not None and evaluated:
        raise ConfigError(
            f"{setting} differs from the plan that was frozen in {where} (sha256 {frozen.sha256[:12]}…) before the "
            "rows were opened: use that file, or remove analysis="
        )
    before = "unknown" if openings is None else openings
    record = {"format": _FORMAT, "sha256": sha256, "content": content, "test_openings_before": before}
    write_json(folder / FROZEN, record)
    say(f"plan of analysis frozen: {folder / FROZEN} (sha256 {sha256[:12]}…)")
    return FrozenAnalysis(analysis, sha256, _describe(before))


def _read_frozen(folder: Path) -> FrozenAnalysis | None:
    if not (folder / FROZEN).is_file():
        return None
    kept = read_json(folder / FROZEN)
    try:
        if kept["format"] != _FORMAT:
            raise DataError(f"{folder / FROZEN} has format {kept['format']!r}: expected {_FORMAT}")
        analysis = parse_analysis(kept["content"], where=str(folder / FROZEN))
        return FrozenAnalysis(analysis, str(kept["sha256"]), _describe(kept["test_openings_before"]))
    except KeyError as error:
        raise DataError(f"{folder / FROZEN} is not as evaluate wrote it: restore it") from error


def _describe(before: Any) -> tuple[str, ...]:
    if before == "unknown":
        return ("whether the plan was written before these scores were seen is unknown",)
    if before:
        times = format_count(before, "time")
        return (f"the plan was frozen after test rows had been opened {times}, so it was not decided beforehand",)
    return ()


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """Plain data; a key that is there twice is refused, where YAML would keep the last."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        """Return the mapping of a node."""
        keys = [key.value for key, _ in node.value]
        if len(set(keys)) < len(keys):
            raise yaml.constructor.ConstructorError(None, None, _TWICE, node.start_mark)
        found: dict[Hashable, Any] = super().construct_mapping(node, deep=deep)
        return found


def read_plan(path: Path, setting: str) -> Any:
    """Return the data in a YAML file; nothing in it is run, and tags other than those of plain data are refused."""
    check_file(path, setting.partition("=")[0])
    if path.stat().st_size > _MOST_BYTES:
        raise ConfigError(f"{setting}: {path.stat().st_size} bytes: expected a short YAML file")
    try:
        return _Loader(path.read_text(encoding="utf-8")).get_single_data()
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        what = "not YAML of plain data"
        if mark:
            what += f" in line {mark.line + 1}"
        if getattr(error, "problem", None) == _TWICE:
            what += f" ({_TWICE})"
        raise ConfigError(f"{setting}: {what}: correct it") from error


def read_sample_size(path: str | None, *, patients: int) -> tuple[dict[str, object], list[str]]:
    """Return the fact for the checklists and what a reader has to know; both empty without a file.

    The file is what `medcls.samplesize out=FILE.json` wrote.

    Raises:
        DataError: Another file.
    """
    if path is None:
        return {}, []
    check_file(path, "samplesize")
    record = read_json(Path(path))
    intended, sentence, assumptions = (record.get(key) for key in ("patients", "sentence", "assumptions"))
    known = record.get("format") == 1 and isinstance(intended, int) and isinstance(sentence, str)
    if not known or not isinstance(assumptions, list) or not all(isinstance(line, str) for line in assumptions):
        raise DataError(f"samplesize={path}: not a file of python -m medcls.samplesize out=FILE.json: make it by that")
    fact = {"intended": sentence, "assumptions": assumptions, "patients_evaluated": patients}
    reached = "as many" if patients >= int(intended or 0) else "fewer"
    return {"sample_size": fact}, [f"sample size: {sentence} were intended; {patients} were evaluated, {reached}"]
