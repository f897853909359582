"""Colours, markers and lines of methods in figures, from the registry or, for plug-ins, from spare ones.

A strategy has the same colour in all figures, an objective the same marker and line. The colours start from the palette
of Okabe and Ito, which readers with colour blindness can distinguish.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from methods import BASELINES, OBJECTIVES, STRATEGIES

COLOURS = ("#3D5A80", "#A44A3F", "#4F772D", "#6D597A")  # of strategies from plug-ins
MARKERS = ("^", "<", ">", "h")  # of objectives from plug-ins
LINE = "-."  # of objectives from plug-ins
BASELINE_MARKER, BASELINE_LINE = "D", ":"


def colour_of(strategy: str, shown: Iterable[str]) -> str:
    """Colour of a strategy or a baseline in a figure of the strategies `shown`."""
    known = {name: entry.colour for name, entry in (STRATEGIES | BASELINES).items() if entry.colour}
    return _known_or_spare(strategy, known, shown, COLOURS)


def marker_of(objective: str, shown: Iterable[str]) -> str:
    """Marker of an objective, or of baselines ("none"), in a figure of the objectives `shown`."""
    known = {name: entry.marker for name, entry in OBJECTIVES.items() if entry.marker}
    return _known_or_spare(objective, {"none": BASELINE_MARKER} | known, shown, MARKERS)


def line_of(objective: str) -> str:
    """Line style of an objective, or of baselines ("none")."""
    if objective == "none":
        return BASELINE_LINE
    return (OBJECTIVES[objective].line if objective in OBJECTIVES else "") or LINE


def _known_or_spare(name: str, known: Mapping[str, str], shown: Iterable[str], spare: Sequence[str]) -> str:
    """The value known for `name`, else a spare value, chosen by the place of `name` among the unknown names shown."""
    others = sorted({*shown, name} - known.keys())
    return known[name] if name in known else spare[others.index(name) % len(spare)]
