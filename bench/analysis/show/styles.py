"""Colours, markers and lines of methods in the figures: the registry's, or spare ones for plug-ins.

A strategy has one colour everywhere (Okabe and Ito's palette, which readers with colour blindness can tell apart), an
objective one marker and line.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from methods import BASELINES, OBJECTIVES, STRATEGIES

COLOURS = ("#3D5A80", "#A44A3F", "#4F772D", "#6D597A")  # spare
MARKERS = ("^", "<", ">", "h")  # spare
LINE = "-."  # of objectives from plug-ins
BASELINE_MARKER, BASELINE_LINE = "D", ":"


def colour_of(strategy: str, shown: Iterable[str]) -> str:
    """The colour of a strategy or baseline in a figure that shows these strategies."""
    known = {name: entry.colour for name, entry in (STRATEGIES | BASELINES).items() if entry.colour}
    return _known_or_spare(strategy, known, shown, COLOURS)


def marker_of(objective: str, shown: Iterable[str]) -> str:
    """The marker of an objective, or of the baselines ("none"), in a figure that shows these objectives."""
    known = {name: entry.marker for name, entry in OBJECTIVES.items() if entry.marker}
    return _known_or_spare(objective, {"none": BASELINE_MARKER} | known, shown, MARKERS)


def line_of(objective: str) -> str:
    """The line style of an objective, or of the baselines ("none")."""
    if objective == "none":
        return BASELINE_LINE
    return (OBJECTIVES[objective].line if objective in OBJECTIVES else "") or LINE


def _known_or_spare(name: str, known: Mapping[str, str], shown: Iterable[str], spare: Sequence[str]) -> str:
    """What is known of `name`; else a spare one, by the place of `name` among those shown of which none is known."""
    others = sorted({*shown, name} - known.keys())
    return known[name] if name in known else spare[others.index(name) % len(spare)]
