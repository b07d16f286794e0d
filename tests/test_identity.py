"""Pseudonyms are keyed, stable, apart by domain; keys are private and never overwritten."""

from __future__ import annotations

import hashlib
import hmac
import stat
from pathlib import Path

import pytest

from medcls.errors import ConfigError, MissingInputError, WriteError
from medcls.identity import KEY_VARIABLE, Identity, read_identity, write_key

KEY = bytes(range(32))


def test_a_pseudonym_is_the_hmac_of_domain_and_value() -> None:
    expected = hmac.new(KEY, b"patient\x1fP1", hashlib.sha256).hexdigest()[:32]
    assert Identity("hmac", KEY).name("patient", "P1") == expected


def test_pseudonyms_differ_by_value_domain_and_key() -> None:
    first, second = Identity("hmac", KEY), Identity("hmac", KEY[::-1])
    found = {i.name(d, v) for i in (first, second) for d in ("patient", "study") for v in ("P1", "P2", "p1")}
    assert len(found) == 12
    assert first.name("patient", "P1") == Identity("hmac", KEY).name("patient", "P1")


def test_unknown_stays_unknown() -> None:
    assert Identity("hmac", KEY).name("study", "") == ""
    assert Identity().name("study", "") == ""


def test_declared_ids_stay() -> None:
    assert Identity().name("patient", "P1") == "P1"
    assert Identity().fingerprint is None


def test_the_fingerprint_names_the_key_and_holds_nothing_of_it() -> None:
    first, second = Identity("hmac", KEY), Identity("hmac", KEY[::-1])
    assert first.fingerprint != second.fingerprint
    assert first.fingerprint is not None
    assert len(first.fingerprint) == 16
    assert first.fingerprint not in KEY.hex()


@pytest.mark.parametrize(("age", "kept"), [(89.0, 89.0), (90.0, 90.0), (97.5, 90.0), (None, None), (0.0, 0.0)])
def test_ages_over_89_are_merged_under_pseudonyms(age: float | None, kept: float | None) -> None:
    assert Identity("hmac", KEY).age_years(age) == kept
    assert Identity().age_years(age) == age


def test_the_key_comes_from_the_file_before_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, KEY.hex())
    assert read_identity("hmac", key_file=None).key == KEY
    path = tmp_path / "key"
    path.write_text(f"\n {KEY[::-1].hex()}\n")
    assert read_identity("hmac", key_file=str(path)).key == KEY[::-1]
    assert read_identity("declared", key_file=str(path)) == Identity()


@pytest.mark.usefixtures("no_key")
def test_hmac_without_a_key_says_how_to_make_one() -> None:
    with pytest.raises(ConfigError, match=r"python -m data_prep\.key out=FILE"):
        read_identity("hmac", key_file=None)


@pytest.mark.parametrize("text", [KEY.hex()[:-2], "zz" * 32, "not a key", "ü" * 64])
def test_a_key_that_is_short_or_no_hexadecimal_is_refused_and_not_shown(text: str, tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text(text)
    with pytest.raises(ConfigError, match="64 hexadecimal digits") as error:
        read_identity("hmac", key_file=str(path))
    assert text not in str(error.value)


def test_a_missing_key_file_says_how_to_make_it(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match=r"data_prep\.key out="):
        read_identity("hmac", key_file=str(tmp_path / "key"))


def test_a_written_key_is_private_random_and_read_back(tmp_path: Path) -> None:
    first = write_key(tmp_path / "folder" / "key")
    assert stat.S_IMODE((tmp_path / "folder" / "key").stat().st_mode) == 0o600
    assert read_identity("hmac", key_file=str(tmp_path / "folder" / "key")) == first
    assert write_key(tmp_path / "other").key != first.key
    assert len(first.key) == 32


def test_a_key_is_never_overwritten(tmp_path: Path) -> None:
    write_key(tmp_path / "key")
    before = (tmp_path / "key").read_bytes()
    with pytest.raises(ConfigError, match="never overwritten"):
        write_key(tmp_path / "key")
    assert (tmp_path / "key").read_bytes() == before


def test_a_key_that_cannot_be_written_is_a_write_error(tmp_path: Path) -> None:
    write_key(tmp_path / "key")
    with pytest.raises(WriteError, match="cannot write out="):
        write_key(tmp_path / "key" / "inside" / "key")
