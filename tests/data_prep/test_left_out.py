"""What leaves is said by reason and class, with one example and the setting, and never by a path of pseudonyms."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from medcls.data.manifest import read_table
from medcls.data.store import Store
from medcls.files import LEDGER
from medcls.identity import write_key

RunPrepare = Callable[..., Store]
SETTINGS = ("split.test=0.3", "split.val=0.3", "split.on_missing=report", "max_quarantined=0.5")


@pytest.fixture
def raw(tmp_path: Path, draw_picture: Callable[..., NDArray[np.uint8]]) -> Path:
    """Sixteen grey pictures in two class folders, with two of ill and one of well as GIF, and notes."""
    for i in range(16):
        place = tmp_path / "raw" / ("ill" if i % 2 else "well")
        place.mkdir(parents=True, exist_ok=True)
        suffix = "gif" if i in (1, 3, 4) else "png"
        Image.fromarray(draw_picture(i % 2, i)).save(place / f"Doe{i:02}.{suffix}")
    (tmp_path / "raw" / "ill" / "notes.txt").write_text("text")
    (tmp_path / "raw" / "ill" / "Thumbs.db").write_bytes(b"thumbs")
    return tmp_path / "raw"


def list_said(capsys: Any) -> list[str]:
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith(("quarantined", "skipped", "ok"))]


def test_class_folders_say_what_leaves_by_class(
    raw: Path, tmp_path: Path, run_prepare: RunPrepare, capsys: Any
) -> None:
    store = run_prepare(raw, tmp_path / "store", *SETTINGS, "patients=per_image", labels=None)
    assert store.info["counts"]["states"] == {
        "ok": 13,
        "quarantined: format_not_read": 3,
        "skipped: no_image": 1,
        "skipped: system_file": 1,
    }
    place = read_table(store.folder / LEDGER)["path"].to_pylist().index("ill/Doe01.gif")
    assert list_said(capsys) == [
        "quarantined: 3 images (ill 2, well 1): format_not_read: GIF: convert it to PNG, TIFF or DICOM without loss; "
        f"e.g. row {place} of ledger.parquet (counted from 0); correct or convert the files",
        "skipped: 1 file: no_image: not an image of this job by name or content",
    ]


def test_files_that_patterns_leave_out_are_counted_by_class(
    raw: Path, tmp_path: Path, run_prepare: RunPrepare, capsys: Any
) -> None:
    settings = (*SETTINGS, "patients=per_image", "labelling.not_files=*.gif")
    run_prepare(raw, tmp_path / "store", *settings, labels=None)
    assert list_said(capsys)[-1] == (
        "skipped: 3 files (ill 2, well 1): other_file: labelling.files or labelling.not_files leaves them out"
    )


def test_labels_file_says_what_leaves_by_class_and_line(
    raw: Path, tmp_path: Path, run_prepare: RunPrepare, capsys: Any
) -> None:
    paths = sorted(path.relative_to(raw).as_posix() for path in raw.rglob("Doe*"))
    rows = [f"{path},{path[-6:-4]},{path.split('/')[0]}" for path in paths if "Doe15" not in path]
    (raw / "labels.csv").write_text("\n".join(["path,patient_id,label", *rows]) + "\n")
    write_key(tmp_path / "key.txt")
    run_prepare(raw, tmp_path / "store", *SETTINGS, "deidentify=hmac", f"deidentify.key_file={tmp_path / 'key.txt'}")
    first, second = list_said(capsys)
    assert first.startswith("quarantined: 3 images (ill 2, well 1): format_not_read: GIF")
    assert "e.g. line 2; " in first
    assert "Doe" not in first + second
    assert second.startswith("skipped: 3 files: not_in_labels: no row of the labels file names them")


def test_corrupt_stream_is_left_out_or_kept_and_said(
    raw: Path, tmp_path: Path, run_prepare: RunPrepare, draw_picture: Callable[..., NDArray[np.uint8]], capsys: Any
) -> None:
    for name in ("ill/Doe01", "ill/Doe03", "well/Doe04"):
        (raw / f"{name}.gif").unlink()
    stream = io.BytesIO()
    Image.fromarray(draw_picture(0, 4)).save(stream, "JPEG", quality=95)
    data = stream.getvalue()
    middle = (data.index(b"\xff\xda") + len(data)) // 2
    (raw / "well" / "Doe04.jpg").write_bytes(data[:middle] + data[middle + len(data) // 4 :])
    first = Image.fromarray(draw_picture(1, 1))
    first.save(raw / "ill" / "Doe01.jpg", "MPO", save_all=True, append_images=[first])
    twice = "ok: 1 file: first_picture: the file holds several pictures, of which the first was read"
    skipped = "skipped: 1 file: no_image: not an image of this job by name or content"
    store = run_prepare(raw, tmp_path / "store", *SETTINGS, "patients=per_image", labels=None)
    assert store.info["counts"]["states"]["quarantined: corrupt_stream"] == 1
    assert store.info["counts"]["states"]["ok"] == 14
    assert list_said(capsys) == [
        "quarantined: 1 image (well 1): corrupt_stream: the decoder had to guess pixels: Corrupt JPEG data: 14 "
        "extraneous bytes before marker 0xd9; e.g. row 11 of ledger.parquet (counted from 0); fetch the files again; "
        "image.damaged=allow keeps whatever the decoder returns",
        skipped,
        twice,
    ]
    kept = run_prepare(raw, tmp_path / "kept", *SETTINGS, "patients=per_image", "image.damaged=allow", labels=None)
    assert kept.info["counts"]["states"]["ok"] == 15
    guess = "parts of these images are the decoder's guess: image.damaged=refuse leaves them out"
    guessed = f"ok: 1 file: corrupt_stream: {guess}"
    assert list_said(capsys) == [skipped, guessed, twice]
    again = (tmp_path / "again", f"reuse={kept.folder}", *SETTINGS, "patients=per_image", "image.damaged=allow")
    run_prepare(raw, *again, labels=None)
    assert list_said(capsys) == [skipped, guessed, twice]
