"""What is in a run's folder: what was not checked does not hold."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.records.seal import seal
from bench.records.store import Store, as_json
from bench.verification import files
from tests.bench import small


def verdicts(folder: Path) -> dict[str, tuple[str, str]]:
    return {check.what: (check.verdict, check.why) for check in files.read(folder)[1]}


def test_where_there_is_nothing_nothing_holds(tmp_path: Path) -> None:
    """Who takes all evaluations out changes no digest."""
    store = Store(tmp_path)
    store.write_record(small.record("a-run"))
    found = verdicts(tmp_path / "a-run")
    assert found["record.json"][0] == "holds"
    assert found["evaluations"] == ("can't be compared", "there are none")
    assert found["other files"] == ("can't be compared", "there are none")


@pytest.mark.parametrize(
    ("change", "verdict", "why"),
    [
        ({}, "holds", "the digests of 2 fit"),
        ({"digest": ""}, "can't be compared", "linear-1-dense.json has no digest: it was written before"),
        ({"schema_version": 2}, "can't be compared", "linear-1-dense.json has schema 2, and this code reads 1"),
        ({"macro_auroc": 0.9}, "does not hold", "linear-1-dense.json was changed after it was written"),
    ],
)
def test_one_evaluation_of_several(tmp_path: Path, change: dict, verdict: str, why: str) -> None:
    store = Store(tmp_path)
    store.write_record(small.record("a-run"))
    for labels in (1.0, 10.0):
        one = small.evaluation("a-run", "s", labels=labels)
        store.write_evaluation(one.key.name, one, {})
    path = tmp_path / "a-run" / "evaluations" / "linear-1-dense.json"
    path.write_bytes(as_json(json.loads(path.read_bytes()) | change))
    found = verdicts(tmp_path / "a-run")["evaluations"]
    assert found[0] == verdict
    assert found[1].startswith(why)


def test_a_file_whose_hash_nobody_recorded_does_not_hold(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.write_history("a-run", [{"epoch": 1, "loss": 1.0}])
    store.write_record(small.record("a-run"))
    path = tmp_path / "a-run" / "record.json"
    assert verdicts(path.parent)["other files"][0] == "holds"
    record = store.record("a-run")
    assert record is not None
    path.write_bytes(as_json(seal(record.model_copy(update={"files": {}}))))
    assert json.loads(path.read_bytes())["files"] == {}
    said = "no SHA-256 is recorded for history.jsonl"
    assert verdicts(path.parent)["other files"] == ("can't be compared", said)
