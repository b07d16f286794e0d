"""Labels files: every kind of bad row is found, all of them at once, nothing is guessed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from data_prep.labels import label_file, label_rows
from data_prep.labels.label_file import PatientRule, read_label_table, with_folders
from data_prep.labels.label_rows import CHUNK_ROWS, OWN_COLUMNS, ROI, is_label
from medcls.config import LabellingConfig
from medcls.errors import ConfigError, DataError, MedclsError, MissingInputError
from medcls.imaging.preprocess import Box
from medcls.imaging.source import list_files

DECLARED = PatientRule()
HEADERS = PatientRule(headers=True)
HEADER = "path,patient_id,label"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    (folder / "sub").mkdir(parents=True)
    for name in ("a.png", "b.png", "sub/c d.png"):
        (folder / name).touch()
    return folder


def list_paths(source: Path) -> pa.Array:
    return pa.array([path for path, skip in list_files(source) if skip != "symbolic_link"], pa.string())


def read_table(
    source: Path,
    text: str | bytes,
    *,
    rule: PatientRule = DECLARED,
    columns: tuple[str, ...] = (),
    encoding: str = "utf-8",
) -> pa.Table:
    path = source.parent / "labels.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode(encoding))
    return read_label_table(path, source=source, rule=rule, columns=columns, listed=list_paths(source))


@dataclass(frozen=True, slots=True)
class LabelRow:
    """One image to classify: a file, or a region of one.

    Attributes:
        number: Line of the labels file, 1 = header; 0 for class-named folders.
        path: Relative to the source folder, with /.
        patient_id: As declared.
        labels: Column name ("label" or "label_NAME") -> value; None = unknown.
        split: "train", "val", "test" or None.
        sex: "M", "F", "O" or None.
        age_years: Years, or None.
        side: "L", "R" or None.
        roi: (x, y, width, height) in pixels of the file, or None for the whole image.
        extra: Further columns asked for by columns=[…].
    """

    number: int
    path: str
    patient_id: str
    labels: dict[str, str | None]
    split: str | None = None
    sex: str | None = None
    age_years: float | None = None
    side: str | None = None
    roi: Box | None = None
    extra: dict[str, str | None] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Names the image: its path, and its region where it has one."""
        return self.path if self.roi is None else "{}@{},{},{},{}".format(self.path, *self.roi)


def table_rows(table: pa.Table) -> Iterator[LabelRow]:
    """The rows of a table of labels as objects, which a test can compare."""
    labels = [name for name in table.column_names if is_label(name)]
    extras = [name for name in table.column_names if name not in OWN_COLUMNS and name not in labels]
    for batch in table.to_batches(max_chunksize=CHUNK_ROWS):
        for record in batch.to_pylist():
            roi = None if record["roi_x"] is None else tuple(record[name] for name in ROI)
            yield LabelRow(
                **{name: record[name] for name in ("number", "path", "patient_id")},
                labels={name: record[name] for name in labels},
                **{name: record[name] for name in ("split", "sex", "age_years", "side")},
                roi=roi,
                extra={name: record[name] for name in extras},
            )


def read(source: Path, text: str | bytes, **options: Any) -> list[LabelRow]:
    return list(table_rows(read_table(source, text, **options)))


def test_a_row_with_everything(source: Path) -> None:
    header = "path,patient_id,label,split,sex,age_years,side,roi_x,roi_y,roi_w,roi_h,site,other"
    (row,) = read(source, f"{header}\n sub/c d.png , P1,severe,val,F,61.5,L,1,2,3,4,north,x\n", columns=("site",))
    assert row == LabelRow(
        number=2,
        path="sub/c d.png",
        patient_id="P1",
        labels={"label": "severe"},
        split="val",
        sex="F",
        age_years=61.5,
        side="L",
        roi=(1, 2, 3, 4),
        extra={"site": "north"},
    )
    assert row.key == "sub/c d.png@1,2,3,4"


def test_blanks_are_unknown(source: Path) -> None:
    text = "path,patient_id,label_a,label_b,sex,age_years,side,split\na.png,P1,1,,,,,\nb.png,P2,,0,,,,\n"
    rows = read(source, text)
    assert [row.labels for row in rows] == [{"label_a": "1", "label_b": None}, {"label_a": None, "label_b": "0"}]
    assert {(row.sex, row.age_years, row.side, row.split, row.roi) for row in rows} == {(None,) * 5}


def test_two_regions_of_one_file_are_two_rows(source: Path) -> None:
    text = f"{HEADER},roi_x,roi_y,roi_w,roi_h\na.png,P1,x,0,0,8,8\na.png,P1,y,8,0,8,8\na.png,P1,z,,,,\n"
    assert [row.key for row in read(source, text)] == ["a.png@0,0,8,8", "a.png@8,0,8,8", "a.png"]


def test_paths_with_backslashes_dots_and_quoted_commas(source: Path) -> None:
    (source / "e,f.png").touch()
    rows = read(source, f'{HEADER}\nsub\\c d.png,P1,x\n./a.png,P1,x\n"e,f.png",P1,x\n')
    assert [row.path for row in rows] == ["sub/c d.png", "a.png", "e,f.png"]


def test_numbers_are_lines_of_the_file(source: Path) -> None:
    rows = read(source, f'{HEADER},note\n\na.png,P1,x,"two\nlines"\n\nb.png,P2,x,\n')
    assert [row.number for row in rows] == [4, 6]


def test_none_may_be_a_grade(source: Path) -> None:
    assert read(source, f"{HEADER}\na.png,P1,none\n")[0].labels == {"label": "none"}


def test_a_byte_order_mark_is_no_part_of_the_header(source: Path) -> None:
    assert len(read(source, f"{HEADER}\na.png,P1,x\n", encoding="utf-8-sig")) == 1


BAD_ROWS = [
    ("", "P1", "x", "path is blank"),
    ("../a.png", "P1", "x", "path leads out of the source folder"),
    ("sub/../../a.png", "P1", "x", "path leads out of the source folder"),
    ("/etc/passwd", "P1", "x", "path leads out of the source folder"),
    ("\\\\server\\share\\a.png", "P1", "x", "path leads out of the source folder"),
    ("C:\\a.png", "P1", "x", "path leads out of the source folder"),
    ("sub", "P1", "x", "its file does not exist"),
    ("A.png", "P1", "x", "its file does not exist"),
    ("a.png\0", "P1", "x", ""),
    ("a.png", "", "x", "patient_id is blank"),
    ("a.png", "nan", "x", "patient_id is blank"),
    ("a.png", "P1", "NaN", "label='NaN': leave it blank if it is unknown"),
    ("a.png", "P1", "None", "label='None'"),
    ("a.png", "P1", "inf", "label='inf'"),
]


@pytest.mark.parametrize(("path", "patient", "label", "part"), BAD_ROWS)
def test_a_bad_row_is_named(path: str, patient: str, label: str, part: str, source: Path) -> None:
    with pytest.raises((DataError, MissingInputError)) as error:
        read(source, f"{HEADER}\nb.png,P2,x\n{path},{patient},{label}\n")
    assert part in str(error.value)
    assert "1 bad row of 2: row 3: " in str(error.value) or "not CSV" in str(error.value)


BAD_CELLS = [
    ("split", "Doe", "row 2: split: expected one of train, val, test or blank"),
    ("sex", "Doe", "row 2: sex: expected one of M, F, O or blank"),
    ("side", "both", "row 2: side: expected one of L, R or blank"),
    ("age_years", "old", "age_years: expected a number from 0 to 130"),
    ("age_years", "nan", "age_years: expected a number from 0 to 130"),
    ("age_years", "-1", "age_years: expected a number from 0 to 130"),
    ("age_years", "131", "age_years: expected a number from 0 to 130"),
    ("label_b", "null", "label_b='null': leave it blank"),
]


@pytest.mark.parametrize(("column", "value", "part"), BAD_CELLS)
def test_a_bad_cell_is_named(column: str, value: str, part: str, source: Path) -> None:
    with pytest.raises(DataError) as error:
        read(source, f"{HEADER},{column}\na.png,P1,x,{value}\n")
    assert part in str(error.value)
    assert value not in str(error.value) or value in ("nan", "null", "-1", "131")


@pytest.mark.parametrize(
    ("roi", "part"),
    [
        ("1,2,3,", "four whole numbers or four blanks"),
        ("1,2,3,4.5", "four whole numbers"),
        ("-1,0,8,8", "expected x, y >= 0"),
        ("0,0,0,8", "w, h >= 1"),
    ],
)
def test_a_bad_region_is_named(roi: str, part: str, source: Path) -> None:
    with pytest.raises(DataError, match=part):
        read(source, f"{HEADER},roi_x,roi_y,roi_w,roi_h\na.png,P1,x,{roi}\n")


def test_all_bad_rows_are_reported_at_once(source: Path) -> None:
    text = f"{HEADER},sex\na.png,,x,\nb.png,P1,nan,\n../c,P1,x,\nmissing.png,P2,x,\na.png,P1,x,Q\nb.png,P1,x\n"
    with pytest.raises(DataError) as error:
        read(source, text)
    message = str(error.value)
    assert "6 bad rows of 6" in message
    assert [f"row {number}: " in message for number in range(2, 8)] == [True] * 6
    assert "3 cells, but the header has 4" in message
    assert f"relative to source={source}" in message
    assert "\n" not in message


def test_ten_bad_rows_are_shown_and_the_others_counted(source: Path) -> None:
    with pytest.raises(DataError, match=r"23 bad rows of 23: .*; and 13 more") as error:
        read(source, f"{HEADER}\n" + "a.png,,x\n" * 23)
    assert str(error.value).count("row ") == 10


def test_missing_files_alone_are_missing_input(source: Path) -> None:
    with pytest.raises(MissingInputError, match="2 bad rows of 3: row 2: its file does not exist; row 4: its "):
        read(source, f"{HEADER}\nx.png,P1,a\na.png,P1,a\ny.png,P1,a\n")


def test_a_missing_file_is_named_by_its_line_only(source: Path) -> None:
    with pytest.raises(MissingInputError, match="row 3: its file does not exist") as error:
        read(source, f"{HEADER}\na.png,P1,a\nDoe_John.png,P1,a\n")
    assert "Doe" not in str(error.value)


IDENTITIES = ("Mustermann", "Erika", "0171", "MRN4711", "Doe")

MALFORMED = {
    "no header line": "Mustermann,Erika,0171 5550,a.png\nDoe,Erika,0171 5551,b.png\n",
    "no header line, a name almost like a column": "patient,Erika,label_,MRN4711\nlab,Doe,x,y\n",
    "no header line, one value twice": "Erika,Erika,a.png\nDoe,Doe,b.png\n",
    "no header line and semicolons": "Mustermann;Erika;a.png\nDoe;Erika;b.png\n",
    "a name as sex": f"{HEADER},sex\na.png,P1,x,Erika\n",
    "a name as side": f"{HEADER},side\na.png,P1,x,Erika\n",
    "a name as split": f"{HEADER},split\na.png,P1,x,Doe\n",
    "a phone number as age": f"{HEADER},age_years\na.png,P1,x,0171\n",
    "a name as region": f"{HEADER},roi_x,roi_y,roi_w,roi_h\na.png,P1,x,1,2,3,Doe\n",
    "a number as region": f"{HEADER},roi_x,roi_y,roi_w,roi_h\na.png,P1,x,1,2,-0171,5\n",
    "a comma in a name": f"{HEADER}\na.png,Mustermann, Erika,x\n",
    "a file that is not there": f"{HEADER}\nDoe/Erika.png,P1,x\n",
    "a path out of the source": f"{HEADER}\n../Doe/Erika.png,P1,x\n",
    "an image twice": f"{HEADER}\na.png,MRN4711,x\na.png,Doe,x\n",
    "a control character": f"{HEADER}\na.png,Doe\x07,x\n",
    "a line break": f'{HEADER}\na.png,P1,"Doe\nErika"\n',
    "only a header": "path,patient_id,Mustermann\n",
    "no label": "path,patient_id,Mustermann\na.png,P1,Doe\n",
    "two ways to name images": "path,PatientID,label,Doe\na.png,MRN4711,x,Erika\n",
    "another encoding": b"path,patient_id,label\na.png,Mustermann \xe4,x\n",
}


@pytest.mark.parametrize("kind", MALFORMED)
def test_no_message_shows_what_may_be_a_person(kind: str, source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(MedclsError) as error:
        read(source, MALFORMED[kind])
    shown = str(error.value).replace(str(source.parent), "") + capsys.readouterr().err
    assert [name for name in IDENTITIES if name in shown] == []


def test_words_for_codes_are_read_and_said(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (
        f"{HEADER},sex,side,split\na.png,P1,x,female,Left,Train\nb.png,P2,x,M,r,val\nsub/c d.png,P3,x,unknown,,TEST\n"
    )
    rows = read(source, text)
    assert [(row.sex, row.side, row.split) for row in rows] == [
        ("F", "L", "train"),
        ("M", "R", "val"),
        (None, None, "test"),
    ]
    said = capsys.readouterr().err
    assert "notice: sex is read by its words: 'female' (1 row) as F, 'unknown' (1 row) as unknown" in said
    assert "'Left' (1 row) as L, 'r' (1 row) as R" in said
    with pytest.raises(DataError, match=r"strict=true: .* split has 'TEST'"):
        read_label_table(
            source.parent / "labels.csv",
            source=source,
            rule=DECLARED,
            listed=list_paths(source),
            config=LabellingConfig(strict=True),
        )
    read(source, f"{HEADER},sex\na.png,P1,x,F\n")
    assert capsys.readouterr().err == ""


def test_the_same_image_twice_is_refused(source: Path) -> None:
    with pytest.raises(
        DataError, match=r"row 2: .* region as row 4, with another label: .*row 4: .* as row 2, with an"
    ):
        read(source, f"{HEADER}\na.png,P1,x\nb.png,P1,x\n./a.png,P2,y\n")
    with pytest.raises(DataError, match="row 2: the same image and region as row 3, with the same label: keep one row"):
        read(source, f"{HEADER}\na.png,P1,x\na.png,P1,x\n")


def test_columns_that_look_like_readers_are_named_with_the_setting(source: Path) -> None:
    header = HEADER.removesuffix("label")
    with pytest.raises(DataError, match=r"missing columns label .*: set labelling.readers=\[reader1,Rater_2\]"):
        read(source, f"{header}reader1,Rater_2\na.png,P1,x,y\n")


def test_words_for_splits_are_those_of_folders(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = read(source, f"{HEADER},split\na.png,P1,x,Training\nb.png,P2,x,Validation\nsub/c d.png,P3,x,Testing\n")
    assert [row.split for row in rows] == ["train", "val", "test"]
    assert "notice: split is read by its words: 'Testing' (1 row) as test" in capsys.readouterr().err


def test_a_split_is_given_to_all_or_none(source: Path) -> None:
    with pytest.raises(DataError, match="row 3: split is blank; fill all or none"):
        read(source, f"{HEADER},split\na.png,P1,x,train\nb.png,P2,x,\n")


def test_links_out_of_the_source_and_inside_it_are_refused(source: Path) -> None:
    (source.parent / "secret.png").touch()
    (source / "out.png").symlink_to(source.parent / "secret.png")
    (source / "in.png").symlink_to(source / "a.png")
    (source / "folder").symlink_to(source / "sub")
    with pytest.raises(DataError) as error:
        read(source, f"{HEADER}\nout.png,P1,x\nin.png,P1,x\nfolder/c d.png,P1,x\n")
    message = str(error.value)
    assert "row 2: path is a link that leads out of the source folder" in message
    assert "row 3: path is or contains a symbolic link" in message
    assert "row 4: path is or contains a symbolic link" in message


def test_a_source_that_is_reached_by_a_link_is_fine(source: Path) -> None:
    (source.parent / "link").symlink_to(source)
    path = source.parent / "labels.csv"
    path.write_text(f"{HEADER}\na.png,P1,x\n")
    listed = list_paths(source.parent / "link")
    assert len(read_label_table(path, source=source.parent / "link", rule=DECLARED, listed=listed)) == 1


BAD_HEADERS = [
    ("patient_id,label", "missing columns path"),
    ("path,label", "missing columns patient_id"),
    ("path,label", "patients=per_image or patient_id.pattern=REGEX replace patient_id"),
    ("path,patient_id", r"missing columns label \(or label_NAME\)"),
    ("path,patient,label", r"missing columns patient_id \(nearest: column 2\); line 1 has 3 columns"),
    ("a.png,P1,x", "line 1 has 3 columns, none with a known name: if line 1 is not a header, add one"),
    ("path;patient_id;label", "separated by ; or tabs"),
    ("path\tpatient_id\tlabel", "separated by ; or tabs"),
    ("path,patient_id,label,label", "columns 3, 4 have the name of another column"),
    ("path,patient_id,label,roi_x,roi_y", "a region needs all of .*; missing roi_w, roi_h"),
]


@pytest.mark.parametrize(("header", "part"), BAD_HEADERS)
def test_a_bad_header_says_what_is_missing(header: str, part: str, source: Path) -> None:
    with pytest.raises(DataError, match=part):
        read(source, f"{header}\n")


def test_a_column_asked_for_must_be_there(source: Path) -> None:
    with pytest.raises(DataError, match=r"missing columns sitee \(nearest: column 4\)"):
        read(source, f"{HEADER},site\na.png,P1,x,n\n", columns=("sitee",))


@pytest.mark.parametrize("content", [b"", b"\n\n", f"{HEADER}\n".encode()])
def test_a_file_without_rows_is_refused(content: bytes, source: Path) -> None:
    with pytest.raises(DataError):
        read(source, content)


@pytest.mark.parametrize("content", [f"{HEADER}\na.png,P1,mäßig\n".encode("latin-1"), "path".encode("utf-16")])
def test_another_encoding_is_refused(content: bytes, source: Path) -> None:
    with pytest.raises(DataError, match="not CSV in UTF-8"):
        read(source, content)


def test_a_labels_file_that_is_missing_or_a_folder(source: Path) -> None:
    for path in (source / "none.csv", source):
        with pytest.raises(MissingInputError, match="labels="):
            read_label_table(path, source=source, rule=DECLARED, listed=list_paths(source))


def test_a_rule_never_overrules_declared_patients(source: Path) -> None:
    for rule in (PatientRule("per_image"), PatientRule(pattern="^(.)")):
        with pytest.raises(ConfigError, match=r"has patient_id, which .* would override"):
            read(source, f"{HEADER}\na.png,P1,x\n", rule=rule)


def test_a_pattern_finds_the_patient_in_the_path(source: Path) -> None:
    rows = read(source, "path,label\na.png,x\nsub/c d.png,y\n", rule=PatientRule(pattern=r"([a-z]) ?d?\.png$"))
    assert [row.patient_id for row in rows] == ["a", "c"]


def test_a_pattern_that_does_not_match_is_a_bad_row(source: Path) -> None:
    with pytest.raises(DataError, match=r"row 3: patient_id\.pattern does not match its path"):
        read(source, "path,label\na.png,x\nb.png,y\n", rule=PatientRule(pattern="^(a)"))


@pytest.mark.parametrize(
    ("pattern", "patients", "part"),
    [
        ("(", "declared", "is not a regular expression"),
        ("[0-9]+", "declared", "expected one group"),
        ("([0-9]+)", "per_image", "remove one of the two"),
    ],
)
def test_a_wrong_rule_is_refused(pattern: str, patients: str, part: str) -> None:
    with pytest.raises(ConfigError, match=part):
        PatientRule(patients, pattern)


UID_HEADERS = [
    ("series_uid", "series_uid"),
    ("SeriesInstanceUID", "series_uid"),
    ("study_uid", "study_uid"),
    ("StudyInstanceUID", "study_uid"),
    ("PatientID", "dicom_patient_id"),
    ("dicom_patient_id", "dicom_patient_id"),
]


@pytest.mark.parametrize(("spelled", "column"), UID_HEADERS)
def test_images_are_named_by_path_series_study_or_patient(spelled: str, column: str, source: Path) -> None:
    table = read_table(source, f"{spelled},label\n1.2.3,x\n1.2.4,y\n", rule=HEADERS)
    assert table[column].to_pylist() == ["1.2.3", "1.2.4"]
    others = {"path", "series_uid", "study_uid", "dicom_patient_id", "patient_id"} - {column}
    assert all(table[name].null_count == 2 for name in others)


@pytest.mark.parametrize("spelled", [spelled for spelled, _ in UID_HEADERS])
def test_an_id_that_is_blank_or_there_twice_is_a_bad_row(spelled: str, source: Path) -> None:
    with pytest.raises(DataError, match=f"row 3: {spelled} is blank; row 4: {spelled} is blank; row 2: the same "):
        read(source, f"{spelled},label\n1.2.3,x\n,y\nnan,y\n1.2.3,y\n", rule=HEADERS)


def test_ids_of_headers_need_headers(source: Path) -> None:
    with pytest.raises(DataError, match="names images by StudyInstanceUID, and no headers are read here"):
        read(source, "StudyInstanceUID,patient_id,label\n1.2,P1,x\n")


AMBIGUOUS = [
    ("path,SeriesInstanceUID", "path and SeriesInstanceUID all name images, expected one of them: keep path"),
    ("StudyInstanceUID,series_uid", "series_uid and StudyInstanceUID all name images"),
    ("series_uid,SeriesInstanceUID", "series_uid and SeriesInstanceUID all name images"),
    ("path,PatientID", "keep path, the most specific, and rename PatientID to patient_id if it says whose image it is"),
]


@pytest.mark.parametrize(("header", "part"), AMBIGUOUS)
def test_two_ways_to_name_the_images_are_refused(header: str, part: str, source: Path) -> None:
    with pytest.raises(DataError, match=part):
        read(source, f"{header},patient_id,label\na.png,1.2,P1,x\n")


@pytest.mark.parametrize("rule", [PatientRule("per_image"), PatientRule(pattern="(.)")])
def test_a_rule_on_paths_needs_paths(rule: PatientRule, source: Path) -> None:
    with pytest.raises(ConfigError, match=r"names images by PatientID; patients=per_image .* work on path"):
        read(source, "PatientID,label\nP1,x\n", rule=rule)


def test_headers_may_name_the_patient(source: Path) -> None:
    rule = HEADERS
    assert read_table(source, "path,label\na.png,x\n", rule=rule)["patient_id"].to_pylist() == [None]
    assert read(source, f"{HEADER}\na.png,P1,x\n", rule=rule)[0].patient_id == "P1"
    with pytest.raises(DataError, match="row 2: patient_id is blank"):
        read(source, f"{HEADER}\na.png,,x\n", rule=rule)


@pytest.mark.parametrize("name", ["path", "patient_id", "PatientID", "StudyInstanceUID", "number", "label", "roi_w"])
def test_a_column_of_our_own_is_no_further_column(name: str, source: Path) -> None:
    with pytest.raises(ConfigError, match=f"{name} is always read, or is a name that medcls itself uses"):
        read(source, f"{HEADER}\na.png,P1,x\n", columns=(name,))


def test_the_table_has_the_columns_and_types_of_its_contract(source: Path) -> None:
    table = read_table(source, f"{HEADER}_b,label_a,site\na.png,P1,x,y,n\n", columns=("site",))
    whole = {"number": pa.int64(), "age_years": pa.float64()}
    whole |= {name: pa.int32() for name in ("roi_x", "roi_y", "roi_w", "roi_h")}
    ids = ["number", "path", "series_uid", "study_uid", "dicom_patient_id", "patient_id"]
    others = ["split", "sex", "age_years", "side", "roi_x", "roi_y", "roi_w", "roi_h"]
    assert table.schema.names == [*ids, "label_b", "label_a", *others, "site"]
    assert all(field.type == whole.get(field.name, pa.string()) for field in table.schema)


def test_pieces_of_a_long_file_make_one_table(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = f"{HEADER},roi_x,roi_y,roi_w,roi_h\n" + "".join(f"a.png,P1,x,{i},0,1,1\n" for i in range(100))
    rows = read(source, text)
    bad = text + "a.png,P1,x,3,0,1,1\nb.png,,x,,,,\n"
    with pytest.raises(DataError) as whole:
        read(source, bad)
    for module in (label_file, label_rows):
        monkeypatch.setattr(module, "CHUNK_ROWS", 7)
    assert read(source, text) == rows
    assert [row.number for row in rows] == list(range(2, 102))
    with pytest.raises(DataError) as pieces:
        read(source, bad)
    assert str(pieces.value) == str(whole.value)
    found = str(pieces.value)
    assert "row 103: patient_id is blank; row 5: the same image and region as row 102, with the same label" in found
    assert "row 102: the same image and region as row 5" in found


def test_a_listed_folder_may_be_named(source: Path) -> None:
    labels = source.parent / "labels.csv"
    labels.write_text(f"{HEADER}\nsub/,P1,x\n")
    folders = with_folders(list_paths(source))
    assert sorted(folders.to_pylist()) == ["a.png", "b.png", "sub", "sub/c d.png"]
    table = read_label_table(labels, source=source, rule=DECLARED, listed=folders)
    assert table["path"].to_pylist() == ["sub"]


def test_with_folders_finds_every_folder_above_a_file() -> None:
    files = pa.chunked_array([["a/b/c/1", "a/b/2"], ["a/b/c/3", "4", "d/e f/5\n6"]])
    assert sorted(with_folders(files).to_pylist()) == sorted([*files.to_pylist(), "a", "a/b", "a/b/c", "d", "d/e f"])


def test_a_file_that_was_not_listed_is_none_of_this_run(source: Path) -> None:
    listed = list_paths(source)
    (source / "late.png").touch()
    labels = source.parent / "labels.csv"
    labels.write_text(f"{HEADER}\nlate.png,P1,x\n")
    with pytest.raises(MissingInputError, match="row 2: its file does not exist"):
        read_label_table(labels, source=source, rule=DECLARED, listed=listed)


def test_a_region_beyond_all_pictures_is_a_bad_row(source: Path) -> None:
    with pytest.raises(DataError, match="all below 2\\^31"):
        read(source, f"{HEADER},roi_x,roi_y,roi_w,roi_h\na.png,P1,x,0,0,1,{2**31}\n")
