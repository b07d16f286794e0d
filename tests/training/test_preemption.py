"""Signals are noted and the work at hand ends; what hangs is ended, with its stacks."""

from __future__ import annotations

import io
import os
import signal
import sys
import time

import pytest

from medcls.training.preemption import SIGNALS, Watch


@pytest.mark.parametrize("number", SIGNALS)
def test_signal_is_noted_and_handlers_come_back(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with Watch() as watch:
        assert watch.signal == ""
        os.kill(os.getpid(), number)
        assert watch.signal == number.name
    assert signal.getsignal(number) is before


def test_second_signal_ends_at_once_unless_it_is_the_first_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    with Watch() as watch:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert watch.signal
        now = time.monotonic()
        monkeypatch.setattr("medcls.training.preemption.time.monotonic", lambda: now + 3)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)


def wait_for(codes: list[int]) -> None:
    limit = time.monotonic() + 20
    while not codes and time.monotonic() < limit:
        time.sleep(0.02)


def test_step_that_does_not_end_after_a_signal_is_ended_with_75(capfd: pytest.CaptureFixture[str]) -> None:
    codes: list[int] = []
    with Watch(grace_seconds=0.1, leave=codes.append):
        os.kill(os.getpid(), signal.SIGUSR1)
        wait_for(codes)
    assert codes == [75]
    err = capfd.readouterr().err
    assert "SIGUSR1 came 0.1 s ago" in err
    assert "wait_for" in err  # the stack of what hangs


def test_hang_is_ended_with_75_where_standard_error_is_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a notebook: the stacks cannot be written."""
    codes: list[int] = []
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with Watch(hang_seconds=0.1, leave=codes.append):
        wait_for(codes)
    assert codes == [75]


def test_hang_is_ended_with_75_and_steps_keep_it_alive(capfd: pytest.CaptureFixture[str]) -> None:
    codes: list[int] = []
    with Watch(hang_seconds=1.5, leave=codes.append) as watch:
        for _ in range(40):
            time.sleep(0.05)
            watch.step()
        assert codes == []
        wait_for(codes)
    assert codes == [75]
    assert "no step for 1.5 s" in capfd.readouterr().err
