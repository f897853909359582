"""Paired, interleaved timing: A B C D, C A D B, ... in one process, so that whatever slows the machine slows all.

Every round times every contender once, in an order drawn anew; a speed-up is the median over the rounds of the ratio
within a round, its interval a bootstrap over the rounds. The garbage collector is off inside a round. On a CPU a round
in which the process did not get its cores (CPU time against wall time) is thrown away and repeated, and counted; what
another process does to shared caches and memory can't be seen this way.
"""

from __future__ import annotations

import gc
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

Array = npt.NDArray[np.float64]

GOT_ITS_CORES = 0.9  # of the CPU time a second of wall time that it should get
STABLE = 0.05  # change of the time of a whole pass from one to the next
PASSES = (2, 5)  # of warm-up: at least, at most
RESAMPLES = 2000


@dataclass(frozen=True)
class Estimate:
    """A median over rounds with its 95 % bootstrap interval."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class PairedTimes:
    """`seconds[name][r]` is one call in round r; `repeated` rounds were thrown away for a foreign load, and
    `disturbed` ones kept in spite of it, because the bound on repetitions was reached."""

    seconds: dict[str, Array]
    repeated: int
    disturbed: int
    seed: int

    def median(self, name: str) -> float:
        return float(np.median(self.seconds[name]))

    def speedup(self, contender: str, baseline: str) -> Estimate:
        """Baseline's time / contender's time: above 1 the contender is faster."""
        return estimate(self.seconds[baseline] / self.seconds[contender], self.seed)


def estimate(values: Array, seed: int) -> Estimate:
    """Median of `values`, one a round, with a 95 % interval from resampling the rounds."""
    rounds = np.random.default_rng(seed).integers(len(values), size=(RESAMPLES, len(values)))
    low, high = np.quantile(np.median(values[rounds], axis=1), [0.025, 0.975])
    return Estimate(float(np.median(values)), float(low), float(high))


class Stopwatch(Protocol):
    """Times a number of calls."""

    def time(self, call: Callable[[], None], times: int) -> tuple[float, float | None]:
        """Seconds in all, and CPU seconds a second of wall time (None where that says nothing)."""


@dataclass(frozen=True)
class WallClock:
    """For work on the CPU."""

    wall: Callable[[], float] = time.perf_counter
    cpu: Callable[[], float] = time.process_time  # of all threads of this process

    def time(self, call: Callable[[], None], times: int) -> tuple[float, float | None]:
        wall, cpu = self.wall(), self.cpu()
        for _ in range(times):
            call()
        wall, cpu = self.wall() - wall, self.cpu() - cpu
        return wall, cpu / wall if wall > 0 else None


class CudaEvents:
    """For work on a GPU: from the first kernel to the end of the last."""

    def time(self, call: Callable[[], None], times: int) -> tuple[float, float | None]:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()
        start.record()
        for _ in range(times):
            call()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / 1e3, None


@dataclass
class _Cores:
    """Tells a round in which a contender got less CPU time than it should.

    It should get what is usual for it (the median so far, for with several threads no part is parallel throughout),
    and at least one whole core if it is `busy` all the time.
    """

    busy: bool
    seen: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def add(self, shares: Mapping[str, float | None]) -> bool:
        """Take down a pass; was it undisturbed?"""
        fine = True
        for name, share in shares.items():
            if share is None:
                continue
            self.seen[name].append(share)
            usual = float(np.median(self.seen[name]))
            fine = fine and share >= GOT_ITS_CORES * max(usual, 1.0 if self.busy else 0.0)
        return fine


def paired_times(
    contenders: Mapping[str, Callable[[], None]],
    rounds: int,
    seed: int = 0,
    device: torch.device | str = "cpu",
    *,
    busy: bool = True,
    shortest: float = 0.02,
    stopwatch: Stopwatch | None = None,
    progress: Callable[[int, int], Any] = lambda done, rounds: None,
) -> PairedTimes:
    """Time the `contenders` (by name) in `rounds` interleaved rounds, after a warm-up until a pass takes as long as the
    one before.

    `busy`: the contenders compute all the time, so that less than one core of CPU time is a foreign load. Calls
    shorter than `shortest` seconds are repeated inside a measurement. At most as many rounds as asked for are repeated.
    """
    if not contenders or rounds < 1:
        raise ValueError("a paired measurement needs at least one contender and one round.")
    watch = stopwatch or (CudaEvents() if torch.device(device).type == "cuda" else WallClock())
    names, random, cores = list(contenders), np.random.default_rng(seed), _Cores(busy)
    kept: list[dict[str, float]] = []
    repeated = disturbed = 0
    with _collector_off():
        times = _warm_up(contenders, watch, cores, shortest)
        while len(kept) < rounds:
            order = [names[i] for i in random.permutation(len(names))]
            seconds, fine = _round(contenders, order, times, watch, cores)
            if not fine and repeated < rounds:
                repeated += 1
                continue
            disturbed += not fine
            kept.append(seconds)
            progress(len(kept), rounds)
    return PairedTimes({n: np.array([one[n] for one in kept]) for n in names}, repeated, disturbed, seed)


def _warm_up(
    contenders: Mapping[str, Callable[[], None]], watch: Stopwatch, cores: _Cores, shortest: float
) -> dict[str, int]:
    """Passes until one takes as long as the one before; how often to call each contender in a measurement."""
    least, most = PASSES
    times = dict.fromkeys(contenders, 1)
    before = math.inf
    for done in range(1, most + 1):
        seconds, _ = _round(contenders, list(contenders), times, watch, cores)
        now = sum(seconds.values())
        if done >= least and abs(now - before) <= STABLE * before:
            break
        before = now
    return {name: max(1, min(1000, math.ceil(shortest / max(one, 1e-9)))) for name, one in seconds.items()}


def _round(
    contenders: Mapping[str, Callable[[], None]],
    order: list[str],
    times: dict[str, int],
    watch: Stopwatch,
    cores: _Cores,
) -> tuple[dict[str, float], bool]:
    """Seconds a call of each contender, and whether all got their cores."""
    seconds: dict[str, float] = {}
    shares: dict[str, float | None] = {}
    gc.collect()
    for name in order:
        took, shares[name] = watch.time(contenders[name], times[name])
        seconds[name] = took / times[name]
    return seconds, cores.add(shares)


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
