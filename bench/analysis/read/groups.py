"""Units of a report: a run with its evaluations, an arm (one row of the tables), a group (arms that are compared)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.records.record import Evaluation, Record
from methods import BASELINES, SUPERVISED


class ReportRefused(ValueError):
    """Records can't be reported, or not together; the message says which, why, and what to do."""


@dataclass(frozen=True)
class Run:
    """A record with its folder and its evaluations on the test split."""

    record: Record
    folder: Path
    evaluations: tuple[Evaluation, ...]

    @property
    def seed(self) -> int:
        return int(self.record.spec.get("seed", 0))

    def own(self, labels: float) -> bool:
        """Whether the run may be scored at a label fraction: a supervised run only at the one it was trained on."""
        trained = self.record.spec.get("labels")
        return trained is None or float(trained) == labels

    def predictions(self, evaluation: Evaluation) -> Path:
        name = f"{evaluation.probe}-{evaluation.labels:g}-{evaluation.inference}.npz"
        return self.folder / "predictions" / name


@dataclass(frozen=True)
class Arm:
    """Runs of one method at one keep ratio in one inference mode: a row of the tables. `label` is unique in a group."""

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
        """Runs and evaluations by seed. The supervised baseline has no probe; its evaluation counts as linear."""
        found: dict[int, tuple[Run, Evaluation]] = {}
        for run in self.runs:
            for one in run.evaluations:
                if one.inference != self.inference or one.labels != labels or not run.own(labels):
                    continue
                if one.probe == probe or (self.strategy == SUPERVISED and probe == "linear" and run.seed not in found):
                    found[run.seed] = (run, one)
        return found


@dataclass(frozen=True)
class Group:
    """Arms that are compared: runs on the same data and split, with the same preset, encoder and settings."""

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
        """False for runs that only test the code, such as those of the smoke preset."""
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
