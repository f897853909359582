"""Paired, interleaved timing: A B C D, C A D B, ... in one process, so that what slows the machine slows all methods.

Every round times every method once, in a random order. A speed-up is the median over rounds of the ratio within a round
(for its interval see bench.statistics.ratios). The garbage collector is off inside a round. A short call is run once
untimed before it is timed, so that it finds the caches as it leaves them itself, not as the method before it left
them; a long call refills them in its first moments.

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

GOT_ITS_CORES = 0.9  # share of the CPU time per second of wall time that a method should get
WAITED = 0.1  # seconds per second of wall time that threads, in sum, may wait for a core
STABLE = 0.05  # relative change between the times of two passes, below which the warm-up ends
PASSES = (2, 5)  # of the warm-up: minimum, maximum
REPEATED_BOUND = 1.0  # repeated rounds at most, as a share of the requested rounds


@dataclass(frozen=True)
class PairedTimes:
    """Seconds of one call in each round, by name.

    `repeated` rounds were discarded because other processes were running; `disturbed` rounds were kept all the same,
    because the bound on repetitions was reached.
    """

    seconds: dict[str, Array]
    repeated: int
    disturbed: int

    def median(self, name: str) -> float:
        return float(np.median(self.seconds[name]))

    def speedup(self, name: str, reference: str) -> RatioEstimate:
        """Time of `reference` / time of `name`; above 1, `name` is faster."""
        return estimate(self.seconds[reference] / self.seconds[name])


@dataclass(frozen=True)
class Timed:
    """Time of some calls: `seconds` in total; `share`, CPU seconds per second; `waited`, seconds of waiting for a core
    per second. The last two are sums over threads, and None if they are unknown or mean nothing."""

    seconds: float
    share: float | None = None
    waited: float | None = None


class Stopwatch(Protocol):
    """Protocol of a clock for a number of calls."""

    def time(self, call: Callable[[], None], times: int) -> Timed:
        """Time `times` calls, and measure whether the process got its cores meanwhile."""


def waited_for_cores(tasks: Path = Path("/proc/self/task")) -> float | None:
    """Seconds that the running threads of this process have waited for a core so far, in sum; None if unknown."""
    waited, known = 0, False
    try:
        threads = list(tasks.iterdir())
    except OSError:
        return None
    for thread in threads:
        try:
            fields = (thread / "schedstat").read_text(encoding="ascii").split()
        except OSError:
            continue  # the thread has ended, or the kernel keeps no such statistics
        waited, known = waited + int(fields[1]), True
    return waited / 1e9 if known else None


@dataclass(frozen=True)
class WallClock:
    """Clock for work on the CPU."""

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
    """Clock for work on a GPU, from the start of the first kernel to the end of the last."""

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

    A method should get its usual CPU time, which is the median over all rounds so far (with several threads, no method
    runs in parallel throughout), and at least one core if it is always `busy`. Its threads should not wait, unless
    there are more threads than cores.
    """

    busy: bool
    crowded: bool  # more threads than cores, which wait for each other

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
    calls: Mapping[str, Callable[[], None]],
    rounds: int,
    seed: int = 0,
    device: torch.device | str = "cpu",
    *,
    busy: bool = True,
    shortest: float = 0.02,
    stopwatch: Stopwatch | None = None,
    progress: Callable[[int, int], Any] = lambda done, rounds: None,
) -> PairedTimes:
    """Time the `calls` (by name) in interleaved rounds, after warm-up passes until the time of a pass is stable.

    `busy` says that the calls compute all the time, so that CPU time below one core shows that other processes are
    running. Calls shorter than `shortest` seconds are repeated within a measurement. At most `rounds` rounds are
    repeated; all rounds are checked again at the end, when the usual CPU time is known.
    """
    if not calls or rounds < 1:
        raise ValueError("a paired measurement needs at least one method and one round.")
    watch = stopwatch or (CudaEvents() if torch.device(device).type == "cuda" else WallClock())
    names, random = list(calls), np.random.default_rng(seed)
    judge = _Cores(busy, crowded=torch.get_num_threads() > cores())
    bound = math.ceil(REPEATED_BOUND * rounds)
    seen: list[Round] = []  # all rounds, including discarded ones, from which the usual CPU time follows
    kept: list[Round] = []
    repeated = 0
    with _collector_off():
        plan = _warm_up(calls, watch, shortest, seen)
        while True:
            while len(kept) < rounds:
                order = [names[i] for i in random.permutation(len(names))]
                one = _round(calls, order, plan, watch)
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
    """How a call is measured: `times` times in a row, after an untimed call if `lead`."""

    times: int = 1
    lead: bool = False


def _warm_up(
    calls: Mapping[str, Callable[[], None]], watch: Stopwatch, shortest: float, seen: list[Round]
) -> dict[str, _Plan]:
    """Make passes, and add them to `seen`, until the time of a pass is stable; return how to measure each call."""
    least, most = PASSES
    before = math.inf
    for done in range(1, most + 1):
        one = _round(calls, list(calls), dict.fromkeys(calls, _Plan()), watch)
        seen.append(one)
        now = sum(timed.seconds for timed in one.values())
        if done >= least and abs(now - before) <= STABLE * before:
            break
        before = now
    return {name: _plan(timed.seconds, shortest) for name, timed in one.items()}


def _plan(seconds: float, shortest: float) -> _Plan:
    """How to measure a call that takes `seconds`: a short one several times, after an untimed call."""
    times = max(1, min(1000, math.ceil(shortest / max(seconds, 1e-9))))
    return _Plan(times, lead=seconds < 2 * shortest)


def _round(
    calls: Mapping[str, Callable[[], None]], order: list[str], plan: Mapping[str, _Plan], watch: Stopwatch
) -> Round:
    """Measure each call once, in this order."""
    gc.collect()
    timed: dict[str, Timed] = {}
    for name in order:
        if plan[name].lead:
            calls[name]()
        timed[name] = watch.time(calls[name], plan[name].times)
    return timed


@contextmanager
def _collector_off() -> Iterator[None]:
    """Turn automatic garbage collection off; exempt existing objects, which makes collections by hand fast."""
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
