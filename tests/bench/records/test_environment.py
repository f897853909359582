"""What a record says about the machine, against what the system says."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

import pytest

from bench.records import environment as module
from bench.records.environment import environment, raise_allocator_thresholds


def test_versions_threads_and_commit() -> None:
    found = environment(3)
    assert found["threads"] == 3
    assert found["ranks"] == 1
    assert found["python"] == platform.python_version()
    for package in ("torch", "timm", "numpy"):
        assert found["versions"][package] == version(package)
    if hasattr(os, "sched_getaffinity"):
        assert f"{len(os.sched_getaffinity(0))} cores" in found["machine"]
    root = Path(module.__file__).parent
    git = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True)
    assert found["commit"] == git.stdout.strip()
    assert found["dirty"] in ((True, False) if git.returncode == 0 else (None,))


def test_ranks_are_those_that_were_met(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.records.environment.ranks_here", lambda: 4)
    assert environment(1)["ranks"] == 4


def test_processors_of_one_name_are_told_apart_by_family_and_model(tmp_path: Path) -> None:
    account = tmp_path / "cpuinfo"
    two = [f"processor\t: {i}\ncpu family\t: 25\nmodel\t: 17\nmodel name\t: AMD EPYC\nstepping\t: 1" for i in (0, 1)]
    account.write_text("\n\n".join(two))
    assert module._cpu_name(account) == "AMD EPYC (family 25, model 17)"
    account.write_text("processor\t: 0\nBogoMIPS\t: 50.00\nCPU part\t: 0xd0c\n")
    assert module._cpu_name(account) == platform.machine()
    assert module._cpu_name(tmp_path / "nowhere") != ""


def test_packages_that_are_not_there_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PACKAGES", ("torch", "no-such-package"))
    assert environment(1)["versions"]["no-such-package"] == "not installed"


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the thresholds are glibc's")
def test_freed_memory_stays_in_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both thresholds are raised by mallopt with malloc.h's numbers, and that stands in the record."""
    calls = []

    class Library:
        def __init__(self, name: str) -> None:
            assert name == "libc.so.6"

        def mallopt(self, option: int, value: int) -> int:
            calls.append((option, value))
            return 1

    raise_allocator_thresholds.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(module.ctypes, "CDLL", Library)
        said = raise_allocator_thresholds()
    assert sorted(calls) == [(-3, 1 << 30), (-1, 1 << 30)]  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD
    assert "raised to 1 GiB" in said
    raise_allocator_thresholds.cache_clear()
    assert environment(1)["allocator"] == raise_allocator_thresholds()
