"""Processes that tests start: several together, as the ranks of a job are, and forks, which start without delay."""

from __future__ import annotations

import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


class Forked(ForkProcess):
    """`subprocess.Popen([sys.executable, ..., "-m", module, *arguments])` as a fork of this process.

    A new Python takes seconds to import torch and all, which a fork has. What a test has patched is patched there too.
    """

    def __init__(
        self,
        command: Sequence[str],
        env: Mapping[str, str] | None = None,
        stdout: Any = None,
        stderr: Any = None,
        start_new_session: bool = False,
        **others: Any,
    ) -> None:
        import bench.experiment  # noqa: F401

        ready, told = os.pipe()
        self._module = list(command[command.index("-m") + 1 :])
        self._surroundings = env, {1: stdout, 2: stderr}, start_new_session, told
        super().__init__()
        self.start()
        os.close(told)
        os.read(ready, 1)
        os.close(ready)

    def run(self) -> None:
        """Become the module, as if Python had been started with it."""
        env, files, start_new_session, told = self._surroundings
        for number, file in files.items():
            if file is not None:
                os.dup2(file if isinstance(file, int) else file.fileno(), number)
        sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in files)  # noqa: SIM115
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if env is not None:
            os.environ.clear()
            os.environ.update(env)
        if start_new_session:
            os.setsid()
        os.close(told)
        sys.argv = self._module
        runpy.run_module(self._module[0], run_name="__main__", alter_sys=True)

    @property
    def returncode(self) -> int | None:
        return self.exitcode

    def poll(self) -> int | None:
        return self.exitcode

    def send_signal(self, number: int) -> None:
        if self.pid is not None and self.is_alive():
            os.kill(self.pid, number)

    def wait(self, timeout: float | None = None) -> int | None:
        self.join(timeout)
        if self.exitcode is None:
            raise subprocess.TimeoutExpired(self._module, timeout or 0.0)
        return self.exitcode


def run_together(commands: Sequence[tuple[Sequence[str], Mapping[str, str] | None]], seconds: float = 300) -> None:
    """Run forks for all commands at once, each with its environment (None: this process's), and see each end well."""
    processes = [Forked(command, environment) for command, environment in commands]
    try:
        for process in processes:
            assert process.wait(seconds) == 0
    finally:
        for process in processes:
            process.kill()
