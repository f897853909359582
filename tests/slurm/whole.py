"""Is a sweep whole? Compared file by file with one that nothing disturbed, on the same machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from bench.records.record import Record
from bench.records.seal import state_of
from bench.specs.frozen import file_sha256

TIMES = {"environment", "time", "memory", "started", "finished"}
SEALS = {"digest", "files"}  # of times too: judged by what they seal


def problems(results: Path, reference: Path) -> list[str]:
    """What is wrong with `results`, in sentences; empty where every run of `reference` is there, once and equal."""
    wanted, found = _runs(reference), _runs(results)
    wrong = [f"{name}: no record" for name in sorted(wanted - found)]
    wrong += [f"{name}: a record that nobody asked for" for name in sorted(found - wanted)]
    for name in sorted(wanted & found):
        wrong += [f"{name}: {what}" for what in _differences(results / name, reference / name)]
    return wrong + [f"left behind: {path.relative_to(results)}" for path in _leftovers(results)]


def _runs(results: Path) -> set[str]:
    return {path.parent.name for path in results.glob("*/record.json")}


def _differences(run: Path, reference: Path) -> list[str]:
    content = (run / "record.json").read_bytes()
    record = Record.model_validate_json(content)
    if record.status != "done":
        return [f"{record.status}: {record.reason}"]
    other = Record.model_validate_json((reference / "record.json").read_bytes())
    wrong = []
    if record.weights_sha256 != other.weights_sha256:
        wrong.append("other weights")
    if record.weights_sha256 != file_sha256(run / "checkpoint.safetensors"):
        wrong.append("the weights are not those of the record")
    if state_of(json.loads(content)) != "whole":
        wrong.append("its seal is broken")
    wrong += [
        f"{name} is not that of the record" for name, seal in record.files.items() if file_sha256(run / name) != seal
    ]
    if record.model_dump(exclude=TIMES | SEALS) != other.model_dump(exclude=TIMES | SEALS):
        wrong.append("another record")
    if record.time is not None and other.time is not None and record.time.steps != other.time.steps:
        wrong.append(f"{record.time.steps} steps, not {other.time.steps}")
    if _history(run) != _history(reference):
        wrong.append("another history")
    for folder in ("evaluations", "predictions"):
        names, others = _names(run / folder), _names(reference / folder)
        wrong += [f"{folder}/{name} is there, or not there, by mistake" for name in sorted(names ^ others)]
        pairs = ((name, run / folder / name, reference / folder / name) for name in sorted(names & others))
        wrong += [f"{folder}/{name} differs" for name, mine, theirs in pairs if _content(mine) != _content(theirs)]
    return wrong


def _history(run: Path) -> list[dict[str, Any]]:
    """Its lines without speeds: an epoch that is there twice is seen."""
    lines = [json.loads(line) for line in (run / "history.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{key: value for key, value in line.items() if key != "images_per_second"} for line in lines]


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("*")}


def _content(path: Path) -> Any:
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            return {name: (arrays[name].shape, arrays[name].tobytes()) for name in arrays.files}
    return json.loads(path.read_bytes())


def _leftovers(results: Path) -> list[Path]:
    """What no finished sweep leaves: claims, progress, checkpoints of training, half-written files."""
    found = [path for name in (".leases", ".progress") for path in (results / name).glob("*")]
    found += results.glob("*/training")
    return sorted([*found, *results.rglob(".*.tmp")])
