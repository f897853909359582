"""Modules beside this file that tests of the analysis share, found whatever way tests are imported."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


def _beside(file: str) -> ModuleType:
    name = f"analysis_{Path(file).stem}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(file))
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


@pytest.fixture(scope="session")
def synthetic() -> ModuleType:
    """The synthetic results folder."""
    return _beside("synthetic.py")


@pytest.fixture(scope="session")
def coverage() -> ModuleType:
    """The simulation of what intervals cover."""
    return _beside("coverage.py")
