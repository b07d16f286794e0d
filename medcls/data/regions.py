"""Count which images of a store are whole files and which are regions (one knee of a film with two)."""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

from medcls.data.store import Store

ALL, SOME, NONE, UNKNOWN = "all", "some", "none", ""
# How a store without pseudonyms names a region: path@x,y,width,height.
_NAMED = re.compile(r"@\d+,\d+,(\d+),(\d+)$")


def summarize_regions(store: Store, rows: NDArray[np.int64]) -> tuple[str, list[float]]:
    """Return whether rows are regions, and the median share of the file's height and width that they take.

    Args:
        store: With 2-D images; volumes have no regions.
        rows: Manifest rows, at least one.

    Returns:
        "all", "some", "none", or "" if the store does not say (an older version wrote it, with pseudonyms); and
        [height, width] in (0, 1], [] without regions.
    """
    if store.spec.spatial_dims == 3:
        return NONE, []
    sizes = np.array([store.column(name, rows) for name in ("source_height", "source_width")], dtype=np.float64)
    if {"roi_height", "roi_width"} <= set(store.column_names):
        found = np.array([store.column(name, rows) for name in ("roi_height", "roi_width")], dtype=np.float64)
    elif store.info["deidentify"]["kind"] == "declared":
        matches = [_NAMED.search(image_id) for image_id in store.column("image_id", rows)]
        found = np.array([[float(m[i]) if m else np.nan for m in matches] for i in (2, 1)])
    else:
        return UNKNOWN, []
    known = ~np.isnan(found[0])
    if not known.any():
        return NONE, []
    shares = np.median(found[:, known] / sizes[:, known], axis=1)
    return ALL if known.all() else SOME, [round(float(share), 3) for share in shares]


def describe_share(share: list[float]) -> str:
    """Return " (typically 48 % of an image's height and 50 % of its width)", or "" if it is not known."""
    return f" (typically {share[0]:.0%} of an image's height and {share[1]:.0%} of its width)" if share else ""
