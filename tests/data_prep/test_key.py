"""The command that makes a key."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from data_prep.key import main
from medcls.identity import read_identity


def test_a_key_is_written_and_only_its_fingerprint_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "key"
    assert main([f"out={path}"]) == 0
    said = capsys.readouterr().out
    identity = read_identity("hmac", key_file=str(path))
    assert str(identity.fingerprint) in said
    assert identity.key.hex() not in said
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("arguments", [[], ["out="], ["key"], ["out=a", "out=b"]])
def test_anything_else_is_a_usage_error(
    arguments: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 64
    assert capsys.readouterr().err == "python -m data_prep.key: expected out=FILE\n"
    assert list(tmp_path.iterdir()) == []


def test_a_second_key_is_refused_and_the_first_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "key"
    main([f"out={path}"])
    before = path.read_bytes()
    assert main([f"out={path}"]) == 78
    assert "never overwritten" in capsys.readouterr().err
    assert path.read_bytes() == before


def test_a_place_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert main([f"out={tmp_path}/file/inside/key"]) == 74
    assert "cannot write out=" in capsys.readouterr().err


def test_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert main(["out=~/key"]) == 0
    assert (tmp_path / "key").is_file()


def test_help_names_the_setting_and_makes_no_key(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["--help"]) == 0
    assert "\n  out=FILE  File for the key" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []
