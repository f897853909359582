"""The judge of disturbed sweeps sees what is wrong. Needs no cluster."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bench.records.record import Timing
from bench.records.seal import digest_of
from bench.records.store import Store
from tests.bench import small
from tests.slurm.disturb import changed
from tests.slurm.whole import problems


def make(results: Path, name: str = "a-run", weights: bytes = b"weights") -> None:
    store = Store(results)
    digest = hashlib.sha256(weights).hexdigest()
    time = Timing(steps=40, steps_per_second=1.0, wall_seconds=40.0)
    store.write_record(small.record(name, weights_sha256=digest, time=time))
    (results / name / "checkpoint.safetensors").write_bytes(weights)
    store.write_history(name, [{"epoch": 1, "loss": 2.0, "images_per_second": 9.0}])
    store.write_evaluation("linear-10-dense", small.evaluation(name, "s"), {"scores": np.zeros(3)})


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """Two results folders that agree."""
    for folder in ("mine", "reference"):
        make(tmp_path / folder)
    return tmp_path / "mine", tmp_path / "reference"


def edit(path: Path, **values: object) -> None:
    plain = {**json.loads(path.read_text()), **values}
    path.write_text(json.dumps({**plain, "digest": values.get("digest", digest_of(plain))}))


RUN = "a-run"
WRONGS: dict[str, tuple[Callable[[Path], object], str]] = {
    "lost": (lambda r: shutil.rmtree(r / RUN), "a-run: no record"),
    "one too many": (lambda r: make(r, "b-run"), "b-run: a record that nobody asked for"),
    "failed": (lambda r: edit(r / RUN / "record.json", status="failed", reason="why"), "failed: why"),
    "other weights": (lambda r: make(r, weights=b"others"), "other weights"),
    "other file": (
        lambda r: edit(r / RUN / "record.json", files={"history.jsonl": "0"}),
        "history.jsonl is not that of the record",
    ),
    "weights exchanged": (lambda r: (r / RUN / "checkpoint.safetensors").write_bytes(b"x"), "not those of the record"),
    "other record": (lambda r: edit(r / RUN / "record.json", keep=0.3), "another record"),
    "seal broken": (lambda r: edit(r / RUN / "record.json", digest="0"), "its seal is broken"),
    "history twice": (
        lambda r: (r / RUN / "history.jsonl").write_text(2 * (r / RUN / "history.jsonl").read_text()),
        "another history",
    ),
    "other scores": (
        lambda r: Store.write_arrays(r / RUN / "predictions" / "linear-10-dense.npz", {"scores": np.ones(3)}),
        "predictions/linear-10-dense.npz differs",
    ),
    "evaluation lost": (
        lambda r: (r / RUN / "evaluations" / "linear-10-dense.json").unlink(),
        "evaluations/linear-10-dense.json is there, or not there",
    ),
    "claim": (lambda r: write(r / ".leases" / RUN), "left behind: .leases/a-run"),
    "half a file": (lambda r: write(r / RUN / ".record.json.7.tmp"), "left behind: a-run/.record.json.7.tmp"),
    "checkpoint": (lambda r: write(r / RUN / "training" / "1"), "left behind: a-run/training"),
}


def write(path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    path.touch()


def test_equal_but_for_times(pair: tuple[Path, Path]) -> None:
    mine, reference = pair
    edit(mine / RUN / "record.json", finished="2025-01-01T00:00:00+00:00", environment={"machine": "another"})
    lines = json.dumps({"epoch": 1, "loss": 2.0, "images_per_second": 1.0}) + "\n"
    (mine / RUN / "history.jsonl").write_text(lines)
    assert problems(mine, reference) == []


@pytest.mark.parametrize("case", WRONGS)
def test_what_is_wrong_is_seen(pair: tuple[Path, Path], case: str) -> None:
    mine, reference = pair
    spoil, sentence = WRONGS[case]
    spoil(mine)
    assert any(sentence in problem for problem in problems(mine, reference)), problems(mine, reference)


def test_a_finished_record_that_changes_was_recorded_twice(pair: tuple[Path, Path]) -> None:
    mine, _ = pair
    seen: dict[str, str] = {}
    assert changed(mine, seen) == changed(mine, seen) == []
    make(mine, weights=b"others")
    assert changed(mine, seen) == ["a-run: recorded twice"]
