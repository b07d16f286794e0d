"""Files to shards: what is refused costs itself alone, is counted, and too much of it stops the run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from data_prep.decode import account, decode_rows, parse_age_years
from data_prep.labels import LabelRow
from data_prep.ledger import OK, QUARANTINED, SKIPPED, Entry
from medcls.data.store import ShardWriter
from medcls.errors import DataError
from medcls.files import sha256_file
from medcls.identity import Identity
from medcls.imaging.preprocess import Box, PreprocessSpec

DECLARED = Identity()
SPEC = PreprocessSpec(height=16, width=16)
Decode = Callable[..., tuple[list[dict[str, Any]], dict[str, Entry]]]


def row(path: str, *, number: int = 2, roi: Box | None = None, **changes: Any) -> LabelRow:
    return LabelRow(number=number, path=path, patient_id="P1", labels={"label": "x"}, roi=roi, **changes)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for name in ("a.png", "b.png", "c.png"):
        cv2.imwrite(str(folder / name), generator.integers(0, 255, (20, 30), np.uint8))
    (folder / "bad.png").write_bytes((folder / "a.png").read_bytes()[:200])
    (folder / "text.png").write_text("not an image")
    return folder


@pytest.fixture
def decode(source: Path, tmp_path: Path) -> Decode:
    """Decodes rows of `source` into a new store folder."""

    def run(
        rows: list[LabelRow], *, workers: int = 0, max_quarantined: float = 0.05, identity: Identity = DECLARED
    ) -> tuple[list[dict[str, Any]], dict[str, Entry]]:
        store = tmp_path / "store"
        store.mkdir()
        with ShardWriter(store, shape=(1, 16, 16), dtype="uint8") as writer:
            return decode_rows(
                rows,
                source=source,
                spec=SPEC,
                writer=writer,
                identity=identity,
                workers=workers,
                max_quarantined=max_quarantined,
            )

    return run


def test_the_manifest_says_what_is_known(decode: Decode, source: Path) -> None:
    manifest, entries = decode([row("a.png", sex="F", age_years=50.0, side="L", extra={"site": "n"})])
    (found,) = manifest
    expected = {
        "image_id": "a.png",
        "patient_id": "P1",
        "study_id": None,
        "shard": 0,
        "row": 0,
        "source_height": 20,
        "source_width": 30,
        "valid_x": 0,
        "valid_width": 16,
        "spacing_row_mm": None,
        "photometric": "L",
        "side": "L",
        "sex": "F",
        "age_years": 50.0,
        "site": "n",
    }
    assert {name: found[name] for name in expected} == expected
    assert entries == {"a.png": Entry("a.png", OK, images=1, file_sha256=sha256_file(source / "a.png"))}


def test_a_broken_file_is_quarantined_and_the_rest_goes_on(decode: Decode, source: Path, tmp_path: Path) -> None:
    manifest, entries = decode([row("a.png"), row("bad.png", number=3), row("c.png", number=4)])
    assert [(m["image_id"], m["row"]) for m in manifest] == [("a.png", 0), ("c.png", 1)]
    bad = entries["bad.png"]
    assert (bad.state, bad.reason, bad.images, bad.refused) == (QUARANTINED, "truncated", 0, ("bad.png",))
    assert bad.file_sha256 == sha256_file(source / "bad.png")
    assert np.load(tmp_path / "store" / "shard-00000.npy").shape == (2, 1, 16, 16)


@pytest.mark.parametrize("good_first", [True, False])
def test_one_good_and_one_refused_region_in_either_order(good_first: bool, decode: Decode) -> None:
    rows = [row("a.png", roi=(0, 0, 10, 10)), row("a.png", roi=(25, 0, 10, 10)), row("b.png"), row("c.png")]
    manifest, entries = decode(rows if good_first else [rows[1], rows[0], *rows[2:]])
    assert entries["a.png"].state == QUARANTINED
    assert (entries["a.png"].reason, entries["a.png"].images) == ("roi_outside", 1)
    assert entries["a.png"].refused == ("a.png@25,0,10,10",)
    assert sum(entry.images for entry in entries.values()) == len(manifest) == 3


def test_two_good_regions_are_two_images_of_one_file(decode: Decode) -> None:
    manifest, entries = decode([row("a.png", roi=(0, 0, 15, 20)), row("a.png", roi=(15, 0, 15, 20))])
    assert [m["image_id"] for m in manifest] == ["a.png@0,0,15,20", "a.png@15,0,15,20"]
    assert manifest[0]["pixel_sha256"] != manifest[1]["pixel_sha256"]
    assert (entries["a.png"].state, entries["a.png"].images) == (OK, 2)


def test_too_many_broken_files_stop_with_their_rows_and_reasons(decode: Decode) -> None:
    rows = [row("a.png"), row("bad.png", number=3), row("text.png", number=4), row("b.png", number=5)]
    with pytest.raises(DataError) as error:
        decode(rows)
    message = str(error.value)
    assert "more than 1 of 4 images are unreadable" in message
    assert "row 3 bad.png truncated" in message
    assert "row 4 text.png unknown_format" in message
    assert "max_quarantined=" in message


def test_more_may_be_allowed(decode: Decode) -> None:
    rows = [row("a.png"), row("bad.png", number=3), row("text.png", number=4), row("b.png", number=5)]
    assert len(decode(rows, max_quarantined=0.5)[0]) == 2


def test_none_may_be_allowed(decode: Decode) -> None:
    with pytest.raises(DataError, match="more than 0 of 2 images are unreadable"):
        decode([row("a.png"), row("bad.png", number=3)], max_quarantined=0)


def test_nothing_readable_is_an_error(decode: Decode) -> None:
    with pytest.raises(DataError, match=r"no image could be read: row 2 bad\.png truncated"):
        decode([row("bad.png")])


def test_under_pseudonyms_a_refusal_shows_no_path(decode: Decode) -> None:
    identity = Identity("hmac", bytes(32))
    with pytest.raises(DataError) as error:
        decode([row("bad.png")], identity=identity)
    assert "bad.png" not in str(error.value)
    assert identity.name("path", "bad.png") in str(error.value)


def test_workers_and_this_process_give_the_same(decode: Decode, tmp_path: Path) -> None:
    rows = [row("a.png"), row("bad.png", number=3), row("c.png", number=4)]
    inside = decode(rows, workers=0)
    shard = (tmp_path / "store" / "shard-00000.npy").read_bytes()
    (tmp_path / "store").rename(tmp_path / "first")
    assert decode(rows, workers=1) == inside
    assert (tmp_path / "store" / "shard-00000.npy").read_bytes() == shard


@pytest.mark.parametrize(
    ("text", "years"),
    [
        ("057Y", 57.0),
        ("006M", 0.5),
        ("052W", 1.0),
        ("100D", 0.27),
        ("", None),
        ("57Y", None),
        ("0570Y", None),
        ("abcY", None),
        ("057X", None),
        ("²²²Y", None),
        ("-57Y", None),
    ],
)
def test_dicom_ages(text: str, years: float | None) -> None:
    assert parse_age_years(text) == years


def test_every_file_is_accounted_for_once() -> None:
    files = [("a.png", ""), (".hidden", "hidden"), ("labels.csv", ""), ("link", "symbolic_link")]
    decoded = {"a.png": Entry("a.png", OK, images=1)}
    entries = account(files, decoded, identity=Identity())
    assert [(e.path, e.state, e.reason) for e in entries] == [
        ("a.png", OK, ""),
        (".hidden", SKIPPED, "hidden"),
        ("labels.csv", SKIPPED, "not_in_labels"),
        ("link", SKIPPED, "symbolic_link"),
    ]
