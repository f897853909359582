"""The tables on accuracy: macro AUROC, single findings, AUPRC, subgroups, and the regularisation of the probe."""

from __future__ import annotations

import numpy as np

from bench.analysis.judge.scores import Scores
from bench.analysis.read.groups import Arm
from bench.analysis.show.cells import NONE, alone_mark, caption, crossed, interval_cell, keep_cell, sample_note
from bench.analysis.show.document import Table


def _fewer_draws(scores: Scores, arm: Arm) -> bool:
    """Whether some other arm was scored on more draws of a fraction."""
    return any(
        0 < scores.draws(arm, fraction) < max(scores.draws(one, fraction) for one in scores.group.arms)
        for fraction in scores.fractions
    )


def accuracy(scores: Scores) -> Table:
    """Method x label fraction; a star marks a cell that lacks seeds."""
    rows, starred = [], False
    found = {(a.label, f): scores.estimate(a, f) for a in scores.group.arms for f in scores.fractions}
    seen = [*found.values()]
    for arm in scores.group.arms:
        cells = []
        for fraction in scores.fractions:
            estimate = found[arm.label, fraction]
            cell = interval_cell(estimate) + alone_mark(estimate, seen)
            if estimate and estimate.seeds < len(scores.group.seeds):
                cell, starred = f"{cell} * ({estimate.seeds})", True
            cells.append(cell)
        counts = {len(arm.evaluations(scores.probe, fraction)) for fraction in scores.fractions}
        counted = "–".join(f"{n}" for n in sorted({min(counts), max(counts)}))
        if any(cell != NONE for cell in cells):
            rows.append((arm.label, keep_cell(arm), counted, *cells))
    same = {scores.findings(fraction) for fraction in scores.fractions}
    over = ", ".join(next(iter(same))) if len(same) == 1 else "the findings defined at each fraction"
    note = f"Mean ± standard deviation over seeds [95 % interval]; macro over {over}. {sample_note(scores, seen)}"
    few = [arm.label for arm in scores.group.arms if _fewer_draws(scores, arm)]
    if few:
        note += f" {', '.join(few)}: the first draw of a fraction alone; the others: the mean over its draws."
    if starred:
        note += " * provisional: seeds are missing (number of seeds in brackets)."
    heads = tuple(f"{fraction:g} % labels" for fraction in scores.fractions)
    return Table(caption(scores, "Macro AUROC"), ("method", "keep", "seeds", *heads), tuple(rows), note)


def per_finding(scores: Scores) -> Table:
    """AUROC of each finding at the primary fraction, findings as rows."""
    fraction = scores.primary
    arms = [arm for arm in scores.group.arms if arm.evaluations(scores.probe, fraction)]
    names = [name for name in scores.names if any(scores.estimate(arm, fraction, name) for arm in arms)]
    found = {(name, arm.label): scores.estimate(arm, fraction, name) for name in names for arm in arms}
    seen = [*found.values()]
    cells = {key: interval_cell(e, spread=False) + alone_mark(e, seen) for key, e in found.items()}
    title = caption(scores, f"AUROC by finding at {fraction:g} % of the labels")
    note = f"Mean over seeds [95 % interval]. {sample_note(scores, seen)}"
    return crossed(title, "finding", names, [arm.label for arm in arms], cells, note)


def precision(scores: Scores) -> Table:
    """Macro AUPRC; the first row is what scores without information reach: the share of positives."""
    rows = []
    for arm in scores.group.arms:
        cells = []
        for fraction in scores.fractions:
            values = scores.seed_means(arm, fraction, "auprc")
            spread = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
            cells.append(f"{np.mean(values):.3f}{spread}" if values else NONE)
        if any(cell != NONE for cell in cells):
            rows.append((arm.label, *cells))
    chance = [f"{_prevalence(scores, fraction):.3f}" for fraction in scores.fractions]
    return Table(
        caption(scores, "Macro AUPRC"),
        ("method", *(f"{fraction:g} % labels" for fraction in scores.fractions)),
        (("(chance: share of positives)", *chance), *rows),
        "Mean ± standard deviation over seeds.",
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
    """Macro AUROC inside each known subgroup at the primary fraction, mean over seeds."""
    fraction = scores.primary
    arms = [arm for arm in scores.group.arms if arm.evaluations(scores.probe, fraction)]
    found: dict[tuple[str, str], dict[str, list[float]]] = {}
    for arm in arms:
        for _, one in arm.evaluations(scores.probe, fraction).values():
            for kind, parts in one.subgroups.items():
                for part, value in parts.items():
                    found.setdefault((kind, part), {}).setdefault(arm.label, []).append(value)
    if not found:
        return None
    cells = {}
    for (kind, part), by_arm in sorted(found.items()):
        for arm in arms:
            values = np.array(by_arm.get(arm.label, []))
            values = values[np.isfinite(values)]
            spread = f" ± {values.std(ddof=1):.3f}" if len(values) > 1 else ""
            cells[f"{kind}: {part}", arm.label] = f"{values.mean():.3f}{spread}" if len(values) else NONE
    title = caption(scores, f"Macro AUROC by subgroup at {fraction:g} % of the labels")
    note = (
        "Mean ± standard deviation over seeds, over the findings defined in the subgroup: compare methods"
        " within a subgroup, not subgroups with each other."
    )
    names = list(dict.fromkeys(name for name, _ in cells))
    return crossed(title, "subgroup", names, [arm.label for arm in arms], cells, note)
