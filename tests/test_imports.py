"""The rooms and who may import whom (docs: the design's import rules), read from the source of every module."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in ("medcls", "data_prep")
    for path in sorted((ROOT / package).rglob("*.py"))
}

ROOMS = ("imaging", "data", "models", "evaluation", "explanation")
MAY_KNOW = {"data": {"imaging"}}
"""Room -> the other rooms that it may import."""

FOUNDATION = {"errors", "config", "disk", "files", "locks", "identity", "distributed", "reproducibility"}
FOUNDATION |= {"typed_fields", "hydra_border", "sweeps", "templates", "entry", "console"}
"""Modules at the bottom; they know one another's level: errors is below all."""

BELOW = {"errors", "disk", "files", "distributed"}
"""What the others of the foundation may import: each the ones before it."""

ANYWHERE = {"nearest", "check_choice", "check_range", "check_file_name", "TASKS", "SPLITS"}
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
    """The room of medcls that a module stands in: "data", "training", or its own name at the top."""
    parts = module.split(".")
    return parts[1] if parts[0] == "medcls" and len(parts) > 1 else parts[0]


def is_entry(module: str) -> bool:
    """Entry points, the stages they call, and the border to Hydra."""
    return room_of(module) in ("stages", "command_line", "help", "overrides") or (
        module.count(".") == 1 and 'if __name__ == "__main__"' in MODULES[module].read_text(encoding="utf-8")
    )


def test_the_sources_are_found() -> None:
    assert {"medcls.config", "medcls.data.store", "medcls.training.engine", "data_prep.prepare"} <= set(MODULES)
    assert is_entry("medcls.train")
    assert is_entry("data_prep.show")
    assert not is_entry("medcls.data.store")
    assert ("torch", "") in imported("medcls.reproducibility")  # an import inside a function is seen


@pytest.mark.parametrize("name", sorted(MODULES))
def test_every_import_follows_the_rules(name: str) -> None:
    room, own = room_of(name), own_imports(name)
    if name.startswith("medcls"):
        assert [m for m in own if m.startswith("data_prep")] == [], "medcls never imports data_prep"
    if name == "medcls.errors":
        assert own == set(), "errors is below everything"
    elif room in FOUNDATION and name.startswith("medcls"):
        assert {room_of(m) for m in own} <= {*BELOW, "medcls", room}, "the foundation imports errors and files"
    if room in ROOMS:
        allowed = {room, *MAY_KNOW.get(room, set()), *FOUNDATION, "medcls"}
        assert {room_of(m) for m in own} <= allowed, f"{room} knows a room it may not know"
    if room in ("imaging", "evaluation"):
        assert {m.split(".")[0] for m, _ in imported(name)} & TORCH == set(), f"{room} imports no torch"
    if name.startswith("data_prep") and name != "data_prep.show":
        assert {m.split(".")[0] for m, _ in imported(name)} & TORCH == set(), "data_prep decodes without torch"


@pytest.mark.parametrize("name", sorted(MODULES))
def test_only_entry_points_read_the_configuration(name: str) -> None:
    taken = {(module, item) for module, item in imported(name) if room_of(module) == "config"}
    objects = {item for module, item in taken if module != "medcls.config.checks"} - ANYWHERE
    whole = [module for module, item in imported(name) if f"{module}.{item}" == "medcls.config" or module == "hydra"]
    if name.startswith("data_prep") or is_entry(name) or room_of(name) == "config":
        return
    assert objects == set(), "below the entry points functions take plain arguments"
    assert whole == []


@pytest.mark.parametrize("name", sorted(MODULES))
def test_layers_point_downwards(name: str) -> None:
    for module in own_imports(name):
        assert layer_of(module) <= layer_of(name), f"{name} imports {module}, which lies above it"


def layer_of(module: str) -> int:
    """4 entry points and data_prep, 3 the loop, 2 rooms, 1 foundation, 0 errors and the package itself."""
    room = room_of(module)
    if module in ("medcls", "medcls.errors", "data_prep"):
        return 0
    if module.startswith("data_prep") or is_entry(module):
        # The commands of medcls may say a line as data_prep does: command_line is their common floor.
        return 4
    if room == "training":
        return 3
    return 1 if room in FOUNDATION else 2


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
