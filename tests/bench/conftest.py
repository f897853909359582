"""What the tests of the harness share. Every process of pytest has a cache and a phantom of its own."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from tests.bench import small
from tests.processes import Forked


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def phantom(cache):
    from datasets import load

    return load("phantom", 32, cache=cache, patients=60, images_per_patient=2.0)


@pytest.fixture(scope="session")
def fabric():
    from lightning_fabric import Fabric

    return Fabric(accelerator="cpu", devices=1)


@pytest.fixture(scope="session")
def synthetic() -> ModuleType:
    """The module that makes up a results folder, for tests of the analysis."""
    from tests.bench.analysis import synthetic

    return synthetic


@pytest.fixture
def world(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> small.World:
    monkeypatch.setattr("bench.grid.plan.cores", lambda: 1)  # one thread, as everywhere in the tests
    small.count_once(monkeypatch)
    return small.World(tmp_path, cache)


@pytest.fixture
def light(monkeypatch: pytest.MonkeyPatch) -> None:
    """No MACs counted and no report drawn, for tests that are about neither: both take longer than the small runs."""
    small.make_light(monkeypatch)


@pytest.fixture
def forks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Local workers, and the controllers that submitit starts for them, are forks of this process."""
    import submitit.local.local

    monkeypatch.setattr(submitit.local.local, "subprocess", SimpleNamespace(Popen=Forked))
    monkeypatch.setattr(logging.getLogger("submitit"), "handlers", [])  # which write to the output of an earlier test


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    """The results folder of one finished run of SparseContrast, with two evaluations; not to be changed."""
    world = small.World(tmp_path_factory.mktemp("verify"), cache)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bench.grid.plan.cores", lambda: 1)
        small.count_once(patch)
        patch.setattr("bench.analysis.page.write_report", small.light_report)
        result = world.run("--methods", "sparsecontrast")
    assert result.exit_code == 0, result.output
    return world.results


@pytest.fixture
def folder(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that run's folder, to be tampered with."""
    small.count_once(monkeypatch)
    shutil.copytree(trained, tmp_path / "results")
    (path,) = (tmp_path / "results").glob("simclr-*")
    return path
