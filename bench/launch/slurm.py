"""SLURM, as this suite uses it: options for jobs, and what the queue says of them.

Jobs are submitted through submitit; how they stand is asked of `squeue`, and of `sacct` once they are gone. Whether a
run is done is never asked of SLURM: its record says so.
"""

from __future__ import annotations

import os
import pwd
import shlex
import subprocess
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from methods.names import suggest

OWN = {
    "gpus": "gpus_per_node",
    "cpus": "cpus_per_task",
    "parallel": "array_parallelism",
    "time": "time",
}
"""Short names of the usual parameters, and submitit's for them."""
LISTS = ("setup", "teardown", "srun_args")
NOT_YOURS = {
    "ntasks_per_node": "--ranks N says how many processes train a run together",
    "map_count": "the number of runs is the grid's",
    "stderr_to_stdout": "the logs have one place each",
}
DEFAULTS: dict[str, Any] = {"time": 240, "job_name": "bench", "signal_delay_s": 90, "cpus_per_task": 1}
LOOK_EVERY = 2.0  # seconds between questions to the queue
UNTIL_GONE = 3  # times in a row that a job is missing from it before it counts as gone


@dataclass(frozen=True)
class SlurmOptions:
    """Parameters of submitit's executor, and how often a job may be requeued."""

    parameters: dict[str, Any] = field(default_factory=lambda: dict(DEFAULTS))
    requeues: int = 20

    @property
    def threads(self) -> int:
        return int(self.parameters.get("cpus_per_task") or 1)


def read_options(texts: Sequence[str]) -> SlurmOptions:
    """`--slurm key=value`, each once but for lists of lines. Raises ValueError, which says what would be right."""
    parameters: dict[str, Any] = dict(DEFAULTS)
    known = _parameters()
    requeues = SlurmOptions().requeues
    for text in texts:
        key, equals, value = (part.strip() for part in text.partition("="))
        if not equals or not key or not value:
            raise ValueError(f"--slurm '{text}' can't be read: write key=value, e.g. --slurm partition=gpu.")
        if key == "requeues":
            requeues = _whole(key, value, 0)
        elif key.startswith("additional_parameters."):
            parameters.setdefault("additional_parameters", {})[key.partition(".")[2]] = value
        elif key in NOT_YOURS:
            raise ValueError(f"--slurm {key} can't be set: {NOT_YOURS[key]}.")
        elif key in LISTS:
            parameters.setdefault(key, []).extend(shlex.split(value) if key == "srun_args" else [value])
        elif key in OWN or key in known:
            parameters[OWN.get(key, key)] = _value(key, value, known.get(OWN.get(key, key)))
        else:
            raise ValueError(f"unknown --slurm key '{key}': {suggest(key, sorted({*OWN, *known, 'requeues'}))}")
    return SlurmOptions(parameters, requeues)


def _parameters() -> dict[str, Any]:
    """submitit's parameters with their defaults, without those that are not the user's."""
    from submitit.slurm import slurm

    known: dict[str, Any] = slurm._get_default_parameters()
    return {key: value for key, value in known.items() if key not in NOT_YOURS}


def _value(key: str, value: str, default: Any) -> Any:
    if key == "time":
        return _minutes(value)
    if key == "mem":
        return _memory(value)
    if isinstance(default, bool) or key == "exclusive":
        return {"true": True, "false": False}.get(value.lower(), value)
    whole = key in OWN or isinstance(default, int) or key in ("nodes", "num_gpus", "gpus_per_node", "cpus_per_task")
    return _whole(key, value, 0 if "gpu" in key else 1) if whole else value


def _whole(key: str, value: str, least: int) -> int:
    if not value.isdecimal() or int(value) < least:
        raise ValueError(f"--slurm {key}='{value}': a whole number from {least} on is needed.")
    return int(value)


def _minutes(value: str) -> int:
    """SLURM's own forms: minutes, M:S, H:M:S, D-H, D-H:M, D-H:M:S."""
    days, dash, rest = value.partition("-") if "-" in value else ("0", "", value)
    parts = rest.split(":")
    if not all(part.isdecimal() for part in [days, *parts]) or len(parts) > 3:
        raise ValueError(f"--slurm time='{value}' can't be read: write minutes, H:MM:SS or D-HH:MM:SS.")
    numbers = [int(part) for part in parts]
    if dash:
        hours, minutes, seconds = (*numbers, 0, 0)[:3]
    elif len(numbers) == 3:
        hours, minutes, seconds = numbers
    else:
        hours, minutes, seconds = (0, *numbers, 0)[:3]
    total = (int(days) * 24 + hours) * 60 + minutes + (seconds > 0)
    if total < 1:
        raise ValueError(f"--slurm time='{value}' leaves no time.")
    return total


def _memory(value: str) -> str:
    """Of `8`, `8GB`, `8G` (gigabytes), `500MB`, `500M`, in SLURM's form."""
    text = value.upper().removesuffix("B")
    scale = {"G": 1.0, "M": 1 / 1024, "T": 1024.0}.get(text[-1:], 0.0)
    number = text[:-1] if scale else text
    try:
        size = float(number) * (scale or 1.0)
    except ValueError:
        size = 0.0
    if not 0 < size < float("inf"):
        raise ValueError(f"--slurm mem='{value}' can't be read: write gigabytes, e.g. 8 or 8GB, or 500MB.")
    return f"{max(1, round(size * 1024))}M"


@dataclass(frozen=True)
class Job:
    """A job as the queue shows it."""

    state: str  # SLURM's word for it
    node: str = ""
    reason: str = ""  # why it waits, in SLURM's word


class Queue:
    """What `squeue` says of this user's jobs, asked every few seconds at most, however many ask."""

    def __init__(self) -> None:
        self._jobs: dict[str, Job] = {}
        self._missing: dict[str, int] = {}
        self._gone_at: dict[str, float] = {}
        self._looked = float("-inf")
        self._lock = threading.Lock()  # who waits and who watches are two threads

    def job(self, job_id: str) -> Job | None:
        """None once it has been missing from the queue for several looks."""
        with self._lock:
            self._missing.setdefault(job_id, 0)
            self._look()
            if job_id in self._jobs:
                return self._jobs[job_id]
            return Job("UNKNOWN") if self._missing[job_id] < UNTIL_GONE else None

    def gone_for(self, job_id: str) -> float:
        """Seconds since the job was first found to be gone; 0 while it is not."""
        return 0.0 if self.job(job_id) is not None else self._looked - self._gone_at[job_id]

    def alive(self, job_ids: Iterable[str]) -> set[str]:
        """Those that are in the queue now. Raises OSError where it can't be asked."""
        known = _squeue()
        return {job_id for job_id in job_ids if job_id in known}

    def _look(self) -> None:
        if time.monotonic() - self._looked < LOOK_EVERY:
            return
        try:
            self._jobs, answered = _squeue(), True
        except OSError:
            answered = False  # the controller restarts, or is too busy: what was known stands until it answers
        self._looked = time.monotonic()  # now: where no answer comes it takes a while to be told so
        if not answered:
            return
        for job_id in self._missing:
            self._missing[job_id] = 0 if job_id in self._jobs else self._missing[job_id] + 1
            if self._missing[job_id] == UNTIL_GONE:
                self._gone_at[job_id] = self._looked


def _squeue() -> dict[str, Job]:
    """The user's jobs by id, `12` or `12_3` of an array. Raises OSError where SLURM does not answer."""
    lines = _ask("squeue", "--noheader", "--array", "--user", _user(), "--format", "%i|%T|%N|%r")
    fields = [[part.strip() for part in line.split("|")] for line in lines if line.count("|") == 3]
    return {job_id: Job(state, node, "" if why == "None" else why) for job_id, state, node, why in fields}


def _user() -> str:
    """Who this process runs as, whatever LOGNAME says; by number where no name is known, as in some containers."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def ended_as(job_id: str) -> str:
    """How a job that left the queue ended, in SLURM's words ("CANCELLED by 0", "TIMEOUT"); "" where nobody knows."""
    try:
        lines = _ask("sacct", "--noheader", "--parsable2", "--allocations", "--jobs", job_id, "--format", "State")
    except OSError:
        return ""
    return lines[-1].strip() if lines else ""


def explain(job_id: str, state: str) -> str:
    """Why a run is not done whose job ended in this state."""
    known = {
        "CANCELLED": "cancelled",
        "TIMEOUT": "out of time, and not requeued: give it more with --slurm time=MINUTES",
        "OUT_OF_MEMORY": "out of memory: give it more with --slurm mem=GB, or use a smaller batch",
        "NODE_FAIL": "its node failed",
        "PREEMPTED": "preempted, and not requeued",
        "FAILED": "its process was killed, or could not start",
        "COMPLETED": "ended, and the run is not finished: the same command again goes on",
    }
    words = state.split()
    return f"{known.get(words[0], f'ended as {state}') if words else 'left the queue'} (SLURM job {job_id})"


def _ask(*command: str) -> list[str]:
    """The lines that a command of SLURM's prints. Raises OSError where it is not there, fails or does not answer."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except subprocess.TimeoutExpired as error:
        raise TimeoutError(f"{command[0]} does not answer") from error
    if done.returncode != 0:
        raise OSError(f"{command[0]} fails: {done.stderr.strip()}")
    return done.stdout.splitlines()
