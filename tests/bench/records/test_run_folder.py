"""What lies in a run's folder, and whether it belongs to the record."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from bench.records.run_folder import SideFile, evaluation_paths, misplaced, read_history, side_files
from bench.records.store import Store
from tests.bench.small import evaluation, record

ABC = hashlib.sha256(b"abc").hexdigest()


@pytest.mark.parametrize(
    ("content", "recorded", "problem"),
    [
        (b"abc", ABC, ""),
        (b"abc", "", ""),
        (b"abcd", ABC, f"is not the file that was recorded (SHA-256 {ABC[:12]} recorded, 88d4266fd4e6 found)"),
        (None, ABC, "is not there, although it is recorded"),
        (None, "", "is not there, although it is recorded"),
    ],
)
def test_a_file_has_the_recorded_hash_or_says_what_is_wrong(
    tmp_path: Path, content: bytes | None, recorded: str, problem: str
) -> None:
    path = tmp_path / "history.jsonl"
    if content is not None:
        path.write_bytes(content)
    assert SideFile(path, recorded).problem() == problem


def test_the_files_that_a_record_and_its_evaluations_name(tmp_path: Path) -> None:
    store, one = Store(tmp_path), evaluation("a", "s")
    store.write_history("a", [{"epoch": 1, "loss": 1.0}])
    store.write_record(record("a"))
    store.write_evaluation(one.key.name, one, {})
    folder, stored, found = tmp_path / "a", store.record("a"), store.evaluation("a", "linear-10-dense")
    assert stored is not None and found is not None
    files = side_files(folder, stored, [found])
    assert [file.path for file in files] == [folder / "history.jsonl", folder / "predictions" / "linear-10-dense.npz"]
    assert [file.recorded for file in files] == [hashlib.sha256(file.path.read_bytes()).hexdigest() for file in files]
    assert evaluation_paths(folder) == [folder / "evaluations" / "linear-10-dense.json"]


def test_an_evaluation_of_another_run_or_name_is_misplaced() -> None:
    path, one = Path("evaluations") / "linear-10-dense.json", evaluation("a", "s")
    assert misplaced(path, one, "a") == ""
    assert misplaced(path, one, "b") == "is an evaluation of another run, a"
    assert misplaced(path.with_name("linear-1-dense.json"), one, "a") == "is linear-10-dense by its content"


def test_a_history_comes_back_as_it_was(tmp_path: Path) -> None:
    lines = [{"epoch": n, "loss": 0.1 * n, "keep": None, "selection": {"overlap": 0.5}} for n in (1, 2)]
    Store(tmp_path).write_history("a", lines)
    assert read_history(tmp_path / "a" / "history.jsonl") == lines


@pytest.mark.parametrize("line", ["5", "[[1, 2]]", "[" * 100_000, '{"loss": "low"}', '{"loss": [1.0]}', "{"])
def test_a_line_that_is_not_an_epoch_is_named_by_its_number(tmp_path: Path, line: str) -> None:
    path = tmp_path / "history.jsonl"
    path.write_text(json.dumps({"epoch": 1, "loss": 1.0}) + "\n" + line + "\n")
    with pytest.raises(ValueError, match=r"^line 2 is not an epoch of a history: \S"):
        read_history(path)
