"""Run one command around Hydra: compose its job, call its function, turn errors into one line and an exit code.

Hydra's own errors exit 1 without a hint (docs/decisions/0003-command-line.md).
"""

from __future__ import annotations

import medcls.entry  # noqa: F401 (before all others: it keeps the working folder's files from being imported)

# isort: split
import errno
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import hydra
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from medcls.cli.help import format_help
from medcls.cli.overrides import prepare_overrides
from medcls.cli.sweeps import JobFailedError, describe_job, is_sweep, keep_tidy
from medcls.config import SCHEMAS, conf_folder, load, register_schemas
from medcls.console import make_printable, say, show_log
from medcls.disk import advise
from medcls.distributed import count_ranks, get_rank, is_first
from medcls.entry import INTERRUPTED
from medcls.errors import BusyError, ConfigError, MedclsError, UsageError, WriteError

SEVERAL_PROCESSES = ("train", "pretrain")


def compose_job(name: str, arguments: Sequence[str]) -> Any:
    """Return the checked job of a command line, such as ["model=vgg11"] of "train", without running it.

    Raises:
        UsageError, ConfigError: as the command itself.
    """
    register_schemas()
    overrides = prepare_overrides(arguments, schema=SCHEMAS[name], conf=conf_folder())
    try:
        with hydra.initialize_config_dir(version_base="1.3", config_dir=str(conf_folder())):
            return load(hydra.compose(name, overrides=overrides))
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(_one_line(error)) from error


def run_command(name: str, main: Callable[[Any], None], *, program: str, default: str = "") -> NoReturn:
    """Compose conf/<name>.yaml with the command line, hand `main` the checked plain object, and exits.

    Args:
        name: Key of config.SCHEMAS and stem of the primary configuration file.
        main: The entry point's body; takes the loaded job.
        program: The command as a user types it, for messages.
        default: Override used where there are no arguments at all.
    """
    sys.exit(_run(name, main, program=program, default=default))


def _run(name: str, main: Callable[[Any], None], *, program: str, default: str) -> int:
    # Without this Hydra prints its own text and exits 1 before we can tell the user what to do.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    show_log()
    register_schemas()

    composed: list[DictConfig] = []
    sweeping = is_sweep(sys.argv)
    given: list[str] = []

    def task(cfg: DictConfig) -> None:
        # A single job runs after Hydra has returned, so that an error is ours alone to print.
        _run_job(main, cfg, program=program, given=given) if sweeping else composed.append(cfg)

    # A batch system's end comes as SIGTERM or SIGUSR1: the same way out as Ctrl-C, so that half-written files are
    # removed. The loop of training, which can go on later, listens for them itself.
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        if number != signal.SIGINT or signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler)
    try:
        _take_place(name, program)
        conf = conf_folder()
        arguments = sys.argv[1:] or ([default] if default else [])
        if {"-h", "--help"} & set(arguments):
            print(format_help(name, conf, [word for word in arguments if not word.startswith("-")]))
            check_printed()
            return 0
        given += prepare_overrides(arguments, schema=SCHEMAS[name], conf=conf)
        with keep_tidy(given) as added:
            sys.argv = [sys.argv[0], *added, *given]
            hydra.main(version_base="1.3", config_path=str(conf), config_name=name)(task)()
        for cfg in composed:
            main(load(cfg))
        if not composed and not sweeping:  # --cfg job: Hydra has printed the settings
            check_printed()
    except BaseException as error:
        return _explain(program, error)
    return 0


def _run_job(main: Callable[[Any], None], cfg: DictConfig, *, program: str, given: Sequence[str]) -> None:
    """Run one job of a sweep; a signal ends all, an error this one."""
    job = describe_job(given)
    say(f"{program}: {job}")
    try:
        main(load(cfg))
    except BaseException as error:
        code = _explain(f"{program}: {job}", error)
        if code == 0:
            return
        ended = code == INTERRUPTED and not isinstance(error, BusyError)
        raise (SystemExit(code) if ended else JobFailedError(code)) from error


def _explain(program: str, error: BaseException) -> int:
    """Say what went wrong in one line, and return the exit code that it means."""
    match error:
        case JobFailedError():
            return error.exit_code
        case MedclsError():
            # Where one process has ended, it has said why; one of the others says what to do.
            return _say(program, _take_message(error), error.exit_code, by_all=error.exit_code != INTERRUPTED)
        case HydraException() | OmegaConfBaseException():
            return _say(program, _one_line(error), ConfigError.exit_code)
        case OSError():
            return _explain_os_error(program, error)
        case KeyboardInterrupt():
            return _say(program, "interrupted: run the same command again", INTERRUPTED, by_all=False)
        case MemoryError():
            no_memory = f"no memory ({str(error)[:200] or 'MemoryError'})"
            return _say(program, f"{no_memory}: {advise(OSError(errno.ENOMEM, ''), '')}", MedclsError.exit_code)
        case SystemExit():
            return UsageError.exit_code if error.code == 2 else int(error.code or 0)
        case Exception():
            traceback.print_exception(error)
            return 70
    raise error


def _explain_os_error(program: str, error: OSError) -> int:
    # A descriptor that is none is no user's mistake.
    if error.strerror is None or error.errno == errno.EBADF:
        traceback.print_exception(error)
        return 70
    remedy = advise(error, "")
    message = f"cannot read or write {error.filename or 'an output'}: {error.strerror}"
    return _say(program, f"{message}; {remedy}" if remedy else message, WriteError.exit_code)


def _take_message(error: MedclsError) -> str:
    """The message of an error; torch puts a traceback before that of a loading process, which is in the last line."""
    first, _, rest = str(error).partition("\n")
    if first.startswith("Caught ") and "DataLoader worker" in first:
        return rest.rstrip().rpartition("\n")[2].partition(": ")[2]
    return str(error)


def _one_line(error: BaseException) -> str:
    """Hydra and OmegaConf spread one fact over several lines and causes; keep the facts."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    cause = error.__cause__ or error.__context__
    if cause is not None and isinstance(cause, OmegaConfBaseException):
        lines += [line.strip() for line in str(cause).splitlines()]
    if isinstance(error, OverrideParseException):
        lines.insert(0, f"{error.override} is not in Hydra's grammar:")
    kept = [line for line in dict.fromkeys(lines) if not line.startswith(("object_type=", "reference_type="))]
    return " ".join(kept)


def _take_place(name: str, program: str) -> None:
    if count_ranks() > 1 and name not in SEVERAL_PROCESSES:
        raise UsageError(f"{program} is one process: start it without torchrun or medcls.launch")
    if not is_first():
        # The first shows a bar; tqdm reads this when it is imported.
        os.environ["TQDM_DISABLE"] = "1"


def _say(program: str, message: str, code: int, *, by_all: bool = True) -> int:
    """Say why the command ends, as the first of several processes or, with its number, as any of them."""
    if by_all or is_first():
        who = program if is_first() else f"{program} (process {get_rank()})"
        print(make_printable(f"{who}: {message}".replace("\n", "\\n")), file=sys.stderr, flush=True)
    return code


def check_printed() -> None:
    """Check that standard output took everything, for commands whose result is only there.

    Raises:
        WriteError: It did not, as on a full disk.
        SystemExit: Its reader has ended: there is nobody to tell.
    """
    sys.stdout.flush()
    lost = getattr(sys.stdout, "lost", None)
    if isinstance(lost, BrokenPipeError):
        raise SystemExit(WriteError.exit_code)
    if lost is not None:
        reason = getattr(lost, "strerror", None) or type(lost).__name__
        raise WriteError(
            f"cannot write standard output, the only output of the result ({reason}): redirect it elsewhere"
        )
