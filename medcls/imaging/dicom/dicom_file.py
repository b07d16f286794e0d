"""Open one DICOM file: the header elements that pixels need, and the bytes of the pixel element.

Only the elements in KEYWORDS are read; pixel bytes are touched after the caller has checked the header.
Whatever a broken or hostile file makes the parser do ends in an ImageRefusedError without a value of it.
"""

from __future__ import annotations

import io
import logging
import os
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pydicom import config, uid
from pydicom.filereader import read_dataset
from pydicom.tag import BaseTag

from medcls.disk import SOURCE_FILE, read_again
from medcls.errors import ImageRefusedError, MedclsError, locate
from medcls.imaging.dicom.fast_header import (
    ITEM,
    PIXEL_TAGS,
    SEQUENCE_END,
    UNDEFINED_LENGTH,
    Header,
    PixelElement,
    Wanted,
    index_keywords,
    read_plain,
)

_HEADER_WORDS = """
    PatientID StudyInstanceUID SeriesInstanceUID SOPInstanceUID SOPClassUID FrameOfReferenceUID Modality
    ImageType PatientSex PatientAge Manufacturer ManufacturerModelName BodyPartExamined ViewPosition
    Laterality ImageLaterality BurnedInAnnotation RecognizableVisualFeatures PresentationIntentType
    RescaleType LossyImageCompression PhotometricInterpretation ConversionType
"""
HEADER_KEYWORDS = tuple(_HEADER_WORDS.split())
"""Attributes that RawImage.headers may carry: codes and identifiers; no names, dates or free text."""

_PIXEL_WORDS = """
    SpecificCharacterSet Rows Columns NumberOfFrames SamplesPerPixel PlanarConfiguration BitsAllocated
    BitsStored HighBit PixelRepresentation PixelPaddingValue PixelPaddingRangeLimit
    FloatPixelPaddingValue FloatPixelPaddingRangeLimit DoubleFloatPixelPaddingValue
    DoubleFloatPixelPaddingRangeLimit ModalityLUTSequence RescaleSlope RescaleIntercept DoseGridScaling
    VOILUTSequence WindowCenter WindowWidth VOILUTFunction PresentationLUTShape PixelPresentation
    RedPaletteColorLookupTableDescriptor GreenPaletteColorLookupTableDescriptor
    BluePaletteColorLookupTableDescriptor AlphaPaletteColorLookupTableDescriptor
    RedPaletteColorLookupTableData GreenPaletteColorLookupTableData BluePaletteColorLookupTableData
    SegmentedRedPaletteColorLookupTableData SegmentedGreenPaletteColorLookupTableData
    SegmentedBluePaletteColorLookupTableData PixelSpacing ImagerPixelSpacing NominalScannedPixelSpacing
    PixelAspectRatio CineRate FrameTime FrameTimeVector SharedFunctionalGroupsSequence
    PerFrameFunctionalGroupsSequence TotalPixelMatrixColumns TotalPixelMatrixRows ExtendedOffsetTable
    ExtendedOffsetTableLengths SequenceOfUltrasoundRegions
"""
_ELEMENT_BYTES = 8
"""Of the tag, VR and length of an element: the least that one has."""

_PIXEL_KEYWORDS = tuple(_PIXEL_WORDS.split())
KEYWORDS = (*HEADER_KEYWORDS, *_PIXEL_KEYWORDS)

_WANTED = index_keywords(KEYWORDS)
_LOGGER = logging.getLogger("pydicom")
_SILENT = ContextVar("silent", default=False)


@dataclass(frozen=True, slots=True)
class DicomFile:
    """An open file after its header was read; valid inside the `open_dicom` block.

    Attributes:
        dataset: Header elements of KEYWORDS that the file has.
        syntax: Its transfer syntax.
        element: Where its pixels stand.
        is_cut: Whether the stream is the start of an inflated dataset, read for its header alone.
    """

    dataset: Header
    syntax: uid.UID
    element: PixelElement
    _stream: BinaryIO
    is_cut: bool = False

    def holds_pixels(self) -> bool:
        """Return whether the file is long enough for its pixel element; compressed pixels do not say their length."""
        if self.element.length == UNDEFINED_LENGTH or self.is_cut:
            return True
        return self._stream.seek(0, io.SEEK_END) - self.element.offset >= self.element.length

    def read_native(self, *, start: int = 0) -> bytes:
        """Return the value of an uncompressed pixel element from a byte on; b"" if only the header was read.

        Raises:
            ImageRefusedError: truncated.
        """
        if self.is_cut:
            return b""
        self._stream.seek(self.element.offset + start)
        return _read_exactly(self._stream, self.element.length - start)

    def read_fragments(self) -> tuple[list[int], list[bytes]]:
        """Return the basic offset table and the fragments of a compressed pixel element.

        Raises:
            ImageRefusedError: truncated, or pixel_length where the items are not well formed.

        Source: PS3.5 A.4.
        """
        if self.element.length != UNDEFINED_LENGTH:
            raise ImageRefusedError("pixel_length", "compressed pixel data must have undefined length")
        self._stream.seek(self.element.offset)
        items: list[bytes] = []
        while True:
            group, element, length = struct.unpack("<HHL", _read_exactly(self._stream, 8))  # always little endian
            tag = group << 16 | element
            if tag == SEQUENCE_END:
                break
            if tag != ITEM or length == UNDEFINED_LENGTH:
                raise ImageRefusedError("pixel_length", "expected an item of compressed pixel data")
            items.append(_read_exactly(self._stream, length))
        if len(items) < 2:
            raise ImageRefusedError("pixel_length", "compressed pixel data has no fragment")
        return [offset for (offset,) in struct.iter_unpack("<L", items[0][: len(items[0]) // 4 * 4])], items[1:]


@contextmanager
def open_dicom(path: Path, *, max_inflated_bytes: int = 1 << 30) -> Iterator[DicomFile]:
    """An open DICOM file with its header read and its pixels not yet.

    Args:
        path: A file with a file meta group; others are refused, not guessed at.
        max_inflated_bytes: Where a deflated dataset is cut off and refused.

    Raises:
        ImageRefusedError: not_dicom, dicomdir, no_transfer_syntax, unsupported_transfer_syntax, compression_bomb,
            truncated, no_pixel_data, nested_too_deep, unreadable.

    Source: PS3.10 7.1, PS3.5 annex A.
    """
    with refusing_parser_errors(), BoundedReader(path) as stream:
        plain = read_plain(stream, _WANTED)
        if plain is not None:
            yield DicomFile(*plain, stream)
            return
        stream.seek(0)
        skip_preamble(stream)
        syntax, storage = read_file_meta(stream)
        body: BinaryIO = stream
        if syntax.is_deflated:
            body = inflate(stream, max_inflated_bytes)
        stop = PixelStop(body, storage)
        dataset = read_to_pixels(body, syntax, _WANTED, stop)
        if stop.element is None:
            raise stop.refuse(dataset)
        yield DicomFile(dataset, syntax, stop.element, body)


def is_dicom(path: Path) -> bool:
    """True for a file with DICOM's file meta group, whatever it is called; the preamble may be missing.

    A file that cannot be opened is none: whoever reads it will say so.

    Raises:
        ReadError: the disk fails.
    """

    def look() -> bool:
        try:
            with path.open("rb") as stream:
                skip_preamble(stream)
        except ImageRefusedError:
            return False
        return True

    try:
        return read_again(look, SOURCE_FILE)
    except OSError:
        return False


@contextmanager
def refusing_parser_errors() -> Iterator[None]:
    """Turn whatever a parser raises into a refusal and keep its messages, which quote values, unsaid."""
    with nullcontext() if _SILENT.get() else _silence_parsers():
        try:
            yield
        except (MedclsError, MemoryError):
            raise
        except RecursionError as error:
            raise ImageRefusedError("nested_too_deep", "sequences nested too deep to be meant") from error
        except (struct.error, EOFError) as error:
            raise ImageRefusedError("truncated", f"an element ends early: {locate(error)}") from error
        except Exception as error:
            raise ImageRefusedError("unreadable", locate(error)) from error


@contextmanager
def _silence_parsers() -> Iterator[None]:
    """Keep pydicom's warnings and log records unsaid; once is enough for blocks that stand in one another."""
    was_disabled = _LOGGER.disabled
    _LOGGER.disabled = True
    _SILENT.set(True)
    try:
        with warnings.catch_warnings(), config.disable_value_validation():
            warnings.simplefilter("ignore")
            yield
    finally:
        _LOGGER.disabled = was_disabled
        _SILENT.set(False)


class BoundedReader(io.BufferedReader):
    """A file that never sets memory aside for more bytes than it has: false lengths come by the gigabyte."""

    def __init__(self, path: Path) -> None:
        raw = io.FileIO(path)
        super().__init__(raw)
        self._size = os.fstat(raw.fileno()).st_size

    def read(self, size: int | None = -1, /) -> bytes:
        """At most size bytes, at most what is left."""
        if size is not None and size > io.DEFAULT_BUFFER_SIZE:
            size = max(0, min(size, self._size - self.tell()))
        return super().read(size)


def skip_preamble(stream: BinaryIO) -> None:
    """Leave the stream at the file meta group, which some writers put at the very start."""
    start = stream.read(132)
    if start[128:] == b"DICM":
        return
    if start[:2] == b"\x02\x00" and start[3:4] == b"\x00" and start[4:6].isupper():
        stream.seek(0)
        return
    raise ImageRefusedError("not_dicom", "no file meta group at the start or behind a preamble")


def starts_without_meta(start: bytes) -> bool:
    """Return whether a dataset begins here without a file meta group: a low element of group 8, in any byte order."""
    little = start[:2] == b"\x08\0" and start[3:4] == b"\0"
    return len(start) >= 8 and (little or (start[:2] == b"\0\x08" and start[2:3] == b"\0"))


def read_file_meta(stream: BinaryIO) -> tuple[uid.UID, str]:
    """Return transfer syntax and storage class of the file meta group; the stream is left at the dataset."""
    meta = read_dataset(
        stream,
        is_implicit_VR=False,
        is_little_endian=True,
        stop_when=lambda tag, vr, length: tag >> 16 != 2,
    )
    if meta.get("MediaStorageSOPClassUID") == uid.MediaStorageDirectoryStorage:
        raise ImageRefusedError("dicomdir", "the DICOMDIR of a disc, not an image")
    name = meta.get("TransferSyntaxUID")
    if not name:
        raise ImageRefusedError("no_transfer_syntax", "the file meta group has no TransferSyntaxUID")
    syntax = uid.UID(str(name))
    if "JPIP" in syntax.name:
        raise ImageRefusedError("unsupported_transfer_syntax", "the pixels are on a JPIP server, not in the file")
    if syntax.is_private or not syntax.is_transfer_syntax:
        raise ImageRefusedError("unsupported_transfer_syntax", "the TransferSyntaxUID is private or unknown")
    return syntax, str(meta.get("MediaStorageSOPClassUID") or "").strip()


def inflate(stream: BinaryIO, limit: int, *, cut: bool = False) -> BinaryIO:
    """Return the inflated dataset, refused if it outgrows the limit, or cut there.

    Raises:
        ImageRefusedError: truncated, compression_bomb.
    """
    machine = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        data = machine.decompress(stream.read(), limit)
    except zlib.error as error:
        raise ImageRefusedError("truncated", "the deflated dataset is damaged") from error
    if machine.unconsumed_tail and not cut:
        raise ImageRefusedError("compression_bomb", f"the dataset inflates to more than {limit} bytes")
    if not machine.unconsumed_tail and not machine.eof:
        raise ImageRefusedError("truncated", "the deflated dataset ends early")
    return io.BytesIO(data)


def read_to_pixels(stream: BinaryIO, syntax: uid.UID, wanted: Wanted, stop: PixelStop) -> Header:
    """Return the wanted elements of a dataset up to its pixel element, by pydicom."""
    tags: list[BaseTag | int] = list(wanted)
    return read_dataset(
        stream,
        is_implicit_VR=syntax.is_implicit_VR,
        is_little_endian=syntax.is_little_endian,
        stop_when=stop,
        specific_tags=tags,
    )


class PixelStop:
    """Ends pydicom's reading of a header at the pixel element, or says why there is none.

    Attributes:
        element: The pixel element; None as long as none was met.
    """

    def __init__(self, stream: BinaryIO, storage: str) -> None:
        self.element: PixelElement | None = None
        self._stream = stream
        self._storage = storage
        self._end: int | None = None
        self._elements = 0

    def __call__(self, tag: BaseTag, vr: str | None, length: int) -> bool:
        """Return whether an element, whose value begins where the stream stands, is that of the pixels."""
        here = self._stream.tell()
        self._elements += 1
        self._end = None if length == UNDEFINED_LENGTH else here + length
        if tag in PIXEL_TAGS:
            self.element = PixelElement(PIXEL_TAGS[tag], vr or "OW", length, here)
        return self.element is not None

    def refuse(self, dataset: Header) -> ImageRefusedError:
        """Return the refusal of a header without a pixel element: an image that was cut is not a report.

        pydicom returns an element that the file's end cuts as if it were whole, and ignores a part of the next. A cut
        between two elements shows only in the header: it describes an image, and an image has pixels.
        """
        here = self._stream.tell()
        size = self._stream.seek(0, io.SEEK_END)
        if self._elements == 0:
            return ImageRefusedError("truncated", "the file ends before its dataset")
        if max(here, self._end or 0) > size:
            return ImageRefusedError("truncated", "an element is longer than the file")
        if self._end is not None and size - self._end < _ELEMENT_BYTES:
            self._stream.seek(self._end)
            if self._stream.read().strip(b"\0"):
                return ImageRefusedError("truncated", "the file ends inside an element")
        # An image by its storage class (PS3.4 B.5), or without one, as the header may end before it, by its size.
        is_image = "Rows" in dataset and "Columns" in dataset
        if name := str(dataset.get("SOPClassUID") or "").strip() or self._storage:
            is_image = "Image Storage" in uid.UID(name).name
        if is_image:
            return ImageRefusedError("truncated", "the header describes an image, and the file ends before its pixels")
        return ImageRefusedError("no_pixel_data")


def _read_exactly(stream: BinaryIO, length: int) -> bytes:
    """That many bytes or a refusal; the size is checked first, so a false length allocates nothing."""
    here = stream.tell()
    if stream.seek(0, io.SEEK_END) - here < length:
        raise ImageRefusedError("truncated", f"{length} bytes expected, fewer are there")
    stream.seek(here)
    return stream.read(length)
