"""The figures in docs/cost.md are those of the committed tables, and the committed cost.csv is made from them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pandas as pd
import pytest
import torch

from bench.analysis.read.frames import cost_csv, cost_frame, table_frame
from bench.analysis.show.time_tables import large_table, speed_cell
from bench.measure import formula
from bench.measure.formula.products import by_part
from bench.measure.macs import count
from bench.records.record import CostTable
from bench.specs.run_spec import EncoderSpec, TrainSpec
from bench.training.build import build
from methods.names import parse_methods
from methods.strategies.strategy import Call

ROOT = Path(__file__).parents[1]
TABLES = ROOT / "results" / "reference"
DOC = (ROOT / "docs" / "cost.md").read_text(encoding="utf-8")
PART = DOC.split("## What the committed tables say")[1].split("\n## ")[0]
PROFILE = ROOT / "peers" / "results" / "operators-convnext_tiny-224.json"
VIT = "vit_small_patch16_224"
CONVNEXT = EncoderSpec(name="convnext_tiny", image_size=224, channels=3)
DEPTHWISE = "depthwise convolutions"


def rows(head: str) -> list[str]:
    """The rows of the table that begins with `head`."""
    return PART[PART.index(head) :].split("\n\n")[0].splitlines()[2:]


def as_row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def all_tables(encoder: str, batch: int) -> list[pd.DataFrame]:
    """The committed tables of an encoder, by image size and age; a row a method."""
    found = [CostTable.model_validate_json(path.read_bytes()) for path in sorted(TABLES.glob("cost/*.json"))]
    wanted = [one for one in found if (one.rows[0].encoder, one.rows[0].batch) == (encoder, batch)]
    wanted.sort(key=lambda one: (one.rows[0].image_size, one.finished))
    return [table_frame(one).set_index("method", drop=False) for one in wanted]


def tables(encoder: str, batch: int) -> dict[int, pd.DataFrame]:
    """Those of an encoder that was measured once at each image size, by that."""
    found = all_tables(encoder, batch)
    by_size = {int(frame["image_size"].iloc[0]): frame for frame in found}
    assert len(by_size) == len(found)
    return by_size


def speed_rows(frame: pd.DataFrame) -> list[str]:
    """A row a method: inference, step and run with what share of the MACs' ratio they reach, and memory."""
    expected = []
    for _, row in frame.iterrows():
        shares = [f"{row[f'{kind}_time_over_macs']:.2f}" for kind in ("infer", "train")]
        inference, step, run = (speed_cell(row, kind) for kind in ("infer", "train", "run"))
        expected.append(as_row(row["method"], inference, shares[0], step, shares[1], run, f"{row['saved_mib']:.0f}"))
    return expected


def test_vit_s_on_every_machine() -> None:
    frames = all_tables(VIT, 8)
    assert len(frames) == 2
    for frame in frames:
        assert rows(f"| {frame['machine'].iloc[0]} | inference |") == speed_rows(frame)


INFERENCE = f"operators-inference-{VIT}-224"


@pytest.mark.parametrize(("name", "batch"), [(INFERENCE, 8), (f"{INFERENCE}-batch2", 2)])
def test_where_the_time_of_inference_goes(name: str, batch: int) -> None:
    assert rows(f"| inference, batch {batch} |") == profile_rows(name)


def profile_rows(name: str) -> list[str]:
    """A row a kind of operator, most of dense's first: its ms, and how often a method's ms go into dense's."""
    found = json.loads((ROOT / "peers" / "results" / f"{name}.json").read_bytes())["rows"]
    dense, *others = [{"all, unwatched": row["step_ms"], **row["ms"]} for row in found]
    for one in (dense, *others):
        one["fused attention"] = one.pop("attention")
    shown = sorted((kind for kind, ms in dense.items() if ms >= 0.3), key=lambda kind: -dense[kind])
    return [as_row(kind, f"{dense[kind]:.1f}", *(f"{dense[kind] / one[kind]:.2f}" for one in others)) for kind in shown]


def test_macs_that_explain_dynamicvits_step() -> None:
    spec = EncoderSpec(name=VIT, image_size=224)
    names = ("dense", "dynamicvit", "dynamicvit[distil_weight=0]")
    dense, whole, without = (
        count(build(parse_methods(name)[0], spec, seed=0), spec, TrainSpec(), 0).train_step for name in names
    )
    said = f"its step is {dense / whole:.2f} of dense's speed, and {dense / without:.2f} without that branch"
    assert said in flat(DOC)


@pytest.mark.parametrize(("channels", "what"), [(3, "in RGB"), (1, "with one channel")])
def test_what_macs_allow_sparsecontrast(channels: int, what: str) -> None:
    spec = EncoderSpec(name=VIT, image_size=224, channels=channels)
    dense, sparse = (
        count(build(parse_methods(name)[0], spec, seed=0), spec, TrainSpec(), 0) for name in ("dense", "sparsecontrast")
    )
    inference, step = dense.inference / sparse.inference, dense.train_step / sparse.train_step
    text = flat((ROOT / "docs" / "sparsecontrast.md").read_text(encoding="utf-8"))
    found = re.search(rf"(\d\.\d\d)x (?:at inference )?and (\d\.\d\d)x (?:for a training step )?{what}", text)
    assert found is not None
    assert found.groups() == (f"{inference:.2f}", f"{step:.2f}")


def test_convnext_t() -> None:
    (frame,) = tables("convnext_tiny", 8).values()
    assert rows("| method | inference |") == speed_rows(frame)
    assert frame.loc["simclr/sparsecontrast", ["infer_time_over_macs", "train_time_over_macs"]].min() > 0.8


def test_what_its_profile_says() -> None:
    dense, sparse = json.loads(PROFILE.read_bytes())["rows"]
    assert [row["method"] for row in (dense, sparse)] == ["simclr/dense", "simclr/sparsecontrast"]
    times = {kind: tuple(row["ms"].get(kind, 0.0) for row in (dense, sparse)) for kind in dense["ms"] | sparse["ms"]}
    times["the step, unwatched"] = (dense["step_ms"], sparse["step_ms"])
    order = sorted(times, key=lambda kind: -times[kind][0])
    assert rows("| operators |") == [as_row(kind, *(f"{ms:.1f}" for ms in times[kind])) for kind in order]
    whole, without = (
        (dense["step_ms"] - less * times[DEPTHWISE][0]) / (sparse["step_ms"] - less * times[DEPTHWISE][1])
        for less in (0, 1)
    )
    encoder = build(parse_methods("dense")[0], CONVNEXT, seed=0).encoder
    products = formula.inference(encoder, torch.empty(1, 3, 224, 224), Call())
    assert products is not None
    macs = by_part(products)
    said = (
        f"They are {macs[DEPTHWISE] / sum(macs.values()):.1%} of dense's MACs and"
        f" {times[DEPTHWISE][0] / dense['step_ms']:.0%} of its time"
    )
    assert said in flat(PART)
    assert f"the step is {whole:.2f} times as fast; without them on either side it would be {without:.2f}" in flat(PART)


@pytest.mark.parametrize(("kind", "head"), [("infer", "inference"), ("train", "train step")])
def test_high_resolution(kind: str, head: str) -> None:
    frames = {size: one for size, one in tables(VIT, 2).items() if one[f"{kind}_ms"].notna().all()}
    sizes = as_row(head, *(f"{size} px" for size in frames))
    names = [name for name in frames[224].index if name != "simclr/dense"]
    ms = as_row("dense, ms", *(f"{one.loc['simclr/dense', f'{kind}_ms']:,.0f}" for one in frames.values()))
    speeds = [as_row(name, *(speed_cell(one.loc[name], kind) for one in frames.values())) for name in names]
    assert rows(sizes) == [ms, *speeds]


def test_attention_at_high_resolution() -> None:
    expected = []
    for name in ("simclr/dense", "simclr/sparsecontrast", "simclr/dynamicvit", "simclr/tome"):
        found = [one.loc[name] for one in tables(VIT, 2).values()]
        shares = [(row["infer_attention_gmacs"] / row["infer_gmacs"], row["infer_attention_share"]) for row in found]
        expected.append(as_row(name, *(f"{macs:.0%} / {spent:.0%}" for macs, spent in shares)))
    assert rows("| attention |") == expected


def test_dense_against_itself_many_times() -> None:
    printed = (ROOT / "peers" / "results" / f"aa-{VIT}.txt").read_text(encoding="utf-8")
    counts = []
    for kind in ("inference", "step"):
        found = re.findall(rf"{kind} (\S+) \[(\S+), (\S+)\]", printed)
        repeats = [tuple(map(float, one)) for one in found]
        assert len(repeats) == 20
        counts += [sum(abs(ratio - 1) <= 0.02 for ratio, _, _ in repeats)]
        counts += [sum(low <= 1 <= high for _, low, high in repeats)]
    near, hold, near_step, hold_step = counts
    assert (
        f"at inference {near} of 20 ratios within 1.00 ± 0.02 and {hold} intervals that hold 1; of a train step"
        f" {near_step} and {hold_step}"
    ) in flat(DOC)


def test_the_committed_csv_is_that_of_the_tables() -> None:
    text = (ROOT / "reports" / "reference" / "cost" / "cost.csv").read_text(encoding="utf-8")
    assert text == cost_csv(cost_frame(TABLES))
    found = large_table(TABLES / "none", TABLES)
    assert found is not None
    assert len(found.table.rows) > 6  # the table of all methods, not that of a few at several sizes


def flat(text: str) -> str:
    return " ".join(text.split())
