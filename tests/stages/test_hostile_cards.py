"""Cards of model files that somebody else wrote: one line and exit code 65 before anything is built."""

from __future__ import annotations

import copy
import json
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from medcls.errors import DataError
from medcls.files import seal
from medcls.runs.model_file import read_card, read_model

Run = Callable[..., Path]
MOST_BYTES = 512 << 20
"""What reading any card may take; the network itself has one."""
MUTATIONS = 120


@pytest.fixture(scope="module")
def small(run_train: Run, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The card, as JSON, and the tensors of a small network that was trained on crops."""
    run = run_train(
        tmp_path_factory.mktemp("cards") / "run", "model.name=cbr_tiny", "crop.scales=[24,32]", "crop.size=24"
    )
    with safe_open(run / "model.safetensors", framework="pt") as file:
        state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        card: dict[str, Any] = json.loads(file.metadata()["medcls"])
    return card, state


def write(path: Path, card: dict[str, Any], state: dict[str, Tensor]) -> Path:
    """A model file whose card is sealed: only its content can be refused."""
    path.write_bytes(save(state, metadata={"medcls": json.dumps(seal(card))}))
    return path


def change(card: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    changed = copy.deepcopy(card)
    for place, value in changes.items():
        *parents, key = place.split(".")
        node = changed
        for parent in parents:
            node = node[parent]
        node[key] = value
    return changed


FORGED: dict[str, dict[str, Any]] = {
    "a head of 128 GB": {"head": "mlp", "head_width": 1 << 27},
    "a head that the settings allow and the file does not hold": {"head": "mlp", "head_width": 65536},
    "a negative crop": {"crop.size": -5},
    "a crop larger than the image": {"crop.scale_min": 64, "crop.scale_max": 64, "crop.size": 64},
    "an image without rows": {"preprocess.height": 0},
    "an image of 64 gigapixels": {"preprocess.height": 1 << 18, "preprocess.width": 1 << 18},
    "percentiles that go down": {"preprocess.percentiles": [99.5, 0.5]},
    "percentiles beyond 100": {"preprocess.percentiles": [0.5, 1e300]},
    "an unknown intensity": {"preprocess.intensity": "eval"},
    "a volume of 2^60 voxels": {"preprocess.spatial_dims": 3},
    "channels that the store did not have": {"in_channels": 3},
    "grey values that the store did not have": {"max_value": 65535},
    "a class that does not exist": {"task.mapping": {"0": 0, "1": 99}},
    "a binary task of three classes": {"task.kind": "binary"},
    "columns of other labels": {"task.kind": "multilabel"},
    "three spacings": {"domain.spacing_mm": [1.0, 2.0, 3.0]},
    "files outside the run": {"seen_sha256": {"../../etc/passwd": "0" * 64}},
    "an ancestor without a name": {"ancestors": [{}]},
    "a text for a number": {"dropout": "0"},
    "options of another network": {"options": {"planes": "axial", "num_slices": 1 << 40}},
}


@pytest.mark.parametrize("name", FORGED)
def test_card_that_no_training_wrote_is_refused_in_one_line(
    name: str, small: tuple[dict[str, Any], dict[str, Tensor]], tmp_path: Path
) -> None:
    card, state = small
    path = write(tmp_path / "model.safetensors", change(card, FORGED[name]), state)
    with pytest.raises(DataError) as caught:
        read_model(path)
    assert caught.value.exit_code == 65
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_card_as_it_was_written_is_read(small: tuple[dict[str, Any], dict[str, Tensor]], tmp_path: Path) -> None:
    path = write(tmp_path / "model.safetensors", *small)
    assert read_model(path)[1] == read_card(path)


@pytest.mark.parametrize("text", ['{"format": 1, "format": 1}', '{"format": NaN}', '{"format": 1e400}', "{" * 5000])
def test_card_that_is_not_json_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(save({}, metadata={"medcls": text}))
    with pytest.raises(DataError, match="is not a model file of medcls, or is damaged"):
        read_card(path)


def list_places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in nested objects and lists."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, each in inner for place in [(*path, key), *list_places(each, (*path, key))]]


def nest(depth: int) -> Any:
    value: Any = 0
    for _ in range(depth):
        value = [value]
    return value


JUNK: list[Any] = [
    *(None, True, False, 0, 1, -1, -5, 2, 255, 65535, 65536, 1 << 31, 1 << 62, 10**30, -(10**30)),
    *(0.5, -0.5, 1e-300, 1e300, -1e300, "", "0", "NaN", "../../x", "\x00", "x" * 100_000, "ä\u2028\n"),
    *([], {}, [None], [[]], [0] * 20_000, {"a": 1}, {str(n): n for n in range(5000)}, nest(11), nest(200)),
]


def mutate(card: dict[str, Any], generator: np.random.Generator) -> dict[str, Any]:
    """The card with up to three values replaced, keys removed, keys added, or lists made longer."""
    changed = copy.deepcopy(card)
    for _ in range(int(generator.integers(1, 4))):
        places = list_places(changed)
        place = places[int(generator.integers(len(places)))]
        node: Any = changed
        for key in place[:-1]:
            node = node[key]
        action = int(generator.integers(6))
        if action == 0 and isinstance(node, dict):
            del node[place[-1]]
        elif action == 1 and isinstance(node, dict):
            node[f"{place[-1]}_"] = JUNK[int(generator.integers(len(JUNK)))]
        elif action == 2 and isinstance(node[place[-1]], list):
            # What the test itself writes counts, too.
            node[place[-1]] = node[place[-1]] * (3000 if len(json.dumps(node[place[-1]])) < 5000 else 2)
        else:
            node[place[-1]] = copy.deepcopy(JUNK[int(generator.integers(len(JUNK)))])
    return changed


def test_any_mutation_of_a_card_is_refused_or_read_within_little_memory(
    small: tuple[dict[str, Any], dict[str, Tensor]], tmp_path: Path
) -> None:
    card, state = small
    generator, path = np.random.default_rng(0), tmp_path / "model.safetensors"
    read_model(write(path, card, state))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    messages, read = [], 0
    for _ in range(MUTATIONS):
        write(path, mutate(card, generator), state)
        try:
            model, found = read_model(path)
        except DataError as error:
            messages.append(str(error))
            continue
        read += 1
        assert found.preprocess.shape[0] == found.in_channels
        assert model.head.linear.out_features == 3
    assert 0 < read < MUTATIONS
    assert [message for message in messages if "\n" in message or len(message) > 1500] == []
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < MOST_BYTES
