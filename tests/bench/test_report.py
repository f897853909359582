"""`bench.report` in process: the whole page from a results folder, refusals, exit codes."""

from __future__ import annotations

import json
import re
import shutil
import subprocess

import matplotlib.image
import pandas as pd
import pytest
from typer.testing import CliRunner

from bench.analysis.page import write_report
from bench.records.record import CostRow
from bench.report import app
from bench.specs.grid_spec import read_tuning


@pytest.fixture(scope="module")
def written(tmp_path_factory, synthetic):
    """A report on two data sets, one with names that break pages; (summary, folder of reports)."""
    root = tmp_path_factory.mktemp("report")
    synthetic.write_results(root / "results", synthetic.World(patients=80, seeds=(0, 1), draws=2))
    odd = synthetic.World(
        patients=60,
        seeds=(0,),
        data="own_data|50%",
        labels=("A_b & c", "50 % #1", "x|y"),
        notes=("Columns <left> out: *_x_*.",),
        fractions={10.0: 1.0},
    )
    methods = [synthetic.Method("simclr/dense", 0.8), synthetic.Method("simclr/sparsecontrast", 0.8, 0.5)]
    for method in methods:
        folder = synthetic.write_run(root / "results", odd, method, 0)
        path = folder / "record.json"
        record = json.loads(path.read_text())
        record["splits"]["hash"] = "0dd" * 20
        path.write_text(json.dumps(record))
    return write_report(root / "results", root / "reports"), root / "reports"


def test_the_page_begins_with_the_finding_and_is_whole(written):
    summary, reports = written
    page = (reports / "report.md").read_text()
    heads = re.findall(r"^#+ (.*)$", page, re.M)
    part = ["Finding", "Accuracy", "Cost", "Claims", "Training and selection", "Settings", "Notes"]
    assert heads[2:9] == part
    assert heads[10:17] == part
    assert len(summary.groups) == 2
    for sentence in summary.groups[1].finding:
        assert sentence.split(" [")[0].replace("_", "\\_") in page
    for words in (
        "Macro AUROC, kNN",
        "difference to dense",
        "difference to fixed",
        "by finding",
        "Macro AUPRC",
        "by subgroup",
    ):
        assert words in page
    assert read_tuning("quick")["sentence"].split(" Best at")[0] in page  # the preset's that the synthetic runs name
    assert "nan" not in page.lower().replace("finance", "")


def test_intervals_over_test_patients_alone_are_named_so_wherever_they_are_shown(written):
    """One group has two seeds, the other one: in every note, caption and sentence beside an interval."""
    summary, reports = written
    page = (reports / "report.md").read_text()
    alone = "95 % intervals: test patients alone (t); seeds, fewer than 3, are taken as they are"
    notes = [
        one for one in page.split("\n\n") if "Mean ± standard deviation over seeds \\[95" in one or "Paired:" in one
    ]
    notes += [one for one in page.split("\n\n") if one.startswith(("Label efficiency", "Macro AUROC at"))]
    assert len(notes) >= 12
    assert all(alone in one for one in notes)
    sentences = [one for group in summary.groups for one in group.finding if "macro AUROC" in one]
    assert len(sentences) >= 4
    assert all("interval over test patients alone" in one for one in sentences)
    assert "no front is drawn: 2 of the 5 seeds that it needs." in page
    assert "no method beyond it is both cheaper and better" not in page


def test_every_figure_named_is_there_and_not_blank(written):
    _, reports = written
    named = set(re.findall(r"\(figures/(.*?)\.png\)", (reports / "report.md").read_text()))
    assert len([name for name in named if name.startswith("2-phantom")]) == 4
    for name in named:
        picture = matplotlib.image.imread(reports / "figures" / f"{name}.png")[..., :3]
        assert picture.std() > 0.02
        assert (reports / "figures" / f"{name}.svg").stat().st_size > 2000
    assert {path.stem for path in (reports / "figures").iterdir()} == named


def test_the_tidy_data_agree_with_the_records(written):
    _, reports = written
    results = pd.read_csv(reports / "results.csv")
    needed = [
        "run_id",
        "method",
        "objective",
        "strategy",
        "encoder",
        "data",
        "keep",
        "keep_effective",
        "inference",
        "seed",
    ]
    assert set(needed + ["probe", "labels", "macro_auroc"]) <= set(results.columns)
    one = results[(results["method"] == "simclr/dense") & (results["labels"] == 10) & (results["probe"] == "knn")].iloc[
        0
    ]
    stored = json.loads((reports.parent / "results" / one["run_id"] / "evaluations" / "knn-10-pruned.json").read_text())
    assert one["macro_auroc"] == pytest.approx(stored["macro_auroc"])
    cost = pd.read_csv(reports / "cost.csv")
    own = [name for name in CostRow.model_fields if name != "ramps"]  # these have columns of their own
    assert list(cost.columns)[: len(own)] == own
    assert {f"run_speedup_ramp_{ramp}{end}" for ramp in ("0.3", "0.5", "1") for end in ("", "_low", "_high")} <= set(
        cost.columns
    )
    (dense,) = cost[cost["method"].eq("simclr/dense") & cost["encoder"].eq(one["encoder"])].to_dict("records")
    assert dense["train_macs_ratio"] == dense["train_time_over_macs"] == 1
    assert "simclr/dense#2" in set(cost["method"])


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not on PATH")
@pytest.mark.parametrize("packages", ["booktabs", "booktabs,graphicx"])
def test_the_latex_compiles_in_a_minimal_document(written, tmp_path, packages):
    _, reports = written
    shutil.copytree(reports, tmp_path / "r")
    text = (
        f"\\documentclass{{article}}\\usepackage{{{packages}}}\\begin{{document}}\\input{{report.tex}}\\end{{document}}"
    )
    (tmp_path / "r" / "main.tex").write_text(text)
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "main.tex"]
    done = subprocess.run(command, cwd=tmp_path / "r", capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout[-1500:]
    assert "undefined" not in (tmp_path / "r" / "main.log").read_text().lower()


def test_the_command_prints_the_table_and_the_finding(tmp_path, synthetic):
    world = synthetic.World(patients=90, seeds=(0,), probes=("linear",), fractions={10.0: 1.0}, preset="smoke")
    synthetic.write_results(tmp_path / "results", world, [synthetic.Method("simclr/dense", 0.8)], cost=False)
    done = CliRunner().invoke(app, ["--results", str(tmp_path / "results"), "--reports", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert re.search(r"simclr/dense\s+–\s+1\s+0\.\d{3} \[", done.output)
    assert "no evidence about any method" in done.output
    assert str(tmp_path / "out" / "report.md") in done.output.replace("\n", "")
    page = (tmp_path / "out" / "report.md").read_text()
    assert "says nothing about speed" in page
    assert (tmp_path / "out" / "cost.csv").read_text().startswith("method,encoder")


def test_strangers_are_refused_with_exit_code_1_and_leave_the_old_report(tmp_path, synthetic):
    world = synthetic.World(patients=40, seeds=(0, 1), probes=("linear",), fractions={10.0: 1.0})
    results = synthetic.write_results(tmp_path / "results", world, [synthetic.Method("simclr/dense", 0.8)], cost=False)
    arguments = ["--results", str(results), "--reports", str(tmp_path / "out")]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    before = (tmp_path / "out" / "report.md").read_text()
    path = sorted(results.glob("*/record.json"))[0]
    path.write_text(path.read_text().replace("f" * 64, "e" * 64))
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 1
    assert "refused" in done.output
    assert path.parent.name in done.output.replace("\n", "")
    assert (tmp_path / "out" / "report.md").read_text() == before


def test_nothing_to_report_on_is_exit_code_2(tmp_path):
    done = CliRunner().invoke(app, ["--results", str(tmp_path / "none"), "--reports", str(tmp_path / "out")])
    assert done.exit_code == 2
    assert "no record" in done.output
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_made_is_named(tmp_path, synthetic):
    results = synthetic.write_results(tmp_path / "results", synthetic.World(patients=40, seeds=(0,)))
    (tmp_path / "file").write_text("")
    done = CliRunner().invoke(app, ["--results", str(results), "--reports", str(tmp_path / "file" / "out")])
    assert done.exit_code == 2
    said = " ".join(done.output.split())
    assert said.startswith("Error: ")
    assert "(Not a directory): check --results and --reports." in said


def test_runs_that_all_failed_still_make_a_page(tmp_path, synthetic):
    world = synthetic.World(patients=40, seeds=(0,))
    synthetic.write_run(
        tmp_path / "r",
        world,
        synthetic.Method("simclr/dense", 0.8),
        0,
        status="failed",
        reason="out of memory",
        data=None,
        splits=None,
    )
    summary = write_report(tmp_path / "r", tmp_path / "out")
    assert summary.groups == ()
    assert "failed, out of memory" in (tmp_path / "out" / "report.md").read_text()
