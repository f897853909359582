"""Runs with their evaluations, arms (the rows of the tables) and groups (runs that may be compared)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.records.record import Evaluation, Record
from bench.records.run_folder import predictions_path
from methods import ALL_TOKENS, BASELINES, STRATEGIES, SUPERVISED, Inference, inference_modes

UNLEARNED = "†"
"""Ends the label of an arm with runs that did not learn, in every table, figure and sentence."""


class ReportRefused(ValueError):
    """Raised for records that must not stand in one report; the message says which, why, and what to do."""


@dataclass(frozen=True)
class Run:
    """A record with its test evaluations, and the folder that holds them."""

    record: Record
    folder: Path
    evaluations: tuple[Evaluation, ...]

    @property
    def seed(self) -> int:
        """The seed of the run's spec."""
        return int(self.record.spec.get("seed", 0))

    @property
    def unlearned(self) -> str:
        """`plateaued` or `collapsed` for a run that did not learn, else an empty string."""
        verdict = self.record.learning.verdict if self.record.learning else ""
        return verdict if verdict in ("plateaued", "collapsed") else ""

    def own(self, labels: float) -> bool:
        """Whether the weights may be scored at this fraction: a supervised baseline is trained on one fraction only."""
        trained = self.record.spec.get("labels")
        return trained is None or float(trained) == labels

    def predictions(self, evaluation: Evaluation) -> Path:
        """The file with the predictions of an evaluation."""
        return predictions_path(self.folder, evaluation.key.name)


def inference_macs(record: Record, mode: Inference) -> float | None:
    """MACs per image in an inference mode; None if they were not recorded."""
    macs = record.macs
    if macs is None:
        return None
    if mode == ALL_TOKENS and macs.all_tokens is not None:
        return macs.all_tokens
    other = mode == ALL_TOKENS and record.strategy in STRATEGIES and inference_modes(record.strategy)[0] != mode
    return None if other else macs.inference


@dataclass(frozen=True, eq=False)
class Arm:
    """Runs of one method at one keep ratio in one inference mode: a row of the tables. `label` is unique in a group.
    Two arms are the same if they are one object."""

    label: str
    method: str
    objective: str
    strategy: str
    keep: float | None
    keep_effective: float | None
    inference: Inference
    train_execution: str
    runs: tuple[Run, ...]
    main: bool = True  # in the default inference mode of the strategy

    @property
    def unlearned(self) -> int:
        """The number of runs that plateaued or collapsed."""
        return sum(bool(run.unlearned) for run in self.runs)

    @property
    def baseline(self) -> bool:
        """Whether the arm is the untrained or the supervised baseline."""
        return self.strategy in BASELINES

    @property
    def inference_macs(self) -> float | None:
        """MACs per image at inference, in the mode of this arm; None if they were not recorded."""
        return inference_macs(self.runs[0].record, self.inference)

    def evaluations(self, probe: str, labels: float) -> dict[int, tuple[Run, Evaluation]]:
        """Runs and evaluations by seed. The supervised baseline trains its own head and counts as linear."""
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
    settings: dict[str, Any]  # those that differ from other groups of the same data, split, preset and encoder
    arms: tuple[Arm, ...]
    failed: tuple[Record, ...]
    other_selections: tuple[Arm, ...] = ()  # the same runs, evaluated with selections that are not those of the image

    @property
    def trained(self) -> tuple[Arm, ...]:
        """The arms of trained methods, each training once: in its default inference mode."""
        return tuple(arm for arm in self.arms if arm.main and not arm.baseline)

    @property
    def runs(self) -> tuple[Run, ...]:
        """The runs of all arms, each once."""
        return tuple({run.record.run_id: run for arm in self.arms for run in arm.runs}.values())

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds of finished and failed runs."""
        done = {run.seed for arm in self.arms for run in arm.runs}
        return tuple(sorted(done | {int(record.spec.get("seed", 0)) for record in self.failed}))

    @property
    def evidence(self) -> bool:
        """False for a preset that only tests the code."""
        return self.preset != "smoke" and all(run.record.evidence for run in self.runs)

    @property
    def probes(self) -> tuple[str, ...]:
        """The probes of the trained runs; those of the baselines where there is nothing else."""
        known = {one.probe for run in self.runs if run.record.objective != "none" for one in run.evaluations}
        known = known or {one.probe for run in self.runs for one in run.evaluations}
        return tuple(probe for probe in ("linear", "knn", "finetune") if probe in known)

    def fractions(self, probe: str) -> tuple[float, ...]:
        """The label fractions at which a probe was evaluated, in per cent, ascending."""
        return tuple(sorted({one.labels for run in self.runs for one in run.evaluations if one.probe == probe}))

    @property
    def title(self) -> str:
        """The heading of the group: data, encoder, preset, split and differing settings."""
        text = f"{self.data}, {self.encoder} at {self.image_size} px, preset {self.preset}, split {self.split[:8]}"
        extra = ", ".join(f"{key} = {value}" for key, value in sorted(self.settings.items()))
        return f"{text} ({extra})" if extra else text
