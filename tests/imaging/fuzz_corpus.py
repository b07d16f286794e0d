"""Small files that the fuzzer mutates: DICOM of every encoding, those of pydicom's wheel, and pictures."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import imagecodecs
import numpy as np
import pydicom
from PIL import Image
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels import get_encoder
from pydicom.sequence import Sequence

PLANTED = "Zzplanted"
"""Stands in every built file where a patient's name may stand; no refusal may say it."""

_MAX_BYTES = 12_000
_GREY = ((np.arange(24 * 20) * 37) % 4000 - 1000).astype("i2").reshape(24, 20)
_GREY8 = (_GREY % 251).astype("u1")
_RGB = np.stack([_GREY8, _GREY8 // 2, 255 - _GREY8], -1)


@dataclass(frozen=True, slots=True)
class Seed:
    """One file of the corpus.

    Attributes:
        name: For the log.
        data: Its bytes.
        marks: (start, value start, value length) of the elements at its top level, in order; length -1 undefined.
    """

    name: str
    data: bytes
    marks: tuple[tuple[int, int, int], ...]


@cache
def load_corpus() -> tuple[Seed, ...]:
    """The corpus, always in the same order."""
    files = {f"built/{name}": data for name, data in _build_files().items()}
    folder = Path(pydicom.__file__).parent / "data/test_files"
    for path in sorted(folder.glob("*.dcm")):
        if path.stat().st_size <= _MAX_BYTES:
            files[path.name] = path.read_bytes()
    return tuple(Seed(name, data, find_marks(data)) for name, data in files.items())


@cache
def load_pictures() -> tuple[Seed, ...]:
    """The pictures that are mutated: BMP of every kind, and one of each other format by its magic."""
    return tuple(Seed(f"picture/{name}", data, ()) for name, data in build_pictures().items())


def build_pictures() -> dict[str, bytes]:
    """Return small pictures by name, each a whole file."""
    grey, bgr = _GREY8, np.ascontiguousarray(_RGB[..., ::-1])
    ramp = b"".join(bytes([level] * 3 + [0]) for level in range(256))
    colours = b"".join(bytes([level, 255 - level, level // 2, 0]) for level in range(256))
    words = ((_RGB[..., 0].astype("<u2") >> 3) << 10) | ((_RGB[..., 1].astype("<u2") >> 3) << 5) | (_RGB[..., 2] >> 3)
    runs = b"".join(b"".join(bytes([1, level]) for level in row) + b"\0\0" for row in grey[::-1]) + b"\0\1"
    masks = np.array([0xFF0000, 0xFF00, 0xFF], "<u4").tobytes()
    wide = np.concatenate([bgr, np.zeros_like(bgr[..., :1])], -1)
    files = {
        "bmp_24": build_bmp(bgr, bits=24),
        "bmp_24_top_down": build_bmp(bgr, bits=24, top_down=True),
        "bmp_32": build_bmp(wide, bits=32),
        "bmp_32_masks": build_bmp(wide, bits=32, compression=3, masks=masks),
        "bmp_16": build_bmp(words, bits=16),
        "bmp_8_grey": build_bmp(grey, bits=8, palette=ramp),
        "bmp_8_colours": build_bmp(grey, bits=8, palette=colours),
        "bmp_4": build_bmp(grey[:, ::2], bits=4, palette=colours[:64], width=20),
        "bmp_1": build_bmp(grey[:, ::8], bits=1, palette=ramp[:4] + ramp[-4:], width=20),
        "bmp_8_runs": build_bmp(grey, bits=8, palette=ramp, compression=1, body=runs),
    }
    for name in ("PNG", "TIFF", "JPEG", "GIF", "WEBP", "PPM"):
        stream = io.BytesIO()
        Image.fromarray(_RGB).save(stream, name)
        files[name.lower()] = stream.getvalue()
    return files


def build_bmp(
    rows: np.ndarray,
    *,
    bits: int,
    width: int | None = None,
    top_down: bool = False,
    compression: int = 0,
    masks: bytes = b"",
    palette: bytes = b"",
    body: bytes | None = None,
) -> bytes:
    """Return a BMP with the 40-byte header, rows stored from the bottom up and padded to four bytes.

    Args:
        rows: Bytes or words of each row, from the top down: (H, W) or (H, W, samples).
        bits: Of one pixel.
        width: Pixels of a row; None if a row of `rows` has as many.
        top_down: Whether the file stores the first row first.
        compression: 0 none, 1 runs of bytes, 3 with masks.
        masks: Of red, green and blue behind the header; of alpha, too, in a longer header.
        palette: Four bytes a colour: blue, green, red, 0.
        body: The pixels as stored, if they are not the rows themselves.
    """
    if body is None:
        lines = [row.tobytes() for row in (rows if top_down else rows[::-1])]
        body = b"".join(line + b"\0" * (-len(line) % 4) for line in lines)
    size = (rows.shape[1] if width is None else width, -len(rows) if top_down else len(rows))
    length = 56 if len(masks) == 16 else 40
    header = struct.pack(
        "<IiiHHIIiiII", length, *size, 1, bits, compression, len(body), 2835, 2835, len(palette) // 4, 0
    )
    place = 14 + len(header) + len(masks) + len(palette)
    return b"BM" + struct.pack("<IHHI", place + len(body), 0, 0, place) + header + masks + palette + body


def find_marks(data: bytes) -> tuple[tuple[int, int, int], ...]:
    """Where pydicom sees the elements of the dataset; () where it sees none or cannot say."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset = pydicom.dcmread(io.BytesIO(data), force=True)
    except Exception:  # some files of the wheel are broken on purpose
        return ()
    implicit, _ = dataset.original_encoding
    marks = []
    for element in dataset._dict.values():
        raw = isinstance(element, pydicom.dataelem.RawDataElement)
        value = element.value_tell if raw else element.file_tell
        if value is None or value > len(data):
            return ()
        long = not implicit and data[value - 12 + 4 : value - 12 + 6] in _LONG
        length = element.length if raw and element.length != 0xFFFFFFFF else -1
        marks.append((value - (12 if long else 8), value, length))
    return tuple(marks)


_LONG = frozenset(vr.encode() for vr in pydicom.valuerep.EXPLICIT_VR_LENGTH_32)


def _build_files() -> dict[str, bytes]:
    """One file for each kind of encoding and header."""
    shown = _GREY.astype("u2") & 0xFFF
    window = {"WindowCenter": ["40", "300"], "WindowWidth": ["400", "1500"], "RescaleIntercept": "-1024"}
    ct = window | {"Modality": "CT", "RescaleSlope": "1", "RescaleType": "HU", "PixelPaddingValue": -1000}
    files = {
        "ct_explicit": _build(_GREY, **ct),
        "ct_implicit": _build(_GREY, syntax=uid.ImplicitVRLittleEndian, **ct),
        "ct_big": _build(_GREY, syntax=uid.ExplicitVRBigEndian, **ct),
        "ct_12_bits": _build(shown, BitsStored=12, HighBit=11, **(ct | {"PixelPaddingValue": 5})),
        "cr_inverted": _build(shown, PhotometricInterpretation="MONOCHROME1", ImagerPixelSpacing=["0.1", "0.2"]),
        "latin1": _build(_GREY, SpecificCharacterSet="ISO_IR 100", Manufacturer="Säge AG", **ct),
        "japanese": _build(_GREY, SpecificCharacterSet=["", "ISO 2022 IR 87"], Manufacturer="日本", **ct),
        "sequences": _build(_GREY, ReferencedImageSequence=_nest(3), **ct),
        "sequences_implicit": _build(_GREY, syntax=uid.ImplicitVRLittleEndian, ReferencedImageSequence=_nest(3), **ct),
        "voi_lut": _build(shown, VOILUTSequence=Sequence([_table()])),
        "rgb": _build(_RGB),
        "rgb_planes": _build(np.moveaxis(_RGB, -1, 0).reshape(_RGB.shape), PlanarConfiguration=1),
        "float": _build((_GREY8 / 255).astype("f4")),
        "functional_groups": _build(shown, SharedFunctionalGroupsSequence=_groups()),
        "palette": _build(_GREY8 // 4, **_palette()),
    }
    files["deflated"] = _deflate(files["ct_explicit"])
    return files | _build_compressed(shown, ct)


def _build_compressed(shown: np.ndarray, ct: dict[str, object]) -> dict[str, bytes]:
    """One file for each compressed transfer syntax."""
    rle = get_encoder(uid.RLELossless)
    header = {"rows": 24, "columns": 20, "number_of_frames": 1, "pixel_representation": 0}
    grey16 = header | {"samples_per_pixel": 1, "photometric_interpretation": "MONOCHROME2"}
    runs = rle.encode(shown.tobytes(), bits_allocated=16, bits_stored=16, **grey16)
    streams = {
        "jpeg_lossless": (uid.JPEGLosslessSV1, imagecodecs.jpeg8_encode(shown, lossless=True, bitspersample=12)),
        "jpeg_ls": (uid.JPEGLSLossless, imagecodecs.jpegls_encode(shown)),
        "jpeg_2000": (uid.JPEG2000Lossless, imagecodecs.jpeg2k_encode(shown, codecformat="j2k", reversible=True)),
        "rle": (uid.RLELossless, runs),
    }
    elements = ct | {"BitsStored": 12, "HighBit": 11, "PixelPaddingValue": 5}
    files = {
        name: _build(shown, syntax=syntax, fragments=[data], **elements) for name, (syntax, data) in streams.items()
    }
    data = streams["jpeg_2000"][1]
    data += b"\0" * (len(data) % 2)
    parts = [data[:80], data[80:200], data[200:]]
    files["fragments"] = _build(shown, syntax=uid.JPEG2000Lossless, fragments=parts, **elements)
    colour = imagecodecs.jpeg8_encode(_RGB, level=80)
    files["jpeg_colour"] = _build(
        _RGB, syntax=uid.JPEGBaseline8Bit, fragments=[colour], PhotometricInterpretation="YBR_FULL_422"
    )
    return files


def _build(
    pixels: np.ndarray,
    *,
    syntax: str = uid.ExplicitVRLittleEndian,
    fragments: list[bytes] | None = None,
    **more: object,
) -> bytes:
    """The bytes of a file whose header fits pixels (H, W) or (H, W, 3), with planted names."""
    ds = Dataset()
    ds.PatientName, ds.PatientID, ds.InstitutionName = f"{PLANTED}^A", f"{PLANTED}-1", f"{PLANTED} Hospital"
    ds.PatientBirthDate, ds.PatientSex, ds.PatientAge = "19500101", "F", "070Y"
    ds.SOPClassUID, ds.SOPInstanceUID = uid.CTImageStorage, "1.2.3.4"
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = "1.2.3", "1.2.3.1", "1.2.3.2"
    ds.Modality, ds.ImageType, ds.Manufacturer = "CR", ["ORIGINAL", "PRIMARY", "AXIAL"], "Maker"
    ds.PixelSpacing, ds.BodyPartExamined = ["0.5", "0.5"], "CHEST"
    block = ds.private_block(0x0009, f"{PLANTED} private", create=True)
    block.add_new(1, "LO", PLANTED)
    _describe_pixels(ds, pixels)
    for keyword, value in more.items():
        setattr(ds, keyword, value)
        ds[keyword].is_undefined_length = isinstance(value, Sequence)
    order = ">" if syntax == uid.ExplicitVRBigEndian else "<"
    if fragments is not None:
        ds.PixelData = encapsulate(fragments, has_bot=False) if len(fragments) == 1 else _join(fragments)
        ds["PixelData"].VR, ds["PixelData"].is_undefined_length = "OB", True
    elif pixels.dtype.kind == "f":
        ds.FloatPixelData = pixels.tobytes()
    else:
        ds.PixelData = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
        ds["PixelData"].VR = "OW" if ds.BitsAllocated > 8 else "OB"
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = syntax
    ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPClassUID, "1.2.3.4"
    ds.file_meta.SourceApplicationEntityTitle = PLANTED
    stream = io.BytesIO()
    ds.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def _describe_pixels(ds: Dataset, pixels: np.ndarray) -> None:
    """The image pixel module."""
    ds.Rows, ds.Columns = pixels.shape[:2]
    ds.SamplesPerPixel = 3 if pixels.ndim == 3 else 1
    ds.PhotometricInterpretation = "RGB" if pixels.ndim == 3 else "MONOCHROME2"
    if pixels.ndim == 3:
        ds.PlanarConfiguration = 0
    ds.BitsAllocated = pixels.dtype.itemsize * 8
    if pixels.dtype.kind != "f":
        ds.BitsStored, ds.HighBit = ds.BitsAllocated, ds.BitsAllocated - 1
        ds.PixelRepresentation = int(pixels.dtype.kind == "i")


def _nest(depth: int) -> Sequence:
    """Sequences and items of undefined and of defined length in one another."""
    item = Dataset()
    item.PatientName, item.SpecificCharacterSet = PLANTED, "ISO_IR 100"
    if depth:
        item.ReferencedImageSequence = _nest(depth - 1)
        item["ReferencedImageSequence"].is_undefined_length = depth != 2
    item.is_undefined_length_sequence_item = depth % 2 == 0
    return Sequence([item, Dataset()])


def _table() -> Dataset:
    """A VOI LUT of 4096 entries."""
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [4096, 0, 12])
    item.add_new("LUTData", "OW", np.arange(4096, dtype="<u2").tobytes())
    return item


def _groups() -> Sequence:
    """Shared functional groups with a rescale and a window."""
    rescale, window, group = Dataset(), Dataset(), Dataset()
    rescale.RescaleSlope, rescale.RescaleIntercept, rescale.RescaleType = "2", "-10", "US"
    window.WindowCenter, window.WindowWidth = "40", "80"
    group.PixelValueTransformationSequence = Sequence([rescale])
    group.FrameVOILUTSequence = Sequence([window])
    return Sequence([group])


def _palette() -> dict[str, object]:
    """The elements of a palette of 64 colours."""
    elements: dict[str, object] = {"PhotometricInterpretation": "PALETTE COLOR"}
    for index, colour in enumerate(("Red", "Green", "Blue")):
        elements[f"{colour}PaletteColorLookupTableDescriptor"] = [64, 0, 16]
        table = np.linspace(0, 65535 // (index + 1), 64).astype("<u2")
        elements[f"{colour}PaletteColorLookupTableData"] = table.tobytes()
    return elements


def _join(fragments: list[bytes]) -> bytes:
    """Fragments of one frame behind an empty offset table."""
    items = [b"", *fragments]
    body = b"".join(b"\xfe\xff\x00\xe0" + len(item).to_bytes(4, "little") + item for item in items)
    return body + b"\xfe\xff\xdd\xe0\0\0\0\0"


def _deflate(data: bytes) -> bytes:
    """An explicit file in the deflated transfer syntax."""
    name = uid.ExplicitVRLittleEndian.encode() + b"\0"
    deflated = uid.DeflatedExplicitVRLittleEndian.encode()
    at, start = data.index(name), find_marks(data)[0][0]
    meta = data[: at - 2] + len(deflated).to_bytes(2, "little") + deflated + data[at + len(name) : start]
    machine = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return meta + machine.compress(data[start:]) + machine.flush()
