"""Claims about SparseContrast, each judged by where an interval lies, and the finding in sentences.

Source of the claims: arXiv 2605.00887, abstract ("as much as 40 %" faster in training and inference; accuracy comparable or
better). "40 % faster" has two readings, a rate of 1.40x and 40 % less time (1.67x); both are judged. The margin of 0.03
macro AUROC, and the two rivals that a learnt selection has to beat, are ours. A claim is supported if the whole interval lies
on its side of the threshold, refuted if the whole interval lies on the other, else undecided.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import pandas as pd

from bench.analysis.gather import Arm, Group
from bench.analysis.scores import Scores
from bench.analysis.statistics import Estimate

Verdict = Literal["supported", "refuted", "undecided", "not measured"]

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


def signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−")


def span(estimate: Estimate) -> str:
    """A difference with its interval."""
    return f"{signed(estimate.value)} [{signed(estimate.low)}, {signed(estimate.high)}]"


def cost_of(arm: Arm, group: Group, cost: pd.DataFrame) -> pd.Series | None:
    """The newest paired measurement of this arm at the scale it was trained at."""
    if cost.empty:
        return None
    rows = cost[(cost["method"] == arm.method) & (cost["encoder"] == group.encoder)]
    rows = rows[rows["image_size"] == group.image_size]
    rows = rows[rows["keep"].isna()] if arm.keep is None else rows[(rows["keep"] - arm.keep).abs() < 1e-6]
    return None if rows.empty else rows.iloc[-1]


def nothing_seen(row: pd.Series, kind: str) -> bool:
    """Whether a speed-up's interval reaches into that of dense against itself: then no difference was seen."""
    low, high = row[f"aa_{kind}_low"], row[f"aa_{kind}_high"]
    if pd.isna(low) or pd.isna(high):
        return False
    return bool(row[f"{kind}_speedup_low"] <= high and row[f"{kind}_speedup_high"] >= low)


def judged(arm: Arm) -> bool:
    return arm.strategy == "sparsecontrast"


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
    row, out = cost_of(arm, group, cost), []
    for kind, what in MEASURES.items():
        for reading, threshold in READINGS.items():
            text = f"{what} is {threshold:.2f} times as fast as dense"
            nan = float("nan")
            value, low, high = (nan, nan, nan) if row is None else (
                float(row[f"{kind}_speedup"]), float(row[f"{kind}_speedup_low"]), float(row[f"{kind}_speedup_high"]))
            verdict: Verdict = "not measured" if not value == value else judge(low, high, threshold)
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
            nan = float("nan")
            out.append(Claim(kind, arm.label, text, threshold, nan, nan, nan, "not measured", fraction=fraction))
        else:
            verdict = judge(found.low, found.high, threshold)
            out.append(Claim(kind, arm.label, text, threshold, found.value, found.low, found.high, verdict,
                             fraction=fraction))
    return out


def finding(group: Group, scores: Scores | None, claims: list[Claim], planned: int = 0) -> list[str]:
    """What the group shows, in sentences, the most important first."""
    out = []
    if group.preset == "smoke":
        out.append("This is the smoke preset: it shows that the machinery runs and is no evidence about any method.")
    missing = provisional(group, scores, planned)
    if missing:
        out.append(f"Provisional: {missing}.")
    if scores is None or not scores.fractions:
        return [*out, "No evaluation on the test split is at hand, so nothing can be said about accuracy."]
    fraction = scores.primary
    out += _discriminates(scores, fraction)
    for name in dict.fromkeys(claim.arm for claim in claims):
        mine = [claim for claim in claims if claim.arm == name and claim.fraction in (None, fraction)]
        out += [_accuracy(c, scores, fraction) for c in mine if c.kind == "accuracy" and c.verdict != "not measured"]
        out += [_rival(c, fraction) for c in mine if c.kind in ("fixed", "patchdropout") and c.verdict != "not measured"]
        out.append(_speed(name, [c for c in mine if c.kind == "speed"]))
    names = unlearned(group)
    if names:
        out.append("Some runs did not learn or failed, which every mean above includes or lacks: " + "; ".join(names) + ".")
    return out


def provisional(group: Group, scores: Scores | None, planned: int = 0) -> str:
    """Why the report is not the last word, or an empty string."""
    parts = []
    if planned > len(group.runs):
        parts.append(f"{len(group.runs)} of {planned} planned runs are done")
    if group.failed:
        parts.append(f"{len(group.failed)} {'runs' if len(group.failed) > 1 else 'run'} failed")
    short = [arm.label for arm in group.arms if scores and any(incomplete(arm, scores, f) for f in scores.fractions)]
    if short:
        parts.append(f"seeds are missing for {', '.join(short)}")
    if len(group.seeds) == 1:
        parts.append("there is one seed, so intervals cover test patients but not seeds")
    return "; ".join(parts)


def incomplete(arm: Arm, scores: Scores, fraction: float) -> bool:
    return len(arm.evaluations(scores.probe, fraction)) < len(scores.group.seeds)


def unlearned(group: Group) -> list[str]:
    """Runs that failed, plateaued or collapsed, by name, with the reason."""
    out = [f"{record.run_id} failed ({record.reason or 'no reason recorded'})" for record in group.failed]
    for run in group.runs:
        learning = run.record.learning
        if learning and learning.verdict in ("plateaued", "collapsed"):
            out.append(f"{run.record.run_id} {learning.verdict} (loss {learning.final_loss:.2f}, plateau at "
                       f"{learning.plateau_loss:.2f}, feature spread {learning.feature_std:.3g})")
    return out


def _discriminates(scores: Scores, fraction: float) -> list[str]:
    dense = next((a for a in scores.group.arms if a.strategy == "dense" and a.objective == "simclr"), None)
    dense = dense or next((a for a in scores.group.arms if a.strategy == "dense"), None)
    floor = next((a for a in scores.group.arms if a.strategy == "untrained"), None)
    found = scores.difference(dense, floor, fraction) if dense and floor else None
    if dense is None or floor is None or found is None:
        return []
    text = f"{dense.label} against the untrained encoder at {fraction:g} % of the labels: {span(found)} macro AUROC"
    if found.low > 0:
        return [f"{text}; pre-training teaches something here, so methods can differ."]
    return [f"{text}; the interval does not exclude 0, so this set-up can't tell good methods from bad ones."]


def _accuracy(claim: Claim, scores: Scores, fraction: float) -> str:
    cell = f"{signed(claim.value)} [{signed(claim.low)}, {signed(claim.high)}]"
    text = f"{claim.arm} against dense at {fraction:g} % of the labels: {cell} macro AUROC"
    if claim.verdict == "supported":
        better = "better than dense" if claim.low > 0 else f"not worse than dense by {MARGIN}"
        return f"{text}: {better}; the claim of comparable accuracy is supported."
    if claim.verdict == "refuted":
        return f"{text}: worse than dense by more than {MARGIN}; the claim of comparable accuracy is refuted."
    return f"{text}: the interval holds the margin of −{MARGIN}; the claim of comparable accuracy is undecided."


def _rival(claim: Claim, fraction: float) -> str:
    cell = f"{signed(claim.value)} [{signed(claim.low)}, {signed(claim.high)}] macro AUROC at {fraction:g} %"
    if claim.kind == "fixed":
        if claim.verdict == "supported":
            return f"{claim.arm} beats one fixed mask for all images ({cell}): its selection does use the image."
        if claim.verdict == "refuted":
            return (f"One fixed mask for all images does better than {claim.arm} ({cell}): the selection is not what "
                    "carries the accuracy.")
        return (f"One fixed mask for all images does as well as {claim.arm}, as far as can be seen ({cell}): nothing here "
                f"shows that the selection is about the image. A gain above {signed(claim.high)} is excluded.")
    if claim.verdict == "supported":
        return f"{claim.arm} beats PatchDropout, which drops patches at random in training only ({cell})."
    if claim.verdict == "refuted":
        return f"PatchDropout, which drops patches at random in training only, beats {claim.arm} ({cell})."
    return f"Between {claim.arm} and PatchDropout, which drops patches at random in training only, nothing is decided ({cell})."


def _speed(name: str, claims: list[Claim]) -> str:
    if not claims or all(claim.verdict == "not measured" for claim in claims):
        return f"The speed of {name} was not measured at the scale it was trained at, so “40 % faster” is not judged."
    parts = []
    for kind, what in MEASURES.items():
        by = {claim.reading: claim for claim in claims if claim.measure == kind}
        rate, time = by["rate"], by["time"]
        if rate.verdict == "not measured":
            parts.append(f"{what} was not measured")
            continue
        both = (f"{rate.verdict} as a rate (1.40×) and {time.verdict} as time saved (1.67×)"
                if rate.verdict != time.verdict else f"{rate.verdict} in both readings (1.40× and 1.67×)")
        parts.append(f"{what} runs at {rate.value:.2f}× [{rate.low:.2f}, {rate.high:.2f}], {both}")
    return f"“Up to 40 % faster than dense”, {name}: " + "; ".join(parts) + "."
