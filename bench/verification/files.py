"""Reads the folder of a record, and checks that its files are those that were written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.records.record import SIDE_FILES, Evaluation, Record
from bench.records.run_folder import SideFile, evaluation_paths, misplaced, predictions_path, read_history, side_files
from bench.records.seal import Reading, State, read_sealed
from bench.verification.check import FAILS, HOLDS, OPEN, Check, Verdict, judged

VERDICTS: dict[State, Verdict] = {"whole": HOLDS, "unsealed": OPEN, "other schema": OPEN}  # of all others: FAILS


@dataclass(frozen=True)
class Source:
    """A record, its folder, and its evaluations by name."""

    folder: Path
    record: Record
    evaluations: dict[str, Evaluation]

    def predictions(self, name: str) -> Path:
        """The file with the predictions of an evaluation."""
        return predictions_path(self.folder, name)

    def history(self) -> list[dict[str, Any]]:
        """The history, one line an epoch. Raises OSError, and ValueError for lines that hold anything but numbers."""
        return read_history(self.folder / "history.jsonl")

    @property
    def checkpoint(self) -> SideFile:
        """The file with the weights of the run, and the SHA-256 that the record states."""
        return SideFile(self.folder / "checkpoint.safetensors", self.record.weights_sha256)


def folders_of(place: Path) -> list[Path]:
    """The folders of the records that a path names: a run's folder, its record.json, or a results folder. Raises
    FileNotFoundError where there is no record."""
    if place.name == "record.json" and place.is_file():
        return [place.parent]
    if (place / "record.json").is_file():
        return [place]
    found = sorted(path.parent for path in place.glob("*/record.json"))
    if not found:
        raise FileNotFoundError(
            f"there is no record in {place}: name results/<run id>, its record.json, or a results folder."
        )
    return found


def read(folder: Path) -> tuple[Source | None, list[Check]]:
    """The content of a run's folder, None where the record can't be read, and the checks that it is as written."""
    reading = read_sealed(Record, folder / "record.json")
    checks = [verdict_on("record.json", reading)]
    record = reading.model
    if record is None:
        return None, checks
    evaluations: dict[str, Evaluation] = {}
    found: dict[Verdict, list[str]] = {FAILS: [], OPEN: [], HOLDS: []}
    for path in evaluation_paths(folder):
        one = read_sealed(Evaluation, path)
        found[verdict_on(path.name, one).verdict].append(f"{path.name} {one.why}")
        if one.model is None:
            continue
        if why := misplaced(path, one.model, record.run_id):
            found[FAILS].append(f"{path.name} {why}")
        else:
            evaluations[path.stem] = one.model
    source = Source(folder, record, evaluations)
    checks.append(_sealed_evaluations(found))
    checks.append(_beside(source))
    return source, checks


def verdict_on(what: str, reading: Reading[Any]) -> Check:
    """The check that a sealed file is as it was written."""
    return Check(what, VERDICTS.get(reading.state, FAILS), reading.why)


def weights(source: Source) -> Check:
    """Check that the checkpoint is the one that the record names."""
    what, checkpoint = "checkpoint", source.checkpoint
    if not checkpoint.path.is_file():
        return Check(what, OPEN, f"{checkpoint.path.name} is not there")
    if not checkpoint.recorded:
        return Check(what, FAILS, "the record does not state its SHA-256")
    return judged(what, _problems([checkpoint]), f"its SHA-256 is weights_sha256, {checkpoint.recorded[:12]}")


def _sealed_evaluations(found: dict[Verdict, list[str]]) -> Check:
    """One check for all evaluations, from what was found by verdict."""
    what = "evaluations"
    if not any(found.values()):
        return Check(what, OPEN, "there are none")
    verdict = FAILS if found[FAILS] else OPEN
    return judged(what, found[verdict], f"the digests of {len(found[HOLDS])} fit", verdict)


def _beside(source: Source) -> Check:
    """Check that the other files are those that were written."""
    what, files = "other files", side_files(source.folder, source.record, source.evaluations.values())
    problems = _problems(files)
    unnamed = [file.path.name for file in files if not file.recorded]
    unnamed += [name for name in SIDE_FILES if name not in source.record.files and (source.folder / name).is_file()]
    if not problems and (unnamed or not files):
        why = f"no SHA-256 is recorded for {unnamed[0]}" if unnamed else "there are none"
        return Check(what, OPEN, f"{why}{f', and {len(unnamed) - 1} more' if len(unnamed) > 1 else ''}")
    return judged(what, problems, f"each of {len(files)} has the recorded SHA-256")


def _problems(files: list[SideFile]) -> list[str]:
    return [f"{file.path.name} {why}" for file in files if (why := file.problem())]
