"""Raw and processed radiographs of one exposure: only one kind is taken, unless the user wants both."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from data_prep.ledger import LEFT_OUT
from medcls.command_line import say
from medcls.errors import DataError

_OTHER = {"presentation": "processing", "processing": "presentation"}


def choose_presentation(table: pa.Table, index: pa.Table, choice: str | None) -> tuple[pa.Table, pa.Table]:
    """Return the planned images of the kind chosen, and the files of the others as rows of LEFT_OUT.

    Args:
        table: Planned images, with files; each is of the kind of its first file.
        index: imaging.index.INDEX of the source.
        choice: "presentation" or "processing" leaves the other kind out; "any" takes both; None takes what there is
            and refuses a mixture. Images whose header says nothing stay.

    Raises:
        DataError: both kinds, and no choice.

    Source: PS3.3 C.8.11.1.1.1.
    """
    first = pc.list_element(table["files"], 0).cast(pa.large_string())
    place = pc.index_in(first, value_set=index["path"].cast(pa.large_string()).combine_chunks())
    intent = pc.fill_null(index["intent"].take(place), "")
    counts = {name: pc.sum(pc.equal(intent, name)).as_py() or 0 for name in _OTHER}
    raw, shown = counts["processing"], counts["presentation"]
    if choice is None and raw and shown:
        raise DataError(
            f"image.presentation=null: of {table.num_rows} images {raw} are FOR PROCESSING (raw detector values) and "
            f"{shown} FOR PRESENTATION (PresentationIntentType), perhaps of the same exposures: set "
            "image.presentation=presentation or image.presentation=processing to take one kind, or "
            "image.presentation=any to take both as they are"
        )
    if choice not in _OTHER or not counts[_OTHER[choice]]:
        return table, LEFT_OUT.empty_table()
    unwanted = pc.equal(intent, _OTHER[choice])
    say(f"image.presentation={choice}: {counts[_OTHER[choice]]} images FOR {_OTHER[choice].upper()} are left out")
    files = pc.list_flatten(table.filter(unwanted)["files"]).cast(pa.string())
    kept = table.filter(pc.invert(unwanted))
    # A file may hold several regions, of which all are of one kind.
    files = pc.unique(files)
    reasons = {"reason": f"for_{_OTHER[choice]}", "detail": ""}
    columns = {name: pa.repeat(text, len(files)) for name, text in reasons.items()}
    return kept, pa.table({"path": files, **columns}, schema=LEFT_OUT)
