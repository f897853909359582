"""Is a learned selection about the image? Own selection against the mean selection, and against another image's.

The same networks are evaluated with three selections (`bench.evaluation.features`), each with a probe of its own. Only
if the own selection is better than both others, paired, does accuracy depend on the image that a selection is made for:
a selection that always keeps the same places equals its mean, and whatever it learned is a crop.
"""

from __future__ import annotations

from dataclasses import dataclass

from bench.analysis.judge.claims import in_words, no_verdict
from bench.analysis.judge.scores import Scores
from bench.analysis.read.groups import Arm
from bench.statistics.accuracy import Estimate
from methods import MEAN, SHUFFLED


@dataclass(frozen=True)
class Dependence:
    """AUROC of an arm with its own selection minus that with the mean selection, and with another image's."""

    arm: Arm
    over_mean: Estimate
    over_shuffled: Estimate

    @property
    def why_not(self) -> str:
        """Why there is no verdict; an empty string if there is one."""
        return no_verdict(self.over_mean) or no_verdict(self.over_shuffled)

    @property
    def shown(self) -> bool:
        """Whether the own selection is better than both others."""
        return not self.why_not and self.over_mean.low > 0 and self.over_shuffled.low > 0

    @property
    def verdict(self) -> str:
        if self.why_not:
            return f"no verdict: {self.why_not}"
        return "shown" if self.shown else "not shown"

    def sentence(self, fraction: float) -> str:
        text = (
            f"{self.arm.label} with its own selection at {fraction:g} % of the labels, against one mask for all images,"
            f" the mean of its selections: {in_words(self.over_mean)}; against the selection of another patient's"
            f" image: {in_words(self.over_shuffled)}"
        )
        if self.why_not:
            return f"{text}. No verdict on whether the selection is about the image: {self.why_not}."
        if self.shown:
            return f"{text}: accuracy depends on the image that the selection is made for."
        return f"{text}: it is not shown that the selection is about the image."


def dependences(scores: Scores, fraction: float) -> list[Dependence]:
    """The comparison for every arm that was evaluated with all three selections at this fraction."""
    found = []
    for arm in scores.group.trained:
        own = {run.record.run_id for run in arm.runs}
        others = {
            one.inference: one for one in scores.group.other_selections if own & {run.record.run_id for run in one.runs}
        }
        if others.keys() >= {MEAN, SHUFFLED}:
            over = [scores.difference(arm, others[mode], fraction) for mode in (MEAN, SHUFFLED)]
            if over[0] is not None and over[1] is not None:
                found.append(Dependence(arm, over[0], over[1]))
    return found
