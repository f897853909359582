"""Paired timing on contenders whose ratio is known, and on clocks that are made up."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bench.measure import paired
from bench.measure.paired import PairedTimes, WallClock, paired_times, waited_for_cores


def sleeper(seconds: float) -> Callable[[], None]:
    return lambda: time.sleep(seconds)


class Machine:
    """A made-up computer: `work` takes wall time, and CPU time as far as the process gets its cores."""

    def __init__(self, load: Callable[[int], float] = lambda call: 1.0, cores: float = 1.0) -> None:
        self.wall = self.cpu = 0.0
        self.calls = 0
        self.load, self.cores = load, cores

    def work(self, seconds: float) -> Callable[[], None]:
        def call() -> None:
            self.calls += 1
            got = self.load(self.calls)
            self.cpu += seconds * self.cores
            self.wall += seconds / got

        return call

    def noted(self, names: str, seen: list[str]) -> dict[str, Callable[[], None]]:
        """Contenders of a second each, by name; a call writes its name down."""

        def contender(name: str) -> Callable[[], None]:
            def call() -> None:
                seen.append(name)
                self.work(1.0)()

            return call

        return {name: contender(name) for name in names}

    @property
    def clock(self) -> WallClock:
        return WallClock(lambda: self.wall, lambda: self.cpu, lambda: None)


def test_a_ratio_of_two_is_found() -> None:
    times = paired_times({"slow": sleeper(0.006), "fast": sleeper(0.003)}, 15, busy=False, shortest=0)
    found = times.speedup("fast", "slow")
    assert found.median == pytest.approx(2, rel=0.15)
    assert found.low <= 2.1
    assert found.high >= 1.8
    assert found.high - found.low < 0.6
    assert times.speedup("slow", "fast").median == pytest.approx(1 / found.median, rel=0.05)


def test_against_itself_is_one() -> None:
    times = paired_times({"a": sleeper(0.004), "b": sleeper(0.004)}, 15, busy=False, shortest=0)
    assert times.speedup("a", "b").median == pytest.approx(1, abs=0.08)


def test_a_drift_of_the_machine_cancels() -> None:
    """The machine gets slower and slower: ratios within a round do not."""
    machine = Machine()
    drift = [1.0]

    def drifting(seconds: float) -> Callable[[], None]:
        def call() -> None:
            drift[0] *= 1.01
            machine.work(seconds * drift[0])()

        return call

    timed_methods = {"dense": drifting(2.0), "sparse": drifting(1.0)}
    times = paired_times(timed_methods, 40, shortest=0, stopwatch=machine.clock)
    assert times.speedup("sparse", "dense").median == pytest.approx(2, rel=0.02)
    assert times.seconds["dense"][-1] > 1.5 * times.seconds["dense"][0]


def test_order_is_drawn_anew_every_round_and_by_the_seed() -> None:
    def orders(seed: int) -> list[str]:
        machine, seen = Machine(), []
        paired_times(machine.noted("abcd", seen), 12, seed, shortest=0, stopwatch=machine.clock)
        rounds = ["".join(seen[i : i + 4]) for i in range(0, len(seen), 4)][-12:]
        assert all(sorted(one) == list("abcd") for one in rounds)
        return rounds

    assert len(set(orders(0))) > 6
    assert orders(0) == orders(0) != orders(1)


@pytest.mark.parametrize("cores", [1.0, 1.8])
def test_a_round_with_a_foreign_load_is_repeated_and_counted(cores: float) -> None:
    warm = 2 * 2  # calls of the warm-up: it is stable at its second pass
    machine = Machine(lambda call: 0.5 if call in (warm + 3, warm + 8) else 1.0, cores)
    times = paired_times({"a": machine.work(2.0), "b": machine.work(1.0)}, 6, shortest=0, stopwatch=machine.clock)
    assert (times.repeated, times.disturbed) == (2, 0)
    assert np.array_equal(times.seconds["a"], np.full(6, 2.0))
    assert np.array_equal(times.seconds["b"], np.ones(6))
    assert machine.calls == warm + 2 * (6 + 2)


def test_a_load_that_stays_is_endured_and_said() -> None:
    machine = Machine(lambda call: 0.5)
    times = paired_times({"a": machine.work(1.0)}, 5, shortest=0, stopwatch=machine.clock)
    assert (times.repeated, times.disturbed, len(times.seconds["a"])) == (5, 5, 5)


def test_a_load_from_the_start_is_told_by_threads_that_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two threads that share one core with nobody's leave look like 1.0 cores, always: only their waiting tells."""
    machine = Machine(cores=1.0)
    share = [1.0]  # seconds waited a second
    clock = WallClock(lambda: machine.wall, lambda: machine.cpu, lambda: share[0] * machine.wall)
    times = paired_times({"a": machine.work(1.0)}, 4, shortest=0, stopwatch=clock)
    assert (times.repeated, times.disturbed) == (4, 4)
    share[0] = 0.05
    times = paired_times({"a": machine.work(1.0)}, 4, shortest=0, stopwatch=clock)
    assert (times.repeated, times.disturbed) == (0, 0)
    share[0] = 1.0
    monkeypatch.setattr(paired, "cores", lambda: 0)  # more threads than cores: they wait for each other
    times = paired_times({"a": machine.work(1.0)}, 4, shortest=0, stopwatch=clock)
    assert (times.repeated, times.disturbed) == (0, 0)


def test_rounds_before_the_usual_was_known_are_judged_again() -> None:
    """The first three rounds (and the warm-up) have half their CPU time, the others all of it."""
    machine = Machine(lambda call: 0.55 if call <= 5 else 1.0, cores=2.0)
    times = paired_times({"a": machine.work(1.0)}, 8, shortest=0, stopwatch=machine.clock)
    assert (times.repeated, times.disturbed) == (3, 0)
    assert np.array_equal(times.seconds["a"], np.ones(8))


def test_waiting_is_what_the_scheduler_says(tmp_path: Path) -> None:
    for task, text in (("1", "5 2000000000 7\n"), ("2", "9 500000000 1\n"), ("3", "")):
        (tmp_path / task).mkdir()
        if text:
            (tmp_path / task / "schedstat").write_text(text)
    assert waited_for_cores(tmp_path) == 2.5
    assert waited_for_cores(tmp_path / "none") is None
    (tmp_path / "empty").mkdir()
    assert waited_for_cores(tmp_path / "empty") is None


def test_what_sleeps_is_no_foreign_load() -> None:
    machine = Machine(cores=0.1)
    times = paired_times({"a": machine.work(1.0)}, 5, busy=False, shortest=0, stopwatch=machine.clock)
    assert (times.repeated, times.disturbed) == (0, 0)


def test_warm_up_goes_on_until_stable_but_not_for_ever() -> None:
    def passes(cost: Callable[[int], float]) -> int:
        machine = Machine()

        def call() -> None:
            machine.work(cost(machine.calls))()

        paired_times({"a": call}, 1, shortest=0, stopwatch=machine.clock)
        return machine.calls - 1

    assert passes(lambda call: 1.0) == 2
    assert passes(lambda call: 5.0 if call < 3 else 1.0) == 2  # 5, 5: stable
    assert passes(lambda call: [9.0, 4.0, 1.0, 1.0][min(call, 3)]) == 4
    assert passes(lambda call: 2.0**call) == 5


def test_short_calls_are_repeated_inside_a_measurement() -> None:
    machine = Machine()
    times = paired_times({"a": machine.work(0.25)}, 3, shortest=1.0, stopwatch=machine.clock)
    assert np.array_equal(times.seconds["a"], np.full(3, 0.25))  # a call, not four
    assert machine.calls == 2 + 3 * (1 + 4)  # one before each measurement, untimed


def test_a_short_call_does_not_pay_for_who_stood_before_it() -> None:
    """A contender whose first call after another's is slow, for the other has emptied the caches."""
    machine, last = Machine(), [""]

    def contender(name: str) -> Callable[[], None]:
        def call() -> None:
            machine.work(0.25 if last[0] == name else 0.75)()
            last[0] = name

        return call

    timed_methods = {name: contender(name) for name in "abc"}
    times = paired_times(timed_methods, 5, shortest=1.0, stopwatch=machine.clock)
    assert all(np.array_equal(times.seconds[name], np.full(5, 0.25)) for name in "abc")


def test_who_stands_before_is_drawn_evenly() -> None:
    """Long calls have no call before: there the order decides, so each must stand behind each other as often."""
    machine, seen, rounds = Machine(), [], 120
    paired_times(machine.noted("abcd", seen), rounds, shortest=0, stopwatch=machine.clock)
    order = [seen[i : i + 4] for i in range(8, len(seen), 4)]
    assert len(order) == rounds
    before = [(one[i], one[i + 1]) for one in order for i in range(3)]
    counts = np.array([before.count((a, b)) for a in "abcd" for b in "abcd" if a != b])
    assert counts.sum() == 3 * rounds
    assert (abs(counts - 3 * rounds / 12) < 4 * np.sqrt(3 * rounds / 12)).all()


def test_the_collector_is_off_inside_and_back_after() -> None:
    seen: list[bool] = []
    machine = Machine()

    def call() -> None:
        seen.append(gc.isenabled())
        machine.work(1.0)()

    paired_times({"a": call}, 2, shortest=0, stopwatch=machine.clock)
    assert seen
    assert not any(seen)
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0
    with pytest.raises(RuntimeError, match="broken"):
        paired_times({"a": _broken}, 2, shortest=0)
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0


def _broken() -> None:
    raise RuntimeError("broken")


def test_ratio_is_taken_within_the_round() -> None:
    times = PairedTimes({"d": np.array([2.0, 4.0, 60.0]), "s": np.array([1.0, 2.0, 20.0])}, 0, 0)
    assert times.speedup("s", "d").median == 2.0
    assert (times.speedup("s", "d").low, times.speedup("s", "d").high) == (2.0, 3.0)


def test_nothing_to_time_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one method"):
        paired_times({}, 3)
