"""Which damage of a file is noticed? Bits flipped, ends cut and blocks swapped, for every codec and raster format.

    python -m benchmarks.damage --cases 200 --page docs/results/damaged.md

Every damaged file is read as data_prep reads it, in a limited worker, and its pixels are compared with the sound ones.
"""

from __future__ import annotations

import argparse
import functools
import gzip
import io
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import imagecodecs
import nibabel
import numpy as np
import pydicom
import tifffile
from numpy.typing import NDArray
from PIL import Image
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate

from medcls.errors import ImageRefusedError
from medcls.imaging.image import ReadOptions, read_image
from medcls.imaging.nifti import read_nifti
from medcls.imaging.worker import Limits, run_limited

KINDS = ("bit", "cut", "swap")
REFUSED, EQUAL, DIFFERENT = "refused", "equal", "different"
_SIDE = 192
_BLOCKS = (16, 512)
"""Bytes that a swapped block has at least and at most: a sector of a disk is the largest."""


@dataclass(frozen=True, slots=True)
class Format:
    """One way to store a picture.

    Attributes:
        encode: The picture as bytes: a whole file, or the coded pixels of a DICOM file.
        syntax: Transfer syntax that wraps them into DICOM; "" for a whole file.
        suffix: Of the file.
        colour: Whether it stores the colour picture; else the grey one of 8 or 12 bits.
        bits: Bits of a grey sample.
    """

    encode: Callable[[NDArray[Any]], bytes]
    syntax: str = ""
    suffix: str = ""
    colour: bool = False
    bits: int = 8


@dataclass(frozen=True, slots=True)
class Case:
    """Damage number `index` of one kind to one format."""

    name: str
    kind: str
    index: int


def _by_pillow(kind: str, **options: Any) -> Callable[[NDArray[Any]], bytes]:
    def encode(pixels: NDArray[Any]) -> bytes:
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, kind, **options)
        return stream.getvalue()

    return encode


def _by_tifffile(**options: Any) -> Callable[[NDArray[Any]], bytes]:
    def encode(pixels: NDArray[Any]) -> bytes:
        stream = io.BytesIO()
        tifffile.imwrite(stream, pixels, rowsperstrip=32, **options)
        return stream.getvalue()

    return encode


def _encode_jpeg_2000(pixels: NDArray[Any]) -> bytes:
    return bytes(imagecodecs.jpeg2k_encode(pixels, level=0, codecformat="j2k", reversible=True, bitspersample=12))


def _encode_rle(pixels: NDArray[Any]) -> bytes:
    cells = np.ascontiguousarray(pixels, ">u2").view(np.uint8).reshape(-1, 2)
    planes = [bytes(imagecodecs.packbits_encode(np.ascontiguousarray(plane))) for plane in cells.T]
    planes = [plane + b"\0" * (len(plane) % 2) for plane in planes]
    header = np.zeros(16, "<u4")
    header[:3] = 2, 64, 64 + len(planes[0])
    return header.tobytes() + b"".join(planes)


def _encode_nifti(pixels: NDArray[Any]) -> bytes:
    volume = nibabel.Nifti1Image(pixels.astype(np.int16).reshape(48, 48, -1), np.diag([2.0, 2.0, 3.0, 1.0]))
    return bytes(volume.to_bytes())


FORMATS = {
    "JPEG, baseline": Format(_by_pillow("JPEG", quality=90), suffix=".jpg", colour=True),
    "JPEG, progressive": Format(_by_pillow("JPEG", quality=90, progressive=True), suffix=".jpg", colour=True),
    "JPEG, restart markers": Format(_by_pillow("JPEG", quality=90, restart_marker_rows=1), suffix=".jpg", colour=True),
    "PNG, 8 bits": Format(_by_pillow("PNG"), suffix=".png", colour=True),
    "PNG, 16 bits": Format(_by_pillow("PNG"), suffix=".png", bits=12),
    "TIFF, uncompressed": Format(_by_tifffile(), suffix=".tif", bits=12),
    "TIFF, LZW": Format(_by_tifffile(compression="lzw", predictor=True), suffix=".tif", bits=12),
    "TIFF, deflate": Format(_by_tifffile(compression="zlib", predictor=True), suffix=".tif", bits=12),
    "TIFF, PackBits": Format(_by_tifffile(compression="packbits"), suffix=".tif"),
    "TIFF, JPEG": Format(_by_tifffile(compression="jpeg", photometric="ycbcr"), suffix=".tif", colour=True),
    "BMP": Format(_by_pillow("BMP"), suffix=".bmp", colour=True),
    "NumPy (.npy)": Format(lambda pixels: _save_npy(pixels), suffix=".npy", bits=12),
    "NIfTI": Format(_encode_nifti, suffix=".nii", bits=12),
    "NIfTI, gzip": Format(lambda p: gzip.compress(_encode_nifti(p), mtime=0), suffix=".nii.gz", bits=12),
    "DICOM, uncompressed": Format(lambda p: p.astype("<u2").tobytes(), uid.ExplicitVRLittleEndian, bits=12),
    "DICOM, JPEG baseline": Format(
        lambda p: bytes(imagecodecs.jpeg8_encode(p, level=90)), uid.JPEGBaseline8Bit, colour=True
    ),
    "DICOM, JPEG extended, 12 bits": Format(
        lambda p: bytes(imagecodecs.jpeg8_encode(p, level=90, bitspersample=12)), uid.JPEGExtended12Bit, bits=12
    ),
    "DICOM, JPEG lossless": Format(
        lambda p: bytes(imagecodecs.jpeg8_encode(p, lossless=True, bitspersample=12)), uid.JPEGLosslessSV1, bits=12
    ),
    "DICOM, JPEG-LS": Format(lambda p: bytes(imagecodecs.jpegls_encode(p)), uid.JPEGLSLossless, bits=12),
    "DICOM, JPEG 2000": Format(_encode_jpeg_2000, uid.JPEG2000Lossless, bits=12),
    "DICOM, HTJ2K": Format(lambda p: bytes(imagecodecs.htj2k_encode(p, reversible=True)), uid.HTJ2KLossless, bits=12),
    "DICOM, RLE": Format(_encode_rle, uid.RLELossless, bits=12),
}


def _save_npy(pixels: NDArray[Any]) -> bytes:
    stream = io.BytesIO()
    np.save(stream, pixels)
    return stream.getvalue()


@functools.lru_cache(maxsize=64)
def build(name: str) -> bytes:
    """Return the sound bytes of a format: an invented picture, the same every time."""
    form = FORMATS[name]
    return form.encode(_draw(colour=form.colour, bits=form.bits))


def _draw(*, colour: bool, bits: int) -> NDArray[Any]:
    """Shapes of all sizes with noise, as an image of a body has them: (H, W) or (H, W, 3)."""
    rng = np.random.default_rng(7)
    shape = (_SIDE, _SIDE, 3)
    layers = (
        np.kron(rng.normal(size=(-(-_SIDE // s), -(-_SIDE // s), 3)), np.ones((s, s, 1)))[:_SIDE, :_SIDE] * s**0.7
        for s in (1, 2, 4, 8, 16, 32, 64)
    )
    picture = sum(layers, start=np.zeros(shape))
    scaled = (picture - picture.min()) / np.ptp(picture) * ((1 << bits) - 1)
    values = scaled.astype(np.uint8 if bits == 8 else np.uint16)
    return values if colour else np.ascontiguousarray(values[..., 0])


def harm(data: bytes, kind: str, rng: np.random.Generator) -> bytes:
    """Return damaged bytes: one bit flipped, the end cut off, or two blocks of equal length exchanged."""
    changed = bytearray(data)
    if kind == "bit":
        changed[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
    elif kind == "cut":
        del changed[int(rng.integers(1, len(data))) :]
    else:
        size = int(rng.integers(_BLOCKS[0], min(_BLOCKS[1], len(data) // 4)))
        a = int(rng.integers(0, len(data) - 2 * size))
        b = int(rng.integers(a + size, len(data) - size + 1))
        changed[a : a + size], changed[b : b + size] = data[b : b + size], data[a : a + size]
    return bytes(changed)


def read_bytes(name: str, data: bytes, folder: Path, *, options: ReadOptions | None = None) -> NDArray[Any]:
    """Return the pixels of the bytes of a format, read as data_prep does.

    Raises:
        ImageRefusedError: as the readers say.
    """
    form = FORMATS[name]
    path = folder / f"{os.getpid()}{form.suffix}"
    path.write_bytes(_wrap(data, form) if form.syntax else data)
    if "nii" in form.suffix:
        return read_nifti(path).values
    return read_image(path, options=options or ReadOptions()).pixels


def run_case(case: Case, *, folder: str) -> str:
    """Return refused, equal or different; in a worker."""
    data = build(case.name)
    rng = np.random.default_rng([sum(map(ord, case.name)), KINDS.index(case.kind), case.index])
    sound = _read_sound(case.name, folder)
    try:
        found = read_bytes(case.name, harm(data, case.kind, rng), Path(folder))
    except ImageRefusedError:
        return REFUSED
    return EQUAL if np.array_equal(found, sound) else DIFFERENT


@functools.lru_cache(maxsize=64)
def _read_sound(name: str, folder: str) -> NDArray[Any]:
    return read_bytes(name, build(name), Path(folder))


def _wrap(data: bytes, form: Format) -> bytes:
    """The DICOM file of these coded pixels."""
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID = uid.ComputedRadiographyImageStorage, "1.2.3.4"
    ds.PatientID, ds.Modality, ds.BurnedInAnnotation = "1", "CR", "NO"
    ds.WindowCenter, ds.WindowWidth = 1 << (form.bits - 1), 1 << form.bits
    ds.Rows = ds.Columns = _SIDE
    ds.SamplesPerPixel = 3 if form.colour else 1
    ds.PhotometricInterpretation = "YBR_FULL_422" if form.colour else "MONOCHROME2"
    if form.colour:
        ds.PlanarConfiguration = 0
    ds.BitsAllocated = 8 if form.bits == 8 else 16
    ds.BitsStored, ds.HighBit, ds.PixelRepresentation = form.bits, form.bits - 1, 0
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = uid.UID(form.syntax)
    ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPClassUID, ds.SOPInstanceUID
    encapsulated = ds.file_meta.TransferSyntaxUID.is_encapsulated
    ds.PixelData = encapsulate([data], has_bot=False) if encapsulated else data + b"\0" * (len(data) % 2)
    ds["PixelData"].VR = "OB" if encapsulated else "OW"
    ds["PixelData"].is_undefined_length = encapsulated
    stream = io.BytesIO()
    pydicom.dcmwrite(stream, ds, enforce_file_format=True)
    return stream.getvalue()


def measure(names: Iterable[str], cases: int, workers: int) -> dict[tuple[str, str], Counter[str]]:
    """Count how the damaged files of every format and kind end."""
    asked = [Case(name, kind, index) for name in names for kind in KINDS for index in range(cases)]
    found: dict[tuple[str, str], Counter[str]] = {}
    # Never of __main__, which workers cannot import.
    from benchmarks.damage import run_case as run

    with tempfile.TemporaryDirectory() as folder:
        for name in {case.name for case in asked}:
            read_bytes(name, build(name), Path(folder))  # a sound file that is refused would look like a success
        outcomes = run_limited(partial(run, folder=folder), asked, workers=workers, limits=Limits(seconds=20.0))
        for case, outcome in zip(asked, outcomes, strict=True):
            ending = REFUSED if isinstance(outcome, ImageRefusedError) else outcome
            found.setdefault((case.name, case.kind), Counter())[ending] += 1
    return found


def format_table(found: dict[tuple[str, str], Counter[str]]) -> list[str]:
    """Return the lines of a table: of each format, by kind of damage, refused / read equal / read different."""
    lines = ["| format | one bit flipped | end cut off | blocks swapped |", "|---|---|---|---|"]
    for name in dict.fromkeys(name for name, _ in found):
        counts = [found[name, kind] for kind in KINDS]
        lines.append(f"| {name} | {' | '.join(f'{c[REFUSED]} / {c[EQUAL]} / {c[DIFFERENT]}' for c in counts)} |")
    return lines


def main(arguments: list[str]) -> int:
    """Measure all formats, or those that are named, and print or write the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.damage")
    parser.add_argument("names", nargs="*", help=f"of {', '.join(FORMATS)}; all by default")
    parser.add_argument("--cases", type=int, default=200)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--page", type=Path)
    asked = parser.parse_args(arguments)
    start = time.monotonic()
    found = measure(asked.names or FORMATS, asked.cases, asked.workers)
    lines = format_table(found)
    print("\n".join(lines))
    if asked.page:
        commit = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
        ).stdout.strip()
        page = _PAGE.format(
            command=f"python -m benchmarks.damage --cases {asked.cases} --page {asked.page}",
            date=date.today(),
            commit=commit,
            machine=f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
            seconds=time.monotonic() - start,
            cases=asked.cases,
            table="\n".join(lines),
        )
        asked.page.write_text(page, encoding="utf-8")
    return 0


_PAGE = """\
# Damaged files: what is noticed

`{command}`, {date}, commit {commit}, {machine}, {seconds:.0f} s.

{cases} damaged files of each kind and format, made from one invented picture of 192 x 192 (12 or 8 bits, grey or
colour): one bit anywhere in the file flipped; the file cut anywhere; two blocks of 16 to 512 bytes exchanged. Of DICOM
the coded pixels are damaged, and the file around them is sound. Each is read as data_prep reads it, and its pixels are
compared with the sound ones: **refused / read, with equal pixels / read, with different pixels**. Equal pixels are
right: the damage hit a comment, a table that is not used, or padding.

{table}

What a format cannot notice, and why, is in docs/data.md.
"""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
