"""Handles signals that ask a process to stop, between two training steps, when its state can be saved.

SIGINT (Ctrl-C), and SIGTERM outside SLURM, end the process. Under SLURM, SIGUSR2 means that the job is preempted or out
of time, and submitit requeues it. SIGTERM precedes a kill there, perhaps without any other signal: the state is saved
and the training continues. Outside of training every signal acts at once.
"""

from __future__ import annotations

import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from bench.records.environment import on_slurm

REQUEUE = signal.SIGUSR2  # sent by submitit when a job is preempted or out of time
Handler = Callable[[int, FrameType | None], object]


class Stopping:
    """What this process was asked to do. `orphaned` tells whether nobody waits for it any more."""

    def __init__(self, orphaned: Callable[[], bool] = lambda: False) -> None:
        self._orphaned = orphaned
        self._asked: int | None = None  # the signal to stop for
        self._save = False
        self._stepping = False
        self._requeue: Handler | None = None

    def wanted(self) -> bool:
        """Should the training save its state now?"""
        return self._save or self._asked is not None or self._orphaned()

    def answer(self) -> None:
        """Stop if that was asked, now that the state is saved: raises KeyboardInterrupt or SystemExit."""
        self._save = False
        asked, self._asked = self._asked, None
        if asked == REQUEUE and self._requeue is not None:
            self._have_requeued(asked, None)
        elif asked is not None or self._orphaned():
            raise KeyboardInterrupt

    @contextmanager
    def between_steps(self) -> Iterator[None]:
        """Defer signals to the next `answer` inside the block. A second signal acts at once."""
        self._stepping = True
        try:
            yield
        finally:
            self._stepping = False
        self.answer()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handle the signals inside the block. Does nothing outside the main thread, where Python allows none."""
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
        """Call submitit's handler, which requeues the job by scontrol and exits.

        SLURM then ends the job by a SIGTERM, which would also end scontrol before it returns unless it is ignored. A
        failure here is not a failure of the run.
        """
        assert self._requeue is not None
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # inherited by child processes
        try:
            self._requeue(number, frame)
        except (OSError, subprocess.SubprocessError) as error:
            raise SystemExit(f"the job was not requeued: {error}") from error

    def _save_only(self, number: int, frame: FrameType | None) -> None:
        self._save = self._stepping
