"""data_prep.index and data_prep give one verdict on a file, with one word, wherever the header can tell."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom import uid

from data_prep.index import main
from data_prep.overview import judge_geometry
from data_prep.series import find_volumes
from medcls.config import StackRule
from medcls.data.manifest import read_table
from medcls.data.store import Store
from medcls.errors import ImageRefusedError
from medcls.imaging.catalog import build_index, instances_of
from medcls.imaging.image import read_image
from medcls.imaging.scan_file import scan_file
from medcls.imaging.source import list_files
from medcls.imaging.volume.select import SeriesRule
from tests.data_prep.test_index import write_slice
from tests.imaging import fuzz
from tests.imaging.fuzz_corpus import load_corpus, load_pictures

DECODING = {
    *("truncated", "pixel_length", "damaged_codestream", "size_mismatch", "sign_mismatch", "compression_bomb"),
    *("frame_count", "colour_conflict", "bit_depth", "float_range", "not_finite", "all_padding", "palette", "lut"),
    *("implausible_hu", "transparent", "unsupported_colour", "unknown_format", "unreadable", "corrupt_stream"),
}
"""Reasons that may come to light only while pixels are read, though the header may give them, too."""


def judge(path: Path) -> tuple[str, str]:
    """The reason of the index and of the reader, "" where an image comes out."""
    found = scan_file(path, name="file")
    try:
        read_image(path)
    except ImageRefusedError as error:
        return found.problem or found.image_problem, error.reason
    return found.problem or found.image_problem, ""


def test_whole_and_broken_files_are_judged_alike(tmp_path: Path) -> None:
    path, seen = tmp_path / "file", Counter[str]()
    files = [seed.data for seed in (*load_corpus(), *load_pictures())]
    files += [fuzz.build_case(fuzz.Case(9, index, kind)) for index in range(250) for kind in ("image", "raster")]
    for number, data in enumerate(files):
        path.write_bytes(data)
        header, reader = judge(path)
        assert header == reader or (header == "" and reader in DECODING), (number, header, reader)
        seen[header] += 1
    assert len(seen) > 15
    assert seen[""] > 200


RULES: dict[str, dict[str, Any]] = {
    "multi_frame": {"NumberOfFrames": 2},
    "cine": {"NumberOfFrames": 2, "FrameTime": "40"},
    "zero_pixels": {"Rows": 0},
    "bit_depth": {"BitsStored": 14, "HighBit": 9},
    "unsupported_colour": {"PhotometricInterpretation": "CMYK"},
    "pixel_length": {"Rows": 9},  # zeros behind the pixels would be padding
    "mosaic": {"ImageType": ["ORIGINAL", "PRIMARY", "MOSAIC"]},
    "rescale": {"RescaleSlope": "0", "RescaleIntercept": "0"},
    "window": {"WindowCenter": ["1", "2"], "WindowWidth": "5"},
    "no_window": {"WindowCenter": None, "WindowWidth": None},
    "presentation_conflict": {"PresentationLUTShape": "INVERSE"},
    "supplemental_palette": {"PixelPresentation": "COLOR"},
    "burnt_in": {"BurnedInAnnotation": "YES"},
    "tiled": {"TotalPixelMatrixRows": 80, "TotalPixelMatrixColumns": 60},
    "palette": {"PhotometricInterpretation": "PALETTE COLOR"},
    "not_an_image": {"SOPClassUID": uid.SegmentationStorage},
    "missing_element": {"SamplesPerPixel": None},
    "malformed_element": {"StudyInstanceUID": "1." * 600 + "1"},
    "": {},
}
WINDOW = {"WindowCenter": "40", "WindowWidth": "400"}


@pytest.mark.parametrize("reason", RULES)
def test_every_reason_of_a_header_is_the_same_word(tmp_path: Path, reason: str) -> None:
    write_slice(tmp_path / "file", z=0, **WINDOW | RULES[reason])
    assert judge(tmp_path / "file") == (reason, reason)


def test_every_reason_is_the_same_in_index_and_ledger(
    tmp_path: Path,
    compose_job: Callable[..., Any],
    run_prepare: Callable[..., Store],
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = tmp_path / "raw"
    reasons = [reason for reason in RULES if reason not in ("", "malformed_element", "not_an_image")]
    for number in range(40):  # enough images that the bad ones may be left out
        pixels = np.random.default_rng(number).integers(0, 2000, 48).astype("u2").tobytes()
        write_slice(
            source / f"ok{number}", z=0, patient=f"p{number}", study=f"1.2.{number}", PixelData=pixels, **WINDOW
        )
    for number, reason in enumerate(reasons):
        write_slice(source / reason, z=0, patient=f"q{number}", study=f"1.3.{number}", **WINDOW | RULES[reason])
    files = [*(f"ok{number}" for number in range(40)), *reasons]
    lines = ["path,label", *(f"{name},{len(name) % 2}" for name in files)]
    (source / "labels.csv").write_text("\n".join(lines) + "\n")
    main(compose_job("index", f"source={source}", "workers=0", "lines=0"))
    said = re.findall(r"^ +1 +([a-z_]+)", capsys.readouterr().out, re.MULTILINE)
    settings = ("deidentify=declared", "max_quarantined=0.5", "split.on_missing=report", "split.on_leak=report")
    store = run_prepare(source, tmp_path / "store", *settings, "image.few_levels=allow")
    ledger = read_table(store.folder / "ledger.parquet").to_pylist()
    refused = {row["path"]: row["reason"] for row in ledger if row["state"] == "quarantined"}
    assert refused == {reason: reason for reason in reasons}
    assert sorted(said) == sorted(reasons)


def test_a_series_with_a_broken_slice_is_not_called_a_volume(tmp_path: Path) -> None:
    for number in range(6):
        write_slice(tmp_path / "whole" / f"{number}", z=2.5 * number)
        write_slice(tmp_path / "cut" / f"{number}", z=2.5 * number, study="1.2.826.99.2")
    # A slice at the end: without it the others would look whole.
    (tmp_path / "cut" / "5").write_bytes((tmp_path / "cut" / "5").read_bytes()[:-9])
    index = build_index(tmp_path, list_files(tmp_path), workers=0)
    series = {name: [each for each in instances_of(index) if each.path.startswith(name)] for name in ("whole", "cut")}
    assert judge_geometry(series["whole"]) == "ok"
    assert judge_geometry(series["cut"]) == "incomplete_series, truncated"
    found = find_volumes(index, series=SeriesRule(), stack=StackRule())
    assert found.series.filter(found.series["chosen"])["files"].to_pylist() == [[f"whole/{n}" for n in range(6)]]
    assert set(found.refused_files["reason"].to_pylist()) == {"incomplete_series", "truncated"}


@pytest.mark.parametrize(("suffix", "size"), [(".dcm", 0), (".dcm", 100), (".dcm", 330), ("", 0), ("", 330)])
def test_a_series_beside_a_file_that_lost_its_header_is_not_called_a_volume(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], compose_job: Callable[..., Any], suffix: str, size: int
) -> None:
    """A copy that was broken off leaves its last file empty or cut before it says of which series it is."""
    names = [f"{number}{suffix}" for number in range(6)]
    for number, name in enumerate(names):
        write_slice(tmp_path / "whole" / name, z=2.5 * number)
        write_slice(tmp_path / "short" / name, z=2.5 * number, study="1.2.826.99.2")
    last = tmp_path / "short" / names[-1]
    last.write_bytes(last.read_bytes()[:size])
    # What marks that a copy is complete, a note, and a file of the system are no slices.
    for name in ("COMPLETE", "7.txt", "note", ".8"):
        (tmp_path / "whole" / name).write_bytes(b"see below" if name == "note" else b"")
    index = build_index(tmp_path, list_files(tmp_path), workers=0)
    found = find_volumes(index, series=SeriesRule(), stack=StackRule())
    assert found.series.filter(found.series["chosen"])["files"].to_pylist() == [[f"whole/{name}" for name in names]]
    reasons = dict(zip(found.refused_files["path"].to_pylist(), found.refused_files["reason"].to_pylist(), strict=True))
    assert {reasons[f"short/{name}"] for name in names[:-1]} == {"incomplete_series"}
    main(compose_job("index", f"source={tmp_path}", "workers=0"))
    assert len(re.findall(r"incomplete_series$|incomplete_series +", capsys.readouterr().out, re.MULTILINE)) == 1


def test_of_a_folder_of_several_series_those_beside_the_lost_file_are_refused(tmp_path: Path) -> None:
    for number in range(5):
        for series in "abc":
            write_slice(tmp_path / f"{series}{number}.dcm", z=2.5 * number, study=f"1.2.826.99.{ord(series)}")
    (tmp_path / "b4.dcm").write_bytes(b"")  # after b3 and before c0: nobody knows of which it was
    index = build_index(tmp_path, list_files(tmp_path), workers=0)
    found = find_volumes(index, series=SeriesRule(), stack=StackRule())
    assert found.series.filter(found.series["chosen"])["files"].to_pylist() == [[f"a{n}.dcm" for n in range(5)]]


def test_reports_in_a_series_do_not_break_its_volume(tmp_path: Path) -> None:
    for number in range(5):
        write_slice(tmp_path / f"{number}", z=2.5 * number)
    write_slice(tmp_path / "report", z=0)
    dataset = pydicom.dcmread(tmp_path / "report")
    del dataset.PixelData
    dataset.SOPClassUID = uid.ComprehensiveSRStorage
    dataset.save_as(tmp_path / "report")
    instances = list(instances_of(build_index(tmp_path, list_files(tmp_path), workers=0)))
    assert [each.problem for each in instances] == [""] * 5 + ["no_pixel_data"]
    assert judge_geometry(instances) == "ok"
    assert judge_geometry(instances[5:]) == "no image"
