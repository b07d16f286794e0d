"""Choose between raw and processed radiographs of one exposure: one kind only, unless the user wants both."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from data_prep.ledger import LEFT_OUT
from data_prep.left_out import list_classes
from medcls.console import say
from medcls.errors import DataError
from medcls.identity import format_count

_OTHER = {"presentation": "processing", "processing": "presentation"}


def describe_mixture(intent: pa.ChunkedArray[Any]) -> str:
    """Return why images are not taken without a choice: some are raw and some processed; "" if they are not.

    Args:
        intent: "processing", "presentation" or "" of each image.
    """
    counts = _count(intent)
    raw, shown = counts["processing"], counts["presentation"]
    if not raw or not shown:
        return ""
    return (
        f"image.presentation=null: of {len(intent)} images {raw} {'is' if raw == 1 else 'are'} FOR PROCESSING (raw "
        f"detector values) and {shown} FOR PRESENTATION (PresentationIntentType), perhaps of the same exposures: set "
        "image.presentation=presentation or image.presentation=processing to take one kind, or "
        "image.presentation=any to take both as they are"
    )


def _count(intent: pa.ChunkedArray[Any]) -> dict[str, int]:
    return {name: pc.sum(pc.equal(intent, name)).as_py() or 0 for name in _OTHER}


def choose_presentation(table: pa.Table, index: pa.Table, choice: str | None) -> tuple[pa.Table, pa.Table]:
    """Return the planned images of the kind chosen, and the files of the others as rows of LEFT_OUT.

    Args:
        table: Planned images, with files; each is of the kind of its first file.
        index: catalog.INDEX of the source.
        choice: "presentation" or "processing" leaves the other kind out; "any" takes both; None takes what there is
            and refuses a mixture. Images whose header says nothing stay.

    Raises:
        DataError: both kinds, and no choice.

    Source: PS3.3 C.8.11.1.1.1.
    """
    first = pc.list_element(table["files"], 0).cast(pa.large_string())
    place = pc.index_in(first, value_set=index["path"].cast(pa.large_string()).combine_chunks())
    intent = pc.fill_null(index["intent"].take(place), "")
    counts = _count(intent)
    if choice is None and describe_mixture(intent):
        raise DataError(describe_mixture(intent))
    if choice not in _OTHER or not counts[_OTHER[choice]]:
        return table, LEFT_OUT.empty_table()
    unwanted = pc.equal(intent, _OTHER[choice])
    classes = table.filter(unwanted)["label"].to_pylist() if "label" in table.column_names else []
    number = counts[_OTHER[choice]]
    what = f"{format_count(number, 'image')} FOR {_OTHER[choice].upper()}{list_classes(classes)}"
    say(f"image.presentation={choice}: {what} {'is' if number == 1 else 'are'} left out")
    files = pc.list_flatten(table.filter(unwanted)["files"]).cast(pa.string())
    kept = table.filter(pc.invert(unwanted))
    # A file may hold several regions, of which all are of one kind.
    files = pc.unique(files)
    reasons = {"reason": f"for_{_OTHER[choice]}", "detail": ""}
    columns = {name: pa.repeat(text, len(files)) for name, text in reasons.items()}
    return kept, pa.table({"path": files, **columns}, schema=LEFT_OUT)
