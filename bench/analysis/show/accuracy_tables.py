"""The tables on accuracy: macro AUROC, single findings, AUPRC, paired differences, subgroups."""

from __future__ import annotations

import numpy as np

from bench.analysis.judge.claims import MARGIN, SEEDS, better, comparable, equal_macs, is_sensitive, span
from bench.analysis.judge.image_dependence import dependences
from bench.analysis.judge.scores import Scores
from bench.analysis.read.groups import Arm
from bench.analysis.show.document import Table
from bench.statistics.accuracy import LEVELS, SOUND_PATIENTS, Estimate

NONE = "–"
ALONE = "(patients alone)"
PAIRED = "Paired: the same seeds, initial weights, views, draws of labelled patients and test patients."
UNCORRECTED = "Intervals stand alone: none is corrected for the number of comparisons."
PROBES = {"linear": "linear probe", "knn": "kNN", "finetune": "fine-tuning"}


def keep_cell(arm: Arm) -> str:
    if arm.keep is None:
        return NONE
    if arm.keep_effective is None or abs(arm.keep_effective - arm.keep) < 5e-4:
        return f"{arm.keep:g}"
    return f"{arm.keep:g} ({arm.keep_effective:.2f} used)"


def macs_cell(arm: Arm, rival: Arm) -> str:
    """MMACs per image at inference of both sides of a difference: one number where they are equal."""
    mine, its = ("?" if one.inference_macs is None else f"{one.inference_macs / 1e6:,.1f}" for one in (arm, rival))
    return mine if equal_macs(arm, rival) else f"{mine} against {its}"


def interval_cell(estimate: Estimate | None, spread: bool = True) -> str:
    """`0.781 ± 0.012 [0.750, 0.810]`: mean ± std over seeds [95 % interval], or why that needs care."""
    if estimate is None:
        return NONE
    text = f"{estimate.value:.3f}"
    if spread and np.isfinite(estimate.std):
        text += f" ± {estimate.std:.3f}"
    bounds = f"[{estimate.low:.3f}, {estimate.high:.3f}]" if estimate.bounded else "(no interval)"
    return f"{text} {bounds}{' (rough)' if estimate.rough else ''}"


def _alone(estimate: Estimate | None, seen: list[Estimate | None]) -> str:
    """A mark on an interval over patients alone, in a table in which others cover more."""
    bases = {one.basis for one in seen if one and one.bounded}
    return f" {ALONE}" if estimate and estimate.basis == ("patients",) and len(bases) > 1 else ""


def caption(scores: Scores, what: str) -> str:
    group = scores.group
    return f"{what}, {PROBES[scores.probe]}, {group.data}, {group.encoder} at {group.image_size} px"


def _note(scores: Scores, estimates: list[Estimate | None]) -> str:
    patients = max((estimate.patients for estimate in estimates if estimate), default=0)
    text = f"{len(scores.group.seeds)} seed{'s' if len(scores.group.seeds) > 1 else ''}"
    text += f", {patients:,} test patients. " if patients else ". "
    return text + intervals_note(estimates)


def intervals_note(estimates: list[Estimate | None]) -> str:
    """What the intervals of some estimates cover, which are rough, and why some have none."""
    known = [estimate for estimate in estimates if estimate]
    bounded = [one for one in known if one.bounded]
    text = f"95 % intervals: {_covered({one.basis for one in bounded})}." if bounded else "There are no intervals."
    if any(one.rough for one in known):
        text += (
            f" Rough: some finding has fewer than {SOUND_PATIENTS} positive, or negative, test patients, so the"
            " interval may be too narrow."
        )
    reasons = dict.fromkeys(one.reason for one in known if one.reason)
    return text + (f" No interval: {'; '.join(reasons)}." if reasons else "")


def _covered(bases: set[tuple[str, ...]]) -> str:
    """What intervals cover, and what they take as it is; fractions can differ in their number of draws."""
    if bases == {("seeds",)}:
        return "seeds alone (t), for the records keep no predictions"
    draws = "the draw of the labelled patients is taken as it is"
    if bases == {("patients",)}:
        return f"test patients alone (t); seeds, fewer than {LEVELS}, are taken as they are, and {draws}"
    wide = bases - {("patients",)}
    some = set.union(*map(set, wide))
    several = "draws of the labelled patients" + (
        "" if all("draws" in one for one in wide) else " where there are several"
    )
    names = {"seeds": "seeds", "draws": several, "patients": "test patients"}
    listed = [name for effect, name in names.items() if effect in some]
    text = f"{', '.join(listed[:-1])} and {listed[-1]} as crossed random effects (t, Satterthwaite)"
    text += "" if "draws" in some else f"; {draws}"
    return text + (f"; {ALONE}: fewer than {LEVELS} seeds, test patients alone" if wide != bases else "")


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
            cell = interval_cell(estimate) + _alone(estimate, seen)
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
    seen = [*found.values()]
    cells = {key: interval_cell(e, spread=False) + _alone(e, seen) for key, e in found.items()}
    title = caption(scores, f"AUROC by finding at {fraction:g} % of the labels")
    note = f"Mean over seeds [95 % interval]. {_note(scores, seen)}"
    return _crossed(title, "finding", names, [arm.label for arm in arms], cells, note)


def differences_per_finding(scores: Scores, strategy: str) -> Table | None:
    """Every arm minus the arm of `strategy`, finding by finding at the primary fraction, findings as columns."""
    fraction = scores.primary
    found = {
        (name, arm.label): scores.difference(arm, rival, fraction, (name,))
        for arm in scores.group.arms
        if (rival := scores.reference(arm, strategy))
        for name in scores.names
    }
    seen = [*found.values()]
    names = [name for name in scores.names if any(one for (of, _), one in found.items() if of == name)]
    arms = [label for label in dict.fromkeys(label for _, label in found) if any(found[name, label] for name in names)]
    if not arms:
        return None
    cells = {key: span(one) + _alone(one, seen) if one else NONE for key, one in found.items()}
    title = caption(scores, f"AUROC by finding, difference to {strategy}, at {fraction:g} % of the labels")
    return _crossed(title, "finding", names, arms, cells, f"{PAIRED} {_note(scores, seen)} {UNCORRECTED}")


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


def differences(scores: Scores, strategy: str) -> Table | None:
    """Every arm minus the arm of `strategy` ("dense", "fixed", ...), paired by seed and patient."""
    rows = []
    sensitive = is_sensitive(scores, scores.primary)
    pairs = [(arm, rival) for arm in scores.group.arms if (rival := scores.reference(arm, strategy))]
    if strategy != "dense":
        pairs = [(arm, rival) for arm, rival in pairs if not arm.baseline and arm.strategy != strategy]
    found = {arm.label: [scores.difference(arm, rival, f) for f in scores.fractions] for arm, rival in pairs}
    seen = [one for row in found.values() for one in row]
    for arm, rival in pairs:
        if not any(found[arm.label]):
            continue
        cells = [span(one) + _alone(one, seen) if one else NONE for one in found[arm.label]]
        primary = found[arm.label][scores.fractions.index(scores.primary)]
        verdict = NONE
        if primary and not arm.baseline:
            verdict = comparable(primary, sensitive) if strategy == "dense" else better(primary)
        rows.append((arm.label, rival.label, macs_cell(arm, rival), *cells, verdict))
    if not rows:
        return None
    claim = f"not {MARGIN} below" if strategy == "dense" else "better"
    rule = f" A verdict needs {SEEDS} seeds and an interval." if any(row[-1] == "no verdict" for row in rows) else ""
    return Table(
        caption(scores, f"Macro AUROC, difference to {strategy}"),
        (
            "method",
            "minus",
            "inference MMACs",
            *(f"{f:g} % labels" for f in scores.fractions),
            f"{claim}, at {scores.primary:g} %",
        ),
        tuple(rows),
        f"{PAIRED} {_note(scores, seen)} {UNCORRECTED}{rule}",
    )


def differences_where_dense_learns(scores: Scores) -> Table | None:
    """Every arm minus dense, over the findings that dense learns; None where these are all, none, or not known."""
    names, arms = scores.learned, scores.dense_and_untrained
    others = [name for name in scores.findings(scores.primary) if name not in (names or ())]
    if not names or not others or arms is None:
        return None
    pairs = [(arm, rival) for arm in scores.group.arms if (rival := scores.reference(arm, "dense"))]
    found = {arm.label: [scores.difference(arm, rival, f, names) for f in scores.fractions] for arm, rival in pairs}
    seen = [one for row in found.values() for one in row]
    rows = [
        (
            arm.label,
            rival.label,
            macs_cell(arm, rival),
            *(span(one) + _alone(one, seen) if one else NONE for one in found[arm.label]),
        )
        for arm, rival in pairs
        if any(found[arm.label])
    ]
    note = (
        f"Over {', '.join(names)}: the findings on which {arms[0].label} is seen to beat the untrained encoder among"
        f" the validation patients at {scores.primary:g} % of the labels. Left out: {', '.join(others)}. {PAIRED}"
        f" {_note(scores, seen)} {UNCORRECTED}"
    )
    heads = ("method", "minus", "inference MMACs", *(f"{f:g} % labels" for f in scores.fractions))
    return Table(caption(scores, "Macro AUROC over what dense learns, difference to dense"), heads, tuple(rows), note)


def selections(scores: Scores) -> Table | None:
    """Own selection against the mean selection and another image's, for every arm that was evaluated with them."""
    fraction = scores.primary
    found = dependences(scores, fraction)
    if not found:
        return None
    seen: list[Estimate | None] = [estimate for one in found for estimate in (one.over_mean, one.over_shuffled)]
    rows = tuple(
        (one.arm.label, *(span(e) + _alone(e, seen) for e in (one.over_mean, one.over_shuffled)), one.verdict)
        for one in found
    )
    note = (
        "The same networks with three selections, each with its own probe: AUROC with the own selection of each image,"
        " minus AUROC with one mask for all images (the highest mean scores over training images, as many patches),"
        " and minus AUROC with the selection of another patient's image. Shown: the own selection is better than both."
        f" {PAIRED} {_note(scores, seen)} {UNCORRECTED}"
    )
    head = ("method", "own minus mean selection", "own minus another image's", "selection about the image")
    return Table(
        caption(scores, f"Is the selection about the image? At {fraction:g} % of the labels"), head, rows, note
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
