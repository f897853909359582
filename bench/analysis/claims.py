"""Claims about SparseContrast, each judged by where an interval lies.

Source of the claims: arXiv 2605.00887, abstract ("as much as 40 %" faster in training and inference; accuracy
comparable or better). "40 % faster" has two readings, a rate of 1.40x and 40 % less time (1.67x); both are
judged. The margin of 0.03 macro AUROC, and the two rivals that a learnt selection has to beat, are ours. A
claim is supported if the whole interval lies on its side of the threshold, refuted if the whole interval lies
on the other, else undecided.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import pandas as pd

from bench.analysis.groups import Arm, Group
from bench.analysis.scores import Scores
from bench.analysis.statistics import Estimate

Verdict = Literal["supported", "refuted", "undecided", "not measured"]

NAN = float("nan")
MARGIN = 0.03
READINGS = {"rate": 1.40, "time": 1 / 0.6}
MEASURES = {"train": "a training step", "run": "the whole pre-training", "infer": "inference"}


@dataclass(frozen=True)
class Claim:
    """One judged claim. `kind` groups them: "speed", "accuracy", "fixed", "patchdropout"."""

    kind: str
    arm: str
    text: str
    threshold: float
    value: float
    low: float
    high: float
    verdict: Verdict
    measure: str = ""  # of a speed: "train", "run", "infer"
    reading: str = ""  # of a speed: "rate", "time"
    fraction: float | None = None


def judge(low: float, high: float, threshold: float) -> Verdict:
    """Is the quantity at least (or, for 0, more than) the threshold?"""
    if low > threshold:
        return "supported"
    return "refuted" if high < threshold else "undecided"


def comparable(found: Estimate, sensitive: bool) -> Verdict:
    """Is an accuracy no more than MARGIN below dense's? A comparison that can't tell dense from an untrained encoder
    can't support that two methods are alike: there only being better than dense counts as support."""
    verdict = judge(found.low, found.high, -MARGIN)
    return "undecided" if verdict == "supported" and not sensitive and found.low <= 0 else verdict


def sensitivity(scores: Scores, fraction: float) -> Estimate | None:
    """Dense minus the untrained encoder: what pre-training gave; None where there is no such pair. By the paired
    interval of it a comparison is sensitive or not (assay sensitivity of a non-inferiority trial, ICH E10)."""
    arms = scores.group.arms
    dense = next((one for one in arms if (one.objective, one.strategy) == ("simclr", "dense")), None)
    dense = dense or next((one for one in arms if one.strategy == "dense"), None)
    floor = next((one for one in arms if one.strategy == "untrained"), None)
    return scores.difference(dense, floor, fraction) if dense and floor else None


def is_sensitive(scores: Scores, fraction: float) -> bool:
    found = sensitivity(scores, fraction)
    return found is None or found.low > 0


def signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−")


def span(estimate: Estimate) -> str:
    """A difference with its interval."""
    return f"{signed(estimate.value)} [{signed(estimate.low)}, {signed(estimate.high)}]"


def cost_of(arm: Arm, group: Group, cost: pd.DataFrame) -> pd.Series | None:
    """The newest paired measurement of this arm as it was trained: scale, channels, precision, ramp."""
    if cost.empty:
        return None
    rows = cost[(cost["method"] == arm.method) & (cost["encoder"] == group.encoder)]
    rows = rows[rows["image_size"] == group.image_size]
    rows = rows[rows["keep"].isna()] if arm.keep is None else rows[(rows["keep"] - arm.keep).abs() < 1e-6]
    spec = arm.runs[0].record.spec
    train, channels = spec.get("train") or {}, (spec.get("encoder") or {}).get("channels")
    for column, wanted in (("channels", channels), ("precision", train.get("precision")), ("ramp", train.get("ramp"))):
        if wanted is not None:  # a strategy that does not ramp has none
            rows = rows[(rows[column] == wanted) | rows[column].isna()]
    return None if rows.empty else rows.iloc[-1]


def nothing_seen(row: pd.Series, kind: str) -> bool:
    """Whether a speed-up's interval reaches into that of dense against itself: then no difference was seen."""
    low, high = row[f"aa_{kind}_low"], row[f"aa_{kind}_high"]
    if pd.isna(low) or pd.isna(high):
        return False
    return bool(row[f"{kind}_speedup_low"] <= high and row[f"{kind}_speedup_high"] >= low)


def speed_up(arm: Arm, group: Group, cost: pd.DataFrame, kind: str) -> tuple[float, float, float] | None:
    """Dense time of the same objective / this arm's time, with its interval; None where it was not measured.

    Measurements are relative to dense SimCLR. For another objective the ratio of two rows of one table is
    taken, with an interval that is sure to be wide enough: the worst of the one over the best of the other.
    """
    row = cost_of(arm, group, cost)
    if row is None or pd.isna(row[f"{kind}_speedup"]):
        return None
    value, low, high = (float(row[f"{kind}_speedup{end}"]) for end in ("", "_low", "_high"))
    if arm.objective == "simclr":
        return value, low, high
    dense = next((one for one in group.arms if (one.objective, one.strategy) == (arm.objective, "dense")), None)
    base = cost_of(dense, group, cost) if dense else None
    if base is None or base["measured"] != row["measured"]:
        return None
    middle, bottom, top = (float(base[f"{kind}_speedup{end}"]) for end in ("", "_low", "_high"))
    return value / middle, low / top, high / bottom


def judged(arm: Arm) -> bool:
    """SparseContrast as it is meant to be used: pruned at inference too."""
    return arm.strategy == "sparsecontrast" and arm.inference == "pruned"


def all_claims(group: Group, scores: Scores | None, cost: pd.DataFrame) -> list[Claim]:
    """Every claim on every SparseContrast arm of the group."""
    out = []
    for arm in (one for one in group.arms if judged(one)):
        out += speed_claims(arm, group, cost)
        for fraction in scores.fractions if scores else ():
            assert scores is not None
            out += accuracy_claims(arm, scores, fraction)
    return out


def speed_claims(arm: Arm, group: Group, cost: pd.DataFrame) -> list[Claim]:
    out = []
    for kind, what in MEASURES.items():
        found = speed_up(arm, group, cost, kind)
        for reading, threshold in READINGS.items():
            text = f"{what} is {threshold:.2f} times as fast as dense"
            value, low, high = found or (NAN, NAN, NAN)
            verdict: Verdict = judge(low, high, threshold) if found else "not measured"
            out.append(Claim("speed", arm.label, text, threshold, value, low, high, verdict, kind, reading))
    return out


def accuracy_claims(arm: Arm, scores: Scores, fraction: float) -> list[Claim]:
    out = []
    for kind, strategy, threshold, text in (
        ("accuracy", "dense", -MARGIN, f"no more than {MARGIN} macro AUROC below dense"),
        ("fixed", "fixed", 0.0, "better than one fixed mask for all images"),
        ("patchdropout", "patchdropout", 0.0, "better than dropping patches at random in training only"),
    ):
        rival = scores.reference(arm, strategy)
        found = scores.difference(arm, rival, fraction) if rival else None
        if found is None:
            out.append(Claim(kind, arm.label, text, threshold, NAN, NAN, NAN, "not measured", fraction=fraction))
        else:
            alike = kind == "accuracy"
            verdict = (
                comparable(found, is_sensitive(scores, fraction)) if alike else judge(found.low, found.high, threshold)
            )
            out.append(
                Claim(
                    kind,
                    arm.label,
                    text,
                    threshold,
                    found.value,
                    found.low,
                    found.high,
                    verdict,
                    fraction=fraction,
                )
            )
    return out
