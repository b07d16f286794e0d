"""python -m medcls.networks [WORD …] [weights_dir=DIR]: list networks for images by name.

Without a word: the networks of medcls, and how many timm and torchvision have. With words: those of all three whose
name contains every word, with the number of parameters, the size of the images that the weights were trained on, the
licence of the weights, and whether they are on this machine (here), can be fetched (python -m medcls.fetch), or do not
exist (none).

  python -m medcls.networks convnext tiny
  python -m medcls.networks timm/vit_small weights_dir=DIR
"""

from __future__ import annotations

import medcls.entry  # noqa: F401 (before all others: it keeps the working folder's files from being imported)

# isort: split
import sys
from pathlib import Path

from medcls.cli.command_line import check_printed
from medcls.console import put
from medcls.errors import MedclsError, MissingInputError, UsageError
from medcls.inputs import find_weights_dir

_MOST_COUNTED = 40
"""Networks whose parameters are counted: each has to be built for it, without memory."""


def main(arguments: list[str]) -> int:
    """Print the table; returns the exit code (66: no network has such a name)."""
    if {"--help", "-h"} & set(arguments):
        put(__doc__)
        return 0
    try:
        words = [argument.lower() for argument in arguments if "=" not in argument]
        pairs = dict(argument.split("=", 1) for argument in arguments if "=" in argument)
        if not set(pairs) <= {"weights_dir"} or any(word.startswith("-") for word in words):
            raise UsageError("expected [WORD …] [weights_dir=DIR]: see --help")
        folder = pairs.get("weights_dir")
        weights_dir = find_weights_dir(Path(folder) if folder else None)
        # torch takes seconds to import: a mistake does without it.
        from medcls.models.families import LIBRARIES, list_names

        names = [name for name in list_names(2) if all(word in name for word in words)]
        if words:
            names += _search_libraries(words)
        if not names:
            raise MissingInputError(f"no network has {' and '.join(words)} in its name: give a part of a name")
        for line in format_networks(names, weights_dir=weights_dir):
            put(line)
        for library in LIBRARIES if not words else ():
            bare = library.prefix[:-1]
            put(f"{bare}: {len(library.list_names()):,} more: python -m medcls.networks {bare} WORD lists some")
        check_printed()
    except MedclsError as error:
        print(f"python -m medcls.networks: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _search_libraries(words: list[str]) -> list[str]:
    """Return names of libraries that contain all words; an architecture without tag only if it has no weights."""
    from medcls.models.families import LIBRARIES

    found = []
    for library in LIBRARIES:
        known = library.list_names()
        tagged = {name.partition(".")[0] for name in known if "." in name}
        full = [library.prefix + name for name in known if "." in name or name not in tagged]
        found += [name for name in full if all(word in name.lower() for word in words)]
    return found


def format_networks(names: list[str], *, weights_dir: Path | None) -> list[str]:
    """Return the lines of the table, its heading first.

    Args:
        names: Values of model.name; if they are many their parameters are not counted.
        weights_dir: Folder of weights, or None.
    """
    from medcls.models.families import choose_family
    from medcls.models.weights import describe_hand

    wide, counted = max(len(name) for name in names), len(names) <= _MOST_COUNTED
    lines = [f"{'model.name':{wide}s} {'parameters':>13s} {'trained at':>10s}  {'weights':7s}  licence of the weights"]
    for name in names:
        family = choose_family(name)
        size = "x".join(map(str, family.published.size)) if family.published else "-"
        number = f"{count_parameters(name):,d}" if counted else "-"
        hand = describe_hand(name, family, weights_dir=weights_dir)
        lines.append(f"{name:{wide}s} {number:>13s} {size:>10s}  {hand:7s}  {family.licence or '-'}")
    if not counted:
        lines.append(f"{len(names):,} networks; parameters are counted for {_MOST_COUNTED} and fewer: give more words")
    return lines


def count_parameters(name: str) -> int:
    """Return the parameters of a network without its head."""
    import torch

    from medcls.models.families import build_backbone

    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build_backbone(name).parameters())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
