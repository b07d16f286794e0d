"""Every file exactly once; the states add up."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import pytest

from data_prep.ledger import OK, QUARANTINED, SKIPPED, Entry, build_ledger, count_states
from medcls.errors import DataError
from medcls.imaging.source import list_files


def test_files_are_listed_once_in_order_and_links_are_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret.png").touch()
    source = tmp_path / "source"
    (source / "b" / ".cache").mkdir(parents=True)
    for name in ("b/2.png", "b/10.png", "a.png", ".hidden", "b/.cache/x.png"):
        (source / name).touch()
    (source / "link.png").symlink_to(source / "a.png")
    (source / "folder").symlink_to(outside)
    (source / "broken").symlink_to(source / "nothing")
    assert list(list_files(source)) == [
        (".hidden", "hidden"),
        ("a.png", ""),
        ("b/.cache/x.png", "hidden"),
        ("b/10.png", ""),
        ("b/2.png", ""),
        ("broken", "symbolic_link"),
        ("folder", "symbolic_link"),
        ("link.png", "symbolic_link"),
    ]


def test_a_name_that_is_not_utf8_stops_before_hours_of_decoding(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/M\xfcller.png")).touch()
    with pytest.raises(DataError, match="names that are not UTF-8") as error:
        list(list_files(tmp_path))
    assert "ller" not in str(error.value).replace(str(tmp_path), "")


def test_names_outside_ascii_are_fine(tmp_path: Path) -> None:
    (tmp_path / "Müller 漢.png").touch()
    assert list(list_files(tmp_path)) == [("Müller 漢.png", "")]


REGIONS = [
    Entry("a", OK, images=1, file_sha256="s"),
    Entry("a", QUARANTINED, "roi_outside", "wide", file_sha256="s", refused=("a@2",)),
    Entry("a", OK, images=1, file_sha256="s"),
]


@pytest.mark.parametrize("order", list(itertools.permutations(REGIONS)))
def test_a_file_with_good_and_refused_regions_ends_in_one_state(order: tuple[Entry, ...]) -> None:
    first, second, third = order
    expected = Entry("a", QUARANTINED, "roi_outside", "wide", images=2, file_sha256="s", refused=("a@2",))
    assert first.add(second).add(third) == expected


def test_the_states_add_up_to_the_entries() -> None:
    entries = [*REGIONS[:2], Entry("b", SKIPPED, "hidden"), Entry("c", SKIPPED, "hidden")]
    counts = count_states(entries)
    assert counts == {"ok": 1, "quarantined: roi_outside": 1, "skipped: hidden": 2}
    assert sum(counts.values()) == len(entries)


def test_the_table_is_sorted_and_has_no_times() -> None:
    table = build_ledger([Entry("b", SKIPPED, "hidden"), REGIONS[1]])
    assert table.column_names == ["path", "state", "reason", "detail", "images", "file_sha256", "refused"]
    assert table.column("path").to_pylist() == ["a", "b"]
    assert table.column("refused").to_pylist() == [["a@2"], []]
