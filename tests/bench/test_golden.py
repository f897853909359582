"""Golden losses: the first two training steps of every method, so that the science does not change unseen.

Data, order, views, noise, schedule, initial weights, loss and optimizer all have a part in them. They are of a training
in float64, from views and weights made in float32 as ever: in float32 AdamW turns the rounding of gradients near 0 into
whole steps, and a choice between two near tokens (ToMe's, say) then differs from processor to processor. If this fails,
the same spec now gives other weights. Where that is meant, raise SCIENCE_VERSION in bench/specs/run_spec.py, so that earlier runs
are not taken for new ones, and write the values anew with

    python -m tests.bench.test_golden

which refuses to while SCIENCE_VERSION is the one of the values that it would change.
"""

from __future__ import annotations

import functools
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from bench.specs.grid_spec import GridSpec
from bench.specs.run_spec import SCIENCE_VERSION, EncoderSpec, TrainSpec
from datasets.dataset import Dataset
from methods import OBJECTIVES, STRATEGIES

FILE = Path(__file__).with_name("golden_losses.json")
TOLERANCE = 1e-4  # relative: float32 views and weights are rounded differently from machine to machine
BATCH = 8
OURS = [f"{objective}/{strategy}" for objective in OBJECTIVES for strategy in STRATEGIES]
VARIANTS = [  # not select=threshold: whether a logit near 0 is above it is a matter of rounding
    "simclr/sparsecontrast[gate=token]",
    "simclr/sparsecontrast[select=budget]",
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


def losses(encoder: str, method: str) -> dict[str, list[float]]:
    """Every loss and statistic of two steps: of two epochs of one batch, one at the start of the ramp, one after it."""
    from lightning_fabric import Fabric

    from bench.training.pretrain import pretrain

    train = TrainSpec(epochs=2, batch=BATCH, lr=1e-3, warmup=0.0, ramp=0.4)
    spec = EncoderSpec(name=encoder, image_size=32)
    (run,) = GridSpec(methods=method, baselines=(), seeds=(0,), encoder=spec, train=train).runs()
    fabric = Fabric(accelerator="cpu", devices=1, precision="64-true")
    history = pretrain(run, noise_images(), np.arange(BATCH), fabric, lambda state: None).history
    names = ["loss", *history[0]["selection"]]
    return {name: [float({**line["selection"], **line}[name]) for line in history] for name in names}


def golden() -> dict:
    return json.loads(FILE.read_text(encoding="utf-8"))


def differences(now: dict[str, list[float]], then: dict[str, list[float]]) -> list[str]:
    """Sentences on all that is not within the tolerance."""
    if now.keys() != then.keys():
        return [f"there are other losses: {sorted(now.keys() ^ then.keys())}"]
    return [
        f"{name}: {then[name]} became {now[name]}"
        for name in now
        if now[name] != pytest.approx(then[name], rel=TOLERANCE, abs=1e-6)
    ]


def test_the_values_are_of_this_science_version() -> None:
    assert golden()["science_version"] == SCIENCE_VERSION, "write the golden losses anew (see the top of this file)"


def test_every_method_has_values() -> None:
    assert set(golden()["losses"]) == {f"{encoder}: {method}" for encoder, method in CASES}, (
        "write the golden losses anew (see the top of this file)"
    )


@pytest.mark.parametrize(("encoder", "method"), CASES)
def test_two_steps_give_the_losses_they_always_gave(encoder: str, method: str) -> None:
    changed = differences(losses(encoder, method), golden()["losses"][f"{encoder}: {method}"])
    assert not changed, (
        f"{method} on {encoder} gives other weights than before. If that is meant, raise SCIENCE_VERSION in"
        f" bench/specs/run_spec.py and run `python -m tests.bench.test_golden`. {'; '.join(changed)}"
    )


def test_a_change_of_the_science_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same test with a subtly other optimizer, loss and order: each must be noticed."""
    from bench.training import pretrain as module

    encoder, method = CASES[0]
    then = golden()["losses"][f"{encoder}: {method}"]
    assert not differences(losses(encoder, method), then)
    real_optimizer, real_order = module.optimizer_of, module.epoch_order
    with monkeypatch.context() as patch:
        patch.setattr(module, "optimizer_of", lambda model, lr, decay: real_optimizer(model, 1.02 * lr, decay))
        assert differences(losses(encoder, method), then)
    with monkeypatch.context() as patch:
        patch.setattr(module, "epoch_order", lambda images, seed, *rest: real_order(images, seed + 1, *rest))
        assert differences(losses(encoder, method), then)


def test_new_values_need_a_new_science_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"{CASES[0][0]}: {CASES[0][1]}"
    old = {"science_version": SCIENCE_VERSION, "losses": {name: {"loss": [9.0, 9.0]}}}
    path = tmp_path / "golden.json"
    path.write_text(json.dumps(old), encoding="utf-8")
    module = sys.modules[__name__]
    monkeypatch.setattr(module, "FILE", path)
    monkeypatch.setattr(module, "CASES", CASES[:1])
    with pytest.raises(SystemExit, match="raise SCIENCE_VERSION"):
        write()
    assert json.loads(path.read_text(encoding="utf-8")) == old
    path.write_text(json.dumps({**old, "science_version": SCIENCE_VERSION - 1}), encoding="utf-8")
    write()
    assert json.loads(path.read_text(encoding="utf-8"))["losses"][name]["loss"][0] != 9.0


def write() -> None:
    """Compute all values and write them; new methods may be added at any time, others change with the version."""
    now = {f"{encoder}: {method}": losses(encoder, method) for encoder, method in CASES}
    old = golden() if FILE.exists() else {"science_version": None, "losses": {}}
    if old["science_version"] == SCIENCE_VERSION:
        for name in now.keys() & old["losses"].keys():
            changed = differences(now[name], old["losses"][name])
            if changed:
                sys.exit(
                    f"{name}: {'; '.join(changed)}. If that is meant, raise SCIENCE_VERSION in bench/specs/run_spec.py first."
                )
            now[name] = old["losses"][name]
    FILE.write_text(json.dumps({"science_version": SCIENCE_VERSION, "losses": now}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write()
