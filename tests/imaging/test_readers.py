"""Files of every supported format, and two corpora of real files, each of which ends right or refused."""

from __future__ import annotations

import io
import os
import struct
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import cv2
import imagecodecs
import numpy as np
import pydicom
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image, ImageOps
from pydicom.pixels import apply_color_lut, apply_modality_lut, pixel_array

from medcls.errors import ImageRefusedError
from medcls.imaging.dicom.burnt_in import BurntInRule
from medcls.imaging.image import DICOM_SUFFIXES, RawImage, ReadOptions, is_dicom, read_image
from medcls.imaging.raster import has_picture_suffix
from tests.imaging.modality import read_modality_values

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (5, 7)).astype("u1")
GREY16 = RNG.integers(0, 65536, (5, 7)).astype("u2")
RGB = RNG.integers(0, 256, (5, 7, 3)).astype("u1")
RGB16 = RNG.integers(0, 65536, (5, 7, 3)).astype("u2")


def reason(path: Path, options: ReadOptions | None = None) -> str:
    with pytest.raises(ImageRefusedError) as caught:
        read_image(path, options=options or ReadOptions())
    assert str(path) not in str(caught.value)
    return caught.value.reason


def check(image: RawImage, wanted: np.ndarray, bits: int, atol: float = 1e-6) -> None:
    """The image holds wanted (H, W) or (H, W, 3)."""
    wanted = wanted[None] if wanted.ndim == 2 else np.moveaxis(wanted, -1, 0)
    assert image.pixels.dtype == np.float32
    assert image.pixels.flags.c_contiguous
    assert_allclose(image.pixels, wanted, atol=atol)
    assert image.bits == bits
    assert image.photometric == ("L" if len(wanted) == 1 else "RGB")
    assert (image.mask, image.spacing_mm, image.aspect, image.headers) == (None, None, 1.0, {})


@pytest.mark.parametrize(
    ("pixels", "full"), [(GREY, 255), (GREY16, 65535), (RGB, 255), (RGB16, 65535)], ids=["L", "L16", "RGB", "RGB16"]
)
@pytest.mark.parametrize("suffix", [".png", ".tiff"])
def test_every_bit_of_png_and_tiff(tmp_path: Path, pixels: np.ndarray, full: int, suffix: str) -> None:
    path = tmp_path / f"image{suffix}"
    cv2.imwrite(str(path), pixels if pixels.ndim == 2 else pixels[..., ::-1])
    check(read_image(path), pixels / full, 8 if full == 255 else 16)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_png_of_few_bits(tmp_path: Path, bits: int) -> None:
    levels = RNG.integers(0, 1 << bits, (5, 7))
    scaled = (levels * (255 // ((1 << bits) - 1))).astype("u1")
    path = tmp_path / "image.png"
    if bits == 1:
        Image.fromarray(scaled).convert("1", dither=Image.Dither.NONE).save(path)
    else:
        path.write_bytes(encode_png(levels, bits))
    check(read_image(path), scaled / 255, 1 if bits == 1 else 8)


def encode_png(levels: np.ndarray, bits: int) -> bytes:
    """A grey PNG of 2 or 4 bits, which Pillow does not write."""
    import zlib

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">L", len(body)) + name + body + struct.pack(">L", zlib.crc32(name + body))

    rows = b""
    for row in levels:
        wide = np.unpackbits(row.astype("u1")[:, None], axis=1)[:, -bits:]
        rows += b"\0" + np.packbits(wide.ravel()).tobytes()
    header = struct.pack(">LLBBBBB", levels.shape[1], levels.shape[0], bits, 0, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_palettes_are_expanded(tmp_path: Path, suffix: str) -> None:
    picture = Image.fromarray(RGB).quantize(16)
    path = tmp_path / f"image{suffix}"
    picture.save(path)
    check(read_image(path), np.asarray(picture.convert("RGB")) / 255, 8)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("colour", [False, True])
def test_alpha_must_be_opaque(tmp_path: Path, suffix: str, colour: bool) -> None:
    pixels = RGB if colour else GREY[..., None]
    alpha = np.full((5, 7, 1), 255, "u1")
    path = tmp_path / f"image{suffix}"
    Image.fromarray(np.concatenate([pixels, alpha], -1)).save(path)
    check(read_image(path), pixels / 255, 8)
    alpha[2, 3] = 254
    Image.fromarray(np.concatenate([pixels, alpha], -1)).save(path)
    assert reason(path) == "transparent"


def test_alpha_of_16_bits(tmp_path: Path) -> None:
    alpha = np.full((5, 7, 1), 65535, "u2")
    path = tmp_path / "image.png"
    path.write_bytes(imagecodecs.png_encode(np.concatenate([RGB16, alpha], -1)))
    check(read_image(path), RGB16 / 65535, 16)
    alpha[0, 0] = 65534
    path.write_bytes(imagecodecs.png_encode(np.concatenate([RGB16, alpha], -1)))
    assert reason(path) == "transparent"


def test_transparent_colour_key(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    Image.fromarray(GREY).save(path, transparency=int(GREY[0, 0]))
    assert reason(path) == "transparent"
    unused = next(value for value in range(256) if value not in GREY)
    Image.fromarray(GREY).save(path, transparency=unused)
    image = read_image(path)
    assert_allclose(image.pixels, np.broadcast_to(GREY / 255, (3, 5, 7)), atol=1e-6)


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_jpeg(tmp_path: Path, mode: str) -> None:
    y, x = np.mgrid[:40, :50]
    pixels = np.stack([x * 5, y * 6, 255 - x * 4], -1).astype("u1")
    pixels = pixels if mode == "RGB" else pixels[..., 0]
    path = tmp_path / "image.jpg"
    Image.fromarray(pixels).save(path, quality=98)
    check(read_image(path), pixels / 255, 8, atol=10 / 255)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_tags_are_obeyed(tmp_path: Path, suffix: str, orientation: int) -> None:
    picture = Image.fromarray(RGB)
    exif = picture.getexif()
    exif[274] = orientation
    path = tmp_path / f"image{suffix}"
    picture.save(path, exif=exif, quality=100)
    with Image.open(path) as again:
        wanted = np.asarray(ImageOps.exif_transpose(again).convert("RGB"))
    check(read_image(path), wanted / 255, 8)


def test_cmyk_is_refused(tmp_path: Path) -> None:
    for suffix in (".jpg", ".tif"):
        path = tmp_path / f"image{suffix}"
        Image.fromarray(RGB).convert("CMYK").save(path)
        assert reason(path) == "unsupported_colour"


def test_several_pictures_in_a_file_are_refused(tmp_path: Path) -> None:
    pictures = [Image.fromarray(GREY), Image.fromarray(255 - GREY)]
    for suffix in (".png", ".tif"):
        path = tmp_path / f"image{suffix}"
        pictures[0].save(path, save_all=True, append_images=pictures[1:])
        assert reason(path) == "animated"


@pytest.mark.parametrize("pixels", [GREY, GREY16], ids=["8", "16"])
def test_tiff_min_is_white(tmp_path: Path, pixels: np.ndarray) -> None:
    path = tmp_path / "image.tif"
    Image.fromarray(pixels).save(path)
    data = path.read_bytes()
    entry = (262).to_bytes(2, "little") + b"\x03\0\x01\0\0\0"
    assert data.count(entry + b"\x01") == 1
    path.write_bytes(data.replace(entry + b"\x01", entry + b"\x00"))
    full = np.iinfo(pixels.dtype).max
    check(read_image(path), (full - pixels.astype(float)) / full, full.bit_length())


def test_tiff_of_one_bit_in_both_polarities(tmp_path: Path) -> None:
    bits = GREY > 127
    path = tmp_path / "image.tif"
    for compression in (None, "group4"):
        Image.fromarray(bits).save(path, compression=compression)
        check(read_image(path), bits.astype(float), 1)


def test_tiff_floats(tmp_path: Path) -> None:
    path = tmp_path / "image.tif"
    floats = RNG.random((5, 7)).astype("f4")
    Image.fromarray(floats).save(path)
    check(read_image(path), floats, 32)
    Image.fromarray(floats * 2).save(path)
    assert reason(path) == "float_range"


def test_tiff_in_separate_planes(tmp_path: Path) -> None:
    planes = np.moveaxis(RGB16, -1, 0).astype("<u2").tobytes()
    size = len(planes) // 3
    tags = [(256, 7), (257, 5), (258, 0), (259, 1), (262, 2), (273, 0), (277, 3), (278, 5), (279, 0), (284, 2)]
    after = 8 + 2 + 12 * len(tags) + 4
    far = {
        258: (3, 3, struct.pack("<3H", 16, 16, 16)),
        273: (4, 3, struct.pack("<3L", *(after + 30 + size * each for each in range(3)))),
        279: (4, 3, struct.pack("<3L", size, size, size)),
    }
    entries, extra = b"", b""
    for tag, value in tags:
        kind, count, body = far.get(tag, (4, 1, b""))
        entries += struct.pack("<HHLL", tag, kind, count, after + len(extra) if body else value)
        extra += body
    path = tmp_path / "image.tif"
    path.write_bytes(b"II*\0" + struct.pack("<LH", 8, len(tags)) + entries + bytes(4) + extra + planes)
    assert len(extra) == 30
    check(read_image(path), RGB16 / 65535, 16)


def write_npy(path: Path, array: np.ndarray) -> Path:
    np.save(path, array)
    return path


@pytest.mark.parametrize(
    ("array", "wanted", "bits"),
    [
        (GREY, GREY / 255, 8),
        (GREY16, GREY16 / 65535, 16),
        (GREY > 100, (GREY > 100) * 1.0, 1),
        (GREY[..., None], GREY / 255, 8),
        (GREY[None], GREY / 255, 8),
        (RGB, RGB / 255, 8),
        (np.moveaxis(RGB16, -1, 0), RGB16 / 65535, 16),
        (np.asfortranarray(GREY16), GREY16 / 65535, 16),
        (GREY16.astype(">u2"), GREY16 / 65535, 16),
        (GREY / 255, GREY / 255, 64),
    ],
)
def test_npy(tmp_path: Path, array: np.ndarray, wanted: np.ndarray, bits: int) -> None:
    check(read_image(write_npy(tmp_path / "image.npy", array)), wanted, bits)


@pytest.mark.parametrize(
    ("array", "why"),
    [
        (GREY.astype("i2"), "sample_type"),
        (GREY.astype("u4"), "sample_type"),
        (GREY * 1.0, "float_range"),
        (np.full((2, 2), np.nan), "float_range"),
        (GREY[0], "axes"),
        (np.zeros((3, 5, 3), "u1"), "axes"),
        (np.zeros((2, 5, 7), "u1"), "axes"),
        (np.zeros((0, 5), "u1"), "zero_pixels"),
        (np.array([["a"]]), "sample_type"),
        (np.array([[{}]], dtype=object), "sample_type"),
    ],
)
def test_npy_that_is_no_image_is_refused(tmp_path: Path, array: np.ndarray, why: str) -> None:
    path = tmp_path / "image.npy"
    np.save(path, array, allow_pickle=True)
    assert reason(path) == why


def test_sizes_are_checked_before_decoding(tmp_path: Path) -> None:
    options = ReadOptions(max_pixels=34)
    for name in ("image.png", "image.tif", "image.jpg"):
        Image.fromarray(GREY).save(tmp_path / name)
        assert reason(tmp_path / name, options) == "too_large"
        assert read_image(tmp_path / name, options=ReadOptions(max_pixels=35)).pixels.shape == (1, 5, 7)
    assert reason(write_npy(tmp_path / "image.npy", GREY), options) == "too_large"
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (1 << 40, 1 << 40)})
    (tmp_path / "huge.npy").write_bytes(header.getvalue())
    assert reason(tmp_path / "huge.npy") == "too_large"


@pytest.mark.parametrize("name", ["image.png", "image.jpg", "image.tif", "image.npy"])
def test_truncated_files_are_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    pixels = RNG.integers(0, 256, (64, 64)).astype("u1")
    if name.endswith("npy"):
        np.save(path, pixels)
    else:
        Image.fromarray(pixels).save(path)
    data = path.read_bytes()
    for length in (0, 3, 8, 20, 60, len(data) // 2, len(data) - 40):
        path.write_bytes(data[:length])
        assert reason(path) in {"unknown_format", "damaged", "truncated", "unreadable"}


def test_content_counts_and_not_the_name(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    with path.open("wb") as stream:
        np.save(stream, GREY)
    check(read_image(path), GREY / 255, 8)
    assert not is_dicom(path)
    assert reason(tmp_path / "absent.png") == "unreadable"
    assert ".dcm" in DICOM_SUFFIXES
    assert all(map(has_picture_suffix, (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".npy")))


def test_hounsfield_windows_need_dicom(tmp_path: Path) -> None:
    path = write_npy(tmp_path / "image.npy", GREY)
    assert reason(path, ReadOptions(windows_hu=((40, 80),))) == "not_hounsfield"


# Real files


EXPECTED = Path(__file__).parent / "expected"
ALL = ReadOptions(burnt_in=BurntInRule("allow"))  # how pixels are read, whatever text they may hold


def describe(path: Path) -> str:
    """How a file ends: ok with shape, bits and spacing source, or the reason of its refusal."""
    try:
        image = read_image(path, options=ALL)
    except ImageRefusedError as error:
        return error.reason
    shape = "x".join(map(str, image.pixels.shape))
    padding = 0 if image.mask is None else int(image.mask.sum())
    return f"ok {shape} bits={image.bits} padding={padding} spacing={image.spacing_source or '-'}"


def compare_with_pydicom(path: Path) -> bool:
    """Holds our values against pydicom's and other decoders; False where pydicom has no decoder installed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ds = pydicom.dcmread(path, force=True)
        try:
            theirs = pixel_array(ds)
        except (RuntimeError, NotImplementedError):
            return False
        if ds.PhotometricInterpretation.startswith("MONOCHROME"):
            wanted = apply_modality_lut(theirs, ds) * float(ds.get("DoseGridScaling") or 1)
            assert_allclose(read_modality_values(path).values, wanted.astype("f4"), rtol=1e-6)
        elif ds.PhotometricInterpretation == "PALETTE COLOR":
            if ds.file_meta.TransferSyntaxUID == pydicom.uid.ExplicitVRBigEndian:
                return False  # pydicom does not swap palettes of 8 bits
            colours = apply_color_lut(theirs, ds)
            full = np.iinfo(colours.dtype).max
            assert_allclose(read_image(path, options=ALL).pixels, np.moveaxis(colours, -1, 0) / full, atol=1e-6)
        else:  # decoders may round a colour to one level beside ours
            full = (1 << ds.BitsStored) - 1
            assert_allclose(read_image(path, options=ALL).pixels, np.moveaxis(theirs, -1, 0) / full, atol=1.01 / 255)
    return True


def check_corpus(root: Path, expected: Path, skip: Callable[[Path], bool]) -> int:
    """Every file under root ends as listed; returns how many were compared with pydicom."""
    found, compared = {}, 0
    for path in sorted(root.rglob("*")):
        if path.is_file() and not skip(path):
            name = path.relative_to(root).as_posix()
            found[name] = describe(path)
            if found[name].startswith("ok") and is_dicom(path):
                compared += compare_with_pydicom(path)
    wanted = dict(line.split("\t") for line in expected.read_text().splitlines())
    assert found == wanted
    return compared


def test_every_file_of_pydicom_s_wheel() -> None:
    root = Path(pydicom.__file__).parent / "data"
    skip = lambda path: path.suffix in {".py", ".pyc"}
    assert check_corpus(root, EXPECTED / "pydicom_wheel.txt", skip) >= 60


@pytest.mark.data
def test_every_file_of_the_shared_corpus() -> None:
    shared = os.environ.get("MEDCLS_SHARED")
    if not shared:
        pytest.skip("MEDCLS_SHARED is not set")
    skip = lambda path: path.suffix in {".nii", ".json"}
    assert check_corpus(Path(shared) / "data/dicom", EXPECTED / "shared_dicom.txt", skip) >= 70


def count_refused(root: Path, expected: Path, policy: str) -> dict[str, int]:
    """How the DICOM files that can be read end under a burnt-in policy: "ok" or a reason, each with its count."""
    found: Counter[str] = Counter()
    for line in expected.read_text().splitlines():
        name, outcome = line.split("\t")
        if outcome.startswith("ok") and is_dicom(root / name):
            try:
                read_image(root / name, options=ReadOptions(burnt_in=BurntInRule(policy)))
                found["ok"] += 1
            except ImageRefusedError as error:
                found[error.reason] += 1
    return dict(found)


def test_half_of_pydicom_s_wheel_is_of_kinds_with_text() -> None:
    """43 secondary captures and 4 ultrasound images; the one with regions was cut after they were written."""
    root, expected = Path(pydicom.__file__).parent / "data", EXPECTED / "pydicom_wheel.txt"
    assert count_refused(root, expected, "refuse") == {"ok": 44, "burnt_in": 47}
    assert count_refused(root, expected, "ultrasound_regions") == {"ok": 44, "burnt_in": 47}


@pytest.mark.data
def test_what_of_the_shared_corpus_is_of_kinds_with_text() -> None:
    """51 secondary captures, 11 ultrasound images, 2 marked YES, 1 from a workstation; 5 ultrasound have regions."""
    shared = os.environ.get("MEDCLS_SHARED")
    if not shared:
        pytest.skip("MEDCLS_SHARED is not set")
    root, expected = Path(shared) / "data/dicom", EXPECTED / "shared_dicom.txt"
    assert count_refused(root, expected, "refuse") == {"ok": 69, "burnt_in": 65}
    assert count_refused(root, expected, "ultrasound_regions") == {"ok": 74, "burnt_in": 60}


@pytest.mark.data
def test_nine_transfer_syntaxes_against_dcm2niix() -> None:
    shared = os.environ.get("MEDCLS_SHARED")
    if not shared:
        pytest.skip("MEDCLS_SHARED is not set")
    folder = Path(shared) / "data/dicom/dcm_qa_ts"
    for number in range(1, 10):
        slices = np.fromfile(folder / f"Ref/{number}.nii", "<i2", offset=352).reshape(35, 64, 64)
        values = read_modality_values(folder / f"In/{number}.dcm").values
        tiles = values.reshape(6, 64, 6, 64).swapaxes(1, 2).reshape(36, 64, 64)[:35]
        assert_array_equal(tiles, slices[:, ::-1])  # NIfTI counts rows from below
        assert reason(folder / f"In/{number}.dcm") == "mosaic"
