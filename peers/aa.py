"""Dense against itself, many times: is the noise floor that `bench.cost` prints to be trusted?

    python -m peers.aa --encoder vit_small_patch16_224 --image-size 224 --batch 8 --repeats 20

Each repeat builds both arms anew, in an order that changes, and measures their ratio as a cost table does. Expected of
20 repeats: every ratio within 1.00 +- 0.02, and 1 inside the 95 % interval in at least 16. With `--behind METHOD` it
measures instead whether a method's time depends on who stands before it: its step right behind its own, against its
step right behind another method's. By hand, on a quiet machine; exit code 1 where it is not as expected.
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
        arms = [_arm(name, "simclr/dense", encoder, options) for name in ("a", "b")]
        timed_methods = {
            key: call for arm in arms[:: 1 - 2 * (repeat % 2)] for key, call in arm.timed_methods().items()
        }
        times = paired_times(timed_methods, options.rounds, seed=repeat)
        line = f"{repeat + 1:3d}"
        for kind, keys in (("inference", [a.infer_key for a in arms]), ("step", [a.train_key() for a in arms])):
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
            f"1 is inside the interval in {sum(holds[kind])} of {len(values)}"
        )
        fine = fine and near == len(values) and sum(holds[kind]) >= HOLDS * len(values)
    return 0 if fine else 1


def _behind(options: argparse.Namespace, encoder: EncoderSpec) -> int:
    """Time of dense's step and inference behind themselves / behind the other method's, without any untimed call."""
    dense, other = (_arm(name, name, encoder, options) for name in ("simclr/dense", options.behind))
    theirs = [other.inference(), other.train_steps()[other.points[0]]]
    clock, fine = WallClock(), True
    for kind, own in (("inference", dense.inference()), ("step", dense.train_steps()[dense.points[0]])):
        ratios, random = [], np.random.default_rng(0)
        for _ in range(options.rounds * options.repeats + 2):
            seconds = {}
            for before in random.permutation(2):
                for call in (own, theirs[0]) if kind == "inference" else (own, theirs[1]):
                    call()  # the caches of both are as warm as they get
                (own if before else theirs[kind == "step"])()
                seconds[before] = clock.time(own, 1).seconds
            ratios.append(seconds[0] / seconds[1])
        found = estimate(np.array(ratios[2:]))
        print(f"{kind} of dense behind {options.behind} / behind itself: {found.median:.4f} ", end="")
        print(f"[{found.low:.4f}, {found.high:.4f}], {len(ratios) - 2} pairs", flush=True)
        fine = fine and (abs(found.median - 1) <= NEAR or found.low <= 1 <= found.high)
    return 0 if fine else 1


def _arm(name: str, method: str, encoder: EncoderSpec, options: argparse.Namespace) -> TimedMethod:
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
    parser.add_argument("--behind", default="", help="another method, e.g. simclr/sparsecontrast")
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
