"""Makes the evaluations that a run lacks from its stored checkpoint: new probes and fractions never train again."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt
from safetensors.torch import load as load_tensors

from bench.evaluation.evaluate import EvaluationRequest, ScoredDraw, classify, evaluate, summarise
from bench.evaluation.features import Features
from bench.records.record import Evaluation
from bench.records.store import Store, missing_evaluations
from bench.specs.run_spec import EvaluationKey, EvaluationSpec, FinetuneSpec, RunSpec
from bench.training.build import build
from bench.training.data import RunData
from bench.training.failures import EvaluationFailed, reason_of
from bench.training.finetune import Classifier
from bench.training.history import ProgressCallback
from methods import ALL_TOKENS


def evaluate_missing(
    spec: RunSpec,
    evaluation: EvaluationSpec,
    finetune: FinetuneSpec,
    run_data: RunData,
    store: Store,
    progress: ProgressCallback,
) -> None:
    """Make and store what of `evaluation` the run lacks. Raises EvaluationFailed after the others if one fails."""
    missing = missing_evaluations(store, spec, evaluation, finetune)
    if not missing:
        return
    try:
        weights = load_tensors(store.weights(spec.run_id))
    except ValueError as error:
        raise EvaluationFailed(str(error)) from error
    encoder = build(spec.parsed, spec.encoder, spec.seed).encoder
    if spec.labels is not None:
        classifier = Classifier(encoder, run_data.dataset.labels.shape[1], ALL_TOKENS).eval()
        classifier.load_state_dict(weights)
        _store(store, *_evaluate_supervised(spec, evaluation, classifier, run_data))
        return
    encoder.load_state_dict(weights)
    features = Features(encoder.eval(), run_data)
    failures: list[tuple[EvaluationKey, Exception]] = []
    for i, key in enumerate(missing):
        progress({"doing": f"{key.probe} at {key.labels:g} %", "step": i, "steps": len(missing)})
        request = EvaluationRequest(spec.run_id, key, evaluation, finetune)
        try:
            _store(store, *evaluate(request, features, progress))
        except Exception as error:
            failures.append((key, error))
    if failures:
        key, first = failures[0]
        more = (
            "" if len(failures) == 1 else f" (the first of {len(failures)} evaluations of {len(missing)} that failed)"
        )
        raise EvaluationFailed(f"{reason_of(first, spec)}, in the evaluation {key.name}{more}") from first


def _evaluate_supervised(
    spec: RunSpec, evaluation: EvaluationSpec, classifier: Classifier, run_data: RunData
) -> tuple[Evaluation, dict[str, npt.NDArray[Any]]]:
    """Score a network that was trained on labels from scratch, on the first draw of its fraction."""
    assert spec.labels is not None and spec.finetune is not None
    request = EvaluationRequest(
        spec.run_id, EvaluationKey("finetune", spec.labels, ALL_TOKENS), evaluation, spec.finetune
    )
    scores = classify(classifier.to(run_data.fabric.device), run_data, run_data.images_scored(evaluation.split))
    draw = ScoredDraw(run_data.draws(spec.labels, 1)[0], scores, {"lr": spec.finetune.lr})
    return summarise(request, [draw], run_data)


def _store(store: Store, made: Evaluation, predictions: dict[str, npt.NDArray[Any]]) -> None:
    """Write an evaluation, unless another process that took the run over has written it meanwhile."""
    if not store.has_evaluation(made.run_id, made.key.name, made.settings):
        store.write_evaluation(made.key.name, made, predictions)
