"""python -m medcls.launch: run one training in several processes, through torchrun's elastic agent.

torchrun itself exits 1 whatever the processes exit with; a batch system needs to know whether to run a job again.
"""

from __future__ import annotations

import medcls.entry  # noqa: F401 (before all others: it keeps the working folder's files from being imported)

# isort: split
import argparse
import logging
import os
import signal
import sys
from collections.abc import Sequence

from medcls.cli.command_line import SEVERAL_PROCESSES, compose_job
from medcls.console import say, show_log
from medcls.distributed import PeerError
from medcls.entry import INTERRUPTED
from medcls.errors import MedclsError, UsageError
from medcls.pretrain import __main__ as pretrain
from medcls.train import __main__ as train

PROGRAM = "python -m medcls.launch"
FAILED = 70
# What a user or an operator can mend comes before what follows from it in the other processes.
FIRST_TOLD = (64, 78, 66, 65, 74, 70)
_EXPECTED = f"expected {' or '.join(SEVERAL_PROCESSES)}; other commands are one process"
HELP = f"""{PROGRAM}: one training in several processes, each with a GPU of its own (or a part of the cores).

  {PROGRAM} --nproc-per-node=4 train store=DIR run=DIR trainer.batch_size=64 …
  {PROGRAM} --nproc-per-node=4 pretrain store=DIR run=DIR …

trainer.batch_size is that of all processes together: the result is the one of a single process, to rounding, where the
network has no BatchNorm and no dropout. Several machines: the same command on each, with --nnodes, --rdzv-backend=c10d,
--rdzv-endpoint=HOST:PORT and --rdzv-id (or PET_NNODES, … in the environment). All of torchrun's options hold, but
processes are never restarted here: the same command again goes on. Exit codes are those of the training."""


def main(arguments: Sequence[str]) -> int:
    """Start the processes, wait for them, and return the exit code that says what to do.

    Args:
        arguments: torchrun's options, then train or pretrain (train may be left out), then key=value.

    Raises:
        UsageError: no training is named, or an option or a value that torchrun does not have.
        PeerError: the machines have not found one another.
    """
    # torch takes seconds to import: --help does without it.
    from torch.distributed import DistError
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError
    from torch.distributed.run import determine_local_world_size, run

    options = parse(arguments)
    # torchrun would give each process one thread, and say so at length.
    try:
        processes = determine_local_world_size(options.nproc_per_node)
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
        # It tells over many lines of a process that ends; each has said why in one.
        logging.disable(logging.ERROR)
        try:
            run(options)  # type: ignore[no-untyped-call]
        finally:
            logging.disable(logging.NOTSET)
    except ChildFailedError as error:
        codes = {rank: failure.exitcode for rank, failure in sorted(error.failures.items())}
        chosen = choose_code(list(codes.values()))
        ended = ", ".join(f"process {rank} with {code}" for rank, code in codes.items())
        again = "; run the same command again to resume" if chosen == INTERRUPTED or chosen > 128 else ""
        say(f"{PROGRAM}: ended: {ended}{again}")
        return chosen
    except SignalException as error:
        # It has handed the signal on and waited for the processes, which keep where they stood.
        say(f"{PROGRAM}: {error.sigval.name}: run the same command again to resume")
        return INTERRUPTED
    except (RendezvousError, DistError) as error:
        raise PeerError(f"the machines have not found one another ({error}): run the same command again") from error
    except ValueError as error:
        raise UsageError(f"{error}: see torchrun --help for its options") from error
    return 0


def check_command(arguments: Sequence[str]) -> None:
    """Check the training's settings and inputs before torch is imported and a process started.

    What cannot be told from a value of one of torchrun's options is left to `parse` and to the training.

    Raises:
        UsageError, ConfigError, MissingInputError, DataError: as the training itself.
    """
    name, rest = "", []
    for place, argument in enumerate(arguments):
        before, after = arguments[place - 1] if place else "", arguments[place + 1 : place + 2]
        if argument.startswith("-"):
            continue
        if argument.removeprefix("medcls.") in SEVERAL_PROCESSES and all("=" in a or a[0] == "-" for a in after if a):
            name, rest = argument.removeprefix("medcls."), list(arguments[place + 1 :])
            break
        if before.startswith("-") and "=" not in before:
            continue
        if "=" not in argument:
            raise UsageError(f"{argument}: {_EXPECTED}")
        name, rest = "train", list(arguments[place:])
        break
    if not rest or any(argument.startswith("-") for argument in rest):
        return
    check = train.check_job if name == "train" else pretrain.check_job
    check(compose_job(name, rest))


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Return torchrun's options, with the module of the command that they start.

    Raises:
        UsageError: no training is named, or an option that torchrun does not have.
    """
    from torch.distributed.run import get_args_parser

    parser = get_args_parser()
    parser.exit_on_error = False
    parser.set_defaults(signals_to_handle="SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1", module=True)
    try:
        options = parser.parse_args(list(arguments))
    except (argparse.ArgumentError, SystemExit) as error:
        raise UsageError(f"{error}: see {PROGRAM} --help, and torchrun --help for its options") from error
    options.max_restarts = 0
    name = str(options.training_script)
    if "=" in name:
        options.training_script_args.insert(0, name)
        name = "train"
    name = name.removeprefix("medcls.")
    if name not in SEVERAL_PROCESSES:
        raise UsageError(f"{name}: {_EXPECTED}")
    options.training_script = f"medcls.{name}"
    return options


def choose_code(codes: Sequence[int]) -> int:
    """Return the exit code of a training whose processes ended with `codes`, of which negative ones are signals.

    What a user can mend comes before what follows from it in the other processes; then a signal, as 128 + n, which
    most often is the kernel's for memory; then 75. The agent itself ends processes with SIGTERM, which says nothing.
    """
    told = [code for code in FIRST_TOLD if code in codes]
    killed = [128 - code for code in codes if code < 0 and code != -signal.SIGTERM]
    ended = [INTERRUPTED for code in codes if code in (INTERRUPTED, -signal.SIGTERM)]
    return (told + killed + ended + [FAILED])[0]


def _run() -> int:
    show_log()
    try:
        arguments = sys.argv[1:]
        if {"-h", "--help"} & set(arguments):
            print(HELP)
            return 0
        check_command(arguments)
        return main(arguments)
    except MedclsError as error:
        say(f"{PROGRAM}: {error}")
        return error.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(_run())
