"""A process killed at any moment leaves nothing half-done that counts: whoever comes next ends with the same bytes."""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.launch.worker import Sweep, work
from bench.records.record import Record
from bench.records.store import Store
from tests.bench import small

KILLED = 77
TIMES = {"time", "memory", "environment", "started", "finished", "digest"}  # of a record: what a stop may change


def same_record(path: Path) -> dict[str, Any]:
    """A record without what depends on when and how fast it was made."""
    record = json.loads(path.read_bytes())
    record["files"].pop("history.jsonl")  # which says how fast it was; its lines are compared
    return {key: value for key, value in record.items() if key not in TIMES}


def outcome(folder: Path) -> dict[str, Any]:
    """All that a finished run is: record, history, weights, evaluations."""
    lines = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    for line in lines:
        del line["images_per_second"]
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    return {
        "record": same_record(folder / "record.json"),
        "history": lines,
        "weights": (folder / "checkpoint.safetensors").read_bytes(),
        "evaluations": {path.name: path.read_bytes() for path in (folder / "evaluations").iterdir()},
        "files": files,
    }


@pytest.fixture(scope="module")
def sweep(tmp_path_factory, cache: Path) -> Sweep:
    """One run of two steps with a checkpoint after each, one evaluation."""
    folder = tmp_path_factory.mktemp("job")
    grid = small.grid(folder, methods="sparsecontrast", train__batch=32, evaluation__labels=[100])
    runs = tuple(grid.runs())
    return Sweep(runs, grid.evaluation, grid.finetune, folder / "whole", cache, 1, checkpoint_minutes=0.0)


def in_child(sweep: Sweep, at: int) -> tuple[int, int]:
    """Work in a process that dies at its `at`-th call that puts something on disk under a name; its exit code, and how
    many such calls it came to."""
    receiver, sender = multiprocessing.Pipe(duplex=False)

    def body() -> None:
        calls = 0

        def counted(real: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any, **options: Any) -> Any:
                nonlocal calls
                calls += 1
                if calls == at:
                    os._exit(KILLED)
                return real(*args, **options)

            return call

        for name in ("fsync", "replace", "link", "unlink"):
            setattr(os, name, counted(getattr(os, name)))
        work(sweep)
        sender.send(calls)

    process = multiprocessing.get_context("fork").Process(target=body)
    process.start()
    process.join(120)
    return process.exitcode or 0, receiver.recv() if receiver.poll() else 0


@pytest.fixture(scope="module")
def light_module() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        small.make_light(patch)
        yield


@pytest.fixture(scope="module")
def whole(sweep: Sweep, light_module: None) -> tuple[dict[str, Any], int]:
    """The undisturbed run, and the number of moments at which it could be killed."""
    work(replace(sweep, results=sweep.results.parent / "warm"))  # loads the data, which children inherit
    code, calls = in_child(sweep, at=0)
    assert code == 0
    (run,) = sweep.runs
    return outcome(sweep.results / run.run_id), calls


def test_killed_at_every_write_and_rename(sweep: Sweep, whole: tuple[dict[str, Any], int], tmp_path: Path) -> None:
    expected, calls = whole
    assert calls > 30
    (run,) = sweep.runs
    resumed = 0
    for at in range(1, calls + 1):
        here = replace(sweep, results=tmp_path / str(at))
        assert in_child(here, at)[0] == KILLED, at
        folder = here.results / run.run_id
        began = max((int(path.stem) for path in (folder / "training").glob("*.json")), default=0)
        code, _ = in_child(here, at=0)
        assert code == 0, at
        found = outcome(folder)
        for part, value in expected.items():
            assert found[part] == value, (at, part)
        record = Store(here.results).record(run.run_id)
        assert record is not None
        if record.time is not None and began:
            resumed += record.time.resumed
        assert not list((here.results / ".leases").rglob("[0-9]*")), at
    assert resumed > 5, "no crash fell between two checkpoints"


def test_a_failing_disk_fails_the_run_by_name_and_the_next_command_goes_on(
    sweep: Sweep, whole: tuple[dict[str, Any], int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    """The disk is full from the first checkpoint on, then there is room again."""
    here = replace(sweep, results=tmp_path)
    (run,) = here.runs

    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("bench.records.store.os.fsync", full)
        assert work(here) == 1
    assert f"{run.run_id} failed: the disk is full" in capfd.readouterr().out
    assert Store(tmp_path).record(run.run_id) is None
    assert not list(tmp_path.rglob("*.tmp"))
    assert work(here) == 0
    assert outcome(tmp_path / run.run_id)["weights"] == whole[0]["weights"]


def _note(sweep: Sweep, log: Path, start: float) -> None:
    def stand_in(experiment: Any) -> Record:
        run = experiment.spec
        with open(log, "ab", buffering=0) as file:
            file.write(f"{run.run_id}\n".encode())
        time.sleep(0.02)
        record = small.record(run.run_id)
        Store(sweep.results).write_record(record)
        return record

    import bench.experiment

    bench.experiment.run_experiment = stand_in
    time.sleep(max(0.0, start - time.time()))
    work(sweep)


def test_commands_on_the_same_folder_share_the_grid(tmp_path: Path, cache: Path) -> None:
    """Four at once: no run is done twice, none is lost."""
    grid = small.grid(tmp_path, methods="dense,fixed,centre", seeds=[0, 1, 2, 3, 4, 5], evaluation__probes=[])
    sweep = Sweep(tuple(grid.runs()), grid.evaluation, grid.finetune, tmp_path / "results", cache, 1)
    log, start = tmp_path / "log", time.time() + 0.5
    context = multiprocessing.get_context("fork")
    crowd = [context.Process(target=_note, args=(replace(sweep, command_id=str(i)), log, start)) for i in range(4)]
    for process in crowd:
        process.start()
    for process in crowd:
        process.join(60)
        assert process.exitcode == 0
    assert Counter(log.read_text().split()) == {run.run_id: 1 for run in sweep.runs}
    assert not list((sweep.results / ".leases").iterdir())


def test_five_real_kills(
    light_module: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """`kill -9` at random moments of `bench.run`, from its plan to its report: see tests/bench/kill.py."""
    from tests.bench import kill

    monkeypatch.setattr("bench.grid.plan.cores", lambda: 1)
    assert kill.main(["--kills", "5", "--fork", "--folder", str(tmp_path)]) == 0
    assert "5 kills" in capfd.readouterr().out
