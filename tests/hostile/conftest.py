"""A folder of its own for every case, which is compared before and after; a phantom and a home for all of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bench import small
from tests.hostile.harness import PRIVATE, Commands


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The phantom that all cases share; and matplotlib's list of fonts, which it writes once to a user's home."""
    import matplotlib.font_manager  # noqa: F401

    from datasets import load

    folder = tmp_path_factory.mktemp("shared") / "cache"
    load("phantom", 32, cache=folder, patients=60, images_per_patient=2.0)
    return folder


@pytest.fixture
def bench(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Commands:
    """Commands that run in a folder of their own, with a home of their own, and can't reach a network."""
    monkeypatch.setattr("bench.grid.plan.cores", lambda: 1)
    small.count_once(monkeypatch)
    made = Commands(tmp_path, cache)
    monkeypatch.chdir(tmp_path / PRIVATE)
    monkeypatch.setenv("HOME", str(tmp_path / PRIVATE))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return made
