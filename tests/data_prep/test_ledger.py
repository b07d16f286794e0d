"""Every file exactly once; the states add up."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.ledger import LEDGER, OK, QUARANTINED, SKIPPED, Entry, build_entries, build_ledger, count_states

REGIONS = [
    Entry("a", OK, images=1, file_sha256="s"),
    Entry("a", QUARANTINED, "roi_outside", "wide", file_sha256="s", refused="a@2"),
    Entry("a", OK, images=1, file_sha256="s"),
]


@pytest.mark.parametrize("order", list(itertools.permutations(REGIONS)))
def test_a_file_with_good_and_refused_regions_ends_in_one_state(order: tuple[Entry, ...]) -> None:
    (row,) = build_ledger(build_entries(order)).to_pylist()
    assert row == {
        "path": "a",
        "state": QUARANTINED,
        "reason": "roi_outside",
        "detail": "wide",
        "images": 2,
        "file_sha256": "s",
        "refused": ["a@2"],
    }


def test_the_states_add_up_to_the_files() -> None:
    entries = [*REGIONS[:2], Entry("b", SKIPPED, "hidden"), Entry("c", SKIPPED, "hidden"), Entry("d", OK, images=1)]
    counts = count_states(build_ledger(build_entries(entries)))
    assert counts == {"ok": 1, "quarantined: roi_outside": 1, "skipped: hidden": 2}


def test_the_table_is_sorted_and_has_no_times() -> None:
    table = build_ledger(build_entries([Entry("b", SKIPPED, "hidden"), REGIONS[1]]))
    assert table.schema == LEDGER
    assert table.column("path").to_pylist() == ["a", "b"]
    assert table.column("refused").to_pylist() == [["a@2"], []]


ENTRY = st.builds(
    Entry,
    st.sampled_from("abcde"),
    st.sampled_from([OK, QUARANTINED]),
    images=st.integers(0, 3),
    refused=st.sampled_from([None, "x", "y"]),
)


@given(st.lists(ENTRY, min_size=1, max_size=30))
def test_nothing_is_lost_and_nothing_is_counted_twice(entries: list[Entry]) -> None:
    ledger = build_ledger(build_entries(entries)).to_pylist()
    assert [row["path"] for row in ledger] == sorted({entry.path for entry in entries})
    for row in ledger:
        own = [entry for entry in entries if entry.path == row["path"]]
        assert row["images"] == sum(entry.images for entry in own)
        assert row["refused"] == [e.refused for e in sorted(own, key=lambda e: e.state == OK) if e.refused]
        assert row["state"] == (QUARANTINED if any(e.state == QUARANTINED for e in own) else OK)
