"""Records on disk: whole or not there, refused when not JSON."""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.records.seal import seal, sha256, state_of
from bench.records.store import Store, as_json, missing_evaluations, write_atomically
from bench.specs.run_spec import EvaluationKey, EvaluationSpec, FinetuneSpec
from tests.bench import small
from tests.bench.small import evaluation, record


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_a_crash_while_writing_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, error: BaseException
) -> None:
    path = tmp_path / "record.json"
    write_atomically(path, b"old")

    def crash(*args: Any) -> None:
        raise error

    monkeypatch.setattr(f"bench.records.store.os.{call}", crash)
    with pytest.raises(type(error)):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_is_whole_and_synced_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, events = tmp_path / "deep" / "record.json", []
    fsync, replace = os.fsync, os.replace

    def synced(descriptor: int) -> None:
        found = os.fstat(descriptor)
        events.append(("folder", 0) if stat.S_ISDIR(found.st_mode) else ("fsync", found.st_size))
        fsync(descriptor)

    def renamed(source: Path, target: Path) -> None:
        events.append(("replace", Path(source).stat().st_size))
        assert Path(source).parent == path.parent  # a rename is atomic within a file system only
        assert Path(target) == path
        replace(source, target)

    monkeypatch.setattr("bench.records.store.os.fsync", synced)
    monkeypatch.setattr("bench.records.store.os.replace", renamed)
    write_atomically(path, b"12345")
    assert events == [("fsync", 5), ("replace", 5), ("folder", 0)]
    assert path.read_bytes() == b"12345"


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_numbers_that_json_has_not_are_refused_and_the_old_stays(tmp_path: Path, bad: float) -> None:
    store = Store(tmp_path)
    store.write_history("a", [{"loss": 1.0}])
    with pytest.raises(ValueError, match="JSON"):
        store.write_history("a", [{"loss": bad}])
    assert (tmp_path / "a" / "history.jsonl").read_text() == '{"loss": 1.0}\n'
    with pytest.raises(ValueError, match="JSON"):
        as_json({"a": {"b": [bad]}})
    store.write_evaluation("linear-10-dense", evaluation("a", "s"), {"scores": np.zeros(1)})
    with pytest.raises(ValueError, match="finite"):
        store.write_evaluation("linear-10-dense", evaluation("a", "s", value=bad), {"scores": np.zeros(1)})
    assert store.has_evaluation("a", "linear-10-dense", "s")


def test_a_record_comes_back_as_it_was(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.record("a-run") is None
    assert not store.done("a-run")
    store.write_record(record())
    assert store.record("a-run") == seal(record())
    assert store.done("a-run")
    store.write_record(record(status="failed", reason="no"))
    assert not store.done("a-run")


@pytest.mark.parametrize(
    "content", [b"", b"{", as_json(record())[:-30], b"\xff\xfe", b"[]", as_json({"run_id": "a-run"})]
)
def test_an_unreadable_record_is_named(tmp_path: Path, content: bytes) -> None:
    write_atomically(tmp_path / "a-run" / "record.json", content)
    with pytest.raises(ValueError, match=r"a-run/record.json can't be read as a record \(.*\): .* move it away"):
        Store(tmp_path).record("a-run")


def test_a_record_of_another_schema_is_named(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a-run" / "record.json", as_json(record(schema_version=99)))
    with pytest.raises(ValueError, match="a-run/record.json has schema 99"):
        Store(tmp_path).record("a-run")


def test_a_record_that_was_edited_by_hand_is_named(tmp_path: Path) -> None:
    store, path = Store(tmp_path), tmp_path / "a-run" / "record.json"
    store.write_record(record())
    path.write_bytes(as_json(json.loads(path.read_bytes()) | {"keep": 0.9}))
    with pytest.raises(
        ValueError, match="a-run/record.json was changed after it was written .*: put the original back"
    ):
        store.done("a-run")


def test_what_is_written_is_sealed_and_names_the_files_that_go_with_it(tmp_path: Path) -> None:
    store, folder = Store(tmp_path), tmp_path / "a"
    store.write_history("a", [{"loss": 1.0}])
    store.write_arrays(folder / "selection.npz", {"kept": np.zeros(1)})
    store.write_record(record("a"))
    store.write_evaluation("linear-10-dense", evaluation("a", "s"), {"scores": np.zeros(1)})
    written = json.loads((folder / "record.json").read_bytes())
    assert state_of(written) == "whole"
    assert written["files"] == {
        name: sha256((folder / name).read_bytes()) for name in ("history.jsonl", "selection.npz")
    }
    written = json.loads((folder / "evaluations" / "linear-10-dense.json").read_bytes())
    assert state_of(written) == "whole"
    assert written["predictions_sha256"] == sha256((folder / "predictions" / "linear-10-dense.npz").read_bytes())
    store.write_record(record("a", status="failed", reason="no"))  # files of an earlier try are none of its own
    assert json.loads((folder / "record.json").read_bytes())["files"] == {}


def test_an_evaluation_counts_when_it_is_whole_and_made_the_same_way(tmp_path: Path) -> None:
    store, name = Store(tmp_path), EvaluationKey("linear", 10.0, "dense").name
    assert name == "linear-10-dense"
    assert not store.has_evaluation("a", name, "s")
    store.write_evaluation(name, evaluation("a", "s"), {"scores": np.ones((1, 2))})
    assert store.has_evaluation("a", name, "s")
    assert not store.has_evaluation("a", name, "other")
    assert not store.has_evaluation("b", name, "s")
    path = tmp_path / "a" / "evaluations" / f"{name}.json"
    written = path.read_bytes()
    for damaged in (written[:-20], written.replace(b'"n_images": 1', b'"n_images": 2'), b""):
        path.write_bytes(damaged)
        assert not store.has_evaluation("a", name, "s")
    path.write_bytes(as_json(evaluation("a", "s")))  # by a version that did not seal
    assert store.has_evaluation("a", name, "s")
    path.write_bytes(as_json(evaluation("a", "s").model_copy(update={"schema_version": 2})))
    assert not store.has_evaluation("a", name, "s")


def test_predictions_are_there_before_their_evaluation_and_hold_no_pickle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, order = Store(tmp_path), []
    replace = os.replace
    monkeypatch.setattr("bench.records.store.os.replace", lambda a, b: (order.append(Path(b).name), replace(a, b)))
    arrays = {"scores": np.ones((1, 2), np.float32), "patients": np.array(["a", "b"])}
    store.write_evaluation("knn-1-dense", evaluation("a", "s"), arrays)
    assert order == ["knn-1-dense.npz", "knn-1-dense.json"]
    with np.load(tmp_path / "a" / "predictions" / "knn-1-dense.npz", allow_pickle=False) as stored:
        assert {key: stored[key].tolist() for key in stored} == {k: v.tolist() for k, v in arrays.items()}
    with pytest.raises(ValueError, match="[Oo]bject"):
        store.write_arrays(tmp_path / "x.npz", {"objects": np.array([{}], dtype=object)})


def test_what_is_missing_of_a_run(tmp_path: Path) -> None:
    run, tuning = small.run_spec(tmp_path, "random"), FinetuneSpec()
    wanted = EvaluationSpec(labels=(10, 100), probes=("linear", "finetune"))
    store = Store(tmp_path / "results")
    probes = [("linear", "pruned"), ("finetune", "pruned"), ("linear", "dense")]  # the linear probe alone in the others
    every = [(probe, labels, inference) for probe, inference in probes for labels in (10.0, 100.0)]
    assert missing_evaluations(store, run, wanted, tuning) == every
    for probe, labels, inference in every[:3]:
        done = evaluation(run.run_id, wanted.settings_of(probe, tuning), probe, labels)
        store.write_evaluation(EvaluationKey(probe, labels, inference).name, done, {})
    assert missing_evaluations(store, run, wanted, tuning) == every[3:]
    other = FinetuneSpec(lr=0.5)
    assert missing_evaluations(store, run, wanted, other) == [every[2], *every[3:]]
    assert missing_evaluations(store, run, EvaluationSpec(labels=(10,), probes=("linear",), draws=9), tuning) == [
        every[0],
        every[4],
    ]


def test_a_supervised_run_has_one_evaluation(tmp_path: Path) -> None:
    (run,) = small.grid(tmp_path, methods="supervised", evaluation__labels=[50]).runs()
    missing = missing_evaluations(Store(tmp_path), run, EvaluationSpec(labels=(1, 50)), FinetuneSpec())
    assert missing == [("finetune", 50.0, "dense")]


def test_json_is_plain(tmp_path: Path) -> None:
    assert json.loads(as_json(record())) == record().model_dump(mode="json")
    assert as_json({"a": 1}).endswith(b"\n")


def test_two_that_count_their_processes_alike_do_not_share_a_half_written_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Containers on two hosts often do; the second comes while the first syncs."""
    path, fsync = tmp_path / "record.json", os.fsync

    def meanwhile(descriptor: int) -> None:
        monkeypatch.setattr("bench.records.store.os.fsync", fsync)
        write_atomically(path, b"second")
        fsync(descriptor)

    monkeypatch.setattr("bench.records.store.os.fsync", meanwhile)
    write_atomically(path, b"first, and longer")
    assert path.read_bytes() == b"first, and longer"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_told_from_one_with_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    assert store.full() == ""
    assert not list(tmp_path.iterdir())

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("bench.records.store.os.fsync", full)
    assert (
        store.full() == "the disk is full: [Errno 28] No space left on device; make room, then give the command again"
    )
    assert not list(tmp_path.iterdir())
