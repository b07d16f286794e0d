"""The page of explanations: one self-contained HTML file."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from medcls.files import write_bytes
from medcls.report.content import INTENDED_USE
from medcls.report.templates import load_template


@dataclass(frozen=True, slots=True)
class Card:
    """One headline number.

    Attributes:
        name: What it is.
        value: As shown.
        text: How to read it.
    """

    name: str
    value: str
    text: str


@dataclass(frozen=True, slots=True)
class MapPicture:
    """One explained image.

    Attributes:
        name: What the page calls it: its row in predictions.parquet, or its id if that is asked for.
        path: Of its PNG.
        lines: Name and value, in words.
    """

    name: str
    path: Path
    lines: Sequence[tuple[str, str]]

    @property
    def uri(self) -> str:
        """The PNG as a data URI."""
        return f"data:image/png;base64,{base64.b64encode(self.path.read_bytes()).decode()}"


@dataclass(frozen=True, slots=True)
class Page:
    """What explanation.html is made of.

    Attributes:
        method: Its name in words.
        source: Of the method.
        store: Name of the store.
        split: Of the images.
        warnings: What a reader must know before the pictures, such as a failed check.
        sentences: What was found, in plain words.
        cards: Headline numbers.
        levels: Rows of the randomisation check: scrambled stages, rank correlation, structural similarity.
        figures: Title, data URI and caption of each.
        pictures: The images.
        settings: Name and value.
    """

    method: str
    source: str
    store: str
    split: str
    warnings: Sequence[str]
    sentences: Sequence[str]
    cards: Sequence[Card]
    levels: Sequence[tuple[str, str, str]]
    figures: Sequence[tuple[str, str, str]]
    pictures: Sequence[MapPicture]
    settings: Sequence[tuple[str, str]]


def write_page(path: Path, page: Page) -> Path:
    """Write the page and return its path: no script, nothing from the network, light and dark, printable.

    Args:
        path: Of explanation.html.
        page: What to show.

    Raises:
        OSError: a picture cannot be read.
    """
    template = load_template("explain", "explanation.html.j2")
    write_bytes(path, template.render(page=page, intended_use=INTENDED_USE).encode())
    return path
