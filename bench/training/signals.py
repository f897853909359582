"""Signals that ask a process to stop, answered between two steps, when its state is whole and can be saved.

Ctrl-C (SIGINT), and SIGTERM on a laptop, end the process. Under SLURM, SIGUSR2 says that the job is preempted or out
of time: submitit has it requeued. SIGTERM comes there before a kill, perhaps without another signal: what can be saved
is saved, and the training goes on. Outside of training each signal acts at once.
"""

from __future__ import annotations

import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from bench.records.environment import on_slurm

REQUEUE = signal.SIGUSR2  # submitit's, for a job that is preempted or out of time
Handler = Callable[[int, FrameType | None], object]


class Stopping:
    """What has been asked of this process. `orphaned` says whether nobody waits for it any more."""

    def __init__(self, orphaned: Callable[[], bool] = lambda: False) -> None:
        self._orphaned = orphaned
        self._asked: int | None = None  # the signal to stop for
        self._save = False
        self._stepping = False
        self._requeue: Handler | None = None

    def wanted(self) -> bool:
        """Shall the training save its state now?"""
        return self._save or self._asked is not None or self._orphaned()

    def answer(self) -> None:
        """The state has been saved: stop, if that is what was asked. Raises KeyboardInterrupt or SystemExit then."""
        self._save = False
        asked, self._asked = self._asked, None
        if asked == REQUEUE and self._requeue is not None:
            self._have_requeued(asked, None)
        elif asked is not None or self._orphaned():
            raise KeyboardInterrupt

    @contextmanager
    def between_steps(self) -> Iterator[None]:
        """Inside, signals wait for `answer`; a second one, or a stop that comes after the last, acts at once."""
        self._stepping = True
        try:
            yield
        finally:
            self._stepping = False
        self.answer()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Inside, this object handles the signals (in the main thread; elsewhere nobody can)."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, REQUEUE)}
        theirs = before[REQUEUE]
        signal.signal(signal.SIGINT, self._stop)
        signal.signal(signal.SIGTERM, self._save_only if on_slurm() else self._stop)
        if on_slurm() and callable(theirs):
            self._requeue = theirs
            signal.signal(REQUEUE, self._stop)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        if self._stepping and self._asked is None:
            self._asked = number
        elif number == REQUEUE and self._requeue is not None:
            self._have_requeued(number, frame)
        else:
            raise KeyboardInterrupt

    def _have_requeued(self, number: int, frame: FrameType | None) -> None:
        """submitit calls scontrol and exits. The SIGTERM with which SLURM then ends the job reaches that call too, and
        ends it before it has returned, unless it is ignored. Whatever comes of it is no failure of the run."""
        assert self._requeue is not None
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # which children inherit
        try:
            self._requeue(number, frame)
        except (OSError, subprocess.SubprocessError) as error:
            raise SystemExit(f"the job was not requeued: {error}") from error

    def _save_only(self, number: int, frame: FrameType | None) -> None:
        self._save = self._stepping
