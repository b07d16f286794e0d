"""What a user types is what the job gets; what is wrong ends in one line and its exit code."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from medcls.cli import command_line, overrides
from medcls.cli.help import format_help
from medcls.cli.overrides import find_form, prepare_overrides
from medcls.config import NAMED, SCHEMAS, conf_folder, register_schemas
from medcls.config.schema import NAMES
from medcls.errors import ConfigError, DataError, MissingInputError, UsageError, WriteError

Compose = Callable[..., Any]
Command = Callable[..., tuple[int, str, Any]]

ROOT = Path(__file__).resolve().parent.parent

AWKWARD = [
    "a b",
    "a(b)",
    "(a",
    "a=b",
    "a#b",
    "a&b",
    "[old]",
    "[a,b]",
    "a,b",
    "{a: b}",
    "it's",
    "'",
    '"',
    'it\'s "so"',
    "back\\slash",
    "end\\",
    "end\\\\",
    "a\\'b",
    "a\\\\'b",
    "\\'",
    "ünïcødé/漢字/🩻",
    "2024_05_01",
    "1.10",
    "1e5",
    "0x10",
    "+5",
    "007",
    "true",
    "Null",
    "nan",
    "~x",
    "a~",
    "-",
    "--",
    "$HOME",
    "%d",
    "a:b",
    "a;b|c>d",
    "*?!",
    "tab\tin",
    " edge ",
    "choice(a)",
]


@pytest.mark.parametrize("typed", AWKWARD)
def test_the_job_gets_the_path_as_typed(typed: str, compose_job: Compose) -> None:
    assert compose_job("evaluate", f"run={typed}").run == typed


ANYTHING = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=12)
TRICKY = st.text("\\'\"ab ,=()[]{}#&:$~\t\n1e._-", min_size=1, max_size=10)


def is_literal(typed: str) -> bool:
    """Not what the documentation takes out: null, ???, blank, interpolations, ~/, and a value in its own quotes."""
    quoted = len(typed) > 1 and typed[0] == typed[-1] and typed[0] in "'\"" and typed[0] not in typed[1:-1]
    return not (quoted or typed in ("null", "???") or not typed.strip() or "${" in typed or typed.startswith("~/"))


LITERAL = (ANYTHING | TRICKY).filter(is_literal)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(typed=st.tuples(LITERAL, LITERAL, LITERAL))
@example(typed=("a\\'", "\\\\'\\", "a\n"))
@example(typed=("0", "0", "\\\n"))
def test_any_paths_survive(typed: tuple[str, str, str], compose_job: Compose) -> None:
    job = compose_job("evaluate", f"run={typed[0]}", f"store={typed[1]}", f"out={typed[2]}")
    assert (job.run, job.store, job.out) == typed


@pytest.mark.parametrize("name", sorted(SCHEMAS))
def test_every_text_of_every_command_is_taken_as_typed(name: str) -> None:
    """All at once, before the checks: most of these values are no choice of their setting."""
    texts, lists = [], []
    for key in overrides._leaf_names(SCHEMAS[name]):
        form = find_form(key, SCHEMAS[name])
        if form.kind and not form.is_open:
            (lists if form.kind == NAMES else texts).append(key)
    typed = [f"{key}=2024_05(1.10)" for key in texts]
    typed += [f"{key}=[KL grade,1.10, 2024_05,a(b),007]" for key in lists]
    prepared = prepare_overrides(typed, schema=SCHEMAS[name], conf=conf_folder())
    register_schemas()
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(conf_folder())):
        config = hydra.compose(name, overrides=prepared)
    assert {key: OmegaConf.select(config, key) for key in texts} == dict.fromkeys(texts, "2024_05(1.10)")
    for key in lists:
        assert OmegaConf.select(config, key) == ["KL grade", "1.10", "2024_05", "a(b)", "007"]


def test_names_that_look_like_numbers_stay_names(compose_job: Compose) -> None:
    job = compose_job("compare", "folds.split=2024_05_01", "folds.name=1e3")
    assert (job.folds.split, job.folds.name) == ("2024_05_01", "1e3")
    assert compose_job("train", "model.weights_sha256=12e45678").model.weights_sha256 == "12e45678"
    assert compose_job("train", "task=ordinal", "task.order=[007,1.10]").task.order == ["007", "1.10"]
    assert compose_job("train", "task=binary", "task.positive=1.0").task.positive == "1.0"


def test_names_below_a_dictionary_are_quoted_too(compose_job: Compose) -> None:
    job = compose_job("compare", "stores.eyes=a(b)/2024_05", "arms.one=[model.weights=a(b),seed=1e3]")
    assert job.stores == {"eyes": "a(b)/2024_05"}
    assert job.arms == {"one": ["model.weights=a(b)", "seed=1e3"]}


def test_null_quotes_and_home_keep_their_meaning(compose_job: Compose, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/of(us)")
    assert compose_job("evaluate", "run=null").run is None
    assert compose_job("evaluate", "run='null'").run == "null"
    assert compose_job("evaluate", 'run="a, b"').run == "a, b"
    assert compose_job("evaluate", "run=~/my runs").run == "/home/of(us)/my runs"
    assert compose_job("evaluate", "run=a${seed}", "seed=7").run == "a7"


@pytest.mark.parametrize("typed", ["run=", "run= "])
def test_a_blank_path_is_not_the_current_folder(typed: str, compose_job: Compose) -> None:
    with pytest.raises(UsageError, match="run= is blank"):
        compose_job("evaluate", typed)


def test_classes_and_transforms_take_new_names(compose_job: Compose) -> None:
    job = compose_job("train", "task.classes={NC: 0, AD: 1}", "augment.transforms.VerticalFlip={p: 0.5}")
    assert job.task.classes == {"NC": 0, "AD": 1}
    assert job.augment.transforms["VerticalFlip"] == {"p": 0.5}
    assert compose_job("train", "augment.transforms.HorizontalFlip.p=1").augment.transforms["HorizontalFlip"] == {
        "p": 1
    }


def test_other_values_are_left_to_hydra() -> None:
    typed = ["trainer.epochs=3", "task.classes={a: 0}"]
    prepared = prepare_overrides(typed, schema=SCHEMAS["train"], conf=conf_folder())
    assert prepared == ["trainer.epochs=3", "++task.classes={a: 0}"]


def test_a_sweep_over_paths_stays_a_sweep() -> None:
    arguments = ["store=a,b", "model=vgg11,vgg13", "-m"]
    assert prepare_overrides(arguments, schema=SCHEMAS["train"], conf=conf_folder()) == arguments


def test_flags_go_last_where_argparse_wants_them() -> None:
    arguments = ["--cfg", "job", "seed=1", "--multirun", "trainer.epochs=2"]
    expected = ["seed=1", "trainer.epochs=2", "--cfg", "job", "--multirun"]
    assert prepare_overrides(arguments, schema=SCHEMAS["train"], conf=conf_folder()) == expected


WRONG = [
    ("modle=resnet18", ConfigError, "modle is not a setting of this command (nearest: model)"),
    ("model=resnet19", ConfigError, "(nearest: resnet18)"),
    ("model=null", ConfigError, "model=null: expected one of"),
    ("model=", ConfigError, "model=: expected one of"),
    ("epochs=3", ConfigError, "(nearest: trainer.epochs)"),
    ("trainer.epcohs=3", ConfigError, "(nearest: trainer.epochs)"),
    ("+trainer.extra=1", ConfigError, "trainer.extra is not a setting"),
    ("~trainer.epochs=3", None, ""),
    ("train", UsageError, "'train' is not key=value"),
    ("task.classes={benign: ?, malignant: 1}", ConfigError, "task.classes: replace each ? by 0 or 1, or remove its"),
    ("=x", UsageError, "'=x' is not key=value"),
    ("/etc=x", ConfigError, "/etc is not a setting"),
    ("..=x", ConfigError, ".. is not a setting"),
]


@pytest.mark.parametrize(("argument", "error", "part"), WRONG, ids=[a for a, _, _ in WRONG])
def test_a_wrong_key_names_the_nearest(argument: str, error: type[Exception] | None, part: str) -> None:
    if error is None:
        assert prepare_overrides([argument], schema=SCHEMAS["train"], conf=conf_folder()) == [argument]
        return
    with pytest.raises(error) as caught:
        prepare_overrides([argument], schema=SCHEMAS["train"], conf=conf_folder())
    assert part in str(caught.value)


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs run_command in this process: (exit code, standard error, the job that main was handed)."""
    # hydra.main goes by the process-wide flags of argparse and its own state: leave none behind.
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")

    def run(*arguments: str, name: str = "evaluate", error: BaseException | None = None) -> tuple[int, str, Any]:
        jobs: list[Any] = []

        def main(job: Any) -> None:
            jobs.append(job)
            if error is not None:
                raise error

        monkeypatch.setattr(sys, "argv", ["prog", *arguments])
        with pytest.raises(SystemExit) as stop:
            command_line.run_command(name, main, program="prog")
        assert isinstance(stop.value.code, int)
        return stop.value.code, capsys.readouterr().err, jobs[0] if jobs else None

    return run


def test_main_gets_the_checked_job(command: Command) -> None:
    code, err, job = command("run=a(b)", "seed=3")
    assert (code, err, job.run, job.seed) == (0, "", "a(b)", 3)


@pytest.mark.parametrize(
    ("arguments", "code", "part"),
    [
        (["nonsense"], 64, "'nonsense' is not key=value"),
        (["--nonsense"], 64, ""),
        (["run="], 64, "run= is blank"),
        (["sed=3"], 78, "nearest: seed"),
        (["split=tset"], 78, "nearest: test"),
        (["seed=abc"], 78, "could not be converted to Integer"),
        (["seed=-1"], 78, "seed=-1: expected >= 0"),
        (["seed=[1"], 78, "seed=[1"),
    ],
)
def test_a_wrong_command_line_ends_in_one_line_and_its_code(
    arguments: list[str], code: int, part: str, command: Command
) -> None:
    found, err, job = command(*arguments)
    assert (found, job) == (code, None)
    assert part in err
    assert "Traceback" not in err
    if part:
        assert err.startswith("prog: ")
        assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageError("u"), 64),
        (DataError("d"), 65),
        (MissingInputError("m"), 66),
        (WriteError("w"), 74),
        (ConfigError("c"), 78),
        (OSError(errno.ENOSPC, "No space left on device", "out.npy"), 74),
        (PermissionError(errno.EACCES, "Permission denied", "labels.csv"), 74),
        (KeyboardInterrupt(), 75),
        (SystemExit(66), 66),
        (SystemExit(2), 64),
    ],
)
def test_what_the_stage_raises_becomes_its_code(error: BaseException, code: int, command: Command) -> None:
    found, err, _ = command(error=error)
    assert found == code
    assert err.count("\n") <= 1


def test_a_full_disk_names_the_file(command: Command) -> None:
    error = OSError(errno.ENOSPC, "No space left on device", "out.npy")
    assert command(error=error)[1] == "prog: cannot read or write out.npy: No space left on device\n"


def test_a_defect_keeps_its_traceback(command: Command) -> None:
    code, err, _ = command(error=ZeroDivisionError("inside"))
    assert code == 70
    assert "Traceback" in err
    assert "ZeroDivisionError: inside" in err


def test_without_arguments_the_default_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    jobs: list[Any] = []
    monkeypatch.setattr(sys, "argv", ["prog"])
    with pytest.raises(SystemExit):
        command_line.run_command("evaluate", jobs.append, program="prog", default="seed=5")
    assert jobs[0].seed == 5


def run_python(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, timeout=120, check=False)


NO_TORCH = """
import json, sys
from medcls.cli.command_line import run_command
import medcls.train.__main__, medcls.evaluate.__main__, data_prep.__main__, data_prep.show
sys.argv = ["prog", *sys.argv[1:]]
try:
    run_command("train", medcls.train.__main__.main, program="prog")
finally:
    heavy = {"torch", "torchvision", "numpy", "cv2", "albumentations", "pydicom", "pyarrow"} & set(sys.modules)
    print(json.dumps(sorted(heavy)), file=sys.stderr)
"""


@pytest.mark.parametrize(("flag", "part"), [("--help", "Groups: choose with group=option"), ("--cfg=job", "trainer:")])
def test_help_and_cfg_import_nothing_heavy(flag: str, part: str) -> None:
    done = run_python("-c", NO_TORCH, flag)
    assert done.returncode == 0
    assert part in done.stdout
    assert json.loads(done.stderr.splitlines()[-1]) == []


@pytest.mark.parametrize(
    ("command", "argument", "part"),
    [
        (
            "pretrain",
            "experiment=ad_cae",
            "experiment= belongs to medcls.train, not to this command; this one has pretraining=",
        ),
        ("train", "pretraining=ad_cae", "belongs to medcls.pretrain, not to this command; this one has experiment="),
        ("evaluate", "comparison=ad_dsa3dcnn", "belongs to medcls.compare, not to this command"),
        ("pretrain", "pretraining=ad_cea", "expected one of ad_cae, demo3d (nearest: ad_cae)"),
        ("evaluate", "optimizer=sgd", "optimizer is not a setting of this command"),
    ],
)
def test_a_group_of_another_command_is_named_with_its_own(
    command: str, argument: str, part: str, compose_job: Compose
) -> None:
    with pytest.raises(ConfigError) as error:
        compose_job(command, argument)
    assert part in str(error.value)


@pytest.mark.parametrize("command", sorted(NAMED))
def test_help_lists_the_studies_of_the_command_and_no_others(command: str) -> None:
    lines = format_help(command, conf_folder()).splitlines()
    heads = [line.strip().partition("=")[0] for line in lines]
    studies = [head for head in heads if head in NAMED.values()]
    assert studies == [NAMED[command]]


@pytest.mark.parametrize(
    ("arguments", "code", "part"),
    [
        (["-m", "medcls.train", "run=run"], 64, "store=DIR is missing"),
        (["-m", "data_prep", "source=nowhere", "store=s"], 66, "source=nowhere is not a folder"),
        (["-m", "data_prep.show"], 64, "store=DIR is missing"),
    ],
)
def test_the_real_commands_say_one_line_from_any_folder(
    arguments: list[str], code: int, part: str, tmp_path: Path
) -> None:
    done = run_python(*arguments, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert part in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_batch_systems_end_is_75(tmp_path: Path) -> None:
    """SIGTERM takes the way of Ctrl-C, and says what to do."""
    code = (
        "import os, signal; from medcls.cli.command_line import run_command; "
        "run_command('show', lambda job: os.kill(os.getpid(), signal.SIGTERM), program='show')"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (75, "show: interrupted: run the same command again\n")
