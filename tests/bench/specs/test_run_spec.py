"""What names a run and what does not; which runs share their settings, and which evaluations."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.specs import run_spec as spec_module
from bench.specs.grid_spec import GridSpec
from bench.specs.run_spec import EvaluationSpec, FinetuneSpec, RunSpec
from tests.bench import small

OUTSIDE_IDENTITY = {"preset", "evidence", "data.root", "data.publish"}


def leaves(values: dict[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict) and key != "options":
            yield from leaves(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


def other(value: Any) -> Any:
    """A value unlike the one given, of its kind."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + 1
    if isinstance(value, str):
        return value + "x"
    if isinstance(value, dict):
        return {**value, "another": 1}
    return 7.0 if value is None else (*value[:-1], value[-1] + 1)


def changed(run: RunSpec, path: str) -> RunSpec:
    head, _, rest = path.partition(".")
    old = getattr(run, head)
    new = other(old) if not rest else old.model_copy(update={rest: other(getattr(old, rest))})
    return run.model_copy(update={head: new})


@pytest.fixture
def full() -> RunSpec:
    """A spec with every optional part."""
    (run,) = GridSpec(methods="supervised", baselines=(), seeds=(0,), evaluation=EvaluationSpec(labels=(10,))).runs(
        "f" * 64
    )
    return run


def test_everything_but_where_it_came_from_names_a_run(full: RunSpec) -> None:
    paths = [path for path, _ in leaves(full.model_dump())]
    assert len(paths) > 40
    assert set(paths) >= OUTSIDE_IDENTITY
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydantic's, of values that a literal does not allow
        ids = {path: changed(full, path).run_id for path in paths}
    same = {path for path, run_id in ids.items() if run_id == full.run_id}
    assert same == OUTSIDE_IDENTITY
    told_apart = [run_id for path, run_id in ids.items() if path not in same]
    assert len(set(told_apart)) == len(told_apart)


def test_the_science_version_names_a_run(full: RunSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    before = full.run_id
    monkeypatch.setattr(spec_module, "SCIENCE_VERSION", spec_module.SCIENCE_VERSION + 1)
    assert full.run_id != before


def test_the_weights_to_start_from_name_a_run_where_they_come_from_a_file(full: RunSpec) -> None:
    """By their content; a run without such a file is named, and told, as before there was that."""
    assert "weights_sha256" not in full.model_dump(mode="json")
    ids = {full.model_copy(update={"weights_sha256": content}).run_id for content in ("a" * 64, "b" * 64)}
    assert len(ids | {full.run_id}) == 3
    with_file = full.model_copy(update={"weights_sha256": "a" * 64})
    assert RunSpec.model_validate(with_file.model_dump(mode="json")) == with_file


def test_how_runs_are_evaluated_and_measured_names_none(tmp_path: Path) -> None:
    base = small.grid(tmp_path, baselines=["untrained", "supervised"])
    changes = {"evaluation__draws": 9, "evaluation__probes": ["knn"], "measure__rounds": 99, "evidence": True}
    assert [run.run_id for run in small.grid(tmp_path, baselines=["untrained", "supervised"], **changes).runs()] == [
        run.run_id for run in base.runs()
    ]
    tuned = small.grid(tmp_path, baselines=["untrained", "supervised"], finetune__epochs=77)
    differ = {a.method for a, b in zip(base.runs(), tuned.runs(), strict=True) if a.run_id != b.run_id}
    assert differ == {"supervised"}  # its weights are made by fine-tuning


def test_options_in_any_order_name_the_same_run(tmp_path: Path) -> None:
    a = small.run_spec(tmp_path, "dense", data__options={"patients": 60, "seed": 1})
    b = small.run_spec(tmp_path, "dense", data__options={"seed": 1, "patients": 60})
    assert a.run_id == b.run_id
    assert small.run_spec(tmp_path, "sparsecontrast[noise=2,keep=0.7]").run_id == (
        small.run_spec(tmp_path, "simclr/sparsecontrast[keep=0.7,noise=2.0]").run_id
    )


def test_run_ids_are_names_of_folders(full: RunSpec) -> None:
    run = full.model_copy(update={"method": "moco/sparsecontrast[keep=0.7,select=budget]" * 4, "labels": None})
    assert all(c.isalnum() or c in ".-" for c in run.run_id)
    assert len(run.run_id) <= 101
    assert full.run_id.startswith("supervised-10pct-phantom-vit")


def test_runs_of_one_comparison_share_their_settings(tmp_path: Path) -> None:
    grid = small.grid(
        tmp_path,
        methods="all",
        baselines=["untrained", "supervised"],
        seeds=[0, 5],
        keep=[0.3, 0.7],
        tuned={"simclr/dense": 0.5},
    ).runs()
    assert len(grid) > 20
    assert len({run.settings for run in grid}) == 1
    for key, value in {
        "train__epochs": 3,
        "data__split_seed": 1,
        "encoder__channels": 3,
        "views__flip": 0.1,
        "data__options": {"patients": 61},
    }.items():
        assert small.run_spec(tmp_path, "dense", **{key: value}).settings != grid[0].settings, key
    assert small.grid(tmp_path).runs("a" * 64)[0].settings != grid[0].settings


def test_settings_of_evaluations() -> None:
    base, tuning = EvaluationSpec(), FinetuneSpec()
    more = EvaluationSpec(labels=(3, 7), probes=("finetune",))
    other_tuning = FinetuneSpec(lr=1.0)
    for probe in ("linear", "knn", "finetune"):
        assert base.settings_of(probe, tuning) == more.settings_of(probe, tuning)
        for change in ({"draws": 2}, {"c": (1.0,)}, {"neighbours": 3}, {"resamples": 7}, {"split": "val"}):
            assert base.settings_of(probe, tuning) != EvaluationSpec(**change).settings_of(probe, tuning), change
    assert base.settings_of("linear", tuning) == base.settings_of("linear", other_tuning)
    assert base.settings_of("finetune", tuning) != base.settings_of("finetune", other_tuning)
