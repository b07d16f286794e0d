"""Everything that is printed: status, notices and progress to the log "medcls", results to standard output.

A command shows its log on standard error (`show_log`). A notebook shows of it what its own `logging` says: Python's
default is notices alone; `logging.basicConfig(level="INFO")` adds status lines and progress bars, and
`logging.getLogger("medcls").setLevel("ERROR")` silences all.
"""

from __future__ import annotations

import logging
import sys
import unicodedata
from collections.abc import Iterable
from typing import Any

from medcls.distributed import is_first

LOG = logging.getLogger("medcls")


class _StandardError(logging.Handler):
    """Prints each line to what is standard error at that moment, flushed."""

    def emit(self, record: logging.LogRecord) -> None:
        print(record.getMessage(), file=sys.stderr, flush=True)


def show_log() -> None:
    """Show status lines, notices and progress on standard error, as commands do."""
    LOG.setLevel(logging.INFO)
    LOG.propagate = False
    if not LOG.handlers:
        LOG.addHandler(_StandardError())


def say(message: str) -> None:
    """Log a status line, or a warning if it begins with "notice:"; of several processes only the first says it."""
    if is_first():
        LOG.log(logging.WARNING if message.startswith("notice:") else logging.INFO, "%s", make_printable(message))


def show_progress(steps: Iterable[Any] | None = None, **options: Any) -> Any:
    """Return a tqdm bar on standard error, shown where status lines are, by the first of several processes.

    Without `steps` the bar is updated by hand; `options` are those of tqdm.
    """
    from tqdm import tqdm

    if not (is_first() and LOG.isEnabledFor(logging.INFO)):
        options["disable"] = True
    return tqdm(steps, **options)


def put(result: str) -> None:
    """Print a result to standard output."""
    print(make_printable(result))


def make_printable(text: str) -> str:
    """Return the text with control characters spelt out: names of files and classes are other people's.

    A terminal obeys escape sequences in them, and marks of direction make one name look like another. Lines and tabs
    stay.
    """
    return "".join(c if c in "\n\t" or _is_harmless(c) else c.encode("unicode_escape").decode() for c in text)


def _is_harmless(character: str) -> bool:
    """Neither a control character, a format character, a line separator nor a lone surrogate."""
    return unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Zl", "Zp")
