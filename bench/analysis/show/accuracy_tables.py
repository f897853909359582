"""The tables on accuracy: macro AUROC, single findings, AUPRC, paired differences, subgroups."""

from __future__ import annotations

import numpy as np

from bench.analysis.judge.claims import MARGIN, comparable, is_sensitive, judge, span
from bench.analysis.judge.scores import Scores
from bench.analysis.read.groups import Arm
from bench.analysis.show.document import Table
from bench.statistics.accuracy import Estimate

NONE = "–"
PROBES = {"linear": "linear probe", "knn": "kNN", "finetune": "fine-tuning"}


def keep_cell(arm: Arm) -> str:
    if arm.keep is None:
        return NONE
    if arm.keep_effective is None or abs(arm.keep_effective - arm.keep) < 5e-4:
        return f"{arm.keep:g}"
    return f"{arm.keep:g} ({arm.keep_effective:.2f} used)"


def interval_cell(estimate: Estimate | None, spread: bool = True) -> str:
    """`0.781 ± 0.012 [0.750, 0.810]`: mean ± std over seeds [95 % interval]."""
    if estimate is None:
        return NONE
    text = f"{estimate.value:.3f}"
    if spread and np.isfinite(estimate.std):
        text += f" ± {estimate.std:.3f}"
    return text + (f" [{estimate.low:.3f}, {estimate.high:.3f}]" if np.isfinite(estimate.low) else "")


def caption(scores: Scores, what: str) -> str:
    group = scores.group
    return f"{what}, {PROBES[scores.probe]}, {group.data}, {group.encoder} at {group.image_size} px"


def _note(scores: Scores, estimates: list[Estimate | None]) -> str:
    known = [estimate for estimate in estimates if estimate]
    patients = max((estimate.patients for estimate in known), default=0)
    text = f"{len(scores.group.seeds)} seed{'s' if len(scores.group.seeds) > 1 else ''}"
    text += f", {patients:,} test patients. " if patients else ". "
    return text + f"95 % intervals: {_covered({estimate.basis for estimate in known})}."


def _covered(bases: set[tuple[str, ...]]) -> str:
    """What intervals cover, and what they take as it is; fractions can differ in their number of draws."""
    if bases == {("seeds",)}:
        return "seeds alone (t), for the records keep no predictions"
    some = set.union(*map(set, bases)) if bases else set()
    draws = "draws of the labelled patients" + (
        "" if all("draws" in one for one in bases) else " where there are several"
    )
    names = {"seeds": "seeds", "draws": draws, "patients": "test patients"}
    listed = [name for effect, name in names.items() if effect in some]
    text = " and ".join(filter(None, (", ".join(listed[:-1]), *listed[-1:])))
    text += " as crossed random effects (t, Satterthwaite)" if len(listed) > 1 else " alone"
    text += "" if "draws" in some else "; the draw of the labelled patients is taken as it is"
    return text if "seeds" in some else f"{text}; there is one seed"


def _fewer_draws(scores: Scores, arm: Arm) -> bool:
    """Whether some other arm was scored on more draws of a fraction."""
    return any(
        0 < scores.draws(arm, fraction) < max(scores.draws(one, fraction) for one in scores.group.arms)
        for fraction in scores.fractions
    )


def accuracy(scores: Scores) -> Table:
    """Method x label fraction; a star marks a cell that lacks seeds."""
    rows, seen, starred = [], [], False
    for arm in scores.group.arms:
        cells = []
        for fraction in scores.fractions:
            estimate = scores.estimate(arm, fraction)
            seen.append(estimate)
            cell = interval_cell(estimate)
            if estimate and estimate.seeds < len(scores.group.seeds):
                cell, starred = f"{cell} * ({estimate.seeds})", True
            cells.append(cell)
        counts = {len(arm.evaluations(scores.probe, fraction)) for fraction in scores.fractions}
        counted = "–".join(f"{n}" for n in sorted({min(counts), max(counts)}))
        if any(cell != NONE for cell in cells):
            rows.append((arm.label, keep_cell(arm), counted, *cells))
    same = {scores.findings(fraction) for fraction in scores.fractions}
    over = ", ".join(next(iter(same))) if len(same) == 1 else "the findings defined at each fraction"
    note = f"Mean ± standard deviation over seeds [95 % interval]; macro over {over}. {_note(scores, seen)}"
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
    cells = {key: f"{e.value:.3f} ± {(e.high - e.low) / 2:.3f}" if e else NONE for key, e in found.items()}
    title = caption(scores, f"AUROC by finding at {fraction:g} % of the labels")
    note = f"Mean ± half the 95 % interval. {_note(scores, list(found.values()))}"
    return _crossed(title, "finding", names, [arm.label for arm in arms], cells, note)


def _crossed(
    title: str, what: str, parts: list[str], arms: list[str], cells: dict[tuple[str, str], str], note: str
) -> Table:
    """Methods as rows while the parts fit beside each other, else parts as rows."""
    if len(parts) <= 7:
        rows = [(arm, *(cells[part, arm] for part in parts)) for arm in arms]
        return Table(title, ("method", *parts), tuple(rows), note)
    rows = [(part, *(cells[part, arm] for arm in arms)) for part in parts]
    return Table(title, (what, *arms), tuple(rows), note)


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


def _prevalence(scores: Scores, fraction: float) -> float:
    for arm in scores.group.arms:
        for _, one in arm.evaluations(scores.probe, fraction).values():
            per = [one.per_label[name] for name in scores.findings(fraction)]
            return float(np.mean([p.positives / (p.positives + p.negatives) for p in per]))
    return float("nan")


def differences(scores: Scores, strategy: str) -> Table | None:
    """Every arm minus the arm of `strategy` ("dense", "fixed", ...), paired by seed and patient."""
    rows, seen = [], []
    sensitive = is_sensitive(scores, scores.primary)
    for arm in scores.group.arms:
        rival = scores.reference(arm, strategy)
        if rival is None or (strategy != "dense" and (arm.baseline or arm.strategy == strategy)):
            continue
        found = [scores.difference(arm, rival, fraction) for fraction in scores.fractions]
        seen += found
        if not any(found):
            continue
        cells = [span(one) if one else NONE for one in found]
        primary = found[scores.fractions.index(scores.primary)]
        verdict = NONE
        if primary and not arm.baseline:
            alike = strategy == "dense"
            verdict = comparable(primary, sensitive) if alike else judge(primary.low, primary.high, 0.0)
        rows.append((arm.label, rival.label, *cells, verdict))
    if not rows:
        return None
    claim = f"not {MARGIN} below" if strategy == "dense" else "better"
    return Table(
        caption(scores, f"Macro AUROC, difference to {strategy}"),
        (
            "method",
            "minus",
            *(f"{f:g} % labels" for f in scores.fractions),
            f"{claim}, at {scores.primary:g} %",
        ),
        tuple(rows),
        "Paired: the same seeds, initial weights, views, draws of labelled patients and test patients. "
        f"{_note(scores, seen)} "
        "Intervals stand alone: none is corrected for the number of comparisons.",
    )


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
    return _crossed(title, "subgroup", names, [arm.label for arm in arms], cells, note)
