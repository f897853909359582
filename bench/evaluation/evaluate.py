"""What frozen features (or a fine-tuned network) are worth at each label fraction, with intervals over patients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from bench.evaluation.features import BATCH, Features, Floats
from bench.evaluation.probes import knn_probe, linear_probe
from bench.records.environment import conditions, environment
from bench.records.record import Draw, Evaluation, LabelScore
from bench.specs.run_spec import EvaluationKey, EvaluationSpec, FinetuneSpec
from bench.statistics.accuracy import auprc, auroc, bootstrap_interval, defined_labels
from bench.training.batches import Lesions
from bench.training.data import Indices, RunData
from bench.training.finetune import Classifier, finetune
from bench.training.history import ProgressCallback
from datasets.dataset import Dataset
from methods.strategies.strategy import Call

VALIDATION = "validation_"  # begins the names of the predictions on validation images


@dataclass(frozen=True)
class EvaluationRequest:
    """One evaluation of one run, and how it is made: `spec` for all probes, `finetune` for the one that trains."""

    run_id: str
    key: EvaluationKey
    spec: EvaluationSpec
    finetune: FinetuneSpec


@dataclass(frozen=True)
class ScoredDraw:
    """One draw of the labelled images and what a probe that was trained on them made of the evaluated images."""

    index: Indices  # labelled images
    scores: Floats  # (images of `RunData.images_scored`, findings); NaN where the draw holds a single class
    chosen: dict[str, float]  # what cross-validation or the spec chose


def evaluate(
    request: EvaluationRequest, features: Features, progress: ProgressCallback
) -> tuple[Evaluation, dict[str, npt.NDArray[Any]]]:
    """Train a probe on every draw of the label fraction and score it. Returns the evaluation and the predictions."""
    subsets = features.run_data.draws(request.key.labels, request.spec.draws)
    draws = [_score_draw(request, features, index, progress) for index in subsets]
    return summarise(request, draws, features.run_data)


def _score_draw(
    request: EvaluationRequest, features: Features, index: Indices, progress: ProgressCallback
) -> ScoredDraw:
    run_data, (probe, _, inference), spec = features.run_data, request.key, request.spec
    test = run_data.images_scored(spec.split)
    labels = run_data.dataset.labels[index]
    if probe == "finetune":
        classifier = finetune(
            features.encoder, run_data, index, request.finetune, inference=inference, progress=progress
        )
        scores = classify(classifier, run_data, test)
        scores[:, _single_class(labels)] = np.nan
        return ScoredDraw(index, scores, {"lr": request.finetune.lr})
    train, at_test = features.at(index, inference), features.at(test, inference)
    if probe == "knn":
        scores, chosen = knn_probe(train, labels, at_test, spec.neighbours)
    else:
        scores, chosen = linear_probe(train, labels, run_data.dataset.patients[index], at_test, spec.c, spec.repeats)
    return ScoredDraw(index, scores, chosen)


@torch.no_grad()
def classify(classifier: Classifier, run_data: RunData, index: Indices) -> Floats:
    """Probabilities (n, L) of a fine-tuned network."""
    parts = []
    lesions = Lesions(run_data.dataset, classifier.encoder, run_data.seed)
    for start in range(0, len(index), BATCH):
        rows = index[start : start + BATCH]
        images = run_data.views.normalise(torch.from_numpy(run_data.dataset.images[rows]).to(run_data.fabric.device))
        call = lesions.call_for(rows, Call(inference=classifier.inference), run_data.fabric.device)
        with run_data.fabric.autocast():
            parts.append(classifier(images, call).float().sigmoid().cpu().numpy())
    return np.concatenate(parts)


def summarise(
    request: EvaluationRequest, draws: Sequence[ScoredDraw], run_data: RunData
) -> tuple[Evaluation, dict[str, npt.NDArray[Any]]]:
    """Turn the scores of all draws into an evaluation. Returns it with the predictions that it is computed from.

    The draws hold scores of the images of `RunData.images_scored`, or of the split alone. Validation images beside test
    images have a score for each finding, and are in no other number. Raises ValueError where no finding has both
    classes in the split and in every draw.
    """
    (probe, labels, inference), spec = request.key, request.spec
    stacked = np.stack([draw.scores for draw in draws]).astype(np.float32)  # (draws, images, findings)
    index = run_data.images_of(spec.split)
    scores, validation_scores = stacked[:, : len(index)], stacked[:, len(index) :]
    validation_index = run_data.images_scored(spec.split)[len(index) :] if validation_scores.size else index[:0]
    truth, patients, names = (
        run_data.dataset.labels[index],
        run_data.dataset.patients[index],
        run_data.dataset.label_names,
    )
    mask = defined_labels(scores, truth)
    undefined = {n: _why_undefined(truth[:, i]) for i, n in enumerate(names) if not mask[i]}
    if not mask.any():
        raise ValueError(
            f"no finding can be scored at {labels:g} % of the labels: each has a single class there or in the "
            f"{spec.split} split. Use larger fractions or more data."
        )
    whole, by_label = bootstrap_interval(scores, truth, patients, mask, resamples=spec.resamples)
    rocs, prs = (_by_draw(score, scores, truth, mask) for score in (auroc, auprc))  # (draws, defined labels)
    defined = np.flatnonzero(mask)
    per_label = {
        names[i]: LabelScore(
            auroc=float(rocs[:, j].mean()),
            auroc_interval=(float(by_label[i, 0]), float(by_label[i, 1])),
            auprc=float(prs[:, j].mean()),
            positives=int((truth[:, i] == 1).sum()),
            negatives=int((truth[:, i] == 0).sum()),
        )
        for j, i in enumerate(defined)
    }
    macro = rocs.mean(1)
    evaluation = Evaluation(
        run_id=request.run_id,
        probe=probe,
        labels=labels,
        inference=inference,
        split=spec.split,
        macro_auroc=float(macro.mean()),
        macro_auprc=float(prs.mean()),
        interval=whole,
        per_label=per_label,
        undefined=undefined,
        validation=_by_finding(validation_scores, run_data.dataset, validation_index),
        draws=tuple(
            Draw(
                draw=d,
                subset=run_data.subset(draw.index),
                macro_auroc=float(macro[d]),
                macro_auprc=float(prs[d].mean()),
                chosen=draw.chosen,
            )
            for d, draw in enumerate(draws)
        ),
        draw_std=float(macro.std(ddof=1)) if len(macro) > 1 else 0.0,
        subgroups=_subgroups(scores, run_data.dataset, index, mask),
        n_patients=len(np.unique(patients)),
        n_images=len(index),
        settings=spec.settings_of(probe, request.finetune),
        spec=spec.model_copy(update={"labels": (labels,), "probes": (probe,)}).model_dump(mode="json"),
        finetune=request.finetune.model_dump(mode="json") if probe == "finetune" else {},
        conditions=conditions(environment(torch.get_num_threads(), ranks=1)),
    )
    predictions = _predictions(scores, run_data.dataset, index)
    if len(validation_index):
        beside = _predictions(validation_scores, run_data.dataset, validation_index)
        predictions |= {f"{VALIDATION}{name}": array for name, array in beside.items()}
    return evaluation, predictions


def _predictions(scores: Floats, data: Dataset, index: Indices) -> dict[str, npt.NDArray[Any]]:
    return {
        "scores": scores,
        "labels": data.labels[index],
        "patients": data.patients[index].astype(str),
        "index": index,
    }


def _by_finding(scores: Floats, data: Dataset, index: Indices) -> dict[str, float]:
    """AUROC of each finding that is defined, averaged over the draws."""
    truth = data.labels[index]
    mask = defined_labels(scores, truth)
    means = _by_draw(auroc, scores, truth, mask).mean(0)
    return {data.label_names[i]: float(mean) for i, mean in zip(np.flatnonzero(mask), means, strict=True)}


def _by_draw(score: Any, scores: Floats, truth: Floats, mask: npt.NDArray[np.bool_]) -> Floats:
    values = [
        [score(one[~np.isnan(y), i], y[~np.isnan(y)]) for i, y in ((i, truth[:, i]) for i in np.flatnonzero(mask))]
        for one in scores
    ]
    return np.asarray(values)


def _subgroups(
    scores: Floats, data: Dataset, index: Indices, mask: npt.NDArray[np.bool_]
) -> dict[str, dict[str, float]]:
    """Macro AUROC in each subgroup that the data know, over the labels with both classes in all groups of its kind."""
    found: dict[str, dict[str, float]] = {}
    for kind, values in data.subgroups.items():
        groups = {str(v): np.flatnonzero(values[index] == v) for v in np.unique(values[index]) if v != ""}
        truth = data.labels[index]
        both = mask.copy()
        for rows in groups.values():
            both &= (truth[rows] == 1).any(0) & (truth[rows] == 0).any(0)
        if len(groups) > 1 and both.any():
            found[kind] = {
                name: float(_by_draw(auroc, scores[:, rows], truth[rows], both).mean()) for name, rows in groups.items()
            }
    return found


def _single_class(labels: Floats) -> npt.NDArray[np.bool_]:
    return np.asarray(~((labels == 1).any(0) & (labels == 0).any(0)))


def _why_undefined(truth: Floats) -> str:
    if not (truth == 1).any() or not (truth == 0).any():
        return "a single class among the test images"
    return "a single class in a draw of the label fraction"
