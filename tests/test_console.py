"""What commands and the library say, and how a notebook silences it."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator

import pytest

from medcls.console import LOG, say, show_log, show_progress

_SAYS = """
import logging
from medcls.console import say, show_progress
{setting}
say("model written")
say("notice: the key cannot be checked")
list(show_progress(range(3), desc="predict"))
"""


@pytest.fixture(autouse=True)
def level() -> Iterator[None]:
    yield
    LOG.setLevel(logging.INFO)


def read_log_of_notebook(setting: str) -> str:
    """Standard error of a process that is no command and sets up its logging by itself."""
    code = _SAYS.format(setting=setting)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stderr


def test_notebook_shows_notices_only_by_default() -> None:
    assert read_log_of_notebook("") == "notice: the key cannot be checked\n"


def test_notebook_that_asks_for_info_sees_status_lines_and_bars() -> None:
    shown = read_log_of_notebook('logging.basicConfig(level="INFO", format="%(levelname)s %(name)s: %(message)s")')
    assert "INFO medcls: model written\nWARNING medcls: notice: the key cannot be checked\n" in shown
    assert "predict: 100%" in shown


def test_notebook_that_asks_for_errors_sees_nothing() -> None:
    assert read_log_of_notebook('logging.getLogger("medcls").setLevel("ERROR")') == ""


def test_command_prints_every_line_once_to_standard_error_of_the_moment(capsys: pytest.CaptureFixture[str]) -> None:
    show_log()
    show_log()
    say("model written")
    say("notice: \x1b[2J is spelt out")
    assert capsys.readouterr() == ("", "model written\nnotice: \\x1b[2J is spelt out\n")


def test_bar_is_off_if_status_lines_are(capsys: pytest.CaptureFixture[str]) -> None:
    LOG.setLevel(logging.WARNING)
    assert list(show_progress(range(3))) == [0, 1, 2]
    assert capsys.readouterr().err == ""
    LOG.setLevel(logging.INFO)
    assert list(show_progress(range(3))) == [0, 1, 2]
    assert "3/3" in capsys.readouterr().err


def test_only_the_first_of_several_processes_speaks(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medcls.console.is_first", lambda: False)
    say("model written")
    list(show_progress(range(3)))
    assert capsys.readouterr().err == ""
