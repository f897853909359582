"""What a group shows, in sentences: read first, and printed at the end of a run."""

from __future__ import annotations

from collections.abc import Sequence

from bench.analysis.judge.caveats import caveats, failed, little_data
from bench.analysis.judge.claims import (
    MARGIN,
    MEASURES,
    PAPER_DEVICE,
    Claim,
    alike,
    in_words,
    is_sensitive,
    no_verdict,
    sensitivity,
    signed,
)
from bench.analysis.judge.image_dependence import dependences
from bench.analysis.judge.scores import Scores
from bench.analysis.read.groups import Group


def finding(group: Group, scores: Scores | None, claims: list[Claim], planned: int = 0) -> list[str]:
    """What the group shows, in sentences, the most important first: caveats, amounts of data, results."""
    out = caveats(group, scores, planned)
    if scores is None or not scores.fractions:
        return [*out, "No evaluation on the test split is at hand, so nothing can be said about accuracy."]
    out += little_data(scores)
    fraction = scores.primary
    out += _discriminates(scores, fraction) + _hides_differences(scores) + _weak_baseline(scores, fraction)
    for name in dict.fromkeys(claim.arm for claim in claims):
        mine = [claim for claim in claims if claim.arm == name and claim.fraction in (None, fraction)]
        out += [_accuracy(c, scores, fraction) for c in mine if c.kind == "accuracy" and c.verdict != "not measured"]
        out += _over_chosen(name, scores)
        out += [
            _rival(c, group, scores, fraction)
            for c in mine
            if c.kind in ("fixed", "patchdropout") and c.verdict != "not measured"
        ]
        out += [one.sentence(fraction) for one in dependences(scores, fraction) if one.arm.label == name]
        speeds = [c for c in mine if c.kind == "speed"]
        out += [_speed(name, scale, speeds) for scale in dict.fromkeys(c.scale for c in speeds)]
    names = failed(group)
    return [*out, f"Failed runs are missing from every mean: {'; '.join(names)}."] if names else out


def _discriminates(scores: Scores, fraction: float) -> list[str]:
    arms, found = scores.dense_and_untrained, sensitivity(scores, fraction)
    if arms is None or found is None:
        return []
    text = f"{arms[0].label} against the untrained encoder at {fraction:g} % of the labels: {in_words(found)}"
    share = f"{100 * MARGIN / found.value:.0f} %" if found.value > 0 else ""
    margin = f"the margin of {MARGIN} for comparable accuracy is {share} of that gain"
    if no_verdict(found):
        return [f"{text}; {margin}." if share else f"{text}."]
    if found.low > 0:
        return [f"{text}; pre-training teaches something here, so methods can differ; {margin}."]
    return [f"{text}; the interval does not exclude 0, so this set-up can't tell good methods from bad ones."]


def _hides_differences(scores: Scores) -> list[str]:
    """A sentence on the findings of the macro mean that tell no methods apart."""
    arms, names = scores.dense_and_untrained, scores.chosen_findings
    others = [name for name in scores.findings(scores.primary) if name not in (names or ())]
    if arms is None or names is None or not others:
        return []
    text = (
        f"At {scores.primary:g} % of the labels the interval of {arms[0].label} minus the untrained encoder among the"
        " validation patients"
    )
    if not names:
        return [f"{text} lies above 0 for no finding."]
    return [
        f"{text} lies above 0 for {listed(names)}, and not for {listed(others)}: in a macro mean over all findings"
        f" {'this one' if len(others) == 1 else 'these'} can hide differences."
    ]


def _over_chosen(label: str, scores: Scores) -> list[str]:
    """A sentence on one method over the findings chosen on the validation patients, where these are not all."""
    arm = next(one for one in scores.group.arms if one.label == label)
    rival, names, fraction = scores.reference(arm, "dense"), scores.chosen_findings, scores.primary
    if not names or rival is None or names == scores.findings(fraction):
        return []
    found = scores.difference(arm, rival, fraction, names)
    text = f"Over {listed(names)}, chosen on the validation patients, {label} against dense at {fraction:g} %"
    return [f"{text} of the labels: {in_words(found)}."] if found else []


def listed(names: Sequence[str]) -> str:
    """`a, b and c`."""
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def _weak_baseline(scores: Scores, fraction: float) -> list[str]:
    """A sentence where training on the labels alone is not seen to be worth anything."""
    arms = {arm.strategy: arm for arm in scores.group.arms if arm.baseline}
    if not {"supervised", "untrained"} <= arms.keys():
        return []
    found = scores.difference(arms["supervised"], arms["untrained"], fraction)
    if found is None or no_verdict(found) or found.low > 0:
        return []
    first = "the first draw of " if scores.draws(arms["untrained"], fraction) > 1 else ""
    return [
        f"supervised, trained from scratch on {first}{fraction:g} % of the labels, is not seen to beat a linear probe"
        f" of the untrained encoder on the same images ({in_words(found)}): in as short a training as this it is a weak"
        " baseline."
    ]


def _accuracy(claim: Claim, scores: Scores, fraction: float) -> str:
    assert claim.estimate is not None
    text = f"{claim.arm} against dense at {fraction:g} % of the labels, {claim.macs}: {in_words(claim.estimate)}"
    if claim.verdict == "no verdict":
        return f"{text}. {_withheld(claim)}"
    if claim.verdict == "supported":
        better = "better than dense" if claim.low > 0 else f"not worse than dense by {MARGIN}"
        return f"{text}: {better}; the claim of comparable accuracy is supported."
    if claim.verdict == "refuted":
        return f"{text}: worse than dense by more than {MARGIN}; the claim of comparable accuracy is refuted."
    if claim.low > claim.threshold:
        return (
            f"{text}: a fall of {MARGIN} is excluded, but a comparison that can't tell dense from an untrained encoder "
            "can't show that methods are alike; the claim of comparable accuracy is undecided."
        )
    return f"{text}: the interval holds the margin of −{MARGIN}; the claim of comparable accuracy is undecided."


def _withheld(claim: Claim) -> str:
    """Why there is no verdict, as a sentence after an estimate whose own reason may have been told."""
    assert claim.estimate is not None
    return "No verdict." if claim.why == claim.estimate.reason else f"No verdict: {claim.why}."


def _rival(claim: Claim, group: Group, scores: Scores, fraction: float) -> str:
    assert claim.estimate is not None
    cell = f"{in_words(claim.estimate)}, at {fraction:g} %, {claim.macs}"
    fixed = claim.kind == "fixed"
    rival = (
        "one fixed random mask for all images"
        if fixed
        else "PatchDropout, which drops patches at random in training only"
    )
    if claim.verdict == "no verdict":
        return f"{claim.arm} against {rival} ({cell}). {_withheld(claim)}"
    if claim.verdict == "supported":
        return f"{claim.arm} beats {rival} ({cell}){f': {_where(group, claim.arm)}' if fixed else ''}."
    if not fixed:
        if claim.verdict == "refuted":
            return f"{rival}, beats {claim.arm} ({cell})."
        return f"Between {claim.arm} and {rival}, nothing is decided ({cell})."
    if claim.verdict == "refuted":
        return (
            f"One fixed random mask for all images does better than {claim.arm} ({cell}): the selection is not "
            "what carries the accuracy."
        )
    lead = (
        f"One fixed random mask for all images does as well as {claim.arm}, within {MARGIN} ({cell})"
        if alike(claim.estimate, is_sensitive(scores, fraction))
        else f"Between {claim.arm} and one fixed random mask for all images no difference is seen ({cell})"
    )
    return (
        f"{lead}: nothing here shows that the selection is about the image. A gain above {signed(claim.high)} is"
        " excluded."
    )


def _where(group: Group, label: str) -> str:
    """What a win over a random mask means, by the share of positions kept or dropped alike in nearly all images."""
    arm = next(one for one in group.arms if one.label == label)
    found = [run.record.learning.selection.get("static_share") for run in arm.runs if run.record.learning]
    known = [value for value in found if value is not None]
    if not known:
        return "where it looks matters"
    static = sum(known) / len(known)
    if static >= 0.9:
        return (
            f"but {100 * static:.0f} % of its positions are kept or dropped alike in nearly all images, so it has "
            "learnt a crop rather than to look at the image"
        )
    return f"where it looks matters; {100 * (1 - static):.0f} % of the positions are kept in some images only"


def _speed(name: str, scale: str, claims: list[Claim]) -> str:
    """What was measured with one encoder at one size, and how both readings come out there."""
    claims = [claim for claim in claims if claim.scale == scale]
    if all(claim.verdict == "not measured" for claim in claims):
        return f"The speed of {name} was not measured with {scale}, so “40 % faster” is not judged there."
    parts = []
    for kind, what in MEASURES.items():
        by = {claim.reading: claim for claim in claims if claim.measure == kind and claim.ramp is None}
        rate, time = by["rate"], by["time"]
        if rate.verdict == "not measured":
            parts.append(f"{what} was not measured")
            continue
        both = (
            f"{rate.verdict} as a rate (1.40×) and {time.verdict} as time saved (1.67×)"
            if rate.verdict != time.verdict
            else f"{rate.verdict} in both readings (1.40× and 1.67×)"
        )
        because = f" ({rate.why})" if rate.why else ""
        others = [f"{c.value:.2f}× with ramp {c.ramp:g}" for c in claims if c.ramp is not None and c.reading == "rate"]
        along = f" (at the ramp of these runs; {listed(others)})" if kind == "run" and others else ""
        parts.append(f"{what} runs at {rate.value:.2f}× [{rate.low:.2f}, {rate.high:.2f}]{along}, {both}{because}")
    theirs = "" if PAPER_DEVICE in scale else f" The paper's times are of an {PAPER_DEVICE} GPU, by its review page."
    return f"“Up to 40 % faster than dense”, {name}, {scale}: " + "; ".join(parts) + f".{theirs}"
