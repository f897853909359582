"""Table of the lesion area that selections keep, finding by finding, against its null."""

from __future__ import annotations

from bench.analysis.judge.claims import SEEDS, span
from bench.analysis.judge.lesions import KeptLesions, kept_lesions
from bench.analysis.read.groups import Group
from bench.analysis.show.cells import NONE, intervals_note
from bench.analysis.show.document import Table
from bench.statistics.accuracy import Estimate


def lesions(group: Group) -> Table | None:
    """One row per method and finding; None where no run says what it keeps of lesions."""
    found = kept_lesions(group)
    if not found:
        return None
    rows = tuple(_row(one) for one in found)
    note = (
        "Of each lesion, the share of its area inside kept patches, averaged over the test images with the finding (by"
        " area: weighted by it). It has three parts. Share: the share of the patches that is kept. Place: what the same"
        " lesion gets under the selections of all other patients, minus the share; above 0, places are kept where"
        " lesions of this finding lie in general. Image: what it gets beyond that; 0 for a selection that does not"
        " depend on the image. Intervals are over patients by the jackknife, and over seeds."
        f" {intervals_note([e for one in found for e in (one.kept, one.place, one.image)])}"
    )
    if any(one.kept and one.kept.seeds < SEEDS for one in found):
        note += " These are estimates, from which nothing is concluded."
    head = ("method", "finding", "images", "share", "lesion area kept", "by area", "place", "image")
    return Table(f"Lesion area kept by finding, {group.data}", head, rows, note)


def _row(one: KeptLesions) -> tuple[str, ...]:
    kept = NONE if one.kept is None else f"{one.kept.value:.3f} {_bounds(one.kept)}"
    parts = (NONE if part is None else span(part) for part in (one.place, one.image))
    return (one.arm.label, one.finding, f"{one.images:,}", f"{one.share:.3f}", kept, f"{one.by_area:.3f}", *parts)


def _bounds(estimate: Estimate) -> str:
    text = f"[{estimate.low:.3f}, {estimate.high:.3f}]" if estimate.bounded else "(no interval)"
    return f"{text} (rough)" if estimate.rough else text
