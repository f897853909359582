"""`python -m bench.report`: results/ -> reports/. It only reads records, and never trains or measures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import typer

from bench.messages import exit_on, plain, plain_lines
from bench.specs.options import Options, Reports, Results, examples, takes

app = typer.Typer(add_completion=False)
EXAMPLES = (
    "python -m bench.report",
    "python -m bench.report --results my-results --reports my-report",
)


@dataclass(frozen=True, kw_only=True)
class ReportOptions(Options):
    """The command line of `bench.report`."""

    results: Results = Path("results")
    reports: Reports = Path("reports")


@app.command(epilog=examples(*EXAMPLES))
@takes(ReportOptions)
def main(options: ReportOptions) -> None:
    """Write the report on all finished runs: tables, figures and a summary in sentences."""
    from bench.analysis.outputs import check_reports
    from bench.analysis.read.groups import ReportRefused

    with exit_on(ValueError, OSError, code=2, where="--results and --reports"):
        check_reports(options.reports)
    from bench.analysis.page import write_report  # brings pandas and seaborn

    try:
        with exit_on(OSError, code=2, where="--results and --reports"):
            summary = write_report(options.results, options.reports)
    except ReportRefused as refused:
        typer.echo(f"The report is refused. {plain_lines(str(refused))}", err=True)
        raise typer.Exit(1) from None
    for group in summary.groups:
        typer.echo(f"\n{group.table}\n")
        for sentence in group.finding:
            typer.echo(f"- {plain(sentence)}")
    typer.echo(f"\nReport: {summary.path}")


if __name__ == "__main__":
    app()
