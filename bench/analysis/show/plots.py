"""Figures on accuracy: label efficiency, accuracy against training cost with its front, training curves.

Training time is the measured step time times the number of steps, not the wall-clock time of runs, which may have
shared the machine.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # before pyplot: no display is needed

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns  # type: ignore[import-untyped,unused-ignore]
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from bench.analysis.judge.claims import no_verdict
from bench.analysis.judge.scores import Scores
from bench.analysis.judge.speedups import cost_of
from bench.analysis.read.groups import UNLEARNED, Arm, Group
from bench.analysis.show import styles
from bench.analysis.show.cells import PROBES
from bench.analysis.show.rows import rows_of
from bench.specs.run_spec import RunSpec
from methods import SUPERVISED, UNTRAINED

TWINS = "^vP*Xd"  # markers of further arms with the same strategy and objective


def style_of(arm: Arm, group: Group) -> dict[str, Any]:
    """Colour of an arm by its strategy, marker and line by its objective. Further arms with the same strategy and
    objective get other markers; those of arms with runs that did not learn are hollow."""
    twins = [one.label for one in group.arms if (one.strategy, one.objective) == (arm.strategy, arm.objective)]
    place = twins.index(arm.label)
    marker = styles.marker_of(arm.objective, (one.objective for one in group.arms))
    colour = styles.colour_of(arm.strategy, (one.strategy for one in group.arms))
    return {
        "color": colour,
        "marker": marker if place == 0 else TWINS[(place - 1) % len(TWINS)],
        "linestyle": styles.line_of(arm.objective),
        "markerfacecolor": "white" if arm.unlearned else colour,
        "markeredgecolor": colour if arm.unlearned else "white",
    }


@contextmanager
def theme() -> Iterator[None]:
    """Apply the settings for publication inside the context, and restore the previous settings after it."""
    with matplotlib.rc_context():
        sns.set_theme(context="paper", style="ticks", font_scale=1.15)
        matplotlib.rcParams |= {
            "axes.grid": True,
            "grid.color": "#E6E6E6",
            "grid.linewidth": 0.7,
            "axes.axisbelow": True,
            "legend.frameon": False,
            "svg.hashsalt": "bench",
            "text.parse_math": False,  # show names as they are, dollar signs included
            "axes.spines.top": False,
            "axes.spines.right": False,
        }
        yield


def save(canvas: Canvas, folder: Path, name: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    canvas.savefig(folder / f"{name}.png", dpi=180, bbox_inches="tight", facecolor="white")
    canvas.savefig(folder / f"{name}.svg", bbox_inches="tight", metadata={"Date": None})
    plt.close(canvas)


def label_efficiency(scores: Scores, folder: Path, name: str) -> None:
    """Draw macro AUROC against the share of labels (log axis), with 95 % intervals; arms are side by side within a
    fraction."""
    group, fractions = scores.group, scores.fractions
    found = {row: [row.estimate(scores, f) for f in fractions] for row in rows_of(scores, fractions)}
    found = {row: estimates for row, estimates in found.items() if any(estimates)}
    with theme():
        canvas, axes = plt.subplots(figsize=(6.6, 4.2))
        for place, (row, estimates) in enumerate(found.items()):
            shift = 1.045 ** (place - (len(found) - 1) / 2)
            points = [(f * shift, e) for f, e in zip(fractions, estimates, strict=True) if e]
            style = style_of(row.arm, group)
            axes.errorbar(
                [at for at, _ in points],
                [e.value for _, e in points],
                yerr=[
                    [e.value - e.low if e.bounded else 0 for _, e in points],
                    [e.high - e.value if e.bounded else 0 for _, e in points],
                ],
                label=row.label,
                markersize=5,
                linewidth=1.4,
                elinewidth=1,
                capsize=2,
                markeredgewidth=0.9 if row.arm.unlearned else 0.6,
                **style | ({"linestyle": styles.BASELINE_LINE} if row.repeats else {}),
            )
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(FixedLocator(list(fractions)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        tuned = any(row.arm.strategy == SUPERVISED for row in found)
        probe = PROBES[scores.probe] + (f"\n({SUPERVISED}: fine-tuned)" if tuned else "")
        axes.set(xlabel="labelled training patients (%)", ylabel=f"macro AUROC, {probe}")
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), **_legend_title(group))
        save(canvas, folder, name)


def run_hours(arm: Arm, group: Group, cost: pd.DataFrame) -> float | None:
    """Hours of the whole pre-training, from paired times: step time of dense x images seen / run speed-up."""
    row, timing = cost_of(arm, group, cost), arm.runs[0].record.time
    batch = (arm.runs[0].record.spec.get("train") or {}).get("batch")
    if row is None or timing is None or not batch or pd.isna(row["run_speedup"]):
        return None
    dense_ms = row["train_ms"] * row["train_speedup"]  # of dense in the same rounds
    spec = RunSpec.model_validate(arm.runs[0].record.spec)
    steps = timing.steps * spec.train.epochs / spec.epochs  # of dense; a run that continues another has fewer
    return float(dense_ms * steps * batch / row["run_speedup"] / 3.6e6)


def front(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Points (cost, accuracy) that no other point beats in both, sorted by cost."""
    best, out = float("-inf"), []
    for cost, accuracy in sorted(points, key=lambda point: (point[0], -point[1])):
        if accuracy > best:
            out.append((cost, accuracy))
            best = accuracy
    return out


def without_front(scores: Scores) -> str:
    """Why no front is drawn, which would say who is best; empty where one is: every trained method has the seeds and
    the interval of a verdict, and all its runs learned."""
    arms = [arm for arm in scores.group.arms if not arm.baseline]
    if any(arm.unlearned for arm in arms):
        return "some runs did not learn"
    withheld = [no_verdict(found) for arm in arms if (found := scores.estimate(arm, scores.primary))]
    return next(filter(None, withheld), "")


def trade_off(scores: Scores, cost: pd.DataFrame, folder: Path, name: str) -> bool:
    """Draw macro AUROC at the primary fraction against training time and against MACs. False if neither is known."""
    group, fraction = scores.group, scores.primary
    trained = [(arm, e) for arm in group.arms if not arm.baseline and (e := scores.estimate(arm, fraction))]
    hours = [(arm, e, h) for arm, e in trained if (h := run_hours(arm, group, cost)) is not None]
    macs = [(arm, e, m.whole_run / 1e12) for arm, e in trained if (m := arm.runs[0].record.macs)]
    longest = max((h for _, _, h in hours), default=0.0)
    unit, factor = ("hours", 1.0) if longest >= 2 else ("minutes", 60.0)
    panels = [
        (hours, factor, f"pre-training time ({unit})"),
        (macs, 1.0, "pre-training compute (TMACs)"),
    ]
    panels = [panel for panel in panels if panel[0]]
    if not panels:
        return False
    with theme():
        canvas, grid = plt.subplots(1, len(panels), figsize=(4.4 * len(panels) + 0.4, 3.9), sharey=True, squeeze=False)
        for axes, (points, scale, title) in zip(grid[0], panels, strict=True):
            _panel(axes, scores, points, scale)
            axes.set_xlabel(title)
        grid[0][0].set_ylabel(f"macro AUROC, {fraction:g} % labels, {PROBES[scores.probe]}")
        canvas.tight_layout()
        _common_legend(grid[0], group)
        save(canvas, folder, name)
    return True


def _common_legend(panels: Sequence[Axes], group: Group) -> None:
    """Draw one legend for all panels, with each label once, to the right of the last panel."""
    handles = {text: handle for axes in panels for handle, text in zip(*axes.get_legend_handles_labels(), strict=True)}
    axes, title = panels[-1], _legend_title(group)
    axes.legend(handles.values(), handles.keys(), loc="center left", bbox_to_anchor=(1.02, 0.5), **title)


def _legend_title(group: Group) -> dict[str, Any]:
    """Title of a legend that says what the mark of some labels means; nothing where no label has it."""
    if not any(arm.unlearned for arm in group.arms):
        return {}
    return {"title": f"{UNLEARNED} with runs that\n   did not learn", "alignment": "left"}


def beside(values: list[float], gap: float) -> list[float]:
    """The values, with those closer than `gap` to each other spread evenly around their mean."""
    order, out = sorted(range(len(values)), key=lambda i: values[i]), list(values)
    cluster: list[int] = []
    for place, index in enumerate(order):
        cluster.append(index)
        after = order[place + 1] if place + 1 < len(order) else None
        if after is None or values[after] - values[index] >= gap:
            middle = sum(values[i] for i in cluster) / len(cluster)
            for rank, i in enumerate(cluster):
                out[i] = middle + (rank - (len(cluster) - 1) / 2) * gap if len(cluster) > 1 else values[i]
            cluster = []
    return out


def _panel(axes: Axes, scores: Scores, points: list[Any], scale: float) -> None:
    widest = max(at * scale for _, _, at in points)
    places = beside([at * scale for _, _, at in points], 0.022 * widest)
    for (arm, estimate, at), place in zip(points, places, strict=True):
        style = style_of(arm, scores.group) | {"linestyle": "none"}
        reach = [[estimate.value - estimate.low], [estimate.high - estimate.value]] if estimate.bounded else None
        axes.errorbar(
            [place],
            [estimate.value],
            yerr=reach,
            fmt="none",
            ecolor=style["color"],
            elinewidth=1,
            capsize=2,
            zorder=2,
        )
        axes.plot(
            [at * scale],
            [estimate.value],
            label=arm.label,
            markersize=7,
            markeredgewidth=1.2 if arm.unlearned else 0.7,
            zorder=3,
            **style,
        )
    right = max(*places, widest) * 1.04
    if not without_front(scores):
        best = front([(at * scale, estimate.value) for _, estimate, at in points])
        x, y = [p[0] for p in best] + [right], [p[1] for p in best] + [best[-1][1]]
        axes.step(x, y, where="post", color="#555555", linewidth=1.1, alpha=0.7, zorder=1, label="front")
    baseline = next((arm for arm in scores.group.arms if arm.strategy == UNTRAINED), None)
    base = scores.estimate(baseline, scores.primary) if baseline else None
    if base:
        colour, line = styles.colour_of(UNTRAINED, ()), styles.line_of("none")
        axes.axhline(base.value, color=colour, linestyle=line, linewidth=1.3, label=UNTRAINED, zorder=1)
    axes.set_xlim(left=0, right=right)


def curves(history: pd.DataFrame, group: Group, folder: Path, name: str) -> bool:
    """Draw the loss by epoch in a panel per objective, thin lines for seeds and thick ones for means. False if there is
    no history."""
    history = history.dropna(subset=["epoch", "loss"])
    if history.empty:
        return False
    objectives = [one for one in dict.fromkeys(arm.objective for arm in group.arms) if one in set(history["objective"])]
    with theme():
        canvas, grid = plt.subplots(1, len(objectives), figsize=(4.6 * len(objectives) + 0.4, 3.7), squeeze=False)
        for axes, objective in zip(grid[0], objectives, strict=True):
            part = history[history["objective"] == objective]
            for arm in (one for one in group.arms if one.label in set(part["arm"])):
                mine, style = part[part["arm"] == arm.label], style_of(arm, group)
                for _, line in mine.groupby("seed"):
                    axes.plot(line["epoch"], line["loss"], color=style["color"], linewidth=0.6, alpha=0.35)
                mean = mine.groupby("epoch")["loss"].mean()
                alone = {"marker": style["marker"]} if len(mean) == 1 else {}
                axes.plot(
                    mean.index,
                    mean.to_numpy(),
                    label=arm.label,
                    color=style["color"],
                    linewidth=1.7,
                    linestyle=style["linestyle"],
                    **alone,
                )
            axes.set(title=objective, xlabel="epoch")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        grid[0][0].set_ylabel("contrastive loss")
        canvas.tight_layout()
        _common_legend(grid[0], group)
        save(canvas, folder, name)
    return True
