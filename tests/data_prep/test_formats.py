"""Pictures of every format in class folders: read, or counted by the name of their format."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from medcls.data.manifest import read_table
from medcls.data.store import Store
from medcls.errors import DataError

SETTINGS = ("image=photo", "patients=per_image", "split.test=0.3", "split.val=0.3", "split.on_missing=report")


@pytest.fixture
def folder(tmp_path: Path, draw_picture: Callable[..., NDArray[np.uint8]]) -> Path:
    """Twelve colour pictures in two class folders, every third as BMP."""
    for number in range(12):
        grey = draw_picture(number % 2, number)
        place = tmp_path / "raw" / f"class{number % 2}"
        place.mkdir(parents=True, exist_ok=True)
        suffix = "bmp" if number % 3 == 0 else "png"
        Image.fromarray(np.stack([grey, 255 - grey, grey // 2], -1)).save(place / f"p{number:02}.{suffix}")
    return tmp_path / "raw"


def test_bmp_files_of_class_folders_are_stored_as_their_pngs_would_be(
    folder: Path, tmp_path: Path, run_prepare: Callable[..., Store]
) -> None:
    mixed = run_prepare(folder, tmp_path / "mixed", *SETTINGS, labels=None)
    assert (len(mixed), mixed.info["counts"]["states"]) == (12, {"ok": 12})
    for path in folder.rglob("*.bmp"):
        Image.open(path).save(path.with_suffix(".png"))
        path.unlink()
    png = run_prepare(folder, tmp_path / "png", *SETTINGS, labels=None)
    assert mixed.column("pixel_sha256") == png.column("pixel_sha256")


def test_picture_of_an_unread_format_in_a_class_folder_is_quarantined_by_its_name(
    folder: Path, tmp_path: Path, run_prepare: Callable[..., Any]
) -> None:
    picture = folder / "class0" / "p00.bmp"
    Image.open(picture).save(folder / "class0" / "p00.webp", lossless=True)
    picture.unlink()
    store = run_prepare(folder, tmp_path / "store", *SETTINGS, labels=None)
    assert store.info["counts"]["states"] == {"ok": 11, "quarantined: format_not_read": 1}
    ledger = read_table(store.folder / "ledger.parquet").to_pylist()
    (entry,) = [each for each in ledger if each["state"] != "ok"]
    assert entry["detail"] == "WebP: convert it to PNG, TIFF or DICOM without loss"
    for other in sorted(folder.rglob("*.png"))[:2]:
        Image.open(other).save(other.with_suffix(".gif"))
        other.unlink()
    with pytest.raises(DataError, match="format_not_read: GIF"):
        run_prepare(folder, tmp_path / "refused", *SETTINGS, labels=None)
