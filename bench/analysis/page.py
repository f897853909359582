"""Writing a report (report.md, report.tex, figures, tidy data) from a results folder, without training or measuring."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import pandas as pd

from bench.analysis.judge import findings
from bench.analysis.judge.caveats import caveats, mark_explained, unlearned
from bench.analysis.judge.claims import Claim, all_claims
from bench.analysis.judge.scores import Scores
from bench.analysis.outputs import LARGE_PARTS, TITLE, is_figure
from bench.analysis.read import frames
from bench.analysis.read.groups import UNLEARNED, Group, Run
from bench.analysis.read.results import group_runs, read_runs
from bench.analysis.show import (
    accuracy_tables,
    cells,
    cost_plots,
    difference_tables,
    document,
    lesion_tables,
    plots,
    run_tables,
    saliency,
    settings_tables,
    time_tables,
)
from bench.analysis.show.document import Block, Bullets, Figure, Heading, Paragraph, Table
from bench.messages import plain
from bench.specs.grid_spec import read_tuning
from methods import CONTROL, REFERENCE

B = TypeVar("B", bound=Block)


@dataclass(frozen=True)
class GroupSummary:
    """Summary of one group: title, accuracy table for a terminal, findings in sentences, judged claims."""

    title: str
    table: str
    finding: tuple[str, ...]
    claims: tuple[Claim, ...]


@dataclass(frozen=True)
class ReportSummary:
    """Path of a written report and summaries of its groups; `table` and `finding` join those of all groups."""

    path: Path
    groups: tuple[GroupSummary, ...]

    @property
    def table(self) -> str:
        return "\n\n".join(group.table for group in self.groups)

    @property
    def finding(self) -> tuple[str, ...]:
        return tuple(sentence for group in self.groups for sentence in group.finding)


def write_report(results: Path, reports: Path, planned: int = 0) -> ReportSummary:
    """Write the report on all records in `results` to the folder `reports`.

    `planned` is the number of runs in the grid, or 0 if unknown; a report on fewer runs says that it is provisional.
    Raises FileNotFoundError if there is no record, and ReportRefused if records can't be read or don't belong together.
    """
    runs = read_runs(results)
    groups = group_runs(runs)
    cost = frames.cost_frame(results)
    figures = reports / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    blocks: list[Block] = [Heading(1, TITLE)]
    summaries, kept = [], set()
    large = time_tables.large_table(results)
    for number, group in enumerate(groups):
        name = f"{number + 1}-{re.sub(r'[^A-Za-z0-9]+', '-', group.data).strip('-').lower() or 'data'}"
        summary, part, drawn = _group(group, cost, large, figures, name, planned if len(groups) == 1 else 0)
        summaries.append(summary)
        blocks += part
        kept |= drawn
    part, drawn = _large_scale(large, figures)
    blocks += [*part, *_rest(runs, groups)]
    kept |= drawn
    for old in figures.iterdir():
        if is_figure(old) and old.stem not in kept:
            old.unlink()  # drawn by an earlier report
    _write(reports / "report.md", document.to_markdown(blocks))
    _write(reports / "report.tex", document.to_latex(blocks))
    _write(reports / "results.csv", frames.results_frame(runs).to_csv(index=False))
    shown = [cost] if large is None or large.own else [cost, frames.table_frame(large.table)]
    full = [frame for frame in shown if not frame.empty]
    _write(reports / "cost.csv", frames.cost_csv(pd.concat(full, ignore_index=True) if full else pd.DataFrame()))
    return ReportSummary(reports / "report.md", tuple(summaries))


def _group(
    group: Group, cost: pd.DataFrame, large: time_tables.LargeTable | None, figures: Path, name: str, planned: int
) -> tuple[GroupSummary, list[Block], set[str]]:
    every = {probe: Scores(group, probe) for probe in group.probes}
    usable = {probe: scores for probe, scores in every.items() if scores.fractions}
    main = next(iter(usable.values()), None)
    claims = all_claims(group, main, cost, large.elsewhere(group) if large else None)
    sentences = findings.finding(group, main, claims, planned)
    drawn: set[str] = set()
    warnings = caveats(group, main, planned)
    blocks: list[Block] = [Heading(2, group.title), Heading(3, "Finding"), *_lead(sentences, warnings)]
    blocks.append(Heading(3, "Accuracy"))
    table = accuracy_tables.accuracy(main) if main else None
    if main and table:
        plots.label_efficiency(main, figures, f"{name}-labels")
        drawn.add(f"{name}-labels")
        blocks += [
            table,
            Figure(
                f"{name}-labels",
                f"Label efficiency: macro AUROC against the share of labelled patients, {group.data}; bars are"
                " intervals; points are set side by side within a fraction. "
                + cells.intervals_note([main.estimate(arm, f) for arm in group.arms for f in main.fractions]),
            ),
        ]
        blocks += [accuracy_tables.accuracy(scores) for probe, scores in usable.items() if scores is not main]
        blocks += _present(
            difference_tables.differences(main, REFERENCE),
            difference_tables.differences_over_chosen(main),
            difference_tables.differences(main, CONTROL),
            difference_tables.selections(main),
        )
        blocks += [
            accuracy_tables.per_finding(main),
            *_present(difference_tables.differences_per_finding(main, REFERENCE)),
            accuracy_tables.precision(main),
            *_present(accuracy_tables.regularisation(main)),
            *_present(accuracy_tables.subgroups(main)),
        ]
    blocks += [
        Heading(3, "Cost"),
        run_tables.macs(group),
        *_present(time_tables.times(group, cost), time_tables.ramps(group, cost)),
    ]
    if not any(isinstance(block, Table) and block.title.startswith("Paired time") for block in blocks):
        blocks.append(Paragraph("Times were not measured at this scale, so the report says nothing about speed."))
    if main and plots.trade_off(main, cost, figures, f"{name}-cost"):
        drawn.add(f"{name}-cost")
        blocks.append(
            Figure(
                f"{name}-cost",
                f"Macro AUROC at {main.primary:g} % of the labels against the cost of pre-training; {_front(main)}"
                " Bars are intervals; those of points of (nearly) equal cost are set side by side. "
                + cells.intervals_note([main.estimate(arm, main.primary) for arm in group.arms if not arm.baseline]),
            )
        )
    blocks += [Heading(3, "Claims"), *run_tables.claims_tables(claims)]
    if not claims:
        blocks.append(Paragraph("This group has no SparseContrast run, so there is no claim to judge."))
    blocks += [Heading(3, "Training and selection"), *_trouble(group)]
    blocks += _present(run_tables.learning(group), run_tables.selection(group), lesion_tables.lesions(group))
    if plots.curves(frames.history_frame(group), group, figures, f"{name}-training"):
        drawn.add(f"{name}-training")
        blocks.append(
            Figure(
                f"{name}-training",
                "Training curves: loss of the objective by epoch. Thin lines are seeds, thick lines their mean.",
            )
        )
    record = group.runs[0].record
    caption = saliency.draw(group, record.data.label_names if record.data else (), figures, f"{name}-selection")
    if caption:
        drawn.add(f"{name}-selection")
        blocks.append(Figure(f"{name}-selection", caption))
    blocks += [
        Heading(3, "Settings"),
        run_tables.counts(group),
        settings_tables.settings(group, read_tuning(group.preset)),
    ]
    blocks += _present(settings_tables.hyperparameters(group))
    notes = [
        *(record.data.notes if record.data else ()),
        *(note for scores in every.values() for note in scores.notes),
    ]
    blocks += [Heading(3, "Notes"), Bullets(tuple(dict.fromkeys([*notes, *_standing(group)])))]
    blocks = [_explained(block, group) for block in blocks]
    text = f"{group.title}: no evaluation on the test split."
    text = document.to_text(_explained(table, group)) if table else plain(text)
    return GroupSummary(group.title, text, tuple(sentences), tuple(claims)), blocks, drawn


def _large_scale(large: time_tables.LargeTable | None, figures: Path) -> tuple[list[Block], set[str]]:
    """Section on the cost at ViT-S/16 scale, whatever the scale of the runs, and the names of its figures."""
    title = Heading(2, f"Cost at the scale of the literature: ViT-S/16, {time_tables.SIZE} px")
    if large is None:
        command = f"python -m bench.cost --encoder {time_tables.LARGE}"
        return [title, Paragraph(f"Not measured. Run {command}, which takes about 15 minutes on two cores.")], set()
    blocks: list[Block] = [title, time_tables.at_large_scale(large)]
    if not large.own:
        blocks.insert(1, Paragraph(f"Not measured on this machine. Values below were measured on: {large.machine}."))
    if not cost_plots.parts(large.table.rows, figures, LARGE_PARTS):
        return blocks, set()
    return [*blocks, Figure(LARGE_PARTS, cost_plots.PARTS_CAPTION)], {LARGE_PARTS}


def _front(scores: Scores) -> str:
    if why := plots.without_front(scores):
        return f"no front is drawn: {why}."
    return "the line is the front: no method beyond it is both cheaper and better, by these estimates."


def _lead(sentences: list[str], warnings: list[str]) -> list[Block]:
    rest = tuple(s for s in sentences if s not in warnings)
    return [*(Paragraph(warning, strong=True) for warning in warnings), *([Bullets(rest)] if rest else [])]


def _explained(block: B, group: Group) -> B:
    """The block; in a table or figure that marks methods with runs that did not learn, with what the mark means."""
    text = mark_explained(group)
    if text and isinstance(block, Figure):
        return replace(block, caption=f"{block.caption} {text}")
    if text and isinstance(block, Table) and UNLEARNED in "".join(sum(block.rows, block.columns)):
        return replace(block, note=f"{block.note} {text}".lstrip())
    return block


def _present(*found: Table | None) -> list[Block]:
    return [table for table in found if table is not None]


def _trouble(group: Group) -> list[Block]:
    names = unlearned(group)
    if names:
        return [Paragraph("Runs that failed, plateaued or collapsed:"), Bullets(tuple(names))]
    return [Paragraph("No run failed, plateaued or collapsed.")]


def _standing(group: Group) -> list[str]:
    """Notes that every report has."""
    out = [
        "An interval holds for other test patients; with three or more seeds, for other seeds too; with three or more"
        " draws of the labelled patients besides, for other draws. docs/intervals.md says how intervals are made, and"
        " how often they hold the truth.",
        "Results are never averaged across data sets, splits, presets, encoders or training settings.",
    ]
    record = group.runs[0].record
    if record.data and not record.data.patient_ids_known:
        out.append(
            "The data set does not identify patients: splits, label fractions and intervals are by image. If patients"
            " have several images, the accuracy of every method is overestimated."
        )
    return out


def _rest(runs: list[Run], groups: list[Group]) -> list[Block]:
    """Section on the runs that belong to no group: failed, or without evaluation on the test split."""
    shown = {run.record.run_id for group in groups for run in group.runs}
    shown |= {record.run_id for group in groups for record in group.failed}
    lost = [run.record for run in runs if run.record.run_id not in shown]
    if not lost:
        return []
    items = tuple(
        f"{r.run_id}: "
        + (f"failed, {r.reason or 'no reason recorded'}" if r.status == "failed" else "no evaluation on the test split")
        for r in lost
    )
    return [Heading(2, "Runs in no comparison"), Bullets(items)]


def _write(path: Path, text: str) -> None:
    """Write a file atomically: it is complete whenever it exists."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
