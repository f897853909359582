"""The machine and software that produced a number, and the settings of the memory allocator."""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

CONDITIONS = {"machine": "", "system": "", "threads": 1, "ranks": 1, "python": "", "versions": {}}
"""What trained weights depend on to the last bit besides the spec, with the value for records that do not state it."""
PACKAGES = ("torch", "torchvision", "timm", "xformers", "fvcore", "lightning-fabric", "numpy", "scikit-learn")
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
RAISED = 1 << 30  # bytes; glibc takes no mmap threshold above its own maximum, so the heap serves what it can


@functools.cache
def raise_allocator_thresholds() -> str:
    """Keep freed memory in the process instead of returning it to the system; returns what was set, as a record states
    it. Only the first call sets anything.

    On a CPU, returning large blocks after every step slows dense training by up to 1.4x and methods with fewer tokens
    by less, so that those would look faster than they are.
    """
    if platform.system() != "Linux":
        return "default"
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except OSError:
        return "default"
    done = [mallopt(M_MMAP_THRESHOLD, RAISED), mallopt(M_TRIM_THRESHOLD, RAISED)]
    return "glibc, mmap and trim thresholds raised to 1 GiB" if all(done) else "default"


def now() -> str:
    """The current time, ISO 8601 in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def cores() -> int:
    """The number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


@functools.cache
def machine() -> str:
    """The name of the processor, or of the GPU, with the number of cores."""
    import torch

    cpu = f"{_cpu_name()}, {cores()} cores"
    return f"{torch.cuda.get_device_name(0)} ({cpu})" if torch.cuda.is_available() else cpu


def environment(threads: int, ranks: int | None = None) -> dict[str, Any]:
    """The environment that a record states: software, machine, threads, ranks, allocator, commit.

    `ranks` is the number of processes that train together; by default that of this process.
    """
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": versions,
        "machine": machine(),
        "threads": threads,
        "ranks": ranks_here() if ranks is None else ranks,
        "allocator": raise_allocator_thresholds(),
        **_git(),
    }


def conditions(environment: Mapping[str, Any]) -> dict[str, Any]:
    """The CONDITIONS of an environment."""
    return {name: environment.get(name, default) for name, default in CONDITIONS.items()}


def _cpu_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's name, with family and model where Linux reports them: virtual machines give one name to
    processors that round differently."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    fields = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in reversed(lines))}
    name, family, model = fields.get("model name", platform.machine()), fields.get("cpu family"), fields.get("model")
    return f"{name} (family {family}, model {model})" if family and model else name


@functools.cache
def _git() -> dict[str, Any]:
    """The commit of the code, and whether the code was changed since; blank outside a checkout."""
    here = Path(__file__).parent

    def git(*args: str) -> str:
        done = subprocess.run(["git", "-C", str(here), *args], capture_output=True, text=True, timeout=20, check=True)
        return done.stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.SubprocessError):
        return {"commit": "", "dirty": None}


def ranks_here() -> int:
    """The number of ranks that train together, this process included."""
    import torch.distributed as dist

    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def slurm_job() -> tuple[str, int]:
    """The SLURM job whose task this process is (`12`, or `12_3` of an array), and how often it was requeued.

    ("", 0) outside of such a job, and where a user works inside an allocation of their own.
    """
    if not on_slurm():
        return "", 0
    job = os.environ.get("SLURM_JOB_ID", "")
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    restart = os.environ.get("SLURM_RESTART_COUNT", "0")
    return f"{array}_{task}" if array and task else job, int(restart) if restart.isdecimal() else 0


def on_slurm() -> bool:
    """Whether this process is a task of a SLURM job that submitit started."""
    return os.environ.get("SUBMITIT_EXECUTOR") == "slurm"
