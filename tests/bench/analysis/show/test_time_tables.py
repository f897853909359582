"""The cost table at the scale of the literature: which one is shown, and that its ratios are those of its rows."""

from __future__ import annotations

import json

import pandas as pd
import pytest

from bench.analysis import page
from bench.analysis.read.frames import COST_COLUMNS, cost_csv, cost_frame, table_frame
from bench.analysis.show import cost_plots, time_tables
from bench.records.record import CostTable

HERE = "this very machine, 2 cores"
LARGE = {"encoder": "vit_small_patch16_224", "image_size": 224, "channels": 3, "batch": 8, "threads": 2}


@pytest.fixture(autouse=True)
def here(monkeypatch):
    monkeypatch.setattr(time_tables, "machine", lambda: HERE)


@pytest.fixture
def folders(tmp_path, synthetic):
    """Results, and what was committed with the code; `write(folder, finished, **changes)` adds a table."""
    methods = [synthetic.Method("simclr/dense", 0.8), synthetic.Method("simclr/sparsecontrast", 0.8, 0.5)]
    methods[1].speed = (1.8, 1.7, 1.5)

    def write(folder, finished, **changes):
        synthetic.write_cost(folder, methods, finished=finished, **({"machine": HERE} | LARGE | changes))

    return tmp_path / "results", tmp_path / "committed", write


def test_the_newest_of_this_machine_wins_over_newer_ones_of_others(folders):
    results, committed, write = folders
    write(committed, "2026-09-01T00:00:00Z", machine="theirs")
    write(results, "2026-01-01T00:00:00Z")
    write(results, "2026-02-01T00:00:00Z")
    write(results, "2026-08-01T00:00:00Z", machine="theirs")
    write(results, "2026-08-02T00:00:00Z", image_size=448)
    write(results, "2026-08-03T00:00:00Z", encoder="vit_tiny_patch16_224")
    ratios = [f"{kind}_speedup{end}" for kind in ("train", "run") for end in ("", "_low", "_high")]
    write(results, "2026-08-04T00:00:00Z", **dict.fromkeys(["train_ms", *ratios]))
    found = time_tables.large_table(results, committed)
    assert found.own
    assert found.table.finished == "2026-02-01T00:00:00Z"
    table = time_tables.at_large_scale(found)
    assert "Measured on this machine: this very machine" in table.note


def test_else_the_committed_one_with_its_machines_name(folders):
    results, committed, write = folders
    assert time_tables.large_table(results, committed) is None
    write(results, "2026-08-01T00:00:00Z", machine="theirs")
    write(committed, "2026-03-01T00:00:00Z", machine="the lab's")
    found = time_tables.large_table(results, committed)
    assert not found.own
    assert found.machine == "the lab's"
    assert "another machine (committed with the code): the lab's" in time_tables.at_large_scale(found).note


def test_a_newer_table_of_fewer_methods_takes_no_ones_place(folders, synthetic):
    """As when several sizes are measured with a few methods, this one among them."""
    results, committed, write = folders
    for folder in (results, committed):
        write(folder, "2026-01-01T00:00:00Z")
        synthetic.write_cost(
            folder, [synthetic.Method("simclr/dense", 0.8)], finished="2026-02-01T00:00:00Z", machine=HERE, **LARGE
        )
        assert time_tables.large_table(results, committed).table.finished == "2026-01-01T00:00:00Z"
        assert time_tables.large_table(results / "none", folder).table.finished == "2026-01-01T00:00:00Z"


def test_ratios_of_time_and_macs(folders):
    results, committed, write = folders
    write(results, "2026-01-01T00:00:00Z")
    path = next((results / "cost").glob("*.json"))
    stored = json.loads(path.read_text())
    stored["rows"][1] |= {"infer_gmacs": 0.0041 / 2, "train_gmacs": 0.026 / 1.9}
    path.write_text(json.dumps(stored))
    found = time_tables.large_table(results, committed)
    table = time_tables.at_large_scale(found)
    sparse = table.rows[1]
    columns = [i for i, name in enumerate(table.columns) if name.endswith("time / MACs")]
    assert [sparse[i] for i in columns] == [f"{1.8 / 2:.2f}", f"{1.7 / 1.9:.2f}"]
    frame = table_frame(found.table)
    assert frame.loc[1, "train_macs_ratio"] == pytest.approx(1.9)
    assert frame.loc[1, "train_time_over_macs"] == pytest.approx(1.7 / 1.9)
    assert "peak MiB" not in table.columns
    text = cost_csv(cost_frame(results))
    assert text.splitlines()[0] == ",".join(COST_COLUMNS)
    assert cost_csv(pd.DataFrame()).strip() == ",".join(COST_COLUMNS)


def test_what_was_not_measured_is_called_that(folders):
    results, committed, write = folders
    none = dict.fromkeys(
        ["train_ms", "saved_mib", *(f"{k}_speedup{e}" for k in ("train", "run") for e in ("", "_low", "_high"))]
    )
    write(results, "2026-01-01T00:00:00Z", **none)
    row = cost_frame(results).iloc[1]
    assert time_tables.speed_cell(row, "train") == "not measured"
    assert time_tables.number(row["train_ms"], ".1f") == "not measured"
    assert time_tables.speed_cell(row, "infer") == "1.80 [1.76, 1.84]"
    assert "step" not in time_tables.floor_text(row)


@pytest.mark.parametrize("own", [True, False])
def test_the_report_carries_it_and_cost_csv_too(folders, synthetic, monkeypatch, tmp_path, own):
    results, committed, write = folders
    monkeypatch.setattr(time_tables, "COMMITTED", committed)
    monkeypatch.setattr(time_tables.large_table, "__defaults__", (committed,))
    world = synthetic.World(patients=40, seeds=(0,), probes=("linear",), fractions={10.0: 1.0})
    synthetic.write_results(results, world, [synthetic.Method("simclr/dense", 0.8)])
    parts = {"blocks_ms": 3.0, "heads_ms": 1.0, "views_ms": 0.4}
    write(results if own else committed, "2026-03-01T00:00:00Z", machine=HERE if own else "the lab's", **parts)
    reports = tmp_path / "reports"
    (reports / "figures").mkdir(parents=True)
    (reports / "figures" / "cost-parts-x.png").write_text("of bench.cost")
    (reports / "figures" / "9-old-labels.png").write_text("of an earlier report")
    page.write_report(results, reports)
    text = (reports / "report.md").read_text()
    assert "Cost at the scale of the literature: ViT-S/16, 224 px" in text
    assert ("Not measured on this machine. Values below were measured on: the lab's" in text) is not own
    assert "1.70 \\[1.67, 1.73\\]" in text
    assert "ViT-S/16" in (reports / "report.tex").read_text()
    figures = {path.name for path in (reports / "figures").iterdir()}
    assert {"cost-parts-x.png", "vit-small-parts.png"} <= figures
    assert "9-old-labels.png" not in figures
    cost = pd.read_csv(reports / "cost.csv")
    assert set(cost[cost["encoder"] == LARGE["encoder"]]["machine"]) == {HERE if own else "the lab's"}


def test_without_one_the_report_says_how_to_get_it(synthetic, monkeypatch, tmp_path):
    monkeypatch.setattr(time_tables.large_table, "__defaults__", (tmp_path / "none",))
    world = synthetic.World(patients=40, seeds=(0,), probes=("linear",), fractions={10.0: 1.0})
    synthetic.write_results(tmp_path / "results", world, [synthetic.Method("simclr/dense", 0.8)])
    page.write_report(tmp_path / "results", tmp_path / "reports")
    assert "python -m bench.cost --encoder vit" in (tmp_path / "reports" / "report.md").read_text()


def read(folder) -> CostTable:
    return CostTable.model_validate_json(next((folder / "cost").glob("*.json")).read_bytes())


def test_the_bars_are_as_long_as_the_parts(folders, monkeypatch, tmp_path):
    results, _, write = folders
    write(results, "2026-01-01T00:00:00Z", blocks_ms=3.0, heads_ms=1.0, views_ms=0.5)
    drawn = []
    real = cost_plots.plt.Axes.barh
    monkeypatch.setattr(
        cost_plots.plt.Axes,
        "barh",
        lambda self, y, width, **k: (
            drawn.append((k["label"], list(k["left"]), list(width))) or real(self, y, width, **k)
        ),
    )
    rows = read(results).rows
    assert cost_plots.parts(rows, tmp_path, "parts")
    n = len(rows)
    assert drawn == [
        ("making the views", [0.0] * n, [0.5] * n),
        ("blocks", [0.5] * n, [3.0] * n),
        ("heads and loss", [3.5] * n, [1.0] * n),
    ]
    assert (tmp_path / "parts.png").stat().st_size > 5000
    assert not cost_plots.parts([row.model_copy(update={"blocks_ms": None}) for row in rows], tmp_path, "none")


def test_cost_against_tokens_is_on_log_axes_and_needs_two_sizes(folders, monkeypatch, tmp_path):
    results, _, write = folders
    for day, size in enumerate((224, 448)):
        write(
            results,
            f"2026-01-0{day + 1}T00:00:00Z",
            image_size=size,
            infer_attention_gmacs=0.001,
            infer_attention_share=0.4,
        )
    frame = cost_frame(results)
    canvases = []
    monkeypatch.setattr(cost_plots, "save", lambda canvas, folder, name: canvases.append(canvas))
    assert not cost_plots.scaling(frame[frame["image_size"] == 224], {224: 196}, tmp_path, "one")
    assert cost_plots.scaling(frame, {224: 196, 448: 784}, tmp_path, "two")
    infer, train, share = canvases[0].axes
    assert all(axes.get_xscale() == axes.get_yscale() == "log" for axes in (infer, train))
    named = {line.get_label(): list(line.get_ydata()) for line in infer.lines}
    assert named.keys() == {"simclr/dense", "simclr/sparsecontrast", "grows as N", "grows as N²"}
    start = named["simclr/dense"][0]
    assert named["grows as N"] == pytest.approx([start, 4 * start])
    assert named["grows as N²"] == pytest.approx([start, 16 * start])
    (legend,) = canvases[0].legends
    assert [text.get_text() for text in legend.get_texts()] == ["simclr/dense", "simclr/sparsecontrast"]
    assert [text.get_text() for text in infer.get_xticklabels()] == ["196 (224 px)", "784 (448 px)"]
    assert all(list(line.get_xdata()) == [196, 784] for line in infer.lines)
    assert sorted({round(float(y)) for line in share.lines for y in line.get_ydata()}) == [24, 40]
