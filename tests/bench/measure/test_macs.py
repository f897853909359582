"""MACs: two counters and formulas agree with each other and, where there are figures, with them."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric

from bench.measure import counters, macs
from bench.measure.counters import CountersDisagree, inference_macs
from bench.measure.inputs import random_views
from bench.measure.timed_method import TimedMethod
from bench.records.record import Macs
from bench.specs.run_spec import EncoderSpec, TrainSpec
from bench.training.build import build
from methods import STRATEGIES
from methods.names import parse_methods
from methods.objectives.objective import Objective
from methods.schedule import keep_at, kept_tokens
from methods.strategies.predictor import predictor_macs, predictor_width
from methods.strategies.strategy import Call

SMALL = EncoderSpec(name="vit_stem_d64_l4_patch8", image_size=64)
VIT_S = EncoderSpec(name="vit_small_patch16_224", image_size=224, channels=3)
CONVNEXT = EncoderSpec(name="convnext_d64_l6_patch8", image_size=64)
TRAIN = TrainSpec(batch=4, ramp=0.3)


def built(method: str, encoder: EncoderSpec = SMALL) -> Objective:
    return build(parse_methods(method)[0], encoder, seed=0)


def test_sparsecontrast_limits_at_vit_s() -> None:
    dense, sparse = (
        macs.count(built(f"simclr/{name}", VIT_S), VIT_S, TRAIN, 400) for name in ("dense", "sparsecontrast")
    )
    assert dense.inference / sparse.inference == pytest.approx(1.91, rel=0.02)
    assert dense.train_step / sparse.train_step == pytest.approx(1.93, rel=0.02)
    assert dense.whole_run / sparse.whole_run == pytest.approx(1.68, rel=0.02)
    assert sparse.inference_parts["predictor"] == pytest.approx(0.157e9, rel=0.01)


@pytest.mark.parametrize("name", ["dense", "sparsecontrast", "fixed", "patchdropout"])
def test_inference_is_the_formula(name: str) -> None:
    objective = built(f"simclr/{name}")
    geometry, strategy = objective.encoder.geometry, objective.encoder.strategy
    formula = geometry.macs(geometry.patches)
    if name in ("sparsecontrast", "fixed"):
        assert strategy.target is not None
        formula = geometry.macs(kept_tokens(geometry.patches, strategy.target))
    if name == "sparsecontrast":
        formula += predictor_macs(geometry, predictor_width(geometry))
    counted = macs.count(objective, SMALL, TRAIN, 0)
    assert counted.inference == formula
    assert counted.counters == {"fvcore": formula, "flop_counter": formula, "formula": formula}
    assert sum(counted.inference_parts.values()) == pytest.approx(formula, rel=1e-12)


@pytest.mark.parametrize(
    "name", ["dense", "sparsecontrast", "fixed", "patchdropout", "sparsecontrast[execution=masked]"]
)
def test_inference_of_a_convnext_is_the_formula(name: str) -> None:
    """Stem, two stages at strides 4 and 8 (16 and 8 positions on a side), of which the MLPs run at kept positions."""
    objective = built(f"simclr/{name}", CONVNEXT)
    geometry, strategy = objective.encoder.geometry, objective.encoder.strategy
    kept = 64 if name in ("dense", "patchdropout") or "masked" in name else kept_tokens(64, strategy.target)
    parts = {
        "stem and downsampling": 256 * 16 * 32 + 64 * 4 * 32 * 64,
        "depthwise convolutions": 2 * 256 * 49 * 32 + 4 * 64 * 49 * 64,
        "pointwise MLPs": kept * (2 * 4 * 8 * 32**2 + 4 * 8 * 64**2),
    }
    if name.startswith("sparsecontrast"):
        parts["predictor"] = predictor_macs(geometry, predictor_width(geometry))
    counted = macs.count(objective, CONVNEXT, TRAIN, 0)
    assert counted.inference_parts == parts
    assert counted.counters == dict.fromkeys(("fvcore", "flop_counter", "formula"), sum(parts.values()))
    assert geometry.macs(kept) == sum(parts.values()) - parts.get("predictor", 0)


def test_convnext_t_as_published() -> None:
    """4.5 GMACs (Liu et al., table 9), and what half the pointwise MLPs and the predictor leave of them."""
    spec = EncoderSpec(name="convnext_tiny", image_size=224, channels=3)
    sparse = built("simclr/sparsecontrast", spec).encoder
    geometry = sparse.geometry
    mlps = 8 * (3 * 56**2 * 96**2 + 3 * 28**2 * 192**2 + 9 * 14**2 * 384**2 + 3 * 7**2 * 768**2)
    assert geometry.macs(49) / 1e9 == pytest.approx(4.46, rel=0.01)
    assert geometry.macs(49) - geometry.macs(0) == mlps
    predictor = predictor_macs(geometry, predictor_width(geometry))
    assert sum(p.numel() for p in sparse.strategy.predictor.parameters()) == pytest.approx(0.8e6, rel=0.01)
    counted = inference_macs(sparse, torch.randn(1, 3, 224, 224))[0]
    assert counted == geometry.macs(49) - mlps * 24 / 49 + predictor


@pytest.mark.parametrize("name", ["convnext_d64_l6_patch8", "resnet18"])
def test_dense_step_of_a_cnn_is_the_formula(name: str) -> None:
    """As of a transformer; a depthwise convolution's gradients cost what its forward pass does, each."""
    spec = EncoderSpec(name=name, image_size=64)
    objective = built("simclr/dense", spec)
    geometry = objective.encoder.geometry
    first, dim, hidden = (256 * 16 * 32, 64, 256) if name != "resnet18" else (32 * 32 * 49 * 64, 512, 2048)
    heads = dim * hidden + hidden * hidden + hidden * 128
    forward = geometry.macs(geometry.patches) + heads + 2 * TRAIN.batch * 128
    assert macs.count(objective, spec, TRAIN, 0).train_step == 2 * (3 * forward - first)


def test_steps_of_a_convnext_are_linear_in_the_patches() -> None:
    step = macs.StepMacs(built("simclr/sparsecontrast", CONVNEXT), 4, random_views(CONVNEXT))
    at = [step(k / 64) for k in (20, 30, 40)]
    mlps = 2 * 3 * (2 * 4 * 8 * 32**2 + 4 * 8 * 64**2)  # both views, forward and two backward
    assert at[1] - at[0] == at[2] - at[1] == 10 * mlps


def test_a_resnet_is_all_convolutions() -> None:
    spec = EncoderSpec(name="resnet18", image_size=64)
    objective = built("moco/dense", spec)
    counted = macs.count(objective, spec, TRAIN, 0)
    assert counted.inference_parts == {"convolutions": objective.encoder.geometry.macs(4)}
    assert len(set(counted.counters.values())) == 1


def test_dense_step_is_the_formula() -> None:
    """Every product forward has two backward, but the first layer's: images need no gradient. Both views."""
    objective = built("simclr/dense")
    geometry = objective.encoder.geometry
    first = 32 * 32 * 9 * 16  # the stem's first convolution, 1 channel to 16
    heads = 64 * 256 + 256 * 256 + 256 * 128
    contrast = 2 * TRAIN.batch * 128  # of a view with all 2B
    forward = geometry.macs(geometry.patches) + heads + contrast
    assert macs.count(objective, SMALL, TRAIN, 0).train_step == 2 * (3 * forward - first)


def test_moco_step_adds_teacher_and_predictor() -> None:
    simclr, moco = (macs.count(built(f"{name}/dense"), SMALL, TRAIN, 0) for name in ("simclr", "moco"))
    forward, first = simclr.inference, 32 * 32 * 9 * 16
    projector, predictor = 64 * 256 + 256 * 256 + 256 * 256, 2 * 256 * 256
    contrast = TRAIN.batch * 256  # of a query with the keys of the other view; keys get no gradient
    student = 3 * (forward + projector + predictor) - first + 2 * contrast
    assert moco.train_step == 2 * (student + forward + projector)


def test_attention_is_seen_by_both_counters(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blind to attention, either counter is refused."""
    encoder, image = built("simclr/dense").encoder, torch.randn(1, 1, 64, 64)
    parts = inference_macs(encoder, image)[1]
    assert parts["attention"] == 4 * 2 * 64 * 64 * 64  # blocks x (QK, AV) x N x N x C
    monkeypatch.setattr(counters, "_attention_macs", counters._nothing)
    with pytest.raises(CountersDisagree, match=r"attention: fvcore 0, flop_counter 2,097,152, formula 2,097,152"):
        inference_macs(encoder, image)
    monkeypatch.undo()
    monkeypatch.setattr(counters, "SDPBackend", _Fused)
    with pytest.raises(CountersDisagree, match=r"attention: fvcore 2,097,152, flop_counter 0, formula 2,097,152"):
        inference_macs(encoder, image)


class _Fused:
    MATH = torch.nn.attention.SDPBackend.FLASH_ATTENTION


@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
def test_step_is_counted_alike_on_the_meta_device(strategy: str) -> None:
    """Where nothing is computed, so that a step is counted at sizes at which memory would not hold it."""
    objective, views = built(f"moco/{strategy}"), random_views(SMALL)
    computed = macs._counted_step(copy.deepcopy(objective), views, 0.5)
    assert macs._counted_step(copy.deepcopy(objective).to("meta"), views.to("meta"), 0.5) == computed


def test_step_of_a_large_encoder_that_depends_on_the_images_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("moco/sparsecontrast", "simclr/sparsecontrast[select=budget]"):
        objective = built(name)
        computed = macs.count(objective, SMALL, TRAIN, 0).train_step
        with monkeypatch.context() as patch:
            patch.setattr(macs, "LARGE", 0.0)
            assert macs.count(objective, SMALL, TRAIN, 0).train_step == computed


def test_step_of_a_larger_batch_is_counted_without_running_it() -> None:
    """Only the contrast grows faster than the batch; against a step counted on that very batch."""
    for name in ("simclr/sparsecontrast", "moco/fixed"):
        objective = built(name)
        few = macs.StepMacs(objective, 6, random_views(SMALL, 2))
        many = macs.StepMacs(objective, 6, random_views(SMALL, 6))
        assert few(0.5) == pytest.approx(many(0.5), rel=1e-12)


@pytest.mark.parametrize("options", ["", "[gate=key_bias]", "[fuse=true]", "[trim=keys]", "[execution=masked]"])
def test_a_step_is_quadratic_in_the_tokens(options: str) -> None:
    step = macs.StepMacs(built(f"simclr/sparsecontrast{options}"), 4, random_views(SMALL))
    at = macs.nodes(20, 64)
    assert at == [20, 41, 63]
    wanted = np.array([25.0, 52.0])
    curve = macs.interpolate(at, np.array([step(k / 64) for k in at]), wanted)
    assert curve == pytest.approx([step(k / 64) for k in wanted], rel=1e-9)


def test_whole_run_is_the_sum_of_its_steps() -> None:
    objective, steps = built("simclr/sparsecontrast[keep=0.4]"), 20
    step = macs.StepMacs(objective, TRAIN.batch, random_views(SMALL))
    one_by_one = [step(keep_at(i / steps, 0.4, TRAIN.ramp)) for i in range(steps)]
    counted = macs.count(objective, SMALL, TRAIN, steps)
    assert counted.whole_run == pytest.approx(TRAIN.batch * sum(one_by_one), rel=1e-9)
    assert one_by_one[0] > 1.5 * one_by_one[-1] == pytest.approx(1.5 * counted.train_step)


def test_keep_one_and_no_steps() -> None:
    objective = built("simclr/sparsecontrast[keep=1.0]")
    whole = macs.count(objective, SMALL, TRAIN, 10)
    assert whole.whole_run == pytest.approx(10 * TRAIN.batch * whole.train_step)
    assert macs.count(objective, SMALL, TRAIN, 0).whole_run == 0


def test_what_depends_on_the_image_is_counted_by_image() -> None:
    """Threshold 0 of an untrained predictor keeps what it likes: the mean over all images, each alone; the counters
    look at the first two together, as wide as the wider one."""
    objective = built("simclr/sparsecontrast[select=threshold]")
    images = torch.randn(5, 1, 64, 64, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        kept = (objective.encoder.strategy.predictor(images) > 0).sum(1).tolist()
    assert len(set(kept)) > 1
    geometry = objective.encoder.geometry

    def formula(n: int) -> float:
        padded_heads = 4 * 2 * n**2 * 4 * 8  # the key bias pads every head's 16 by 8, in q k and v
        return geometry.macs(n) + predictor_macs(geometry, predictor_width(geometry)) + padded_heads

    counted = macs.count(objective, SMALL, TRAIN, 0, torch.stack([images, images]))
    assert counted.inference == pytest.approx(np.mean([formula(n) for n in kept]), rel=1e-12)
    assert counted.inference == pytest.approx(sum(counted.inference_parts.values()), rel=1e-12)
    assert set(counted.counters.values()) == {formula(max(kept[:2]))}
    plain = macs.count(objective, SMALL, TRAIN, 0, torch.stack([images, images]), images[3:])
    assert plain.inference == pytest.approx(np.mean([formula(n) for n in kept[3:]]), rel=1e-12)


@pytest.mark.parametrize("keep", [0.3, 0.7])
def test_a_budget_is_counted_and_timed_at_its_target(keep: float) -> None:
    """Whatever the untrained predictor says: the images keep their share on the mean, at inference as in training."""
    encoder, views = SMALL, random_views(SMALL, 8)
    (method,) = parse_methods(f"simclr/sparsecontrast[select=budget,keep={keep}]")
    timed = TimedMethod("budget", method, encoder, TRAIN, views, Fabric(accelerator="cpu", devices=1))
    assert timed.known
    with torch.no_grad():
        kept = timed.objective.encoder.eval()(views[0], Call()).kept
    assert kept.float().mean().item() == pytest.approx(kept_tokens(64, keep) / 64, abs=0.01)
    timed.weigh()
    exact = macs.count(built(f"simclr/sparsecontrast[keep={keep},gate=key_bias]"), SMALL, TRAIN, 0)
    assert timed.macs.inference == pytest.approx(exact.inference, rel=0.1)  # padded heads, attention's square


@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
def test_every_strategy_counts_and_is_left_as_it_was(strategy: str) -> None:
    objective = built(f"moco/{strategy}")
    objective.train()
    before = {name: value.clone() for name, value in objective.state_dict().items()}
    torch.manual_seed(7)
    counted: Macs = macs.count(objective, SMALL, TRAIN, 10)
    drawn = torch.rand(1)
    torch.manual_seed(7)
    assert torch.equal(drawn, torch.rand(1))
    after = objective.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert objective.training
    assert all(parameter.grad is None for parameter in objective.parameters())
    assert 0 < counted.inference < counted.train_step
    assert counted.counters["fvcore"] == pytest.approx(counted.counters["flop_counter"], rel=0.01)
    flat = counted.whole_run == pytest.approx(10 * TRAIN.batch * counted.train_step)
    assert flat != objective.encoder.strategy.ramps
