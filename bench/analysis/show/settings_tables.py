"""Tables of everything that was set: hyper-parameters by method, and the settings that all runs of a group share."""

from __future__ import annotations

from typing import Any

from bench.analysis.read.groups import Arm, Group
from bench.analysis.show.cells import NONE
from bench.analysis.show.document import Table
from bench.specs.run_spec import BETAS, FOLDS, OPTIMIZER


def hyperparameters(group: Group) -> Table | None:
    """All options of every method with the values in use, its numbers of parameters and its learning rate; None for
    records of an earlier version, which don't hold them."""
    rows = []
    for arm in group.trained:
        network = arm.runs[0].record.network
        if network is None:
            continue
        options = ", ".join(f"{key} {_flat(value)}" for key, value in network.options.items())
        counts = (f"{getattr(network, part):,}" for part in ("encoder", "strategy", "heads", "teacher"))
        rows.append((arm.label, _rates(arm), options, *counts))
    if not rows:
        return None
    note = (
        "Options: all of the method, with defaults and computed values filled in; python -m bench.list explains"
        " each. Parameters of the strategy: what it adds to the encoder (predictor, token learner). Heads: trained with"
        " the encoder and not evaluated. Teacher: copies that no optimizer changes. The keep ratio falls from 1 along"
        " half a cosine during the ramp (Settings, train); noise falls to 0 along half a cosine over the run."
    )
    head = ("method", "learning rate", "options", "parameters: encoder", "strategy", "heads", "teacher")
    return Table("Hyper-parameters of the methods", head, tuple(rows), note, wide=("options",))


def _rates(arm: Arm) -> str:
    rates = dict.fromkeys((run.record.spec.get("train") or {}).get("lr") for run in arm.runs)
    return ", ".join(_flat(rate) for rate in rates if rate is not None) or NONE


def settings(group: Group, tuning: dict[str, Any] | None) -> Table:
    """Data, settings, learning rates and versions of the runs."""
    record = next((run.record for run in group.runs if run.record.objective != "none"), group.runs[0].record)
    assert record.splits is not None
    assert record.data is not None
    spec, environments = record.spec, [run.record.environment for run in group.runs]
    rows = [
        ("data", f"{record.data.name}, fingerprint {record.data.fingerprint[:12]}"),
        (
            "split",
            f"{record.splits.hash[:16]}"
            + ("" if record.data.patient_ids_known else " (by image: patients are not identified)"),
        ),
        ("preset", group.preset),
        ("seeds", ", ".join(map(str, group.seeds))),
    ]
    for part in ("encoder", "train", "views"):  # the learning rate, which is tuned by method, has its own row
        rows.append((part, _flat({key: value for key, value in (spec.get(part) or {}).items() if key != "lr"})))
    betas = " and ".join(f"{beta:g}" for beta in BETAS)
    rows.append(
        (
            "optimizer",
            f"{OPTIMIZER}, betas {betas}, no weight decay on biases and norms; linear warm-up, then a cosine to 0",
        )
    )
    rows += [(f"{probe}", text) for probe, text in _probes(group).items()]
    rates: dict[str, set[str]] = {}
    for arm in group.trained:
        for run in arm.runs:
            rate = (run.record.spec.get("train") or {}).get("lr")
            rates.setdefault(f"{rate:g}" if isinstance(rate, int | float) else str(rate), set()).add(arm.label)
    rows.append(
        (
            "learning rate",
            "; ".join(f"{rate}: {', '.join(sorted(arms))}" for rate, arms in sorted(rates.items())),
        )
    )
    rows.append(("tuning budget", _tuning(tuning)))
    rows.append(("science version", str(record.science_version)))
    for key in dict.fromkeys(key for one in environments for key in one):
        values = list(dict.fromkeys(_flat(one[key]) for one in environments if key in one))
        rows.append((key.replace("_", " "), "; ".join(values[:4]) + (" ..." if len(values) > 4 else "")))
    return Table("Settings", ("what", "value"), tuple(rows), wide=("value",))


def _probes(group: Group) -> dict[str, str]:
    """How each probe was trained, by its name."""
    shown = {"linear": ("c", "repeats", "draws"), "knn": ("neighbours", "draws"), "finetune": ()}
    out: dict[str, str] = {}
    for one in (evaluation for run in group.runs for evaluation in run.evaluations):
        spec = {key: one.spec[key] for key in shown[one.probe] if key in one.spec}
        folds = f", {FOLDS} folds by patient, the least log-loss" if one.probe == "linear" and "c" in spec else ""
        out.setdefault(f"probe {one.probe}", _flat(spec | one.finetune) + folds)
    return out


def _flat(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_flat(inner)}" for key, inner in value.items() if inner not in (None, ""))
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_flat, value)) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def _tuning(tuning: dict[str, Any] | None) -> str:
    if not tuning:
        return "none: every method has the learning rate of the preset"
    text = str(tuning.get("sentence", "")).strip()
    chosen = tuning.get("chosen") or {}
    if chosen:
        text += " Chosen: " + ", ".join(f"{method} {rate:g}" for method, rate in chosen.items()) + "."
    return text.strip()
