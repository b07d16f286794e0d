"""Runs and stores of somebody else: every lie ends in one line and its exit code, and touches nothing outside."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save

from medcls.data.splits import read_split
from medcls.data.store import Store
from medcls.errors import ConfigError, DataError, MedclsError, MissingInputError, WriteError
from medcls.explain.explain import check_folder
from medcls.files import DATASET, read_json, seal, write_json
from medcls.runs.model_file import read_card, read_model

Run = Callable[..., Path]
JUNK: list[Any] = [None, True, -1, 0, 1e300, "", "../../x", "{0.__class__}", [], [None], {}, {"_target_": "os.system"}]
NESTED = "[" * 100_000


class Payload:
    """Leaves a file behind where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.mark}",)


def read_metadata(model: Path) -> dict[str, Any]:
    with safe_open(model, framework="pt") as file:
        content: dict[str, Any] = json.loads(file.metadata()["medcls"])
    return content


def places_of(content: dict[str, Any], path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Every key of a nested dictionary."""
    inner = [place for k, v in content.items() if isinstance(v, dict) for place in places_of(v, (*path, k))]
    return [*((*path, key) for key in content), *inner]


def replace_at(content: dict[str, Any], place: tuple[str, ...], value: Any) -> dict[str, Any]:
    copy: dict[str, Any] = json.loads(json.dumps(content))
    node = copy
    for key in place[:-1]:
        node = node[key]
    node[place[-1]] = value
    return copy


def with_header(header: bytes, *, length: int | None = None, data: bytes = b"") -> bytes:
    """A safetensors file of any header, which may lie about its own length."""
    return (len(header) if length is None else length).to_bytes(8, "little") + header + data


def declare(shape: list[int], end: int) -> bytes:
    return json.dumps({"w": {"dtype": "F32", "shape": shape, "data_offsets": [0, end]}}).encode()


def with_metadata(text: str) -> bytes:
    return save({"w": torch.zeros(1)}, metadata={"medcls": text})


FILES: dict[str, bytes] = {
    "empty": b"",
    "zeros": bytes(100),
    "a header longer than the file": with_header(b"{}", length=1 << 20),
    "a header of 2^63 bytes": with_header(b"{}", length=1 << 63),
    "a header that is no JSON": with_header(b"{" * 64),
    "a tensor of terabytes": with_header(declare([1 << 40], 4 << 40), data=bytes(16)),
    "a shape that overflows": with_header(declare([1 << 62, 1 << 62], 16), data=bytes(16)),
    "offsets that go backwards": with_header(
        json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}).encode(), data=bytes(16)
    ),
    "no metadata": save({"w": torch.zeros(1)}),
    "metadata that is no JSON": with_metadata("{"),
    "metadata that nests for ever": with_metadata(NESTED),
    "metadata with a number of 5000 digits": with_metadata("1" * 5000),
    "metadata that is a list": with_metadata("[1]"),
    "an instruction for metadata": with_metadata('{"_target_": "os.system", "format": 1}'),
}


@pytest.mark.parametrize("name", FILES)
def test_a_lying_model_file_is_bad_data(name: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(FILES[name])
    with pytest.raises(DataError) as caught:
        read_model(path)
    assert len(str(caught.value)) < 1000


def test_a_pickle_under_the_name_of_a_model_runs_nothing(run_copy: Path, run_evaluate: Run, tmp_path: Path) -> None:
    (run_copy / "model.safetensors").write_bytes(pickle.dumps(Payload(tmp_path / "mark")))
    with pytest.raises(DataError, match="not a model file of medcls"):
        run_evaluate(run_copy)
    assert not (tmp_path / "mark").exists()


def test_a_card_with_any_value_replaced_is_refused_or_plain(trained: Path, tmp_path: Path) -> None:
    card, path = read_metadata(trained / "model.safetensors"), tmp_path / "model.safetensors"
    for place in places_of(card):
        for value in JUNK:
            path.write_bytes(with_metadata(json.dumps(seal(replace_at(card, place, value)))))
            try:
                read = read_card(path)
            except DataError:
                continue
            assert isinstance(read.task.class_names, list), place
            assert isinstance(read.max_value, int), place
    path.write_bytes(with_metadata(json.dumps(seal(card | {"_target_": "os.system", "_args_": ["id"]}))))
    with pytest.raises(DataError, match="_target_"):
        read_card(path)


CARDS: dict[str, tuple[tuple[str, ...], Any]] = {
    "an architecture that is a path": (("architecture",), "../../etc/passwd"),
    "another architecture": (("architecture",), "vgg11"),
    "more classes": (("task", "class_names"), ["0", "1", "2", "3"]),
    "a million classes": (("task", "class_names"), ["x"] * 1_000_000),
    "no class": (("task", "class_names"), []),
    "a split outside the store": (("split_name",), "../../default"),
    "a dropout of 2": (("dropout",), 2.0),
    "colour": (("in_channels",), 7),
    "a largest value of 0": (("max_value",), 0),
}


@pytest.mark.parametrize("name", CARDS)
def test_a_card_that_fits_no_network_is_bad_data(name: str, trained: Path, tmp_path: Path) -> None:
    place, value = CARDS[name]
    with safe_open(trained / "model.safetensors", framework="pt") as file:
        state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    card = replace_at(read_metadata(trained / "model.safetensors"), place, value)
    path = tmp_path / "model.safetensors"
    path.write_bytes(save(state, metadata={"medcls": json.dumps(seal(card))}))
    with pytest.raises(DataError):
        read_model(path)


@pytest.mark.parametrize(
    "text", ["{}", "[]", "", NESTED, '{"store": 7}', "1" * 5000, '{"store": "/nowhere/../nowhere"}']
)
def test_settings_of_a_run_that_name_no_store_are_refused(text: str, run_copy: Path, run_evaluate: Run) -> None:
    (run_copy / "config/settings.json").write_text(text)
    with pytest.raises((DataError, MissingInputError)):
        run_evaluate(run_copy)


@pytest.mark.parametrize("name", ["config/settings.json", "config/config.yaml", "environment.json", "metrics.jsonl"])
def test_a_pipe_in_a_run_does_not_hang(name: str, run_copy: Path, run_evaluate: Run) -> None:
    (run_copy / name).unlink()
    os.mkfifo(run_copy / name)
    needed = name.endswith("json")
    with pytest.raises(MissingInputError, match="is not a regular file") if needed else nullcontext():
        run_evaluate(run_copy)


def test_counting_an_opening_follows_no_link(run_copy: Path, run_evaluate: Run, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("untouched")
    (run_copy / "evaluation/store-val").mkdir(parents=True)
    (run_copy / "evaluation/store-val/opened.jsonl").symlink_to(victim)
    with pytest.raises((WriteError, DataError)):
        run_evaluate(run_copy, "split=val")
    (victim).write_text("")
    with pytest.raises(WriteError):
        run_evaluate(run_copy, "split=val")
    assert victim.read_text() == ""


@pytest.mark.parametrize("line", ["7", "{}", '{"key": 7}', '{"key": {}}', NESTED])
def test_a_log_of_openings_that_cannot_be_counted_is_refused(line: str, run_copy: Path, run_evaluate: Run) -> None:
    (run_copy / "evaluation/other-test").mkdir(parents=True)
    (run_copy / "evaluation/other-test/opened.jsonl").write_text(line + "\n")
    with pytest.raises(DataError, match=r"opened\.jsonl"):
        run_evaluate(run_copy)


def test_frozen_choices_of_another_hand_are_refused(run_copy: Path, run_evaluate: Run) -> None:
    run_evaluate(run_copy, "report=false")
    for name in ("operating_points.json", "calibration.json"):
        content = read_json(run_copy / name)
        write_json(run_copy / name, {"format": content["format"], "chosen_on": content["chosen_on"]})
    with pytest.raises(DataError, match="not as evaluate wrote it"):
        run_evaluate(run_copy, "report=false")


def test_a_report_embeds_no_picture_from_outside(run_copy: Path, run_evaluate: Run, tmp_path: Path) -> None:
    """explanations.json names the pictures; ../ and links would put any image of the reader's disk into the report."""
    secret = np.full((40, 40, 3), 7, np.uint8)
    cv2.imwrite(str(tmp_path / "secret.png"), secret)
    results = run_evaluate(run_copy)
    key, rows = read_json(results / "inputs.json"), json.loads((results / "metrics.json").read_text())
    folder = results / "explanation-lime"
    (folder / "images").mkdir(parents=True)
    (folder / "images/link.png").symlink_to(tmp_path / "secret.png")
    image_id = Store(Path(read_json(run_copy / "config/settings.json")["store"])).column("image_id")
    names = [f"{'../' * 9}{tmp_path}/secret.png", str(tmp_path / "secret.png"), "link.png"]
    content = {
        "method": "LIME", "summary": {"sanity": None}, "found": ["<script>alert(1)</script>"], "rows": rows["n_images"],
        "images": [{"image_id": i, "true": "", "predicted": "", "picture": n} for i in image_id for n in names],
        **{name: key[name] for name in ("model_sha256", "store_sha256")},
    }  # fmt: skip
    write_json(folder / "explanations.json", content)
    page = (run_evaluate(run_copy) / "report.html").read_text()
    assert "over the image of row" not in page
    assert "<script>alert(1)" not in page
    write_json(folder / "explanations.json", content | {"summary": 7})
    with pytest.raises(DataError, match=r"explanations\.json"):
        run_evaluate(run_copy)


def test_explain_clears_nothing_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures/holiday.png").write_bytes(b"mine")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/images").symlink_to(tmp_path / "pictures")
    with pytest.raises(ConfigError, match="images, a link"):
        check_folder(tmp_path / "out")
    assert (tmp_path / "pictures/holiday.png").read_bytes() == b"mine"


def test_an_unfinished_run_is_emptied_of_links_and_not_of_what_they_lead_to(
    run_copy: Path, run_train: Run, tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/file").write_text("mine")
    (run_copy / "model.safetensors").unlink()
    (run_copy / "tensorboard").symlink_to(tmp_path / "mine")
    run_train(run_copy)
    assert (tmp_path / "mine/file").read_text() == "mine"
    assert (run_copy / "model.safetensors").is_file()


def test_a_folder_of_strangers_is_no_run(run_train: Run, tmp_path: Path) -> None:
    (tmp_path / "run/.ssh").mkdir(parents=True)
    (tmp_path / "run/.ssh/id_rsa").write_text("key")
    with pytest.raises(ConfigError, match=r"holds \.ssh but not a run"):
        run_train(tmp_path / "run")
    assert (tmp_path / "run/.ssh/id_rsa").read_text() == "key"


def test_dataset_json_with_any_value_replaced_is_refused_or_read(copy_store: Callable[..., Path]) -> None:
    folder = copy_store()
    info = read_json(folder / DATASET, remedy="")
    for place in places_of(info):
        for value in JUNK:
            write_json(folder / DATASET, replace_at(info, place, value))
            try:
                Store(folder).verify()
            except MedclsError:
                continue
            assert place[0] in ("counts", "deidentify", "columns", "medcls", "preprocess"), (place, value)


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "a/../manifest.parquet"])
def test_a_store_lists_no_part_outside_itself(name: str, copy_store: Callable[..., Path]) -> None:
    folder = copy_store()
    info = read_json(folder / DATASET)
    write_json(folder / DATASET, info | {"sha256": info["sha256"] | {name: "0" * 64}})
    with pytest.raises(DataError, match="does not list the store's parts"):
        Store(folder)


def test_a_shard_without_a_checksum_is_not_opened(copy_store: Callable[..., Path]) -> None:
    folder = copy_store()
    info = read_json(folder / DATASET)
    info["sha256"].pop("shard-00000.npy")
    write_json(folder / DATASET, info)
    with pytest.raises(DataError, match="is not a part that"):
        Store(folder).image(0)


def test_a_shard_of_objects_is_not_unpickled(
    copy_store: Callable[..., Path], certify: Callable[[Path], None], tmp_path: Path
) -> None:
    folder = copy_store()
    np.save(folder / "shard-00000.npy", np.array([Payload(tmp_path / "mark")], dtype=object), allow_pickle=True)
    certify(folder)
    with pytest.raises(DataError, match="cannot be read"):
        Store(folder).image(0)
    assert not (tmp_path / "mark").exists()


def test_a_split_certificate_of_another_hand_is_checked_again(
    copy_store: Callable[..., Path], certify: Callable[[Path], None]
) -> None:
    folder = copy_store()
    certificate = folder / "splits/default.json"
    for value in JUNK:
        write_json(certificate, {"on_leak": value})
        with pytest.raises(DataError, match="has changed since its certificate"):
            read_split(Store(folder), "default")
    shutil.copyfile(folder / "labels.parquet", folder / "splits/default.parquet")
    certify(folder)
    with pytest.raises(DataError):
        read_split(Store(folder), "default")
