"""Training on labels: an easy task is learnt, the encoder given stays as it was, unknown labels don't count."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from bench.evaluation.evaluate import classify
from bench.specs.run_spec import FinetuneSpec
from bench.training.data import RunData
from bench.training.finetune import _known_bce, finetune
from datasets.dataset import Dataset
from datasets.splits import Splits
from datasets.views import Views
from methods import build_encoder

N = 96


def encoder(strategy: str = "dense", name: str = "vit_stem_d64_l4_patch8"):
    return build_encoder(name, strategy, {}, image_size=32, channels=1, seed=0)


@pytest.fixture(scope="module")
def easy() -> Dataset:
    """Noise, with a bright or a dark square in the middle; a second label that no image knows but a few."""
    generator = np.random.default_rng(0)
    images = generator.integers(60, 190, (N, 32, 32), dtype=np.uint8)
    truth = np.arange(N) % 2
    images[:, 8:24, 8:24] = np.where(truth, 230, 30)[:, None, None]
    other = np.full(N, np.nan)
    other[:10] = truth[:10]
    masks = np.zeros((N, 32, 32), np.uint16)
    masks[truth == 1, 8:24, 8:24] = 1
    return Dataset(
        name="easy",
        images=images,
        labels=np.stack([truth, other], 1).astype(np.float32),
        label_names=("bright", "seldom"),
        patients=np.arange(N).astype(str),
        masks=masks,
        has_mask=np.stack([truth == 1, np.zeros(N, bool)], 1),
        fingerprint="0" * 64,
    )


@pytest.fixture
def tuned(easy, fabric):
    """Fine-tunes on the first 64 images."""

    def run(one: Any, inference: str = "dense", data: Dataset = easy, images: int = 64, **changes: Any):
        report = changes.pop("report", lambda state: None)
        seed = changes.pop("seed", 0)
        values = {"epochs": 1, "batch": 16, "lr": 1e-3, "min_steps": 1, "max_steps": 1000, **changes}
        spec = FinetuneSpec(**values)
        index = np.arange(images)
        on = RunData(data, Splits(index, index[:0], index[:0], ""), Views(32), fabric, seed)
        return finetune(one, on, index, spec, inference=inference, progress=report)

    return run


def bench_of(data: Dataset, fabric: Any) -> RunData:
    part = np.arange(N)
    return RunData(data, Splits(part[:64], part[:0], part[64:], ""), Views(32), fabric, 0)


@pytest.mark.parametrize(
    ("strategy", "inference"), [("dense", "dense"), ("sparsecontrast", "pruned"), ("oracle", "pruned")]
)
def test_an_easy_task_is_learnt(easy, fabric, tuned, strategy: str, inference: str) -> None:
    test = np.arange(64, N)
    scores = {}
    for steps in (1, 40):
        classifier = tuned(encoder(strategy), inference, min_steps=steps, max_steps=steps)
        scores[steps] = classify(classifier, bench_of(easy, fabric), test)
        assert scores[steps].shape == (32, 2)
        assert ((scores[steps] > 0) & (scores[steps] < 1)).all()
    assert roc_auc_score(easy.labels[test, 0], scores[40][:, 0]) > 0.95
    confident = np.abs(scores[40][:, 0] - easy.labels[test, 0]).mean()
    assert confident < 0.3 < np.abs(scores[1][:, 0] - easy.labels[test, 0]).mean()


@pytest.mark.parametrize("strategy", ["dense", "sparsecontrast"])
def test_the_encoder_given_is_left_as_it_was(tuned, strategy: str) -> None:
    one = encoder(strategy)
    one.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in one.state_dict().items()}
    inference = one.strategy.inference[0]
    classifier = tuned(one, inference, epochs=2)
    assert all(torch.equal(tensor, before[name]) for name, tensor in one.state_dict().items())
    assert not any(p.requires_grad or p.grad is not None for p in one.parameters())
    after = classifier.encoder.state_dict()
    moved = {name for name, p in classifier.encoder.named_parameters() if not torch.equal(p, before[name])}
    assert {name for name in moved if name.startswith("vit.blocks.")} == {
        name for name in after if name.startswith("vit.blocks.")
    }
    assert "vit.pos_embed" not in moved  # fixed sine-cosine positions stay fixed
    assert not classifier.training


def test_an_untrained_predictor_stays_untrained(tuned) -> None:
    one = encoder("frozen")
    classifier = tuned(one, "pruned", epochs=2)
    before = one.strategy.state_dict()
    assert before
    assert all(torch.equal(tensor, before[name]) for name, tensor in classifier.encoder.strategy.state_dict().items())


def test_learned_positions_are_tuned(tuned) -> None:
    one = build_encoder("vit_stem_d64_l4_patch8", "dense", {}, image_size=32, channels=1, seed=0, positions="learned")
    classifier = tuned(one)
    assert not torch.equal(classifier.encoder.vit.pos_embed, one.vit.pos_embed)


def test_the_same_seed_gives_the_same_network(tuned) -> None:
    torch.manual_seed(1)
    a = tuned(encoder()).state_dict()
    torch.manual_seed(2)
    b = tuned(encoder()).state_dict()
    assert all(torch.equal(a[name], b[name]) for name in a)
    other = tuned(encoder(), seed=1).state_dict()
    assert not torch.equal(a["head.weight"], other["head.weight"])


@pytest.mark.parametrize(
    ("images", "changes", "steps"),
    [
        (64, {"epochs": 3}, 12),  # 4 batches of 16 an epoch
        (64, {"epochs": 1, "min_steps": 6}, 6),
        (64, {"epochs": 9, "max_steps": 5}, 5),
        (70, {"epochs": 2}, 8),
        (5, {"epochs": 3}, 3),  # a batch is no larger than the fraction
        (1, {"epochs": 1, "min_steps": 4}, 4),
    ],
)
def test_number_of_steps(tuned, images: int, changes: dict[str, int], steps: int) -> None:
    seen: list[dict[str, Any]] = []
    tuned(encoder(), images=images, report=seen.append, **changes)
    assert [state["step"] for state in seen] == list(range(1, steps + 1))
    assert {state["steps"] for state in seen} == {steps}


def test_cross_entropy_of_known_labels_against_a_loop() -> None:
    logits = torch.tensor([[0.3, -2.0], [1.5, 0.1], [-0.7, 4.0]], requires_grad=True)
    labels = np.array([[1, np.nan], [0, 1], [np.nan, 0]], np.float32)
    terms = []
    for row, truth in zip(logits.tolist(), labels.tolist(), strict=True):
        for z, y in zip(row, truth, strict=True):
            if not math.isnan(y):
                p = 1 / (1 + math.exp(-z))
                terms.append(-(y * math.log(p) + (1 - y) * math.log(1 - p)))
    loss = _known_bce(logits, labels)
    assert float(loss.detach()) == pytest.approx(sum(terms) / 4)
    loss.backward()
    assert logits.grad is not None
    assert (logits.grad == 0).tolist() == [[False, True], [False, False], [True, False]]


def test_what_nobody_knows_teaches_nothing(easy, tuned) -> None:
    labels = easy.labels.copy()
    labels[10:, 1] = np.nan
    labels[:10, 1] = np.nan
    head = tuned(encoder(), data=easy.replace(labels=labels), weight_decay=0.0).head
    torch.manual_seed(2)
    fresh = torch.nn.Linear(64, 2)
    assert torch.equal(head.weight[1], fresh.weight[1])
    assert not torch.equal(head.weight[0], fresh.weight[0])


def test_a_loss_that_is_not_finite_is_a_failure(easy, tuned) -> None:
    from bench.training.failures import TrainingFailed

    with pytest.raises(TrainingFailed, match=r"the loss became (nan|inf) at step \d+ of \d+ on labels"):
        tuned(encoder(), lr=1e30, epochs=5)
