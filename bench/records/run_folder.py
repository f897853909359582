"""The folder of a run: how its evaluations, predictions and other files belong to its record."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt
from pydantic import StrictFloat, StrictInt, TypeAdapter, ValidationError

from bench.records.record import Evaluation, Record
from bench.specs.frozen import file_sha256, mistakes
from bench.statistics.lesions import PARTS
from datasets.archives import read_npz
from datasets.limits import RECORD_BYTES, read_within

LESIONS = {"pseudo": "f", "share": "f", "by_area": "f", "images": "iu", "patients": "iu"}  # arrays: kinds of numbers
_EPOCH = TypeAdapter(dict[str, StrictInt | StrictFloat | None | dict[str, StrictFloat]])


@dataclass(frozen=True)
class SideFile:
    """A file that was written with a record, and the SHA-256 recorded of it; "" by versions that recorded none."""

    path: Path
    recorded: str

    def problem(self) -> str:
        """What is wrong with the file, in words that follow its name; "" where it is there and nothing contradicts
        it."""
        if not self.path.is_file():
            return "is not there, although it is recorded"
        found = file_sha256(self.path) if self.recorded else ""
        if found == self.recorded:
            return ""
        return f"is not the file that was recorded (SHA-256 {self.recorded[:12]} recorded, {found[:12]} found)"


def side_files(folder: Path, record: Record, evaluations: Iterable[Evaluation]) -> list[SideFile]:
    """What the record and the evaluations name: history, selection figure, lesion areas kept,
    predictions."""
    named = [SideFile(folder / name, recorded) for name, recorded in record.files.items()]
    return named + [SideFile(predictions_path(folder, one.key.name), one.predictions_sha256) for one in evaluations]


def predictions_path(folder: Path, evaluation: str) -> Path:
    """The predictions of an evaluation, by its name."""
    return folder / "predictions" / f"{evaluation}.npz"


def evaluation_path(folder: Path, evaluation: str) -> Path:
    """An evaluation, by its name."""
    return folder / "evaluations" / f"{evaluation}.json"


def evaluation_paths(folder: Path) -> list[Path]:
    """All evaluations of the folder."""
    return sorted(folder.glob("evaluations/*.json"))


def misplaced(path: Path, evaluation: Evaluation, run_id: str) -> str:
    """Why an evaluation does not belong where it lies, in words that follow its name; "" where it does."""
    if evaluation.run_id != run_id:
        return f"is an evaluation of another run, {evaluation.run_id}"
    if path.stem != evaluation.key.name:
        return f"is {evaluation.key.name} by its content"
    return ""


def read_history(path: Path) -> list[dict[str, Any]]:
    """The lines of a history.jsonl, one an epoch. Raises OSError, and ValueError for lines that hold anything but
    numbers."""
    lines = []
    for number, line in enumerate(read_within(path, RECORD_BYTES).decode().splitlines(), 1):
        try:
            lines.append(_EPOCH.validate_json(line))
        except ValidationError as error:
            raise ValueError(f"line {number} is not an epoch of a history: {mistakes(error, most=1)}") from error
    return lines


def read_lesions(folder: Path, findings: int) -> dict[str, npt.NDArray[Any]] | None:
    """The arrays LESIONS of a run's lesions.npz (`bench.evaluation.lesions`), None where it has none. Raises ValueError
    for a file that is damaged, or not about so many findings."""
    path = folder / "lesions.npz"
    if not path.is_file():
        return None
    saved = read_npz(path, tuple(LESIONS))
    shapes = {name: one.shape for name, one in saved.items()}
    patients = shapes["pseudo"][-1:]
    expected = dict.fromkeys(LESIONS, (findings,)) | {"pseudo": (findings, len(PARTS), *patients)}
    if shapes != expected or any(one.dtype.kind not in LESIONS[name] for name, one in saved.items()):
        raise ValueError(f"{path} does not hold what is kept of {findings} findings.")
    return saved
