"""Small volumes that the fuzzer mutates: series of five slices, enhanced files and NIfTI files, all built here."""

from __future__ import annotations

import gzip
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import nibabel as nib
import numpy as np
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, encapsulate_extended
from pydicom.pixels import get_encoder

from tests.imaging import build_series
from tests.imaging.fuzz_corpus import PLANTED, Seed, find_marks

_SIZE = (6, 5)
_AFFINE = np.array([[-0.6, 0, 0, 30], [0, 0.8, 0, -20], [0, 0, 2.5, 5], [0, 0, 0, 1.0]])


@dataclass(frozen=True, slots=True)
class VolumeSeed:
    """The files of one volume; kind is "series", "enhanced" or "nifti"."""

    name: str
    kind: str
    files: tuple[Seed, ...]


@cache
def load_volumes() -> tuple[VolumeSeed, ...]:
    """The corpus, always in the same order; some rule reads every volume but those of two echoes."""
    series = {name: tuple(map(_encode, each)) for name, each in _build_series().items()}
    enhanced = {name: (_encode(each),) for name, each in _build_enhanced().items()}
    nifti = {name: (Seed(name, data, ()),) for name, data in _build_nifti().items()}
    kinds = {"series": series, "enhanced": enhanced, "nifti": nifti}
    return tuple(VolumeSeed(name, kind, files) for kind, named in kinds.items() for name, files in named.items())


def _build_series() -> dict[str, list[Dataset]]:
    """Slices of every kind that read_volume repairs or copes with."""
    implicit, big = _name(_slices()), _name(_slices())
    for ds in implicit + big:
        ds.file_meta.TransferSyntaxUID = uid.ImplicitVRLittleEndian if ds in implicit else uid.ExplicitVRBigEndian
    for ds in big:
        ds.PixelData = np.frombuffer(ds.PixelData, "<i2").astype(">i2").tobytes()
    ct = {"RescaleType": "HU", "PixelPaddingValue": -2000}
    mr = {"Modality": "MR", "SOPClassUID": uid.MRImageStorage, "EchoTime": "30", "RescaleType": "US"}
    twice = _slices()
    return {
        "ct": _name(_slices(**ct)),
        "mr": _name(_slices(orientation=build_series.rotate(17, -35, 61), **mr)),
        "tilted": _name(_slices(slope=(0.3, 0.0))),
        "gap": _name(_slices((0.0, 2.5, 5.0, 10.0, 12.5), **ct)),
        "jitter": _name(_slices((0.0, 2.5, 5.2, 7.5, 10.0))),
        "mixed": _name(_slices((0.0, 1.0, 2.0, 4.5, 7.0), slope=(0.1, 0.2))),
        "duplicates": _name([*twice, *_slices()[:1]]),
        "two_echoes": _name([*_slices(**mr), *_slices(**(mr | {"EchoTime": "60"}))]),
        "localizer": _name([*_slices(), *_slices((1.0,), ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])]),
        "floats": _name([_to_float(ds) for ds in _slices()]),
        "implicit": implicit,
        "big": big,
    }


def _slices(distances: Sequence[float] = (0.0, 2.5, 5.0, 7.5, 10.0), **elements: Any) -> list[Dataset]:
    return build_series.build_slices(distances, size=_SIZE, **elements)


def _to_float(ds: Dataset) -> Dataset:
    """The slice with double float pixels."""
    ds.DoubleFloatPixelData = np.frombuffer(ds.PixelData, "<i2").astype("<f8").tobytes()
    ds.BitsAllocated = 64
    for keyword in ("PixelData", "BitsStored", "HighBit", "PixelRepresentation"):
        delattr(ds, keyword)
    return ds


def _build_enhanced() -> dict[str, Dataset]:
    """Enhanced files with frames in every encoding."""
    slices = _name(_slices())
    files = {name: build_series.build_enhanced(slices) for name in ("frames", "rle", "fragments", "extended")}
    files["echoes"] = build_series.build_enhanced(
        [*slices, *_name(_slices(EchoTime="30"))], ImageType=["DERIVED", "PRIMARY", "VOLUME", "NONE"]
    )
    files["tilted_frames"] = build_series.build_enhanced(_name(_slices(slope=(0.0, 0.2))))
    for ds in files.values():
        _name([ds])
    for name in ("rle", "fragments", "extended"):
        _compress(files[name], offsets=name)
    return files


def _compress(ds: Dataset, *, offsets: str) -> None:
    """The frames as RLE with a basic offset table, without one, or with the extended one."""
    frames = np.frombuffer(ds.PixelData, "<u2").reshape(-1, *_SIZE)
    header = {"rows": _SIZE[0], "columns": _SIZE[1], "number_of_frames": 1, "samples_per_pixel": 1}
    header |= {"bits_allocated": 16, "bits_stored": 16, "pixel_representation": 0}
    encode = get_encoder(uid.RLELossless).encode
    encoded = [encode(frame.tobytes(), photometric_interpretation="MONOCHROME2", **header) for frame in frames]
    if offsets == "extended":
        ds.PixelData, ds.ExtendedOffsetTable, ds.ExtendedOffsetTableLengths = encapsulate_extended(encoded)
    else:
        ds.PixelData = encapsulate(encoded, has_bot=offsets == "rle")
    ds["PixelData"].VR, ds["PixelData"].is_undefined_length = "OB", True
    ds.file_meta.TransferSyntaxUID = uid.RLELossless


def _name(slices: list[Dataset]) -> list[Dataset]:
    """The files with planted names, and with identifiers that are the same on every machine."""
    for number, ds in enumerate(slices, start=1):
        ds.PatientName, ds.PatientID, ds.InstitutionName = f"{PLANTED}^A", f"{PLANTED}-1", f"{PLANTED} Hospital"
        ds.SeriesDescription = f"{PLANTED} series"
        ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = "1.2.3", "1.2.3.1", "1.2.3.2"
        ds.SOPInstanceUID = f"1.2.3.4.{number}"
        ds.file_meta = FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
        ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPClassUID, "1.2.3.4"
    return slices


def _encode(ds: Dataset) -> Seed:
    stream = io.BytesIO()
    ds.save_as(stream, enforce_file_format=True)
    return Seed(ds.SOPInstanceUID, stream.getvalue(), find_marks(stream.getvalue()))


def _build_nifti() -> dict[str, bytes]:
    """NIfTI-1 and -2 in either byte order and several types, plain and compressed."""
    values = np.arange(7 * 6 * 5).reshape(7, 6, 5)
    holes = values.astype("f4")
    holes[0, 0, 0] = np.nan
    built = {
        "plain.nii": _encode_nifti(values.astype("i2")),
        "big.nii": _encode_nifti(values.astype(">i2"), endianness=">"),
        "bytes.nii": _encode_nifti(values.astype("u1")),
        "floats.nii": _encode_nifti(holes),
        "doubles.nii": _encode_nifti(values.astype("f8"), kind=nib.Nifti2Image),
        "two.nii": _encode_nifti(values.astype("i4"), kind=nib.Nifti2Image),
    }
    return built | {f"{name}.gz": gzip.compress(data, mtime=0) for name, data in built.items()}


def _encode_nifti(data: np.ndarray, *, kind: type = nib.Nifti1Image, endianness: str = "<") -> bytes:
    header = kind.header_class(endianness=endianness)
    header.set_data_dtype(data.dtype)
    image = kind(data, _AFFINE, header)
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = PLANTED.encode()
    image.set_sform(_AFFINE, code=1)
    image.set_qform(_AFFINE, code=1)
    written: bytes = image.to_bytes()
    return written
