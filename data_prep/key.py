"""python -m data_prep.key out=FILE: make the secret key of the pseudonyms."""

from __future__ import annotations

import medcls.entry  # noqa: F401 (before all others: it keeps the working folder's files from being imported)

# isort: split
import sys
from pathlib import Path

from medcls.errors import MedclsError, UsageError
from medcls.identity import write_key

_HELP = """python -m data_prep.key out=FILE

Make the secret key of the pseudonyms: the same key gives the same patient the same pseudonym in every store.

  out=FILE  File for the key, mode 0600; required, never overwritten. Use it with deidentify.key_file=FILE."""


def main(arguments: list[str]) -> int:
    """Write the key and print its fingerprint, or the help; return the exit code."""
    if {"-h", "--help"} & set(arguments):
        print(_HELP)
        return 0
    try:
        if len(arguments) != 1 or not arguments[0].startswith("out=") or arguments[0] == "out=":
            raise UsageError("expected out=FILE")
        path = Path(arguments[0].removeprefix("out=")).expanduser()
        identity = write_key(path)
    except MedclsError as error:
        print(f"python -m data_prep.key: {error}", file=sys.stderr)
        return error.exit_code
    print(f"key {path} (mode 0600, fingerprint {identity.fingerprint}): anyone who has it can map pseudonyms back;")
    print("keep it apart from the data, and do not lose it: without it the same patient gets another pseudonym")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
