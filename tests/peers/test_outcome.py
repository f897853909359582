"""Ratios the right way round, verdicts by the interval, and a JSON that says where it was measured."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from bench.measure.paired import PairedTimes
from peers import outcome


def times(ours: float, theirs: float, spread: float = 0.0) -> PairedTimes:
    wobble = 1 + spread * np.array([-1, 1, -1, 1, 0.0])
    return PairedTimes({"a": ours * wobble, "b": np.full(5, theirs)}, repeated=2, disturbed=1)


def test_a_faster_one_has_a_ratio_above_1_in_both_units() -> None:
    step = outcome.row(times(0.1, 0.2), "a", "b", "x", 1.0, "ms", per_call=2)
    assert (step.ours, step.theirs) == pytest.approx((50, 100))
    data = outcome.row(times(0.1, 0.2), "a", "b", "x", 1.0, "images/s", per_call=64)
    assert (data.ours, data.theirs) == pytest.approx((640, 320))
    assert step.ratio.median == data.ratio.median == pytest.approx(2)
    assert (step.repeated_rounds, step.disturbed_rounds, step.rounds) == (2, 1, 5)


@pytest.mark.parametrize(
    ("target", "spread", "verdict"),
    [(1.9, 0.0, "reached"), (2.1, 0.0, "missed"), (2.0, 0.1, "undecided"), (None, 0.0, "")],
)
def test_the_interval_decides(target: float | None, spread: float, verdict: str) -> None:
    assert outcome.row(times(0.1, 0.2, spread), "a", "b", "x", target, "ms", 1).verdict == verdict


def test_what_is_kept_and_shown(tmp_path: Path) -> None:
    rows = [outcome.row(times(0.1, 0.2), "a", "b", "a step", 1.5, "ms", 1)]
    content = json.loads(outcome.save("step", "About steps", rows, tmp_path / "new").read_text(encoding="utf-8"))
    assert content["rows"][0]["ratio"]["low"] == pytest.approx(2)
    assert content["rows"][0]["verdict"] == "reached"
    assert {"machine", "versions", "threads", "allocator", "commit"} <= content["environment"].keys()
    assert "lightly" in content["environment"]["versions"]
    text = io.StringIO()
    outcome.show("About steps", rows, Console(file=text, width=200))
    assert "2.000 [2.000, 2.000]" in text.getvalue()
    assert "other processes were running" in text.getvalue()
