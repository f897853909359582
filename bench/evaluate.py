"""What frozen features (or a fine-tuned network) are worth at each label fraction, with intervals over patients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt
import torch
from lightning_fabric import Fabric

from bench.analysis.statistics import auprc, auroc, bootstrap_interval, defined_labels
from bench.environment import conditions, environment
from bench.finetune import Classifier, finetune
from bench.lesions import Lesions
from bench.pretrain import Report
from bench.probes import knn_probe, linear_probe
from bench.record import Draw, Evaluation, LabelScore, Subset
from bench.spec import EvaluationSpec, FinetuneSpec, Probe
from datasets.dataset import Dataset
from datasets.splits import Splits, fraction, index_hash
from datasets.views import Views
from methods import Inference
from methods.encoders.encoder import Encoder
from methods.strategies.strategy import Call

Indices = npt.NDArray[np.int64]
Floats = npt.NDArray[np.floating]
BATCH = 256
VALIDATION = "validation_"  # begins the names of the predictions on validation images


@dataclass
class Bench:
    """The data with its splits, and the device: what every evaluation of a run shares."""

    data: Dataset
    splits: Splits
    views: Views
    fabric: Fabric
    seed: int

    def images_of(self, split: Literal["test", "val"]) -> Indices:
        """Images of a split that carry a label."""
        index = cast(Indices, getattr(self.splits, split))
        return index[~np.isnan(self.data.labels[index]).all(1)]

    def images_scored(self, split: Literal["test", "val"]) -> Indices:
        """The images of the split, then, beside the test images, those of the validation split."""
        return np.concatenate([self.images_of(part) for part in dict.fromkeys((split, "val"))])

    def draws(self, percent: float, draws: int) -> list[Indices]:
        """The subsets of a fraction; the whole is one."""
        return [fraction(self.data, self.splits, percent, d) for d in range(1 if percent >= 100 else draws)]

    def subset(self, index: Indices) -> Subset:
        """What a set of images holds."""
        positives = np.nansum(self.data.labels[index] == 1, axis=0)
        return Subset(
            hash=index_hash(self.data, index),
            patients=len(np.unique(self.data.patients[index])),
            images=len(index),
            positives={name: int(n) for name, n in zip(self.data.label_names, positives, strict=True)},
        )


@torch.no_grad()
def features_of(encoder: Encoder, bench: Bench, index: Indices, inference: Inference) -> dict[str, Floats]:
    """`features` (n, C) and, where the strategy keeps tokens, `kept` (n, patches) bool; batches don't matter."""
    encoder = encoder.to(bench.fabric.device).eval()
    lesions = Lesions(bench.data, encoder, bench.seed)
    collected: dict[str, list[Floats]] = {"features": []}
    for start in range(0, len(index), BATCH):
        rows = index[start : start + BATCH]
        images = bench.views.normalise(torch.from_numpy(bench.data.images[rows]).to(bench.fabric.device))
        with bench.fabric.autocast():
            encoding = encoder(images, lesions.call_for(rows, Call(inference=inference), bench.fabric.device))
        collected["features"].append(encoding.features.float().cpu().numpy())
        if encoding.kept is not None:
            collected.setdefault("kept", []).append(encoding.kept.cpu().numpy())
    return {name: np.concatenate(parts) for name, parts in collected.items()}


class Features:
    """Features of a frozen encoder, computed once an image and inference mode."""

    def __init__(self, encoder: Encoder, bench: Bench) -> None:
        self.encoder, self.bench = encoder, bench
        self._known: dict[Inference, tuple[Indices, Floats]] = {}

    def at(self, index: Indices, inference: Inference) -> Floats:
        """(n, C)."""
        if inference not in self._known:
            self._known[inference] = (np.empty(0, np.int64), np.empty((0, self.encoder.geometry.dim), np.float32))
        have, features = self._known[inference]
        new = np.setdiff1d(index, have)
        if len(new):
            more = features_of(self.encoder, self.bench, new, inference)["features"]
            have, features = np.concatenate([have, new]), np.concatenate([features, more])
            order = have.argsort()
            have, features = have[order], features[order]
            self._known[inference] = (have, features)
        return features[np.searchsorted(have, index)]


def evaluate(
    run_id: str,
    features: Features,
    bench: Bench,
    spec: EvaluationSpec,
    tuning: FinetuneSpec,
    probe: Probe,
    labels: float,
    inference: Inference,
    report: Report,
) -> tuple[Evaluation, dict[str, npt.NDArray[Any]]]:
    """One probe at one fraction: every draw trained and scored, then summed up. Also the predictions, to be kept."""
    test = bench.images_scored(spec.split)
    subsets, scores, chosen = bench.draws(labels, spec.draws), [], []
    for index in subsets:
        if probe == "finetune":
            classifier = finetune(
                features.encoder,
                bench.data,
                index,
                tuning,
                bench.views,
                seed=bench.seed,
                inference=inference,
                fabric=bench.fabric,
                report=report,
            )
            one, choice = classify(classifier, bench, test), {"lr": tuning.lr}
            one[:, _single_class(bench.data.labels[index])] = np.nan
        else:
            one, choice = _probe(features, bench, spec, probe, index, test, inference)
        scores.append(one)
        chosen.append(choice)
    stacked = np.stack(scores).astype(np.float32)
    return summarise(run_id, stacked, bench, spec, tuning, probe, labels, inference, subsets, chosen)


def _probe(
    features: Features,
    bench: Bench,
    spec: EvaluationSpec,
    probe: Probe,
    index: Indices,
    test: Indices,
    inference: Inference,
) -> tuple[Floats, dict[str, float]]:
    train, y, at_test = features.at(index, inference), bench.data.labels[index], features.at(test, inference)
    if probe == "knn":
        return knn_probe(train, y, at_test, spec.neighbours)
    return linear_probe(train, y, bench.data.patients[index], at_test, spec.c)


@torch.no_grad()
def classify(classifier: Classifier, bench: Bench, index: Indices) -> Floats:
    """Probabilities (n, L) of a fine-tuned network."""
    parts = []
    lesions = Lesions(bench.data, classifier.encoder, bench.seed)
    for start in range(0, len(index), BATCH):
        rows = index[start : start + BATCH]
        images = bench.views.normalise(torch.from_numpy(bench.data.images[rows]).to(bench.fabric.device))
        call = lesions.call_for(rows, Call(inference=classifier.inference), bench.fabric.device)
        with bench.fabric.autocast():
            parts.append(classifier(images, call).float().sigmoid().cpu().numpy())
    return np.concatenate(parts)


def summarise(
    run_id: str,
    scores: npt.NDArray[np.float32],
    bench: Bench,
    spec: EvaluationSpec,
    tuning: FinetuneSpec,
    probe: Probe,
    labels: float,
    inference: Inference,
    subsets: list[Indices],
    chosen: list[dict[str, float]],
) -> tuple[Evaluation, dict[str, npt.NDArray[Any]]]:
    """From scores (draws, images, L) to an Evaluation and its predictions. The images are those of `images_scored`, or
    of the split alone. Validation images beside test images have a score by finding, and are in no other number."""
    index = bench.images_of(spec.split)
    scores, beside = scores[:, : len(index)], scores[:, len(index) :]
    others = bench.images_scored(spec.split)[len(index) :] if beside.size else np.empty(0, np.int64)
    truth, patients, names = bench.data.labels[index], bench.data.patients[index], bench.data.label_names
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
        run_id=run_id,
        probe=probe,
        labels=labels,
        inference=inference,
        split=spec.split,
        macro_auroc=float(macro.mean()),
        macro_auprc=float(prs.mean()),
        interval=whole,
        per_label=per_label,
        undefined=undefined,
        validation=_by_finding(beside, bench.data, others),
        draws=tuple(
            Draw(
                draw=d,
                subset=bench.subset(subset),
                macro_auroc=float(macro[d]),
                macro_auprc=float(prs[d].mean()),
                chosen=chosen[d],
            )
            for d, subset in enumerate(subsets)
        ),
        draw_std=float(macro.std(ddof=1)) if len(macro) > 1 else 0.0,
        subgroups=_subgroups(scores, bench.data, index, mask),
        n_patients=len(np.unique(patients)),
        n_images=len(index),
        settings=spec.settings_of(probe, tuning),
        spec=spec.model_copy(update={"labels": (labels,), "probes": (probe,)}).model_dump(mode="json"),
        finetune=tuning.model_dump(mode="json") if probe == "finetune" else {},
        conditions=conditions(environment(torch.get_num_threads(), ranks=1)),
    )
    predictions = _predictions(scores, bench.data, index)
    if len(others):
        predictions |= {f"{VALIDATION}{name}": a for name, a in _predictions(beside, bench.data, others).items()}
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
