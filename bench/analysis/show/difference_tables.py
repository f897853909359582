"""The tables of paired differences in AUROC: of all methods to one, as a macro mean and finding by finding."""

from __future__ import annotations

from bench.analysis.judge.claims import MARGIN, SEEDS, better, comparable, is_sensitive, span
from bench.analysis.judge.scores import Scores
from bench.analysis.show.cells import NONE, alone_mark, caption, crossed, sample_note
from bench.analysis.show.document import Table

PAIRED = "Paired: the same seeds, initial weights, views, draws of labelled patients and test patients."
UNCORRECTED = "Intervals stand alone: none is corrected for the number of comparisons."


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
    cells = {key: span(one) + alone_mark(one, seen) if one else NONE for key, one in found.items()}
    title = caption(scores, f"AUROC by finding, difference to {strategy}, at {fraction:g} % of the labels")
    return crossed(title, "finding", names, arms, cells, f"{PAIRED} {sample_note(scores, seen)} {UNCORRECTED}")


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
        cells = [span(one) + alone_mark(one, seen) if one else NONE for one in found[arm.label]]
        primary = found[arm.label][scores.fractions.index(scores.primary)]
        verdict = NONE
        if primary and not arm.baseline:
            verdict = comparable(primary, sensitive) if strategy == "dense" else better(primary)
        rows.append((arm.label, rival.label, *cells, verdict))
    if not rows:
        return None
    claim = f"not {MARGIN} below" if strategy == "dense" else "better"
    rule = f" A verdict needs {SEEDS} seeds and an interval." if any(row[-1] == "no verdict" for row in rows) else ""
    return Table(
        caption(scores, f"Macro AUROC, difference to {strategy}"),
        (
            "method",
            "minus",
            *(f"{f:g} % labels" for f in scores.fractions),
            f"{claim}, at {scores.primary:g} %",
        ),
        tuple(rows),
        f"{PAIRED} {sample_note(scores, seen)} {UNCORRECTED}{rule}",
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
        (arm.label, rival.label, *(span(one) + alone_mark(one, seen) if one else NONE for one in found[arm.label]))
        for arm, rival in pairs
        if any(found[arm.label])
    ]
    note = (
        f"Over {', '.join(names)}: the findings on which {arms[0].label} is seen to beat the untrained encoder among"
        f" the validation patients at {scores.primary:g} % of the labels. Left out: {', '.join(others)}. {PAIRED}"
        f" {sample_note(scores, seen)} {UNCORRECTED}"
    )
    heads = ("method", "minus", *(f"{f:g} % labels" for f in scores.fractions))
    return Table(caption(scores, "Macro AUROC over what dense learns, difference to dense"), heads, tuple(rows), note)
