"""What a train step would take, estimated: against what it does take, and against the peaks of committed tables."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lightning_fabric import Fabric

from bench.measure import headroom
from bench.measure.inputs import random_views
from bench.measure.timed_method import TimedMethod
from bench.records.record import CostRow, CostTable
from bench.specs.run_spec import EncoderSpec, TrainSpec
from bench.training.build import build
from methods.names import Method, parse_methods

CPU = torch.device("cpu")
VIT = EncoderSpec(name="vit_stem_d64_l4_patch8", image_size=96)
CONVNEXT = EncoderSpec(name="convnext_d64_l6_patch8", image_size=96)
COMMITTED = sorted((Path(__file__).parents[3] / "results" / "reference" / "cost").glob("*.json"))


def test_a_line_and_a_square_through_two_sizes() -> None:
    by_hand = {n: 3.0 * n + 2.0 * n**2 for n in (16, 36, 4096)}
    found = headroom.grown([(16, by_hand[16]), (36, by_hand[36])], 4096)
    assert found == pytest.approx(headroom.MARGIN * by_hand[4096])
    assert headroom.grown([(16, 320.0)], 16) == headroom.MARGIN * 320
    assert headroom.grown([(16, 320.0), (36, 360.0)], 72) == headroom.MARGIN * 720  # never less than in proportion


@pytest.mark.parametrize(
    ("encoder", "method"),
    [
        (VIT, "dense"),
        (VIT, "sparsecontrast"),
        (VIT, "dynamicvit"),
        (VIT, "moco/topk"),
        (CONVNEXT, "dense"),
        (CONVNEXT, "sparsecontrast"),
    ],
    ids=lambda value: str(getattr(value, "name", value)),
)
def test_smaller_images_tell_what_a_larger_one_keeps(
    monkeypatch: pytest.MonkeyPatch, encoder: EncoderSpec, method: str
) -> None:
    """Estimated from 32 and 48 px for 96 px, and weighed there, with three images in the place of two. To within a
    tenth: SparseContrast's predictor is not as wide at every size."""
    monkeypatch.setattr(headroom, "NEAR", 32)
    monkeypatch.setattr(headroom, "FAR", 48)
    asked, train, fabric = parse_methods(method)[0], TrainSpec(), Fabric(accelerator="cpu", devices=1)

    def timed(size: int, batch: int) -> TimedMethod:
        spec = encoder.model_copy(update={"image_size": size})
        return TimedMethod(asked.name, asked, spec, train, random_views(spec, batch), fabric)

    weighed = timed(96, 3)
    geometry = weighed.objective.encoder.geometry
    stand_ins = headroom._stand_ins(encoder, geometry)
    assert [spec.image_size for spec in stand_ins] == [32, 48]
    points = [
        (one.objective.encoder.geometry.patches, one.most_saved() / 2)
        for one in (timed(spec.image_size, 2) for spec in stand_ins)
    ]
    estimate = 3 * headroom.grown(points, geometry.patches) / headroom.MARGIN
    assert estimate == pytest.approx(weighed.most_saved(), rel=0.1)


def test_what_does_not_fit_is_named_with_what_it_would_take(monkeypatch: pytest.MonkeyPatch) -> None:
    methods = parse_methods("dense,sparsecontrast,dynamicvit")
    geometry = build(methods[0], VIT, seed=0).encoder.geometry

    def left_out(free: float) -> dict[str, str]:
        return headroom.too_large(methods, VIT, geometry, TrainSpec(), 4, free)

    assert left_out(2.0**40) == {}
    none = left_out(0.0)
    assert list(none) == [method.name for method in methods]
    assert none["simclr/dense"].startswith("simclr/dense at 96 px: a step on 4 images would take about ")
    assert none["simclr/dense"].endswith("; 0.0 GiB are free")
    between = next(some for free in range(2**24, 2**32, 2**22) if len(some := left_out(free)) < 3)
    assert "simclr/dynamicvit" in between  # keeps attention maps
    assert "simclr/sparsecontrast" not in between or "simclr/dense" in between
    monkeypatch.setattr(headroom, "free_bytes", lambda device: None)
    assert headroom.too_large(methods, VIT, geometry, TrainSpec(), 4) == {}


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_the_estimate_covers_the_peaks_that_were_measured(path: Path) -> None:
    """Of every method in a process of its own, and not by far too much."""
    rows = [row for row in CostTable.model_validate_json(path.read_bytes()).rows if row.peak_mib is not None]
    for row in rows[:-1]:
        assert row.saved_mib is not None and row.peak_mib is not None
        estimate = _model_mib(row) + headroom.MARGIN * row.batch * row.saved_mib
        assert 0.95 * row.peak_mib < estimate < 1.4 * row.peak_mib, row.method


def _model_mib(row: CostRow) -> float:
    spec = EncoderSpec(name=row.encoder, image_size=row.image_size, channels=row.channels)
    objective, strategy = row.method.split("/")
    with torch.device("meta"):  # where weights are counted and not drawn
        return headroom._model_bytes(build(Method(objective, strategy), spec, seed=0)) / 2**20


def test_free_memory_is_what_the_system_and_the_control_groups_leave(tmp_path: Path) -> None:
    free = headroom.free_bytes(CPU)
    meminfo = Path("/proc/meminfo")
    if meminfo.exists() and not torch.cuda.is_available():
        total = next(int(line.split()[1]) for line in meminfo.read_text().splitlines() if line.startswith("MemTotal"))
        assert free is not None and 0 < free <= 1024 * total
    job = tmp_path / "cgroup" / "slurm" / "job"
    job.mkdir(parents=True)
    own = tmp_path / "own"
    own.write_text("1:cpu:/elsewhere\n0::/slurm/job\n")
    assert headroom._left_to_groups(tmp_path / "cgroup", own) == []
    (job / "memory.max").write_text("max\n")
    (job / "memory.stat").write_text("anon 300\nfile 9000\n")
    (job.parent / "memory.max").write_text("1000\n")
    (job.parent / "memory.stat").write_text("anon 400\nfile 9000\n")
    assert headroom._left_to_groups(tmp_path / "cgroup", own) == [600.0]
    (job / "memory.max").write_text("500\n")
    assert headroom._left_to_groups(tmp_path / "cgroup", own) == [200.0, 600.0]
    assert headroom._left_to_groups(tmp_path / "cgroup", tmp_path / "none") == []
