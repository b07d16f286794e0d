"""A command in a hostile folder, with a log that goes away, and ended before it has begun."""

from __future__ import annotations

import ast
import functools
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from medcls.files import write_bytes
from tests import lost_logs

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__main__")
    for package in ("medcls", "data_prep")
    for path in (ROOT / package).rglob("*.py")
    if 'if __name__ == "__main__"' in path.read_text(encoding="utf-8")
)
FOREIGN = ("albumentations", "cv2", "hydra", "numpy", "omegaconf", "pyarrow", "pydicom", "torch", "tqdm", "yaml")


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), **more}


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of data whose files leave a mark if anything imports them."""
    folder = tmp_path_factory.mktemp("data")
    mark = f"open({str(folder / 'ran')!r}, 'a').write(__file__ + chr(10))\n"
    for name in FOREIGN:
        (folder / f"{name}.py").write_text(mark)
    (folder / "hydra_plugins" / "own").mkdir(parents=True)
    (folder / "hydra_plugins" / "own" / "__init__.py").write_text(mark)
    return folder


def test_the_commands_are_found() -> None:
    assert {"medcls.train", "medcls.fetch", "data_prep", "data_prep.key"} <= set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_files_of_the_working_folder_are_not_imported(hostile: Path, command: str) -> None:
    arguments = ["out=key.txt"] if command == "data_prep.key" else ["--help"]
    if command == "medcls.fetch":
        arguments = ["model=resnet18", "weights_dir=nowhere"]
    done = subprocess.run(
        [sys.executable, "-m", command, *arguments],
        cwd=hostile,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr[-2000:]
    assert not (hostile / "ran").exists(), (hostile / "ran").read_text()


LOST_PAGE = """
import __main__, importlib.machinery, mmap, sys
__main__.__spec__ = importlib.machinery.ModuleSpec("medcls.train", None)
import medcls.entry
with open(sys.argv[1], "w+b") as file:
    file.truncate(8192)
    page = mmap.mmap(file.fileno(), 8192)
    file.truncate(0)
    page[4096]
"""


def test_page_that_is_lost_while_it_is_read_ends_with_words(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOST_PAGE, str(tmp_path / "shard.npy")],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == -signal.SIGBUS
    assert "Fatal Python error: Bus error" in done.stderr


@pytest.mark.parametrize("command", ["medcls.fetch", "data_prep"])
def test_command_in_a_deleted_folder_ends_with_one_line_and_66(tmp_path: Path, command: str) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    done = subprocess.run(
        ["sh", "-c", 'cd "$0" && rmdir "$0" && exec "$@"', str(gone), sys.executable, "-m", command, "--help"],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    expected = "the working folder cannot be found (No such file or directory): cd to another folder"
    assert (done.returncode, done.stdout) == (66, "")
    assert done.stderr.startswith(expected)
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_protected_before_its_first_foreign_import(command: str) -> None:
    """The text of the entry, so that a new command cannot forget it."""
    path = ROOT / f"{command.replace('.', '/')}.py"
    path = path if path.is_file() else ROOT / command.replace(".", "/") / "__main__.py"
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = [
        node.module or "" if isinstance(node, ast.ImportFrom) else node.names[0].name
        for node in tree.body
        if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    first = next(name for name in names if name.split(".")[0] not in sys.stdlib_module_names)
    assert first in ("medcls.entry", "medcls.cli.command_line")


def test_import_of_the_package_changes_nothing(hostile: Path) -> None:
    code = (
        "import sys; before = list(sys.path), sys.stdout; import medcls.entry; "
        "print((list(sys.path), sys.stdout) == before)"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"


@pytest.fixture
def key(tmp_path: Path) -> Callable[[str], tuple[int, Path]]:
    """Run data_prep.key by a shell, its output led as told, and return its exit code and the key's path."""

    def run(redirection: str) -> tuple[int, Path]:
        path = tmp_path / "key.txt"
        command = f"{sys.executable} -m data_prep.key out={path} {redirection}"
        # bash: the exit code of the command, not that of the reader of its pipe.
        script = f"set -o pipefail; {command}"
        done = subprocess.run(["bash", "-c", script], env=environment(), capture_output=True, text=True, check=False)
        return done.returncode, path

    return run


@pytest.mark.parametrize(
    "redirection", ["| true", "| head -0", ">&- 2>&-", "<&- >&- 2>&-", "> /dev/full 2>&1", ">/dev/null 2>/dev/full"]
)
def test_log_that_goes_away_changes_neither_the_work_nor_the_exit_code(
    key: Callable[[str], tuple[int, Path]], redirection: str
) -> None:
    if "/dev/full" in redirection and not Path("/dev/full").exists():
        pytest.skip("no /dev/full on this system")
    code, path = key(redirection)
    assert code == 0
    assert [len(line) for line in path.read_text().splitlines()] == [64, len("check:") + 16]


@pytest.mark.parametrize("redirection", ["2>&1 | true", "2>&-", "2> /dev/full"])
def test_failure_keeps_its_exit_code_where_nobody_hears_of_it(tmp_path: Path, redirection: str) -> None:
    script = f"set -o pipefail; {sys.executable} -m data_prep source=nowhere store={tmp_path / 'store'} {redirection}"
    done = subprocess.run(["bash", "-c", script], env=environment(), capture_output=True, check=False)
    assert done.returncode == 66


def test_descriptors_that_were_closed_are_not_taken_by_the_first_file(tmp_path: Path) -> None:
    code = (
        "import sys, types; sys.modules['__main__'].__spec__ = types.SimpleNamespace(name='medcls.train'); "
        f"import medcls.entry; file = open({str(tmp_path / 'data')!r}, 'w'); "
        "print('message', file=sys.stderr, flush=True); file.write('data'); file.close()"
    )
    done = subprocess.run(["bash", "-c", f'{sys.executable} -c "$CODE" 2>&-'], env=environment(CODE=code), check=False)
    assert done.returncode == 0
    assert (tmp_path / "data").read_text() == "data"


def test_descriptors_that_were_closed_are_open_in_child_processes(tmp_path: Path) -> None:
    code = (
        "import sys, types; sys.modules['__main__'].__spec__ = types.SimpleNamespace(name='medcls.train'); "
        "import medcls.entry, subprocess; ask = 'import os; [os.fstat(number) for number in (0, 1, 2)]'; "
        "raise SystemExit(subprocess.run([sys.executable, '-c', ask]).returncode)"
    )
    done = subprocess.run(
        ["bash", "-c", f'{sys.executable} -c "$CODE" <&- >&- 2>&-'], env=environment(CODE=code), check=False
    )
    assert done.returncode == 0


def test_name_that_the_locale_cannot_write_is_spelt_out_and_loses_no_line() -> None:
    code = (
        "import sys, types; sys.modules['__main__'].__spec__ = types.SimpleNamespace(name='medcls.train'); "
        "import medcls.entry; print('caf\\u00e9 \\u0142'); print('next'); sys.stdout.flush(); "
        "raise SystemExit(sys.stdout.lost is not None)"
    )
    locale = environment(PYTHONIOENCODING="latin-1")
    done = subprocess.run([sys.executable, "-c", code], env=locale, capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (0, b"caf\xe9 \\u0142\nnext\n")


@pytest.mark.parametrize(
    ("number", "log"),
    [(signal.SIGTERM, "kept"), (signal.SIGTERM, "full"), (signal.SIGTERM, "without a reader"), (signal.SIGINT, "kept")],
)
def test_signal_before_the_command_has_begun_exits_75(tmp_path: Path, number: signal.Signals, log: str) -> None:
    slow = tmp_path / "slow"
    slow.mkdir()
    # The first foreign import of the command waits for the signal.
    (slow / "hydra.py").write_text(f"import time; open({str(tmp_path / 'begun')!r}, 'w'); time.sleep(60)\n")
    with Path("/dev/full").open("wb") as full:
        process = subprocess.Popen(
            [sys.executable, "-m", "medcls.train", "store=s", "run=r"],
            env=environment(PYTHONPATH=f"{slow}:{ROOT}"),
            stderr=full if log == "full" else subprocess.PIPE,
            cwd=tmp_path,
            # As in a terminal, also where the tests run in the background.
            preexec_fn=functools.partial(signal.signal, signal.SIGINT, signal.default_int_handler),
        )
    if log == "without a reader":
        assert process.stderr is not None
        process.stderr.close()
    while not (tmp_path / "begun").exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(number)
    said = process.communicate(timeout=60)[1] if log == "kept" else b""
    assert process.wait(timeout=60) == 75
    assert log != "kept" or said == b"interrupted: run the same command again\n"


def test_every_command_has_an_input_for_the_proof_of_its_log() -> None:
    assert sorted(lost_logs.COMMANDS) == COMMANDS


@pytest.mark.parametrize("command", lost_logs.ONLY_PRINTED)
def test_command_whose_only_result_is_printed_fails_on_a_full_disk(tmp_path: Path, command: str) -> None:
    lost_logs.draw_images(tmp_path / "raw")
    places, arguments = {"raw": tmp_path / "raw"}, lost_logs.ONLY_PRINTED[command]
    assert lost_logs.run(command, arguments, places, tmp_path / "own", log="full").code == 74


@pytest.mark.slow
def test_every_command_does_its_work_and_exits_0_whatever_becomes_of_its_log(tmp_path: Path) -> None:
    """Prints the table; with MEDCLS_RESULTS=FOLDER it is written to logs.md there."""
    places = lost_logs.build_inputs(tmp_path)
    outcomes = {
        command: {log: lost_logs.run(command, given, places, tmp_path / "own", log=log) for log in lost_logs.LOGS}
        for command, given in lost_logs.COMMANDS.items()
    }
    table = lost_logs.format_table(outcomes)
    print(table)
    if "MEDCLS_RESULTS" in os.environ:
        head = (
            "# Logs that go away\n\nEvery command with its log (standard output and standard error) kept in a file, "
            "closed (`>&- 2>&-`), full\n(`>/dev/full 2>&1`), and read to its first line (`2>&1 | head -1`): its exit "
            "code, and whether it leaves the same files,\nwith the same bytes where no time is written into them.\n\n"
            "Command: `MEDCLS_RESULTS=docs/results python -m pytest -m slow tests/test_entry.py`;\n"
            f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
            f"{datetime.now(UTC):%Y-%m-%d}.\n\n"
        )
        write_bytes(Path(os.environ["MEDCLS_RESULTS"]) / "logs.md", (head + table + "\n").encode())
    for command, found in outcomes.items():
        whole = found["whole"]
        assert whole.code == 0, f"{command}: {whole.log}"
        assert whole.files or command in ("medcls.fetch", "medcls.networks"), command
        for log, outcome in found.items():
            # A list that nobody can read is not done.
            code = 74 if (command, log) == ("medcls.networks", "full") else 0
            assert (outcome.code, outcome.files) == (code, whole.files), (command, log)
