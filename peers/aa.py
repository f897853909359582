"""Repeated measurement of dense against itself, as a check of the noise floor that `bench.cost` prints.

    python -m peers.aa --encoder vit_small_patch16_224 --image-size 224 --batch 8 --repeats 20

Each repeat builds two dense models, in alternating order, and measures the ratio of their times like a cost table. Of
20 repeats, all ratios should lie within 1.00 +- 0.02, and at least 16 of the 95 % intervals should contain 1.

`--behind METHOD` checks instead whether the time of a call depends on the call before it: it compares the time of dense
after its own call with that after a call of another method. Run it by hand on an idle machine. The exit code is 1 if
the result is not as expected.
"""

from __future__ import annotations

import argparse
import os

import numpy as np
import torch

from bench.measure.inputs import random_views
from bench.measure.paired import WallClock, paired_times
from bench.measure.timed_method import TimedMethod
from bench.records.environment import cores, machine, raise_allocator_thresholds
from bench.specs.run_spec import EncoderSpec, TrainSpec
from bench.statistics.ratios import estimate
from bench.training.device import one_device
from methods.names import parse_methods

NEAR, HOLDS = 0.02, 16 / 20


def main() -> int:
    options = _options()
    raise_allocator_thresholds()
    torch.set_num_threads(options.threads)
    encoder = EncoderSpec(name=options.encoder, image_size=options.image_size, channels=options.channels)
    print(f"{encoder.name}, {encoder.image_size} px, batch {options.batch}, {options.threads} thread(s), {machine()}")
    print(f"load before: {os.getloadavg()[0]:.2f}", flush=True)
    return _behind(options, encoder) if options.behind else _aa(options, encoder)


def _aa(options: argparse.Namespace, encoder: EncoderSpec) -> int:
    ratios: dict[str, list[float]] = {"inference": [], "step": []}
    holds: dict[str, list[bool]] = {"inference": [], "step": []}
    for repeat in range(options.repeats):
        timed = [_timed(name, "simclr/dense", encoder, options) for name in ("a", "b")]
        calls = {key: call for one in timed[:: 1 - 2 * (repeat % 2)] for key, call in one.calls().items()}
        times = paired_times(calls, options.rounds, seed=repeat)
        line = f"{repeat + 1:3d}"
        for kind, keys in (("inference", [a.infer_key for a in timed]), ("step", [a.train_key() for a in timed])):
            found = times.speedup(keys[1], keys[0])
            ratios[kind].append(found.median)
            holds[kind].append(found.low <= 1 <= found.high)
            line += f"   {kind} {found.median:.4f} [{found.low:.4f}, {found.high:.4f}]{' ' if holds[kind][-1] else '!'}"
        print(f"{line}   repeated {times.repeated}, disturbed {times.disturbed}", flush=True)
    fine = True
    for kind, values in ratios.items():
        near = sum(abs(value - 1) <= NEAR for value in values)
        print(
            f"{kind}: ratios {min(values):.4f} to {max(values):.4f}, {near} of {len(values)} within 1.00 +- {NEAR}; "
            f"{sum(holds[kind])} of {len(values)} intervals contain 1"
        )
        fine = fine and near == len(values) and sum(holds[kind]) >= HOLDS * len(values)
    return 0 if fine else 1


def _behind(options: argparse.Namespace, encoder: EncoderSpec) -> int:
    """Compare the times of inference and step of dense after themselves and after those of the other method."""
    dense, other = (_timed(name, name, encoder, options) for name in ("simclr/dense", options.behind))
    theirs = [other.inference(), other.train_steps()[other.points[0]]]
    clock, fine = WallClock(), True
    for kind, own in (("inference", dense.inference()), ("step", dense.train_steps()[dense.points[0]])):
        ratios, random = [], np.random.default_rng(0)
        for _ in range(options.rounds * options.repeats + 2):
            seconds = {}
            for before in random.permutation(2):
                for call in (own, theirs[0]) if kind == "inference" else (own, theirs[1]):
                    call()  # warm the caches of both
                (own if before else theirs[kind == "step"])()
                seconds[before] = clock.time(own, 1).seconds
            ratios.append(seconds[0] / seconds[1])
        found = estimate(np.array(ratios[2:]))
        print(f"{kind} of dense, after {options.behind} / after itself: {found.median:.4f} ", end="")
        print(f"[{found.low:.4f}, {found.high:.4f}], {len(ratios) - 2} pairs", flush=True)
        fine = fine and (abs(found.median - 1) <= NEAR or found.low <= 1 <= found.high)
    return 0 if fine else 1


def _timed(name: str, method: str, encoder: EncoderSpec, options: argparse.Namespace) -> TimedMethod:
    (parsed,) = parse_methods(method)
    fabric = one_device()
    return TimedMethod(name, parsed, encoder, TrainSpec(), random_views(encoder, options.batch), fabric)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--encoder", default="vit_stem_d64_l4_patch8")
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--channels", type=int, default=1)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--threads", type=int, default=cores())
    parser.add_argument("--behind", default="", help="method to run before dense, e.g. simclr/sparsecontrast")
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
