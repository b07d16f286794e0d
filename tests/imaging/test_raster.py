"""BMP files of every kind to the right pixels, and formats that are not read by their names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose
from PIL import Image

from medcls.errors import ImageRefusedError
from medcls.imaging.image import read_image
from medcls.imaging.raster import find_format
from medcls.imaging.scan_file import scan_file
from medcls.imaging.source import is_image
from tests.imaging import fuzz
from tests.imaging.fuzz_corpus import build_bmp, build_pictures

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (5, 7, 3)).astype("u1")
BGR = np.ascontiguousarray(RGB[..., ::-1])
BGRX = np.concatenate([BGR, np.zeros((5, 7, 1), "u1")], -1)
GREY = RGB[..., 0]
RAMP = b"".join(bytes([level] * 3 + [0]) for level in range(256))
FALLING = b"".join(bytes([255 - level] * 3 + [0]) for level in range(256))
COLOURS = b"".join(bytes([level, 255 - level, level // 2, 0]) for level in range(256))
EIGHT_OF_FIVE_BITS = RGB.astype(int) >> 3
WORDS = (EIGHT_OF_FIVE_BITS << np.array([10, 5, 0])).sum(-1).astype("<u2")
RUNS = b"".join(b"".join(bytes([1, level]) for level in row) + b"\0\0" for row in GREY[::-1]) + b"\0\1"
NIBBLES = np.pad(GREY >> 4, ((0, 0), (0, 1)))
BITS = np.packbits(GREY >= 128, axis=1)
MASKS = np.array([0xFF0000, 0xFF00, 0xFF], "<u4").tobytes()


def read(tmp_path: Path, data: bytes) -> np.ndarray:
    path = tmp_path / "image"
    path.write_bytes(data)
    return np.moveaxis(read_image(path).pixels, 0, -1)


def refuse(tmp_path: Path, data: bytes) -> str:
    path = tmp_path / "image"
    path.write_bytes(data)
    with pytest.raises(ImageRefusedError) as caught:
        read_image(path)
    return str(caught.value)


@pytest.mark.parametrize(
    ("data", "wanted"),
    [
        (build_bmp(BGR, bits=24), RGB / 255),
        (build_bmp(BGR, bits=24, top_down=True), RGB / 255),
        (build_bmp(BGRX, bits=32), RGB / 255),
        (build_bmp(BGRX, bits=32, compression=3, masks=MASKS), RGB / 255),
        (build_bmp(WORDS, bits=16), EIGHT_OF_FIVE_BITS / 31),
        (build_bmp(GREY, bits=8, palette=RAMP), GREY[..., None] / 255),
        (build_bmp(GREY, bits=8, palette=FALLING), np.repeat(255 - GREY[..., None], 3, -1) / 255),
        (build_bmp(GREY, bits=8, palette=COLOURS), np.stack([GREY // 2, 255 - GREY, GREY], -1) / 255),
        (build_bmp(GREY, bits=8, palette=RAMP, compression=1, body=RUNS), GREY[..., None] / 255),
        (
            build_bmp(NIBBLES[:, ::2] << 4 | NIBBLES[:, 1::2], bits=4, palette=COLOURS[:64], width=7),
            np.stack([(GREY >> 4) // 2, 255 - (GREY >> 4), GREY >> 4], -1) / 255,
        ),
        (build_bmp(BITS, bits=1, palette=RAMP[:4] + RAMP[-4:], width=7), (GREY >= 128)[..., None]),
    ],
    ids=["24", "top down", "32", "32 masks", "16", "grey", "falling", "palette", "runs", "4", "1"],
)
def test_bmp_of_every_kind_has_the_right_pixels(tmp_path: Path, data: bytes, wanted: np.ndarray) -> None:
    assert_allclose(read(tmp_path, data), wanted, atol=0.004)  # 5 bits become 8 by repeating bits


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB"])
def test_bmp_of_another_writer_has_the_right_pixels(tmp_path: Path, mode: str) -> None:
    picture = Image.fromarray(RGB).quantize(16) if mode == "P" else Image.fromarray(RGB).convert(mode)
    picture.save(tmp_path / "p.bmp")
    wanted = np.asarray(picture.convert("RGB" if mode == "P" else mode), np.float64) / (1 if mode == "1" else 255)
    assert_allclose(np.squeeze(read(tmp_path, (tmp_path / "p.bmp").read_bytes())), wanted, atol=1e-6)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (build_bmp(BGR, bits=24)[:-1], "truncated: 120 bytes of pixels expected"),
        (build_bmp(BGR, bits=24, width=20000), "truncated: 300000 bytes"),
        (build_bmp(np.zeros((1, 1), "u1"), bits=24, width=1 << 29, body=b""), "too_large"),
        (build_bmp(GREY, bits=8, palette=RAMP, compression=1, body=RUNS[:20] + b"\0\1"), "truncated"),
        (build_bmp(GREY, bits=8, palette=COLOURS[:40]), f"palette: pixels name colour {GREY.max()} of 10"),
        (build_bmp(GREY, bits=8, palette=RAMP[:40]), f"palette: pixels name colour {GREY.max()} of 10"),
        (build_bmp(BGR, bits=24, compression=4), "damaged"),
        (build_bmp(BGR, bits=24, width=0), "damaged"),
    ],
    ids=["short", "claims more", "too large", "runs end early", "palette", "grey palette", "JPEG inside", "no width"],
)
def test_bmp_that_is_not_whole_is_refused_by_name(tmp_path: Path, data: bytes, reason: str) -> None:
    assert refuse(tmp_path, data).startswith(reason)


def test_bmp_with_transparent_pixels_is_refused(tmp_path: Path) -> None:
    masks = MASKS + b"\0\0\0\xff"
    for alpha in (255, 254):
        data = build_bmp(np.dstack([BGR, np.full((5, 7), alpha, "u1")]), bits=32, compression=3, masks=masks)
        if alpha == 255:
            assert_allclose(read(tmp_path, data), RGB / 255, atol=1e-6)
        else:
            assert refuse(tmp_path, data).startswith("transparent")


@pytest.mark.parametrize(
    ("start", "name"),
    [
        (b"GIF89a" + bytes(30), "GIF"),
        (b"RIFF\x10\0\0\0WEBPVP8 " + bytes(16), "WebP"),
        (b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(30), "JPEG 2000"),
        (b"\xff\x4f\xff\x51" + bytes(30), "JPEG 2000"),
        (b"P5\n7 5\n255\n" + bytes(35), "Netpbm"),
        (b"P2\n# made by hand\n7 5\n", "Netpbm"),
        (b"\0\0\0\x18ftypheic" + bytes(30), "HEIF"),
        (b"MM\0+\0\x08\0\0" + bytes(30), "big-endian BigTIFF"),
        (b"NRRD0005\n", "NRRD"),
        (b"ObjectType = Image\nNDims = 3\n", "MetaImage"),
    ],
)
def test_format_that_is_not_read_is_named(tmp_path: Path, start: bytes, name: str) -> None:
    assert refuse(tmp_path, start) == f"format_not_read: {name}: convert it to PNG, TIFF or DICOM without loss"
    path = tmp_path / "image"
    pictures = not start.startswith((b"NRRD", b"Object"))  # volumes are no pictures of a class folder
    assert is_image(path) == pictures
    found = scan_file(path, name="image")
    assert (found.kind, found.problem) == (("raster", "format_not_read") if pictures else ("other", ""))


@pytest.mark.parametrize("text", [b"BMI,age\n22.1,60\n" * 4, b"BM", b"P1,label\n", b"P53\n", b"patient;label\n", b""])
def test_text_is_not_taken_for_a_picture(tmp_path: Path, text: bytes) -> None:
    assert find_format(text) is None
    (tmp_path / "notes.txt").write_bytes(text)
    assert scan_file(tmp_path / "notes.txt", name="notes.txt").problem == ""


def test_pictures_of_every_format_are_told_by_content() -> None:
    formats = {name: find_format(data) for name, data in build_pictures().items()}
    found = {name: each.name for name, each in formats.items() if each is not None}
    assert len(found) == len(formats)
    assert {name for name, kind in found.items() if kind == "BMP"} == {name for name in found if name[:3] == "bmp"}
    assert set(found.values()) >= {"PNG", "TIFF", "JPEG", "GIF", "WebP", "Netpbm"}
    assert {each.name for each in formats.values() if each and each.reader} == {"BMP", "PNG", "TIFF", "JPEG"}


def test_mutated_pictures_end_right_or_refused() -> None:
    outcomes = list(fuzz.run_cases(range(400), seed=20261130, workers=1, kind="raster"))
    assert [(case.index, outcome.faults) for case, outcome in outcomes if outcome.faults] == []
    endings = [outcome.ending for _, outcome in outcomes]
    assert endings.count("ok") > 150
    assert {"truncated", "damaged", "format_not_read"} <= set(endings)
