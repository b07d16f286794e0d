"""The rooms and who may import whom (docs/architecture.md), read from the source of every module, wings too."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in ("medcls", "data_prep")
    for path in sorted((ROOT / package).rglob("*.py"))
}

FOUNDATION = {"errors", "disk", "files", "locks", "identity", "distributed", "reproducibility", "records"}
FOUNDATION |= {"console", "entry", "inputs", "kinds"}
"""Single files at the bottom; they know one another's level, and errors, disk and files know only those before them."""

WINGS = {"train", "pretrain", "evaluate", "predict", "explain", "compare", "fetch", "launch", "samplesize"}
WINGS |= {"notebook", "doctor", "networks"}
"""One for each command, and one for notebooks: the only rooms that take a whole job."""

LEVELS: list[set[str]] = [
    {"medcls", "errors"},
    FOUNDATION - {"errors"},
    {"config"},
    {"imaging", "models", "statistics"},
    {"data", "report", "clinical"},
    {"training"},
    {"runs"},
    {"cli"},
    WINGS | {"data_prep"},
]
"""From below: a module imports its own room and levels below its own, and of its own level what NEIGHBOURS says."""

NEIGHBOURS = {
    "medcls": {"errors"},
    "data": {"imaging"},
    "clinical": {"data"},
    "evaluate": {"train"},
    "explain": {"evaluate", "train"},
    "predict": {"evaluate", "train"},
    "pretrain": {"train"},
    "compare": {"evaluate", "train"},
    "notebook": {"predict"},
    "launch": {"train", "pretrain"},
    "data_prep": {"train"},
}
"""Room -> the rooms of its own level that it may import."""

ANYWHERE = {
    "nearest",
    "check_choice",
    "check_range",
    "check_file_name",
    "check_record",
    "check_value",
    "TASKS",
    "SPLITS",
}
"""Names of medcls.config that are no part of a job: functions and constants, as all of medcls.config.checks are."""

TORCH = {"torch", "torchvision", "monai", "safetensors"}


def imported(name: str) -> set[tuple[str, str]]:
    """(module, name) of every import statement of a module, at its top or inside its functions."""
    found: set[tuple[str, str]] = set()
    for node in ast.walk(ast.parse(MODULES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {(alias.name, "") for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: imports are absolute"
            found |= {(node.module or "", alias.name) for alias in node.names}
    return found


def own_imports(name: str) -> set[str]:
    """Full names of the project's modules that a module imports."""
    found = set()
    for module, item in imported(name):
        whole = f"{module}.{item}"
        found.add(whole if whole in MODULES else module)
    return {module for module in found if module.split(".")[0] in ("medcls", "data_prep")}


def room_of(module: str) -> str:
    """The room of medcls that a module is in: "data", "training", or its own name at the top."""
    parts = module.split(".")
    return parts[1] if parts[0] == "medcls" and len(parts) > 1 else parts[0]


def level_of(room: str) -> int:
    return next(number for number, rooms in enumerate(LEVELS) if room in rooms)


def test_the_sources_are_found() -> None:
    assert {"medcls.config", "medcls.data.store", "medcls.training.loop", "data_prep.prepare"} <= set(MODULES)
    assert ("torch", "") in imported("medcls.reproducibility")  # an import inside a function is seen


def test_every_room_has_a_level_and_every_level_a_room() -> None:
    assert {room_of(name) for name in MODULES} == set().union(*LEVELS)


@pytest.mark.parametrize("name", sorted(MODULES))
def test_imports_point_downwards(name: str) -> None:
    room = room_of(name)
    # The package itself is below all, and hands a notebook's calls up: `import medcls` imports errors alone.
    for module in own_imports(name) - ({"medcls.notebook"} if name == "medcls" else set()):
        other = room_of(module)
        known = other == room or other in NEIGHBOURS.get(room, set()) or level_of(other) < level_of(room)
        # The files of the foundation know one another; errors is below them.
        assert known or {room, other} <= FOUNDATION, f"{name} imports {module}, which is not below it"
    if name.startswith("medcls"):
        assert [m for m in own_imports(name) if m.startswith("data_prep")] == [], "medcls never imports data_prep"


@pytest.mark.parametrize("name", sorted(MODULES))
def test_libraries_are_imported_where_they_belong(name: str) -> None:
    room, libraries = room_of(name), {module.split(".")[0] for module, _ in imported(name)}
    if room in ("imaging", "statistics", "report") or (room == "data_prep" and name != "data_prep.show"):
        assert libraries & TORCH == set(), f"{room} works without torch"
    if room not in ("cli", "config"):
        assert "hydra" not in libraries, "only the command line knows Hydra"


@pytest.mark.parametrize("name", sorted(MODULES))
def test_only_wings_take_a_job(name: str) -> None:
    taken = {(module, item) for module, item in imported(name) if room_of(module) == "config"}
    objects = {item for module, item in taken if module != "medcls.config.checks"} - ANYWHERE
    jobs = {item for item in objects if not item.endswith(("Config", "Rule"))}
    whole = [module for module, item in imported(name) if f"{module}.{item}" == "medcls.config"]
    if room_of(name) in (*WINGS, "data_prep", "config", "cli"):
        return
    assert jobs == set(), "below the wings functions take the group or the values that they act on"
    assert whole == []


def test_no_file_name_and_no_class_name_exists_twice() -> None:
    files = Counter(path.name for path in MODULES.values() if path.stem not in ("__init__", "__main__"))
    classes = Counter(
        node.name
        for path in MODULES.values()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef)
    )
    assert [name for name, count in (files + classes).items() if count > 1] == []


def test_modules_do_not_import_one_another_in_a_circle() -> None:
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, f"circle: {' -> '.join([*path, name])}"
        if name not in done:
            for module in own_imports(name) & set(MODULES):
                if module != "medcls":
                    visit(module, (*path, name))
            done.add(name)

    for name in MODULES:
        visit(name, ())
