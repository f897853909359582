"""A training that was stopped anywhere ends as if it had not been; a damaged checkpoint gives way to the one before."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.specs.run_spec import RunSpec
from bench.training.build import optimizer_of
from bench.training.checkpoint import Checkpoints, Position
from bench.training.data import load_run_data
from bench.training.failures import TrainingFailed
from bench.training.pretrain import Trained, pretrain, restored
from bench.training.signals import Stopping
from methods import STRATEGIES
from tests.bench import small

VARIANTS = ["sparsecontrast[select=budget]", "sparsecontrast[gate=key_bias]", "patchdropout"]
OBJECTIVES = ["simclr", "moco"]


class StopsAt(Checkpoints):
    """Asks to stop after so many steps, as a signal would."""

    def __init__(self, folder: Path, *steps: int) -> None:
        super().__init__(folder)
        self.steps, self.done = steps, 0

    def restore(self, model: Any, optimizer: Any, at: int | None = None) -> Position | None:
        point = super().restore(model, optimizer, at)
        self.done = 0 if point is None else point.step
        return point

    def due(self) -> bool:
        self.done += 1
        if self.done in self.steps:
            self.stopping._asked = 2
        return super().due()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, cache, fabric) -> Any:
    def of(method: str, **changes: Any) -> tuple[RunSpec, Any]:
        folder = tmp_path_factory.mktemp("spec")
        (spec,) = small.grid(folder, methods=method, train__epochs=2, train__ramp=0.5, **changes).runs()
        return spec, load_run_data(spec, fabric, cache)

    return of


def train(spec: RunSpec, run_data: Any, checkpoints: Checkpoints | None = None) -> Trained:
    """Two epochs of three steps."""
    index = run_data.splits.train[: 3 * spec.train.batch]
    return pretrain(spec, run_data.dataset, index, run_data.fabric, lambda state: None, checkpoints)


def stop(spec: RunSpec, run_data: Any, folder: Path, *steps: int) -> None:
    """A training that is stopped after each of these steps, and goes on after each but the last."""
    for at in steps:
        with pytest.raises(KeyboardInterrupt):
            train(spec, run_data, StopsAt(folder, at))


def timeless(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in line.items() if key != "images_per_second"} for line in history]


def same(a: Trained, b: Trained) -> None:
    """Every tensor bit by bit, heads, teacher and buffers with them, and the history but for the speed."""
    left, right = a.objective.state_dict(), b.objective.state_dict()
    assert left.keys() == right.keys()
    differing = [name for name in left if not torch.equal(left[name], right[name])]
    assert not differing
    assert timeless(a.history) == timeless(b.history)
    assert a.steps == b.steps


def names() -> list[str]:
    plain = [name for name in STRATEGIES if name not in ("untrained", "supervised")]
    return [f"{objective}/{strategy}" for objective in OBJECTIVES for strategy in [*plain, *VARIANTS]]


@pytest.mark.parametrize("method", names())
def test_going_on_gives_the_same_bits(prepared, method: str, tmp_path: Path) -> None:
    """Stopped in the middle of an epoch, on the ramp, and again at an epoch's end."""
    spec, run_data = prepared(method)
    whole = train(spec, run_data)
    assert whole.steps == 6
    stop(spec, run_data, tmp_path, 1, 3)
    resumed = train(spec, run_data, Checkpoints(tmp_path))
    same(whole, resumed)
    assert (whole.resumed, resumed.resumed) == (0, 2)
    again = train(spec, run_data, Checkpoints(tmp_path))  # the end is a checkpoint too: nothing is trained twice
    same(whole, again)


@pytest.mark.parametrize("encoder", ["convnext_d64_l6_patch8"])
def test_a_cnn_goes_on_in_its_memory_format(prepared, encoder: str, tmp_path: Path) -> None:
    spec, run_data = prepared("sparsecontrast", encoder__name=encoder)
    whole = train(spec, run_data)
    stop(spec, run_data, tmp_path, 2)
    same(whole, train(spec, run_data, Checkpoints(tmp_path)))


def test_checkpoints_come_by_the_clock_and_two_are_kept(prepared, tmp_path: Path) -> None:
    spec, run_data = prepared("dense")
    steps = train(spec, run_data, Checkpoints(tmp_path, minutes=0.0)).steps
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        f"{step}.{suffix}" for step in (steps - 1, steps) for suffix in ("json", "safetensors")
    )
    never = tmp_path / "never"
    train(spec, run_data, Checkpoints(never, minutes=60.0))
    assert sorted(path.name for path in never.iterdir()) == [f"{steps}.json", f"{steps}.safetensors"]


def damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    changed = {
        "truncated": content[: len(content) // 2],
        "empty": b"",
        "one bit": content[:-9] + bytes([content[-9] ^ 1]) + content[-8:],
        "not there": None,
        "a pickle": b"\x80\x04\x95",
    }[how]
    path.unlink()
    if changed is not None:
        path.write_bytes(changed)


@pytest.fixture(scope="module")
def sparse(prepared, tmp_path_factory: pytest.TempPathFactory) -> tuple[Trained, Path]:
    """A whole training, and checkpoints of steps 2 and 3 of the same."""
    spec, run_data = prepared("sparsecontrast")
    folder = tmp_path_factory.mktemp("stopped")
    stop(spec, run_data, folder, 2, 3)
    return train(spec, run_data), folder


@pytest.mark.parametrize("how", ["truncated", "empty", "one bit", "not there", "a pickle"])
@pytest.mark.parametrize("suffix", ["json", "safetensors"])
def test_a_damaged_one_gives_way_to_the_one_before(prepared, sparse, tmp_path: Path, how: str, suffix: str) -> None:
    spec, run_data = prepared("sparsecontrast")
    whole, stopped = sparse
    shutil.copytree(stopped, tmp_path, dirs_exist_ok=True)
    damage(tmp_path / f"3.{suffix}", how)
    seen: list[Position | None] = []

    class Watched(Checkpoints):
        def restore(self, model: Any, optimizer: Any, at: int | None = None) -> Position | None:
            seen.append(super().restore(model, optimizer, at))
            return seen[-1]

    resumed = train(spec, run_data, Watched(tmp_path))
    assert [point.step for point in seen if point] == [2]
    same(whole, resumed)


@pytest.mark.parametrize("change", [{"step": 2}, {"position": {"history": [], "seen": {}, "seconds": 0, "resumed": 9}}])
def test_an_edited_position_is_recognised(prepared, tmp_path: Path, change: dict[str, Any]) -> None:
    spec, run_data = prepared("dense")
    stop(spec, run_data, tmp_path, 3)
    path = tmp_path / "3.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    objective = build_dense(spec)
    assert Checkpoints(tmp_path).restore(objective, optimizer_of(objective, 1e-3, 0.05)) is None


def stopped_twice(prepared, folder: Path) -> tuple[Any, torch.optim.Optimizer, Checkpoints]:
    """A fresh model and its optimizer, and checkpoints of steps 2 and 3."""
    spec, run_data = prepared("dense")
    stop(spec, run_data, folder, 2, 3)
    objective = build_dense(spec)
    return objective, optimizer_of(objective, 1e-3, 0.05), Checkpoints(folder)


def test_the_one_that_another_process_has_read_is_waited_for(prepared, tmp_path: Path, monkeypatch) -> None:
    """As on a network file system, which shows on one host later what was written on another."""
    objective, optimizer, checkpoints = stopped_twice(prepared, tmp_path)
    older = checkpoints.restore(objective, optimizer, at=2)
    assert older is not None
    assert older.step == 2
    hidden = (tmp_path / "3.json").rename(tmp_path / "hidden")
    monkeypatch.setattr("bench.training.checkpoint.time.sleep", lambda seconds: hidden.exists() and hidden.rename(path))
    path = tmp_path / "3.json"
    found = checkpoints.restore(objective, optimizer, at=3)
    assert found is not None
    assert found.step == 3
    monkeypatch.setattr("bench.training.checkpoint.PATIENCE", 0.0)
    assert checkpoints.restore(objective, optimizer, at=4) is None


class Ranks:
    """A fabric of two ranks, of which this process is one; the other says `told`."""

    world_size, device = 1, torch.device("cpu")

    def __init__(self, rank: int, told: int) -> None:
        self.is_global_zero, self.told = rank == 0, told

    def broadcast(self, value: int) -> int:
        return value if self.is_global_zero else self.told


def test_all_ranks_go_on_from_the_checkpoint_that_rank_0_has_read(prepared, tmp_path: Path, monkeypatch) -> None:
    objective, optimizer, checkpoints = stopped_twice(prepared, tmp_path)

    def step(fabric: Any) -> int:
        point = restored(checkpoints, objective, optimizer, fabric)
        return 0 if point is None else point.step

    assert step(Ranks(0, told=-1)) == 3
    assert step(Ranks(1, told=2)) == 2  # rank 0 did not find the third whole
    assert step(Ranks(1, told=0)) == 0
    monkeypatch.setattr("bench.training.checkpoint.PATIENCE", 0.0)
    with pytest.raises(TrainingFailed, match=r"a rank can't read the checkpoint of step 4: does each see the results"):
        step(Ranks(1, told=4))


def test_what_looks_like_a_number_is_no_step(tmp_path: Path) -> None:
    for name in ("7.json", "².json", "x.json"):
        (tmp_path / name).touch()
    assert Checkpoints(tmp_path).reached() == 7


def build_dense(spec: RunSpec) -> Any:
    from bench.training.build import build

    return build(spec.parsed, spec.encoder, spec.seed)


def test_a_checkpoint_of_another_model_is_left_alone(prepared, tmp_path: Path) -> None:
    spec, run_data = prepared("sparsecontrast")
    stop(spec, run_data, tmp_path, 3)
    other, _ = prepared("dense")
    objective = build_dense(other)
    before = {name: tensor.clone() for name, tensor in objective.state_dict().items()}
    optimizer = optimizer_of(objective, 1e-3, 0.05)
    assert Checkpoints(tmp_path).restore(objective, optimizer) is None
    assert all(torch.equal(before[name], tensor) for name, tensor in objective.state_dict().items())
    assert not optimizer.state


def test_all_goes_when_the_result_is_recorded(tmp_path: Path, prepared) -> None:
    folder = tmp_path / "training"
    spec, run_data = prepared("dense")
    train(spec, run_data, Checkpoints(folder, minutes=0.0))
    (folder / ".5.json.123.tmp").write_bytes(b"half")
    Checkpoints(folder).clear()
    assert not folder.exists()
    Checkpoints(folder).clear()
    Checkpoints(None).clear()


def test_without_a_folder_a_stop_is_answered_all_the_same(prepared) -> None:
    spec, run_data = prepared("dense")
    gone = Stopping(orphaned=lambda: True)
    with pytest.raises(KeyboardInterrupt):
        train(spec, run_data, Checkpoints(None, stopping=gone))


def test_damaged_ones_of_later_steps_do_not_crowd_out_whole_ones(prepared, tmp_path: Path) -> None:
    spec, run_data = prepared("dense")
    for step in (100, 200):
        for suffix in ("json", "safetensors"):
            (tmp_path / f"{step}.{suffix}").write_bytes(b"damaged")
    steps = train(spec, run_data, Checkpoints(tmp_path, minutes=0.0)).steps
    assert sorted(int(path.stem) for path in tmp_path.glob("*.json")) == [steps - 1, steps]
