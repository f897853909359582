"""What tables on accuracy have in common: cells with intervals, titles, and notes on what the intervals cover."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bench.analysis.judge.claims import ANOTHER_PROCESSOR, SEEDS
from bench.analysis.judge.scores import Scores
from bench.analysis.read.groups import Arm
from bench.analysis.show.document import Table
from bench.statistics.accuracy import LEVELS, SOUND_PATIENTS, Estimate

NONE = "–"
ALONE = "(patients alone)"
PROBES = {"linear": "linear probe", "knn": "kNN", "finetune": "fine-tuning"}


def keep_cell(arm: Arm) -> str:
    if arm.keep is None:
        return NONE
    if arm.keep_effective is None or abs(arm.keep_effective - arm.keep) < 5e-4:
        return f"{arm.keep:g}"
    return f"{arm.keep:g} ({arm.keep_effective:.2f} used)"


def interval_cell(estimate: Estimate | None, spread: bool = True) -> str:
    """`0.781 ± 0.012 [0.750, 0.810]`: mean ± std over seeds [95 % interval], or why that needs care."""
    if estimate is None:
        return NONE
    text = f"{estimate.value:.3f}"
    if spread and np.isfinite(estimate.std):
        text += f" ± {estimate.std:.3f}"
    bounds = f"[{estimate.low:.3f}, {estimate.high:.3f}]" if estimate.bounded else "(no interval)"
    return f"{text} {bounds}{' (rough)' if estimate.rough else ''}"


def spread_cell(values: Sequence[float]) -> str:
    """`0.308 ± 0.010`: mean ± std over seeds."""
    if not len(values):
        return NONE
    spread = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
    return f"{np.mean(values):.3f}{spread}"


def alone_mark(estimate: Estimate | None, seen: list[Estimate | None]) -> str:
    """A mark on an interval over patients alone, in a table in which others cover more."""
    bases = {one.basis for one in seen if one and one.bounded}
    return f" {ALONE}" if estimate and estimate.basis == ("patients",) and len(bases) > 1 else ""


def caption(scores: Scores, what: str) -> str:
    group = scores.group
    return f"{what}, {PROBES[scores.probe]}, {group.data}, {group.encoder} at {group.image_size} px"


def sample_note(scores: Scores, estimates: list[Estimate | None]) -> str:
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
    text += f" No interval: {'; '.join(reasons)}." if reasons else ""
    return text + few_seeds_note(min((one.seeds for one in known), default=SEEDS))


def few_seeds_note(seeds: int) -> str:
    """What has to be known of an accuracy over so few seeds, beginning with a space; empty for SEEDS or more."""
    return f" Fewer than {SEEDS} seeds: {ANOTHER_PROCESSOR}." if seeds < SEEDS else ""


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


def crossed(
    title: str, what: str, parts: list[str], arms: list[str], cells: dict[tuple[str, str], str], note: str
) -> Table:
    """Methods as rows while the parts fit beside each other, else parts as rows."""
    if len(parts) <= 7:
        rows = [(arm, *(cells[part, arm] for part in parts)) for arm in arms]
        return Table(title, ("method", *parts), tuple(rows), note)
    rows = [(part, *(cells[part, arm] for arm in arms)) for part in parts]
    return Table(title, (what, *arms), tuple(rows), note)
