"""Tuning: the same rates for every method, judged on validation images, and used by the preset from then on."""

from __future__ import annotations

import json
from typing import Any

import pytest
from typer.testing import CliRunner

from bench.launch import launch
from bench.records import environment
from bench.records.record import Evaluation
from bench.specs import grid_spec as grid
from bench.tune import LABELS, SEED, app
from tests.bench import small


@pytest.fixture
def tune(world: small.World, light: None, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`bench.tune` in this process on a preset of the small world."""
    presets = world.folder / "presets"
    presets.mkdir()
    (presets / "mine.toml").write_text(small.TOML, encoding="utf-8")
    workers = launch.workers
    monkeypatch.setattr(grid, "PRESETS", presets)
    monkeypatch.setattr(launch, "workers", lambda sweep, fan: workers(sweep, launch.LaunchOptions()))
    monkeypatch.setattr(environment, "cores", lambda: 1)

    def run(*options: str) -> Any:
        where = ("--results", str(world.results), "--cache", str(world.cache))
        result = CliRunner().invoke(app, ["--preset", "mine", *where, *options])
        path = presets / "mine.tuning.json"
        return result, json.loads(path.read_bytes()) if path.exists() else None

    return run


def test_the_best_rate_on_validation_images_is_chosen(tune, world: small.World) -> None:
    result, written = tune("--methods", "dense,fixed", "--rates", "1e-3,3e-2")
    assert result.exit_code == 0, result.output
    found: dict[str, dict[float, float]] = {"simclr/dense": {}, "simclr/fixed": {}}
    for path in world.results.glob("*/evaluations/*.json"):
        one = Evaluation.model_validate_json(path.read_bytes())
        record = json.loads((path.parent.parent / "record.json").read_bytes())
        assert (one.split, one.labels, one.probe) == ("val", LABELS, "linear")
        assert record["spec"]["seed"] == SEED
        found[record["method"]][record["spec"]["train"]["lr"]] = one.macro_auroc
    assert all(set(rates) == {1e-3, 3e-2} for rates in found.values())
    assert written["chosen"] == {method: max(rates, key=lambda r: rates[r]) for method, rates in found.items()}
    assert {(row["method"], row["lr"], row["val_macro_auroc"]) for row in written["rows"]} == {
        (method, rate, value) for method, rates in found.items() for rate, value in rates.items()
    }
    assert "the same tuning budget: learning rates 0.001, 0.03" in written["sentence"]
    assert "validation split of 'phantom'" in written["sentence"]
    runs = grid.load_grid("mine", changes={"methods": "dense,fixed"}).runs()
    assert {run.method: run.train.lr for run in runs} == written["chosen"]
    assert SEED not in {run.seed for run in runs}


def test_tuning_one_method_keeps_the_others(tune) -> None:
    _, before = tune("--methods", "dense", "--rates", "1e-3")
    result, after = tune("--methods", "fixed", "--rates", "2e-3")
    assert result.exit_code == 0, result.output
    assert before["chosen"] == {"simclr/dense": 1e-3}
    assert after["chosen"] == {"simclr/dense": 1e-3, "simclr/fixed": 2e-3}
    assert [row for row in after["rows"] if row["method"] == "simclr/dense"] == before["rows"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--rates", "fast"], "--rates 'fast' is not a comma-separated list of numbers"),
        (["--methods", "dens"], "unknown method 'dens'"),
        (["--preset", "min"], "unknown preset 'min': did you mean mine"),
        (["--rates", ","], "--rates"),
        (["--rates", "0"], "--rates"),
    ],
)
def test_mistakes(tune, options: list[str], message: str) -> None:
    result, written = tune(*options)
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert "Traceback" not in result.output
    assert written is None
