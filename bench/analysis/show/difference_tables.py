"""The tables of paired differences in AUROC: of all methods to one, as a macro mean and finding by finding."""

from __future__ import annotations

from collections.abc import Iterable

from bench.analysis.judge.claims import MARGIN, SEEDS, better, comparable, equal_macs, is_sensitive, span
from bench.analysis.judge.image_dependence import dependences
from bench.analysis.judge.scores import Scores
from bench.analysis.read.groups import Arm
from bench.analysis.show.cells import NONE, alone_mark, caption, crossed, sample_note
from bench.analysis.show.document import Table
from bench.analysis.show.rows import labels_of_pair
from bench.statistics.accuracy import Estimate

PAIRED = "Paired: the same seeds, initial weights, views, draws of labelled patients and test patients."
UNCORRECTED = "Intervals stand alone: none is corrected for the number of comparisons."
Pair = tuple[Arm, Arm]


def differences_per_finding(scores: Scores, strategy: str) -> Table | None:
    """Every arm minus the arm of `strategy`, finding by finding at the primary fraction, findings as columns."""
    fraction = scores.primary
    found = {
        pair: {name: scores.difference(*pair, fraction, (name,)) for name in scores.names}
        for pair in _pairs(scores, strategy)
    }
    found = {pair: by_name for pair, by_name in found.items() if any(by_name.values())}
    if not found:
        return None
    seen = [one for by_name in found.values() for one in by_name.values()]
    names = [name for name in scores.names if any(by_name[name] for by_name in found.values())]
    labels = {pair: labels_of_pair(scores, *pair, [fraction])[0] for pair in found}
    cells = {(name, labels[pair]): _cell(by_name[name], seen) for pair, by_name in found.items() for name in names}
    title = caption(scores, f"AUROC by finding, difference to {strategy}, at {fraction:g} % of the labels")
    note = f"{PAIRED} {sample_note(scores, seen)} {UNCORRECTED}"
    return crossed(title, "finding", names, [*labels.values()], cells, note)


def differences(scores: Scores, strategy: str) -> Table | None:
    """Every arm minus the arm of `strategy` ("dense", "fixed", ...), paired by seed and patient."""
    pairs = _pairs(scores, strategy)
    if strategy != "dense":
        pairs = [(arm, rival) for arm, rival in pairs if not arm.baseline and arm.strategy != strategy]
    found = _macro(scores, pairs)
    if not found:
        return None
    seen = [one for estimates in found.values() for one in estimates]
    place, sensitive, rows = scores.fractions.index(scores.primary), is_sensitive(scores, scores.primary), []
    for (arm, rival), estimates in found.items():
        primary, verdict = estimates[place], NONE
        if primary and not arm.baseline:
            verdict = comparable(primary, sensitive) if strategy == "dense" else better(primary)
        rows.append((*_row(scores, (arm, rival), estimates, seen), verdict))
    claim = f"not {MARGIN} below" if strategy == "dense" else "better"
    rule = f" A verdict needs {SEEDS} seeds and an interval." if any(row[-1] == "no verdict" for row in rows) else ""
    heads = (*_heads(scores), f"{claim}, at {scores.primary:g} %")
    note = f"{PAIRED} {sample_note(scores, seen)} {UNCORRECTED}{rule}"
    return Table(caption(scores, f"Macro AUROC, difference to {strategy}"), heads, tuple(rows), note)


def differences_over_chosen(scores: Scores) -> Table | None:
    """Every arm minus dense, over the findings chosen on the validation patients; None where these are all, none, or
    not known."""
    names, arms = scores.chosen_findings, scores.dense_and_untrained
    others = [name for name in scores.findings(scores.primary) if name not in (names or ())]
    if not names or not others or arms is None:
        return None
    found = _macro(scores, _pairs(scores, "dense"), names)
    seen = [one for estimates in found.values() for one in estimates]
    rows = tuple(_row(scores, pair, estimates, seen) for pair, estimates in found.items())
    note = (
        f"Over {', '.join(names)}: chosen because the interval of {arms[0].label} minus the untrained encoder among the"
        f" validation patients lies above 0 at {scores.primary:g} % of the labels. Left out: {', '.join(others)}."
        f" {PAIRED} {sample_note(scores, seen)} {UNCORRECTED}"
    )
    title = "Macro AUROC over findings chosen on validation patients, difference to dense"
    return Table(caption(scores, title), _heads(scores), rows, note)


def selections(scores: Scores) -> Table | None:
    """Own selection against the mean selection and another image's, for every arm that was evaluated with them."""
    fraction = scores.primary
    found = dependences(scores, fraction)
    if not found:
        return None
    seen: list[Estimate | None] = [estimate for one in found for estimate in (one.over_mean, one.over_shuffled)]
    rows = tuple(
        (one.arm.label, *(_cell(estimate, seen) for estimate in (one.over_mean, one.over_shuffled)), one.verdict)
        for one in found
    )
    note = (
        "The same networks with three selections, each with its own probe: AUROC with the own selection of each image,"
        " minus AUROC with one mask for all images (the highest mean scores over training images, as many patches),"
        " and minus AUROC with the selection of another patient's image. Shown: the own selection is better than both."
        f" {PAIRED} {sample_note(scores, seen)} {UNCORRECTED}"
    )
    head = ("method", "own minus mean selection", "own minus another image's", "selection about the image")
    title = f"Is the selection about the image? At {fraction:g} % of the labels"
    return Table(caption(scores, title), head, rows, note)


def macs_cell(arm: Arm, rival: Arm) -> str:
    """MMACs per image at inference of both sides of a difference: one number where they are equal."""
    mine, its = ("?" if one.inference_macs is None else f"{one.inference_macs / 1e6:,.1f}" for one in (arm, rival))
    return mine if equal_macs(arm, rival) else f"{mine} against {its}"


def _pairs(scores: Scores, strategy: str) -> list[Pair]:
    return [(arm, rival) for arm in scores.group.arms if (rival := scores.reference(arm, strategy))]


def _macro(
    scores: Scores, pairs: Iterable[Pair], names: tuple[str, ...] | None = None
) -> dict[Pair, list[Estimate | None]]:
    """The differences of the pairs at each fraction, over these findings or all of the macro mean; pairs without any
    are left out."""
    found = {pair: [scores.difference(*pair, fraction, names) for fraction in scores.fractions] for pair in pairs}
    return {pair: estimates for pair, estimates in found.items() if any(estimates)}


def _heads(scores: Scores) -> tuple[str, ...]:
    return ("method", "minus", "inference MMACs", *(f"{fraction:g} % labels" for fraction in scores.fractions))


def _row(scores: Scores, pair: Pair, estimates: list[Estimate | None], seen: list[Estimate | None]) -> tuple[str, ...]:
    labels = labels_of_pair(scores, *pair, scores.fractions)
    return (*labels, macs_cell(*pair), *(_cell(one, seen) for one in estimates))


def _cell(estimate: Estimate | None, seen: list[Estimate | None]) -> str:
    return span(estimate) + alone_mark(estimate, seen) if estimate else NONE
