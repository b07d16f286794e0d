"""python -m medcls.fetch model=NAME: find or download published weights ahead of time and print their path."""

from __future__ import annotations

import medcls.entry  # noqa: F401 (before all others: it keeps the working folder's files from being imported)

# isort: split
import sys
from pathlib import Path

from medcls.cli.overrides import list_options
from medcls.config import check_choice, conf_folder
from medcls.errors import MedclsError, UsageError
from medcls.inputs import IMAGENET, find_weights_dir, flat_name

_LIBRARIES = ("timm", "torchvision")


def main(arguments: list[str]) -> int:
    """Print the path of the weights and their sha256; returns the exit code (66: not here and not to be had)."""
    try:
        pairs = dict(argument.split("=", 1) for argument in arguments if "=" in argument)
        if len(pairs) != len(arguments) or not {"model"} <= set(pairs) <= {"model", "model.name", "weights_dir"}:
            raise UsageError("expected model=NAME, or model=timm model.name=NAME (torchvision, too); [weights_dir=DIR]")
        folder = pairs.get("weights_dir")
        weights_dir = find_weights_dir(Path(folder) if folder else None)
        check_choice("model", flat_name(pairs["model"]), list_options("model", conf_folder()))
        architecture = pairs["model"]
        if (architecture in _LIBRARIES) != ("model.name" in pairs):
            raise UsageError(f"model={architecture}: model.name=NAME goes with model=timm and model=torchvision only")
        if architecture in _LIBRARIES:
            architecture += "/" + pairs["model.name"].removeprefix(f"{architecture}/")
        # torch takes seconds to import: a mistake does without it.
        from medcls.models.families import choose_family
        from medcls.models.weights import fetch_published, find_weights

        family = choose_family(architecture)
        if family.published is not None:
            fetch_published(architecture, family.published, weights_dir=weights_dir)
        file = find_weights(IMAGENET, architecture=architecture, weights_dir=weights_dir)
    except MedclsError as error:
        print(f"python -m medcls.fetch: {error}", file=sys.stderr)
        return error.exit_code
    print(f"{file.path} sha256 {file.sha256}")
    print(f"licence of the weights: {family.licence}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
