"""What is compared: a run with its evaluations, an arm (a row of the tables), a group (runs that may be compared)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.records.record import Evaluation, Record
from bench.records.run_folder import predictions_path

BASELINES = ("untrained", "supervised")


class ReportRefused(ValueError):
    """Records that must not share a report; the message says which, why, and what to do."""


@dataclass(frozen=True)
class Run:
    """One record with its test evaluations, in the folder they lie in."""

    record: Record
    folder: Path
    evaluations: tuple[Evaluation, ...]

    @property
    def seed(self) -> int:
        return int(self.record.spec.get("seed", 0))

    def own(self, labels: float) -> bool:
        """Whether the weights may be scored at this fraction: supervised ones have seen the labels of one alone."""
        trained = self.record.spec.get("labels")
        return trained is None or float(trained) == labels

    def predictions(self, evaluation: Evaluation) -> Path:
        return predictions_path(self.folder, evaluation.key.name)


@dataclass(frozen=True)
class Arm:
    """One method at one keep ratio and one way of inference: a row of the tables. `label` is unique in its group."""

    label: str
    method: str
    objective: str
    strategy: str
    keep: float | None
    keep_effective: float | None
    inference: str
    train_execution: str
    runs: tuple[Run, ...]

    @property
    def baseline(self) -> bool:
        return self.strategy in BASELINES

    def evaluations(self, probe: str, labels: float) -> dict[int, tuple[Run, Evaluation]]:
        """By seed. A baseline that trains its own head has no probe, so there any probe serves."""
        found: dict[int, tuple[Run, Evaluation]] = {}
        for run in self.runs:
            for one in run.evaluations:
                if one.inference != self.inference or one.labels != labels or not run.own(labels):
                    continue
                if one.probe == probe or (
                    self.strategy == "supervised" and probe == "linear" and run.seed not in found
                ):
                    found[run.seed] = (run, one)
        return found


@dataclass(frozen=True)
class Group:
    """Runs that may be compared."""

    data: str
    split: str
    preset: str
    encoder: str
    image_size: int
    settings: dict[str, Any]  # what differs from sibling groups of the same data, split, preset and encoder
    arms: tuple[Arm, ...]
    failed: tuple[Record, ...]

    @property
    def runs(self) -> tuple[Run, ...]:
        return tuple({run.record.run_id: run for arm in self.arms for run in arm.runs}.values())

    @property
    def seeds(self) -> tuple[int, ...]:
        done = {run.seed for arm in self.arms for run in arm.runs}
        return tuple(sorted(done | {int(record.spec.get("seed", 0)) for record in self.failed}))

    @property
    def evidence(self) -> bool:
        """False for a preset that only tests the machinery."""
        return self.preset != "smoke" and all(run.record.evidence for run in self.runs)

    @property
    def probes(self) -> tuple[str, ...]:
        known = {one.probe for run in self.runs if run.record.objective != "none" for one in run.evaluations}
        known = known or {one.probe for run in self.runs for one in run.evaluations}
        return tuple(probe for probe in ("linear", "knn", "finetune") if probe in known)

    def fractions(self, probe: str) -> tuple[float, ...]:
        return tuple(sorted({one.labels for run in self.runs for one in run.evaluations if one.probe == probe}))

    @property
    def title(self) -> str:
        text = f"{self.data}, {self.encoder} at {self.image_size} px, preset {self.preset}, split {self.split[:8]}"
        extra = ", ".join(f"{key} = {value}" for key, value in sorted(self.settings.items()))
        return f"{text} ({extra})" if extra else text
