"""The formulas against what FlopCounterMode sees of the real thing, to the last product."""

from __future__ import annotations

import functools
from dataclasses import replace
from unittest.mock import patch

import pytest
import timm
import torch

from bench.measure import formula, macs
from bench.measure.counters import CountersDisagree, inference_macs
from bench.measure.formula import convnext, vit
from bench.measure.formula.products import Pass, Products, by_part
from bench.measure.inputs import random_views
from bench.specs.run_spec import EncoderSpec, TrainSpec
from bench.training.build import build
from methods import OBJECTIVES, STRATEGIES, Entry
from methods.names import parse_methods
from methods.objectives.objective import Objective
from methods.strategies.dense import Dense
from methods.strategies.strategy import Call
from methods.strategies.tome import ToMe

STEM = EncoderSpec(name="vit_stem_d64_l4_patch8", image_size=64)
TIMM = EncoderSpec(name="vit_tiny_patch16_224", image_size=64, channels=3)
DISTILLED = EncoderSpec(name="deit_tiny_distilled_patch16_224", image_size=64, channels=3)
CONVNEXT = EncoderSpec(name="convnext_d64_l6_patch8", image_size=64)
ATTO = EncoderSpec(name="convnext_atto_ols", image_size=96, channels=3)  # an overlapping stem, MLPs of convolutions
RESNETS = [EncoderSpec(name=name, image_size=64) for name in ("resnet18", "resnet26d", "resnet26")]
VARIANTS = [
    *(
        f"simclr/sparsecontrast[{options}]"
        for options in (
            *("gate=key_bias", "fuse=true", "trim=keys", "execution=masked", "select=budget", "select=threshold"),
            *("trim=keys,gate=key_bias", "fuse=true,select=budget", "keep=1.0", "width=7"),
        )
    ),
    *("moco/sparsecontrast[select=budget]", "moco/frozen[select=threshold]", "simclr/fixed[execution=masked]"),
    *("simclr/tokenlearner[version=v1]", "simclr/tokenlearner[fuser=true,at=0.3]", "simclr/tokenlearner[at=1.0]"),
    *("moco/dynamicvit[teacher=dense]", "simclr/dynamicvit[distil_weight=0]", "simclr/dynamicvit[rho=0.9]"),
    *("moco/topk[teacher=dense]", "simclr/topk[rho=0.3]", "simclr/evit[rho=1.0]", "simclr/evit[rho=0.3]"),
    *("simclr/tome[r=0]", "simclr/tome[r=3]", "moco/tome[r=40]", "simclr/dense[hidden=96,out=24]"),
]
CASES = [(STEM, f"{objective}/{strategy}") for objective in OBJECTIVES for strategy in STRATEGIES]
CASES += [(STEM, variant) for variant in VARIANTS]
CASES += [
    (encoder, f"moco/{strategy}")
    for encoder in (TIMM, DISTILLED)
    for strategy in ("dense", "sparsecontrast", "dynamicvit", "tokenlearner", "topk", "evit", "tome")
]
CASES += [
    (CONVNEXT, f"{objective}/{strategy}")
    for objective in OBJECTIVES
    for strategy, entry in STRATEGIES.items()
    if "convnext" in entry.encoders
]
CASES += [
    (CONVNEXT, f"moco/sparsecontrast[{options}]")
    for options in (
        *("keep=0.3", "keep=0.9", "keep=1.0", "select=budget", "select=threshold", "execution=masked"),
        *("teacher=dense", "width=7", "teacher=dense,select=budget"),
    )
]
CASES += [(ATTO, "simclr/dense"), (ATTO, "moco/sparsecontrast"), (ATTO, "simclr/fixed[execution=masked]")]
CASES += [(resnet, f"{objective}/dense") for resnet in RESNETS for objective in OBJECTIVES]


def built(method: str, encoder: EncoderSpec = STEM) -> Objective:
    """Of timm's transformers with four blocks in the place of twelve, which differ in nothing."""
    create = functools.partial(timm.create_model, depth=4) if encoder in (TIMM, DISTILLED) else timm.create_model
    with patch("timm.create_model", create):
        return build(parse_methods(method)[0], encoder, seed=0)


@pytest.mark.parametrize(("encoder", "method"), CASES, ids=lambda value: str(getattr(value, "name", value)))
def test_formula_is_what_the_counters_see(encoder: EncoderSpec, method: str) -> None:
    objective, views = built(method, encoder), random_views(encoder)
    total, parts, totals = inference_macs(objective.encoder, views[0])
    assert totals["formula"] == pytest.approx(totals["flop_counter"], rel=1e-9)
    derived = formula.inference(objective.encoder, views[0], _inference_call(objective))
    assert derived is not None
    if objective.encoder.strategy.adaptive:  # then the parts are of each image alone, which is what counters see too
        alone = [inference_macs(objective.encoder, image[None])[2]["flop_counter"] for image in views[0]]
        assert total == pytest.approx(sum(alone) / len(alone), rel=1e-9)
    else:
        assert by_part(derived) == pytest.approx(parts, rel=1e-9)
    strategy = objective.encoder.strategy
    for keep in {1.0, strategy.target} if strategy.ramps else {1.0}:
        step, _, counters = macs.StepMacs(objective, 5, views).counters(keep)
        assert counters == pytest.approx({"flop_counter": step, "formula": step}, rel=1e-9)


def _inference_call(objective: Objective) -> Call:
    patches = objective.encoder.geometry.patches
    lesions = torch.rand(2, patches, generator=torch.Generator().manual_seed(0))
    return Call(inference=objective.encoder.strategy.inference[0], lesions=lesions)


@pytest.mark.parametrize("family", ["vit", "convnext", "resnet"])
def test_every_strategy_has_a_formula(family: str) -> None:
    defined = {entry.load() for entry in STRATEGIES.values() if family in entry.encoders}
    assert set(formula.FAMILIES[family].FORMULAS) == defined


def test_a_resnet_of_other_parts_is_checked_by_the_counters_alone() -> None:
    """Blur before every stride, attention over channels: what the formula does not know it does not guess."""
    for name in ("resnetaa50d", "resnetrs50"):
        spec = EncoderSpec(name=name, image_size=32)
        totals = inference_macs(built("simclr/dense", spec).encoder, random_views(spec)[0])[2]
        assert totals.keys() == {"fvcore", "flop_counter"}


def test_a_formula_of_a_cnn_that_disagrees_refuses_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convnext, "KERNEL", 5)
    seen = r"depthwise convolutions: fvcore ([\d,]+), flop_counter \1, formula \d"
    with pytest.raises(CountersDisagree, match=rf"at inference: .*By part: .*{seen}"):
        macs.count(built("simclr/sparsecontrast", CONVNEXT), CONVNEXT, TrainSpec(batch=4), 0)


def test_a_formula_that_disagrees_refuses_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of inference and of the train step, with the difference by part."""
    objective = built("simclr/tome")
    right = vit.FORMULAS[ToMe]

    def without_matching(run: Pass) -> Products:
        return (product for product in right(run) if product.part != "matching")

    def without_backward(run: Pass) -> Products:
        return (replace(product, gradients=1) for product in right(run))

    monkeypatch.setattr(vit, "FORMULAS", {**vit.FORMULAS, ToMe: without_backward})
    with pytest.raises(CountersDisagree, match=r"of a train step: .*By part: .*linear layers: flop"):
        macs.count(objective, STEM, TrainSpec(batch=4), 0)
    monkeypatch.setattr(vit, "FORMULAS", {**vit.FORMULAS, ToMe: lambda run: right_but_twice(run, right)})
    with pytest.raises(CountersDisagree, match=r"at inference: .*By part: .*matching: fvcore ([\d,]+), flop"):
        macs.count(objective, STEM, TrainSpec(batch=4), 0)
    monkeypatch.setattr(vit, "FORMULAS", {**vit.FORMULAS, ToMe: without_matching})
    counted = macs.count(objective, STEM, TrainSpec(batch=4), 0)  # 1 % is the tolerance, and matching is less
    assert counted.counters["formula"] < counted.counters["fvcore"]


def right_but_twice(run: Pass, right: object) -> Products:
    for product in right(run):  # type: ignore[operator]
        times = 100 if product.part == "matching" else 1
        yield replace(product, macs=times * product.macs)


def test_a_plugin_without_a_formula_is_checked_by_the_counters_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    class Mine(Dense):
        """A plug-in's strategy, which there is no formula for, though there is one for what it is made from."""

    entry = Entry(":Mine", "mine", "a test", inference=("dense",))
    monkeypatch.setitem(STRATEGIES, "mine", entry)
    monkeypatch.setattr(Entry, "load", lambda self, load=Entry.load: Mine if self is entry else load(self))
    mine, dense = (macs.count(built(f"moco/{name}"), STEM, TrainSpec(batch=4), 0) for name in ("mine", "dense"))
    assert mine.counters.keys() == {"fvcore", "flop_counter"}
    assert mine.train_counters.keys() == {"flop_counter"}
    assert mine.train_step == dense.train_step
    assert sum(mine.train_parts.values()) == pytest.approx(mine.train_step)
    assert mine.train_parts.keys() == {"convolutions", "linear layers", "batched products"}
    assert dense.train_parts.keys() >= {"patch embedding", "attention", "heads", "teacher", "contrast"}


def test_a_step_by_part_says_where_it_goes() -> None:
    counted = macs.count(built("moco/sparsecontrast"), STEM, TrainSpec(batch=4), 0)
    parts = counted.train_parts
    assert sum(parts.values()) == pytest.approx(counted.train_step)
    assert parts["teacher"] == 2 * (counted.inference + 64 * 256 + 256 * 256 + 256 * 256)
    assert parts["predictor"] < 2 * 3 * counted.inference_parts["predictor"]  # images get no gradient
    assert parts["projections and MLPs"] == 2 * 3 * counted.inference_parts["projections and MLPs"]
    assert parts["attention"] == 2 * 3 * counted.inference_parts["attention"]
