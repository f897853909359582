"""Golden losses: the first two training steps of every method, so that the science does not change unseen.

Data, order, views, noise, schedule, initial weights, loss and optimizer all have a part in them. If a test here fails,
the same spec now gives other weights. Where that is meant, raise SCIENCE_VERSION in bench/specs/run_spec.py, so that
earlier runs are not taken for new ones, and write the values again with

    python -m tests.bench.test_golden

which refuses to while SCIENCE_VERSION is the one of the values that it would change.

The values are the same on every processor, because everything is computed in float64 where a run has float32. Views and
initial weights are drawn in float64 too, and so are other numbers than those of a run. (Rounding the float32 numbers to
a coarse grid would not do: of ten million weights some always lie so near the middle of two points of the grid that
their last bit decides.) What is left differs by less than 1e-8 from processor to processor. The first step is held to
FIRST. The second, where AdamW and choices between near tokens amplify every difference, is held to what it changes by
when views and initial weights are perturbed by PERTURBATION, which is more than rounding to float32 could do; this
change is measured for every value and stored beside it as `rounding`.

The float32 numbers that a run does start from are held by `inputs`: a projection of its views, and one of its weights.
"""

from __future__ import annotations

import functools
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bench.specs.grid_spec import GridSpec
from bench.specs.run_spec import SCIENCE_VERSION, EncoderSpec, RunSpec, TrainSpec
from datasets.dataset import Dataset
from datasets.views import Views
from methods import OBJECTIVES, STRATEGIES
from tests.float64 import float64_throughout
from tests.processes import ROOT

FILE = Path(__file__).with_name("golden_losses.json")
PERTURBATION = 1e-6  # standard deviation: of pixels, which are about 1 in size, and of weights relative to their size
FIRST = 5e-6  # relative; PERTURBATION changes first losses by up to 2e-6
MARGIN = 3  # a second loss may differ by so many times the largest change that was measured
PERTURBATIONS = range(1, 13)  # seeds of those that are measured; the tests take another
INPUTS = 5e-5  # absolute: rounding changes a projection by 2e-6, other random numbers change it by 0.02 and more
BATCH = 8
OURS = [f"{objective}/{strategy}" for objective in OBJECTIVES for strategy in STRATEGIES]
VARIANTS = [
    "simclr/sparsecontrast[gate=token]",
    "simclr/sparsecontrast[select=budget]",
    "simclr/sparsecontrast[select=threshold]",
    "simclr/sparsecontrast[trim=keys]",
    "simclr/sparsecontrast[fuse=true]",
    "simclr/tokenlearner[version=v1]",
    "simclr/fixed[equal_macs=false]",
    "moco/dynamicvit[teacher=dense]",
]
TIMM = ["simclr/dense", "moco/sparsecontrast", "simclr/dynamicvit", "simclr/tokenlearner"]
CASES = [("vit_stem_d64_l4_patch8", method) for method in [*OURS, *VARIANTS]]
CASES += [("vit_tiny_patch16_224", method) for method in TIMM]
ON_CONVNEXT = [s for s, entry in STRATEGIES.items() if "convnext" in entry.encoders]
CASES += [("convnext_d64_l6_patch8", f"simclr/{strategy}") for strategy in ON_CONVNEXT]
CASES += [("convnext_d64_l6_patch8", method) for method in ("moco/dense", "moco/sparsecontrast")]
CASES += [("convnext_d64_l6_patch8", "simclr/sparsecontrast[select=budget]"), ("resnet18", "simclr/dense")]

FEW = [  # what other instruction sets compute in every run of the tests; all CASES are in the tier `slow`
    ("vit_stem_d64_l4_patch8", "simclr/dense"),
    ("vit_stem_d64_l4_patch8", "moco/tome"),
    ("vit_stem_d64_l4_patch8", "simclr/dynamicvit"),
    ("convnext_d64_l6_patch8", "moco/sparsecontrast"),
    ("resnet18", "simclr/dense"),
]
INSTRUCTIONS = {  # of ATen, MKL and oneDNN
    "default": {"ATEN_CPU_CAPABILITY": "default", "MKL_CBWR": "COMPATIBLE", "ONEDNN_MAX_CPU_ISA": "SSE41"},
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "MKL_CBWR": "AVX2", "ONEDNN_MAX_CPU_ISA": "AVX2"},
}


@functools.cache
def noise_images() -> Dataset:
    """Eight random images, each with a lesion somewhere."""
    generator = np.random.default_rng(20240917)
    masks = np.zeros((BATCH, 32, 32), np.uint16)
    for mask, (row, column) in zip(masks, generator.integers(0, 24, (BATCH, 2)), strict=True):
        mask[row : row + 8, column : column + 8] = 1
    return Dataset(
        name="noise",
        images=generator.integers(0, 256, (BATCH, 32, 32), dtype=np.uint8),
        labels=np.ones((BATCH, 1), np.float32),
        label_names=("lesion",),
        patients=np.arange(BATCH).astype(str),
        masks=masks,
        has_mask=np.ones((BATCH, 1), bool),
        fingerprint="0" * 64,
    )


def name_of(encoder: str, method: str) -> str:
    return f"{encoder}: {method}"


def run_spec(encoder: str, method: str) -> RunSpec:
    """Two epochs of one batch: a step at the start of the ramp, one after it."""
    train = TrainSpec(epochs=2, batch=BATCH, lr=1e-3, warmup=0.0, ramp=0.4)
    spec = EncoderSpec(name=encoder, image_size=32)
    (run,) = GridSpec(methods=method, baselines=(), seeds=(0,), encoder=spec, train=train).runs()
    return run


@contextmanager
def perturbed(seed: int) -> Iterator[None]:
    """Add normal noise of size PERTURBATION to the views of every step and to the initial weights."""
    from bench.training import pretrain as module

    apply, build = Views.apply, module.build
    generator = torch.Generator().manual_seed(seed)

    def noise_like(x: Tensor) -> Tensor:
        return PERTURBATION * torch.randn(x.shape, generator=generator)

    def perturbed_views(*arguments: Any) -> tuple[Tensor, Tensor | None]:
        pair, masks = apply(*arguments)
        return pair + noise_like(pair), masks

    def perturbed_build(*arguments: Any) -> torch.nn.Module:
        objective = build(*arguments)
        with torch.no_grad():
            for parameter in objective.parameters():
                parameter.mul_(1 + noise_like(parameter))
        return objective

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Views, "apply", perturbed_views)
        patch.setattr(module, "build", perturbed_build)
        yield


def losses(encoder: str, method: str) -> dict[str, list[float]]:
    """Every loss and statistic of the two steps, the first and the second value of each."""
    from lightning_fabric import Fabric

    from bench.training.pretrain import pretrain

    fabric = Fabric(accelerator="cpu", devices=1, precision="64-true")
    with float64_throughout():
        run = run_spec(encoder, method)
        history = pretrain(run, noise_images(), np.arange(BATCH), fabric, lambda state: None).history
    names = ["loss", *history[0]["selection"]]
    return {name: [float({**line["selection"], **line}[name]) for line in history] for name in names}


def inputs(encoder: str, method: str) -> dict[str, float]:
    """A projection of the views of a run's first step and one of its initial weights, in float32 as in every run."""
    from bench.training.pretrain import build, draw_views, views_of

    run = run_spec(encoder, method)
    objective = build(run.parsed, run.encoder, run.seed)
    parameters = draw_views(run, objective.blur_probabilities, 0, BATCH)
    pair, _ = views_of(run).apply(torch.from_numpy(noise_images().images), parameters)
    weights = torch.cat([parameter.detach().flatten() for parameter in objective.parameters()])
    return {"views": projection(pair), "weights": projection(weights)}


def projection(x: Tensor) -> float:
    """The sum of all elements under random signs, over the root of their number: as large as one of them."""
    signs = torch.randint(2, (x.numel(),), generator=torch.Generator().manual_seed(0)) * 2 - 1
    return float(x.flatten().double() @ signs.double()) / math.sqrt(x.numel())


def computed(encoder: str, method: str) -> dict[str, Any]:
    return {"inputs": inputs(encoder, method), "losses": losses(encoder, method)}


def golden() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    return found


def differences(now: dict[str, list[float]], then: dict[str, dict[str, float]]) -> list[str]:
    """Sentences on the losses that are not within their tolerance. A new statistic is no other weights."""
    if missing := then.keys() - now.keys():
        return [f"losses are missing: {', '.join(sorted(missing))}"]
    found = []
    for name, before in then.items():
        first, second = now[name]
        if first != pytest.approx(before["first"], rel=FIRST, abs=1e-9):
            found.append(f"{name} of the first step: {before['first']} became {first}")
        if second != pytest.approx(before["second"], rel=FIRST, abs=MARGIN * before["rounding"]):
            found.append(f"{name} of the second step: {before['second']} became {second}")
    return found


def changes(now: dict[str, Any], then: dict[str, Any]) -> list[str]:
    """Sentences on the inputs and losses of a case that are not within their tolerance."""
    moved = [name for name, value in now["inputs"].items() if abs(value - then["inputs"][name]) > INPUTS]
    return [
        *(f"{name} of the first step: {then['inputs'][name]} became {now['inputs'][name]}" for name in moved),
        *differences(now["losses"], then["losses"]),
    ]


def complaint(encoder: str, method: str, changed: list[str]) -> str:
    return (
        f"{method} on {encoder} gives other weights than before. If that is meant, raise SCIENCE_VERSION in"
        f" bench/specs/run_spec.py and run `python -m tests.bench.test_golden`. {'; '.join(changed)}"
    )


def test_the_values_are_of_this_science_version() -> None:
    assert golden()["science_version"] == SCIENCE_VERSION, "write the golden losses again (see the top of this file)"


def test_every_method_has_values() -> None:
    assert set(golden()["cases"]) == {name_of(*case) for case in CASES}, (
        "write the golden losses again (see the top of this file)"
    )


@pytest.mark.parametrize(("encoder", "method"), CASES)
def test_two_steps_give_the_losses_they_always_gave(encoder: str, method: str) -> None:
    changed = changes(computed(encoder, method), golden()["cases"][name_of(encoder, method)])
    assert not changed, complaint(encoder, method, changed)


@pytest.mark.parametrize(
    ("encoder", "method"), [case if case in FEW else pytest.param(*case, marks=pytest.mark.slow) for case in CASES]
)
def test_a_small_perturbation_stays_within_the_tolerance(encoder: str, method: str) -> None:
    then = golden()["cases"][name_of(encoder, method)]["losses"]
    with perturbed(seed=PERTURBATIONS.stop):
        now = losses(encoder, method)
    assert now["loss"] != [then["loss"]["first"], then["loss"]["second"]]
    assert not differences(now, then)


@pytest.mark.parametrize("cases", [FEW, pytest.param(CASES, marks=pytest.mark.slow)], ids=["few", "all"])
@pytest.mark.parametrize("instructions", INSTRUCTIONS)
def test_other_instructions_of_the_processor_give_the_same(instructions: str, cases: list[tuple[str, str]]) -> None:
    """Kernels for other instruction sets round differently, as another processor does."""
    code = f"from tests.bench import test_golden; test_golden.print_computed({cases!r})"
    environment = {**os.environ, **INSTRUCTIONS[instructions]}
    child = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert child.returncode == 0, child.stderr
    answer = json.loads(child.stdout.splitlines()[-1])
    if answer["capability"].lower() != instructions:
        pytest.skip(f"torch has {answer['capability']} on this processor, not {instructions}")
    assert list(answer["cases"]) == [name_of(*case) for case in cases]
    for encoder, method in cases:
        name = name_of(encoder, method)
        changed = changes(answer["cases"][name], golden()["cases"][name])
        assert not changed, complaint(encoder, method, changed)


def print_computed(cases: Sequence[tuple[str, str]]) -> None:
    """Print, as a line of JSON, what these cases give in this process, and for which instructions torch computed it."""
    answer = {
        "capability": torch.backends.cpu.get_cpu_capability(),
        "cases": {name_of(*case): computed(*case) for case in cases},
    }
    print(json.dumps(answer))


def test_a_change_of_the_science_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same test with a subtly other optimizer and order: each must be noticed."""
    from bench.training import pretrain as module

    encoder, method = CASES[0]
    then = golden()["cases"][name_of(encoder, method)]["losses"]
    assert not differences(losses(encoder, method), then)
    real_optimizer, real_order = module.optimizer_of, module.epoch_order
    with monkeypatch.context() as patch:
        patch.setattr(module, "optimizer_of", lambda model, lr, *others: real_optimizer(model, 1.02 * lr, *others))
        assert differences(losses(encoder, method), then)
    with monkeypatch.context() as patch:
        patch.setattr(module, "epoch_order", lambda images, seed, *rest: real_order(images, seed + 1, *rest))
        assert differences(losses(encoder, method), then)


def test_other_inputs_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights of another seed, and views with a hundredth more contrast."""
    from bench.training import pretrain as module

    encoder, method = CASES[0]
    now = computed(encoder, method)
    assert not changes(now, golden()["cases"][name_of(encoder, method)])
    real_build, real_apply = module.build, Views.apply
    with monkeypatch.context() as patch:
        patch.setattr(module, "build", lambda method, encoder, seed: real_build(method, encoder, seed + 1))
        assert abs(inputs(encoder, method)["weights"] - now["inputs"]["weights"]) > 100 * INPUTS
    with monkeypatch.context() as patch:
        patch.setattr(Views, "apply", lambda *given: (1.01 * real_apply(*given)[0], None))
        assert abs(inputs(encoder, method)["views"] - now["inputs"]["views"]) > 10 * INPUTS


def test_new_values_need_a_new_science_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = name_of(*CASES[0])
    stored = golden()["cases"][name]
    other = {**stored, "losses": {"loss": {"first": 9.0, "second": 9.0, "rounding": 0.0}}}
    old = {"science_version": SCIENCE_VERSION, "cases": {name: other}}
    path = tmp_path / "golden.json"
    path.write_text(json.dumps(old), encoding="utf-8")
    module = sys.modules[__name__]
    monkeypatch.setattr(module, "FILE", path)
    monkeypatch.setattr(module, "CASES", CASES[:1])
    monkeypatch.setattr(module, "PERTURBATIONS", PERTURBATIONS[:1])
    with pytest.raises(SystemExit, match="raise SCIENCE_VERSION"):
        write()
    assert json.loads(path.read_text(encoding="utf-8")) == old
    path.write_text(json.dumps({**old, "science_version": SCIENCE_VERSION - 1}), encoding="utf-8")
    write()
    written = golden()["cases"][name]
    loss = written["losses"]["loss"]
    assert not changes({**written, "losses": {"loss": [loss["first"], loss["second"]]}}, stored)
    assert 0 < loss["rounding"] <= stored["losses"]["loss"]["rounding"]  # of one perturbation, instead of all


def with_rounding(encoder: str, method: str, values: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """Losses as they are stored: beside each the largest change of its second value under a perturbation."""
    under_perturbation = []
    for seed in PERTURBATIONS:
        with perturbed(seed):
            under_perturbation.append(losses(encoder, method))
    return {
        name: {
            "first": first,
            "second": second,
            "rounding": float(f"{max(abs(other[name][1] - second) for other in under_perturbation):.1e}"),
        }
        for name, (first, second) in values.items()
    }


def write() -> None:
    """Compute all values and write them; new methods may be added at any time, others change with the version."""
    old = golden() if FILE.exists() else {"science_version": None, "cases": {}}
    kept = old["cases"] if old["science_version"] == SCIENCE_VERSION else {}
    cases = {}
    for encoder, method in CASES:
        name, now = name_of(encoder, method), computed(encoder, method)
        if name in kept:
            changed = changes(now, kept[name])
            if changed:
                sys.exit(
                    f"{name}: {'; '.join(changed)}. If that is meant, raise SCIENCE_VERSION in bench/specs/run_spec.py"
                    " first."
                )
            cases[name] = kept[name]
        else:
            cases[name] = {**now, "losses": with_rounding(encoder, method, now["losses"])}
    FILE.write_text(json.dumps({"science_version": SCIENCE_VERSION, "cases": cases}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write()
