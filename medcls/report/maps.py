"""Where a model looks, as the report shows it: what was measured of each method, and some of its pictures."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Overlay:
    """An image under its map.

    Attributes:
        row: Its number in predictions.parquet: the only name it gets.
        true: The truth in words.
        predicted: What the model said, in words.
        png: Bytes of a small PNG.
    """

    row: int
    true: str
    predicted: str
    png: bytes

    @property
    def uri(self) -> str:
        """The picture as a data URI."""
        return f"data:image/png;base64,{base64.b64encode(self.png).decode()}"


@dataclass(frozen=True, slots=True)
class Explanation:
    """What one method showed.

    Attributes:
        method: Its name in words.
        trusted: It passed the weight-randomisation check.
        sentences: What was measured, the verdict of that check first.
        count: Number of images that were explained.
        overlays: Of some of them.
    """

    method: str
    trusted: bool
    sentences: Sequence[str]
    count: int
    overlays: Sequence[Overlay]
