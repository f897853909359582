"""`bench.list` names all there is, and the light commands start without the heavy packages."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest
from typer.testing import CliRunner

from bench.list import app
from bench.specs.grid_spec import PRESETS
from datasets import REGISTRY
from methods import BASELINES, ENCODERS, HEADLINE, OBJECTIVES, STRATEGIES

HEAVY = ("torch", "timm", "pandas", "sklearn", "scipy", "matplotlib", "submitit", "lightning_fabric")


def test_everything_is_listed_with_its_options_and_source(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    result = CliRunner().invoke(app, [])
    assert result.exit_code == 0
    lines = result.output.splitlines()
    for name in [*HEADLINE, *OBJECTIVES, *STRATEGIES, *BASELINES, *ENCODERS, *REGISTRY]:
        assert any(name in line.replace("│", " ").split() for line in lines), name
    for preset in PRESETS.glob("*.toml"):
        assert any(preset.stem in line.replace("│", " ").split() for line in lines), preset
    text = " ".join(result.output.replace("│", " ").split())
    for entry in [*OBJECTIVES.values(), *STRATEGIES.values()]:
        assert entry.source in text
        assert entry.summary in text
        for name, option in entry.options.items():
            assert f"{name} (" in text
            assert option.help in text
    for entry in REGISTRY.values():
        assert entry.source in text
        for option in entry.options:
            assert f"{option}: " in text
    assert "objective/strategy[option=value,...]" in text  # not taken for markup


def test_help_and_list_start_without_torch() -> None:
    """In one fresh process, for a start with torch takes seconds."""
    code = f"""
import sys, time
began = time.monotonic()
from typer.testing import CliRunner
import bench.cost, bench.list, bench.report, bench.run
for app, arguments in ((bench.list.app, []), *((m.app, ["--help"]) for m in (bench.run, bench.report, bench.cost))):
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert len(result.output) > 300
print([name for name in {HEAVY!r} if name in sys.modules], time.monotonic() - began)
"""
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds = time.monotonic() - began
    print(f"four commands in {seconds:.2f} s with the start of Python; {done.stdout.strip()}")
    assert done.stdout.startswith("[] "), done.stdout
    assert seconds < 6  # well under a second each; room for a busy machine
