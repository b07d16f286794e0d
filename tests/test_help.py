"""--help shows what each setting does, its default and its values; a word after it chooses what is shown."""

from __future__ import annotations

import pytest

from medcls.cli.help import format_help, format_value, list_rows
from medcls.config import SCHEMAS, conf_folder, register_schemas
from medcls.errors import UsageError


@pytest.fixture(autouse=True)
def schemas(monkeypatch: pytest.MonkeyPatch) -> None:
    register_schemas()
    monkeypatch.setenv("COLUMNS", "100")


def show(command: str, *words: str) -> str:
    return format_help(command, conf_folder(), words)


def test_help_of_a_group_has_its_options_and_each_setting_with_default_help_and_range() -> None:
    shown = show("train", "optimizer")
    assert shown.startswith("optimizer: How the weights are updated")
    assert "\n  sgd\n" in shown
    assert "\n  optimizer.lr=0.0003 " in shown
    assert "Highest learning rate" in shown
    assert "(> 0, <= 10)" in shown
    assert "sgd | adam | adamw | adadelta" in " ".join(shown.split())
    assert "trainer." not in shown


def test_help_of_a_setting_is_found_by_its_key_and_by_its_last_word() -> None:
    assert show("train", "trainer.epochs") == show("train", "epochs") == show("train", "trainer.epochs.")
    assert show("train", "epochs").startswith("  trainer.epochs=10 ")


def test_help_shows_the_defaults_of_the_chosen_options_and_ignores_other_settings() -> None:
    assert "optimizer.lr=0.01 " in show("train", "optimizer=sgd", "optimizer.lr=7", "nonsense=1", "optimizer")
    assert "  optimizer=sgd " in show("train", "optimizer=sgd")


def test_help_of_an_unknown_word_names_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"--help trainr: .*\(nearest: trainer\)"):
        show("train", "trainr")


@pytest.mark.parametrize("command", sorted(SCHEMAS))
def test_help_all_has_every_setting_once(command: str) -> None:
    lines = [line.split()[0] for line in show(command, "all").splitlines() if line.startswith("  ")]
    for row in list_rows(command, conf_folder()):
        assert sum(line.startswith(f"{row.key}=") for line in lines) == 1, row.key


@pytest.mark.parametrize("columns", [60, 80, 200])
def test_help_keeps_to_the_width_of_the_terminal(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    listed = show("train").partition("Groups")[2].partition("Examples")[0]
    assert max(map(len, listed.splitlines())) <= min(columns, 120)


@pytest.mark.parametrize(
    ("value", "typed"),
    [(None, "null"), (True, "true"), (0.5, "0.5"), (["a", 1], "[a,1]"), ({"a": [1, 2]}, "{a: [1,2]}"), ("", "''")],
)
def test_values_are_shown_as_they_are_typed(value: object, typed: str) -> None:
    assert format_value(value) == typed
