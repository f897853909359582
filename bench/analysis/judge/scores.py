"""What one group's predictions say: macro AUROC by method and fraction, and paired differences, with intervals.

Every macro mean of a group is over one and the same set of findings: those defined for all methods, seeds,
draws and label fractions at hand. Where that set is empty, each fraction gets its own, and `note` says so.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from bench.analysis.read.groups import Arm, Group, ReportRefused, Run
from bench.analysis.read.predictions import Part, Sample, read_predictions
from bench.records.record import Evaluation
from bench.statistics import accuracy
from bench.statistics.accuracy import Array, Estimate

PRIMARY = 10.0  # per cent of the labels at which verdicts are given


@dataclass
class Scores:
    """One probe of one group. Estimates are over the arm's seeds; None where the arm has no evaluation there."""

    group: Group
    probe: str
    _values: dict[tuple[Any, ...], dict[str, Array] | None] = field(default_factory=dict, repr=False)
    _samples: dict[Part, Sample] = field(default_factory=dict, repr=False)

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
        if self.fractions and self.dense_and_untrained is not None and self.chosen_findings is None:
            out.append(
                f"There is no interval of the {self.probe} probe on validation patients, so no findings were chosen on"
                " them."
            )
        return out

    def _run_values(
        self, run: Run, one: Evaluation, names: tuple[str, ...], draws: int | None, part: Part = "test"
    ) -> Array | None:
        """Pseudo-values (draws, patients of the part) of one run, of its first `draws` or all; None where the record
        keeps no predictions on them."""
        key = (run.record.run_id, one.probe, one.labels, one.inference, draws, part)
        if key not in self._values:
            self._values[key] = self._read(run, one, draws, part)
        values = self._values[key]
        if values is None:
            return None
        if strangers := set(names) - values.keys():
            raise ReportRefused(
                f"{run.predictions(one)} lacks scores of {min(strangers)}, and its evaluation has them: run "
                f"{run.record.run_id} again or move it to another results folder."
            )
        return np.asarray(np.mean([values[name] for name in names], axis=0))

    def _read(self, run: Run, one: Evaluation, draws: int | None, part: Part) -> dict[str, Array] | None:
        """Pseudo-values of each finding that is defined."""
        path = run.predictions(one)
        found = read_predictions(path, len(self.names), part) if path.is_file() else None
        if found is None:
            return None
        scores, sample = found[0][:draws], found[1]
        values: dict[str, Array] = {}
        for i in np.flatnonzero(accuracy.defined_labels(scores, sample.labels)):
            mask = np.arange(len(self.names)) == i
            values[self.names[i]], _ = accuracy.pseudo_values(scores, sample.labels, sample.patients, mask)
        if not np.array_equal(self._samples.setdefault(part, sample).names, sample.names):
            raise ReportRefused(
                f"{path} holds other {part} patients than the other runs of its group; run "
                f"{run.record.run_id} again or move it to another results folder."
            )
        return values

    def _of(
        self, arm: Arm, fraction: float, names: tuple[str, ...], draws: int | None = None
    ) -> dict[int, tuple[Array | None, float]]:
        """By seed: pseudo-values (or None) and the mean of the findings' AUROC, of the first `draws` or of all.

        Without predictions a record has the mean over all draws by finding, and single draws as a macro mean alone.
        Seeds whose record does not have what is asked for are left out.
        """
        out: dict[int, tuple[Array | None, float]] = {}
        draws = draws or self.draws(arm, fraction)
        for seed, (run, one) in arm.evaluations(self.probe, fraction).items():
            values = self._run_values(run, one, names, draws)
            if values is not None:
                out[seed] = (values, float(values.mean()))
            elif draws == len(one.draws):
                out[seed] = (None, float(np.mean([one.per_label[name].auroc for name in names])))
            elif set(names) == one.per_label.keys():
                out[seed] = (None, float(np.mean([draw.macro_auroc for draw in one.draws[:draws]])))
        return out

    def estimate(
        self, arm: Arm, fraction: float, finding: str | None = None, draws: int | None = None
    ) -> Estimate | None:
        """Macro AUROC of an arm, or the AUROC of one finding, with its interval on the logit scale; of the first
        `draws` of the labelled patients, or of all."""
        names = (finding,) if finding else self.findings(fraction)
        if not names or (finding and finding in self._undefined.get(fraction, {})):
            return None
        found = _interval(list(self._of(arm, fraction, names, draws).values()))
        return self._among_patients(accuracy.of_auroc(found), names) if found else None

    def difference(
        self, arm: Arm, reference: Arm, fraction: float, names: tuple[str, ...] | None = None
    ) -> Estimate | None:
        """Macro AUROC of `arm` minus that of `reference`, over the findings `names` or all of the macro mean, paired by
        seed, patient and draw; None without a common seed, or where one of `names` is undefined.

        Of an arm with more draws of the labelled patients than the other the first ones count.
        """
        names = self.findings(fraction) if names is None else names
        if not names or set(names) & self._undefined.get(fraction, {}).keys():
            return None
        counts = {self.draws(one, fraction) for one in (arm, reference)} - {0}
        draws = min(counts) if len(counts) > 1 else None
        mine, theirs = self._of(arm, fraction, names, draws), self._of(reference, fraction, names, draws)
        pairs: list[tuple[Array | None, float]] = []
        for seed in sorted(set(mine) & set(theirs)):
            (a, mean_a), (b, mean_b) = mine[seed], theirs[seed]
            pairs.append((None if a is None or b is None else a - b, mean_a - mean_b))
        found = _interval(pairs)
        return self._among_patients(accuracy.of_difference(found), names) if found else None

    def _among_patients(self, found: Estimate, names: tuple[str, ...], part: Part = "test") -> Estimate:
        """What the rarest class of these findings among the patients allows: an interval, a rough one, or none."""
        if not found.patients:
            return found  # over seeds alone
        sample = self._samples[part]
        found = replace(found, patients=sample.labelled([self.names.index(name) for name in names]))
        by_class = dict(zip(self.names, sample.by_class.tolist(), strict=True))
        fewest, name, side = min((n, name, side) for name in names for side, n in enumerate(by_class[name]))
        noun = f"{part} patient" if fewest == 1 else f"{part} patients"
        return accuracy.among_patients(found, fewest, f"{noun} {('without', 'with')[side]} {name}")

    @property
    def dense_and_untrained(self) -> tuple[Arm, Arm] | None:
        """The arms whose difference is what pre-training gave: dense, SimCLR's if there is one, and `untrained`."""
        dense = sorted((a for a in self.group.arms if a.strategy == "dense"), key=lambda a: a.objective != "simclr")
        untrained = [arm for arm in self.group.arms if arm.strategy == "untrained"]
        return (dense[0], untrained[0]) if dense and untrained else None

    @cached_property
    def chosen_findings(self) -> tuple[str, ...] | None:
        """The findings of the macro mean at the primary fraction for which the paired interval of dense minus the
        untrained encoder lies above 0 among the validation patients: others can't tell methods apart. Test patients
        have no part in the choice, which would favour dense otherwise. It is a choice and no verdict, and made with any
        number of seeds. None where there is no interval among validation patients."""
        if self.dense_and_untrained is None:
            return None
        found = {name: self._on_validation(name) for name in self.findings(self.primary)}
        if not any(one is not None and one.bounded for one in found.values()):
            return None
        return tuple(name for name, one in found.items() if one is not None and one.low > 0)

    def _on_validation(self, name: str) -> Estimate | None:
        """Dense minus untrained on one finding among the validation patients; None where some run lacks it."""
        assert self.dense_and_untrained is not None
        dense, untrained = (arm.evaluations(self.probe, self.primary) for arm in self.dense_and_untrained)
        seeds = sorted(set(dense) & set(untrained))
        pairs = [(dense[seed], untrained[seed]) for seed in seeds]
        if not pairs or not all(name in one.validation for pair in pairs for _, one in pair):
            return None
        draws = min(len(one.draws) for pair in pairs for _, one in pair)
        values = []
        for pair in pairs:
            a, b = (self._run_values(run, one, (name,), draws, "validation") for run, one in pair)
            means = [one.validation[name] for _, one in pair]
            values.append((None if a is None or b is None else a - b, means[0] - means[1]))
        found = _interval(values)
        return self._among_patients(found, (name,), "validation") if found else None

    @cached_property
    def sample(self) -> Sample | None:
        """The test images that were scored, the same for all runs; None where no record keeps its predictions."""
        paths = (run.predictions(one) for run in self.group.runs for one in run.evaluations)
        path = next((path for path in paths if path.is_file()), None)
        found = path and read_predictions(path, len(self.names), "test")
        return found[1] if found else None

    def draws(self, arm: Arm, fraction: float) -> int:
        """Draws of the fraction that all seeds of the arm were scored on; 0 where it was not scored."""
        return min((len(one.draws) for _, one in arm.evaluations(self.probe, fraction).values()), default=0)

    def precisions(self, arm: Arm, fraction: float, draws: int | None = None) -> list[float]:
        """Macro AUPRC of each seed, in seed order, of the first `draws` of the labelled patients or of all. Seeds whose
        record does not have what is asked for are left out."""
        found = sorted(arm.evaluations(self.probe, fraction).items())
        values = [self._precision(run, one, self.findings(fraction), draws) for _, (run, one) in found]
        return [value for value in values if value is not None]

    def _precision(self, run: Run, one: Evaluation, names: tuple[str, ...], draws: int | None) -> float | None:
        """Macro AUPRC of one run; None where the record does not have that of its first `draws`."""
        if draws is None or draws >= len(one.draws):
            return float(np.mean([one.per_label[name].auprc for name in names]))
        path = run.predictions(one)
        if path.is_file() and (found := read_predictions(path, len(self.names), "test")):
            scores, sample = found[0][:draws], found[1]
            columns = [self.names.index(name) for name in names]
            known = {i: ~np.isnan(sample.labels[:, i]) for i in columns}
            values = [accuracy.auprc(draw[known[i], i], sample.labels[known[i], i]) for draw in scores for i in columns]
            return float(np.mean(values))
        if set(names) == one.per_label.keys():
            return float(np.mean([draw.macro_auprc for draw in one.draws[:draws]]))
        return None

    def reference(self, arm: Arm, strategy: str) -> Arm | None:
        """The arm of that strategy to compare with: of the same objective; for a dense arm, SimCLR's; for baselines,
        SimCLR's or, without it, another's."""
        same = [one for one in self.group.arms if one.strategy == strategy and one is not arm]
        if arm.baseline:
            same = [one for one in same if one.objective == "simclr"] or same
        elif arm.strategy == "dense" and strategy == "dense":
            same = [one for one in same if one.objective == "simclr"]
        else:
            same = [one for one in same if one.objective == arm.objective]
        same.sort(key=lambda one: one.inference != arm.inference)
        near = [one for one in same if one.keep == arm.keep] or same
        plain = [one for one in near if "[" not in one.method] or near
        return plain[0] if plain else None


def _interval(found: list[tuple[Array | None, float]]) -> Estimate | None:
    if not found:
        return None
    tables = [values for values, _ in found if values is not None]
    if len(tables) < len(found):
        return accuracy.seeds_interval(np.array([mean for _, mean in found]))
    return accuracy.crossed_interval(np.stack(tables))
