"""The pandas frames behind every table and plot: results.csv, cost.csv and the training curves."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from bench.analysis.read.groups import Group, ReportRefused, Run, inference_macs
from bench.analysis.read.results import cost_tables, encoder_of
from bench.records.record import AA_SUFFIX, RAMPS, CostRow, CostTable
from bench.records.run_folder import read_history
from methods.names import REFERENCE_METHOD


def results_frame(runs: Iterable[Run]) -> pd.DataFrame:
    """One row for each run, probe, label fraction and way of inference, and one for each failed run."""
    rows = []
    for run in runs:
        record, (encoder, size) = run.record, encoder_of(run.record)
        base: dict[str, Any] = {
            "run_id": record.run_id,
            "status": record.status,
            "method": record.method,
            "objective": record.objective,
            "strategy": record.strategy,
            "encoder": encoder,
            "image_size": size,
            "data": record.data.name if record.data else (record.spec.get("data") or {}).get("name"),
            "split": record.splits.hash if record.splits else None,
            "preset": record.spec.get("preset"),
            "keep": record.keep,
            "keep_effective": record.keep_effective,
            "seed": run.seed,
            "train_execution": record.train_execution,
        }
        tail: dict[str, Any] = {"verdict": record.learning.verdict if record.learning else None}
        if record.macs:
            tail |= {
                "train_step_gmacs": record.macs.train_step / 1e9,
                "run_tmacs": record.macs.whole_run / 1e12,
            }
        if record.memory:
            tail["saved_mib"] = record.memory.saved_bytes_per_image / 2**20
        if record.time:
            tail |= {"steps": record.time.steps, "wall_seconds": record.time.wall_seconds}
        for one in run.evaluations or (None,):
            middle: dict[str, Any] = {"inference": None, "probe": None, "labels": None, "macro_auroc": None}
            if one is not None:
                macs = inference_macs(record, one.inference)
                middle = {
                    "inference": one.inference,
                    "infer_gmacs": None if macs is None else macs / 1e9,
                    "probe": one.probe,
                    "labels": one.labels,
                    "macro_auroc": one.macro_auroc,
                    "macro_auroc_patients_low": one.interval[0],
                    "macro_auroc_patients_high": one.interval[1],
                    "macro_auprc": one.macro_auprc,
                    "draws": len(one.draws),
                    "draw_std": one.draw_std,
                    "findings": len(one.per_label),
                    "n_patients": one.n_patients,
                    "n_images": one.n_images,
                }
            rows.append(base | middle | tail)
    return pd.DataFrame(rows)


SETTING = ["machine", "device", "threads", "batch", "precision", "attention"]
"""Columns in which rows must agree to be compared."""
COST_KEY = ["method", "encoder", "image_size", "channels", "keep", "ramp", *SETTING]
RATIOS = [f"{kind}_{what}" for kind in ("infer", "train") for what in ("macs_ratio", "time_over_macs")]
AA = [f"aa_{kind}_{end}" for kind in ("infer", "train", "run") for end in ("low", "high")]
ALONG_RAMPS = [f"run_speedup_ramp_{ramp:g}{end}" for ramp in RAMPS for end in ("", "_low", "_high")]
_OWN = [name for name in CostRow.model_fields if name != "ramps"]
COST_COLUMNS = [*_OWN, *ALONG_RAMPS, *RATIOS, "disturbed_rounds", "measured"]


def cost_frame(results: Path) -> pd.DataFrame:
    """The newest row for each method, encoder, size, channels, keep, ramp, machine and setting. Without columns where
    nothing was measured."""
    return newest(cost_tables(results))


def newest(tables: Iterable[CostTable]) -> pd.DataFrame:
    """The rows of the tables; the newest of those that are about the same."""
    ordered = [table_frame(table) for table in sorted(tables, key=lambda one: one.finished)]
    if not ordered:
        return pd.DataFrame()
    frame = pd.concat(ordered, ignore_index=True)
    return frame.drop_duplicates(COST_KEY, keep="last").reset_index(drop=True)


def table_frame(table: CostTable) -> pd.DataFrame:
    """One row for each method, with the noise floor of the table (`aa_...`, the interval of dense against itself; None
    where that was not measured), dense MACs / method MACs (`..._macs_ratio`), and the speed-up as a share of that ratio
    (`..._time_over_macs`). Run speed-ups at RAMPS are empty where they were not measured."""
    aa = next((row for row in table.rows if row.method.endswith(AA_SUFFIX)), None)
    dense = next((row for row in table.rows if row.method == REFERENCE_METHOD.name), None)
    rows = []
    for row in table.rows:
        disturbed = table.environment.get("disturbed_rounds", 0)  # kept although other processes were running
        one = row.model_dump(exclude={"ramps"}) | {"disturbed_rounds": disturbed, "measured": table.finished}
        for at in row.ramps:
            name = f"run_speedup_ramp_{at.ramp:g}"
            one |= {name: at.speedup, f"{name}_low": at.low, f"{name}_high": at.high}
        for kind in ("infer", "train", "run"):
            for end in ("low", "high"):
                one[f"aa_{kind}_{end}"] = getattr(aa, f"{kind}_speedup_{end}") if aa else None
        for kind in ("infer", "train") if dense else ():
            ratio = getattr(dense, f"{kind}_gmacs") / getattr(row, f"{kind}_gmacs")
            speedup = getattr(row, f"{kind}_speedup")
            one[f"{kind}_macs_ratio"] = ratio
            one[f"{kind}_time_over_macs"] = None if speedup is None else speedup / ratio
        rows.append(one)
    frame = pd.DataFrame(rows, columns=[*COST_COLUMNS, *AA])
    numbers = [name for name, field in CostRow.model_fields.items() if field.annotation == float | None]
    return frame.astype(dict.fromkeys([*numbers, *ALONG_RAMPS, *RATIOS, *AA], float))


def cost_csv(frame: pd.DataFrame) -> str:
    """Content of cost.csv."""
    return frame[COST_COLUMNS].to_csv(index=False) if not frame.empty else ",".join(COST_COLUMNS) + "\n"


def _epochs(path: Path) -> list[dict[str, float | None]]:
    """Epoch, loss, keep and learning rate of each line of a history.jsonl. Raises ReportRefused."""
    keys = ("epoch", "loss", "keep", "lr")
    try:
        lines = read_history(path)
        return [{key: None if line.get(key) is None else float(line[key]) for key in keys} for line in lines]
    except (OSError, ValueError, TypeError) as error:
        raise ReportRefused(f"{path} is not a history of epochs ({error}): delete it, or run it again.") from error


def history_frame(group: Group) -> pd.DataFrame:
    """One row for each run and epoch: arm, objective, seed, epoch, loss, keep, lr."""
    rows: list[dict[str, Any]] = []
    seen: set[str] = set()
    for arm in sorted((one for one in group.arms if not one.baseline), key=lambda one: len(one.label)):
        for run in arm.runs:
            path = run.folder / "history.jsonl"
            if not path.is_file() or run.record.run_id in seen:  # two arms show one training at two ways of inference
                continue
            seen.add(run.record.run_id)
            rows += [
                {"arm": arm.label, "objective": arm.objective, "seed": run.seed, **epoch} for epoch in _epochs(path)
            ]
    return pd.DataFrame(rows, columns=["arm", "objective", "seed", "epoch", "loss", "keep", "lr"])
