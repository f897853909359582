"""What one group's predictions say: macro AUROC by method and fraction, and paired differences, with intervals.

Every macro mean of a group is over one and the same set of findings: those defined for all methods, seeds,
draws and label fractions at hand. Where that set is empty, each fraction gets its own, and `note` says so.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from bench.analysis import statistics
from bench.analysis.groups import Arm, Group, ReportRefused, Run
from bench.analysis.statistics import Array, Estimate
from bench.record import Evaluation
from datasets.archives import read_npz

PRIMARY = 10.0  # per cent of the labels at which verdicts are given


@dataclass
class Scores:
    """One probe of one group. Estimates are over the arm's seeds; None where the arm has no evaluation there."""

    group: Group
    probe: str
    _values: dict[tuple[Any, ...], Array | None] = field(default_factory=dict, repr=False)
    _patients: Array | None = field(default=None, repr=False)
    _by_class: Array | None = field(default=None, repr=False)  # (findings, 2): test patients without and with each

    @property
    def names(self) -> tuple[str, ...]:
        data = self.group.runs[0].record.data
        return data.label_names if data else ()

    @cached_property
    def fractions(self) -> tuple[float, ...]:
        return tuple(f for f in self.group.fractions(self.probe) if self.findings(f))

    @property
    def primary(self) -> float:
        """The fraction at which verdicts are given: 10 %, or the nearest to it (in ratio) that was evaluated."""
        return min(self.fractions, key=lambda f: abs(np.log(f / PRIMARY)))

    @cached_property
    def _undefined(self) -> dict[float, dict[str, str]]:
        """By fraction: finding -> the reason why some run or draw has no score for it."""
        out: dict[float, dict[str, str]] = {}
        for fraction in self.group.fractions(self.probe):
            missing = out.setdefault(fraction, {})
            for arm in self.group.arms:
                for _, one in arm.evaluations(self.probe, fraction).values():
                    for name in self.names:
                        if name not in one.per_label or not np.isfinite(one.per_label[name].auroc):
                            missing.setdefault(name, one.undefined.get(name, f"no score for {arm.label}"))
                        elif name in one.undefined:  # some draws only
                            missing.setdefault(name, one.undefined[name])
        return out

    @cached_property
    def common(self) -> bool:
        """Whether one set of findings serves all fractions."""
        return any(all(name not in missing for missing in self._undefined.values()) for name in self.names)

    def findings(self, fraction: float) -> tuple[str, ...]:
        """The findings that every macro mean at this fraction is over."""
        fractions = self._undefined.values() if self.common else [self._undefined[fraction]]
        return tuple(name for name in self.names if all(name not in missing for missing in fractions))

    @property
    def notes(self) -> list[str]:
        """Sentences on what the macro means leave out."""
        out = []
        for fraction, missing in self._undefined.items():
            for name, why in missing.items():
                out.append(
                    f"{name} is in no {'macro mean' if self.common else f'macro mean at {fraction:g} %'} of"
                    f" the {self.probe} probe: at {fraction:g} % of the labels, {why}."
                )
        if not self.common and self.names:
            out.append(
                "No finding is defined at every label fraction, so each fraction has its own set of findings"
                " and fractions can't be compared with each other."
            )
        return out

    def _run_values(self, run: Run, one: Evaluation, names: tuple[str, ...], draws: int | None) -> Array | None:
        """Pseudo-values (draws, test patients) of one run, of its first `draws` or all; None where the record keeps no
        predictions."""
        key = (run.record.run_id, one.probe, one.labels, one.inference, names, draws)
        if key not in self._values:
            path, values = run.predictions(one), None
            if path.is_file():
                mask = np.array([name in names for name in self.names])
                scores, labels, patients = _predictions(path, len(self.names))
                values, who = statistics.pseudo_values(scores[:draws], labels, patients, mask)
                if self._patients is None:
                    self._patients, self._by_class = who, statistics.patients_by_class(labels, patients)
                if not np.array_equal(self._patients, who):
                    raise ReportRefused(
                        f"{path} holds other test patients than the other runs of its group; run "
                        f"{run.record.run_id} again or move it to another results folder."
                    )
            self._values[key] = values
        return self._values[key]

    def _of(
        self, arm: Arm, fraction: float, names: tuple[str, ...], draws: int | None = None
    ) -> dict[int, tuple[Array | None, float]]:
        """By seed: pseudo-values (or None) and the plain mean of the findings' AUROC."""
        out, draws = {}, draws or self.draws(arm, fraction)
        for seed, (run, one) in arm.evaluations(self.probe, fraction).items():
            mean = float(np.mean([one.per_label[name].auroc for name in names]))
            out[seed] = (self._run_values(run, one, names, draws), mean)
        return out

    def estimate(self, arm: Arm, fraction: float, finding: str | None = None) -> Estimate | None:
        """Macro AUROC of an arm, or the AUROC of one finding, with its interval on the logit scale."""
        names = (finding,) if finding else self.findings(fraction)
        if not names or (finding and finding in self._undefined.get(fraction, {})):
            return None
        found = _interval(list(self._of(arm, fraction, names).values()))
        return self._among_patients(statistics.of_auroc(found), names) if found else None

    def difference(self, arm: Arm, reference: Arm, fraction: float, finding: str | None = None) -> Estimate | None:
        """Macro AUROC of `arm` minus that of `reference`, or of one finding, paired by seed, patient and draw; None
        without a common seed.

        Of an arm with more draws of the labelled patients than the other the first ones count.
        """
        names = (finding,) if finding else self.findings(fraction)
        if finding and finding in self._undefined.get(fraction, {}):
            return None
        counts = {self.draws(one, fraction) for one in (arm, reference)} - {0}
        draws = min(counts) if len(counts) > 1 else None
        mine, theirs = self._of(arm, fraction, names, draws), self._of(reference, fraction, names, draws)
        pairs: list[tuple[Array | None, float]] = []
        for seed in sorted(set(mine) & set(theirs)):
            (a, mean_a), (b, mean_b) = mine[seed], theirs[seed]
            pairs.append((None if a is None or b is None else a - b, mean_a - mean_b))
        found = _interval(pairs)
        return self._among_patients(statistics.of_difference(found), names) if found else None

    def _among_patients(self, found: Estimate, names: tuple[str, ...]) -> Estimate:
        """What the rarest class of these findings among the test patients allows: an interval, a rough one, or none."""
        if self._by_class is None or not found.patients:
            return found  # over seeds alone
        by_class = dict(zip(self.names, self._by_class.tolist(), strict=True))
        fewest, name, side = min((n, name, side) for name in names for side, n in enumerate(by_class[name]))
        noun = "test patient" if fewest == 1 else "test patients"
        return statistics.among_patients(found, fewest, f"{noun} {('without', 'with')[side]} {name}")

    def draws(self, arm: Arm, fraction: float) -> int:
        """Draws of the fraction that all seeds of the arm were scored on; 0 where it was not scored."""
        return min((len(one.draws) for _, one in arm.evaluations(self.probe, fraction).values()), default=0)

    def seed_means(self, arm: Arm, fraction: float, what: str = "auroc") -> list[float]:
        """One macro value a seed, in seed order; `what` is "auroc" or "auprc"."""
        names = self.findings(fraction)
        found = sorted(arm.evaluations(self.probe, fraction).items())
        return [float(np.mean([getattr(one.per_label[name], what) for name in names])) for _, (_, one) in found]

    def reference(self, arm: Arm, strategy: str) -> Arm | None:
        """The arm of that strategy to compare with: of the same objective; for floors and for a dense arm,
        SimCLR's."""
        same = [one for one in self.group.arms if one.strategy == strategy and one is not arm]
        if arm.floor or (arm.strategy == "dense" and strategy == "dense"):
            same = [one for one in same if one.objective == "simclr"]
        else:
            same = [one for one in same if one.objective == arm.objective]
        same.sort(key=lambda one: one.inference != arm.inference)
        near = [one for one in same if one.keep == arm.keep] or same
        plain = [one for one in near if "[" not in one.method] or near
        return plain[0] if plain else None


def _predictions(path: Path, findings: int) -> tuple[Array, Array, Array]:
    """scores (draws, images, findings), labels (images, findings) and patients (images,) of a run's predictions."""
    try:
        saved = read_npz(path, ("scores", "labels", "patients"))
    except ValueError as error:
        raise ReportRefused(f"{error} It holds a run's predictions: run it again, or move its folder away.") from error
    scores, labels, patients = saved["scores"], saved["labels"], saved["patients"]
    images = patients.shape[:1]
    numbers = scores.dtype.kind == "f" and labels.dtype.kind == "f" and patients.dtype.kind == "U"
    if (
        not numbers
        or scores.size == 0
        or scores.ndim != 3
        or scores.shape[1:] != (*images, findings)
        or labels.shape != scores.shape[1:]
    ):
        raise ReportRefused(
            f"{path} does not hold scores of {findings} findings with their labels and patients: run it again, or move "
            "its folder away."
        )
    return scores, labels, patients


def _interval(found: list[tuple[Array | None, float]]) -> Estimate | None:
    if not found:
        return None
    tables = [values for values, _ in found if values is not None]
    if len(tables) < len(found):
        return statistics.seeds_interval(np.array([mean for _, mean in found]))
    return statistics.crossed_interval(np.stack(tables))
