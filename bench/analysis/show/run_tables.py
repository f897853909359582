"""Tables of multiply-accumulates, claims, learning and data."""

from __future__ import annotations

from typing import Any

import numpy as np

from bench.analysis.judge.claims import READINGS, SEEDS, Claim, signed, span
from bench.analysis.read.groups import Group
from bench.analysis.show.cells import ALONE, NONE, few_seeds_note, keep_cell
from bench.analysis.show.document import Table
from methods import REFERENCE, STRATEGIES

UNMEASURED = "not measured"


def macs(group: Group) -> Table:
    """MACs and memory of the methods, from their records."""
    rows = []
    dense = {arm.objective: arm for arm in group.arms if arm.strategy == REFERENCE}
    for arm in group.trained:
        record = arm.runs[0].record
        base = dense[arm.objective].runs[0].record.macs if arm.objective in dense else None
        cells = [
            _ratio(getattr(record.macs, kind, None), getattr(base, kind, None), scale, digits)
            for kind, scale, digits in (("inference", 1e6, 1), ("train_step", 1e6, 1), ("whole_run", 1e12, 3))
        ]
        if record.macs and record.macs.all_tokens:
            cells[0] += f"; all tokens: {record.macs.all_tokens / 1e6:,.1f}"
        saved = f"{record.memory.saved_bytes_per_image / 2**20:.2f}" if record.memory else NONE
        rows.append((arm.label, keep_cell(arm), arm.train_execution, *cells, saved))
    note = (
        "MACs are multiply-accumulates. Inference: per image; all tokens: in the inference mode that computes them all,"
        " for methods that are evaluated so too. Step: per image, for both views, forward and backward,"
        " with teacher, predictor and heads, at the target keep ratio. Run: all steps, with the ramp. In brackets: MACs"
        " of dense with the same objective divided by those of the method, which is the speed-up on a machine limited"
        " by arithmetic alone. Saved MiB: memory that such a step keeps for its backward pass, per image; a run with a"
        " ramp starts with that of dense."
    )
    head = ("method", "keep", "training", "inference MMACs", "step MMACs", "run TMACs", "saved MiB")
    return Table(f"Multiply-accumulates and memory, {group.encoder} at {group.image_size} px", head, tuple(rows), note)


def _ratio(value: float | None, base: float | None, scale: float, digits: int) -> str:
    if value is None:
        return NONE
    text = f"{value / scale:,.{digits}f}"
    return f"{text} ({base / value:.2f}×)" if base and value else text


def claims_tables(claims: list[Claim]) -> list[Table]:
    """One table per arm with one row per judged claim."""
    note = (
        "Supported: the whole interval lies above the threshold; refuted: below; undecided: the threshold"
        f" lies in it. “40 % faster” as a rate is {READINGS['rate']:.2f}×, as time saved"
        f" {READINGS['time']:.2f}×. Accuracy gets no verdict from fewer than {SEEDS} seeds, or without an interval;"
        f" {ALONE}: the interval is over test patients alone. Each verdict stands alone: none is corrected for"
        " their number."
    )
    note += few_seeds_note(min((claim.estimate.seeds for claim in claims if claim.estimate), default=SEEDS))
    out = []
    for arm in dict.fromkeys(claim.arm for claim in claims):
        rows = tuple(_claim_row(claim) for claim in claims if claim.arm == arm)
        head = ("claim", "threshold", "estimate [95 %]", "verdict")
        out.append(Table(f"Claims on {arm}, judged", head, rows, note, wide=("claim",)))
    return out


def _claim_row(claim: Claim) -> tuple[str, ...]:
    speed = claim.kind == "speed"
    text = claim.text + (f" (40 % faster as {claim.reading}), {claim.scale}" if speed else "")
    text += "" if claim.fraction is None else f", {claim.fraction:g} % labels"
    if claim.verdict == UNMEASURED:
        cell = NONE
    elif speed:
        cell = f"{claim.value:.2f} [{claim.low:.2f}, {claim.high:.2f}]"
    else:
        assert claim.estimate is not None
        cell = span(claim.estimate) + (f" {ALONE}" if claim.estimate.basis == ("patients",) else "")
    limit = f"{claim.threshold:.2f}×" if speed else signed(claim.threshold) if claim.threshold else "0"
    return text, limit, cell, f"no verdict: {claim.why}" if claim.verdict == "no verdict" else claim.verdict


def learning(group: Group) -> Table | None:
    """Whether each method learned: means over seeds, and counts of verdicts."""
    rows = []
    for arm in group.trained:
        found = [run.record.learning for run in arm.runs if run.record.learning]
        if not found:
            continue
        verdicts = [one.verdict for one in found]
        counts = ", ".join(f"{verdicts.count(v)} {v}" for v in dict.fromkeys(verdicts))
        cells = (
            _mean([getattr(one, key) for one in found])
            for key in ("final_loss", "plateau_loss", "feature_std", "rankme")
        )
        rows.append((arm.label, *cells, counts))
    head = ("method", "final loss", "plateau loss", "feature spread", "RankMe, centred", "runs")
    note = (
        "Mean over seeds (range). Plateau loss: the loss of features that do not distinguish images. A final loss near"
        " it, or a feature spread near 0, means that the run did not learn."
    )
    return Table("Did it learn?", head, tuple(rows), note) if rows else None


NAMES = {  # diagnostics of all strategies that keep tokens; those of single strategies are in the registry
    "spread_over_noise": "logit spread / noise",
    "overlap": "overlap, last epoch",
    "overlap_run": "overlap, whole run",
    "kept_share": "kept in training",
    "kept_inference": "kept at inference",
    "static_share": "static share",
    "kept_padding": "padding kept",
}


def selection(group: Group) -> Table | None:
    """Diagnostics of strategies that keep tokens: mean over seeds (range)."""
    by_arm: dict[str, dict[str, list[float]]] = {}
    for arm in group.trained:
        for run in arm.runs:
            found = run.record.learning.selection if run.record.learning else {}
            for key, value in found.items():
                by_arm.setdefault(arm.label, {}).setdefault(key, []).append(value)
    known = list(dict.fromkeys(key for diagnostics in by_arm.values() for key in diagnostics))
    own = {key: name for entry in STRATEGIES.values() for key, name in entry.diagnostics.items()}
    # diagnostics without a name are parts of losses; they are in the records alone
    names = {key: name for key, name in (own | NAMES).items() if any(_is_of(one, key) for one in known)}
    if not names:
        return None
    rows = [(label, *(_by_stage(one, key) for key in names)) for label, one in by_arm.items()]
    note = (
        "Mean over seeds (range). Spreads are of the last epoch, when the noise is nearly gone; logit spread / noise "
        "is of the whole run: well under 1, and the noise chose the tokens in training. Mean s(1 − s): slope of the "
        "sigmoid of the logits, 0.25 at most; near 0 they are saturated, and neither gradients nor noise change the "
        "selection. Overlap: of the tokens kept in "
        "training and at inference; chance is the share kept then, so the ramp raises it. Kept: share of the patches, "
        "in the last epoch of training and at inference; means by stage where tokens are pruned in stages. Static "
        "share: positions kept or dropped alike in at least 95 % of the images; near 1, the selector learnt a crop, "
        "not saliency."
    )
    if "kept_padding" in names:
        note += (
            " Padding kept: of the black padding of images that are not square, the share inside kept patches, to be"
            " compared with the share of the patches kept at inference."
        )
    return Table("Selection diagnostics", ("method", *names.values()), tuple(rows), note)


def _is_of(name: str, key: str) -> bool:
    """Is `name` the diagnostic `key`, or that of one of its stages (`kept_share_2`)?"""
    return name == key or name.rpartition("_")[0] == key and name.rpartition("_")[2].isdecimal()


def _by_stage(found: dict[str, list[float]], key: str) -> str:
    """The diagnostic `key` of one method: by stage where it is known so."""
    stages = sorted(name for name in found if name != key and _is_of(name, key))
    return " / ".join(f"{np.mean(found[name]):.2f}" for name in stages) or _mean(found.get(key, []))


def _mean(values: list[float]) -> str:
    finite = [value for value in values if np.isfinite(value)]
    if not finite:
        return NONE
    text = f"{np.mean(finite):.3g}"
    return text if min(finite) == max(finite) else f"{text} ({min(finite):.3g}–{max(finite):.3g})"


def counts(group: Group) -> Table:
    """Patients, images and positives of each split and label fraction."""
    record = group.runs[0].record
    assert record.splits is not None
    assert record.data is not None
    names = record.data.label_names
    rows = []
    for title, name in (("pre-training", "train"), ("validation", "val"), ("test", "test")):
        part = getattr(record.splits, name)
        rows.append(
            (
                title,
                f"{part.patients:,}",
                f"{part.images:,}",
                *(f"{part.positives.get(n, 0):,}" for n in names),
                part.hash[:8],
            )
        )
    by_fraction: dict[float, dict[int, Any]] = {}
    for run in group.runs:
        for one in run.evaluations:
            for draw in one.draws:
                by_fraction.setdefault(one.labels, {})[draw.draw] = draw.subset
    for fraction, draws in sorted(by_fraction.items()):
        subsets = list(draws.values())

        def mean(values: list[int]) -> str:
            low, high = min(values), max(values)
            return f"{low:,}" if low == high else f"{low:,}–{high:,}"

        rows.append(
            (
                f"{fraction:g} % labels, {len(subsets)} draw{'s' if len(subsets) > 1 else ''}",
                mean([s.patients for s in subsets]),
                mean([s.images for s in subsets]),
                *(mean([s.positives.get(n, 0) for s in subsets]) for n in names),
                subsets[0].hash[:8] + (" ..." if len(subsets) > 1 else ""),
            )
        )
    return Table(
        "Data: patients, images and positives of each finding",
        ("part", "patients", "images", *names, "hash"),
        tuple(rows),
        "Ranges are over draws. Label fractions are shares of the labelled training patients; within a draw, a smaller "
        "fraction is part of the larger ones. All methods and seeds have the same draws.",
    )
