"""The figures in docs/cluster.md are those that were measured."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_what_a_job_costs_beyond_its_run() -> None:
    doc = " ".join((ROOT / "docs" / "cluster.md").read_text(encoding="utf-8").split())
    printed = (ROOT / "peers" / "results" / "slurm-300-runs.txt").read_text(encoding="utf-8")
    said = r"(\d+) runs in .*A run takes (\S+) s; its overhead is (\S+) s in its job .*, and (\S+) s"
    found = re.search(said, printed)
    assert found is not None
    runs, own, inside, around = found.groups()
    assert "\n0 lost; exit code 0\n" in printed
    assert f"Of {runs} trivial runs in an array on the test cluster" in doc
    assert f"none was lost; a run of {own} s cost {inside} s more in its job and {around} s around it" in doc
