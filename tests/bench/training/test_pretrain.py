"""The training loop: what decides the weights, what the schedules do, when it gives up."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bench.specs.run_spec import TrainSpec
from bench.training import pretrain as module
from bench.training.batches import epoch_order
from bench.training.build import optimizer_of, schedule_of, steps_of
from bench.training.failures import TrainingFailed
from bench.training.pretrain import pretrain
from tests.bench import small


@pytest.fixture
def train(tmp_path, phantom, fabric):
    """Pre-trains a method on the first 64 images; four steps an epoch."""

    def run(method: str, **changes: Any) -> Any:
        report = changes.pop("progress", lambda state: None)
        data, images = changes.pop("data", phantom), np.arange(changes.pop("images", 64))
        return pretrain(small.run_spec(tmp_path, method, **changes), data, images, fabric, report)

    return run


@pytest.fixture
def watched(monkeypatch):
    """What every training step was given and how it ended, in a list."""
    steps: list[SimpleNamespace] = []
    real = module.train_step

    def step(objective, optimizer, views, call, *rest):
        before = optimizer.param_groups[0]["lr"]
        loss = real(objective, optimizer, views, call, *rest)
        steps.append(SimpleNamespace(views=views.clone(), call=call, lr=before, loss=float(loss.contrastive.detach())))
        return loss

    monkeypatch.setattr(module, "train_step", step)
    return steps


def weights(trained: Any) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in trained.objective.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("method", ["simclr/sparsecontrast", "moco/dynamicvit"])
def test_mixed_precision_stays_near_the_full_one(train, tmp_path, phantom, method: str) -> None:
    from lightning_fabric import Fabric

    mixed = Fabric(accelerator="cpu", devices=1, precision="bf16-mixed")
    run = small.run_spec(tmp_path, method, train__precision="bf16-mixed")
    trained = pretrain(run, phantom, np.arange(64), mixed, lambda state: None)
    full = train(method)
    assert trained.final_loss == pytest.approx(full.final_loss, rel=0.02)
    assert not same(weights(trained), weights(full))
    assert all(t.dtype != torch.bfloat16 for t in weights(trained).values())


def test_the_same_spec_gives_the_same_weights_whatever_ran_before(train) -> None:
    torch.manual_seed(1)
    np.random.seed(1)
    alone = weights(train("sparsecontrast"))
    train("moco/random")
    torch.manual_seed(2)
    np.random.seed(2)
    after = weights(train("sparsecontrast"))
    assert same(alone, after)
    assert not same(alone, weights(train("sparsecontrast", seeds=[1])))


def test_the_global_random_state_is_neither_read_nor_moved(train) -> None:
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    train("moco/dynamicvit", images=16)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("method", ["moco/sparsecontrast", "simclr/dynamicvit", "simclr/oracle"])
def test_order_and_views_do_not_depend_on_the_method(train, watched, method: str) -> None:
    train("dense")
    dense = list(watched)
    watched.clear()
    train(method)
    assert len(watched) == len(dense) == 4
    for mine, other in zip(watched, dense, strict=True):
        assert torch.equal(mine.views, other.views)
        assert mine.call.noise == other.call.noise
        assert mine.call.progress == other.call.progress
        assert mine.lr == other.lr


def test_every_step_has_views_and_noise_of_its_own(train, watched) -> None:
    train("dense", images=16, train__epochs=3)
    train("dense", images=16, seeds=[1])
    assert len(watched) == 4
    noises = [step.call.noise.uniform("n", 2) for step in watched]
    for i, a in enumerate(watched):
        assert a.views.shape == (2, 16, 1, 32, 32)
        for j in range(i):
            assert not torch.equal(a.views, watched[j].views)
            assert not torch.equal(noises[i], noises[j])


def test_an_epoch_shows_every_image_once_at_most() -> None:
    images = np.arange(100, 151)  # 51 images in batches of 8: 3 are left out
    epochs = [list(epoch_order(images, 0, epoch, 8)) for epoch in range(40)]
    for batches in epochs:
        assert [len(batch) for batch in batches] == [8] * 6
        shown = np.concatenate(batches)
        assert len(np.unique(shown)) == 48
        assert np.isin(shown, images).all()
    orders = {tuple(np.concatenate(batches)) for batches in epochs}
    assert len(orders) == 40
    left_out = [set(images) - set(np.concatenate(batches)) for batches in epochs]
    assert len(set.union(*left_out)) > 40  # not always the same ones: 120 places for 51 images
    again = np.concatenate(list(epoch_order(images, 0, 7, 8)))
    assert (again == np.concatenate(epochs[7])).all()
    assert (np.concatenate(list(epoch_order(images, 1, 7, 8))) != again).any()


def test_only_the_images_asked_for_are_trained_on(train, watched, phantom) -> None:
    """Images beyond the given ones may be anything."""
    before = weights(train("dense", images=32))
    spoilt = phantom.images.copy()
    spoilt[32:] = 255
    assert same(before, weights(train("dense", images=32, data=phantom.replace(images=spoilt))))
    spoilt[:32] = 255 - spoilt[:32]
    assert not same(before, weights(train("dense", images=32, data=phantom.replace(images=spoilt))))


def test_the_keep_ratio_falls_along_half_a_cosine_and_is_in_the_history(train, watched) -> None:
    trained = train("sparsecontrast[keep=0.25]", train__epochs=3, train__ramp=0.5)
    keeps = [step.call.keep for step in watched]
    expected = [0.25 if step >= 6 else 0.25 + 0.75 * (1 + math.cos(math.pi * step / 6)) / 2 for step in range(12)]
    assert keeps == pytest.approx(expected)
    assert keeps[0] == 1.0
    assert [line["keep"] for line in trained.history] == [keeps[3], keeps[7], keeps[11]]
    assert [step.call.progress for step in watched] == pytest.approx([step / 12 for step in range(12)])


def test_methods_without_a_ramp_keep_all(train, watched) -> None:
    train("dynamicvit", images=32)
    train("dense", images=32)
    assert {step.call.keep for step in watched} == {1.0}


def test_the_history_tells_what_happened(train, watched) -> None:
    reports: list[dict[str, Any]] = []
    trained = train("moco/sparsecontrast", train__epochs=2, progress=reports.append)
    assert trained.steps == 8
    assert [line["epoch"] for line in trained.history] == [1, 2]
    assert [line["step"] for line in trained.history] == [4, 8]
    for epoch, line in enumerate(trained.history):
        losses = [step.loss for step in watched[4 * epoch : 4 * epoch + 4]]
        assert line["loss"] == pytest.approx(sum(losses) / 4)
        assert line["images_per_second"] > 0
        assert line["selection"]
    assert trained.final_loss == trained.history[-1]["loss"]
    assert reports[-1]["step"] == reports[-1]["steps"] == 8
    assert reports[-1]["loss"] == pytest.approx(watched[-1].loss)


def test_the_learning_rate_rises_then_falls_to_nothing() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.5)
    schedule = schedule_of(optimizer, 50, 0.2)
    rates = []
    for step in range(51):
        schedule.step_update(step)
        rates.append(optimizer.param_groups[0]["lr"])
    rising = [0.5 * step / 10 for step in range(10)]
    falling = [0.5 * (1 + math.cos(math.pi * step / 40)) / 2 for step in range(41)]
    assert rates == pytest.approx(rising + falling, abs=1e-9)
    assert rates[-1] == pytest.approx(0, abs=1e-9)


def test_the_learning_rate_of_every_step_follows_the_schedule(train, watched) -> None:
    train("dense", train__epochs=2, train__warmup=0.25, train__lr=0.01)
    falling = [0.01 * (1 + math.cos(math.pi * step / 6)) / 2 for step in range(6)]
    assert [step.lr for step in watched] == pytest.approx([0.0, 0.005, *falling], abs=1e-9)


def test_biases_norms_and_fixed_positions_do_not_decay(tmp_path) -> None:
    run = small.run_spec(tmp_path, "dense")
    objective = module.build(run.parsed, run.encoder, 0)
    optimizer = optimizer_of(objective, 1e-3, 0.05)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    named = dict(objective.named_parameters())
    assert id(named["encoder.vit.pos_embed"]) not in decay
    trained = {name: p for name, p in named.items() if p.requires_grad}
    assert decay.keys() == {id(p) for p in trained.values()}
    for name, parameter in trained.items():
        assert decay[id(parameter)] == (0.05 if parameter.ndim > 1 else 0.0), name


def test_floors_start_from_the_weights_that_methods_start_from(tmp_path) -> None:
    def encoder(method: str, seed: int = 0) -> dict[str, Tensor]:
        run = small.run_spec(tmp_path, method)
        return module.build(run.parsed, run.encoder, seed).encoder.vit.state_dict()

    untrained = encoder("untrained")
    assert same(untrained, encoder("moco/sparsecontrast"))
    assert not same(untrained, encoder("untrained", 1))


def test_the_teacher_follows_after_every_step_with_the_momentum_of_the_next(train, monkeypatch) -> None:
    from methods.objectives.moco import MoCo

    told: list[float] = []
    real = MoCo.after_step
    monkeypatch.setattr(MoCo, "after_step", lambda self, progress: (told.append(progress), real(self, progress))[1])
    train("moco/dense")
    assert told == [0.25, 0.5, 0.75, 1.0]


@pytest.mark.parametrize("part", ["contrastive", "total"])
def test_a_loss_that_is_not_finite_ends_the_run(train, monkeypatch, part: str) -> None:
    real, steps = module.train_step, iter(range(100))

    def step(*args: Any) -> Any:
        loss = real(*args)
        if next(steps) != 2:
            return loss
        bad = torch.tensor(float("nan"))
        return replace(loss, total=bad, **({} if part == "total" else {part: bad}))

    monkeypatch.setattr(module, "train_step", step)
    with pytest.raises(TrainingFailed, match=r"the loss became nan at step 2 of 4 \(learning rate 0.001\)"):
        train("dense")


def test_too_few_images_are_a_failure(train) -> None:
    with pytest.raises(TrainingFailed, match="15 training images do not fill one batch of 16"):
        train("dense", images=15)


def test_steps_of() -> None:
    assert steps_of(51, TrainSpec(epochs=3, batch=8)) == 18
    assert steps_of(7, TrainSpec(epochs=3, batch=8)) == 0
