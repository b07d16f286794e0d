"""Scan one file of any kind: its header becomes an Instance, its pixels are not read."""

from __future__ import annotations

import stat
import struct
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from medcls.disk import find_disk_failure
from medcls.errors import ImageRefusedError
from medcls.imaging.dicom.dicom_file import BoundedReader, refusing_parser_errors, starts_without_meta
from medcls.imaging.dicom.scan import find_refusal, scan_dicom
from medcls.imaging.image import DICOM_SUFFIXES
from medcls.imaging.instance import Instance
from medcls.imaging.raster import find_format, has_picture_suffix

_NIFTI_PARTS = {
    348: ((40, "8h"), (76, "8f"), (123, "B")),
    540: ((16, "8q"), (104, "8d"), (500, "i")),
}
"""By the size of the header: place and form of dim, pixdim and xyzt_units (nifti1.h, nifti2.h)."""

NIFTI_MILLIMETRES = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}
"""By the code of the unit of space: unknown counts as mm, then metre, mm, micrometre (nifti1.h)."""

_ANALYZE = (struct.pack("<i", 348), struct.pack(">i", 348))
"""How an Analyze header starts; it has no magic, so that its name must say .hdr, too."""

_START_BYTES = 4096
_MAX_PIXELS = 1 << 28


def scan_file(path: Path, *, name: str) -> Instance:
    """Return what a file's header says; nothing is decoded, and a bad file is an Instance with its problem.

    Args:
        path: The file; links, pipes, sockets and devices are not opened.
        name: What Instance.path becomes.

    Returns:
        The kind is told by the content, and by the suffix if the content is nothing known. Texts are those of
        image.read_image, so that an id of the index is the id of the decoded image.

    Raises:
        ImageRefusedError: the disk failed, which is among its causes: nothing is known of the file.

    Source: PS3.3 for attributes; grouping in docs/decisions/0011-index-and-selection.md.
    """
    found = Instance(path=name, kind="other")
    try:
        with refusing_parser_errors():
            status = path.lstat()
            if stat.S_ISLNK(status.st_mode):
                return replace(found, problem="symbolic_link")
            if not stat.S_ISREG(status.st_mode):
                return replace(found, problem="special_file")
            found = replace(found, size_bytes=status.st_size)
            with BoundedReader(path) as stream:
                for each in _scan_stream(stream, found, suffixes=[suffix.lower() for suffix in path.suffixes]):
                    found = each  # what is known before a refusal stays
    except ImageRefusedError as error:
        if find_disk_failure(error):
            raise
        return replace(found, problem=error.reason)
    return found


def _scan_stream(stream: BinaryIO, found: Instance, *, suffixes: list[str]) -> Iterator[Instance]:
    """Yield the instance as it becomes known: DICOM, then pictures, NIfTI, and what only its name tells."""
    start = stream.read(_START_BYTES)
    stream.seek(0)
    picture = find_format(start)
    starts_with_meta = len(start) >= 8 and start[:2] == b"\x02\0" and start[3:4] == b"\0"
    if start[128:132] == b"DICM" or starts_with_meta:
        found = replace(found, kind="dicom")
        yield found
        yield from scan_dicom(stream, found)
    elif picture is not None and picture.reader is not None:
        found = replace(found, kind="raster")
        yield found
        opened = picture.reader(stream)
        rows, columns, samples = opened.size
        found = replace(found, rows=rows, columns=columns, samples=samples)
        yield found
        yield replace(found, image_problem=find_refusal(lambda: opened.check(_MAX_PIXELS)))
    elif picture is not None and picture.is_picture:
        yield replace(found, kind="raster", problem="format_not_read")
    elif nifti := _nifti_header(start):
        yield _describe_nifti(nifti, found)
    else:
        yield _judge_by_name(start, found, suffixes)


def _judge_by_name(start: bytes, found: Instance, suffixes: list[str]) -> Instance:
    """Leave what is not an image "other"; give what is named like an image, or nearly is one, its problem."""
    problem = "unknown_format"
    if not start:
        problem = "empty_file"
    last = "".join(suffixes[-1:])
    if starts_without_meta(start):
        return replace(found, kind="dicom", problem="no_file_meta")
    if last == ".nii" or suffixes[-2:] == [".nii", ".gz"]:
        return replace(found, kind="nifti", problem=problem)
    if last == ".hdr" and start[:4] in _ANALYZE:
        return _describe_nifti(start, found)
    if last in DICOM_SUFFIXES:
        return replace(found, kind="dicom", problem=problem)
    if has_picture_suffix(last):
        return replace(found, kind="raster", problem=problem)
    return found


def _nifti_header(start: bytes) -> bytes:
    """Return the inflated header of a file that starts as NIfTI-1 or -2 do, plain or in gzip; b"" of any other."""
    if start.startswith(b"\x1f\x8b"):
        try:
            start = zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(start, _START_BYTES)
        except zlib.error:
            return b""
    if start[344:348] in (b"n+1\0", b"ni1\0") or start[4:8] in (b"n+2\0", b"ni2\0"):
        return start
    return b""


def _describe_nifti(header: bytes, found: Instance) -> Instance:
    """Return the instance with size and in-plane spacing, unknown in a damaged header; reading the file says why."""
    found = replace(found, kind="nifti")
    for order in "<>":
        length = struct.unpack_from(f"{order}i", header)[0]
        parts = _NIFTI_PARTS.get(length, ())
        if parts and len(header) >= length:
            dim, pixdim, units = (struct.unpack_from(order + form, header, place) for place, form in parts)
            scale = NIFTI_MILLIMETRES.get(units[0] & 7, 0.0)
            sizes, spacing = dim[1:4], (abs(pixdim[2]) * scale, abs(pixdim[1]) * scale)
            if all(0 < count < 2**31 for count in sizes) and all(0 < mm < 1e6 for mm in spacing):
                columns, rows, frames = sizes
                return replace(found, rows=rows, columns=columns, frames=frames, pixel_spacing_mm=spacing)
            return found
    return found
