"""Is the smoke grid's report there and whole? Used by .ci/run: `python -m tests.check_report RESULTS REPORTS`."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd

from bench.records.store import Store
from bench.specs.grid_spec import load_grid
from bench.specs.options import default_cache
from datasets import load


def main(results: Path, reports: Path) -> None:
    grid = load_grid("smoke")
    store = Store(results)
    data = load(grid.data.name, grid.encoder.image_size, cache=default_cache(), **grid.data.options)
    runs = grid.runs(data.fingerprint)
    missing = [run.run_id for run in runs if not store.done(run.run_id)]
    assert not missing, f"runs not done: {missing}"
    page = (reports / "report.md").read_text(encoding="utf-8")
    for method in grid.parsed_methods():
        assert method.name in page, f"{method.name} is not in the report"
    for word in ("no evidence", "95 %", "MACs", "patients"):
        assert word in page, f"the report does not say '{word}'"
    table = pd.read_csv(reports / "results.csv")
    wanted = {(run.run_id, percent) for run in runs for percent in grid.evaluation.labels if run.labels is None}
    got = set(zip(table["run_id"], table["labels"], strict=True))
    assert wanted <= got, f"evaluations missing from results.csv: {sorted(wanted - got)}"
    assert table["macro_auroc"].between(0, 1).all(), "an AUROC is out of range"
    cost = pd.read_csv(reports / "cost.csv")
    assert "simclr/dense#2" in set(cost["method"]), "the A/A row is missing from cost.csv"
    assert (cost[["infer_ms", "train_ms", "infer_gmacs", "train_gmacs"]] > 0).all(axis=None), "a cost is not positive"
    figures = list((reports / "figures").glob("*.png"))
    assert len(figures) >= 3, f"only {len(figures)} figures"
    assert all(figure.stat().st_size > 5000 for figure in figures), "a figure is blank"
    linked = [line.split("](")[1].split(")")[0] for line in page.splitlines() if line.startswith("![")]
    assert linked, "the report shows no figure"
    for link in linked:
        assert (reports / link).exists(), f"the report links to {link}, which is not there"
    compile_latex(reports)
    print(f"The report is whole: {len(runs)} runs, {len(table)} evaluations, {len(figures)} figures.")


def compile_latex(reports: Path) -> None:
    """report.tex compiles in a minimal document with booktabs."""
    if shutil.which("pdflatex") is None:
        print("pdflatex is not installed: report.tex was not compiled.")
        return
    wrapper = r"\documentclass{article}\usepackage{booktabs,graphicx,longtable}\usepackage[margin=1cm]{geometry}"
    wrapper += r"\begin{document}\input{report.tex}\end{document}"
    (reports / "whole.tex").write_text(wrapper, encoding="utf-8")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "whole.tex"]
    done = subprocess.run(command, cwd=reports, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, f"report.tex does not compile:\n{done.stdout[-2000:]}"


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
