"""A new picture format is one reader and one row of a table: a made-up one goes from its bytes to stored pixels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest

from medcls.errors import ImageRefusedError
from medcls.imaging import raster
from medcls.imaging.catalog import build_index
from medcls.imaging.image import ReadOptions, read_image
from medcls.imaging.picture_readers import Samples
from medcls.imaging.raster import PictureFormat
from medcls.imaging.source import is_image, list_files

GREY = np.arange(6, dtype="u1").reshape(2, 3) * 51


@dataclass
class DotPicture:
    """A reader of DOT!, rows, columns and one byte a pixel."""

    stream: BinaryIO

    @property
    def size(self) -> tuple[int, int, int]:
        self.stream.seek(4)
        rows, columns = self.stream.read(2)
        return rows, columns, 1

    def check(self, max_pixels: int) -> None:
        if self.size[0] * self.size[1] > max_pixels:
            raise ImageRefusedError("too_large", "more dots than allowed")

    def decode(self) -> Samples:
        rows, columns, _ = self.size
        return Samples(np.frombuffer(self.stream.read(), "u1").reshape(rows, columns), damage="a smudge")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    row = PictureFormat("Dots", rb"DOT!", (".dot",), DotPicture)
    monkeypatch.setattr(raster, "FORMATS", (*raster.FORMATS, row))
    (tmp_path / "a.dot").write_bytes(b"DOT!\2\3" + GREY.tobytes())
    (tmp_path / "b.dot").write_bytes(b"text")
    (tmp_path / "c").write_bytes(b"DOT!\2\3" + GREY.tobytes())
    return tmp_path


@pytest.mark.parametrize("name", ["a.dot", "c"])
def test_format_of_one_reader_and_one_row_is_read(folder: Path, name: str) -> None:
    found = read_image(folder / name, options=ReadOptions(damaged="allow"))
    np.testing.assert_array_equal(found.pixels, [GREY / np.float32(255)])
    assert (found.bits, found.photometric, found.source and found.source.levels) == (8, "L", 6)
    assert found.notes == {"corrupt_stream": "the decoder had to guess pixels: a smudge"}


def test_format_of_one_row_is_refused_by_the_rules_of_all(folder: Path) -> None:
    with pytest.raises(ImageRefusedError, match=r"^corrupt_stream: the decoder had to guess pixels: a smudge$"):
        read_image(folder / "a.dot")
    with pytest.raises(ImageRefusedError, match=r"^too_large: more dots than allowed$"):
        read_image(folder / "a.dot", options=ReadOptions(max_pixels=5))
    with pytest.raises(ImageRefusedError, match=r"^unknown_format: neither DICOM, .*BMP, \.npy nor Dots$"):
        read_image(folder / "b.dot")


def test_format_of_one_row_is_in_the_index(folder: Path) -> None:
    assert [is_image(folder / name) for name in ("a.dot", "b.dot", "c")] == [True] * 3
    index = build_index(folder, list_files(folder), workers=0)
    names = ("path", "kind", "problem", "rows", "columns", "samples")
    assert list(zip(*(index[name].to_pylist() for name in names), strict=True)) == [
        ("a.dot", "raster", "", 2, 3, 1),
        ("b.dot", "raster", "unknown_format", 0, 0, 1),
        ("c", "raster", "", 2, 3, 1),
    ]
