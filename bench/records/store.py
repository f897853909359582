"""Reads and writes the results folder, `results/<run id>/`. Every file is written under a temporary name, synced and
renamed, so that it is either whole or not there."""

from __future__ import annotations

import io
import json
import os
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel

from bench.messages import FULL, disk_full
from bench.records.record import SIDE_FILES, Evaluation, Record
from bench.records.run_folder import evaluation_path, predictions_path
from bench.records.seal import read_sealed, seal, sha256
from bench.specs.frozen import file_sha256
from bench.specs.run_spec import EvaluationKey, EvaluationSpec, FinetuneSpec, RunSpec
from methods import ALL_TOKENS, inference_modes

ROOM = 1 << 20  # bytes; the least that a run needs for its weights and its record


def check_folder(folder: Path, option: str) -> None:
    """Make the folder that an option names, and check that it can be written to. Raises NotADirectoryError or
    PermissionError, which name the option."""
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file: {option} takes a folder.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PermissionError(
            f"{folder} can't be made ({error.strerror}): give another folder with {option}."
        ) from None
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"{folder} can't be written to: give another folder with {option}.")


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file under a temporary name, sync it and rename it; makes the folder if it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")  # process ids repeat across containers
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Sync the names in a folder too, so that a power failure can't undo a rename."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def clock_of(folder: Path) -> float:
    """The current time by the clock that dates the files of a folder, which may be that of a file server."""
    probe = folder / f".{uuid.uuid4().hex[:12]}.tmp"
    try:
        with open(probe, "xb") as file:
            return os.fstat(file.fileno()).st_mtime
    finally:
        probe.unlink(missing_ok=True)


def as_json(value: BaseModel | dict[str, Any]) -> bytes:
    """Indented JSON of a model or of plain values. Raises ValueError for NaN and infinities, which JSON lacks."""
    plain = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
    return (json.dumps(plain, indent=1, allow_nan=False) + "\n").encode()


class Store:
    """The results folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def jobs(self) -> Path:
        """The folder with notes on submitted SLURM jobs."""
        return self.root / ".jobs"

    def folder(self, run_id: str) -> Path:
        return self.root / run_id

    def record(self, run_id: str) -> Record | None:
        """The run's record, or None where there is none. Raises ValueError, naming the file, for one that can't be read
        or was changed after it was written."""
        reading = read_sealed(Record, self.folder(run_id) / "record.json")
        if reading.intact is None and reading.state != "missing":
            raise ValueError(f"{reading.path} {reading.why}: put the original back, or move it away.")
        return reading.intact

    def done(self, run_id: str) -> bool:
        """Whether the run is trained and recorded."""
        record = self.record(run_id)
        return record is not None and record.status == "done"

    def failed(self, run_id: str) -> bool:
        """Whether the run's record is that of a failure."""
        record = self.record(run_id)
        return record is not None and record.status == "failed"

    def evaluation(self, run_id: str, name: str) -> Evaluation | None:
        """An evaluation, or None where there is none that is whole."""
        return read_sealed(Evaluation, evaluation_path(self.folder(run_id), name)).intact

    def has_evaluation(self, run_id: str, name: str, settings: str) -> bool:
        """Whether this evaluation is there, whole, and made with these settings."""
        found = self.evaluation(run_id, name)
        return found is not None and found.settings == settings

    def weights(self, run_id: str) -> bytes:
        """The weights file of a finished run. Raises ValueError where the run is not done or the file is not the one
        that its record names, OSError where it can't be read."""
        path, record = self.folder(run_id) / "checkpoint.safetensors", self.record(run_id)
        if record is None or record.status != "done":
            raise ValueError(f"{self.folder(run_id)} holds no finished run")
        content = path.read_bytes()
        if sha256(content) != record.weights_sha256:
            raise ValueError(f"{path} is not what the record names: put it back, or move {path.parent} away")
        return content

    def training(self, run_id: str) -> Path:
        """The folder of the checkpoints of a training, removed once its record is written."""
        return self.folder(run_id) / "training"

    def log(self, run_id: str) -> Path:
        """The file with the details of the run's last failure."""
        return self.folder(run_id) / "log.txt"

    def full(self) -> str:
        """The message that the disk is full, where not even a failure can be written; "" where there is room."""
        try:
            write_atomically(self.root / ".room", bytes(ROOM))
        except OSError as error:
            return disk_full(error) if error.errno in FULL else ""
        (self.root / ".room").unlink(missing_ok=True)
        return ""

    def tidy(self, run_id: str) -> None:
        """Remove half-written files of a killed process. Only for the process that holds the run's lease."""
        for path in self.folder(run_id).rglob(".*.tmp"):
            path.unlink(missing_ok=True)

    def write_record(self, record: Record) -> None:
        """Write a record, sealed, and with the hashes of the files that a finished run wrote before it."""
        folder = self.folder(record.run_id)
        if record.status == "done":
            files = {name: file_sha256(folder / name) for name in SIDE_FILES if (folder / name).is_file()}
            record = record.model_copy(update={"files": files})
        write_atomically(folder / "record.json", as_json(seal(record)))

    def write_history(self, run_id: str, history: list[dict[str, Any]]) -> None:
        """Write the history of a training, one line an epoch."""
        lines = "".join(json.dumps(line, allow_nan=False) + "\n" for line in history)
        write_atomically(self.folder(run_id) / "history.jsonl", lines.encode())

    def write_evaluation(self, name: str, evaluation: Evaluation, predictions: dict[str, npt.NDArray[Any]]) -> None:
        """Write an evaluation, sealed, after its predictions, whose hash it names: they are there whenever it is."""
        folder = self.folder(evaluation.run_id)
        written = self.write_arrays(predictions_path(folder, name), predictions)
        sealed = seal(evaluation.model_copy(update={"predictions_sha256": written}))
        write_atomically(evaluation_path(folder, name), as_json(sealed))

    @staticmethod
    def write_arrays(path: Path, arrays: dict[str, npt.NDArray[Any]]) -> str:
        """Write arrays as an .npz without pickles, and return its SHA-256."""
        buffer = io.BytesIO()
        np.savez_compressed(buffer, allow_pickle=False, **arrays)
        write_atomically(path, buffer.getvalue())
        return sha256(buffer.getvalue())


def missing_evaluations(
    store: Store, spec: RunSpec, evaluation: EvaluationSpec, tuning: FinetuneSpec
) -> list[EvaluationKey]:
    """The evaluations that `evaluation` asks for and the run does not have."""
    return [
        key
        for key in wanted_evaluations(spec, evaluation)
        if not store.has_evaluation(spec.run_id, key.name, evaluation.settings_of(key.probe, spec.finetune or tuning))
    ]


def wanted_evaluations(spec: RunSpec, evaluation: EvaluationSpec) -> list[EvaluationKey]:
    """Every probe at every fraction in the default inference mode of the strategy; the linear probe in its others."""
    if spec.labels is not None:
        return [EvaluationKey("finetune", spec.labels, ALL_TOKENS)]
    default, *others = inference_modes(spec.parsed.strategy)
    probes = [(probe, default) for probe in evaluation.probes]
    probes += [(probe, mode) for mode in others for probe in evaluation.probes if probe == "linear"]
    return [EvaluationKey(probe, labels, mode) for probe, mode in probes for labels in evaluation.labels]
