"""Table of the lesion area that selections keep, finding by finding, and of the parts that it consists of."""

from __future__ import annotations

from bench.analysis.judge.claims import SEEDS, span
from bench.analysis.judge.lesions import KeptLesions, kept_lesions
from bench.analysis.read.groups import Group
from bench.analysis.show.cells import NONE, interval_cell
from bench.analysis.show.document import Table
from bench.statistics.accuracy import LEVELS, SOUND_PATIENTS, Estimate

PARTS = (
    "Lesion area kept: of each lesion, the share of its area inside kept patches, averaged over the test images with a"
    " lesion of the finding; by area: large lesions weigh more. It is the sum of three parts. Share: the share of the"
    " patches that is kept. Place: what the selections of all other patients' images keep of the same lesion, minus the"
    " share; above 0, the places that are kept in other images are those where lesions of this finding lie. Image: what"
    " the image's own selection keeps beyond that; exactly 0 for a selection that is the same for all images, below 0"
    " if those of other patients keep more of the lesion."
)
INTERVALS = (
    "95 % intervals: a jackknife over test patients, crossed with seeds (t, Satterthwaite); with fewer than"
    f" {LEVELS} seeds, test patients alone."
)


def lesions(group: Group) -> Table | None:
    """One row per method and finding; None where no run has recorded what it keeps of lesions."""
    found = kept_lesions(group)
    if not found:
        return None
    head = ("method", "finding", "seeds", "images (patients)", "share", "lesion area kept", "by area", "place", "image")
    title = f"Lesion area kept by finding, {group.data}, {group.encoder} at {group.image_size} px"
    return Table(title, head, tuple(map(_row, found)), _note(found))


def _row(one: KeptLesions) -> tuple[str, ...]:
    parts = (_part_cell(part) for part in (one.place, one.image))
    images = f"{one.images:,} ({one.patients:,})"
    kept = interval_cell(one.kept, spread=False)
    share, by_area = (f"{value:.3f}" for value in (one.share, one.by_area))
    return (one.arm.label, one.finding, str(one.seeds), images, share, kept, by_area, *parts)


def _part_cell(part: Estimate | None) -> str:
    """A difference with its interval; a plain 0 where it is 0 in every image."""
    if part is None:
        return NONE
    return "0" if _always_zero(part) else span(part)


def _always_zero(part: Estimate) -> bool:
    return part.value == 0 and not part.bounded


def _note(found: list[KeptLesions]) -> str:
    """The parts in words, what intervals cover, and what is missing and why."""
    sentences = [PARTS, INTERVALS]
    every = (estimate for one in found for estimate in (one.kept, one.place, one.image) if estimate)
    estimates = [estimate for estimate in every if not _always_zero(estimate)]
    if any(estimate.rough for estimate in estimates):
        sentences.append(f"Rough: fewer than {SOUND_PATIENTS} patients, so the interval may be too narrow.")
    if reasons := dict.fromkeys(estimate.reason for estimate in estimates if estimate.reason):
        sentences.append(f"No interval: {'; '.join(reasons)}.")
    if any(one.place is None for one in found):
        sentences.append(
            f"{NONE}: no comparison with other patients, since the method keeps more patches in some images than in"
            " others and reports no scores that rank them, or since there are fewer than three test patients."
        )
    if any(one.seeds < SEEDS for one in found):
        sentences.append(f"Fewer than {SEEDS} seeds: these are estimates, from which nothing is concluded.")
    return " ".join(sentences)
