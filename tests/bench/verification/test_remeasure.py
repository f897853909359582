"""Recorded speed-ups against remeasured ones."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.measure.table import Measurement, measure
from bench.records.environment import environment
from bench.records.record import CostTable
from bench.records.seal import seal
from bench.records.store import as_json, write_atomically
from bench.specs.run_spec import MeasureSpec, RunSpec
from bench.verification.files import Source
from bench.verification.remeasure import cost
from tests.bench import small

METHOD = "simclr/sparsecontrast"
KINDS = ["inference speed-up, remeasured", "step speed-up, remeasured", "run speed-up, remeasured"]


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> RunSpec:
    return small.run_spec(tmp_path_factory.mktemp("spec"), "sparsecontrast")


@pytest.fixture(scope="module")
def table(spec: RunSpec) -> CostTable:
    """A real measurement, far too short to tell anything."""
    return measure(Measurement([spec.parsed], spec.encoder, spec.train, MeasureSpec(rounds=1, batch=2), 1))


@pytest.fixture
def source(tmp_path: Path, spec: RunSpec) -> Source:
    record = small.record(spec.run_id, method=METHOD, keep=0.5, environment=environment(1))
    return Source(tmp_path / spec.run_id, record, {})


def with_interval(table: CostTable, low: float, high: float, floor: float = 1.0, **changes: Any) -> CostTable:
    """The same table, the method's ratios and the noise floor replaced."""
    rows = []
    for row in table.rows:
        ends = {METHOD: (low, high), "simclr/dense#2": (1 / floor, floor)}.get(row.method, (1.0, 1.0))
        ratios = {}
        for kind in ("infer", "train", "run"):
            ratios |= {f"{kind}_speedup_low": ends[0], f"{kind}_speedup_high": ends[1]}
        rows.append(row.model_copy(update={**ratios, **changes}))
    return seal(table.model_copy(update={"rows": tuple(rows), "environment": {"disturbed_rounds": 0}}))


def store(source: Source, table: CostTable, name: str = "a") -> Path:
    path = source.folder.parent / "cost" / f"{name}.json"
    write_atomically(path, as_json(table))
    return path


def test_remeasured_for_real(source: Source, spec: RunSpec, table: CostTable) -> None:
    store(source, with_interval(table, 0.001, 1000.0))
    checks = cost(source, spec)
    assert [one.what for one in checks] == KINDS
    busy = ["the machine was busy now" in one.why for one in checks]
    assert [one.verdict for one in checks] == ["can't be compared" if is_so else "holds" for is_so in busy]


@pytest.mark.parametrize(
    ("recorded", "remeasured", "disturbed", "verdict"),
    [
        ((1.5, 1.6, 1.0), (1.55, 1.7, 1.0), 0, "holds"),
        ((1.5, 1.6, 1.0), (1.6, 1.7, 1.0), 0, "holds"),
        ((1.5, 1.6, 1.0), (1.65, 1.7, 1.0), 0, "does not hold"),
        ((1.65, 1.7, 1.0), (1.5, 1.6, 1.0), 0, "does not hold"),
        ((1.5, 1.6, 1.02), (1.65, 1.7, 1.02), 0, "can't be compared"),  # within what dense against itself shows
        ((1.65, 1.7, 1.02), (1.5, 1.6, 1.02), 0, "can't be compared"),
        ((1.5, 1.6, 1.02), (1.65, 1.7, 1.0), 0, "does not hold"),
        ((1.5, 1.6, 1.0), (1.55, 1.7, 1.0), 3, "can't be compared"),
        ((1.5, 1.6, 1.0), (1.65, 1.7, 1.0), 3, "can't be compared"),
    ],
)
def test_intervals_overlap_or_not(
    source: Source, spec: RunSpec, table: CostTable, monkeypatch, recorded, remeasured, disturbed: int, verdict: str
) -> None:
    store(source, with_interval(table, *recorded))
    now = with_interval(table, *remeasured).model_copy(update={"environment": {"disturbed_rounds": disturbed}})
    asked: list[Any] = []
    monkeypatch.setattr("bench.verification.remeasure.measure", lambda what: (asked.append(what), now)[1])
    assert [(one.what, one.verdict) for one in cost(source, spec)] == [(kind, verdict) for kind in KINDS]
    assert asked == [Measurement([spec.parsed], spec.encoder, spec.train, MeasureSpec(rounds=1, batch=2), 1)]


def refuse(*args: Any, **kwargs: Any) -> None:
    raise AssertionError("measured")


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"keep": 0.7}, "no table in results/cost holds this method"),
        ({"image_size": 64}, "no table in results/cost holds this method"),
        ({"ramp": 0.9}, "no table in results/cost holds this method"),
        ({"machine": "a Z80, 1 cores"}, "measured on a Z80, 1 cores with 1 thread(s); this is "),
        ({"threads": 2}, "with 2 thread(s); this is "),
    ],
)
def test_what_was_measured_otherwise_is_not_compared(source, spec, table, monkeypatch, changes, why: str) -> None:
    monkeypatch.setattr("bench.verification.remeasure.measure", refuse)
    store(source, with_interval(table, 1.5, 1.6, **changes))
    (check,) = cost(source, spec)
    assert check.verdict == "can't be compared"
    assert why in check.why


def test_floors_and_dense_have_no_ratio(source: Source, spec: RunSpec, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("bench.verification.remeasure.measure", refuse)
    for method in ("untrained", "dense"):
        (check,) = cost(source, small.run_spec(tmp_path, method))
        assert check.verdict == "can't be compared"


def test_an_edited_table_is_named_and_the_other_is_used(source, spec, table, monkeypatch) -> None:
    monkeypatch.setattr(
        "bench.verification.remeasure.measure", lambda *args, **kwargs: with_interval(table, 0.001, 1000.0)
    )
    path = store(source, with_interval(table, 0.001, 1000.0), "edited")
    plain = json.loads(path.read_bytes())
    plain["rows"][1]["infer_speedup"] = 40.0
    path.write_text(json.dumps(plain))
    store(source, with_interval(table, 0.001, 1000.0), "whole")
    first, *others = cost(source, spec)
    assert (first.what, first.verdict) == ("cost/edited.json", "does not hold")
    assert [one.verdict for one in others] == ["holds"] * 3


def test_a_table_of_another_schema_is_not_used(source, spec, table, monkeypatch) -> None:
    monkeypatch.setattr("bench.verification.remeasure.measure", refuse)
    other = with_interval(table, 1.5, 1.6).model_copy(update={"schema_version": 2})
    store(source, seal(other))
    first, second = cost(source, spec)
    assert (first.what, first.verdict) == ("cost/a.json", "can't be compared")
    assert first.why == "has schema 2, and this code reads 1"
    assert "no table in results/cost holds this method" in second.why


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"rounds": 0}, "rows.1.rounds: Input should be greater than or equal to 1"),
        ({"train_speedup_low": None}, "must all be there, or all be left out"),
        ({"train_ms": None}, "must all be there, or all be left out"),
        ({"infer_speedup_high": 0.0}, "rows.1.infer_speedup_high: Input should be greater than 0"),
        ({"batch": "many"}, "rows.1.batch: Input should be a valid integer"),
        (None, "can't be read as a cost table (its JSON is nested too deeply)"),
    ],
)
def test_a_table_whose_numbers_are_none_is_named(source, spec, table, monkeypatch, changes, why: str) -> None:
    monkeypatch.setattr("bench.verification.remeasure.measure", refuse)
    path = store(source, table)
    plain = json.loads(path.read_bytes()) | {"digest": ""}
    plain["rows"][1].update(changes or {})
    path.write_text("[" * 100_000 if changes is None else json.dumps(plain))
    first, *_ = cost(source, spec)
    assert (first.what, first.verdict) == ("cost/a.json", "does not hold")
    assert why in first.why


def test_a_batch_that_nothing_can_be_measured_with(source, spec, table, monkeypatch) -> None:
    monkeypatch.setattr("bench.verification.remeasure.measure", refuse)
    store(source, with_interval(table, 1.5, 1.6, batch=1))
    (check,) = cost(source, spec)
    assert check.verdict == "can't be compared"
    assert "they can't be measured here" in check.why


def test_a_record_that_names_another_method_than_its_spec(source, spec, table, monkeypatch) -> None:
    monkeypatch.setattr(
        "bench.verification.remeasure.measure", lambda *args, **kwargs: with_interval(table, 0.001, 1000.0)
    )
    store(source, with_interval(table, 0.001, 1000.0))
    other = replace(source, record=source.record.model_copy(update={"method": "simclr/dense"}))
    assert [one.verdict for one in cost(other, spec)] == ["holds"] * 3
