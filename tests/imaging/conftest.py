"""Builders of DICOM files for the tests of this room."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    SecondaryCaptureImageStorage,
    generate_uid,
)


def build_dataset(pixels: np.ndarray, **elements: Any) -> Dataset:
    """A single-frame dataset whose header fits pixels (H, W) or (H, W, 3); elements go over it."""
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID = SecondaryCaptureImageStorage, generate_uid()
    ds.StudyInstanceUID, ds.SeriesInstanceUID = generate_uid(), generate_uid()
    ds.Modality, ds.PatientID, ds.BurnedInAnnotation = "OT", "P1", "NO"
    colour = pixels.ndim == 3
    ds.Rows, ds.Columns = pixels.shape[:2]
    ds.SamplesPerPixel = 3 if colour else 1
    ds.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
    if colour:
        ds.PlanarConfiguration = 0
    if pixels.dtype.kind != "f":
        ds.BitsAllocated = ds.BitsStored = pixels.dtype.itemsize * 8
        ds.HighBit = ds.BitsStored - 1
        ds.PixelRepresentation = int(pixels.dtype.kind == "i")
    else:
        ds.BitsAllocated = pixels.dtype.itemsize * 8
    for keyword, value in elements.items():
        setattr(ds, keyword, value)
    return ds


@pytest.fixture
def write_dicom(tmp_path: Path) -> Callable[..., Path]:
    """Writes pixels (or given bytes, or compressed fragments) as DICOM and returns the path."""
    count = 0

    def write(
        pixels: np.ndarray,
        *,
        syntax: str = ExplicitVRLittleEndian,
        raw: bytes | None = None,
        fragments: list[bytes] | None = None,
        vr: str | None = None,
        drop: tuple[str, ...] = (),
        **elements: Any,
    ) -> Path:
        nonlocal count
        count += 1
        ds = build_dataset(pixels, **elements)
        ds.file_meta = FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = syntax
        ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
        ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
        order = ">" if syntax == ExplicitVRBigEndian else "<"
        data = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes() if raw is None else raw
        if pixels.dtype.kind == "f":
            setattr(ds, "FloatPixelData" if pixels.dtype.itemsize == 4 else "DoubleFloatPixelData", data)
        elif fragments is not None:
            ds.PixelData = encapsulate(fragments, has_bot=False) if len(fragments) == 1 else join(fragments)
            ds["PixelData"].VR = "OB"
            ds["PixelData"].is_undefined_length = True
        else:
            ds.PixelData = data + b"\0" * (len(data) % 2)
            ds["PixelData"].VR = vr or ("OB" if ds.BitsAllocated <= 8 else "OW")
        for keyword in drop:
            delattr(ds, keyword)
        path = tmp_path / f"image{count}"
        ds.save_as(path, enforce_file_format=True)
        return path

    return write


def join(fragments: list[bytes]) -> bytes:
    """Fragments of one frame behind an empty offset table."""
    items = [b"", *fragments]
    body = b"".join(b"\xfe\xff\x00\xe0" + len(item).to_bytes(4, "little") + item for item in items)
    return body + b"\xfe\xff\xdd\xe0\0\0\0\0"


@pytest.fixture(scope="session")
def series() -> ModuleType:
    """The builders of synthetic series, build_series.py beside this file."""
    spec = importlib.util.spec_from_file_location("build_series", Path(__file__).parent / "build_series.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
