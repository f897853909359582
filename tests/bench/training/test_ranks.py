"""Pre-training on two ranks: what the environment says, who reports, and the weights that one process gets."""

from __future__ import annotations

import json
import os
import socket
import sys
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from bench.records.environment import environment
from bench.training.failures import RanksLost, TrainingFailed
from bench.training.pretrain import pretrain
from bench.training.ranks import any_rank, check_ranks, connect, fabric_of, leading
from tests.bench import small
from tests.bench.two_ranks import CASES, train
from tests.processes import run_together

TIMES = {"images_per_second"}


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, cache: Path, phantom: Any) -> Path:
    """What two ranks left there. They believe to be tasks of a SLURM job, whose own variables must not matter."""
    folder, port = tmp_path_factory.mktemp("ranks"), free_port()
    slurm = {"SLURM_NTASKS": "5", "SLURM_PROCID": "3", "SLURM_LOCALID": "3", "SLURM_NODEID": "2", "SLURM_JOB_ID": "7"}
    commands = []
    for rank in range(2):
        torchs = {"WORLD_SIZE": "2", "RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2"}
        where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "CUDA_VISIBLE_DEVICES": ""}
        command = [sys.executable, "-m", "tests.bench.two_ranks", str(folder), str(cache)]
        commands.append((command, {**os.environ, **slurm, **torchs, **where}))
    run_together(commands)
    return folder


@pytest.fixture(scope="module")
def ranks(folder: Path) -> list[dict[str, Any]]:
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


def test_the_environment_says_which_rank_a_process_is(ranks: list[dict[str, Any]]) -> None:
    for rank, found in enumerate(ranks):
        assert (found["world"], found["rank"], found["zero"]) == (2, rank, rank == 0)
        assert (found["device"], found["backend"], found["threads"]) == ("cpu", "gloo", 1)
        assert found["patient"]
        assert found["world after"] == 1  # what comes after training, a rank does by itself


def test_all_stop_when_one_says_so(ranks: list[dict[str, Any]]) -> None:
    assert [found["said by one"] for found in ranks] == [True, True]
    assert [found["said by none"] for found in ranks] == [False, False]


def test_a_loss_that_is_not_finite_on_one_rank_ends_the_training_on_all(ranks: list[dict[str, Any]]) -> None:
    """Else that one would go on to the next run, and the other wait for it in this one."""
    assert ranks[0]["failed on one"].startswith("the loss became not finite on another rank at step 0 of ")
    assert ranks[1]["failed on one"].startswith("the loss became ")


def test_a_checkpoint_that_one_rank_does_not_see_ends_the_training_on_all(ranks: list[dict[str, Any]]) -> None:
    for found in ranks:
        assert found["unread on one"].startswith("a rank can't read the checkpoint of step 3")


@pytest.mark.parametrize("i", range(len(CASES)), ids=[method for method, _ in CASES])
def test_weights_and_history_are_those_of_one_process(
    ranks: list[dict[str, Any]], folder: Path, tmp_path: Path, phantom: Any, fabric: Any, i: int
) -> None:
    alone = train(tmp_path, phantom, fabric, CASES[i], [])
    for rank, found in enumerate(ranks):
        state = torch.load(folder / f"{rank}-{i}.pt", weights_only=True)
        assert state.keys() == alone.objective.state_dict().keys()
        for name, tensor in alone.objective.state_dict().items():
            torch.testing.assert_close(state[name], tensor, rtol=1e-9, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")
        for mine, line in zip(found["histories"][i], alone.history, strict=True):
            assert mine.keys() == line.keys()
            for name in line.keys() - TIMES - {"selection"}:
                assert mine[name] == pytest.approx(line[name], rel=1e-6), name
            chosen, expected = mine["selection"], dict(line["selection"])  # overlap is a mean of shares
            assert chosen.pop("overlap", 0.0) == pytest.approx(
                expected.pop("overlap", 0.0), rel=0.05
            )  # a mean of shares
            assert chosen == pytest.approx(expected, rel=1e-6)


def test_mixed_precision_keeps_ranks_together(ranks: list[dict[str, Any]], tmp_path: Path, phantom: Any) -> None:
    spec = small.run_spec(tmp_path, "moco/dense", encoder__name="resnet10t", train__precision="bf16-mixed")
    alone = pretrain(spec, phantom, np.arange(64), fabric_of("bf16-mixed"), print).final_loss
    assert ranks[0]["mixed precision"] == ranks[1]["mixed precision"] == pytest.approx(alone, rel=0.02)


def test_rank_0_alone_reports(ranks: list[dict[str, Any]]) -> None:
    assert ranks[0]["reports"] == [1] * len(CASES)  # after the last of four steps
    assert ranks[1]["reports"] == [0] * len(CASES)


def test_a_rank_that_died_is_noticed(ranks: list[dict[str, Any]]) -> None:
    """The others fail instead of waiting for it."""
    error, seconds = ranks[0]["without the other"]
    assert error
    assert seconds < 30


def test_one_process_is_a_rank_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a launcher left in its environment."""
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "GROUP_RANK", "SLURM_PROCID", "SLURM_NTASKS"):
        monkeypatch.setenv(name, "3")
    monkeypatch.setenv("MASTER_ADDR", "nowhere.invalid")
    fabric = fabric_of("32-true")
    assert (fabric.world_size, fabric.is_global_zero) == (1, True)
    assert environment(1)["ranks"] == 1
    assert not torch.distributed.is_initialized()
    assert [any_rank(fabric, flag) for flag in (True, False)] == [True, False]


@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_rank_that_does_not_come_is_not_waited_for_long(monkeypatch: pytest.MonkeyPatch, rank: str) -> None:
    monkeypatch.setattr("bench.training.ranks.MEETING", timedelta(seconds=1))
    there = {"WORLD_SIZE": "2", "RANK": rank, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    for name, value in there.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RanksLost, match="a rank did not come: .* results/.workers"):
        connect(2)
    assert not torch.distributed.is_initialized()


@pytest.mark.parametrize(("ranks", "batch"), [(1, 7), (2, 64), (3, 48), (16, 16)])
def test_ranks_that_divide_the_batch(ranks: int, batch: int) -> None:
    check_ranks(ranks, batch)


@pytest.mark.parametrize(
    ("ranks", "batch", "mend"),
    [
        (3, 64, "use --ranks 2 or 4, or a batch of 66 with --set train.batch=66"),
        (2, 7, "use --ranks 1, or a batch of 8 with --set train.batch=8"),
        (32, 16, "use --ranks 8 or 16, or a batch of 32 with --set train.batch=32"),
    ],
)
def test_ranks_that_do_not_are_a_mistake(ranks: int, batch: int, mend: str) -> None:
    with pytest.raises(ValueError, match=f"a batch of {batch} images can't be shared equally by {ranks} ranks: {mend}"):
        check_ranks(ranks, batch)


def test_no_rank_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="--ranks 0 is too few: use at least 1"):
        check_ranks(0, 64)


def test_a_failure_on_one_rank_ends_them_unless_all_fail_alike(tmp_path: Path) -> None:
    def lost(spec: str) -> str:
        raise RuntimeError("gloo/transport/tcp/pair.cc: Connection closed by peer")

    two, one = SimpleNamespace(world_size=2, broadcast=str), SimpleNamespace(world_size=1, broadcast=str)
    spec = small.run_spec(tmp_path, "dense")
    with pytest.raises(RanksLost), leading(SimpleNamespace(world_size=2, broadcast=lost), spec):  # type: ignore[arg-type]
        raise AssertionError("they are told in vain")
    for fabric, error, expected in (
        (two, OSError("full"), RanksLost),
        (two, TrainingFailed("nan"), TrainingFailed),
        (two, KeyboardInterrupt(), KeyboardInterrupt),
        (one, OSError("full"), OSError),
    ):
        with pytest.raises(expected), leading(fabric, spec):  # type: ignore[arg-type]
            raise error


DIES = """
import os, pathlib
from methods import Entry
from methods.strategies.dense import Dense

class Dies(Dense):
    def forward(self, network, images, call):
        once = pathlib.Path("{once}")
        if call.training and os.environ.get("RANK") == "1" and not once.exists():
            once.touch()
            os._exit(9)
        return super().forward(network, images, call)

STRATEGIES = {{"dies": Entry(":Dies", "its second rank dies, once", "a test", inference=("dense",))}}
"""


def test_a_grid_on_two_ranks_and_one_that_dies(
    world: small.World, light: None, registries: None, forks: None, tmp_path: Path
) -> None:
    """Rank 0 says of which run the other died, and the rest go on; the same command does what is left. Losses are those
    of one process."""
    plugin = tmp_path / "dies.py"
    plugin.write_text(DIES.format(once=tmp_path / "once"), encoding="utf-8")
    grid = ["--methods", "sparsecontrast,dies,untrained", "--plugin", str(plugin)]
    together = [*grid, "--launcher", "local", "--ranks", "2", "--workers", "1"]
    first = world.run(*together)
    assert first.exit_code == 1, first.output
    states = {name: json.loads((path / "record.json").read_text()) for name, path in world.runs().items()}
    assert states["sparsecontrast-s0"]["status"] == "done"
    assert states["sparsecontrast-s0"]["environment"]["ranks"] == 2
    assert "another of its ranks ended before its time" in states["dies-s0"]["reason"]
    assert states["untrained-s0"]["status"] == "done"
    (line,) = [line for line in first.stderr.splitlines() if line.startswith("Failed: ")]
    assert states["dies-s0"]["reason"] in line
    second = world.run(*together)
    assert second.exit_code == 0, second.output
    assert "3 runs, 2 of them done before." in second.output
    shared = world.runs()
    assert len(shared) == 3
    alone = small.World(tmp_path / "alone", world.cache)
    assert alone.run(*grid).exit_code == 0
    for name, path in alone.runs().items():
        expected, found = ((folder / "history.jsonl").read_text().splitlines() for folder in (path, shared[name]))
        losses = [[json.loads(line)["loss"] for line in lines] for lines in (expected, found)]
        assert losses[1] == pytest.approx(losses[0], rel=1e-4)  # not weights: where gradients are zero, AdamW follows
        assert len(losses[0]) == ("untrained" not in name)  # their rounding
