"""Claims: one owner at a time, whatever dies and whoever comes at once."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from bench.launch import leases as module
from bench.launch.leases import Leases, Owner, born


@pytest.fixture(scope="module")
def dead() -> int:
    """The number of a process that has ended and been reaped."""
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def write_lease(root: Path, run_id: str, owner: Owner | str, number: int = 1) -> Path:
    path = root / ".leases" / run_id / str(number)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(owner if isinstance(owner, str) else json.dumps(asdict(owner)))
    return path


def test_a_lease_is_exclusive_and_given_back(tmp_path: Path) -> None:
    leases = Leases(tmp_path)
    assert not leases.held("a")
    with leases.hold("a") as mine:
        assert mine
        assert leases.held("a")
        with leases.hold("a") as again, leases.hold("b") as other:
            assert not again
            assert other
        assert leases.held("a")  # who did not get it does not give it back
    assert not leases.held("a")

    def interrupted() -> None:
        with leases.hold("a"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not list((tmp_path / ".leases").iterdir())


def test_the_lease_of_a_dead_process_is_taken_over(tmp_path: Path, dead: int) -> None:
    owner = replace(Owner.me("their grid"), pid=dead)
    write_lease(tmp_path, "a", owner)
    leases = Leases(tmp_path)
    assert not leases.held("a")
    assert leases.dead("a") == [owner]
    with leases.hold("a") as mine:
        assert mine
        assert leases.held("a")
        assert leases.dead("a") == [owner]
    assert not list((tmp_path / ".leases").iterdir())


def test_a_process_of_the_same_number_born_later_is_another(tmp_path: Path) -> None:
    parent = os.getppid()
    write_lease(tmp_path, "a", replace(Owner.me(), pid=parent, born=born(parent)))
    write_lease(tmp_path, "b", replace(Owner.me(), pid=parent, born=str(int(born(parent)) - 1)))
    assert Leases(tmp_path).held("a")
    assert not Leases(tmp_path).held("b")
    assert int(born(os.getpid())) > int(born(1))


@pytest.mark.parametrize("changes", [{"host": "far-away"}, {"boot": "before"}])
def test_an_owner_elsewhere_lives_as_long_as_it_renews_its_lease(
    tmp_path: Path, dead: int, changes: dict[str, str]
) -> None:
    path = write_lease(tmp_path, "a", replace(Owner.me(), pid=dead, **changes))
    leases = Leases(tmp_path)
    with leases.hold("a") as mine:
        assert not mine
    old = time.time() - module.DEAD - 5
    os.utime(path, (old, old))
    with leases.hold("a") as mine:
        assert mine


def test_a_lease_is_renewed_while_it_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RENEWED", 0.02)
    with Leases(tmp_path).hold("a"):
        path = tmp_path / ".leases" / "a" / "1"
        os.utime(path, (1, 1))
        until = time.monotonic() + 5
        while path.stat().st_mtime == 1 and time.monotonic() < until:
            time.sleep(0.01)
        assert path.stat().st_mtime > 1


def test_a_requeued_job_takes_over_what_it_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = replace(Owner.me(), host="another-node", job="12_3", restart=0)
    write_lease(tmp_path, "a", before)
    for name, value in {
        "SUBMITIT_EXECUTOR": "slurm",
        "SLURM_JOB_ID": "15",
        "SLURM_ARRAY_JOB_ID": "12",
        "SLURM_ARRAY_TASK_ID": "4",
        "SLURM_RESTART_COUNT": "1",
    }.items():
        monkeypatch.setenv(name, value)
    with Leases(tmp_path).hold("a") as mine:
        assert not mine  # another task of the array
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "0")
    with Leases(tmp_path).hold("a") as mine:
        assert not mine  # its own second process, not its next life
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    with Leases(tmp_path).hold("a") as mine:
        assert mine
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "local")
    assert Owner.me().job == ""  # a user's own allocation is no job of ours


@pytest.mark.parametrize("text", ["", "{", "[]", '{"host": "x"}', "host 12"])
def test_what_is_no_lease_of_ours_holds_nobody_up(tmp_path: Path, text: str) -> None:
    write_lease(tmp_path, "a", text)
    with Leases(tmp_path).hold("a") as mine:
        assert mine


def test_a_lease_made_while_the_old_ones_were_given_back_is_withdrawn(
    tmp_path: Path, dead: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """We see a dead lease 1; before we make 2, its taker gives all back and another begins anew with 1."""
    leases = Leases(tmp_path)
    write_lease(tmp_path, "a", replace(Owner.me(), pid=dead))
    link, parent = os.link, os.getppid()

    def late(source: Path, target: Path) -> None:
        write_lease(tmp_path, "a", replace(Owner.me(), pid=parent, born=born(parent)))
        link(source, target)

    monkeypatch.setattr("bench.launch.leases.os.link", late)
    with leases.hold("a") as mine:
        assert not mine
    assert [path.name for path in (tmp_path / ".leases" / "a").iterdir()] == ["1"]


def test_a_process_that_ended_is_dead_though_nobody_asked_how(tmp_path: Path) -> None:
    """It stays in the list of processes: for ever, in a container whose first process asks nobody."""
    ended = subprocess.Popen(["sleep", "60"])
    owner = replace(Owner.me(), pid=ended.pid, born=born(ended.pid))
    write_lease(tmp_path, "a", owner)
    assert Leases(tmp_path).held("a")
    ended.kill()
    os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
    os.kill(ended.pid, 0)  # listed still
    assert not Leases(tmp_path).held("a")
    assert not module.process_lives(ended.pid)
    ended.wait()


def test_processes_are_not_counted_alike_in_another_container(tmp_path: Path, dead: int) -> None:
    """The same machine, the same name, and numbers that mean other processes."""
    if subprocess.run(["unshare", "--user", "--pid", "--fork", "true"], capture_output=True, check=False).returncode:
        pytest.skip("no name spaces can be made here")
    write_lease(tmp_path, "a", replace(Owner.me(), pid=dead))
    code = (
        "from pathlib import Path; from bench.launch.leases import Leases; "
        f"print(Leases(Path({str(tmp_path)!r})).held('a'))"
    )
    command = [sys.executable, "-c", code]
    inside = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc", *command]
    said = [subprocess.run(one, capture_output=True, text=True, check=True).stdout for one in (command, inside)]
    assert said == ["False\n", "True\n"]


def test_what_looks_like_a_number_is_no_lease(tmp_path: Path) -> None:
    (tmp_path / ".leases" / "a").mkdir(parents=True)
    (tmp_path / ".leases" / "a" / "²").touch()
    with Leases(tmp_path).hold("a") as mine:
        assert mine
    assert not Leases(tmp_path).held("a")


def test_a_lease_whose_first_answer_was_lost_is_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = os.link

    def asked_twice(source: Path, target: Path) -> None:
        link(source, target)
        link(source, target)

    monkeypatch.setattr("bench.launch.leases.os.link", asked_twice)
    with Leases(tmp_path).hold("a") as mine:
        assert mine
    assert not Leases(tmp_path).held("a")


@pytest.mark.parametrize("begun_anew", [False, True])
def test_who_was_taken_for_dead_gives_back_nothing_of_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begun_anew: bool
) -> None:
    """Frozen for long, its lease was removed by who took over; another may have begun anew with the same number."""
    monkeypatch.setattr(module, "RENEWED", 0.02)
    parent = os.getppid()
    other = replace(Owner.me(), pid=parent, born=born(parent))
    leases = Leases(tmp_path)
    with leases.hold("a") as mine:
        assert mine
        shutil.rmtree(tmp_path / ".leases" / "a")
        if begun_anew:
            path = write_lease(tmp_path, "a", other)
            os.utime(path, (1, 1))
            time.sleep(0.2)
            assert path.stat().st_mtime == 1  # renewed by its owner alone
    assert leases.held("a") == begun_anew


def test_who_gives_back_leaves_the_living(tmp_path: Path, dead: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lease below ours, begun anew in between, is its owner's to withdraw."""
    leases = Leases(tmp_path)
    write_lease(tmp_path, "a", replace(Owner.me(), pid=dead))
    with leases.hold("a") as mine:
        assert mine
        parent = os.getppid()
        write_lease(tmp_path, "a", replace(Owner.me(), pid=parent, born=born(parent)))
    assert leases.held("a")


def test_a_folder_that_goes_while_it_is_read_holds_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its last owner gives it back at that moment."""
    leases, real = Leases(tmp_path), Path.iterdir
    folder, due = leases.root / "run", [True, True]

    def iterdir(path: Path):
        if path == folder and due:
            due.pop()
            folder.rmdir()
        return real(path)

    folder.mkdir(parents=True)
    monkeypatch.setattr(Path, "iterdir", iterdir)
    assert not leases.held("run")
    with leases.hold("run") as mine:
        assert mine
    assert not due


def _rush(root: Path, runs: int, dead: int, start: float) -> None:
    """Hold each run a moment and note it; every other process dies with its seventh lease or before, without a word."""
    leases = Leases(root)
    time.sleep(max(0.0, start - time.time()))
    for run in range(runs):
        with leases.hold(f"run{run}") as mine:
            if not mine:
                continue
            log = root / f"run{run}.log"
            with open(log, "ab", buffering=0) as file:
                file.write(b"in\n")
                time.sleep(0.002)
                if os.getpid() % 2 and (os.getpid() + run) % 7 == 0:
                    os._exit(9)
                file.write(b"out\n")


def test_however_many_come_at_once_and_die_one_is_inside(tmp_path: Path, dead: int) -> None:
    """A dead owner's `in` has no `out`; otherwise the two alternate, or two were inside at once."""
    runs = 30
    for run in range(runs):
        write_lease(tmp_path, f"run{run}", replace(Owner.me(), pid=dead))
    context = multiprocessing.get_context("fork")
    start = time.time() + 0.3
    crowd = [context.Process(target=_rush, args=(tmp_path, runs, dead, start)) for _ in range(8)]
    for process in crowd:
        process.start()
    killed = 0
    for process in crowd:
        process.join(60)
        killed += process.exitcode == 9
    inside = Counter()
    for run in range(runs):
        lines = (tmp_path / f"run{run}.log").read_text().split() if (tmp_path / f"run{run}.log").exists() else []
        broken = sum(a == b for a, b in zip(lines, lines[1:], strict=False)) + (lines[-1:] == ["in"])
        inside["broken"] += broken
        inside["done"] += lines.count("out")
    assert inside["broken"] == killed, "two were inside at once"
    assert inside["done"] > runs // 2
