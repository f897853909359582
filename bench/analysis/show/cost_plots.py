"""Figures on cost: the time of a training step by part, and cost against the number of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from bench.analysis.show import styles
from bench.analysis.show.plots import save, theme
from bench.records.record import AA_SUFFIX, PARTS, CostRow

PREFIX = "cost-"  # of the figures that `bench.cost` writes
SHADES = {
    "views": "#D9D9D9",
    "embedding": "#56B4E9",
    "predictor": "#D55E00",
    "selection": "#F0E442",
    "blocks": "#0072B2",
    "heads": "#009E73",
    "teacher": "#CC79A7",
    "optimizer": "#8C6D31",
}
PARTS_CAPTION = (
    "Time of a training step by part, forward and backward together. The white mark shows where the step would end if"
    " time were proportional to multiply-accumulates. Making the views comes first; no speed-up includes it, because it"
    " takes the same time for every method."
)
EDGE = [withStroke(linewidth=3.2, foreground="black")]
PLAIN = FuncFormatter(lambda value, _: f"{value:,g}")
Line = list[tuple[int, float]]


def parts(rows: Sequence[CostRow], folder: Path, name: str) -> bool:
    """Draw a stacked bar per method, the ms per image of a step by part. False if that was not measured."""
    known = [row for row in rows if row.blocks_ms is not None and row.train_ms is not None]
    if not known:
        return False
    dense = known[0]
    with theme():
        canvas, axes = plt.subplots(figsize=(8.2, 0.42 * len(known) + 1.5))
        heights = np.arange(len(known))[::-1]
        left = np.zeros(len(known))
        for part, label in PARTS.items():
            widths = np.array([row.part(part) or 0.0 for row in known])
            if widths.any():
                axes.barh(heights, widths, left=left, height=0.68, color=SHADES[part], label=label)
                left += widths
        for height, row in zip(heights, known, strict=True):
            by_macs = (row.views_ms or 0.0) + (dense.train_ms or 0.0) * row.train_gmacs / dense.train_gmacs
            label = "end by MACs" if row is dense else ""
            ends = [height - 0.34, height + 0.34]
            axes.plot([by_macs] * 2, ends, color="white", linewidth=1.6, zorder=5, label=label, path_effects=EDGE)
        axes.set_yticks(heights, [row.method for row in known])
        axes.set_xlabel("ms per image of a step (both views)")
        axes.grid(axis="y", visible=False)
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
        save(canvas, folder, name)
    return True


def scaling(frame: pd.DataFrame, tokens: dict[int, int], folder: Path, name: str) -> bool:
    """Draw the times of inference and step against the number of tokens, and the share of attention in inference.

    `frame` has one encoder at several image sizes, `tokens` the number of patches at each size. False if there is only
    one size.
    """
    sizes = sorted(set(frame["image_size"]))
    if len(sizes) < 2:
        return False
    frame = frame[~frame["method"].str.endswith(AA_SUFFIX)].sort_values("image_size")
    panels = [("infer_ms", "inference, ms per image"), ("train_ms", "train step, ms per image")]
    panels = [panel for panel in panels if frame[panel[0]].notna().any()]
    methods = list(dict.fromkeys(frame["method"]))
    with theme():
        canvas, grid = plt.subplots(1, len(panels) + 1, figsize=(4.2 * (len(panels) + 1), 4.1), sharex=True)
        for method in methods:
            mine, style = frame[frame["method"] == method], _style(method, methods)
            for axes, (column, _) in zip(grid, panels, strict=False):
                _line(axes, _points(mine, column, tokens), method, **style)
            share = mine.assign(by_macs=mine["infer_attention_gmacs"] / mine["infer_gmacs"])
            _line(grid[-1], _points(share, "by_macs", tokens, 100), "", **style | {"linestyle": "--", "linewidth": 1.0})
            _line(grid[-1], _points(share, "infer_attention_share", tokens, 100), "", **style)
        for axes, (column, title) in zip(grid, panels, strict=False):
            axes.set(yscale="log", title=title)
            axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axes.yaxis.set_major_formatter(PLAIN)
            axes.yaxis.set_minor_locator(NullLocator())
            _guides(axes, _points(frame[frame["method"] == methods[0]], column, tokens))
        grid[-1].set(title="attention, % of inference", ylim=(0, None))
        grid[-1].plot([], [], color="#555555", label="of the time")
        grid[-1].plot([], [], color="#555555", linestyle="--", linewidth=1.0, label="of the MACs")
        grid[-1].legend(loc="upper left")
        for axes in grid:
            axes.set(xscale="log", xlabel="patch tokens (image side)")
            axes.xaxis.set_major_locator(FixedLocator([tokens[size] for size in sizes]))
            axes.xaxis.set_minor_locator(NullLocator())
            labels = [f"{tokens[size]:,} ({size} px)" for size in sizes]
            axes.set_xticklabels(labels, rotation=40, ha="right", rotation_mode="anchor")
        lines = [line for line in grid[0].lines if line.get_label() in methods]
        canvas.legend(handles=lines, loc="upper center", ncols=6, bbox_to_anchor=(0.5, 0.0))
        canvas.tight_layout()
        save(canvas, folder, name)
    return True


def _guides(axes: Axes, dense: Line) -> None:
    """Draw lines that grow with N and with N², from the first point of dense."""
    (first, start), (last, _), lines = dense[0], dense[-1], []
    for power, label, style in ((2, "grows as N²", "-."), (1, "grows as N", ":")):
        ends = [start, start * (last / first) ** power]
        lines += axes.plot([first, last], ends, color="#A0A0A0", linestyle=style, linewidth=1.2, label=label, zorder=1)
    axes.legend(handles=lines, loc="upper left")


def _style(method: str, methods: list[str]) -> dict[str, Any]:
    """Colour and marker of one of the `methods` that a figure shows."""
    parts = {name: name.split("[")[0].split("/") for name in methods}
    objective, strategy = parts[method]
    return {
        "color": styles.colour_of(strategy, (shown for _, shown in parts.values())),
        "marker": styles.marker_of(objective, (shown for shown, _ in parts.values())),
    }


def _points(rows: pd.DataFrame, column: str, tokens: dict[int, int], scale: float = 1.0) -> Line:
    known = rows.dropna(subset=[column])
    return [
        (tokens[int(size)], scale * float(value))
        for size, value in zip(known["image_size"], known[column], strict=True)
    ]


def _line(axes: Axes, points: Line, label: str, **style: Any) -> None:
    if points:
        x, y = zip(*points, strict=True)
        axes.plot(x, y, label=label, markeredgecolor="white", **{"markersize": 5, "linewidth": 1.5} | style)
