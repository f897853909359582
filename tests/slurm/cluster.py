"""The test cluster (`cluster.sh`) from Python: is it up, what became of a job, and what can happen to one."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

SCRIPT = Path(__file__).with_name("cluster.sh")
PATIENCE = 120.0  # seconds: ten times what it takes on an idle machine


def script(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(SCRIPT), *arguments], capture_output=True, text=True, check=check)


def join() -> bool:
    """Let this process use the cluster; returns False where it is not up."""
    if script("status", check=False).returncode:
        return False
    name, _, value = script("env").stdout.removeprefix("export ").strip().partition("=")
    os.environ[name] = value
    return True


def call(*command: str) -> str:
    """What a command of SLURM's prints. Raises RuntimeError with what it says where it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout.strip()


def lives(job_id: str) -> list[str]:
    """States of the job's lives, oldest first: a job that was requeued has more than one. Accounting is late by
    seconds: wait for what is expected."""
    rows = call("sacct", "-X", "-n", "-D", "-P", "-o", "JobID,State", "-j", job_id).splitlines()
    return [state.split()[0] for name, _, state in (row.partition("|") for row in rows) if name == job_id]


def queued(job_id: str) -> str:
    """The state of a job in the queue; empty once it has left it."""
    with suppress(RuntimeError):  # SLURM forgets jobs that ended minutes ago
        return call("squeue", "-h", "-o", "%T", "-j", job_id)
    return ""


def node_of(job_id: str) -> str:
    return call("squeue", "-h", "-o", "%N", "-j", job_id)


def node_state(node: int) -> str:
    return call("sinfo", "-h", "-N", "-p", "local", "-n", f"node{node}", "-o", "%T")


def processes(job_id: str) -> list[int]:
    """The pids of the job's tasks: the Python processes, not srun and not shells."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            command = (folder / "cmdline").read_bytes().split(b"\0")
            if b"submitit.core._submit" not in command or b"python" not in Path(os.fsdecode(command[0])).name.encode():
                continue
            pairs = (pair.partition(b"=") for pair in (folder / "environ").read_bytes().split(b"\0"))
            environment = {key.decode(): value.decode() for key, _, value in pairs if key.startswith(b"SLURM_")}
            if environment.get("SLURM_CONF") != os.environ["SLURM_CONF"]:
                continue
            if "SLURM_ARRAY_JOB_ID" in environment:
                name = f"{environment['SLURM_ARRAY_JOB_ID']}_{environment['SLURM_ARRAY_TASK_ID']}"
            else:
                name = environment.get("SLURM_JOB_ID", "")
            if name == job_id:
                found.append(int(folder.name))
    return found


def kill_tasks(job_id: str) -> None:
    """kill -9, as the kernel does when memory runs out."""
    for pid in processes(job_id):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def wait_for(condition: Callable[[], object], what: str) -> None:
    """Raises AssertionError, which says what was waited for, where it does not come about in time."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, f"waited {PATIENCE:g} s in vain: {what}"
        time.sleep(0.2)
