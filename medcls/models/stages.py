"""The stages of a network: its parameters, by name, in parts from input to output.

A class token or the embedding of places belongs to no module, so that a stage is a list of names: of modules that are
wholly its own, and of single parameters.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from torch import nn

_FEWEST = 4
_STEM = "stem"


class Stage(nn.ModuleList):
    """Part of a network between input and output; it shares the network's modules and parameters.

    Args:
        body: The network.
        names: Of modules that wholly belong to it, and of single parameters.
    """

    def __init__(self, body: nn.Module, names: Iterable[str]) -> None:
        names = list(names)
        single = [name for name in names if _is_parameter(body, name)]
        super().__init__([body.get_submodule(name) for name in names if name not in single])
        for name in single:
            self.register_parameter(name.replace(".", "_"), body.get_parameter(name))


def _is_parameter(body: nn.Module, name: str) -> bool:
    owner, _, last = name.rpartition(".")
    return last in body.get_submodule(owner)._parameters


def name_modules(body: nn.Module, modules: Sequence[nn.Module | str]) -> list[str]:
    """Return the names of modules within a network; names stay as they are."""
    known = {id(module): name for name, module in body.named_modules()}
    return [part if isinstance(part, str) else known[id(part)] for part in modules]


def cover(body: nn.Module, parameters: Iterable[str]) -> list[str]:
    """Return the largest modules that hold only these parameters, and the names of the parameters that are in none.

    What has no parameters, as dropout, goes with the module around it.
    """
    wanted = set(parameters)

    def visit(module: nn.Module, prefix: str) -> list[str]:
        inner = {prefix + name for name, _ in module.named_parameters()}
        if inner and inner <= wanted and prefix:
            return [prefix[:-1]]
        if not inner & wanted:
            return []
        found = [prefix + name for name, _ in module.named_parameters(recurse=False) if prefix + name in wanted]
        for name, child in module.named_children():
            found += visit(child, f"{prefix}{name}.")
        return found

    return visit(body, "")


def name_groups(groups: Sequence[Sequence[str]]) -> dict[str, list[str]]:
    """Return groups of parameters by a name each, from input to output.

    The first is "stem"; any other has the shortest beginning of its first parameter's name that no other group's
    parameter begins with (blocks.3), and "neck" where that is "head", which is the classifier's own.
    """
    named: dict[str, list[str]] = {}
    for place, group in enumerate(groups):
        others = {
            beginning
            for other in groups
            if other is not group
            for name in other
            for beginning in _list_beginnings(name)
        }
        unique = (beginning for beginning in _list_beginnings(group[0]) if beginning not in others)
        name = next(unique, group[0]) if place else _STEM
        named["neck" if name == "head" else name] = list(group)
    return named


def _list_beginnings(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[: end + 1]) for end in range(len(parts))]


def group_by_tree(body: nn.Module) -> list[list[str]]:
    """Return groups of parameters by the tree of modules, from input to output.

    The largest module is replaced by its children until there are four parts or more. Its own parameters, such as a
    class token, go into the first group. A part without matrices or filters, as a norm, belongs to the one before it.
    """
    parts: list[tuple[str, nn.Module]] = [("", body)]
    loose: list[str] = []
    while len(parts) < _FEWEST:
        splittable = [place for place, (_, module) in enumerate(parts) if len(_list_children(module)) > 0]
        if not splittable:
            break
        place = max(splittable, key=lambda p: _count(parts[p][1]))
        prefix, module = parts[place]
        loose += [_join(prefix, name) for name, _ in module.named_parameters(recurse=False)]
        parts[place : place + 1] = [(_join(prefix, name), child) for name, child in _list_children(module)]
    groups = [[_join(prefix, name) for name, _ in module.named_parameters()] for prefix, module in parts]
    shapes = {name: parameter.ndim for name, parameter in body.named_parameters()}
    merged: list[list[str]] = []
    for group in groups:
        if merged and all(shapes[name] < 2 for name in group):
            merged[-1] += group
        else:
            merged.append(group)
    if loose:
        merged[0] = [*loose, *merged[0]]
    return merged


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _list_children(module: nn.Module) -> list[tuple[str, nn.Module]]:
    return [(name, child) for name, child in module.named_children() if any(True for _ in child.parameters())]


def cover_all(body: nn.Module, groups: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Return stages as `Stage` takes them, after checking that every parameter is in exactly one of the groups.

    Raises:
        ValueError: one is missing, or in two.
    """
    held = sorted(name for group in groups.values() for name in group)
    if held != sorted(name for name, _ in body.named_parameters()):
        raise ValueError("a parameter is in no stage, or in two")
    return {stage: cover(body, group) for stage, group in groups.items()}
