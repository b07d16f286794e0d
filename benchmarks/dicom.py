"""DICOM files to stored images, all checks on: medcls beside a plain loop, other readers, the decoder and the limit."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import cv2
import imagecodecs
import numpy as np
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate

from benchmarks.dicom_arms import CENTER, WIDTH, run_medcls
from medcls.imaging.worker import run_limited

_ROUNDS = 9
_BESIDE = {
    "loop": "pydicom + cv2",
    "loop, memory kept": "pydicom + cv2, pages kept",
    "monai": "MONAI PydicomReader",
    "simpleitk": "SimpleITK",
    "decoder": "decoder alone",
    "limit": "limit",
}


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of file: its rows, the size they are stored at, and what is expected beside each arm."""

    name: str
    syntax: str
    shape: tuple[int, int]
    size: int
    files: int
    aims: dict[str, str] = field(default_factory=lambda: {"monai": "> 1", "simpleitk": "> 1"})


_RAW = {"loop": ">= 1.5", "monai": "> 1", "simpleitk": "> 1"}
_CODED = {"loop": "> 1", "monai": "> 1", "simpleitk": "> 1", "decoder": ">= 0.8"}
KINDS = (
    Kind("CT 512, uncompressed, to 224", uid.ExplicitVRLittleEndian, (512, 512), 224, 24, _RAW),
    Kind("CT 512, uncompressed, to 256", uid.ExplicitVRLittleEndian, (512, 512), 256, 24, _RAW),
    Kind("CT 512, uncompressed, to 512", uid.ExplicitVRLittleEndian, (512, 512), 512, 24, _RAW),
    Kind("CT 512, JPEG lossless, to 224", uid.JPEGLosslessSV1, (512, 512), 224, 12, _CODED),
    Kind("CT 512, JPEG 2000, to 224", uid.JPEG2000Lossless, (512, 512), 224, 6, _CODED),
    Kind("radiograph 2500 x 2000, to 512", uid.ExplicitVRLittleEndian, (2500, 2000), 512, 4, _RAW),
)


def measure(folder: Path) -> Iterator[tuple[str, str, str, str, str]]:
    """Yields the rows of every kind, then two workers beside one."""
    for number, kind in enumerate(KINDS):
        source = folder / f"dicom-{number}"
        write_files(source, kind)
        yield from _compare(source, kind)
        if number == 0:
            yield _compare_workers(sorted(source.iterdir()), kind.size)


def _compare(source: Path, kind: Kind) -> Iterator[tuple[str, str, str, str, str]]:
    """One row beside each arm; the arms take turns, round by round, each in its own process."""
    names = [name for name in ("medcls", *_BESIDE) if name != "decoder" or kind.syntax != uid.ExplicitVRLittleEndian]
    arms = {name: _start(name, source, kind.size) for name in names}
    states = {name: _ask(arm) for name, arm in arms.items()}
    ready = [name for name in names if states[name] == "ready"]
    seconds: dict[str, list[float]] = {name: [] for name in ready}
    for _ in range(_ROUNDS):
        for name in ready:
            seconds[name].append(float(_ask(arms[name], "go")))
    peaks = {name: int(_ask(arms[name], "")) for name in ready}
    for arm in arms.values():
        arm.communicate()
    ours = kind.files / float(np.median(seconds["medcls"]))
    for name, words in _BESIDE.items():
        if name not in ready:
            if name in states:
                yield kind.name, f"{ours:.0f}/s", f"{words}: {states[name] or 'crashed'}", "", ""
            continue
        ratio = float(np.median(np.array(seconds[name]) / np.array(seconds["medcls"])))
        theirs = kind.files / float(np.median(seconds[name]))
        yield kind.name, f"{ours:.0f}/s", f"{words} {theirs:.0f}/s", f"{ratio:.2f}", kind.aims.get(name, "")
    memory = ", ".join(f"{name} {peaks[name] >> 20}" for name in ready if name in ("loop", "monai", "simpleitk"))
    yield f"{kind.name}: peak memory, MiB", f"{peaks['medcls'] >> 20}", memory, "", ""


def _start(name: str, source: Path, size: int) -> subprocess.Popen[str]:
    """The process of an arm."""
    command = [sys.executable, "-m", "benchmarks.dicom_arms", name, str(source), str(size)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": "1"}
    return subprocess.Popen(command, env=environment, text=True, stdin=-1, stdout=-1, stderr=subprocess.DEVNULL)


def _ask(arm: subprocess.Popen[str], line: str | None = None) -> str:
    """Sends a line, if one is given, and returns the answer."""
    assert arm.stdin is not None
    assert arm.stdout is not None
    if line is not None:
        arm.stdin.write(line + "\n")
        arm.stdin.flush()
    return arm.stdout.readline().strip()


def _compare_workers(files: list[Path], size: int) -> tuple[str, str, str, str, str]:
    """Two workers beside one, start-up left out; the fastest rounds, since others on the machine can only slow them."""
    rates: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(5):
        for workers, found in rates.items():
            found.append(_measure_workers(files, size, workers))
    one, two = max(rates[1]), max(rates[2])
    return "two workers, CT 512, uncompressed", f"{two:.0f}/s", f"one worker {one:.0f}/s", f"{two / one:.2f}", ">= 1.8"


def _measure_workers(files: list[Path], size: int, workers: int) -> float:
    """Images a second through run_limited, from a moment when all workers are at work."""
    warm, count = 8 * len(files), 40 * len(files)
    items = (files[index % len(files)] for index in range(count))
    start = 0.0
    for index, outcome in enumerate(run_limited(partial(run_medcls, size=size), items, workers=workers)):
        if not isinstance(outcome, np.ndarray):
            raise outcome
        if index == warm:
            start = time.perf_counter()
    return (count - warm - 1) / (time.perf_counter() - start)


def write_files(folder: Path, kind: Kind) -> None:
    """Writes the files of a kind: 12 bits, with the noise and about the header of a scanner."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    rows, columns = kind.shape
    y, x = np.mgrid[-1 : 1 : rows * 1j, -1 : 1 : columns * 1j]
    body = np.where((x / 0.9) ** 2 + (y / 0.7) ** 2 < 1, 1040.0, 24.0) + 60 * np.sin(9 * x) * np.cos(7 * y)
    for index in range(kind.files):
        noise = cv2.GaussianBlur(rng.normal(0, 40, kind.shape), (0, 0), 0.7)
        pixels = np.clip(body + noise + index, 0, 4095).astype(np.uint16)
        _build(pixels, kind, index).save_as(folder / f"{index:03d}.dcm", enforce_file_format=True)


def _build(pixels: np.ndarray, kind: Kind, index: int) -> Dataset:
    """The dataset of one file."""
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID = uid.CTImageStorage, f"1.2.826.0.1.3680043.8.498.1.{index}"
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = "1.2.826.1", "1.2.826.1.1", "1.2.826.1.2"
    ds.Modality, ds.ImageType, ds.PatientID = "CT", ["ORIGINAL", "PRIMARY", "AXIAL"], "P1"
    ds.Manufacturer, ds.ManufacturerModelName, ds.BodyPartExamined = "Maker", "Model", "CHEST"
    ds.PatientSex, ds.PatientAge, ds.PatientName = "F", "060Y", "A^B"
    ds.PixelSpacing, ds.RescaleSlope, ds.RescaleIntercept, ds.RescaleType = ["0.7", "0.7"], "1", "1000", "HU"
    ds.WindowCenter, ds.WindowWidth, ds.VOILUTFunction = str(CENTER), str(WIDTH), "LINEAR_EXACT"
    ds.Rows, ds.Columns = pixels.shape
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PixelRepresentation = 1, "MONOCHROME2", 0
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 16, 12, 11
    for block in (0x0019, 0x0021, 0x0027, 0x0043):  # scanners write some fifty private elements
        private = ds.private_block(block, "MAKER PRIVATE", create=True)
        for element in range(13):
            private.add_new(element, "DS", "1.0")
    _encode(ds, pixels, kind.syntax)
    return ds


def _encode(ds: Dataset, pixels: np.ndarray, syntax: str) -> None:
    """The pixels in a transfer syntax."""
    encoders = {
        uid.JPEGLosslessSV1: lambda: imagecodecs.jpeg8_encode(pixels, lossless=True, bitspersample=12),
        uid.JPEG2000Lossless: lambda: imagecodecs.jpeg2k_encode(pixels, codecformat="j2k", reversible=True),
    }
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = syntax
    ds.PixelData = encapsulate([encoders[syntax]()]) if syntax in encoders else pixels.tobytes()
    ds["PixelData"].VR = "OB" if syntax in encoders else "OW"
    ds["PixelData"].is_undefined_length = syntax in encoders
