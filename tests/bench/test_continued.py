"""`dynamicvit[init=dense]`: a run that continues the finished dense run of its seed, as in DynamicViT's paper."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from safetensors.torch import load_file

from bench.experiment import initial_weights
from bench.measure.inputs import random_views
from bench.measure.macs import count
from bench.measure.paired import PairedTimes
from bench.measure.table import timed_names
from bench.measure.timed_method import TimedMethod
from bench.records.record import Record
from bench.records.store import Store
from bench.specs.run_spec import CONTINUED, EncoderSpec, RunSpec, TrainSpec
from bench.training.build import build, optimizer_of
from bench.training.failures import TrainingFailed
from methods.names import parse_methods
from methods.noise import Noise
from methods.strategies.strategy import Call
from tests.bench import small
from tests.bench.verification.tampering import Verified

NAME = "simclr/dynamicvit[init=dense]"
ENCODER = EncoderSpec(name="vit_stem_d64_l4_patch8", image_size=32)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> small.World:
    world = small.World(tmp_path_factory.mktemp("continued"), cache)
    run = world.run("--methods", NAME, "--set", "train.epochs=6", "--labels", "100")
    assert run.exit_code == 0, run.output
    return world


def records(world: small.World) -> dict[str, tuple[Record, Path]]:
    found = [(Record.model_validate_json((path / "record.json").read_bytes()), path) for path in world.runs().values()]
    return {record.method: (record, path) for record, path in found}


def test_the_dense_run_is_made_too_and_the_other_takes_a_third_of_its_steps(done: small.World) -> None:
    found = records(done)
    assert found.keys() == {"simclr/dense", NAME}
    (dense, _), (continued, folder) = found["simclr/dense"], found[NAME]
    assert continued.spec["start"]["method"] == "simclr/dense"
    assert RunSpec.model_validate(continued.spec).start.run_id == dense.run_id
    assert continued.time.steps * CONTINUED == dense.time.steps
    assert len((folder / "history.jsonl").read_text().splitlines()) == 2
    assert continued.settings == dense.settings  # they stand in one table


def test_it_begins_with_the_weights_of_the_dense_run_and_distils_them(done: small.World) -> None:
    (continued, _), (_, dense) = records(done)[NAME], records(done)["simclr/dense"]
    spec = RunSpec.model_validate(continued.spec)
    objective = build(spec.parsed, spec.encoder, spec.seed)
    objective.start_from(initial_weights(spec, Store(dense.parent)))
    trained = load_file(dense / "checkpoint.safetensors")
    network = objective.encoder.network.state_dict()
    assert all(torch.equal(network[name.removeprefix("vit.")], value) for name, value in trained.items())
    strategy = objective.encoder.strategy
    before = {name: value.clone() for name, value in strategy._teacher[0].state_dict().items()}
    optimizer = optimizer_of(objective, 1e-2, 0.05, objective.lr_factors)
    images = torch.randn(8, 1, spec.encoder.image_size, spec.encoder.image_size)
    loss = objective(images.view(2, 4, *images.shape[1:]), Call(noise=Noise(0, 0, 4)))
    loss.total.backward()
    optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in strategy._teacher[0].state_dict().items())
    assert not torch.equal(network["blocks.0.mlp.fc1.weight"], trained["vit.blocks.0.mlp.fc1.weight"])
    assert not any("teacher" in name for name in objective.state_dict())


def test_its_network_learns_at_a_hundredth_of_the_rate() -> None:
    objective = build(parse_methods(NAME)[0], ENCODER, 0)
    optimizer = optimizer_of(objective, 1e-3, 0.05, objective.lr_factors)
    slow = {id(p) for g in optimizer.param_groups if g.get("lr_scale") == 0.01 for p in g["params"]}
    assert slow == {id(p) for p in objective.encoder.network.parameters() if p.requires_grad}


def test_its_whole_run_includes_that_of_dense(done: small.World) -> None:
    found = records(done)
    (dense, _), (continued, _) = found["simclr/dense"], found[NAME]
    own = continued.macs.train_step * continued.time.steps * continued.spec["train"]["batch"]
    assert continued.macs.whole_run == pytest.approx(dense.macs.whole_run + own)


def test_the_time_of_its_run_includes_that_of_dense() -> None:
    """Steps of 10 s for dense and 12 s here, as many as three to one: 30 s against 42 s."""
    method = parse_methods(NAME)[0]
    fabric = Fabric(accelerator="cpu", devices=1)
    timed = TimedMethod(NAME, method, ENCODER, TrainSpec(batch=4), random_views(ENCODER, 2), fabric)
    seconds = {"simclr/dense train 16": np.array([10.0, 10.0, 10.0]), timed.train_key(): np.array([12.0, 12.0, 12.0])}
    found = timed.run_speedup(PairedTimes(seconds, 0, 0), "simclr/dense train 16", 0.3)
    assert found.median == pytest.approx(30 / 42)
    assert [name for name, _ in timed_names([parse_methods("moco/dynamicvit[init=dense]")[0]])] == [
        "simclr/dense",
        "moco/dense",
        "moco/dynamicvit[init=dense]",
        "simclr/dense#2",
    ]


def test_verify_repeats_both_runs(done: small.World) -> None:
    _, folder = records(done)[NAME]
    quick = Verified(folder, "--quick", "--cache", done.cache)
    assert quick.code == 0, quick.output
    whole = Verified(folder, "--cache", done.cache)
    assert whole.code == 0, whole.output
    assert whole.verdicts["weights of the rerun"] == "holds"


def test_without_the_dense_run_it_fails_and_names_it(done: small.World, tmp_path: Path) -> None:
    spec = RunSpec.model_validate(records(done)[NAME][0].spec)
    with pytest.raises(TrainingFailed, match=rf"it continues {spec.start.run_id}, whose weights .* no finished run"):
        initial_weights(spec, Store(tmp_path))
    assert initial_weights(spec.start, Store(tmp_path)) is None


def test_where_dense_fails_what_continues_it_fails_with_that_reason(tmp_path: Path, cache: Path) -> None:
    world = small.World(tmp_path, cache)
    run = world.run("--methods", NAME, "--set", "train.lr=1e30", "--labels", "100")
    assert run.exit_code == 1
    assert "it continues simclr-dense" in run.output + run.stderr


def test_macs_of_both_counters_agree_with_a_separate_teacher() -> None:
    """The step of a separate teacher takes a whole dense forward pass more, less what it shared."""
    both = [parse_methods(name)[0] for name in ("dynamicvit", NAME)]
    shared, separate = (count(build(method, ENCODER, 0), ENCODER, TrainSpec(batch=4), 1) for method in both)
    dense = count(build(parse_methods("dense")[0], ENCODER, 0), ENCODER, TrainSpec(batch=4), 1)
    branch = shared.train_parts["dense branch"]
    assert separate.train_step - shared.train_step == pytest.approx(2 * dense.inference - branch)
