"""Every field of every command's schema says what its setting is for and what it may be, and is checked by that."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass, make_dataclass
from typing import Any, get_args, get_origin, get_type_hints

import pytest

from medcls.cli.help import format_reference
from medcls.cli.overrides import prepare_overrides
from medcls.config import SCHEMAS, check_record, check_value, conf_folder, register_schemas
from medcls.config.schema import FILE_NAME, PATH, Setting, check_settings, read_settings
from medcls.errors import ConfigError


def walk(schema: type, group: str = "") -> Iterator[tuple[str, Any, type, str, Setting | None]]:
    """Key, annotation, dataclass, field and declaration of every setting of a command."""
    hints, declared = get_type_hints(schema), read_settings(schema)
    for field in fields(schema):
        key = f"{group}.{field.name}" if group else field.name
        if is_dataclass(hints[field.name]):
            assert isinstance(hints[field.name], type)
            yield from walk(hints[field.name], key)
        else:
            yield key, hints[field.name], schema, field.name, declared.get(field.name)


EVERY = {(key, schema): (hint, name, known) for top in SCHEMAS.values() for key, hint, schema, name, known in walk(top)}
KEYS = [pytest.param(key, schema, id=f"{schema.__name__}-{key}") for key, schema in EVERY]


def scalars(hint: Any) -> set[Any]:
    """The types of single values that an annotation allows: {float} of list[float] | None."""
    inner = [each for each in get_args(hint) if each is not type(None)]
    if get_origin(hint) is dict:
        return set()
    return set().union(*map(scalars, inner)) if inner else {hint}


@pytest.mark.parametrize(("key", "schema"), KEYS)
def test_every_setting_has_a_sentence_of_help_and_its_values(key: str, schema: type) -> None:
    hint, _, known = EVERY[key, schema]
    assert known is not None, "declare the field by setting()"
    assert re.fullmatch(r"[A-Z\[].{9,}[^.]\.", known.help), "help is one sentence with a capital letter and a full stop"
    assert len(known.help) <= 220
    assert "  " not in known.help
    if scalars(hint) & {int, float}:
        assert known.choices or known.low is not None, "a number has choices or a range"
    if str in scalars(hint):
        assert known.choices or known.kind, "a text has choices or a kind"


def wrong_value(known: Setting) -> Any:
    """A value that the declaration refuses; None if it allows all."""
    if known.choices:
        return "no such choice"
    if known.low is not None:
        return known.low - 1 if math.isfinite(known.low) else math.nan
    return "a/b" if known.kind == FILE_NAME else None


@pytest.mark.parametrize(("key", "schema"), KEYS)
def test_every_value_outside_its_declaration_is_refused_by_its_dataclass(key: str, schema: type) -> None:
    """Its own, so that no dataclass forgets to check itself or names another group."""
    hint, name, known = EVERY[key, schema]
    assert known is not None
    wrong = wrong_value(known)
    if wrong is None:
        return
    given = [wrong] if get_origin(hint) is list or list in map(get_origin, get_args(hint)) else wrong
    with pytest.raises(ConfigError, match=re.escape(f"{key}={given}") + "|" + re.escape(f"{key}={wrong}")):
        schema(**{name: given})


def test_wrong_values_are_refused_with_what_is_expected() -> None:
    known = Setting("Help.", low=0, high=1, open_low=True)
    with pytest.raises(ConfigError, match=r"^a\.b=2: expected > 0 and <= 1$"):
        known.check("a.b", [0.5, 2])
    with pytest.raises(ConfigError, match=r"^a=x: expected one of 1, ''$"):
        Setting("Help.", choices=(1, "")).check("a", "x")
    with pytest.raises(ConfigError, match=r"^a=inf: expected a finite number$"):
        Setting("Help.", low=-math.inf).check("a", math.inf)
    Setting("Help.", low=0).check("a", None)


@pytest.mark.parametrize(
    ("known", "shown"),
    [
        (Setting("", choices=("a", "", 3)), "a | '' | 3"),
        (Setting("", low=0, high=0.5, open_low=True, unit="mm"), "> 0, <= 0.5, mm"),
        (Setting("", low=1, high=1e6), "1 to 1000000"),
        (Setting("", low=-math.inf), ""),
        (Setting("", kind=PATH), "path"),
    ],
)
def test_values_are_shown_for_a_reader(known: Setting, shown: str) -> None:
    assert known.values == shown


def test_defaults_that_change_are_not_shared_between_jobs() -> None:
    one, other = SCHEMAS["compare"](), SCHEMAS["compare"]()
    one.sizes.append(7)
    assert other.sizes == [0]


def test_records_of_files_are_checked_by_the_settings_of_the_same_names() -> None:
    with pytest.raises(ConfigError, match=r"model\.dropout=2: expected >= 0 and <= 0\.95"):
        check_value("model.dropout", 2)
    with pytest.raises(ConfigError, match=r"stack\.gap=guess: expected one of refuse, resample"):
        check_record("stack", make_dataclass("Rule", [("gap", str)])("guess"))
    check_settings(make_dataclass("Rule", [("other", int)])(1), schema=SCHEMAS["show"])


def test_home_is_the_home_folder_in_paths_and_nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/us")
    typed = ["store=~/a", "task.label=~/a", "model.weights=~/run"]
    prepared = prepare_overrides(typed, schema=SCHEMAS["train"], conf=conf_folder())
    assert prepared == ["store='/home/us/a'", "task.label='~/a'", "model.weights='/home/us/run'"]


def test_settings_that_look_like_numbers_and_have_text_choices_are_text(compose_job: Callable[..., Any]) -> None:
    job = compose_job("prepare", "labelling.uncertain=0.5", "labelling.blank=0")
    assert (job.labelling.uncertain, job.labelling.blank) == ("0.5", "0")


def test_the_reference_in_docs_is_current() -> None:
    register_schemas()
    written = (conf_folder().parent / "docs" / "settings.md").read_text(encoding="utf-8")
    assert written == format_reference(conf_folder()), "write it again: make settings"
