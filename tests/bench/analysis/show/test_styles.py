"""Looks of methods: the registry's, all different, and spare ones for what it does not know."""

from __future__ import annotations

from dataclasses import replace

from matplotlib.colors import to_rgb
from matplotlib.lines import Line2D

from bench.analysis.show import styles
from methods import BASELINES, OBJECTIVES, STRATEGIES, Entry


def test_every_strategy_and_baseline_has_a_colour_of_its_own() -> None:
    colours = [*(entry.colour for entry in (STRATEGIES | BASELINES).values()), *styles.COLOURS]
    assert len({to_rgb(colour) for colour in colours}) == len(colours)
    shown = [*STRATEGIES, *BASELINES]
    assert [styles.colour_of(name, shown) for name in shown] == colours[: len(shown)]


def test_every_objective_has_a_marker_and_a_line_of_its_own() -> None:
    looks = [Line2D([], [], marker=entry.marker, linestyle=entry.line) for entry in OBJECTIVES.values()]
    assert len({look.get_marker() for look in looks} - {"None", *styles.MARKERS, styles.BASELINE_MARKER}) == len(looks)
    assert len({look.get_linestyle() for look in looks} - {"None", styles.LINE, styles.BASELINE_LINE}) == len(looks)
    shown = [*OBJECTIVES, "none"]
    assert [styles.marker_of(name, shown) for name in shown] == [e.marker for e in OBJECTIVES.values()] + ["D"]
    assert [styles.line_of(name) for name in shown] == [e.line for e in OBJECTIVES.values()] + [":"]


def test_a_plugin_looks_the_same_whether_it_is_loaded_or_not(registries: None) -> None:
    strategies, objectives = ["b", "dense", "a"], ["y", "simclr", "x"]

    def looks() -> list[list[str]]:
        return [
            [styles.colour_of(name, strategies) for name in strategies],
            [styles.marker_of(name, objectives) for name in objectives],
            [styles.line_of(name) for name in objectives],
        ]

    first, second, *_ = styles.COLOURS
    unloaded = looks()
    assert unloaded == [[second, STRATEGIES["dense"].colour, first], ["<", "o", "^"], ["-.", "-", "-."]]
    for registry, names in ((STRATEGIES, "ba"), (OBJECTIVES, "yx")):
        registry |= {name: replace(Entry(":Mine", "", ""), code="of a file") for name in names}
    assert looks() == unloaded
