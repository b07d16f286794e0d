"""One image under two labels or of two patients: named, never decided by the order of paths."""

from __future__ import annotations

import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pytest

from data_prep import same_images
from data_prep.same_images import build_differ, same_images_path
from medcls.data.splits import SPLIT_NAMES, read_patients, read_split
from medcls.data.store import Store
from medcls.errors import DataError, WriteError

Rows = list[dict[str, Any]]
Prepare = Callable[..., Store]


@pytest.fixture
def make_copies(write_source: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """A source with further rows: (path to copy, brightness, changes of the copied row) for each."""

    def make(*copies: tuple[str, float, dict[str, Any]], name: str = "raw") -> Path:
        def add(rows: Rows) -> Rows:
            known = {row["path"]: row for row in rows}
            for number, (path, brightness, changes) in enumerate(copies):
                target = f"copy{number}.png"
                picture = cv2.imread(str(tmp_path / name / path), cv2.IMREAD_UNCHANGED)
                picture = np.clip(picture * brightness, 0, 255).astype(np.uint8)
                cv2.imwrite(str(tmp_path / name / target), picture)
                rows = [*rows, known[path] | {"path": target} | changes]
            return rows

        return write_source(tmp_path / name, rewrite=add)

    return make


def splits_of(store: Store) -> dict[str, str]:
    splits = read_split(store, "default")[0]
    return {name: SPLIT_NAMES[code] for name, code in zip(store.column("image_id"), splits, strict=True)}


LEFT = "images/p00L.png"
OTHER = {"patient_id": "p90", "label": "severe"}


@pytest.mark.parametrize(
    ("brightness", "changes"),
    [(1.0, OTHER), (0.9, OTHER), (1.0, {"label": "severe"})],
    ids=["identical", "nearly identical", "identical in one patient"],
)
def test_one_image_under_two_labels_is_refused_by_line(
    brightness: float, changes: dict[str, Any], make_copies: Callable[..., Path], run_prepare: Prepare, tmp_path: Path
) -> None:
    raw = make_copies((LEFT, brightness, changes))
    with pytest.raises(DataError) as error:
        run_prepare(raw, tmp_path / "store", "split.on_leak=drop")
    message = str(error.value)
    assert f"labels={raw}/labels.csv: 1 picture has more than one label (2 images): line 2 = line 50:" in message
    assert "split.on_contradiction=drop (leaves both images out) or report" in message
    assert "severe" not in message, "labels are in the list only"
    assert ".png" not in message, "a path may be a patient's name"
    listed = tmp_path / "store.same-images.csv"
    assert str(listed) in message
    assert stat.S_IMODE(listed.stat().st_mode) == 0o600
    lines = listed.read_text().splitlines()
    assert lines[1] == f"1,different labels,2,{LEFT},{LEFT},p00,,none"
    assert lines[2].endswith(",severe")
    assert not (tmp_path / "store" / "splits").exists()


@pytest.mark.parametrize("policy", ["drop", "report"])
def test_a_contradiction_is_left_out_whole_or_kept_whole(
    policy: str,
    make_copies: Callable[..., Path],
    run_prepare: Prepare,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """All images of the group, those with the first label, too; a leak's policy decides nothing about it."""
    third = {"patient_id": "p91"}
    raw = make_copies((LEFT, 1.0, OTHER), (LEFT, 1.0, third))
    arguments = [f"split.on_contradiction={policy}", "split.on_leak=drop"]
    store = run_prepare(raw, tmp_path / "store", *arguments)
    splits, certificate = splits_of(store), read_split(store, "default")[1]
    group = [LEFT, "copy0.png", "copy1.png"]
    if policy == "drop":
        assert [splits[name] for name in group] == ["dropped"] * 3
        assert certificate["dropped"] == 0, "no leak was left to decide"
    else:
        assert "dropped" not in {splits[name] for name in group if splits[name] == "test"}
    assert certificate["on_contradiction"] == policy
    assert certificate["contradictions"] == {"pictures": 1, "images": 3, "nearly_identical_in_one_patient": 0}
    said = capsys.readouterr().err
    assert said.index("1 picture has more than one label (3 images): line 2") < said.index("split default:")


def test_nearly_identical_images_of_one_patient_are_said_and_kept(
    make_copies: Callable[..., Path], run_prepare: Prepare, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neighbouring slices and frames look like this, and may differ in label."""
    raw = make_copies((LEFT, 0.9, {"label": "severe"}))
    store = run_prepare(raw, tmp_path / "store")
    assert "dropped" not in splits_of(store).values()
    assert "1 pair of nearly identical images of one patient has different labels" in capsys.readouterr().err
    assert read_split(store, "default")[1]["contradictions"]["nearly_identical_in_one_patient"] == 1


def test_class_folders_count_contradictions_and_list_the_paths(
    source: Path, run_prepare: Prepare, tmp_path: Path, draw_picture: Callable[..., Any]
) -> None:
    raw = tmp_path / "raw"
    for number in range(24):
        folder = raw / ("ill", "well")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / f"{number:02d}.png"), draw_picture(number % 2, number))
    shutil.copy(raw / "ill" / "00.png", raw / "well" / "98.png")
    with pytest.raises(DataError, match=r"1 picture has more than one label \(2 images\): correct") as refused:
        run_prepare(raw, tmp_path / "store", "patients=per_image", labels=None)
    assert ".png" not in str(refused.value), "a path may be a patient's name"
    lines = (tmp_path / "store.same-images.csv").read_text().splitlines()
    assert [line.split(",")[4] for line in lines[1:3]] == ["ill/00.png", "well/98.png"]


def differ(columns: dict[str, list[str | None]], first: int, second: int) -> bool:
    table = pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()})
    return bool(build_differ(table)(np.array([first]), np.array([second]))[0])


def test_labels_contradict_each_other_only_if_both_are_known_and_differ() -> None:
    assert differ({"label": ["a", "b"]}, 0, 1)
    assert not differ({"label": ["a", None]}, 0, 1)
    assert not differ({"label": ["1", "1.0"]}, 0, 1)
    several = {"label_x": ["1", "1", None], "label_y": ["0", "1", "1"]}
    assert differ(several, 0, 1)
    assert differ(several, 0, 2)
    assert not differ(several, 1, 2)


def test_values_contradict_each_other_beyond_a_tenth_of_their_standard_deviation() -> None:
    values = [str(value) for value in [*range(30), 5.5, 7.0]]
    limit = 0.1 * np.std([float(value) for value in values])
    assert 0.5 < limit < 1.0
    assert not differ({"label": values}, 5, 30)
    assert differ({"label": values}, 5, 6)


def test_the_list_of_an_earlier_call_goes_with_its_finding(
    make_copies: Callable[..., Path], run_prepare: Prepare, tmp_path: Path, read_labels_csv: Any, write_labels: Any
) -> None:
    raw = make_copies((LEFT, 1.0, OTHER))
    with pytest.raises(DataError, match="more than one label"):
        run_prepare(raw, tmp_path / "store")
    rows = read_labels_csv(raw / "labels.csv")
    write_labels(raw / "labels.csv", rows[:-1])
    store = run_prepare(raw, tmp_path / "store")
    assert not same_images_path(store.folder).exists()


def test_linked_patients_count_as_one_under_merge_linked(
    make_copies: Callable[..., Path], run_prepare: Prepare, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = make_copies((LEFT, 1.0, {"patient_id": "p90"}), ("images/p03R.png", 1.0, {"patient_id": "p91"}))
    store = run_prepare(raw, tmp_path / "store", "split.merge_linked=true")
    splits, certificate = splits_of(store), read_split(store, "default")[1]
    assert certificate["merged_patients"] == 2
    assert sum(certificate["patients"].values()) == 24
    assert splits["copy0.png"] == splits[LEFT] == splits["images/p00R.png"]
    patients = read_patients(store, certificate)
    named = dict(zip(store.column("image_id"), [patients.text(code) for code in patients.values], strict=True))
    assert (named["copy0.png"], named["copy1.png"], len(patients.texts)) == ("p00", "p03", 24)
    assert store.column("patient_id")[-2:] == ["p90", "p91"], "the manifest stays as it is"
    assert "these patients count as one (split.merge_linked=true)" in capsys.readouterr().err


def test_links_inside_one_split_are_listed_with_the_way_to_merge(
    make_copies: Callable[..., Path], run_prepare: Prepare, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = make_copies((LEFT, 1.0, {"patient_id": "p90"}))
    leaks, inside = [], []
    for seed in range(12):
        try:
            store = run_prepare(raw, tmp_path / "store", f"split.seed={seed}", f"split.name=s{seed}")
            inside.append((capsys.readouterr().err, same_images_path(store.folder).read_text().splitlines()))
            assert read_split(store, f"s{seed}")[1]["merged_patients"] == 0
        except DataError as error:
            leaks.append(str(error))
    assert leaks
    assert inside
    remedy = "set split.merge_linked=true if the images under different ids belong to one patient"
    assert all(remedy in message for message in leaks)
    for said, lines in inside:
        assert "1 pair of images of 2 different patients looks the same inside one split" in said
        assert "set split.merge_linked=true with another split.name=" in said
        assert lines[1].startswith(f'1,"different patients, one split",2,{LEFT},{LEFT},p00,')


def test_which_copy_is_dropped_follows_the_splits_and_not_the_paths(
    write_source: Callable[..., Path], run_prepare: Prepare, tmp_path: Path
) -> None:
    """Under on_leak=drop the copy nearer to training goes, under whichever names and in whichever order."""
    places: list[list[tuple[int, int]]] = []
    for first, second in (("a.png", "z.png"), ("z.png", "a.png")):
        folder = tmp_path / first[0]

        def add(rows: Rows, names: tuple[str, str] = (first, second), folder: Path = folder) -> Rows:
            for name in names:
                shutil.copy(folder / LEFT, folder / name)
            pair = [rows[0] | {"path": names[0], "patient_id": "q0"}, rows[0] | {"path": names[1], "patient_id": "q1"}]
            return [*pair, *(row for row in rows if row["path"] != LEFT)]

        raw, found = write_source(folder, rewrite=add), []
        for seed in range(6):
            arguments = ["split.on_leak=drop", f"split.seed={seed}", f"split.name=s{seed}"]
            store = run_prepare(raw, tmp_path / f"store-{first[0]}", *arguments)
            by_patient = dict(zip(store.column("patient_id"), read_split(store, f"s{seed}")[0].tolist(), strict=True))
            found.append((by_patient["q0"], by_patient["q1"]))
        places.append(found)
    assert places[0] == places[1]
    assert any(SPLIT_NAMES.index("dropped") in pair for pair in places[0])


def test_a_list_that_cannot_be_written_hides_no_finding(
    make_copies: Callable[..., Path], run_prepare: Prepare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that is a mount of its own has nothing writable beside it."""

    def refuse(*arguments: Any, **settings: Any) -> None:
        raise WriteError("cannot write")

    monkeypatch.setattr(same_images, "atomic_file", refuse)
    raw = make_copies((LEFT, 1.0, OTHER))
    with pytest.raises(DataError, match=r"1 picture has more than one label .* cannot be written, so they are not"):
        run_prepare(raw, tmp_path / "store")
    assert not (tmp_path / "store.same-images.csv").exists()
