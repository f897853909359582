"""Recounts what needs no training: data, splits and MACs from the spec, and the epochs of the history."""

from __future__ import annotations

from typing import Any

from safetensors import SafetensorError

from bench.measure.counters import CountersDisagree
from bench.measure.run_cost import macs_of
from bench.records.record import Macs, Record
from bench.specs.run_spec import RunSpec
from bench.training.build import steps_of
from bench.training.data import RunData, data_record, split_record
from bench.training.finetune import finetune_steps
from bench.verification.check import FAILS, HOLDS, OPEN, Check, compare, differences, judged
from bench.verification.files import Source, weights
from bench.verification.reconstruct import objective_of
from methods.encoders.encoder import Encoder
from methods.objectives.objective import Objective


def data(record: Record, run_data: RunData) -> Check:
    """Compare the data that were found with those of the record."""
    return compare("data", record.data, data_record(run_data), f"fingerprint {run_data.dataset.fingerprint[:12]}")


def splits(source: Source, run_data: RunData) -> Check:
    """Compare hashes and counts of the splits."""
    made = split_record(run_data)
    counts = ", ".join(f"{getattr(made, part).patients:,} {part}" for part in ("train", "val", "test"))
    return compare("splits", source.record.splits, made, f"hashes and counts; patients: {counts}")


def macs(source: Source, spec: RunSpec, run_data: RunData) -> Check:
    """Recount MACs, and compare what the network itself states: its keep ratio and way of training."""
    what, record = "MACs", source.record
    trusted = weights(source).verdict == HOLDS
    try:
        objective = objective_of(spec, source.checkpoint.path if trusted else None)
    except (SafetensorError, RuntimeError) as error:
        return Check(what, FAILS, f"checkpoint.safetensors does not fit the network: {str(error).splitlines()[0]}")
    strategy = objective.encoder.strategy
    execution = "none" if record.objective == "none" else strategy.train_execution
    try:
        counted = macs_of(objective, spec, run_data, _pretraining_steps(spec, run_data))
    except CountersDisagree as error:
        return Check(what, FAILS, str(error))
    recorded = {"keep_effective": record.keep_effective, "train_execution": record.train_execution}
    found = {"keep_effective": strategy.target, "train_execution": execution}
    problems = list(differences(recorded, found)) + macs_differences(record.macs, counted)
    if problems and _by_content(spec) and not (trusted and _keeps_all_encoders(objective)):
        return Check(what, OPEN, "they depend on weights that were not kept: only a rerun can check them")
    return judged(
        what,
        problems,
        f"{counted.inference / 1e6:,.1f} M per image at inference, {counted.whole_run:.4g} for the whole run",
    )


def history(source: Source, spec: RunSpec, run_data: RunData) -> Check:
    """Compare epochs and steps with the spec, and the last loss with the record."""
    what, record = "history", source.record
    recorded: dict[str, Any] = {"steps": record.time.steps if record.time else 0}
    if spec.labels is not None:
        return compare(what, recorded, {"steps": _steps(spec, run_data)}, f"{recorded['steps']} steps")
    try:
        lines = source.history()
    except (OSError, ValueError) as error:
        return Check(what, FAILS if "history.jsonl" in record.files else OPEN, f"history.jsonl can't be read: {error}")
    trained = record.objective != "none"
    recorded["final_loss"] = record.learning.final_loss if record.learning else None
    recorded["lines"] = [(line.get("epoch"), line.get("step")) for line in lines]
    steps = _steps(spec, run_data)
    epochs = range(1, spec.epochs + 1) if trained else ()
    found = {
        "steps": steps,
        "final_loss": lines[-1].get("loss") if lines else 0.0,
        "lines": [(epoch, epoch * steps // spec.epochs) for epoch in epochs],
    }
    return compare(what, recorded, found, f"{len(lines)} epochs, {steps} steps, the last loss is final_loss")


def macs_differences(recorded: Macs | None, found: Macs | None) -> list[str]:
    """Where recorded MACs differ from those found. Parts and counters that are not recorded are not compared: earlier
    versions did not know all of them."""
    if recorded is None or found is None:
        return [] if recorded is found else ["only one of the two has MACs"]
    then, now = recorded.model_dump(mode="json"), found.model_dump(mode="json")
    for key, value in then.items():
        if isinstance(value, dict):
            now[key] = {name: macs for name, macs in now[key].items() if name in value}
    return list(differences({"macs": then}, {"macs": now}))


def _steps(spec: RunSpec, run_data: RunData) -> int:
    """The number of training steps; for the supervised baseline, of those on labels."""
    if spec.labels is not None and spec.finetune is not None:
        return finetune_steps(len(run_data.draws(spec.labels, 1)[0]), spec.finetune)
    return _pretraining_steps(spec, run_data)


def _pretraining_steps(spec: RunSpec, run_data: RunData) -> int:
    return 0 if spec.parsed.objective == "none" else steps_of(len(run_data.splits.train), spec.train, spec.epochs)


def _by_content(spec: RunSpec) -> bool:
    """Whether the amount of computation depends on images and weights."""
    return bool(spec.code) or "select" in spec.parsed.strategy_options


def _keeps_all_encoders(objective: Objective) -> bool:
    """Whether a checkpoint, which holds one encoder, holds all of them: there is no teacher."""
    return sum(isinstance(module, Encoder) for module in objective.modules()) == 1
