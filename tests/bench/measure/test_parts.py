"""Where a step's time goes: on a clock that is made up, and on modules that are slow by design."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from bench.measure.inputs import random_views
from bench.measure.parts import Stepwatch, attention_share, shares, views_seconds
from bench.measure.timed_method import TimedMethod
from bench.specs.run_spec import EncoderSpec, TrainSpec
from methods.names import parse_methods

TINY = EncoderSpec(name="vit_stem_d64_l4_patch8", image_size=32)
CONVNEXT = EncoderSpec(name="convnext_d64_l6_patch8", image_size=32)
RESNET = EncoderSpec(name="resnet18", image_size=32)
SLOW = 1.0  # seconds, on the clock that is made up


class _Clock:
    """Goes on while somebody sleeps, and else stands still: no other process can disturb it."""

    now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


CLOCK = _Clock()


def timed(method: str, encoder: EncoderSpec = TINY) -> TimedMethod:
    fabric = Fabric(accelerator="cpu", devices=1)
    return TimedMethod(method, parse_methods(method)[0], encoder, TrainSpec(), random_views(encoder, 2), fabric)


class _Sleep(torch.autograd.Function):
    """Takes `forward` seconds forward and `backward` seconds backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, forward: float, backward: float) -> Tensor:
        ctx.backward_seconds = backward
        CLOCK.sleep(forward)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        CLOCK.sleep(ctx.backward_seconds)
        return gradient, None, None


def slow(module: nn.Module, forward: float = 0.0, backward: float = 0.0) -> None:
    """The module takes so much longer, inside."""
    inner = module.forward
    module.forward = lambda *args: _Sleep.apply(inner(*args), forward, backward)  # type: ignore[method-assign]


def watched(one: TimedMethod) -> dict[str, float]:
    step = one.train_steps()[one.points[0]]
    step()
    with Stepwatch(one.objective, one._set_up[1], clock=CLOCK).watch() as seconds:
        step()
    return {part: value for part, value in seconds.items() if part}


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize(
    ("method", "name", "part"),
    [
        ("simclr/dense", "encoder.vit.patch_embed", "embedding"),
        ("simclr/dense", "encoder.vit.blocks.2", "blocks"),
        ("simclr/dense", "encoder.vit.blocks.0.mlp", "blocks"),
        ("simclr/dense", "encoder.vit.norm", "blocks"),
        ("simclr/dense", "projector", "heads"),
        ("simclr/sparsecontrast", "encoder.strategy.predictor", "predictor"),
        ("simclr/sparsecontrast[gate=key_bias]", "encoder.vit.blocks.1.attn.qkv", "blocks"),
        ("simclr/sparsecontrast[gate=key_bias]", "encoder.vit.blocks.1.mlp", "blocks"),
        ("simclr/dynamicvit", "encoder.strategy.predictors.1", "predictor"),
        ("simclr/tokenlearner", "encoder.strategy.learners.0", "predictor"),
        ("moco/dense", "predictor", "heads"),
    ],
)
def test_what_is_slow_is_found_where_it_is(method: str, name: str, part: str, direction: str) -> None:
    check_found(timed(method), name, part, direction)


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize(
    ("encoder", "method", "name", "part"),
    [
        *(
            (CONVNEXT, f"simclr/{strategy}", f"encoder.convnext.{name}", part)
            for strategy in ("dense", "sparsecontrast")  # as modules, and by their halves
            for name, part in (
                ("stem", "embedding"),
                ("stages.0.blocks.0.conv_dw", "blocks"),
                ("stages.0.blocks.1.mlp", "blocks"),
                ("stages.1.downsample", "blocks"),
                ("stages.1.blocks.3.norm", "blocks"),
                ("head.norm", "blocks"),
            )
        ),
        (CONVNEXT, "simclr/sparsecontrast", "encoder.strategy.predictor", "predictor"),
        (CONVNEXT, "simclr/fixed[execution=masked]", "encoder.convnext.stages.0.blocks.0", "blocks"),
        (CONVNEXT, "simclr/random", "projector", "heads"),
        (RESNET, "simclr/dense", "encoder.resnet.conv1", "embedding"),
        (RESNET, "simclr/dense", "encoder.resnet.layer1.0.conv1", "blocks"),
        (RESNET, "moco/dense", "encoder.resnet.layer4", "blocks"),
    ],
    ids=lambda value: str(getattr(value, "name", value)),
)
def test_what_is_slow_in_a_cnn_is_found_where_it_is(
    encoder: EncoderSpec, method: str, name: str, part: str, direction: str
) -> None:
    check_found(timed(method, encoder), name, part, direction)


def check_found(one: TimedMethod, name: str, part: str, direction: str) -> None:
    """All the time that passes is its part's."""
    slow(one.objective.get_submodule(name), **{direction: SLOW})
    found = {key: value for key, value in watched(one).items() if value}
    assert list(found) == [part]
    assert found[part] >= SLOW


def test_a_teacher_pays_for_all_that_it_does() -> None:
    one = timed("moco/sparsecontrast")
    slow(one.objective.get_submodule("teacher_encoder.vit.blocks.0"), SLOW)
    seconds = watched(one)
    assert {part: value for part, value in seconds.items() if value} == {"teacher": SLOW}
    assert set(seconds) == {"optimizer", "heads", "selection", "predictor", "embedding", "blocks", "teacher"}
    assert "teacher" not in watched(timed("simclr/sparsecontrast"))


ALWAYS = {"optimizer", "heads", "selection", "embedding", "blocks"}


@pytest.mark.parametrize(
    ("encoder", "method", "more"),
    [
        (TINY, "simclr/dynamicvit", ("predictor",)),
        (CONVNEXT, "simclr/dense", ()),
        (CONVNEXT, "simclr/random", ()),
        (CONVNEXT, "moco/sparsecontrast", ("predictor", "teacher")),
        (RESNET, "moco/dense", ("teacher",)),
    ],
    ids=lambda value: str(getattr(value, "name", value)),
)
def test_no_time_is_lost_or_counted_twice_and_nothing_stays_behind(
    encoder: EncoderSpec, method: str, more: tuple[str, ...]
) -> None:
    """On a clock that counts its readings: the parts add up to all of them, and each has some."""
    one = timed(method, encoder)
    step = one.train_steps()[one.points[0]]
    ticks = iter(range(10**6))
    with Stepwatch(one.objective, one._set_up[1], clock=lambda: float(next(ticks))).watch() as seconds:
        step()
    assert sum(seconds.values()) == next(ticks) - 1
    assert {part for part, value in seconds.items() if value} == ALWAYS | set(more)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in one.objective.modules())
    assert next(ticks) == sum(seconds.values()) + 2
    step()
    assert next(ticks) == sum(seconds.values()) + 3  # no hook is left to read the clock


def test_a_watched_step_is_the_same_step() -> None:
    one, other = timed("simclr/sparsecontrast"), timed("simclr/sparsecontrast")
    one.train_steps()[one.points[0]]()
    with Stepwatch(other.objective, other._set_up[1]).watch():
        other.train_steps()[other.points[0]]()
    ours, theirs = one.objective.state_dict(), other.objective.state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_shares_are_medians_that_add_up() -> None:
    found = shares([{"a": 1.0, "b": 1.0}, {"a": 1.0, "b": 3.0, "": 0.0}, {"a": 3.0, "b": 9.0}])
    assert found == pytest.approx({"a": 0.25, "b": 0.75})


def test_attention_share() -> None:
    from torch.nn.functional import scaled_dot_product_attention as sdpa

    q = torch.randn(1, 1, 1500, 64)

    def only() -> None:
        sdpa(q, q, q)

    def half() -> None:
        started = time.perf_counter()
        sdpa(q, q, q)
        time.sleep(time.perf_counter() - started)

    cpu = torch.device("cpu")
    assert attention_share(only, cpu) > 0.9
    assert 0.3 < attention_share(half, cpu) < 0.7
    assert attention_share(lambda: time.sleep(0.001), cpu) == 0


def test_views_take_time_and_more_images_more() -> None:
    cpu = torch.device("cpu")
    few, many = (views_seconds(64, 1, batch, cpu) for batch in (2, 40))
    assert 0 < few < many
