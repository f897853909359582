"""From options to a checked plan: the grid, its data, and how it is executed. Users' mistakes are found here."""

from __future__ import annotations

import shutil
import time
import uuid
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast, get_args

from bench.analysis.outputs import check_reports
from bench.grid.amounts import Draws, amounts_of, draws_of
from bench.grid.options import RunOptions
from bench.launch.launch import Launcher, LaunchOptions
from bench.launch.leases import Leases
from bench.launch.slurm import read_options
from bench.launch.slurm_jobs import parameters
from bench.launch.worker import Sweep
from bench.records.environment import cores
from bench.records.store import check_folder, clock_of
from bench.specs.grid_spec import GridSpec, load_grid, read_change
from bench.specs.options import changes_of, default_cache
from bench.specs.plugins import load_plugins
from bench.statistics import small_data
from bench.statistics.small_data import Amounts
from bench.training.ranks import check_ranks
from datasets import load
from datasets.splits import Splits, check_shares, make_splits
from methods import code_of
from methods.names import Method, suggest

if TYPE_CHECKING:
    from bench.specs.run_spec import EncoderSpec
    from datasets.dataset import Dataset
    from methods.objectives.objective import Objective


@dataclass(frozen=True)
class Plan:
    """A grid that can run: its data are there and its options are valid."""

    grid: GridSpec
    sweep: Sweep
    data: Dataset
    splits: Splits
    amounts: Amounts
    launch: LaunchOptions

    def data_lines(self) -> list[str]:
        """Lines on the data in use, on what they can't carry, and on the size of the cache of data sets."""
        data, splits, cache = self.data, self.splits, self.sweep.cache
        parts = {"pre-training": splits.train, "validation": splits.val, "test": splits.test}
        counts = [
            f"{len(rows):,} images of {len(set(data.patients[rows])):,} patients for {name}"
            for name, rows in parts.items()
        ]
        lines = [f"Data: {data.name}, {', '.join(counts)}; {self.amounts.steps:,} pre-training steps."]
        lines += small_data.sentences(self.amounts)
        if cache is not None:
            files = [path.stat().st_size for path in cache.rglob("*") if path.is_file()]
            lines.append(f"The cache {cache} holds {sum(files) / 1e6:.0f} MB (make clean-cache empties it).")
        return lines

    def put_aside(self) -> None:
        """Move the grid's finished runs to results/.old/, so that they run again and nothing is lost. All leases are
        held meanwhile. Raises ValueError, and moves nothing, if another command works on one of them."""
        leases = Leases(self.sweep.results)
        with ExitStack() as held:
            for run in self.sweep.runs:
                if not held.enter_context(leases.hold(run.run_id, self.sweep.command_id)):
                    raise ValueError(f"--fresh: another command is at work on {run.run_id}: wait for it, or stop it.")
            for run in self.sweep.runs:
                folder = self.sweep.results / run.run_id
                if folder.exists():
                    target = self.sweep.results / ".old" / f"{run.run_id}-{time.strftime('%Y%m%d-%H%M%S')}"
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.move(folder, target)


def plan(options: RunOptions) -> Plan:
    """Check everything that can be checked before training.

    Raises ValueError or OSError with a sentence that says what is wrong and what would be right.
    """
    if options.launcher not in get_args(Launcher):
        raise ValueError(
            f"unknown launcher '{options.launcher}': {suggest(options.launcher, list(get_args(Launcher)))}"
        )
    launch = _launch_options(options)
    plugins = tuple(options.plugin or ())
    load_plugins(plugins)
    changes = {**changes_of(options), **dict(map(read_change, options.changes or ()))}  # --set comes last and wins
    grid = load_grid(options.preset, options.spec, changes)
    if not grid.runs():
        raise ValueError("the grid is empty: name at least one method and one seed.")
    if not grid.evaluation.labels or not grid.evaluation.probes:
        raise ValueError("nothing is evaluated: name at least one of --labels and one of --probes.")
    lesions = _check_methods(grid)
    check_ranks(options.ranks, grid.train.batch)
    check_reports(options.reports)
    cache = options.cache or default_cache()
    check_folder(cache, "--cache (or BENCH_CACHE)")
    root = Path(grid.data.root) if grid.data.root else None
    data = load(grid.data.name, grid.encoder.image_size, root, cache, **grid.data.options)
    if lesions and data.masks is None:
        raise ValueError(f"{', '.join(lesions)} needs lesion masks, and data set '{data.name}' has none: leave it out.")
    splits, amounts = _check_data(grid, data)
    check_folder(options.results, "--results")
    check_folder(options.reports, "--reports")
    sweep = Sweep(
        runs=tuple(grid.runs(data.fingerprint)),
        evaluation=grid.evaluation,
        finetune=grid.finetune,
        results=options.results,
        cache=cache,
        threads=launch.slurm.threads
        if launch.launcher == "slurm"
        else max(1, cores() // (launch.workers * options.ranks)),
        plugins=plugins,
        checkpoint_minutes=options.checkpoint_minutes,
        ranks=options.ranks,
        requeues=launch.slurm.requeues,
        command_id=uuid.uuid4().hex,
        command_started=clock_of(options.results),
    )
    return Plan(grid, sweep, data, splits, amounts, launch)


def _launch_options(options: RunOptions) -> LaunchOptions:
    """How the grid is executed. Raises ValueError for options that contradict each other."""
    launcher, ranks = cast(Launcher, options.launcher), options.ranks
    if options.slurm and launcher != "slurm":
        raise ValueError(f"--slurm is for --launcher slurm, and this is --launcher {launcher}.")
    if options.workers and launcher != "local":
        raise ValueError(f"--workers is for --launcher local, and this is --launcher {launcher}.")
    if options.detach and launcher != "slurm":
        raise ValueError(f"--detach is for --launcher slurm, and this is --launcher {launcher}.")
    if ranks > 1 and launcher == "inline":
        raise ValueError(f"--ranks {ranks} needs several processes: use --launcher local or slurm.")
    slurm = read_options(options.slurm or ())
    if launcher == "slurm":
        parameters(slurm, ranks)
        return LaunchOptions(launcher, 1, 0, slurm)
    gpus = 0 if launcher == "inline" else _gpus()
    if 0 < gpus < ranks:
        raise ValueError(f"--ranks {ranks} needs {ranks} GPUs, and this machine has {gpus}.")
    count = 1 if launcher == "inline" else options.workers or max(1, (gpus or cores()) // ranks)
    return LaunchOptions(launcher, count, gpus)


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()


def _check_methods(grid: GridSpec) -> list[str]:
    """Check encoder, methods, views and shares, which needs no data. Returns the methods that need lesion masks."""
    import torch

    from bench.training.batches import views_of
    from methods.attention import backend_core

    with torch.random.fork_rng(devices=[]):
        built = {method.name: _build(method, grid.encoder) for method in grid.parsed_methods()}
    backend_core(grid.train.attention, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    views_of(grid.runs()[0])
    check_shares(grid.data.val, grid.data.test)
    return [name for name, objective in built.items() if objective.encoder.strategy.needs_lesions]


def _build(method: Method, encoder: EncoderSpec) -> Objective:
    from bench.training.build import build

    try:
        return build(method, encoder, 0)
    except (ValueError, FileNotFoundError):
        raise
    except Exception as error:
        if not code_of(method.objective, method.strategy):
            raise
        raise ValueError(
            f"{method.name}, defined by a plug-in, can't be built: {type(error).__name__}: {error}; fix its class."
        ) from error


def _check_data(grid: GridSpec, data: Dataset) -> tuple[Splits, Amounts]:
    """Check that the data fill a batch, that the label fractions can be drawn and that some finding can be scored.
    Returns how they are split, and how much there is."""
    from bench.training.build import steps_of

    splits = make_splits(data, grid.data.split_seed, grid.data.val, grid.data.test)
    if len(splits.train) < 2:
        raise ValueError(
            f"only {len(splits.train)} of {len(data.images)} images are left for training, which needs at least two."
        )
    if steps_of(len(splits.train), grid.train) == 0:
        raise ValueError(
            f"{len(splits.train)} training images do not fill a batch of {grid.train.batch}: use --set train.batch=N."
        )
    drawn = draws_of(grid, data, splits)
    _check_scores(grid, data, splits, drawn)
    return splits, amounts_of(grid, data, splits, drawn)


def _check_scores(grid: GridSpec, data: Dataset, splits: Splits, drawn: Draws) -> None:
    """Raise ValueError if no finding has both classes among the images that are scored, or in a label fraction."""
    asked = grid.evaluation.split
    rows = splits.val if asked == "val" else splits.test
    parts = {f"the {asked} images": rows}
    parts |= {f"{percent:g} % of the labels": images[0] for percent, images in drawn.items()}
    scored = None
    for name, index in parts.items():
        both = (data.labels[index] == 1).any(0) & (data.labels[index] == 0).any(0)
        scored = both if scored is None else scored
        if not (scored & both).any():
            raise ValueError(
                f"no finding of data set '{data.name}' ({', '.join(data.label_names)}) is both present and absent in "
                f"{name}, so nothing can be scored: use more data, other findings or larger --labels."
            )
