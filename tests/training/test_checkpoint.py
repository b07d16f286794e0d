from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from medcls.clinical.encode import ClinicalSpec, Levels, NumericColumn
from medcls.data.crops import Crop
from medcls.data.targets import Task
from medcls.errors import DataError, MissingInputError
from medcls.files import seal, sha256_file
from medcls.imaging.preprocess import PreprocessSpec
from medcls.models.classifier import Classifier
from medcls.runs.model_file import ModelCard, compute_digest, pack_model, read_card, read_model

Change = Callable[[dict[str, Any]], None]


@pytest.fixture(scope="module")
def card() -> ModelCard:
    return ModelCard(
        architecture="resnet18",
        dropout=0.25,
        in_channels=1,
        max_value=65535,
        task=Task("ordinal", ["0", "1+2", "3"], ["label"], {"0": 0, "1": 1, "2": 1, "3": 2}),
        preprocess=PreprocessSpec(32, 48, dtype="uint16", intensity="percentile", windows_hu=((40.0, 400.0),)),
        store_sha256="a" * 64,
        split_name="default",
        split_sha256="b" * 64,
        labels_sha256="c" * 64,
        ancestors=[{"weights": "imagenet", "file": "x.pth", "sha256": "d" * 64}],
        training={"epoch": 3, "store": "/data/Ä", "score": None},
        crop=Crop(24, 24, 32),
    )


@pytest.fixture(scope="module")
def network(card: ModelCard) -> Classifier:
    torch.manual_seed(0)
    return card.build()


@pytest.fixture
def path(tmp_path: Path, card: ModelCard, network: Classifier) -> Path:
    (tmp_path / "model.safetensors").write_bytes(pack_model(network.state_dict(), card)[0])
    return tmp_path / "model.safetensors"


def rewrite(path: Path, change: Change) -> None:
    with safe_open(path, framework="pt") as file:
        metadata = json.loads(file.metadata()["medcls"])
    change(metadata)
    save_file(load_file(path), path, {"medcls": json.dumps(seal(metadata))})


def test_card_and_weights_come_back(path: Path, card: ModelCard, network: Classifier) -> None:
    model, read = read_model(path)
    assert read == card == read_card(path)
    assert not model.training
    assert model.normalize.max_value == 65535
    assert model.head.linear.out_features == 2
    assert {n: v.shape for n, v in model.state_dict().items()} == {n: v.shape for n, v in network.state_dict().items()}
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("field", ["crop", "clinical"])
def test_file_from_before_crops_or_clinical_columns_takes_the_whole_image_alone(path: Path, field: str) -> None:
    rewrite(path, lambda card: card.pop(field))
    assert getattr(read_card(path), field) is None


def test_clinical_columns_come_back(card: ModelCard, tmp_path: Path) -> None:
    spec = ClinicalSpec([Levels("sex", "F", ["M", "missing"])], [NumericColumn("age_years", 50.0, 10.0, True)])
    wide = dataclasses.replace(card, clinical=spec)
    model = wide.build()
    (tmp_path / "wide.safetensors").write_bytes(pack_model(model.state_dict(), wide)[0])
    back, read = read_model(tmp_path / "wide.safetensors")
    assert read.clinical == spec
    assert back.wide is not None
    assert back.wide.weight.shape == (1, 4)


def test_same_weights_give_the_same_bytes_whatever_the_layout(
    path: Path, tmp_path: Path, card: ModelCard, network: Classifier
) -> None:
    other = card.build().to(memory_format=torch.channels_last)
    other.load_state_dict(network.state_dict())
    (tmp_path / "again.safetensors").write_bytes(pack_model(other.state_dict(), card)[0])
    assert sha256_file(tmp_path / "again.safetensors") == sha256_file(path)


def test_file_has_one_metadata_entry(path: Path) -> None:
    # safetensors writes several in an order that differs between processes: the file's bytes would, too.
    with safe_open(path, framework="pt") as file:
        assert list(file.metadata()) == ["medcls"]


@pytest.mark.parametrize("where", [-1, -4_000_000])
def test_one_flipped_bit_in_the_weights_is_noticed(path: Path, where: int) -> None:
    content = bytearray(path.read_bytes())
    content[where] ^= 1
    path.write_bytes(content)
    assert load_file(path)  # safetensors itself sees nothing
    with pytest.raises(DataError, match="is damaged: its weights have changed since they were written"):
        read_model(path)


def test_digest_sees_names_shapes_and_types() -> None:
    value = torch.arange(4.0)
    states = [{"a": value}, {"b": value}, {"a": value.view(2, 2)}, {"a": value.view(torch.int32)}, {"a": value + 1}]
    assert len({compute_digest(state) for state in states}) == 5


def test_missing_file_means_an_unfinished_run(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match="the training of this run has not finished"):
        read_card(tmp_path / "model.safetensors")


def test_truncated_file(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(DataError, match="not a model file of medcls, or is damaged"):
        read_model(path)


def test_weights_that_are_no_model_of_medcls(tmp_path: Path) -> None:
    save_file({"fc.weight": torch.zeros(2)}, tmp_path / "plain.safetensors")
    save_file({"fc.weight": torch.zeros(2)}, tmp_path / "other.safetensors", {"format": "pt"})
    for name in ("plain", "other"):
        with pytest.raises(DataError, match="not a model file of medcls"):
            read_card(tmp_path / f"{name}.safetensors")


def delete_task(card: dict[str, Any]) -> None:
    del card["task"]


def add_field(card: dict[str, Any]) -> None:
    card["colour"] = "blue"


def delete_digest(card: dict[str, Any]) -> None:
    del card["tensors_sha256"]


@pytest.mark.parametrize("change", [delete_task, add_field, delete_digest])
def test_card_of_another_make_is_refused(path: Path, change: Change) -> None:
    rewrite(path, change)
    with pytest.raises(DataError, match="not a model file of medcls, or is damaged"):
        read_card(path)


def test_other_format_says_so(path: Path) -> None:
    rewrite(path, lambda card: card.update(format=2))
    with pytest.raises(DataError, match="format 2, expected 1: train again with this version"):
        read_card(path)


def test_card_that_names_another_architecture_is_refused_in_one_line(path: Path) -> None:
    rewrite(path, lambda card: card.update(architecture="resnet34"))
    with pytest.raises(DataError, match="its weights are not those of resnet34 with 3 classes") as caught:
        read_model(path)
    assert "\n" not in str(caught.value)


def test_card_that_names_another_class_count_is_refused(path: Path) -> None:
    rewrite(path, lambda card: card["task"].update(class_names=["0", "1", "2", "3"]))
    with pytest.raises(DataError, match="its weights are not those of resnet18 with 4 classes"):
        read_model(path)


def test_reading_a_card_reads_no_weights(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medcls.runs.model_file.build_classifier", None)
    assert dataclasses.asdict(read_card(path))["split_name"] == "default"


@pytest.mark.slow
def test_bytes_are_the_same_in_another_process(path: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from medcls.runs.model_file import *;"
        "model, card = read_model(Path(sys.argv[1]));"
        "Path(sys.argv[2]).write_bytes(pack_model(model.state_dict(), card)[0])"
    )
    subprocess.run([sys.executable, "-c", code, str(path), str(tmp_path / "again")], check=True)
    assert sha256_file(tmp_path / "again") == sha256_file(path)
