"""SLURM as this suite uses it: options of jobs, and their state in the queue.

Jobs are submitted through submitit. Their state comes from `squeue`, and from `sacct` once they have left the queue.
Whether a run is done is never asked of SLURM: its record says so.
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
"""Short names of the usual parameters, with submitit's names."""
LISTS = ("setup", "teardown", "srun_args")
NOT_YOURS = {
    "ntasks_per_node": "--ranks N says how many processes train a run together",
    "map_count": "the grid says how many jobs there are",
    "stderr_to_stdout": "every job has its own files for output and errors",
}
DEFAULTS: dict[str, Any] = {"time": 240, "job_name": "bench", "signal_delay_s": 90, "cpus_per_task": 1}
LOOK_EVERY = 2.0  # seconds between calls of squeue
UNTIL_GONE = 3  # calls in a row in which a job must be missing before it counts as gone


@dataclass(frozen=True)
class SlurmOptions:
    """Parameters of submitit's executor, and how often a job may be requeued."""

    parameters: dict[str, Any] = field(default_factory=lambda: dict(DEFAULTS))
    requeues: int = 20

    @property
    def threads(self) -> int:
        return int(self.parameters.get("cpus_per_task") or 1)


def read_options(texts: Sequence[str]) -> SlurmOptions:
    """Read `--slurm key=value`; keys of lists add up, of others the last one counts. Raises ValueError, which says what
    would be right."""
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
    """submitit's parameters with their defaults, without those that users can't set."""
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
        raise ValueError(f"--slurm {key}='{value}' must be a whole number of at least {least}.")
    return int(value)


def _minutes(value: str) -> int:
    """A time limit in minutes, read from SLURM's own forms: minutes, M:S, H:M:S, D-H, D-H:M, D-H:M:S."""
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
        raise ValueError(f"--slurm time='{value}' must be at least one minute.")
    return total


def _memory(value: str) -> str:
    """Memory in SLURM's form, from `8`, `8GB`, `8G` (gigabytes), `500MB` or `500M`."""
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
    """A job in the queue; `state` and `reason` (why it waits) are SLURM's words."""

    state: str
    node: str = ""
    reason: str = ""


class Queue:
    """This user's jobs as `squeue` shows them, called every few seconds at most, however often it is asked."""

    def __init__(self) -> None:
        self._jobs: dict[str, Job] = {}
        self._missing: dict[str, int] = {}
        self._gone_at: dict[str, float] = {}
        self._looked = float("-inf")
        self._lock = threading.Lock()  # two threads use it: one waits, one watches

    def job(self, job_id: str) -> Job | None:
        """The job, or None once it has been missing from the queue several times in a row."""
        with self._lock:
            self._missing.setdefault(job_id, 0)
            self._look()
            if job_id in self._jobs:
                return self._jobs[job_id]
            return Job("UNKNOWN") if self._missing[job_id] < UNTIL_GONE else None

    def gone_for(self, job_id: str) -> float:
        """Seconds since the job was found to have left the queue; 0 while it has not."""
        return 0.0 if self.job(job_id) is not None else self._looked - self._gone_at[job_id]

    def alive(self, job_ids: Iterable[str]) -> set[str]:
        """The ones that are in the queue now. Raises OSError where SLURM does not answer."""
        known = _squeue()
        return {job_id for job_id in job_ids if job_id in known}

    def _look(self) -> None:
        if time.monotonic() - self._looked < LOOK_EVERY:
            return
        try:
            self._jobs, answered = _squeue(), True
        except OSError:
            answered = False  # the controller restarts or is too busy: the last answer counts until there is a new one
        self._looked = time.monotonic()  # after the call, which takes long where no answer comes
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
    """The user of this process, whatever LOGNAME says; the number where there is no name, as in some containers."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def ended_as(job_id: str) -> str:
    """How a job ended that has left the queue, in SLURM's words ("CANCELLED by 0", "TIMEOUT"); "" if not known."""
    try:
        lines = _ask("sacct", "--noheader", "--parsable2", "--allocations", "--jobs", job_id, "--format", "State")
    except OSError:
        return ""
    return lines[-1].strip() if lines else ""


def explain(job_id: str, state: str) -> str:
    """Why a run is not done, from the state in which its job ended."""
    known = {
        "CANCELLED": "cancelled",
        "TIMEOUT": "out of time, and not requeued: give it more with --slurm time=MINUTES",
        "OUT_OF_MEMORY": "out of memory: give it more with --slurm mem=GB, or use a smaller batch",
        "NODE_FAIL": "its node failed",
        "PREEMPTED": "preempted, and not requeued",
        "FAILED": "its process was killed, or could not start",
        "COMPLETED": "ended before the run was finished: the same command continues it",
    }
    words = state.split()
    return f"{known.get(words[0], f'ended as {state}') if words else 'left the queue'} (SLURM job {job_id})"


def _ask(*command: str) -> list[str]:
    """The lines that a SLURM command prints. Raises OSError where it is not installed, fails or does not answer."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except subprocess.TimeoutExpired as error:
        raise TimeoutError(f"{command[0]} does not answer") from error
    if done.returncode != 0:
        raise OSError(f"{command[0]} failed: {done.stderr.strip()}")
    return done.stdout.splitlines()
