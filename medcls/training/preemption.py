"""Catch SIGTERM, SIGINT and SIGUSR1 and watch for hanging steps: checkpoint, then exit code 75."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Self

from medcls.errors import MedclsError

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
EXIT_CODE = 75
_SAME_SECONDS = 2.0


class PreemptedError(MedclsError):
    """The job was asked to end, and has kept where it stood: the same command goes on."""

    exit_code = EXIT_CODE


class Watch:
    """Notes the signals that end a job, and ends the process itself where nothing moves.

    The loop looks at `signal` after each step. Where it does not get there within `grace_seconds` of a signal (a
    hanging file system, a dead loading process), or makes no step for `hang_seconds`, the stacks of all threads are
    written to standard error and the process exits with 75; the last checkpoint is whole in any case. A second signal
    ends at once; within two seconds it counts as the first, which a batch system and torchrun's agent both hand on.

    Args:
        grace_seconds: From the signal to the end by force.
        hang_seconds: Longest time without `step`; None = any.
        leave: How to end by force.
    """

    def __init__(
        self,
        *,
        grace_seconds: float = 25.0,
        hang_seconds: float | None = None,
        leave: Callable[[int], Any] = os._exit,
    ) -> None:
        self.signal = ""
        self._grace, self._hang, self._leave = grace_seconds, hang_seconds, leave
        self._asked, self._last = 0.0, time.monotonic()
        self._before: dict[int, Any] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Self:
        # Only a main thread may set handlers; in another one the signals are somebody else's.
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        self._last = time.monotonic()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def step(self) -> None:
        """Say that something moved."""
        self._last = time.monotonic()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal:
            if time.monotonic() - self._asked > _SAME_SECONDS:
                raise KeyboardInterrupt
            return
        self.signal, self._asked = signal.Signals(number).name, time.monotonic()

    def _look(self) -> None:
        while not self._ended.wait(0.2):
            now = time.monotonic()
            if self.signal and now - self._asked > self._grace:
                self._end(f"{self.signal} came {self._grace:g} s ago and the current step has not ended")
            elif self._hang is not None and now - self._last > self._hang:
                self._end(f"no step for {self._hang:g} s")

    def _end(self, reason: str) -> None:
        with contextlib.suppress(
            OSError, ValueError
        ):  # standard error that is full, closed or no file, as in a notebook
            print(f"{reason}: stacks below; run the same command again", file=sys.stderr, flush=True)
            faulthandler.dump_traceback(file=sys.stderr)
        self._ended.set()
        self._leave(EXIT_CODE)
