"""Labels and headers: every image gets its row, and a file that contradicts the headers is refused without a name."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from data_prep.file_choice import FileChoice
from data_prep.labels.class_folders import read_class_folder_table
from data_prep.labels.contradictions import CHECKS, parse_ages
from data_prep.labels.joining import SERIES, join_files, join_series, match_paths, match_values
from data_prep.labels.label_file import PatientRule, read_label_table, with_folders
from data_prep.labels.label_rows import build_schema
from medcls.errors import ConfigError, DataError
from medcls.imaging.instance import Instance

HEADERS = PatientRule(headers=True)
TEXTS = ("path", "problem", "series_uid", "study_uid", "patient_id", "patient_sex", "patient_age", "laterality")


def instance(path: str, patient: str = "", study: str = "", series: str = "", **more: str) -> dict[str, str]:
    ids = {"path": path, "patient_id": patient, "study_uid": study, "series_uid": series}
    return {**dict.fromkeys(TEXTS, ""), **ids, **more}


def index_of(*instances: dict[str, str]) -> pa.Table:
    return pa.Table.from_pylist(list(instances), schema=pa.schema([(name, pa.string()) for name in TEXTS]))


FILES = index_of(
    instance("p1/a.dcm", "Doe^1", "1.1", "1.1.1"),
    instance("p1/b.dcm", "Doe^1", "1.1", "1.1.1"),
    instance("p1/c.dcm", "Doe^1", "1.2", "1.2.1"),
    instance("p1/report.dcm", "Doe^1", "1.2", "1.2.2", problem="no_pixel_data"),
    instance("p2/d.dcm", "Doe^2", "2.1", "2.1.1"),
    instance("film.png"),
)


def labels_of(
    tmp_path: Path, text: str, index: pa.Table = FILES, *, rule: PatientRule = HEADERS, **options: Any
) -> pa.Table:
    path = tmp_path / "labels.csv"
    path.write_text(text)
    return read_label_table(path, source=tmp_path, rule=rule, listed=with_folders(index["path"]), **options)


def columns(table: pa.Table, *names: str) -> list[tuple[Any, ...]]:
    return list(zip(*(table[name].to_pylist() for name in names), strict=True))


def test_a_path_names_one_file(tmp_path: Path) -> None:
    labels = labels_of(tmp_path, "path,patient_id,label\np2/d.dcm,B,x\nfilm.png,C,y\np1/a.dcm,A,z\n")
    joined = join_files(labels, FILES)
    assert joined.schema.equals(labels.schema)
    assert columns(joined, "number", "path", "patient_id", "label", "study_uid", "series_uid", "dicom_patient_id") == [
        (2, "p2/d.dcm", "B", "x", "2.1", "2.1.1", "Doe^2"),
        (3, "film.png", "C", "y", None, None, None),
        (4, "p1/a.dcm", "A", "z", "1.1", "1.1.1", "Doe^1"),
    ]


BY_ID = [
    ("SeriesInstanceUID\n2.1.1,x\n1.1.1,y\n", ["p2/d.dcm", "p1/a.dcm", "p1/b.dcm"]),
    ("StudyInstanceUID\n1.2,x\n1.1,y\n", ["p1/c.dcm", "p1/a.dcm", "p1/b.dcm"]),
    ("PatientID\nDoe^1,x\n", ["p1/a.dcm", "p1/b.dcm", "p1/c.dcm"]),
]


@pytest.mark.parametrize(("text", "paths"), BY_ID)
def test_an_id_names_all_its_images_and_no_report(text: str, paths: list[str], tmp_path: Path) -> None:
    labels = labels_of(tmp_path, text.replace("\n", ",label\n", 1))
    joined = join_files(labels, FILES)
    assert joined["path"].to_pylist() == paths
    assert joined["label"].to_pylist() == ["x"] * (len(paths) - 2) + ["y"] * 2 if "y" in text else ["x"] * 3
    assert joined["patient_id"].to_pylist() == ["Doe^2" if path.startswith("p2") else "Doe^1" for path in paths]


def test_the_order_of_the_index_is_no_matter_of_threads_or_joins(tmp_path: Path) -> None:
    index = index_of(
        *(instance(f"{i:04d}.dcm", f"P{i % 7}", "", f"1.{i % 90}") for i in range(2000) if i % 90 % 7 == 0)
    )
    index = index.set_column(4, "patient_id", pa.array(["P"] * index.num_rows))
    labels = labels_of(tmp_path, "series_uid,label\n" + "".join(f"1.{i},x\n" for i in range(84, -1, -7)), index)
    joined = join_files(labels, index)
    assert joined.num_rows == index.num_rows
    assert columns(joined, "number", "path") == sorted(columns(joined, "number", "path"))


def test_two_regions_of_one_file_stay_two_rows(tmp_path: Path) -> None:
    text = "path,patient_id,label,roi_x,roi_y,roi_w,roi_h\nfilm.png,C,x,0,0,8,8\nfilm.png,C,y,8,0,8,8\n"
    joined = join_files(labels_of(tmp_path, text), FILES)
    assert columns(joined, "path", "label", "roi_x") == [("film.png", "x", 0), ("film.png", "y", 8)]


def test_spaces_around_a_header_id_do_not_tell_it_apart(tmp_path: Path) -> None:
    index = index_of(instance("a", " P1 ", "1", "2"), instance("b", "P1", "1", "3"))
    joined = join_files(labels_of(tmp_path, "PatientID,label\nP1,x\n", index), index)
    assert columns(joined, "path", "patient_id") == [("a", "P1"), ("b", "P1")]


def test_a_broken_file_that_is_named_stays(tmp_path: Path) -> None:
    index = index_of(instance("a.png", problem="truncated"))
    labels = labels_of(tmp_path, "path,patient_id,label\na.png,P,x\n", index)
    assert join_files(labels, index).num_rows == 1


def test_an_index_of_instances_joins_without_further_columns(tmp_path: Path) -> None:
    made = Instance(path="a.dcm", kind="dicom", patient_id="P", series_uid="1.2")
    index = pa.Table.from_pylist([{name: getattr(made, name) for name in TEXTS[:5]}])
    joined = join_files(labels_of(tmp_path, "series_uid,label,sex\n1.2,x,F\n", index), index)
    assert columns(joined, "path", "patient_id", "sex") == [("a.dcm", "P", "F")]


UNMATCHED = [
    (
        "SeriesInstanceUID,label\n1.1.1,x\n9.9,y\n",
        "1 problems: row 3: no file of the source has this SeriesInstanceUID",
    ),
    ("study_uid,label\n9.9,y\n1.1,x\n", "row 2: no file of the source has this StudyInstanceUID"),
    ("PatientID,label\n7,x\n", "row 2: no file of the source has this PatientID; spreadsheets drop leading zeros"),
    ("path,label\nfilm.png,x\n", r"row 2 \(#film.png#\): no patient_id, and its header has no PatientID"),
]


@pytest.mark.parametrize(("text", "part"), UNMATCHED)
def test_a_row_that_stays_alone_is_refused(text: str, part: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=part):
        join_files(labels_of(tmp_path, text), FILES, show=lambda path: f"#{path}#")


def test_a_row_of_reports_alone_names_no_image_and_is_no_mistake(tmp_path: Path) -> None:
    assert join_files(labels_of(tmp_path, "series_uid,label\n1.2.2,x\n2.1.1,y\n"), FILES)["path"].to_pylist() == [
        "p2/d.dcm"
    ]


PEOPLE = index_of(
    *(instance(f"{i}.dcm", f"Doe^{i // 2}", f"1.{i // 2}", f"2.{i}") for i in range(6)),
)


def people(tmp_path: Path, *patients: str, **header: list[str]) -> tuple[pa.Table, pa.Table]:
    """Labels with these patients for the files 0.dcm, 1.dcm …, and the index; `header` replaces its columns."""
    text = "path,patient_id,label\n" + "".join(f"{i}.dcm,{patient},x\n" for i, patient in enumerate(patients))
    index = PEOPLE
    for name, values in header.items():
        index = index.set_column(index.schema.get_field_index(name), name, pa.array(values))
    return labels_of(tmp_path, text, index), index


def refusal(labels: pa.Table, index: pa.Table, **options: Any) -> str:
    with pytest.raises(DataError) as error:
        join_files(labels, index, show=lambda path: f"#{path[0]}", **options)
    assert not re.search(r"Doe|Roe|\b[12]\.\d", str(error.value))
    return str(error.value)


def test_research_ids_rename_patients(tmp_path: Path) -> None:
    labels, index = people(tmp_path, "R1", "R1", "R2", "R2", "R3", "R3")
    assert join_files(labels, index)["patient_id"].to_pylist() == ["R1", "R1", "R2", "R2", "R3", "R3"]


def test_patients_that_are_merged_or_split_are_refused(tmp_path: Path) -> None:
    merged = refusal(*people(tmp_path, "R1", "R1", "R1", "R1", "R3", "R3"))
    assert ": 1 problems: row 2 (#0) and row 4 (#2): one patient_id, but two PatientIDs in the headers (" in merged
    split = refusal(*people(tmp_path, "R1", "R1", "R2", "R4", "R3", "R3"))
    assert "row 4 (#2) and row 5 (#3): one PatientID in the headers, but two patient_ids" in split
    assert "row 4 (#2) and row 5 (#3): one study of two patients" in split
    assert ": 2 problems: " in split
    swapped = refusal(*people(tmp_path, "R1", "R2", "R1", "R2", "R3", "R3"), compare=("patient",))
    assert ": 4 problems: " in swapped
    remedy = "if headers are unreliable, drop that check from compare=[…]"
    assert f"(labels and headers are compared by: patient; {remedy}" in swapped


def test_a_header_without_patient_contradicts_nobody(tmp_path: Path) -> None:
    blank = {"patient_id": [""] * 6, "study_uid": [""] * 6}
    labels, index = people(tmp_path, "R1", "R2", "R3", "R1", "R2", "R3", **blank)
    assert join_files(labels, index).num_rows == 6


def test_dummy_ids_of_headers_can_be_left_out(tmp_path: Path) -> None:
    labels, index = people(tmp_path, "R1", "R2", "R3", patient_id=["Anonymous"] * 6, study_uid=["1"] * 6)
    assert "1 problems: row 2 (#0) and row 3 (#1): one PatientID in" in refusal(labels, index, compare=("patient",))
    assert "one study of two patients" in refusal(labels, index, compare=("study",))
    assert join_files(labels, index, compare=("sex", "age", "side")).num_rows == 3


def test_without_a_column_the_study_still_has_one_patient(tmp_path: Path) -> None:
    index = index_of(instance("0.dcm", "Doe^1", "1.1", "2"), instance("1.dcm", "Roe^1", "1.1", "2"))
    labels = labels_of(tmp_path, "SeriesInstanceUID,label\n2,x\n", index)
    message = refusal(labels, index)
    assert (
        "2 problems: row 2 (#0) and row 2 (#1): one study of two patients; row 2 (#0) and row 2 (#1): one ser"
        in message
    )


DEMOGRAPHICS = [
    ("sex", "M", "patient_sex", "F", "sex is not the PatientSex"),
    ("sex", "M", "patient_sex", "M", ""),
    ("sex", "", "patient_sex", "M", ""),
    ("sex", "M", "patient_sex", "", ""),
    ("sex", "M", "patient_sex", "Doe^Sex", ""),
    ("age_years", "60", "patient_age", "057Y", "more than a year from the PatientAge"),
    ("age_years", "56", "patient_age", "057Y", ""),
    ("age_years", "57.9", "patient_age", "057Y", ""),
    ("age_years", "0.5", "patient_age", "006M", ""),
    ("age_years", "6", "patient_age", "006M", "PatientAge"),
    ("age_years", "90", "patient_age", "097Y", ""),
    ("age_years", "", "patient_age", "097Y", ""),
    ("age_years", "12", "patient_age", "Doe", ""),
    ("side", "L", "laterality", "R", "side is not the laterality"),
    ("side", "L", "laterality", "L", ""),
    ("side", "L", "laterality", "B", ""),
]


@pytest.mark.parametrize(("column", "declared", "keyword", "value", "part"), DEMOGRAPHICS)
def test_sex_age_and_side_agree(
    column: str, declared: str, keyword: str, value: str, part: str, tmp_path: Path
) -> None:
    index = index_of(*(instance(f"{i}.dcm", "P", "1", "2", **{keyword: value}) for i in range(3)))
    labels = labels_of(tmp_path, f"SeriesInstanceUID,label,{column}\n2,x,{declared}\n", index)
    if part:
        message = refusal(labels, index)
        assert part in message
        assert "1 problems: row 2 (#0): " in message
        name = "age" if column == "age_years" else column
        index_without = join_files(labels, index, compare=[check for check in CHECKS if check != name])
        assert index_without.num_rows == 3
    else:
        assert join_files(labels, index).num_rows == 3


def test_ages_are_parsed_as_the_standard_writes_them() -> None:
    texts = pa.chunked_array([["057Y", "006M", None], ["", "57Y", "0A7Y", "0057Y", "010W", "100D"]])
    assert parse_ages(texts).to_pylist() == pytest.approx(
        [57, 0.5, None, None, None, None, None, 70 / 365.25, 100 / 365.25]
    )


def test_all_problems_are_counted_and_ten_shown(tmp_path: Path) -> None:
    labels = labels_of(tmp_path, "PatientID,label\nDoe^1,x\n" + "".join(f"Roe{i},x\n" for i in range(23)))
    message = refusal(labels, FILES)
    assert ": 23 problems: row 3: " in message
    assert "; and 13 more (" in message
    assert message.count("row ") == 10


# Volumes


def series_of(*rows: tuple[str, list[str], str, str, str, bool]) -> pa.Table:
    return pa.Table.from_pylist([dict(zip(SERIES.names, row, strict=True)) for row in rows], schema=SERIES)


VOLUMES = series_of(
    ("1.1.1", ["p1/s1/1.dcm", "p1/s1/2.dcm", "p1/s1/3.dcm"], "1.1.1", "1.1", "Doe^1", True),
    ("1.1.2#1", ["p1/s2/1.dcm", "p1/s2/2.dcm"], "1.1.2", "1.1", "Doe^1", True),
    ("1.1.2#2", ["p1/s2/3.dcm"], "1.1.2", "1.1", "Doe^1", True),
    ("", ["p1/s3/scout.dcm"], "1.1.3", "1.1", "Doe^1", False),
    ("p2/brain.nii.gz", ["p2/brain.nii.gz"], "", "", "", True),
    ("3.1.1", ["p3/1.dcm", "p3/2.dcm"], "3.1.1", "3.1", "Doe^3", True),
)
ALL_FILES = pa.table({"path": [path for files in VOLUMES["files"].to_pylist() for path in files]})


def volume_labels(tmp_path: Path, text: str, *, rule: PatientRule = HEADERS, **options: Any) -> pa.Table:
    return labels_of(tmp_path, text, ALL_FILES, rule=rule, **options)


BY_NAME = [
    ("path,label\np1/s1,x\np3,y\n", [("1.1.1", 2), ("3.1.1", 3)]),
    ("path,label\np3,y\np1,x\n", [("3.1.1", 2), ("1.1.1", 3), ("1.1.2#1", 3), ("1.1.2#2", 3)]),
    ("path,label\np1/s2/3.dcm,y\np1/s3,x\n", [("1.1.2#2", 2)]),
    ("path,label\np3/2.dcm,y\np3/1.dcm,y\n", [("3.1.1", 2)]),
    ("path,label,split\np3,y,train\np3/1.dcm,y,train\n", [("3.1.1", 2)]),
    ("SeriesInstanceUID,label\n1.1.2,y\n1.1.3,x\n", [("1.1.2#1", 2), ("1.1.2#2", 2)]),
    ("study_uid,label\n3.1,y\n1.1,x\n", [("3.1.1", 2), ("1.1.1", 3), ("1.1.2#1", 3), ("1.1.2#2", 3)]),
    ("PatientID,label\nDoe^3,y\n", [("3.1.1", 2)]),
]


@pytest.mark.parametrize(("text", "volumes"), BY_NAME)
def test_volumes_are_named_by_file_folder_series_study_or_patient(
    text: str, volumes: list[tuple[str, int]], tmp_path: Path
) -> None:
    joined = join_series(volume_labels(tmp_path, text), VOLUMES, rule=HEADERS)
    assert columns(joined, "key", "number") == volumes
    for row in joined.to_pylist():
        (expected,) = [one for one in VOLUMES.to_pylist() if one["key"] == row["key"]]
        assert (row["files"], row["path"]) == (expected["files"], expected["files"][0])
        assert (row["series_uid"], row["patient_id"]) == (expected["series_uid"], expected["patient_id"])
    assert joined.schema.names == [*build_schema(["label"]).names, "key", "files"]


def test_nifti_files_need_a_patient_from_elsewhere(tmp_path: Path) -> None:
    labels = volume_labels(tmp_path, "path,patient_id,label\np2/brain.nii.gz,B,x\n", rule=PatientRule())
    joined = join_series(labels, VOLUMES, rule=PatientRule())
    assert columns(joined, "key", "patient_id", "series_uid") == [("p2/brain.nii.gz", "B", None)]
    labels = volume_labels(tmp_path, "path,label\np2,x\n")
    with pytest.raises(DataError, match=r"row 2 \(p2/brain.nii.gz\): no patient_id, and its header has no PatientID"):
        join_series(labels, VOLUMES, rule=HEADERS)


REFUSED = [
    ("path,label\np1/s1/2.dcm,x\n", r"row 2 \(#.*\): 1 of the 3 files of a volume are named; name its folder"),
    ("path,label\np1/s1/1.dcm,x\np1/s1/3.dcm,x\n", r"1 problems: row 2 \(#.*\): 2 of the 3 files of a volume"),
    (
        "path,label\np3/1.dcm,x\np3/2.dcm,y\n",
        r"row 2 \(#.*\) and row 3 \(#.*\): one volume in two rows that differ in l",
    ),
    ("path,label_a,label_b\np3,1,\np3/2.dcm,1,0\n", "1 problems: row 2 .* and row 3 .* differ in label_b"),
    ("path,label,age_years\np3,1,\np3/2.dcm,1,5\n", "1 problems: .* differ in age_years"),
    ("path,patient_id,label\np3,A,x\np3/2.dcm,B,x\n", "1 problems: .* differ in patient_id"),
    ("SeriesInstanceUID,label\n9.9,x\n", "row 2: no file of the source has this SeriesInstanceUID"),
    ("path,patient_id,label\np1,A,x\np3,A,x\n", r"row 2 \(#.*\) and row 3 \(#.*\): one patient_id, but two PatientIDs"),
    (
        "path,patient_id,label\np1/s1,A,x\np1/s2,B,x\n",
        "2 problems: .* one PatientID in the headers, but two patient_ids;",
    ),
]


@pytest.mark.parametrize(("text", "part"), REFUSED)
def test_volumes_that_are_named_in_part_or_differently_are_refused(text: str, part: str, tmp_path: Path) -> None:
    labels = volume_labels(tmp_path, text)
    with pytest.raises(DataError, match=part) as error:
        join_series(labels, VOLUMES, rule=HEADERS, show=lambda path: f"#{len(path)}")
    assert not re.search(r"Doe|1\.1|dcm", str(error.value))


def test_a_file_that_became_no_volume_satisfies_its_row_and_an_unknown_one_does_not(tmp_path: Path) -> None:
    labels = labels_of(tmp_path, "path,label\np1/s3/scout.dcm,x\n", ALL_FILES)
    assert join_series(labels, VOLUMES, rule=HEADERS).num_rows == 0
    labels = labels_of(tmp_path, "path,label\nnotes.txt,x\n", pa.table({"path": ["notes.txt"]}))
    with pytest.raises(DataError, match=r"row 2 \(notes.txt\): no image is there"):
        join_series(labels, VOLUMES, rule=HEADERS)


def test_a_series_uid_of_two_studies_is_refused(tmp_path: Path) -> None:
    twins = series_of(
        ("3.1.1", ["p3/1.dcm"], "3.1.1", "3.1", "Doe^3", True), ("3.1.1", ["p3/2.dcm"], "3.1.1", "3.2", "Doe^3", True)
    )
    with pytest.raises(DataError, match=r"1 problems: row 2 \(p3/1.dcm\) and row 2 \(p3/2.dcm\): two volumes of one S"):
        join_series(volume_labels(tmp_path, "path,label\np3,x\n"), twins, rule=HEADERS)


def test_a_series_uid_of_two_patients_is_refused(tmp_path: Path) -> None:
    index = index_of(instance("0.dcm", "Doe^1", "1.1", "2"), instance("1.dcm", "Roe^1", "1.2", "2"))
    labels = labels_of(tmp_path, "SeriesInstanceUID,label\n2,x\n", index)
    assert "1 problems: row 2 (#0) and row 2 (#1): one series of two patients" in refusal(labels, index)


def test_a_source_without_volumes_satisfies_no_row(tmp_path: Path) -> None:
    labels = volume_labels(tmp_path, "path,label\np3,x\n")
    with pytest.raises(DataError, match=r"1 problems: row 2 \(p3\): no image is there"):
        join_series(labels, SERIES.empty_table(), rule=HEADERS)
    labels = volume_labels(tmp_path, "PatientID,label\nDoe,x\n")
    with pytest.raises(DataError, match="1 problems: row 2: no file of the source has this PatientID"):
        join_series(labels, SERIES.empty_table(), rule=HEADERS)


def test_further_columns_differ_too(tmp_path: Path) -> None:
    text = "path,label,site\np3/1.dcm,x,n\np3/2.dcm,x,s\n"
    with pytest.raises(DataError, match="differ in site"):
        join_series(volume_labels(tmp_path, text, columns=("site",)), VOLUMES, rule=HEADERS)


def test_a_volume_has_no_region(tmp_path: Path) -> None:
    text = "path,label,roi_x,roi_y,roi_w,roi_h\np3,x,0,0,8,8\n"
    with pytest.raises(ConfigError, match="labels of volumes cannot have roi_x"):
        join_series(volume_labels(tmp_path, text), VOLUMES, rule=HEADERS)


def test_class_folders_of_volumes(tmp_path: Path) -> None:
    files = ALL_FILES["path"].filter(pa.array([not path.startswith("p2") for path in ALL_FILES["path"].to_pylist()]))
    labels = read_class_folder_table(tmp_path, files=files, rule=HEADERS).table
    joined = join_series(labels, VOLUMES, rule=HEADERS)
    assert columns(joined, "key", "label", "patient_id") == [
        ("1.1.1", "p1", "Doe^1"),
        ("1.1.2#1", "p1", "Doe^1"),
        ("1.1.2#2", "p1", "Doe^1"),
        ("3.1.1", "p3", "Doe^3"),
    ]


def test_every_volume_for_itself_is_compared_with_the_headers(tmp_path: Path) -> None:
    rule = PatientRule("per_image")
    labels = volume_labels(tmp_path, "path,label\np3/1.dcm,x\np3/2.dcm,x\np2,y\n", rule=rule)
    joined = join_series(labels, VOLUMES, rule=rule)
    assert columns(joined, "key", "patient_id") == [("3.1.1", "3.1.1"), ("p2/brain.nii.gz", "p2/brain.nii.gz")]
    labels = volume_labels(tmp_path, "path,label\np1,x\n", rule=rule)
    with pytest.raises(DataError, match="one PatientID in the headers, but two patient_ids"):
        join_series(labels, VOLUMES, rule=rule)


def test_paths_match_the_file_itself_and_all_folders_above() -> None:
    files = pa.chunked_array([["a/b/1", "a/c/d/2", "ab/3"], ["4", "a/b"]])
    wanted = pa.array(["a", "4", "a/c/d", "zz", "a/b"])
    label_rows, file_rows = match_paths(wanted, files)
    assert list(zip(label_rows.tolist(), file_rows.tolist(), strict=True)) == [
        (0, 0), (0, 1), (0, 4), (1, 3), (2, 1), (4, 0), (4, 4),
    ]  # fmt: skip


def test_values_match_many_to_many() -> None:
    label_rows, image_rows = match_values(pa.array(["b", "a", "b", None]), pa.array(["a", "b", "", "b", None]))
    assert list(zip(label_rows.tolist(), image_rows.tolist(), strict=True)) == [(0, 1), (0, 3), (1, 0), (2, 1), (2, 3)]


NIFTI = series_of(
    *(
        (path, [path], "", "", "", True)
        for i in (1, 2)
        for path in (
            f"s{i}/ses-1/s{i}_1_T1w.nii.gz",
            f"s{i}/ses-2/s{i}_2_T1w.nii.gz",
            f"s{i}/ses-1/s{i}_1_FLAIR.nii.gz",
        )
    )
)


def test_row_with_several_kinds_of_nifti_is_refused_without_a_pattern(tmp_path: Path) -> None:
    listed = pa.table({"path": [path for files in NIFTI["files"].to_pylist() for path in files]})
    labels = labels_of(tmp_path, "path,patient_id,label\ns1,A,x\ns2,B,y\n", listed)
    with pytest.raises(
        DataError, match=r"2 rows of the labels file \(lines 2, 3\) have several .*'\*.*FLAIR\.nii\*'"
    ) as refused:
        join_series(labels, NIFTI, rule=HEADERS)
    assert "s1" not in str(refused.value)
    assert join_series(labels, NIFTI, rule=HEADERS, choice=FileChoice("*")).num_rows == 6
    sessions = NIFTI.filter(pa.array(["T1w" in key for key in NIFTI["key"].to_pylist()]))
    assert join_series(labels, sessions, rule=HEADERS, choice=FileChoice("*_T1w.nii*")).num_rows == 4
    with pytest.raises(DataError, match="several NIfTI files under one label"):
        join_series(labels, NIFTI, rule=HEADERS, choice=FileChoice("*.nii.gz"))
