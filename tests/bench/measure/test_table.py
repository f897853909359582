"""A cost table of a tiny encoder, end to end, and run speed-ups from times that are made up."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric

from bench.measure import table
from bench.measure import timed_method as module
from bench.measure.inputs import random_views
from bench.measure.paired import PairedTimes
from bench.measure.peak import NotMeasured
from bench.measure.table import AGAIN, Measurement, measure, timed_names
from bench.measure.timed_method import TimedMethod
from bench.records.record import PARTS, CostRow, CostTable
from bench.specs.run_spec import EncoderSpec, MeasureSpec, TrainSpec
from methods.names import parse_methods
from methods.schedule import keep_at, kept_tokens

TINY = EncoderSpec(name="vit_stem_d64_l4_patch8", image_size=32)
TRAIN = TrainSpec(batch=4, ramp=0.4)
SPEC = MeasureSpec(rounds=3, batch=4)


@pytest.fixture(scope="module")
def measured() -> CostTable:
    methods = parse_methods("sparsecontrast,dynamicvit,moco/tokenlearner,patchdropout,untrained,oracle")
    seen: list[int] = []
    before = torch.get_num_threads()
    done = measure(Measurement(methods, TINY, TRAIN, SPEC, 1), progress=lambda done, rounds: seen.append(done))
    assert sorted(set(seen)) == [1, 2, 3]
    assert seen[-1] == 3  # a round that is judged anew at the end is reported twice
    assert torch.get_num_threads() == before
    return done


def rows(measured: CostTable) -> dict[str, CostRow]:
    return {row.method: row for row in measured.rows}


def test_dense_first_and_again_last_and_no_floors(measured: CostTable) -> None:
    names = [row.method for row in measured.rows]
    assert names == [
        "simclr/dense",
        "simclr/sparsecontrast",
        "simclr/dynamicvit",
        "moco/tokenlearner",
        "simclr/patchdropout",
        "simclr/oracle",
        AGAIN,
    ]
    assert [name for name, _ in timed_names(parse_methods("dense,dense,sparsecontrast"))] == [
        "simclr/dense",
        "simclr/sparsecontrast",
        AGAIN,
    ]


def test_rows_say_what_was_measured(measured: CostTable) -> None:
    row = rows(measured)
    for one in row.values():
        assert (one.batch, one.rounds, one.threads, one.image_size, one.channels) == (4, 3, 1, 32, 1)
        for kind in ("infer", "train", "run"):
            low, value, high = (getattr(one, f"{kind}_speedup{end}") for end in ("_low", "", "_high"))
            assert 0 < low <= value <= high
        assert one.infer_ms > 0
        assert one.train_ms > one.infer_ms
        assert one.saved_mib > 0
    dense = row["simclr/dense"]
    assert (dense.infer_speedup, dense.train_speedup, dense.run_speedup) == (1.0, 1.0, 1.0)
    assert dense.keep is None
    assert dense.ramp is None
    assert row["moco/tokenlearner"].keep is None
    assert (row["simclr/sparsecontrast"].keep, row["simclr/sparsecontrast"].keep_effective) == (0.5, 0.5)
    assert row["simclr/dynamicvit"].keep == 0.7
    assert row["simclr/dynamicvit"].train_execution == "masked"
    assert row["simclr/patchdropout"].keep == 0.5
    assert row["simclr/patchdropout"].keep_effective > 0.5
    assert row["simclr/sparsecontrast"].ramp == 0.4
    assert row["simclr/sparsecontrast"].train_execution == "gathered"
    assert row["simclr/sparsecontrast"].train_gmacs < dense.train_gmacs < row["simclr/dynamicvit"].train_gmacs
    assert row["simclr/patchdropout"].infer_gmacs == dense.infer_gmacs == row[AGAIN].infer_gmacs


def test_masked_training_gets_no_credit(measured: CostTable) -> None:
    """Every step of its run costs what the measured step does, whatever that was."""
    row = rows(measured)["simclr/dynamicvit"]
    assert row.run_speedup == row.train_speedup
    assert not row.ramps


def test_table_survives_the_disk(measured: CostTable) -> None:
    assert CostTable.model_validate_json(measured.model_dump_json()) == measured
    assert "disturbed_rounds" in measured.environment
    assert measured.environment["threads"] == 1


def timed(method: str) -> TimedMethod:
    fabric = Fabric(accelerator="cpu", devices=1)
    return TimedMethod(method, parse_methods(method)[0], TINY, TRAIN, random_views(TINY, 2), fabric)


@pytest.mark.parametrize("ramp", [0.3, 0.4, 1.0])
def test_run_speedup_integrates_the_ramp(ramp: float) -> None:
    """Steps that take a + b k + c k^2 by design: the speed-up is that of the steps summed one by one."""
    sparse = timed("simclr/sparsecontrast")
    assert sparse.points == [8, 11, 15]

    def cost(k: float) -> float:
        return 1.0 + 0.3 * k + 0.02 * k * k

    seconds = {"simclr/dense train 16": np.array([10.0, 20.0, 30.0])}
    slower = np.array([1.0, 2.0, 3.0])  # the machine slows, both alike
    seconds |= {f"{sparse.name} train {k}": cost(k) * slower for k in sparse.points}
    steps = 4000
    kept = [kept_tokens(16, keep_at(i / steps, 0.5, ramp)) for i in range(steps)]
    expected = 10.0 / np.mean([cost(k) for k in kept])
    found = sparse.run_speedup(PairedTimes(seconds, 0, 0), "simclr/dense train 16", ramp)
    assert found.median == pytest.approx(expected, rel=1e-3)
    assert found.low == pytest.approx(found.high)
    assert 10.0 / cost(16) < found.median < 10.0 / cost(8)


def test_every_ramp_comes_from_the_same_steps(measured: CostTable) -> None:
    for row in measured.rows:
        if row.ramp is None:
            assert not row.ramps
            continue
        assert [one.ramp for one in row.ramps] == [0.3, 0.5, 1.0]
        assert all(0 < one.low <= one.speedup <= one.high for one in row.ramps)


def test_what_is_timed_is_a_training_step_at_that_keep(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    real = module.train_step

    def spy(*args: object) -> object:
        loss = real(*args)  # type: ignore[arg-type]
        calls.append(16 if loss.encoding.kept is None else int(loss.encoding.kept[0].sum()))
        return loss

    monkeypatch.setattr(module, "train_step", spy)
    one = timed("moco/sparsecontrast")
    before = {name: value.clone() for name, value in one.objective.state_dict().items()}
    timed_calls = one.calls()
    assert list(timed_calls) == [f"{one.name} infer", *(f"{one.name} train {k}" for k in (8, 11, 15))]
    timed_calls[f"{one.name} infer"]()
    assert calls == []
    assert all(torch.equal(v, before[k]) for k, v in one.objective.state_dict().items())
    for k in (8, 11, 15):
        timed_calls[f"{one.name} train {k}"]()
    assert calls == [8, 11, 15]
    after = one.objective.state_dict()
    for part in ("encoder.strategy.predictor", "projector", "teacher_encoder.vit.blocks"):
        assert any(not torch.equal(before[k], after[k]) for k in before if k.startswith(part)), part


def test_keep_as_asked() -> None:
    assert [parse_methods(m)[0].keep for m in ("dense", "fixed[keep=0.3]", "dynamicvit", "tokenlearner")] == [
        None,
        0.3,
        0.7,
        None,
    ]


def test_path_names_what_is_measured(tmp_path) -> None:  # type: ignore[no-untyped-def]
    methods = parse_methods("sparsecontrast")

    def path(rounds: int = 3, threads: int = 1, lr: float = 1e-3) -> str:
        spec, train = MeasureSpec(rounds=rounds, batch=4), TrainSpec(lr=lr)
        return str(Measurement(methods, TINY, train, spec, threads).path(tmp_path))

    assert path() == path(lr=1.0)  # no matter to the cost
    assert len({path(), path(rounds=4), path(threads=2)}) == 3
    assert path().startswith(str(tmp_path / "cost"))
    assert path().endswith(".json")


def test_an_attention_backend_that_cannot_run_is_refused() -> None:
    if torch.cuda.is_available():
        pytest.skip("xformers runs on a GPU")
    with pytest.raises(ValueError, match="needs a CUDA GPU"):
        measure(Measurement([], TINY, TrainSpec(attention="xformers"), SPEC, 1))


def test_detail_says_where_time_and_memory_go(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def peak(method: str, *args: object) -> tuple[float, str]:
        asked.append(method)
        if method == "moco/dense":
            raise NotMeasured("moco/dense: exit code -9, no word")
        return 7.0, "process"

    monkeypatch.setattr(table, "peak_of_training", peak)
    done = measure(Measurement(parse_methods("sparsecontrast,moco/dense"), TINY, TRAIN, SPEC, 1), detail=True)
    dense, sparse, moco, again = done.rows
    assert asked == ["simclr/dense", "simclr/sparsecontrast", "moco/dense", "simclr/dense"]
    assert [row.peak_mib for row in done.rows] == [7.0, 7.0, None, 7.0]
    assert done.environment["peaks_not_measured"] == ["moco/dense: exit code -9, no word"]
    for row in done.rows:
        steps = [row.part(part) or 0.0 for part in PARTS if part != "views"]
        assert sum(steps) == pytest.approx(row.train_ms)
        assert row.views_ms == dense.views_ms > 0
        assert 0 < row.infer_attention_share < 1
        assert 0 < row.infer_attention_gmacs < row.infer_gmacs
    assert dense.predictor_ms is dense.teacher_ms is sparse.teacher_ms is None
    assert sparse.predictor_ms > 0
    assert moco.teacher_ms > 0
    assert sparse.infer_attention_gmacs == pytest.approx(dense.infer_attention_gmacs / 4)  # half the tokens, squared
    assert again.blocks_ms > 0


def test_training_can_be_left_out() -> None:
    done = measure(Measurement(parse_methods("sparsecontrast"), TINY, TRAIN, SPEC, 1, training=False), detail=True)
    for row in done.rows:
        values = (row.train_ms, row.train_speedup, row.run_speedup_low, row.saved_mib, row.peak_mib, row.blocks_ms)
        assert values == (None,) * 6
        assert row.infer_ms > 0
        assert row.train_gmacs > row.infer_gmacs


def test_a_table_of_before_is_still_read(measured: CostTable) -> None:
    """Without the fields that came later."""
    new = ("attention", "infer_attention_gmacs", "infer_attention_share", "peak_mib", "peak_of")
    stored = measured.model_dump(mode="json", exclude={"rows": {"__all__": {*new, *(f"{part}_ms" for part in PARTS)}}})
    assert CostTable.model_validate(stored).rows[1].train_ms == measured.rows[1].train_ms
    assert CostTable.model_validate(stored).rows[1].attention == "sdpa"
