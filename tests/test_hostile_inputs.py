"""Command lines, labels, images and weights of somebody else: refused with the right exit code, and nothing is run."""

from __future__ import annotations

import csv
import io
import os
import pickle
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid
from safetensors.torch import save

from medcls.cli import command_line
from medcls.console import make_printable
from medcls.data.store import Store
from medcls.errors import ConfigError, DataError, MedclsError, MissingInputError
from medcls.identity import KEY_VARIABLE, guard_cell
from medcls.models.weights import WeightsFile, read_weights

Prepare = Callable[..., Store]
WriteSource = Callable[..., Path]
SECRET = "hunter2-of-the-environment"


class Payload:
    """Leaves a file behind where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.mark}",)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A configuration and a pickle that would leave `mark` behind, and a secret in the environment."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    run = f"# @package _global_\nhydra:\n  callbacks:\n    x: {{_target_: os.mkdir, path: {tmp_path}/mark}}\n"
    (tmp_path / "evil.yaml").write_text(run)
    (tmp_path / "evil.pickle").write_bytes(pickle.dumps(Payload(tmp_path / "mark")))
    return tmp_path


COMMANDS = [
    ("+hydra.callbacks.x._target_=os.getpid", 78),
    ("hydra.callbacks={x: {_target_: os.getpid}}", 78),
    ("hydra.launcher._target_=os.getpid", 78),
    ("hydra.launcher={_target_: os.getpid}", 78),
    ("hydra/launcher=../../evil", 78),
    ("+hydra.job_logging.handlers.x.()=os.getpid", 78),
    ("hydra.searchpath=[file://FOLDER]", 78),
    ("+hydra.job.env_set.LD_PRELOAD=FOLDER/evil.so", 78),
    ("--experimental-rerun=FOLDER/evil.pickle", 64),
    ("--experimental-re=FOLDER/evil.pickle", 64),
    ("--config-dir=FOLDER", 64),
    ("--config-path=FOLDER", 64),
    ("--config-name=evil", 64),
    ("experiment=[../../../../../../../../FOLDER/evil]", 78),
    ("experiment=FOLDER/evil", 78),
    ("model=choice(../../FOLDER/evil)", 78),
    ("model=resnet18,../../FOLDER/evil", 78),
    ("model@hydra.callbacks=resnet18", 64),
    ("model._target_=os.getpid", 78),
    ("model={_target_: os.getpid}", 78),
    ("+_target_=os.getpid", 78),
    ("run=${oc.env:AWS_SECRET_ACCESS_KEY}", 78),
    ("seed=${oc.env:AWS_SECRET_ACCESS_KEY}", 78),
    ("task.label=${oc.decode:${oc.env:AWS_SECRET_ACCESS_KEY}}", 78),
    ("augment.transforms.${oc.env:AWS_SECRET_ACCESS_KEY}.p=1", 78),
    ("run=${hydra:runtime.cwd}", 78),
    ("model=${oc.env:AWS_SECRET_ACCESS_KEY}", 78),
    ("split.name=../../evil", 78),
    ("split.name=FOLDER/evil", 78),
    ("split.name=.ssh", 78),
    ("store=\x1b[2J\x1b]0;owned\x07", 66),
]


@pytest.mark.parametrize(("argument", "code"), COMMANDS, ids=[a.replace("\x1b", "ESC") for a, _ in COMMANDS])
def test_a_hostile_argument_is_refused_and_runs_nothing(
    argument: str, code: int, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from medcls.train.__main__ import main

    key = argument.split("=", 1)[0]
    others = [given for given in ("run=run", "store=nowhere") if not given.startswith(f"{key}=")]
    monkeypatch.setattr(sys, "argv", ["prog", argument.replace("FOLDER", str(folder)), *others])
    with pytest.raises(SystemExit) as stop:
        command_line.run_command("train", main, program="prog")
    printed = "".join(capsys.readouterr())
    assert stop.value.code == code, printed
    assert printed.count("\n") == 1, "one line"
    assert SECRET not in printed
    assert "\x1b" not in printed
    assert not (folder / "mark").exists()


def test_what_is_printed_commands_no_terminal() -> None:
    assert make_printable("a\tb\nc") == "a\tb\nc"
    assert (
        make_printable("\x1b[2J\x9b\x07\r\u202egnp.exe\u2066\udc80")
        == "\\x1b[2J\\x9b\\x07\\r\\u202egnp.exe\\u2066\\udc80"
    )
    assert make_printable("Größe 3 µm, 膝, 🦴") == "Größe 3 µm, 膝, 🦴"


PATHS = [
    ("../outside.png", DataError, "leads out of the source"),
    ("images/../../outside.png", DataError, "leads out of the source"),
    ("/etc/hostname", DataError, "leads out of the source"),
    ("..\\outside.png", DataError, "leads out of the source"),
    ("C:\\outside.png", DataError, "leads out of the source"),
    ("images/a\0b.png", DataError, "NUL bytes"),
    ("~/outside.png", MissingInputError, "its file does not exist"),
    ("$HOME/outside.png", MissingInputError, "its file does not exist"),
    ("link.png", DataError, "leads out of the source"),
    ("linked/outside.png", DataError, "leads out of the source"),
    ("twin.png", DataError, "symbolic link"),
    ("zero.png", DataError, "leads out of the source"),
    ("images", MissingInputError, "its file does not exist"),
    ("x" * 5000, MissingInputError, "1 bad row of 8"),
]


@pytest.mark.parametrize(("path", "error", "part"), PATHS, ids=[repr(p)[:30] for p, _, _ in PATHS])
def test_labels_name_no_file_outside_the_source(
    path: str,
    error: type[MedclsError],
    part: str,
    write_source: Callable[..., Path],
    run_prepare: Prepare,
    tmp_path: Path,
) -> None:
    def rewrite(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [rows[0] | {"path": path}, *rows[1:]]

    raw = write_source(tmp_path / "raw", patients=4, rewrite=rewrite)
    (tmp_path / "outside.png").write_bytes((raw / "images/p00L.png").read_bytes())
    (raw / "link.png").symlink_to(tmp_path / "outside.png")
    (raw / "linked").symlink_to(tmp_path)
    (raw / "twin.png").symlink_to(raw / "images/p00L.png")
    (raw / "zero.png").symlink_to("/dev/zero")
    with pytest.raises(error, match=part):
        run_prepare(raw, tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_a_pipe_among_the_images_is_quarantined_and_not_waited_for(
    write_source: WriteSource, run_prepare: Prepare, tmp_path: Path
) -> None:
    raw = write_source(tmp_path / "raw", rewrite=lambda rows: [rows[0] | {"path": "pipe.png"}, *rows[1:]])
    os.mkfifo(raw / "pipe.png")
    store = run_prepare(raw, tmp_path / "store")
    assert store.info["counts"]["states"]["quarantined: cannot_open"] == 1


@pytest.mark.parametrize("column", ["label", "patient_id", "site"])
@pytest.mark.parametrize("text", ["a\x1b[2Jb", "a\nb", "a\x9bb"])
def test_names_with_control_characters_are_bad_rows(
    column: str, text: str, write_source: WriteSource, run_prepare: Prepare, tmp_path: Path
) -> None:
    raw = write_source(
        tmp_path / "raw", patients=2, rewrite=lambda rows: [row | {"site": "x", column: text} for row in rows]
    )
    with pytest.raises(DataError, match=f"{column} contains a control character") as caught:
        run_prepare(raw, tmp_path / "store", "columns=[site]")
    assert text not in str(caught.value)


@pytest.mark.parametrize("argument", ["labels={}", "index={}", "deidentify=hmac deidentify.key_file={}", "reuse={}"])
def test_a_pipe_or_device_is_no_input(
    argument: str, source: Path, run_prepare: Prepare, tmp_path: Path, no_key: None
) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name in (tmp_path / "pipe", "/dev/zero"):
        with pytest.raises(MissingInputError):
            run_prepare(source, tmp_path / "store", *argument.format(name).split(" "))


@pytest.mark.parametrize("name", ["parts", "splits", "manifest.parquet", "shard-00000.npy"])
def test_a_store_is_not_written_through_a_link(name: str, source: Path, run_prepare: Prepare, tmp_path: Path) -> None:
    (tmp_path / "victim").mkdir()
    (tmp_path / "victim/file").write_text("mine")
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / name).symlink_to(tmp_path / "victim" / ("file" if "." in name else ""))
    with pytest.raises(ConfigError, match="a link"):
        run_prepare(source, tmp_path / "store")
    assert [(p.name, p.read_text()) for p in (tmp_path / "victim").iterdir()] == [("file", "mine")]


def write_dicom(path: Path, *, patient: str, series: str, seed: int) -> None:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1.1"
    meta.MediaStorageSOPInstanceUID = generate_uid()
    image = Dataset()
    image.file_meta = meta
    image.SOPClassUID, image.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    image.PatientID, image.Modality, image.Manufacturer = patient, "DX", "=1+1"
    image.add_new("StudyInstanceUID", "UI", "1.2.3")
    image.add_new("SeriesInstanceUID", "UI", series)
    image.Rows, image.Columns, image.SamplesPerPixel = 32, 32, 1
    image.PhotometricInterpretation, image.PixelRepresentation = "MONOCHROME2", 0
    image.BitsAllocated, image.BitsStored, image.HighBit = 8, 8, 7
    image.PixelData = np.random.default_rng(seed).integers(0, 255, (32, 32), np.uint8).tobytes()
    image.save_as(path, enforce_file_format=True)


IDS = ["../../../tmp/x", "=HYPERLINK(0)", "\x1b[31mred", "<script>alert(1)</script>", "a/b", "-2+3", "'quoted", "plain"]


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_identifiers_that_are_paths_formulas_or_escapes_do_nothing(
    run_prepare: Prepare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, "42" * 32)
    raw = tmp_path / "home/raw"
    for number, patient in enumerate(IDS * 2):
        place = raw / f"class{number // len(IDS)}"
        place.mkdir(parents=True, exist_ok=True)
        write_dicom(place / f"=cmd{number}.dcm", patient=f"{patient}", series=f"../../{number}", seed=number)
    store = run_prepare(
        raw, tmp_path / "home/store", "split.val=0.25", "split.test=0.25", "split.on_missing=report",
        "compare=[patient]", labels=None,
    )  # fmt: skip
    assert len(store) == 16
    assert {p.name for p in (tmp_path / "home").iterdir()} == {"raw", "store", "store.identity-map.csv"}
    assert {p.name for p in tmp_path.iterdir()} == {"home"}
    with (tmp_path / "home/store.identity-map.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert not [cell for row in rows for cell in row if cell[:1] in ("=", "+", "-", "@")]
    # pydicom takes an escape character for a change of the character set, and out.
    assert {row[-1] for row in rows[1:]} == {guard_cell(name.replace("\x1b", "")) for name in IDS}
    assert "\x1b" not in "".join(capsys.readouterr())
    held = b"".join(path.read_bytes() for path in store.folder.rglob("*") if path.is_file())
    assert not [name for name in IDS[:-1] if name.encode() in held]


@given(st.text(max_size=20))
def test_a_guarded_cell_is_no_formula_and_gives_its_text_back(text: str) -> None:
    guarded = guard_cell(text)
    assert guarded[:1] not in ("=", "+", "-", "@", "\t", "\r", "＝", "＋", "－", "＠")
    assert (guarded[1:] if guarded.startswith("'") else guarded) == text


def pack(entries: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return stream.getvalue()


def saved(content: object) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream)
    return stream.getvalue()


WEIGHTS: dict[str, tuple[str, Callable[[Path], bytes]]] = {
    "a pickle": ("w.pth", lambda mark: pickle.dumps(Payload(mark))),
    "a pickle in torch's archive": ("w.pth", lambda mark: saved({"w": Payload(mark)})),
    "a pickle named safetensors": ("w.safetensors", lambda mark: pickle.dumps(Payload(mark))),
    "a whole module": ("w.pth", lambda mark: saved(torch.nn.Linear(1, 1))),
    "a deflated archive": ("w.pth", lambda mark: pack({"w/data.pkl": b"", "w/data/0": bytes(1 << 20)})),
    "one number as a billion": ("w.pth", lambda mark: saved({"w": torch.zeros(1).half().expand(1 << 30)})),
    "a sparse tensor": ("w.pth", lambda mark: saved({"w": torch.eye(3).to_sparse()})),
    "numbers for names": ("w.pth", lambda mark: saved({7: torch.zeros(1)})),
    "no tensor": ("w.pth", lambda mark: saved({"w": [1, 2]})),
    "a list": ("w.pth", lambda mark: saved([torch.zeros(1)])),
    "a header of 2^63 bytes": ("w.safetensors", lambda mark: (1 << 63).to_bytes(8, "little") + b"{}"),
    "half a file": ("w.safetensors", lambda mark: save({"w": torch.zeros(1000)})[:500]),
    "nothing": ("w.pth", lambda mark: b""),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_hostile_weights_are_bad_data_and_run_nothing(name: str, tmp_path: Path) -> None:
    file, build = WEIGHTS[name]
    (tmp_path / file).write_bytes(build(tmp_path / "mark"))
    with pytest.raises(DataError, match=file):
        read_weights(WeightsFile(tmp_path / file, ""))
    assert not (tmp_path / "mark").exists()


def test_honest_weights_are_read(tmp_path: Path) -> None:
    tensors = OrderedDict(w=torch.ones(2, 3).t(), n=torch.tensor(3))
    (tmp_path / "w.pth").write_bytes(saved(tensors))
    read = read_weights(WeightsFile(tmp_path / "w.pth", ""))
    assert read["w"].tolist() == [[1, 1], [1, 1], [1, 1]]
    assert int(read["n"]) == 3
