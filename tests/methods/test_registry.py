"""The registry, and two training steps of every objective with every strategy."""

import inspect
import math
from typing import get_args

import pytest
import torch

from methods import (
    BASELINES,
    CONTROL,
    DEFAULT_OBJECTIVE,
    HEADLINE,
    OBJECTIVES,
    REFERENCE,
    STRATEGIES,
    SUPERVISED,
    UNTRAINED,
    BaselineName,
    Entry,
    build_encoder,
    build_objective,
    inference_modes,
)
from methods.names import REFERENCE_METHOD, parse_methods
from methods.noise import Noise
from methods.objectives.objective import Objective
from methods.strategies.strategy import Call, Strategy

STEM, CONVNEXT = "vit_stem_d64_l4_patch8", "convnext_d64_l6_patch8"
ON = [(STEM, strategy) for strategy in STRATEGIES]
ON += [(CONVNEXT, strategy) for strategy, entry in STRATEGIES.items() if "convnext" in entry.encoders]

HARNESS = {"geometry", "encoder", "seed"}  # given by the harness, not by the user
# options about learning the predictor, which is not trained here
INHERITED = {"frozen": {"gate", "lambda_sparsity", "predictor_lr"}}


@pytest.mark.parametrize(("name", "entry"), [*OBJECTIVES.items(), *STRATEGIES.items()])
def test_options_are_the_signature_of_the_class(name: str, entry: Entry) -> None:
    cls = entry.load()
    assert issubclass(cls, Objective if name in OBJECTIVES else Strategy)
    parameters = inspect.signature(cls).parameters
    own = {p: v.default for p, v in parameters.items() if p not in HARNESS | INHERITED.get(name, set())}
    assert {option: given.default for option, given in entry.options.items()} == own
    for option, given in entry.options.items():
        assert type(given.default) is type(own[option]), option
        assert not given.choices or given.default in given.choices
        assert given.low is None or given.low <= given.default
        assert given.high is None or given.default <= given.high
    assert entry.summary
    assert entry.source


@pytest.mark.parametrize(("name", "entry"), [*OBJECTIVES.items(), *STRATEGIES.items()])
def test_every_choice_and_switch_can_be_built(name: str, entry: Entry) -> None:
    for option, given in entry.options.items():
        values = given.choices or ((True, False) if isinstance(given.default, bool) else ())
        for value in values:
            strategy = name if name in STRATEGIES else "dense"
            options = {option: value}
            encoder = build_encoder(
                STEM, strategy, options if name in STRATEGIES else {}, image_size=32, channels=1, seed=0
            )
            objective = name if name in OBJECTIVES else "simclr"
            built = build_objective(objective, encoder, options if name in OBJECTIVES else {}, seed=0)
            loss = built(torch.randn(2, 4, 1, 32, 32), call(0))
            assert loss.total.isfinite()


def test_the_headline_set_is_known() -> None:
    assert [method.name for method in parse_methods("all")] == list(HEADLINE)
    assert {"simclr/fixed", "simclr/patchdropout", "simclr/sparsecontrast", "moco/dense"} <= set(HEADLINE)
    assert inference_modes("patchdropout") == inference_modes("dense") == ("dense",)
    assert inference_modes("random") == ("pruned", "dense")
    assert all(inference_modes(baseline) == ("dense",) for baseline in BASELINES)


def test_what_the_science_speaks_of_is_in_the_registry() -> None:
    assert {REFERENCE, CONTROL} <= STRATEGIES.keys()
    assert DEFAULT_OBJECTIVE in OBJECTIVES
    assert REFERENCE_METHOD.name == "simclr/dense" == next(iter(HEADLINE))
    assert list(BASELINES) == [UNTRAINED, SUPERVISED] == list(get_args(BaselineName))
    assert {entry.tuned_as for entry in STRATEGIES.values()} <= STRATEGIES.keys()


def call(step: int) -> Call:
    share = torch.rand(8, 16, generator=torch.Generator().manual_seed(step))
    return Call(0.5, 0.1, Noise(0, step, 4), lesions=share)


# Parameters that no loss can change, and why.
UNMOVED = {
    "learners.0.mlp.2.bias": "a softmax over the positions does not see a constant",
    "convnext.head.norm.bias": "likewise",
    "vit.norm.bias": "the batch norm that follows the pooling takes a constant away",
    "projector.0.bias": "so does the one after the first linear layer",
}


@pytest.mark.parametrize(("name", "strategy"), ON)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_method_trains(objective: str, name: str, strategy: str) -> None:
    encoder = build_encoder(name, strategy, {}, image_size=32, channels=1, seed=0)
    model = build_objective(objective, encoder, {}, seed=0)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(trained.values(), 1e-3)
    before = {name: p.detach().clone() for name, p in trained.items()}
    moved: set[str] = set()
    generator = torch.Generator().manual_seed(1)
    for step in range(2):
        optimizer.zero_grad()
        loss = model(torch.randn(2, 4, 1, 32, 32, generator=generator), call(step))
        loss.total.backward()
        assert math.isfinite(float(loss.total.detach()))
        moved |= {name for name, p in trained.items() if p.grad is not None and p.grad.abs().max() > 1e-9}
        optimizer.step()
        model.after_step((step + 1) / 2)
    still = trained.keys() - moved
    assert all(any(name.endswith(known) for known in UNMOVED) for name in still), still
    first = "vit.blocks" if name == STEM else "convnext.stages.0.blocks"
    assert not torch.equal(before[f"encoder.{first}.0.mlp.fc1.weight"], trained[f"encoder.{first}.0.mlp.fc1.weight"])
    if strategy == "frozen":
        assert not any("strategy" in name for name in trained)


@pytest.mark.parametrize(("name", "strategy"), ON)
def test_inference_of_an_image_alone_equals_the_image_in_a_batch(name: str, strategy: str) -> None:
    encoder = build_encoder(name, strategy, {}, image_size=32, channels=1, seed=0).eval()
    images = torch.randn(6, 1, 32, 32)
    share = (torch.rand(6, 16) - 0.5).clamp_min(0)
    for mode in inference_modes(strategy):
        with torch.no_grad():
            together = encoder(images, Call(inference=mode, lesions=share))
            for i in range(6):
                alone = encoder(images[i : i + 1], Call(inference=mode, lesions=share[i : i + 1]))
                torch.testing.assert_close(alone.features[0], together.features[i], rtol=1e-5, atol=1e-5)
                if together.kept is not None:
                    assert torch.equal(alone.kept[0], together.kept[i])
        assert together.features.shape == (6, 64)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_step_is_the_same_whatever_was_drawn_before(strategy: str) -> None:
    losses = []
    for draws in (0, 5):
        encoder = build_encoder(STEM, strategy, {}, image_size=32, channels=1, seed=0)
        model = build_objective("simclr", encoder, {}, seed=0)
        views = torch.randn(2, 4, 1, 32, 32, generator=torch.Generator().manual_seed(1))
        torch.rand(draws)
        losses.append(model(views, call(3)).total)
    assert torch.equal(*losses)


def test_importing_the_registry_needs_no_torch() -> None:
    import subprocess
    import sys

    script = "import sys, methods, methods.names; methods.names.parse_methods('all'); assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
