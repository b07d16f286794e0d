"""The thin step before Hydra: quotes paths, names the nearest known key, and turns errors into exit codes.

Hydra's grammar refuses paths with ( ) = # & and letters outside ASCII and rewrites run=2024_05_01 to 20240501,
and its own errors exit 1 without a hint (docs/decisions/0003-command-line.md).
"""

from __future__ import annotations

import os
import re
import signal
import sys
import traceback
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, NoReturn, get_origin, get_type_hints

import hydra
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from medcls.config import NAMED, SCHEMAS, conf_folder, load, nearest, register_schemas
from medcls.distributed import PeerError, count_ranks, get_rank, is_first
from medcls.errors import BusyError, ConfigError, MedclsError, UsageError
from medcls.hydra_border import check_flag, check_hydra_key, check_no_resolver, check_options
from medcls.sweeps import JobFailedError, describe_job, is_sweep, keep_tidy

PATH_KEYS = frozenset(
    {"source", "store", "run", "out", "labels", "reuse", "index", "boxes", "against", "clinical_file"}
    | {"weights_dir", "deidentify.key_file", "model.weights", "target"}
    | {"patient_id.pattern", "split.name", "task.label", "label", "series.description"}
)
LIST_KEYS = frozenset(
    {"columns", "task.labels", "subgroups", "shortcuts", "images", "only", "secondary", "common", "extra"}
    | {"clinical.categorical", "clinical.numeric"}
)
# Of dictionaries whose keys are the user's: stores.retina=DIR, arms.mine=[model=vgg16,task=ordinal].
PATH_GROUPS, LIST_GROUPS = ("stores.",), ("arms.",)
SEVERAL_PROCESSES = ("train", "pretrain")
INTERRUPTED = 75
_VALUE_FLAGS = frozenset({"--cfg", "-c", "--package", "-p", "--info", "-i"})


def quote_value(key: str, value: str) -> str:
    """Returns `key=value` with a path or name value quoted so that Hydra's grammar takes it literally.

    null and a value within quotes of its own stay as they are; ~/ becomes the home folder; ${key} still is an
    interpolation (run=runs/${seed}). In a list of names each item is quoted.

    Raises:
        UsageError: a path or name is blank, as of an unset shell variable; it would mean the current folder.
    """
    bare = key.lstrip("+")
    if (bare in LIST_KEYS or bare.startswith(LIST_GROUPS)) and re.fullmatch(r"\[[^\[\]'\"]*\]", value):
        items = [_quote(item.strip()) for item in value[1:-1].split(",") if item.strip()]
        return f"{key}=[{','.join(items)}]"
    if (
        not (bare in PATH_KEYS or bare.startswith(PATH_GROUPS))
        or value == "null"
        or re.fullmatch(r"'[^']*'|\"[^\"]*\"", value)
    ):
        return f"{key}={value}"
    if not value.strip():
        raise UsageError(f"{key}= is blank: give a value, or {key}=null for none")
    return f"{key}={_quote(str(Path(value).expanduser()) if value.startswith('~/') else value)}"


def _quote(value: str) -> str:
    """Within quotes Hydra wants an escape for quotes, and for the backslashes that stand before one."""
    return "'" + re.sub(r"(\\*)('|\Z)", lambda match: match[1] * 2 + match[2].replace("'", "\\'"), value) + "'"


def prepare_overrides(arguments: Iterable[str], *, schema: type, conf: Path) -> list[str]:
    """Returns the arguments with paths quoted, after checking every key and group option.

    Raises:
        UsageError: an argument is neither a flag nor key=value.
        ConfigError: a key or a group option is unknown; the message names the nearest known one.
    """
    arguments = list(arguments)
    sweeping = is_sweep(arguments)
    prepared: list[str] = []
    flags: list[str] = []
    previous = ""
    for argument in arguments:
        if argument.startswith("-"):
            check_flag(argument)
            flags.append(argument)
        elif previous in _VALUE_FLAGS:
            flags.append(argument)
        else:
            prepared.append(_prepare_one(argument, schema=schema, conf=conf, sweeping=sweeping))
        previous = argument
    # argparse stops taking overrides at the first flag.
    return prepared + flags


def _prepare_one(argument: str, *, schema: type, conf: Path, sweeping: bool) -> str:
    key, equals, value = argument.partition("=")
    if not key or (not equals and not key.startswith("~")):
        raise UsageError(f"{argument!r} is not key=value: see --help")
    check_no_resolver(argument)
    bare = key.lstrip("+~")
    if "@" in bare:
        raise UsageError(f"{key}: groups have one place each: leave @… out")
    if re.match(r"hydra\b", bare):
        check_hydra_key(bare, value)
        return argument
    if key.startswith("~"):
        return argument
    groups = list_groups(schema, conf=conf)
    if bare in groups:
        _check_option(bare, value, conf=conf)
        return argument
    if bare in NAMED.values():
        own = [f"; this one has {group}=" for group in groups if group in NAMED.values()]
        owner = next(name for name, group in NAMED.items() if group == bare)
        raise ConfigError(f"{argument}: {bare}= is of medcls.{owner}, not of this command{''.join(own)}")
    is_open = _check_key(bare, schema)
    argument = argument if sweeping and "," in value else quote_value(key, value)
    # Hydra refuses new keys inside a dictionary ({NC: 0, AD: 1}) unless told to add them.
    return f"++{argument}" if is_open and not key.startswith("+") else argument


def list_groups(schema: type, *, conf: Path) -> list[str]:
    """Returns the groups of a command: folders of conf/ with the name of a setting, and that of its whole studies."""
    names = {f.name for f in fields(schema)} | {NAMED[name] for name in NAMED if SCHEMAS[name] is schema}
    return sorted(folder.name for folder in conf.iterdir() if folder.is_dir() and folder.name in names)


def _list_options(group: str, conf: Path) -> list[str]:
    return sorted(path.stem for path in (conf / group).glob("*.yaml"))


def _check_option(group: str, value: str, *, conf: Path) -> None:
    """A sweep (a,b) or an override of the whole group ({…}) is left to Hydra; it has no words for null."""
    options = _list_options(group, conf)
    if not check_options(group, value, options) and value not in options:
        raise ConfigError(f"{group}={value}: expected one of {', '.join(options)}{nearest(value, options)}")


def _check_key(dotted: str, schema: type) -> bool:
    """Returns whether the key is a dictionary or lies in one, where the names are the user's."""
    node: Any = schema
    for depth, part in enumerate(dotted.split(".")):
        if not is_dataclass(node):
            break
        names = [f.name for f in fields(node)]
        if part not in names:
            where = ".".join(dotted.split(".")[:depth])
            # A key often is right but lacks its group: epochs -> trainer.epochs.
            known = [f"{where}.{n}" if where else n for n in names] + _leaf_names(schema)
            hint = next((f" (nearest: {k})" for k in known if k.split(".")[-1] == part), nearest(dotted, known))
            raise ConfigError(f"{dotted} is no setting of this command{hint}: --cfg job lists all")
        node = get_type_hints(node)[part]
    return get_origin(node) is dict


def _leaf_names(schema: type, prefix: str = "") -> list[str]:
    names: list[str] = []
    hints = get_type_hints(schema)
    for f in fields(schema):
        inner = hints[f.name]
        if is_dataclass(inner) and isinstance(inner, type):
            names += _leaf_names(inner, f"{prefix}{f.name}.")
        names.append(f"{prefix}{f.name}")
    return names


def compose_job(name: str, arguments: Sequence[str]) -> Any:
    """Returns the checked job of a command line, such as ["model=vgg11"] of "train", without running it.

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
    """Composes conf/<name>.yaml with the command line, hands `main` the checked plain object, and exits.

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
    register_schemas()

    composed: list[DictConfig] = []
    sweeping = is_sweep(sys.argv)
    given: list[str] = []

    def task(cfg: DictConfig) -> None:
        # A single job runs after Hydra has returned, so that an error is ours alone to print.
        _run_job(main, cfg, program=program, given=given) if sweeping else composed.append(cfg)

    # A batch system's end comes as SIGTERM or SIGUSR1: the same way out as Ctrl-C, so that half-written files are
    # removed. The loop of training, which can go on later, listens for them itself.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGUSR1, signal.default_int_handler)
    try:
        _take_place(name, program)
        conf = conf_folder()
        arguments = sys.argv[1:] or ([default] if default else [])
        if {"-h", "--help"} & set(arguments):
            print(format_help(name, conf))
            return 0
        given += prepare_overrides(arguments, schema=SCHEMAS[name], conf=conf)
        with keep_tidy(given) as added:
            sys.argv = [sys.argv[0], *added, *given]
            hydra.main(version_base="1.3", config_path=str(conf), config_name=name)(task)()
        for cfg in composed:
            main(load(cfg))
    except BaseException as error:
        return _explain(program, error)
    return 0


def _run_job(main: Callable[[Any], None], cfg: DictConfig, *, program: str, given: Sequence[str]) -> None:
    """Runs one job of a sweep; a signal ends all, an error this one."""
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
    """Says what went wrong in one line, and returns the exit code that it means."""
    match error:
        case JobFailedError():
            return error.exit_code
        case MedclsError():
            # Where one process has ended, it has said why; one of the others says what to do.
            return _say(program, str(error), error.exit_code, by_all=not isinstance(error, PeerError))
        case HydraException() | OmegaConfBaseException():
            return _say(program, _one_line(error), ConfigError.exit_code)
        case OSError():
            return _explain_os_error(program, error)
        case KeyboardInterrupt():
            return _say(program, "interrupted: run the same command again", INTERRUPTED, by_all=False)
        case SystemExit():
            return UsageError.exit_code if error.code == 2 else int(error.code or 0)
        case Exception():
            traceback.print_exception(error)
            return 70
    raise error


def format_help(name: str, conf: Path) -> str:
    """Returns what --help prints: what the command does, its groups with their options, and every setting.

    Hydra's own help composes each option of each group to list their names, which takes seconds.
    """
    groups = list_groups(SCHEMAS[name], conf=conf)
    lines = [f"{group}: {', '.join(_list_options(group, conf))}" for group in groups]
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(conf)):
        settings = OmegaConf.to_yaml(hydra.compose(name))
    listed = "Groups (choose with group=option)\n" + "\n".join(lines) + "\n\n" if lines else ""
    return (
        f"{OmegaConf.load(conf / f'{name}.yaml').hydra.help.header}\n{listed}"
        f"All settings (change with key=value)\n{settings}\n"
        "Flags: --cfg job prints the composed settings and stops; --multirun runs a sweep (seed=1,2 'run=r/${seed}')."
    )


def _explain_os_error(program: str, error: OSError) -> int:
    if isinstance(error, BrokenPipeError):
        # The reader has seen enough (… | head); Python would complain once more while closing the pipe.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    if error.strerror is None:
        traceback.print_exception(error)
        return 70
    return _say(program, f"cannot read or write {error.filename or 'an output'}: {error.strerror}", 74)


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
        raise UsageError(f"{program} is one process: start it without torchrun and medcls.launch")
    if not is_first():
        # The first shows a bar; tqdm reads this when it is imported.
        os.environ["TQDM_DISABLE"] = "1"


def _say(program: str, message: str, code: int, *, by_all: bool = True) -> int:
    """Says why the command ends, as the first of several processes or, with its number, as any of them."""
    if by_all or is_first():
        who = program if is_first() else f"{program} (process {get_rank()})"
        print(make_printable(f"{who}: {message}".replace("\n", "\\n")), file=sys.stderr, flush=True)
    return code


def say(message: str) -> None:
    """Prints progress or a notice to standard error, flushed; of several processes of a training the first does."""
    if is_first():
        print(make_printable(message), file=sys.stderr, flush=True)


def put(result: str) -> None:
    """Prints a result to standard output."""
    print(make_printable(result))


def make_printable(text: str) -> str:
    """Returns the text with control characters spelt out: names of files and classes are other people's.

    A terminal obeys escape sequences in them, and marks of direction make one name look like another. Lines and tabs
    stay.
    """
    return "".join(c if c in "\n\t" or _is_harmless(c) else c.encode("unicode_escape").decode() for c in text)


def _is_harmless(character: str) -> bool:
    """Neither a control character, a format character, a line separator nor a lone surrogate."""
    return unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Zl", "Zp")
