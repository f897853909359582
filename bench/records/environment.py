"""The machine and the software that a number came from, and the allocator's settings that it came under."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass

import ctypes
import functools
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

CONDITIONS = {"machine": "", "system": "", "threads": 1, "ranks": 1, "python": "", "versions": {}}
"""What trained weights depend on to the last bit besides the spec, with what holds where a record does not say."""
PACKAGES = ("torch", "torchvision", "timm", "xformers", "fvcore", "lightning-fabric", "numpy", "scikit-learn")
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
RAISED = 1 << 30  # bytes; glibc takes no mmap threshold above its own maximum, so the heap serves what it can


@functools.cache
def raise_allocator_thresholds() -> str:
    """Keep freed memory in the process instead of returning it to the system, once, and say what was done.

    On a CPU, returning big blocks after every step costs dense training up to 1.4x and methods with fewer tokens
    less, which would flatter them.
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
    """This moment, ISO 8601 in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


@functools.cache
def machine() -> str:
    """The processor (or the GPU) by name, with the number of cores."""
    import torch

    cpu = f"{_cpu_name()}, {cores()} cores"
    return f"{torch.cuda.get_device_name(0)} ({cpu})" if torch.cuda.is_available() else cpu


def environment(threads: int, ranks: int | None = None) -> dict[str, Any]:
    """What stands in every record about where it was made; `ranks` where they are not those of this process."""
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
        "ranks": ranks_here() if ranks is None else ranks,  # processes that train together
        "allocator": raise_allocator_thresholds(),
        **_git(),
    }


def conditions(environment: Mapping[str, Any]) -> dict[str, Any]:
    """Those of an environment."""
    return {name: environment.get(name, unsaid) for name, unsaid in CONDITIONS.items()}


def _cpu_name(account: Path = Path("/proc/cpuinfo")) -> str:
    """With family and model where Linux says them: virtual machines call processors alike that round otherwise."""
    try:
        lines = account.read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    said = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in reversed(lines))}
    name, kind = said.get("model name", platform.machine()), (said.get("cpu family"), said.get("model"))
    return f"{name} (family {kind[0]}, model {kind[1]})" if all(kind) else name


@functools.cache
def _git() -> dict[str, Any]:
    """Commit of the code, and whether it was changed since; blank outside a checkout."""
    here = Path(__file__).parent

    def git(*args: str) -> str:
        done = subprocess.run(["git", "-C", str(here), *args], capture_output=True, text=True, timeout=20, check=True)
        return done.stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.SubprocessError):
        return {"commit": "", "dirty": None}


def ranks_here() -> int:
    """How many ranks train together, this process among them: those that it has met."""
    import torch.distributed as dist

    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def slurm_job() -> tuple[str, int]:
    """The SLURM job whose task this process is, `12` or `12_3` of an array, and how often it was requeued. ("", 0) for
    none, also where a user works inside an allocation of their own."""
    if not on_slurm():
        return "", 0
    job = os.environ.get("SLURM_JOB_ID", "")
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    restart = os.environ.get("SLURM_RESTART_COUNT", "0")
    return f"{array}_{task}" if array and task else job, int(restart) if restart.isdecimal() else 0


def on_slurm() -> bool:
    """Is this process a task of a SLURM job that submitit started?"""
    return os.environ.get("SUBMITIT_EXECUTOR") == "slurm"
