"""The evaluations that a run still lacks, made from its stored checkpoint: new fractions and probes never train again."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt
from safetensors.torch import load as load_tensors

from bench.evaluation.evaluate import Features, classify, evaluate, summarise
from bench.records.record import Evaluation, evaluation_name
from bench.records.seal import sha256
from bench.records.store import Store, missing_evaluations
from bench.specs.run_spec import EvaluationSpec, FinetuneSpec, RunSpec
from bench.training.build import build
from bench.training.data import RunData
from bench.training.failures import EvaluationFailed, reason_of
from bench.training.finetune import Classifier
from bench.training.history import ProgressCallback
from methods.objectives.objective import Objective


def _evaluate(
    spec: RunSpec,
    evaluation: EvaluationSpec,
    tuning: FinetuneSpec,
    run_data: RunData,
    store: Store,
    progress: ProgressCallback,
) -> None:
    """Make what is missing, from the checkpoint on disk: new fractions and probes never train anew."""
    missing = missing_evaluations(store, spec, evaluation, tuning)
    if not missing:
        return
    objective = build(spec.parsed, spec.encoder, spec.seed)
    tensors = load_tensors(_weights(store, spec.run_id))
    if spec.labels is not None:
        _evaluate_supervised(spec, evaluation, run_data, store, objective, tensors)
        return
    objective.encoder.load_state_dict(tensors)
    features = Features(objective.encoder.eval(), run_data)
    errors: list[Exception] = []
    for i, (probe, labels, inference) in enumerate(missing):
        progress({"doing": f"{probe} at {labels:g} %", "step": i, "steps": len(missing)})
        try:
            result, predictions = evaluate(
                spec.run_id, features, run_data, evaluation, tuning, probe, labels, inference, progress
            )
            _write(store, result, predictions)
        except Exception as error:  # the others are made all the same
            error.add_note(f"in the evaluation {evaluation_name(probe, labels, inference)}")
            errors.append(error)
    if errors:
        first = f"{reason_of(errors[0], spec)}, {errors[0].__notes__[-1]}"
        more = "" if len(errors) == 1 else f" (the first of {len(errors)} evaluations of {len(missing)} that failed)"
        raise EvaluationFailed(first + more) from errors[0]


def _evaluate_supervised(
    spec: RunSpec, evaluation: EvaluationSpec, run_data: RunData, store: Store, objective: Objective, tensors: Any
) -> None:
    assert spec.labels is not None and spec.finetune is not None
    classifier = Classifier(objective.encoder, run_data.dataset.labels.shape[1], "dense").eval()
    classifier.load_state_dict(tensors)
    index = run_data.draws(spec.labels, 1)[0]
    scores = classify(classifier.to(run_data.fabric.device), run_data, run_data.images_of(evaluation.split))
    result, predictions = summarise(
        spec.run_id,
        scores[None].astype("float32"),
        run_data,
        evaluation,
        spec.finetune,
        "finetune",
        spec.labels,
        "dense",
        [index],
        [{"lr": spec.finetune.lr}],
    )
    _write(store, result, predictions)


def _write(store: Store, made: Evaluation, predictions: dict[str, npt.NDArray[Any]]) -> None:
    """An evaluation, unless another process has made it meanwhile, as in `Attempt.finish`."""
    if not store.has_evaluation(made.run_id, made.name, made.settings):
        store.write_evaluation(made.name, made, predictions)


def _weights(store: Store, run_id: str) -> bytes:
    """What `_packed` made. Raises EvaluationFailed where it is not what the record names."""
    path, record = store.folder(run_id) / "checkpoint.safetensors", store.record(run_id)
    content = path.read_bytes()
    if record is None or sha256(content) != record.weights_sha256:
        raise EvaluationFailed(f"{path} is not what the record names: put it back, or move {path.parent} away")
    return content
