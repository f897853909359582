"""What all tests share. One thread a process: xdist runs several side by side, and threads that wait for each other
take far longer."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported, and by workers that tests start


def pytest_collection_finish() -> None:
    """What was imported stays: the garbage collector need not look at it again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def registries() -> Iterator[None]:
    """Plug-ins that a test loads are forgotten after it."""
    from methods import OBJECTIVES, STRATEGIES

    before = [(registry, dict(registry)) for registry in (OBJECTIVES, STRATEGIES)]
    yield
    for registry, entries in before:
        registry.clear()
        registry.update(entries)
