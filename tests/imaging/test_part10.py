"""Hostile and broken DICOM files: refused by name, and nothing is allocated or said on their word."""

from __future__ import annotations

import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from medcls.errors import ImageRefusedError
from medcls.imaging.image import ReadOptions, read_image
from tests.imaging.modality import read_modality_values

Write = Callable[..., Path]


def ramp(dtype: str, shape: tuple[int, int] = (6, 7)) -> np.ndarray:
    """Values over the whole range of an integer type."""
    info = np.iinfo(dtype)
    return np.linspace(info.min, info.max, shape[0] * shape[1]).astype(dtype).reshape(shape)


def reason(path: Path, options: ReadOptions | None = None) -> str:
    """The reason a file is refused for."""
    with pytest.raises(ImageRefusedError) as caught:
        read_image(path, options=options or ReadOptions())
    return caught.value.reason


def values(path: Path) -> np.ndarray:
    return read_modality_values(path).values


def test_truncated_at_every_length(write_dicom: Write, tmp_path: Path) -> None:
    data = write_dicom(ramp("u2"), WindowCenter=1, WindowWidth=2).read_bytes()
    path = tmp_path / "cut"
    for length in range(0, len(data), 7):
        path.write_bytes(data[:length])
        assert reason(path) in {
            "unknown_format",
            "no_transfer_syntax",
            "unsupported_transfer_syntax",  # the name itself is cut
            "no_pixel_data",
            "truncated",
        }


def test_false_length_before_the_image(write_dicom: Write) -> None:
    path = write_dicom(ramp("u2"), PatientID="P1")
    data = path.read_bytes()
    at = data.index(b"\x28\x00\x02\x00US")
    for length in (0xFFFFFFFE, 0x7FFFFFFF):
        element = b"\x09\x00\x10\x10OB\0\0" + length.to_bytes(4, "little")
        path.write_bytes(data[:at] + element + data[at:])
        assert reason(path) == "truncated"


def test_a_false_length_takes_no_memory(write_dicom: Write) -> None:
    path = write_dicom(ramp("u2"))
    data = path.read_bytes()
    at = data.index(b"\xe0\x7f\x10\x00")
    nested = b"\x28\x00\x10\x30SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff"
    for start in (b"", nested):  # (0028,1201) palette data of 2 GB, at the top and inside a sequence
        path.write_bytes(data[:at] + start + b"\x28\x00\x01\x12OW\0\0\xf0\xff\xff\x7f" + data[at:])
        tracemalloc.start()
        assert reason(path) in {"no_pixel_data", "truncated", "unreadable"}
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 20 << 20


@pytest.mark.parametrize("depth", [50, 3000, 30000])
def test_nested_sequences(write_dicom: Write, depth: int) -> None:
    path = write_dicom(ramp("u2"))
    data = path.read_bytes()
    at = data.index(b"\x28\x00\x02\x00US")
    start = b"\x09\x00\x10\x10SQ\0\0\xff\xff\xff\xff" + b"\xfe\xff\x00\xe0\xff\xff\xff\xff"
    end = b"\xfe\xff\x0d\xe0\0\0\0\0" + b"\xfe\xff\xdd\xe0\0\0\0\0"
    path.write_bytes(data[:at] + start * depth + end * depth + data[at:])
    if depth > 50:
        assert reason(path) == "nested_too_deep"
    else:
        assert_array_equal(values(path), ramp("u2"))


def test_deflate_bomb(tmp_path: Path) -> None:
    machine = zlib.compressobj(9, zlib.DEFLATED, -15)
    body = b"".join(machine.compress(bytes(1 << 20)) for _ in range(64)) + machine.flush()
    meta = b"\x02\x00\x10\x00UI\x16\x00" + b"1.2.840.10008.1.2.1.99"
    path = tmp_path / "bomb"
    path.write_bytes(bytes(128) + b"DICM" + meta + body)
    assert reason(path, ReadOptions(max_pixels=1 << 20)) == "compression_bomb"


def test_preamble_may_hold_anything_or_be_missing(write_dicom: Write) -> None:
    path = write_dicom(ramp("u2"))
    data, wanted = path.read_bytes(), read_image(path).pixels
    for preamble in (
        b"#!/bin/sh\nexit 1\n".ljust(128, b"\0"),
        b"II*\0".ljust(128, b"\0"),
        b"\x89PNG".ljust(128),
    ):
        path.write_bytes(preamble + data[128:])
        assert_array_equal(read_image(path).pixels, wanted)
    path.write_bytes(data[132:])
    assert_array_equal(read_image(path).pixels, wanted)
    path.write_bytes(data[data.index(b"\x08\x00\x16\x00") :])
    assert reason(path) == "no_file_meta"


def test_unknown_and_missing_transfer_syntaxes(write_dicom: Write) -> None:
    path = write_dicom(ramp("u2"))
    data = path.read_bytes()
    path.write_bytes(data.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.9.9.9\0"))
    assert reason(path) == "unsupported_transfer_syntax"
    path.write_bytes(data.replace(b"\x02\x00\x10\x00UI", b"\x02\x00\x18\x00UI"))
    assert reason(path) == "no_transfer_syntax"
