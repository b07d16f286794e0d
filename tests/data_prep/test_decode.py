"""Files to shards: what is refused costs itself alone, is counted, and too much of it stops the run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from data_prep.ledger import OK, QUARANTINED
from data_prep.plan import ShardPlan, Unit
from data_prep.shard_work import Refusals, ShardSetting, checksum, decode_shards, part_names, read_part
from medcls.data.manifest import read_table
from medcls.errors import DataError, ImageRefusedError
from medcls.files import sha256_file
from medcls.identity import Identity
from medcls.imaging.decode import DecodeTask, decode_image
from medcls.imaging.preprocess import Box, PreprocessSpec

DECLARED = Identity()
SPEC = PreprocessSpec(height=16, width=16)
Rows = list[dict[str, Any]]
Decode = Callable[..., tuple[Rows, Rows]]


def unit(path: str, *, number: int = 2, roi: Box | None = None, **changes: Any) -> Unit:
    key = path if roi is None else f"{path}@{','.join(map(str, roi))}"
    return Unit(key=key, files=(path,), patient_id="P1", number=number, roi=roi, **changes)


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
    """Decodes units of `source` as shard 0 of a store; returns the rows of its manifest and its ledger entries."""

    def run(
        units: list[Unit], *, workers: int = 0, max_quarantined: float = 0.05, identity: Identity = DECLARED
    ) -> tuple[Rows, Rows]:
        columns = tuple(units[0].extra)
        setting = ShardSetting(source, tmp_path / "store", SPEC, identity, columns, workers)
        refusals = Refusals.of(max_quarantined, len(units))
        plan = ShardPlan(0, units, "plan")
        decode_shards(iter([plan]), setting, refusals=refusals, total=len(units))
        names = part_names(0)
        assert read_part(setting.folder, plan) is not None
        manifest, entries = (read_table(setting.folder / names[kind]).to_pylist() for kind in ("manifest", "ledger"))
        return manifest, entries

    return run


def test_the_manifest_says_what_is_known(decode: Decode, source: Path) -> None:
    manifest, entries = decode([unit("a.png", sex="F", age_years=50.0, side="L", extra={"site": "n"})])
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
        "body_part": None,
        "side": "L",
        "sex": "F",
        "age_years": 50.0,
        "site": "n",
    }
    assert {name: found[name] for name in expected} == expected
    (entry,) = entries
    assert (entry["path"], entry["state"], entry["images"]) == ("a.png", OK, 1)
    assert entry["file_sha256"] == sha256_file(source / "a.png")


def test_a_broken_file_is_quarantined_and_the_rest_goes_on(decode: Decode, source: Path, tmp_path: Path) -> None:
    manifest, entries = decode([unit("a.png"), unit("bad.png", number=3), unit("c.png", number=4)])
    assert [(m["image_id"], m["row"]) for m in manifest] == [("a.png", 0), ("c.png", 1)]
    bad = entries[1]
    assert (bad["state"], bad["reason"], bad["images"], bad["refused"]) == (QUARANTINED, "truncated", 0, "bad.png")
    assert bad["file_sha256"] == sha256_file(source / "bad.png")
    shard = np.load(tmp_path / "store" / "shard-00000.npy")
    assert shard.shape == (2, 1, 16, 16)
    assert (shard[0] != shard[1]).any()


def test_two_good_regions_are_two_images_of_one_file(decode: Decode) -> None:
    manifest, entries = decode([unit("a.png", roi=(0, 0, 15, 20)), unit("a.png", roi=(15, 0, 15, 20))])
    assert [m["image_id"] for m in manifest] == ["a.png@0,0,15,20", "a.png@15,0,15,20"]
    assert manifest[0]["pixel_sha256"] != manifest[1]["pixel_sha256"]
    assert [(e["path"], e["images"]) for e in entries] == [("a.png", 1)] * 2


def test_too_many_broken_files_stop_with_their_rows_and_reasons(decode: Decode) -> None:
    units = [unit("a.png"), unit("bad.png", number=3), unit("text.png", number=4), unit("b.png", number=5)]
    with pytest.raises(DataError) as error:
        decode(units)
    message = str(error.value)
    assert "more than 1 of 4 images are unreadable" in message
    assert "row 3 truncated" in message
    assert "bad.png" not in message, "a path may hold a name"
    assert "row 4 unknown_format" in message
    assert "max_quarantined=" in message


def test_more_may_be_allowed(decode: Decode) -> None:
    units = [unit("a.png"), unit("bad.png", number=3), unit("text.png", number=4), unit("b.png", number=5)]
    assert len(decode(units, max_quarantined=0.5)[0]) == 2


def test_none_may_be_allowed(decode: Decode) -> None:
    with pytest.raises(DataError, match="more than 0 of 2 images are unreadable"):
        decode([unit("a.png"), unit("bad.png", number=3)], max_quarantined=0)


def test_under_pseudonyms_a_refusal_shows_no_path(decode: Decode) -> None:
    identity = Identity("hmac", bytes(32))
    with pytest.raises(DataError) as error:
        decode([unit("bad.png")], identity=identity, max_quarantined=0)
    assert "bad.png" not in str(error.value)
    assert "row 2 truncated" in str(error.value)


def test_workers_and_this_process_give_the_same(decode: Decode, tmp_path: Path) -> None:
    units = [unit("a.png"), unit("bad.png", number=3), unit("c.png", number=4)]
    inside = decode(units, workers=0)
    shard = (tmp_path / "store" / "shard-00000.npy").read_bytes()
    (tmp_path / "store").rename(tmp_path / "first")
    assert decode(units, workers=2) == inside
    assert (tmp_path / "store" / "shard-00000.npy").read_bytes() == shard


@pytest.mark.parametrize("name", ["shard-00000.npy", part_names(0)["manifest"], part_names(0)["ledger"]])
@pytest.mark.parametrize("damage", ["bit", "cut", "gone"])
def test_a_part_that_is_not_whole_is_decoded_again(name: str, damage: str, decode: Decode, tmp_path: Path) -> None:
    units = [unit("a.png"), unit("b.png")]
    decode(units)
    path = tmp_path / "store" / name
    content = path.read_bytes()
    middle = len(content) // 2
    if damage == "bit":
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    elif damage == "cut":
        path.write_bytes(content[:-1])
    else:
        path.unlink()
    assert read_part(tmp_path / "store", ShardPlan(0, units, "plan")) is None


def test_a_part_of_another_plan_is_decoded_again(decode: Decode, tmp_path: Path) -> None:
    units = [unit("a.png")]
    decode(units)
    assert read_part(tmp_path / "store", ShardPlan(0, units, "plan")) is not None
    assert read_part(tmp_path / "store", ShardPlan(0, units, "another plan")) is None


def test_file_larger_than_an_image_may_be_is_refused_before_a_byte_is_read(
    source: Path, decode: Decode, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (source / "huge.png").open("wb") as file:
        file.truncate(3 << 30)  # no disk is used

    def refuse_to_read(path: Path) -> str:
        return sha256_file(path) if path.name != "huge.png" else pytest.fail("it was read")

    monkeypatch.setattr("data_prep.shard_work.sha256_file", refuse_to_read)
    assert checksum(source / "huge.png", most_bytes=1 << 30) == ""
    assert checksum(source / "a.png", most_bytes=1 << 30) == sha256_file(source / "a.png")
    task = DecodeTask((source / "huge.png",), None, SPEC)
    with pytest.raises(ImageRefusedError, match=f"too_large: a file of {3 << 30} bytes; the limit is {2 << 30}"):
        decode_image(task)
    rows, entries = decode([unit("a.png"), unit("huge.png"), unit("b.png")], max_quarantined=0.5)
    assert len(rows) == 2
    assert [(entry["state"], entry["reason"], entry["file_sha256"]) for entry in entries] == [
        (OK, "", sha256_file(source / "a.png")),
        (QUARANTINED, "too_large", ""),
        (OK, "", sha256_file(source / "b.png")),
    ]
