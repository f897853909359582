"""The tables on accuracy: macro AUROC, single findings, AUPRC, subgroups, and the regularisation of the probe."""

from __future__ import annotations

import numpy as np

from bench.analysis.judge.scores import Scores
from bench.analysis.show.cells import (
    NONE,
    alone_mark,
    caption,
    crossed,
    few_seeds_note,
    interval_cell,
    keep_cell,
    sample_note,
    spread_cell,
)
from bench.analysis.show.document import Table
from bench.analysis.show.rows import draws_note, labelled, rows_of


def accuracy(scores: Scores) -> Table:
    """Method x label fraction; a star marks a cell that lacks seeds."""
    lines, starred, shown = [], False, []
    rows = rows_of(scores, scores.fractions)
    found = {row: [row.estimate(scores, fraction) for fraction in scores.fractions] for row in rows}
    seen = [one for estimates in found.values() for one in estimates]
    for row, estimates in found.items():
        cells = []
        for estimate in estimates:
            cell = interval_cell(estimate) + alone_mark(estimate, seen)
            if estimate and estimate.seeds < len(scores.group.seeds):
                cell, starred = f"{cell} * ({estimate.seeds})", True
            cells.append(cell)
        counts = {len(row.arm.evaluations(scores.probe, fraction)) for fraction in scores.fractions}
        counted = "–".join(f"{n}" for n in sorted({min(counts), max(counts)}))
        if any(estimates):
            shown.append(row)
            lines.append((row.label, keep_cell(row.arm), counted, *cells))
    same = {scores.findings(fraction) for fraction in scores.fractions}
    over = ", ".join(next(iter(same))) if len(same) == 1 else "the findings defined at each fraction"
    note = f"Mean ± standard deviation over seeds [95 % interval]; macro over {over}. {sample_note(scores, seen)}"
    note += draws_note(shown)
    if starred:
        note += " * provisional: seeds are missing (number of seeds in brackets)."
    heads = tuple(f"{fraction:g} % labels" for fraction in scores.fractions)
    return Table(caption(scores, "Macro AUROC"), ("method", "keep", "seeds", *heads), tuple(lines), note)


def per_finding(scores: Scores) -> Table:
    """AUROC of each finding at the primary fraction, findings as rows."""
    fraction = scores.primary
    arms = [arm for arm in scores.group.arms if arm.evaluations(scores.probe, fraction)]
    rows = rows_of(scores, [fraction], arms)
    found = {(name, row): row.estimate(scores, fraction, name) for name in scores.names for row in rows}
    names = [name for name in scores.names if any(found[name, row] for row in rows)]
    seen = [*found.values()]
    cells = {
        (name, row.label): interval_cell(one, spread=False) + alone_mark(one, seen)
        for (name, row), one in found.items()
    }
    title = caption(scores, f"AUROC by finding at {fraction:g} % of the labels")
    note = f"Mean over seeds [95 % interval]. {sample_note(scores, seen)}{draws_note(rows)}"
    return crossed(title, "finding", names, [row.label for row in rows], cells, note)


def precision(scores: Scores) -> Table:
    """Macro AUPRC; the first row is what scores without information reach: the share of positives."""
    lines, shown = [], []
    for row in rows_of(scores, scores.fractions):
        found = [scores.precisions(row.arm, fraction, row.draws) for fraction in scores.fractions]
        if any(found):
            shown.append(row)
            lines.append((row.label, *map(spread_cell, found)))
    chance = [f"{_prevalence(scores, fraction):.3f}" for fraction in scores.fractions]
    return Table(
        caption(scores, "Macro AUPRC"),
        ("method", *(f"{fraction:g} % labels" for fraction in scores.fractions)),
        (("(chance: share of positives)", *chance), *lines),
        f"Mean ± standard deviation over seeds.{draws_note(shown)}{few_seeds_note(len(scores.group.seeds))}",
    )


def regularisation(scores: Scores) -> Table | None:
    """What cross-validation chose for the linear probe, and how often that lies at an end of the search."""
    rows = []
    for arm in scores.group.arms:
        cells = []
        for fraction in scores.fractions:
            runs = arm.evaluations(scores.probe, fraction).values()
            chosen = [draw.chosen for _, one in runs for draw in one.draws if "at_edge" in draw.chosen]
            strengths = [one["C"] for one in chosen]
            edge = np.mean([one["at_edge"] for one in chosen]) if chosen else 0.0
            cells.append(
                f"{np.median(strengths):g} ({min(strengths):g}–{max(strengths):g}), {edge:.0%} at an end"
                if chosen
                else NONE
            )
        if any(cell != NONE for cell in cells):
            rows.append((arm.label, *cells))
    if not rows:
        return None
    return Table(
        caption(scores, "Inverse regularisation C"),
        ("method", *(f"{fraction:g} % labels" for fraction in scores.fractions)),
        tuple(rows),
        "Chosen by cross-validation over patients inside each draw of the label fraction: median over draws and seeds"
        " (range), and the share of draws in which the choice lies at an end of all that was tried, where the grid no"
        " longer brackets it.",
    )


def _prevalence(scores: Scores, fraction: float) -> float:
    for arm in scores.group.arms:
        for _, one in arm.evaluations(scores.probe, fraction).values():
            per = [one.per_label[name] for name in scores.findings(fraction)]
            return float(np.mean([p.positives / (p.positives + p.negatives) for p in per]))
    return float("nan")


def subgroups(scores: Scores) -> Table | None:
    """Macro AUROC inside each known subgroup at the primary fraction, mean over seeds.

    Records have subgroups as means over draws, so methods with the first draw alone have no row.
    """
    fraction = scores.primary
    most = max(scores.draws(arm, fraction) for arm in scores.group.arms)
    arms = [arm for arm in scores.group.arms if scores.draws(arm, fraction) == most]
    found: dict[tuple[str, str], dict[str, list[float]]] = {}
    for arm in arms:
        for _, one in arm.evaluations(scores.probe, fraction).values():
            for kind, parts in one.subgroups.items():
                for part, value in parts.items():
                    if np.isfinite(value):
                        found.setdefault((kind, part), {}).setdefault(arm.label, []).append(value)
    if not found:
        return None
    cells = {
        (f"{kind}: {part}", arm.label): spread_cell(by_arm.get(arm.label, []))
        for (kind, part), by_arm in sorted(found.items())
        for arm in arms
    }
    title = caption(scores, f"Macro AUROC by subgroup at {fraction:g} % of the labels")
    note = (
        "Mean ± standard deviation over seeds, over the findings defined in the subgroup: compare methods"
        " within a subgroup, not subgroups with each other."
    )
    left = [labelled(arm, 1) for arm in scores.group.arms if 0 < scores.draws(arm, fraction) < most]
    note += f" Left out, for its scores are no means over draws: {', '.join(left)}." if left else ""
    names = list(dict.fromkeys(name for name, _ in cells))
    note += few_seeds_note(len(scores.group.seeds))
    return crossed(title, "subgroup", names, [arm.label for arm in arms], cells, note)
