"""Edits of records: slips, and forgeries that recompute the digests."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from typer.testing import CliRunner

from bench.records.seal import digest_of
from bench.specs.frozen import file_sha256

Change = Callable[[dict[str, Any]], Any]


def edit(path: Path, change: Change, forge: bool = False) -> None:
    """Change a JSON file by hand; a forger recomputes its digest."""
    plain = json.loads(path.read_bytes())
    change(plain)
    if forge:
        plain["digest"] = digest_of(plain)
    path.write_text(json.dumps(plain), encoding="utf-8")


def edit_predictions(folder: Path, name: str, change: Change) -> None:
    """Change the arrays of an evaluation's predictions, and their hash with them."""
    path = folder / "predictions" / f"{name}.npz"
    with np.load(path) as saved:
        arrays = dict(saved)
    change(arrays)
    np.savez(path, **arrays)
    renew_hash(folder, name)


def renew_hash(folder: Path, name: str) -> None:
    """Have an evaluation name the predictions that are there now."""
    said = file_sha256(folder / "predictions" / f"{name}.npz")
    edit(folder / "evaluations" / f"{name}.json", lambda one: one.update(predictions_sha256=said), forge=True)


def edit_history(folder: Path, change: Callable[[list[dict[str, Any]]], Any]) -> None:
    """Change lines of the history, and its hash with them."""
    path = folder / "history.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    change(lines)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    edit(folder / "record.json", lambda one: one["files"].update({path.name: file_sha256(path)}), forge=True)


def edit_lesions(folder: Path, change: Change) -> None:
    """Change the lesion area kept, and its hash with it."""
    path = folder / "lesions.npz"
    with np.load(path) as saved:
        arrays = dict(saved)
    change(arrays)
    np.savez(path, **arrays)
    edit(folder / "record.json", lambda one: one["files"].update({path.name: file_sha256(path)}), forge=True)


class Verified:
    """`bench.verify` in this process: its exit code, what it said, and its verdicts by check."""

    def __init__(self, *arguments: str | Path) -> None:
        from bench.verify import app

        self.result = CliRunner().invoke(app, [str(one) for one in arguments])
        self.code, self.output, self.stderr = self.result.exit_code, self.result.output, self.result.stderr
        self.said = " ".join(self.output.split())  # whatever was folded
        pattern = r"^ (\S.*?) {2,}(holds|does not hold|can't be compared) "
        self.verdicts: dict[str, str] = dict(re.findall(pattern, self.result.stdout, re.M))

    @property
    def failing(self) -> set[str]:
        return {what for what, verdict in self.verdicts.items() if verdict == "does not hold"}
