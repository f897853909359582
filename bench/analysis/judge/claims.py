"""Claims about SparseContrast, each judged by where an interval lies.

Source of the claims: arXiv 2605.00887, abstract ("as much as 40 %" faster in training and inference; accuracy
comparable or better). "40 % faster" has two readings, a rate of 1.40x and 40 % less time (1.67x); both are
judged. The margin of 0.03 macro AUROC, and the two rivals that a learnt selection has to beat, are ours. A
claim is supported if the whole interval lies on its side of the threshold, refuted if the whole interval lies
on the other, else undecided; a speed-up has to stand out of the noise floor too (bench.statistics.ratios). A claim
about accuracy gets no verdict from fewer than SEEDS seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

import pandas as pd

from bench.analysis.judge.scores import Scores
from bench.analysis.judge.speedups import Elsewhere, Speed, ramp_of, speed_up
from bench.analysis.read.groups import Arm, Group
from bench.records.record import RAMPS
from bench.statistics.accuracy import Estimate

Verdict = Literal["supported", "refuted", "undecided", "no verdict", "not measured"]

NAN = float("nan")
MARGIN = 0.03
SEEDS = 5
"""The fewest seeds, paired with those of the rival, that a verdict on accuracy is given from."""
ANOTHER_PROCESSOR = "the same seeds on another processor can give other results"
"""Said beside every accuracy over fewer than SEEDS seeds: training that selects tokens amplifies rounding.
docs/intervals.md has an example."""
EQUAL = 0.02  # MACs that differ by less are called equal
PAPER_DEVICE = "A100"
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
    ramp: float | None = None  # of the speed of a run with another ramp than that of the runs
    scale: str = ""  # of a speed: encoder, size, device, precision and batch size it was measured with
    why: str = ""  # nothing can decide it, or there is no verdict
    estimate: Estimate | None = None  # of an accuracy that was measured
    macs: str = ""  # of an accuracy: what both sides take at inference, in words


def judge(low: float, high: float, threshold: float) -> Verdict:
    """Is the quantity at least (or, for 0, more than) the threshold?"""
    if low > threshold:
        return "supported"
    return "refuted" if high < threshold else "undecided"


def judge_speed(speed: Speed, threshold: float) -> Verdict:
    """Judge a speed-up of `threshold` > 1 against the noise floor.

    Support needs a difference that stands out of the noise floor. Where the noise floor reaches the threshold, only a
    slowdown that stands out refutes the claim. Fewer rounds than a 95 % interval needs decide nothing, and neither do
    rounds that other processes disturbed.
    """
    if undecidable(speed):
        return "undecided"
    verdict = judge(speed.low, speed.high, threshold)
    if verdict == "supported":
        distinguishable = not speed.no_difference
    else:
        distinguishable = speed.floor < threshold or speed.high < 1 / speed.floor
    return verdict if distinguishable else "undecided"


def undecidable(speed: Speed) -> str:
    """Why a measurement decides nothing, whatever it says; an empty string if it may."""
    if speed.disturbed:
        return "the machine was busy while this was measured"
    return "" if speed.enough else "there were too few rounds"


def no_verdict(found: Estimate) -> str:
    """Why an estimate of accuracy carries no verdict, wherever its interval lies; an empty string if it may."""
    if found.seeds < SEEDS:
        return f"{found.seeds} of the {SEEDS} seeds that it needs"
    return found.reason


def better(found: Estimate) -> Verdict:
    """Is an accuracy above its rival's?"""
    return "no verdict" if no_verdict(found) else judge(found.low, found.high, 0.0)


def comparable(found: Estimate, sensitive: bool) -> Verdict:
    """Is an accuracy no more than MARGIN below dense's? A comparison that can't tell dense from an untrained encoder
    can't support that two methods are alike: there only being better than dense counts as support."""
    if no_verdict(found):
        return "no verdict"
    verdict = judge(found.low, found.high, -MARGIN)
    return "undecided" if verdict == "supported" and not sensitive and found.low <= 0 else verdict


def alike(found: Estimate, sensitive: bool) -> bool:
    """Whether one method does as well as another: the whole interval lies within MARGIN of 0, in a comparison that
    tells dense from an untrained encoder."""
    return not no_verdict(found) and sensitive and found.low > -MARGIN and found.high < MARGIN


def sensitivity(scores: Scores, fraction: float) -> Estimate | None:
    """Dense minus the untrained encoder: what pre-training gave; None where there is no such pair. By the paired
    interval of it a comparison is sensitive or not (assay sensitivity of a non-inferiority trial, ICH E10)."""
    arms = scores.dense_and_untrained
    return scores.difference(*arms, fraction) if arms else None


def is_sensitive(scores: Scores, fraction: float) -> bool:
    found = sensitivity(scores, fraction)
    return found is None or (not no_verdict(found) and found.low > 0)


def signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−")


def span(estimate: Estimate) -> str:
    """A difference with its interval, and what has to be known of that."""
    bounds = f"[{signed(estimate.low)}, {signed(estimate.high)}]" if estimate.bounded else "(no interval)"
    return f"{signed(estimate.value)} {bounds}{' (rough)' if estimate.rough else ''}"


def in_words(estimate: Estimate) -> str:
    """A difference with its interval in a sentence, which has no note to say what the interval covers."""
    text = f"{span(estimate)} macro AUROC"
    if estimate.reason:
        return f"{text}: {estimate.reason}"
    return f"{text}, interval over test patients alone" if estimate.basis == ("patients",) else text


def judged(arm: Arm) -> bool:
    """SparseContrast as it is meant to be used: pruned at inference too."""
    return arm.strategy == "sparsecontrast" and arm.inference == "pruned"


def equal_macs(arm: Arm, rival: Arm) -> bool:
    """Whether two arms take the same number of MACs at inference, within EQUAL."""
    mine, its = arm.inference_macs, rival.inference_macs
    return mine is not None and its is not None and abs(mine / its - 1) <= EQUAL


def at_equal_macs(arm: Arm, strategy: str, scores: Scores) -> Arm:
    """The arm of the same runs that takes as many MACs at inference as its rival of a strategy, or else the arm."""
    runs = {run.record.run_id for run in arm.runs}
    same = [arm, *(one for one in scores.group.arms if one is not arm and runs & {r.record.run_id for r in one.runs})]
    for one in same:
        rival = scores.reference(one, strategy)
        if rival is not None and equal_macs(one, rival):
            return one
    return arm


def at_inference(arm: Arm, rival: Arm) -> str:
    """What two arms take at inference, in words."""
    mine, its = arm.inference_macs, rival.inference_macs
    if mine is None or its is None:
        return "MACs at inference not recorded"
    if equal_macs(arm, rival):
        return f"at equal MACs at inference ({'' if arm.main else 'all tokens, '}{mine / 1e6:,.1f} M)"
    return f"with {mine / 1e6:,.1f} MMACs at inference against {its / 1e6:,.1f}"


def all_claims(
    group: Group, scores: Scores | None, cost: pd.DataFrame, elsewhere: Elsewhere | None = None
) -> list[Claim]:
    """Every claim on every SparseContrast arm of the group; those on speed `elsewhere` too, if it is there."""
    out = []
    for arm in (one for one in group.arms if judged(one)):
        here = speeds_of(arm, partial(speed_up, arm, group, cost))
        out += speed_claims(arm, f"{group.encoder} at {group.image_size} px", here)
        if elsewhere:
            there = speeds_of(arm, partial(elsewhere.speed_up, arm))
            out += speed_claims(arm, elsewhere.where, there) if any(there.values()) else []
        for fraction in scores.fractions if scores else ():
            assert scores is not None
            out += accuracy_claims(arm, scores, fraction)
    return out


Speeds = Mapping[tuple[str, float | None], Speed | None]
"""Speed-ups by measure and ramp; None for that of the runs."""


def speeds_of(arm: Arm, find: Callable[[str, float | None], Speed | None]) -> Speeds:
    """Speed-ups of each of MEASURES, and those of a run with each other ramp that was measured."""
    found: dict[tuple[str, float | None], Speed | None] = {}
    for kind in MEASURES:
        found[kind, None] = find(kind, None)
        others = {ramp: find(kind, ramp) for ramp in RAMPS if kind == "run" and ramp != ramp_of(arm)}
        found |= {(kind, ramp): one for ramp, one in others.items() if one}
    return found


def speed_claims(arm: Arm, scale: str, speeds: Speeds) -> list[Claim]:
    """Both readings of each measure, by what was measured at this scale."""
    out = []
    conditions = next((one.conditions for one in speeds.values() if one and one.conditions), "")
    scale = f"{scale}, {conditions}" if conditions else scale
    for (kind, ramp), found in speeds.items():
        what = MEASURES[kind]
        if kind == "run" and (ramp or ramp_of(arm)) is not None:
            which = "that of these runs" if ramp is None else "not that of these runs"
            what += f" with ramp {ramp_of(arm) if ramp is None else ramp:g}, {which},"
        for reading, threshold in READINGS.items():
            text = f"{what} is {threshold:.2f} times as fast as dense"
            value, low, high = (found.value, found.low, found.high) if found else (NAN, NAN, NAN)
            verdict: Verdict = judge_speed(found, threshold) if found else "not measured"
            why = undecidable(found) if found else ""
            out.append(
                Claim(
                    *("speed", arm.label, text, threshold, value, low, high, verdict),
                    measure=kind,
                    reading=reading,
                    ramp=ramp,
                    scale=scale,
                    why=why,
                )
            )
    return out


def accuracy_claims(arm: Arm, scores: Scores, fraction: float) -> list[Claim]:
    out = []
    for kind, strategy, threshold, text in (
        ("accuracy", "dense", -MARGIN, f"no more than {MARGIN} macro AUROC below dense"),
        ("fixed", "fixed", 0.0, "better than one fixed mask for all images"),
        ("patchdropout", "patchdropout", 0.0, "better than dropping patches at random in training only"),
    ):
        mine = arm if kind == "accuracy" else at_equal_macs(arm, strategy, scores)
        rival = scores.reference(mine, strategy)
        if rival is not None and rival.keep not in (None, arm.keep):
            rival = None  # with more of the image, or less, it is no control
        found = scores.difference(mine, rival, fraction) if rival else None
        macs = at_inference(mine, rival) if rival else ""
        text += f", {macs}" if macs else ""
        if found is None:
            out.append(Claim(kind, arm.label, text, threshold, NAN, NAN, NAN, "not measured", fraction=fraction))
            continue
        verdict = comparable(found, is_sensitive(scores, fraction)) if kind == "accuracy" else better(found)
        out.append(
            Claim(
                *(kind, arm.label, text, threshold, found.value, found.low, found.high, verdict),
                fraction=fraction,
                why=no_verdict(found),
                estimate=found,
                macs=macs,
            )
        )
    return out
