"""Which files are images of a job: patterns, masks beside images, several kinds of scan under one label."""

from __future__ import annotations

import pyarrow as pa
import pytest

from data_prep.file_choice import FileChoice, are_numbered, check_companions, check_masks, find_differing_parts
from medcls.errors import DataError

PATHS = ["a/x_T1w.nii.gz", "a/x_FLAIR.NII.GZ", "masks/T1w.nii", "images/a/y.png", "b/x (1).png"]


def strings(paths: list[str]) -> pa.ChunkedArray:
    return pa.chunked_array([paths], pa.string())


@pytest.mark.parametrize(
    ("files", "not_files", "kept"),
    [
        ("", "", [0, 1, 2, 3, 4]),
        ("*_T1w.nii*", "", [0]),
        ("*T1w.nii*|*_flair.nii*", "", [0, 1, 2]),
        ("*.nii*", "masks/*", [0, 1]),
        ("images/*", "", [3]),
        ("*", "*(1)*", [0, 1, 2, 3]),
        ("x", "", []),
    ],
)
def test_patterns_choose_files(files: str, not_files: str, kept: list[int]) -> None:
    assert FileChoice(files, not_files).keep(strings(PATHS)).to_pylist() == [i in kept for i in range(len(PATHS))]


def test_folder_that_a_pattern_leaves_out_may_be_empty() -> None:
    choice = FileChoice(not_files="extra/*")
    assert (choice.ignores("extra/"), choice.ignores("train/")) == (True, False)


@pytest.mark.parametrize(
    ("paths", "pattern"),
    [
        (["benign/benign (1).png", "benign/benign (1)_mask.png", "benign/benign (1)_mask_1.png"], "'*mask*'"),
        (["COVID/images/1.png", "COVID/masks/1.png"], "'*masks*/*'"),
        (["polyp/Original/1.png", "polyp/Ground Truth/1.png"], "'*ground*truth*/*'"),
        (["AD/ISIC_1.jpg", "AD/ISIC_1_segmentation.png", "CN/ISIC_2_superpixels.png"], "segmentation*"),
        (["AD/s1/image.nii.gz", "AD/s1/seg.nii.gz"], "'*seg*'"),
    ],
)
def test_masks_beside_images_are_refused_with_the_pattern_that_leaves_them_out(paths: list[str], pattern: str) -> None:
    with pytest.raises(DataError, match=rf"{len(paths) - 1} of|1 of \d") as refused:
        check_masks(strings(paths), source="raw", below=1)
    assert pattern in str(refused.value)
    setting = str(refused.value).split("labelling.not_files='")[1].split("'")[0]
    kept = FileChoice(not_files=setting).keep(strings(paths)).to_pylist()
    assert kept == [True] + [False] * (len(paths) - 1)


@pytest.mark.parametrize(
    "paths",
    [
        ["mask/1.png", "no mask/1.png"],
        ["a/1_seg.png", "b/2_seg.png"],
        ["a/unmasked1.png", "a/segment_2.png", "a/3.png"],
    ],
)
def test_names_that_are_no_masks_pass(paths: list[str]) -> None:
    check_masks(strings(paths), source="raw", below=1)


KINDS = [
    ([f"AD/s{i}/{kind}.nii.gz" for i in range(3) for kind in ("T1", "T2")], ["T1", "T2"]),
    ([f"AD/sub-{i}_{kind}.nii.gz" for i in range(3) for kind in ("T1w", "FLAIR")], ["FLAIR", "T1w"]),
    ([f"AD/B{i}/B{i}_{kind}.nii" for i in range(3) for kind in ("t1", "t1ce", "flair")], ["flair", "t1", "t1ce"]),
]


@pytest.mark.parametrize(("paths", "parts"), KINDS)
def test_several_kinds_of_scan_in_a_class_folder_are_refused(paths: list[str], parts: list[str]) -> None:
    with pytest.raises(DataError, match=f"3 folders or names have several .* differ in {', '.join(parts)}: "):
        check_companions(strings(paths), source="raw", below=1)


@pytest.mark.parametrize(
    "paths",
    [
        [f"AD/s{i}/scan{k}.nii.gz" for i in range(3) for k in range(2)],
        [f"{label}/{name}.nii.gz" for label in ("AD", "CN") for name in ("Doe", "Roe", "Poe")],
        [f"AD/s{i}/T1.nii.gz" for i in range(3)],
    ],
)
def test_scans_of_one_kind_pass(paths: list[str]) -> None:
    check_companions(strings(paths), source="raw", below=1)


def test_differing_parts_hold_no_name_that_occurs_once() -> None:
    groups = [[f"s{i}/Doe{i}_{kind}.nii.gz" for kind in ("seg", "T1w")] for i in range(3)]
    assert find_differing_parts([*groups, ["s9/Roe_John.nii", "s9/Poe_Jane.nii"]]) == ["T1w", "seg"]


@pytest.mark.parametrize(
    ("names", "numbered"),
    [
        (["ses-1_T1w", "ses-2_T1w"], True),
        (["a/1.nii", "a/12.nii"], True),
        (["x_T1", "x_T2"], False),
        (["T1w", "FLAIR"], False),
    ],
)
def test_sessions_are_numbered_and_contrasts_are_not(names: list[str], numbered: bool) -> None:
    assert are_numbered(names) is numbered
