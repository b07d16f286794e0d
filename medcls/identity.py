"""Patient identity in outputs: ids as declared, or keyed pseudonyms that only the key's holder can map back.

Plain hashes of patient ids can be guessed by trying all ids; a keyed one cannot (DICOM PS3.15 E.1.1).
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from medcls.disk import describe_unwritten
from medcls.errors import ConfigError, MissingInputError

PER_IMAGE = "per_image"
"""Patients are unknown: every image counts as one. Other ways to tell them apart name what did."""

KEY_VARIABLE = "MEDCLS_DEIDENTIFY_KEY"
KEY_BYTES = 32
_CHECK = "check:"
_MOST_KEY_BYTES = 4096
AGE_CAP_YEARS = 90.0
_FORMULA_STARTS = tuple("=+-@\t\r\n'＝＋－＠")


def guard_cell(text: str) -> str:
    """Return a cell of a CSV file that no spreadsheet runs: one that begins like a formula gets a ' before it.

    So does one that begins with a ', so that taking one off at the front always gives the text back.

    Source: OWASP, CSV Injection; own choice of the way back, docs/decisions/0026-hostile-inputs.md.
    """
    return f"'{text}" if text[:1] in _FORMULA_STARTS else text


@dataclass(frozen=True, slots=True)
class Identity:
    """Turns ids and paths into what an output may carry.

    Attributes:
        kind: "declared" keeps ids; "hmac" replaces them by HMAC-SHA256 pseudonyms of 32 hexadecimal digits.
        key: Secret of the pseudonyms; b"" for "declared".
    """

    kind: str = "declared"
    key: bytes = b""

    @property
    def fingerprint(self) -> str | None:
        """Names the key without giving it away; None for declared ids."""
        return self.pseudonym("fingerprint", "medcls")[:16] if self.kind == "hmac" else None

    def pseudonym(self, domain: str, value: str) -> str:
        """Return the keyed pseudonym of `value`; equal values in two domains ("patient", "study") differ."""
        message = f"{domain}\x1f{value}".encode()
        return hmac.new(self.key, message, hashlib.sha256).hexdigest()[:32]

    def name(self, domain: str, value: str) -> str:
        """Return the id that outputs carry for `value`; "" stays "" (unknown)."""
        return value if self.kind == "declared" or not value else self.pseudonym(domain, value)

    def age_years(self, age_years: float | None) -> float | None:
        """Return the age; under pseudonyms ages over 89 are merged into 90 (45 CFR 164.514(b)(2)(i)(C))."""
        if age_years is None or self.kind == "declared":
            return age_years
        return min(age_years, AGE_CAP_YEARS)


def format_count(number: int, noun: str, plural: str = "") -> str:
    """Return a number with its noun: "1 patient", "2 patients".

    Args:
        number: The number.
        noun: In the singular, perhaps with its verb: "image is".
        plural: The same in the plural: "images are"; "" adds an s to the noun.
    """
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


def list_first(names: Sequence[object], most: int, what: str = "") -> str:
    """Return the first names in one line, and how many more there are: "a, b and 3 more".

    Args:
        names: Whatever they are.
        most: Names that are shown.
        what: What the rest is called: "columns" makes it "3 more columns".
    """
    shown = ", ".join(map(str, names[:most]))
    if len(names) <= most:
        return shown
    return f"{shown} and {len(names) - most} more {what}".rstrip()


def count_patients(images: int, patients: int | None, patients_from: str) -> str:
    """Return "153 images of 80 patients", or "153 images; patients unknown".

    Args:
        images: Number of images.
        patients: Number of different patient ids; None if they were not counted.
        patients_from: What told patients apart, as a store records it.
    """
    if patients_from == PER_IMAGE or patients is None:
        return f"{format_count(images, 'image')}; patients unknown"
    return f"{format_count(images, 'image')} of {format_count(patients, 'patient')}"


def name_units(text: str, patients_from: str) -> str:
    """Return a text of ours that speaks of patients with images in their place, where patients are unknown.

    Args:
        text: Title, caption or heading; nothing that a user wrote.
        patients_from: As for `count_patients`.
    """
    if patients_from != PER_IMAGE:
        return text
    text = re.sub(r" drawn at random from a new patient\b", " drawn at random", re.sub(r"\bPatients\b", "Images", text))
    text = re.sub(r"\b(1|one) patient\b", r"\1 image (patients unknown)", text)
    text = re.sub(r"\bpatients\b(?! unknown)(?! are unknown)", "images (patients unknown)", text)
    return re.sub(r"\bpatient\b", "image", text)


def describe_patients(patients_from: str) -> str:
    """Return the sentence that pages and cards carry where patients are unknown or not recorded, "" elsewhere."""
    if patients_from == PER_IMAGE:
        return (
            "patients are unknown: each image was counted as one (patients=per_image), so images of one patient may be "
            "in several splits, and intervals are over images"
        )
    return "" if patients_from else "how patients were told apart is not recorded: the store is of an earlier version"


def read_identity(kind: str, *, key_file: str | None) -> Identity:
    """Return the identity rule of a configuration; the key comes from key_file or the environment.

    Raises:
        ConfigError: hmac without a key, or a key that is too short.
        MissingInputError: key_file is not there.
    """
    if kind == "declared":
        return Identity()
    text = os.environ.get(KEY_VARIABLE, "")
    if key_file is not None:
        path = Path(key_file)
        if not path.is_file():
            raise MissingInputError(
                f"deidentify.key_file={path} is missing, or no file: python -m data_prep.key out={path}"
            )
        text = _read_key(path)
    if not text.strip():
        raise ConfigError(
            "deidentify=hmac (the default for DICOM) needs a key: python -m data_prep.key out=FILE makes one, then "
            "deidentify.key_file=FILE; or deidentify=declared keeps the ids as they are"
        )
    return Identity("hmac", _parse_key(text.strip()))


def describe_key(identity: Identity, *, key_file: str | None) -> str:
    """Return a notice if the key in use carries no checksum of its own, as those of version 0.2.0; else ""."""
    if identity.kind != "hmac":
        return ""  # the key file may not be on this machine
    text = _read_key(Path(key_file)) if key_file is not None else os.environ.get(KEY_VARIABLE, "")
    if _CHECK in text:
        return ""
    return (
        f"notice: the de-identification key (fingerprint {identity.fingerprint}) carries no checksum: a changed digit "
        f"would give everybody another pseudonym; add the line {_compute_check(identity.key.hex())} to it, if the "
        "fingerprint is right"
    )


def _read_key(path: Path) -> str:
    with path.open("rb") as file:
        return file.read(_MOST_KEY_BYTES).decode("ascii", errors="replace")


def _compute_check(digits: str) -> str:
    """Return a flipped bit would give every patient another pseudonym: nobody would be recognised again."""
    return _CHECK + hashlib.sha256(f"medcls key {digits.lower()}".encode()).hexdigest()[:16]


def _parse_key(text: str) -> bytes:
    words = text.split()
    digits = "".join(word for word in words if not word.startswith(_CHECK))
    # Keys of version 0.2.0 and of other tools are digits alone.
    checks = [word for word in words if word.startswith(_CHECK)]
    if checks and checks != [_compute_check(digits)]:
        raise ConfigError(
            "the de-identification key has changed since it was made (its checksum differs): restore it from a copy"
        )
    try:
        key = bytes.fromhex(digits)
    except ValueError:
        key = b""
    if len(key) < KEY_BYTES:
        raise ConfigError(
            f"the de-identification key is not {KEY_BYTES * 2} hexadecimal digits: python -m data_prep.key out=FILE "
            "makes one"
        )
    return key


def write_key(path: Path) -> Identity:
    """Write a new random key that only its owner can read (mode 0600), and return its identity rule.

    Raises:
        ConfigError: the file is there already; a lost key loses the way back to the patients.
        WriteError: the folder is read-only or no folder.
    """
    key = secrets.token_bytes(KEY_BYTES)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError as error:
        raise ConfigError(f"out={path} is there already: a key is never overwritten") from error
    except OSError as error:
        raise describe_unwritten(error, f"out={path}", remedy="choose another file") from error
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(f"{key.hex()}\n{_compute_check(key.hex())}\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        # Half a key would never be overwritten.
        path.unlink(missing_ok=True)
        raise describe_unwritten(error, f"out={path}", remedy="choose another file") from error
    return Identity("hmac", key)
