"""Planted identities: none of them is in any output, log line, error message or file name, at any log level.

Every identifying attribute of PS3.15 table E.1-1 that a scanner or a registration desk fills in has a value of its
own here, and so have places that a list of attributes does not know: the preamble, padding, private elements,
nested sequences, overlays, file meta, elements that are broken, names of files and folders.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from pydicom import Dataset, FileMetaDataset, Sequence
from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian

ROOT = Path(__file__).resolve().parent.parent.parent
KEY = "5a" * 32
_WORDS = """
    PatientID PatientBirthName PatientMotherBirthName OtherPatientIDs PatientAddress
    PatientTelephoneNumbers PatientInsurancePlanCodeSequence MilitaryRank BranchOfService EthnicGroup Occupation
    PatientComments AdditionalPatientHistory MedicalAlerts Allergies CountryOfResidence RegionOfResidence
    PatientReligiousPreference ResponsiblePerson ResponsibleOrganization IssuerOfPatientID InstitutionName
    InstitutionAddress InstitutionalDepartmentName ReferringPhysicianName ReferringPhysicianAddress
    ReferringPhysicianTelephoneNumbers ConsultingPhysicianName PhysiciansOfRecord PerformingPhysicianName
    NameOfPhysiciansReadingStudy OperatorsName RequestingPhysician RequestingService StationName DeviceSerialNumber
    AccessionNumber StudyID StudyDescription SeriesDescription ProtocolName ImageComments StudyComments
    DerivationDescription AcquisitionComments FrameComments RequestedProcedureDescription RequestedProcedureID
    PerformedProcedureStepDescription PerformedProcedureStepID ScheduledProcedureStepID AdmissionID
    CurrentPatientLocation ContentCreatorName PersonName CassetteID PlateID GantryID DetectorID
    ManufacturerModelName SoftwareVersions
"""
_SEQUENCES = {"PatientInsurancePlanCodeSequence"}
_DATES = {
    "PatientBirthDate": "19470311",
    "StudyDate": "20170613",
    "SeriesDate": "20170614",
    "AcquisitionDate": "20170615",
    "ContentDate": "20170616",
    "StudyTime": "121314.151617",
    "AcquisitionDateTime": "20170617081530",
}
_SCRIPTS = {"Latin": "Müßigbrod^Jürgen", "Cyrillic": "Любимов^Иван", "Japanese": "山田^太郎"}


def token(place: str) -> str:
    """A value that occurs nowhere by accident and names its place: "Zq12"."""
    return f"Zqx{abs(hash_of(place)) % 10**8:08d}"


def hash_of(text: str) -> int:
    return int.from_bytes(text.encode(), "big") % 99999989


def build_file(number: int) -> tuple[Dataset, set[str]]:
    """A radiograph with a probe in every identifying attribute, and the probes."""
    probes: set[str] = set()

    def plant(place: str, limit: int = 16) -> str:
        probes.add(token(f"{place}{number}")[:limit])
        return token(f"{place}{number}")[:limit]

    dataset = Dataset()
    dataset.SpecificCharacterSet = "ISO_IR 192"
    for word in _WORDS.split():
        if word in _SEQUENCES:
            item = Dataset()
            item.CodeValue, item.CodeMeaning = plant(word + "value"), plant(word + "meaning")
            setattr(dataset, word, Sequence([item]))
        else:
            setattr(dataset, word, plant(word))
    for keyword, value in _DATES.items():
        setattr(dataset, keyword, value)
        probes.add(value[:8])
    script, name = list(_SCRIPTS.items())[number % 3]
    dataset.OtherPatientNames = [f"{name}={script}"]
    dataset.PatientName = name
    probes |= set(name.split("^"))
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "SOPInstanceUID"):
        value = f"1.2.826.0.1.7{hash_of(keyword) % 10**6}.{number}"
        probes.add(value)
        setattr(dataset, keyword, value)
    inner = Dataset()
    inner.PatientName, inner.TextValue = plant("deep name"), plant("deep text")
    for depth in range(6):
        outer = Dataset()
        outer.ContentSequence, outer.TextValue = Sequence([inner]), plant(f"depth {depth}")
        inner = outer
    dataset.ContentSequence = Sequence([inner])
    block = dataset.private_block(0x0029, plant("private creator"), create=True)
    block.add_new(0x01, "LO", plant("private text"))
    block.add_new(0x02, "UN", plant("private bytes").encode())
    block.add_new(0x03, "SQ", Sequence([Dataset()]))
    block[0x03].value[0].PatientName = plant("name in a private sequence")
    dataset.add_new(0x60000010, "US", 4)
    dataset.add_new(0x60000022, "LO", plant("overlay description"))
    dataset.add_new(0x60003000, "OB", plant("overlay bits").encode())
    dataset.add_new(0x60004000, "LT", plant("overlay comments"))
    dataset.DataSetTrailingPadding = plant("padding").encode()
    dataset.PatientAge, dataset.PatientSex, dataset.Modality = "093Y", "F", "DX"
    # Names where a term or a vendor should be; in capitals one of them is a valid code string.
    dataset.Manufacturer, dataset.BodyPartExamined = "Praxis Dr. Hans Mueller", "MUELLER HANS"
    if number == 7:
        dataset.Modality = "MUELLER HANS"
    probes |= {"Hans Mueller", "MUELLER HANS"}
    dataset.SOPClassUID = DigitalXRayImageStorageForPresentation
    dataset.Rows = dataset.Columns = 32
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PixelRepresentation = 1, "MONOCHROME2", 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8, 8, 7
    dataset.PixelData = np.random.default_rng(number).integers(0, 255, (32, 32), np.uint8).tobytes()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.file_meta.SourceApplicationEntityTitle = plant("source title")
    dataset.file_meta.SendingApplicationEntityTitle = plant("sending title")
    dataset.preamble = plant("preamble").encode().ljust(128, b"\0")
    return dataset, probes


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, set[str]]:
    """A source of 12 radiographs, three of them broken in ways whose errors would quote the header."""
    folder = tmp_path_factory.mktemp("planted") / "raw"
    probes: set[str] = set()
    lines = ["path,patient_id,label,site"]
    for number in range(12):
        dataset, own = build_file(number)
        name = f"{token(f'folder{number}')}/{token(f'file{number}')}.dcm"
        probes |= own | set(name.removesuffix(".dcm").split("/"))
        path = folder / name
        path.parent.mkdir(parents=True)
        dataset.save_as(path, enforce_file_format=True)
        content = path.read_bytes()
        if number == 3:
            path.write_bytes(content[:-600])  # ends inside the pixels
        if number == 4:
            path.write_bytes(content.replace(b"MONOCHROME2 ", b"Zqx00000000 "))  # a name where a code should be
            probes.add("Zqx00000000")
        if number == 5:
            place = content.index(b"(\x00\x10\x00US")
            path.write_bytes(content[:place] + content[place:].replace(b"US\x02\x00", b"LO\x02\x00", 1))
        patient = f"Zqdeclared{number:02d}"
        probes.add(patient)
        lines.append(f"{name},{patient},{'ab'[number % 2]},north")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder, probes


def run(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    environment = os.environ | {"MEDCLS_DEIDENTIFY_KEY": KEY}
    return subprocess.run([sys.executable, "-m", *arguments], cwd=ROOT, env=environment, capture_output=True)


def read_everything(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Name and content of every file, parquet as the text of its values and its metadata."""
    for path in sorted(folder.rglob("*")):
        yield "a file name", str(path.relative_to(folder)).encode()
        if path.is_file():
            yield path.name, path.read_bytes()
        if path.suffix == ".parquet":
            table = pq.read_table(path)
            yield path.name, repr(table.to_pylist()).encode() + repr(table.schema.metadata).encode()


def find_leaks(content: bytes, probes: set[str]) -> list[str]:
    spelled: list[tuple[str, bytes]] = []
    for probe in probes:
        spelled += [(probe, probe.encode("utf-8")), (probe, probe.encode("utf-16-le"))]
        spelled += [(probe, repr(probe.encode())[2:-1].encode())]
    return [probe for probe, encoded in spelled if encoded in content]


def test_there_are_enough_probes_and_the_search_finds_them(planted: tuple[Path, set[str]]) -> None:
    source, probes = planted
    assert len(build_file(0)[1]) >= 60
    raw = b"".join(content + b"\n" for _, content in read_everything(source))
    missed = [probe for probe in probes if probe.encode() not in raw and not probe.startswith("Zqx0000")]
    assert missed == [token("padding3")]  # the file is cut off before it


@pytest.fixture(scope="module")
def outputs(planted: tuple[Path, set[str]], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What every command on raw files printed, and the folder that they wrote."""
    source, _ = planted
    out = tmp_path_factory.mktemp("out")
    common = (f"source={source}", f"labels={source}/labels.csv", "image.size=32", "workers=1", "hydra.verbose=true")
    small = ("split.test=0.3", "split.val=0", "split.on_missing=report", "split.on_leak=report")
    store = f"store={out}/store"
    said = {
        "data_prep": run("data_prep", *common, *small, store, "max_quarantined=0.5", "columns=[site]"),
        "again": run("data_prep", *common, *small, store, "max_quarantined=0.5", "columns=[site]"),
        "too many bad": run("data_prep", *common, *small, f"store={out}/bad", "max_quarantined=0"),
        "index": run("data_prep.index", f"source={source}", "workers=1", "hydra.verbose=true"),
        "show": run("data_prep.show", store, f"out={out}/sheet.png", "label=label"),
    }
    return {"said": said, "folder": out, "source": source}


def test_the_commands_end_as_they_should(outputs: dict[str, Any]) -> None:
    codes = {name: done.returncode for name, done in outputs["said"].items()}
    assert codes == {"data_prep": 0, "again": 0, "too many bad": 65, "index": 0, "show": 0}, outputs["said"]
    states = pq.read_table(outputs["folder"] / "store" / "ledger.parquet").column("state").to_pylist()
    assert sorted(states) == ["ok"] * 9 + ["quarantined"] * 3 + ["skipped"]


def test_nothing_planted_is_in_what_was_said(outputs: dict[str, Any], planted: tuple[Path, set[str]]) -> None:
    for name, done in outputs["said"].items():
        for stream in (done.stdout, done.stderr):
            spoken = stream.replace(str(outputs["source"]).encode(), b"").replace(str(outputs["folder"]).encode(), b"")
            assert find_leaks(spoken, planted[1]) == [], (name, stream.decode())


def test_nothing_planted_is_in_what_was_written(outputs: dict[str, Any], planted: tuple[Path, set[str]]) -> None:
    written = 0
    for name, content in read_everything(outputs["folder"]):
        if not name.endswith("identity-map.csv"):
            assert find_leaks(content, planted[1]) == [], name
            written += 1
    assert written > 10


def test_the_way_back_is_for_its_owner_alone(outputs: dict[str, Any], planted: tuple[Path, set[str]]) -> None:
    path = outputs["folder"] / "store.identity-map.csv"
    assert path.stat().st_mode & 0o777 == 0o600
    assert len([probe for probe in planted[1] if probe in path.read_text()]) == 12 * 3


def test_ages_over_89_are_one(outputs: dict[str, Any]) -> None:
    ages = pq.read_table(outputs["folder"] / "store" / "manifest.parquet").column("age_years").to_pylist()
    assert set(ages) == {90.0}
