"""Choose between raw and processed radiographs of one exposure: one kind only, unless the user wants both."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from data_prep.ledger import LEFT_OUT
from data_prep.left_out import list_classes
from data_prep.plan import Plan
from medcls.console import say
from medcls.errors import DataError
from medcls.identity import format_count

_OTHER = {"presentation": "processing", "processing": "presentation"}


def describe_mixture(intent: pa.ChunkedArray[Any]) -> str:
    """Return why images are not taken without a choice: some are raw and some processed; "" if they are not.

    Args:
        intent: "processing", "presentation" or "" of each image.
    """
    raw, shown = _count(intent, "processing"), _count(intent, "presentation")
    if not raw or not shown:
        return ""
    return (
        f"image.presentation=null: of {len(intent)} images {raw} {'is' if raw == 1 else 'are'} FOR PROCESSING (raw "
        f"detector values) and {shown} FOR PRESENTATION (PresentationIntentType), perhaps of the same exposures: set "
        "image.presentation=presentation or image.presentation=processing to take one kind, or "
        "image.presentation=any to take both as they are"
    )


def _count(intent: pa.ChunkedArray[Any], name: str) -> int:
    return pc.sum(pc.equal(intent, name)).as_py() or 0


def choose_presentation(plan: Plan, index: pa.Table | None, choice: str | None) -> Plan:
    """Return the plan with the images of the kind chosen; the files of the others are skipped.

    Args:
        plan: What is planned; each image is of the kind of its first file.
        index: catalog.INDEX of the source; None if no headers were read, which alone tell the kind.
        choice: "presentation" or "processing" leaves the other kind out; "any" takes both; None takes what there is
            and refuses a mixture. Images whose header says nothing stay.

    Raises:
        DataError: both kinds, and no choice.

    Source: PS3.3 C.8.11.1.1.1.
    """
    if index is None:
        return plan
    first = pc.list_element(plan.table["files"], 0).cast(pa.large_string())
    place = pc.index_in(first, value_set=index["path"].cast(pa.large_string()).combine_chunks())
    intent = pc.fill_null(index["intent"].take(place), "")
    if choice is None and describe_mixture(intent):
        raise DataError(describe_mixture(intent))
    other = _OTHER.get(choice or "", "")
    number = _count(intent, other)
    if not other or not number:
        return plan
    unwanted = pc.equal(intent, other)
    what = f" FOR {other.upper()}{list_classes(plan.classes.filter(unwanted).to_pylist())}"
    say(f"image.presentation={choice}: {format_count(number, f'image{what} is', f'images{what} are')} left out")
    # A file may hold several regions, of which all are of one kind.
    files = pc.unique(pc.list_flatten(plan.table.filter(unwanted)["files"]).cast(pa.string()))
    reasons = {"reason": pa.repeat(f"for_{other}", len(files)), "detail": pa.repeat("", len(files))}
    skipped = pa.table({"path": files, **reasons}, schema=LEFT_OUT)
    table = plan.table.filter(pc.invert(unwanted))
    return replace(plan, table=table, skipped=pa.concat_tables([plan.skipped, skipped]))
