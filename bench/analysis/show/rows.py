"""The rows of tables and the lines of figures on accuracy: each names the draws of the labelled patients that it is on.

Small label fractions are drawn several times, and rows are means over the draws. The supervised baseline is trained on
the first draw alone, which can't stand beside a mean. Its row says so, and its reference follows on that draw.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bench.analysis.judge.scores import Scores
from bench.analysis.read.groups import Arm
from bench.statistics.accuracy import Estimate
from methods import REFERENCE, SUPERVISED


@dataclass(frozen=True)
class Row:
    """An arm, of the first `draws` of the labelled patients (None: of all); `label` says what it is."""

    arm: Arm
    label: str
    draws: int | None = None

    @property
    def repeats(self) -> bool:
        """Whether the arm has another row, of which this one shows the first draws."""
        return self.draws is not None

    def estimate(self, scores: Scores, fraction: float, finding: str | None = None) -> Estimate | None:
        """As `Scores.estimate`, of the row's draws."""
        return scores.estimate(self.arm, fraction, finding, self.draws)


def rows_of(scores: Scores, fractions: Sequence[float], arms: Iterable[Arm] | None = None) -> list[Row]:
    """The rows of a table with these label fractions. Below an arm that has fewer draws than its reference, the
    reference follows on those draws; fractions that are drawn once need no such row."""
    rows = []
    for arm in scores.group.arms if arms is None else arms:
        reference = scores.reference(arm, REFERENCE)
        first = _fewer(scores, arm, reference, fractions) if reference else None
        rows.append(Row(arm, labelled(arm, first)))
        if reference and first:
            rows.append(Row(reference, labelled(reference, first), first))
    return list(dict.fromkeys(rows))


def labels_of_pair(scores: Scores, arm: Arm, rival: Arm, fractions: Sequence[float]) -> tuple[str, str]:
    """The labels of two arms whose difference is shown: on the draws that both have."""
    first = _fewer(scores, arm, rival, fractions) or _fewer(scores, rival, arm, fractions)
    return labelled(arm, first), labelled(rival, first)


def labelled(arm: Arm, first: int | None = None) -> str:
    """The label of an arm of which the `first` draws are shown, or all."""
    parts = ["fine-tuned"] if arm.strategy == SUPERVISED else []
    parts += [] if first is None else ["first draw" if first == 1 else f"first {first} draws"]
    return f"{arm.label} ({', '.join(parts)})" if parts else arm.label


def draws_note(rows: Iterable[Row]) -> str:
    """Sentences on the rows that are not means over all draws, beginning with a space; empty without such rows."""
    rows = list(rows)
    text = ""
    if tuned := [row.label for row in rows if row.arm.strategy == SUPERVISED]:
        text += f" {', '.join(tuned)}: a network trained from scratch on the labels, end to end, and no probe."
    if any(row.repeats for row in rows):
        text += (
            " Rows of the first draw can be compared with each other, and not with the others, which are means over all"
            " draws."
        )
    return text


def _fewer(scores: Scores, arm: Arm, other: Arm, fractions: Sequence[float]) -> int | None:
    """The number of draws of `arm` where it has fewer than `other` at one of the fractions, else None."""
    counts = [(scores.draws(arm, f), scores.draws(other, f)) for f in fractions]
    return min((mine for mine, theirs in counts if 0 < mine < theirs), default=None)
