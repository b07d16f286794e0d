"""Folders as labels: a reading that fits is taken and said, others are refused with a setting for each reading."""

from __future__ import annotations

import shlex
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from data_prep.labels.class_folders import SourceLabels, read_class_folder_table
from data_prep.labels.label_rows import PatientRule
from data_prep.labels.layouts import find_split, guess_layout
from medcls.cli.overrides import prepare_overrides
from medcls.config import SCHEMAS, LabellingConfig, conf_folder
from medcls.errors import ConfigError, DataError

EACH = PatientRule("per_image")
HEADERS = PatientRule(headers=True)
FILES = ["healthy/p1_1.png", "healthy/p1_2.png", "ill/deep/p2_1.png"]


def read(
    source: Path, files: list[str], *, rule: PatientRule = EACH, columns: list[str] | None = None, **settings: Any
) -> SourceLabels:
    config, paths = LabellingConfig(**settings), pa.array(files, pa.string())
    return read_class_folder_table(source, files=paths, rule=rule, config=config, columns=columns or [])


def rows(found: SourceLabels, *names: str) -> list[tuple[Any, ...]]:
    return list(zip(*(found.table[name].to_pylist() for name in names), strict=True))


def cross(*levels: list[str], images: int = 2) -> list[str]:
    """The paths of some images in every combination of folders."""
    paths = [""]
    for level in [*levels, [f"{i}.png" for i in range(images)]]:
        paths = [f"{path}/{name}".lstrip("/") for path in paths for name in level]
    return paths


def test_class_folders_need_a_rule_for_patients(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"a guess would leak .* patient_id\.pattern=REGEX .* patients=per_image"):
        read(tmp_path, FILES, rule=PatientRule())


@pytest.mark.parametrize(
    ("levels", "layout", "patients"),
    [
        ((["Training", "Testing"], ["AD", "CN"]), "split/class", ""),
        ((["Training", "Testing"], ["AD", "CN"], ["p1"]), "split/class", "split/class/patient "),
        ((["AD", "CN"],), "class", ""),
        ((["AD", "CN"], ["p1"]), "class", "class/patient "),
    ],
)
def test_missing_patients_are_asked_for_with_the_layout_that_was_found(
    levels: tuple[list[str], ...], layout: str, patients: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="the patients are unknown") as refused:
        read(tmp_path, cross(*levels), rule=PatientRule())
    settings = [part.split("labelling.layout=")[1] for part in str(refused.value).split(", ") if "layout=" in part]
    assert [setting.split(" ")[0] for setting in settings] == [layout, *patients.split()]


@pytest.mark.parametrize(
    ("files", "layout", "advice"),
    [
        (cross(["Training", "Testing"], ["AD", "CN"]), "class/patient", "set labelling.layout=split/class if"),
        (cross(["Training", "Testing"], ["AD", "CN"]), "class", "set labelling.layout=split/class if"),
        (cross(["set"], ["train", "val"], ["a", "b"]), "*/class", r"set labelling.layout=\*/split/class if"),
        (cross(["train", "test"]), "class", "not like classes: give labels=FILE.csv$"),
    ],
)
def test_classes_that_all_have_names_of_splits_are_refused(
    files: list[str], layout: str, advice: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=rf"all 2 class folders are named like splits .*{advice}"):
        read(tmp_path, files, rule=PatientRule(), layout=layout)


def test_class_folders_become_labels(tmp_path: Path) -> None:
    found = read(tmp_path, FILES[::-1], rule=PatientRule(pattern="(p[0-9]+)_"))
    assert rows(found, "path", "patient_id", "label", "split") == [
        ("healthy/p1_1.png", "p1", "healthy", None),
        ("healthy/p1_2.png", "p1", "healthy", None),
        ("ill/deep/p2_1.png", "p2", "ill", None),
    ]
    assert read(tmp_path, FILES).table["patient_id"].to_pylist() == FILES


def test_class_folders_leave_patients_to_the_headers(tmp_path: Path) -> None:
    table = read_class_folder_table(tmp_path, files=pa.chunked_array([FILES[:1], FILES[1:]]), rule=HEADERS).table
    assert table["patient_id"].null_count == 3
    assert table["label"].to_pylist() == ["healthy", "healthy", "ill"]


def test_folder_without_an_image_is_refused_without_its_name(tmp_path: Path) -> None:
    for name in ("Healthy", "Ill", "doe^john", ".cache", "__MACOSX", "@eaDir"):
        (tmp_path / name).mkdir()
    files = cross(["Healthy", "Ill"], images=2)[:3]
    with pytest.raises(DataError, match=r"1 folder holds no image .* folder 1 of 3 in the order of names") as refused:
        read(tmp_path, files)
    assert "doe" not in str(refused.value)
    assert read(tmp_path, files, not_files="doe^john/*").table.num_rows == 3


@pytest.mark.parametrize(
    ("files", "pattern", "part"),
    [
        (["x.png", *FILES], "(p.)", r"1 image outside class folders: .*labelling\.not_files"),
        (FILES[:2], "(p.)", r"has 1 class folders with images \(labelling\.layout=class\), expected at least 2$"),
        (["set/ill/p1.png", "set/well/p1.png"], "(p.)", r"has 1 class folders .* set labelling\.layout=\*/class"),
        ([], "(p.)", "has 0 class folders"),
        (FILES, "(p1)", "does not match 1 of 3 paths"),
    ],
)
def test_class_folders_that_cannot_be_read_are_refused(
    files: list[str], pattern: str, part: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=part):
        read(tmp_path, files, rule=PatientRule(pattern=pattern))


SPELLINGS = [
    *(
        (name, "train")
        for name in ("train", "TRAIN", "Training", "training_set", "Train Images", "stage_2_train_images")
    ),
    *((name, "val") for name in ("val", "Valid", "validation", "dev", "Validation-Data", "seg_val")),
    *((name, "test") for name in ("test", "Testing", "TEST ", "test_images")),
    *((name, "") for name in ("train_test", "AD", "constraint", "contest", "normal development", "tests", "")),
]


@pytest.mark.parametrize(("name", "split"), SPELLINGS)
def test_split_folder_is_known_in_any_spelling(name: str, split: str) -> None:
    assert find_split(name) == split


def test_split_folders_are_splits_and_the_next_level_is_the_class(tmp_path: Path) -> None:
    files = cross(["Train", "DEV", "testing"], ["NORMAL", "PNEUMONIA"])
    found = read(tmp_path, files)
    assert Counter(rows(found, "split", "label")) == {
        (split, label): 2 for split in ("train", "val", "test") for label in ("NORMAL", "PNEUMONIA")
    }
    assert dict(rows(found, "path", "split"))["DEV/NORMAL/0.png"] == "val"
    assert found.notices == [
        "labelling.layout=split/class: Train/, DEV/, testing/ are read as splits and the folders below as classes "
        "(NORMAL, PNEUMONIA)"
    ]
    assert found.cut == []


@pytest.mark.parametrize(
    ("files", "layout", "labels", "cut"),
    [
        (cross(["train", "test"], ["a", "b"]), "split/class", "ab", ["val"]),
        (cross(["train", "valid"], ["a", "b"]), "split/class", "ab", ["test"]),
        (cross(["train"], ["a", "b"]), "split/class", "ab", ["val", "test"]),
        (cross(["set"], ["train", "val", "test"], ["a", "b"]), "*/split/class", "ab", []),
        (cross(["zip"], ["set"], ["train", "val", "test"], ["a", "b"]), "*/*/split/class", "ab", []),
        (cross(["a", "b"], ["train", "val", "test"]), "class/split", "ab", []),
        (cross(["train", "test"], ["a", "b"], ["p1"]), "split/class", "ab", ["val"]),
        (cross(["AD", "CN"]), "class", ["AD", "CN"], []),
        (
            [*cross(["AD"], ["s1", "s2"], ["ses-1", "ses-2"]), *cross(["CN"], ["s3"], ["ses-1", "ses-2"])],
            "class",
            None,
            [],
        ),
        (cross(["ill", "well"], ["images"]), "class", ["ill", "well"], []),
    ],
)
def test_layout_with_one_reading_is_read(
    files: list[str], layout: str, labels: Any, cut: list[str], tmp_path: Path
) -> None:
    found = read(tmp_path, files)
    assert (found.layout, found.cut) == (layout, cut)
    assert sorted(set(found.table["label"].to_pylist())) == list(labels or ["AD", "CN"])
    assert (found.table["split"].null_count == 0) == ("split" in layout)


AMBIGUOUS = [
    (cross(["site0", "site1"], ["c0", "c1"], ["p1"]), ["site0, site1", "layout=class ", "c0, c1", "layout=*/class "]),
    (cross([f"p{i}" for i in range(9)], ["ill", "well"]), ["the 9 folders", "layout=class ", "ill, well", "*/class "]),
    (cross(["train", "test", "extra"], ["a", "b"]), ["layout=class ", "layout=split/class ", "not_files='FOLDER/*'"]),
    (cross(["s1", "s2"], ["train", "test"], ["a", "b"]), ["layout=class/split ", "layout=*/split/class ", "class "]),
    ([*cross(["a"], ["train", "test"]), *cross(["b"])], ["layout=class/split ", "layout=class ", "not all of them"]),
    (
        cross(["train", "valid"], ["HAND", "FOOT"], ["p1", "p2"], ["s1_ill", "s1_well"]),
        ["layout=split/class ", "layout=split/*/class ", "layout=split/*/*/class ", "s1_ill, s1_well"],
    ),
]


@pytest.mark.parametrize(("files", "parts"), AMBIGUOUS)
def test_layout_with_several_readings_is_refused_with_a_setting_for_each(files: list[str], parts: list[str]) -> None:
    folders = Counter(path.rpartition("/")[0] for path in files)
    with pytest.raises(DataError, match="ambiguous") as refused:
        guess_layout(folders, source="raw")
    assert [part for part in parts if part not in str(refused.value)] == []


@pytest.mark.parametrize(
    ("files", "shown"),
    [
        (cross(["AD", "CN"], ["Ann Lee", "Bob Roe", "John Smith"]), "AD, CN are .* the 3 folders of the second level"),
        ([*cross(["AD", "CN"], ["Lee", "Roe"]), *cross(["AD"], ["Smith"])], "the 3 folders of the second level are"),
        (cross(["Ann Lee", "Bob Roe"], ["AD", "CN"]), "the 2 folders of the first level are .* AD, CN are"),
        (cross(["train"], ["AD", "CN"], ["Ann Lee", "Bob Roe"]), "AD, CN are .* the 2 folders of the third level are"),
    ],
)
def test_level_whose_folders_may_be_people_is_counted_and_not_named(files: list[str], shown: str) -> None:
    folders = Counter(path.rpartition("/")[0] for path in files)
    with pytest.raises(DataError, match=shown) as refused:
        guess_layout(folders, source="raw")
    assert not any(name in str(refused.value) for name in ("Lee", "Roe", "Smith"))


@pytest.mark.parametrize(
    ("files", "part"),
    [
        (cross(["train", "test"]), r"directly in the train folder, .* give labels=FILE\.csv, or move them"),
        (cross(["val", "test"], ["a", "b"]), r"none is train: add a train folder, or give labels=FILE\.csv$"),
    ],
)
def test_split_folders_that_cannot_be_read_are_not_advised_as_classes(
    files: list[str], part: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=part):
        read(tmp_path, files)


@pytest.mark.parametrize(
    ("files", "part"),
    [
        (cross([f"Doe_{i}" for i in range(30)]), r"30 folders hold 60 images: they look like patients"),
        (cross(["HAM_part_1", "HAM_part_2"]), "look like parts of one collection"),
        (cross(["images_001", "images_002", "images_003"]), "look like parts of one collection"),
    ],
)
def test_folders_that_are_no_classes_are_refused_without_their_names(
    files: list[str], part: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=part) as refused:
        read(tmp_path, files)
    assert "Doe" not in str(refused.value)
    assert "labelling.layout=class" in str(refused.value)


def test_test_folder_without_classes_is_left_out_and_said(tmp_path: Path) -> None:
    labelled = cross(["train", "val"], ["cat", "dog"])
    for unlabelled in (["test/1.png", "test/2.png"], ["test/unknown/1.png", "test/unknown/2.png"]):
        found = read(tmp_path, [*labelled, *unlabelled])
        assert found.table["path"].to_pylist() == sorted(labelled)
        assert found.left_out["path"].to_pylist() == unlabelled
        assert set(found.left_out["reason"].to_pylist()) == {"no_class"}
        assert found.cut == ["test"]
        assert "2 images of test left out (no_class): in no class folder of train" in found.notices[1]
    again = read(tmp_path, [*labelled, "test/1.png"], layout="split/class")
    assert again.left_out["path"].to_pylist() == ["test/1.png"]


def test_second_copy_of_all_folders_is_left_out_where_the_files_are_the_same(tmp_path: Path) -> None:
    once = cross(["x/train", "x/test"], ["a", "b"])
    twice = [f"x/{path}" for path in once]
    for path in (*once, *twice):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(b"image")
    found = read(tmp_path, [*once, *twice])
    assert found.table["path"].to_pylist() == sorted(once)
    assert set(rows(SourceLabels(found.left_out, "", found.left_out), "path", "reason")) == {
        (path, "second_copy") for path in twice
    }
    (tmp_path / twice[0]).write_bytes(b"another image")
    with pytest.raises(DataError, match=r"second copy of the split folders beside it, with other files: remove one"):
        read(tmp_path, [*once, *twice])


def test_layout_setting_decides(tmp_path: Path) -> None:
    files = cross(["north", "south"], ["ill", "well"], ["s1", "s2"])
    found = read(tmp_path, files, rule=PatientRule(), layout="site/class/patient", columns=["site"])
    assert set(rows(found, "site", "label", "patient_id")) == {
        (site, label, patient) for site in ("north", "south") for label in ("ill", "well") for patient in ("s1", "s2")
    }
    assert "2 patient folders have the name of a patient folder in another class" in found.notices[0]
    mura = cross(["M"], ["train", "valid"], ["HAND"], ["p1", "p2"], ["study1_ill", "study1_well"])
    found = read(tmp_path, mura, rule=PatientRule(), layout="*/split/*/patient/study*_{class}")
    assert set(rows(found, "split", "label", "patient_id")) == {
        (split, label, patient) for split in ("train", "val") for label in ("ill", "well") for patient in ("p1", "p2")
    }


@pytest.mark.parametrize(
    ("levels", "layout"),
    [
        ((["ill", "well"], ["s1", "s2"]), "class/patient"),
        ((["train", "val"], ["ill", "well"], ["x"], ["s1", "s2"]), "split/class/*/patient"),
    ],
)
def test_settings_for_patients_of_each_class_work_as_printed(
    levels: tuple[list[str], ...], layout: str, tmp_path: Path
) -> None:
    files = cross(*levels)
    notice = read(tmp_path, files, rule=PatientRule(), layout=layout).notices[-1]
    printed = shlex.split(notice.partition("class, set ")[2])
    parse = OverridesParser.create().parse_override
    typed = [parse(each) for each in prepare_overrides(printed, schema=SCHEMAS["prepare"], conf=conf_folder())]
    config = {each.key_or_group: str(each.value()) for each in typed}
    rule = PatientRule(pattern=config["patient_id.pattern"])
    found = read(tmp_path, files, rule=rule, layout=config["labelling.layout"])
    assert len(set(found.table["patient_id"].to_pylist())) == 4
    assert {path.rpartition("/")[0].removeprefix("train/").removeprefix("val/") for path in files} == set(
        found.table["patient_id"].to_pylist()
    )


def test_patient_with_images_of_several_classes_is_no_notice(tmp_path: Path) -> None:
    found = read(tmp_path, cross(["s1", "s2"], ["ill", "well"]), rule=PatientRule(), layout="patient/class")
    assert found.notices == []
    assert set(found.table["patient_id"].to_pylist()) == {"s1", "s2"}


@pytest.mark.parametrize(
    ("layout", "rule", "error", "part"),
    [
        ("class/patient", EACH, ConfigError, "would override"),
        ("split/class", EACH, DataError, r"2 folders of the split level are not named train"),
        ("class/*/*", EACH, DataError, r"does not fit the folders of 4 of 8 images"),
    ],
)
def test_layout_setting_that_does_not_fit_is_refused(
    layout: str, rule: PatientRule, error: type[Exception], part: str, tmp_path: Path
) -> None:
    files = [*cross(["ill", "well"], ["s1"]), *cross(["ill", "well"], ["s2"], ["t"])]
    with pytest.raises(error, match=part):
        read(tmp_path, files, rule=rule, layout=layout)


@pytest.mark.parametrize(
    ("layout", "part"),
    [
        ("splt/class", r"'splt' is not a level \(nearest: split\)"),
        ("split/patient", "no level is the class"),
        ("class/class", "class occurs twice"),
        ("study_{clas}", r"\{clas\} is not a level \(nearest: class\)"),
    ],
)
def test_layout_setting_with_an_unknown_level_is_refused(layout: str, part: str) -> None:
    with pytest.raises(ConfigError, match=part):
        LabellingConfig(layout=layout)
