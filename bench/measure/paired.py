"""Paired, interleaved timing: A B C D, C A D B, ... in one process, so that whatever slows the machine slows all.

Every round times every method once, in a random order. A speed-up is the median over rounds of the ratio within a round
(for its interval see bench.statistics.ratios). The garbage collector is off inside a round. A short call is run once
untimed before it is timed, so that it finds the caches as it leaves them itself, not as the method before it did; a
long call refills them within its first moments.

On a CPU, a round in which the process did not get its cores is discarded, repeated and counted. There are two signs of
it: threads of this process that could have run waited for a core (as reported by Linux's scheduler, from the first
round on and for any number of threads), and a method got less CPU time per second than it usually does (on any system).
The influence of other processes on shared caches and memory can't be detected in this way.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from bench.records.environment import cores
from bench.statistics.ratios import Array, RatioEstimate, estimate

GOT_ITS_CORES = 0.9  # of the CPU time a second of wall time that it should get
WAITED = 0.1  # seconds that threads may wait for a core, in all, a second of wall time
STABLE = 0.05  # change of the time of a whole pass from one to the next
PASSES = (2, 5)  # of warm-up: at least, at most
REPEATED_BOUND = 1.0  # repeated rounds at most, as a share of the rounds asked for


@dataclass(frozen=True)
class PairedTimes:
    """`seconds[name][r]` is one call in round r. `repeated` rounds were discarded because other processes ran;
    `disturbed` rounds were kept in spite of that, because the bound on repetitions was reached."""

    seconds: dict[str, Array]
    repeated: int
    disturbed: int

    def median(self, name: str) -> float:
        return float(np.median(self.seconds[name]))

    def speedup(self, name: str, reference: str) -> RatioEstimate:
        """Time of the reference / time of `name`, per round: above 1 means that `name` is faster."""
        return estimate(self.seconds[reference] / self.seconds[name])


@dataclass(frozen=True)
class Timed:
    """`seconds` in all; `share` of CPU seconds and `waited` seconds for a core, both summed over the threads and a
    second of wall time; None where that can't be known or says nothing."""

    seconds: float
    share: float | None = None
    waited: float | None = None


class Stopwatch(Protocol):
    """Times a number of calls."""

    def time(self, call: Callable[[], None], times: int) -> Timed:
        """How long `times` calls took, and whether the process got its cores meanwhile."""


def waited_for_cores(tasks: Path = Path("/proc/self/task")) -> float | None:
    """Seconds that the living threads of this process have waited for a core so far; None where the system does not
    say."""
    waited, known = 0, False
    try:
        threads = list(tasks.iterdir())
    except OSError:
        return None
    for thread in threads:
        try:
            fields = (thread / "schedstat").read_text(encoding="ascii").split()
        except OSError:
            continue  # it has just ended, or the kernel keeps no such statistics
        waited, known = waited + int(fields[1]), True
    return waited / 1e9 if known else None


@dataclass(frozen=True)
class WallClock:
    """For work on the CPU."""

    wall: Callable[[], float] = time.perf_counter
    cpu: Callable[[], float] = time.process_time  # of all threads of this process
    waited: Callable[[], float | None] = waited_for_cores

    def time(self, call: Callable[[], None], times: int) -> Timed:
        before = self.waited()
        wall, cpu = self.wall(), self.cpu()
        for _ in range(times):
            call()
        wall, cpu = self.wall() - wall, self.cpu() - cpu
        after = self.waited()
        if wall <= 0:
            return Timed(wall)
        return Timed(wall, cpu / wall, None if before is None or after is None else max(0.0, after - before) / wall)


class CudaEvents:
    """For work on a GPU: from the first kernel to the end of the last."""

    def time(self, call: Callable[[], None], times: int) -> Timed:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()
        start.record()
        for _ in range(times):
            call()
        end.record()
        torch.cuda.synchronize()
        return Timed(start.elapsed_time(end) / 1e3)


Round = Mapping[str, Timed]


@dataclass
class _Cores:
    """Detects rounds in which a method did not get its cores.

    It should get the CPU time that is usual for it (the median over all rounds so far: with several threads no part is
    parallel throughout), and at least one whole core if it is `busy` all the time; and unless there are more threads
    than cores, none of its threads should have to wait.
    """

    busy: bool
    crowded: bool  # more threads than cores: they wait for each other

    def fine(self, one: Round, all_rounds: list[Round]) -> bool:
        for name, timed in one.items():
            if timed.waited is not None and timed.waited > WAITED and not self.crowded:
                return False
            if timed.share is None:
                continue
            usual = float(np.median([other[name].share for other in all_rounds if other[name].share is not None]))
            if timed.share < GOT_ITS_CORES * max(usual, 1.0 if self.busy else 0.0):
                return False
        return True


def paired_times(
    timed_methods: Mapping[str, Callable[[], None]],
    rounds: int,
    seed: int = 0,
    device: torch.device | str = "cpu",
    *,
    busy: bool = True,
    shortest: float = 0.02,
    stopwatch: Stopwatch | None = None,
    progress: Callable[[int, int], Any] = lambda done, rounds: None,
) -> PairedTimes:
    """Time the calls of `timed_methods` in `rounds` interleaved rounds, after a warm-up until a pass takes as long as
    the one before.

    `busy`: the methods compute all the time, so that less than one core of CPU time means other processes.
    Calls shorter than `shortest` seconds are repeated inside a measurement. At most as many rounds as asked for are
    repeated; which ones is judged again at the end, when it is known what CPU time is usual.
    """
    if not timed_methods or rounds < 1:
        raise ValueError("a paired measurement needs at least one method and one round.")
    watch = stopwatch or (CudaEvents() if torch.device(device).type == "cuda" else WallClock())
    names, random = list(timed_methods), np.random.default_rng(seed)
    judge = _Cores(busy, crowded=torch.get_num_threads() > cores())
    bound = math.ceil(REPEATED_BOUND * rounds)
    seen: list[Round] = []  # every round, thrown away or not, for what is usual
    kept: list[Round] = []
    repeated = 0
    with _collector_off():
        plan = _warm_up(timed_methods, watch, shortest, seen)
        while True:
            while len(kept) < rounds:
                order = [names[i] for i in random.permutation(len(names))]
                one = _round(timed_methods, order, plan, watch)
                seen.append(one)
                if repeated < bound and not judge.fine(one, seen):
                    repeated += 1
                    continue
                kept.append(one)
                progress(len(kept), rounds)
            bad = [one for one in kept if not judge.fine(one, seen)]
            thrown = bad[: bound - repeated]
            if not thrown:
                break
            repeated += len(thrown)
            kept = [one for one in kept if not any(one is other for other in thrown)]
    seconds = {n: np.array([one[n].seconds / plan[n].times for one in kept]) for n in names}
    return PairedTimes(seconds, repeated, len(bad))


@dataclass(frozen=True)
class _Plan:
    """How a method is measured: `times` calls, after an untimed one if it has a `lead`."""

    times: int = 1
    lead: bool = False


def _warm_up(
    timed_methods: Mapping[str, Callable[[], None]], watch: Stopwatch, shortest: float, seen: list[Round]
) -> dict[str, _Plan]:
    """Passes until one takes as long as the one before, added to `seen`; how to measure each method."""
    least, most = PASSES
    before = math.inf
    for done in range(1, most + 1):
        one = _round(timed_methods, list(timed_methods), dict.fromkeys(timed_methods, _Plan()), watch)
        seen.append(one)
        now = sum(timed.seconds for timed in one.values())
        if done >= least and abs(now - before) <= STABLE * before:
            break
        before = now
    return {name: _plan(timed.seconds, shortest) for name, timed in one.items()}


def _plan(seconds: float, shortest: float) -> _Plan:
    """A call of so many seconds: short ones several times, with an untimed one before."""
    times = max(1, min(1000, math.ceil(shortest / max(seconds, 1e-9))))
    return _Plan(times, lead=seconds < 2 * shortest)


def _round(
    timed_methods: Mapping[str, Callable[[], None]], order: list[str], plan: Mapping[str, _Plan], watch: Stopwatch
) -> Round:
    """Every method once, in this order."""
    gc.collect()
    timed: dict[str, Timed] = {}
    for name in order:
        if plan[name].lead:
            timed_methods[name]()
        timed[name] = watch.time(timed_methods[name], plan[name].times)
    return timed


@contextmanager
def _collector_off() -> Iterator[None]:
    """No garbage collection but by hand; what lives already is out of its reach, which makes that quick."""
    collecting = gc.isenabled()
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.unfreeze()
        if collecting:
            gc.enable()
