"""Table of multiply-accumulates, counted, printed and written without timing."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.measure.inputs import IMAGES, random_views
from bench.measure.macs import CountersDisagree, count
from bench.measure.table import timed_names
from bench.measure.timed_method import GRID, execution
from bench.records.record import Macs
from bench.records.store import write_atomically
from bench.specs.run_spec import CONTINUED, EncoderSpec, TrainSpec
from bench.training.build import build
from methods.names import Method

VIEWS = 16  # images for strategies whose number of tokens depends on the image


def count_methods(methods: Sequence[Method], encoder: EncoderSpec, train: TrainSpec) -> list[dict[str, Any]]:
    """One row per method, dense first, without strategies whose number of tokens is only known after training. Raises
    CountersDisagree with the name of the method."""
    rows: list[dict[str, Any]] = []
    dense: Macs | None = None
    for name, method in timed_names(methods)[:-1]:
        objective = build(method, encoder, seed=0)
        views = random_views(encoder, VIEWS if objective.encoder.strategy.adaptive else IMAGES)
        if not objective.encoder.strategy.calibrate(views[0]):
            continue
        try:
            macs = count(objective, encoder, train, GRID, views)
        except CountersDisagree as refused:
            raise CountersDisagree(f"{name}. {refused}") from None
        dense = dense or macs
        if method.continues is not None:
            before = count(build(method.continues, encoder, seed=0), encoder, train, GRID, views)
            macs = macs.model_copy(update={"whole_run": before.whole_run + macs.whole_run / CONTINUED})
        strategy = objective.encoder.strategy
        rows.append(
            {
                "method": name,
                "encoder": encoder.name,
                "image_size": encoder.image_size,
                "channels": encoder.channels,
                "keep": method.keep,
                "keep_effective": strategy.target,
                "train_execution": execution(objective),
                "infer_gmacs": macs.inference / 1e9,
                "train_gmacs": macs.train_step / 1e9,
                "infer_ratio": dense.inference / macs.inference,
                "train_ratio": dense.train_step / macs.train_step,
                "run_ratio": dense.whole_run / macs.whole_run,
                "ramp": train.ramp if strategy.ramps else None,
                "batch": train.batch,
                **{f"infer: {part}": value / 1e9 for part, value in macs.inference_parts.items()},
                **{f"step: {part}": value / 1e9 for part, value in macs.train_parts.items()},
            }
        )
    return rows


def print_macs(rows: Sequence[dict[str, Any]], encoder: EncoderSpec, console: Console) -> None:
    shown = Table(
        title=f"MACs, {encoder.name}, {encoder.image_size} px, {encoder.channels} channel(s)",
        title_justify="left",
    )
    shown.add_column("method", overflow="fold", min_width=22)
    for column in (
        "keep",
        "inference G",
        "dense / this",
        "train step G",
        "dense / this",
        "whole run: dense / this",
    ):
        shown.add_column(column, justify="right")
    for row in rows:
        numbers = (
            f"{row[key]:.4g}" for key in ("infer_gmacs", "infer_ratio", "train_gmacs", "train_ratio", "run_ratio")
        )
        keep = "" if row["keep"] is None else f"{row['keep']:g}"
        shown.add_row(row["method"].replace("[", r"\["), keep, *numbers)
    console.print(shown)
    for kind, what in (("infer", "inference"), ("step", "train step")):
        _print_parts(rows, kind, f"GMACs by part, {what}", console)


def _print_parts(rows: Sequence[dict[str, Any]], kind: str, title: str, console: Console) -> None:
    """Print a table with a column for each part that some method has."""
    parts = list(dict.fromkeys(key for row in rows for key in row if key.startswith(f"{kind}: ")))
    shown = Table(title=title, title_justify="left")
    shown.add_column("method", overflow="fold", min_width=22)
    for part in parts:
        shown.add_column(part.removeprefix(f"{kind}: "), justify="right")
    for row in rows:
        shown.add_row(
            row["method"].replace("[", r"\["), *("" if part not in row else f"{row[part]:.4g}" for part in parts)
        )
    console.print(shown)


def write_macs(rows: Sequence[dict[str, Any]], encoder: EncoderSpec, reports: Path) -> Path:
    """Write reports/macs-<encoder>-<size>.csv and return its path."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    where = reports / f"macs-{encoder.name}-{encoder.image_size}.csv"
    write_atomically(where, text.getvalue().encode())
    return where
