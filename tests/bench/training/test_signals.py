"""Signals wait for the end of a step, and act at once where nothing is trained."""

from __future__ import annotations

import os
import signal
import subprocess
import threading

import pytest

from bench.training.signals import Stopping


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.fixture(autouse=True)
def handlers():
    """A test's handlers go with it, and an unexpected SIGUSR2 does not end pytest."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)
    before = {number: signal.getsignal(number) for number in numbers}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_waits_for_the_step_and_a_second_one_does_not(number: int) -> None:
    stopping = Stopping()
    with stopping.listening(), pytest.raises(KeyboardInterrupt), stopping.between_steps():
        assert not stopping.wanted()
        send(number)
        assert stopping.wanted()
        reached = True
        stopping.answer()
        reached = False
    assert reached
    with stopping.listening(), pytest.raises(KeyboardInterrupt), stopping.between_steps():
        send(number)
        send(number)
        raise AssertionError("the second one was waited for")


def test_a_stop_acts_at_once_outside_of_training() -> None:
    stopping = Stopping()
    with stopping.listening(), pytest.raises(KeyboardInterrupt):
        send(signal.SIGINT)
        raise AssertionError("it was waited for")


def test_a_stop_after_the_last_step_is_answered_before_what_follows() -> None:
    stopping, reached = Stopping(), False
    with stopping.listening(), pytest.raises(KeyboardInterrupt):
        with stopping.between_steps():
            send(signal.SIGINT)
            reached = True
        raise AssertionError("what follows began")
    assert reached


def test_a_step_that_fails_fails_for_its_own_reason() -> None:
    stopping = Stopping()
    with stopping.listening(), pytest.raises(ZeroDivisionError), stopping.between_steps():
        send(signal.SIGINT)
        raise ZeroDivisionError
    with pytest.raises(KeyboardInterrupt):
        stopping.answer()  # and then the stop is answered
    stopping.answer()


def test_on_slurm_a_requeue_goes_to_submitit_when_the_state_is_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    asked: list[int] = []

    def submitits(number: int, frame: object) -> None:
        asked.append(number)
        raise SystemExit(-1)

    signal.signal(signal.SIGUSR2, submitits)
    stopping = Stopping()
    with stopping.listening(), pytest.raises(SystemExit), stopping.between_steps():
        send(signal.SIGUSR2)
        assert asked == []
        assert stopping.wanted()
        stopping.answer()
    assert asked == [signal.SIGUSR2]
    with stopping.listening(), pytest.raises(SystemExit):
        send(signal.SIGUSR2)
    assert len(asked) == 2
    assert signal.getsignal(signal.SIGUSR2) is submitits


def test_the_call_that_requeues_outlives_the_end_of_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    """SLURM's SIGTERM reaches all processes of the job; and a call that fails is no exception of the training's."""
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    codes: list[int] = []

    def submitits(number: int, frame: object) -> None:
        codes.append(subprocess.run(["sh", "-c", "kill -TERM $PPID $$; exit 7"], check=False).returncode)
        raise subprocess.CalledProcessError(codes[-1], "scontrol")

    signal.signal(signal.SIGUSR2, submitits)
    stopping = Stopping()
    with stopping.listening(), pytest.raises(SystemExit, match="not requeued: .*scontrol.* exit status 7"):
        send(signal.SIGUSR2)
    assert codes == [7]


def test_on_slurm_a_sigterm_saves_and_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes before a kill, with or without another signal."""
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    stopping = Stopping()
    with stopping.listening():
        with stopping.between_steps():
            send(signal.SIGTERM)
            assert stopping.wanted()
            stopping.answer()
            assert not stopping.wanted()
        send(signal.SIGTERM)


def test_elsewhere_than_on_slurm_a_requeue_signal_is_not_ours() -> None:
    asked: list[int] = []
    signal.signal(signal.SIGUSR2, lambda number, frame: asked.append(number))
    with Stopping().listening():
        send(signal.SIGUSR2)
    assert asked == [signal.SIGUSR2]


def test_whoever_is_no_longer_waited_for_stops() -> None:
    gone = False
    stopping = Stopping(lambda: gone)
    stopping.answer()
    gone = True
    assert stopping.wanted()
    with pytest.raises(KeyboardInterrupt):
        stopping.answer()


def test_in_another_thread_nobody_listens() -> None:
    before = signal.getsignal(signal.SIGINT)
    seen: list[object] = []

    def inside() -> None:
        with Stopping().listening():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    assert seen == [before]
