"""The contact sheet as a command."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import pytest

from data_prep.show import main
from medcls.data.store import Store
from medcls.errors import DataError, UsageError


def test_a_sheet_with_two_rows_a_class(small_store: Store, compose_job: Callable[..., Any], tmp_path: Path) -> None:
    out = tmp_path / "new" / "sheet.png"
    main(compose_job("show", f"store={small_store.folder}", f"out={out}", "per_class=4"))
    sheet = cv2.imread(str(out))
    assert sheet.shape == (3 * (18 + 2 * 116), 4 * 116, 3)
    assert sheet.min() < 30


def test_by_default_it_is_written_here_under_the_stores_name(
    small_store: Store, compose_job: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    main(compose_job("show", f"store={small_store.folder}"))
    assert [path.name for path in tmp_path.iterdir()] == ["store-contact-sheet.png"]


def test_another_label_column_makes_the_classes(
    write_source: Callable[..., Path],
    run_prepare: Callable[..., Store],
    compose_job: Callable[..., Any],
    tmp_path: Path,
) -> None:
    def rewrite(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{"label_grade" if k == "label" else k: v for k, v in row.items()} for row in rows]

    store = run_prepare(write_source(tmp_path / "raw", rewrite=rewrite), tmp_path / "store")
    out = tmp_path / "sheet.png"
    main(compose_job("show", f"store={store.folder}", f"out={out}", "label=grade"))
    assert cv2.imread(str(out)).shape[0] == 3 * (18 + 2 * 116)
    with pytest.raises(DataError, match=r"task\.label=grad: .*nearest: label_grade"):
        main(compose_job("show", f"store={store.folder}", "label=grad"))


def test_a_store_is_needed(compose_job: Callable[..., Any]) -> None:
    with pytest.raises(UsageError, match="store=DIR is missing"):
        main(compose_job("show"))
