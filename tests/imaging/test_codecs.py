"""Compressed frames: every codec, its bits, sign and colours, and what truncation does to it."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import imagecodecs
import numpy as np
import pydicom
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from pydicom import uid
from pydicom.encaps import get_frame
from pydicom.pixels import pixel_array

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


RNG = np.random.default_rng(0)


def colours(rows: int = 8, columns: int = 10) -> np.ndarray:
    return RNG.integers(0, 256, (rows, columns, 3)).astype(np.uint8)


def smooth(dtype: str = "u2", bits: int = 12, shape: tuple[int, int] = (33, 47)) -> np.ndarray:
    """A picture without noise, over bits bits."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    wave = (np.sin(x / 7) + np.cos(y / 5)) / 4 + 0.5
    low = -(1 << (bits - 1)) if dtype[0] == "i" else 0
    return (wave * ((1 << bits) - 1) + low).astype(dtype)


def j2k(pixels: np.ndarray, bits: int, **kwargs: object) -> bytes:
    return bytes(
        imagecodecs.jpeg2k_encode(pixels, level=0, codecformat="j2k", reversible=True, bitspersample=bits, **kwargs)
    )


LOSSLESS = {
    "jpeg lossless": (
        uid.JPEGLosslessSV1,
        lambda p, b: imagecodecs.jpeg8_encode(p, lossless=True, bitspersample=b),
    ),
    "jpeg lossless 14": (
        uid.JPEGLossless,
        lambda p, b: imagecodecs.jpeg8_encode(p, lossless=True, predictor=6, bitspersample=b),
    ),
    "jpeg-ls": (uid.JPEGLSLossless, lambda p, b: imagecodecs.jpegls_encode(p)),
    "jpeg 2000": (uid.JPEG2000Lossless, j2k),
    "jpeg 2000 in general": (uid.JPEG2000, j2k),
    "htj2k": (uid.HTJ2KLossless, lambda p, b: imagecodecs.htj2k_encode(p, reversible=True)),
}


@pytest.mark.parametrize("name", LOSSLESS)
@pytest.mark.parametrize("fragments", [1, 3])
def test_lossless_codecs_return_every_bit(write_dicom: Write, name: str, fragments: int) -> None:
    syntax, encode = LOSSLESS[name]
    pixels = smooth()
    data = bytes(encode(pixels, 16 if "htj2k" in name else 12))
    step = -(-len(data) // fragments // 2) * 2
    parts = [data[at : at + step] for at in range(0, len(data), step)]
    assert len(parts) == fragments
    path = write_dicom(pixels, syntax=syntax, fragments=parts, BitsStored=12, HighBit=11)
    assert_array_equal(values(path), pixels)


@pytest.mark.parametrize("name", ["jpeg lossless", "jpeg-ls"])
def test_codecs_without_a_sign_take_the_header_s(write_dicom: Write, name: str) -> None:
    syntax, encode = LOSSLESS[name]
    pixels = smooth("i2", 12)
    data = bytes(encode(pixels.view("u2"), 16))
    path = write_dicom(pixels, syntax=syntax, fragments=[data], BitsStored=12, HighBit=11)
    assert_array_equal(values(path), pixels)
    data = bytes(encode(pixels.view("u2") & 0xFFF, 12))
    path = write_dicom(pixels, syntax=syntax, fragments=[data], BitsStored=12, HighBit=11)
    assert_array_equal(values(path), pixels)


def test_the_sign_bit_is_the_codestream_s_top_bit(write_dicom: Write) -> None:
    pixels = smooth("i2", 12)
    data = bytes(imagecodecs.jpeg8_encode(pixels.view("u2") & 0xFFF, lossless=True, bitspersample=12))
    path = write_dicom(pixels, syntax=uid.JPEGLosslessSV1, fragments=[data], BitsStored=16, HighBit=15)
    assert_array_equal(values(path), pixels)
    assert read_image(path).bits == 12


def test_jpeg_2000_s_own_bits_and_sign_win(write_dicom: Write) -> None:
    pixels = smooth("u2", 16)
    path = write_dicom(pixels, syntax=uid.JPEG2000Lossless, fragments=[j2k(pixels, 16)], BitsStored=12, HighBit=11)
    assert_array_equal(values(path), pixels)
    assert read_image(path).bits == 16
    signed = smooth("i2", 13)
    path = write_dicom(
        signed,
        syntax=uid.JPEG2000Lossless,
        fragments=[j2k(signed, 13)],
        PixelRepresentation=0,
        PixelPaddingValue=0,
    )
    assert_array_equal(values(path), signed)


def test_unsigned_jpeg_2000_under_a_signed_header(write_dicom: Write) -> None:
    harmless = smooth("u2", 11)
    path = write_dicom(harmless, syntax=uid.JPEG2000Lossless, fragments=[j2k(harmless, 12)], PixelRepresentation=1)
    assert_array_equal(values(path), harmless)
    ambiguous = smooth("u2", 12)
    path = write_dicom(ambiguous, syntax=uid.JPEG2000Lossless, fragments=[j2k(ambiguous, 12)], PixelRepresentation=1)
    assert reason(path) == "sign_mismatch"


@pytest.mark.parametrize(("transformed", "kind"), [(True, "YBR_RCT"), (True, "RGB"), (False, "RGB")])
def test_jpeg_2000_colours_are_undone_once(write_dicom: Write, transformed: bool, kind: str) -> None:
    rgb = colours(33, 47)
    data = j2k(rgb, 8, mct=transformed)
    path = write_dicom(rgb, syntax=uid.JPEG2000Lossless, fragments=[data], PhotometricInterpretation=kind)
    assert_allclose(read_image(path).pixels, np.moveaxis(rgb, -1, 0) / 255, atol=1e-6)


@pytest.mark.parametrize(("transformed", "kind"), [(False, "YBR_RCT"), (False, "YBR_ICT"), (True, "YBR_FULL")])
def test_jpeg_2000_colours_that_contradict_are_refused(write_dicom: Write, transformed: bool, kind: str) -> None:
    rgb = colours(33, 47)
    data = j2k(rgb, 8, mct=transformed)
    path = write_dicom(rgb, syntax=uid.JPEG2000Lossless, fragments=[data], PhotometricInterpretation=kind)
    assert reason(path) == "colour_conflict"


def test_jpeg_2000_irreversible_colours(write_dicom: Write) -> None:
    rgb = np.stack([smooth("u1", 8), smooth("u1", 8)[:, ::-1], smooth("u1", 8)[::-1]], -1)
    data = bytes(imagecodecs.jpeg2k_encode(rgb, level=60, codecformat="j2k", reversible=False))
    path = write_dicom(rgb, syntax=uid.JPEG2000, fragments=[data], PhotometricInterpretation="YBR_ICT")
    assert_allclose(read_image(path).pixels, np.moveaxis(rgb, -1, 0) / 255, atol=3 / 255)


@pytest.mark.parametrize("columns", [48, 47])
@pytest.mark.parametrize("subsampling", ["444", "422", "420"])
def test_jpeg_baseline_colours_are_undone_once(write_dicom: Write, columns: int, subsampling: str) -> None:
    y, x = np.mgrid[:33, :columns]
    rgb = np.stack([x * 4, y * 6, 255 - x * 3], -1).astype("u1")
    data = bytes(imagecodecs.jpeg8_encode(rgb, 98, subsampling=subsampling))
    path = write_dicom(rgb, syntax=uid.JPEGBaseline8Bit, fragments=[data], PhotometricInterpretation="YBR_FULL_422")
    assert_allclose(read_image(path).pixels, np.moveaxis(rgb, -1, 0) / 255, atol=10 / 255)


def test_jpeg_baseline_rgb_and_markers(write_dicom: Write) -> None:
    rgb = np.stack([smooth("u1", 8), smooth("u1", 8)[:, ::-1], smooth("u1", 8)[::-1]], -1)
    wanted = np.moveaxis(rgb, -1, 0) / 255
    untransformed = bytes(imagecodecs.jpeg8_encode(rgb, 98, colorspace="RGB", outcolorspace="RGB"))
    assert b"Adobe" in untransformed
    for kind in ("RGB", "YBR_FULL"):  # the stream says RGB, whatever the header says
        path = write_dicom(rgb, syntax=uid.JPEGBaseline8Bit, fragments=[untransformed], PhotometricInterpretation=kind)
        assert_allclose(read_image(path).pixels, wanted, atol=8 / 255)
    transformed = bytes(imagecodecs.jpeg8_encode(rgb, 98))
    assert b"JFIF" in transformed
    path = write_dicom(rgb, syntax=uid.JPEGBaseline8Bit, fragments=[transformed], PhotometricInterpretation="RGB")
    assert_allclose(read_image(path).pixels, wanted, atol=8 / 255)


def test_jpeg_extended_of_12_bits(write_dicom: Write) -> None:
    pixels = smooth()
    data = bytes(imagecodecs.jpeg8_encode(pixels, 98, bitspersample=12))
    path = write_dicom(pixels, syntax=uid.JPEGExtended12Bit, fragments=[data], BitsStored=12, HighBit=11)
    assert_allclose(values(path), pixels, atol=12)


@pytest.mark.parametrize("pixels", [ramp("u1"), ramp("u2"), ramp("i2"), colours(5, 7)])
def test_rle(write_dicom: Write, tmp_path: Path, pixels: np.ndarray) -> None:
    source = write_dicom(pixels)
    ds = pydicom.dcmread(source)
    ds.compress(uid.RLELossless, encoding_plugin="pydicom")
    path = tmp_path / "rle"
    ds.save_as(path)
    assert_array_equal(read_image(path).pixels, read_image(source).pixels)


def test_deflated_dataset(write_dicom: Write) -> None:
    path = write_dicom(ramp("i2"), syntax=uid.DeflatedExplicitVRLittleEndian)
    assert_array_equal(values(path), ramp("i2"))
    data = path.read_bytes()
    path.write_bytes(data[:-20])
    assert reason(path) == "truncated"


@pytest.mark.parametrize("name", [*LOSSLESS, "jpeg baseline", "rle"])
def test_truncated_codestreams_are_refused(write_dicom: Write, name: str) -> None:
    pixels = smooth()
    if name == "rle":
        ds = pydicom.dcmread(write_dicom(pixels))
        ds.compress(uid.RLELossless, encoding_plugin="pydicom")
        syntax, data = uid.RLELossless, get_frame(ds.PixelData, 0, number_of_frames=1)
    elif name == "jpeg baseline":
        pixels = smooth("u1", 8)
        syntax, data = uid.JPEGBaseline8Bit, bytes(imagecodecs.jpeg8_encode(pixels, 90))
    else:
        syntax, encode = LOSSLESS[name]
        data = bytes(encode(pixels, 16 if "htj2k" in name else 12))
    path = write_dicom(pixels, syntax=syntax, fragments=[data])
    assert read_image(path).pixels.shape == (1, *pixels.shape)
    for length in (len(data) // 2, 30, 3):
        path = write_dicom(pixels, syntax=syntax, fragments=[data[: length // 2 * 2 + 2]])
        assert reason(path) in {"truncated", "damaged_codestream"}


def test_codestream_and_header_must_agree_on_the_size(write_dicom: Write) -> None:
    pixels = smooth()
    for change in ({"Rows": 32}, {"Columns": 94}):
        path = write_dicom(pixels, syntax=uid.JPEG2000Lossless, fragments=[j2k(pixels, 12)], **change)
        assert reason(path) == "size_mismatch"


def test_small_codestream_of_a_large_image_is_refused_undecoded(write_dicom: Write) -> None:
    blank = bytearray(j2k(np.zeros((64, 64), "u2"), 16))
    blank[8:16] = (16384).to_bytes(4, "big") * 2
    path = write_dicom(
        np.zeros((4, 4), "u2"),
        syntax=uid.JPEG2000Lossless,
        fragments=[bytes(blank)],
        Rows=16384,
        Columns=16384,
    )
    assert reason(path) == "compression_bomb"


def test_two_frames_in_the_offset_table_of_one(write_dicom: Write) -> None:
    data = j2k(smooth(), 12)
    path = write_dicom(smooth(), syntax=uid.JPEG2000Lossless, fragments=[data, data])
    data = path.read_bytes()
    table = b"\xfe\xff\x00\xe0\x08\0\0\0" + (0).to_bytes(4, "little") + (10).to_bytes(4, "little")
    path.write_bytes(data.replace(b"\xfe\xff\x00\xe0\0\0\0\0", table, 1))
    assert reason(path) == "frame_count"


def test_video_is_refused(write_dicom: Write) -> None:
    path = write_dicom(smooth(), syntax=uid.MPEG2MPML, fragments=[b"\0" * 64])
    assert reason(path) == "unsupported_transfer_syntax"


@pytest.mark.oracle
@pytest.mark.parametrize("name", ["lossless", "lossless 14", "extended", "baseline", "colours"])
def test_jpeg_against_dcmtk(write_dicom: Write, tmp_path: Path, name: str) -> None:
    if not shutil.which("dcmdjpeg"):
        pytest.skip("dcmdjpeg (Debian: dcmtk) is not installed")
    grey = smooth()
    colour = np.stack([smooth("u1", 8), smooth("u1", 8)[:, ::-1], smooth("u1", 8)[::-1]], -1).copy()
    encode, red = imagecodecs.jpeg8_encode, colour[..., 0].copy()
    pixels, syntax, data = {
        "lossless": (grey, uid.JPEGLosslessSV1, encode(grey, lossless=True, bitspersample=12)),
        "lossless 14": (grey, uid.JPEGLossless, encode(grey, lossless=True, predictor=5, bitspersample=12)),
        "extended": (grey, uid.JPEGExtended12Bit, encode(grey, 90, bitspersample=12)),
        "baseline": (red, uid.JPEGBaseline8Bit, encode(red, 90)),
        "colours": (colour, uid.JPEGBaseline8Bit, encode(colour, 90, subsampling="444")),
    }[name]
    bits = 12 if pixels is grey else 8
    kind = "YBR_FULL" if name == "colours" else "MONOCHROME2"
    path = write_dicom(
        pixels,
        syntax=syntax,
        fragments=[bytes(data)],
        BitsStored=bits,
        HighBit=bits - 1,
        PhotometricInterpretation=kind,
        WindowCenter=2048,
        WindowWidth=4096,
    )
    plain = tmp_path / "plain"
    subprocess.run(["dcmdjpeg", str(path), str(plain)], check=True)
    theirs = pixel_array(plain)
    if name == "colours":  # two roundings, of the transform and of the colours
        assert_allclose(read_image(path).pixels, np.moveaxis(theirs, -1, 0) / 255, atol=2.01 / 255)
    else:  # lossy decoders may differ by one in the inverse transform
        assert_allclose(values(path), theirs, atol=0 if "lossless" in name else 1)
