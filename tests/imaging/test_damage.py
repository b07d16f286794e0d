"""Damaged streams: what a decoder calls corrupt is refused, and read with a note where that is allowed."""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import shutil
import subprocess
import zlib
from collections.abc import Callable
from pathlib import Path

import imagecodecs
import nibabel
import numpy as np
import pytest
import tifffile
from numpy.testing import assert_array_equal
from PIL import Image
from pydicom import uid

from benchmarks import damage
from medcls.errors import ImageRefusedError
from medcls.imaging.image import RawImage, ReadOptions, read_image
from medcls.imaging.jpeg_damage import find_jpeg_damage
from medcls.imaging.nifti import read_nifti

Write = Callable[..., Path]
ALLOW = ReadOptions(damaged="allow")
PHOTO = damage.build("JPEG, baseline")


def refuse(path: Path, options: ReadOptions | None = None) -> str:
    with pytest.raises(ImageRefusedError) as caught:
        read_image(path, options=options or ReadOptions())
    return str(caught.value)


def read(tmp_path: Path, data: bytes, *, options: ReadOptions = ALLOW) -> RawImage:
    path = tmp_path / "image"
    path.write_bytes(data)
    return read_image(path, options=options)


def find_scan(data: bytes) -> int:
    """The first byte of the coded data."""
    at = data.index(b"\xff\xda")
    return at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")


def drop_bytes(data: bytes) -> bytes:
    """A fifth of the coded data is missing."""
    middle = (find_scan(data) + len(data)) // 2
    return data[:middle] + data[middle + (len(data) - middle) * 2 // 5 :]


def double_bytes(data: bytes) -> bytes:
    """Two hundred bytes of the coded data are there twice."""
    middle = (find_scan(data) + len(data)) // 2
    return data[:middle] + data[middle - 200 :]


def swap_restarts(data: bytes) -> bytes:
    """The first two restart markers have changed places."""
    a, b = data.index(b"\xff\xd0"), data.index(b"\xff\xd1")
    changed = bytearray(data)
    changed[a + 1], changed[b + 1] = 0xD1, 0xD0
    return bytes(changed)


@pytest.mark.parametrize("name", ["JPEG, baseline", "JPEG, progressive", "JPEG, restart markers"])
def test_sound_jpeg_has_no_damage(name: str) -> None:
    data = damage.build(name)
    assert find_jpeg_damage(data) == ""
    assert find_jpeg_damage(data + b"\0\xff\x12trailing") == ""


# The warnings are those of libjpeg-turbo's djpeg -strict.
@pytest.mark.parametrize(
    ("name", "harm", "says"),
    [
        ("JPEG, baseline", drop_bytes, "Corrupt JPEG data: premature end of data segment"),
        ("JPEG, baseline", double_bytes, "extraneous bytes before marker 0xd9"),
        ("JPEG, progressive", drop_bytes, "Corrupt JPEG data"),
        ("JPEG, restart markers", swap_restarts, "Corrupt JPEG data: found marker 0xd1 instead of RST0"),
    ],
)
def test_corrupt_jpeg_is_refused_and_read_with_a_note_if_allowed(
    tmp_path: Path, name: str, harm: Callable[[bytes], bytes], says: str
) -> None:
    data = harm(damage.build(name))
    image = read(tmp_path, data)
    assert says in image.notes["corrupt_stream"]
    assert_array_equal(np.moveaxis(image.pixels, 0, -1) * 255, np.asarray(Image.open(tmp_path / "image")))
    found = refuse(tmp_path / "image")
    assert found == f"corrupt_stream: {image.notes['corrupt_stream']}"


@pytest.mark.oracle
@pytest.mark.parametrize("name", ["JPEG, baseline", "JPEG, progressive", "JPEG, restart markers"])
def test_refuses_what_djpeg_strict_refuses_and_nothing_else(tmp_path: Path, name: str) -> None:
    if not shutil.which("djpeg"):
        pytest.skip("djpeg (Debian: libjpeg-turbo-progs) is not installed")
    path, data = tmp_path / "image.jpg", damage.build(name)
    for kind in damage.KINDS:
        for index in range(30):
            path.write_bytes(damage.harm(data, kind, np.random.default_rng(index)))
            command = ["djpeg", "-strict", "-outfile", os.devnull, str(path)]
            sound = subprocess.run(command, capture_output=True, check=False).returncode == 0
            with contextlib.nullcontext() if sound else pytest.raises(ImageRefusedError):
                read_image(path)


JPEG_KINDS = {
    "DICOM, JPEG baseline": drop_bytes,
    "DICOM, JPEG extended, 12 bits": drop_bytes,
    "DICOM, JPEG lossless": drop_bytes,
}


@pytest.mark.parametrize("name", JPEG_KINDS)
def test_corrupt_jpeg_in_dicom_is_refused_for_every_process(tmp_path: Path, name: str) -> None:
    data = damage.build(name)
    sound = damage.read_bytes(name, data, tmp_path)
    assert_array_equal(damage.read_bytes(name, data, tmp_path, options=ALLOW), sound)
    harmed = JPEG_KINDS[name](data)
    with pytest.raises(ImageRefusedError, match="corrupt_stream: the decoder had to guess pixels: Corrupt JPEG data"):
        damage.read_bytes(name, harmed, tmp_path)
    guessed = damage.read_bytes(name, harmed, tmp_path, options=ALLOW)
    assert guessed.shape == sound.shape
    assert (guessed != sound).mean() > 0.2


def test_scan_parameters_that_decoders_ignore_are_no_damage_in_dicom(write_dicom: Write, tmp_path: Path) -> None:
    pixels = np.ascontiguousarray(np.asarray(Image.open(io.BytesIO(PHOTO)).convert("L")))
    data = bytearray(imagecodecs.jpeg8_encode(pixels))
    data[find_scan(bytes(data)) - 2] = 0  # the last coefficient of a sequential scan, always 63
    path = write_dicom(pixels, syntax=uid.JPEGBaseline8Bit, fragments=[bytes(data)])
    assert_array_equal(read_image(path).pixels[0] * 255, imagecodecs.jpeg8_decode(bytes(data)))
    (tmp_path / "image").write_bytes(bytes(data))
    assert "Invalid SOS parameters" in refuse(tmp_path / "image")  # djpeg -strict refuses it, and cameras get it right
    harmed = drop_bytes(bytes(data))
    assert "premature end" in refuse(write_dicom(pixels, syntax=uid.JPEGBaseline8Bit, fragments=[harmed]))


def test_lossless_samples_beyond_their_precision_are_refused(write_dicom: Write) -> None:
    pixels = np.full((16, 16), 4000, np.uint16)
    pixels[4, 4] = 4095 + 200
    data = bytearray(imagecodecs.jpeg8_encode(pixels, lossless=True, bitspersample=16))
    frame = data.index(b"\xff\xc3")
    assert data[frame + 4] == 16
    data[frame + 4] = 12
    data[find_scan(bytes(data)) - 1] = 0
    path = write_dicom(pixels, syntax=uid.JPEGLosslessSV1, fragments=[bytes(data)], BitsStored=12, HighBit=11)
    assert refuse(path) == "corrupt_stream: the decoder had to guess pixels: samples of more than 12 bits"
    assert "corrupt_stream" in read_image(path, options=ALLOW).notes


def test_rle_segment_that_is_too_long_is_refused(write_dicom: Write) -> None:
    pixels = np.arange(36, dtype=np.uint8).reshape(6, 6)
    segment = bytes(imagecodecs.packbits_encode(pixels.tobytes()))
    header = np.array([1, 64, *[0] * 14], "<u4").tobytes()

    def write(coded: bytes) -> Path:
        return write_dicom(pixels, syntax=uid.RLELossless, fragments=[header + coded])

    assert_array_equal(read_image(write(segment + b"\0")).pixels, read_image(write(segment)).pixels)
    path = write(segment + b"\xff\x07")  # one run of two bytes more
    assert (
        refuse(path) == "corrupt_stream: the decoder had to guess pixels: an RLE segment holds 38 bytes for 36 pixels"
    )
    image = read_image(path, options=ALLOW)
    assert_array_equal(image.pixels, read_image(write(segment)).pixels)
    assert "38 bytes" in image.notes["corrupt_stream"]


@pytest.mark.parametrize("tiled", [False, True])
def test_corrupt_jpeg_in_tiff_is_refused(tmp_path: Path, tiled: bool) -> None:
    pixels = np.asarray(Image.open(io.BytesIO(PHOTO)))[:128, :128]
    path = tmp_path / "image.tif"
    layout = {"tile": (64, 64)} if tiled else {"rowsperstrip": 32}
    tifffile.imwrite(path, pixels, compression="jpeg", photometric="rgb", **layout)
    assert read_image(path).notes == {}
    with tifffile.TiffFile(path) as file:
        start, size = file.pages[0].dataoffsets[2], file.pages[0].databytecounts[2]
    data = bytearray(path.read_bytes())
    half = start + size // 2
    data[half : half + 200] = b"\xff\x00" * 100
    path.write_bytes(data)
    assert refuse(path).startswith("corrupt_stream: the decoder had to guess pixels: Corrupt JPEG data")
    assert "corrupt_stream" in read_image(path, options=ALLOW).notes


def test_checksum_of_deflate_in_tiff_is_compared(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 1 << 16, (64, 64)).astype(np.uint16)
    path = tmp_path / "image.tif"
    tifffile.imwrite(path, pixels, compression="zlib", rowsperstrip=64)
    assert read_image(path).notes == {}
    with tifffile.TiffFile(path) as file:
        start, size = file.pages[0].dataoffsets[0], file.pages[0].databytecounts[0]
    # Wrong bits that make more of the strip than it holds: libtiff takes what it needs and compares nothing.
    coded = bytearray(zlib.compress(bytes(pixels.nbytes + 10)))
    coded[-1] ^= 1
    data = bytearray(path.read_bytes())
    data[start : start + size] = coded.ljust(size, b"\0")
    path.write_bytes(data)
    wanted = "damaged_codestream: deflate in TIFF: Error -3 while decompressing data: incorrect data check"
    for options in (ReadOptions(), ALLOW):  # what libtiff gives then are not even guesses
        assert refuse(path, options) == wanted


def test_checksum_of_gzip_behind_more_bytes_is_compared(tmp_path: Path) -> None:
    values = np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6)
    content = nibabel.Nifti1Image(values, np.eye(4)).to_bytes()
    path = tmp_path / "longer.nii.gz"
    sound = gzip.compress(content + bytes(300_000), mtime=0)
    path.write_bytes(sound)
    assert read_nifti(path).values.sum() == values.sum()
    wrong = bytearray(sound)
    wrong[-8] ^= 1  # the checksum
    path.write_bytes(wrong)
    with pytest.raises(ImageRefusedError, match="BadGzipFile"):
        read_nifti(path)


# What a format cannot notice is in docs/data.md; here is what each has to.
CHECKSUMS = {"PNG, 8 bits", "PNG, 16 bits", "TIFF, deflate", "NIfTI, gzip"}


@pytest.mark.parametrize("name", damage.FORMATS)
def test_damage_is_noticed_where_the_format_can(tmp_path: Path, name: str) -> None:
    def count(kind: str) -> dict[str, int]:
        endings = [damage.run_case(damage.Case(name, kind, index), folder=str(tmp_path)) for index in range(8)]
        return {ending: endings.count(ending) for ending in set(endings)}

    assert count("cut") == {"refused": 8}
    if name in CHECKSUMS:
        assert count("bit") == count("swap") == {"refused": 8}
    elif "JPEG" in name and "2000" not in name:
        assert count("swap")["refused"] >= 5


def test_bytes_behind_the_end_marker_are_ignored_and_noted(write_dicom: Write) -> None:
    pixels = np.ascontiguousarray(np.asarray(Image.open(io.BytesIO(PHOTO)).convert("L")))
    for syntax, data in (
        (uid.JPEGBaseline8Bit, bytes(imagecodecs.jpeg8_encode(pixels))),
        (uid.JPEGLosslessSV1, bytes(imagecodecs.jpeg8_encode(pixels, lossless=True))),
        (uid.JPEGLSLossless, bytes(imagecodecs.jpegls_encode(pixels))),
        (uid.JPEG2000Lossless, bytes(imagecodecs.jpeg2k_encode(pixels, level=0, codecformat="j2k", reversible=True))),
    ):
        plain = read_image(write_dicom(pixels, syntax=syntax, fragments=[data + b"\0" * (len(data) % 2)]))
        longer = read_image(
            write_dicom(pixels, syntax=syntax, fragments=[data + b"\x12\x34" + b"\0" * (len(data) % 2)])
        )
        assert plain.notes == {}
        assert longer.notes == {"bytes_behind_image": "2 bytes behind the end marker of the codestream are ignored"}
        assert_array_equal(longer.pixels, plain.pixels)


def test_first_picture_of_a_photograph_with_several_is_read_and_noted(tmp_path: Path) -> None:
    first = Image.open(io.BytesIO(PHOTO)).convert("RGB")
    stream = io.BytesIO()
    first.save(stream, "MPO", save_all=True, append_images=[first.rotate(90)], quality=95)
    image = read(tmp_path, stream.getvalue(), options=ReadOptions())
    alone = io.BytesIO()
    first.save(alone, "JPEG", quality=95)
    assert_array_equal(image.pixels, read(tmp_path, alone.getvalue()).pixels)
    assert image.notes == {"first_picture": "a photograph with 2 pictures in one file (MPO): the first was read"}


def test_big_tiff_has_the_pixels_of_the_small_one(tmp_path: Path) -> None:
    for pixels in (np.arange(35, dtype=np.uint16).reshape(5, 7) * 1000, np.zeros((5, 7, 3), np.uint8) + 9):
        found = []
        for big in (False, True):
            path = tmp_path / f"{big}.tif"
            tifffile.imwrite(path, pixels, bigtiff=big)
            found.append(read_image(path).pixels)
        assert_array_equal(found[0], found[1])
        assert found[0].max() == np.float32(pixels.max()) / np.float32(np.iinfo(pixels.dtype).max)
